"""Embedded models, for examples and tests that need no download; ``README.md`` here tells how each was made."""

from __future__ import annotations

from pathlib import Path

__all__ = ["WATER_BEAD", "WATER_FRAMES", "make_water_bead", "water_beads"]

#: one-type bead model: one bead per water molecule (random parameters, no physics)
WATER_BEAD = str(Path(__file__).parent / "water_bead_nep4.txt")

#: mean-force frames of water, one bead per molecule (label Ar): 20 x 64 beads, two at each of ten pressures up to 1 GPa
WATER_FRAMES = str(Path(__file__).parent / "water_frames.xyz.xz")


def make_water_bead():
    """The model in :data:`WATER_BEAD`, made anew: ``NEPModel.random`` from a fixed seed."""
    from ..model import NEPModel

    return NEPModel.random(
        ["WAT"], cutoff=(6.0, 4.0), n_max=(4, 4), basis_size=(8, 8), l_max=(4, 2, 0), neurons=10, seed=1
    )


def water_beads(n: int = 8, seed: int = 0):
    """``n^3`` beads WAT (18.015 u) at the density of water on a rattled cubic lattice: a periodic ``Atoms``."""
    import numpy as np
    from ase import Atoms

    from ..labels import set_labels

    spacing = (18.015 / 0.602214 / 0.997) ** (1 / 3)  # g/mol, 1/(Å^3 mol/cm^3), g/cm^3
    lattice = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), axis=-1).reshape(-1, 3) * spacing
    lattice += np.random.default_rng(seed).normal(scale=0.1, size=lattice.shape)
    atoms = Atoms(numbers=np.zeros(n**3, int), positions=lattice, cell=[n * spacing] * 3, pbc=True)
    set_labels(atoms, "WAT", masses=18.015)
    return atoms
