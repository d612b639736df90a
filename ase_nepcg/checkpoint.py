"""Checkpoints: one npz file without pickles, with a version and a hash of everything in it, written atomically."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
import zlib

import numpy as np

from .errors import NepCGError
from .nepfile import write_atomically

__all__ = ["CheckpointError", "may_be_checkpoint", "read_checkpoint", "write_checkpoint"]

_VERSION = 1
_HEADER, _HASH = "header", "sha256"
# what numpy and zipfile raise for damaged archives
_DAMAGES = (ValueError, EOFError, OSError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)


class CheckpointError(NepCGError, ValueError):
    """A checkpoint that is damaged, or belongs to another run."""


def write_checkpoint(path, kind: str, header: dict, arrays: dict) -> None:
    """Write ``header`` (JSON) and ``arrays`` to ``path``; an older file there is replaced in one go."""
    text = json.dumps({"kind": kind, "version": _VERSION, **header}, sort_keys=True)
    stored = {_HEADER: np.frombuffer(text.encode(), np.uint8), **arrays}
    stored[_HASH] = np.frombuffer(_digest(stored), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **stored)
    write_atomically(path, buffer.getvalue())


def may_be_checkpoint(content: bytes) -> bool:
    """Whether a file that begins so may be a checkpoint, whole or damaged (an archive, or empty)."""
    return content[:2] in (b"PK", b"")


def read_checkpoint(path, kind: str) -> tuple[dict, dict]:
    """The header and the arrays of :func:`write_checkpoint`.

    Raises FileNotFoundError, or :class:`CheckpointError` for files that are truncated, damaged or something else.
    """
    path = os.fsdecode(path)
    remedy = "remove it to start anew"
    other = "to go on from a checkpoint give that of such a run, to begin with a new one choose another name"
    if os.path.isdir(path):
        raise CheckpointError(f"{path}: expected a checkpoint of ase_nepcg, got a folder; name a file in it")
    with open(path, "rb") as file:
        content = file.read()
    if not may_be_checkpoint(content):
        raise CheckpointError(f"{path}: not a checkpoint of ase_nepcg; {other}")
    try:
        # from memory: a damaged archive would keep its file open
        archive = np.load(io.BytesIO(content), allow_pickle=False)
        arrays = {name: archive[name] for name in getattr(archive, "files", ())}
    except _DAMAGES as error:
        raise CheckpointError(f"{path}: not a checkpoint, truncated or damaged ({error}); {remedy}") from None
    if _HEADER not in arrays or _HASH not in arrays:
        raise CheckpointError(f"{path}: not a checkpoint of ase_nepcg; {other}")
    expected = arrays.pop(_HASH).tobytes()
    if _digest(arrays) != expected:
        raise CheckpointError(f"{path}: the content does not match its hash, the file is damaged; {remedy}")
    header = json.loads(arrays.pop(_HEADER).tobytes().decode())
    if header.get("kind") != kind:
        raise CheckpointError(f"{path}: expected a checkpoint of kind {kind!r}, got {header.get('kind')!r}; {other}")
    if header.get("version") != _VERSION:
        raise CheckpointError(
            f"{path}: expected a checkpoint of version {_VERSION}, got version {header.get('version')!r}; {remedy}"
        )
    return header, arrays


def _digest(arrays: dict) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {np.shape(arrays[name])}\n".encode())
        digest.update(array.tobytes())
    return digest.digest()
