"""Many steps in one launch: a kernel in which all blocks run at once and wait for each other between stages.

The stages are those of the separate kernels, in the same order and with the same numbers; what is saved are some
twenty launches per step, of which a small system would notice nothing else. In one step, with | for a barrier of the
grid (a new list only where the device finds that one is needed)::

    first half | box, places, moved? | [clear | bins | sort | find | select | pair up, settle |]
    sums | network | partial forces | forces to the state | [totals | sum | ] second half, judge
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from numba import cuda, float64

from ase_nepcg.potential.layout import Shape

from .device import BLOCK, SIMULATOR, kernel
from .integrate import build_follow, build_halves, collect, collect_totals, make_team
from .lists import STALE, build_lists
from .meanforce import build_mean_force
from .nep import build_kernels
from .precision import precision
from .totals import TOTALS, add_totals, block_totals

__all__ = ["Counts", "blocks_at_once", "build_advance"]


class Counts(NamedTuple):
    """Items of the stages."""

    n: int
    copied: int
    replicas: int
    bins: int
    lanes: int
    sum_blocks: int


def blocks_at_once(kernel, threads: int, arguments: tuple) -> int:
    """Blocks that the device runs at the same time, of a kernel that waits for all of them."""
    if SIMULATOR:
        return 1
    compiled = kernel.compile(tuple(kernel.typeof_pyval(one) for one in arguments))
    return compiled.max_cooperative_grid_blocks(threads)


@functools.cache
def build_advance(shape: Shape, name: str, ensemble, n_state: int, kind: str, observes: bool = False):
    """The kernel for a model shape, precision, ensemble (class) with ``n_state`` variables, and kind of team.

    ``advance(first_step, steps, virials_at_end, counts, state, place, moved, lists, forces, totals, box, observer, s,
    h, p, q, limits, partial)``: arguments of the stages as :class:`~.evaluate.CudaEvaluator` and
    :class:`~.backend.CudaBackend` give them; ``virials_at_end``: those of all sites after the last step; ``partial``:
    memory for sums over blocks; ``observer``: steps between samples of the mean force, the step before the first, its
    numbers, ``members_of``.
    """
    team, wait = make_team(kind, BLOCK), make_team("grid", BLOCK).sync
    first, stride = team.first, team.stride
    halves = build_halves(ensemble, n_state, team)
    begin_one, end_one, judge_one = halves.begin, halves.end, halves.judge
    OBSERVES, observe = observes, build_mean_force(team)
    DRIVEN, PER_SITE, CHANGES_CELL = halves.drive is not None, ensemble.per_site, ensemble.changes_cell
    drive_one = halves.drive if DRIVEN else halves.end
    lists = build_lists(name)
    place_one, moved_one, clear_one, fill_one, sort_one, find_one, select_one, pair_one, settle_one = (
        one.one for one in lists
    )
    kernels = build_kernels(shape, name)
    sums_one, network_one, partial_forces_one = (one.one for one in kernels[:3])
    gather_none, gather_sum, gather_sites = (one.one for one in kernels.gather)
    follow_one, remember_one = (one.one for one in build_follow(name))
    collect_one, collect_totals_one, add_one = collect.one, collect_totals.one, add_totals.one

    # the loops over the grid are written out: as a device function each, ptxas (sm_90) spills 72 bytes
    # for the compiler's division and square root in single precision; the kernel's own text has no real numbers
    @kernel(threads=BLOCK, fastmath=precision(name).fastmath)
    def advance(
        first_step, steps, virials_at_end, counts, state, place, moved, list_arguments, forces, totals, box, observer,
        s, h, p, q, limits, partial,
    ):  # fmt: skip
        n, copied, replicas, bins, lanes, sum_blocks = counts
        clear, fill, sort, find, select, pair, settle = list_arguments
        sums, network, partial_forces, gather = forces
        sums_of_blocks, add_sums, site, take = totals
        follow, remember = box
        interval, after, ints, floats, start, members = observer
        shared = cuda.shared.array(BLOCK, float64)
        memory = (shared, partial)
        for step in range(first_step, first_step + steps):
            last = step == first_step + steps - 1
            sampled = OBSERVES and step > after and (step - after) % interval == 0
            total = CHANGES_CELL or last or sampled
            for r in range(first(), replicas, stride()):
                begin_one(r, s, h, p, q, step, memory)
            if cuda.grid(1) == 0:
                state[STALE] = 0
            wait()
            if CHANGES_CELL:
                for r in range(cuda.grid(1), replicas, cuda.gridsize(1)):
                    follow_one(r, *follow)
                wait()
            for i in range(cuda.grid(1), copied, cuda.gridsize(1)):
                place_one(i, *place)
                # sites come before their copies
                if i < n:
                    moved_one(i, *moved)
            wait()
            if state[STALE] != 0:
                for b in range(cuda.grid(1), bins, cuda.gridsize(1)):
                    clear_one(b, *clear)
                wait()
                for i in range(cuda.grid(1), copied, cuda.gridsize(1)):
                    fill_one(i, *fill)
                wait()
                for b in range(cuda.grid(1), bins, cuda.gridsize(1)):
                    sort_one(b, *sort)
                wait()
                for i in range(cuda.grid(1), n, cuda.gridsize(1)):
                    find_one(i, *find)
                wait()
                for i in range(cuda.grid(1), n, cuda.gridsize(1)):
                    select_one(i, *select)
                wait()
                for i in range(cuda.grid(1), n, cuda.gridsize(1)):
                    pair_one(i, *pair)
                    settle_one(i, *settle)
                if CHANGES_CELL:
                    for r in range(cuda.grid(1), replicas, cuda.gridsize(1)):
                        remember_one(r, *remember)
                wait()
            for k in range(cuda.grid(1), n * lanes, cuda.gridsize(1)):
                sums_one(k % n, k // n, lanes, *sums)
            wait()
            for i in range(cuda.grid(1), n, cuda.gridsize(1)):
                network_one(i, *network)
            wait()
            for k in range(cuda.grid(1), n * lanes, cuda.gridsize(1)):
                partial_forces_one(k % n, k // n, lanes, *partial_forces)
            wait()
            per_site = PER_SITE or (last and virials_at_end)
            for i in range(cuda.grid(1), n, cuda.gridsize(1)):
                if per_site:
                    gather_sites(i, *gather)
                elif total:
                    gather_sum(i, *gather)
                else:
                    gather_none(i, *gather)
                collect_one(i, *site, per_site, gather[-1], s)
            wait()
            if total:
                for k in range(cuda.blockIdx.x, replicas * sum_blocks, cuda.gridDim.x):
                    block_totals(k // sum_blocks, k % sum_blocks, sum_blocks, shared, *sums_of_blocks)
                wait()
                for k in range(cuda.grid(1), replicas * TOTALS, cuda.gridsize(1)):
                    add_one(k, *add_sums)
                wait()
                for r in range(cuda.grid(1), replicas, cuda.gridsize(1)):
                    collect_totals_one(r, *take, s)
                wait()
            for r in range(first(), replicas, stride()):
                if DRIVEN:
                    drive_one(r, s, h, p, q, step, memory)
                end_one(r, s, h, p, q, step, memory)
                judge_one(r, s, limits, state, memory)
                if sampled:
                    observe(s, ints, floats, start, members, memory)

    return advance
