"""The neighbour list against loops over all pairs and images."""

import itertools
import time

import numpy as np
import pytest
from ase.neighborlist import primitive_neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_nepcg.potential.layout import PAGE
from ase_nepcg.potential.neighbors import NeighborList, complete_cell

SKIN = 0.6
ALL, NONE = np.array([True] * 3), np.array([False] * 3)


def one_type(cutoff):
    return np.full((1, 1), float(cutoff))


def update(near, positions, cell, pbc, types=None, cutoffs=4.0, chunks=None, threads=1):
    positions = np.array(positions, float)
    n = len(positions)
    types = np.zeros(n, np.int32) if types is None else np.asarray(types, np.int32)
    cutoffs = one_type(cutoffs) if np.ndim(cutoffs) == 0 else np.asarray(cutoffs, float)
    chunks = np.array([0, n]) if chunks is None else np.asarray(chunks)
    near.update(positions, np.array(cell, float), np.asarray(pbc, bool), types, cutoffs, chunks, threads)
    return near


def listed(near, i, types, cutoffs):
    """Neighbours of site i within the cutoffs, in the order of the list: type, index and r_ij."""
    n_types = len(cutoffs)
    positions, shifts = near.positions.reshape(-1, 4)[:, :3], near.shifts.reshape(-1, 4)[:, :3]
    found = []
    for t in range(n_types):
        entries = near.neighbors[near.seg[i * (n_types + 1) + t] : near.seg[i * (n_types + 1) + t + 1]]
        j, code = entries & 0xFFFFFFFF, entries >> 32
        vectors = (positions[j] - positions[i]) + shifts[code]
        inside = (vectors**2).sum(1) < cutoffs[types[i], t] ** 2
        found += [(t, int(k), v) for k, v in zip(j[inside], vectors[inside], strict=True)]
    return found


def brute_force(positions, cell, pbc, types, cutoffs):
    """For each site its neighbours as (type, index, shift), sorted: every pair and every image that can be near."""
    lattice = np.asarray(cell, float)[pbc]
    dual = np.linalg.pinv(lattice) if len(lattice) else np.zeros((3, 0))
    reach = np.ceil(cutoffs.max() * np.linalg.norm(dual, axis=0) + 0.5).astype(int)
    images = np.array(list(itertools.product(*(range(-k, k + 1) for k in reach))))
    lists = []
    for i in range(len(positions)):
        vector = positions - positions[i]
        wrap = -np.rint(vector @ dual)
        shift = wrap[:, None, :] + images
        distance2 = ((vector[:, None, :] + shift @ lattice) ** 2).sum(-1)
        inside = distance2 < cutoffs[types[i], types][:, None] ** 2
        inside[i, (shift[i] == 0).all(-1)] = False
        j, k = np.nonzero(inside)
        full = np.zeros((len(j), 3), int)
        full[:, pbc] = shift[j, k]
        lists.append(sorted(zip(types[j].tolist(), j.tolist(), map(tuple, full.tolist()), strict=True)))
    return lists


def check(near, positions, cell, pbc, types, cutoffs, extra=0.0):
    """The list has exactly the pairs within cutoff + ``extra``, each once and in order, at the right distance."""
    positions, cell, pbc = np.asarray(positions, float), np.asarray(cell, float), np.asarray(pbc, bool)
    types = np.asarray(types)
    cutoffs = cutoffs + extra
    lattice = cell[pbc]
    dual = np.linalg.pinv(lattice) if len(lattice) else np.zeros((3, 0))
    for i, expected in enumerate(brute_force(positions, cell, pbc, types, cutoffs)):
        found = []
        for t, j, vector in listed(near, i, types, cutoffs):
            difference = vector - (positions[j] - positions[i])
            shift = np.rint(difference @ dual)
            scale = np.abs(positions).max() + 10
            assert np.abs(difference - shift @ lattice).max(initial=0) < 1e-14 * scale
            full = np.zeros(3, int)
            full[pbc] = shift
            found.append((t, j, tuple(full.tolist())))
        assert found == expected


def random_sites(n, cell, rng, spread=1):
    return rng.uniform(-0.3, 1.3, (n, 3)) * spread @ cell


CELLS = {
    "triclinic": ([[9, 0, 0], [3, 8, 0], [-2, 1, 10]], ALL),
    "left-handed": ([[0, 8, 0], [9, 1, 0], [-2, 1, 10]], ALL),
    "very oblique": ([[5, 0, 0], [14, 5, 0], [-13, 17, 6]], ALL),
    "thin": ([[1.3, 0, 0], [0.4, 9, 0], [0, 1, 8]], ALL),
    "thin everywhere": ([[1.9, 0.2, 0], [0, 2.1, 0.3], [0.5, 0, 1.7]], ALL),
    "slab": ([[7, 1, 0], [-2, 8, 1], [0, 0, 40]], [True, True, False]),
    "slab without height": ([[7, 1, 0], [-2, 8, 1], [0, 0, 0]], [True, True, False]),
    "slab with a tilted third vector": ([[7, 1, 0], [-2, 8, 1], [9, 9, 2]], [True, True, False]),
    "wire": ([[0, 0, 0], [0, 3, 1], [0, 0, 0]], [False, True, False]),
    "thin wire along x": ([[0.8, 0.3, 0], [0, 0, 0], [5, 5, 5]], [True, False, False]),
    "cluster": (np.zeros((3, 3)), NONE),
    "cluster with a cell": ([[3, 0, 0], [0, 2, 0], [1, 0, 3]], NONE),
}


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("n", [1, 2, 23])
def test_all_pairs_are_listed_once_and_sorted(name, n):
    cell, pbc = CELLS[name]
    cell = np.array(cell, float)
    rng = np.random.default_rng(n)
    size = np.where(np.linalg.norm(cell, axis=1)[:, None] > 0, cell, 6 * np.eye(3))
    positions = random_sites(n, size, rng)
    types = rng.integers(0, 2, n)
    cutoffs = np.array([[4.0, 3.0], [3.0, 2.0]])
    near = update(NeighborList(SKIN), positions, cell, pbc, types, cutoffs)
    check(near, positions, cell, pbc, types, cutoffs, extra=SKIN)
    assert near.longest == max(
        len(row) for row in brute_force(positions, cell, np.asarray(pbc), types, cutoffs + near.skin)
    )


@pytest.mark.parametrize("name", ["triclinic", "left-handed", "thin", "slab", "cluster with a cell"])
def test_pairs_are_those_of_ase(name):
    cell, pbc = CELLS[name]
    cell = np.array(cell, float)
    positions = random_sites(30, cell, np.random.default_rng(3))
    near = update(NeighborList(SKIN), positions, cell, pbc, cutoffs=3.7)
    i, j, shifts = primitive_neighbor_list("ijS", np.asarray(pbc), cell, positions, 3.7)
    expected = {(a, b, *s) for a, b, s in zip(i.tolist(), j.tolist(), shifts.tolist(), strict=True)}
    inverse = np.linalg.inv(cell)
    found = [
        (a, b, *np.rint((v - (positions[b] - positions[a])) @ inverse).astype(int).tolist())
        for a in range(30)
        for _, b, v in listed(near, a, np.zeros(30, int), one_type(3.7))
    ]
    assert len(found) == len(set(found))
    assert set(found) == expected


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 12),
    pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    n_types=st.integers(1, 3),
    height=st.floats(1.2, 15),
    spread=st.sampled_from([1, 1, 5, 300]),
)
def test_any_cell_and_any_cutoffs(seed, n, pbc, n_types, height, spread):
    rng = np.random.default_rng(seed)
    cell = rng.normal(size=(3, 3))
    # scaled so that the smallest distance between two faces is ``height``
    cell *= height * np.linalg.norm(np.linalg.inv(cell), axis=0).max()
    pbc = np.array(pbc)
    cutoffs = rng.uniform(1.0, 4.0, (n_types, n_types))
    cutoffs = (cutoffs + cutoffs.T) / 2
    positions = random_sites(n, cell, rng, spread)
    types = rng.integers(0, n_types, n)
    near = update(NeighborList(SKIN), positions, cell, pbc, types, cutoffs, threads=int(rng.integers(1, 4)))
    check(near, positions, cell, pbc, types, cutoffs, extra=SKIN)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_no_pair_is_missing_while_a_list_is_reused(seed, pbc):
    rng = np.random.default_rng(seed)
    n, pbc = 14, np.array(pbc)
    cell = np.diag([7.0, 6.0, 9.0]) + rng.normal(size=(3, 3))
    positions, types = random_sites(n, cell, rng), rng.integers(0, 2, n)
    cutoffs = np.array([[4.0, 3.0], [3.0, 2.0]])
    near, builds = NeighborList(SKIN), []
    for _ in range(12):
        update(near, positions, cell, pbc, types, cutoffs)
        check(near, positions, cell, pbc, types, cutoffs)
        builds.append(near.builds)
        step = 10 ** rng.uniform(-3, -0.7)
        positions = positions + rng.uniform(-step, step, (n, 3))
        if rng.random() < 0.7:
            strain = np.eye(3) + rng.uniform(-0.05, 0.05, (3, 3))
            cell = cell @ strain
            if rng.random() < 0.7:
                positions = positions @ strain
    assert builds[0] == 1
    assert len(set(np.diff(builds).tolist()) - {0, 1}) == 0


def approaching(fraction):
    """Two sites that come from outside the skin, each by ``fraction`` of half of it, and a third far away."""
    start = np.array([[0.0, 0, 0], [4.0 + SKIN + 1e-9, 0, 0], [30.0, 0, 0]])
    end = start + np.array([[SKIN / 2, 0, 0], [-SKIN / 2, 0, 0], [0, 0, 0]]) * fraction
    return start, end


@pytest.mark.parametrize(("fraction", "builds"), [(0.999, 1), (1.001, 2)])
def test_sites_may_move_by_half_of_the_skin(fraction, builds):
    start, end = approaching(fraction)
    near = update(NeighborList(SKIN), start, np.zeros((3, 3)), NONE)
    assert near.longest == 0
    update(near, end, np.zeros((3, 3)), NONE)
    assert near.builds == builds
    check(near, end, np.zeros((3, 3)), NONE, [0, 0, 0], one_type(4.0))


def test_affine_motion_of_the_cell_is_no_displacement():
    rng = np.random.default_rng(0)
    cell = np.diag([8.0, 9.0, 7.0])
    positions, types = random_sites(40, cell, rng), np.zeros(40, int)
    near = update(NeighborList(SKIN), positions, cell, ALL)
    for strain in (0.3, -0.1, 0.05):
        motion = np.eye(3) + strain * np.diag([1, -0.2, 0.1])
        update(near, positions @ motion, cell @ motion, ALL)
        check(near, positions @ motion, cell @ motion, ALL, types, one_type(4.0))
    # compressed by 10 % a sphere of 4 + 0.6 Å still holds one of 4 Å
    assert near.builds == 1
    motion = np.diag([1, 0.86, 1])
    update(near, positions @ motion, cell @ motion, ALL)
    assert near.builds == 2
    check(near, positions @ motion, cell @ motion, ALL, types, one_type(4.0))


# the largest cutoff decides when the cell is compressed, the smallest when it is stretched
@pytest.mark.parametrize(("kind", "distance", "stretch", "approach"), [(0, 4.61, 0.7, 0.0), (1, 1.61, 1.2, 0.47)])
def test_different_cutoffs_and_a_change_of_the_cell(kind, distance, stretch, approach):
    cell, types = np.diag([20.0, 20.0, 20.0]), [kind, kind, 1 - kind]
    cutoffs = np.array([[4.0, 1.0], [1.0, 1.0]])
    start = np.array([[2.0, 2, 2], [2 + distance, 2, 2], [12.0, 12, 12]])
    near = update(NeighborList(SKIN), start, cell, ALL, types, cutoffs)
    assert near.longest == 0
    motion = stretch * np.eye(3)
    end = start @ motion + np.array([[approach, 0, 0], [-approach, 0, 0], [0, 0, 0]])
    update(near, end, cell @ motion, ALL, types, cutoffs)
    assert near.longest == 1
    check(near, end, cell @ motion, ALL, types, cutoffs)


@pytest.mark.parametrize("change", ["types", "pbc", "cutoffs", "chunks", "number"])
def test_another_system_is_not_taken_for_the_same(change):
    rng = np.random.default_rng(1)
    cell = np.diag([6.0, 7.0, 8.0])
    given = {"positions": random_sites(10, cell, rng), "pbc": ALL, "types": np.zeros(10, int)}
    given |= {"cutoffs": np.array([[4.0, 3.0], [3.0, 3.5]]), "chunks": [0, 10], "cell": cell}
    near = update(NeighborList(SKIN), **given)
    update(near, **given)
    assert near.builds == 1
    if change == "number":
        given["positions"], given["types"] = given["positions"][:-1], given["types"][:-1]
        given["chunks"] = [0, 9]
    else:
        given[change] = {
            "types": np.arange(10) % 2,
            "pbc": [True, True, False],
            "cutoffs": np.array([[4.0, 3.9], [3.9, 3.5]]),
            "chunks": [0, 5, 10],
        }[change]
    update(near, **given)
    assert near.builds == 2
    check(near, given["positions"], cell, given["pbc"], given["types"], given["cutoffs"], extra=SKIN)


@pytest.mark.parametrize("name", ["triclinic", "thin", "slab", "cluster with a cell"])
def test_neighbours_are_the_same_bits_in_an_old_and_a_fresh_list(name):
    cell, pbc = CELLS[name]
    rng = np.random.default_rng(2)
    cell = np.array(cell, float)
    positions, types = random_sites(25, cell, rng), rng.integers(0, 2, 25)
    cutoffs = np.array([[4.0, 3.0], [3.0, 2.0]])
    old = update(NeighborList(SKIN), positions, cell, pbc, types, cutoffs)
    moved = positions + rng.uniform(-0.15, 0.15, (25, 3))
    update(old, moved, cell, pbc, types, cutoffs)
    assert old.builds == 1
    for skin in (SKIN, 0.1, 1.5):
        fresh = update(NeighborList(skin), moved, cell, pbc, types, cutoffs)
        for i in range(25):
            of_old, of_fresh = listed(old, i, types, cutoffs), listed(fresh, i, types, cutoffs)
            assert [row[:2] for row in of_old] == [row[:2] for row in of_fresh]
            assert [row[2].tobytes() for row in of_old] == [row[2].tobytes() for row in of_fresh]


def test_any_number_of_threads_makes_the_same_list():
    rng = np.random.default_rng(4)
    cell = np.diag([21.0, 20.0, 22.0])
    positions = random_sites(500, cell, rng)
    lists = [update(NeighborList(SKIN), positions, cell, ALL, threads=n) for n in (1, 2, 5)]
    for other in lists[1:]:
        for name in ("seg", "neighbors", "shifts", "positions", "touched"):
            assert np.array_equal(getattr(lists[0], name), getattr(other, name)), name
        assert lists[0].longest == other.longest


def test_touched_pages_are_those_of_the_sites_of_a_chunk_and_their_neighbours():
    rng = np.random.default_rng(5)
    n, cell = 5 * PAGE + 9, np.diag([60.0, 6.0, 6.0])
    positions = rng.uniform(0, 1, (n, 3)) @ cell
    positions = positions[np.argsort(positions[:, 0])]
    chunks = [0, 40, 200, n]
    near = update(NeighborList(SKIN), positions, cell, ALL, cutoffs=2.5, chunks=chunks)
    lists = brute_force(positions, cell, ALL, np.zeros(n, int), one_type(2.5 + SKIN))
    touched = near.touched.reshape(3, 6)
    for chunk in range(3):
        sites = range(chunks[chunk], chunks[chunk + 1])
        pages = {i // PAGE for i in sites} | {j // PAGE for i in sites for _, j, _ in lists[i]}
        assert np.flatnonzero(touched[chunk]).tolist() == sorted(pages)
    assert not touched.all()


# ---- extremes


@pytest.mark.parametrize("away", [3, 400, 10**7])
def test_sites_many_cells_away(away):
    rng = np.random.default_rng(6)
    cell = np.array([[9.0, 0, 0], [3, 8, 0], [-2, 1, 10]])
    positions = random_sites(12, cell, rng)
    positions[3] += away * cell[0] - 2 * away * cell[1] + away * cell[2]
    near = update(NeighborList(SKIN), positions, cell, ALL)
    cutoffs, types = one_type(4.0), np.zeros(12, int)
    for i, expected in enumerate(brute_force(positions, cell, ALL, types, cutoffs)):
        found = listed(near, i, types, cutoffs)
        assert [row[1] for row in found] == [row[1] for row in expected]
        shift = np.array([row[2] for row in expected])
        vectors = positions[[row[1] for row in expected]] - positions[i] + shift @ cell
        np.testing.assert_allclose([row[2] for row in found], vectors, rtol=0, atol=3e-15 * away * 40)
    # moved and reused
    moved = positions + rng.uniform(-0.1, 0.1, (12, 3))
    update(near, moved, cell, ALL)
    assert near.builds == 1
    lists = brute_force(moved, cell, ALL, types, cutoffs)
    assert [[row[1] for row in listed(near, i, types, cutoffs)] for i in range(12)] == [
        [row[1] for row in expected] for expected in lists
    ]


@pytest.mark.parametrize("pbc", [NONE, [True, False, False], [False, True, True], ALL])
def test_elongated_sparse_boxes_are_quick(pbc):
    cell = np.diag([3e6, 5.0, 6.0])
    positions = np.array([[0.0, 0, 0], [1e6, 1, 1], [1e6, 2, 1]])
    start = time.perf_counter()
    near = update(NeighborList(SKIN), positions, cell, pbc)
    assert time.perf_counter() - start < 5
    check(near, positions, cell, pbc, [0, 0, 0], one_type(4.0))


def test_a_dense_cluster_after_a_sparse_one_of_as_many_sites():
    rng = np.random.default_rng(7)
    n, types = 150, np.zeros(150, int)
    near = update(NeighborList(SKIN), rng.uniform(0, 60, (n, 3)), np.zeros((3, 3)), NONE)
    assert near.longest < 10
    dense = rng.uniform(0, 2, (n, 3))
    update(near, dense, np.zeros((3, 3)), NONE)
    assert near.longest == n - 1
    check(near, dense, np.zeros((3, 3)), NONE, types, one_type(4.0), extra=SKIN)
    sparse = rng.uniform(0, 60, (n, 3))
    update(near, sparse, np.zeros((3, 3)), NONE)
    check(near, sparse, np.zeros((3, 3)), NONE, types, one_type(4.0), extra=SKIN)


def test_more_images_than_any_usual_number_of_neighbours():
    cell = 0.55 * np.eye(3)
    near = update(NeighborList(SKIN), np.array([[0.1, 0.2, 0.3]]), cell, ALL, cutoffs=5.0)
    assert near.longest > 3000
    check(near, np.array([[0.1, 0.2, 0.3]]), cell, ALL, [0], one_type(5.0), extra=SKIN)


def test_sites_on_the_faces_of_the_cell():
    cell = np.array([[5.0, 0, 0], [1.0, 5.0, 0], [0, 0.5, 5.0]])
    corners = np.array(list(itertools.product([0.0, 0.5, 1.0 - 1e-16, -1e-17], repeat=3)))
    positions = corners @ cell + np.arange(len(corners))[:, None] * 1e-9
    near = update(NeighborList(SKIN), positions, cell, ALL, cutoffs=2.4)
    check(near, positions, cell, ALL, np.zeros(len(corners), int), one_type(2.4), extra=SKIN)


# ---- the cell


@pytest.mark.parametrize("name", CELLS)
def test_completed_cell_is_regular_and_keeps_the_periodic_vectors(name):
    cell, pbc = CELLS[name]
    cell, pbc = np.array(cell, float), np.asarray(pbc)
    original = cell.copy()
    complete = complete_cell(cell, pbc)
    assert np.array_equal(cell, original)
    assert np.array_equal(complete[pbc], cell[pbc])
    added = complete[~pbc]
    np.testing.assert_allclose(added @ added.T, np.eye(len(added)), atol=1e-14)
    np.testing.assert_allclose(added @ complete[pbc].T, 0, atol=1e-13)


@pytest.mark.parametrize(
    ("cell", "pbc"),
    [
        (np.zeros((3, 3)), ALL),
        ([[5, 0, 0], [0, 5, 0], [0, 0, 0]], ALL),
        ([[5, 0, 0], [10, 0, 0], [0, 0, 5]], [True, True, False]),
        ([[5, 1, 0], [1, 5, 0], [6, 6, 0]], ALL),
        (np.zeros((3, 3)), [False, True, False]),
    ],
)
def test_dependent_periodic_vectors_are_refused(cell, pbc):
    directions = str(np.flatnonzero(pbc).tolist()).replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(ValueError, match=f"periodic directions {directions} need linearly independent"):
        update(NeighborList(SKIN), np.zeros((1, 3)), cell, pbc)
