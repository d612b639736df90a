"""Bead labels of an ``Atoms``: which kind of bead, or of atom, each site is.

A label is any name of 1 to 16 printable characters. :func:`set_labels` keeps it in three places that serve different
readers: the array ``bead`` is what programs read (ASE copies it, slices it, writes it to extended XYZ), the atomic
number lets ASE work (the element for a label that is a chemical symbol, else 0, shown as X), and ``tags`` with the
table ``info["bead_labels"]`` (tag = index into the table) carry the labels through ``.traj`` files, which drop custom
arrays. :func:`get_labels` reads ``bead`` first, then tags and table, then chemical symbols.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from ase.calculators.calculator import CalculatorSetupError
from ase.data import atomic_numbers, chemical_symbols

from .errors import ModelError, NepCGError, validate_array
from .hyper import MAX_LABEL, is_plain

__all__ = [
    "ARRAY",
    "MAX_LENGTH",
    "TABLE",
    "LabelError",
    "check_characters",
    "get_labels",
    "get_types",
    "has_labels",
    "needs_masses",
    "set_labels",
]

ARRAY = "bead"
TABLE = "bead_labels"
MAX_LENGTH = MAX_LABEL
_DTYPE = np.dtype(f"<U{MAX_LENGTH}")
_SYMBOLS = np.array(chemical_symbols, dtype=_DTYPE)


class LabelError(NepCGError, ValueError):
    """Bead labels that are missing, malformed or contradictory."""


def has_labels(atoms) -> bool:
    """True if ``atoms`` carry labels of their own, False if the chemical symbols stand for them."""
    return ARRAY in atoms.arrays or TABLE in atoms.info


def needs_masses(atoms) -> bool:
    """True if ``atoms.get_masses()`` would be those of elements that beads are only called after, or of none."""
    return not atoms.has("masses") and (has_labels(atoms) or bool((atoms.numbers == 0).any()))


def get_labels(atoms) -> np.ndarray:
    """The label of each site, a new array (N,) of dtype ``<U16``.

    Raises :class:`LabelError` for empty or too long labels, tags outside the table, and an array ``bead`` that
    contradicts tags and table (as after joining two ``Atoms`` with different tables, or after editing one of them).
    """
    if ARRAY not in atoms.arrays:
        table, index = _table_and_index(atoms)
        return table[index]
    labels = _as_labels(atoms.arrays[ARRAY], len(atoms), f"atoms.arrays[{ARRAY!r}]")
    if TABLE in atoms.info:
        table, index = _table_and_index(atoms)
        wrong = table[index] != labels
        if wrong.any():
            i = int(np.argmax(wrong))
            raise LabelError(
                f"atoms.arrays[{ARRAY!r}] and the tags disagree: site {i} is {str(labels[i])!r}, but its tag "
                f"{int(atoms.get_tags()[i])} means {str(table[index[i]])!r} in atoms.info[{TABLE!r}]. After joining or "
                f"editing call set_labels(atoms, atoms.arrays[{ARRAY!r}]); if the tags have another use, delete "
                f"atoms.info[{TABLE!r}] (.traj files then lose the labels)"
            )
    return labels


def set_labels(atoms, labels, masses=None) -> None:
    """Give each site of ``atoms`` a label, in place: array ``bead``, atomic numbers, tags and their table in ``info``.

    ``labels``: one label for all sites or (N,). ``masses`` in atomic mass units: (N,), one number, or a mapping from
    every label to its mass; None leaves the masses as they are. Beads need explicit masses, since ASE knows elements
    only: 1 for X, 19 for a bead called F. Raises :class:`LabelError`, and then changes nothing.
    """
    labels = np.full(len(atoms), labels, dtype=object) if isinstance(labels, str) else labels
    labels = _as_labels(labels, len(atoms), "labels")
    table, first, index = np.unique(labels, return_index=True, return_inverse=True)
    order = np.argsort(first)  # in order of appearance
    table, index = table[order], np.argsort(order)[index].reshape(-1)
    check_characters(table)
    masses = None if masses is None else _masses(masses, table, index)

    atoms.arrays.pop(ARRAY, None)  # set_array would keep the old dtype and truncate
    atoms.set_array(ARRAY, labels, _DTYPE, ())
    atoms.numbers[:] = np.array([atomic_numbers.get(label, 0) for label in table.tolist()], dtype=int)[index]
    atoms.set_tags(index)
    atoms.info[TABLE] = table.tolist()
    if masses is not None:
        atoms.set_masses(masses)


def check_characters(labels) -> None:
    """Raise :class:`LabelError` for labels that the columns of a text file cannot hold: blanks, quotes, ``=``, …"""
    for label in np.unique(labels).tolist():
        if not is_plain(label):
            raise LabelError(f"labels: expected printable ASCII without blanks, quotes and '=', got {label!r}")


def get_types(atoms, species) -> np.ndarray:
    """Index into ``species`` (T labels) of each site, (N,) int32.

    Raises ``CalculatorSetupError`` for labels that ``species`` does not contain, naming both, and :class:`LabelError`
    as :func:`get_labels`.
    """
    species = [str(label) for label in species]
    if ARRAY in atoms.arrays:
        labels = get_labels(atoms)
        types = np.full(len(labels), -1, dtype=np.int32)
        for k, label in enumerate(species):
            types[labels == label] = k
        unknown = np.unique(labels[types < 0]).tolist() if (types < 0).any() else []
    else:
        table, index = _table_and_index(atoms)
        known = {label: k for k, label in enumerate(species)}
        types = np.array([known.get(label, -1) for label in table.tolist()], dtype=np.int32)[index]
        unknown = [str(table[k]) for k in np.unique(index[types < 0])] if (types < 0).any() else []
    if unknown:
        shown = ", ".join(unknown[:10]) + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
        remedy = (
            " (X has no label: call ase_nepcg.labels.set_labels)" if not has_labels(atoms) and "X" in unknown else ""
        )
        raise CalculatorSetupError(f"unknown species {shown}{remedy}; the model has {', '.join(species)}")
    return types


def _as_labels(value, n: int, name: str) -> np.ndarray:
    """``value`` as a new (n,) array of dtype <U16; refuses everything that is not n names of 1 to 16 letters."""
    array = np.asarray(value)
    if array.shape != (n,):
        raise LabelError(f"{name}: expected one label per site, shape ({n},), got shape {array.shape}")
    if array.dtype.kind == "O" and not all(issubclass(kind, str) for kind in set(map(type, array))):
        raise LabelError(f"{name}: expected strings, got {', '.join({kind.__name__ for kind in map(type, array)})}")
    if array.dtype.kind not in "OUS" and n:
        raise LabelError(f"{name}: expected strings, got numbers of type {array.dtype.name}")
    text = array.astype(str)
    if n and text.dtype.itemsize > _DTYPE.itemsize:
        length = np.char.str_len(text)
        if length.max() > MAX_LENGTH:
            long = str(text[np.argmax(length)])
            raise LabelError(f"{name}: expected at most {MAX_LENGTH} letters, got {long!r} ({len(long)})")
    text = text.astype(_DTYPE, copy=False)
    empty = text == ""
    if empty.any():
        raise LabelError(
            f"{name}: expected a label for every site, got an empty one for site {int(np.argmax(empty))} and "
            f"{int(empty.sum()) - 1} more (joined with unlabelled atoms?): call ase_nepcg.labels.set_labels"
        )
    return text


def _table_and_index(atoms) -> tuple[np.ndarray, np.ndarray]:
    """Distinct labels (K,) and the index of each site's label (N,), from tags and table or from atomic numbers."""
    if TABLE not in atoms.info:
        numbers = atoms.numbers
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(_SYMBOLS):
            raise LabelError(
                f"atoms.numbers: expected 0 to {len(_SYMBOLS) - 1}, got {int(numbers.min())} to {int(numbers.max())}"
            )
        return _SYMBOLS, numbers
    table = atoms.info[TABLE]
    if not isinstance(table, list | tuple | np.ndarray):
        raise LabelError(f"atoms.info[{TABLE!r}]: expected the list of labels that set_labels left, got {table!r}")
    table = _as_labels(table, len(table), f"atoms.info[{TABLE!r}]")
    tags = atoms.get_tags()
    if len(tags) and not 0 <= tags.min() <= tags.max() < len(table):
        raise LabelError(
            f"tags: expected 0 to {len(table) - 1}, indices into atoms.info[{TABLE!r}] = {table.tolist()}, got "
            f"{int(tags.min())} to {int(tags.max())}; if the tags have another use, delete that table or call "
            "ase_nepcg.labels.set_labels again"
        )
    return table, tags


def _masses(masses, table: np.ndarray, index: np.ndarray) -> np.ndarray:
    """One positive mass per site, (N,) in atomic mass units."""
    if isinstance(masses, Mapping):
        missing = [label for label in table.tolist() if label not in masses]
        if missing:
            raise LabelError(f"masses: expected a mass for each of {', '.join(table.tolist())}; missing {missing}")
        masses = np.array([masses[label] for label in table.tolist()], dtype=float)[index]
    try:
        masses = validate_array("masses", np.broadcast_to(masses, index.shape), index.shape)
    except (ModelError, ValueError) as error:
        raise LabelError(f"masses: expected one per site, {len(index)} numbers ({error})") from None
    if not (masses > 0).all():
        i = int(np.argmin(masses > 0))
        raise LabelError(f"masses: expected positive numbers, got {masses[i]:g} for site {i}")
    return masses
