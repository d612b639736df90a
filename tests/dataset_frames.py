"""Frames with everything that a data set can hold, and what has to be equal of two of them."""

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from ase_nepcg.dataset import FrameCalculator
from ase_nepcg.labels import get_labels, set_labels

CELL = np.array([[10.0, 0.5, 0.0], [0.0, 11.0, 0.25], [1.0, 0.0, 12.0]])


def symmetric(rng):
    tensor = rng.normal(size=(3, 3)) * 7
    return tensor + tensor.T


def mean_force_frame(labels=("F", "Xe", "F", "F"), seed=0):
    """A frame with everything that constrained sampling can put into one."""
    rng = np.random.default_rng(seed)
    n = len(labels)
    atoms = Atoms(positions=rng.uniform(-5, 15, (n, 3)), cell=CELL, pbc=True)
    masses = {label: 18.01528 + 101.3 * k for k, label in enumerate(dict.fromkeys(labels))}
    set_labels(atoms, labels, masses)
    for name in ("forces_dT", "forces_dT2"):
        atoms.set_array(name, rng.normal(size=(n, 3)) * 1e-6)
        atoms.set_array(f"{name}_errors", rng.uniform(1e-9, 1e-7, (n, 3)))
    atoms.set_array("force_errors", rng.uniform(1e-5, 1e-2, (n, 3)))
    atoms.set_array("n_effective", rng.uniform(1, 1e5, (n, 3)))
    atoms.set_array("atoms_per_bead", rng.integers(1, 60, n))
    for name in ("virial", "virial_molecular", "virial_atomic", "virial_dT"):
        atoms.info[name] = symmetric(rng)
        atoms.info[f"{name}_error"] = np.abs(symmetric(rng)) * 1e-3
    atoms.info |= {
        "energy_weight": 0.0,
        "temperature": 300.0,
        "ensemble": "nvt",
        "timestep_fs": 0.5,
        "time_ps": 20.0,
        "seed": 1234567890123456789,
        "calculator": "nep:water_OH.txt",
        "mean_energy": -1234.5678901234567,
        "mean_energy_error": 1e-3 / 3,
        "n_atoms": 192,
        "drift": 0.1 + 0.2,
        "converged": True,
    }
    stress = -atoms.info["virial"][[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]] / atoms.get_volume()
    atoms.calc = FrameCalculator(atoms, forces=rng.normal(size=(n, 3)), stress=stress)
    return atoms


def ordinary_frame(seed=0):
    """Gold atoms with an energy, as from an electronic-structure calculation."""
    rng = np.random.default_rng(seed)
    atoms = Atoms("Au4", positions=rng.uniform(0, 10, (4, 3)), cell=CELL, pbc=True)
    stress = rng.normal(size=6)
    atoms.calc = SinglePointCalculator(atoms, energy=-12.5, forces=rng.normal(size=(4, 3)), stress=stress)
    return atoms


def check_same(found, expected):
    """The same bits everywhere, and the same types."""
    assert get_labels(found).tolist() == get_labels(expected).tolist()
    assert found.arrays.keys() - {"bead", "tags"} == expected.arrays.keys() - {"bead", "tags"}
    for name in found.arrays.keys() - {"bead", "tags"}:
        assert found.arrays[name].dtype == expected.arrays[name].dtype, name
        np.testing.assert_array_equal(found.arrays[name], expected.arrays[name], strict=True)
    info = {k: v for k, v in expected.info.items() if k != "bead_labels"}
    assert found.info.keys() - {"bead_labels"} == info.keys()
    for name, value in info.items():
        assert type(found.info[name]) is type(value), name
        np.testing.assert_array_equal(found.info[name], value, strict=isinstance(value, np.ndarray))
    np.testing.assert_array_equal(found.cell.array, expected.cell.array)
    np.testing.assert_array_equal(found.pbc, expected.pbc)
    assert type(found.calc) is type(expected.calc)
    np.testing.assert_array_equal(found.get_forces(), expected.get_forces())
    np.testing.assert_allclose(found.get_stress(), expected.get_stress(), rtol=1e-14)
