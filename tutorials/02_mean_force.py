# %% [markdown]
# # Mean forces on beads, with error bars
#
# A coarse-grained model is trained on the *mean* force on each bead: the force on its atoms, averaged over everything
# the atoms do while the beads stay where they are. This tutorial makes such training data, from a calculator to a file:
# atoms → beads → one configuration → many configurations → `train.xyz`. It takes less than a minute.
#
# The system is a liquid of 32 diatomic molecules, something like nitrogen, one bead each. Any ASE calculator that gives
# forces does; this one is written down here, so that nothing has to be installed or downloaded.

# %%
import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from numba import njit

from ase_nepcg import Mapping, read_dataset, sample_many, sample_mean_force, write_dataset
from ase_nepcg.configurations import at_pressures, strained
from ase_nepcg.dataset import summary
from ase_nepcg.dataset.sources import force_matching_frames

TEMPERATURE = 180  # K


BOND, SPRING = 1.10, 20.0  # Å, eV/Å² (softer than in nitrogen, so that a time step of 2 fs will do)
SIGMA, EPSILON, CUTOFF = 3.31, 0.0032, 5.8  # Å, eV, Å


@njit
def lennard_jones(r):
    """Energy, and its derivative with respect to r."""
    x = (SIGMA / r) ** 6
    return 4 * EPSILON * (x * x - x), -24 * EPSILON * (2 * x * x - x) / r


@njit
def pair_sums(positions, edges):
    """Energy, forces and strain derivative (volume times stress) of molecules (0, 1), (2, 3), … in a rectangular cell.

    Springs within molecules, Lennard-Jones between them, shifted so that energy and force vanish at the cutoff.
    """
    energy, forces, strain = 0.0, np.zeros_like(positions), np.zeros((3, 3))
    energy_at_cutoff, slope_at_cutoff = lennard_jones(CUTOFF)
    vector = np.zeros(3)
    for i in range(len(positions)):
        for j in range(i):
            for k in range(3):
                vector[k] = positions[i, k] - positions[j, k]
                vector[k] -= edges[k] * np.rint(vector[k] / edges[k])
            r = np.sqrt(vector[0] ** 2 + vector[1] ** 2 + vector[2] ** 2)
            if i // 2 == j // 2:
                energy += SPRING / 2 * (r - BOND) ** 2
                slope = SPRING * (r - BOND)
            elif r < CUTOFF:
                e, slope = lennard_jones(r)
                energy += e - energy_at_cutoff - slope_at_cutoff * (r - CUTOFF)
                slope -= slope_at_cutoff
            else:
                continue
            for k in range(3):
                pull = slope / r * vector[k]
                forces[i, k] -= pull
                forces[j, k] += pull
                for m in range(3):
                    strain[k, m] += pull * vector[m]
    return energy, forces, strain


class Diatomics(Calculator):
    implemented_properties = ("energy", "forces", "stress")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        energy, forces, strain = pair_sums(self.atoms.positions, self.atoms.cell.lengths())
        stress = full_3x3_to_voigt_6_stress(strain / self.atoms.get_volume())
        self.results = {"energy": energy, "forces": forces, "stress": stress}


# %% [markdown]
# ## A liquid
#
# Molecules with random directions on a lattice, and a short run at constant pressure, to melt it and to find the
# density. `at_pressures` uses ASE's barostat; the beads are not held here.

# %%
rng = np.random.default_rng(1)
corners = np.stack(np.meshgrid(*[np.arange(4)] * 3), axis=-1).reshape(-1, 3)
centres = 3.1 * corners[corners.sum(axis=1) % 2 == 0]  # 32 places of a face-centred cubic lattice
directions = rng.normal(size=(32, 3))
directions *= BOND / 2 / np.linalg.norm(directions, axis=1)[:, None]
atoms = Atoms("N64", cell=[12.4] * 3, pbc=True)
atoms.positions = (centres[:, None] + np.stack([directions, -directions], axis=1)).reshape(-1, 3)
atoms.calc = Diatomics()

(atoms,) = at_pressures(
    atoms, [0.3], temperature_K=TEMPERATURE, time_ps=3, timestep_fs=2, tau_fs=200, tau_p_fs=500, seed=1, progress=False
)
density = atoms.get_masses().sum() / atoms.get_volume() * 1.66054
print(f"{len(atoms)} atoms, {density:.2f} g/cm³ at 0.3 GPa")

# %% [markdown]
# ## Which atoms make a bead
#
# `Mapping.from_molecules` finds the molecules in the bonds, through periodic boundaries. The label is free; a chemical
# symbol that does not occur among the atoms can be read by every other program too. `lint` says what may be wrong with
# a mapping and what to do: nothing with this one, a lot with one that is off by one atom.

# %%
mapping = Mapping.from_molecules(atoms, species={"N2": "Ar"})
print(mapping, mapping.lint(atoms))

shifted = Mapping.from_groups(np.roll(np.arange(64), 1).reshape(-1, 2), "Ar", atoms)
for finding in shifted.lint(atoms):
    print(finding)
assert not any(finding.severity == "error" for finding in mapping.lint(atoms))

# %% [markdown]
# ## One configuration
#
# The centres of the molecules are held, the atoms move: 1 ps of equilibration, then 12 ps of sampling. Every average
# has its own standard error, with the correlation of the series taken into account. A second run with other random
# numbers shows that the errors can be believed: the differences, in units of their errors, are about one.

# %%
settings = {"temperature_K": TEMPERATURE, "timestep_fs": 2, "equilibration_ps": 1, "progress": False}
result = sample_mean_force(atoms, mapping, time_ps=12, seed=1, **settings)
print(result)
for k in range(3):
    row = ", ".join(f"{f:7.3f} ± {e:.3f}" for f, e in zip(result.forces[k], result.force_errors[k], strict=True))
    print(f"bead {k}: {row} eV/Å")
assert np.abs(result.forces.sum(axis=0)).max() < 1e-9  # no net force on the liquid

again = sample_mean_force(atoms, mapping, time_ps=12, seed=2, **settings)
pulls = (again.forces - result.forces) / np.hypot(again.force_errors, result.force_errors)
print(f"second run: rms difference in units of its error {np.sqrt((pulls**2).mean()):.2f}")
assert np.sqrt((pulls**2).mean()) < 2

# %% [markdown]
# The virial of the beads has two estimators. The atomic one is the virial of the atoms plus the kinetic part that the
# held degrees of freedom have lost, `(N - n) kT`; the molecular one takes only what acts between the beads. They agree
# on average if, and only if, bookkeeping, equilibration and time step are right. The molecular one is the training
# target: it needs no temperature, and where bonds are stiff, as in water, it has far less noise. `virial_pull` is the
# difference in units of its error: about one if all is well.

# %%
print("            xx               yy               zz   (eV)")
for name, virial, error in (
    ("molecular", result.virial, result.virial_error),
    ("atomic", result.virial_atomic, result.virial_atomic_error),
):
    print(f"{name:9} " + "  ".join(f"{virial[k, k]:6.2f} ± {error[k, k]:5.2f}" for k in range(3)))
print(f"difference in units of its error: {result.virial_pull:.1f}")
assert result.virial_pull < 4

# %% [markdown]
# ## Why averages
#
# The other way to train data is to take the forces of single snapshots ("force matching"). They have the right mean, so
# enough of them train the same model; but each scatters about the mean. Here is a snapshot with its beads exactly where
# they were held, so that the difference is this scatter.

# %%
(snapshot,) = force_matching_frames([atoms], mapping)
noise = snapshot.get_forces() - result.forces
scatter = np.sqrt((noise**2).mean())
print(f"rms mean force {np.sqrt((result.forces**2).mean()):.3f} eV/Å, its error {result.force_error:.3f}")
worth = (scatter / result.force_error) ** 2
print(f"rms scatter of a snapshot {scatter:.3f} eV/Å: the mean is worth {worth:.0f} independent snapshots")
assert scatter > 3 * result.force_error

# %% [markdown]
# ## Many configurations
#
# A model learns what is in the configurations, so these must differ: here four more densities, strained so that
# molecules stay rigid and their centres move with the cell. `sample_many` runs one configuration per worker process;
# give it a `folder`, and a rerun goes on where an interrupted one stopped. (With more than one worker, put the calls of
# a script under `if __name__ == "__main__":`.) Short runs are enough: a fit averages over thousands of force
# components, so time is better spent on more configurations. `force_error=0.01` would stop each run at that error.

# %%
frames = strained(atoms, mapping, isotropic=(-0.03, -0.015, 0.015, 0.03))
results = sample_many(frames, mapping, workers=1, folder="sampling", time_ps=12, seed=3, **settings)
for frame, one in zip(frames, results, strict=True):
    print(f"strain {frame.info['strain_value']:6.3f}: rms error {one.force_error:.3f} eV/Å, pull {one.virial_pull:.1f}")

# %% [markdown]
# ## The file
#
# The frames carry forces, virial, all errors and where they come from. The file is extended XYZ as NEP trainers read
# it; the energy has weight zero, since the average energy of the atoms is not the potential of mean force.

# %%
write_dataset("train.xyz", [result.frame, *(one.frame for one in results)])
dataset = read_dataset("train.xyz")
print(summary(dataset))

# %% [markdown]
# ## Everything in one figure
#
# Left: the forces of a snapshot against the mean forces; all scatter about the line is noise that a model would have to
# average out. Middle: the mean forces of the second run instead. Right: pressure of the beads,
# `(tr W / 3 + n kT) / V`, which a coarse-grained model should reproduce.

# %%
volume = np.array([frame.get_volume() for frame in dataset])
kinetic = np.array([len(frame) * units.kB * TEMPERATURE for frame in dataset])
pressure = (np.array([np.trace(frame.info["virial"]) for frame in dataset]) / 3 + kinetic) / volume / units.GPa
error = np.array([np.linalg.norm(np.diag(frame.info["virial_error"])) for frame in dataset]) / 3 / volume / units.GPa

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
limit = 1.1 * np.abs(snapshot.get_forces()).max()
for axes, forces, errors, name in (
    (left, snapshot.get_forces(), None, "force in one snapshot (eV/Å)"),
    (middle, again.forces, again.force_errors.ravel(), "mean force, second run (eV/Å)"),
):
    axes.errorbar(result.forces.ravel(), forces.ravel(), errors, result.force_errors.ravel(), ".", elinewidth=0.8)
    axes.plot([-limit, limit], [-limit, limit], color="gray", linewidth=0.8)
    axes.set(xlabel="mean force (eV/Å)", ylabel=name)
right.errorbar(volume / len(dataset[0]), pressure, yerr=error, fmt="o")
right.set(xlabel="volume per bead (Å³)", ylabel="pressure (GPa)")
figure.savefig("mean_force.png", dpi=150)
