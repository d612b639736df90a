"""Which vibrations carry the heat: the thermal conductivity of driven runs (HNEMD) as an integral over frequencies.

The equations are in :mod:`ase_nepcg.md.observers.spectral`, the volume is that of :mod:`.heat`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..md import SpectralHeatCurrent
from .conducting import axis_number, driven, scaled, sheet_scale
from .frames import AnalysisError, count_of
from .runs import check_run, steps_of

__all__ = ["SpectralConductivityResult", "spectral_conductivity"]


@dataclass(frozen=True)
class SpectralConductivityResult:
    """Conductivity along ``axis`` as an integral over frequencies; standard errors from the scatter of the replicas.

    ``time_fs`` (2L+1,): lags of both signs; ``correlation`` (2L+1,) with error: of virials and velocities, eV Å/fs.
    ``frequency_THz`` (L+1,), ``spectrum`` (L+1,) with error: conductivity per frequency, W/(m K THz);
    ``resolution_THz``: width of a line. ``kappa`` with error: integral of the spectrum (trapezoids), the potential part
    of the conductivity, W/(m K). ``runs``: SpectralHeatCurrentResult of each replica.
    """

    axis: str
    field_per_A: float
    time_fs: np.ndarray
    correlation: np.ndarray
    correlation_error: np.ndarray
    frequency_THz: np.ndarray
    spectrum: np.ndarray
    spectrum_error: np.ndarray
    resolution_THz: float
    kappa: float
    kappa_error: float
    temperature_K: float
    scale: float
    runs: list

    def as_table(self) -> tuple[tuple, np.ndarray]:
        return self.runs[0].as_table()[0], np.stack([self.frequency_THz, self.spectrum, self.spectrum_error], axis=1)


def spectral_conductivity(
    atoms,
    axis: str,
    *,
    temperature_K: float,
    field_per_A: float,
    lags: int = 250,
    convective: bool = False,
    thickness_A: float | None = None,
    timestep_fs: float = 2.0,
    equilibration_ps: float = 10.0,
    settle_ps: float = 10.0,
    time_ps: float = 100.0,
    interval: int = 5,
    replicas: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> SpectralConductivityResult:
    """Spectrum of the conductivity from the response to one driving force, replicas in one batch.

    ``field_per_A``: strength in 1/Å, from the linear regime that :func:`~ase_nepcg.analysis.hnemd` shows; ``lags``:
    longest lag in samples, which sets the width of lines (``1/(lags interval timestep_fs)``); ``interval``: steps
    between samples, at least two per period of the fastest vibration. Memory: 48 N (lags + 1) bytes per replica. Other
    arguments as of :func:`~ase_nepcg.analysis.hnemd`. Raises :class:`AnalysisError`, EnsembleError, MDError, MDFailed.
    """
    along = axis_number(axis)
    settings = {"field_per_A": field_per_A, "equilibration_ps": equilibration_ps, "settle_ps": settle_ps}
    check_run(*(seed, replicas), timestep_fs=timestep_fs, temperature_K=temperature_K, **settings, time_ps=time_ps)
    count_of("interval", interval, 1, "a positive number of steps")
    count_of("lags", lags, 2, "an integer of at least 2")
    steps = steps_of(time_ps, timestep_fs)
    if 2 * lags * interval > steps:
        raise AnalysisError(
            f"time_ps: expected at least twice the longest lag, {2e-3 * lags * interval * timestep_fs:g} ps, got "
            f"{time_ps:g} ps"
        )
    scale = sheet_scale(atoms, along, thickness_A)
    fields = np.zeros((replicas, 3))
    fields[:, along] = field_per_A
    batch = driven(
        *(atoms, fields, temperature_K, convective, timestep_fs, equilibration_ps, settle_ps, seed, progress)
    )
    handles = [run.attach(SpectralHeatCurrent(axis, lags), interval) for run in batch.runs]
    batch.run(steps)
    names = ("spectrum", "spectrum_error", "kappa", "kappa_error")
    runs = [scaled(handle.results(), scale, names) for handle in handles]

    def average(name):
        values = np.array([getattr(run, name) for run in runs])
        return {name: values.mean(axis=0), f"{name}_error": values.std(axis=0, ddof=1) / math.sqrt(replicas)}

    return SpectralConductivityResult(
        axis=axis,
        field_per_A=float(field_per_A),
        time_fs=runs[0].time_fs,
        **average("correlation"),
        frequency_THz=runs[0].frequency_THz,
        **average("spectrum"),
        resolution_THz=runs[0].resolution_THz,
        **average("kappa"),
        temperature_K=float(temperature_K),
        scale=scale,
        runs=runs,
    )
