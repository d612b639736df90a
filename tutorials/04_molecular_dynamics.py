# %% [markdown]
# # Molecular dynamics of beads
#
# `MD` runs a `NEP` model from one moment at which Python is due to the next in compiled code, and behaves like a driver
# of ASE otherwise. This tutorial brings water beads to 300 K, measures g(r) with error bars while they move, changes
# the pressure, stops and goes on from a checkpoint, and runs a batch. A minute or two, most of it compiling (once).

# %%
import numpy as np
from ase import Atoms
from ase.io import read

from ase_nepcg import MD, NEP, analysis, plot, read_dataset, train
from ase_nepcg.data import WATER_FRAMES
from ase_nepcg.md import MSD, NPT, RDF, Langevin, Thermo

# %% [markdown]
# A small model from the embedded mean-force frames, with a wall at distances that no frame contains, and beads at the
# density of water. Masses must be explicit: a bead called O does not weigh 16.

# %%
frames = read_dataset(WATER_FRAMES)
model = train(
    frames,
    cutoff=(6.0, 4.0),
    n_max=(4, 2),
    basis_size=(8, 4),
    l_max=(2, 0, 0),
    neurons=8,
    lambda_1=0.01,
    lambda_2=0.01,
    zbl="repulsive",
    steps=100,
    seed=1,
    progress=False,
).model

edge, n = 12.42, 4
grid = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
beads = Atoms([model.species[0]] * n**3, positions=(grid + 0.5) * edge / n, cell=[edge] * 3, pbc=True)
beads.set_masses([18.015] * len(beads))
beads.calc = NEP(model)

# %% [markdown]
# ## A run
#
# Ensembles are objects with their settings. Functions attached with an interval are called as by ASE's drivers;
# observers (`Thermo`, `RDF`, `MSD`, ...) accumulate inside the compiled loop instead and give results with error bars
# at any time.

# %%
md = MD(beads, 2.0, Langevin(temperature_K=300, friction_per_fs=0.01), seed=1, trajectory="beads.traj", loginterval=500)
md.run(2000)  # equilibrate

thermo, rdf = md.attach(Thermo(), 10), md.attach(RDF(r_max=6.0, bins=120), 10)
md.attach(lambda: print(f"{md.time_ps:6.1f} ps  {md.temperature_K():6.1f} K"), 2500)
md.run(10_000)

averages = thermo.results()
for name in ("temperature_K", "pressure_GPa", "potential_eV"):
    print("{} {:.4g} ± {:.2g}".format(name, *averages[name]))
g = rdf.results()

# %%
axes = plot.rdf(g)
axes.figure.savefig("rdf.png", dpi=120)

# %% [markdown]
# ## Pressure
#
# Stochastic cell rescaling; `method="mttk"` is the deterministic one. Atoms hold the state of the last run, so the next
# driver goes on from there.

# %%
npt = MD(beads, 2.0, NPT(temperature_K=300, pressure_GPa=0.5, tau_fs=100, tau_p_fs=1000), seed=2)
npt.run(3000)
print("volume", beads.get_volume(), "Å³; conserved energy", npt.conserved_energy(), "eV")

# %% [markdown]
# ## Stop and go on
#
# A checkpoint has everything: state, thermostat, random numbers, observers, and where files end. A run that was killed
# and is restarted gives the same bits as one that was not.

# %%
atoms = beads.copy()
atoms.calc = NEP(model)
first = MD(atoms, 2.0, Langevin(300, 0.01), seed=3, trajectory="run.traj", loginterval=100, checkpoint="run.npz")
displacement = first.attach(MSD(length=100), 10)
first.run(2000)
first.close()

second = MD.restart("run.npz")
second.run(1000)
second.close()
assert len(read("run.traj", ":")) == 31
print(second.handles[0].results().as_table()[0])

# %% [markdown]
# ## Trajectories
#
# Whatever an observer measures during a run can be had from a trajectory afterwards, of any kind that ASE reads. (With
# so few frames the error bars are larger, or missing.)

# %%
print(analysis.rdf("run.traj", r_max=6.0, bins=60).coordination[0, -1], "neighbours within 6 Å")

# %% [markdown]
# ## Many at once
#
# Small systems cannot keep all cores busy. A batch advances several runs together; each gives the bits it would give
# alone.

# %%
runs = []
for kelvin in (280, 300, 320, 340):
    atoms = beads.copy()
    atoms.calc = NEP(model)
    runs.append(MD(atoms, 2.0, Langevin(kelvin, 0.01), seed=kelvin))
energies = [run.attach(Thermo(), 10) for run in runs]
MD.batch(runs).run(2000)
for run in runs:
    print(run.ensemble.temperature_K, "K:", run.potential_energy(), "eV")
