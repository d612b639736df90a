"""Mean square displacements and velocity autocorrelation, with several origins of time, and diffusion coefficients.

Positions (velocities) of every ``origins_every``-th sample are kept in a ring; each sample is compared with all of
them up to a lag of ``length`` samples::

    msd_c(t)  = < (x_c(t0 + t) - x_c(t0))^2 >        D = slope / 2 per direction, / 6 in total    (Einstein)
    vacf_c(t) = < v_c(t0) v_c(t0 + t) >              D(t) = int_0^t vacf_c                       (Green-Kubo)

averages over the sites of a species that are not frozen and over origins. Memory: 3 N (length/origins_every + 1)
numbers for the ring, 64 (3 T + 1) (length + 1) for the averages; operations per sample: 3 N length/origins_every.

Positions are never wrapped by the driver, so displacements need no images. Where the cell changes they are measured in
the cell of the first moment (x -> s -> cell at start): the affine motion of a barostat is no diffusion. The motion of
the centre of mass is part of the result unless ``remove_drift`` is set: dynamics without momentum conservation
(Langevin) diffuse as a whole, and a drift at constant speed makes the displacement ballistic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ase import units

from ...potential.cache import kernel_jit
from ...potential.simd import LANES, load, padded, pointer, splat, vsum
from ..state import inlined
from .base import (
    N_TYPES,
    OWN,
    Arena,
    Blocks,
    Observer,
    ObserverError,
    check_count,
    complete_lattice,
    current_row,
    end_sample,
    info_of,
    lag_pools,
    sites_of,
    standard_errors,
)  # fmt: skip

__all__ = ["MSD", "VACF", "MSDResult", "VACFResult"]

# head of ints: displacements or velocities, longest lag, samples between origins, origins kept, samples so far, whether
# to take off the motion of the centre of mass
_DISPLACEMENT, _LENGTH, _EVERY, _ORIGINS, _TIME, _DRIFT = range(OWN, OWN + 6)
# sites in the order of species, where those of each begin in it (T + 1) and in a frame (T + 1), times of the origins
_ORDER, _FIRST, _PLACE, _TIMES = range(OWN + 6, OWN + 10)
# floats: ring of frames, present frame, lattice now and at the start, averages, part of the lags that D is fitted to
_RING, _NOW, _LATTICE, _START, _TABLE, _FIT = range(OWN + 10, OWN + 16)
_ROWS = 64


@inlined
def _frame(s, r, ints, floats):
    """Present positions or velocities: for each species the x, then y, then z of its sites, padded with zeros."""
    begin = s.first[r]
    now, order = ints[_NOW], ints[_ORDER]
    values = s.x if ints[_DISPLACEMENT] else s.v
    mx = my = mz = mass = 0.0
    if ints[_DRIFT]:
        for i in range(begin, s.first[r + 1]):
            mass += s.m[i]
            mx += s.m[i] * values[i, 0]
            my += s.m[i] * values[i, 1]
            mz += s.m[i] * values[i, 2]
        mx, my, mz = mx / mass, my / mass, mz / mass
    start = floats[ints[_START] : ints[_START] + 18]
    lattice = floats[ints[_LATTICE] : ints[_LATTICE] + 18]
    moved = False
    if ints[_DISPLACEMENT]:
        complete_lattice(s, r, lattice)
        if ints[_TIME] == 0:
            for k in range(18):
                start[k] = lattice[k]
        for k in range(9):
            moved = moved or lattice[k] != start[k]
    for t in range(ints[N_TYPES]):
        first, n = ints[ints[_FIRST] + t], ints[ints[_FIRST] + t + 1] - ints[ints[_FIRST] + t]
        at = now + ints[ints[_PLACE] + t]
        stride = (ints[ints[_PLACE] + t + 1] - ints[ints[_PLACE] + t]) // 3
        for k in range(n):
            i = begin + ints[order + first + k]
            x, y, z = values[i, 0] - mx, values[i, 1] - my, values[i, 2] - mz
            if moved:
                u = x * lattice[9] + y * lattice[10] + z * lattice[11]
                v = x * lattice[12] + y * lattice[13] + z * lattice[14]
                w = x * lattice[15] + y * lattice[16] + z * lattice[17]
                x = u * start[0] + v * start[3] + w * start[6]
                y = u * start[1] + v * start[4] + w * start[7]
                z = u * start[2] + v * start[5] + w * start[8]
            floats[at + k], floats[at + stride + k], floats[at + 2 * stride + k] = x, y, z


@kernel_jit()
def observe_motion(s, r, step, ints, floats):
    """Compare the present frame with all origins; keep it as an origin if one is due."""
    _frame(s, r, ints, floats)
    time, length, n_types = ints[_TIME], ints[_LENGTH], ints[N_TYPES]
    now, size = ints[_NOW], ints[ints[_PLACE] + n_types]
    if time % ints[_EVERY] == 0:
        slot = time // ints[_EVERY] % ints[_ORIGINS]
        ints[ints[_TIMES] + slot] = time
        for k in range(size):
            floats[ints[_RING] + slot * size + k] = floats[now + k]
    p = pointer(floats)
    row = current_row(ints, _TABLE)
    for slot in range(ints[_ORIGINS]):
        lag = time - ints[ints[_TIMES] + slot]
        if ints[ints[_TIMES] + slot] < 0 or lag > length:
            continue
        ring = ints[_RING] + slot * size
        for t in range(n_types):
            place = ints[ints[_PLACE] + t]
            stride = (ints[ints[_PLACE] + t + 1] - place) // 3
            x, y, z = splat(0.0), splat(0.0), splat(0.0)
            if ints[_DISPLACEMENT]:
                for k in range(place, place + stride, LANES):
                    a = load(p, now + k) - load(p, ring + k)
                    b = load(p, now + stride + k) - load(p, ring + stride + k)
                    c = load(p, now + 2 * stride + k) - load(p, ring + 2 * stride + k)
                    x, y, z = x + a * a, y + b * b, z + c * c
            else:
                for k in range(place, place + stride, LANES):
                    x = x + load(p, now + k) * load(p, ring + k)
                    y = y + load(p, now + stride + k) * load(p, ring + stride + k)
                    z = z + load(p, now + 2 * stride + k) * load(p, ring + 2 * stride + k)
            at = row + 3 * t * (length + 1) + lag
            floats[at] += vsum(x)
            floats[at + length + 1] += vsum(y)
            floats[at + 2 * (length + 1)] += vsum(z)
        floats[row + 3 * n_types * (length + 1) + lag] += 1.0
    ints[_TIME] += 1
    # a block has the same number of origins for each lag
    if ints[_TIME] % ints[_EVERY] == 0:
        end_sample(ints, floats, _TABLE)


def _check(observer):
    for name in ("length", "origins_every"):
        object.__setattr__(observer, name, check_count(observer, name, getattr(observer, name)))
    if observer.origins_every > observer.length:
        raise ObserverError(
            f"{type(observer).__name__}: origins_every ({observer.origins_every}) must not exceed length "
            f"({observer.length}), or long lags are never seen"
        )
    if not isinstance(observer.remove_drift, bool):
        raise ObserverError(f"{type(observer).__name__}: remove_drift must be True or False")


def _allocate(observer, displacement, fit, state, replica, info):
    arena = Arena(state, replica, info)
    sites = sites_of(state, replica)
    kinds, free = state.types[sites], state.w[sites] > 0
    if not free.any():
        raise ObserverError(f"{observer.name}: all sites of replica {replica} are frozen, nothing moves")
    n_types, length, every = len(info.species), observer.length, observer.origins_every
    order = np.argsort(kinds, kind="stable")
    order = order[free[order]]
    number = np.bincount(kinds[free], minlength=n_types)
    place = np.concatenate([[0], np.cumsum([3 * padded(int(n)) for n in number])])
    arena.set(_DISPLACEMENT, int(displacement))
    arena.set(_LENGTH, length)
    arena.set(_EVERY, every)
    arena.set(_ORIGINS, length // every + 1)
    arena.set(_DRIFT, int(observer.remove_drift))
    arena.add_ints(_ORDER, order)
    arena.add_ints(_FIRST, np.concatenate([[0], np.cumsum(number)]))
    arena.add_ints(_PLACE, place)
    arena.add_ints(_TIMES, np.full(length // every + 1, -1))
    arena.add_floats(_RING, int(place[-1]) * (length // every + 1))
    arena.add_floats(_NOW, int(place[-1]))
    arena.add_floats(_LATTICE, 18)
    arena.add_floats(_START, 18)
    arena.add_table(_TABLE, _ROWS, (3 * n_types + 1) * (length + 1))
    arena.add_floats(_FIT, np.array(fit))
    return arena.build()


def _collect(observer, ints, floats):
    """Labels of the species that move, lags in fs, averages (T, 3, lags), the same of the blocks that have all lags
    (n, T, 3, lags), samples."""
    info, blocks = info_of(ints, floats), Blocks(ints, floats, _TABLE)
    if ints[_TIME] == 0:
        raise ObserverError(f"{observer.name}: no sample yet; run at least {info.interval} steps, its interval")
    lags, n_types = int(ints[_LENGTH]) + 1, len(info.species)
    number = np.diff(ints[ints[_FIRST] :][: n_types + 1])
    there = np.flatnonzero(number)

    def averages(sums):
        values = sums[..., : 3 * n_types * lags].reshape(*sums.shape[:-1], n_types, 3, lags)[..., there, :, :]
        count = sums[..., None, None, 3 * n_types * lags :]
        return np.divide(
            values, count * number[there, None, None], out=np.full(values.shape, math.nan), where=count > 0
        )

    # the first blocks lack long lags
    seen = blocks.means[:, 3 * n_types * lags :]
    full = blocks.means[(seen == 1).all(axis=1)]
    times = np.arange(lags) * info.interval * info.timestep_fs
    labels = tuple(info.species[k] for k in there)
    return labels, times, averages(blocks.sums.sum(axis=0)), averages(full), int(ints[_TIME])


def _errors(blocks):
    """Standard errors of averages whose last index is the lag."""
    shape = blocks.shape[1:]
    size = int(np.prod(shape))
    pools = [pool + k for k in range(0, size, shape[-1]) for pool in lag_pools(shape[-1])]
    return standard_errors(blocks.reshape(len(blocks), size), pools)[0].reshape(shape)


def _single_errors(blocks):
    shape = blocks.shape[1:]
    return standard_errors(blocks.reshape(len(blocks), int(np.prod(shape))))[0].reshape(shape)


def _as_table(result, name):
    header, columns = ["time_fs"], [result.time_fs]
    values, errors = getattr(result, name), getattr(result, f"{name}_error")
    for k, label in enumerate(result.species):
        header += [f"{name}_{label}", f"{name}_{label}_error", *(f"{name}_{c}_{label}" for c in "xyz")]
        columns += [values[k], errors[k], *getattr(result, f"{name}_xyz")[k]]
    return tuple(header), np.stack(columns, axis=1)


@dataclass(frozen=True)
class MSDResult:
    """Mean square displacements in Å^2 at the lags ``time_fs`` (L+1,), NaN for lags not seen yet.

    ``msd`` (T, L+1) with standard error ``msd_error``, ``msd_xyz`` (T, 3, L+1) by direction. ``diffusion`` (T,) and
    ``diffusion_xyz`` (T, 3) with errors: half the slope per direction, in Å^2/ps (= 1e-4 cm^2/s), fitted to the
    lags of ``fit``; NaN until these were seen. No correction for the size of the cell.
    """

    species: tuple
    time_fs: np.ndarray
    msd: np.ndarray
    msd_error: np.ndarray
    msd_xyz: np.ndarray
    diffusion: np.ndarray
    diffusion_error: np.ndarray
    diffusion_xyz: np.ndarray
    diffusion_xyz_error: np.ndarray
    samples: int

    def as_table(self) -> tuple[tuple, np.ndarray]:
        return _as_table(self, "msd")


@dataclass(frozen=True)
class MSD(Observer):
    """Mean square displacement and diffusion coefficients of each species.

    length: longest lag, in samples; origins_every: samples between origins of time; fit: part of the lags, between 0
    and 1, whose slope gives the diffusion coefficient; remove_drift: displacements relative to the centre of mass.
    """

    length: int
    origins_every: int = 10
    fit: tuple = (0.25, 1.0)
    remove_drift: bool = False

    name = "msd"

    def __post_init__(self):
        _check(self)
        try:
            low, high = (float(value) for value in self.fit)
        except (TypeError, ValueError):
            low, high = 1.0, 0.0
        if not 0 <= low < high <= 1 or len(_lags_of(self.length, low, high)) < 2:
            raise ObserverError(
                f"MSD: fit must be (low, high) with 0 <= low < high <= 1 and two lags, got {self.fit!r}"
            )
        object.__setattr__(self, "fit", (low, high))

    def allocate(self, state, replica, info):
        return _allocate(self, True, self.fit, state, replica, info)

    def kernel(self):
        return observe_motion

    def results(self, ints, floats) -> MSDResult:
        species, times, mean, blocks, samples = _collect(self, ints, floats)
        window = _lags_of(len(times) - 1, *floats[ints[_FIT] :][:2])
        t = times[window] - times[window].mean()
        # the slope of a least-squares line is a sum; Å^2/fs in Å^2/ps, half of it
        slope = 0.5e3 * t / (t @ t)
        diffusion, each = mean[..., window] @ slope, blocks[..., window] @ slope
        return MSDResult(
            species=species,
            time_fs=times,
            msd=mean.sum(axis=1),
            msd_error=_errors(blocks.sum(axis=2)),
            msd_xyz=mean,
            diffusion=diffusion.mean(axis=1),
            diffusion_error=_single_errors(each.mean(axis=2)),
            diffusion_xyz=diffusion,
            diffusion_xyz_error=_single_errors(each),
            samples=samples,
        )


def _lags_of(length, low, high):
    return np.arange(math.ceil(low * length - 1e-9), math.floor(high * length + 1e-9) + 1)


@dataclass(frozen=True)
class VACFResult:
    """Velocity autocorrelation in Å^2/fs^2 at the lags ``time_fs`` (L+1,), NaN for lags not seen yet.

    ``vacf`` (T, L+1): sum of the three directions, with standard error ``vacf_error``; ``vacf_xyz`` (T, 3, L+1).
    ``diffusion`` (T, L+1) with error: a third of its integral up to each lag (trapezoids), in Å^2/ps;
    ``diffusion_xyz`` (T, 3, L+1): integral of each direction.
    """

    species: tuple
    time_fs: np.ndarray
    vacf: np.ndarray
    vacf_error: np.ndarray
    vacf_xyz: np.ndarray
    diffusion: np.ndarray
    diffusion_error: np.ndarray
    diffusion_xyz: np.ndarray
    samples: int

    def as_table(self) -> tuple[tuple, np.ndarray]:
        header, rows = _as_table(self, "vacf")
        more = tuple(f"diffusion_{label}{what}_A2_ps" for label in self.species for what in ("", "_error"))
        pairs = [row for k in range(len(self.species)) for row in (self.diffusion[k], self.diffusion_error[k])]
        return header + more, np.concatenate([rows, np.stack(pairs, axis=1)], axis=1)


@dataclass(frozen=True)
class VACF(Observer):
    """Velocity autocorrelation of each species.

    length: longest lag, in samples; origins_every: samples between origins of time; remove_drift: velocities relative
    to that of the centre of mass.
    """

    length: int
    origins_every: int = 10
    remove_drift: bool = False

    name = "vacf"

    def __post_init__(self):
        _check(self)

    def allocate(self, state, replica, info):
        return _allocate(self, False, (0.0, 0.0), state, replica, info)

    def kernel(self):
        return observe_motion

    def results(self, ints, floats) -> VACFResult:
        species, times, mean, blocks, samples = _collect(self, ints, floats)
        mean, blocks = mean * units.fs**2, blocks * units.fs**2
        step = times[1] - times[0]
        total = blocks.sum(axis=2)
        integral = 1e3 * running_integral(mean, step)
        return VACFResult(
            species=species,
            time_fs=times,
            vacf=mean.sum(axis=1),
            vacf_error=_errors(total),
            vacf_xyz=mean,
            diffusion=integral.mean(axis=1),
            diffusion_error=_errors(running_integral(total, step) * 1e3 / 3),
            diffusion_xyz=integral,
            samples=samples,
        )


def running_integral(values, step) -> np.ndarray:
    """Integral by trapezoids up to each entry of the last axis."""
    out = np.zeros_like(values)
    np.cumsum(0.5 * step * (values[..., 1:] + values[..., :-1]), axis=-1, out=out[..., 1:])
    return out
