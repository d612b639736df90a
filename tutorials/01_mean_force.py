# %% [markdown]
# # Mean forces on beads, with error bars
#
# A coarse-grained model is trained on the *mean* force on each bead: the force on its atoms, averaged over everything
# the atoms do while the beads stay where they are. This tutorial makes such training data, from a calculator to a file:
# atoms → beads → one configuration → many configurations → `train.xyz`. It takes less than a minute.
#
# The system is a liquid of 32 diatomic molecules, something like chlorine, one bead each. Any ASE calculator that gives
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
from ase_nepcg.frames import force_matching_frames

TEMPERATURE = 260  # K


BOND, SPRING = 1.99, 20.5  # Å, eV/Å²
SIGMA, EPSILON, CUTOFF = 3.33, 0.02, 6.4  # Å, eV, Å


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
    for i in range(len(positions)):
        for j in range(i):
            vector = positions[i] - positions[j]
            vector -= edges * np.rint(vector / edges)
            r = np.sqrt((vector**2).sum())
            if i // 2 == j // 2:
                energy += SPRING / 2 * (r - BOND) ** 2
                slope = SPRING * (r - BOND)
            elif r < CUTOFF:
                e, slope = lennard_jones(r)
                energy += e - energy_at_cutoff - slope_at_cutoff * (r - CUTOFF)
                slope -= slope_at_cutoff
            else:
                continue
            pull = slope / r * vector
            forces[i] -= pull
            forces[j] += pull
            strain += np.outer(pull, vector)
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
centres = 3.4 * corners[corners.sum(axis=1) % 2 == 0]  # 32 places of a face-centred cubic lattice
directions = rng.normal(size=(32, 3))
directions *= BOND / 2 / np.linalg.norm(directions, axis=1)[:, None]
atoms = Atoms("Cl64", cell=[13.6] * 3, pbc=True)
atoms.positions = (centres[:, None] + np.stack([directions, -directions], axis=1)).reshape(-1, 3)
atoms.calc = Diatomics()

(atoms,) = at_pressures(
    atoms, [0.1], temperature_K=TEMPERATURE, time_ps=3, timestep_fs=2, tau_fs=200, tau_p_fs=500, seed=1, progress=False
)
density = atoms.get_masses().sum() / atoms.get_volume() * 1.66054
print(f"{len(atoms)} atoms, {density:.2f} g/cm³ at 0.1 GPa")

# %% [markdown]
# ## Which atoms make a bead
#
# `Mapping.from_molecules` finds the molecules in the bonds, through periodic boundaries; the label is free, but a
# chemical symbol that does not occur among the atoms can be read by every other program too. `lint` says what may be
# wrong with a mapping. Nothing is, here: that molecules are cut by the boundary is only a note.

# %%
mapping = Mapping.from_molecules(atoms, species={"Cl2": "Ar"})
print(mapping)
for finding in mapping.lint(atoms):
    print(finding)

# %% [markdown]
# ## One configuration
#
# The centres of the molecules are held, the atoms move: 2 ps of equilibration, then 12 ps of sampling. Every average
# has its own standard error, with the correlation of the series taken into account.

# %%
result = sample_mean_force(
    atoms, mapping, temperature_K=TEMPERATURE, timestep_fs=2, equilibration_ps=2, time_ps=12, seed=1, progress=False
)
print(result)
for k in range(3):
    row = ", ".join(f"{f:7.3f} ± {e:.3f}" for f, e in zip(result.forces[k], result.force_errors[k], strict=True))
    print(f"bead {k}: {row} eV/Å")
assert np.abs(result.forces.sum(axis=0)).max() < 1e-9  # no net force on the liquid

# %% [markdown]
# The virial of the beads has two estimators. The atomic one is the virial of the atoms plus the kinetic part that the
# held degrees of freedom have lost, `(N - n) kT`; the molecular one takes only what acts between the beads. They agree
# on average if, and only if, bookkeeping, equilibration and time step are right; the molecular one has less noise and
# is the training target. `virial_pull` is the difference in units of its error: about one if all is well.

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
print(f"rms scatter of a snapshot {scatter:.3f} eV/Å: as good as {(scatter / result.force_error) ** 2:.0f} snapshots")
assert scatter > 5 * result.force_error

# %% [markdown]
# ## Many configurations
#
# A model learns what is in the configurations, so these must differ: here five densities, strained so that molecules
# stay rigid and their centres move with the cell. `sample_many` runs one configuration per worker process; give it a
# `folder`, and a rerun goes on where an interrupted one stopped. (With more than one worker, put the calls of a script
# under `if __name__ == "__main__":`.) Short runs are enough: a fit averages over thousands of force components, so time
# is better spent on more configurations. `force_error=0.01` would stop each run at that error.

# %%
frames = strained(atoms, mapping, isotropic=np.linspace(-0.02, 0.02, 5))
results = sample_many(
    frames,
    mapping,
    workers=1,
    folder="sampling",
    temperature_K=TEMPERATURE,
    timestep_fs=2,
    time_ps=4,
    seed=2,
    progress=False,
)
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
# Left: snapshot against mean force; all scatter is noise that a model would have to average out. Middle: pull of each
# snapshot force, in units of the error of the mean. Right: pressure of the beads, `(tr W / 3 + n kT) / V`, which a
# coarse-grained model should reproduce.

# %%
volume = np.array([frame.get_volume() for frame in dataset])
kinetic = np.array([len(frame) * units.kB * TEMPERATURE for frame in dataset])
pressure = (np.array([np.trace(frame.info["virial"]) for frame in dataset]) / 3 + kinetic) / volume / units.GPa
error = np.array([np.linalg.norm(np.diag(frame.info["virial_error"])) for frame in dataset]) / 3 / volume / units.GPa

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
limit = 1.1 * np.abs(snapshot.get_forces()).max()
left.errorbar(
    result.forces.ravel(),
    snapshot.get_forces().ravel(),
    xerr=result.force_errors.ravel(),
    fmt=".",
    elinewidth=0.8,
)
left.plot([-limit, limit], [-limit, limit], color="gray", linewidth=0.8)
left.set(xlabel="mean force (eV/Å)", ylabel="force in one snapshot (eV/Å)")
middle.hist(noise.ravel(), bins=20, label="snapshot")
middle.hist(result.force_errors.ravel(), bins=5, label="error of the mean")
middle.set(xlabel="deviation from the mean force (eV/Å)", ylabel="force components")
middle.legend()
right.errorbar(volume / len(dataset[0]), pressure, yerr=error, fmt="o")
right.set(xlabel="volume per bead (Å³)", ylabel="pressure (GPa)")
figure.savefig("mean_force.png", dpi=150)
