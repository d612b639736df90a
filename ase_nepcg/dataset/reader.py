"""Text to frames: a strict reader of extended XYZ. What it understands is described in :mod:`ase_nepcg.io`."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian
from ase.data import atomic_numbers
from ase.io.extxyz import key_val_str_to_dict

from ..labels import ARRAY, TABLE, LabelError, set_labels
from .results import (
    DatasetError,
    FrameCalculator,
    check_agreement,
    frame_volume,
    stress_from_virial,
    symmetric_virial,
    virial_from_stress,
)

__all__ = ["KEYS", "NUMBERS", "RESULTS", "parse_comment", "read_frames"]

_TENSORS = ("Lattice", "virial", "stress")
#: keys of the comment line whose value is one number
NUMBERS = ("energy", "free_energy", "energy_weight", "weight", "temperature", "charge", "magmom")
#: keys that are known in any case, as lower case -> spelling
KEYS = {key.lower(): key for key in (*_TENSORS, *NUMBERS, "Properties", "pbc", "dipole")}
#: columns with results: name in the file -> property of the calculator
RESULTS = {name: name for name in ("forces", "energies", "stresses", "magmoms")} | {"charge": "charges"}

_COLUMNS = {"force": "forces"} | {name: name for name in ("species", "pos", "forces", "mass", "masses")}
_WIDTHS = {"species": 1, "pos": 3, "forces": 3, "mass": 1, "masses": 1, "Z": 1}
_TYPES = dict.fromkeys(("pos", "mass", "masses", *RESULTS), "R") | {"species": "S", "Z": "I", "move_mask": "L"}
_BOOLEANS = {"T": True, "True": True, "F": False, "False": False}
_CONVERTERS = {  # type letter -> word to value, dtype, what is expected
    "R": (float, np.dtype(float), "a number"),
    "I": (int, np.dtype(np.int64), "an integer"),
    "L": (_BOOLEANS.__getitem__, np.dtype(bool), "T or F"),
    "S": (str, None, "a word"),
}


def read_frames(lines: Iterable[str], index=slice(None), path=None) -> Iterator[Atoms]:
    """Yield the frames ``index`` (an integer or a slice) of the text ``lines``; ``path`` is for messages only.

    Frames that are not asked for are not interpreted. Raises :class:`DatasetError` for malformed text and
    ``IndexError`` for a frame that is not there.
    """
    chunks = _chunks(lines, path)
    if not isinstance(index, slice):
        chunks = list(islice(chunks, index, index + 1) if index >= 0 else deque(chunks, maxlen=-index))
        if len(chunks) < max(1, -index):
            raise IndexError(f"frame {index}: the file has fewer frames")
        chunks = chunks[:1]
    elif (index.start or 0) >= 0 and (index.step or 1) > 0 and (index.stop is None or index.stop >= 0):
        chunks = islice(
            chunks, index.start, index.stop, index.step
        )  # lazily: for one frame ASE asks for slice(i, None)
    elif (index.start or 0) < 0 and index.stop is None and index.step in (None, 1):
        chunks = deque(chunks, maxlen=-index.start)
    else:
        chunks = list(chunks)[index]
    for chunk in chunks:
        yield _parse(chunk)


@dataclass(frozen=True)
class _Chunk:
    """The text of one frame and where it stands: ``line`` is that of the number of atoms."""

    path: object
    frame: int
    line: int
    comment: str
    rows: list[str]

    def error(self, message: str, row: int = -1) -> DatasetError:
        """An error at atom line ``row`` (from 0), or at the comment line."""
        return DatasetError(message, self.path, self.frame, self.line + 2 + row)


def _chunks(lines: Iterable[str], path) -> Iterator[_Chunk]:
    """The frames of a file, not interpreted."""
    numbered = enumerate(lines, start=1)
    frame = 0
    for line, text in numbered:
        text = text.strip()
        if not text:
            if any(later.strip() for _, later in numbered):
                raise DatasetError("a blank line between frames: other programs stop reading here", path, frame, line)
            break
        if not re.fullmatch("[0-9]{1,9}", text):
            raise DatasetError(f"expected a number of atoms, got {text[:60]!r}", path, frame, line)
        rows = [row for _, row in islice(numbered, int(text) + 1)]
        if len(rows) <= int(text):
            raise DatasetError(
                f"expected a comment line and {text} atom lines, got {len(rows)} lines: the file is truncated",
                path,
                frame,
                line,
            )
        yield _Chunk(path, frame, line, rows[0], rows[1:])
        frame += 1
    if not frame:
        raise DatasetError("expected frames (extended XYZ), got an empty file", path)


def _parse(chunk: _Chunk) -> Atoms:
    """The frame as ``Atoms`` with labels, masses, arrays, info and stored results."""
    try:
        info = parse_comment(chunk.comment)
    except ValueError as error:
        raise chunk.error(f"comment line: {error}") from error
    columns = _parse_columns(info.pop("Properties", "species:S:1:pos:R:3"), chunk)
    cell = info.pop("Lattice", None)
    atoms = Atoms(
        numbers=columns.pop("Z", np.zeros(len(chunk.rows), dtype=int)),
        positions=columns.pop("pos"),
        cell=None if cell is None else cell.T,
        pbc=info.pop("pbc", cell is not None),
        info=info,
    )
    if atoms.pbc.all() and not frame_volume(atoms):
        raise chunk.error(f"Lattice: expected three vectors that span space, got {atoms.cell.array.tolist()}")
    names = columns.pop("species", None)
    names = columns.pop(ARRAY, names)
    masses = _parse_masses(columns, chunk)
    results = {RESULTS[name]: columns.pop(name) for name in RESULTS if name in columns}
    move_mask = columns.pop("move_mask", None)
    for name, column in columns.items():
        atoms.set_array(name, column)
    if names is not None:
        try:
            _set_names(atoms, names)
        except LabelError as error:
            raise chunk.error(str(error)) from error
    if masses is not None:
        atoms.set_masses(masses)
    if move_mask is not None and move_mask.ndim == 1:
        atoms.set_constraint(FixAtoms(mask=~move_mask))
    elif move_mask is not None:
        atoms.set_constraint([FixCartesian(i, mask=~move) for i, move in enumerate(move_mask) if not move.all()])
    results |= {key: atoms.info.pop(key) for key in ("energy", "free_energy", "magmom", "dipole") if key in info}
    try:
        results |= _parse_virial(atoms)
    except DatasetError as error:
        raise chunk.error(str(error)) from None
    _attach(atoms, results)
    return atoms


def _attach(atoms, results: dict) -> None:
    """Give ``atoms`` a calculator with ``results``, without the energy where its weight is 0."""
    calculator = SinglePointCalculator
    if atoms.info.get("energy_weight") == 0:
        calculator = FrameCalculator
        unused = results.pop("energy", 0)
        results.pop("free_energy", None)
        if unused:
            atoms.info["unused_energy"] = unused
    if results:
        atoms.calc = calculator(atoms, **results)


def parse_comment(line: str) -> dict:
    """The comment line as dictionary, known keys in ASE's spelling and with values of their type.

    ``Lattice``, ``stress`` and ``virial…`` with nine numbers are (3, 3). Raises ValueError.
    """
    info = {}
    for key, value in (key_val_str_to_dict(line) if line.strip() else {}).items():
        name = KEYS.get(key.lower(), key)
        if name in info:
            raise ValueError(f"{name} is given twice")
        if isinstance(value, np.generic):
            value = value.item()
        if name in _TENSORS or name.lower().startswith("virial"):
            value = _parse_tensor(name, value)
        elif name in NUMBERS:
            if not isinstance(value, int | float) or isinstance(value, bool) or not np.isfinite(value):
                raise ValueError(f"{name}: expected a number, got {value!r}")
            value = float(value)
        elif name == "pbc":
            if not isinstance(value, bool) and (np.shape(value) != (3,) or not set(value) <= {True, False}):
                raise ValueError(f"pbc: expected T or F three times, got {value!r}")
        elif name == "dipole" and np.shape(value) != (3,):
            raise ValueError(f"dipole: expected 3 numbers, got {value!r}")
        info[name] = value
    return info


def _parse_tensor(name: str, value):
    """``value`` as (3, 3) floats if it is nine numbers; anything else is left alone or, where it must be, refused."""
    array = value if isinstance(value, np.ndarray) else np.empty(0)
    if array.shape == (9,):
        array = array.reshape(3, 3, order="F")
    if array.shape == (3, 3) and array.dtype.kind in "if":
        value = array.astype(float)
        if name in _TENSORS and not np.isfinite(value).all():
            raise ValueError(f"{name}: expected finite numbers, got {value.tolist()}")
    elif name in _TENSORS:
        raise ValueError(f"{name}: expected 9 numbers, got {np.size(value)}")
    return value


def _parse_columns(properties, chunk: _Chunk) -> dict[str, np.ndarray]:
    """Name -> (N,) or (N, k) array of each column named in ``Properties=name:type:width:…``."""
    fields = str(properties).split(":")
    triples = list(zip(fields[::3], fields[1::3], fields[2::3], strict=False))
    if len(fields) % 3 or not all(kind in _CONVERTERS and re.fullmatch("[1-9][0-9]{0,3}", k) for _, kind, k in triples):
        raise chunk.error(f"Properties: expected name:type:width:… with type R, I, S or L, got {properties!r}")
    total = sum(int(k) for _, _, k in triples)
    rows = [row.split() for row in chunk.rows]
    for i, row in enumerate(rows):
        if len(row) != total:
            raise chunk.error(f"expected {total} columns ({properties}), got {len(row)}", row=i)
    words = list(zip(*rows, strict=True)) or [()] * total

    columns = {}
    end = 0
    for name, kind, k in triples:
        name = _COLUMNS.get(name.lower(), name)
        width = int(k)
        if name in columns or name in ("symbols", "positions", "numbers"):
            raise chunk.error(f"Properties: {name} is given twice or under a wrong name: {properties}")
        if width != _WIDTHS.get(name, width):
            raise chunk.error(f"Properties: expected {name} to have width {_WIDTHS[name]}, got {properties}")
        if name == "move_mask" and width not in (1, 3):
            raise chunk.error(f"move_mask: expected width 1 or 3, got {properties}")
        expected = _TYPES.get(name, kind)
        if kind != expected and (kind, expected) != ("I", "R"):
            raise chunk.error(f"{name}: expected type {expected}, got {name}:{kind}:{k}")
        kind = expected  # whole numbers are numbers
        parts = [_converted(words[c], name, kind, chunk) for c in range(end, end + width)]
        columns[name] = parts[0] if width == 1 else np.array(parts).T.copy()
        end += width
    if "pos" not in columns or not {"species", "Z"} & columns.keys():
        raise chunk.error(f"Properties: expected species:S:1 and pos:R:3, got {properties}")
    return columns


def _converted(words: tuple[str, ...], name: str, kind: str, chunk: _Chunk) -> np.ndarray:
    convert, dtype, expected = _CONVERTERS[kind]
    try:
        column = np.array([convert(word) for word in words], dtype=dtype)
    except (ValueError, KeyError, OverflowError):
        for i, word in enumerate(words):
            try:
                np.array(convert(word), dtype=dtype)
            except (ValueError, KeyError, OverflowError):
                raise chunk.error(f"{name}: expected {expected}, got {word!r}", row=i) from None
        raise
    if kind == "R" and not np.isfinite(column).all():
        i = int(np.argmin(np.isfinite(column)))
        raise chunk.error(f"{name}: expected finite numbers, got {words[i]!r}", row=i)
    return column


def _parse_masses(columns: dict, chunk: _Chunk):
    """The column ``masses`` or ``mass``, which must agree if both are there, or None."""
    given = [columns.pop(name) for name in ("masses", "mass") if name in columns]
    if not given:
        return None
    if len(given) == 2 and (np.abs(given[0] - given[1]) > 1e-6 * np.abs(given[0])).any():
        i = int(np.argmax(np.abs(given[0] - given[1])))
        raise chunk.error(f"masses {given[0][i]:g} and mass {given[1][i]:g} differ: remove one column", row=i)
    if not (given[0] > 0).all():
        i = int(np.argmin(given[0] > 0))
        raise chunk.error(f"masses: expected positive numbers, got {given[0][i]:g}", row=i)
    return given[0]


def _set_names(atoms, names) -> None:
    """Elements if all ``names`` are chemical symbols, else labels."""
    if set(names) <= atomic_numbers.keys() - {"X"}:
        atoms.numbers[:] = [atomic_numbers[name] for name in names]
        return
    own_tags = atoms.get_tags() if atoms.has("tags") and TABLE not in atoms.info else None
    set_labels(atoms, names)
    if own_tags is not None:  # with another use than labels
        atoms.set_tags(own_tags)
        del atoms.info[TABLE]


def _parse_virial(atoms) -> dict:
    """Leave a symmetric ``virial`` in ``info``, from ``virial`` or ``stress``; return the stress as result."""
    volume, n = frame_volume(atoms), len(atoms)
    virial, stress = atoms.info.get("virial"), atoms.info.pop("stress", None)
    if virial is not None:
        virial = symmetric_virial("virial", virial, n)
    if stress is not None:
        if not volume:
            raise DatasetError("stress: expected a Lattice with a volume")
        from_stress = symmetric_virial("stress", virial_from_stress(stress, volume), n)
        if virial is None:
            virial = from_stress
        check_agreement(virial, from_stress, n)
    if virial is None:
        return {}
    atoms.info["virial"] = virial
    return {"stress": stress_from_virial(virial, volume)} if volume else {}
