"""Screened repulsion of one pair."""

import math

import numpy as np
import pytest

from ase_nepcg import NEPModel
from ase_nepcg.potential.zbl import zbl_energy

TERMS = [40.0, 3.1, 25.0, 0.9, 7.0, 0.4, 1.5, 0.2]


def table(inner, outer):
    # not at the beginning, as the tables of several pairs lie one after the other
    return np.array([np.nan, np.nan, inner, outer, *TERMS])


def expected(r, inner, outer):
    switch = 1.0 if r < inner else 0.5 + 0.5 * math.cos(math.pi * (r - inner) / (outer - inner))
    return switch / r * sum(a * math.exp(-b * r) for a, b in zip(TERMS[::2], TERMS[1::2], strict=True))


@pytest.mark.parametrize(("inner", "outer"), [(0.7, 1.4), (1.0, 2.0), (0.0, 2.2)])
def test_value_is_the_formula_and_slope_its_derivative(inner, outer):
    numbers = table(inner, outer)
    for r in np.linspace(0.05, outer, 60, endpoint=False):
        value, slope = zbl_energy(float(r), numbers, 2)
        assert value == pytest.approx(expected(r, inner, outer), rel=1e-14)
        h = 1e-5 * r
        # the second derivative of the switching function jumps at the inner radius
        central = (expected(r + h, inner, outer) - expected(r - h, inner, outer)) / (2 * h)
        assert slope == pytest.approx(central, rel=1e-7, abs=1e-6)


@pytest.mark.parametrize(("inner", "outer"), [(0.7, 1.4), (0.0, 2.2)])
def test_value_and_slope_are_continuous_at_both_ends_of_the_switching_zone(inner, outer):
    numbers = table(inner, outer)
    value, slope = zbl_energy(outer * (1 - 1e-9), numbers, 2)
    assert abs(value) < 1e-12
    assert abs(slope) < 1e-6
    if inner:
        below = zbl_energy(inner * (1 - 1e-12), numbers, 2)
        above = zbl_energy(inner * (1 + 1e-12), numbers, 2)
        assert below == pytest.approx(above, rel=1e-9)


def test_two_silicon_atoms_repel_as_the_universal_potential_says():
    model = NEPModel.zeros(["Si"], zbl=(0.9, 1.8))
    r = 0.6
    value, _ = zbl_energy(r, model.zbl_pairs().ravel(), 0)
    x = r * 2 * 14**0.23 / 0.46848
    screening = 0.18175 * math.exp(-3.1998 * x) + 0.50986 * math.exp(-0.94229 * x)
    screening += 0.28022 * math.exp(-0.4029 * x) + 0.02817 * math.exp(-0.20162 * x)
    assert value == pytest.approx(14.399645 * 14**2 / r * screening, rel=1e-5)
