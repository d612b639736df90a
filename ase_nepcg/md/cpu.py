"""The CPU behind a run: forces of a NEP, and the compiled loop between two moments at which Python is due.

A backend has three methods: ``evaluate`` (forces at the present positions), ``advance`` (steps towards a last one) and
``observe`` (one sample of the observers of the loop, outside it). All it changes is in the arrays of the
:class:`Run`.
"""

from __future__ import annotations

import time

import numpy as np

from ..potential.evaluate import EvaluationError, Evaluator, Geometry
from ..potential.simd import LANES
from ..potential.threads import run_chunks
from .blowup import BlowUp, describe
from .loop import (
    BAD_CELL,
    FINISHED,
    HOT,
    LIST,
    NOT_FINITE,
    OVERLAP,
    REASON,
    SLOT,
    WHERE,
    collect,
    ensemble_kernels,
    kernel_address,
    run_steps,
)
from .run import Run

__all__ = ["CpuBackend"]

# a call of the compiled loop lasts about this long, so that an interrupt is seen soon
_SECONDS_PER_CALL = 0.1
_MAX_TASKS = 8192
# memory for more neighbours of a site than it had when the run began
_SPARE = 1.3


class CpuBackend:
    """Advances a :class:`Run` by the forces of a NEP model on the cores of this machine."""

    def __init__(self, model, *, threads=None, temperature_K=None, skin: float):
        self._evaluator = Evaluator(model, threads=threads, temperature_K=temperature_K)
        self._evaluator.neighbors.skin = skin
        self._tasks = 32

    @property
    def builds(self) -> int:
        """Neighbour lists made so far."""
        return self._evaluator.neighbors.builds

    def _prepare(self, run, virials):
        s = run.state
        near = self._evaluator.neighbors
        spare = 0 if near.arrays is None else int((_SPARE - 1.0) * near.longest) + 8
        return self._evaluator.prepare(Geometry(s.x, s.cell, s.pbc, s.types, s.first), virials=virials, spare=spare)

    def evaluate(self, run: Run, virials: bool = False) -> None:
        """Energies, forces and virials at the present positions, into the state; EvaluationError if there are none."""
        arguments, threads = self._prepare(run, virials)
        run_chunks(self._evaluator.kernel, arguments, threads)
        collect(run.state, tuple(arguments), virials, self._evaluator.chunk_first, run.progress)
        self._raise(run, arguments)
        drive = ensemble_kernels(run.ensemble)[3]
        if drive is not None:
            if run.ensemble.per_site and not virials:
                self.evaluate(run, virials=True)
                return
            drive(run.state, run.h, run.p, run.q, run.step)

    def advance(self, run: Run, last_step: int) -> None:
        """Some steps towards ``last_step``, at most about 0.1 s.

        Raises EvaluationError where a step cannot be completed; ``run.rewind()`` leads back to its beginning.
        """
        s, evaluator = run.state, self._evaluator
        virials = run.ensemble.per_site or bool(run.calendar.table[:, -1].any())
        arguments, threads = self._prepare(run, virials)
        if not evaluator.kernel.overloads:  # taken up from a checkpoint: nothing has been evaluated yet
            run_chunks(evaluator.kernel, arguments, threads)
            arguments, threads = self._prepare(run, virials)
        begin, end, drive = run.addresses()
        started, first = time.perf_counter(), run.step
        near = evaluator.neighbors
        run_chunks(
            run_steps,
            (
                *(kernel_address(evaluator.kernel), tuple(arguments), begin, end, drive, run.ensemble.per_site),
                *(np.zeros((self._tasks, SLOT), np.int64), np.zeros(16, np.int64), near.arrays),
                *(arguments.capacity - len(near.arrays.cutoffs) * LANES, threads, last_step, run.progress),
                *(s, run.backup, run.h, run.p, run.q, evaluator.chunk_first, run.limits, run.calendar),
            ),
            threads,
        )
        seconds, done = time.perf_counter() - started, run.step - first
        if seconds > 0 and done and run.progress[REASON] == FINISHED and run.step < last_step:
            factor = min(max(_SECONDS_PER_CALL / seconds, 0.25), 4.0)
            self._tasks = int(min(max(self._tasks * factor, 8), _MAX_TASKS))
        if run.progress[REASON] == LIST:
            # the next call makes room for it
            near.forget()
        else:
            self._raise(run, arguments)

    def _raise(self, run, arguments) -> None:
        reason, where = run.progress[REASON], run.progress[WHERE]
        if reason == OVERLAP:
            self._evaluator.check_overlap(arguments.status)
        if reason == NOT_FINITE:
            raise EvaluationError(describe(run, reason, where))
        if reason in (HOT, BAD_CELL):
            raise BlowUp(describe(run, reason, where))
