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

from .device import BLOCK, SIMULATOR, grid_loop, kernel
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
    lists, kernels = build_lists(name), build_kernels(shape, name)
    place_all, moved_all, clear_all, fill_all, sort_all, find_all, select_all, pair_all, settle_all = map(
        grid_loop, lists
    )
    sums_one, partial_forces_one = kernels.sums.one, kernels.partial_forces.one
    network_all = grid_loop(kernels.network)
    gather_none, gather_sum, gather_sites = map(grid_loop, kernels.gather)
    follow_all, remember_all = map(grid_loop, build_follow(name))
    collect_all, collect_totals_all, add_all = map(grid_loop, (collect, collect_totals, add_totals))

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
                follow_all(replicas, follow)
                wait()
            # what follows a stage without a barrier is of the same site, hence done by the same thread
            place_all(copied, place)
            moved_all(n, moved)
            wait()
            if state[STALE] != 0:
                clear_all(bins, clear)
                wait()
                fill_all(copied, fill)
                wait()
                sort_all(bins, sort)
                wait()
                find_all(n, find)
                wait()
                select_all(n, select)
                wait()
                pair_all(n, pair)
                settle_all(n, settle)
                if CHANGES_CELL:
                    remember_all(replicas, remember)
                wait()
            for k in range(cuda.grid(1), n * lanes, cuda.gridsize(1)):
                sums_one(k % n, k // n, lanes, *sums)
            wait()
            network_all(n, network)
            wait()
            for k in range(cuda.grid(1), n * lanes, cuda.gridsize(1)):
                partial_forces_one(k % n, k // n, lanes, *partial_forces)
            wait()
            per_site = PER_SITE or (last and virials_at_end)
            if per_site:
                gather_sites(n, gather)
            elif total:
                gather_sum(n, gather)
            else:
                gather_none(n, gather)
            collect_all(n, (*site, per_site, gather[-1], s))
            wait()
            if total:
                for k in range(cuda.blockIdx.x, replicas * sum_blocks, cuda.gridDim.x):
                    block_totals(k // sum_blocks, k % sum_blocks, sum_blocks, shared, *sums_of_blocks)
                wait()
                add_all(replicas * TOTALS, add_sums)
                wait()
                collect_totals_all(replicas, (*take, s))
                wait()
            for r in range(first(), replicas, stride()):
                if DRIVEN:
                    drive_one(r, s, h, p, q, step, memory)
                end_one(r, s, h, p, q, step, memory)
                judge_one(r, s, limits, state, memory)
                if sampled:
                    observe(s, ints, floats, start, members, memory)

    return advance
