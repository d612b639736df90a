"""Frames to text: extended XYZ with all digits. What is written is described in :mod:`ase_nepcg.io`."""

from __future__ import annotations

import json

import numpy as np
from ase.constraints import FixAtoms, FixCartesian

from ..hyper import is_plain
from ..labels import ARRAY, TABLE, LabelError, check_characters, get_labels
from .reader import KEYS, NUMBERS, RESULTS, parse_comment
from .results import DatasetError, frame_virial, stored_results

__all__ = ["format_frame"]

# what the cell, the boundary conditions and the calculator hold
_NOT_IN_INFO = {"lattice", "stress", "energy", "free_energy", "magmom", "properties", "pbc", "dipole"}
# names that a reader takes for something else than a plain array
_NOT_AN_ARRAY = {"species", "pos", "force", "mass", "z", "symbols", "move_mask", *RESULTS, *RESULTS.values()}
# further columns that GPUMD interprets, with the widths it takes for granted
_WIDTHS = {"bec": 9, "adipole": 3, "atomic_dipole": 3, "apol": 9, "atomic_polarizability": 9}
_LETTERS = {"f": "R", "i": "I", "u": "I", "b": "L", "U": "S", "O": "S"}  # kind of dtype -> type in Properties


def format_frame(atoms) -> str:
    """The text of one frame, ending with a newline. ``atoms`` are not changed.

    Raises :class:`DatasetError` for what the format cannot hold or other programs would misread.
    """
    try:
        labels = get_labels(atoms)
        check_characters(labels)
    except LabelError as error:
        raise DatasetError(str(error)) from error
    results = stored_results(atoms)
    columns = {"species": labels, "pos": atoms.positions}
    columns |= {name: np.asarray(results[key]) for name, key in RESULTS.items() if key in results}
    if atoms.has("masses"):
        columns |= {"masses": atoms.get_masses(), "mass": atoms.get_masses()}
    columns |= _own_arrays(atoms)
    mask = _move_mask(atoms)
    if mask is not None:
        columns["move_mask"] = mask

    properties, words = [], []
    for name, array in columns.items():
        array = array[:, np.newaxis] if array.ndim == 1 else array
        letter, column = _words(name, array, len(atoms))
        properties.append(f"{name}:{letter}:{array.shape[1]}")
        words += column
    comment = _comment(atoms, results, ":".join(properties))
    return f"{len(atoms)}\n{comment}\n" + "".join(f"{' '.join(row)}\n" for row in zip(*words, strict=True))


def _own_arrays(atoms) -> dict:
    """The arrays of ``atoms`` that have no column of another name, refused where a reader would take them for one."""
    arrays = {}
    for name, array in atoms.arrays.items():
        if name in ("numbers", "positions", "masses", ARRAY) or (name == "tags" and TABLE in atoms.info):
            continue
        if not name or not is_plain(name) or ":" in name or name.lower() in _NOT_AN_ARRAY:
            raise DatasetError(
                f"atoms.arrays[{name!r}]: this name cannot be a column of its own (results belong to a calculator); "
                "rename or delete the array"
            )
        width = _WIDTHS.get(name.lower())
        if width is not None and array.shape != (len(atoms), width):
            raise DatasetError(f"atoms.arrays[{name!r}]: GPUMD expects shape (N, {width}), got {array.shape}")
        if array.shape == (len(atoms), 1):
            raise DatasetError(f"atoms.arrays[{name!r}]: shape (N, 1) would be read back as (N,): use that one")
        arrays[name] = array
    return arrays


def _move_mask(atoms):
    """What may move, (N,) or (N, 3), as ASE writes it; None if everything may. Other constraints are not written."""
    mask = np.ones((len(atoms), 3), dtype=bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            mask[constraint.index] = False
        elif isinstance(constraint, FixCartesian):
            mask[constraint.index] &= ~constraint.mask
    if mask.all():
        return None
    return mask[:, 0] if (mask == mask[:, :1]).all() else mask


def _words(name: str, array: np.ndarray, n: int) -> tuple[str, list[list[str]]]:
    """Type letter and words, one list for each of the k columns of ``array`` (n, k)."""
    letter = _LETTERS.get(array.dtype.kind)
    if letter is None or array.ndim != 2 or array.shape[0] != n or not array.shape[1]:
        raise DatasetError(
            f"{name}: expected ({n},) or ({n}, k) numbers, booleans or words, got {array.dtype} {array.shape}"
        )
    if letter == "R":
        bad = ~np.isfinite(array).all(axis=1)
        if bad.any():
            i = int(np.argmax(bad))
            raise DatasetError(f"{name}: expected finite numbers, got {array[i].tolist()} for site {i}")
        return letter, [list(map(repr, column)) for column in _normal(array).T.tolist()]
    if letter == "L":
        return letter, [["T" if value else "F" for value in column] for column in array.T.tolist()]
    if letter == "S" and not all(isinstance(word, str) and word and is_plain(word) for word in array.ravel().tolist()):
        raise DatasetError(f"{name}: expected words without blanks, quotes and '='")
    return letter, [list(map(str, column)) for column in array.T.tolist()]


def _normal(array) -> np.ndarray:
    """``array`` with 0 for what is too small for a normal double: std::stod, which GPUMD reads with, refuses those."""
    array = np.asarray(array, dtype=float)
    return np.where(np.abs(array) < np.finfo(float).tiny, 0.0, array)


def _comment(atoms, results: dict, properties: str) -> str:
    cell = atoms.cell.array
    if not np.isfinite(cell).all():
        raise DatasetError(f"cell: expected finite numbers, got {cell.tolist()}")
    items = {"Lattice": _normal(cell).ravel()} if cell.any() else {}
    items["Properties"] = properties
    info = {key: value for key, value in atoms.info.items() if key not in (TABLE, "virial") and value is not None}
    virial = frame_virial(atoms, results)
    if "energy" in results:
        items["energy"] = float(_normal(results["energy"]))
    elif results or virial is not None:
        if info.pop("energy_weight", 0) != 0:
            raise DatasetError(f"info['energy_weight'] is {atoms.info['energy_weight']!r}, but there is no energy")
        items |= {"energy": 0, "energy_weight": 0}
    items |= {name: float(results[name]) for name in ("free_energy", "magmom") if name in results}
    if "dipole" in results:
        items["dipole"] = np.asarray(results["dipole"], dtype=float)
    if virial is not None:
        items["virial"] = _normal(virial).ravel()
    for key, value in info.items():
        _check_key(key)
        items[key] = np.ravel(value, order="F") if _is_tensor(key, value) else value
    items["pbc"] = atoms.pbc
    comment = " ".join(f"{key}={_value_text(key, value)}" for key, value in items.items())
    _check_read_back(comment, info)
    return comment


def _is_tensor(key: str, value) -> bool:
    return key.lower().startswith("virial") and np.shape(value) == (3, 3)


def _check_key(key) -> None:
    if not isinstance(key, str) or not key or not is_plain(key) or set(key) & set("[]{}\\,"):
        raise DatasetError(f"info[{key!r}]: expected a name without blanks, quotes, brackets and '='")
    if key.lower() in _NOT_IN_INFO:
        raise DatasetError(f"info[{key!r}]: this belongs to the cell or to a calculator, not to info")
    if KEYS.get(key.lower(), key) != key:
        raise DatasetError(f"info[{key!r}]: others read this as {KEYS[key.lower()]!r}; rename it")


def _value_text(key: str, value) -> str:
    """``value`` as it stands after ``key=``, quoted if it has blanks."""
    array = None if isinstance(value, str | dict) else _as_array(value)
    if isinstance(value, str):
        text = value
    elif array is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DatasetError(f"info[{key!r}]: expected finite numbers, got {value!r}")
    elif array is not None and array.ndim <= 1 and array.size:
        convert = {"b": lambda x: "T" if x else "F", "i": str, "u": str, "f": repr}[array.dtype.kind]
        text = " ".join(map(convert, array.reshape(-1).tolist()))
    else:
        try:
            text = "_JSON " + json.dumps(value.tolist() if isinstance(value, np.ndarray) else value, allow_nan=False)
        except (TypeError, ValueError):
            text = ""
    quotes = "\"'`" if isinstance(value, str) else "'`"
    if not text or not all(" " <= char <= "~" and char not in quotes + "=\\" for char in text):
        raise DatasetError(
            f"info[{key!r}]: expected a number, booleans, an array or text in printable ASCII without quotes, "
            f"backslashes and '=', got {value!r}; rename or delete it: frame.info.pop({key!r})"
        )
    if is_plain(text) and not set(text) & set("[]{},"):
        return text
    return '"' + text.replace('"', '\\"') + '"'


def _as_array(value):
    """``value`` as an array of numbers or booleans, or None."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        return None
    return array if array.dtype.kind in "biuf" else None


def _check_read_back(comment: str, info: dict) -> None:
    """Everything in ``info`` must come back with its value and kind: ``"007"`` would be the number 7, for instance."""
    try:
        found = parse_comment(comment)
    except ValueError as error:
        raise DatasetError(str(error)) from error
    for key, value in info.items():
        array = _as_array(value)
        as_float = array is not None and array.dtype.kind in "iu" and (key in NUMBERS or _is_tensor(key, value))
        if not _same(found.get(key), array.astype(float) if as_float else value):
            raise DatasetError(
                f"info[{key!r}]: {value!r} would be read back as {found.get(key)!r}; rename it or give it another type"
            )


def _same(found, expected) -> bool:
    if isinstance(found, str | dict) or isinstance(expected, str | dict):
        return type(found) is type(expected) and found == expected
    if _as_array(found) is None or _as_array(expected) is None:
        return isinstance(found, list) and found == expected  # of words, from JSON
    found, expected = np.asarray(found), np.asarray(expected)
    kinds = {array.dtype.kind.replace("u", "i") for array in (found, expected)}
    return len(kinds) == 1 and found.shape == expected.shape and np.array_equal(found, expected)
