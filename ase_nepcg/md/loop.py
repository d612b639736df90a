"""Many time steps with the forces of a NEP in one compiled call.

All threads enter :func:`run_steps` at once. The first becomes the leader: it integrates, opens one task (forces, or the
search for neighbours) after the other and waits until nobody works on it any more. The others (helpers) wait for a
task to be opened, take chunks of it until none is left, and wait again. A helper that comes late finds nothing to do;
the leader waits for chunks that a helper has begun, never for a helper that sleeps. Chunks and the order of sums are
fixed, so trajectories are the same bits for any number of threads.

Every task has a line of counters (``slots``) of its own, so that a helper that is late by a whole step cannot take a
chunk of the next one.

The NEP kernel, the two halves of a step and the observers are called by their addresses: this loop is compiled once
for models of all shapes, all ensembles and all observers.
"""

from __future__ import annotations

import ctypes
import functools
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ..potential.cache import kernel_jit
from ..potential.evaluate import KernelArguments
from ..potential.lists import AGAIN, DONE, LONGEST, STATUS, fits, place_sites, prepare, search, settle
from ..potential.nep import sum_chunks
from ..potential.simd import fetch_add, pointer
from .state import inlined
from .steps import volume

__all__ = [
    "BAD_CELL",
    "FINISHED",
    "HOT",
    "LIST",
    "NOT_FINITE",
    "OVERLAP",
    "PHASE",
    "REASON",
    "SLOT",
    "STEP",
    "WHERE",
    "Backup",
    "Calendar",
    "collect",
    "complete_step",
    "ensemble_kernels",
    "kernel_address",
    "run_steps",
]

# why the loop ended
FINISHED, LIST, OVERLAP, NOT_FINITE, HOT, BAD_CELL = range(6)
# entries of ``progress``; WHERE: the replica in which something is wrong
STEP, PHASE, REASON, WHERE = range(4)
# counters per task: chunks and workspaces of the NEP kernel, chunks of the search, pages of two sums; then whether
# virials of the sites are wanted, and what kind of task it is. A cache line
SLOT = 8
_SEARCH, _FORCES = 0, 1
_SUM, _SUM_VIRIALS, _PER_SITE, _KIND = 4, 5, 6, 7
# arguments of the NEP kernel that the loop itself uses
_TOUCHED, _PER_SITE_ARGUMENT, _ENERGIES, _FORCE_PARTS, _VIRIAL_PARTS, _SITE_VIRIALS, _STATUS = map(
    KernelArguments._fields.index,
    ("touched", "per_site", "energies", "force_parts", "virial_parts", "site_virials", "status"),
)
# entries of ``gate``, on cache lines of their own: number of the open task (CLOSED: go home), helpers at work
_OPEN, _INSIDE = 0, 8
_CLOSED = 1 << 40
# tasks of one step: forces, and a few searches until there is room enough
_TASKS_PER_STEP = 4
# rows of Calendar.table
_ADDRESS, _REPLICA, _INTERVAL, _AFTER, _INTS, _INTS_END, _FLOATS, _FLOATS_END, _WANTS_VIRIALS = range(9)

_HAS_YIELD = hasattr(ctypes.CDLL(None), "sched_yield")


class Backup(NamedTuple):
    """What a step changes, as it was at its beginning."""

    x: np.ndarray
    v: np.ndarray
    f: np.ndarray
    cell: np.ndarray
    q: np.ndarray


class Calendar(NamedTuple):
    """Observers of the loop. ``table`` (K, 9) int64: address of the kernel, replica, interval, last step before the
    first sample, where its numbers begin and end in ``ints`` and ``floats``, whether it needs the virials of sites."""

    table: np.ndarray
    ints: np.ndarray
    floats: np.ndarray


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


def _emit_call(context, builder, address, parameters, values):
    function_type = context.call_conv.get_function_type(types.none, parameters)
    function = builder.inttoptr(address, function_type.as_pointer())
    context.call_conv.call_function(builder, function, types.none, parameters, values)
    return context.get_dummy_value()


@intrinsic
def _call(typingctx, address, arguments):
    """Call the compiled function at ``address``, which returns nothing, with a tuple of arguments."""

    def codegen(context, builder, signature, values):
        return _emit_call(context, builder, values[0], tuple(arguments.types), cgutils.unpack_tuple(builder, values[1]))

    return types.void(address, arguments), codegen


@intrinsic
def _call_nep(typingctx, address, slot, per_site, arguments):
    """Call the NEP kernel at ``address`` with the counters ``slot``; ``per_site`` replaces that of ``arguments``."""

    def codegen(context, builder, signature, values):
        rest = cgutils.unpack_tuple(builder, values[3])
        rest[_PER_SITE_ARGUMENT] = values[2]
        return _emit_call(context, builder, values[0], (slot, *arguments.types), [values[1], *rest])

    return types.void(address, slot, types.boolean, arguments), codegen


@functools.cache
def kernel_address(kernel) -> int:
    """Address of the only compiled form of a kernel, which must have been compiled before (ValueError)."""
    (compiled,) = kernel.overloads.values()
    return compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)


@functools.cache
def ensemble_kernels(ensemble):
    """The functions of an ensemble (class) as kernels over all replicas: begin, end, extra, drive (or None).

    begin, end, drive: ``(s, h, p, q, step)`` with ``p`` (R, n_params), ``q`` (R, n_state); extra fills ``out`` (R,).
    """
    functions = ensemble.kernels()
    begin_one, end_one, extra_one, drive_one = functions.begin, functions.end, functions.extra, functions.drive
    key = ensemble.__module__, ensemble.__qualname__

    @kernel_jit("begin", *key)
    def begin(s, h, p, q, step):
        for r in range(s.first.size - 1):
            begin_one(s, r, h, p[r], q[r], step)

    @kernel_jit("end", *key)
    def end(s, h, p, q, step):
        for r in range(s.first.size - 1):
            end_one(s, r, h, p[r], q[r], step)

    @kernel_jit("extra", *key)
    def extra(s, h, p, q, out):
        for r in range(s.first.size - 1):
            out[r] = extra_one(s, r, h, p[r], q[r])

    drive = None
    if drive_one is not None:

        @kernel_jit("drive", *key)
        def drive(s, h, p, q, step):
            for r in range(s.first.size - 1):
                drive_one(s, r, h, p[r], q[r])

    return begin, end, extra, drive


@inlined
def _complete(end, s, h, p, q, progress, calendar):
    """The second half of a step, and the observers that are due; counts the step."""
    step = progress[STEP] + 1
    if end != 0:
        _call(end, (s, h, p, q, step))
    progress[PHASE] = 0
    progress[STEP] = step
    table = calendar.table
    for k in range(table.shape[0]):
        since = step - table[k, _AFTER]
        if since > 0 and since % table[k, _INTERVAL] == 0:
            ints = calendar.ints[table[k, _INTS] : table[k, _INTS_END]]
            floats = calendar.floats[table[k, _FLOATS] : table[k, _FLOATS_END]]
            _call(table[k, _ADDRESS], (s, table[k, _REPLICA], step, ints, floats))


@kernel_jit()
def complete_step(end, s, h, p, q, progress, calendar):
    """What follows the forces of a step, for forces from elsewhere; ``end`` 0: the velocities are final already.

    One call, so that an interrupt finds a step done or not done.
    """
    _complete(end, s, h, p, q, progress, calendar)


@inlined
def _wants_virials(step, table):
    """Whether an observer that is due after ``step`` needs the virials of the sites."""
    wanted = False
    for k in range(table.shape[0]):
        since = step - table[k, _AFTER]
        wanted = wanted or (table[k, _WANTS_VIRIALS] != 0 and since > 0 and since % table[k, _INTERVAL] == 0)
    return wanted


@inlined
def _wait(p_gate):
    """Until no helper works."""
    while fetch_add(p_gate, _INSIDE, 0) > 0:
        _give_way()


@inlined
def _keep(s, q, old):
    for i in range(s.w.size):
        for d in range(3):
            old.x[i, d] = s.x[i, d]
            old.v[i, d] = s.v[i, d]
            old.f[i, d] = s.f[i, d]
    for r in range(s.cell.shape[0]):
        for d in range(3):
            for c in range(3):
                old.cell[r, d, c] = s.cell[r, d, c]
        for c in range(q.shape[1]):
            old.q[r, c] = q[r, c]


@inlined
def _collect(s, nep, slot, pages, per_site, chunk_first, progress):
    """Sum the parts of all chunks into ``s``; REASON where something is wrong."""
    sum_chunks(slot[_SUM:_SUM_VIRIALS], nep[_TOUCHED], pages, 3, nep[_FORCE_PARTS], s.f.reshape(s.f.size))
    if per_site:
        sum_chunks(
            slot[_SUM_VIRIALS:_PER_SITE], nep[_TOUCHED], pages, 9, nep[_SITE_VIRIALS], s.virials.reshape(s.virials.size)
        )
    for r in range(s.first.size - 1):
        virial = s.virial[r]
        for d in range(9):
            virial[d // 3, d % 3] = 0.0
        for chunk in range(chunk_first[r], chunk_first[r + 1]):
            if nep[_STATUS][2 * chunk] != 0:
                progress[REASON], progress[WHERE] = OVERLAP, r
            for d in range(9):
                virial[d // 3, d % 3] += nep[_VIRIAL_PARTS][9 * chunk + d]
        energy = size = 0.0
        for i in range(s.first[r], s.first[r + 1]):
            energy += nep[_ENERGIES][i]
            s.energies[i] = nep[_ENERGIES][i]
            size += abs(s.f[i, 0]) + abs(s.f[i, 1]) + abs(s.f[i, 2])
        s.energy[r] = energy
        if progress[REASON] == FINISHED and not size + abs(energy) < 1e300:
            progress[REASON], progress[WHERE] = NOT_FINITE, r


@kernel_jit()
def collect(s, nep, per_site, chunk_first, progress):
    """Forces, energies and virials into ``s``, after the NEP kernel was called from Python."""
    progress[REASON] = FINISHED
    pages = nep[_TOUCHED].size // (nep[_STATUS].size // 2)
    _collect(s, nep, np.zeros(SLOT, np.int64), pages, per_site, chunk_first, progress)


@inlined
def _judge(s, limits, progress):
    """REASON where a step, though finite, makes no sense. ``limits`` (R, 4): kinetic energy (eV), speed (Å per ASE time
    unit), smallest and largest volume (Å^3)."""
    for r in range(s.first.size - 1):
        fastest = twice = 0.0
        for i in range(s.first[r], s.first[r + 1]):
            v2 = s.v[i, 0] ** 2 + s.v[i, 1] ** 2 + s.v[i, 2] ** 2
            twice += s.m[i] * v2
            # also where it is not a number
            if not v2 <= fastest:
                fastest = v2
        if not (0.5 * twice <= limits[r, 0] and fastest <= limits[r, 1] ** 2):
            progress[REASON], progress[WHERE] = HOT, r
        elif not limits[r, 2] <= volume(s, r) <= limits[r, 3]:
            progress[REASON], progress[WHERE] = BAD_CELL, r


@kernel_jit()
def run_steps(
    counter, address, nep, begin, end, drive, drive_virials, slots, gate, lists, longest, threads, last_step, progress,
    s, old, h, p, q, chunk_first, limits, calendar,
):  # fmt: skip
    """Advance to step ``last_step``, or until something needs Python; see ``progress``.

    ``nep``: arguments of the kernel at ``address`` after its counters, a plain tuple (numba takes long to recognise a
    named one); ``begin``, ``end``, ``drive``: addresses of the ensemble's kernels (``drive`` 0: none, ``drive_virials``
    whether it needs the virials of the sites); ``slots`` (tasks, SLOT) and ``gate`` (16,) zero; ``lists``: ListArrays;
    ``longest``: most neighbours for which the kernel has memory; ``old``: Backup; ``chunk_first`` (R + 1,): chunks of
    each replica; ``limits``: see :func:`_judge`.
    """
    p_gate = pointer(gate)
    if fetch_add(pointer(counter), 1, 1) > 0:
        last = 0
        while True:
            now = fetch_add(p_gate, _OPEN, 0)
            if now >= _CLOSED:
                return
            if now > last:
                fetch_add(p_gate, _INSIDE, 1)
                slot = slots[now - 1]
                if slot[_KIND] == _SEARCH:
                    search(slot, lists)
                else:
                    _call_nep(address, slot, slot[_PER_SITE] != 0, nep)
                fetch_add(p_gate, _INSIDE, -1)
                last = now
            else:
                _give_way()

    pages = nep[_TOUCHED].size // (nep[_STATUS].size // 2)
    progress[REASON] = FINISHED
    used = 0
    while progress[STEP] < last_step and used + _TASKS_PER_STEP <= slots.shape[0]:
        if progress[PHASE] == 0:
            _keep(s, q, old)
            _call(begin, (s, h, p, q, progress[STEP] + 1))
            progress[PHASE] = 1
        if not fits(lists, s.x, s.cell):
            prepare(lists, s.x, s.cell)
            while lists.info[STATUS] == DONE and used + 1 < slots.shape[0]:
                slot = slots[used]
                used += 1
                slot[_KIND] = _SEARCH
                if threads > 1:
                    fetch_add(p_gate, _OPEN, 1)
                search(slot, lists)
                if threads > 1:
                    _wait(p_gate)
                settle(lists, s.x)
                if lists.info[STATUS] != AGAIN:
                    break
                lists.info[STATUS] = DONE
            if not fits(lists, s.x, s.cell):
                progress[REASON] = LIST
                break
        if lists.info[LONGEST] > longest:
            progress[REASON] = LIST
            break
        place_sites(lists, s.x)
        per_site = (drive != 0 and drive_virials) or _wants_virials(progress[STEP] + 1, calendar.table)
        slot = slots[used]
        used += 1
        slot[_KIND], slot[_PER_SITE] = _FORCES, per_site
        if threads > 1:
            fetch_add(p_gate, _OPEN, 1)
        _call_nep(address, slot, per_site, nep)
        if threads > 1:
            _wait(p_gate)
        _collect(s, nep, slot, pages, per_site, chunk_first, progress)
        if progress[REASON] != FINISHED:
            break
        if drive != 0:
            _call(drive, (s, h, p, q, progress[STEP] + 1))
        _call(end, (s, h, p, q, progress[STEP] + 1))
        _judge(s, limits, progress)
        if progress[REASON] != FINISHED:
            break
        _complete(0, s, h, p, q, progress, calendar)
    if threads > 1:
        fetch_add(p_gate, _OPEN, _CLOSED)
