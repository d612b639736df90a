"""Random numbers that depend on (seed, step, atom) only: a stream can be taken up anywhere, by any thread.

Philox 4x32 with 10 rounds (Salmon et al., SC'11, 2011): a keyed bijection of a 128-bit counter. The three normal
numbers of an atom come from its 128 bits by the ziggurat method (Marsaglia & Tsang, J. Stat. Softw. 5, 8, 2000; 256
layers, 8 bits for the layer and 34 for the place in it, all in 42 bits that no other number uses); what it rejects,
once in 80 times, is drawn again from counters of its own. Numbers that belong to the whole system come by the
Box-Muller transform.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from ..potential.cache import kernel_jit

__all__ = ["fill_bits", "fill_normals", "normals", "three_normals", "uniforms"]

# multipliers of the two products of a round and increments of the two key words
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
# 2^-32: of a word and a half, a number between 0 and 1
_SCALE = 1.0 / 4294967296.0

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
    return (float(a) + 0.5) * _SCALE, (float(b) + 0.5) * _SCALE, (float(c) + 0.5) * _SCALE, (float(d) + 0.5) * _SCALE


@_inlined
def normals(seed, step, atom, stream=0):
    """Four independent standard normal numbers for one atom in one step.

    ``stream``: 0 for atoms; others are for noise that belongs to the whole system, numbered by ``atom``.
    """
    a, b, c, d = words(seed, step, atom, stream)
    r = math.sqrt(-2.0 * math.log((float(a) + 0.5) * _SCALE))
    s = math.sqrt(-2.0 * math.log((float(c) + 0.5) * _SCALE))
    p, q = 2.0 * math.pi * (float(b) + 0.5) * _SCALE, 2.0 * math.pi * (float(d) + 0.5) * _SCALE
    return r * math.cos(p), r * math.sin(p), s * math.cos(q), s * math.sin(q)


def _layers(n: int = 256, edge: float = 3.6541528853610088):
    """Edges of the layers of equal area under exp(-x^2/2), the first as wide as if it held the tail too; (n + 1,)."""
    f = math.exp(-0.5 * edge * edge)
    area = edge * f + math.sqrt(0.5 * math.pi) * math.erfc(edge / math.sqrt(2.0))
    x = [area / f, edge]
    for _ in range(n - 2):
        x.append(math.sqrt(-2.0 * math.log(area / x[-1] + math.exp(-0.5 * x[-1] ** 2))))
    return np.array([*x, 0.0])


_EDGE = _layers()
# a place in the layer nearer than this to zero is under the curve for certain
_SURE = _EDGE[1:] / _EDGE[:-1]
_LAYER, _PLACE, _UNIT = np.uint64(0xFF), np.uint64(8), 2.0**-33
_MASK = np.uint64((1 << 42) - 1)
# counters of what is drawn again, beyond the streams of others
_AGAIN = 256


@_inlined
def _ziggurat(bits, seed, step, atom, which):
    """A standard normal number from 42 random bits, and more if need be."""
    attempt = 0
    while True:
        layer = bits & _LAYER
        u = (float(bits >> _PLACE) + 0.5) * _UNIT - 1.0
        z = u * _EDGE[layer]
        if abs(u) < _SURE[layer]:
            return z
        # seldom: near the curve, or in the tail
        a, b, c, d = words(seed, step, atom, _AGAIN + 4 * attempt + which)
        if layer == 0:
            # what lies beyond the widest edge (Marsaglia, Technometrics 6, 101, 1964)
            while True:
                x = -math.log((float(a) + 0.5) * _SCALE) / _EDGE[1]
                if -2.0 * math.log((float(b) + 0.5) * _SCALE) > x * x:
                    return math.copysign(_EDGE[1] + x, u)
                attempt += 1
                a, b, c, d = words(seed, step, atom, _AGAIN + 4 * attempt + which)
        low = math.exp(0.5 * (z * z - _EDGE[layer] ** 2))
        high = math.exp(0.5 * (z * z - _EDGE[layer + np.uint64(1)] ** 2))
        if low + (float(a) + 0.5) * _SCALE * (high - low) < 1.0:
            return z
        bits = (c << np.uint64(10)) | (d >> np.uint64(22))
        attempt += 1


@_inlined
def fill_bits(seed, step, first, second, begin, end):
    """128 random bits for each of the atoms 0, 1, ... of one step into ``first`` and ``second`` (N,) uint64, from
    ``begin`` up to ``end``. Two arrays and a loop of its own: these become vector instructions."""
    for i in range(begin, end):
        a, b, c, d = words(seed, step, i - begin, 0)
        first[i] = (a << _SHIFT) | b
        second[i] = (c << _SHIFT) | d


@_inlined
def three_normals(first, second, seed, step, atom):
    """Three independent standard normal numbers from the bits of an atom, see :func:`fill_bits`."""
    third = (first >> np.uint64(42)) | ((second >> np.uint64(42)) << np.uint64(22))
    return (
        _ziggurat(first & _MASK, seed, step, atom, 0),
        _ziggurat(second & _MASK, seed, step, atom, 1),
        _ziggurat(third & _MASK, seed, step, atom, 2),
    )


@kernel_jit()
def fill_normals(seed, step, out):
    """``out`` (N, 3): the normal numbers that atoms 0 ... N-1 get in ``step``."""
    first, second = np.empty(out.shape[0], np.uint64), np.empty(out.shape[0], np.uint64)
    fill_bits(seed, step, first, second, 0, out.shape[0])
    for i in range(out.shape[0]):
        out[i, 0], out[i, 1], out[i, 2] = three_normals(first[i], second[i], seed, step, i)
