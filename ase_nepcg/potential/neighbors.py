"""Neighbour list: linear-scaling cell list, all periodic images, any cell, reused while nothing moved too far.

Conventions: ``r_ij = (r_j - r_i) + S . cell`` with integer shift S, from the positions as given (never wrapped), so that distances do not
depend on when the list was built. The neighbours of a site are sorted by (type, index, S): sums over neighbours, and therefore all
results, are the same bits whether a list is fresh or old.

The list holds pairs up to cutoff + skin. It stays valid while ``sigma_min (rc + skin) - 2 max|delta| > rc``, where ``delta`` are displacements relative to
the affine motion of the cell since the list was built and ``sigma_min`` is the smallest stretch of that motion.
"""

from __future__ import annotations

import math

import numpy as np

from .cache import kernel_jit
from .nep import PAGE
from .simd import fetch_add
from .threads import run_chunks

__all__ = ["NeighborList", "complete_cell"]

# bins are about half a cutoff wide: 125 bins around a site hold 3.7 times the sphere, 27 wide ones 6.4 times
_BINS_PER_CUTOFF = 2
_MAX_SHIFTS = 1 << 20


def complete_cell(cell, pbc) -> np.ndarray:
    """``cell`` with the rows of non-periodic directions replaced by unit vectors orthogonal to the rest.

    Raises ValueError if the periodic rows are not linearly independent.
    """
    cell = np.array(cell, float)
    pbc = np.asarray(pbc, bool)
    periodic = cell[pbc]
    if len(periodic):
        size = np.linalg.norm(periodic, axis=1)
        if (size == 0).any() or np.linalg.svd(periodic / size[:, None], compute_uv=False)[-1] < 1e-8:
            raise ValueError(
                f"periodic directions {np.flatnonzero(pbc).tolist()} need linearly independent, non-zero cell vectors, "
                f"got cell = {cell.tolist()}; set pbc=False where the system is not periodic"
            )
    if len(periodic) == 3:
        return cell
    # right singular vectors of zero singular value span the rest
    rest = np.linalg.svd(periodic if len(periodic) else np.zeros((1, 3)))[2][len(periodic) :]
    if len(periodic) == 0:
        rest = np.eye(3)
    cell[~pbc] = rest
    return cell


@kernel_jit()
def _wrap(positions, cell, inverse, pbc, n_bins, origin, extent, wrapped, image, bin_of):
    """Fractional coordinates -> position inside the cell, number of cells taken off, bin."""
    for i in range(positions.shape[0]):
        number = 0
        for d in range(3):
            s = 0.0
            for c in range(3):
                s += positions[i, c] * inverse[c, d]
            image[i, d] = math.floor(s) if pbc[d] else 0
            s = (s - image[i, d] - origin[d]) / extent[d]
            number = number * n_bins[d] + min(max(int(s * n_bins[d]), 0), n_bins[d] - 1)
        bin_of[i] = number
        for c in range(3):
            shift = 0.0
            for d in range(3):
                shift += image[i, d] * cell[d, c]
            wrapped[i, c] = positions[i, c] - shift


@kernel_jit()
def _sort_into_bins(order, bin_of, bin_start, members):
    """Counting sort; sites of one bin keep the order of ``order``."""
    for i in range(bin_of.size):
        bin_start[bin_of[i] + 1] += 1
    for b in range(1, bin_start.size):
        bin_start[b] += bin_start[b - 1]
    cursor = bin_start[:-1].copy()
    for k in range(order.size):
        i = order[k]
        members[cursor[bin_of[i]]] = i
        cursor[bin_of[i]] += 1


@kernel_jit()
def _search(
    counter, fill, members, bin_start, bin_of, n_bins, reach, pbc, x, types, limit2, cell, image, low, span, start, index, code
):  # fmt: skip
    """Neighbours of all sites: their number into ``start[i + 1]`` (fill False) or the pairs from ``start[i]`` on.

    ``x`` (3, N) are wrapped positions in the order of ``members``. The bins of a row along the last axis are contiguous.
    """
    n = members.size
    block = 64
    first = fetch_add(counter, 0, block)
    while first < n:
        for k in range(first, min(first + block, n)):
            i = members[k]
            number = bin_of[i]
            b2 = number % n_bins[2]
            b1 = number // n_bins[2] % n_bins[1]
            b0 = number // (n_bins[2] * n_bins[1])
            x0, y0, z0 = x[0, k], x[1, k], x[2, k]
            a = types[i]
            found = 0
            at = start[i]
            for o0 in range(b0 - reach[0], b0 + reach[0] + 1):
                s0 = o0 // n_bins[0]
                if s0 != 0 and not pbc[0]:
                    continue
                for o1 in range(b1 - reach[1], b1 + reach[1] + 1):
                    s1 = o1 // n_bins[1]
                    if s1 != 0 and not pbc[1]:
                        continue
                    row = ((o0 - s0 * n_bins[0]) * n_bins[1] + (o1 - s1 * n_bins[1])) * n_bins[2]
                    for s2 in range((b2 - reach[2]) // n_bins[2], (b2 + reach[2]) // n_bins[2] + 1):
                        if s2 != 0 and not pbc[2]:
                            continue
                        low2 = max(b2 - reach[2] - s2 * n_bins[2], 0)
                        high2 = min(b2 + reach[2] - s2 * n_bins[2], n_bins[2] - 1)
                        hx = s0 * cell[0, 0] + s1 * cell[1, 0] + s2 * cell[2, 0] - x0
                        hy = s0 * cell[0, 1] + s1 * cell[1, 1] + s2 * cell[2, 1] - y0
                        hz = s0 * cell[0, 2] + s1 * cell[1, 2] + s2 * cell[2, 2] - z0
                        home = s0 == 0 and s1 == 0 and s2 == 0
                        for m in range(bin_start[row + low2], bin_start[row + high2 + 1]):
                            dx, dy, dz = x[0, m] + hx, x[1, m] + hy, x[2, m] + hz
                            d2 = dx * dx + dy * dy + dz * dz
                            j = members[m]
                            if d2 < limit2[a, types[j]] and not (home and m == k):
                                if fill:
                                    index[at + found] = j
                                    code[at + found] = (
                                        (s0 - image[j, 0] + image[i, 0] - low[0]) * span[1]
                                        + (s1 - image[j, 1] + image[i, 1] - low[1])
                                    ) * span[2] + (s2 - image[j, 2] + image[i, 2] - low[2])
                                found += 1
            if not fill:
                start[i + 1] = found
        first = fetch_add(counter, 0, block)


@kernel_jit()
def _transpose(order, types, start, index, code, mirror, chunk_of, seg, index_out, code_out, touched):
    """Sort every site's neighbours by (type, index, shift).

    A full list is its own transpose with negated shifts: visiting sites by (type, index) and appending each to the lists of its
    neighbours sorts all lists in one linear pass. Shifts of the same neighbour (small cells) are then put in order.
    """
    n_types = seg.shape[1] - 1
    n = types.size
    cursor = start[:-1].copy()
    k = 0
    for t in range(n_types):
        for j in range(n):
            seg[j, t] = cursor[j]
        while k < n and types[order[k]] == t:
            i = order[k]
            page = i // PAGE
            for p in range(start[i], start[i + 1]):
                j = index[p]
                index_out[cursor[j]] = i
                code_out[cursor[j]] = mirror - code[p]
                cursor[j] += 1
                touched[chunk_of[j], page] = True
            k += 1
    for j in range(n):
        seg[j, n_types] = cursor[j]
        touched[chunk_of[j], j // PAGE] = True
        for p in range(start[j] + 1, start[j + 1]):
            q = p
            while q > start[j] and index_out[q] == index_out[q - 1] and code_out[q] < code_out[q - 1]:
                code_out[q], code_out[q - 1] = code_out[q - 1], code_out[q]
                q -= 1


@kernel_jit()
def _largest_displacement(positions, reference, motion):
    """Largest ``|positions - reference . motion|``."""
    largest = 0.0
    for i in range(positions.shape[0]):
        d2 = 0.0
        for c in range(3):
            moved = positions[i, c] - (
                reference[i, 0] * motion[0, c] + reference[i, 1] * motion[1, c] + reference[i, 2] * motion[2, c]
            )
            d2 += moved * moved
        largest = max(largest, d2)
    return math.sqrt(largest)


class NeighborList:
    """Neighbours of all sites within the cutoffs of their types, kept until something moved too far.

    After :meth:`update`: ``seg`` (N, T+1) int64, the neighbours of site i of type t are ``index[seg[i, t] : seg[i, t+1]]`` (int32) with
    shift vectors ``shifts[code[...]]`` (Å); ``longest``, the largest number of neighbours; ``touched`` (chunks, pages): whether a site
    of a chunk has a neighbour (or itself) on a page of ``PAGE`` sites; ``builds``, how often the list was made.
    """

    def __init__(self, skin: float = 0.6):
        self.skin = skin
        self.builds = 0
        self._positions = None

    def update(self, positions, cell, pbc, types, cutoffs, chunks, threads: int = 1) -> None:
        """Make the list fit the geometry. ``cutoffs`` (T, T) in Å, ``chunks`` boundaries of the chunks of sites."""
        cell = complete_cell(cell, pbc)
        if not self._fits(positions, cell, pbc, types, cutoffs, chunks):
            self._build(positions, cell, pbc, types, cutoffs, chunks, threads)
        self.shifts = self._shift_triples @ cell
        if self._rewrap:
            self.positions = positions - self._image @ cell
        else:
            self.positions = positions

    def _fits(self, positions, cell, pbc, types, cutoffs, chunks) -> bool:
        if (
            self._positions is None
            or len(positions) != len(self._positions)
            or not np.array_equal(pbc, self._pbc)
            or not np.array_equal(types, self._types)
            or not np.array_equal(cutoffs, self._cutoffs)
            or not np.array_equal(chunks, self._chunks)
        ):
            return False
        if np.array_equal(cell, self._cell):
            motion, stretch = np.eye(3), 1.0
        else:
            motion = np.linalg.solve(self._cell, cell)
            stretch = np.linalg.svd(motion, compute_uv=False)[-1]
        moved = _largest_displacement(positions, self._positions, motion)
        # the smallest cutoff needs the largest relative skin
        rc = cutoffs.max() if stretch < 1 else cutoffs.min()
        return bool(stretch * (rc + self.skin) - 2 * moved > rc * (1 + 1e-12))

    def _build(self, positions, cell, pbc, types, cutoffs, chunks, threads):
        n = len(positions)
        limit = float(cutoffs.max()) + self.skin
        inverse = np.linalg.inv(cell)
        # perpendicular distance between opposite faces
        height = 1 / np.linalg.norm(inverse, axis=0)
        origin, extent = np.zeros(3), np.ones(3)
        fractional = positions @ inverse[:, ~pbc]
        if n:
            origin[~pbc] = fractional.min(axis=0)
            extent[~pbc] = np.maximum(fractional.max(axis=0) - origin[~pbc], 1e-3)
        n_bins = np.maximum((height * extent * _BINS_PER_CUTOFF / limit), 1).astype(float)
        # a few sites in a huge box need no more bins than sites
        while n_bins.prod() > 4 * n + 64:
            n_bins[np.argmax(n_bins)] /= 2
        n_bins = np.maximum(n_bins, 1).astype(np.int64)
        reach = np.ceil(limit / (height * extent / n_bins)).astype(np.int64)
        reach[~pbc] = np.minimum(reach[~pbc], n_bins[~pbc])

        wrapped, image, bin_of = np.empty((n, 3)), np.empty((n, 3), np.int64), np.empty(n, np.int64)
        _wrap(positions, cell, inverse, pbc, n_bins, origin, extent, wrapped, image, bin_of)
        order = np.argsort(types, kind="stable")
        members = np.empty(n, np.int64)
        bin_start = np.zeros(n_bins.prod() + 1, np.int64)
        _sort_into_bins(order, bin_of, bin_start, members)

        # shifts between the unwrapped positions, as one number each: a dense box around all that can occur
        spread = image.max(axis=0) - image.min(axis=0) if n else np.zeros(3, np.int64)
        search = np.where(pbc, reach // n_bins + 1, 0)
        low = -(search + spread)
        span = 2 * (search + spread) + 1
        self._rewrap = bool(np.prod(span.astype(float)) > _MAX_SHIFTS)
        if self._rewrap:
            # sites scattered over very many cells: shifts between wrapped positions instead
            low, span = -search, 2 * search + 1
            self._image, image = image, np.zeros_like(image)

        x = np.ascontiguousarray(wrapped[members].T)
        limit2 = (cutoffs + self.skin) ** 2
        start = np.zeros(n + 1, np.int64)
        nothing = np.empty(0, np.int32)
        fixed = (members, bin_start, bin_of, n_bins, reach, pbc, x, types, limit2, cell, image, low, span)
        run_chunks(_search, (False, *fixed, start, nothing, nothing), threads)
        np.cumsum(start, out=start)
        index, code = np.empty(start[-1], np.int32), np.empty(start[-1], np.int32)
        run_chunks(_search, (True, *fixed, start, index, code), threads)

        n_types = len(cutoffs)
        self.seg = np.empty((n, n_types + 1), np.int64)
        self.index, self.code = np.empty_like(index), np.empty_like(code)
        self.touched = np.zeros((len(chunks) - 1, -(-n // PAGE)), np.bool_)
        chunk_of = np.repeat(np.arange(len(chunks) - 1), np.diff(chunks))
        mirror = int(np.prod(span)) - 1
        _transpose(order, types, start, index, code, mirror, chunk_of, self.seg, self.index, self.code, self.touched)
        self.longest = int(np.diff(start).max()) if n else 0
        grid = np.meshgrid(*(np.arange(lo, lo + s) for lo, s in zip(low, span, strict=True)), indexing="ij")
        self._shift_triples = np.stack(grid, axis=-1).reshape(-1, 3)
        self._positions, self._cell, self._pbc = positions.copy(), cell, pbc.copy()
        self._types, self._cutoffs, self._chunks = types.copy(), cutoffs.copy(), chunks
        self.builds += 1
