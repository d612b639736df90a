"""Basis functions on plain floats against textbook formulas."""

import math

import numpy as np
import pytest
from numpy.polynomial import Chebyshev, Legendre, Polynomial
from numpy.polynomial.legendre import leg2poly

from ase_nepcg.potential.basis import angular_basis, chebyshev_series, cutoff, fold_coefficients
from ase_nepcg.potential.invariants import legendre_tables

CUTOFF = 5.5


def test_cutoff_and_its_slope():
    for r in np.linspace(0, CUTOFF, 301):
        value, slope = cutoff(1 - r / CUTOFF, 1 / CUTOFF)
        assert value == pytest.approx((1 + math.cos(math.pi * r / CUTOFF)) / 2, abs=7e-16)
        assert slope == pytest.approx(-math.pi / 2 / CUTOFF * math.sin(math.pi * r / CUTOFF), abs=7e-16)


def test_cutoff_vanishes_exactly_and_smoothly_at_the_cutoff():
    assert cutoff(0.0, 1 / CUTOFF) == (0, 0)
    # relative accuracy is kept in the last bit of the range, where 1 + cos would lose all digits
    v = 1e-9
    value, slope = cutoff(v, 1 / CUTOFF)
    assert value == pytest.approx((math.pi * v / 2) ** 2, rel=1e-14)
    assert slope == pytest.approx(-(math.pi**2) * v / 2 / CUTOFF, rel=1e-14)


@pytest.mark.parametrize("n", [1, 2, 3, 9, 17])
def test_chebyshev_series_and_its_slope(n):
    d = np.random.default_rng(n).normal(size=n + 3)
    series = Chebyshev(d[3:])
    for x in np.linspace(-1, 1, 41):
        value, slope = chebyshev_series(d, 3, n, float(x))
        assert value == pytest.approx(series(x), abs=1e-13)
        assert slope == pytest.approx(series.deriv()(x), abs=1e-12)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_folded_coefficients_give_the_same_radial_function(axis):
    c = np.random.default_rng(axis).normal(size=(4, 5, 6))
    original = c.copy()
    d = np.moveaxis(fold_coefficients(c, axis), axis, -1)
    assert np.array_equal(c, original)
    c = np.moveaxis(c, axis, -1)
    assert d.shape == c.shape
    for x in (-1.0, -0.3, 0.0, 0.8, 1.0):
        chebyshev = np.cos(np.arange(c.shape[-1]) * math.acos(x))
        half = np.where(np.arange(c.shape[-1]) == 0, 1.0, (chebyshev + 1) / 2)
        np.testing.assert_allclose(d @ chebyshev, c @ half, atol=1e-14)


def primitive_derivative(order, m):
    """d^m P_l / dz^m scaled to coprime integer coefficients."""
    derivative = Polynomial(leg2poly(Legendre.basis(order).coef)).deriv(m)
    integers = [round(c * 2**order) for c in derivative.coef]
    return Polynomial(np.array(integers) / math.gcd(*integers))


@pytest.mark.parametrize("l_max", range(1, 9))
def test_angular_basis_is_made_of_legendre_derivatives_and_powers_of_x_plus_iy(l_max):
    recur_a, recur_b, _ = legendre_tables(l_max)
    rng = np.random.default_rng(l_max)
    directions = [*np.eye(3), *-np.eye(3), *rng.normal(size=(10, 3))]
    for u in directions:
        x, y, z = (float(c) for c in u / np.linalg.norm(u))
        size = l_max * (l_max + 2)
        b, zlm = np.full(3 + size + 1, np.nan), np.full(2 + (l_max + 1) ** 2 + 1, np.nan)
        angular_basis(x, y, z, l_max, recur_a, recur_b, b, 3, zlm, 2)
        expected = []
        for order in range(1, l_max + 1):
            for m in range(order + 1):
                value = primitive_derivative(order, m)(z)
                power = (x + 1j * y) ** m
                expected += [value] if m == 0 else [value * power.real, value * power.imag]
                assert zlm[2 + m * (l_max + 1) + order] == pytest.approx(value, rel=1e-13, abs=1e-11)
        np.testing.assert_allclose(b[3:-1], expected, rtol=1e-13, atol=1e-11)
        # nothing is written outside
        assert np.isnan([*b[:3], b[-1], *zlm[:2], zlm[-1]]).all()


@pytest.mark.parametrize("order", range(1, 9))
def test_recurrence_gives_the_published_integer_polynomials(order):
    # Fan et al., J. Chem. Phys. 157, 114801 (2022): coefficients of Z_{l,0}, highest power first
    published = {
        1: [1, 0],
        2: [3, 0, -1],
        3: [5, 0, -3, 0],
        4: [35, 0, -30, 0, 3],
        5: [63, 0, -70, 0, 15, 0],
        6: [231, 0, -315, 0, 105, 0, -5],
        7: [429, 0, -693, 0, 315, 0, -35, 0],
        8: [6435, 0, -12012, 0, 6930, 0, -1260, 0, 35],
    }
    recur_a, recur_b, _ = legendre_tables(8)
    size = 8 * 10
    for z in (-1.0, -0.4, 0.0, 0.3, 1.0):
        b, zlm = np.zeros(size), np.zeros(100)
        angular_basis(0.0, 0.0, z, 8, recur_a, recur_b, b, 0, zlm, 0)
        assert b[order**2 - 1] == pytest.approx(np.polyval(published[order], z), rel=1e-13, abs=1e-11)
