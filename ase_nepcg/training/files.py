"""The output files of a training as GPUMD writes them: ``loss.out`` and ``energy_/force_/virial_/stress_*.out``.

``loss.out`` grows while a training runs. A line is written before the checkpoint of its generation, so that a killed
run leaves lines that its continuation writes again: :func:`truncate_loss` takes them away first. The other files are
replaced at once, and hold predictions first and references second.
"""

from __future__ import annotations

import os
import re

import numpy as np

from ..errors import NepCGError
from ..hyper import check_integer
from ..nepfile import write_atomically
from .loss import GPA

__all__ = [
    "LOSS_COLUMNS",
    "OUT_FILES",
    "OutputFileError",
    "append_loss",
    "batches",
    "loss_line",
    "read_loss",
    "read_out",
    "truncate_loss",
    "write_predictions",
]

#: what stands in the files for a virial or stress that is not known
MISSING = -1e6
#: columns of ``loss.out``: generation, total loss and its regularisation, then errors (eV/atom, eV/Å, eV/atom)
LOSS_COLUMNS = ("step", "total", "l1", "l2", "energy", "force", "virial", "energy_test", "force_test", "virial_test")
#: quantities of the files of predictions -> number of columns, half of them predicted
OUT_FILES = {"energy": 2, "force": 6, "virial": 12, "stress": 12}

_LOSS_WIDTHS = (11,) * 3 + (13,) * 6
_COMPLETE = re.compile(r"[0-9]+( +\S+){8} +-?(?:[0-9]+\.[0-9]{5}|nan|inf) *")
_ROWS_AT_ONCE = 10_000


class OutputFileError(NepCGError, ValueError):
    """An output file that cannot be read: names file, line and what was expected."""

    def __init__(self, path, line: int, message: str):
        self.path = str(path)
        self.line = line
        super().__init__(f"{self.path}, line {line}: {message}")


# ---- loss.out -----------------------------------------------------------------------------------------------------


def loss_line(step: int, total: float, l1: float, l2: float, train: dict, test: dict | None = None) -> str:
    """A line of ``loss.out``, with its end: generation, loss, regularisation, errors of training and test set.

    ``train`` and ``test`` give the root mean square errors ``energy`` (eV/atom), ``force`` (eV/Å) and ``virial``
    (eV/atom); 0 stands for those of a test set that does not exist.
    """
    errors = [0.0 if errors is None else errors[name] for errors in (train, test) for name in _ERRORS]
    cells = [f"{value:<{width}.5f}" for value, width in zip((total, l1, l2, *errors), _LOSS_WIDTHS, strict=True)]
    # numbers that fill their column would run into the next one
    return "".join(cell if cell.endswith(" ") else cell + " " for cell in (f"{step:<8d}", *cells)) + "\n"


_ERRORS = ("energy", "force", "virial")


def append_loss(path, lines: str) -> None:
    """Append ``lines`` (of :func:`loss_line`) to a ``loss.out`` and see that they are on the disk."""
    with open(path, "ab") as file:
        file.write(lines.encode("ascii"))
        file.flush()
        os.fsync(file.fileno())


def truncate_loss(path, generation: int, earlier: int = 0) -> None:
    """Remove from the end of a ``loss.out`` what a run that goes on from ``generation`` will write again.

    Those are the lines of later generations and one that was cut off while it was written. Lines of an earlier run
    that stand before them (the first ``earlier``, and where the generation decreases from one to the next) are kept. A
    file that is not there, or has
    nothing to remove, is left alone. Raises :class:`OutputFileError` for lines that are none of ``loss.out``.
    """
    try:
        rows = _loss_rows(path)
    except FileNotFoundError:
        return
    keep = len(rows)
    following = np.inf
    while keep > earlier and generation < rows[keep - 1][1][0] < following:
        keep -= 1
        following = rows[keep][1][0]
    text = "".join(row + "\n" for row, _ in rows[:keep])
    with open(path, "rb") as file:
        unchanged = file.read() == text.encode("ascii")
    if not unchanged:
        write_atomically(path, text)


def read_loss(path) -> dict[str, np.ndarray]:
    """Columns of a ``loss.out`` by name (:data:`LOSS_COLUMNS`), arrays with an entry per line; ``step`` is integer.

    A last line that is being written, or was cut off, is left out. Raises :class:`OutputFileError`.
    """
    table = np.array([values for _, values in _loss_rows(path)]).reshape(-1, len(LOSS_COLUMNS))
    columns = dict(zip(LOSS_COLUMNS, table.T.copy(), strict=True))
    columns["step"] = columns["step"].astype(int)
    return columns


def _loss_rows(path) -> list[tuple[str, list[float]]]:
    """Text and numbers of each line that is complete."""
    *rows, last = _text(path).split("\n")
    if _COMPLETE.fullmatch(last):
        rows.append(last)
    found = [(row, _numbers(path, k, row, len(LOSS_COLUMNS))) for k, row in enumerate(rows, start=1)]
    for k, (row, values) in enumerate(found, start=1):
        if not 0 <= values[0] < np.inf or values[0] % 1:
            raise OutputFileError(path, k, f"expected the number of a generation first, got {row.split()[0]!r}")
    return found


# ---- predictions --------------------------------------------------------------------------------------------------


def write_predictions(folder, stem: str, targets, predictions, order=None) -> list[str]:
    """Write ``energy_<stem>.out``, ``force_…``, ``virial_…`` and ``stress_…`` to ``folder``; returns their paths.

    ``targets`` has ``energies`` (S,) eV/atom, ``forces`` (N, 3) eV/Å, ``virials`` (S, 6) eV/atom, ``n_sites`` (S,),
    ``first`` (S + 1,) and ``volumes`` (S,) Å^3; ``predictions`` the first three. ``order``, indices of frames, is the
    order of the lines (default: that of the frames). A line has the predicted components, then those of the reference:
    E/N (eV/atom); F (eV/Å), a line per site; W/N (eV/atom) and W/V (GPa), xx yy zz xy yz zx, positive = compressed.
    Energies that are not known are ``nan``, virials and stresses -1e+06.
    """
    order = np.arange(len(targets.energies)) if order is None else np.asarray(order, int)
    sites = np.concatenate([np.arange(targets.first[s], targets.first[s + 1]) for s in order])
    to_gpa = (GPA * targets.n_sites / targets.volumes)[:, None]
    pairs = {
        "energy": (predictions.energies[:, None], targets.energies[:, None]),
        "force": (predictions.forces, targets.forces),
        "virial": (predictions.virials, targets.virials),
        "stress": (predictions.virials * to_gpa, targets.virials * to_gpa),
    }
    paths = []
    for name, (predicted, reference) in pairs.items():
        rows = sites if name == "force" else order
        table = np.column_stack([predicted[rows], reference[rows]])
        if OUT_FILES[name] == 12:
            table[:, 6:][np.isnan(table[:, 6:])] = MISSING
        paths.append(os.path.join(os.fsdecode(folder), f"{name}_{stem}.out"))
        write_atomically(paths[-1], _formatted(table))
    return paths


def read_out(path) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and references, two arrays (lines, components), of a file of :func:`write_predictions`.

    Virials and stresses that are not known are NaN. Raises :class:`OutputFileError`.
    """
    rows = _text(path).split("\n")
    if not rows[-1]:
        rows.pop()
    n_columns = len(rows[0].split()) if rows else 0
    if n_columns not in OUT_FILES.values():
        raise OutputFileError(path, 1, f"expected 2, 6 or 12 numbers, got {n_columns}")
    table = np.array([_numbers(path, k, row, n_columns) for k, row in enumerate(rows, start=1)])
    predicted, reference = np.hsplit(table, 2)
    if n_columns == 12:
        reference = np.where(reference == MISSING, np.nan, reference)
    return predicted, reference


def _formatted(table: np.ndarray) -> bytes:
    """Lines of ``%g`` numbers, in single precision first, as GPUMD has them: the references then end in its digits."""
    with np.errstate(over="ignore"):
        table = table.astype(np.float32)
    line = b" ".join([b"%g"] * table.shape[1]) + b"\n"
    # in parts, since Python's numbers take much more memory than those of an array
    parts = (table[k : k + _ROWS_AT_ONCE] for k in range(0, len(table), _ROWS_AT_ONCE))
    return b"".join(line * len(part) % tuple(part.ravel()) for part in parts)


def _text(path) -> str:
    with open(path, encoding="ascii", errors="replace", newline="\n") as file:
        return file.read()


def _numbers(path, line: int, row: str, count: int) -> list[float]:
    tokens = row.split()
    if len(tokens) != count:
        raise OutputFileError(path, line, f"expected {count} numbers, got {len(tokens)}")
    try:
        return [float(token) for token in tokens]
    except ValueError:
        raise OutputFileError(path, line, f"expected {count} numbers, got {row[:60]!r}") from None


# ---- batches ------------------------------------------------------------------------------------------------------


def batches(energies_per_atom, batch_size: int) -> list[np.ndarray]:
    """Indices of the frames of each batch, as GPUMD deals them out.

    With S frames there are ceil(S / ``batch_size``) batches whose sizes differ by one at most. The frames are sorted by
    energy per atom (S,), stable, NaN last, and batch b of n gets those at positions b, b + n, b + 2n, …, so that each
    spans the range of energies. A single batch keeps the order of the frames. The files of predictions of the training
    set have the order of the batches, one after the other.
    """
    energies = np.asarray(energies_per_atom, float)
    number = -(-len(energies) // check_integer("batch", batch_size, 1, 2**31 - 1))
    if number <= 1:
        return [np.arange(len(energies))]
    ranked = np.argsort(energies, kind="stable")
    return [ranked[start::number] for start in range(number)]
