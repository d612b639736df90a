"""Kernels of a time step: the halves of an ensemble, forces into the state, and a box that follows its cell."""

from __future__ import annotations

import functools
import math
from collections import namedtuple

import numpy as np
from numba import cuda, float64

from ase_nepcg.md.noise import words
from ase_nepcg.md.state import State

from .device import SIMULATOR, device_function, kernel, number_type
from .lists import NARROW, STALE, UNLIKELY
from .precision import precision
from .teams import for_team
from .totals import TOTALS

__all__ = ["TEAM", "build_collect", "build_ensemble", "build_follow", "judge"]

#: threads of a team, which integrates one replica
TEAM = 4 if SIMULATOR else 512
_SHIFT = np.uint64(32)

#: a State, and memory of the block
TeamState = namedtuple("TeamState", (*State._fields, "shared"))


@device_function()
def team_rank():
    return cuda.threadIdx.x


@device_function()
def team_size():
    return TEAM


@device_function()
def team_sync():
    cuda.syncthreads()


@device_function()
def team_sum(value, shared):
    """The sum over all threads, the same bits in each; ``shared``: memory of the block, (TEAM,)."""
    rank = cuda.threadIdx.x
    cuda.syncthreads()
    shared[rank] = value
    width = TEAM // 2
    cuda.syncthreads()
    while width > 0:
        if rank < width:
            shared[rank] += shared[rank + width]
        cuda.syncthreads()
        width //= 2
    return shared[0]


@functools.cache
def _team() -> dict:
    random_words = for_team(words, {})

    @device_function()
    def fill_bits(seed, step, first, second, begin, end):
        """As ``md.noise.fill_bits``; each thread for the sites of its share."""
        for i in range(begin + team_rank(), end, TEAM):
            a, b, c, d = random_words(seed, step, i - begin, 0)
            first[i] = (a << _SHIFT) | b
            second[i] = (c << _SHIFT) | d

    return {
        "team_rank": team_rank,
        "team_size": team_size,
        "team_sync": team_sync,
        "team_sum": team_sum,
        "fill_bits": fill_bits,
    }


@functools.cache
def build_ensemble(ensemble, n_state: int):
    """Kernels (begin, end, drive or None) of an ensemble (class) with ``n_state`` variables; one block per replica.

    begin, end, drive: ``(s, h, p, q, step)`` as of ``ase_nepcg.md.loop.ensemble_kernels``.
    """
    functions, done = ensemble.kernels(), {}
    begin_one, end_one = (for_team(one, _team(), done) for one in (functions.begin, functions.end))
    held = max(n_state, 1)

    def build(half):
        @kernel(threads=TEAM)
        def part_of_step(s, h, p, q, step):
            r = cuda.blockIdx.x
            # memory of the block belongs to kernels, not to functions (they may be linked more than once)
            shared = cuda.shared.array(TEAM, float64)
            t = TeamState(
                s.first, s.x, s.v, s.f, s.m, s.w, s.types, s.cell, s.virial, s.energy, s.energies, s.virials, s.bits,
                s.more_bits, s.group_first, s.start, s.members, s.share, s.held, s.seed, s.n_dof, s.pbc, shared,
            )  # fmt: skip
            # all threads compute the variables of the ensemble; one stores them
            own = cuda.local.array(held, float64)
            for k in range(n_state):
                own[k] = q[r, k]
            half(t, r, h, p[r], own, step)
            cuda.syncthreads()
            if cuda.threadIdx.x == 0:
                for k in range(n_state):
                    q[r, k] = own[k]

        return part_of_step

    drive = None
    if functions.drive is not None:
        drive_one = for_team(functions.drive, _team(), done)

        @device_function()
        def with_step(s, r, h, p, q, step):
            drive_one(s, r, h, p, q)

        drive = build(with_step)
    return build(begin_one), build(end_one), drive


@kernel(threads=TEAM)
def judge(s, limits, state):
    """UNLIKELY where a replica is beyond its ``limits`` (R, 4), as ``ase_nepcg.md.blowup.check_limits``."""
    r = cuda.blockIdx.x
    shared = cuda.shared.array(TEAM, float64)
    twice = fast = 0.0
    for i in range(s.first[r] + cuda.threadIdx.x, s.first[r + 1], TEAM):
        v2 = s.v[i, 0] ** 2 + s.v[i, 1] ** 2 + s.v[i, 2] ** 2
        twice += s.m[i] * v2
        # also where it is not a number
        if not v2 <= limits[r, 1] * limits[r, 1]:
            fast += 1.0
    twice = team_sum(twice, shared)
    fast = team_sum(fast, shared)
    if cuda.threadIdx.x == 0:
        a = s.cell[r]
        volume = abs(
            a[0, 0] * (a[1, 1] * a[2, 2] - a[1, 2] * a[2, 1])
            + a[0, 1] * (a[1, 2] * a[2, 0] - a[1, 0] * a[2, 2])
            + a[0, 2] * (a[1, 0] * a[2, 1] - a[1, 1] * a[2, 0])
        )
        if fast > 0.0 or not 0.5 * twice <= limits[r, 0] or not (limits[r, 2] <= volume <= limits[r, 3]):
            state[UNLIKELY] = 1


@functools.cache
def build_collect(name: str):
    """Kernel: forces, energies and virials of an evaluation into the state."""

    @kernel
    def collect(n, forces, energies, with_virial, sums, per_site, virials, s):
        i = cuda.grid(1)
        if i < n:
            for c in range(3):
                s.f[i, c] = forces[c * n + i]
            s.energies[i] = energies[i]
            if per_site:
                for c in range(9):
                    s.virials[i, c] = virials[c * n + i]
        if with_virial and i < s.energy.size:
            s.energy[i] = sums[i * TOTALS]
            for c in range(9):
                s.virial[i, c // 3, c % 3] = sums[i * TOTALS + 1 + c]

    return collect


@functools.cache
def build_follow(name: str):
    """Kernels (follow, remember) of one precision, for cells that change during a run."""
    kinds = precision(name)
    real, unit = number_type(kinds.real), 2.0**-kinds.bits

    @kernel
    def follow(replicas, n0, n1, n2, cell, pbc, rows, bins, list_cutoff, skin, built, to_box, to_vector, reach, state):
        """The box of each replica from its cell, and how far sites may move before the list fails.

        ``rows`` (R, 3, 3): vectors of the box along what is not periodic; ``built`` (R, 3, 3): ``to_box`` when the list
        was made. With the strain E since then, a pair that comes within the cutoff was within it plus ``skin`` if no
        site has moved, apart from the strain, by more than half of ``skin - |E| list_cutoff``.
        """
        r = cuda.grid(1)
        if r >= replicas:
            return
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

    @kernel
    def remember(replicas, skin, to_box, built, reach, state):
        """The boxes of a list that has just been made."""
        r = cuda.grid(1)
        if r < replicas and state[STALE] != 0:
            for k in range(9):
                built[9 * r + k] = to_box[9 * r + k]
            reach[r] = real(0.5 * skin)

    return follow, remember
