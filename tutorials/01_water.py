# %% [markdown]
# # Water, from atoms to beads and back
#
# `nepcg quickstart` takes water from atoms to a coarse-grained model and writes a report. This tutorial walks the same
# way step by step in Python: boxes, an all-atom run, mean forces, training, a run of the beads, and the comparison of
# structure, pressure and speed. Everything is as short as it can be (a minute or two, most of it compiling, once); the
# numbers scatter accordingly. The settings of the real thing stand beside each step.

# %%
import warnings

import numpy as np
from ase import units
from ase.io import read

from ase_nepcg import MD, NEP, Mapping, analysis, plot, sample_many, train
from ase_nepcg.data import WATER_AA, water_box
from ase_nepcg.md import RDF, Langevin, Thermo
from ase_nepcg.quickstart.measure import molecular_pressure, ns_per_day

TEMPERATURE = 330  # K; at 300 K the hydrogen bonds of this model rearrange too slowly for short runs

# %% [markdown]
# ## Atoms
#
# The embedded all-atom model is a small NEP, trained on labels of a larger one (`ase_nepcg/data/README.md`). A lattice
# of molecules melts at 450 K, is brought to 330 K, and is then recorded every 20 fs. (The quickstart: 64 molecules at
# four densities, 4 + 8 ps, then 40 ps.)

# %%
atoms = water_box(3, density_g_cm3=1.0, seed=1)  # 27 molecules
atoms.calc = NEP(WATER_AA)
md = MD(atoms, 0.5, Langevin(450, 0.01), seed=1, progress=False)
md.run(1000)
md = MD(atoms, 0.5, Langevin(TEMPERATURE, 0.01), seed=2, progress=False)
md.run(2000)
md = MD(atoms, 0.5, Langevin(TEMPERATURE, 0.01), seed=3, trajectory="atoms.traj", loginterval=40, progress=False)
md.run(4000)
md.close()
frames = read("atoms.traj", "::")

# %% [markdown]
# ## Beads
#
# One bead per molecule, at its centre of mass. The label is a chemical symbol, so that other programs can read the
# files; the masses are those of the molecules.

# %%
mapping = Mapping.from_molecules(atoms, "Ar")
for finding in mapping.lint(atoms):
    print(finding)
beads = [mapping.beads(frame) for frame in frames]
print(len(atoms), "atoms,", len(beads[0]), "beads of", beads[0].get_masses()[0].round(3), "u")

# %% [markdown]
# ## Mean forces
#
# The beads of some configurations are held where they are, and the forces on them averaged over what the atoms do
# meanwhile. The configurations come from a run in equilibrium, so even a short average is right on average; the trained
# model averages over them again. That is why many short runs are better than a few long ones. (The quickstart: 44
# configurations per density, 0.3 ps each.)

# %%
chosen = frames[10::15]
for frame in chosen:
    frame.calc = atoms.calc
settings = {"temperature_K": TEMPERATURE, "equilibration_ps": 0, "time_ps": 0.3, "seed": 1, "progress": False}
with warnings.catch_warnings():
    # it says that these runs are too short for their error bars
    warnings.simplefilter("ignore", RuntimeWarning)
    results = sample_many(chosen, mapping, workers=1, **settings)
for result in results[:3]:
    print(result)

# %% [markdown]
# The virial of the beads is not that of the atoms: averaging removes the kinetic part of everything that is not a bead
# any more, `(N - n) kT` along each axis. `result.virial` has it in it; the pressure of a model trained without it is
# too low by:

# %%
missing = (len(atoms) - len(mapping)) * units.kB * TEMPERATURE / atoms.cell.volume / units.GPa
print(f"(N - n) kT / V = {missing:.3f} GPa")

# %% [markdown]
# ## Training
#
# The exact gradient of the loss and L-BFGS; a wall keeps beads out of distances that no frame contains. (The
# quickstart: 800 steps.)

# %%
data = [result.frame for result in results]
training = train(data[:-2], test=data[-2:], cutoff=(6.0, 4.0), zbl="repulsive", steps=60, seed=1, progress=False)
training.model.write("nep.txt")
report = training.report(data[-2:])
print(f"test frames: {report['force']:.3f} eV/Å off, of which {report['force_noise']:.3f} is noise of the reference")

# %% [markdown]
# ## The beads run
#
# Without bonds and hydrogens the time step may be eight times as long. (The quickstart: 10 + 200 ps at every density.)

# %%
liquid = beads[-1].copy()
liquid.calc = NEP("nep.txt")
md = MD(liquid, 4.0, Langevin(TEMPERATURE, 0.005), seed=4, progress=False)
md.run(500)
r_max, bins = 4.6, 46
thermo, rdf = md.attach(Thermo(), 10), md.attach(RDF(r_max, bins), 10)
md.run(5000)

# %% [markdown]
# ## Did it work?
#
# The beads against the centres of mass of the molecules, and the two pressures with their errors. The pressure of the
# atoms is taken from forces between molecules (the molecular virial), which scatters a sixth as much as the atoms' own.

# %%
ax = plot.rdf({"atoms": analysis.rdf(beads, r_max, bins), "beads": rdf.results()})
ax.figure.savefig("water_rdf.png")
pressure, error, _ = molecular_pressure(read("atoms.traj", "::"), mapping, TEMPERATURE)
print(f"atoms: {pressure:.3f} ± {error:.3f} GPa")
pressure, error = thermo.results()["pressure_GPa"]
print(f"beads: {pressure:.3f} ± {error:.3f} GPa")

# %% [markdown]
# ## How much faster?
#
# Fewer sites, longer steps, less work per site: the three factors whose product is the gain in ns/day.

# %%
fast, slow = ns_per_day(liquid, 4.0, TEMPERATURE, 0.005, 0.2), ns_per_day(atoms, 0.5, TEMPERATURE, 0.01, 0.2)
factors = [slow["sites"] / fast["sites"], 4.0 / 0.5, slow["us_per_site"] / fast["us_per_site"]]
print(f"{slow['ns_per_day']:.3g} -> {fast['ns_per_day']:.3g} ns/day: {np.round(factors, 2)} -> {np.prod(factors):.3g}")

# %% [markdown]
# For real: `nepcg quickstart` (some minutes), whose report has all of this at several densities, with errors, and with
# the command for each step. For a system of yours: `05_lj_dimers.py`.
