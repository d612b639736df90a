"""Conductivity by both methods, of a crystal of beads: how results are put together from the runs, and refusals."""

import md_physics as physics
import numpy as np
import pytest

from ase_nepcg import analysis
from ase_nepcg.analysis import AnalysisError
from ase_nepcg.analysis.heat import HNEMDResult

SHORT = {"temperature_K": 200.0, "equilibration_ps": 0.2, "time_ps": 1.0, "timestep_fs": 4.0, "progress": False}


def test_hnemd():
    settings = SHORT | {"settle_ps": 0.2, "replicas": 2}
    crystal = physics.crystal(17.0, 2)
    result = analysis.hnemd(crystal, "y", fields_per_A=[1e-3, 2e-3], **settings)
    assert result.kappa.shape == result.kappa_error.shape == (2,)
    assert [len(runs) for runs in result.runs] == [2, 2]
    for k, runs in enumerate(result.runs):
        np.testing.assert_allclose(result.kappa[k], np.mean([run.kappa[1] for run in runs]))
        assert np.array_equal(runs[0].field_per_A, [0, [1e-3, 2e-3][k], 0])
        assert runs[0].samples == 25
    np.testing.assert_allclose(result.kappa, result.potential + result.convective)
    assert result.linear[0] == 0.0
    header, rows = result.as_table()
    assert rows.shape == (2, len(header))
    again = analysis.hnemd(crystal, "y", fields_per_A=[1e-3, 2e-3], **settings)
    assert np.array_equal(again.kappa, result.kappa)


def test_linear_counts_standard_errors():
    result = HNEMDResult(
        *("x", np.array([2e-4, 1e-4]), np.array([2.5, 2.0]), np.array([0.3, 0.4])),
        *(np.zeros(2), np.zeros(2), 300.0, 1.0, []),
    )
    np.testing.assert_allclose(result.linear, [1.0, 0.0])


def test_green_kubo():
    settings = SHORT | {"correlation_ps": 0.2, "replicas": 4, "interval": 2}
    crystal = physics.crystal(17.0, 2)
    result = analysis.green_kubo(crystal, axes="xy", **settings)
    assert result.running.shape == (3, 26)
    np.testing.assert_allclose(result.time_fs, np.arange(26) * 8.0)
    np.testing.assert_allclose(result.per_axis, result.running[:, 12:].mean(axis=1))
    assert result.kappa == pytest.approx(result.per_axis[:2].mean())
    np.testing.assert_allclose(result.kappa_mean, result.running[:2].mean(axis=0))
    assert result.kappa_error > 0
    header, rows = result.as_table()
    assert rows.shape == (26, len(header))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"axis": "w"}, "axis: expected"),
        ({"fields_per_A": [0.0]}, "fields_per_A: expected a positive number"),
        ({"fields_per_A": []}, "fields_per_A: expected different strengths"),
        ({"fields_per_A": [1e-3, 1e-3]}, "fields_per_A: expected different strengths"),
        ({"interval": 0}, "interval: expected a positive number of steps"),
        ({"interval": 10000}, "interval: 10000 steps are more than"),
        ({"replicas": 1}, "replicas: expected an integer of at least 2"),
        ({"settle_ps": -1.0}, "settle_ps"),
        ({"time_ps": 0.0}, "time_ps: expected a positive number"),
    ],
)
def test_refusals_of_hnemd(settings, message):
    with pytest.raises(AnalysisError, match=message):
        analysis.hnemd(physics.crystal(17.0, 2), **({"axis": "x", "fields_per_A": 1e-4} | SHORT | settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"axes": "xx"}, "axes: expected some of"),
        ({"replicas": 3}, "replicas: expected an integer of at least 4"),
        ({"correlation_ps": 0.8}, "at most half of time_ps"),
        ({"correlation_ps": 0.01}, "at least two intervals"),
        ({"interval": 0}, "interval: expected a positive number of steps"),
    ],
)
def test_refusals_of_green_kubo(settings, message):
    with pytest.raises(AnalysisError, match=message):
        analysis.green_kubo(physics.crystal(17.0, 2), **({"correlation_ps": 0.2} | SHORT | settings))


def test_heat_flows_along_periodic_directions_only():
    sheet = physics.crystal(17.0, 2)
    sheet.pbc = [True, True, False]
    with pytest.raises(AnalysisError, match="axes: the cell is not periodic along z"):
        analysis.green_kubo(sheet, correlation_ps=0.2, **SHORT)


def test_needs_a_calculator():
    bare = physics.crystal(17.0, 2)
    bare.calc = None
    with pytest.raises(AnalysisError, match="no calculator"):
        analysis.hnemd(bare, "x", fields_per_A=1e-4, **SHORT)
