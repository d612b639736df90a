"""Many time steps with the forces of a NEP in one compiled call; no Python between two neighbour lists.

All threads enter :func:`run_steps` at once. The first becomes the leader: it integrates, opens one force evaluation
after the other and waits until nobody works on it any more. The others (helpers) wait for an evaluation to be opened,
take chunks of sites from it until none is left, and wait again. A helper that comes late finds nothing to do; the
leader waits for chunks that a helper has begun, never for a helper that sleeps. Chunks and the order of sums are
fixed, so trajectories are the same bits for any number of threads.

Every evaluation has a line of counters (``slots``) of its own, so that a helper that is late by a whole step cannot
take a chunk of the next one.

The NEP kernel is called by its address: this loop is compiled once for models of all shapes.
"""

from __future__ import annotations

import ctypes
import math

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ..potential.cache import kernel_jit
from ..potential.evaluate import KernelArguments
from ..potential.nep import sum_chunks
from ..potential.simd import fetch_add, pointer
from .accumulate import accumulate, observe
from .integrate import first_half, second_half

__all__ = ["FINISHED", "MOVED", "NOT_FINITE", "OVERLAP", "SLOT", "complete_step", "kernel_address", "run_steps"]

# why the loop ended
FINISHED, MOVED, OVERLAP, NOT_FINITE = range(4)
# entries of ``progress``
STEP, PHASE, REASON = range(3)
# counters per evaluation: chunks and workspaces of the NEP kernel, pages of the sum; a cache line
SLOT = 8
# arguments of the NEP kernel that the loop itself uses
_POSITIONS, _TOUCHED, _ENERGIES, _FORCE_PARTS, _VIRIAL_PARTS, _STATUS = map(
    KernelArguments._fields.index, ("positions", "touched", "energies", "force_parts", "virial_parts", "status")
)
# entries of ``gate``, on cache lines of their own: number of the open evaluation (CLOSED: go home), helpers at work
_OPEN, _INSIDE = 0, 8
_CLOSED = 1 << 40

_inlined = numba.njit(
    error_model="numpy", fastmath={"contract"}, nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True
)

_HAS_YIELD = hasattr(ctypes.CDLL(None), "sched_yield")


@intrinsic
def _give_way(typingctx):
    """Let another thread have the processor."""

    def codegen(context, builder, signature, arguments):
        if _HAS_YIELD:
            function = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(ir.IntType(32), []), "sched_yield"
            )
            builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _call_kernel(typingctx, address, slot, arguments):
    """Call the compiled NEP kernel at ``address`` with the counters ``slot`` and the tuple of its other arguments."""
    parameters = (slot, *arguments.types)

    def codegen(context, builder, signature, values):
        where, first, rest = values
        function_type = context.call_conv.get_function_type(types.none, parameters)
        function = builder.inttoptr(where, function_type.as_pointer())
        context.call_conv.call_function(
            builder, function, types.none, parameters, [first, *cgutils.unpack_tuple(builder, rest)]
        )
        return context.get_dummy_value()

    return types.void(address, slot, arguments), codegen


def kernel_address(kernel) -> int:
    """Address of the only compiled form of a NEP kernel, which must have been called before."""
    (compiled,) = kernel.overloads.values()
    return compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)


@kernel_jit()
def _farthest(x, origin):
    """Square of the largest displacement; infinite if one is not a number."""
    largest = 0.0
    for i in range(x.shape[0]):
        dx, dy, dz = x[i, 0] - origin[i, 0], x[i, 1] - origin[i, 1], x[i, 2] - origin[i, 2]
        d2 = dx * dx + dy * dy + dz * dz
        if not d2 < math.inf:
            return math.inf
        largest = max(largest, d2)
    return largest


@_inlined
def _complete(
    sample_from, interval, progress, x, v, f, w, n_sites, centre, anchor, is_site, implicit_share, energy, reference,
    virial, y, count, weights, squares, sums, sums_u, sums_uu,
):  # fmt: skip
    """Count the step and sample it if it is due."""
    progress[PHASE] = 0
    progress[STEP] += 1
    since = progress[STEP] - sample_from
    if since > 0 and since % interval == 0:
        observe(x, v, f, w, anchor, is_site, centre, implicit_share, n_sites, virial, energy, reference, y)
        accumulate(y, 1.0, y.size - 2, count, weights, squares, sums, sums_u, sums_uu)


@kernel_jit()
def complete_step(
    kick, h, start, members, share, sample_from, interval, progress, x, v, f, w, centre, anchor, is_site,
    implicit_share, energy, reference, virial, y, count, weights, squares, sums, sums_u, sums_uu,
):  # fmt: skip
    """What follows the forces of a step, for forces from elsewhere: last half kick (if ``kick``), count, sample.

    One call, so that an interrupt finds a step done or not done.
    """
    if kick:
        second_half(v, f, w, start, members, share, h)
    _complete(
        sample_from, interval, progress, x, v, f, w, start.size - 1, centre, anchor, is_site, implicit_share, energy,
        reference, virial, y, count, weights, squares, sums, sums_u, sums_uu,
    )  # fmt: skip


@kernel_jit()
def run_steps(
    counter, address, nep, slots, gate, origin, offset, farthest2, pages, threads, last_step, sample_from, interval,
    progress, x, v, f, backup, w, start, members, share, centre, h, c, kT, seed, anchor, is_site, implicit_share,
    reference, virial, y, count, weights, squares, sums, sums_u, sums_uu,
):  # fmt: skip
    """Advance to step ``last_step``, or until the neighbour list is too old or something is wrong; see ``progress``.

    ``nep``: arguments of the kernel at ``address`` after its counters, a plain tuple (numba takes long to recognise a
    named one); ``slots`` (evaluations, SLOT) and ``gate`` (16,)
    zero; ``origin`` (N, 3): positions of the neighbour list, valid up to a squared displacement of ``farthest2``;
    ``offset`` (N, 3): what lies between ``x`` and the positions that the list's shifts belong to; ``backup`` (3, N, 3):
    x, v, f at the beginning of the last step; ``sample_from``: last step that is not sampled. Others as in
    ``integrate`` and ``accumulate``.
    """
    p_gate = pointer(gate)
    n_sites = start.size - 1
    if fetch_add(pointer(counter), 1, 1) > 0:
        last = 0
        while True:
            now = fetch_add(p_gate, _OPEN, 0)
            if now >= _CLOSED:
                return
            if now > last:
                fetch_add(p_gate, _INSIDE, 1)
                _call_kernel(address, slots[now - 1], nep)
                fetch_add(p_gate, _INSIDE, -1)
                last = now
            else:
                _give_way()

    progress[REASON] = FINISHED
    used = 0
    while progress[STEP] < last_step and used < slots.shape[0]:
        if progress[PHASE] == 0:
            for i in range(w.size):
                for d in range(3):
                    backup[0, i, d] = x[i, d]
                    backup[1, i, d] = v[i, d]
                    backup[2, i, d] = f[i, d]
            first_half(x, v, f, w, start, members, share, centre, h, c, kT, seed, progress[STEP] + 1)
            progress[PHASE] = 1
        if not _farthest(x, origin) < farthest2:
            progress[REASON] = MOVED
            break
        for i in range(w.size):
            for d in range(3):
                nep[_POSITIONS][4 * i + d] = x[i, d] - offset[i, d]
        slot = slots[used]
        used += 1
        if threads > 1:
            fetch_add(p_gate, _OPEN, 1)
        _call_kernel(address, slot, nep)
        if threads > 1:
            while fetch_add(p_gate, _INSIDE, 0) > 0:
                _give_way()
        sum_chunks(slot[4:6], nep[_TOUCHED], pages, 3, nep[_FORCE_PARTS], f.reshape(f.size))
        for d in range(9):
            virial[d] = 0.0
        for chunk in range(nep[_VIRIAL_PARTS].size // 9):
            if nep[_STATUS][2 * chunk] != 0:
                progress[REASON] = OVERLAP
            for d in range(9):
                virial[d] += nep[_VIRIAL_PARTS][9 * chunk + d]
        energy = 0.0
        for i in range(nep[_ENERGIES].size):
            energy += nep[_ENERGIES][i]
        size = abs(energy)
        for i in range(w.size):
            size += abs(f[i, 0]) + abs(f[i, 1]) + abs(f[i, 2])
        if progress[REASON] == FINISHED and not size < 1e300:
            progress[REASON] = NOT_FINITE
        if progress[REASON] != FINISHED:
            break
        second_half(v, f, w, start, members, share, h)
        _complete(
            sample_from, interval, progress, x, v, f, w, n_sites, centre, anchor, is_site, implicit_share, energy,
            reference, virial, y, count, weights, squares, sums, sums_u, sums_uu,
        )  # fmt: skip
    if threads > 1:
        fetch_add(p_gate, _OPEN, _CLOSED)
