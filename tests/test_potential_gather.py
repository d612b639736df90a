"""Packing of neighbour lists against a loop over the lanes."""

import numba
import numpy as np
import pytest

from ase_nepcg.potential.gather import (
    below,
    count,
    count_up,
    load_integers,
    neighbor_vectors,
    store_kept,
    store_kept_integers,
    without,
)
from ase_nepcg.potential.simd import LANES, as_integers, load, pointer, store


@numba.njit
def _neighbors(positions, site, shifts, neighbors, first, out, indices):
    x, y, z, j = neighbor_vectors(pointer(positions), site, pointer(shifts), pointer(neighbors), first)
    store(pointer(out), 0, x)
    store(pointer(out), LANES, y)
    store(pointer(out), 2 * LANES, z)
    everything = below(x, np.inf, LANES)
    store_kept_integers(pointer(indices), 0, j, everything)


@numba.njit
def _pack(v, limit, limits, n, lane, integers, kept, numbers, loaded, counted, counts):
    value = load(pointer(v), 0)
    masks = (
        below(value, limit, n),
        below(value, load(pointer(limits), 0), n),
        without(below(value, limit, n), lane),
        below(value, limit, 0),
    )
    size = 2 * LANES
    for k in range(len(masks)):
        mask = masks[k]
        store_kept(pointer(kept), k * size + 1, value, mask)
        store_kept_integers(pointer(numbers), k * size + 1, count_up(1000), mask)
        store_kept_integers(pointer(loaded), k * size + 1, load_integers(pointer(integers), 1, 1 << 40), mask)
        store_kept_integers(as_integers(pointer(counted)), k * size + 1, count_up(-3), mask)
        counts[k] = count(mask)


def test_neighbor_vectors_are_differences_plus_shift():
    rng = np.random.default_rng(0)
    positions, shifts = np.zeros((20, 4)), np.zeros((7, 4))
    positions[:, :3], shifts[:, :3] = rng.normal(size=(20, 3)), rng.normal(size=(7, 3))
    positions[:, 3] = shifts[:, 3] = np.nan  # unused
    j, s = rng.integers(0, 20, 5 * LANES), rng.integers(0, 7, 5 * LANES)
    out, indices = np.empty((3, LANES)), np.empty(LANES, np.int64)
    for site, first in ((0, 0), (13, 3), (19, 4 * LANES)):
        _neighbors(positions.reshape(-1), site, shifts.reshape(-1), (s << 32) | j, first, out.reshape(-1), indices)
        chosen = slice(first, first + LANES)
        # subtracted first: the bits must not depend on where the site is
        expected = (positions[j[chosen]] - positions[site]) + shifts[s[chosen]]
        assert np.array_equal(out.T, expected[:, :3])
        assert np.array_equal(indices, j[chosen])


def test_large_indices_and_shift_codes_do_not_mix():
    n = 100_000
    positions, shifts = np.zeros((n, 4)), np.zeros((n, 4))
    positions[:, 0], shifts[:, 1] = np.arange(n), np.arange(n)
    j, s = n - 1 - np.arange(LANES), n - 1 - 7 * np.arange(LANES)
    out, indices = np.empty((3, LANES)), np.empty(LANES, np.int64)
    _neighbors(positions.reshape(-1), 0, shifts.reshape(-1), (s << 32) | j, 0, out.reshape(-1), indices)
    assert np.array_equal(out[0], j)
    assert np.array_equal(out[1], s)
    assert np.array_equal(indices, j)


# every pattern of lanes below the limit, every number of valid lanes
@pytest.mark.parametrize("n", [-1, 0, 1, LANES - 1, LANES, LANES + 3])
def test_packing_keeps_the_lanes_of_the_mask_in_order(n):
    rng = np.random.default_rng(1)
    size = 2 * LANES
    for pattern in range(2**LANES):
        low = (pattern >> np.arange(LANES)) & 1 == 1
        v = np.where(low, rng.uniform(0, 1, LANES), rng.uniform(2, 3, LANES))
        v[rng.integers(LANES)] = rng.choice([np.nan, np.inf, 1.5, 0.5])  # 1.5 is not below 1.5
        limits = rng.uniform(0, 3, LANES)
        lane = int(rng.integers(-2, LANES + 2))
        integers = rng.integers(-100, 100, LANES + 1)
        kept, counted = np.zeros((2, 4, size))
        numbers, loaded = np.zeros((2, 4, size), np.int64)
        counts = np.zeros(4, np.int64)
        flat = [a.reshape(-1) for a in (kept, numbers, loaded, counted)]
        _pack(v, 1.5, limits, n, lane, integers, *flat, counts)
        among_first = np.arange(LANES) < n
        with np.errstate(invalid="ignore"):
            masks = [(v < 1.5) & among_first, (v < limits) & among_first]
        masks += [masks[0] & (np.arange(LANES) != lane), np.zeros(LANES, bool)]
        for k, mask in enumerate(masks):
            m = mask.sum()
            assert counts[k] == m
            assert np.array_equal(kept[k, 1 : 1 + m], v[mask])
            assert np.array_equal(numbers[k, 1 : 1 + m], 1000 + np.flatnonzero(mask))
            assert np.array_equal(loaded[k, 1 : 1 + m], integers[1:][mask] + (1 << 40))
            assert np.array_equal(counted[k].view(np.int64)[1 : 1 + m], np.flatnonzero(mask) - 3)
            # no more than one vector is written
            for array in (kept, numbers, loaded, counted):
                assert array[k, 0] == 0
                assert (array[k, 1 + LANES :] == 0).all()
