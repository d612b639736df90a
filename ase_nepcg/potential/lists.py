"""Kernels of the neighbour list: binning, search, sorting, and whether a list still serves.

They work on the arrays of one or several independent systems (replicas), whose sites follow each other, without
allocating anything, so that a compiled loop can renew a list by itself. What does not fit is reported in ``info``;
:class:`~ase_nepcg.potential.neighbors.NeighborList` owns the memory and enlarges it.

Order of calls: :func:`prepare`, :func:`search` (all threads at once), :func:`settle`, again from ``search`` while that
says AGAIN; then :func:`place_sites` for every geometry that :func:`fits`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .cache import inlined, kernel_jit
from .gather import below, count, load_integers, store_kept_integers, without
from .lattice import complete, invert, smallest_stretch
from .layout import PAGE
from .simd import LANES, fetch_add, load, pointer

__all__ = [
    "AGAIN",
    "BUILDS",
    "DONE",
    "FAR",
    "LONGEST",
    "MEMORY",
    "NEED_FOUND",
    "NEED_NEIGHBORS",
    "NEED_SHIFTS",
    "SMALL",
    "STATUS",
    "VALID",
    "WHERE",
    "ListArrays",
    "fits",
    "place",
    "place_sites",
    "prepare",
    "refresh",
    "search",
    "settle",
]

# Bins per cutoff length and direction: a search goes through rows of bins along the last direction, so few rows
# (9) and fine steps within a row
_BINS = (1.0, 1.0, 4.0)
_MAX_SHIFTS = 1 << 20
_MAX_IMAGES = 1_000_000
# cells: floor() of larger numbers has no fractional digits left
_FARTHEST = 1e12
# entries of ``info``; the NEED entries say how much memory is wanted
STATUS, VALID, BUILDS, LONGEST, NEED_SHIFTS, NEED_FOUND, NEED_NEIGHBORS, WHERE = range(8)
# what STATUS says: done, more memory needed, search again, a site too far from the origin, a cell too small
DONE, MEMORY, AGAIN, FAR, SMALL = range(5)


class ListArrays(NamedTuple):
    """N sites, R replicas, T types, C chunks; B bins, S shifts at most."""

    # what the list is for
    first: np.ndarray  # (R + 1,) first site of each replica
    replica: np.ndarray  # (N,)
    pbc: np.ndarray  # (R, 3) bool
    types: np.ndarray  # (N,) int32
    order: np.ndarray  # (N,) sites sorted by (type, index)
    cutoffs: np.ndarray  # (T, T) Å
    skin: np.ndarray  # (1,) Å
    chunks: np.ndarray  # (C + 1,) boundaries of the chunks of sites
    # the geometry it was made for, and the cell now; both complete
    cell: np.ndarray  # (R, 3, 3)
    now: np.ndarray  # (R, 3, 3)
    origin: np.ndarray  # (N, 3)
    # shifts: all that can occur between the positions of a replica, in a dense box around zero
    scattered: np.ndarray  # (R,) bool: too many for that, images are taken off the positions
    image: np.ndarray  # (N, 3) cells taken off
    half: np.ndarray  # (R, 3) the box is -half ... half
    stride: np.ndarray  # (R, 4) code = stride[:3] . S + stride[3]
    shift_first: np.ndarray  # (R + 1,)
    triples: np.ndarray  # (S, 3)
    # bins
    bins: np.ndarray  # (R, 3)
    reach: np.ndarray  # (R, 3) how many bins away neighbours can be
    bin_first: np.ndarray  # (R + 1,)
    bin_start: np.ndarray  # (B + 1,)
    bin_of: np.ndarray  # (N,)
    coordinate: np.ndarray  # (N, 3) bin coordinates
    wrapped: np.ndarray  # (N, 3)
    # in the order of the bins, padded to whole vectors
    members: np.ndarray  # (N,)
    x: np.ndarray  # (3, N + LANES)
    packed: np.ndarray  # (N + LANES,) index - image code * 2^32
    limits: np.ndarray  # (T or 1, N + LANES) squared distance for each type of the site, or for all
    # what the search found
    room: np.ndarray  # (N,)
    start: np.ndarray  # (N + 1,)
    found_count: np.ndarray  # (N,)
    found: np.ndarray
    cursor: np.ndarray  # (N,)
    # the list
    seg: np.ndarray  # (N * (T + 1),)
    neighbors: np.ndarray
    touched: np.ndarray  # (C * pages,) bool
    positions: np.ndarray  # rows of four
    shifts: np.ndarray  # rows of four
    info: np.ndarray  # (8,)


@inlined
def fits(a, x, cell):
    """Whether the list serves for positions ``x`` (N, 3) and cells (R, 3, 3); the complete cells go into ``now``.

    The list holds pairs up to rc + skin. It serves while ``sigma (rc + skin) - 2 max|delta| > rc`` with displacements
    ``delta`` relative to the affine motion F of the cell since the list was made, and ``sigma`` the smallest stretch of
    F.
    """
    inverse, motion = np.empty((3, 3)), np.empty((3, 3))
    largest, smallest = 0.0, math.inf
    for t in range(a.cutoffs.size):
        largest, smallest = max(largest, a.cutoffs.flat[t]), min(smallest, a.cutoffs.flat[t])
    good = a.info[VALID] != 0
    for r in range(a.first.size - 1):
        now, old = a.now[r], a.cell[r]
        complete(cell[r], a.pbc[r], now)
        same = True
        for d in range(3):
            for c in range(3):
                same = same and now[d, c] == old[d, c]
        sigma = 1.0
        if good and not same:
            invert(old, inverse)
            for d in range(3):
                for c in range(3):
                    motion[d, c] = inverse[d, 0] * now[0, c] + inverse[d, 1] * now[1, c] + inverse[d, 2] * now[2, c]
            sigma = smallest_stretch(motion)
        if not good:
            continue
        farthest = 0.0
        for i in range(a.first[r], a.first[r + 1]):
            ox, oy, oz = a.origin[i, 0], a.origin[i, 1], a.origin[i, 2]
            if not same:
                ox, oy, oz = (
                    ox * motion[0, 0] + oy * motion[1, 0] + oz * motion[2, 0],
                    ox * motion[0, 1] + oy * motion[1, 1] + oz * motion[2, 1],
                    ox * motion[0, 2] + oy * motion[1, 2] + oz * motion[2, 2],
                )
            dx, dy, dz = x[i, 0] - ox, x[i, 1] - oy, x[i, 2] - oz
            d2 = dx * dx + dy * dy + dz * dz
            # also where it is not a number
            if not d2 <= farthest:
                farthest = d2
                if d2 != d2:
                    break
        # compression is worst for the largest cutoff, stretching (which helps) for the smallest
        rc = largest if sigma < 1.0 else smallest
        good = sigma * (rc + a.skin[0]) - 2.0 * math.sqrt(farthest) > rc * (1.0 + 1e-12)
    return good


@inlined
def place_sites(a, x):
    """Positions and shift vectors of the list for positions ``x`` and the cells that :func:`fits` has seen last."""
    for r in range(a.first.size - 1):
        cell, scattered = a.now[r], a.scattered[r]
        for i in range(a.first[r], a.first[r + 1]):
            for c in range(3):
                value = x[i, c]
                if scattered:
                    value -= a.image[i, 0] * cell[0, c] + a.image[i, 1] * cell[1, c] + a.image[i, 2] * cell[2, c]
                a.positions[4 * i + c] = value
        for k in range(a.shift_first[r], a.shift_first[r + 1]):
            sx, sy, sz = a.triples[k, 0], a.triples[k, 1], a.triples[k, 2]
            for c in range(3):
                a.shifts[4 * k + c] = sx * cell[0, c] + sy * cell[1, c] + sz * cell[2, c]


@kernel_jit()
def place(a, x):
    """:func:`place_sites`, for callers outside a compiled loop."""
    place_sites(a, x)


@kernel_jit()
def refresh(a, x, cell):
    """:func:`place_sites` if the list :func:`fits`; returns whether it does."""
    good = fits(a, x, cell)
    if good:
        place_sites(a, x)
    return good


@inlined
def _wrap(a, r, x, inverse, low, high, image_low, image_high):
    """Wrapped fractional coordinates into ``wrapped``, cells taken off into ``image``; their bounds. False: too far."""
    cell = a.now[r]
    invert(cell, inverse)
    for d in range(3):
        low[d], high[d], image_low[d], image_high[d] = math.inf, -math.inf, 1 << 60, -(1 << 60)
    for i in range(a.first[r], a.first[r + 1]):
        for d in range(3):
            s = x[i, 0] * inverse[0, d] + x[i, 1] * inverse[1, d] + x[i, 2] * inverse[2, d]
            if not abs(s) <= _FARTHEST:
                a.info[WHERE] = i
                return False
            k = 0
            if a.pbc[r, d]:
                floor = math.floor(s)
                k = int(floor)
                s -= floor
            a.image[i, d] = k
            a.wrapped[i, d] = s
            low[d], high[d] = min(low[d], s), max(high[d], s)
            image_low[d], image_high[d] = min(image_low[d], k), max(image_high[d], k)
    return True


@inlined
def _choose_bins(a, r, inverse, low, high, limit):
    """Bins and reach of a replica; fractional origin into ``low``, extent into ``high``. False: too many images."""
    n = a.first[r + 1] - a.first[r]
    for d in range(3):
        if a.pbc[r, d]:
            low[d], high[d] = 0.0, 1.0
        else:
            high[d] = max(high[d] - low[d], 1e-3)
        # perpendicular distance between opposite faces of the region that is divided
        height = high[d] / math.sqrt(inverse[0, d] ** 2 + inverse[1, d] ** 2 + inverse[2, d] ** 2)
        coarse = max(math.floor(height * _BINS[d] / limit), 1.0)
        fine = max(math.floor(2.0 * height * _BINS[d] / limit), 1.0)
        # what a search covers; in cells of few cutoffs coarse bins cover far too much
        covered = (2.0 * math.ceil(limit * coarse / height) + 1.0) / coarse
        finely = (2.0 * math.ceil(limit * fine / height) + 1.0) / fine
        # limited, so that their product stays a number
        a.bins[r, d] = int(min(fine if finely < 0.7 * covered else coarse, 4.0 * n + 64.0))
    # a few sites in a huge box need no more bins than sites
    while float(a.bins[r, 0]) * float(a.bins[r, 1]) * float(a.bins[r, 2]) > 4.0 * n + 64.0:
        widest = 0
        for d in range(1, 3):
            if a.bins[r, d] > a.bins[r, widest]:
                widest = d
        a.bins[r, widest] = -(-a.bins[r, widest] // 2)
    images = 1.0
    for d in range(3):
        height = high[d] / math.sqrt(inverse[0, d] ** 2 + inverse[1, d] ** 2 + inverse[2, d] ** 2)
        reach = math.ceil(limit * a.bins[r, d] / height)
        if a.pbc[r, d]:
            images *= 2.0 * math.floor(reach / a.bins[r, d]) + 1.0
            if images > _MAX_IMAGES:
                return False
        else:
            reach = min(reach, float(a.bins[r, d]))
        a.reach[r, d] = int(reach)
    return True


@inlined
def _number_shifts(a, r, image_low, image_high):
    """Box of shifts of a replica; images are kept only where it would be too large."""
    product = 1.0
    for d in range(3):
        own = a.reach[r, d] // a.bins[r, d] + 1 if a.pbc[r, d] else 0
        a.half[r, d] = own + image_high[d] - image_low[d]
        product *= 2.0 * a.half[r, d] + 1.0
    a.scattered[r] = product > _MAX_SHIFTS
    if a.scattered[r]:
        # shifts between wrapped positions
        for d in range(3):
            a.half[r, d] = a.reach[r, d] // a.bins[r, d] + 1 if a.pbc[r, d] else 0
    span1, span2 = 2 * a.half[r, 1] + 1, 2 * a.half[r, 2] + 1
    a.stride[r, 0], a.stride[r, 1], a.stride[r, 2] = span1 * span2, span2, 1
    a.stride[r, 3] = a.half[r, 0] * span1 * span2 + a.half[r, 1] * span2 + a.half[r, 2] + a.shift_first[r]
    a.shift_first[r + 1] = a.shift_first[r] + (2 * a.half[r, 0] + 1) * span1 * span2


@inlined
def _make_room(a):
    """Where each site's neighbours go; False: ``found`` is too small."""
    a.start[0] = 0
    for i in range(a.room.size):
        a.start[i + 1] = a.start[i] + a.room[i]
    a.info[NEED_FOUND] = a.start[a.room.size]
    return a.info[NEED_FOUND] <= a.found.size


@kernel_jit()
def prepare(a, x, cell):
    """Sort the sites into bins; STATUS says whether the search can begin."""
    n, replicas = a.types.size, a.first.size - 1
    inverse, low, high = np.empty((3, 3)), np.empty(3), np.empty(3)
    image_low, image_high = np.empty(3, np.int64), np.empty(3, np.int64)
    a.info[VALID] = 0
    limit = 0.0
    for t in range(a.cutoffs.size):
        limit = max(limit, a.cutoffs.flat[t])
    limit += a.skin[0]
    a.bin_first[0] = a.shift_first[0] = 0
    for r in range(replicas):
        complete(cell[r], a.pbc[r], a.now[r])
        if not _wrap(a, r, x, inverse, low, high, image_low, image_high):
            a.info[STATUS] = FAR
            return
        if not _choose_bins(a, r, inverse, low, high, limit):
            a.info[STATUS], a.info[WHERE] = SMALL, r
            return
        _number_shifts(a, r, image_low, image_high)
        a.bin_first[r + 1] = a.bin_first[r] + a.bins[r, 0] * a.bins[r, 1] * a.bins[r, 2]
        for i in range(a.first[r], a.first[r + 1]):
            for d in range(3):
                bins = a.bins[r, d]
                a.coordinate[i, d] = min(max(int((a.wrapped[i, d] - low[d]) * (bins / high[d])), 0), bins - 1)
            a.bin_of[i] = a.bin_first[r] + (
                (a.coordinate[i, 0] * a.bins[r, 1] + a.coordinate[i, 1]) * a.bins[r, 2] + a.coordinate[i, 2]
            )
    a.info[NEED_SHIFTS] = a.shift_first[replicas]
    if a.info[NEED_SHIFTS] > a.triples.shape[0]:
        a.info[STATUS] = MEMORY
        return
    for r in range(replicas):
        k = a.shift_first[r]
        h0, h1, h2 = a.half[r, 0], a.half[r, 1], a.half[r, 2]
        for s0 in range(-h0, h0 + 1):
            for s1 in range(-h1, h1 + 1):
                for s2 in range(-h2, h2 + 1):
                    a.triples[k, 0], a.triples[k, 1], a.triples[k, 2] = s0, s1, s2
                    k += 1
    # counting sort
    for b in range(a.bin_first[replicas] + 1):
        a.bin_start[b] = 0
    for i in range(n):
        a.bin_start[a.bin_of[i]] += 1
    total = 0
    for b in range(a.bin_first[replicas] + 1):
        here = a.bin_start[b]
        a.bin_start[b] = total
        total += here
    for i in range(n):
        k = a.bin_start[a.bin_of[i]]
        a.members[k] = i
        a.bin_start[a.bin_of[i]] += 1
    for b in range(a.bin_first[replicas], 0, -1):
        a.bin_start[b] = a.bin_start[b - 1]
    a.bin_start[0] = 0
    for k in range(n):
        i = a.members[k]
        r = a.replica[i]
        box = a.now[r]
        code = 0
        for d in range(3):
            # from the position, not from the fraction, which has been rounded
            a.x[d, k] = x[i, d] - (a.image[i, 0] * box[0, d] + a.image[i, 1] * box[1, d] + a.image[i, 2] * box[2, d])
            if not a.scattered[r]:
                code += a.stride[r, d] * a.image[i, d]
        a.packed[k] = i - (code << 32)
        for t in range(a.limits.shape[0]):
            a.limits[t, k] = (a.cutoffs[t, a.types[i]] + a.skin[0]) ** 2
    for k in range(n, n + LANES):
        a.packed[k] = 0
        for d in range(3):
            a.x[d, k] = 0.0
        for t in range(a.limits.shape[0]):
            a.limits[t, k] = 0.0
    if a.room[0] == 0:
        # the first time: from the density, as far as there is one
        for r in range(replicas):
            sites = a.first[r + 1] - a.first[r]
            guess = 0.0
            if a.pbc[r, 0] and a.pbc[r, 1] and a.pbc[r, 2]:
                invert(a.now[r], inverse)
                guess = (
                    4.19
                    * limit**3
                    * sites
                    * 1.2
                    * abs(
                        inverse[0, 0] * (inverse[1, 1] * inverse[2, 2] - inverse[1, 2] * inverse[2, 1])
                        + inverse[0, 1] * (inverse[1, 2] * inverse[2, 0] - inverse[1, 0] * inverse[2, 2])
                        + inverse[0, 2] * (inverse[1, 0] * inverse[2, 1] - inverse[1, 1] * inverse[2, 0])
                    )
                )
            for i in range(a.first[r], a.first[r + 1]):
                a.room[i] = int(min(guess, 500.0)) + 24 + LANES
    a.info[STATUS] = DONE if _make_room(a) else MEMORY


@kernel_jit()
def search(counter, a):
    """Neighbours of all sites: their number into ``found_count``, as many as fit between ``start[i]`` and ``start[i +
    1]`` into ``found``.

    The bins of a row along the last axis are contiguous: a row is one run through memory. A neighbour is one number:
    shift code * 2^32 + index. All threads take blocks of sites from the common ``counter``.
    """
    n = a.members.size
    row_size = a.limits.shape[1]
    one_limit = a.limits.shape[0] == 1
    block = 64
    p_counter, p_x, p_limits, p_packed, p_found = (
        pointer(counter),
        pointer(a.x),
        pointer(a.limits),
        pointer(a.packed),
        pointer(a.found),
    )
    members, bin_start, cells = a.members, a.bin_start, a.now
    first = fetch_add(p_counter, 0, block)
    while first < n:
        for k in range(first, min(first + block, n)):
            i = members[k]
            r = a.replica[i]
            base, n0, n1, n2 = a.bin_first[r], a.bins[r, 0], a.bins[r, 1], a.bins[r, 2]
            reach0, reach1, reach2 = a.reach[r, 0], a.reach[r, 1], a.reach[r, 2]
            stride0, stride1, stride2 = a.stride[r, 0], a.stride[r, 1], a.stride[r, 2]
            own_code = a.stride[r, 3] - (p_packed[k] >> 32)
            b2 = a.coordinate[i, 2]
            s2_first, s2_last = (b2 - reach2) // n2, (b2 + reach2) // n2
            if not a.pbc[r, 2]:
                s2_first = s2_last = 0
            at = a.start[i]
            room = a.start[i + 1] - LANES
            limits = 0 if one_limit else a.types[i] * row_size
            first1 = a.coordinate[i, 1] - reach1
            shift1 = first1 // n1
            home1 = first1 - shift1 * n1
            home0 = a.coordinate[i, 0] - reach0
            s0 = home0 // n0
            home0 -= s0 * n0
            for _o0 in range(2 * reach0 + 1):
                if s0 == 0 or a.pbc[r, 0]:
                    s1, h1 = shift1, home1
                    for _o1 in range(2 * reach1 + 1):
                        if s1 == 0 or a.pbc[r, 1]:
                            row = base + (home0 * n1 + h1) * n2
                            for s2 in range(s2_first, s2_last + 1):
                                begin = bin_start[row + max(b2 - reach2 - s2 * n2, 0)]
                                end = bin_start[row + min(b2 + reach2 - s2 * n2, n2 - 1) + 1]
                                hx = s0 * cells[r, 0, 0] + s1 * cells[r, 1, 0] + s2 * cells[r, 2, 0] - a.x[0, k]
                                hy = s0 * cells[r, 0, 1] + s1 * cells[r, 1, 1] + s2 * cells[r, 2, 1] - a.x[1, k]
                                hz = s0 * cells[r, 0, 2] + s1 * cells[r, 1, 2] + s2 * cells[r, 2, 2] - a.x[2, k]
                                code = s0 * stride0 + s1 * stride1 + s2 * stride2 + own_code
                                # the site itself is no neighbour, its images are
                                myself = k if s0 == 0 and s1 == 0 and s2 == 0 else -1
                                for m in range(begin, end, LANES):
                                    dx = load(p_x, m) + hx
                                    dy = load(p_x, row_size + m) + hy
                                    dz = load(p_x, 2 * row_size + m) + hz
                                    near = below(dx * dx + dy * dy + dz * dz, load(p_limits, limits + m), end - m)
                                    near = without(near, myself - m)
                                    if at <= room:
                                        store_kept_integers(p_found, at, load_integers(p_packed, m, code << 32), near)
                                    at += count(near)
                        h1 += 1
                        if h1 == n1:
                            h1 = 0
                            s1 += 1
                home0 += 1
                if home0 == n0:
                    home0 = 0
                    s0 += 1
            a.found_count[i] = at - a.start[i]
        first = fetch_add(p_counter, 0, block)


@inlined
def _transpose(a):
    """Sort every site's neighbours by (type, index, shift).

    A full list is its own transpose with negated shifts: visiting sites by (type, index) and appending each to the
    lists of its neighbours sorts all lists in one linear pass. Shifts of the same neighbour (small cells) are then put
    in order.
    """
    n, n_types = a.types.size, a.cutoffs.shape[0]
    # where the next neighbour of each site goes
    cursor, found, neighbors, seg = pointer(a.cursor), pointer(a.found), pointer(a.neighbors), pointer(a.seg)
    total = 0
    for i in range(n):
        cursor[i] = total
        total += a.found_count[i]
    k = 0
    for t in range(n_types):
        for j in range(n):
            seg[j * (n_types + 1) + t] = cursor[j]
        while k < n and a.types[a.order[k]] == t:
            i = a.order[k]
            r = a.replica[i]
            mirror = a.shift_first[r] + a.shift_first[r + 1] - 1
            for p in range(a.start[i], a.start[i] + a.found_count[i]):
                j = found[p] & 0xFFFFFFFF
                neighbors[cursor[j]] = ((mirror - (found[p] >> 32)) << 32) | i
                cursor[j] += 1
            k += 1
    for j in range(n):
        end = cursor[j]
        seg[j * (n_types + 1) + n_types] = end
        begin = seg[j * (n_types + 1)]
        for p in range(begin + 1, end):
            q = p
            here = neighbors[p]
            while q > begin and (here ^ neighbors[q - 1]) & 0xFFFFFFFF == 0 and here < neighbors[q - 1]:
                neighbors[q] = neighbors[q - 1]
                q -= 1
            neighbors[q] = here
    # whole vectors are read, also at the end
    for p in range(total, total + LANES):
        neighbors[p] = 0


@inlined
def _mark_pages(a):
    """Pages on which the sites of a chunk, or their neighbours, lie."""
    n, n_types = a.types.size, a.cutoffs.shape[0]
    pages = -(-n // PAGE)
    neighbors, touched = pointer(a.neighbors), pointer(a.touched)
    for k in range(a.touched.size):
        touched[k] = 0
    for chunk in range(a.chunks.size - 1):
        for i in range(a.chunks[chunk], a.chunks[chunk + 1]):
            touched[chunk * pages + i // PAGE] = 1
            for p in range(a.seg[i * (n_types + 1)], a.seg[i * (n_types + 1) + n_types]):
                touched[chunk * pages + (neighbors[p] & 0xFFFFFFFF) // PAGE] = 1


@kernel_jit()
def settle(a, x):
    """Make the list of what was found; STATUS: DONE, AGAIN (search again, with more room) or MEMORY."""
    n = a.types.size
    total = longest = 0
    enough = True
    for i in range(n):
        here = a.found_count[i]
        total += here
        longest = max(longest, here)
        # whole vectors are written
        enough = enough and here + LANES <= a.room[i]
    if not enough:
        for i in range(n):
            a.room[i] = a.found_count[i] + LANES
        a.info[STATUS] = AGAIN if _make_room(a) else MEMORY
        return
    a.info[NEED_NEIGHBORS] = total + LANES
    if total + LANES > a.neighbors.size:
        a.info[STATUS] = MEMORY
        return
    _transpose(a)
    _mark_pages(a)
    # room for the next list, so that it need not be searched twice: where the density is even, any site may get as
    # many neighbours as another one has now
    even = longest * n <= 2 * total
    for i in range(n):
        here = a.found_count[i]
        a.room[i] = here + here // 4 + 2 * LANES
        if even:
            a.room[i] = max(a.room[i], longest + 2 * LANES)
        for c in range(3):
            a.origin[i, c] = x[i, c]
    for r in range(a.first.size - 1):
        for d in range(3):
            for c in range(3):
                a.cell[r, d, c] = a.now[r, d, c]
    a.info[LONGEST] = longest
    a.info[BUILDS] += 1
    a.info[VALID] = 1
    a.info[STATUS] = DONE
