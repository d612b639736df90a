"""Stages of a time step: the halves of an ensemble, forces into the state, and a box that follows its cell.

The halves of an ensemble are functions of one replica and a *team* of threads (``teams.py``). A team is either a block,
each block for other replicas, or the whole grid, for one replica after the other: the latter for large systems, in
kernels that are launched so that all blocks run at once and can wait for each other.
"""

from __future__ import annotations

import functools
import math
from collections import namedtuple
from typing import NamedTuple

import numpy as np
from numba import cuda, float64

from ase_nepcg.md.noise import words
from ase_nepcg.md.state import State

from .device import SIMULATOR, device_function, kernel, number_type, stage
from .lists import NARROW, STALE, UNLIKELY
from .precision import precision
from .teams import for_team
from .totals import TOTALS

__all__ = [
    *("TEAM", "Halves", "Team", "build_follow", "build_halves", "build_kernels_of_halves", "collect", "collect_totals"),
    "make_team",
]

#: threads of a block that is a team, in kernels that do nothing else
TEAM = 4 if SIMULATOR else 256
_SHIFT = np.uint64(32)

#: a State, and memory of the team: shared by a block (threads,), by the grid (blocks,)
TeamState = namedtuple("TeamState", (*State._fields, "shared"))


class Team(NamedTuple):
    """Functions of device code: number of the thread and of threads, a barrier, ``sum(value, memory)`` over all, the
    same bits in each; first replica of the team, and how many further the next one is."""

    rank: object
    size: object
    sync: object
    sum: object
    first: object
    stride: object


def _block_sum(threads):
    @device_function()
    def block_sum(value, shared):
        rank = cuda.threadIdx.x
        cuda.syncthreads()
        shared[rank] = value
        width = threads // 2
        cuda.syncthreads()
        while width > 0:
            if rank < width:
                shared[rank] += shared[rank + width]
            cuda.syncthreads()
            width //= 2
        return shared[0]

    return block_sum


@functools.cache
def make_team(kind: str, threads: int) -> Team:
    """The team of ``kind`` "block" or "grid", in blocks of so many threads (a power of two)."""
    block_sum = _block_sum(threads)
    if kind == "block":

        @device_function()
        def team_rank():
            return cuda.threadIdx.x

        @device_function()
        def team_size():
            return threads

        @device_function()
        def team_sync():
            cuda.syncthreads()

        @device_function()
        def team_sum(value, memory):
            return block_sum(value, memory[0])

        @device_function()
        def first_replica():
            return cuda.blockIdx.x

        @device_function()
        def stride():
            return cuda.gridDim.x

    else:

        @device_function()
        def team_rank():
            return cuda.grid(1)

        @device_function()
        def team_size():
            return cuda.gridsize(1)

        @device_function()
        def team_sync():
            cuda.cg.this_grid().sync()

        @device_function()
        def team_sum(value, memory):
            of_block = block_sum(value, memory[0])
            if cuda.threadIdx.x == 0:
                memory[1][cuda.blockIdx.x] = of_block
            cuda.cg.this_grid().sync()
            total = 0.0
            for block in range(cuda.gridDim.x):
                total += memory[1][block]
            cuda.cg.this_grid().sync()
            return total

        @device_function()
        def first_replica():
            return 0

        @device_function()
        def stride():
            return 1

    return Team(team_rank, team_size, team_sync, team_sum, first_replica, stride)


class Halves(NamedTuple):
    """Of a step, as device functions of the replica r: begin, end, drive (or None) ``(r, s, h, p, q, step, memory)``,
    as of ``ase_nepcg.md.loop.ensemble_kernels``; ``judge(r, s, limits, state, memory)``: UNLIKELY where the replica is
    beyond its ``limits`` (R, 4), as ``ase_nepcg.md.blowup.check_limits``."""

    begin: object
    end: object
    drive: object
    judge: object


@functools.cache
def build_halves(ensemble, n_state: int, team: Team) -> Halves:
    """:class:`Halves` of an ensemble (class) with ``n_state`` variables."""
    rank, size, sync, add = team.rank, team.size, team.sync, team.sum
    random_words = for_team(words, {})

    @device_function()
    def fill_bits(seed, step, first, second, begin, end):
        """As ``md.noise.fill_bits``; each thread for the sites of its share."""
        for i in range(begin + rank(), end, size()):
            a, b, c, d = random_words(seed, step, i - begin, 0)
            first[i] = (a << _SHIFT) | b
            second[i] = (c << _SHIFT) | d

    names = {"team_rank": rank, "team_size": size, "team_sync": sync, "team_sum": add, "fill_bits": fill_bits}
    functions, done = ensemble.kernels(), {}
    begin_one, end_one = (for_team(one, names, done) for one in (functions.begin, functions.end))
    held = max(n_state, 1)

    def build(half):
        @device_function()
        def part_of_step(r, s, h, p, q, step, memory):
            t = TeamState(
                s.first, s.x, s.v, s.f, s.m, s.w, s.types, s.cell, s.virial, s.energy, s.energies, s.virials, s.bits,
                s.more_bits, s.group_first, s.start, s.members, s.share, s.held, s.seed, s.n_dof, s.pbc, memory,
            )  # fmt: skip
            # all threads compute the variables of the ensemble; one stores them
            own = cuda.local.array(held, float64)
            for k in range(n_state):
                own[k] = q[r, k]
            half(t, r, h, p[r], own, step)
            sync()
            if rank() == 0:
                for k in range(n_state):
                    q[r, k] = own[k]
            sync()

        return part_of_step

    drive = None
    if functions.drive is not None:
        drive_one = for_team(functions.drive, names, done)

        @device_function()
        def with_step(s, r, h, p, q, step):
            drive_one(s, r, h, p, q)

        drive = build(with_step)

    @device_function()
    def judge(r, s, limits, state, memory):
        twice = fast = 0.0
        for i in range(s.first[r] + rank(), s.first[r + 1], size()):
            v2 = s.v[i, 0] ** 2 + s.v[i, 1] ** 2 + s.v[i, 2] ** 2
            twice += s.m[i] * v2
            # also where it is not a number
            if not v2 <= limits[r, 1] * limits[r, 1]:
                fast += 1.0
        twice = add(twice, memory)
        fast = add(fast, memory)
        if rank() == 0:
            a = s.cell[r]
            volume = abs(
                a[0, 0] * (a[1, 1] * a[2, 2] - a[1, 2] * a[2, 1])
                + a[0, 1] * (a[1, 2] * a[2, 0] - a[1, 0] * a[2, 2])
                + a[0, 2] * (a[1, 0] * a[2, 1] - a[1, 1] * a[2, 0])
            )
            if fast > 0.0 or not 0.5 * twice <= limits[r, 0] or not (limits[r, 2] <= volume <= limits[r, 3]):
                state[UNLIKELY] = 1

    return Halves(build(begin_one), build(end_one), drive, judge)


@functools.cache
def build_kernels_of_halves(ensemble, n_state: int, kind: str):
    """Kernels (begin, end) for all replicas, in blocks of TEAM threads: ``begin(replicas, s, h, p, q, step, partial)``;
    ``end(replicas, s, h, p, q, step, limits, state, partial)`` with what drives before it and the judge after it."""
    team = make_team(kind, TEAM)
    first, stride = team.first, team.stride
    halves = build_halves(ensemble, n_state, team)
    begin_one, end_one, judge_one = halves.begin, halves.end, halves.judge
    DRIVEN = halves.drive is not None
    drive_one = halves.drive if DRIVEN else halves.end

    @kernel(threads=TEAM)
    def begin(replicas, s, h, p, q, step, partial):
        # memory of the block belongs to kernels, not to functions (they may be linked more than once)
        memory = (cuda.shared.array(TEAM, float64), partial)
        for r in range(first(), replicas, stride()):
            begin_one(r, s, h, p, q, step, memory)

    @kernel(threads=TEAM)
    def end(replicas, s, h, p, q, step, limits, state, partial):
        memory = (cuda.shared.array(TEAM, float64), partial)
        for r in range(first(), replicas, stride()):
            if DRIVEN:
                drive_one(r, s, h, p, q, step, memory)
            end_one(r, s, h, p, q, step, memory)
            judge_one(r, s, limits, state, memory)

    return begin, end


@stage
def collect(i, n, forces, energies, per_site, virials, s):
    """Force, energy and virial of a site into the state."""
    for c in range(3):
        s.f[i, c] = forces[c * n + i]
    s.energies[i] = energies[i]
    if per_site:
        for c in range(9):
            s.virials[i, c] = virials[c * n + i]


@stage
def collect_totals(r, sums, s):
    """Energy and virial of a replica into the state."""
    s.energy[r] = sums[r * TOTALS]
    for c in range(9):
        s.virial[r, c // 3, c % 3] = sums[r * TOTALS + 1 + c]


@functools.cache
def build_follow(name: str):
    """Stages (follow, remember) of one precision, for cells that change during a run."""
    kinds = precision(name)
    real, unit = number_type(kinds.real), 2.0**-kinds.bits

    @stage
    def follow(r, n0, n1, n2, cell, pbc, rows, bins, list_cutoff, skin, built, to_box, to_vector, reach, state):
        """The box of each replica from its cell, and how far sites may move before the list fails.

        ``rows`` (R, 3, 3): vectors of the box along what is not periodic; ``built`` (R, 3, 3): ``to_box`` when the list
        was made. With the strain E since then, a pair that comes within the cutoff was within it plus ``skin`` if no
        site has moved, apart from the strain, by more than half of ``skin - |E| list_cutoff``.
        """
        m = 9 * r
        a = cuda.local.array(9, float64)
        b = cuda.local.array(9, float64)
        for k in range(3):
            repeat = n0 if k == 0 else (n1 if k == 1 else n2)
            for c in range(3):
                a[3 * k + c] = cell[r, k, c] * repeat if pbc[r, k] else rows[m + 3 * k + c]
        b[0], b[3], b[6] = a[4] * a[8] - a[5] * a[7], a[5] * a[6] - a[3] * a[8], a[3] * a[7] - a[4] * a[6]
        b[1], b[4], b[7] = a[2] * a[7] - a[1] * a[8], a[0] * a[8] - a[2] * a[6], a[1] * a[6] - a[0] * a[7]
        b[2], b[5], b[8] = a[1] * a[5] - a[2] * a[4], a[2] * a[3] - a[0] * a[5], a[0] * a[4] - a[1] * a[3]
        scale = 1.0 / (a[0] * b[0] + a[1] * b[3] + a[2] * b[6])
        for k in range(9):
            b[k] *= scale
            to_box[m + k] = b[k]
            to_vector[m + k] = real(a[k] * unit)
        for k in range(3):
            width = 1.0 / math.sqrt(b[k] * b[k] + b[3 + k] * b[3 + k] + b[6 + k] * b[6 + k])
            if not width >= max(2, bins[3 * r + k]) * list_cutoff:
                state[NARROW] = 1
        square = 0.0
        for k in range(3):
            for c in range(3):
                strain = built[m + 3 * k] * a[c] + built[m + 3 * k + 1] * a[3 + c] + built[m + 3 * k + 2] * a[6 + c]
                if k == c:
                    strain -= 1.0
                square += strain * strain
        # a tenth more for the terms of second order
        reach[r] = real(0.5 * (skin - 1.1 * math.sqrt(square) * list_cutoff))

    @stage
    def remember(r, skin, to_box, built, reach, state):
        """The boxes of a list that has just been made."""
        if state[STALE] != 0:
            for k in range(9):
                built[9 * r + k] = to_box[9 * r + k]
            reach[r] = real(0.5 * skin)

    return follow, remember
