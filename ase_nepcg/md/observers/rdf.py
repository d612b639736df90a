"""Radial distribution functions of pairs of species.

``g_ab(r) = <n_ab(r)> V / (N_a N_b 4 pi r^2 dr)`` with the ordered pairs a-b at distances of a bin, all periodic images
included, and the average volume V; the shell has its exact volume. For r below half the cell an ideal gas of N like
sites has ``g_aa = 1 - 1/N``.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from ...potential.simd import advance, pointer
from ..state import inlined
from .base import (
    N_TYPES,
    Arena,
    Blocks,
    Observer,
    ObserverError,
    cell_volume,
    check_count,
    check_positive,
    current_row,
    end_sample,
    info_of,
    sites_of,
    standard_errors,
)  # fmt: skip
from .bins import BUFFER, OWN_PAIRS, PAIRS, REFUSED, allocate_pairs, pair_types
from .pairs import pair_kernel, pairs_of, read_pairs

__all__ = ["RDF", "RDFResult"]

# head of ints: bins, table, bin of each distance of a batch, sites of each species; of floats: bins per Å
_BINS, _TABLE, _SCALE, _PLACES, _SITES = range(OWN_PAIRS, OWN_PAIRS + 5)
# few, since a row holds all bins of all pairs
_ROWS = 64


@inlined
def _consume(ints, floats, pair, kept, step, weight):
    bins, scale, buffer = ints[_BINS], floats[ints[_SCALE]], ints[BUFFER]
    row = current_row(ints, _TABLE) + pair * bins
    p, q = pointer(floats), advance(pointer(ints), ints[_PLACES])
    # single precision is good for 1e-7 of the distance, and its square root three times as fast
    scale = np.float32(scale)
    for k in range(kept):
        q[k] = min(np.int64(np.int32(math.sqrt(np.float32(p[buffer + k])) * scale)), bins - 1)
    for k in range(kept):
        p[row + q[k]] += weight


@inlined
def _finish(s, r, ints, floats):
    floats[current_row(ints, _TABLE) + ints[PAIRS] * ints[_BINS]] += cell_volume(s, r)
    end_sample(ints, floats, _TABLE)


@functools.cache
def _kernel():
    return pair_kernel("rdf", _consume, _finish)


@dataclass(frozen=True)
class RDFResult:
    """Radial distribution functions of P pairs of species.

    ``r`` (bins,): middle of the bins, Å; ``g`` (P, bins) with standard error ``g_error``, NaN where the cell has no
    volume; ``coordination`` (P, bins): average number of the second species around one site of the first, up to the
    outer edge of each bin, with error; ``volume_A3``: average volume.
    """

    pairs: tuple
    r: np.ndarray
    g: np.ndarray
    g_error: np.ndarray
    coordination: np.ndarray
    coordination_error: np.ndarray
    volume_A3: float
    samples: int

    def as_table(self) -> tuple[tuple, np.ndarray]:
        header, columns = ["r_A"], [self.r]
        for k, (a, b) in enumerate(self.pairs):
            header += [f"{name}_{a}-{b}{what}" for name in ("g", "n") for what in ("", "_error")]
            columns += [self.g[k], self.g_error[k], self.coordination[k], self.coordination_error[k]]
        return tuple(header), np.stack(columns, axis=1)


@dataclass(frozen=True)
class RDF(Observer):
    """Radial distribution functions.

    r_max: Å, may be larger than the cell; bins: between 0 and r_max; pairs: pairs of labels, by default all of the
    species that are there. Memory: 64 x pairs x bins numbers.
    """

    r_max: float
    bins: int = 200
    pairs: tuple | None = None

    name = "rdf"

    def __post_init__(self):
        object.__setattr__(self, "r_max", check_positive(self, "r_max", self.r_max))
        object.__setattr__(self, "bins", check_count(self, "bins", self.bins))
        if self.pairs is not None:
            object.__setattr__(self, "pairs", read_pairs(self, self.pairs))

    def allocate(self, state, replica, info):
        arena = Arena(state, replica, info)
        numbers = pairs_of(state, replica, info, self.pairs)
        allocate_pairs(arena, state, replica, info, numbers, [self.r_max] * len(numbers))
        arena.set(_BINS, self.bins)
        arena.add_table(_TABLE, _ROWS, len(numbers) * self.bins + 1)
        arena.add_floats(_SCALE, np.array([self.bins / self.r_max]))
        arena.add_ints(_PLACES, 2048)
        arena.add_ints(_SITES, np.bincount(state.types[sites_of(state, replica)], minlength=len(info.species)))
        return arena.build()

    def kernel(self):
        return _kernel()

    def results(self, ints, floats) -> RDFResult:
        info, blocks = info_of(ints, floats), Blocks(ints, floats, _TABLE)
        refuse_collapse(self, ints)
        blocks.require(self, info.interval)
        n_pairs, bins, scale = int(ints[PAIRS]), int(ints[_BINS]), float(floats[ints[_SCALE]])
        numbers = pair_types(ints)
        sites = ints[ints[_SITES] :][: ints[N_TYPES]].astype(float)
        first, second = sites[numbers[:, 0], None], sites[numbers[:, 1], None]
        # unordered pairs were counted: seen from the first species those of like sites count twice
        twice = np.where(numbers[:, :1] == numbers[:, 1:], 2.0, 1.0)
        edges = np.arange(bins + 1) / scale
        shell = 4.0 / 3.0 * np.pi * np.diff(edges**3)
        shape = (-1, n_pairs, bins)
        mean, volume = blocks.mean[:-1].reshape(shape[1:]), float(blocks.mean[-1])
        counts, volumes = blocks.means[:, :-1].reshape(shape), blocks.means[:, -1, None, None]
        unit = twice / (first * second * shell)
        # fluctuations of the product <n> <V> to first order
        pools = np.arange(n_pairs * bins).reshape(n_pairs, bins)
        each = (counts * volume + mean * (volumes - volume)) * unit
        g_error, _ = standard_errors(each.reshape(-1, pools.size), pools)
        around = np.cumsum(twice / first * counts, axis=-1)
        error, _ = standard_errors(around.reshape(-1, pools.size), pools)
        return RDFResult(
            pairs=tuple((info.species[a], info.species[b]) for a, b in numbers),
            r=0.5 * (edges[1:] + edges[:-1]),
            g=mean * volume * unit,
            g_error=g_error.reshape(shape[1:]),
            coordination=np.cumsum(twice / first * mean, axis=-1),
            coordination_error=error.reshape(shape[1:]),
            volume_A3=volume,
            samples=blocks.samples,
        )


def refuse_collapse(observer: Observer, ints) -> None:
    """Raise :class:`ObserverError` if samples could not be searched."""
    if ints[REFUSED]:
        raise ObserverError(
            f"{observer.name}: {int(ints[REFUSED])} samples had a collapsed cell or positions that are not finite; the "
            "run has failed, see where with a trajectory"
        )
