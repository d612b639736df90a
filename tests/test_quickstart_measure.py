import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator

from ase_nepcg import NEP, Mapping, analysis
from ase_nepcg.data import WATER_BEAD, water_beads
from ase_nepcg.quickstart.measure import BIN, bins_up_to, compare_rdf, molecular_pressure, ns_per_day


def gas(n, seed):
    rng = np.random.default_rng(seed)
    return Atoms(f"Ar{n}", rng.random((n, 3)) * 12, cell=[12] * 3, pbc=True)


def test_pressure_of_an_ideal_gas():
    frames = []
    for seed in range(20):
        frame = gas(30, seed)
        frame.calc = SinglePointCalculator(frame, forces=np.zeros((30, 3)), stress=np.zeros(6))
        frames.append(frame)
    pressure, error, _ = molecular_pressure(frames, Mapping.from_atoms(frames[0]), 250.0)
    assert np.isclose(pressure, 30 * units.kB * 250 / 12**3 / units.GPa)
    assert error == pytest.approx(0, abs=1e-12)


def test_rigid_pressure_is_that_of_the_sites():
    """Dimers held by any bond force: bonds do not count, forces between them do."""
    rng = np.random.default_rng(3)
    frames = []
    for _ in range(20):
        centres = rng.random((8, 3)) * 12
        arms = rng.normal(size=(8, 3))
        atoms = Atoms("N16", np.concatenate([centres - arms / 2, centres + arms / 2]), cell=[12] * 3, pbc=True)
        bond = rng.normal(size=(8, 1)) * arms
        forces = np.concatenate([bond, -bond])
        virial = -np.einsum("ia,ib->ab", arms, bond)
        atoms.calc = SinglePointCalculator(
            atoms, forces=forces, stress=-virial[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]] / 12**3
        )
        frames.append(atoms)
    mapping = Mapping.from_groups([[k, k + 8] for k in range(8)], "Ne")
    pressure, error, _ = molecular_pressure(frames, mapping, 300.0)
    assert np.isclose(pressure, 8 * units.kB * 300 / 12**3 / units.GPa)
    assert error == pytest.approx(0, abs=1e-12)


def test_pairs_are_those_of_the_beads():
    """Whatever the order in which species appear, or stand in the model."""
    rng = np.random.default_rng(1)
    frames = [
        Atoms("Ne20Ar30", np.concatenate([rng.random((20, 3)) * 3, rng.random((30, 3)) * 12]), cell=[12] * 3, pbc=True)
        for _ in range(20)
    ]
    other = [frame[np.r_[20:50, 0:20]] for frame in frames]
    assert compare_rdf(frames, analysis.rdf(other, 5.0, 50)).deviation == pytest.approx(0, abs=1e-12)


def test_a_correlated_series_is_not_reliable():
    rng = np.random.default_rng(2)
    found = []
    for length in (1, 40):
        frames = []
        for value in np.repeat(rng.normal(size=120 // length), length):
            frame = gas(4, 0)
            frame.calc = SinglePointCalculator(frame, forces=np.zeros((4, 3)), stress=[value, 0, 0, 0, 0, 0])
            frames.append(frame)
        found.append(molecular_pressure(frames, Mapping.from_atoms(frames[0]), 300.0)[2])
    assert found == [True, False]


def test_deviations():
    frames = [gas(60, seed) for seed in range(40)]
    beads = analysis.rdf(frames, 5.0, 50)
    same = compare_rdf(frames, beads)
    assert same.deviation == 0
    assert same.halves > 0
    other = compare_rdf([gas(60, 100 + seed) for seed in range(40)], beads)
    expected = np.abs(other.atoms.g - beads.g).sum() * 0.1 / 5.0
    assert np.isclose(other.deviation, expected)
    # two halves of half the frames differ by twice as much as two wholes
    assert 1.2 < other.halves / other.deviation < 3.5


@pytest.mark.parametrize(("length", "bins"), [(12.42, 62), (10.0, 50), (0.1, 1)])
def test_bins_within_half_the_box(length, bins):
    r_max, found = bins_up_to(length)
    assert found == bins
    assert np.isclose(r_max, bins * BIN)


def test_speed_is_consistent():
    beads = water_beads(3)
    beads.calc = NEP(WATER_BEAD, threads=1)
    argon = Atoms("Ar8", np.stack(np.meshgrid(*[[0, 4]] * 3), -1).reshape(-1, 3), cell=[8] * 3, pbc=True)
    argon.calc = LennardJones(epsilon=0.01, sigma=3.4, rc=4)
    for atoms in (beads, argon):
        before = atoms.positions.copy()
        found = ns_per_day(atoms, 2.0, 300.0, 0.01, 0.01)
        assert np.array_equal(atoms.positions, before)
        assert found["sites"] == len(atoms)
        assert found["spread"] >= 1
        seconds = found["us_per_site"] * 1e-6 * len(atoms)
        assert np.isclose(found["ns_per_day"], 86400 / seconds * 2e-6)
