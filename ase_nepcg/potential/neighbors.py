"""Neighbour list: linear-scaling cell list, all periodic images, any cell, reused while nothing moved too far.

Conventions: ``r_ij = (r_j - r_i) + S . cell`` with integer shift S, from the positions as given (never wrapped), so
that distances do not depend on when the list was built. The neighbours of a site are sorted by (type, index, S): sums
over neighbours, and therefore all results, are the same bits whether a list is fresh or old.

The work is done by the kernels of :mod:`~ase_nepcg.potential.lists`; here is the memory.
"""

from __future__ import annotations

import numpy as np

from .lattice import complete
from .layout import PAGE
from .lists import (
    AGAIN,
    BUILDS,
    DONE,
    FAR,
    LONGEST,
    MEMORY,
    NEED_FOUND,
    NEED_NEIGHBORS,
    NEED_SHIFTS,
    SMALL,
    STATUS,
    VALID,
    WHERE,
    ListArrays,
    place,
    prepare,
    refresh,
    search,
    settle,
)
from .simd import LANES, aligned_empty
from .threads import run_chunks

__all__ = ["NeighborList", "complete_cell"]


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
    out = np.empty((3, 3))
    complete(cell, pbc, out)
    return out


class NeighborList:
    """Neighbours of all sites within the cutoffs of their types, kept until something moved too far.

    One system, or several independent ones (replicas) whose sites follow each other. After :meth:`update`: the
    neighbours of site i of type t are ``neighbors[seg[i (T+1) + t] : seg[i (T+1) + t + 1]]``, each one number ``code *
    2^32 + index`` with the shift vector ``shifts[4 code : 4 code + 3]`` (Å); ``longest``, the largest number of
    neighbours; ``touched`` (chunks, pages): whether a site of a chunk has a neighbour (or itself) on a page of PAGE
    sites; ``positions``, those to which the shifts belong, and ``shifts`` in rows of four.
    """

    def __init__(self, skin: float = 0.6):
        self.skin = skin
        self._arrays = None
        self._given = None
        self._checked = None
        self._builds = 0

    def update(self, positions, cell, pbc, types, cutoffs, chunks, threads: int = 1, first=None) -> None:
        """Make the list fit the geometry. ``cutoffs`` (T, T) in Å, ``chunks`` boundaries of the chunks of sites.

        ``cell`` and ``pbc`` of one system, (3, 3) and (3,), or with ``first`` (R + 1,), where its sites begin, of each
        replica, (R, 3, 3) and (R, 3). No chunk may have sites of two replicas.
        """
        cell, pbc = cell.reshape(-1, 3, 3), pbc.reshape(-1, 3)
        given = (cell.tobytes(), pbc.tobytes())
        if given != self._checked:
            for one, periodic in zip(cell, pbc, strict=True):
                complete_cell(one, periodic)
            self._checked = given
        first = np.array([0, len(positions)]) if first is None else first
        self._take(pbc, types, cutoffs, chunks, first)
        if not refresh(self._arrays, positions, cell):
            self.build(positions, cell, threads)
            place(self._arrays, positions)

    def build(self, positions, cell, threads: int = 1) -> None:
        """Make a new list for the sites of the last :meth:`update`; ``cell`` (R, 3, 3)."""
        while True:
            prepare(self._arrays, positions, cell)
            while self._arrays.info[STATUS] == DONE:
                run_chunks(search, (self._arrays,), threads)
                settle(self._arrays, positions)
                if self._arrays.info[STATUS] == DONE:
                    return
                if self._arrays.info[STATUS] == AGAIN:
                    self._arrays.info[STATUS] = DONE
            self.make_room()

    def make_room(self) -> None:
        """Enlarge what was too small for the last list; ValueError where no memory would help."""
        a = self._arrays
        status, where = a.info[STATUS], int(a.info[WHERE])
        if status == FAR:
            raise ValueError(
                f"site {where} lies more than 1e+12 cells away from the origin, too far for exact distances: wrap the "
                "positions into the cell"
            )
        if status == SMALL:
            raise ValueError(
                f"the cell {a.now[where].tolist()} is so small that a site would see more than a million images of "
                f"others within {a.cutoffs.max() + self.skin:g} Å; expected cell vectors in Å"
            )
        assert status == MEMORY
        new = {}
        if (need := int(a.info[NEED_SHIFTS])) > len(a.triples):
            size = need + need // 4
            new |= {"triples": np.zeros((size, 3), np.int64), "shifts": _rows_of_four(size)}
        for name, entry in (("found", NEED_FOUND), ("neighbors", NEED_NEIGHBORS)):
            if (need := int(a.info[entry])) > len(getattr(a, name)):
                new[name] = np.empty(need + need // 8, np.int64)
        self._arrays = a._replace(**new)

    def _take(self, pbc, types, cutoffs, chunks, first) -> None:
        """Memory for another system than before."""
        given = (types, cutoffs, chunks, first, pbc, np.array([self.skin]))
        if self._given is not None and all(map(np.array_equal, given, self._given)):
            return
        self._given = tuple(np.array(one) for one in given)
        self._builds = self.builds
        n, replicas, n_types = len(types), len(first) - 1, len(cutoffs)
        integers, numbers = np.int64, np.float64
        zeros = np.zeros
        self._arrays = ListArrays(
            first=np.array(first, integers),
            replica=np.repeat(np.arange(replicas), np.diff(first)),
            pbc=np.array(pbc, bool),
            types=np.array(types, np.int32),
            order=np.argsort(types, kind="stable"),
            cutoffs=np.array(cutoffs, numbers),
            skin=np.array([self.skin], numbers),
            chunks=np.array(chunks, integers),
            cell=zeros((replicas, 3, 3)),
            now=zeros((replicas, 3, 3)),
            origin=zeros((n, 3)),
            scattered=zeros(replicas, bool),
            image=zeros((n, 3), integers),
            half=zeros((replicas, 3), integers),
            stride=zeros((replicas, 4), integers),
            shift_first=zeros(replicas + 1, integers),
            triples=zeros((128 * replicas, 3), integers),
            bins=zeros((replicas, 3), integers),
            reach=zeros((replicas, 3), integers),
            bin_first=zeros(replicas + 1, integers),
            bin_start=zeros(4 * n + 64 * replicas + 1, integers),
            bin_of=zeros(n, integers),
            coordinate=zeros((n, 3), integers),
            wrapped=zeros((n, 3)),
            members=zeros(n, integers),
            x=zeros((3, n + LANES)),
            packed=zeros(n + LANES, integers),
            # one row of squared distances for each type of the site, or a single one
            limits=zeros((1 if (cutoffs == cutoffs[0, 0]).all() else n_types, n + LANES)),
            room=zeros(n, integers),
            start=zeros(n + 1, integers),
            found_count=zeros(n, integers),
            found=zeros(0, integers),
            cursor=zeros(n, integers),
            seg=np.empty(n * (n_types + 1), integers),
            neighbors=zeros(0, integers),
            touched=zeros((len(chunks) - 1) * -(-n // PAGE), bool),
            positions=_rows_of_four(n),
            shifts=_rows_of_four(128 * replicas),
            info=zeros(8, integers),
        )

    def forget(self) -> None:
        """The next :meth:`update` makes a new list."""
        if self._arrays is not None:
            self._arrays.info[VALID] = 0

    @property
    def arrays(self) -> ListArrays:
        """What the kernels of :mod:`~ase_nepcg.potential.lists` take."""
        return self._arrays

    @property
    def builds(self) -> int:
        """Lists made so far."""
        return self._builds + (0 if self._arrays is None else int(self._arrays.info[BUILDS]))

    @property
    def longest(self) -> int:
        return int(self._arrays.info[LONGEST])

    @property
    def seg(self) -> np.ndarray:
        return self._arrays.seg

    @property
    def neighbors(self) -> np.ndarray:
        return self._arrays.neighbors[: self._arrays.info[NEED_NEIGHBORS]]

    @property
    def touched(self) -> np.ndarray:
        return self._arrays.touched

    @property
    def positions(self) -> np.ndarray:
        return self._arrays.positions

    @property
    def shifts(self) -> np.ndarray:
        return self._arrays.shifts


def _rows_of_four(n: int) -> np.ndarray:
    """Zeros, so that a kernel can load a row of three at once."""
    rows = aligned_empty((n, 4))
    rows[:] = 0.0
    return rows.ravel()
