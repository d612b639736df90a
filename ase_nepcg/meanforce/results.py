"""A finished :class:`~ase_nepcg.MeanForce` in a file: npz without pickles, with version and hash, bit for bit."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
from ase import Atoms

from ..checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from ..dataset import FrameCalculator
from .core import MeanForce

__all__ = ["read_result", "read_result_and_notes", "write_result"]

_KIND = "mean-force-result"


def write_result(path, result: MeanForce, notes: dict | None = None) -> None:
    """Write ``result`` to ``path`` (an older file is replaced in one go), with ``notes`` (JSON) if given.

    Raises :class:`~ase_nepcg.checkpoint.CheckpointError` for entries of ``result.frame.info`` that are neither numbers,
    strings, arrays of them, nor lists and dictionaries of plain ones.
    """
    values, arrays = {}, {}
    for field in fields(result):
        value = getattr(result, field.name)
        if field.name == "frame":
            values[field.name] = _pack_frame(value, arrays)
        else:
            values[field.name] = _pack(f"result/{field.name}", value, arrays)
    write_checkpoint(path, _KIND, {"values": values, "notes": notes or {}}, arrays)


def read_result(path) -> MeanForce:
    """What :func:`write_result` wrote.

    Raises FileNotFoundError, or :class:`~ase_nepcg.checkpoint.CheckpointError` for a damaged or another file.
    """
    return read_result_and_notes(path)[0]


def read_result_and_notes(path) -> tuple[MeanForce, dict]:
    """What :func:`write_result` wrote, and the notes with it; errors as :func:`read_result`."""
    header, arrays = read_checkpoint(path, _KIND)
    try:
        values = {name: _unpack(entry, arrays) for name, entry in header["values"].items() if name != "frame"}
        values["warnings"] = tuple(values["warnings"])
        result = MeanForce(frame=_unpack_frame(header["values"]["frame"], arrays), **values)
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: expected the result of this version of ase_nepcg ({error}); remove it to make it anew"
        ) from error
    return result, header["notes"]


def _pack(name: str, value, arrays: dict):
    """Header entry of ``value``: ``{"array": name}`` for what goes into ``arrays``, else ``{"json": value}``."""
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind not in "biufcSU":
            raise CheckpointError(f"{name}: expected numbers or strings, got an array of {value.dtype}")
        arrays[name] = np.asarray(value)
        return {"array": name}
    _check_plain(name, value)
    return {"json": value}


def _check_plain(name: str, value) -> None:
    if isinstance(value, list | tuple):
        for item in value:
            _check_plain(name, item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise CheckpointError(f"{name}: expected strings as keys, got {key!r}")
            _check_plain(name, item)
    elif value is not None and not isinstance(value, bool | int | float | str):
        raise CheckpointError(f"{name}: expected numbers, strings or arrays of them, got {type(value).__name__}")


def _unpack(entry: dict, arrays: dict):
    # [()] turns an array without dimensions into the scalar it was made from
    return arrays[entry["array"]][()] if "array" in entry else entry["json"]


def _pack_frame(frame, arrays: dict) -> dict:
    """The parts of a frame as lists of (name, entry), since the order of columns and keys is part of a frame."""
    parts = {"arrays": frame.arrays, "info": frame.info, "results": frame.calc.results}
    parts["cell"] = {"cell": frame.cell.array, "pbc": frame.pbc, "celldisp": frame.get_celldisp()}
    return {
        part: [(name, _pack(f"{part}/{name}", value, arrays)) for name, value in content.items()]
        for part, content in parts.items()
    }


def _unpack_frame(parts: dict, arrays: dict) -> Atoms:
    content = {part: {name: _unpack(entry, arrays) for name, entry in entries} for part, entries in parts.items()}
    columns = content["arrays"]
    frame = Atoms(numbers=columns.pop("numbers"), positions=columns.pop("positions"), **content["cell"])
    for name, column in columns.items():
        frame.set_array(name, column)
    frame.info.update(content["info"])
    frame.calc = FrameCalculator(frame, **content["results"])
    return frame
