"""Diffusion: mean square displacements, velocity autocorrelation, the size of the cell, and how much faster beads are.

::

    <|x(t0 + t) - x(t0)|^2> = 6 D t        int_0^inf <v(t0) . v(t0 + t)> dt = 3 D
    D(infinite) = D(L) + 2.837297 kT / (6 pi eta L)        cubic cell of edge L
                                                           (Yeh & Hummer, J. Phys. Chem. B 108, 15873, 2004, eq 12)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ase import units

from ..md import MSD, VACF
from ..md.observers.motion import MSDResult, VACFResult
from .frames import AnalysisError, observe, positive, read_frames

__all__ = ["SpeedUp", "diffusion", "finite_size_correction", "speed_up", "vacf"]

_XI = 2.837297
# 1 Å^2/ps in m^2/s
_A2_PER_PS = 1e-8


def diffusion(
    frames, length: int, *, frame_fs=None, origins_every=10, fit=(0.25, 1.0), remove_drift=False, unwrap=False
) -> MSDResult:
    """Mean square displacements of a trajectory up to a lag of ``length`` frames, and diffusion coefficients.

    ``frames``: as of :func:`~ase_nepcg.analysis.frames.read_frames`, evenly spaced; ``frame_fs``: time between them
    where the file does not know it; ``fit``: part of the lags whose slope is ``2 D`` per direction. Positions must not
    be wrapped (those of MD are not); ``unwrap=True`` follows the nearest image from frame to frame. The other arguments
    and the result (in Å^2/ps, 1e-4 cm^2/s, with errors) are those of :class:`ase_nepcg.md.MSD`, which does the same
    during a run. Add :func:`finite_size_correction` for the limit of large cells.
    """
    _require_bool("unwrap", unwrap)
    return observe(MSD(length, origins_every, fit, remove_drift), frames, frame_fs=frame_fs, unwrap=unwrap)


def vacf(frames, length: int, *, frame_fs=None, origins_every=10, remove_drift=False) -> VACFResult:
    """Velocity autocorrelation of a trajectory and the diffusion coefficients of its integral; see :func:`diffusion`
    and :class:`ase_nepcg.md.VACF`."""
    return observe(VACF(length, origins_every, remove_drift), frames, frame_fs=frame_fs)


def finite_size_correction(frames, temperature_K: float, viscosity_mPa_s: float) -> float:
    """What the diffusion coefficient of a liquid in a periodic cubic cell lacks, Å^2/ps (Yeh and Hummer, eq 12).

    ``frames``: a frame or a trajectory, for the average edge. Raises :class:`AnalysisError` for cells that are not
    cubic or not periodic, where another constant (or a tensor) holds.
    """
    for name, value in (("temperature_K", temperature_K), ("viscosity_mPa_s", viscosity_mPa_s)):
        positive(name, value)
    edges = []
    for number, frame in enumerate(read_frames(frames)):
        parameters = frame.cell.cellpar()
        edge = parameters[:3].mean()
        cubic = np.abs(parameters[3:] - 90.0).max() < 0.1 and np.abs(parameters[:3] - edge).max() < 1e-3 * edge
        if not (cubic and frame.pbc.all() and edge > 0):
            raise AnalysisError(
                f"frame {number}: the correction holds for periodic cubic cells, got the cell {parameters.tolist()} "
                f"with pbc {frame.pbc.tolist()}"
            )
        edges.append(edge)
    kT = units._k * temperature_K
    metres = _XI * kT / (6.0 * math.pi * 1e-3 * viscosity_mPa_s * np.mean(edges) * 1e-10)
    return float(metres / _A2_PER_PS)


@dataclass(frozen=True)
class SpeedUp:
    """How much faster a species diffuses: ``ratio`` with standard error ``error``; 1 ps of the faster run is worth
    ``ratio`` ps of the slower one."""

    species: tuple
    ratio: float
    error: float


def speed_up(fast: MSDResult, slow: MSDResult, species=None) -> SpeedUp:
    """Ratio of the diffusion coefficients of two systems, as coarse-grained over all-atom.

    ``species``: labels in ``fast`` and in ``slow``; None: the only ones. Raises :class:`AnalysisError`.
    """
    if species is None:
        if len(fast.species) != 1 or len(slow.species) != 1:
            raise AnalysisError(
                f"species: expected one label of each, there are {', '.join(fast.species)} and "
                f"{', '.join(slow.species)}"
            )
        species = fast.species[0], slow.species[0]
    if isinstance(species, str) or len(species) != 2:
        raise AnalysisError(f"species: expected two labels, of the fast and of the slow system, got {species!r}")
    values = []
    for label, result in zip(species, (fast, slow), strict=True):
        if label not in result.species:
            raise AnalysisError(f"species {label!r}: expected one of {', '.join(result.species)}")
        k = result.species.index(label)
        values.append((result.diffusion[k], result.diffusion_error[k]))
    (d_fast, e_fast), (d_slow, e_slow) = values
    if not (d_fast > 0 and d_slow > 0):
        raise AnalysisError(f"expected two positive diffusion coefficients, got {d_fast:g} and {d_slow:g} Å^2/ps")
    ratio = d_fast / d_slow
    return SpeedUp(tuple(species), float(ratio), float(ratio * math.hypot(e_fast / d_fast, e_slow / d_slow)))


def _require_bool(name, value) -> None:
    if not isinstance(value, bool):
        raise AnalysisError(f"{name}: expected True or False, got {value!r}")
