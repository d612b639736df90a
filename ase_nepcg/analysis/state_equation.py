"""Pressure at many volumes, or density at many pressures: all state points advance together (``MD.batch``)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from ..md import MD, NPT, Langevin, Thermo
from ..quantities import GRAMS_PER_CM3
from .frames import AnalysisError
from .runs import TAU_FS, check_run, hot_copy, run_seed, steps_of

__all__ = ["EOSResult", "eos"]

_SAMPLE = 10
_FRICTION_PER_FS = 0.01
_TAU_P_FS = 1000.0
# a start is not compressed by more than this
_SMALLEST = 20.0


@dataclass(frozen=True)
class EOSResult:
    """Averages at n state points, in the order in which they were asked for, with standard errors.

    ``given``: "volume" or "pressure", which has no error; ``volume_A3``, ``density_g_cm3``, ``pressure_GPa`` and
    ``temperature_K`` (n,); ``reliable`` (n,): False where the run is short compared with the slowest correlation, or
    too short for an error (NaN). ``final``: the last configurations, to go on from.
    """

    given: str
    volume_A3: np.ndarray
    volume_error: np.ndarray
    density_g_cm3: np.ndarray
    density_error: np.ndarray
    pressure_GPa: np.ndarray
    pressure_error: np.ndarray
    temperature_K: np.ndarray
    temperature_error: np.ndarray
    reliable: np.ndarray
    time_ps: float
    final: list

    def as_table(self) -> tuple[tuple, np.ndarray]:
        names = ("volume_A3", "density_g_cm3", "pressure_GPa", "temperature_K")
        header, columns = [], []
        for name in names:
            error = f"{name.split('_')[0]}_error"
            header += [name, f"{name}_error"]
            columns += [getattr(self, name), getattr(self, error)]
        return tuple(header), np.stack(columns, axis=1)


def eos(
    atoms,
    *,
    temperature_K: float,
    volumes_A3=None,
    pressures_GPa=None,
    models: dict | None = None,
    timestep_fs: float = 2.0,
    equilibration_ps: float = 10.0,
    time_ps: float = 50.0,
    seed: int = 0,
    progress: bool = True,
):
    """Equation of state: pressures at ``volumes_A3`` (of the cell; Langevin), or volumes and densities at
    ``pressures_GPa`` (stochastic cell rescaling, isotropic). Exactly one of them is given.

    ``atoms``: start of all points, scaled isotropically to each volume, with a :class:`~ase_nepcg.NEP` calculator; or a
    list with a start for each point. ``models``: ``{name: calculator}`` of several models, as with and without the
    virial correction, each of which gets its own runs; then a dict of results is returned, else one
    :class:`EOSResult`. Velocities are drawn anew; the same seed gives the same numbers.

    Raises :class:`AnalysisError` for settings, MDError and MDFailed as :class:`~ase_nepcg.MD`.
    """
    if (volumes_A3 is None) == (pressures_GPa is None):
        raise AnalysisError("eos: expected either volumes_A3 or pressures_GPa")
    given = "volume" if pressures_GPa is None else "pressure"
    name, values = ("volumes_A3", volumes_A3) if pressures_GPa is None else ("pressures_GPa", pressures_GPa)
    try:
        values = np.atleast_1d(np.asarray(values, float))
    except (TypeError, ValueError):
        values = np.zeros(0)
    lowest = 0.0 if given == "volume" else -math.inf
    if values.ndim != 1 or len(values) == 0 or not ((values > lowest) & np.isfinite(values)).all():
        got = volumes_A3 if given == "volume" else pressures_GPa
        raise AnalysisError(f"{name}: expected finite numbers (volumes above 0), got {got!r}")
    check_run(
        seed,
        temperature_K=temperature_K,
        timestep_fs=timestep_fs,
        time_ps=time_ps,
        equilibration_ps=equilibration_ps,
    )
    if steps_of(time_ps, timestep_fs) < _SAMPLE:
        raise AnalysisError(
            f"time_ps: expected at least one sample, which is taken every {_SAMPLE} steps "
            f"({_SAMPLE * timestep_fs * 1e-3:g} ps), got {time_ps:g} ps"
        )
    starts = [atoms] * len(values) if isinstance(atoms, Atoms) else list(atoms)
    if not all(isinstance(start, Atoms) for start in starts):
        raise AnalysisError("atoms: expected an Atoms, or a list of them")
    if len(starts) != len(values):
        raise AnalysisError(
            f"atoms: expected one start, or one for each of the {len(values)} points; got {len(starts)}"
        )
    for start in starts:
        if not start.pbc.all() or start.cell.rank < 3:
            raise AnalysisError("atoms: an equation of state needs a cell that is periodic in all directions")
    if given == "volume":
        for start, value in zip(starts, values.tolist(), strict=True):
            if start.cell.volume > _SMALLEST * value:
                raise AnalysisError(
                    f"volumes_A3: {value:.4g} Å^3 is {start.cell.volume / value:.0f} times smaller than the start "
                    f"({start.cell.volume:.4g} Å^3); volumes are those of the cell in Å^3, densities in g/cm^3"
                )
    if models is not None and (not isinstance(models, dict) or not models):
        raise AnalysisError(f"models: expected {{name: calculator}}, got {models!r}")
    calculators = {"": None} if models is None else models
    results = {}
    for label, calculator in calculators.items():
        runs = []
        for k, (start, value) in enumerate(zip(starts, values.tolist(), strict=True)):
            copy = hot_copy(start, temperature_K, [seed, k], calculator)
            if given == "volume":
                copy.set_cell(copy.cell * (value / copy.cell.volume) ** (1 / 3), scale_atoms=True)
                ensemble = Langevin(temperature_K, _FRICTION_PER_FS)
            else:
                ensemble = NPT(temperature_K, value, TAU_FS, _TAU_P_FS)
            runs.append(MD(copy, timestep_fs, ensemble, seed=run_seed(seed, k), progress=progress))
        results[label] = _measure(given, runs, equilibration_ps, time_ps)
    return results[""] if models is None else results


def _measure(given, runs, equilibration_ps, time_ps) -> EOSResult:
    batch = MD.batch(runs)
    dt = runs[0].timestep_fs
    batch.run(steps_of(equilibration_ps, dt))
    handles = [run.attach(Thermo(), _SAMPLE) for run in runs]
    batch.run(steps_of(time_ps, dt))
    thermo = [handle.results() for handle in handles]
    columns = {}
    for name in ("volume_A3", "density_g_cm3", "pressure_GPa", "temperature_K"):
        columns[name], columns[f"{name.split('_')[0]}_error"] = np.array([one[name] for one in thermo]).T
    if given == "volume":
        # not a fluctuation: rounding of a sum
        columns["volume_A3"] = np.array([run.atoms.cell.volume for run in runs])
        columns["density_g_cm3"] = GRAMS_PER_CM3 * np.array([run.atoms.get_masses().sum() for run in runs])
        columns["density_g_cm3"] = columns["density_g_cm3"] / columns["volume_A3"]
        columns["volume_error"] = columns["density_error"] = np.zeros(len(runs))
    of_interest = "pressure_GPa" if given == "volume" else "volume_A3"
    return EOSResult(
        given=given,
        reliable=np.array([bool(one.reliable[one.columns.index(of_interest)]) for one in thermo]),
        time_ps=float(time_ps),
        final=[run.atoms for run in runs],
        **columns,
    )
