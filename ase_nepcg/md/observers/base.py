"""What an observer is: settings for the user, a kernel for the compiled loop, results with error bars.

All numbers of an observer, settings included, live in two flat arrays, ``ints`` and ``floats``: what a checkpoint
stores is what the kernel works on. Both begin with a head that all observers share; then ``ints`` holds the offsets of
the observer's own pieces, and the pieces follow.

Averages are sums over blocks of time: rows of a table. When all rows are full neighbouring ones are added and blocks
become twice as long, so that a table of fixed size always covers the whole run with blocks of equal length.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import numba
import numpy as np
from numba import types

from ...errors import NepCGError, closest, is_integer, is_number
from ...hyper import MAX_LABEL
from ...meanforce.statistics import MIN_BLOCKS, block_errors
from ...potential.lattice import complete
from ..state import State, inlined, make_state

__all__ = [
    "Arena",
    "Blocks",
    "Observer",
    "ObserverError",
    "ObserverInfo",
    "cell_volume",
    "check_count",
    "check_positive",
    "complete_lattice",
    "current_row",
    "end_sample",
    "info_of",
    "kernel_signature",
    "lag_pools",
    "sites_of",
    "standard_errors",
    "type_of",
]

# head of ints: steps between samples, numbers of sites and species, where the labels begin
INTERVAL, N_SITES, N_TYPES, _LABELS = range(4)
# first entry of ints that belongs to the observer, and how many there are
OWN, _HEAD = 8, 40
# head of floats: fs, K (NaN: none), 1/Å (NaN: none)
TIMESTEP_FS, TEMPERATURE_K, FIELD = 0, 1, 2
_FLOAT_HEAD = 8
# entries of a table of blocks: rows, numbers per row, where in floats; rows that are full, samples per row, samples in
# the row that is being filled, samples in total
_ROWS, _WIDTH, _OFFSET, _FULL, _LENGTH, _FILLED, _SAMPLES = range(7)


class ObserverError(NepCGError, ValueError):
    """Settings of an observer that make no sense, a system it cannot be used for, or results that are not there."""


@dataclass(frozen=True)
class ObserverInfo:
    """What an observer must know of the run of one replica.

    ``species``: labels, in the order in which ``State.types`` numbers them; ``temperature_K``: target of the ensemble,
    None where it has none; ``field_per_A``: driving force F_e (3,) of HNEMD in 1/Å, or None.
    """

    timestep_fs: float
    interval: int
    species: tuple
    temperature_K: float | None = None
    field_per_A: tuple | None = None


class Observer:
    """Base of the observers, which are frozen dataclasses of what the user gives.

    An observer holds settings only; all that it accumulates is in the arrays of :meth:`allocate`, one pair for each
    replica, so that one observer may be attached to several runs.
    """

    # of files and checkpoints
    name: ClassVar[str]
    # needs State.virials
    per_site: ClassVar[bool] = False
    # has arrays of its own for each replica
    per_replica: ClassVar[bool] = True

    def allocate(self, state: State, replica: int, info: ObserverInfo) -> tuple[np.ndarray, np.ndarray]:
        """New accumulators ``ints`` (int64) and ``floats`` (float64), both 1-d and contiguous.

        Raises :class:`ObserverError` where this observer cannot be used.
        """
        raise NotImplementedError

    def kernel(self) -> Callable:
        """The compiled function ``observe(s, r, step, ints, floats)``: replica ``r`` of the State ``s`` after a step.

        Energies, virials, forces, positions and velocities belong to the same time. Nothing is allocated and nothing
        returned. All kernels have the signature :func:`kernel_signature`.
        """
        raise NotImplementedError

    def results(self, ints: np.ndarray, floats: np.ndarray):
        """Averages and errors so far, as a frozen dataclass with a method ``as_table() -> (header, rows)``.

        Raises :class:`ObserverError` before the first sample.
        """
        raise NotImplementedError

    def todict(self) -> dict:
        """Name and settings, JSON-compatible; the settings are keywords of the class."""
        return {"name": self.name} | {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


def _plain(value):
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value


@functools.cache
def kernel_signature():
    """Numba signature of all kernels: (State, int64, int64, int64[::1], float64[::1]) -> none."""
    zero = [np.zeros((1, 3))]
    state = make_state(zero, zero, [np.ones(1)], [np.zeros(1)], [np.eye(3)], [(True, True, True)])
    return types.void(numba.typeof(state), types.int64, types.int64, types.int64[::1], types.float64[::1])


# --- flat arrays ---------------------------------------------------------------------------------------------------


class Arena:
    """Builds the arrays of one replica: pieces one after the other, their offsets in the head of ``ints``."""

    def __init__(self, state: State, replica: int, info: ObserverInfo):
        check_count(self, "interval", info.interval)
        if not (math.isfinite(info.timestep_fs) and info.timestep_fs > 0):
            raise ObserverError(f"timestep_fs: expected a positive number, got {info.timestep_fs!r}")
        sites = sites_of(state, replica)
        kinds = state.types[sites]
        if len(kinds) == 0:
            raise ObserverError(f"replica {replica} has no sites: there is nothing to observe")
        if kinds.min() < 0 or kinds.max() >= len(info.species):
            raise ObserverError(
                f"types: expected 0 to {len(info.species) - 1} for the species {', '.join(info.species)}, got "
                f"{kinds.min()} to {kinds.max()}"
            )
        self._ints, self._floats = [np.zeros(_HEAD, np.int64)], [np.zeros(_FLOAT_HEAD)]
        self._sizes = [_HEAD, _FLOAT_HEAD]
        head = self._ints[0]
        head[INTERVAL], head[N_SITES], head[N_TYPES] = info.interval, len(kinds), len(info.species)
        letters = np.zeros((len(info.species), MAX_LABEL), np.int64)
        for row, label in zip(letters, info.species, strict=True):
            row[: len(label)] = [ord(letter) for letter in label]
        self.add_ints(_LABELS, letters.ravel())
        field = (math.nan,) * 3 if info.field_per_A is None else info.field_per_A
        temperature = math.nan if info.temperature_K is None else info.temperature_K
        self._floats[0][:5] = [info.timestep_fs, temperature, *field]

    def set(self, slot: int, value: int) -> None:
        """A number in the head of ``ints``."""
        self._ints[0][slot] = value

    def add_ints(self, slot: int, content) -> None:
        """A piece of ``ints``: an array, or how many zeros; its offset goes to ``ints[slot]``."""
        self._add(0, self._ints, slot, np.zeros(content, np.int64) if np.ndim(content) == 0 else content)

    def add_floats(self, slot: int, content) -> None:
        """A piece of ``floats``: an array, or how many zeros; its offset goes to ``ints[slot]``."""
        self._add(1, self._floats, slot, np.zeros(content) if np.ndim(content) == 0 else content)

    def add_table(self, slot: int, rows: int, width: int) -> None:
        """A table of ``rows`` (even) blocks of ``width`` numbers; the offset of its record goes to ``ints[slot]``."""
        offset = self._sizes[1]
        self._add(1, self._floats, slot, np.zeros(rows * width))
        self.add_ints(slot, np.array([rows, width, offset, 0, 1, 0, 0], np.int64))

    def _add(self, which, pieces, slot, content):
        self._ints[0][slot] = self._sizes[which]
        pieces.append(content)
        self._sizes[which] += len(content)

    def build(self) -> tuple[np.ndarray, np.ndarray]:
        ints = np.concatenate(self._ints, dtype=np.int64, casting="same_kind")
        return ints, np.concatenate(self._floats, dtype=np.float64, casting="same_kind")


def info_of(ints, floats) -> ObserverInfo:
    """The :class:`ObserverInfo` that the arrays were allocated with."""
    letters = ints[ints[_LABELS] :][: ints[N_TYPES] * MAX_LABEL].reshape(-1, MAX_LABEL)
    species = tuple("".join(chr(letter) for letter in row if letter) for row in letters)
    temperature, field = float(floats[TEMPERATURE_K]), tuple(floats[FIELD : FIELD + 3].tolist())
    return ObserverInfo(
        timestep_fs=float(floats[TIMESTEP_FS]),
        interval=int(ints[INTERVAL]),
        species=species,
        temperature_K=None if math.isnan(temperature) else temperature,
        field_per_A=None if math.isnan(field[0]) else field,
    )


@inlined
def current_row(ints, slot):
    """Where in ``floats`` the row begins to which samples are being added."""
    t = ints[slot]
    return ints[t + _OFFSET] + ints[t + _FULL] * ints[t + _WIDTH]


@inlined
def end_sample(ints, floats, slot):
    """Count a sample that has been added to the current row of a table."""
    t = ints[slot]
    ints[t + _SAMPLES] += 1
    ints[t + _FILLED] += 1
    if ints[t + _FILLED] == ints[t + _LENGTH]:
        ints[t + _FILLED] = 0
        ints[t + _FULL] += 1
        if ints[t + _FULL] == ints[t + _ROWS]:
            offset, width, half = ints[t + _OFFSET], ints[t + _WIDTH], ints[t + _ROWS] // 2
            for row in range(half):
                for c in range(width):
                    one = floats[offset + 2 * row * width + c]
                    floats[offset + row * width + c] = one + floats[offset + (2 * row + 1) * width + c]
            for k in range(offset + half * width, offset + 2 * half * width):
                floats[k] = 0.0
            ints[t + _FULL] = half
            ints[t + _LENGTH] *= 2


class Blocks:
    """A table of blocks as numpy sees it: ``samples``, ``length`` of a block, ``sums`` (rows, width) with the row that
    is being filled, ``means`` (blocks, width) of the full rows, ``mean`` (width,) of everything."""

    def __init__(self, ints, floats, slot: int):
        at = ints[slot]
        rows, width, offset, full, length, _, samples = (int(n) for n in ints[at : at + 7])
        self.samples, self.length = samples, length
        self.sums = floats[offset : offset + rows * width].reshape(rows, width)[: full + 1]
        self.means = self.sums[:full] / length

    @property
    def mean(self) -> np.ndarray:
        return self.sums.sum(axis=0) / self.samples

    def require(self, observer: Observer, interval: int) -> None:
        """Raise :class:`ObserverError` if there is no sample."""
        if self.samples == 0:
            raise ObserverError(f"{observer.name}: no sample yet; run at least {interval} steps, its interval")


def standard_errors(blocks, pools: Sequence | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Standard errors (C,) of the averages of ``blocks`` (n, C), and whether they can be trusted.

    ``pools``: index arrays of components with alike correlation; by default each is on its own. NaN (and False) where
    there are too few blocks, or numbers that are not finite.
    """
    n, width = blocks.shape
    error, reliable = np.full(width, math.nan), np.zeros(width, bool)
    good = np.isfinite(blocks).all(axis=0)
    if n < MIN_BLOCKS or not good.any():
        return error, reliable
    place = np.cumsum(good) - 1
    pools = [np.array([c]) for c in range(width)] if pools is None else [np.asarray(pool) for pool in pools]
    found = block_errors(blocks[:, good], [place[pool[good[pool]]] for pool in pools])
    error[good], reliable[good] = found.error, found.reliable
    return error, reliable


def lag_pools(n: int) -> list[np.ndarray]:
    """Indices 0 ... n-1 of a correlation function in groups of similar lag; its fluctuations live as long as that."""
    edges = np.unique(np.concatenate([[0, 1], np.geomspace(1, n, 16).round().astype(int), [n]]))
    return [np.arange(a, b) for a, b in itertools.pairwise(edges)]


# --- geometry ------------------------------------------------------------------------------------------------------


@inlined
def cell_volume(s, r):
    """Volume in Å^3; NaN if the cell has none."""
    a = s.cell[r]
    volume = abs(
        a[0, 0] * (a[1, 1] * a[2, 2] - a[1, 2] * a[2, 1])
        + a[0, 1] * (a[1, 2] * a[2, 0] - a[1, 0] * a[2, 2])
        + a[0, 2] * (a[1, 0] * a[2, 1] - a[1, 1] * a[2, 0])
    )
    size = 1.0
    for d in range(3):
        size *= math.sqrt(a[d, 0] * a[d, 0] + a[d, 1] * a[d, 1] + a[d, 2] * a[d, 2])
    return volume if volume > 1e-10 * size else math.nan


@inlined
def complete_lattice(s, r, out):
    """Cell and reciprocal vectors of a replica into ``out`` (18,): rows ``a_d`` with non-periodic ones replaced by unit
    vectors orthogonal to the rest, then rows ``g_d`` with ``a_d . g_e = delta_de``.

    Fractional coordinates are ``x . g_d``, heights of the cell ``1/|g_d|``. Not finite where periodic vectors are
    linearly dependent.
    """
    complete(s.cell[r], s.pbc[r], out[:9].reshape(3, 3))
    g = out[9:18]
    for d in range(3):
        i, j = 3 * ((d + 1) % 3), 3 * ((d + 2) % 3)
        g[3 * d] = out[i + 1] * out[j + 2] - out[i + 2] * out[j + 1]
        g[3 * d + 1] = out[i + 2] * out[j] - out[i] * out[j + 2]
        g[3 * d + 2] = out[i] * out[j + 1] - out[i + 1] * out[j]
    volume = out[0] * g[0] + out[1] * g[1] + out[2] * g[2]
    for k in range(9):
        g[k] /= volume


# --- settings ------------------------------------------------------------------------------------------------------


def sites_of(state: State, replica: int) -> slice:
    """The sites of a replica."""
    return slice(int(state.first[replica]), int(state.first[replica + 1]))


def type_of(label: str, info: ObserverInfo) -> int:
    """Number of the species ``label``; raises :class:`ObserverError` if there is none."""
    if label not in info.species:
        raise ObserverError(f"unknown species {label!r}: {closest(str(label), info.species)}")
    return info.species.index(label)


def check_count(owner, name: str, value, least: int = 1) -> int:
    """``value`` as int; raises :class:`ObserverError` unless it is an integer of at least ``least``."""
    if not is_integer(value) or value < least:
        raise ObserverError(f"{type(owner).__name__}: {name} must be an integer of at least {least}, got {value!r}")
    return int(value)


def check_positive(owner, name: str, value) -> float:
    """``value`` as float; raises :class:`ObserverError` unless it is a positive finite number."""
    if not is_number(value) or not 0 < value < math.inf:
        raise ObserverError(f"{type(owner).__name__}: {name} must be a positive number, got {value!r}")
    return float(value)
