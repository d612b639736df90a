"""All pairs of sites closer than a radius, in any cell, with all periodic images, in time linear in the sites.

Pairs come in batches of one pair of types: squared distances without gaps, as a kernel that counts them likes it. Each
pair of sites and image is found once. Where no direction of the cell needs all images (see ``bins.py``), sites of one
type are searched in one half of the surroundings only.
"""

from __future__ import annotations

import numpy as np

from ...errors import closest
from ...potential.cache import kernel_jit
from ...potential.gather import below, count, store_kept
from ...potential.simd import LANES, load, pointer
from ..state import inlined
from .base import N_SITES, N_TYPES, ObserverError, sites_of, type_of
from .bins import (
    BATCH,
    BIN_START,
    BINS,
    BUFFER,
    CHUNK,
    FACTOR,
    GRID,
    IMAGES,
    LATTICE,
    LIMITS,
    NEAREST,
    PAIR_OF,
    REACH,
    REFUSED,
    SORTED,
    SORTED_BIN,
    sort_sites,
)  # fmt: skip

__all__ = ["pair_kernel", "pairs_of", "read_pairs"]

# adding and taking off 1.5 * 2^52 rounds to the nearest integer
_MAGIC = 6755399441055744.0


def read_pairs(owner, pairs, name="pairs") -> tuple:
    """``pairs`` as a tuple of pairs of labels; raises :class:`ObserverError`."""
    try:
        found = tuple((pair,) if isinstance(pair, str) else tuple(pair) for pair in pairs)
    except TypeError:
        found = ()
    good = all(len(pair) == 2 and all(isinstance(label, str) for label in pair) for pair in found)
    if isinstance(pairs, str) or not found or not good:
        raise ObserverError(f"{type(owner).__name__}: {name} must be pairs of labels like ('O', 'H'), got {pairs!r}")
    seen = set()
    for pair in found:
        if frozenset(pair) in seen:
            raise ObserverError(f"{type(owner).__name__}: {name} contains {'-'.join(pair)} twice")
        seen.add(frozenset(pair))
    return found


def pairs_of(state, replica, info, pairs) -> list:
    """Numbers of the species of ``pairs`` of labels; None: all pairs of the species that the replica has.

    Raises :class:`ObserverError` for labels that the model or the replica does not have.
    """
    present = np.unique(state.types[sites_of(state, replica)]).tolist()
    if pairs is None:
        return [(a, b) for k, a in enumerate(present) for b in present[k:]]
    numbers = [(type_of(a, info), type_of(b, info)) for a, b in pairs]
    for label, number in zip(np.ravel(pairs).tolist(), np.ravel(numbers).tolist(), strict=True):
        if number not in present:
            there = [info.species[k] for k in present]
            raise ObserverError(f"species {label!r} has no site in replica {replica}: {closest(label, there)}")
    return numbers


@inlined
def _keep(p, d2, limit2, lanes, at):
    """Append those below the limit among the first ``lanes``; returns the new end."""
    close = below(d2, limit2, lanes)
    store_kept(p, at, d2, close)
    return at + count(close)


@inlined
def _apart(p, x0, x1, x2, m, fx, fy, fz):
    """Squared distances where images are known."""
    dx, dy, dz = load(p, x0 + m) + fx, load(p, x1 + m) + fy, load(p, x2 + m) + fz
    return dx * dx + dy * dy + dz * dz


@inlined
def _apart_straight(p, x0, x1, x2, m, fx, fy, fz, xx, yy, ix, iy):
    """Those of the nearest images in a cell with right angles; ``ix``, ``iy``: 1/xx, 1/yy, or 0 to round nothing."""
    dx, dy, dz = load(p, x0 + m) + fx, load(p, x1 + m) + fy, load(p, x2 + m) + fz
    dx = dx - ((dx * ix + _MAGIC) - _MAGIC) * xx
    dy = dy - ((dy * iy + _MAGIC) - _MAGIC) * yy
    return dx * dx + dy * dy + dz * dz


@inlined
def _apart_oblique(p, x0, x1, x2, m, fx, fy, fz, xx, yx, yy, ix, iy, ixy, ixz, iyz):
    """Those of the nearest images in any cell; ``ixy``, ``ixz``, ``iyz``: its inverse off the diagonal."""
    dx, dy, dz = load(p, x0 + m) + fx, load(p, x1 + m) + fy, load(p, x2 + m) + fz
    v = (dy * iy + (dz * iyz + _MAGIC)) - _MAGIC
    dy = dy - v * yy
    dx = dx - v * yx
    dx = dx - ((dx * ix + (dy * ixy + (dz * ixz + _MAGIC))) - _MAGIC) * xx
    return dx * dx + dy * dy + dz * dz


def pair_kernel(name: str, consume, finish):
    """Kernel of an observer of pairs.

    ``consume(ints, floats, pair, kept, step, weight)``, inlined: the pairs of types number ``pair`` have the squared
    distances ``floats[ints[BUFFER] :][:kept]``, each ``weight`` times; called as often as needed for each sample.
    ``finish(s, r, ints, floats)``, inlined: all pairs of a sample are done.
    """

    @kernel_jit(name)
    def observe_pairs(s, r, step, ints, floats):
        if not sort_sites(s, r, ints, floats):
            ints[REFUSED] += 1
            return
        n_types = ints[N_TYPES]
        p, q = pointer(floats), pointer(ints)
        x0 = ints[SORTED]
        x1 = x0 + ints[N_SITES] + LANES
        x2 = x1 + ints[N_SITES] + LANES
        buffer, start, sorted_bin, grid = ints[BUFFER], ints[BIN_START], ints[SORTED_BIN], ints[GRID]
        n0, n1, n2 = q[grid + BINS], q[grid + BINS + 1], q[grid + BINS + 2]
        reach0, reach1, reach2 = q[grid + REACH], q[grid + REACH + 1], q[grid + REACH + 2]
        far0, far1, far2 = q[grid + IMAGES], q[grid + IMAGES + 1], q[grid + IMAGES + 2]
        pbc0, pbc1, pbc2 = s.pbc[r, 0], s.pbc[r, 1], s.pbc[r, 2]
        bins = n0 * n1 * n2
        a = ints[LATTICE] + FACTOR
        xx, yx, yy, zx, zy, zz = p[a], p[a + 1], p[a + 2], p[a + 3], p[a + 4], p[a + 5]
        # fractional coordinates of the directions whose nearest image is wanted
        near0, near1 = q[grid + NEAREST], q[grid + NEAREST + 1]
        ix, iy = near0 / xx, near1 / yy
        ixy, iyz = -near0 * yx / (xx * yy), -near1 * zy / (yy * zz)
        ixz = near0 * (yx * zy - yy * zx) / (xx * yy * zz)
        known = near0 + near1 == 0
        straight = yx == 0.0 and zx == 0.0 and zy == 0.0
        for one in range(n_types):
            for two in range(one, n_types):
                pair = ints[ints[PAIR_OF] + one * n_types + two]
                if pair < 0:
                    continue
                limit2 = floats[ints[LIMITS] + pair]
                like = one == two
                half = like and far0 + far1 + far2 == 0
                kept = 0
                first = start + two * bins
                for k in range(q[start + one * bins], q[start + (one + 1) * bins]):
                    here = q[sorted_bin + k]
                    b2 = here % n2
                    b1 = here // n2 % n1
                    b0 = here // (n1 * n2)
                    for o0 in range(b0 if half else b0 - reach0, b0 + reach0 + 1):
                        s0 = 1 if o0 >= n0 else -1 if o0 < 0 else 0
                        if s0 != 0 and not pbc0:
                            continue
                        for o1 in range(b1 if half and o0 == b0 else b1 - reach1, b1 + reach1 + 1):
                            s1 = 1 if o1 >= n1 else -1 if o1 < 0 else 0
                            if s1 != 0 and not pbc1:
                                continue
                            row = first + ((o0 - s0 * n0) * n1 + o1 - s1 * n1) * n2
                            ahead = half and o0 == b0 and o1 == b1
                            low, high = b2 if ahead else b2 - reach2, b2 + reach2
                            for s2 in range(-1 if low < 0 and pbc2 else 0, 2 if high >= n2 and pbc2 else 1):
                                begin = q[row + max(low - s2 * n2, 0)]
                                end = q[row + min(high - s2 * n2, n2 - 1) + 1]
                                # each pair once: the later site, in its own bin or in everything
                                if like and (s2 == 0 if half else True) and (ahead or not half):
                                    begin = max(begin, k + 1)
                                if begin >= end:
                                    continue
                                for t0 in range(s0 - far0, s0 + far0 + 1):
                                    for t1 in range(s1 - far1, s1 + far1 + 1):
                                        for t2 in range(s2 - far2, s2 + far2 + 1):
                                            fx = t0 * xx + t1 * yx + t2 * zx - p[x0 + k]
                                            fy = t1 * yy + t2 * zy - p[x1 + k]
                                            fz = t2 * zz - p[x2 + k]
                                            for m in range(begin, end, CHUNK):
                                                if kept > BATCH:
                                                    consume(ints, floats, pair, kept, step, 1.0)
                                                    kept = 0
                                                at = buffer + kept
                                                # whole vectors, then the rest
                                                whole = m + min(end - m, CHUNK) // LANES * LANES
                                                rest = min(end - whole, LANES - 1) if whole < m + CHUNK else 0
                                                if known:
                                                    for n in range(m, whole, LANES):
                                                        d2 = _apart(p, x0, x1, x2, n, fx, fy, fz)
                                                        at = _keep(p, d2, limit2, LANES, at)
                                                    d2 = _apart(p, x0, x1, x2, whole, fx, fy, fz)
                                                elif straight:
                                                    for n in range(m, whole, LANES):
                                                        d2 = _apart_straight(
                                                            p, x0, x1, x2, n, fx, fy, fz, xx, yy, ix, iy
                                                        )
                                                        at = _keep(p, d2, limit2, LANES, at)
                                                    d2 = _apart_straight(
                                                        p, x0, x1, x2, whole, fx, fy, fz, xx, yy, ix, iy
                                                    )
                                                else:
                                                    for n in range(m, whole, LANES):
                                                        d2 = _apart_oblique(
                                                            p, x0, x1, x2, n, fx, fy, fz,
                                                            xx, yx, yy, ix, iy, ixy, ixz, iyz,
                                                        )  # fmt: skip
                                                        at = _keep(p, d2, limit2, LANES, at)
                                                    d2 = _apart_oblique(
                                                        p, x0, x1, x2, whole, fx, fy, fz,
                                                        xx, yx, yy, ix, iy, ixy, ixz, iyz,
                                                    )  # fmt: skip
                                                kept = _keep(p, d2, limit2, rest, at) - buffer
                if kept > 0:
                    consume(ints, floats, pair, kept, step, 1.0)
                if like:
                    # images of the site itself: of S and -S one
                    members = float(q[start + (one + 1) * bins] - q[start + one * bins])
                    for s0 in range(far0 + 1):
                        for s1 in range(-far1 if s0 > 0 else 0, far1 + 1):
                            for s2 in range(-far2 if s0 > 0 or s1 > 0 else 1, far2 + 1):
                                dx = s0 * xx + s1 * yx + s2 * zx
                                dy = s1 * yy + s2 * zy
                                dz = s2 * zz
                                d2 = dx * dx + dy * dy + dz * dz
                                if d2 < limit2:
                                    p[buffer] = d2
                                    consume(ints, floats, pair, 1, step, members)
        finish(s, r, ints, floats)

    return observe_pairs
