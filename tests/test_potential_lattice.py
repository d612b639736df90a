import itertools

import numba
import numpy as np
import pytest

from ase_nepcg.potential.lattice import complete, cross, invert, smallest_stretch

PBC = list(itertools.product((True, False), repeat=3))


@numba.njit
def call_invert(a, out):
    invert(a, out)


@numba.njit
def call_stretch(f):
    return smallest_stretch(f)


@numba.njit
def call_cross(a, b, out):
    return cross(a, b, out)


@pytest.mark.parametrize("pbc", PBC, ids=str)
def test_complete(pbc, rng):
    cell, out = rng.normal(size=(3, 3)) + 4 * np.eye(3), np.full((3, 3), np.nan)
    complete(cell, np.array(pbc), out)
    periodic = np.array(pbc)
    assert np.array_equal(out[periodic], cell[periodic])
    # the others: unit vectors, orthogonal to everything else
    for d in np.flatnonzero(~periodic):
        products = out @ out[d]
        products[d] -= 1.0
        np.testing.assert_allclose(products, 0.0, atol=1e-13)
    if 0 < periodic.sum() < 3:
        assert np.linalg.det(out) > 0
    if not periodic.any():
        assert np.array_equal(out, np.eye(3))


def test_a_vector_along_an_axis():
    # the axis that is added must not be parallel to it
    for d in range(3):
        out = np.zeros((3, 3))
        complete(5.0 * np.eye(3), np.arange(3) == d, out)
        assert abs(np.linalg.det(out)) == pytest.approx(5.0)


def test_vectors_that_are_parallel_give_no_number():
    out = np.zeros((3, 3))
    complete(np.array([[1.0, 0, 0], [2.0, 0, 0], [0, 0, 1.0]]), np.array([True, True, False]), out)
    assert not np.isfinite(out).all()


def test_cross_and_invert_equal_numpy(rng):
    a, out = rng.normal(size=(3, 3)), np.zeros((3, 3))
    size = call_cross(a[0], a[1], out[0])
    np.testing.assert_allclose(out[0], np.cross(a[0], a[1]), rtol=1e-13)
    assert size == pytest.approx(np.linalg.norm(out[0]))
    call_invert(a, out)
    np.testing.assert_allclose(out, np.linalg.inv(a), rtol=1e-10)


def test_smallest_stretch_equals_the_singular_value(rng):
    for size in (0.0, 1e-4, 0.05, 0.3):
        f = np.eye(3) + size * rng.normal(size=(3, 3))
        expected = np.linalg.svd(f, compute_uv=False).min()
        # never above it, which would keep a list for too long
        assert expected - 3e-7 < call_stretch(f) < expected
