"""The systems of ``nepcg bench``: structures and the models they are evaluated with.

:data:`SYSTEMS` have random models of realistic shapes and need no files; :data:`DATA_SYSTEMS` are published models and
structures in a folder of the user's.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

    from .model import NEPModel

__all__ = ["DATA_SYSTEMS", "SYSTEMS", "System", "bead_water"]

WATER_DENSITY = 0.0334  # molecules per Å³


@dataclass(frozen=True)
class System:
    """What is evaluated: atoms, and a model or the path of one."""

    name: str
    atoms: Atoms
    model: NEPModel | str | os.PathLike


def _grid(n: int, density: float, jitter: float, seed: int):
    """``n`` points on a jittered grid and the edges of their box in Å, as near to a cube as ``n`` allows.

    ``density`` in points per Å³, ``jitter`` in Å.
    """
    a = max(d for d in range(1, round(n ** (1 / 3)) + 1) if n % d == 0)
    b = max(d for d in range(1, math.isqrt(n // a) + 1) if (n // a) % d == 0)
    shape = np.array([a, b, n // a // b])
    spacing = density ** (-1 / 3)
    points = np.indices(shape).reshape(3, -1).T * spacing
    return points + np.random.default_rng(seed).uniform(-jitter, jitter, points.shape), shape * spacing


def bead_water(n: int = 4096) -> System:
    """One bead per molecule at water density, 10 neurons."""
    from ase import Atoms

    from .model import NEPModel

    positions, box = _grid(n, WATER_DENSITY, 0.5, seed=1)
    atoms = Atoms(["O"] * n, positions=positions, cell=box, pbc=True)
    model = NEPModel.random(
        ["O"], seed=1, cutoff=(6.0, 4.0), n_max=(4, 4), basis_size=(8, 8), l_max=(4, 2, 0), neurons=10
    )
    return System("bead-water", atoms, model)


def two_species() -> System:
    """Rigid O-H-H molecules at water density, 2592 sites, 100 neurons."""
    from ase import Atoms

    from .model import NEPModel

    centres, box = _grid(864, WATER_DENSITY, 0.2, seed=2)
    axes, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(len(centres), 3, 3)))
    half = math.radians(104.5 / 2)
    first = 0.97 * (math.cos(half) * axes[:, 0] + math.sin(half) * axes[:, 1])
    second = 0.97 * (math.cos(half) * axes[:, 0] - math.sin(half) * axes[:, 1])
    positions = np.stack([centres, centres + first, centres + second], axis=1).reshape(-1, 3)
    atoms = Atoms(["O", "H", "H"] * len(centres), positions=positions, cell=box, pbc=True)
    settings = {"cutoff": (6.0, 4.0), "n_max": (9, 7), "basis_size": (9, 7), "l_max": (4, 2, 0), "neurons": 100}
    return System("two-species", atoms, NEPModel.random(["O", "H"], seed=2, **settings))


def metal() -> System:
    """One of 16 metals, fcc, 2048 sites, 80 neurons, ZBL, 4- and 5-body terms."""
    from .model import NEPModel

    species = ["Ag", "Al", "Au", "Cr", "Cu", "Mg", "Mo", "Ni", "Pb", "Pd", "Pt", "Ta", "Ti", "V", "W", "Zr"]
    settings = {"cutoff": (6.0, 5.0), "n_max": (4, 4), "basis_size": (8, 8), "l_max": (4, 2, 1), "neurons": 80}
    return System("metal", _gold(), NEPModel.random(species, seed=4, zbl=(1.0, 2.0), **settings))


def salt() -> System:
    """Rock salt of two species, 2000 sites, 30 neurons, long radial cutoff."""
    from ase.build import bulk

    from .model import NEPModel

    atoms = bulk("PbTe", "rocksalt", a=6.57, cubic=True).repeat((5, 5, 10))
    atoms.rattle(0.1, seed=5)
    settings = {"cutoff": (8.0, 4.0), "n_max": (6, 6), "basis_size": (6, 6), "l_max": (4, 2, 0), "neurons": 30}
    return System("salt", atoms, NEPModel.random(["Te", "Pb"], seed=5, **settings))


def _gold():
    from ase.build import bulk

    atoms = bulk("Au", "fcc", a=4.08, cubic=True).repeat(8)
    atoms.rattle(0.1, seed=6)
    return atoms


#: systems with random models, which need no files
SYSTEMS: dict[str, Callable[[], System]] = {
    "bead-water": bead_water,
    "two-species": two_species,
    "metal": metal,
    "salt": salt,
}


def _published(name: str, model: str, atoms: Callable) -> Callable[[Path], System]:
    def build(folder: Path) -> System:
        from ase.io import read

        return System(name, atoms(lambda path: read(folder / path, index=0, format="extxyz")), folder / model)

    return build


#: published models and structures in a folder given by the user (``--data``)
DATA_SYSTEMS: dict[str, Callable[[Path], System]] = {
    "water": _published(
        "water", "models/water_OH_nep4.txt", lambda read: read("models/water_216.xyz").repeat((1, 2, 2))
    ),
    "gold": _published("gold", "models/UNEP-v1_16metals_nep4_zbl.txt", lambda read: _gold()),
    "PbTe": _published("PbTe", "pbte/nep.txt", lambda read: read("pbte/train.xyz").repeat((2, 2, 2))),
}
