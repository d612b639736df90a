"""Several runs that are advanced together: small systems alone cannot keep all cores busy."""

from __future__ import annotations

import contextlib
import os

import numpy as np

from ..potential.evaluate import EvaluationError
from .backends import on_devices
from .driver import MDFailed
from .loop import BAD_CELL, HOT, NOT_FINITE, PHASE, REASON, WHERE, Backup, Calendar
from .run import Run
from .setup import MDError
from .state import State

__all__ = ["PER_REPLICA", "PER_SITE", "Batch"]

# arrays of the state with one row per replica, per site, per group member and per group
PER_REPLICA = ("cell", "virial", "energy", "seed", "n_dof", "pbc")
PER_SITE = ("x", "v", "f", "m", "w", "types", "energies", "virials", "bits", "more_bits")


class Batch:
    """Runs of the same model, time step and kind of ensemble, advanced by one compiled loop.

    Made by ``MD.batch([...])``. Every run (:class:`~ase_nepcg.MD`) keeps its own atoms (different numbers, cells),
    temperature, pressure, seed, observers, outputs and checkpoint, gives bit for bit what it would give alone, and can
    be used on its own afterwards. The number of threads is that of the first run's calculator.

    ``devices``: CUDA devices to divide the runs among ("all" or their numbers); None: the device of the first run.

    When one of them fails, all end after the same complete step. Raises MDError for runs that do not fit together.
    """

    def __init__(self, runs, devices=None):
        self.runs = list(runs)
        if not self.runs:
            raise MDError("a batch needs at least one run")
        self._check()
        self._backend = self.runs[0]._backend
        if devices is not None:
            self._backend = on_devices(self._backend, devices, len(self.runs))

    def _check(self) -> None:
        """Whether the runs can be advanced together, as they are now."""
        first = self.runs[0]
        for k, other in enumerate(self.runs[1:], 1):
            for what, a, b in (
                ("model", first.calc.model, other.calc.model),
                ("temperature_K of the model", *(run.calc.parameters.temperature_K for run in (first, other))),
                ("time step", first.timestep_fs, other.timestep_fs),
                ("kind of ensemble", type(first.ensemble).__name__, type(other.ensemble).__name__),
                ("number of variables of the ensemble", first.simulation.q.shape, other.simulation.q.shape),
                ("number of steps made", first.nsteps, other.nsteps),
            ):
                if a != b:
                    raise MDError(f"runs of a batch need the same {what}: run 0 has {a}, run {k} has {b}")
        if _repeated(id(run.atoms) for run in self.runs):
            raise MDError("two runs of the batch are, or share, the same atoms: give each its own copy")
        if _repeated(id(run.calc) for run in self.runs):
            raise MDError("two runs of the batch share a calculator, which holds the results of one: give each its own")
        paths = [os.path.realpath(run.checkpoint_path) for run in self.runs if run.checkpoint_path is not None]
        if _repeated(paths):
            raise MDError("two runs of the batch have the same checkpoint file: give each its own")

    @property
    def nsteps(self) -> int:
        """Steps that are complete."""
        return self.runs[0].nsteps

    def _join(self) -> Run:
        """One simulation of all replicas; the runs' own arrays become views of its arrays."""
        parts = [run.simulation for run in self.runs]
        states = [part.state for part in parts]
        sites = np.cumsum([0, *(len(s.x) for s in states)])
        groups = np.cumsum([0, *(len(s.held) for s in states)])
        members = np.cumsum([0, *(len(s.members) for s in states)])
        joined = {name: np.concatenate([getattr(s, name) for s in states]) for name in (*PER_REPLICA, *PER_SITE)}
        state = State(
            **joined,
            first=sites.astype(np.int64),
            group_first=groups.astype(np.int64),
            start=np.concatenate([[0], *(s.start[1:] + at for s, at in zip(states, members, strict=False))]).astype(
                np.int64
            ),
            members=np.concatenate([s.members + at for s, at in zip(states, sites, strict=False)]),
            share=np.concatenate([s.share for s in states]),
            held=np.concatenate([s.held for s in states]),
        )
        ints, floats, table = [], [], []
        at = np.zeros(2, np.int64)
        for r, part in enumerate(parts):
            rows = part.calendar.table.copy()
            rows[:, 1] = r
            rows[:, 4:6] += at[0]
            rows[:, 6:8] += at[1]
            table.append(rows)
            ints.append(part.calendar.ints)
            floats.append(part.calendar.floats)
            at += np.array([len(part.calendar.ints), len(part.calendar.floats)])
        whole = Run(
            state,
            parts[0].ensemble,
            parts[0].h,
            np.concatenate([part.p for part in parts]),
            np.concatenate([part.q for part in parts]),
            np.concatenate([part.limits for part in parts]),
            Calendar(np.concatenate(table), np.concatenate(ints), np.concatenate(floats)),
            parts[0].progress.copy(),
        )
        at = np.zeros(2, np.int64)
        for r, (run, part) in enumerate(zip(self.runs, parts, strict=True)):
            mine, one = slice(sites[r], sites[r + 1]), slice(r, r + 1)
            views = {name: getattr(state, name)[mine] for name in PER_SITE}
            views |= {name: getattr(state, name)[one] for name in PER_REPLICA}
            views["held"] = state.held[groups[r] : groups[r + 1]]
            part.state = part.state._replace(**views)
            part.p, part.q, part.limits = whole.p[one], whole.q[one], whole.limits[one]
            old = whole.backup
            part.backup = Backup(old.x[mine], old.v[mine], old.f[mine], old.cell[one], old.q[one])
            # all runs count the same steps
            part.progress = whole.progress
            own = part.calendar
            end = at + np.array([len(own.ints), len(own.floats)])
            part.calendar = Calendar(
                own.table, whole.calendar.ints[at[0] : end[0]], whole.calendar.floats[at[1] : end[1]]
            )
            for handle, row in zip(run.handles, own.table, strict=True):
                handle.ints, handle.floats = part.calendar.ints[row[4] : row[5]], part.calendar.floats[row[6] : row[7]]
            at = end
        return whole

    def run(self, steps: int) -> bool:
        """Advance all runs by ``steps``; True, as ASE's drivers."""
        self._check()
        runs = self.runs
        with contextlib.ExitStack() as stack:
            for run in runs:
                stack.enter_context(run._begin(steps))
            bar = stack.enter_context(runs[0]._bar(steps))
            whole = self._join()
            last = whole.step + steps
            try:
                while whole.step < last:
                    target = min(last, *(run._next_due() for run in runs))
                    while whole.step < target:
                        self._advance(whole, target, bar)
                        if whole.step < target:
                            for run in runs:
                                if run.checkpoint_interval is None:
                                    run._save_if_due()
                    calendars = [run.simulation.calendar for run in runs]
                    for run in runs:
                        run._call()
                        run._save_if_due()
                    if any(a is not run.simulation.calendar for a, run in zip(calendars, runs, strict=True)):
                        # a function has attached an observer
                        whole = self._join()
            finally:
                if whole.progress[PHASE]:
                    # energies and virials may be those of the step that is given up
                    whole.rewind()
                    self._backend.evaluate(whole)
                for run in runs:
                    # each counts for itself again
                    run.simulation.progress = whole.progress.copy()
        return True

    def _advance(self, whole: Run, target: int, bar) -> None:
        """Some steps of all runs towards ``target``."""
        first = whole.step
        try:
            self._backend.advance(whole, target)
        except (EvaluationError, ValueError) as error:
            k, error = self._failed(whole, error)
            whole.rewind()
            self._backend.evaluate(whole)
            self.runs[k]._fail(f"replica {k}: step {whole.step + 1} cannot be completed: {error}", error)
        for k, run in enumerate(self.runs):
            try:
                run._check_energy(first)
            except MDFailed as error:
                raise MDFailed(f"replica {k}: {error}") from None
        bar.update(whole.step - first)
        self.runs[0]._report(bar)

    def _failed(self, whole: Run, error: Exception) -> tuple[int, Exception]:
        """Which run it was, and its error with the numbers that its sites have there."""
        reason, where = whole.progress[REASON], int(whole.progress[WHERE])
        if reason not in (NOT_FINITE, HOT, BAD_CELL):
            for k, run in enumerate(self.runs):
                try:
                    run._backend.evaluate(run.simulation)
                except (EvaluationError, ValueError) as own:
                    return k, own
        return where, error


def _repeated(values) -> bool:
    values = list(values)
    return len(set(values)) < len(values)
