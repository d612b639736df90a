"""What all kernels share: how they are compiled, and what differs between a device and its simulator."""

from __future__ import annotations

import numba
import numpy as np
from numba import cuda
from numba.core import config

__all__ = [
    "BLOCK",
    "SIMULATOR",
    "blocks_for",
    "device_function",
    "kernel",
    "number_type",
    "upper_bits",
    "wrapping_difference",
]

#: kernels run as Python, thread by thread (NUMBA_ENABLE_CUDASIM=1)
SIMULATOR = bool(config.ENABLE_CUDASIM)
#: threads per block; each is a thread of the operating system in the simulator
BLOCK = 8 if SIMULATOR else 128


# small systems are what these kernels are for; the warning would come with each of them
config.CUDA_LOW_OCCUPANCY_WARNINGS = 0
# assembled one by one, as ``ptx.py`` does: its numbers are those of what runs
_OPTIONS = {} if SIMULATOR else {"lto": False}


def kernel(function=None, *, fastmath: bool = False, threads: int | None = None):
    """A CUDA kernel. ``fastmath`` takes NaN and infinity for impossible: not for kernels that look for them.

    ``threads``: most threads per block, to which the compiler fits the registers.
    """
    if function is None:
        return lambda f: kernel(f, fastmath=fastmath, threads=threads)
    bounds = {} if SIMULATOR or threads is None else {"launch_bounds": threads}
    return cuda.jit(fastmath=fastmath, **bounds, **_OPTIONS)(function)


def device_function(*, fastmath: bool = False):
    """Decorator: a function that kernels call, always inlined (arrays of the caller must stay in registers)."""
    if SIMULATOR:
        return lambda function: function
    return cuda.jit(device=True, forceinline=True, fastmath=fastmath, **_OPTIONS)


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
