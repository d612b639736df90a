"""Vibrational density of states from velocities.

::

    g_s(nu) = (1/kT) sum_{i of species s} m_i S_i(nu)        S_i: one-sided power spectrum of the velocity of site i,
                                                             int_0^inf S_i dnu = <v_i^2>

so that the integral of g is the number of degrees of freedom. S is estimated by Welch's method (scipy.signal).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import units
from scipy.signal import get_window
from scipy.signal import welch as _welch

from .frames import AnalysisError, Series, count_of, positive

__all__ = ["VDOSResult", "vdos"]


@dataclass(frozen=True)
class VDOSResult:
    """Density of states of S species, in degrees of freedom per THz.

    ``frequency_THz`` (F,), ``dos`` (S, F) with standard error ``dos_error`` (NaN with one segment); ``n_dof`` (S,): its
    integral, three per site in equilibrium less what constraints and the total momentum take away;
    ``resolution_THz``: width of a line.
    """

    species: tuple
    frequency_THz: np.ndarray
    dos: np.ndarray
    dos_error: np.ndarray
    n_dof: np.ndarray
    resolution_THz: float
    segments: int

    def as_table(self) -> tuple[tuple, np.ndarray]:
        header, columns = ["frequency_THz"], [self.frequency_THz]
        for k, label in enumerate(self.species):
            header += [f"dos_{label}_per_THz", f"dos_{label}_error"]
            columns += [self.dos[k], self.dos_error[k]]
        return tuple(header), np.stack(columns, axis=1)


def vdos(frames, temperature_K: float, *, segments: int = 8, frame_fs=None) -> VDOSResult:
    """Density of states of a trajectory with momenta.

    ``frames``: as of :func:`~ase_nepcg.analysis.frames.read_frames`, evenly spaced, so closely that the fastest motion
    has several frames per period; ``frame_fs``: time between them where the file does not know it; ``segments``: pieces
    of the trajectory (overlapping by half, Hann window) that are averaged: more of them make errors smaller and lines
    broader. Raises :class:`AnalysisError`.
    """
    positive("temperature_K", temperature_K)
    count_of("segments", segments, 1, "a positive number")
    series = Series(frames, moving=True)
    spacing, labels, masses = series.every(frame_fs), series.labels, series.head[0].get_masses()
    velocities = [frame.arrays["momenta"] / masses[:, None] for frame in series]
    v = np.array(velocities)
    # segments that overlap by half
    length = 2 * len(v) // (segments + 1)
    if length < 8:
        raise AnalysisError(
            f"{len(v)} frames are too few for {segments} segments; expected at least {4 * segments + 4}"
        )
    starts = np.arange(segments) * (length // 2)
    frequency = np.fft.rfftfreq(length, spacing * 1e-3)
    species = tuple(dict.fromkeys(labels.tolist()))
    each = np.zeros((segments, len(species), len(frequency)))
    for k, start in enumerate(starts):
        _, power = _welch(
            v[start : start + length], 1e3 / spacing, "hann", length, detrend=False, scaling="density", axis=0
        )
        weighted = masses[:, None] * power / (units.kB * temperature_K)
        for s, label in enumerate(species):
            each[k, s] = weighted[:, labels == label].sum(axis=(1, 2))
    # segments that overlap by half have a small correlation under a Hann window (Welch 1967)
    window = get_window("hann", length)
    overlap = (window[length // 2 :] @ window[: length - length // 2]) / (window @ window)
    inflation = 1.0 + 2.0 * overlap**2 * (segments - 1) / segments
    error = np.full(each.shape[1:], np.nan)
    if segments > 1:
        error = each.std(axis=0, ddof=1) * np.sqrt(inflation / segments)
    dos = each.mean(axis=0)
    step = frequency[1]
    return VDOSResult(
        species=species,
        frequency_THz=frequency,
        dos=dos,
        dos_error=error,
        n_dof=dos.sum(axis=1) * step,
        resolution_THz=float(1.5 * step),
        segments=segments,
    )
