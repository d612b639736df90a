"""Which vibrations carry the heat: spectral decomposition of the conductivity of a driven run (HNEMD).

::

    K_a(t) = sum_ib < W_i^(ab)(0) v_i^b(t) >                               -L ... L samples, K_a(0) = <J_a>
    kappa_a(nu) = 2 / (V T F_e) int_-inf^inf cos(2 pi nu t) K_a(t) dt      int_0^inf kappa_a(nu) dnu = K_a(0)/(V T F_e)

(Fan et al., Phys. Rev. B 99, 064308, 2019; Gabourie et al., Phys. Rev. B 103, 205421, 2021), with the virials W_i of
the sites (first index separation, second force) and velocities relative to the centre of mass, as in :mod:`.heat`. The
integral over the frequencies nu = omega/2pi is the potential part of the conductivity; the convective part, which
matters in fluids, is not decomposed. The part of K that is odd in t belongs to the sine transform and adds nothing.

Lags end at L: K is multiplied by the window of Hann, cos^2(pi t / 2 t_L), which broadens lines to 1/t_L (full width at
half height). Frequencies are multiples of 1/(2 t_L) up to half the rate of samples, on which the rule for the integral
holds exactly, by trapezoids, for any K; vibrations that are faster appear at lower frequencies.

Memory: 6 N (L/origins_every + 1) numbers for the ring of virials and velocities, 64 (3 L + 3) for the averages;
operations per sample: 6 N L/origins_every.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.fft import dct

from ...potential.cache import kernel_jit
from ...potential.simd import LANES, load, padded, pointer, splat, vsum
from ..state import inlined
from .base import (
    OWN,
    Arena,
    Blocks,
    Observer,
    ObserverError,
    cell_volume,
    check_count,
    current_row,
    end_sample,
    info_of,
    standard_errors,
)  # fmt: skip
from .heat import _PER_FS, _SI, _drift_velocity, _volume

__all__ = ["SpectralHeatCurrent", "SpectralHeatCurrentResult", "spectrum_of"]

# head of ints: number of the axis, longest lag, samples between origins, origins kept, samples so far, numbers in half
# a frame (virials or velocities)
_AXIS, _LAGS, _EVERY, _ORIGINS, _TIME, _HALF = range(OWN, OWN + 6)
# times of the origins; floats: ring of frames, present frame, averages
_TIMES, _RING, _NOW, _TABLE = range(OWN + 6, OWN + 10)
_ROWS = 64


@inlined
def _frame(s, r, ints, floats):
    """Present virials (row of the axis), then velocities: the x, then y, then z of all sites, padded with zeros."""
    begin, n, half = s.first[r], s.first[r + 1] - s.first[r], ints[_HALF]
    u = _drift_velocity(s, r)
    for b in range(3):
        at, column = ints[_NOW] + b * (half // 3), 3 * ints[_AXIS] + b
        for k in range(n):
            floats[at + k] = s.virials[begin + k, column]
            floats[at + half + k] = s.v[begin + k, b] - u[b]


@kernel_jit()
def observe_spectral_heat_current(s, r, step, ints, floats):
    """Compare the present virials with the velocities of all origins, and the other way round."""
    _frame(s, r, ints, floats)
    time, lags, half = ints[_TIME], ints[_LAGS], ints[_HALF]
    now, row = ints[_NOW], current_row(ints, _TABLE)
    if time % ints[_EVERY] == 0:
        slot = time // ints[_EVERY] % ints[_ORIGINS]
        ints[ints[_TIMES] + slot] = time
        for k in range(2 * half):
            floats[ints[_RING] + slot * 2 * half + k] = floats[now + k]
        floats[row + 3 * lags + 2] += cell_volume(s, r)
    p = pointer(floats)
    for slot in range(ints[_ORIGINS]):
        lag = time - ints[ints[_TIMES] + slot]
        if ints[ints[_TIMES] + slot] < 0 or lag > lags:
            continue
        ring = ints[_RING] + slot * 2 * half
        later, earlier = splat(0.0), splat(0.0)
        for k in range(0, half, LANES):
            later = later + load(p, ring + k) * load(p, now + half + k)
            earlier = earlier + load(p, now + k) * load(p, ring + half + k)
        floats[row + lags + lag] += vsum(later)
        if lag > 0:
            floats[row + lags - lag] += vsum(earlier)
        floats[row + 2 * lags + 1 + lag] += 1.0
    ints[_TIME] += 1
    # a block has the same number of origins for each lag
    if ints[_TIME] % ints[_EVERY] == 0:
        end_sample(ints, floats, _TABLE)


def spectrum_of(correlation, step: float):
    """Frequencies (L+1,) and cosine transform (..., L+1) under the window of Hann of a function of -L ... L steps.

    ``correlation`` (..., 2L+1): K; the transform is ``int cos(2 pi nu t) K(t) dt``, summed up to steps. Twice its
    integral over the frequencies, by trapezoids, is K(0).
    """
    lags = correlation.shape[-1] // 2
    even = 0.5 * (correlation[..., lags:] + correlation[..., lags::-1])
    window = np.cos(0.5 * np.pi * np.arange(lags + 1) / lags) ** 2
    return np.arange(lags + 1) / (2 * lags * step), step * dct(window * even, type=1)


@dataclass(frozen=True)
class SpectralHeatCurrentResult:
    """Conductivity along ``axis`` as an integral over frequencies.

    ``time_fs`` (2L+1,): lags from -L to L samples; ``correlation`` (2L+1,) with standard error ``correlation_error``:
    ``<sum_i W_i(0) v_i(t)>`` in eV Å/fs, NaN for lags not seen yet. ``frequency_THz`` (L+1,), ``spectrum`` (L+1,) with
    error: conductivity per frequency, W/(m K THz), NaN until all lags were seen; ``resolution_THz``: width of a line.
    ``kappa`` with error: its integral by trapezoids, the potential part of the conductivity, W/(m K).
    """

    axis: str
    time_fs: np.ndarray
    correlation: np.ndarray
    correlation_error: np.ndarray
    frequency_THz: np.ndarray
    spectrum: np.ndarray
    spectrum_error: np.ndarray
    resolution_THz: float
    kappa: float
    kappa_error: float
    field_per_A: float
    temperature_K: float
    volume_A3: float
    samples: int

    def as_table(self) -> tuple[tuple, np.ndarray]:
        header = ("frequency_THz", "spectrum_W_mK_THz", "spectrum_error")
        return header, np.stack([self.frequency_THz, self.spectrum, self.spectrum_error], axis=1)


@dataclass(frozen=True)
class SpectralHeatCurrent(Observer):
    """Spectral conductivity of an HNEMD run, whose field and temperature it takes from the ensemble.

    axis: that of the field, "x", "y" or "z"; lags: longest lag, in samples; origins_every: samples between origins of
    time, 1 to use all, more to save time and memory (the ring is part of checkpoints).
    """

    axis: str
    lags: int
    origins_every: int = 1

    name = "spectral_heat_current"
    per_site = True

    def __post_init__(self):
        if self.axis not in ("x", "y", "z"):
            raise ObserverError(f'SpectralHeatCurrent: axis must be "x", "y" or "z", got {self.axis!r}')
        object.__setattr__(self, "lags", check_count(self, "lags", self.lags, 2))
        object.__setattr__(self, "origins_every", check_count(self, "origins_every", self.origins_every))
        if self.origins_every > self.lags:
            raise ObserverError(
                f"SpectralHeatCurrent: origins_every ({self.origins_every}) must not exceed lags ({self.lags}), or "
                "long lags are never seen"
            )

    def allocate(self, state, replica, info):
        arena = Arena(state, replica, info)
        along = "xyz".index(self.axis)
        field = np.zeros(3) if info.field_per_A is None else np.asarray(info.field_per_A, float)
        if field.shape != (3,) or field[along] == 0 or np.count_nonzero(field) > 1:
            raise ObserverError(
                f"{self.name}: expected an ensemble with a driving force (HNEMD) along {self.axis} only, got "
                f"field_per_A = {info.field_per_A}"
            )
        if info.temperature_K is None:
            raise ObserverError(f"{self.name}: expected an ensemble with a temperature, got temperature_K = None")
        if not np.isfinite(_volume(state.cell[replica])):
            raise ObserverError(
                f"{self.name}: a conductivity needs a volume, got the cell {state.cell[replica].tolist()}; give the "
                "atoms a cell with three vectors"
            )
        half = 3 * padded(int(state.first[replica + 1] - state.first[replica]))
        origins = self.lags // self.origins_every + 1
        arena.set(_AXIS, along)
        arena.set(_LAGS, self.lags)
        arena.set(_EVERY, self.origins_every)
        arena.set(_ORIGINS, origins)
        arena.set(_HALF, half)
        arena.add_ints(_TIMES, np.full(origins, -1))
        arena.add_floats(_RING, 2 * half * origins)
        arena.add_floats(_NOW, 2 * half)
        arena.add_table(_TABLE, _ROWS, 3 * self.lags + 3)
        return arena.build()

    def kernel(self):
        return observe_spectral_heat_current

    def results(self, ints, floats) -> SpectralHeatCurrentResult:
        info, blocks = info_of(ints, floats), Blocks(ints, floats, _TABLE)
        if ints[_TIME] == 0:
            raise ObserverError(f"{self.name}: no sample yet; run at least {info.interval} steps, its interval")
        along, lags = int(ints[_AXIS]), int(ints[_LAGS])
        lag = np.abs(np.arange(-lags, lags + 1))

        def averages(sums):
            count = sums[..., 2 * lags + 1 + lag]
            return np.divide(sums[..., : 2 * lags + 1], count, out=np.full(count.shape, math.nan), where=count > 0)

        sums = blocks.sums.sum(axis=0)
        volume = float(sums[3 * lags + 2] / sums[2 * lags + 1])
        correlation = averages(sums)
        # the first blocks lack long lags
        each = averages(blocks.means[(blocks.means[:, 2 * lags + 1 : 3 * lags + 2] == 1).all(axis=1)])
        step = info.interval * info.timestep_fs
        unit = _SI / (volume * info.temperature_K * info.field_per_A[along])
        # frequencies in THz
        frequency, transform = spectrum_of(correlation, 1e-3 * step)
        spectra = 2 * unit * spectrum_of(each, 1e-3 * step)[1]
        # errors are shaky where few numbers share their correlation: neighbours do
        near = np.array_split(np.arange(lags + 1), max(1, min(16, lags // 4)))
        both = [np.unique(np.concatenate([lags - group, lags + group])) for group in near]
        error, _ = standard_errors(each, both)
        return SpectralHeatCurrentResult(
            axis="xyz"[along],
            time_fs=np.arange(-lags, lags + 1) * step,
            correlation=correlation * _PER_FS,
            correlation_error=error * _PER_FS,
            frequency_THz=frequency,
            spectrum=2 * unit * transform,
            spectrum_error=standard_errors(spectra, near)[0],
            resolution_THz=1e3 / (lags * step),
            kappa=float(unit * correlation[lags]),
            kappa_error=float(abs(unit) * error[lags]),
            field_per_A=float(info.field_per_A[along]),
            temperature_K=info.temperature_K,
            volume_A3=volume,
            samples=int(ints[_TIME]),
        )
