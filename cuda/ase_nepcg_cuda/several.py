"""A batch of replicas on several devices: a thread and a backend for each, which advance their own part of the arrays.

Replicas do not act on each other, so that nothing passes between devices. All parts make the same steps: the host
gives out blocks of them, and where a part fails the others go back to the last step that all have completed.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import cuda

from ase_nepcg.md.batch import PER_REPLICA, PER_SITE
from ase_nepcg.md.calendar import uninterrupted
from ase_nepcg.md.loop import PHASE, STEP, WHERE, Backup, Calendar
from ase_nepcg.md.run import Run
from ase_nepcg.md.setup import MDError
from ase_nepcg.potential.evaluate import EvaluationError

from .backend import CHANGED, CudaBackend, next_block
from .device import SIMULATOR

__all__ = ["SeveralDevices", "divide"]


def _numbers(devices) -> list[int]:
    """``devices``, "all" or a sequence of numbers, as a list; MDError."""
    count = len(list(cuda.gpus))
    if isinstance(devices, str) and devices == "all":
        return list(range(count))
    try:
        found = [int(one) for one in devices] if not isinstance(devices, str) else None
    except (TypeError, ValueError):
        found = None
    if not found or not all(0 <= one < count for one in found):
        raise MDError(f"devices={devices!r}: expected 'all' or numbers of CUDA devices, from 0 to {count - 1}")
    return found


def divide(run: Run, count: int) -> list[Run]:
    """``run`` as ``count`` runs of successive replicas with about as many sites each; their arrays are views."""
    s, old = run.state, run.backup
    replicas = len(s.seed)
    wanted = np.searchsorted(s.first, np.arange(count) / count * s.first[-1])
    # every part has a replica
    bounds = [0]
    for k in range(1, count):
        bounds.append(min(max(int(wanted[k]), bounds[-1] + 1), replicas - count + k))
    bounds.append(replicas)
    parts = []
    for a, b in itertools.pairwise(bounds):
        sites, groups = slice(s.first[a], s.first[b]), slice(s.group_first[a], s.group_first[b])
        members = slice(s.start[groups.start], s.start[groups.stop])
        views = {name: getattr(s, name)[sites] for name in PER_SITE} | {n: getattr(s, n)[a:b] for n in PER_REPLICA}
        state = s._replace(
            **views,
            first=s.first[a : b + 1] - s.first[a],
            group_first=s.group_first[a : b + 1] - s.group_first[a],
            start=s.start[groups.start : groups.stop + 1] - s.start[groups.start],
            members=s.members[members] - s.first[a],
            share=s.share[members],
            held=s.held[groups],
        )
        rows = run.calendar.table[(run.calendar.table[:, 1] >= a) & (run.calendar.table[:, 1] < b)]
        rows[:, 1] -= a
        part = Run(
            state, run.ensemble, run.h, run.p[a:b], run.q[a:b], run.limits[a:b],
            Calendar(rows, run.calendar.ints, run.calendar.floats), run.progress.copy(),
            Backup(old.x[sites], old.v[sites], old.f[sites], old.cell[a:b], old.q[a:b]), part_from=a,
        )  # fmt: skip
        parts.append(part)
    return parts


@functools.cache
def _leave_modules_at_exit() -> None:
    """Devices of one kind share the library of a kernel, which numba would unload at exit once for each of them."""

    def leave():
        for gpu in cuda.gpus:
            if (context := gpu._device.primary_context) is not None:
                for module in context.modules.values():
                    module._finalizer.detach()

    atexit.register(leave)


class SeveralDevices:
    """The backend of a batch on ``devices``, with the methods of :class:`~.backend.CudaBackend`, as ``like``."""

    def __init__(self, like: CudaBackend, devices, replicas: int):
        e = like.evaluator
        self.numbers = _numbers(devices)[:replicas]
        self._threads = [ThreadPoolExecutor(1, "nepcg-device") for _ in self.numbers]
        settings = {"precision": e.precision, "temperature_K": e.temperature_K, "skin": e.skin}
        self._backends = []
        for number, thread in zip(self.numbers, self._threads, strict=True):
            try:
                thread.submit(cuda.select_device, number).result()
                self._backends.append(thread.submit(CudaBackend, e.model, **settings).result())
            except Exception as error:
                # whatever the driver says: the device is taken, too old, full
                raise MDError(f"devices={devices!r}: device {number} cannot be used: {error}") from error
        if not SIMULATOR:
            _leave_modules_at_exit()
        # the simulator runs one kernel at a time; contexts are not made for two threads
        alone = SIMULATOR or len(set(self.numbers)) < len(self.numbers)
        self._turn = threading.Lock() if alone else contextlib.nullcontext()
        self._of, self._parts, self._compiled, self._block = None, [], False, 16

    @property
    def builds(self) -> int:
        """Neighbour lists made by the host."""
        return sum(backend.builds for backend in self._backends)

    def evaluate(self, run: Run, virials: bool = False) -> None:
        """As that of one device."""
        self._divide(run)
        for error in self._all(lambda backend, part: backend.evaluate(part, virials)).values():
            raise error

    def advance(self, run: Run, last_step: int) -> None:
        """Some steps towards ``last_step``, about 0.1 s. Errors, and what they leave, as those of one device."""
        if last_step <= run.step:
            return
        self._divide(run)
        steps = min(last_step - run.step, self._block)
        before = _Kept(run)
        started = time.perf_counter()
        with uninterrupted():
            errors = self._go_to(run.step + steps)
            if errors:
                complete = min(self._parts[k].step for k in errors)
                before.restore()
                _refuse_unknown(errors)
                self._fail_after(run, complete, before)
            run.progress[:] = self._parts[0].progress
        seconds = time.perf_counter() - started
        if steps == self._block:
            # as long as those of one device: the energy is checked after each
            self._block = next_block(steps, seconds)

    def _fail_after(self, run: Run, step: int, before: _Kept) -> None:
        """Make ``step``, the last that all parts complete, and the next, with its error; ``run.rewind()`` then leads
        back to ``step``.

        Blocks of other lengths may differ by rounding. So the repetition may fail earlier than the first time, and may
        even succeed.
        """
        self._divide(run)
        while errors := self._go_to(step):
            step = min(self._parts[k].step for k in errors)
            before.restore()
            _refuse_unknown(errors)
            self._divide(run)
        for part in self._parts:
            part.keep()
        run.progress[STEP] = step
        counted = _Kept(run)
        errors = self._go_to(step + 1)
        if not errors:
            return
        try:
            _refuse_unknown(errors)
        except BaseException:
            before.restore()
            raise
        # parts that can make the step have counted it
        counted.restore(observers=True)
        k = min(errors)
        run.progress[:] = self._parts[k].progress
        run.progress[STEP], run.progress[PHASE] = step, 1
        run.progress[WHERE] += self._parts[k].part_from
        raise errors[k]

    def _divide(self, run: Run) -> None:
        if self._of is not run.state:
            self._of, self._parts = run.state, divide(run, len(self._backends))
        for part in self._parts:
            part.progress[:] = run.progress
            # of an earlier failure
            part.progress[WHERE] = 0

    def _go_to(self, step: int) -> dict:
        def work(backend, part):
            while part.step < step:
                backend.advance(part, step)

        errors = self._all(work)
        self._compiled = True
        return errors

    def _all(self, work) -> dict:
        """``work(backend, part)`` for all parts, at the same time; {part: error}."""

        def one(backend, part):
            with self._turn:
                work(backend, part)

        begun = []
        for thread, backend, part in zip(self._threads, self._backends, self._parts, strict=True):
            begun.append(thread.submit(one, backend, part))
            if not self._compiled:
                # one after the other: else all would compile the same kernels
                begun[-1].exception()
        errors = [future.exception() for future in begun]
        return {k: error for k, error in enumerate(errors) if error is not None}


def _refuse_unknown(errors: dict) -> None:
    """Raise what does not say that a step cannot be made: errors of the driver, say."""
    for error in errors.values():
        if not isinstance(error, EvaluationError | ValueError):
            raise error


class _Kept:
    """What steps change in a run, at one moment."""

    def __init__(self, run: Run):
        self._run, self._step = run, run.step
        self._state = [
            (one, one.copy()) for one in (*(getattr(run.state, name) for name in (*CHANGED, "virials")), run.q)
        ]
        self._observers = [(one, one.copy()) for one in (run.calendar.ints, run.calendar.floats)]

    def restore(self, observers: bool = False) -> None:
        """All of it; ``observers``: only what they have counted."""
        for array, old in self._observers if observers else self._state + self._observers:
            array[:] = old
        self._run.progress[STEP] = self._step
