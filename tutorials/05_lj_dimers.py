# %% [markdown]
# # A system and a calculator of your own
#
# `nepcg quickstart` does for any liquid what it does for water, with any ASE calculator that gives forces and stress.
# Here: dimers of Lennard-Jones atoms on a spring (as nitrogen, but with a soft bond, so that the atoms can take steps
# of 4 fs), one bead per dimer, with a calculator of fifty lines. The same from a shell, with this file as it is:
#
#     python 05_lj_dimers.py --box
#     nepcg quickstart --structure dimers.xyz --calculator 05_lj_dimers.py:Dimers --folder dimers --name "LJ dimers" \
#         --temperature-K 90 --timestep-fs 4 --equilibration-ps 40 --time-ps 200 --frame-ps 1 --cutoff 8 6 \
#         --bead-timestep-fs 20 --bead-time-ps 1000

# %%
import sys

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.io import write
from ase.stress import full_3x3_to_voigt_6_stress
from numba import njit

# %% [markdown]
# ## The calculator
#
# Atoms 2k and 2k+1 are bound by a spring; all others attract and repel each other as Lennard-Jones atoms, with energy
# and force shifted to zero at the cutoff. Virial and stress come from the same pairs. It must be importable by worker
# processes, so it stands in a file, and what runs stands behind `if __name__ == "__main__"`.


# %%
EPSILON, SIGMA, CUTOFF = 37.3 * 8.617e-5, 3.31, 7.5  # eV, Å, Å
SPRING, BOND = 4.0, 1.1  # eV/Å², Å


@njit
def lennard_jones(r):
    """Energy and slope."""
    s6 = (SIGMA / r) ** 6
    return 4 * EPSILON * (s6 * s6 - s6), -24 * EPSILON * (2 * s6 * s6 - s6) / r


@njit
def sum_over_pairs(x, edge):
    """Energy, forces (N, 3) and virial (3, 3)."""
    energy, forces, virial = 0.0, np.zeros_like(x), np.zeros((3, 3))
    last, last_slope = lennard_jones(CUTOFF)
    d = np.zeros(3)
    for i in range(len(x)):
        for j in range(i + 1, len(x)):
            for c in range(3):
                d[c] = x[j, c] - x[i, c]
                d[c] -= edge[c] * np.floor(d[c] / edge[c] + 0.5)
            r = np.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
            if i % 2 == 0 and j == i + 1:
                pair, slope = 0.5 * SPRING * (r - BOND) ** 2, SPRING * (r - BOND)
            elif r < CUTOFF:
                pair, slope = lennard_jones(r)
                pair, slope = pair - last - last_slope * (r - CUTOFF), slope - last_slope
            else:
                continue
            energy += pair
            for c in range(3):
                pull = slope / r * d[c]
                forces[i, c] += pull
                forces[j, c] -= pull
                for k in range(3):
                    virial[k, c] -= d[k] * pull
    return energy, forces, virial


class Dimers(Calculator):
    implemented_properties = ("energy", "forces", "stress")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        cell = self.atoms.cell
        if not cell.orthorhombic or not self.atoms.pbc.all() or cell.lengths().min() < 2 * CUTOFF:
            raise ValueError(f"expected a periodic orthorhombic cell with edges of at least {2 * CUTOFF} Å")
        energy, forces, virial = sum_over_pairs(self.atoms.positions, cell.lengths())
        stress = full_3x3_to_voigt_6_stress(-virial / cell.volume)
        self.results = {"energy": energy, "forces": forces, "stress": stress}


# %% [markdown]
# ## The box
#
# 64 dimers on a lattice. They melt while they are equilibrated: at this temperature the dimers are a liquid.


# %%
def box(n=4, density_g_cm3=0.75, seed=1):
    edge = n * (2 * 14.007 / 0.60221 / density_g_cm3) ** (1 / 3)
    centres = (np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), axis=-1).reshape(-1, 3) + 0.5) * edge / n
    arms = np.random.default_rng(seed).normal(size=(n**3, 3))
    arms *= 0.5 * BOND / np.linalg.norm(arms, axis=1)[:, None]
    positions = np.stack([centres - arms, centres + arms], axis=1).reshape(-1, 3)
    return Atoms(f"N{2 * n**3}", positions=positions, cell=[edge] * 3, pbc=True)


# %% [markdown]
# ## Run
#
# In Python: `quickstart(folder, atoms=..., calculator=..., mapping=...)` takes the same settings. Here everything is
# much shorter than above, to show that it works; errors are accordingly large.

# %%
if __name__ == "__main__" and "--box" in sys.argv:
    write("dimers.xyz", box())

elif __name__ == "__main__":
    import shutil

    from ase_nepcg.quickstart import quickstart

    numbers = quickstart(
        "dimers",
        atoms=box(),
        calculator=Dimers(),
        name="LJ dimers",
        temperature_K=90,
        densities=(0.7, 0.75),
        timestep_fs=4.0,
        equilibration_ps=2.0,
        time_ps=4.0,
        record_fs=100.0,
        frames=3,
        test_frames=1,
        frame_ps=0.5,
        cutoff=(8.0, 6.0),
        steps=40,
        bead_timestep_fs=20.0,
        bead_equilibration_ps=10.0,
        bead_time_ps=100.0,
        timing_s=0.2,
        workers=1,
        progress=False,
    )
    shutil.copy("dimers/figures/rdf_0.png", "dimers.png")
    print(f"beads: {numbers['models']['corrected']['test']['force']:.4f} eV/Å off on test frames")
