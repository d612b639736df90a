"""Sites sorted into bins: against numpy, and what is refused."""

import functools
import hashlib
from pathlib import Path

import numpy as np
import pytest

from ase_nepcg.md.observers import ObserverError, ObserverInfo
from ase_nepcg.md.observers.base import OWN, Arena
from ase_nepcg.md.observers.bins import (
    BATCH,
    BIN_START,
    BINS,
    BUFFER,
    CHUNK,
    FACTOR,
    GRID,
    IMAGES,
    LATTICE,
    LIMITS,
    NEAREST,
    OWN_PAIRS,
    PAIR_OF,
    PAIRS,
    REACH,
    REFUSED,
    SORTED,
    SORTED_BIN,
    allocate_pairs,
    pair_types,
)
from ase_nepcg.md.observers.pairs import pair_kernel
from ase_nepcg.md.state import inlined, make_state
from ase_nepcg.potential.simd import LANES

SPECIES = ("O", "H", "C")
INFO = ObserverInfo(1.0, 1, SPECIES)
TRICLINIC = np.array([[9.0, 0.4, -0.3], [2.5, 8.0, 0.2], [-1.5, 2.0, 10.0]])


@inlined
def _nothing(ints, floats, pair, kept, step, weight):
    pass


@inlined
def _finish(s, r, ints, floats):
    pass


@functools.cache
def kernel():
    # kept on disk: the name has to change with this file
    return pair_kernel("sort_" + hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16], _nothing, _finish)


def sort(s, r, ints, floats):
    """``sort_sites`` as kernels call it: whether it said True."""
    before = ints[REFUSED]
    kernel()(s, r, 0, ints, floats)
    return ints[REFUSED] == before


def state_of(*replicas):
    """Of (x, types, cell, pbc)."""
    x, types, cells, pbc = zip(*replicas, strict=True)
    zeros, ones = [np.zeros_like(one) for one in x], [np.ones(len(one)) for one in x]
    return make_state(x, zeros, ones, types, cells, pbc, seeds=range(len(x)))


def allocate(s, r=0, numbers=((0, 1), (2, 2)), radii=(2.0, 3.0)):
    arena = Arena(s, r, INFO)
    allocate_pairs(arena, s, r, INFO, numbers, radii)
    return arena.build()


def sites_in(rng, cell, pbc, n):
    box = np.where(np.array(pbc, bool)[:, None], cell, 7.0 * np.eye(3))
    return rng.uniform(-1.5, 2.5, (n, 3)) @ box, rng.integers(0, 3, n), cell, pbc


def piece(array, ints, slot, size):
    return array[ints[slot] : ints[slot] + size]


CASES = {
    "triclinic": (TRICLINIC, (1, 1, 1), 200),
    "left-handed": (TRICLINIC[[1, 0, 2]], (1, 1, 1), 60),
    "large": (4 * TRICLINIC, (1, 1, 1), 300),
    "huge": (1e4 * TRICLINIC, (1, 1, 1), 20),
    "crowded": (TRICLINIC, (1, 1, 1), 6000),
    "thin": (np.diag([1.0, 9.0, 10.0]), (1, 1, 1), 30),
    "flat": (np.diag([9.0, 10.0, 4.0]), (1, 1, 1), 30),
    "one site": (TRICLINIC, (1, 1, 1), 1),
    "slab": (TRICLINIC, (1, 1, 0), 100),
    "sheet across x": (TRICLINIC, (0, 1, 1), 100),
    "wire": (np.diag([0.0, 12.0, 0.0]), (0, 1, 0), 50),
    "cluster": (np.zeros((3, 3)), (0, 0, 0), 80),
}


@pytest.mark.parametrize("name", CASES)
def test_every_site_is_in_its_bin(rng, name):
    cell, pbc, n = CASES[name]
    x, types, *_ = sites_in(rng, cell, pbc, n)
    # not the first replica
    s = state_of(sites_in(rng, np.eye(3) * 5, (1, 1, 1), 4), (x, types, cell, pbc))
    ints, floats = allocate(s, 1)
    assert sort(s, 1, ints, floats)

    # the lattice: periodic vectors as given, the rest orthogonal to them
    lattice = piece(floats, ints, LATTICE, 33)
    a, g = lattice[:9].reshape(3, 3), lattice[9:18].reshape(3, 3)
    np.testing.assert_array_equal(a[np.array(pbc, bool)], cell[np.array(pbc, bool)])
    np.testing.assert_allclose(a @ g.T, np.eye(3), atol=1e-12)
    # the triangular cell has the same metric
    xx, yx, yy, zx, zy, zz = lattice[FACTOR : FACTOR + 6]
    triangular = np.array([[xx, 0, 0], [yx, yy, 0], [zx, zy, zz]])
    np.testing.assert_allclose(triangular @ triangular.T, a @ a.T, rtol=1e-12, atol=1e-12 * np.abs(a).max() ** 2)

    bins, reach, images, nearest = (piece(ints, ints, GRID, 12)[k : k + 3] for k in (BINS, REACH, IMAGES, NEAREST))
    assert bins.prod() <= 4 * n // 3 + 64
    fractions = x @ g.T
    fractions -= np.floor(fractions) * pbc
    low = np.where(pbc, 0.0, fractions.min(axis=0))
    extent = np.where(pbc, 1.0, np.maximum(np.ptp(fractions, axis=0), 1e-3))
    span, radius = extent / np.linalg.norm(g, axis=1), 3.0
    for d in range(3):
        # a search reaches far enough, and never meets a bin twice
        if bins[d] > 1:
            assert reach[d] == min(np.ceil(radius * bins[d] / span[d]), bins[d] - 1)
            assert not pbc[d] or 2 * reach[d] + 1 <= bins[d]
        if pbc[d] and bins[d] == 1:
            # one image is enough, or all that are near are visited
            assert nearest[d] == (d < 2 and span[d] >= 2 * radius)
            assert nearest[d] or images[d] * span[d] > radius + span[d] * (1 - 1e-9) or images[d] > radius / span[d]
        else:
            assert nearest[d] == images[d] == 0

    where = np.minimum(((fractions - low) / extent * bins).astype(int), bins - 1)
    key = types * bins.prod() + np.ravel_multi_index(where.T, bins)
    start = piece(ints, ints, BIN_START, 3 * bins.prod() + 1)
    expected = np.concatenate([[0], np.cumsum(np.bincount(key, minlength=3 * bins.prod()))])
    np.testing.assert_array_equal(start, expected)
    order = np.argsort(key, kind="stable")
    np.testing.assert_array_equal(piece(ints, ints, SORTED_BIN, n), key[order] % bins.prod())
    placed = piece(floats, ints, SORTED, 3 * (n + LANES)).reshape(3, n + LANES)[:, :n].T
    np.testing.assert_allclose(placed, (fractions @ triangular)[order], rtol=0, atol=1e-9 * np.abs(a).max())


def test_all_ways_to_treat_a_direction_occur():
    """Of the cases above: if they did not, the test would miss what it is for."""
    rng, seen = np.random.default_rng(0), set()
    for cell, pbc, n in CASES.values():
        s = state_of(sites_in(rng, cell, pbc, n))
        ints, floats = allocate(s)
        sort(s, 0, ints, floats)
        grid = piece(ints, ints, GRID, 12)
        seen |= {
            (d == 2, bool(pbc[d]), bool(grid[BINS + d] > 1), bool(grid[IMAGES + d]), bool(grid[NEAREST + d]))
            for d in range(3)
        }
    for last in (True, False):
        assert (last, True, True, False, False) in seen
        assert (last, True, False, True, False) in seen
        assert (last, False, True, False, False) in seen
    assert (False, True, False, False, True) in seen
    assert (True, True, False, False, True) not in seen


def test_the_same_replica_twice_gives_the_same_numbers(rng):
    """Nothing of the last sample remains, not even of another cell."""
    one, other = sites_in(rng, TRICLINIC, (1, 1, 1), 50), sites_in(rng, 3 * TRICLINIC, (1, 1, 1), 50)
    s = state_of(one)
    ints, floats = allocate(s)
    sort(s, 0, ints, floats)
    kept = ints.copy(), floats.copy()
    s.x[:], s.cell[0] = other[0], other[2]
    sort(s, 0, ints, floats)
    assert not np.array_equal(floats, kept[1])
    s.x[:], s.cell[0] = one[0], one[2]
    sort(s, 0, ints, floats)
    n, bins = 50, ints[ints[GRID] : ints[GRID] + 3].prod()
    # all but the distances of the last search
    np.testing.assert_array_equal(floats[: ints[BUFFER]], kept[1][: ints[BUFFER]])
    for slot, size in ((GRID, 12), (SORTED_BIN, n), (BIN_START, 3 * bins + 1)):
        np.testing.assert_array_equal(piece(ints, ints, slot, size), piece(kept[0], kept[0], slot, size))


@pytest.mark.parametrize("bad", ["no volume", "nan", "inf", "far away", "nan in the cell", "very small"])
def test_what_cannot_be_searched(rng, bad):
    s = state_of(sites_in(rng, TRICLINIC, (1, 1, 1), 30))
    ints, floats = allocate(s)
    assert sort(s, 0, ints, floats)
    if bad == "no volume":
        s.cell[0, 2] = s.cell[0, 0] + s.cell[0, 1]
    elif bad == "nan in the cell":
        s.cell[0, 1, 1] = np.nan
    elif bad == "very small":
        s.cell[0] *= 1e-3
    else:
        s.x[17, 1] = {"nan": np.nan, "inf": np.inf, "far away": 1e14}[bad]
    assert not sort(s, 0, ints, floats)


def test_memory(rng):
    s = state_of(sites_in(rng, TRICLINIC, (1, 1, 1), 30))
    ints, floats = allocate(s)
    assert ints[PAIRS] == 2
    assert ints[REFUSED] == 0
    assert pair_types(ints).tolist() == [[0, 1], [2, 2]]
    assert piece(ints, ints, PAIR_OF, 9).reshape(3, 3).tolist() == [[-1, 0, -1], [0, -1, -1], [-1, -1, 1]]
    assert piece(floats, ints, LIMITS, 2).tolist() == [4.0, 9.0]
    # a batch, the sites of another chunk, and what is written with the last of them
    assert len(floats) == ints[BUFFER] + BATCH + CHUNK + LANES
    pieces = [ints[slot] for slot in (LATTICE, LATTICE + 1, SORTED, LIMITS, BUFFER)]
    assert pieces == sorted(pieces)
    assert OWN_PAIRS == OWN + 14


@pytest.mark.parametrize(
    ("rows", "pbc"),
    [
        ([[5, 0, 0], [0, 5, 0], [0, 0, 0]], (1, 1, 1)),
        ([[5, 0, 0], [10, 0, 0], [0, 0, 5]], (1, 1, 0)),
        ([[5, 1, 0], [1, 5, 0], [6, 6, 0]], (1, 1, 1)),
        (np.zeros((3, 3)), (0, 1, 0)),
    ],
)
def test_cells_that_are_refused_at_the_start(rng, rows, pbc):
    s = state_of(sites_in(rng, TRICLINIC, (1, 1, 1), 4), (rng.normal(size=(3, 3)), np.zeros(3, int), rows, pbc))
    allocate(s, 0)
    directions = str([d for d in range(3) if pbc[d]]).replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(ObserverError, match=f"periodic directions {directions} need linearly independent, non-zero"):
        allocate(s, 1)
    s.pbc[1] = False
    allocate(s, 1)
