"""Embedded models, for examples and tests that need no download; ``README.md`` here tells how each was made."""

from __future__ import annotations

from pathlib import Path

__all__ = ["WATER_AA", "WATER_BEAD", "WATER_CG", "WATER_FRAMES", "make_water_bead", "water_beads", "water_box"]

#: one-type bead model: one bead per water molecule (random parameters, no physics)
WATER_BEAD = str(Path(__file__).parent / "water_bead_nep4.txt")

#: all-atom water (O, H), trained on a larger model
WATER_AA = str(Path(__file__).parent / "water_aa.txt")

#: the beads of that water at 330 K, one per molecule (label Ar), the ``nep.txt`` of ``nepcg quickstart --long``
WATER_CG = str(Path(__file__).parent / "water_cg.txt")

#: mean-force frames of water, one bead per molecule (label Ar): 20 x 64 beads, two at each of ten pressures up to 1 GPa
WATER_FRAMES = str(Path(__file__).parent / "water_frames.xyz.xz")


def make_water_bead():
    """The model in :data:`WATER_BEAD`, made anew: ``NEPModel.random`` from a fixed seed."""
    from ..model import NEPModel

    return NEPModel.random(
        ["WAT"], cutoff=(6.0, 4.0), n_max=(4, 4), basis_size=(8, 8), l_max=(4, 2, 0), neurons=10, seed=1
    )


def water_box(n: int = 4, density_g_cm3: float = 1.0, seed: int = 0):
    """``n^3`` water molecules on a cubic lattice, turned at random: a periodic ``Atoms``, to be melted by a hot run.

    Molecules are placed one after the other, each in the one of some random orientations whose atoms are farthest from
    those that are there.
    """
    import numpy as np
    from ase import Atoms
    from ase.build import molecule
    from scipy.spatial.transform import Rotation

    from ..quantities import GRAMS_PER_CM3

    water, rng = molecule("H2O"), np.random.default_rng(seed)
    arms = water.positions - water.get_center_of_mass()
    edge = (GRAMS_PER_CM3 * n**3 * water.get_masses().sum() / density_g_cm3) ** (1 / 3)
    lattice = (np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), axis=-1).reshape(-1, 3) + 0.5) * edge / n
    placed = np.zeros((0, 3))
    for centre in lattice:
        choices = Rotation.random(20, random_state=rng).as_matrix() @ arms.T
        choices = choices.transpose(0, 2, 1) + centre
        apart = choices[:, :, None] - placed
        apart -= edge * np.round(apart / edge)
        nearest = (apart**2).sum(axis=-1).min(axis=(1, 2), initial=edge**2)
        placed = np.concatenate([placed, choices[nearest.argmax()]])
    return Atoms("OHH" * n**3, positions=placed, cell=[edge] * 3, pbc=True)


def water_beads(n: int = 8, seed: int = 0, label: str = "WAT"):
    """``n^3`` beads (18.015 u) at the density of water on a rattled cubic lattice: a periodic ``Atoms``.

    ``label``: that of the model, "WAT" for :data:`WATER_BEAD`, "Ar" for :data:`WATER_CG`.
    """
    import numpy as np
    from ase import Atoms

    from ..labels import set_labels

    spacing = (18.015 / 0.602214 / 0.997) ** (1 / 3)  # g/mol, 1/(Å^3 mol/cm^3), g/cm^3
    lattice = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), axis=-1).reshape(-1, 3) * spacing
    lattice += np.random.default_rng(seed).normal(scale=0.1, size=lattice.shape)
    atoms = Atoms(numbers=np.zeros(n**3, int), positions=lattice, cell=[n * spacing] * 3, pbc=True)
    set_labels(atoms, label, masses=18.015)
    return atoms
