"""Products and sums of vectors against numpy."""

import numba
import numpy as np
import pytest

from ase_nepcg.potential.linear import dot, matvec, pair_product, row_dots, row_sums, total
from ase_nepcg.potential.simd import LANES, lanes, pointer, store

RNG = np.random.default_rng(0)


@numba.njit
def _sums(a, a_first, b, b_first, n, out):
    va, vb = lanes(pointer(a), 0), lanes(pointer(b), 0)
    out[0] = dot(va, a_first, vb, b_first, n)
    out[1] = total(va, a_first, n)


@numba.njit
def _rows(a, a_first, a_step, b, b_first, b_step, b_row, n, out):
    va, vb = lanes(pointer(a), 0), lanes(pointer(b), 0)
    store(pointer(out), 0, row_dots(va, a_first, a_step, vb, b_first, b_step, b_row, n))
    store(pointer(out), LANES, row_sums(vb, b_first))


def compiled_matvec(columns):
    @numba.njit
    def call(matrix, first, x, x_first, n, out):
        matvec(lanes(pointer(matrix), 0), first, pointer(x), x_first, n, lanes(pointer(out), 0), columns)

    return call


def compiled_pair_product(columns):
    @numba.njit
    def call(matrix, first, row_step, rows, x, x_first, y, y_first, out):
        v_x, v_y, v_out = lanes(pointer(x), 0), lanes(pointer(y), 0), lanes(pointer(out), 0)
        pair_product(pointer(matrix), first, row_step, rows, v_x, x_first, v_y, y_first, columns, v_out)

    return call


def vectors(*shape):
    return RNG.normal(size=(*shape, LANES))


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 16, 33])
def test_dot_and_total(n):
    a, b = vectors(40), vectors(41)
    out = np.empty(2)
    _sums(a.reshape(-1), 5, b.reshape(-1), 2, n, out)
    expected = [np.sum(a[5 : 5 + n] * b[2 : 2 + n]), np.sum(a[5 : 5 + n])]
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-13)


def test_sums_are_always_added_in_the_same_order():
    a, b = vectors(40), vectors(40)
    out, moved = np.empty((2, 2))
    _sums(a.reshape(-1), 0, b.reshape(-1), 0, 35, out)
    _sums(np.roll(a, 4, 0).reshape(-1), 4, np.roll(b, 1, 0).reshape(-1), 1, 35, moved)
    assert out.tobytes() == moved.tobytes()


def test_nan_is_not_lost_in_sums():
    for position in range(5):
        a = vectors(5)
        a[position, position % LANES] = np.nan
        out = np.empty(2)
        _sums(a.reshape(-1), 0, a.reshape(-1), 0, 5, out)
        assert np.isnan(out).all()


@pytest.mark.parametrize("n", [0, 1, 2, 5, 9])
@pytest.mark.parametrize(("a_step", "b_step", "b_row"), [(1, 1, 9), (3, 10, 1), (2, 1, 0)])
def test_row_dots_and_row_sums(n, a_step, b_step, b_row):
    a, b = vectors(40), vectors(150)
    out = np.empty(2 * LANES)
    _rows(a.reshape(-1), 4, a_step, b.reshape(-1), 6, b_step, b_row, n, out)
    expected = np.zeros(LANES)
    for w in range(LANES):
        for t in range(n):
            expected[w] += a[4 + t * a_step] @ b[6 + t * b_step + w * b_row]
    np.testing.assert_allclose(out[:LANES], expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(out[LANES:], b[6 : 6 + LANES].sum(1), rtol=0, atol=1e-13)


# more columns than registers as well: the columns are then done in several groups
@pytest.mark.parametrize("columns", [1, 2, 7, 13, 25, 51])
def test_matvec_adds_the_product(columns):
    call = compiled_matvec(columns)
    for n in (1, 2, 5):
        matrix, x, out = vectors(n + 3, columns), RNG.normal(size=n + 4), vectors(columns + 1)
        first = 2 * columns + (columns > 1)
        rows = matrix.reshape(-1, LANES)[first : first + n * columns].reshape(n, columns, LANES)
        expected = out.copy()
        expected[:columns] += np.einsum("d,dcw->cw", x[3 : 3 + n], rows)
        call(matrix.reshape(-1), first, x, 3, n, out.reshape(-1))
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-14)
        assert np.array_equal(out[columns], expected[columns])


@pytest.mark.parametrize("columns", [1, 2, 5, 9, 17])
def test_pair_product(columns):
    call = compiled_pair_product(columns)
    x, y = vectors(columns + 2), vectors(columns + 1)
    for rows in (0, 1, 6):
        row_step = columns + 3
        matrix = RNG.normal(size=2 + (rows + 1) * row_step)
        out = np.full((2 * rows + 1, LANES), 7.0)
        call(matrix, 2, row_step, rows, x.reshape(-1), 2, y.reshape(-1), 1, out.reshape(-1))
        m = matrix[2 : 2 + rows * row_step].reshape(rows, row_step)[:, :columns]
        np.testing.assert_allclose(out[:-1:2], np.einsum("rc,cw->rw", m, x[2:]), rtol=0, atol=1e-13)
        np.testing.assert_allclose(out[1::2], np.einsum("rc,cw->rw", m, y[1:]), rtol=0, atol=1e-13)
        assert (out[-1] == 7.0).all()
