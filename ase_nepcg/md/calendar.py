"""What is due during a run: functions of the user's, and observers of the compiled loop."""

from __future__ import annotations

import contextlib
import signal
import threading
from dataclasses import dataclass

import numba
import numpy as np

from .loop import Calendar, kernel_address
from .observers.base import Observer
from .state import State

__all__ = ["FOREVER", "Attached", "Caller", "arrange", "uninterrupted"]

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


def arrange(handles, state: State) -> Calendar:
    """The calendar of the compiled loop: all numbers of all observers in two arrays, of which handles get views."""
    types = numba.typeof(state), numba.int64, numba.int64, numba.int64[::1], numba.float64[::1]
    table, at = [], [0, 0]
    for handle in handles:
        kernel = handle.observer.kernel()
        if not kernel.overloads:
            kernel.compile(types)
        ends = at[0] + len(handle.ints), at[1] + len(handle.floats)
        table.append(
            (
                *(kernel_address(kernel), 0, handle.interval, handle.after),
                *(at[0], ends[0], at[1], ends[1], int(handle.observer.per_site)),
            )
        )
        at = ends
    ints = np.concatenate([*(handle.ints for handle in handles), np.zeros(0, np.int64)])
    floats = np.concatenate([*(handle.floats for handle in handles), np.zeros(0)])
    for handle, row in zip(handles, table, strict=True):
        handle.ints, handle.floats = ints[row[4] : row[5]], floats[row[6] : row[7]]
    return Calendar(np.array(table, np.int64).reshape(-1, 9), ints, floats)


@dataclass
class Caller:
    """A function that is called every ``interval`` steps, or once after step ``-interval``: the user's, or the method
    ``write`` of an ``output``. ``called``: step at which it was called last."""

    function: object
    interval: int
    arguments: tuple
    keywords: dict
    output: bool = False
    called: int = -1

    def next(self, step: int) -> int:
        """First step after ``step`` at which it is due."""
        if self.interval > 0:
            return (step // self.interval + 1) * self.interval
        return -self.interval if step < -self.interval else FOREVER

    def due(self, step: int) -> bool:
        """Whether it is to be called after ``step`` and has not been."""
        if step == self.called:
            return False
        return step % self.interval == 0 if self.interval > 0 else step == -self.interval

    def __call__(self):
        self.function(*self.arguments, **self.keywords)


@contextlib.contextmanager
def uninterrupted():
    """Ctrl-C (and SIGTERM, if it has a handler) waits for the end: a frame is written, and known to be, or neither."""
    usual = {}
    if threading.current_thread() is threading.main_thread():
        usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        usual = {number: handler for number, handler in usual.items() if callable(handler)}
    caught = []
    for number in usual:
        signal.signal(number, lambda *arguments: caught.append(arguments))
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
        for arguments in caught[:1]:
            usual[arguments[0]](*arguments)
