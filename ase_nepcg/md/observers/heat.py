"""Heat current: its autocorrelation (Green-Kubo) and its average under a driving force (HNEMD).

::

    J = sum_i W_i v_i + sum_i (U_i + m_i v_i^2/2) v_i          potential and convective part, extensive
    Green-Kubo   kappa_aa(t) = 1/(k T^2 V) int_0^t <J_a(0) J_a(t')> dt'
    HNEMD        kappa_a(t)  = <J_a>_t / (T V F_e)             F_e = |F_e|, the driving force along one axis
                                                               (Evans, Phys. Lett. A 91, 457, 1982)

with the virials W_i of the sites (first index separation, second force, not symmetric). Velocities are those relative
to the centre of mass: a system that moves as a whole carries energy along, which is no conduction, and would let the
Green-Kubo integral grow for ever. (Where sites are frozen or held there is no such motion; nothing is taken off.) The
convective part depends on the zero of the energies U_i unless every species has no net momentum: in mixtures it is not
the heat current of a measurement, in solids it is negligible.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ase import units

from ...potential.cache import kernel_jit
from ...potential.simd import advance, pointer
from ..state import inlined
from .base import (
    FIELD,
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
    lag_pools,
    standard_errors,
)  # fmt: skip
from .motion import running_integral

__all__ = ["Conductivity", "ConductivityResult", "HeatCurrent", "HeatCurrentResult", "heat_current"]

# head of ints: longest lag, samples so far, where the last current is in the ring, table of averages, of correlations
_LENGTH, _TIME, _LAST, _TABLE, _CORRELATION = range(OWN, OWN + 5)
# floats: ring of currents (6, L+1), potential parts first; backwards in time
_RING, _NOW = OWN + 5, OWN + 6
_ROWS = 64
_KB = units.kB
# eV Å / ASE time in eV Å / fs; eV / (ASE time Å K) in W / (m K)
_PER_FS = units.fs
_SI = units.s * units.m / units.J


@inlined
def _drift_velocity(s, r):
    """Velocity of the centre of mass, 0 where something is frozen or held."""
    mass = px = py = pz = 0.0
    free = s.group_first[r] == s.group_first[r + 1]
    for i in range(s.first[r], s.first[r + 1]):
        free = free and s.w[i] > 0.0
        mass += s.m[i]
        px += s.m[i] * s.v[i, 0]
        py += s.m[i] * s.v[i, 1]
        pz += s.m[i] * s.v[i, 2]
    scale = 1.0 / mass if free else 0.0
    return scale * px, scale * py, scale * pz


@inlined
def heat_current(s, r, out, at):
    """Potential part to ``out[at : at + 3]``, convective part behind it; needs ``s.energies`` and ``s.virials``."""
    jx = jy = jz = cx = cy = cz = 0.0
    vx, vy, vz = _drift_velocity(s, r)
    for i in range(s.first[r], s.first[r + 1]):
        w, x, y, z = s.virials[i], s.v[i, 0] - vx, s.v[i, 1] - vy, s.v[i, 2] - vz
        jx += w[0] * x + w[1] * y + w[2] * z
        jy += w[3] * x + w[4] * y + w[5] * z
        jz += w[6] * x + w[7] * y + w[8] * z
        e = s.energies[i] + 0.5 * s.m[i] * (x * x + y * y + z * z)
        cx += e * x
        cy += e * y
        cz += e * z
    out[at], out[at + 1], out[at + 2] = jx, jy, jz
    out[at + 3], out[at + 4], out[at + 5] = cx, cy, cz


@inlined
def _temperature(s, r):
    twice = 0.0
    for i in range(s.first[r], s.first[r + 1]):
        twice += s.m[i] * (s.v[i, 0] * s.v[i, 0] + s.v[i, 1] * s.v[i, 1] + s.v[i, 2] * s.v[i, 2])
    return twice / (s.n_dof[r] * _KB) if s.n_dof[r] > 0 else math.nan


@inlined
def _add_current(s, r, ints, floats):
    """The current to _NOW and to the averages: six components, volume, temperature."""
    now = ints[_NOW]
    heat_current(s, r, floats, now)
    row = current_row(ints, _TABLE)
    for c in range(6):
        floats[row + c] += floats[now + c]
    floats[row + 6] += cell_volume(s, r)
    floats[row + 7] += _temperature(s, r)
    end_sample(ints, floats, _TABLE)


@kernel_jit()
def observe_heat_current(s, r, step, ints, floats):
    _add_current(s, r, ints, floats)
    lags = ints[_LENGTH] + 1
    p = pointer(floats)
    # the ring runs backwards, so that lags and memory go the same way
    last = (ints[_LAST] + lags - 1) % lags
    ints[_LAST] = last
    now, ring, row = ints[_NOW], ints[_RING], current_row(ints, _CORRELATION)
    for c in range(6):
        p[ring + c * lags + last] = p[now + c]
    seen = min(ints[_TIME] + 1, lags)
    for c in range(3):
        potential, convective = p[now + c], p[now + 3 + c]
        for piece in range(2):
            # lags from the last current to the end of the ring, then from its beginning on
            lag = 0 if piece == 0 else lags - last
            n = min(seen, lags - last) if piece == 0 else seen - (lags - last)
            at = last if piece == 0 else 0
            old, other = advance(p, ring + c * lags + at), advance(p, ring + (3 + c) * lags + at)
            a, b = advance(p, row + 3 * c * lags + lag), advance(p, row + (3 * c + 1) * lags + lag)
            d = advance(p, row + (3 * c + 2) * lags + lag)
            for k in range(n):
                a[k] += potential * old[k]
            for k in range(n):
                b[k] += potential * other[k] + convective * old[k]
            for k in range(n):
                d[k] += convective * other[k]
    for k in range(seen):
        p[row + 9 * lags + k] += 1.0
    ints[_TIME] += 1
    end_sample(ints, floats, _CORRELATION)


@kernel_jit()
def observe_conductivity(s, r, step, ints, floats):
    _add_current(s, r, ints, floats)


def _allocate(observer, state, replica, info):
    arena = Arena(state, replica, info)
    if not np.isfinite(_volume(state.cell[replica])):
        raise ObserverError(
            f"{observer.name}: a conductivity needs a volume, got the cell {state.cell[replica].tolist()}; give the "
            "atoms a cell with three vectors"
        )
    if state.n_dof[replica] <= 0:
        raise ObserverError(f"{observer.name}: all sites of replica {replica} are frozen, there is no heat current")
    arena.add_floats(_NOW, 6)
    arena.add_table(_TABLE, 4 * _ROWS, 8)
    return arena


def _volume(cell):
    volume = abs(np.linalg.det(cell))
    return volume if volume > 1e-10 * np.linalg.norm(cell, axis=1).prod() else math.nan


@dataclass(frozen=True)
class HeatCurrentResult:
    """Heat current at equilibrium and the conductivity of Green and Kubo.

    ``current`` (3,) average with standard error ``current_error``, eV Å/fs; ``time_fs`` (L+1,) lags. ``acf`` (3, L+1)
    with error: ``<J_a(0) J_a(t)>`` in (eV Å/fs)^2; ``acf_parts`` (3, 3, L+1): of the potential part, both cross terms
    together, of the convective part, which sum to ``acf``. ``kappa`` (3, L+1) with error: running conductivity in
    W/(m K); ``kappa_parts`` likewise; ``kappa_mean`` (L+1,) with error: average of the directions. Lags not seen yet
    are NaN. ``temperature_K``: target of the ensemble, else the average of the run.
    """

    current: np.ndarray
    current_error: np.ndarray
    time_fs: np.ndarray
    acf: np.ndarray
    acf_error: np.ndarray
    acf_parts: np.ndarray
    kappa: np.ndarray
    kappa_error: np.ndarray
    kappa_parts: np.ndarray
    kappa_mean: np.ndarray
    kappa_mean_error: np.ndarray
    temperature_K: float
    volume_A3: float
    samples: int

    def as_table(self) -> tuple[tuple, np.ndarray]:
        header, columns = ["time_fs"], [self.time_fs]
        for k, c in enumerate("xyz"):
            header += [f"acf_{c}_eV2A2_fs2", f"acf_{c}_error", f"kappa_{c}_W_mK", f"kappa_{c}_error"]
            columns += [self.acf[k], self.acf_error[k], self.kappa[k], self.kappa_error[k]]
        header += ["kappa_W_mK", "kappa_error"]
        columns += [self.kappa_mean, self.kappa_mean_error]
        return tuple(header), np.stack(columns, axis=1)


@dataclass(frozen=True)
class HeatCurrent(Observer):
    """Heat current and its autocorrelation up to a lag of ``length`` samples, each sample being an origin.

    Memory: 640 (length + 1) numbers; about 10 (length + 1) operations per sample. For runs at constant energy, or with
    a thermostat that hardly disturbs.
    """

    length: int

    name = "heat_current"
    per_site = True

    def __post_init__(self):
        object.__setattr__(self, "length", check_count(self, "length", self.length))

    def allocate(self, state, replica, info):
        arena = _allocate(self, state, replica, info)
        arena.set(_LENGTH, self.length)
        arena.add_floats(_RING, 6 * (self.length + 1))
        arena.add_table(_CORRELATION, _ROWS, 10 * (self.length + 1))
        return arena.build()

    def kernel(self):
        return observe_heat_current

    def results(self, ints, floats) -> HeatCurrentResult:
        info, blocks = info_of(ints, floats), Blocks(ints, floats, _TABLE)
        blocks.require(self, info.interval)
        mean, lags = blocks.mean, int(ints[_LENGTH]) + 1
        temperature = mean[7] if info.temperature_K is None else info.temperature_K
        current = mean[:3] + mean[3:6]
        error, _ = standard_errors(blocks.means[:, :3] + blocks.means[:, 3:6], [[0, 1, 2]])
        table = Blocks(ints, floats, _CORRELATION)

        def averages(sums):
            parts = sums[..., : 9 * lags].reshape(*sums.shape[:-1], 3, 3, lags)
            count = sums[..., None, None, 9 * lags :]
            return np.divide(parts, count, out=np.full(parts.shape, math.nan), where=count > 0)

        seen = table.means[:, 9 * lags :]
        # the first blocks lack long lags
        parts, each = averages(table.sums.sum(axis=0)), averages(table.means[(seen == 1).all(axis=1)]).sum(axis=2)
        step = info.interval * info.timestep_fs
        unit = _SI * step * units.fs / (_KB * temperature**2 * mean[6])
        kappa_parts, kappa = unit * running_integral(parts, 1.0), unit * running_integral(each, 1.0)
        pools = lag_pools(lags)
        pools3 = [np.concatenate([pool + k * lags for k in range(3)]) for pool in pools]
        acf_error, _ = standard_errors(each.reshape(-1, 3 * lags) * _PER_FS**2, pools3)
        kappa_error, _ = standard_errors(kappa.reshape(-1, 3 * lags), pools3)
        return HeatCurrentResult(
            current=current * _PER_FS,
            current_error=error * _PER_FS,
            time_fs=np.arange(lags) * step,
            acf=parts.sum(axis=1) * _PER_FS**2,
            acf_error=acf_error.reshape(3, lags),
            acf_parts=parts * _PER_FS**2,
            kappa=kappa_parts.sum(axis=1),
            kappa_error=kappa_error.reshape(3, lags),
            kappa_parts=kappa_parts,
            kappa_mean=kappa_parts.sum(axis=1).mean(axis=0),
            kappa_mean_error=standard_errors(kappa.mean(axis=1), pools)[0],
            temperature_K=float(temperature),
            volume_A3=float(mean[6]),
            samples=blocks.samples,
        )


@dataclass(frozen=True)
class ConductivityResult:
    """Conductivity from the response to a driving force, W/(m K).

    ``kappa`` (3,): components of the current over the strength of the field, with standard error ``kappa_error``;
    the entry along the field (an axis) is the conductivity, the others vanish by symmetry or are off-diagonal
    elements. ``kappa_parallel`` with error: current along the field. ``potential`` and ``convective`` (3,): parts of
    ``kappa``. ``time_fs`` (n,), ``running`` (n, 3): averages from the start up to each time. ``reliable``: False where
    the run is short compared with the slowest correlation.
    """

    kappa: np.ndarray
    kappa_error: np.ndarray
    kappa_parallel: float
    kappa_parallel_error: float
    potential: np.ndarray
    convective: np.ndarray
    time_fs: np.ndarray
    running: np.ndarray
    reliable: bool
    field_per_A: np.ndarray
    temperature_K: float
    volume_A3: float
    samples: int

    def as_table(self) -> tuple[tuple, np.ndarray]:
        header = ("time_fs", *(f"kappa_{c}_W_mK" for c in "xyz"))
        return header, np.concatenate([self.time_fs[:, None], self.running], axis=1)


@dataclass(frozen=True)
class Conductivity(Observer):
    """Running conductivity of an HNEMD run, whose field and temperature it takes from the ensemble."""

    name = "conductivity"
    per_site = True

    def allocate(self, state, replica, info):
        if info.field_per_A is None or np.shape(info.field_per_A) != (3,) or not np.linalg.norm(info.field_per_A) > 0:
            raise ObserverError(
                "conductivity: expected an ensemble with a driving force (HNEMD), got field_per_A = "
                f"{info.field_per_A}; without one use HeatCurrent (Green-Kubo)"
            )
        if info.temperature_K is None:
            raise ObserverError("conductivity: expected an ensemble with a temperature, got temperature_K = None")
        return _allocate(self, state, replica, info).build()

    def kernel(self):
        return observe_conductivity

    def results(self, ints, floats) -> ConductivityResult:
        info, blocks = info_of(ints, floats), Blocks(ints, floats, _TABLE)
        blocks.require(self, info.interval)
        field = np.array(floats[FIELD : FIELD + 3])
        strength, mean = float(np.linalg.norm(field)), blocks.mean
        unit = _SI / (info.temperature_K * mean[6] * strength)
        potential, convective = unit * mean[:3], unit * mean[3:6]
        each = unit * (blocks.means[:, :3] + blocks.means[:, 3:6])
        direction = field / strength
        error, _ = standard_errors(each)
        parallel_error, reliable = standard_errors((each @ direction)[:, None])
        # the blocks, and what has come since
        sums = np.cumsum(blocks.sums, axis=0)
        count = np.append(np.arange(1, len(sums)) * blocks.length, blocks.samples)
        new = np.append(np.ones(len(sums) - 1, bool), blocks.samples > (len(sums) - 1) * blocks.length)
        running = unit * (sums[:, :3] + sums[:, 3:6]) / np.maximum(count, 1)[:, None]
        return ConductivityResult(
            kappa=potential + convective,
            kappa_error=error,
            kappa_parallel=float((potential + convective) @ direction),
            kappa_parallel_error=float(parallel_error[0]),
            potential=potential,
            convective=convective,
            time_fs=count[new] * info.interval * info.timestep_fs,
            running=running[new],
            reliable=bool(reliable[0]),
            field_per_A=field,
            temperature_K=info.temperature_K,
            volume_A3=float(mean[6]),
            samples=blocks.samples,
        )
