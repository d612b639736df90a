"""Sites sorted into bins, for searches of pairs within a radius; everything in the flat arrays of an observer.

Directions are treated apart, in fractional coordinates, by the ratio of the height h of the cell to the radius:

h > 2 r, last direction
    fine bins: a search goes over runs in memory, of which the image is known.
h >= 3 r, other directions
    bins; a search goes over rows of neighbouring bins.
3 r > h >= 2 r, other directions
    at most one image of a pair is near, the one with the smallest fractional difference.
else
    all images within reach, one after the other.
not periodic
    bins over the extent of the sites.

The number of bins is limited by the memory that was allocated, not the other way round: whatever becomes of the cell
during a run costs time only.
"""

from __future__ import annotations

import math

import numpy as np

from ...potential.neighbors import complete_cell
from ...potential.simd import LANES, pointer
from ..state import inlined
from .base import N_SITES, N_TYPES, OWN, Arena, ObserverError, complete_lattice, sites_of

__all__ = [
    "BATCH",
    "BINS",
    "BIN_START",
    "BUFFER",
    "CHUNK",
    "FACTOR",
    "GRID",
    "IMAGES",
    "LATTICE",
    "LIMITS",
    "NEAREST",
    "OWN_PAIRS",
    "PAIRS",
    "PAIR_OF",
    "REACH",
    "REFUSED",
    "SORTED",
    "SORTED_BIN",
    "allocate_pairs",
    "pair_types",
    "sort_sites",
]

# head of ints: number of pairs of types, (T, T) their numbers or -1, their types (pairs, 2), samples without result
PAIRS, PAIR_OF, PAIR_TYPES, REFUSED = range(OWN, OWN + 4)
# bins: memory for each type, where they start, bin of each site before and after sorting, numbers of bins and reach
ROOM, BIN_START, BIN_OF, SORTED_BIN, GRID = range(OWN + 4, OWN + 9)
# floats: lattice, fractional coordinates, Cartesian ones (triangular cell) in the order of bins, squared radius of each
# pair, squared distances of a batch
LATTICE, RAW, SORTED, LIMITS, BUFFER = range(OWN + 9, OWN + 14)
# first entry for the observer
OWN_PAIRS = OWN + 14
# entries at GRID: bins (3), reach in bins (3), reach in images (3), nearest image only (3)
BINS, REACH, IMAGES, NEAREST = 0, 3, 6, 9
# entries at LATTICE after cell and reciprocal vectors: origin (3) and extent (3) of bins in fractional coordinates, the
# latter in Å (3), xx yx yy zx zy zz of the lower triangular cell that differs by a rotation: the Cholesky factor of
# the metric
_ORIGIN, _EXTENT, _SPAN, FACTOR = 18, 21, 24, 27
# bins per radius along the last direction
_FINE = 16
# sites compared with one at a time, and squared distances after which a batch is handed over
CHUNK, BATCH = 512, 512
_MAX_IMAGES = 100_000
# at the start, when the cell may still shrink
_MAX_IMAGES_AT_FIRST = 60_000
# rows of bins whose runs have more sites than this are divided
_CROWDED = 64


def allocate_pairs(arena: Arena, state, replica, info, numbers, radii) -> None:
    """Pieces for the search of pairs of types ``numbers`` up to ``radii`` (Å, one per pair)."""
    sites = sites_of(state, replica)
    n, n_types = sites.stop - sites.start, len(info.species)
    _check_reach(state, replica, max(radii, default=0.0))
    pair_of = np.full((n_types, n_types), -1)
    for k, (a, b) in enumerate(numbers):
        pair_of[a, b] = pair_of[b, a] = k
    room = 4 * n // n_types + 64
    arena.set(PAIRS, len(numbers))
    arena.add_ints(PAIR_OF, pair_of.ravel())
    arena.add_ints(PAIR_TYPES, np.ravel(numbers))
    arena.set(ROOM, room)
    arena.add_ints(BIN_START, n_types * room + 1)
    arena.add_ints(BIN_OF, n)
    arena.add_ints(SORTED_BIN, n)
    arena.add_ints(GRID, 12)
    arena.add_floats(LATTICE, 33)
    arena.add_floats(RAW, 3 * n)
    arena.add_floats(SORTED, 3 * (n + LANES))
    arena.add_floats(LIMITS, np.asarray(radii, float) ** 2)
    arena.add_floats(BUFFER, BATCH + CHUNK + LANES)


def _check_reach(state, replica, radius):
    """Refuse cells without images, and radii that meet very many."""
    pbc = state.pbc[replica]
    try:
        cell = complete_cell(state.cell[replica], pbc)
    except ValueError as error:
        raise ObserverError(str(error)) from None
    heights = 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)[pbc]
    images = np.prod(2.0 * radius / heights + 3.0)
    if images > _MAX_IMAGES_AT_FIRST:
        raise ObserverError(
            f"a radius of {radius:g} Å is {radius / heights.min():.0f} times the smallest height of the cell "
            f"({heights.min():.4g} Å) and meets {images:.2g} images, at most {_MAX_IMAGES_AT_FIRST} are searched; use "
            "a smaller radius, or repeat the cell"
        )


def pair_types(ints) -> np.ndarray:
    """Numbers of the species of each pair, (pairs, 2)."""
    return ints[ints[PAIR_TYPES] :][: 2 * ints[PAIRS]].reshape(-1, 2)


@inlined
def _divide(grid, d, n, span, radius, periodic):
    """``n`` bins in direction d, or one if a search would meet a bin twice."""
    n = max(n, 1)
    reach = np.int64(np.ceil(radius * n / span))
    if periodic and n < 2 * reach + 1:
        n, reach = 1, 0
    grid[BINS + d] = n
    grid[REACH + d] = min(reach, n - 1)


@inlined
def _fractional(s, r, n, lattice, raw):
    """Fractional coordinates ``raw`` (3 n), origin and extent; False if something is not finite."""
    begin = s.first[r]
    for d in range(3):
        g0, g1, g2 = lattice[9 + 3 * d], lattice[10 + 3 * d], lattice[11 + 3 * d]
        size = math.sqrt(g0 * g0 + g1 * g1 + g2 * g2)
        if not 0.0 < size < math.inf:
            return False
        low, high = math.inf, -math.inf
        for i in range(n):
            f = s.x[begin + i, 0] * g0 + s.x[begin + i, 1] * g1 + s.x[begin + i, 2] * g2
            if not abs(f) < 1e12:
                return False
            if s.pbc[r, d]:
                f -= np.floor(f)
            raw[d * n + i] = f
            low, high = min(low, f), max(high, f)
        lattice[_ORIGIN + d] = 0.0 if s.pbc[r, d] else low
        lattice[_EXTENT + d] = 1.0 if s.pbc[r, d] else max(high - low, 1e-3)
        lattice[_SPAN + d] = lattice[_EXTENT + d] / size
    return True


@inlined
def _choose_bins(s, r, n_sites, n_types, room, radius, lattice, grid):
    """Numbers of bins, reaches, and how images are treated; False if there are too many images."""
    for d in range(3):
        # at most a million, to be cut down to what there is memory for
        n = min(lattice[_SPAN + d] / radius * (_FINE if d == 2 else 1), 1e6)
        _divide(grid, d, int(n), lattice[_SPAN + d], radius, s.pbc[r, d])
    run = n_sites / n_types / (grid[BINS] * grid[BINS + 1] * grid[BINS + 2]) * (2 * grid[REACH + 2] + 1)
    if run > _CROWDED:
        for d in range(2):
            if grid[BINS + d] > 2:
                _divide(grid, d, int(2.0 * lattice[_SPAN + d] / radius), lattice[_SPAN + d], radius, s.pbc[r, d])
    while grid[BINS] * grid[BINS + 1] * grid[BINS + 2] > room:
        d = 0
        for e in range(1, 3):
            if grid[BINS + e] > grid[BINS + d]:
                d = e
        _divide(grid, d, (grid[BINS + d] + 1) // 2, lattice[_SPAN + d], radius, s.pbc[r, d])
    images = 1.0
    for d in range(3):
        ratio = lattice[_SPAN + d] / radius
        grid[NEAREST + d] = 0
        grid[IMAGES + d] = 0
        if s.pbc[r, d] and grid[BINS + d] == 1:
            if d < 2 and ratio >= 2.0:
                grid[NEAREST + d] = 1
            else:
                images *= 2.0 / ratio + 3.0
                if not images < _MAX_IMAGES:
                    return False
                grid[IMAGES + d] = int(1.0 / ratio) + 1
    return True


@inlined
def sort_sites(s, r, ints, floats):
    """Coordinates sorted by (type, bin), and the bins; False if the cell cannot be searched."""
    begin, n, n_types, room = s.first[r], ints[N_SITES], ints[N_TYPES], ints[ROOM]
    radius = 0.0
    for k in range(ints[PAIRS]):
        radius = max(radius, math.sqrt(floats[ints[LIMITS] + k]))
    radius *= 1.0 + 1e-12
    lattice = floats[ints[LATTICE] : ints[LATTICE] + 33]
    raw = floats[ints[RAW] : ints[RAW] + 3 * n]
    grid = ints[ints[GRID] : ints[GRID] + 12]
    complete_lattice(s, r, lattice)
    if not _fractional(s, r, n, lattice, raw):
        return False
    if not _choose_bins(s, r, n, n_types, room, radius, lattice, grid):
        return False
    a = lattice
    factor = lattice[FACTOR : FACTOR + 6]
    factor[0] = math.sqrt(a[0] * a[0] + a[1] * a[1] + a[2] * a[2])
    factor[1] = (a[0] * a[3] + a[1] * a[4] + a[2] * a[5]) / factor[0]
    factor[3] = (a[0] * a[6] + a[1] * a[7] + a[2] * a[8]) / factor[0]
    factor[2] = math.sqrt(max(a[3] * a[3] + a[4] * a[4] + a[5] * a[5] - factor[1] * factor[1], 0.0))
    factor[4] = (a[3] * a[6] + a[4] * a[7] + a[5] * a[8] - factor[1] * factor[3]) / factor[2]
    rest = a[6] * a[6] + a[7] * a[7] + a[8] * a[8] - factor[3] * factor[3] - factor[4] * factor[4]
    factor[5] = math.sqrt(max(rest, 0.0))
    # counting sort
    n0, n1, n2 = grid[BINS], grid[BINS + 1], grid[BINS + 2]
    bins = n0 * n1 * n2
    p, q = pointer(floats), pointer(ints)
    start, bin_of, sorted_bin = ints[BIN_START], ints[BIN_OF], ints[SORTED_BIN]
    for k in range(n_types * bins + 1):
        q[start + k] = 0
    o0, o1, o2 = a[_ORIGIN], a[_ORIGIN + 1], a[_ORIGIN + 2]
    c0, c1, c2 = n0 / a[_EXTENT], n1 / a[_EXTENT + 1], n2 / a[_EXTENT + 2]
    for i in range(n):
        b0 = min(int((raw[i] - o0) * c0), n0 - 1)
        b1 = min(int((raw[n + i] - o1) * c1), n1 - 1)
        b2 = min(int((raw[2 * n + i] - o2) * c2), n2 - 1)
        here = (b0 * n1 + b1) * n2 + b2
        q[bin_of + i] = here
        q[start + s.types[begin + i] * bins + here] += 1
    total = 0
    for k in range(n_types * bins + 1):
        here = q[start + k]
        q[start + k] = total
        total += here
    x0 = ints[SORTED]
    x1 = x0 + n + LANES
    x2 = x1 + n + LANES
    xx, yx, yy, zx, zy, zz = factor[0], factor[1], factor[2], factor[3], factor[4], factor[5]
    for i in range(n):
        u, v, w = raw[i], raw[n + i], raw[2 * n + i]
        key = start + s.types[begin + i] * bins + q[bin_of + i]
        k = q[key]
        q[key] = k + 1
        q[sorted_bin + k] = q[bin_of + i]
        p[x0 + k], p[x1 + k], p[x2 + k] = u * xx + v * yx + w * zx, v * yy + w * zy, w * zz
    # each entry has moved on to the beginning of the next bin
    for k in range(n_types * bins, 0, -1):
        q[start + k] = q[start + k - 1]
    q[start] = 0
    return True
