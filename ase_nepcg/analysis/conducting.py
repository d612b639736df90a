"""What measurements along an axis share: driven runs for conductivities, and the volume of a sheet."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..md import HNEMD, MD
from .frames import AnalysisError, positive
from .runs import equilibrated, run_seed, steps_of


def driven(
    atoms, fields_per_A, temperature_K, convective, timestep_fs, equilibration_ps, settle_ps, seed: int, progress: bool
):
    """A batch of runs, one for each driving force in ``fields_per_A`` (R, 3): copies of ``atoms`` with velocities of
    their own after ``equilibration_ps`` without and ``settle_ps`` with the field."""
    steps = steps_of(equilibration_ps, timestep_fs)
    starts = equilibrated(atoms, len(fields_per_A), temperature_K, timestep_fs, steps, seed, progress)
    runs = []
    for k, (start, field) in enumerate(zip(starts, fields_per_A, strict=True)):
        ensemble = HNEMD(temperature_K, tuple(field.tolist()), convective=convective)
        runs.append(MD(start, timestep_fs, ensemble, seed=run_seed(seed, k), progress=progress))
    batch = MD.batch(runs)
    batch.run(steps_of(settle_ps, timestep_fs))
    return batch


def axis_number(axis) -> int:
    if axis not in ("x", "y", "z"):
        raise AnalysisError(f'axis: expected "x", "y" or "z", got {axis!r}')
    return "xyz".index(axis)


def sheet_scale(atoms, along, thickness_A) -> float:
    """What conductivities along axis number ``along``, or stresses, are multiplied by: they refer to the volume of the
    cell, of which a sheet of this thickness is a part."""
    if thickness_A is None:
        return 1.0
    positive("thickness_A", thickness_A)
    across = np.flatnonzero(~np.asarray(atoms.pbc))
    if len(across) != 1:
        raise AnalysisError(
            f"thickness_A: expected a sheet, with one direction that is not periodic; pbc is {atoms.pbc.tolist()}"
        )
    normal = np.cross(*np.delete(atoms.cell.array, across[0], axis=0))
    area = np.linalg.norm(normal)
    if not atoms.cell.volume > 0:
        raise AnalysisError(
            "thickness_A: the cell has no volume; give it a vector across the sheet, "
            f"atoms.center(vacuum=..., axis={across[0]})"
        )
    if abs(normal[along]) > 1e-6 * area:
        raise AnalysisError(
            f"the axis {'xyz'[along]} is not in the plane of the sheet, where a thickness has a meaning"
        )
    return float(atoms.cell.volume / (area * thickness_A))


def scaled(result, scale: float, names):
    """A result whose conductivities, the fields ``names``, are multiplied by ``scale``."""
    return replace(result, **{name: scale * getattr(result, name) for name in names})
