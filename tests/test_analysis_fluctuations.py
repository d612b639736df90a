"""Elastic constants from fluctuations: of a crystal, against finite strains; of springs, whose free energy does not
depend on the strain; from made-up stresses."""

from dataclasses import replace

import md_physics as physics
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from ase.stress import full_3x3_to_voigt_6_stress

from ase_nepcg import MD, analysis
from ase_nepcg.analysis import AnalysisError
from ase_nepcg.analysis.elasticity import strained, stress_slopes
from ase_nepcg.analysis.fluctuations import ElasticFluctuations, _evaluate, _Record
from ase_nepcg.analysis.runs import hot_copy
from ase_nepcg.md import Langevin, Thermo

KT_300 = units.kB * 300.0
NORMAL = np.array([1, 1, 1, 0, 0, 0])
SHORT = {"temperature_K": 5.0, "timestep_fs": 4.0, "equilibration_ps": 0.2, "time_ps": 0.8, "progress": False}
SHORT |= {"snapshots": 4, "replicas": 2}
# a crystal without symmetry, whose positions have much to relax when it is strained
CELL = [[6.222, 1.015, 0.062], [1.049, 6.196, -1.685], [0.187, -1.511, 6.027]]
POSITIONS = [
    *([2.676, 0.811, 4.406], [0.661, 4.365, 3.542], [-0.067, 1.256, 1.397], [6.050, 3.128, -1.959]),
    *([3.078, 3.244, 3.186], [4.928, 4.737, 1.698], [2.570, 1.668, 0.989], [5.033, 3.886, 5.092]),
]


@pytest.fixture(scope="module")
def crystal():
    """Eight beads at rest at zero pressure."""
    atoms = Atoms(["Ar"] * 8, POSITIONS, cell=CELL, pbc=True, masses=[18.015] * 8, calculator=physics.calculator())
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-4, steps=100)
    return atoms


# --- runs ------------------------------------------------------------------------------------------------------------


def test_cold_crystal_is_that_of_finite_strains(crystal):
    at_rest = analysis.elastic_constants(crystal, strain=5e-4, fmax=1e-5).C_GPa
    before = crystal.positions.copy()
    settings = SHORT | {"temperature_K": 1.0, "equilibration_ps": 2.0}
    settings |= {"time_ps": 24.0, "snapshots": 24, "replicas": 4}
    result = analysis.elastic_fluctuations(crystal, seed=1, **settings)
    pulls = (result.C_GPa - at_rest) / result.C_error
    assert np.abs(pulls).max() < 4.5
    assert np.sqrt((pulls**2).mean()) < 2.0
    # relaxation takes away about half of what the Born term says, which the errors are small enough to see
    assert (np.diag(result.fluctuation_GPa) < -0.2 * np.diag(result.born_GPa)).all()
    assert (np.diag(result.C_error) < 0.1 * np.diag(result.born_GPa)).all()
    stiff = analysis.elastic_constants(crystal, strain=5e-4, relax=False).C_GPa
    np.testing.assert_allclose(result.born_GPa, stiff, atol=0.3)
    total = result.born_GPa + result.fluctuation_GPa + result.kinetic_GPa
    np.testing.assert_allclose(result.C_GPa, total, rtol=1e-12)
    assert np.array_equal(result.C_GPa, result.C_GPa.T)
    assert np.abs(result.stress_GPa).max() < 0.01
    assert result.stable
    assert (result.temperature_K, result.replicas) == (1.0, 4)
    header, rows = result.as_table()
    assert rows.shape == (6, len(header))
    assert np.array_equal(rows[:, 6:], result.C_error)
    # what was given is as before
    assert np.array_equal(crystal.positions, before)
    assert not crystal.has("momenta")


def test_same_seed_same_numbers(crystal):
    first, again = (analysis.elastic_fluctuations(crystal, seed=3, **SHORT) for _ in range(2))
    assert np.array_equal(first.C_GPa, again.C_GPa)
    other = analysis.elastic_fluctuations(crystal, seed=4, **SHORT)
    assert not np.array_equal(first.C_GPa, other.C_GPa)
    kinetic = 8 * units.kB * 5.0 / crystal.cell.volume / units.GPa
    np.testing.assert_allclose(first.kinetic_GPa, kinetic * np.outer(NORMAL, NORMAL))


@pytest.mark.slow
def test_warm_crystal_is_that_of_finite_strains_at_its_temperature(crystal):
    kelvin, h, replicas, columns = 40.0, 0.01, 4, (0, 4)
    runs = []
    for j in columns:
        for sign in (1, -1):
            step = sign * h * np.eye(6)[j]
            for k in range(replicas):
                copy = hot_copy(strained(crystal, step), kelvin, [j, sign + 1, k])
                runs.append(MD(copy, 4.0, Langevin(kelvin, 0.01), seed=len(runs), progress=False))
    batch = MD.batch(runs)
    batch.run(1000)
    handles = [run.attach(Thermo(), 5) for run in runs]
    batch.run(10_000)
    names = [f"stress_{name}_GPa" for name in ("xx", "yy", "zz", "yz", "xz", "xy")]
    stress = np.array([[handle.results()[name][0] for name in names] for handle in handles])
    stress = stress.reshape(len(columns), 2, replicas, 6)
    slopes = (stress[:, 0] - stress[:, 1]).mean(axis=1) / (2 * h)
    error = np.sqrt((stress.var(axis=2, ddof=1) / replicas).sum(axis=1)) / (2 * h)
    settings = SHORT | {"temperature_K": kelvin, "equilibration_ps": 4.0}
    settings |= {"time_ps": 80.0, "snapshots": 40, "replicas": 4}
    result = analysis.elastic_fluctuations(crystal, seed=1, **settings)
    pulls = (slopes - result.C_GPa[list(columns)]) / np.hypot(error, result.C_error[list(columns)])
    assert np.abs(pulls).max() < 4.0
    assert np.abs(pulls).mean() < 1.5
    # one of them is softer than at rest by more than chance
    at_rest = analysis.elastic_constants(crystal, strain=5e-4, fmax=1e-5).C_GPa
    assert at_rest[4, 4] - result.C_GPa[4, 4] > 3.0 * result.C_error[4, 4]


# --- springs ---------------------------------------------------------------------------------------------------------


class Springs(Calculator):
    """Sites on springs of constant ``k`` (eV/Å^2) to sites of a lattice that is strained with the cell."""

    implemented_properties = ["energy", "stress"]  # noqa: RUF012

    def __init__(self, places, k):
        super().__init__()
        self.places, self.k = places, k

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        u = atoms.positions - self.places @ atoms.cell.array
        self.results["energy"] = 0.5 * self.k * (u**2).sum()
        self.results["stress"] = full_3x3_to_voigt_6_stress(self.k * u.T @ u / atoms.cell.volume)


def test_springs_have_neither_stress_nor_constants_at_any_temperature():
    # the partition function is an integral over displacements, which do not know the cell
    rng = np.random.default_rng(1)
    lattice = bulk("Cu", cubic=True)
    sigma = np.sqrt(KT_300 / 2.0)
    calculator = Springs(lattice.get_scaled_positions(), 2.0)
    stress, square, born = [], [], []
    for _ in range(4):
        atoms = lattice.copy()
        atoms.calc = calculator
        record = _Record(atoms, Springs(calculator.places, 2.0), 30, 1e-4)
        for _ in range(40 * 30):
            atoms.positions = lattice.positions + rng.normal(size=(4, 3)) * sigma
            record()
        stress.append(record.stress)
        square.append(record.square)
        born.append(record.born)
    result = _evaluate(np.array(stress), np.array(square), np.array(born), 4, lattice.cell.volume, 300.0)
    ideal = 4 * KT_300 / lattice.cell.volume / units.GPa
    assert np.abs(result.stress_GPa / result.stress_error).max() < 4
    assert np.abs(result.C_GPa / result.C_error).max() < 4
    assert result.C_error.max() < 0.15 * ideal
    np.testing.assert_allclose(result.fluctuation_GPa, -ideal * np.diag([2, 2, 2, 1, 1, 1]), atol=0.2 * ideal)
    np.testing.assert_allclose(result.kinetic_GPa, ideal * np.outer(NORMAL, NORMAL))
    assert result.reliable.all()


# --- made-up numbers -------------------------------------------------------------------------------------------------


def windows(stress, length):
    """Averages (R, W, 6) and (R, W, 6, 6) of a series ``stress`` (R, n, 6) and of its products."""
    rows = stress.reshape(len(stress), -1, length, 6)
    return rows.mean(axis=2), np.einsum("rwti,rwtj->rwij", rows, rows) / length


def test_against_sums_one_by_one(rng):
    replicas, n, volume, kelvin = 3, 20, 70.0, 250.0
    stress = rng.normal(size=(replicas, n, 6)) * 0.01 + np.linspace(-0.05, 0.05, 6)
    born = rng.normal(size=(replicas, 4, 6, 6))
    result = _evaluate(*windows(stress, 5), born, 5, volume, kelvin)
    for i in range(6):
        for j in range(6):
            product = sum(stress[r, t, i] * stress[r, t, j] for r in range(replicas) for t in range(n)) / (replicas * n)
            pairs = [
                stress[r, :, i].mean() * stress[s, :, j].mean()
                for r in range(replicas)
                for s in range(replicas)
                if r != s
            ]
            fluctuation = -volume / (units.kB * kelvin) * (product - np.mean(pairs)) / units.GPa
            assert result.fluctuation_GPa[i, j] == pytest.approx(fluctuation, rel=1e-9)
            expected = 0.5 * (born[:, :, i, j].mean() + born[:, :, j, i].mean()) / units.GPa
            assert result.born_GPa[i, j] == pytest.approx(expected, rel=1e-9)


def test_average_is_right_however_short_the_runs(rng):
    # each replica knows a single stress: the scatter about their average would be a quarter too small
    found = []
    for _ in range(500):
        stress = np.repeat(rng.normal(size=(4, 1, 6)), 4, axis=1)
        square = stress[..., :, None] * stress[..., None, :]
        result = _evaluate(stress, square, np.zeros((4, 4, 6, 6)), 1, KT_300, 300.0)
        found.append(np.diag(result.fluctuation_GPa) * units.GPa)
    assert np.mean(found) == pytest.approx(-1.0, abs=4 * np.std(found) / np.sqrt(3000))
    assert np.std(found) / np.sqrt(3000) < 0.04


def test_errors_are_those_of_repeated_runs(rng):
    mixed = np.linalg.cholesky(0.5 * np.eye(6) + 0.5)
    found, stresses = [], []
    for _ in range(200):
        stress = rng.normal(size=(4, 100, 6)) @ mixed.T
        # what is large at the same time as the fluctuations
        born = windows(stress, 5)[1] + rng.normal(size=(4, 20, 6, 6)) * 0.2
        found.append(_evaluate(*windows(stress, 5), born, 1, KT_300, 300.0))
        stresses.append(found[-1].stress_GPa)
    scatter = np.std([one.C_GPa for one in found], axis=0, ddof=1)
    np.testing.assert_allclose(np.mean([one.C_error for one in found], axis=0), scatter, rtol=0.2)
    scatter = np.std(stresses, axis=0, ddof=1)
    np.testing.assert_allclose(np.mean([one.stress_error for one in found], axis=0), scatter, rtol=0.2)


def test_ideal_gas():
    nothing = np.zeros((2, 8, 6, 6))
    result = _evaluate(nothing[..., 0], nothing, nothing, 10, 200.0, 300.0)
    pressure = 10 * KT_300 / 200.0 / units.GPa
    np.testing.assert_allclose(result.stress_GPa, -pressure * NORMAL)
    np.testing.assert_allclose(result.C_GPa, pressure * np.outer(NORMAL, NORMAL))
    # second derivatives of -N kT ln V = -(N kT / 2) ln det(1 + 2 eta)
    np.testing.assert_allclose(result.lagrangian_GPa, pressure * np.diag([2, 2, 2, 1, 1, 1]), atol=1e-14)
    assert np.array_equal(result.C_error, np.zeros((6, 6)))


def test_second_derivatives_of_the_energy_under_any_stress():
    copper = bulk("Cu", cubic=True)
    copper.calc = EMT()
    copper = strained(copper, [-0.02, 0.01, -0.03, 0.02, -0.01, 0.03])
    slopes = stress_slopes(lambda step: strained(copper, step).get_stress(), 1e-4) / units.GPa
    zero = np.zeros((6, 6))
    at_rest = ElasticFluctuations(
        *(0.5 * (slopes + slopes.T), zero, zero > 0, zero, zero, zero),
        *(copper.get_stress() / units.GPa, np.zeros(6), 0.0, 2),
    )
    assert np.abs(at_rest.stress_GPa).min() > 0.1
    basis = np.array([np.diag(row) for row in np.eye(3)] + [np.zeros((3, 3))] * 3)
    for k, (a, b) in enumerate(((1, 2), (0, 2), (0, 1)), 3):
        basis[k, a, b] = basis[k, b, a] = 0.5

    def energy(eta):
        # stretch whose Lagrangian strain is eta
        values, vectors = np.linalg.eigh(np.eye(3) + 2 * eta)
        copy = copper.copy()
        copy.calc = copper.calc
        copy.set_cell(copper.cell.array @ (vectors * np.sqrt(values)) @ vectors.T, scale_atoms=True)
        return copy.get_potential_energy()

    h, expected = 2e-3, np.zeros((6, 6))
    for i in range(6):
        for j in range(6):
            corners = [s * t * energy(h * (s * basis[i] + t * basis[j])) for s in (1, -1) for t in (1, -1)]
            expected[i, j] = sum(corners) / (4 * h * h * copper.cell.volume * units.GPa)
    np.testing.assert_allclose(at_rest.lagrangian_GPa, expected, atol=0.003 * np.abs(expected).max())
    # the stress matters
    assert np.abs(at_rest.C_GPa - expected).max() > 0.01 * np.abs(expected).max()
    assert np.array_equal(replace(at_rest, stress_GPa=np.zeros(6)).lagrangian_GPa, at_rest.C_GPa)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature_K": 0.0}, "temperature_K: expected a positive number"),
        ({"timestep_fs": "2"}, "timestep_fs: expected a positive number"),
        ({"time_ps": np.nan}, "time_ps: expected a positive number"),
        ({"time_ps": 0.01}, "less than one sample"),
        ({"equilibration_ps": -1.0}, "equilibration_ps: expected a positive number"),
        ({"interval": 0}, "interval: expected an integer of at least 1"),
        ({"snapshots": 3}, "snapshots: expected an integer of at least 4"),
        ({"replicas": 1}, "replicas: expected an integer of at least 2"),
        ({"strain": 0.0}, "strain: expected a positive number"),
        ({"strain": 0.2}, "strain: expected a small number"),
    ],
)
def test_refused_settings(settings, message):
    with pytest.raises(AnalysisError, match=message):
        analysis.elastic_fluctuations(physics.crystal(17.0, 2), **(SHORT | settings))


def test_refused_systems():
    bare, sheet, held = (physics.crystal(17.0, 2) for _ in range(3))
    bare.calc = None
    sheet.pbc = [True, True, False]
    held.set_constraint(FixAtoms([0]))
    for atoms, message in ((bare, "no calculator"), (sheet, "periodic in all directions"), (held, "held sites")):
        with pytest.raises(AnalysisError, match=message):
            analysis.elastic_fluctuations(atoms, **SHORT)
