"""Neighbours found on the device against all pairs and images."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from ase_nepcg_cuda import CudaEvaluator
from ase_nepcg_cuda.lists import NARROW, STATE
from ase_nepcg_cuda.precision import precision
from cuda_systems import liquid, together

from ase_nepcg.potential.neighbors import complete_cell

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


def all_pairs(geometry, reach):
    """{(i, j): sorted distances} of all images within ``reach``."""
    cell = complete_cell(geometry.cell, geometry.pbc)
    width = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    spread = np.ptp(geometry.positions @ np.linalg.inv(cell), axis=0)
    limits = [int(np.ceil(reach / w + s)) if p else 0 for w, s, p in zip(width, spread, geometry.pbc, strict=True)]
    found = {}
    for shift in itertools.product(*(range(-k, k + 1) for k in limits)):
        for i, j in itertools.product(range(len(geometry.positions)), repeat=2):
            d = np.linalg.norm(geometry.positions[j] + shift @ cell - geometry.positions[i])
            if d < reach and (i != j or any(shift)):
                found.setdefault((i, j), []).append(d)
    return {pair: sorted(distances) for pair, distances in found.items()}


def listed(evaluator, which):
    """{(i, j): sorted distances} of a list of the evaluator."""
    n = evaluator.n
    ends = evaluator.near_end if which == "near" else evaluator.angular_end
    ends, entries = ends.copy_to_host().reshape(-1, n), getattr(evaluator, which).copy_to_host().reshape(-1, n)
    u = evaluator.u.copy_to_host().astype(object).reshape(3, -1)
    to_vector = evaluator.box.to_vector
    replica = evaluator.replica.copy_to_host()
    full = 2 ** precision(evaluator.precision).bits
    found = {}
    for i in range(n):
        for slot in range(ends[-1, i]):
            copy = entries[slot, i]
            d = [(int(a) - int(b) + full // 2) % full - full // 2 for a, b in zip(u[:, copy], u[:, i], strict=True)]
            distance = float(np.linalg.norm(np.array(d, float) @ to_vector[replica[i]]))
            found.setdefault((i, int(copy % n)), []).append(distance)
    return {pair: sorted(distances) for pair, distances in found.items()}


def same(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for pair, distances in expected.items():
        np.testing.assert_allclose(found[pair], distances, atol=tolerance)


@pytest.mark.parametrize(("n", "density"), [(3, 0.02), (9, 0.05)])
@pytest.mark.parametrize("precision", ["mixed", "double"])
def test_all_pairs_within_the_cutoffs_and_the_skin(models, n, density, precision):
    geometry = liquid(n, density, seed=n, n_types=2)
    evaluator = CudaEvaluator(models["plain"], precision=precision, skin=0.5)
    evaluator(geometry)
    tolerance = {"mixed": 1e-6, "double": 1e-12}[precision]
    same(listed(evaluator, "near"), all_pairs(geometry, 6.5), tolerance)
    same(listed(evaluator, "angular"), all_pairs(geometry, 4.5), tolerance)


def test_neighbours_are_in_order_and_know_their_slots(models):
    geometry = together([liquid(7, 0.03, seed=1, n_types=2), liquid(5, 0.05, seed=2, n_types=2)])
    evaluator = CudaEvaluator(models["plain"])
    evaluator(geometry)
    n, types = evaluator.n, geometry.types
    ends = evaluator.angular_end.copy_to_host().reshape(-1, n)
    entries, back = (one.copy_to_host().reshape(-1, n) for one in (evaluator.angular, evaluator.back))
    copies = evaluator.box.copies
    for i in range(n):
        mine = entries[: ends[-1, i], i]
        keys = [(types[j % n], j) for j in mine]
        assert keys == sorted(keys)
        np.testing.assert_array_equal(np.bincount(types[mine % n], minlength=2), np.diff(ends[:, i]))
        for slot, j in enumerate(mine):
            other = entries[back[slot, i], j % n]
            assert other % n == i
            there, here = (np.array(np.unravel_index(k // n, copies)) for k in (j, other))
            np.testing.assert_array_equal((there + here) % copies, 0)


def test_bins_hold_every_copy_once_in_order(models):
    # one bin is crowded, so that its memory has to grow
    geometry = liquid(14, 0.004, seed=3)
    positions = 0.2 * geometry.positions
    evaluator = CudaEvaluator(models["single"])
    evaluator(type(geometry)(positions, geometry.cell, geometry.pbc, geometry.types))
    assert evaluator.room > 8
    members = evaluator.members.copy_to_host().reshape(-1, evaluator.room)
    counts = evaluator.counts.copy_to_host()
    held = [members[b, :count].tolist() for b, count in enumerate(counts)]
    assert all(one == sorted(one) for one in held)
    assert sorted(itertools.chain(*held)) == list(range(evaluator.n * evaluator.copies))


def test_sites_that_fly_far_from_an_open_cell_are_noticed(models):
    geometry = liquid(6, 0.03, 4)
    for pbc, notices in (((True, True, True), False), ((True, False, True), True)):
        evaluator = CudaEvaluator(models["single"], precision="double")
        one = replace(geometry, pbc=np.array(pbc))
        evaluator(one)
        free = float(evaluator.box.free[0])
        assert (free > 0) == notices
        for distance, narrow in ((0.999 * abs(free), 0), (1.001 * abs(free), int(notices))):
            evaluator.state.copy_to_device(np.zeros(STATE, np.int32))
            positions = one.positions.copy()
            positions[3, 1] += distance
            evaluator.x.copy_to_device(positions.ravel())
            evaluator.place()
            evaluator.check_moved()
            assert evaluator.state.copy_to_host()[NARROW] == narrow
