"""Sums over replicas, and what is not finite."""

import itertools

import numpy as np
import pytest
from ase_nepcg_cuda.device import BLOCK
from ase_nepcg_cuda.lists import NOT_FINITE, STATE
from ase_nepcg_cuda.totals import TOTALS, add_totals, totals
from numba import cuda

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


def sums_of(energies, forces, virials, first, blocks=2):
    n, replicas = len(energies), len(first) - 1
    parts, out = cuda.device_array(replicas * blocks * TOTALS, np.float64), cuda.device_array(replicas * TOTALS, float)
    state = cuda.to_device(np.zeros(STATE, np.int32))
    arrays = [cuda.to_device(np.ascontiguousarray(a, np.float32).ravel()) for a in (energies, forces, virials)]
    totals[(replicas, blocks), BLOCK](cuda.to_device(np.array(first, np.int32)), n, True, *arrays, parts, state)
    add_totals.launch(replicas * TOTALS, (blocks, parts, out))
    return out.copy_to_host().reshape(replicas, TOTALS), state.copy_to_host()


def test_sums_of_replicas_are_in_double_precision():
    rng = np.random.default_rng(0)
    n, first = 45, [0, 30, 31, 45]
    energies, forces, virials = ((1000 + rng.normal(size=shape)).astype(np.float32) for shape in ((n,), (3, n), (9, n)))
    found, state = sums_of(energies, forces, virials, first)
    for r, (begin, end) in enumerate(itertools.pairwise(first)):
        expected = [energies[begin:end].astype(float).sum(), *virials[:, begin:end].astype(float).sum(axis=1)]
        np.testing.assert_allclose(found[r], expected, rtol=1e-14)
    assert not state.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e31])
def test_a_number_that_makes_no_sense_is_seen(bad):
    forces = np.zeros((3, 20))
    forces[1, 13] = bad
    _, state = sums_of(np.zeros(20), forces, np.zeros((9, 20)), [0, 20])
    assert state[NOT_FINITE] == 14
