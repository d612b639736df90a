"""Energies, temperature and stress against ASE, averages and errors."""

import numpy as np
import pytest
from ase import Atoms, units

from ase_nepcg.md.observers import ObserverInfo, Thermo
from ase_nepcg.md.observers.thermo import COLUMNS, fill_thermo
from ase_nepcg.md.state import make_state

INFO = ObserverInfo(1.0, 1, ("O", "H"))


def state_of(atoms, calculator):
    s = make_state(
        [atoms.positions], [atoms.get_velocities()], [atoms.get_masses()], [np.zeros(len(atoms), int)],
        [atoms.cell.array], [atoms.pbc],
    )  # fmt: skip
    s.energy[0] = calculator.get_property("energy", atoms)
    if atoms.cell.rank == 3:
        stress = calculator.get_property("stress", atoms)
        s.virial[0] = -atoms.get_volume() * stress[[0, 5, 4, 5, 1, 3, 4, 3, 2]].reshape(3, 3)
    return s


def row_of(s):
    out = np.zeros(len(COLUMNS))
    fill_thermo(s, 0, out)
    return dict(zip(COLUMNS, out, strict=True))


def test_row_equals_ase(atoms, make_calculator, rng):
    atoms.set_velocities(rng.normal(size=(len(atoms), 3)) * 0.05)
    calculator = make_calculator()
    atoms.calc = calculator
    row = row_of(state_of(atoms, calculator))
    assert row["potential_eV"] == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
    assert row["kinetic_eV"] == pytest.approx(atoms.get_kinetic_energy(), rel=1e-12)
    assert row["total_eV"] == pytest.approx(atoms.get_total_energy(), rel=1e-12)
    assert row["temperature_K"] == pytest.approx(atoms.get_temperature(), rel=1e-12)
    stress = atoms.get_stress(include_ideal_gas=True) / units.GPa
    np.testing.assert_allclose([row[name] for name in COLUMNS[5:11]], stress, rtol=1e-10, atol=1e-12)
    assert row["pressure_GPa"] == pytest.approx(-stress[:3].mean(), rel=1e-10)
    assert row["volume_A3"] == pytest.approx(atoms.get_volume(), rel=1e-12)
    np.testing.assert_allclose([row[name] for name in ("a_A", "b_A", "c_A")], atoms.cell.lengths(), rtol=1e-12)
    grams = atoms.get_masses().sum() / units.mol
    assert row["density_g_cm3"] == pytest.approx(grams / (atoms.get_volume() * 1e-24), rel=1e-8)


def test_antisymmetric_part_of_the_virial_is_left_out():
    s = make_state([np.zeros((2, 3))], [np.zeros((2, 3))], [np.ones(2)], [[0, 0]], [np.eye(3) * 3], [(1, 1, 1)])
    s.virial[0] = [[0, 1.0, 0], [3.0, 0, 0], [0, 0, 0]]
    assert row_of(s)["stress_xy_GPa"] == pytest.approx(-2.0 / 27 / units.GPa)


def test_without_volume_or_freedom_there_is_no_number(make_calculator):
    atoms = Atoms("OH", positions=[[0, 0, 0], [0, 0, 1.0]])
    s = make_state(
        [atoms.positions], [np.zeros((2, 3))], [atoms.get_masses()], [[0, 1]], [np.zeros((3, 3))], [(0, 0, 0)],
        frozen=[[True, True]],
    )  # fmt: skip
    s.energy[0] = -1.5
    row = row_of(s)
    missing = {name for name, value in row.items() if np.isnan(value)}
    assert missing == {"temperature_K", "pressure_GPa", "volume_A3", "density_g_cm3", *COLUMNS[5:11]}
    assert row["total_eV"] == -1.5
    observer = Thermo()
    arrays = observer.allocate(s, 0, INFO)
    for _ in range(40):
        observer.kernel()(s, 0, 0, *arrays)
    mean, error = observer.results(*arrays)["pressure_GPa"]
    assert np.isnan(mean)
    assert np.isnan(error)


def test_averages_and_error_bars(rng):
    """Pulls of correlated energies and velocities over many runs."""
    n_runs, n, memory = 60, 1500, 0.8
    s = make_state([np.zeros((4, 3))], [np.zeros((4, 3))], [np.full(4, 5.0)], [[0] * 4], [np.eye(3) * 5], [(1, 1, 1)])
    observer = Thermo()
    kernel, pulls = observer.kernel(), []
    # <m v^2> = 12 x 5 x <v^2>
    temperature = 60 / (12 * units.kB)
    for _ in range(n_runs):
        arrays = observer.allocate(s, 0, INFO)
        energies, velocities = rng.normal(), rng.normal(size=(4, 3))
        for step in range(n):
            energies = memory * energies + np.sqrt(1 - memory**2) * rng.normal()
            velocities = memory * velocities + np.sqrt(1 - memory**2) * rng.normal(size=(4, 3))
            s.energy[0], s.v[:] = 1000 + energies, velocities
            kernel(s, 0, step, *arrays)
        result = observer.results(*arrays)
        pulls.append(
            [
                (result.mean[c] - exact) / result.error[c]
                for c, exact in ((0, 1000), (3, temperature), (5, -20 / 125 / units.GPa), (8, 0))
            ]
        )
    assert result.samples == n
    assert result["a_A"] == (5.0, 0.0)
    assert (np.abs(np.std(pulls, axis=0) - 1) < 0.35).all()
    assert (np.abs(np.mean(pulls, axis=0)) < 0.5).all()
