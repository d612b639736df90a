"""Kernels of the neighbour list, called one by one, for several replicas and in memory that just suffices.

What a list of one system contains, and when it is renewed: ``test_potential_neighbors.py``.
"""

import itertools

import numpy as np
import pytest

from ase_nepcg.potential.lists import (
    AGAIN,
    BUILDS,
    DONE,
    FAR,
    LONGEST,
    MEMORY,
    NEED_FOUND,
    NEED_NEIGHBORS,
    NEED_SHIFTS,
    SMALL,
    STATUS,
    VALID,
    WHERE,
    complete,
    place,
    prepare,
    refresh,
    search,
    settle,
)
from ase_nepcg.potential.neighbors import NeighborList
from ase_nepcg.potential.simd import LANES

SKIN = 0.6
CUTOFFS = np.array([[4.0, 3.0], [3.0, 2.0]])
ALL, NONE = (True, True, True), (False, False, False)
# cell, periodic directions and number of sites of each replica: bins of all kinds, images, none at all, one site
REPLICAS = [
    ([[9, 0, 0], [3, 8, 0], [-2, 1, 10]], ALL, 23),
    ([[1.9, 0.2, 0], [0, 2.1, 0.3], [0.5, 0, 1.7]], ALL, 3),
    (np.zeros((3, 3)), NONE, 17),
    ([[7, 1, 0], [-2, 8, 1], [0, 0, 0]], (True, True, False), 12),
    ([[0, 0, 0], [0, 3, 1], [0, 0, 0]], (False, True, False), 1),
    ([[26, 0, 0], [0, 24, 0], [2, 0, 25]], ALL, 90),
]
GUARD, MARK = 64, 77


class Guarded:
    """Copies of arrays with sites before and after them that nobody may write to."""

    def __init__(self):
        self.whole = {}

    def take(self, name, array):
        whole = np.full(array.size + 2 * GUARD, MARK).astype(array.dtype)
        inner = whole[GUARD : GUARD + array.size].reshape(array.shape)
        inner[...] = array
        self.whole[name] = whole, array.size
        return inner

    def check(self):
        for name, (whole, size) in self.whole.items():
            beyond = np.concatenate([whole[:GUARD], whole[GUARD + size :]])
            assert (beyond == np.array(MARK).astype(whole.dtype)).all(), name


class Lists:
    """The arrays of :class:`NeighborList` for ``replicas`` with guards, never larger than what a kernel asked for."""

    def __init__(self, replicas=REPLICAS, seed=0, cutoffs=CUTOFFS, skin=SKIN):
        rng = np.random.default_rng(seed)
        self.cell = np.array([cell for cell, _, _ in replicas], float)
        self.pbc = np.array([pbc for _, pbc, _ in replicas])
        sizes = [n for _, _, n in replicas]
        self.first = np.concatenate([[0], np.cumsum(sizes)])
        box = [np.where(np.array(pbc)[:, None], cell, 6 * np.eye(3)) for cell, pbc, _ in replicas]
        # in the cell, or some or many cells around it
        around = [(0.0, 0.3, 3.0)[(r + seed) % 3] for r in range(len(replicas))]
        x = [rng.uniform(-c, 1 + c, (n, 3)) @ b for c, n, b in zip(around, sizes, box, strict=True)]
        self.x = np.concatenate(x)
        self.types = rng.integers(0, len(cutoffs), len(self.x)).astype(np.int32)
        self.cutoffs, self.skin = cutoffs, skin
        owner = NeighborList(skin)
        owner._take(self.pbc, self.types, cutoffs, self.first, self.first)
        self.guards = Guarded()
        arrays = owner.arrays
        # no more than there must be
        arrays = arrays._replace(triples=np.zeros((1, 3), np.int64), shifts=np.zeros(4))
        self.a = type(arrays)(**{name: self.guards.take(name, array) for name, array in arrays._asdict().items()})

    def enlarge(self, **sizes):
        for name, size in sizes.items():
            shape = (size, 3) if name == "triples" else size
            array = np.zeros(shape, getattr(self.a, name).dtype)
            self.a = self.a._replace(**{name: self.guards.take(name, array)})

    def build(self):
        """As a driver does; statuses on the way."""
        told = []
        while True:
            prepare(self.a, self.x, self.cell)
            told.append(("prepare", int(self.info[STATUS])))
            while self.info[STATUS] == DONE:
                search(np.zeros(2, np.int64), self.a)
                settle(self.a, self.x)
                told.append(("settle", int(self.info[STATUS])))
                self.guards.check()
                if self.info[STATUS] == DONE:
                    place(self.a, self.x)
                    self.guards.check()
                    return told
                if self.info[STATUS] == AGAIN:
                    self.info[STATUS] = DONE
            assert self.info[STATUS] == MEMORY
            self.guards.check()
            need = {"triples": self.info[NEED_SHIFTS], "found": self.info[NEED_FOUND]}
            need |= {"neighbors": self.info[NEED_NEIGHBORS]}
            need = {name: int(n) for name, n in need.items() if n > len(getattr(self.a, name))}
            assert need
            if "triples" in need:
                need["shifts"] = 4 * need["triples"]
            self.enlarge(**need)

    @property
    def info(self):
        return self.a.info

    @property
    def replicas(self):
        return range(len(self.pbc))

    def sites(self, r):
        return range(self.first[r], self.first[r + 1])

    def listed(self, i, r):
        """Neighbours of a site in the order of the list: type, index, shift; their vectors."""
        a, n_types, found, vectors = self.a, len(self.cutoffs), [], []
        for t in range(n_types):
            begin, end = a.seg[i * (n_types + 1) + t : i * (n_types + 1) + t + 2]
            for entry in a.neighbors[begin:end].tolist():
                j, code = entry & 0xFFFFFFFF, entry >> 32
                assert a.shift_first[r] <= code < a.shift_first[r + 1]
                shift = a.triples[code] + a.scattered[r] * (a.image[i] - a.image[j])
                found.append((t, j, tuple(shift.tolist())))
                vectors.append(a.positions[4 * j : 4 * j + 3] - a.positions[4 * i : 4 * i + 3])
                vectors[-1] = vectors[-1] + a.shifts[4 * code : 4 * code + 3]
        return found, np.array(vectors).reshape(-1, 3)

    def check(self, rtol=1e-13):
        """Every pair of every replica, each once and in order."""
        longest = 0
        for r in self.replicas:
            for i in self.sites(r):
                expected, away = twin(self, i, r)
                found, vectors = self.listed(i, r)
                assert found == expected, (i, r)
                np.testing.assert_allclose(vectors, away, rtol=0, atol=rtol * (10 + np.abs(self.x).max()))
                longest = max(longest, len(found))
        assert self.info[LONGEST] == longest


def twin(lists, i, r):
    """Neighbours of a site within cutoff + skin: (type, index, shift) sorted, and vectors to them."""
    x, types, pbc = lists.x, lists.types, lists.pbc[r]
    lattice = lists.cell[r][pbc]
    dual = np.linalg.pinv(lattice) if len(lattice) else np.zeros((3, 0))
    limit = lists.cutoffs + lists.skin
    reach = np.ceil(limit.max() * np.linalg.norm(dual, axis=0) + 0.5).astype(int)
    images = np.array(list(itertools.product(*(range(-k, k + 1) for k in reach))))
    found = []
    for j in lists.sites(r):
        shifts = images - np.rint((x[j] - x[i]) @ dual)
        vectors = x[j] - x[i] + shifts @ lattice
        near = np.linalg.norm(vectors, axis=1) < limit[types[i], types[j]]
        if j == i:
            near &= shifts.any(axis=1)
        full = np.zeros((near.sum(), 3), int)
        full[:, pbc] = shifts[near]
        found += [(int(types[j]), j, *both) for both in zip(map(tuple, full.tolist()), vectors[near], strict=True)]
    found.sort(key=lambda entry: entry[:3])
    return [entry[:3] for entry in found], np.array([entry[3] for entry in found]).reshape(-1, 3)


@pytest.fixture
def lists():
    return Lists()


@pytest.fixture
def built(lists):
    lists.build()
    return lists


# ---- the list


@pytest.mark.parametrize(
    ("seed", "cutoffs"),
    [(0, CUTOFFS), (1, np.full((1, 1), 3.5)), (2, np.full((3, 3), 2.5))],
    ids=["two", "one", "equal"],
)
def test_lists_of_several_replicas(seed, cutoffs):
    lists = Lists(seed=seed, cutoffs=cutoffs)
    told = lists.build()
    lists.check()
    assert told[-1] == ("settle", DONE)
    assert ("prepare", MEMORY) in told
    assert lists.info[[VALID, BUILDS]].tolist() == [1, 1]
    # the next list of like systems is found at the first attempt, once there is the memory it asks for
    lists.x += np.random.default_rng(2).uniform(-0.3, 0.3, lists.x.shape)
    need = {"found": 3 * lists.info[NEED_FOUND], "neighbors": 2 * lists.info[NEED_NEIGHBORS]}
    lists.enlarge(**need, triples=8 * lists.info[NEED_SHIFTS], shifts=32 * lists.info[NEED_SHIFTS])
    assert lists.build() == [("prepare", DONE), ("settle", DONE)]
    lists.check()
    assert lists.info[[VALID, BUILDS]].tolist() == [1, 2]


@pytest.mark.parametrize("seed", range(8))
def test_random_replicas(seed):
    rng = np.random.default_rng([3, seed])
    replicas = []
    for _ in range(rng.integers(1, 5)):
        cell = rng.normal(size=(3, 3))
        cell *= rng.uniform(1.5, 12.0) * np.linalg.norm(np.linalg.inv(cell), axis=0).max()
        replicas.append((cell, rng.random(3) < 0.6, int(rng.integers(1, 16))))
    lists = Lists(replicas, seed=seed)
    lists.build()
    lists.check()


def test_a_replica_is_the_same_alone_and_among_others(built):
    for r in built.replicas:
        alone = Lists(REPLICAS[r : r + 1])
        sites = slice(*built.first[r : r + 2])
        alone.x, alone.types = built.x[sites], built.types[sites]
        alone.a.types[:] = alone.types
        alone.a.order[:] = np.argsort(alone.types, kind="stable")
        alone.build()
        for i in built.sites(r):
            ours, vectors = built.listed(i, r)
            its, same = alone.listed(i - built.first[r], 0)
            assert [(t, j - built.first[r], shift) for t, j, shift in ours] == its
            assert vectors.tobytes() == same.tobytes()


def test_a_replica_with_sites_far_away_does_not_change_the_others(lists):
    lists.x[3] += 10**7 * lists.cell[0, 0] - 2 * 10**7 * lists.cell[0, 1]
    lists.build()
    assert lists.a.scattered.tolist() == [True] + 5 * [False]
    lists.check(rtol=1e-15)
    assert lists.info[NEED_SHIFTS] < 10_000


# ---- prepare


def test_every_site_is_in_its_bin(lists):
    prepare(lists.a, lists.x, lists.cell)
    lists.enlarge(triples=int(lists.info[NEED_SHIFTS]), shifts=4 * int(lists.info[NEED_SHIFTS]))
    prepare(lists.a, lists.x, lists.cell)
    a, n = lists.a, len(lists.x)
    assert sorted(a.members.tolist()) == list(range(n))
    for r in lists.replicas:
        bins = int(np.prod(a.bins[r]))
        assert a.bin_first[r + 1] - a.bin_first[r] == bins <= 4 * len(lists.sites(r)) + 64
        assert not a.image[lists.first[r] : lists.first[r + 1]][:, ~lists.pbc[r]].any()
        seen = []
        for b in range(a.bin_first[r], a.bin_first[r + 1]):
            for k in range(a.bin_start[b], a.bin_start[b + 1]):
                i = a.members[k]
                seen.append(i)
                assert a.bin_of[i] == b
                assert np.ravel_multi_index(a.coordinate[i], a.bins[r]) == b - a.bin_first[r]
                np.testing.assert_allclose(a.x[:, k], lists.x[i] - a.image[i] @ a.now[r], rtol=0, atol=1e-12)
                assert a.packed[k] & 0xFFFFFFFF == i
                np.testing.assert_allclose(a.limits[:, k], (CUTOFFS[:, lists.types[i]] + SKIN) ** 2)
        assert sorted(seen) == list(lists.sites(r))
        # inside the cell, and each bin along a direction has its part of it
        inside = a.wrapped[lists.first[r] : lists.first[r + 1]][:, lists.pbc[r]]
        assert ((inside >= 0) & (inside <= 1)).all()
        periodic = np.floor(inside * a.bins[r][lists.pbc[r]])
        assert np.array_equal(periodic, a.coordinate[lists.first[r] : lists.first[r + 1]][:, lists.pbc[r]])
    # what is read beyond the last site is never near
    assert not a.limits[:, n:].any()


def test_shifts_are_numbered_around_zero(built):
    a = built.a
    for r in built.replicas:
        half = a.half[r]
        assert (half[~built.pbc[r]] == 0).all()
        expected = list(itertools.product(*(range(-h, h + 1) for h in half.tolist())))
        assert a.triples[a.shift_first[r] : a.shift_first[r + 1]].tolist() == [list(shift) for shift in expected]
        for code, shift in enumerate(expected, start=int(a.shift_first[r])):
            assert a.stride[r, :3] @ shift + a.stride[r, 3] == code
            np.testing.assert_allclose(a.shifts[4 * code : 4 * code + 3], shift @ a.now[r], rtol=0, atol=1e-12)
    assert a.shift_first[-1] == built.info[NEED_SHIFTS] == len(a.triples)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e14])
def test_positions_that_are_no_places(built, value):
    i = int(built.first[3]) + 2
    kept = built.a.positions.copy()
    built.x[i, 1] = value
    assert not refresh(built.a, built.x, built.cell)
    np.testing.assert_array_equal(built.a.positions, kept)
    prepare(built.a, built.x, built.cell)
    assert built.info[[STATUS, WHERE, VALID]].tolist() == [FAR, i, 0]
    built.guards.check()


def test_cells_that_are_too_small(built):
    built.cell[1] *= 0.01
    prepare(built.a, built.x, built.cell)
    assert built.info[[STATUS, WHERE, VALID]].tolist() == [SMALL, 1, 0]
    built.guards.check()
    # the list of before is no longer there
    assert not refresh(built.a, built.x, np.array([cell for cell, _, _ in REPLICAS], float))


def test_the_memory_for_shifts_is_asked_for(lists):
    prepare(lists.a, lists.x, lists.cell)
    assert lists.info[[STATUS, VALID]].tolist() == [MEMORY, 0]
    need = int(lists.info[NEED_SHIFTS])
    lists.guards.check()
    assert not lists.a.triples.any()
    lists.enlarge(triples=need - 1, shifts=4 * (need - 1))
    prepare(lists.a, lists.x, lists.cell)
    assert lists.info[[STATUS, NEED_SHIFTS]].tolist() == [MEMORY, need]
    assert not lists.a.triples.any()
    lists.enlarge(triples=need, shifts=4 * need)
    prepare(lists.a, lists.x, lists.cell)
    # now there is no room for what is found
    assert lists.info[STATUS] == MEMORY
    assert lists.info[NEED_FOUND] == lists.a.start[-1] == lists.a.room.sum() > 0
    lists.guards.check()


# ---- search and settle


def searched(lists, *counters):
    for counter in counters:
        search(counter, lists.a)
    lists.guards.check()
    return lists.a.found_count.copy()


def test_threads_share_the_sites(built):
    """Whoever takes a block of 64 sites from the counter searches it, nobody else."""
    expected = built.a.found_count.copy()
    n = len(expected)
    assert n > 128
    prepare(built.a, built.x, built.cell)
    built.enlarge(found=int(built.info[NEED_FOUND]))
    for begin in (0, 64, 128, 192):
        built.a.found_count[:] = -1
        counter = np.array([begin, 0])
        found = searched(built, counter, counter)
        here = np.isin(np.arange(n), built.a.members[begin:])
        np.testing.assert_array_equal(found[here], expected[here])
        assert (found[~here] == -1).all()
        assert counter[0] >= n
        assert counter[1] == 0


def test_room_that_is_too_small_is_not_left(built):
    """A search counts everything and stores what fits; then the room is made, and the list is the same."""
    a, expected = built.a, built.a.found_count.copy()
    neighbors, seg = a.neighbors.copy(), a.seg.copy()
    victims = [0, 30, len(expected) - 1, int(expected.argmax())]
    prepare(a, built.x, built.cell)
    built.enlarge(found=int(built.info[NEED_FOUND]))
    a = built.a
    # the last one: for all that is found, but not for whole vectors of it
    for room in (LANES, LANES + 1, 2 * LANES, expected[victims]):
        a.room[:] = expected + LANES
        a.room[victims] = room
        prepare(a, built.x, built.cell)
        assert built.info[STATUS] == DONE
        a.found[:] = -1
        np.testing.assert_array_equal(searched(built, np.zeros(2, np.int64)), expected)
        for i in range(len(expected)):
            stored = a.found[a.start[i] : a.start[i + 1]]
            if i not in victims:
                assert (stored[: expected[i]] != -1).all()
                # vectors were written as a whole, within the room of the site
                assert set((stored[: expected[i]] & 0xFFFFFFFF).tolist()) <= set(range(len(expected)))
        settle(a, built.x)
        assert built.info[[STATUS, VALID, BUILDS]].tolist() == [AGAIN, 0, 1]
        np.testing.assert_array_equal(a.room, expected + LANES)
        searched(built, np.zeros(2, np.int64))
        settle(a, built.x)
        assert built.info[[STATUS, VALID, BUILDS]].tolist() == [DONE, 1, 2]
        total = int(expected.sum())
        np.testing.assert_array_equal(a.neighbors[:total], neighbors[:total])
        np.testing.assert_array_equal(a.seg, seg)
        built.info[BUILDS] = 1
    built.guards.check()


def test_sites_of_one_replica_do_not_fill_the_room_of_the_next(built):
    """All that a search stores for a site stands in its own room."""
    a = built.a
    a.room[:] = LANES + np.arange(len(a.room)) % 40
    prepare(a, built.x, built.cell)
    need = int(built.info[NEED_FOUND])
    assert need == (LANES + np.arange(len(a.room)) % 40).sum()
    built.enlarge(found=need)
    prepare(built.a, built.x, built.cell)
    built.a.found[:] = -1
    searched(built, np.zeros(2, np.int64))
    for r in built.replicas:
        for i in built.sites(r):
            stored = built.a.found[built.a.start[i] : built.a.start[i + 1]]
            count = min(built.a.found_count[i], len(stored) - LANES)
            indices = stored[:count] & 0xFFFFFFFF
            assert ((indices >= built.first[r]) & (indices < built.first[r + 1])).all()
            expected = {(j, shift) for _, j, shift in twin(built, i, r)[0]}
            shifts = built.a.triples[stored[:count] >> 32].tolist()
            kept = list(zip(indices.tolist(), map(tuple, shifts), strict=True))
            assert len(set(kept)) == len(kept)
            assert set(kept) <= expected


def test_memory_for_a_dense_list_is_asked_for(built):
    """Sites that come together: more neighbours than there is memory for."""
    origin, cell = built.a.origin.copy(), built.a.cell.copy()
    neighbors, seg = built.a.neighbors.copy(), built.a.seg.copy()
    dense = slice(*built.first[5:7])
    built.x[dense] = built.x[dense] @ np.diag([0.2, 0.2, 0.2])
    told = []
    while True:
        prepare(built.a, built.x, built.cell)
        told.append(int(built.info[STATUS]))
        if told[-1] == MEMORY:
            built.enlarge(found=int(built.info[NEED_FOUND]))
            continue
        searched(built, np.zeros(2, np.int64))
        settle(built.a, built.x)
        built.guards.check()
        told.append(int(built.info[STATUS]))
        if told[-1] == AGAIN:
            searched(built, np.zeros(2, np.int64))
            settle(built.a, built.x)
            told.append(int(built.info[STATUS]))
        if built.info[NEED_NEIGHBORS] > len(neighbors):
            break
    assert told[-1] == MEMORY
    # the sites were found, nothing else was touched
    total = sum(len(twin(built, i, r)[0]) for r in built.replicas for i in built.sites(r))
    assert built.info[NEED_NEIGHBORS] == total + LANES
    np.testing.assert_array_equal(built.a.neighbors, neighbors)
    np.testing.assert_array_equal(built.a.seg, seg)
    np.testing.assert_array_equal(built.a.origin, origin)
    np.testing.assert_array_equal(built.a.cell, cell)
    assert built.info[[VALID, BUILDS]].tolist() == [0, 1]
    built.build()
    built.check()


# ---- whether a list serves


def criterion(lists, x, cell):
    """``sigma (rc + skin) - 2 max|delta| - rc`` for the worst replica and cutoff."""
    worst = np.inf
    for r in lists.replicas:
        now, old = np.empty((3, 3)), np.empty((3, 3))
        complete(cell[r], lists.pbc[r], now)
        complete(lists.cell[r], lists.pbc[r], old)
        motion = np.linalg.solve(old, now)
        sigma = np.linalg.svd(motion, compute_uv=False)[-1] if (now != old).any() else 1.0
        sites = slice(*lists.first[r : r + 2])
        delta = np.linalg.norm(x[sites] - lists.x[sites] @ motion, axis=1).max()
        for rc in np.unique(lists.cutoffs):
            worst = min(worst, sigma * (rc + lists.skin) - 2 * delta - rc)
    return worst


def test_a_list_serves_while_no_replica_has_changed_too_much(built, rng):
    answers = []
    for _ in range(300):
        x, cell = built.x.copy(), built.cell.copy()
        r = int(rng.integers(len(REPLICAS)))
        if rng.random() < 0.7:
            strain = np.eye(3) + rng.normal(size=(3, 3)) * 10 ** rng.uniform(-4, -0.7)
            sites = slice(*built.first[r : r + 2])
            cell[r], x[sites] = cell[r] @ strain, x[sites] @ strain
        if rng.random() < 0.7:
            i = int(rng.integers(len(x)))
            x[i] += rng.normal(size=3) * 10 ** rng.uniform(-4, -0.2)
        margin = criterion(built, x, cell)
        kept = built.a.positions.copy(), built.a.shifts.copy()
        good = refresh(built.a, x, cell)
        if abs(margin) > 1e-5:
            assert good == (margin > 0)
            answers.append(good)
        now = np.empty((3, 3))
        for k in built.replicas:
            complete(cell[k], built.pbc[k], now)
            np.testing.assert_array_equal(built.a.now[k], now)
        if good:
            np.testing.assert_array_equal(built.a.positions.reshape(-1, 4)[:, :3], x)
            replica = np.repeat(built.replicas, np.diff(built.a.shift_first))
            shifts = np.einsum("ka,kab->kb", built.a.triples.astype(float), built.a.now[replica])
            np.testing.assert_allclose(built.a.shifts.reshape(-1, 4)[:, :3], shifts, rtol=0, atol=1e-12)
        else:
            np.testing.assert_array_equal(built.a.positions, kept[0])
            np.testing.assert_array_equal(built.a.shifts, kept[1])
    assert 20 < sum(answers) < len(answers) - 20
    assert built.info[BUILDS] == 1
    built.guards.check()


def test_a_cell_that_is_no_number(built):
    for r, d in ((0, 1), (3, 0), (5, 2)):
        cell = built.cell.copy()
        cell[r, d, 1] = np.nan
        assert not refresh(built.a, built.x, cell)
    # what is not periodic does not matter
    cell = built.cell.copy()
    cell[2], cell[3, 2] = np.nan, np.inf
    assert refresh(built.a, built.x, cell)
    assert refresh(built.a, built.x, built.cell)


def test_no_list_is_used_before_it_was_made(lists):
    assert not refresh(lists.a, lists.x, lists.cell)
    # the cells are known all the same: what comes next needs them
    assert np.array_equal(lists.a.now[0], lists.cell[0])
    assert np.array_equal(lists.a.now[2], np.eye(3))
