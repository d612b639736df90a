"""Spectral conductivity of a crystal of beads: how it is put together from the runs, agreement with hnemd, refusals."""

import md_physics as physics
import numpy as np
import pytest
from scipy.integrate import trapezoid

from ase_nepcg import analysis
from ase_nepcg.analysis import AnalysisError

SHORT = {"temperature_K": 200.0, "equilibration_ps": 0.2, "settle_ps": 0.2, "time_ps": 1.0, "timestep_fs": 4.0}
SHORT |= {"interval": 5, "replicas": 3, "seed": 4, "progress": False}


def test_spectral_conductivity():
    crystal = physics.crystal(17.0, 2)
    result = analysis.spectral_conductivity(crystal, axis="y", field_per_A=2e-3, lags=10, **SHORT)
    assert len(result.runs) == 3
    assert {run.samples for run in result.runs} == {50}
    assert (result.axis, result.field_per_A, result.scale) == ("y", 2e-3, 1.0)
    np.testing.assert_allclose(result.time_fs, np.arange(-10, 11) * 20.0)
    np.testing.assert_allclose(result.frequency_THz, np.arange(11) * 2.5)
    for name in ("spectrum", "correlation", "kappa"):
        values = np.array([getattr(run, name) for run in result.runs])
        np.testing.assert_allclose(getattr(result, name), values.mean(axis=0))
        np.testing.assert_allclose(getattr(result, f"{name}_error"), values.std(axis=0, ddof=1) / np.sqrt(3))
        assert np.all(getattr(result, f"{name}_error") > 0)
    assert trapezoid(result.spectrum, result.frequency_THz) == pytest.approx(result.kappa, rel=1e-10)
    header, rows = result.as_table()
    assert rows.shape == (11, len(header))
    # the same runs without the spectrum
    driven = analysis.hnemd(crystal, "y", fields_per_A=2e-3, **SHORT)
    assert result.kappa == pytest.approx(driven.potential[0], rel=1e-10)
    for run, other in zip(result.runs, driven.runs[0], strict=True):
        assert run.kappa == pytest.approx(other.potential[1], rel=1e-10)


def test_thickness_of_a_sheet(monkeypatch):
    """Conductivities are scaled, correlations are not."""
    crystal = physics.crystal(17.0, 2)
    settings = SHORT | {"field_per_A": 2e-3, "lags": 4, "time_ps": 0.2, "replicas": 2}
    plain = analysis.spectral_conductivity(crystal, "x", **settings)
    monkeypatch.setattr("ase_nepcg.analysis.spectrum.sheet_scale", lambda atoms, along, thickness_A: 2.0)
    sheet = analysis.spectral_conductivity(crystal, "x", **settings)
    assert sheet.scale == 2.0
    for name in ("spectrum", "spectrum_error", "kappa", "kappa_error"):
        np.testing.assert_allclose(getattr(sheet, name), 2 * getattr(plain, name))
    np.testing.assert_array_equal(sheet.correlation, plain.correlation)
    np.testing.assert_allclose(sheet.runs[1].spectrum, 2 * plain.runs[1].spectrum)
    monkeypatch.undo()
    with pytest.raises(AnalysisError, match="expected a sheet"):
        analysis.spectral_conductivity(crystal, "x", thickness_A=5.0, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"axis": "w"}, "axis: expected"),
        ({"field_per_A": 0.0}, "field_per_A: expected a positive number"),
        ({"replicas": 1}, "replicas: expected an integer of at least 2"),
        ({"settle_ps": -1.0}, "settle_ps"),
        ({"timestep_fs": 0.0}, "timestep_fs"),
        ({"interval": 0}, "interval: expected a positive number of steps, got 0"),
        ({"lags": 1}, "lags: expected an integer of at least 2"),
        ({"lags": 26}, "time_ps: expected at least twice the longest lag, 1.04 ps, got 1 ps"),
    ],
)
def test_refusals(settings, message):
    given = {"axis": "x", "field_per_A": 1e-4, "lags": 10} | SHORT | settings
    with pytest.raises(AnalysisError, match=message):
        analysis.spectral_conductivity(physics.crystal(17.0, 2), **given)


def test_needs_a_calculator():
    bare = physics.crystal(17.0, 2)
    bare.calc = None
    with pytest.raises(AnalysisError, match="no calculator"):
        analysis.spectral_conductivity(bare, "x", field_per_A=1e-4, lags=10, **SHORT)
