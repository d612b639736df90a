"""Stages (see ``device.py``) that find neighbours on the device.

==================  ===========================================================  =======================
symbol              meaning                                                      shape
==================  ===========================================================  =======================
``x``               positions, Å                                                 (N, 3) float64, flat
``u``               places of all copies of all sites, see ``precision.py``      (3, M) fixed, flat
``to_box``          rows: from Å to fractions of the box                         (R, 3, 3) float64, flat
``to_vector``       rows: from differences of places to Å                        (R, 3, 3) real, flat
``limits``          squared list cutoffs: (larger, angular) of each type pair    (2, T, T) real, flat
``near``            neighbours, by type and number                               (slots, N) int32
``near_end``        row t + 1: where those of type t end; row 0: zeros           (T + 1, N) int32
``angular``         the angular ones among them; ``angular_end`` as ``near_end``
``back``            slot in which the neighbour has this site                    (slots, N) int32
==================  ===========================================================  =======================

The box of a cell thinner than twice the list cutoff holds several copies of it, so that every pair of sites has one
minimum image. Copy c of site i has number ``c N + i``, M = copies * N; lists are made for the sites themselves
(copy 0). Everything that is stored per slot is stored slot by slot, so that neighbouring threads read neighbouring
words.

With STALE zero the stages that make a list do nothing: a run launches them in every step, and the device decides.

Bins are at least as wide as the list cutoff. They are filled with atomic counters and then sorted, and so are the
neighbours of each site: the order of sums, and with it every bit of a result, does not depend on who came first nor on
the age of the list.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from numba import cuda

from .device import Stage, kernel, number_type, stage, upper_bits, wrapping_difference
from .precision import precision
from .vectors import build_vectors

__all__ = [
    *("ANGULAR", "BINS", "NARROW", "NEAR", "NOT_FINITE", "OVERLAP", "STALE", "STATE", "UNLIKELY"),
    *("Lists", "build_lists", "not_stale"),
]

# words of ``state``: the list does not serve any more; what was needed where memory is too small; a site + 1 at which
# something is wrong; the box has become too narrow for its bins or copies; a state is beyond the limits of its run
STALE, BINS, NEAR, ANGULAR, OVERLAP, NOT_FINITE, NARROW, UNLIKELY = range(8)
STATE = 8


@kernel
def not_stale(state):
    state[STALE] = 0


class Lists(NamedTuple):
    """Stages in the order in which they follow each other: places, whether the list still serves, a new one."""

    place: Stage
    moved: Stage
    clear: Stage
    fill_bins: Stage
    sort_bins: Stage
    find: Stage
    select: Stage
    pair_up: Stage
    settle: Stage


@functools.cache
def build_lists(name: str):
    """The stages for one precision."""
    kinds = precision(name)
    fixed = number_type(kinds.fixed)
    scale, zero = 2.0**kinds.bits, kinds.real(0.0)
    difference, upper = wrapping_difference(kinds.fixed), upper_bits(kinds.fixed)
    place_of, rows, between = build_vectors(name)

    @stage
    def place(site, n, copies, x, replica, to_box, offsets, u):
        """Places of all copies: fractions in [-1/2, 1/2), less the ``offsets`` (copies, 3) of the copy."""
        i, copy, m = site % n, site // n, 9 * replica[site % n]
        for c in range(3):
            s = x[3 * i] * to_box[m + c] + x[3 * i + 1] * to_box[m + 3 + c] + x[3 * i + 2] * to_box[m + 6 + c]
            s -= math.floor(s + 0.5)
            u[c * n * copies + site] = difference(fixed(s * scale), offsets[3 * copy + c])

    @stage
    def moved(i, n, copied, u, origin, replica, to_vector, reach, x, boxed, free, state):
        """STALE where a site is farther than ``reach`` (R,), negative: anywhere, from its place when the list was made.

        Places move with the box, so that a strain of the box is no motion. NARROW where a site is farther than ``free``
        (R,), unless negative, from its position ``boxed`` (N, 3) when the box was made.
        """
        m, limit = 9 * replica[i], reach[replica[i]]
        rx, ry, rz = between(u, i, copied, place_of(origin, i, n), rows(to_vector, m))
        # also where the limit is not a number
        if not (limit >= zero and rx * rx + ry * ry + rz * rz <= limit * limit):
            state[STALE] = 1
        most = free[replica[i]]
        if most >= 0.0:
            square = 0.0
            for c in range(3):
                square += (x[3 * i + c] - boxed[3 * i + c]) ** 2
            if not square <= most * most:
                state[NARROW] = 1

    @stage
    def clear(b, counts, state):
        if state[STALE] != 0:
            counts[b] = 0

    @stage
    def fill_bins(site, n, copies, u, replica, bins, bin_first, counts, members, room, state):
        """Members of each bin in the order of arrival. ``bins`` (R, 3), ``bin_first`` (R,)."""
        if state[STALE] == 0:
            return
        r = replica[site % n]
        b = 0
        for c in range(3):
            b = b * bins[3 * r + c] + ((upper(u[c * n * copies + site]) * bins[3 * r + c]) >> 32)
        b += bin_first[r]
        slot = cuda.atomic.add(counts, b, 1)
        if slot < room:
            members[b * room + slot] = site
        else:
            cuda.atomic.max(state, BINS, slot + 1)

    @stage
    def sort_bins(b, counts, members, room, state):
        """Members of each bin by number (insertion sort: there are few)."""
        if state[STALE] == 0:
            return
        for k in range(b * room + 1, b * room + min(counts[b], room)):
            site = members[k]
            while k > b * room and members[k - 1] > site:
                members[k] = members[k - 1]
                k -= 1
            members[k] = site

    @stage
    def find(
        i, n, copies, n_types, u, replica, types, to_vector, limits, bins, bin_first, counts, members, room,
        near_end, near, slots, state,
    ):  # fmt: skip
        """Neighbours of each site within the list cutoff of the pair, by type and number."""
        if state[STALE] == 0:
            return
        r, a, copied = replica[i], types[i], n * copies
        m = 9 * r
        here, box = place_of(u, i, copied), rows(to_vector, m)
        nx, ny, nz = bins[3 * r], bins[3 * r + 1], bins[3 * r + 2]
        bx = (upper(here[0]) * nx) >> 32
        by = (upper(here[1]) * ny) >> 32
        bz = (upper(here[2]) * nz) >> 32
        for t in range(n_types + 1):
            near_end[t * n + i] = 0
        # first count those of each type, then store them
        for store in range(2):
            for kx in range(min(nx, 3)):
                for ky in range(min(ny, 3)):
                    for kz in range(min(nz, 3)):
                        b = (bx + kx + nx - 1) % nx
                        b = (b * ny + (by + ky + ny - 1) % ny) * nz + (bz + kz + nz - 1) % nz + bin_first[r]
                        for k in range(b * room, b * room + min(counts[b], room)):
                            j = members[k]
                            if j == i:
                                continue
                            rx, ry, rz = between(u, j, copied, here, box)
                            t = types[j % n]
                            if rx * rx + ry * ry + rz * rz < limits[a * n_types + t]:
                                slot = near_end[(t + 1) * n + i]
                                near_end[(t + 1) * n + i] = slot + 1
                                if store == 1 and slot < slots:
                                    near[slot * n + i] = j
            if store == 0:
                # from numbers to beginnings, which become ends when the neighbours are stored
                begin = 0
                for t in range(n_types):
                    count = near_end[(t + 1) * n + i]
                    near_end[(t + 1) * n + i] = begin
                    begin += count
        if near_end[n_types * n + i] > slots:
            cuda.atomic.max(state, NEAR, near_end[n_types * n + i])
            # nobody reads beyond the memory
            for t in range(n_types + 1):
                near_end[t * n + i] = 0
            return
        for t in range(n_types):
            begin = near_end[t * n + i]
            for k in range(begin + 1, near_end[(t + 1) * n + i]):
                j = near[k * n + i]
                while k > begin and near[(k - 1) * n + i] > j:
                    near[k * n + i] = near[(k - 1) * n + i]
                    k -= 1
                near[k * n + i] = j

    @stage
    def select(
        i, n, copies, n_types, u, replica, types, to_vector, limits, near_end, near, angular_end, angular, slots, state
    ):
        """The neighbours within the angular list cutoff, in the same order."""
        if state[STALE] == 0:
            return
        m, a, copied = 9 * replica[i], types[i], n * copies
        here, box = place_of(u, i, copied), rows(to_vector, m)
        slot = 0
        angular_end[i] = 0
        for t in range(n_types):
            limit = limits[(n_types + a) * n_types + t]
            for k in range(near_end[t * n + i], near_end[(t + 1) * n + i]):
                j = near[k * n + i]
                rx, ry, rz = between(u, j, copied, here, box)
                if rx * rx + ry * ry + rz * rz < limit:
                    if slot < slots:
                        angular[slot * n + i] = j
                    slot += 1
            angular_end[(t + 1) * n + i] = slot
        if slot > slots:
            cuda.atomic.max(state, ANGULAR, slot)
            for t in range(n_types + 1):
                angular_end[t * n + i] = 0

    @stage
    def pair_up(i, n, n0, n1, n2, n_types, types, angular_end, angular, back, state):
        """``back``: the neighbour j in copy c of i has i in copy -c, among those of the type of i."""
        if state[STALE] == 0:
            return
        for slot in range(angular_end[n_types * n + i]):
            j, c = angular[slot * n + i] % n, angular[slot * n + i] // n
            c0, c1, c2 = c // (n1 * n2), (c // n2) % n1, c % n2
            image = (((n0 - c0) % n0 * n1 + (n1 - c1) % n1) * n2 + (n2 - c2) % n2) * n + i
            low, high = angular_end[types[i] * n + j], angular_end[(types[i] + 1) * n + j] - 1
            while low < high:
                middle = (low + high) // 2
                if angular[middle * n + j] < image:
                    low = middle + 1
                else:
                    high = middle
            back[slot * n + i] = low

    @stage
    def settle(i, n, copied, u, origin, state):
        """The list is of now. (STALE is cleared before the next places.)"""
        if state[STALE] != 0:
            for c in range(3):
                origin[c * n + i] = u[c * copied + i]

    return Lists(place, moved, clear, fill_bins, sort_bins, find, select, pair_up, settle)
