"""Systems and tolerances for the tests of the CUDA kernels, which are slow in the simulator."""

import numpy as np

from ase_nepcg.labels import get_types
from ase_nepcg.potential.evaluate import Geometry

#: largest deviation from the CPU in units of the largest number, or of 1 (eV, eV/Å)
TOLERANCES = {"double": 1e-10, "mixed": 1e-5}


def geometry_of(atoms, model) -> Geometry:
    return Geometry(atoms.positions, atoms.cell.array, atoms.pbc, get_types(atoms, model.species))


def liquid(n, density, seed, n_types=1, closest=1.2):
    """n sites at random, none closer than ``closest`` (Å), in a slightly sheared cell: Geometry; density in 1/Å^3."""
    rng = np.random.default_rng(seed)
    edge = (n / density) ** (1 / 3)
    cell = edge * np.array([[1.0, 0.05, 0.0], [0.0, 1.0, -0.04], [0.02, 0.0, 1.0]])
    fractions = np.zeros((0, 3))
    while len(fractions) < n:
        new = rng.random(3)
        d = fractions - new
        if not len(d) or np.linalg.norm((d - np.round(d)) @ cell, axis=1).min() > closest:
            fractions = np.vstack([fractions, new])
    return Geometry(fractions @ cell, cell, np.ones(3, bool), rng.integers(0, n_types, n).astype(np.int32))


def together(geometries) -> Geometry:
    """Several systems as replicas of one."""
    return Geometry(
        np.concatenate([one.positions for one in geometries]),
        np.array([one.cell for one in geometries]),
        np.array([one.pbc for one in geometries]),
        np.concatenate([one.types for one in geometries]),
        np.concatenate([[0], np.cumsum([len(one.positions) for one in geometries])]),
    )
