"""Compiled kernels on disk, so that only the first run on a machine waits for the compiler.

Numba's own ``cache=True`` looks at the caller's file only and hashes closures by a number that changes with every
process, so kernels built from several files and specialised by closures are either stale or never found. Here the key
of a kernel is a hash of *all* kernel sources, the model shape it was built for, its argument types and the CPU; one
file per kernel.

The files are pickles, i.e. code: they live in a directory that belongs to the user and that nobody else may write to
(``NUMBA_CACHE_DIR`` if set, else ``XDG_CACHE_HOME`` or ``~/.cache``, in ``ase_nepcg/``). Where no such directory can
be had (read-only home) kernels are compiled in each process and a warning says so once.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import shutil
import stat
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numba
from numba.core import compiler, config
from numba.core.caching import NullCache
from numba.core.runtime import rtsys
from numba.core.serialize import dumps

__all__ = ["KernelFiles", "cache_directory", "inlined", "kernel_jit", "source_hash"]

# where kernels are written, and the rooms whose functions they may use; "cuda" is the package beside this one
_ROOMS = {
    "potential": ("potential",),
    "md": ("potential", "md", "md/ensembles", "md/observers"),
    "training": ("potential", "training/kernels"),
    "cuda": ("potential", "md", "md/ensembles", "md/observers", "cuda"),
}
# files of kernels whose sources changed are removed when they have not been used for this long
_KEEP_DAYS = 30
# no reassociation: sums keep their order, NaN stays NaN; a*b + c may be fused
_OPTIONS = {"nogil": True, "no_cfunc_wrapper": True, "fastmath": {"contract"}, "error_model": "numpy"}


# What functions that kernels call are compiled with. Always inlined: as functions of their own they would be part of
# every kernel under one name, each copy optimised in its surroundings; the linker would take the one that was loaded
# first for all, and the last bits of results would depend on the order in which a process loads its kernels.
inlined = numba.njit(
    forceinline=True, error_model="numpy", fastmath={"contract"}, no_cpython_wrapper=True, no_cfunc_wrapper=True
)


@functools.cache
def source_hash(room: str = "potential") -> str:
    """Hash over the text of every module that kernels of a room ("potential", "md", "training" or "cuda") are made
    of."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for part in _ROOMS[room]:
        folder = package / part if part != "cuda" else Path(sys.modules["ase_nepcg_cuda"].__file__).parent
        for path in sorted(folder.glob("*.py")):
            digest.update(f"{part}/{path.name}".encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _private(folder: Path) -> str | None:
    """Why ``folder`` must not hold pickles, or None."""
    info = folder.stat()
    if hasattr(os, "getuid") and info.st_uid != os.getuid():
        return f"{folder} belongs to another user"
    if os.name == "posix" and info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{folder} can be written to by others"
    return None


@functools.cache
def cache_directory(room: str = "potential") -> Path | None:
    """The directory of this version's kernels of a room, created if needed; None (after a warning) where there is
    none."""
    try:
        if config.CACHE_DIR:
            base = Path(config.CACHE_DIR)
        elif os.environ.get("XDG_CACHE_HOME"):
            base = Path(os.environ["XDG_CACHE_HOME"])
        else:
            base = Path.home() / ".cache"
        parent = base / "ase_nepcg"
        folder = parent / f"kernels-{source_hash(room)}"
        # one by one: with parents=True the mode would hold for the last one only
        parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(exist_ok=True, mode=0o700)
        reason = _private(parent) or _private(folder)
        if reason is None:
            tempfile.TemporaryFile(dir=folder).close()
            os.utime(folder)
            _prune(parent, keep=folder)
            return folder
    except (OSError, RuntimeError) as error:  # RuntimeError: no home directory
        reason = str(error)
    warnings.warn(
        f"compiled kernels cannot be kept on disk ({reason}); every process will compile them anew. "
        "Set NUMBA_CACHE_DIR to a directory of your own to avoid this.",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


def _prune(parent: Path, keep: Path) -> None:
    oldest = time.time() - _KEEP_DAYS * 86400
    for folder in parent.glob("kernels-*"):
        with contextlib.suppress(OSError):
            if folder != keep and folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)


class KernelFiles(NullCache):
    """What a Numba dispatcher asks of its cache: one file for each set of argument types of one function."""

    def __init__(self, name: str, key: tuple, room: str):
        self._name = name
        self._key = key
        self._room = room

    def path_of(self, *more) -> Path | None:
        """The file for ``more`` that the machine code depends on; None where there is no directory."""
        folder = cache_directory(self._room)
        if folder is None:
            return None
        key = (self._name, self._key, *more, numba.__version__, sys.version)
        return folder / f"{self._name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:24]}.pickle"

    @staticmethod
    def read(path: Path | None, rebuild):
        """What ``rebuild`` makes of the bytes of a file; None where there is none, or nothing can be made of it."""
        if path is None:
            return None
        try:
            return rebuild(path.read_bytes())
        except FileNotFoundError:
            return None
        except Exception:  # a damaged file: whatever is made of it, compile again and replace it
            return None

    @staticmethod
    def write(path: Path, data: bytes) -> None:
        """The whole file or none."""
        temporary = None
        try:
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as handle:
                temporary = handle.name
                handle.write(data)
            os.replace(temporary, path)
        except OSError:  # disk full, directory removed meanwhile: the compiled kernel in memory is still good
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)


class _KernelCache(KernelFiles):
    """For kernels of the CPU."""

    def _path(self, sig, codegen) -> Path | None:
        return self.path_of(str(sig), codegen.magic_tuple())

    def load_overload(self, sig, target_context):
        # enough to run a kernel; refreshing the whole context, as compiling needs it, would import half of scipy
        rtsys.initialize(target_context)
        path = self._path(sig, target_context.codegen())
        return self.read(path, lambda data: compiler.CompileResult._rebuild(target_context, *pickle.loads(data)))

    def save_overload(self, sig, data):
        path = self._path(sig, data.codegen)
        if path is not None:
            self.write(path, dumps(data._reduce()))


def kernel_jit(*key, **options):
    """``numba.njit`` with the options of all kernels and a disk cache; ``key`` holds every value the function closes
    over.

    The function may call other compiled functions and close over them, as long as they are made from the sources
    that :func:`source_hash` covers and ``key``.
    """

    def decorate(function):
        name = function.__name__
        if key:
            # The name of the machine code is made of this one and a counter of the process that compiled it. Kernels of
            # different keys, compiled in different processes, could meet here under one name, and a look-up by name
            # (md.loop.kernel_address) would find the wrong one
            function.__qualname__ += "_" + hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        dispatcher = numba.njit(**(_OPTIONS | options))(function)
        room = next((room for room in ("training", "md") if f".{room}." in function.__module__), "potential")
        dispatcher._cache = _KernelCache(name, key, room)
        return dispatcher

    return decorate
