"""The folder of a campaign: what it is for, one checkpoint and one result per configuration, and a lock.

campaign.json            settings, seed, hashes of the configurations, mappings and calculators
00000.checkpoint.npz     state of the run of configuration 0
00000.result.npz         its averages (:mod:`ase_nepcg.meanforce.results`), once it is finished
lock                     held (``flock``) by the run that uses the folder, and released by the system when it ends
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform

import numpy as np
from ase.io.jsonio import encode

from ..checkpoint import CheckpointError
from ..errors import NepCGError
from ..labels import ARRAY
from ..locks import acquire
from ..nepfile import write_atomically
from .results import read_result_and_notes
from .sampler import fingerprint

__all__ = ["CampaignFolder", "FolderInUseError", "describe"]

_KIND, _VERSION = "nepcg-campaign", 1
_PARTS = ("configuration", "mapping", "calculator")


class FolderInUseError(NepCGError, RuntimeError):
    """Another run uses the folder."""


def describe(atoms, mapping) -> dict[str, str]:
    """What the run of one configuration depends on besides the settings: a hash for each part."""
    configuration = hashlib.sha256()
    columns = [atoms.positions, atoms.cell.array, atoms.pbc, atoms.numbers, atoms.get_masses()]
    # what calculators may look at besides
    columns += [atoms.arrays[name] for name in (ARRAY, "tags", "initial_magmoms", "initial_charges") if atoms.has(name)]
    for array in columns:
        configuration.update(f"{array.dtype.str}{array.shape};".encode() + np.ascontiguousarray(array).tobytes())
    for constraint in atoms.constraints:
        try:
            text = encode(constraint.todict())
        except (AttributeError, NotImplementedError):
            text = type(constraint).__name__
        configuration.update(f"{text};".encode())
    return {
        "configuration": configuration.hexdigest(),
        "mapping": hashlib.sha256(mapping.to_json().encode()).hexdigest(),
        "calculator": fingerprint(atoms.calc),
    }


class CampaignFolder:
    """A context in which the folder ``path``, made if necessary, belongs to this run alone.

    ``settings`` (:class:`~ase_nepcg.meanforce.sampler.Settings`) and ``parts`` (:func:`describe` of each
    configuration) must be those the folder was made with, ``settings.seed`` None or the folder's; there may be fewer
    configurations or more.
    ``seed`` is the folder's, or ``new_seed`` for a new folder without ``settings.seed``.

    Raises :class:`FolderInUseError` if another run uses it, and :class:`~ase_nepcg.checkpoint.CheckpointError` if it
    was made for something else.
    """

    def __init__(self, path, settings: dict, parts: list[dict], new_seed: int):
        self.path = os.fspath(path)
        self._settings = {name: value for name, value in settings.items() if name != "seed"}
        self._parts = parts
        self.seed = new_seed if settings["seed"] is None else settings["seed"]
        self._keep_seed = settings["seed"] is None

    def __enter__(self) -> CampaignFolder:
        os.makedirs(self.path, exist_ok=True)
        self._lock = os.open(os.path.join(self.path, "lock"), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._acquire()
            self._open()
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(self, *error) -> None:
        # the file stays: to remove it would let two runs hold locks on two files of that name
        with contextlib.suppress(OSError):
            os.ftruncate(self._lock, 0)
        os.close(self._lock)

    def checkpoint(self, index: int) -> str:
        return os.path.join(self.path, f"{index:05d}.checkpoint.npz")

    def result(self, index: int) -> str:
        return os.path.join(self.path, f"{index:05d}.result.npz")

    def notes(self, index: int, goal: dict) -> dict:
        """What a result file must have noted to be the result of configuration ``index``."""
        return {"seed": self.seed, "settings": self._settings, "goal": goal, **self._parts[index]}

    def read(self, index: int, goal: dict):
        """The finished result of configuration ``index``, or None; one with another goal does not count."""
        try:
            result, notes = read_result_and_notes(self.result(index))
        except FileNotFoundError:
            return None
        expected = self.notes(index, goal)
        if {**notes, "goal": None} != {**expected, "goal": None}:
            raise CheckpointError(f"{self.result(index)}: belongs to another campaign; remove it to make it anew")
        return result if notes["goal"] == goal else None

    def _acquire(self) -> None:
        if not acquire(self._lock):
            holder = os.pread(self._lock, 200, 0).decode(errors="replace").strip()
            raise FolderInUseError(
                f"{self.path}: another run uses this folder{f' ({holder})' if holder else ''}; wait until it has "
                "ended, or use another folder"
            )
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)

    def _open(self) -> None:
        """Compare with ``campaign.json``; write it if there is none, or if there are more configurations than in it."""
        path = os.path.join(self.path, "campaign.json")
        try:
            with open(path, "rb") as file:
                stored = json.loads(file.read())
            if (stored["kind"], stored["version"]) != (_KIND, _VERSION):
                raise ValueError(f"kind {stored['kind']!r}, version {stored['version']!r}")
            settings, seed, old = stored["settings"], stored["seed"], [dict(entry) for entry in stored["frames"]]
        except FileNotFoundError:
            settings, seed, old = self._settings, self.seed, []
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path}: expected a {_KIND} of version {_VERSION} ({error}); use another folder"
            ) from None
        remedy = "use another folder, or what the folder was made with"
        for name, value in self._settings.items():
            if settings.get(name) != value:
                raise CheckpointError(
                    f"{self.path}: made with {name}={settings.get(name)!r}, now {name}={value!r}; {remedy}"
                )
        if seed != self.seed and not self._keep_seed:
            raise CheckpointError(f"{self.path}: made with seed={seed!r}, now seed={self.seed!r}; {remedy}")
        self.seed = seed
        for index, (before, now) in enumerate(zip(old, self._parts, strict=False)):
            for part in _PARTS:
                if before.get(part) != now[part]:
                    raise CheckpointError(
                        f"{self.path}: made with another {part} as number {index}; new configurations may be added at "
                        f"the end only; {remedy}"
                    )
        if len(self._parts) > len(old):
            record = {"kind": _KIND, "version": _VERSION, "seed": seed, "settings": settings, "frames": self._parts}
            write_atomically(path, json.dumps(record, indent=1))
