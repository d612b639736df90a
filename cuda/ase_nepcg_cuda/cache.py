"""Compiled kernels on disk: the kernel of many steps takes the compiler most of a minute.

Kernels of this package are closures over device functions, which are closures over others. Which machine code they
give is told by :func:`fingerprint`, of the bytecode of all of them and of the values that they close over; nobody has
to keep a list of these. Files, their directory and when they are removed: ``ase_nepcg.potential.cache``.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import pickle
import types
import zlib

import numba
import numpy as np
from numba import cuda
from numba.core import config
from numba.core.dispatcher import Dispatcher
from numba.cuda import serialize
from numba.cuda.dispatcher import CUDADispatcher, _Kernel

from ase_nepcg.potential.cache import KernelFiles

__all__ = ["CudaKernelFiles", "fingerprint", "versions"]

_PACKAGES = ("ase_nepcg", "ase_nepcg_cuda")
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), np.generic, np.dtype, numba.types.Type)
_OPTIONS = (
    *("fastmath", "forceinline", "inline", "launch_bounds", "lto", "opt", "debug", "lineinfo", "device"),
    *("max_registers", "shared_memory_carveout"),
)


@functools.cache
def versions() -> tuple:
    """Names and versions of the installed packages that make machine code of Python."""
    wanted = ("numba", "llvmlite", "nvidia-", "cuda-")
    found = ((one.metadata["Name"] or "", one.version) for one in importlib.metadata.distributions())
    return tuple(sorted({(name, version) for name, version in found if name.lower().startswith(wanted)}))


def fingerprint(function, options: dict) -> str:
    """Hash of a kernel: of all functions that it calls and the values they use, and of its options.

    TypeError for a value of a kind that is not known here: two of them might be taken for the same.
    """
    digest = hashlib.sha256()
    seen = {}

    def put(*words):
        digest.update("\0".join(map(str, words)).encode() + b"\0\0")

    def put_options(given):
        put(*(f"{name}={given.get(name)!r}" for name in _OPTIONS))

    def visit_code(code, scope):
        put("code", code.co_code.hex(), code.co_names, code.co_varnames, code.co_freevars, code.co_argcount)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                visit_code(constant, scope)
            else:
                visit(constant)
        # names of attributes are among these, too
        for name in code.co_names:
            if name in scope:
                put("global", name)
                visit(scope[name])

    def visit(value):
        if isinstance(value, _PLAIN):
            put(type(value).__name__, repr(value))
        elif isinstance(value, np.ndarray):
            put("array", value.dtype.str, value.shape)
            digest.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, tuple | list | frozenset):
            put(type(value).__qualname__, len(value))
            for one in sorted(value, key=repr) if isinstance(value, frozenset) else value:
                visit(one)
        elif isinstance(value, types.ModuleType):
            put("module", value.__name__)
        elif isinstance(value, type | types.BuiltinFunctionType | np.ufunc):
            put("named", getattr(value, "__module__", ""), getattr(value, "__qualname__", value.__name__))
        elif id(value) in seen:
            put("again", seen[id(value)])
        elif isinstance(value, Dispatcher | CUDADispatcher):
            seen[id(value)] = len(seen)
            put_options(value.targetoptions)
            visit(value.py_func)
        elif isinstance(value, types.FunctionType):
            seen[id(value)] = len(seen)
            put("function", value.__module__, value.__qualname__)
            # of functions made from a text the module is that of their maker
            if (value.__module__ or "").split(".")[0] in _PACKAGES:
                visit_code(value.__code__, value.__globals__)
                visit(value.__defaults__)
                for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
                    put("closure", name)
                    visit(cell.cell_contents)
        else:
            raise TypeError(f"{function.__qualname__} uses a {type(value)!r}, whose value cannot be told: {value!r}")

    put_options(options)
    visit(function)
    return digest.hexdigest()


class CudaKernelFiles(KernelFiles):
    """The cache of the kernel ``dispatcher``."""

    def __init__(self, dispatcher):
        super().__init__(dispatcher.py_func.__name__, (), "cuda")
        self._dispatcher = dispatcher

    def _path(self, sig):
        if not self._key:
            self._key = fingerprint(self._dispatcher.py_func, self._dispatcher.targetoptions), versions()
        forced = config.FORCE_CUDA_CC, getattr(config, "CUDA_ENABLE_NRT", None)
        return self.path_of(str(sig), cuda.get_current_device().compute_capability, forced)

    def load_overload(self, sig, target_context):
        return self.read(self._path(sig), lambda data: _Kernel._rebuild(**pickle.loads(zlib.decompress(data))))

    def save_overload(self, sig, kernel):
        path = self._path(sig)
        if path is not None:
            self.write(path, zlib.compress(serialize.dumps(kernel._reduce_states()), 1))
