"""The counts of operations against operations counted one by one."""

import numpy as np
import pytest
from ase_nepcg_cuda.roofline import CASES, Case, Work, count, floor

from ase_nepcg.potential.layout import Shape

SHAPE = Shape(3, 4, 2, 5, 2, (), 6, 0, False, False)


def test_the_network_by_hand():
    # 3 + 2 * 2 descriptors, 6 neurons: products with w0 there and back, and ten operations for each tanh and its slope;
    # 3 x 4 coefficients; 2 functions with 8 sums
    work = count(SHAPE, Case("", 0.01, 3.0, 3.0))["network"]
    assert work.operations == 4 * 7 * 6 + 10 * 6 + 2 * 3 * 4 + 2 * 2 * 8


def test_work_grows_with_the_neighbours():
    thin, dense = (count(SHAPE, Case("", density, 5.0, 4.0)) for density in (0.01, 0.02))
    for kernel in ("sums", "partial forces", "gather"):
        assert dense[kernel].operations > 1.3 * thin[kernel].operations
    for kernel in ("place", "network", "integrate"):
        assert dense[kernel] == thin[kernel]
    assert count(SHAPE, Case("", 0.01, 5.0, 4.0), virial=True)["gather"].operations > thin["gather"].operations


def test_the_floor_is_the_longer_one_of_arithmetic_and_memory():
    work = {"a": Work(100.0, 1.0), "b": Work(1.0, 50.0)}
    assert floor(work, tflops=10.0, bandwidth=2.0) == pytest.approx(1e-3 * (10.0 + 25.0))


def test_cases_are_liquids_of_known_density():
    water = CASES["water CG, 6/4 Å"]
    assert np.isclose(water.density, 0.997 / 18.015 * 0.60221, rtol=0.01)
