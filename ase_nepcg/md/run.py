"""What a running simulation is between two steps: state, ensemble, calendar of observers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numba
import numpy as np

from .loop import FINISHED, PHASE, REASON, STEP, Backup, Calendar, ensemble_kernels, kernel_address
from .state import State

__all__ = ["Run", "no_calendar"]


def no_calendar() -> Calendar:
    """A calendar without observers."""
    return Calendar(np.zeros((0, 9), np.int64), np.zeros(0, np.int64), np.zeros(0))


@dataclass
class Run:
    """Everything that changes during a run, in arrays, so that an interrupt leaves no half-way state behind.

    ``ensemble``: class of the ensemble; ``h``: time step in ASE units; ``p``, ``q``: parameters and variables of the
    ensemble (R, ...); ``progress``: step, phase, reason, replica; ``limits`` (R, 4): largest kinetic energy (eV) and
    speed (Å per ASE time unit), smallest and largest volume (Å^3).
    """

    state: State
    ensemble: type
    h: float
    p: np.ndarray
    q: np.ndarray
    limits: np.ndarray | None = None
    calendar: Calendar = field(default_factory=no_calendar)
    progress: np.ndarray = field(default_factory=lambda: np.zeros(4, np.int64))
    backup: Backup = None

    #: :class:`~.accumulate.MeanForceSums`, where its observer is the only row of the calendar
    mean_force = None
    #: where the replicas are a part of a larger run: the number of the first there
    part_from: int | None = None

    def __post_init__(self):
        self._addresses = None
        s = self.state
        if self.backup is None:
            self.backup = Backup(*(np.zeros_like(one) for one in (s.x, s.v, s.f, s.cell, self.q)))
        if self.limits is None:
            self.limits = np.tile([np.inf, np.inf, -np.inf, np.inf], (len(s.seed), 1))

    @property
    def step(self) -> int:
        """Steps that are complete."""
        return int(self.progress[STEP])

    def which(self, replica: int) -> str:
        """ " of replica 3" for messages; nothing where there is one only."""
        if self.part_from is None:
            return f" of replica {replica}" if len(self.state.seed) > 1 else ""
        return f" of replica {self.part_from + replica}"

    def keep(self) -> None:
        """The present state is that to which :meth:`rewind` leads back."""
        s, old = self.state, self.backup
        old.x[:], old.v[:], old.f[:], old.cell[:], old.q[:] = s.x, s.v, s.f, s.cell, self.q

    def rewind(self) -> None:
        """Back to the beginning of a step that was not completed."""
        if self.progress[PHASE]:
            s, old = self.state, self.backup
            s.x[:], s.v[:], s.f[:], s.cell[:], self.q[:] = old.x, old.v, old.f, old.cell, old.q
            self.progress[PHASE] = 0
        self.progress[REASON] = FINISHED

    def addresses(self) -> tuple:
        """Addresses of begin, end and drive (0: none) of the ensemble; they are compiled here."""
        if self._addresses is None or self._addresses[0] is not self.ensemble:
            begin, end, _, drive = ensemble_kernels(self.ensemble)
            types = (
                *(numba.typeof(self.state), numba.float64, numba.typeof(self.p), numba.typeof(self.q), numba.int64),
            )
            for kernel in (begin, end, drive):
                if kernel is not None:
                    kernel.compile(types)
            self._addresses = self.ensemble, tuple(0 if k is None else kernel_address(k) for k in (begin, end, drive))
        return self._addresses[1]

    def extra(self) -> np.ndarray:
        """What potential and kinetic energy lack to be conserved, (R,) eV."""
        out = np.zeros(len(self.state.seed))
        ensemble_kernels(self.ensemble)[2](self.state, self.h, self.p, self.q, out)
        return out
