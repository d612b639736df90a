"""What is due during a run: functions of the user's, and observers of the compiled loop."""

from __future__ import annotations

from dataclasses import dataclass

from .observers.base import Observer

__all__ = ["FOREVER", "Attached", "Caller"]

#: a step that no run reaches
FOREVER = 1 << 62


class Attached:
    """An observer of the compiled loop that is attached to a run; its numbers are ``ints`` and ``floats``."""

    def __init__(self, observer: Observer, interval: int, after: int, ints, floats):
        self.observer, self.interval, self.after = observer, interval, after
        self.ints, self.floats = ints, floats

    def results(self):
        """Averages and errors so far."""
        return self.observer.results(self.ints, self.floats)


@dataclass
class Caller:
    """A function of the user's that is called every ``interval`` steps, or once after step ``-interval``."""

    function: object
    interval: int
    arguments: tuple
    keywords: dict

    def next(self, step: int) -> int:
        """First step after ``step`` at which it is due."""
        if self.interval > 0:
            return (step // self.interval + 1) * self.interval
        return -self.interval if step < -self.interval else FOREVER

    def due(self, step: int) -> bool:
        return step % self.interval == 0 if self.interval > 0 else step == -self.interval

    def __call__(self):
        self.function(*self.arguments, **self.keywords)
