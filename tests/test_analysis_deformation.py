"""Stress-strain curves of a crystal of beads under 3 GPa, against slopes of its stress at rest."""

import md_physics as physics
import numpy as np
import pytest
from ase import units

from ase_nepcg import analysis
from ase_nepcg.analysis import AnalysisError
from ase_nepcg.analysis.deformation import _evaluate, _linear
from ase_nepcg.md import Deform
from ase_nepcg.md.ensembles.base import EnsembleError

# cold: free cells of few beads fluctuate, at 10 K by 0.2 % in length
SHORT = {
    "rate_per_ps": 0.001,
    "max_strain": 0.002,
    "temperature_K": 0.01,
    "windows": 5,
    "replicas": 2,
    "equilibration_ps": 0.2,
    "progress": False,
}


def slopes_at_rest(crystal, h=0.002):
    """dP/d(strain) along x of the stresses of all axes."""
    stresses = []
    for sign in (1, -1):
        strained = crystal.copy()
        strained.calc = crystal.calc
        strained.set_cell(crystal.cell.array * [1 + sign * h, 1, 1], scale_atoms=True)
        stresses.append(strained.get_stress()[:3] / units.GPa)
    return (stresses[0] - stresses[1]) / (2 * h)


def test_initial_slope_is_the_elastic_constant():
    crystal = physics.crystal()
    before = crystal.positions.copy()
    result = analysis.stress_strain(crystal, "x", **SHORT)
    c11, c12, _ = slopes_at_rest(crystal)
    assert result.modulus_GPa == pytest.approx(c11, rel=0.05)
    across = np.polyfit(result.strain, result.stress_GPa[:, 1:3].mean(axis=1), 1)[0]
    assert across == pytest.approx(c12, rel=0.05)
    np.testing.assert_allclose(np.diff(result.strain), 0.0004, rtol=1e-9)
    assert np.abs(result.lateral[:, 1:]).max() < 1e-12
    assert np.isnan(result.poisson).all()
    assert result.replicas == 2
    header, rows = result.as_table()
    assert rows.shape == (5, len(header))
    # what was given is as before
    assert np.array_equal(crystal.positions, before)
    assert not crystal.has("momenta")


def test_free_sides_contract():
    crystal = physics.crystal()
    c11, c12, _ = slopes_at_rest(crystal)
    pressure = -crystal.get_stress()[:3].mean() / units.GPa
    settings = SHORT | {"free": "yz", "pressure_GPa": pressure, "tau_p_fs": 50.0, "compressibility_per_GPa": 0.05}
    result = analysis.stress_strain(crystal, "x", **settings)
    assert result.poisson[1:].mean() == pytest.approx(c12 / (c11 + c12), rel=0.1)
    assert result.modulus_GPa == pytest.approx(c11 - 2 * c12**2 / (c11 + c12), rel=0.1)
    assert np.isnan(result.poisson[0])


def test_free_sides_are_at_their_pressure_before_the_pull():
    """Half a GPa away from where the crystal is: sides that relaxed during the pull would show as a ratio."""
    crystal = physics.crystal()
    c11, c12, _ = slopes_at_rest(crystal)
    pressure = -crystal.get_stress()[:3].mean() / units.GPa + 0.5
    settings = SHORT | {"free": "yz", "pressure_GPa": pressure, "tau_p_fs": 50.0, "compressibility_per_GPa": 0.05}
    result = analysis.stress_strain(crystal, "x", **(settings | {"equilibration_ps": 1.0}))
    assert result.poisson[1:].mean() == pytest.approx(c12 / (c11 + c12), rel=0.15)
    assert np.abs(result.stress_GPa[:, 1:3] + pressure).max() < 0.05
    assert np.abs(result.lateral[0, 1:]).max() < 2e-4


def test_ends_at_the_largest_strain():
    """Windows of 10, 11, 11 and 11 samples for 434 steps, of which the last four belong to none."""
    settings = SHORT | {"max_strain": 0.000868, "windows": 4, "rate_per_ps": -0.001}
    result = analysis.stress_strain(physics.crystal(), "x", **settings)
    step = 2e-6
    samples = -step * 10 * np.arange(1, 44)
    expected = [part.mean() for part in np.split(samples, [10, 21, 32])]
    np.testing.assert_allclose(result.strain, expected, rtol=1e-9)
    # the fit goes as far as there are data
    assert result.linear == 0.000868


def test_what_a_fit_needs_is_known_before_the_run(monkeypatch):
    monkeypatch.setattr("ase_nepcg.analysis.deformation.equilibrated", None)
    with pytest.raises(AnalysisError, match="less than two windows end below this strain"):
        analysis.stress_strain(physics.crystal(), "x", **(SHORT | {"linear": 0.0003}))


def test_the_last_window_of_the_fit_may_end_at_its_end():
    """What a refusal names as the strain of the second window is enough, whatever the rounding of the run."""
    for rate in (0.001, -0.001):
        settings = SHORT | {"rate_per_ps": rate, "max_strain": 0.0012, "windows": 3}
        ideal = 2e-6 * 10 * np.arange(21, 41).mean()
        result = analysis.stress_strain(physics.crystal(), "x", **settings, linear=ideal)
        assert np.isfinite(result.modulus_GPa)


def test_sheets_have_a_thickness():
    sheet = physics.crystal()
    sheet.pbc = [True, False, False]
    with pytest.raises(AnalysisError, match="expected a cell that is periodic in all directions, or a sheet"):
        analysis.stress_strain(sheet, "x", **SHORT)
    sheet.cell[2] *= 2
    sheet.pbc = [True, True, False]
    with pytest.raises(AnalysisError, match=r"pbc is \[True, True, False\]: .* give the thickness_A"):
        analysis.stress_strain(sheet, "x", **SHORT)
    flat = sheet.copy()
    flat.calc = sheet.calc
    flat.cell[2] = 0
    with pytest.raises(AnalysisError, match="the cell has no volume; give it a vector across"):
        analysis.stress_strain(flat, "x", thickness_A=5.0, **SHORT)
    found = {}
    for height in (1.0, 2.0):
        vacuum = sheet.copy()
        vacuum.calc = sheet.calc
        vacuum.cell[2] *= height
        settings = SHORT | {"thickness_A": 5.0, "free": "y", "pressure_GPa": 0.5, "tau_p_fs": 50.0}
        found[height] = analysis.stress_strain(vacuum, "x", **settings, compressibility_per_GPa=0.05 * height)
    # a vacuum of another height changes the noise of the barostat only
    np.testing.assert_allclose(found[2.0].stress_GPa, found[1.0].stress_GPa, atol=0.02)
    assert found[2.0].modulus_GPa == pytest.approx(found[1.0].modulus_GPa, rel=0.05)


def test_slopes_and_errors_of_made_up_numbers():
    rng, replicas = np.random.default_rng(1), 400
    strain = np.linspace(0.001, 0.019, 10)
    table = np.zeros((replicas, 10, 9))
    table[..., 8] = strain
    table[..., 2] = 70.0 * strain + rng.normal(scale=0.1, size=(replicas, 10))
    table[..., 6] = -0.3 * strain + rng.normal(scale=0.001, size=(replicas, 10))
    table[..., 7] = -0.2 * strain
    result = _evaluate(Deform("z", 0.01, 300.0, free="x"), table, _linear(strain, 0.02), 0.02)
    x = strain - strain.mean()
    assert result.modulus_error == pytest.approx(0.1 / np.sqrt(x @ x) / np.sqrt(replicas), rel=0.15)
    assert abs(result.modulus_GPa - 70.0) < 4 * result.modulus_error
    assert abs(result.poisson[0] - 0.3) < 4 * result.poisson_error[0]
    # y was held, z is the axis
    assert np.isnan(result.poisson[1:]).all()
    with pytest.raises(AnalysisError, match="less than two windows"):
        _linear(strain, 0.002)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"max_strain": 0.0}, AnalysisError, "max_strain: expected a positive number"),
        ({"replicas": 1}, AnalysisError, "replicas: expected an integer of at least 2"),
        ({"windows": 2.5}, AnalysisError, "windows: expected an integer"),
        ({"windows": 2000}, AnalysisError, "leave less than one sample"),
        ({"rate_per_ps": -0.01, "max_strain": 1.0}, AnalysisError, "a compression ends before 1"),
        ({"rate_per_ps": 0.0}, EnsembleError, "rate_per_ps"),
        ({"free": "x"}, EnsembleError, "free"),
        ({"free": "y"}, AnalysisError, r"equilibration_ps: free axes need at least 3 tau_p_fs \(3 ps\)"),
        ({"seed": -1}, AnalysisError, "seed: expected an integer of at least 0"),
        ({"seed": 1.5}, AnalysisError, "seed: expected an integer"),
    ],
)
def test_refusals(settings, error, message):
    with pytest.raises(error, match=message):
        analysis.stress_strain(physics.crystal(), "x", **(SHORT | settings))


def test_needs_a_calculator():
    bare = physics.crystal()
    bare.calc = None
    with pytest.raises(AnalysisError, match="no calculator"):
        analysis.stress_strain(bare, "x", **SHORT)
