"""What all kernels share: how they are compiled, and what differs between a device and its simulator."""

from __future__ import annotations

import functools
import inspect
import os
from typing import NamedTuple

import numba
import numpy as np
from numba import cuda
from numba.core import config

__all__ = [
    "BLOCK",
    "SIMULATOR",
    "Stage",
    "blocks_for",
    "device_function",
    "kernel",
    "number_type",
    "stage",
    "upper_bits",
    "wrapping_difference",
]

#: kernels run as Python, thread by thread (NUMBA_ENABLE_CUDASIM=1)
SIMULATOR = bool(config.ENABLE_CUDASIM)
#: threads per block; each is a thread of the operating system in the simulator
BLOCK = 8 if SIMULATOR else 128


# small systems are what these kernels are for; the warning would come with each of them
config.CUDA_LOW_OCCUPANCY_WARNINGS = 0
# numba reads its environment anew when a variable of it has changed
os.environ.setdefault("NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS", "0")
# assembled one by one, as ``ptx.py`` does: its numbers are those of what runs. To be given together with the function:
# numba-cuda 0.30 forgets it where ``jit`` is called without one
_OPTIONS = {} if SIMULATOR else {"lto": False}


def kernel(function=None, *, fastmath: bool = False, threads: int | None = None):
    """A CUDA kernel. ``fastmath`` takes NaN and infinity for impossible: not for kernels that look for them.

    ``threads``: most threads per block, to which the compiler fits the registers.
    """
    if function is None:
        return lambda f: kernel(f, fastmath=fastmath, threads=threads)
    bounds = {} if SIMULATOR or threads is None else {"launch_bounds": threads}
    made = cuda.jit(function, fastmath=fastmath, **bounds, **_OPTIONS)
    if not SIMULATOR:
        # imports what the simulator does not have
        from .cache import CudaKernelFiles

        made._cache = CudaKernelFiles(made)
    return made


def _simulated(function):
    """Functions that use ``cuda`` must be the simulator's: it gives its own meaning to the word in their modules."""
    return cuda.jit(device=True)(function) if "cuda" in function.__code__.co_names else function


def device_function(*, fastmath: bool = False):
    """Decorator: a function that kernels call, always inlined (arrays of the caller must stay in registers)."""
    if SIMULATOR:
        return _simulated
    return functools.partial(cuda.jit, device=True, forceinline=True, fastmath=fastmath, **_OPTIONS)


class Stage(NamedTuple):
    """A function of one item, of a site say, and the kernel that calls it for all of them.

    ``one(k, *arguments)``, or ``one(k, lane, lanes, *arguments)`` where several threads (*lanes*) share an item;
    ``kernel[...](count, arguments)``: for k below ``count``, the lanes along the second dimension of the grid.
    ``signature``: names of the arguments.
    """

    name: str
    one: object
    kernel: object
    signature: tuple

    def launch(self, count: int, arguments: tuple, lanes: int = 1) -> None:
        """All items, in blocks of BLOCK threads."""
        self.kernel[(blocks_for(count), lanes), BLOCK](count, arguments)


def stage(function=None, *, fastmath: bool = False, lanes: bool = False):
    """Decorator: makes a :class:`Stage` of a function of one item."""
    if function is None:
        return lambda f: stage(f, fastmath=fastmath, lanes=lanes)
    one = device_function(fastmath=fastmath)(function)
    if lanes:

        def all_items(count, arguments):
            k = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
            if k < count:
                one(k, cuda.blockIdx.y, cuda.gridDim.y, *arguments)

    else:

        def all_items(count, arguments):
            k = cuda.grid(1)
            if k < count:
                one(k, *arguments)

    # as profilers show it, and the files of compiled kernels
    all_items.__name__ = all_items.__qualname__ = function.__name__
    names = tuple(inspect.signature(function).parameters)
    return Stage(function.__name__, one, kernel(all_items, fastmath=fastmath), names[3 if lanes else 1 :])


def blocks_for(count: int) -> int:
    """Blocks that give ``count`` threads something to do; at least one."""
    return max(1, -(-count // BLOCK))


def number_type(kind: type):
    """Numba's type for a numpy one; called in a kernel, it converts."""
    return numba.from_dtype(np.dtype(kind))


def wrapping_difference(fixed: type):
    """Function ``a - b`` of two integers of type ``fixed`` modulo their range, i.e. the minimum image of places."""
    if SIMULATOR:
        half = 1 << (8 * np.dtype(fixed).itemsize - 1)

        def difference(a, b):
            return fixed((int(a) - int(b) + half) % (2 * half) - half)

        return difference

    convert = number_type(fixed)

    @device_function()
    def difference(a, b):
        return convert(a - b)

    return difference


def upper_bits(fixed: type):
    """Function: the upper 32 bits of a ``fixed``, as a number from 0."""
    shift = 8 * np.dtype(fixed).itemsize - 32
    if SIMULATOR:
        return lambda a: (int(a) >> shift) & 0xFFFFFFFF

    @device_function()
    def upper(a):
        return (a >> shift) & 0xFFFFFFFF

    return upper
