"""The device behind a run: the same methods as ``ase_nepcg.md.cpu.CpuBackend``.

Between two moments at which the host is due (an observer, a function of the user's, the end of a block) nothing leaves
the device: one step is the first half of the ensemble, the box, places, a new neighbour list if the device finds that
one is needed, forces, and the second half. The arrays of the :class:`~ase_nepcg.md.run.Run` stay as they were at the
beginning of the block until it has ended well. So a block with too little memory is simply made again with more, and
one in which something went wrong is made again in smaller blocks, down to the step that cannot be made.
"""

from __future__ import annotations

import time

import numpy as np
from numba import cuda

from ase_nepcg.md.accumulate import ANCHOR
from ase_nepcg.md.blowup import BlowUp, check_limits, describe
from ase_nepcg.md.calendar import uninterrupted
from ase_nepcg.md.loop import NOT_FINITE as RUN_NOT_FINITE
from ase_nepcg.md.loop import PHASE, REASON, STEP, WHERE, complete_step, ensemble_kernels
from ase_nepcg.md.run import Run, no_calendar
from ase_nepcg.potential.evaluate import EvaluationError, Geometry

from .advance import Counts, blocks_at_once, build_advance
from .device import BLOCK
from .evaluate import CudaEvaluator
from .integrate import TEAM, build_follow, build_kernels_of_halves, collect, collect_totals
from .lists import NARROW, NOT_FINITE, OVERLAP, STATE, UNLIKELY
from .meanforce import build_kernel_of_mean_force, members_of

__all__ = ["CHANGED", "CudaBackend", "next_block"]

_SECONDS_PER_BLOCK = 0.1
_MOST_STEPS = 4096
# a cell that changes may become so much thinner before its box is made anew
_SPARE = 1.05
# one step is made again so often for want of memory
_MOST_REPEATS = 8
# up to so many sites, all steps of a block are one launch: then launches would take longer than what they launch
_ONE_LAUNCH_BELOW = 200_000
# a block of threads integrates a replica of up to so many sites, the grid a larger one
_SITES_OF_BLOCK = 2048
# blocks that wait for each other
_MOST_BLOCKS = 4096
# what a run changes
CHANGED = ("x", "v", "f", "cell", "virial", "energy", "energies")


def next_block(steps: int, seconds: float) -> int:
    """Steps of the next block after one of ``steps`` that took ``seconds``."""
    factor = min(max(_SECONDS_PER_BLOCK / seconds, 0.25), 4.0) if seconds > 0 else 1.0
    return int(min(max(steps * factor, 1), _MOST_STEPS))


class CudaBackend:
    """Advances a :class:`~ase_nepcg.md.run.Run` by the forces of a NEP model on the device."""

    def __init__(self, model, *, precision="mixed", temperature_K=None, skin: float, lanes=None):
        self.evaluator = CudaEvaluator(model, precision=precision, temperature_K=temperature_K, lanes=lanes, skin=skin)
        self._block = 16
        self._of = self._box = self._cells = None
        self._spare = _SPARE
        self._partial = cuda.device_array(_MOST_BLOCKS, np.float64)
        self._room = {}

    @property
    def builds(self) -> int:
        """Neighbour lists made by the host; those that the device makes during a block are not counted."""
        return self.evaluator.builds

    def evaluate(self, run: Run, virials: bool = False) -> None:
        """Energies, forces and virials at the present positions, into the state; EvaluationError if there are none."""
        s = run.state
        per_site = virials or run.ensemble.per_site
        result = self.evaluator(Geometry(s.x, s.cell, s.pbc, s.types, s.first), virials=per_site)
        s.f[:], s.energies[:] = result.forces, result.energies
        if per_site:
            s.virials[:] = result.virials.reshape(-1, 9)
        totals = self.evaluator.replica_totals()
        s.energy[:], s.virial[:] = totals[:, 0], totals[:, 1:].reshape(-1, 3, 3)
        drive = ensemble_kernels(run.ensemble)[3]
        if drive is not None:
            drive(s, run.h, run.p, run.q, run.step)

    def advance(self, run: Run, last_step: int) -> None:
        """Some steps towards ``last_step``, about 0.1 s.

        Raises EvaluationError where a step cannot be completed; ``run.rewind()`` leads back to its beginning.
        """
        if last_step <= run.step:
            return
        self._spare = _SPARE
        self._take(run)
        steps = min(last_step - run.step, self._until_due(run), self._block)
        self._limits = cuda.to_device(run.limits)
        started = time.perf_counter()
        repeats = 0
        while True:
            self._upload(run)
            self._launch(run, steps)
            words = self.evaluator.state.copy_to_host()
            short = words[NARROW] or any(self.evaluator.needed(words).values())
            wrong = words[OVERLAP] or words[NOT_FINITE] or words[UNLIKELY]
            if not short and not wrong:
                break
            if steps > 1 and (wrong or repeats):
                # what such a step asks for makes no sense; find the step
                if short:
                    # the list on the device lacks what there was no memory for, and looks as good as new
                    self._new_box(run)
                steps = (steps + 1) // 2
                continue
            repeats += 1
            if not short or (words[NARROW] and words[UNLIKELY]) or repeats > _MOST_REPEATS:
                self._give_up(run, words)
            self._make_room(run, words)
        state, q = self._download(run), self.q.copy_to_host()
        virials = self.device.virials.copy_to_host() if self._wants_virials(run, run.step + steps) else None
        sums = [one.copy_to_host() for one in self._sums[:2]] if run.mean_force is not None else []
        with uninterrupted():
            for mine, device in zip((run.calendar.ints, run.calendar.floats), sums, strict=False):
                mine[:] = device
            for name in CHANGED:
                getattr(run.state, name)[:] = getattr(state, name)
            if virials is not None:
                run.state.virials[:] = virials
            run.q[:] = q
            # the last step is counted with its observers
            run.progress[STEP] += steps - 1
            complete_step(0, run.state, run.h, run.p, run.q, run.progress, self._on_host(run))
        seconds = time.perf_counter() - started
        if steps == self._block:
            self._block = next_block(steps, seconds)

    # --- one block ------------------------------------------------------------------------------------------------

    def _launch(self, run, steps: int) -> None:
        """``steps`` steps on the device, in one launch where the system is small."""
        if self.evaluator.n > _ONE_LAUNCH_BELOW:
            for k in range(1, steps + 1):
                self._step(run, run.step + k, last=k == steps)
            return
        e = self.evaluator
        observes = run.mean_force is not None
        kernel = build_advance(e.shape, e.precision, run.ensemble, run.q.shape[1], self._team(run), observes)
        place, moved = e.place_arguments()
        counts = Counts(e.n, e.n * e.copies, len(run.q), e.bin_count, e.lanes_now(), e.sum_blocks)
        totals = (*e.totals_arguments(), (e.n, e.forces, e.energies), (e.sums,))
        arguments = (
            *(run.step + 1, steps, self._wants_virials(run, run.step + steps), counts, e.state, place, moved),
            *(e.list_arguments(), e.force_arguments(), totals, self._box_arguments(), self._observer(run)),
            *(self.device, run.h, self.p, self.q, self._limits, self._partial),
        )
        self._together(kernel, BLOCK, arguments, max(counts.n * counts.lanes, counts.copied))

    def _together(self, kernel, threads: int, arguments: tuple, items: int) -> None:
        """Launch a kernel whose blocks wait for each other, with as many as have something to do and room."""
        if kernel not in self._room:
            self._room[kernel] = min(blocks_at_once(kernel, threads, arguments), _MOST_BLOCKS)
        kernel[min(self._room[kernel], -(-items // threads)), threads](*arguments)

    def _team(self, run) -> str:
        """Whether a block integrates a replica, or the grid."""
        return "grid" if np.diff(run.state.first).max() > _SITES_OF_BLOCK else "block"

    def _box_arguments(self) -> tuple:
        """Of the stages ``follow`` and ``remember``."""
        e, s = self.evaluator, self.device
        box = e.to_box, e.to_vector, e.reach, e.state
        return (
            (*map(int, e.box.copies), s.cell, s.pbc, self.rows, e.bins, e.list_cutoff, e.skin, self.built, *box),
            (e.skin, e.to_box, self.built, e.reach, e.state),
        )

    def _step(self, run, step: int, last: bool) -> None:
        """Launches of one step; ``last``: of the block, after which energies and virials are looked at."""
        e, s, n = self.evaluator, self.device, self.evaluator.n
        replicas, team = len(run.q), self._team(run)
        begin, end = build_kernels_of_halves(run.ensemble, run.q.shape[1], team)
        half = replicas, s, run.h, self.p, self.q, step
        items = n if team == "grid" else replicas * TEAM
        launch = self._together if team == "grid" else self._each
        launch(begin, TEAM, (*half, self._partial), items)
        follow, remember = build_follow(e.precision)
        changes = run.ensemble.changes_cell
        if changes:
            follow.launch(replicas, self._box_arguments()[0])
        e.place()
        e.check_moved()
        e.find()
        if changes:
            remember.launch(replicas, self._box_arguments()[1])
        per_site = run.ensemble.per_site or (last and self._wants_virials(run, step))
        total = last or changes or self._samples(run, step)
        e.compute(2 if per_site else int(total), totals=total)
        collect.launch(n, (n, e.forces, e.energies, per_site, e.virials, s))
        if total:
            collect_totals.launch(replicas, (e.sums, s))
        launch(end, TEAM, (*half, self._limits, e.state, self._partial), items)
        if self._samples(run, step):
            sample = build_kernel_of_mean_force(team)
            launch(sample, TEAM, (s, *self._sums, self._partial), n if team == "grid" else TEAM)

    @staticmethod
    def _each(kernel, threads: int, arguments: tuple, items: int) -> None:
        kernel[-(-items // threads), threads](*arguments)

    @staticmethod
    def _samples(run, step: int) -> bool:
        """Whether the mean force is sampled after ``step``."""
        if run.mean_force is None:
            return False
        _, _, interval, after = run.calendar.table[0, :4]
        return step > after and (step - after) % interval == 0

    def _observer(self, run) -> tuple:
        """Arguments of the samples of the mean force."""
        interval, after = run.calendar.table[0, 2:4].tolist() if run.mean_force is not None else (1, 0)
        return (interval, after, *self._sums)

    @staticmethod
    def _on_host(run):
        """The calendar of those observers that the host computes."""
        return run.calendar if run.mean_force is None else no_calendar()

    def _until_due(self, run) -> int:
        """Steps until an observer of the host is due, at least one."""
        steps = _MOST_STEPS
        for row in self._on_host(run).table:
            interval, after = int(row[2]), int(row[3])
            since = run.step - after
            steps = min(steps, interval - since if since < 0 else interval - since % interval)
        return max(steps, 1)

    def _wants_virials(self, run, step: int) -> bool:
        return run.ensemble.per_site or any(
            row[-1] and step > row[3] and (step - row[3]) % row[2] == 0 for row in self._on_host(run).table
        )

    # --- between host and device ----------------------------------------------------------------------------------

    def _take(self, run) -> None:
        """Memory for this run, a box for its cells, and a list."""
        s, e = run.state, self.evaluator
        geometry = Geometry(s.x, s.cell, s.pbc, s.types, s.first)
        e.take(geometry)
        if self._of is not run.state:
            self._of = run.state
            self.device = type(s)(*(cuda.to_device(np.ascontiguousarray(one)) for one in s))
            self.p, self.q = cuda.to_device(run.p), cuda.to_device(run.q)
            self._box = None
            sums = run.mean_force
            members = () if sums is None else members_of(sums.ints[ANCHOR:][: len(s.x)], len(sums.centre))
            # without a mean force nobody looks at these
            arrays = (np.zeros(1, np.int64), np.zeros(1), *[np.zeros(1, np.int64)] * 2)
            arrays = arrays if sums is None else (sums.ints, sums.floats, *members)
            self._sums = tuple(cuda.to_device(one) for one in arrays)
        cells = s.cell.tobytes() + s.pbc.tobytes()
        open_sides = not s.pbc.all()
        # a box that follows its cell is good until it says otherwise; around what is not periodic sites may spread
        if (
            e.box is None
            or self._box is not e.box
            or open_sides
            or (cells != self._cells and not run.ensemble.changes_cell)
        ):
            self._new_box(run)
        self._cells = cells

    def _new_box(self, run) -> None:
        s, e = run.state, self.evaluator
        e.x.copy_to_device(s.x.ravel())
        e.set_box(s.x, s.cell, s.pbc, spare=self._spare if run.ensemble.changes_cell else 1.0)
        e.place()
        e.find_all()
        self.built = cuda.to_device(e.box.to_box.ravel())
        self.rows = cuda.to_device(np.linalg.inv(e.box.to_box).ravel())
        self._box = e.box
        # for its own purposes the evaluator makes another one
        e.forget()

    def _upload(self, run) -> None:
        s, e = run.state, self.evaluator
        # HNEMD begins a step with the virials of the one before
        virials = ("virials",) if run.ensemble.per_site else ()
        for name in (*CHANGED, *virials, "held", "m", "w", "seed"):
            getattr(self.device, name).copy_to_device(getattr(s, name))
        # the places are those of the positions of the state
        e.x = self.device.x.ravel()
        self.p.copy_to_device(run.p)
        self.q.copy_to_device(run.q)
        e.state.copy_to_device(np.zeros(STATE, np.int32))
        if run.mean_force is not None:
            self._sums[0].copy_to_device(run.calendar.ints)
            self._sums[1].copy_to_device(run.calendar.floats)

    def _download(self, run):
        """The state at the end of a block, in arrays of its own."""
        s = run.state
        return s._replace(**{name: getattr(self.device, name).copy_to_host() for name in CHANGED})

    def _make_room(self, run, words) -> None:
        """More memory, a wider box."""
        # an interrupt from here on must not leave a list that points into new memory
        self._box = None
        self.evaluator.grow(words)
        if words[NARROW]:
            # the box made at the beginning of the block was not wide enough for its end
            self._spare *= _SPARE
        self._new_box(run)

    def _give_up(self, run, words) -> None:
        """Leave the failed step in the state, its beginning in the backup, and say what is wrong."""
        self._box = None
        s = run.state
        run.keep()
        state = self._download(run)
        for name in CHANGED:
            getattr(s, name)[:] = getattr(state, name)
        run.progress[PHASE] = 1
        which = self._replica(run, max(int(words[OVERLAP]), int(words[NOT_FINITE])) - 1)
        if words[OVERLAP]:
            self.evaluator.report_overlap(s.x, s.cell, s.pbc, int(words[OVERLAP]) - 1)
        if words[NOT_FINITE]:
            run.progress[REASON], run.progress[WHERE] = RUN_NOT_FINITE, which
            raise EvaluationError(describe(run, RUN_NOT_FINITE, which))
        found = check_limits(s, run.limits)
        if found is None:
            raise EvaluationError("there is no box or not enough memory for the neighbours of this step")
        run.progress[REASON], run.progress[WHERE] = found
        raise BlowUp(describe(run, *found))

    @staticmethod
    def _replica(run, site: int) -> int:
        return max(int(np.searchsorted(run.state.first, site, side="right")) - 1, 0)
