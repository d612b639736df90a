"""Random numbers that depend on (seed, step, atom) only: a stream can be taken up anywhere, by any thread.

Philox 4x32 with 10 rounds (Salmon et al., SC'11, 2011): a keyed bijection of a 128-bit counter. Uniform numbers
``(n + 1/2) / 2^32`` become normal ones by the Box-Muller transform; the largest is 6.8.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from ..potential.cache import kernel_jit

__all__ = ["fill_normals", "normals", "uniforms"]

# multipliers of the two products of a round and increments of the two key words
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)

_inlined = numba.njit(forceinline=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)


@_inlined
def philox(c0, c1, c2, c3, k0, k1):
    """Four 32-bit words (as uint64) from the counter ``c0 ... c3`` and the key ``k0, k1``."""
    for _ in range(10):
        a, b = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = ((b >> _SHIFT) ^ c1 ^ k0) & _LOW, b & _LOW, ((a >> _SHIFT) ^ c3 ^ k1) & _LOW, a & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@_inlined
def words(seed, step, atom, stream):
    """Four random 32-bit words (as uint64)."""
    seed, step = np.uint64(seed), np.uint64(step)
    return philox(step & _LOW, step >> _SHIFT, np.uint64(atom), np.uint64(stream), seed & _LOW, seed >> _SHIFT)


@_inlined
def uniforms(seed, step, index, stream):
    """Four independent numbers, uniform in (0, 1)."""
    a, b, c, d = words(seed, step, index, stream)
    scale = 1.0 / 4294967296.0
    return (float(a) + 0.5) * scale, (float(b) + 0.5) * scale, (float(c) + 0.5) * scale, (float(d) + 0.5) * scale


@_inlined
def normals(seed, step, atom, stream=0):
    """Four independent standard normal numbers for one atom in one step.

    ``stream``: 0 for atoms; others are for noise that belongs to the whole system, numbered by ``atom``.
    """
    a, b, c, d = words(seed, step, atom, stream)
    scale = 1.0 / 4294967296.0
    r = math.sqrt(-2.0 * math.log((float(a) + 0.5) * scale))
    s = math.sqrt(-2.0 * math.log((float(c) + 0.5) * scale))
    p, q = 2.0 * math.pi * (float(b) + 0.5) * scale, 2.0 * math.pi * (float(d) + 0.5) * scale
    return r * math.cos(p), r * math.sin(p), s * math.cos(q), s * math.sin(q)


@kernel_jit()
def fill_normals(seed, step, out):
    """``out`` (N, 3): the normal numbers that atoms 0 ... N-1 get in ``step``."""
    for i in range(out.shape[0]):
        out[i, 0], out[i, 1], out[i, 2], _ = normals(seed, step, i)
