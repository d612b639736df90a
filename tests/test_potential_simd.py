"""Vectors of doubles against the same operation of numpy, lane by lane."""

import math
import os
import subprocess
import sys

import numba
import numpy as np
import pytest
from numba.core.errors import TypingError

from ase_nepcg.potential.simd import (
    LANES,
    advance,
    aligned_empty,
    as_integers,
    fetch_add,
    lanes,
    load,
    padded,
    pointer,
    splat,
    store,
    vsum,
    where,
)

SPECIAL = np.array([0.0, -0.0, 1.5, -2.25, math.inf, -math.inf, math.nan, 1e-300])


@numba.njit(error_model="numpy")
def _arithmetic(a, b, s, k, out):
    va, vb = lanes(pointer(a), 0), lanes(pointer(b), 0)
    n = a.size // LANES
    for t in range(n):
        x, y = va[t], vb[t]
        results = (
            *(x + y, x - y, x * y, x / y, -x, abs(x), math.sqrt(x)),
            *(x + s, s + x, x - s, s - x, x * s, s * x, x / s, s / x, k * x, x + k, k - x, x / k),
        )
        for row in range(len(results)):
            store(pointer(out), (row * n + t) * LANES, results[row])
        z = x
        z += y
        store(pointer(out), (len(results) * n + t) * LANES, z)
        z -= s
        store(pointer(out), ((len(results) + 1) * n + t) * LANES, z)
        z *= k
        store(pointer(out), ((len(results) + 2) * n + t) * LANES, z)
        z /= y
        store(pointer(out), ((len(results) + 3) * n + t) * LANES, z)


@numba.njit(error_model="numpy")
def _functions(x, exponential, tangent):
    v = lanes(pointer(x), 0)
    v_e, v_t = lanes(pointer(exponential), 0), lanes(pointer(tangent), 0)
    for t in range(x.size // LANES):
        v_e[t] = math.exp(v[t])
        v_t[t] = math.tanh(v[t])


@numba.njit(error_model="numpy")
def _select(a, b, s, out):
    va, vb, v_out = lanes(pointer(a), 0), lanes(pointer(b), 0), lanes(pointer(out), 0)
    n = a.size // LANES
    for t in range(n):
        x, y = va[t], vb[t]
        v_out[t] = where(x, y, x, y)
        v_out[n + t] = where(x, s, 1.0, 2.0)
        v_out[2 * n + t] = where(s, y, 7, x)


@numba.njit(error_model="numpy")
def _fused(a, b, c, out):
    store(pointer(out), 0, load(pointer(a), 0) * load(pointer(b), 0) + load(pointer(c), 0))


@numba.njit
def _memory(a, start, out):
    p = pointer(a)
    view = lanes(p, start)
    store(pointer(out), 0, view[1])
    store(pointer(out), LANES, load(advance(p, start), 2))
    store(pointer(out), 2 * LANES, splat(a[0]))
    later = lanes(pointer(out), 3 * LANES)
    later[0] = 2.5
    later[1] = view[0]
    pointer(out)[5 * LANES] = p[start]
    return vsum(view[0])


@numba.njit
def _integers(doubles, integers, flags):
    as_integers(pointer(doubles))[1] = -5
    total = 0
    for k in range(integers.size):
        total += pointer(integers)[k]
    for k in range(flags.size):
        total += 100 * pointer(flags)[k]
    return total


@numba.njit
def _take(counters, index, value):
    return fetch_add(pointer(counters), index, value)


@numba.njit
def _of_strided(a):
    return vsum(load(pointer(a), 0))


@numba.njit
def _of_integers(a):
    return vsum(load(pointer(a), 0))


def in_groups(*pairs):
    """Two arrays with all pairs of the given numbers, as long as whole vectors."""
    a, b = (np.ravel(x) for x in np.meshgrid(*pairs))
    size = padded(len(a))
    return np.resize(a, size), np.resize(b, size)


def test_arithmetic_is_that_of_numpy_to_the_bit():
    rng = np.random.default_rng(0)
    a, b = in_groups(np.concatenate([SPECIAL, rng.normal(size=5)]), np.concatenate([SPECIAL, rng.normal(size=7)]))
    s, k = 0.3, 3
    out = np.zeros((23, len(a)))
    _arithmetic(a, b, s, k, out.reshape(-1))
    with np.errstate(all="ignore"):
        rows = [a + b, a - b, a * b, a / b, -a, np.abs(a), np.sqrt(a)]
        rows += [a + s, s + a, a - s, s - a, a * s, s * a, a / s, s / a, k * a, a + k, k - a, a / k]
        rows += [a + b, a + b - s, (a + b - s) * k, (a + b - s) * k / b]
    for number, (found, expected) in enumerate(zip(out, rows, strict=True)):
        assert np.array_equal(found, expected, equal_nan=True), number
        assert np.array_equal(np.signbit(found[found == 0]), np.signbit(expected[found == 0])), number


def test_product_and_sum_are_rounded_once_or_twice_but_never_reordered():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, LANES))
    c = -a * b
    out = np.empty(LANES)
    _fused(a, b, c, out)
    # rounded twice: 0; fused: the rounding error of the product
    assert (np.abs(out) <= np.spacing(np.abs(c)) / 2).all()


def test_exp_is_accurate_over_the_range_of_its_use():
    x = np.concatenate([np.linspace(-699, 699, 4001), np.linspace(-1, 1, 1001), np.geomspace(1e-300, 1, 200), [0.0]])
    x = np.resize(x, padded(len(x)))
    found, _ = np.empty((2, len(x)))
    _functions(x, found, _)
    exact = np.exp(x.astype(np.longdouble))
    assert float(np.max(np.abs(found - exact) / exact)) < 3e-16
    assert (found[x == 0] == 1).all()


def test_tanh_is_accurate_odd_and_saturates():
    x = np.concatenate([np.linspace(-25, 25, 8001), np.linspace(-0.1, 0.1, 801), np.geomspace(1e-300, 1e300, 600)])
    x = np.concatenate([x, -x, [0.0, -0.0, np.inf, -np.inf]])
    x = np.resize(x, padded(len(x)))
    _, found = np.empty((2, len(x)))
    _functions(np.clip(x, -600, 600), _, found)
    assert float(np.max(np.abs(found - np.tanh(x.astype(np.longdouble))))) < 2.5e-16
    assert (np.abs(found) <= 1).all()
    assert (np.abs(found[np.abs(x) > 20]) == 1).all()
    assert np.array_equal(np.signbit(found), np.signbit(x))
    mirrored = np.empty_like(x)
    _functions(-x, _, mirrored)
    assert np.array_equal(mirrored, -found)


def test_nan_stays_nan_in_its_own_lane():
    for lane in range(LANES):
        x = np.full(LANES, 0.5)
        x[lane] = np.nan
        e, t = np.empty((2, LANES))
        _functions(x, e, t)
        expected = np.isnan(x)
        assert np.array_equal(np.isnan(e), expected)
        assert np.array_equal(np.isnan(t), expected)


def test_where_takes_the_first_only_where_less_and_the_other_for_nan():
    a, b = in_groups(SPECIAL, SPECIAL)
    out = np.empty((3, len(a)))
    _select(a, b, 0.5, out.reshape(-1))
    with np.errstate(invalid="ignore"):
        assert np.array_equal(out[0], np.where(a < b, a, b), equal_nan=True)
        assert np.array_equal(out[1], np.where(a < 0.5, 1.0, 2.0))
        assert np.array_equal(out[2], np.where(b > 0.5, 7.0, a), equal_nan=True)


@pytest.mark.parametrize("start", [0, 1, LANES - 1])
def test_views_and_loads_read_and_write_any_element_offset(start):
    a = np.random.default_rng(2).normal(size=5 * LANES)
    out = np.full(6 * LANES, -1.0)
    total = _memory(a, start, out)
    expected = np.full(6 * LANES, -1.0)
    expected[:LANES] = a[start + LANES : start + 2 * LANES]
    expected[LANES : 2 * LANES] = a[start + 2 : start + 2 + LANES]
    expected[2 * LANES : 3 * LANES] = a[0]
    expected[3 * LANES : 4 * LANES] = 2.5
    expected[4 * LANES : 5 * LANES] = a[start : start + LANES]
    expected[5 * LANES] = a[start]
    assert np.array_equal(out, expected)
    # the order of the additions is part of the result
    tree = a[start : start + LANES]
    while len(tree) > 1:
        tree = tree[: len(tree) // 2] + tree[len(tree) // 2 :]
    assert total == tree[0]


def test_pointers_to_integers_flags_and_reinterpreted_doubles():
    doubles = np.zeros(3)
    integers, flags = np.array([2, -7, 40], np.int64), np.array([True, False, True])
    assert _integers(doubles, integers, flags) == 235
    assert doubles.view(np.int64).tolist() == [0, -5, 0]
    assert _integers(doubles, integers.astype(np.int32), flags) == 235


def test_fetch_add_returns_the_old_value():
    counters = np.array([3, 10], np.int64)
    assert [_take(counters, 1, 4), _take(counters, 1, -1), _take(counters, 0, 1)] == [10, 14, 3]
    assert counters.tolist() == [4, 13]


def test_strided_arrays_and_other_element_types_are_refused():
    with pytest.raises(TypingError):
        _of_strided(np.zeros(4 * LANES)[::2])
    with pytest.raises(TypingError):
        _of_integers(np.zeros(LANES, np.int64))


@pytest.mark.parametrize("n", [0, 1, LANES - 1, LANES, LANES + 1, 10 * LANES + 3])
def test_padded_is_the_next_multiple(n):
    assert padded(n) == math.ceil(n / LANES) * LANES


@pytest.mark.parametrize("shape", [7, (3, 5), (0,), (2, 0, 4)])
def test_aligned_empty_starts_on_a_cache_line(shape):
    # several at a time, so that the allocator gives different addresses
    arrays = [aligned_empty(shape) for _ in range(5)]
    for array in arrays:
        assert array.ctypes.data % 64 == 0 or array.size == 0
        assert array.shape == np.empty(shape).shape
        assert array.dtype == float
        assert array.flags.c_contiguous
        array[...] = 1.0


@pytest.mark.parametrize(("features", "expected"), [("+avx2,+fma", 4), ("+avx2,+fma,+avx512f", 8)])
def test_lanes_follow_the_processor_that_numba_compiles_for(features, expected):
    environment = os.environ | {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": features}
    command = [sys.executable, "-c", "from ase_nepcg.potential.simd import LANES; print(LANES)"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(found.stdout) == expected
