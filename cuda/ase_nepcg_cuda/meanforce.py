"""Samples of the mean force on the device: the twin of ``ase_nepcg.md.accumulate``, for a team of threads.

The numbers are those of :class:`~ase_nepcg.md.accumulate.MeanForceSums`, in the same places. A force on a site is
added up by one thread, over the atoms of the site in their order, so that it has the bits of the CPU's.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import cuda

from ase_nepcg.md.accumulate import (
    ANCHOR,
    COUNT,
    FILLED,
    FULL,
    LENGTH,
    MOMENTS,
    N_ATOMS,
    N_CENTRES,
    N_SITES,
    ROWS,
    SAMPLES,
    offsets,
)

from .device import device_function, kernel
from .integrate import TEAM, Team, make_team
from .teams import for_team

__all__ = ["build_kernel_of_mean_force", "build_mean_force", "members_of"]


def members_of(anchor: np.ndarray, centres: int) -> tuple[np.ndarray, np.ndarray]:
    """Atoms by the number of their ``anchor`` (N,), each in their order: (centres + 1,) where they begin, (N,)."""
    start = np.concatenate([[0], np.cumsum(np.bincount(anchor, minlength=centres))])
    return start.astype(np.int64), np.argsort(anchor, kind="stable").astype(np.int64)


@functools.cache
def build_mean_force(team: Team):
    """``observe(s, ints, floats, start, members, memory)``: one sample of the first replica, by the team."""
    rank, size, sync, add = team.rank, team.size, team.sync, team.sum
    places = for_team(offsets, {})

    @device_function()
    def take_sample(s, ints, floats, start, members, memory):
        """``y`` of :func:`ase_nepcg.md.accumulate.observe`."""
        n, centres, atoms = ints[N_SITES], ints[N_CENTRES], ints[N_ATOMS]
        centre, share, y, _, _, _, _, _, _ = places(n, centres, atoms, ints[MOMENTS])
        for a in range(rank(), centres, size()):
            for c in range(3):
                total = 0.0
                for k in range(start[a], start[a + 1]):
                    i = members[k]
                    # implicit molecules move: their centres are taken anew
                    total += s.f[i, c] if a < n else floats[share + i] * s.x[i, c]
                floats[(y if a < n else centre) + 3 * a + c] = total
        sync()
        xx = yy = zz = yz = xz = xy = twice = 0.0
        for i in range(rank(), atoms, size()):
            if ints[ANCHOR + atoms + i] == 0:
                at = centre + 3 * ints[ANCHOR + i]
                dx, dy, dz = s.x[i, 0] - floats[at], s.x[i, 1] - floats[at + 1], s.x[i, 2] - floats[at + 2]
                fx, fy, fz = s.f[i, 0], s.f[i, 1], s.f[i, 2]
                xx += dx * fx
                yy += dy * fy
                zz += dz * fz
                yz += dy * fz + dz * fy
                xz += dx * fz + dz * fx
                xy += dx * fy + dy * fx
            twice += (s.v[i, 0] * s.v[i, 0] + s.v[i, 1] * s.v[i, 1] + s.v[i, 2] * s.v[i, 2]) / s.w[i]
        xx, yy, zz, twice = add(xx, memory), add(yy, memory), add(zz, memory), add(twice, memory)
        yz, xz, xy = 0.5 * add(yz, memory), 0.5 * add(xz, memory), 0.5 * add(xy, memory)
        if rank() == 0:
            w, at = s.virial[0], y + 3 * n
            wyz, wxz, wxy = 0.5 * (w[1, 2] + w[2, 1]), 0.5 * (w[0, 2] + w[2, 0]), 0.5 * (w[0, 1] + w[1, 0])
            floats[at], floats[at + 1], floats[at + 2] = w[0, 0] - xx, w[1, 1] - yy, w[2, 2] - zz
            floats[at + 3], floats[at + 4], floats[at + 5] = wyz - yz, wxz - xz, wxy - xy
            floats[at + 6], floats[at + 7], floats[at + 8] = w[0, 0], w[1, 1], w[2, 2]
            floats[at + 9], floats[at + 10], floats[at + 11] = wyz, wxz, wxy
            floats[at + 12] = s.energy[0] - floats[0]
            floats[at + 13] = 0.5 * twice
        sync()

    @device_function()
    def merge(floats, at, width, c):
        """Add neighbouring rows of one column; the second half becomes zero."""
        for row in range(ROWS // 2):
            floats[at + row * width + c] = floats[at + 2 * row * width + c] + floats[at + (2 * row + 1) * width + c]
        for row in range(ROWS // 2, ROWS):
            floats[at + row * width + c] = 0.0

    @device_function()
    def observe(s, ints, floats, start, members, memory):
        take_sample(s, ints, floats, start, members, memory)
        n, moments = ints[N_SITES], ints[MOMENTS] != 0
        width = 3 * n + 14
        _, _, y, weights, squares, sums, sums_u, sums_uu, _ = places(n, ints[N_CENTRES], ints[N_ATOMS], ints[MOMENTS])
        full, length, filled = ints[COUNT + FULL], ints[COUNT + LENGTH], ints[COUNT + FILLED] + 1
        block_ends = filled == length
        table_ends = block_ends and full + 1 == ROWS
        u = floats[y + width - 2]
        for c in range(rank(), width, size()):
            value = floats[y + c]
            floats[sums + full * width + c] += value
            floats[squares + c] += value * value
            if moments:
                floats[sums_u + full * width + c] += value * u
                floats[sums_uu + full * width + c] += value * u * u
            if table_ends:
                merge(floats, sums, width, c)
                if moments:
                    merge(floats, sums_u, width, c)
                    merge(floats, sums_uu, width, c)
        sync()
        if rank() == 0:
            floats[weights + full] += 1.0
            if table_ends:
                merge(floats, weights, 1, 0)
            ints[COUNT + SAMPLES] += 1
            ints[COUNT + FILLED] = 0 if block_ends else filled
            if table_ends:
                ints[COUNT + FULL] = ROWS // 2
                ints[COUNT + LENGTH] = 2 * length
            elif block_ends:
                ints[COUNT + FULL] = full + 1
        sync()

    return observe


@functools.cache
def build_kernel_of_mean_force(kind: str):
    """Kernel ``(s, ints, floats, start, members, partial)``: a sample, by one team of ``kind``."""
    observe = build_mean_force(make_team(kind, TEAM))

    @kernel(threads=TEAM)
    def sample(s, ints, floats, start, members, partial):
        memory = (cuda.shared.array(TEAM, np.float64), partial)
        observe(s, ints, floats, start, members, memory)

    return sample
