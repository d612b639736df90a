"""Engine for runs with held sites whose forces come from a NEP: compiled from one neighbour list to the next."""

from __future__ import annotations

import time

import numpy as np

from ..potential.evaluate import EvaluationError, Evaluator, Geometry
from ..potential.layout import PAGE
from ..potential.threads import run_chunks
from .loop import NOT_FINITE, OVERLAP, REASON, SLOT, kernel_address, run_steps

__all__ = ["NepEngine"]

# a call of the compiled loop lasts about this long, so that an interrupt is seen soon
_SECONDS_PER_CALL = 0.05
_MAX_STEPS = 1024
# of the neighbour list, Å
_SKIN = 1.5


class NepEngine:
    """Advances a :class:`~ase_nepcg.md.held.HeldRun` by the forces of a NEP model."""

    has_virial = True

    def __init__(self, model, types, cell, pbc, *, threads=None, temperature_K=None):
        self._evaluator = Evaluator(model, threads=threads, temperature_K=temperature_K)
        # for a few hundred atoms a list costs as much as two evaluations; this one holds four times as long as usual
        self._evaluator.neighbors.skin = _SKIN
        self._types, self._cell, self._pbc = types, cell, pbc
        self._steps_per_call = 8
        self._address = None

    def _geometry(self, x):
        return Geometry(x, self._cell, self._pbc, self._types)

    def begin(self, run) -> float:
        """Forces at the present positions into ``run.f``; returns the potential energy."""
        result = self._evaluator(self._geometry(run.x))
        run.f[:] = result.forces
        return result.energy

    def advance(self, run, last_step: int, sample_from: int) -> None:
        """Some steps towards ``last_step``, about 0.05 s; steps after ``sample_from`` are sampled.

        Raises EvaluationError where a step cannot be completed; ``run.rewind()`` leads back to its beginning.
        """
        arguments, threads = self._evaluator.prepare(self._geometry(run.x))
        near = self._evaluator.neighbors
        if self._address is None:
            if not self._evaluator.kernel.overloads:  # taken up from a checkpoint: nothing has been evaluated yet
                self._evaluator(self._geometry(run.x))
                arguments, threads = self._evaluator.prepare(self._geometry(run.x))
            self._address = kernel_address(self._evaluator.kernel)
        begin, first = time.perf_counter(), run.step
        run_chunks(
            run_steps,
            (
                *(self._address, tuple(arguments)),
                *(np.zeros((self._steps_per_call, SLOT), np.int64), np.zeros(16, np.int64)),
                *(near.origin, near.offset, near.farthest**2, -(-len(run.x) // PAGE), threads),
                *(last_step, sample_from, run.interval, run.progress),
                *(run.x, run.v, run.f, run.backup, run.w, *run.groups, run.centre, run.h, run.c, run.kT, run.seed),
                *(run.anchor, run.is_site, run.implicit_share, run.reference, run.virial, run.y, *run.table.arrays),
            ),
            threads,
        )
        seconds, done = time.perf_counter() - begin, run.step - first
        if done == self._steps_per_call:
            factor = min(_SECONDS_PER_CALL / max(seconds, 1e-9), 2.0)
            self._steps_per_call = int(min(max(done * factor, 1), _MAX_STEPS))
        reason = run.progress[REASON]
        if reason == OVERLAP:
            self._evaluator.check_overlap(arguments.status)
        if reason == NOT_FINITE:
            bad = np.flatnonzero(~np.isfinite(run.f).all(axis=1))
            where = (
                f"the force on atom {bad[0]} is {run.f[bad[0]].tolist()}" if len(bad) else "the energy is not finite"
            )
            raise EvaluationError(where)
