"""What measurements along an axis share: driven runs that differ in field and noise, the volume of a sheet."""

import dataclasses

import md_physics as physics
import numpy as np
import pytest
from ase import Atoms

from ase_nepcg.analysis import AnalysisError
from ase_nepcg.analysis.conducting import axis_number, driven, scaled, sheet_scale


def test_thickness_of_a_sheet():
    sheet = Atoms("C", cell=[[3, 0, 0], [1, 4, 0], [0, 0, 20]], pbc=[True, True, False])
    assert sheet_scale(sheet, 0, None) == 1.0
    assert sheet_scale(sheet, 1, 5.0) == pytest.approx(4.0)
    with pytest.raises(AnalysisError, match="axis z is not in the plane"):
        sheet_scale(sheet, 2, 5.0)
    with pytest.raises(AnalysisError, match="expected a sheet"):
        sheet_scale(Atoms("C", cell=[3, 3, 3], pbc=True), 0, 5.0)
    with pytest.raises(AnalysisError, match="thickness_A: expected a positive"):
        sheet_scale(sheet, 0, 0.0)
    flat = sheet.copy()
    flat.cell[2] = 0
    with pytest.raises(AnalysisError, match=r"the cell has no volume; .*axis=2\)"):
        sheet_scale(flat, 0, 5.0)


def test_axes():
    assert [axis_number(axis) for axis in "xyz"] == [0, 1, 2]
    for wrong in ("w", "X", 0, None):
        with pytest.raises(AnalysisError, match='axis: expected "x", "y" or "z"'):
            axis_number(wrong)


def test_driven_runs():
    crystal = physics.crystal(17.0, 2)
    fields = np.array([[1e-3, 0, 0], [1e-3, 0, 0], [0, 2e-3, 0]])
    batch = driven(crystal, fields, 100.0, False, 4.0, 0.04, 0.04, 3, False)
    assert [run.ensemble.field_per_A for run in batch.runs] == [tuple(field) for field in fields.tolist()]
    assert len({run.seed for run in batch.runs}) == 3
    assert [run.nsteps for run in batch.runs] == [10] * 3
    places = [run.atoms.positions for run in batch.runs]
    assert min(np.abs(places[0] - other).max() for other in places[1:]) > 1e-3
    again = driven(crystal, fields, 100.0, False, 4.0, 0.04, 0.04, 3, False)
    assert all(np.array_equal(a, b.atoms.positions) for a, b in zip(places, again.runs, strict=True))


def test_scaled():
    @dataclasses.dataclass(frozen=True)
    class Result:
        kappa: float
        samples: int

    assert scaled(Result(2.0, 7), 4.0, ("kappa",)) == Result(8.0, 7)
