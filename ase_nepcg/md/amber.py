"""AMBER trajectories: NetCDF-3 files with 64-bit offsets, as bytes.

The layout is that of the AMBER NetCDF Trajectory Convention 1.0, in the classic file format of NetCDF (version byte 2):
a header, data of fixed size, then one record per frame::

    time              ps           float
    coordinates       Å            float (atom, 3)
    velocities        Å/ps         float (atom, 3), to be multiplied by scale_factor = 20.455
    cell_lengths      Å            double (3,), 0 for directions that are not periodic
    cell_angles       degrees      double (3,): alpha, beta, gamma

Lengths and angles say nothing about the orientation of a cell. So each frame is turned such that the first cell vector
is along x and the second in the plane of x and y, positions and velocities alike; a cell that is like this is left as
it is. A left-handed cell becomes its mirror image. Positions are not wrapped into the cell; single precision resolves
1e-5 Å at 100 Å.

Beside the convention stand, once per file, what makes frames of beads complete: ``atom_types`` (atomic numbers, 0 for
beads that are no element), ``masses`` (u) and ``labels`` (16 letters). Other programs ignore these; ASE reads the first
two. ASE does not convert velocities: those in the momenta that it reads are in Å/ps, with the masses of the elements.
"""

from __future__ import annotations

import os
import struct

import numpy as np
from ase import units

from .. import __version__
from ..labels import MAX_LENGTH, check_characters, get_labels

__all__ = ["VELOCITY_UNIT", "header_of", "orient", "read_header", "record_of", "record_size"]

#: Å/ps
VELOCITY_UNIT = 20.455

_MAGIC = b"CDF\x02"
_DIMENSIONS, _VARIABLES, _ATTRIBUTES = 10, 11, 12
# number of the type in the file, size, as numpy names it
_CHAR, _INT, _FLOAT, _DOUBLE = (2, 1, "S1"), (4, 4, ">i4"), (5, 4, ">f4"), (6, 8, ">f8")
_SPATIAL, _ATOM, _ANGULAR = "spatial", "atom", "cell_angular"
_VERSION_LETTERS = 16


def header_of(atoms) -> bytes:
    """Everything before the first record of a file of frames of ``atoms``; the number of records, in bytes 4-7, is 0.

    Raises :class:`~ase_nepcg.labels.LabelError` for labels that are missing or not ASCII.
    """
    labels = get_labels(atoms)
    check_characters(labels)
    return _build(labels, atoms.numbers, atoms.get_masses())


def read_header(file) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) and masses (N,) of a file that is open for reading of bytes.

    Raises ValueError for files whose header :func:`header_of` did not make.
    """
    start = _dimensions(0)[0]
    head = file.read(len(start) + 4)
    if head[:4] != _MAGIC:
        raise ValueError("not a NetCDF-3 file with 64-bit offsets")
    if head[8 : len(start)] != start[8:]:
        raise ValueError("another layout, or cut short")
    n = struct.unpack(">i", head[len(start) :])[0]
    size = os.fstat(file.fileno()).st_size
    if not 0 <= _fixed_size(n) <= size:
        raise ValueError("another layout, or cut short")
    like = _build(np.full(n, "X"), np.zeros(n, int), np.ones(n))
    fixed = len(like) - _fixed_size(n)
    head = bytearray(head + file.read(len(like) - len(head)))
    version = like.index(_version())
    head[4:8] = like[4:8]
    head[version : version + _VERSION_LETTERS] = like[version : version + _VERSION_LETTERS]
    if head[:fixed] != like[:fixed] or len(head) < len(like):
        raise ValueError("another layout, or cut short")
    masses = np.frombuffer(bytes(head[len(like) - 8 * n :]), ">f8").astype(float)
    end = len(like) - 8 * n
    letters = np.frombuffer(bytes(head[end - MAX_LENGTH * n : end]), f"S{MAX_LENGTH}")
    return letters.astype(str), masses


def record_size(n: int) -> int:
    """Bytes of the record of a frame of ``n`` sites."""
    return 4 + 24 * n + 48


def record_of(atoms, time_ps: float) -> bytes:
    """The record of one frame; velocities are 0 if there are none."""
    velocities = atoms.get_velocities() if atoms.has("momenta") else np.zeros((len(atoms), 3))
    parameters, positions, velocities = orient(atoms.cell, atoms.positions, velocities)
    parameters[:3] *= atoms.pbc
    # Å/ps per Å in ASE's unit of time
    per_ps = 1000.0 * units.fs
    return b"".join(
        (
            np.array(time_ps, ">f4").tobytes(),
            positions.astype(">f4").tobytes(),
            (velocities * (per_ps / VELOCITY_UNIT)).astype(">f4").tobytes(),
            parameters.astype(">f8").tobytes(),
        )
    )


def orient(cell, *vectors):
    """Lengths and angles (6,) of a cell, and each of ``vectors`` (N, 3) turned to its standard orientation.

    Missing cell vectors are replaced by unit vectors orthogonal to the others.
    """
    cell = cell.complete()
    rows = cell.array
    if not rows[np.triu_indices(3, 1)].any() and (np.diag(rows) > 0).all():
        return cell.cellpar(), *vectors
    # lower triangular with the same scalar products of its rows
    standard = np.linalg.cholesky(rows @ rows.T)
    turn = np.linalg.solve(rows, standard)
    # spelled out: the bits must not depend on a library's idea of a product
    turned = [v[:, :1] * turn[0] + v[:, 1:2] * turn[1] + v[:, 2:] * turn[2] for v in vectors]
    return cell.cellpar(), *turned


# ---- NetCDF-3 -----------------------------------------------------------------------------------------------------


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _name(text: str) -> bytes:
    return struct.pack(">i", len(text)) + _padded(text.encode())


def _list(tag: int, entries: list[bytes]) -> bytes:
    return struct.pack(">ii", tag if entries else 0, len(entries)) + b"".join(entries)


def _attributes(values: dict) -> bytes:
    entries = []
    for name, value in values.items():
        number, data, count = _CHAR[0], value, len(value) if isinstance(value, bytes) else 1
        if not isinstance(value, bytes):
            number, data = _FLOAT[0], struct.pack(">f", value)
        entries.append(_name(name) + struct.pack(">ii", number, count) + _padded(data))
    return _list(_ATTRIBUTES, entries)


def _version() -> bytes:
    return __version__.encode()[:_VERSION_LETTERS].ljust(_VERSION_LETTERS)


def _dimensions(n: int) -> tuple[bytes, bytes, tuple]:
    """Start of the file up to the number of sites, the rest of the dimensions, their names and lengths."""
    sizes = (("frame", 0), (_SPATIAL, 3), (_ATOM, n), ("cell_spatial", 3), (_ANGULAR, 3), ("label", 5))
    sizes += (("letter", MAX_LENGTH),)
    entries = [_name(name) + struct.pack(">i", size) for name, size in sizes]
    text = _MAGIC + bytes(4) + _list(_DIMENSIONS, entries)
    at = len(_MAGIC + bytes(4) + _list(_DIMENSIONS, entries[:3])) - 4
    return text[:at], text[at + 4 :], sizes


def _fixed_size(n: int) -> int:
    return 4 + 4 + 16 + (4 + MAX_LENGTH + 8) * n


def _build(labels, numbers, masses) -> bytes:
    """The header and the data of fixed size."""
    n = len(labels)
    before, after, sizes = _dimensions(n)
    names, lengths = [name for name, _ in sizes], dict(sizes)
    degrees, angstrom = {"units": b"degree"}, {"units": b"angstrom"}
    speed = {"units": b"angstrom/picosecond", "scale_factor": VELOCITY_UNIT}
    letters = np.char.encode(labels, "ascii").astype(f"S{MAX_LENGTH}")
    # name, dimensions, type, attributes, data (None: in each record)
    variables = [
        (_SPATIAL, (_SPATIAL,), _CHAR, {}, b"xyz"),
        ("cell_spatial", ("cell_spatial",), _CHAR, {}, b"abc"),
        (_ANGULAR, (_ANGULAR, "label"), _CHAR, {}, b"alphabeta gamma"),
        ("atom_types", (_ATOM,), _INT, {}, np.asarray(numbers).astype(">i4").tobytes()),
        ("labels", (_ATOM, "letter"), _CHAR, {}, letters.tobytes()),
        ("masses", (_ATOM,), _DOUBLE, {"units": b"u"}, np.asarray(masses).astype(">f8").tobytes()),
        ("time", ("frame",), _FLOAT, {"units": b"picosecond"}, None),
        ("coordinates", ("frame", _ATOM, _SPATIAL), _FLOAT, angstrom, None),
        ("velocities", ("frame", _ATOM, _SPATIAL), _FLOAT, speed, None),
        ("cell_lengths", ("frame", "cell_spatial"), _DOUBLE, angstrom, None),
        ("cell_angles", ("frame", _ANGULAR), _DOUBLE, degrees, None),
    ]
    about = {
        "title": b"molecular dynamics of a NEP model",
        "application": b"ase_nepcg",
        "program": b"ase_nepcg",
        "programVersion": _version(),
        "Conventions": b"AMBER",
        "ConventionVersion": b"1.0",
    }

    def text(begins):
        entries = []
        for (name, dimensions, kind, attributes, _), begin in zip(variables, begins, strict=True):
            size = kind[1] * int(np.prod([lengths[d] for d in dimensions if d != "frame"], dtype=np.int64))
            size = min(size + -size % 4, 2**32 - 1)
            index = struct.pack(f">{1 + len(dimensions)}i", len(dimensions), *map(names.index, dimensions))
            entries.append(_name(name) + index + _attributes(attributes) + struct.pack(">iIq", kind[0], size, begin))
        return before + struct.pack(">i", n) + after + _attributes(about) + _list(_VARIABLES, entries)

    begins, end = [], len(text([0] * len(variables)))
    for _, dimensions, kind, _, data in variables:
        begins.append(end)
        own = kind[1] * int(np.prod([lengths[d] for d in dimensions if d != "frame"], dtype=np.int64))
        end += len(_padded(data)) if data is not None else own
    return text(begins) + b"".join(_padded(data) for *_, data in variables if data is not None)
