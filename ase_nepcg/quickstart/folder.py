"""The folder of a quickstart: its settings, which stages are finished, and a lock, so that a rerun goes on."""

from __future__ import annotations

import json
import os
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from ..errors import NepCGError
from ..locks import locked
from ..nepfile import write_atomically

__all__ = ["FolderError", "RunFolder"]

_SETTINGS, _LOCK, _DONE = "settings.json", "quickstart.lock", "done"
# what write_atomically calls a file that is not complete
_TEMPORARY = ".nepcg-*.tmp"


class FolderError(NepCGError, ValueError):
    """A folder that another run uses, or was made with other settings."""


class RunFolder:
    """A folder that one run at a time may use, made with one set of settings.

    Within the context the lock is held. ``finish(stage, numbers)`` keeps the numbers of a finished stage (JSON),
    ``finished(stage)`` gives them back in this run or the next; what a stage leaves beside them are files in
    :attr:`path`.
    """

    def __init__(self, path, settings: dict):
        # a calculator may change the working directory
        self.path, self._settings = Path(path).resolve(), settings

    def __enter__(self) -> RunFolder:
        path = self.path
        if path.exists() and not path.is_dir():
            raise FolderError(f"{path}: expected a folder, that is a file; choose another name")
        known = path / _SETTINGS
        if path.is_dir() and not known.exists() and any(not _ours(name) for name in os.listdir(path)):
            raise FolderError(f"{path}: there are files in it, but not those of a quickstart; choose another folder")
        path.mkdir(parents=True, exist_ok=True)
        self._lock = locked(
            path / _LOCK, FolderError(f"{path}: another quickstart uses this folder; wait for it, or choose another")
        )
        self._lock.__enter__()
        try:
            self._check(known)
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *error):
        self._lock.__exit__(*error)

    def _check(self, known: Path) -> None:
        for debris in self.path.glob(_TEMPORARY):
            # of a run that was killed while it wrote: we have the lock
            debris.unlink()
        if not known.exists() or not any(self.path.glob(f"*.{_DONE}.json")):
            write_atomically(known, _json(self._settings))
            return
        try:
            before = json.loads(known.read_text())
        except ValueError:
            raise FolderError(f"{known}: damaged; remove the folder to start anew") from None
        now = json.loads(_json(self._settings))
        other = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
        if other:
            texts = ", ".join(f"{name} was {_short(before.get(name))}, now {_short(now.get(name))}" for name in other)
            raise FolderError(
                f"{self.path}: was made with other settings ({texts}); give the same ones to go on, or another folder"
            )

    def file(self, name: str) -> Path:
        return self.path / name

    def finished(self, stage: str) -> dict | None:
        """The numbers of a stage that is finished, else None."""
        path = self.path / f"{stage}.{_DONE}.json"
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            raise FolderError(f"{path}: damaged; remove this file to do the stage again") from None

    def finish(self, stage: str, numbers: dict) -> dict:
        """Keep ``numbers`` (JSON; arrays become lists); returns what the next run will read."""
        text = _json(numbers)
        write_atomically(self.path / f"{stage}.{_DONE}.json", text)
        return json.loads(text)


def _ours(name: str) -> bool:
    return name == _LOCK or fnmatch(name, _TEMPORARY)


def _json(numbers: dict) -> str:
    return json.dumps(numbers, indent=1, default=_plain) + "\n"


def _plain(value):
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"not for JSON: {value!r}")


def _short(value) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:57]}..."
