"""How the loss terms of a training run developed: one row per report, as arrays, in checkpoints and as CSV."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..errors import NepCGError
from ..nepfile import write_atomically

__all__ = ["History", "HistoryError"]

_TERMS = ("energy", "force", "virial")
#: name -> unit of the columns that every history has
_UNITS = {
    "step": "",
    "total": "",
    "l1": "",
    "l2": "",
    "energy": "eV/atom",
    "force": "eV/A",
    "virial": "eV/atom",
    "energy_test": "eV/atom",
    "force_test": "eV/A",
    "virial_test": "eV/atom",
    "seconds": "s",
}
_PREFIX = "history_"


class HistoryError(NepCGError, ValueError):
    """Reports out of order, or arrays that are no history."""


def _column(name: str, meaning: str):
    return property(lambda self: self[name], doc=meaning)


class History:
    """Columns of equal length, one row per report; ``len`` is the number of reports.

    ``history["name"]`` is a column as new array (reports,), float except ``step``; ``history.names`` lists them.
    Besides the attributes below there can be columns that :meth:`append` was given, NaN in reports without them.
    """

    step = _column("step", "Generation or step of each report, rising; int64.")
    total = _column("total", "Loss: weighted sum of the terms.")
    l1 = _column("l1", "L1 regularisation term of the loss.")
    l2 = _column("l2", "L2 regularisation term of the loss.")
    energy = _column("energy", "RMSE of the training set, eV/atom.")
    force = _column("force", "RMSE of the training set, eV/Å.")
    virial = _column("virial", "RMSE of the training set, eV/atom.")
    energy_test = _column("energy_test", "RMSE of the test set, eV/atom; NaN without one.")
    force_test = _column("force_test", "RMSE of the test set, eV/Å; NaN without one.")
    virial_test = _column("virial_test", "RMSE of the test set, eV/atom; NaN without one.")
    seconds = _column("seconds", "Seconds since the start of the training, s.")

    def __init__(self):
        self.names = list(_UNITS)
        self._rows = np.empty((16, len(_UNITS)))
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __repr__(self):
        return f"History({len(self)} reports" + (f", last step {self.step[-1]}" if len(self) else "") + ")"

    def __eq__(self, other):
        if not isinstance(other, History):
            return NotImplemented
        return self.names == other.names and np.array_equal(self._table(), other._table(), equal_nan=True)

    __hash__ = None

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise KeyError(f"history has no column {name!r}; it has {', '.join(self.names)}")
        column = self._table()[:, self.names.index(name)].copy()
        return column.astype(np.int64) if name == "step" else column

    def append(self, report, **others: float) -> None:
        """Add a row: ``report`` has step, total, l1, l2, train, test (dicts of RMSEs, or None) and seconds.

        ``others``: further numbers of this report, by name of their columns. Raises :class:`HistoryError` if the step
        is not after the last one.
        """
        step = int(report.step)
        if len(self) and step <= self.step[-1]:
            raise HistoryError(
                f"expected a step after {self.step[-1]}, got {step}; to go back, call History.truncate first"
            )
        row = {name: getattr(report, name) for name in ("step", "total", "l1", "l2", "seconds")}
        for ending, errors in (("", report.train), ("_test", report.test)):
            row |= {name + ending: np.nan if errors is None else errors.get(name, np.nan) for name in _TERMS}
        wrong = [name for name in others if name in _UNITS]
        if wrong:
            raise HistoryError(f"{', '.join(wrong)}: expected new names, the report itself has these")
        row |= others
        for name in row:
            if name not in self.names:
                self.names.append(name)
                self._rows = np.column_stack([self._rows, np.full(len(self._rows), np.nan)])
        if len(self) == len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
        self._rows[len(self)] = [row.get(name, np.nan) for name in self.names]
        self._length += 1

    def truncate(self, step: int) -> None:
        """Forget the reports after ``step``: what a run that resumes there will report again."""
        self._length = int(np.searchsorted(self.step, step, side="right"))

    def to_dict(self) -> dict[str, np.ndarray]:
        """name -> column, (reports,), in the order of :attr:`names`."""
        return {name: self[name] for name in self.names}

    def arrays(self) -> dict[str, np.ndarray]:
        """The columns under names of their own, for a checkpoint; the way back is :meth:`from_arrays`."""
        return {_PREFIX + name: column for name, column in self.to_dict().items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping) -> History:
        """The history that :meth:`arrays` described, exactly; other entries are ignored."""
        columns = {key.removeprefix(_PREFIX): arrays[key] for key in arrays if key.startswith(_PREFIX)}
        missing = [name for name in _UNITS if name not in columns]
        if missing:
            raise HistoryError(f"expected the columns {', '.join(_UNITS)}; missing {', '.join(missing)}")
        lengths = {len(column) if np.ndim(column) == 1 else None for column in columns.values()}
        if len(lengths) > 1 or None in lengths:
            raise HistoryError("expected columns of equal length, got " + str([np.shape(c) for c in columns.values()]))
        history = cls()
        history.names = [*_UNITS, *(name for name in columns if name not in _UNITS)]
        history._rows = np.column_stack([np.asarray(columns[name], float) for name in history.names])
        history._length = lengths.pop()
        if not len(history._rows):
            history._rows = np.empty((16, len(history.names)))
        if (np.diff(history.step) <= 0).any():
            raise HistoryError("expected rising steps")
        return history

    def write_csv(self, path) -> None:
        """Write a table with the units in its first line; numbers keep all digits, missing ones are ``nan``."""
        heads = [f"{name} ({_UNITS[name]})" if _UNITS.get(name) else name for name in self.names]
        columns = [self[name].tolist() for name in self.names]
        lines = [",".join(heads), *(",".join(map(repr, row)) for row in zip(*columns, strict=True))]
        write_atomically(path, "\n".join(lines) + "\n")

    def _table(self) -> np.ndarray:
        return self._rows[: self._length]
