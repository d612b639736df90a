import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers
from ase.geometry.rdf import get_rdf

from ase_nepcg import analysis
from ase_nepcg.md.observers.base import ObserverError


def gas(n, frames, seed=1):
    rng = np.random.default_rng(seed)
    cell = np.array([[12.0, 0, 0], [2, 11, 0], [1, -1, 13]])
    return [Atoms(["Ar"] * n, rng.random((n, 3)) @ cell, cell=cell, pbc=True) for _ in range(frames)]


def test_equals_the_rdf_of_ase():
    # of one frame of two kinds, below half of the cell
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(3)
    atoms.rattle(0.2, seed=1)
    bins, r_max = 60, 8.0
    found = analysis.rdf(atoms, r_max, bins)
    assert found.pairs == (("Na", "Na"), ("Na", "Cl"), ("Cl", "Cl"))
    for k, pair in enumerate(found.pairs):
        expected, r = get_rdf(atoms, r_max, bins, elements=tuple(atomic_numbers[label] for label in pair))
        np.testing.assert_allclose(found.r, r)
        np.testing.assert_allclose(found.g[k], expected, rtol=1e-9)
        shell = 4 / 3 * np.pi * np.diff(np.linspace(0, r_max, bins + 1) ** 3)
        around = np.sum(expected * shell) / atoms.cell.volume * np.count_nonzero(atoms.symbols == pair[1])
        assert found.coordination[k, -1] == pytest.approx(around, rel=1e-9)


def test_ideal_gas_is_flat_beyond_half_the_cell():
    n = 40
    found = analysis.rdf(gas(n, 400), 20.0, 20)
    # 1 - 1/N up to where a site meets its own images; those add the rest
    near = found.r < 5.0
    pull = (found.g[0] - (1 - 1 / n)) / found.g_error[0]
    assert np.abs(pull[near]).max() < 4
    far = found.r > 14.0
    assert found.g[0][far].mean() == pytest.approx(1.0, abs=0.02)


def test_pairs_and_refusals():
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    assert analysis.rdf(atoms, 4.0, pairs=[("Cl", "Na")]).pairs == (("Cl", "Na"),)
    with pytest.raises(ObserverError, match="Na"):
        analysis.rdf(atoms, 4.0, pairs=[("Na", "K")])
    with pytest.raises(ObserverError, match="r_max"):
        analysis.rdf(atoms, -1.0)
    molecule = Atoms("Ar2", [[0, 0, 0], [0, 0, 3.0]])
    found = analysis.rdf(molecule, 4.0, 40)
    # no volume: g is not defined, neighbours are
    assert np.isnan(found.g).all()
    assert found.coordination[0, -1] == 1.0
