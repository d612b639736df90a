"""Neighbour list: linear-scaling cell list, all periodic images, any cell, reused while nothing moved too far.

Conventions: ``r_ij = (r_j - r_i) + S . cell`` with integer shift S, from the positions as given (never wrapped), so
that distances do not depend on when the list was built. The neighbours of a site are sorted by (type, index, S): sums
over neighbours, and therefore all results, are the same bits whether a list is fresh or old.

The list holds pairs up to cutoff + skin. It stays valid while ``sigma_min (rc + skin) - 2 max|delta| > rc``, where
``delta`` are displacements relative to the affine motion of the cell since the list was built and ``sigma_min`` is the
smallest stretch of that motion.
"""

from __future__ import annotations

import numpy as np

from .cache import kernel_jit
from .gather import below, count, load_integers, store_kept_integers, without
from .layout import PAGE
from .simd import LANES, aligned_empty, fetch_add, load, pointer
from .threads import run_chunks

__all__ = ["NeighborList", "complete_cell"]

# Bins per cutoff length and direction: a search goes through rows of bins along the last direction, so few rows
# (9) and fine steps within a row
_BINS_PER_CUTOFF = np.array([1, 1, 4])
_MAX_SHIFTS = 1 << 20
_MAX_IMAGES = 1_000_000
# cells: floor() of larger numbers has no fractional digits left
_FARTHEST = 1e12


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
def _search(
    counter, members, bin_start, place, n_bins, reach, pbc, home, shift, x, kind, limit2, cell, packed, stride,
    start, count_of, found,
):  # fmt: skip
    """Neighbours of all sites: their number into ``count_of``, as many as fit between ``start[i]`` and ``start[i +
    1]`` into ``found``.

    In the order of ``members`` (and padded to whole vectors) are ``x`` (three rows: x, y, z), ``limit2`` (squared
    distance, one row per type, or one for all), ``packed`` (index - image code * 2^32), ``kind`` (types) and ``place``
    (bin coordinates). For bin coordinate o - reach along direction d, ``home[d, o]`` is the bin inside the cell and
    ``shift[d, o]`` the number of cells to it (tables, since divisions are slow). The bins of a row along the last axis
    are contiguous: a row is one run through memory. A neighbour is one number: shift code * 2^32 + index.
    """
    n = members.size
    row_size = limit2.shape[1]
    block = 64
    n2 = n_bins[2]
    p_counter, p_x, p_limit2, p_packed, p_found = (
        pointer(counter),
        pointer(x),
        pointer(limit2),
        pointer(packed),
        pointer(found),
    )
    first = fetch_add(p_counter, 0, block)
    while first < n:
        for k in range(first, min(first + block, n)):
            i = members[k]
            b2 = place[k, 2]
            at = start[i]
            room = start[i + 1] - LANES
            limits = kind[k] * row_size if limit2.shape[0] > 1 else 0
            for o0 in range(place[k, 0], place[k, 0] + 2 * reach[0] + 1):
                s0 = shift[0, o0]
                if s0 != 0 and not pbc[0]:
                    continue
                for o1 in range(place[k, 1], place[k, 1] + 2 * reach[1] + 1):
                    s1 = shift[1, o1]
                    if s1 != 0 and not pbc[1]:
                        continue
                    row = (home[0, o0] * n_bins[1] + home[1, o1]) * n2
                    for s2 in range(shift[2, b2], shift[2, b2 + 2 * reach[2]] + 1):
                        if s2 != 0 and not pbc[2]:
                            continue
                        begin = bin_start[row + max(b2 - reach[2] - s2 * n2, 0)]
                        end = bin_start[row + min(b2 + reach[2] - s2 * n2, n2 - 1) + 1]
                        hx = s0 * cell[0] + s1 * cell[3] + s2 * cell[6] - x[0, k]
                        hy = s0 * cell[1] + s1 * cell[4] + s2 * cell[7] - x[1, k]
                        hz = s0 * cell[2] + s1 * cell[5] + s2 * cell[8] - x[2, k]
                        code = s0 * stride[0] + s1 * stride[1] + s2 * stride[2] + stride[3] - (packed[k] >> 32)
                        # the site itself is no neighbour, its images are
                        myself = k if s0 == 0 and s1 == 0 and s2 == 0 else -1
                        for m in range(begin, end, LANES):
                            dx = load(p_x, m) + hx
                            dy = load(p_x, row_size + m) + hy
                            dz = load(p_x, 2 * row_size + m) + hz
                            near = below(dx * dx + dy * dy + dz * dz, load(p_limit2, limits + m), end - m)
                            near = without(near, myself - m)
                            if at <= room:
                                store_kept_integers(p_found, at, load_integers(p_packed, m, code << 32), near)
                            at += count(near)
            count_of[i] = at - start[i]
        first = fetch_add(p_counter, 0, block)


@kernel_jit()
def _transpose(order, types, start, count_of, found, mirror, n_types, place, seg, neighbors):
    """Sort every site's neighbours by (type, index, shift).

    A full list is its own transpose with negated shifts: visiting sites by (type, index) and appending each to the
    lists of its neighbours sorts all lists in one linear pass. Shifts of the same neighbour (small cells) are then put
    in order. ``place`` (N): where the list of each site begins; used up.
    """
    n = types.size
    # where the next neighbour of each site goes
    cursor, p_found, p_neighbors, p_seg = pointer(place), pointer(found), pointer(neighbors), pointer(seg)
    k = 0
    for t in range(n_types):
        for j in range(n):
            p_seg[j * (n_types + 1) + t] = cursor[j]
        while k < n and types[order[k]] == t:
            i = order[k]
            for p in range(start[i], start[i] + count_of[i]):
                j = p_found[p] & 0xFFFFFFFF
                p_neighbors[cursor[j]] = ((mirror - (p_found[p] >> 32)) << 32) | i
                cursor[j] += 1
            k += 1
    for j in range(n):
        end = cursor[j]
        p_seg[j * (n_types + 1) + n_types] = end
        begin = p_seg[j * (n_types + 1)]
        for p in range(begin + 1, end):
            q = p
            here = p_neighbors[p]
            while q > begin and (here ^ p_neighbors[q - 1]) & 0xFFFFFFFF == 0 and here < p_neighbors[q - 1]:
                p_neighbors[q] = p_neighbors[q - 1]
                q -= 1
            p_neighbors[q] = here


@kernel_jit()
def _mark_pages(chunks, seg, n_types, neighbors, pages, touched):
    """Pages on which the sites of a chunk, or their neighbours, lie."""
    p_neighbors, p_touched = pointer(neighbors), pointer(touched)
    for chunk in range(chunks.size - 1):
        for i in range(chunks[chunk], chunks[chunk + 1]):
            p_touched[chunk * pages + i // PAGE] = 1
            for p in range(seg[i * (n_types + 1)], seg[i * (n_types + 1) + n_types]):
                p_touched[chunk * pages + (p_neighbors[p] & 0xFFFFFFFF) // PAGE] = 1


class NeighborList:
    """Neighbours of all sites within the cutoffs of their types, kept until something moved too far.

    After :meth:`update`: the neighbours of site i of type t are ``neighbors[seg[i (T+1) + t] : seg[i (T+1) + t +
    1]]``, each one number ``code * 2^32 + index`` with the shift vector ``shifts[4 code : 4 code + 3]`` (Å);
    ``longest``, the largest number of neighbours; ``touched`` (chunks, pages): whether a site of a chunk has a
    neighbour (or itself) on a page of ``PAGE`` sites; ``builds``, how often the list was made; ``positions``, the
    positions the shifts belong to, as ``shifts`` in rows of four.
    """

    def __init__(self, skin: float = 0.6):
        self.skin = skin
        self.builds = 0
        self._positions = None
        self._given_cell = None
        self._rows = {}
        self._memory = {}
        self._room = None
        self._half = None

    def update(self, positions, cell, pbc, types, cutoffs, chunks, threads: int = 1) -> None:
        """Make the list fit the geometry. ``cutoffs`` (T, T) in Å, ``chunks`` boundaries of the chunks of sites."""
        given = (cell.tobytes(), pbc.tobytes())
        if given != self._given_cell:
            self._complete, self._given_cell = complete_cell(cell, pbc), given
        cell = self._complete
        if not self._fits(positions, cell, pbc, types, cutoffs, chunks):
            self._build(positions, cell, pbc, types, cutoffs, chunks, threads)
        self.shifts = self._rows_of_four("shifts", self._shift_triples @ cell)
        self.positions = self._rows_of_four(
            "positions", positions if self._image is None else positions - self._image @ cell
        )

    @property
    def origin(self) -> np.ndarray:
        """Positions (N, 3) the list was made for."""
        return self._positions

    @property
    def farthest(self) -> float:
        """How far (Å) every site may be from its :attr:`origin`, in the same cell, before the list is too old."""
        # a little beyond the limit of _fits, so that a list that seems too old from outside is made anew
        return 0.5 * (self.skin - 1e-13 * self._cutoffs.max())

    @property
    def offset(self) -> np.ndarray:
        """What lies between given positions and those that the shifts belong to, (N, 3) in Å."""
        return np.zeros_like(self._positions) if self._image is None else self._image @ self._complete

    def _buffer(self, name: str, size: int) -> np.ndarray:
        """Memory of the previous list where it is large enough: fresh memory costs a page fault every 512 numbers."""
        buffer = self._memory.get(name)
        if buffer is None or len(buffer) < size:
            self._memory[name] = buffer = np.empty(size + size // 16, np.int64)
        return buffer[:size]

    def _rows_of_four(self, name: str, vectors: np.ndarray) -> np.ndarray:
        """(n, 3) as n rows of four doubles, flat, so that a kernel can load a row at once."""
        rows = self._rows.get(name)
        if rows is None or len(rows) != len(vectors):
            self._rows[name] = rows = aligned_empty((len(vectors), 4))
            rows[:, 3] = 0.0
        rows[:, :3] = vectors
        return rows.ravel()

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
            stretch, moved = 1.0, positions - self._positions
        else:
            motion = np.linalg.solve(self._cell, cell)
            stretch, moved = np.linalg.svd(motion, compute_uv=False)[-1], positions - self._positions @ motion
        moved = np.sqrt(np.einsum("ic,ic->i", moved, moved).max())
        # compression is worst for the largest cutoff, stretching (which helps) for the smallest
        rc = cutoffs.max() if stretch < 1 else cutoffs.min()
        return bool(stretch * (rc + self.skin) - 2 * moved > rc * (1 + 1e-12))

    def _bins(self, x, cell, pbc, limit):
        """Wrapped positions, cells taken off, bin coordinates (each (3, N)); bins and reach (in bins) per direction."""
        inverse = np.linalg.inv(cell)
        fractional = inverse.T @ x
        if np.abs(fractional).max() > _FARTHEST:
            raise ValueError(
                f"a site lies more than {_FARTHEST:.0e} cells away from the origin, too far for exact distances: "
                "wrap the positions into the cell"
            )
        image = np.where(pbc[:, None], np.floor(fractional), 0.0)
        wrapped = x - cell.T @ image
        fractional -= image
        origin = np.where(pbc, 0.0, fractional.min(axis=1))
        extent = np.where(pbc, 1.0, np.maximum(fractional.max(axis=1) - origin, 1e-3))
        # perpendicular distance between opposite faces of the region that is divided into bins
        height = extent / np.linalg.norm(inverse, axis=0)
        coarse, fine = (np.maximum(np.floor(height * k * _BINS_PER_CUTOFF / limit), 1) for k in (1, 2))
        # what a search covers; in cells of few cutoffs coarse bins cover far too much
        covered, finely = ((2 * np.ceil(limit * n / height) + 1) / n for n in (coarse, fine))
        n_bins = np.where(finely < 0.7 * covered, fine, coarse)
        # a few sites in a huge box need no more bins than sites
        while n_bins.prod() > 4 * x.shape[1] + 64:
            n_bins[np.argmax(n_bins)] = np.ceil(n_bins.max() / 2)
        reach = np.ceil(limit * n_bins / height)
        reach = np.where(pbc, reach, np.minimum(reach, n_bins)).astype(np.int64)
        place = ((fractional - origin[:, None]) * (n_bins / extent)[:, None]).astype(np.int64)
        n_bins = n_bins.astype(np.int64)
        np.clip(place, 0, n_bins[:, None] - 1, out=place)
        return wrapped, image.astype(np.int64), place, n_bins, reach

    def _build(self, positions, cell, pbc, types, cutoffs, chunks, threads):
        n = len(positions)
        limit = float(cutoffs.max()) + self.skin
        wrapped, image, place, n_bins, reach = self._bins(np.ascontiguousarray(positions.T), cell, pbc, limit)
        images = np.prod(np.where(pbc, 2.0 * (reach // n_bins) + 1, 1.0))
        if images > _MAX_IMAGES:
            raise ValueError(
                f"the cell {cell.tolist()} is so small that a site would see about {images:.0e} images of it within "
                f"{limit:g} Å; expected cell vectors in Å"
            )
        bin_of = (place[0] * n_bins[1] + place[1]) * n_bins[2] + place[2]
        offset = np.arange((n_bins + 2 * reach).max()) - reach[:, None]
        home, shift = offset % n_bins[:, None], offset // n_bins[:, None]
        order = np.argsort(types, kind="stable")
        members = order[np.argsort(bin_of[order], kind="stable")]
        bin_start = np.zeros(n_bins.prod() + 1, np.int64)
        np.cumsum(np.bincount(bin_of, minlength=n_bins.prod()), out=bin_start[1:])

        # a shift is one number: its place in a dense box around all shifts that can occur between the unwrapped
        # positions
        search = np.where(pbc, reach // n_bins + 1, 0)
        half = search + image.max(axis=1) - image.min(axis=1)
        self._image = None
        if np.prod(2.0 * half + 1) > _MAX_SHIFTS:
            # sites scattered over very many cells: use shifts between wrapped positions
            half, self._image, image = search, image.T, np.zeros_like(image)
        span = 2 * half + 1
        stride = np.array([span[1] * span[2], span[2], 1, 0])
        stride[3] = half @ stride[:3]
        if not np.array_equal(half, self._half):
            grid = np.meshgrid(*(np.arange(-h, h + 1) for h in half), indexing="ij")
            self._shift_triples, self._half = np.stack(grid, axis=-1).reshape(-1, 3), half

        x = np.zeros((3, n + LANES))
        x[:, :n] = wrapped[:, members]
        packed = np.zeros(n + LANES, np.int64)
        packed[:n] = members - ((stride[:3] @ image)[members] << 32)
        kind = types[members]
        limit2 = (cutoffs + self.skin) ** 2
        # one row of squared distances for each type of the site, or a single one
        rows = np.zeros((1 if (limit2 == limit2[0, 0]).all() else len(cutoffs), n + LANES))
        rows[:, :n] = limit2[: len(rows), kind]
        count_of = np.empty(n, np.int64)
        if self._room is None or len(self._room) != n:
            volume = abs(np.linalg.det(cell)) if pbc.all() else np.inf
            self._room = np.full(n, int(min(4.19 * limit**3 * n / volume * 1.2, 500)) + 24 + LANES)
        while True:
            start = np.zeros(n + 1, np.int64)
            np.cumsum(self._room, out=start[1:])
            found = self._buffer("found", start[-1])
            run_chunks(
                _search,
                (
                    *(members, bin_start, np.ascontiguousarray(place.T[members]), n_bins, reach, pbc, home, shift),
                    *(x, kind, rows, cell.ravel(), packed, stride, start, count_of, found),
                ),
                threads,
            )
            # whole vectors are written
            if (count_of + LANES <= self._room).all():
                break
            self._room = count_of + LANES
        # room for the next list, so that it need not be searched twice: where the density is even, any site may get as
        # many neighbours as another one has now
        self._room = count_of + count_of // 4 + 2 * LANES
        if count_of.max() * n <= 2 * count_of.sum():
            self._room = np.maximum(self._room, count_of.max() + 2 * LANES)

        n_types = len(cutoffs)
        pages = -(-n // PAGE)
        self.seg = np.empty(n * (n_types + 1), np.int64)
        # whole vectors are read, also at the end
        self.neighbors = self._buffer("neighbors", count_of.sum() + LANES)
        self.neighbors[-LANES:] = 0
        begin = np.cumsum(count_of) - count_of
        mirror = int(np.prod(span)) - 1
        _transpose(order, types, start, count_of, found, mirror, n_types, begin, self.seg, self.neighbors)
        self.touched = np.zeros((len(chunks) - 1) * pages, np.bool_)
        _mark_pages(chunks, self.seg, n_types, self.neighbors, pages, self.touched)
        self.longest = int(count_of.max())
        self._positions, self._cell, self._pbc = positions.copy(), cell, pbc.copy()
        self._types, self._cutoffs, self._chunks = types.copy(), cutoffs.copy(), chunks
        self.builds += 1
