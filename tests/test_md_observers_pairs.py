"""The search of pairs: all distances of all images, against numpy; settings of pairs."""

import functools
import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest

from ase_nepcg.md.observers import RDF, ObserverError, ObserverInfo
from ase_nepcg.md.observers.base import Arena
from ase_nepcg.md.observers.bins import (
    BATCH,
    BINS,
    BUFFER,
    CHUNK,
    GRID,
    IMAGES,
    NEAREST,
    OWN_PAIRS,
    REFUSED,
    allocate_pairs,
)
from ase_nepcg.md.observers.pairs import pair_kernel, pairs_of, read_pairs
from ase_nepcg.md.state import inlined, make_state

SPECIES = ("O", "H")
INFO = ObserverInfo(1.0, 1, SPECIES)
EVERYTHING = ((0, 0), (0, 1), (1, 1))
TRICLINIC = np.array([[9.0, 0.4, -0.3], [2.5, 8.0, 0.2], [-1.5, 2.0, 10.0]])
# head of ints: where records begin, how many there is room for, how many there are, largest batch, samples
RECORD, ROOM, COUNT, LARGEST, SAMPLES = range(OWN_PAIRS, OWN_PAIRS + 5)
# numbers per record: pair, squared distance, weight, step
WIDTH = 4


@inlined
def _record(ints, floats, pair, kept, step, weight):
    ints[LARGEST] = max(ints[LARGEST], kept)
    for k in range(kept):
        if ints[COUNT] < ints[ROOM]:
            at = ints[RECORD] + WIDTH * ints[COUNT]
            floats[at], floats[at + 1] = pair, floats[ints[BUFFER] + k]
            floats[at + 2], floats[at + 3] = weight, step
        ints[COUNT] += 1


@inlined
def _finish(s, r, ints, floats):
    ints[SAMPLES] += 1


@functools.cache
def recorder():
    # kept on disk: the name has to change with this file
    return pair_kernel("record_" + hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16], _record, _finish)


def state_of(*replicas):
    """Of (x, types, cell, pbc)."""
    x, types, cells, pbc = zip(*replicas, strict=True)
    zeros, ones = [np.zeros_like(one) for one in x], [np.ones(len(one)) for one in x]
    return make_state(x, zeros, ones, types, cells, pbc, seeds=range(len(x)))


def allocate(s, r, numbers, radii, room=400_000):
    arena = Arena(s, r, INFO)
    allocate_pairs(arena, s, r, INFO, numbers, radii)
    arena.add_floats(RECORD, WIDTH * room)
    arena.set(ROOM, room)
    return arena.build()


def found(s, r=0, numbers=EVERYTHING, radii=(4.0, 4.0, 4.0), step=3):
    """Sorted squared distances of each pair of types, and the integers of the observer."""
    ints, floats = allocate(s, r, numbers, radii)
    recorder()(s, r, step, ints, floats)
    assert ints[COUNT] <= ints[ROOM]
    assert ints[LARGEST] <= BATCH + CHUNK
    assert (ints[SAMPLES], ints[REFUSED]) == (1, 0)
    pair, d2, weight, steps = floats[ints[RECORD] :][: WIDTH * ints[COUNT]].reshape(-1, WIDTH).T
    assert (steps == step).all()
    return [np.sort(np.repeat(d2[pair == k], weight[pair == k].astype(int))) for k in range(len(numbers))], ints


def twin(x, types, cell, pbc, numbers, radii):
    """The same by loops over sites and all images that can be near; each pair once."""
    lattice = np.asarray(cell, float)[np.array(pbc, bool)]
    dual = np.linalg.pinv(lattice) if len(lattice) else np.zeros((3, 0))
    reach = np.ceil(max(radii) * np.linalg.norm(dual, axis=0) + 0.5).astype(int)
    images = np.array(list(itertools.product(*(range(-k, k + 1) for k in reach))))
    distances = [[] for _ in numbers]
    for i in range(len(x)):
        for j in range(i + 1):
            for k, (a, b) in enumerate(numbers):
                if sorted((types[i], types[j])) != sorted((a, b)):
                    continue
                shifts = images - np.rint((x[j] - x[i]) @ dual)
                if i == j:
                    # of an image and its mirror image one: the first number that is not zero is positive
                    shifts = shifts[[tuple(shift) > (0,) * len(shift) for shift in shifts]]
                d2 = ((x[j] - x[i] + shifts @ lattice) ** 2).sum(axis=1)
                distances[k].append(d2[d2 < radii[k] ** 2])
    return [np.sort(np.concatenate([*one, np.zeros(0)])) for one in distances]


def compare(s, replica, r=0, numbers=EVERYTHING, radii=(4.0, 4.0, 4.0)):
    ours, ints = found(s, r, numbers, radii)
    scale = 1e-12 * (np.abs(replica[0]).max() + 10) ** 2
    for one, expected in zip(ours, twin(*replica, numbers, radii), strict=True):
        assert len(one) == len(expected)
        np.testing.assert_allclose(one, expected, rtol=0, atol=scale)
    return sum(map(len, ours)), ints[ints[GRID] :][:12]


def replica_of(rng, cell, pbc, n, spread=1.0):
    box = np.where(np.array(pbc, bool)[:, None], cell, 8.0 * np.eye(3))
    return rng.uniform(-0.5, 1.5, (n, 3)) * spread @ box, rng.integers(0, 2, n), np.array(cell, float), pbc


CASES = {
    "triclinic": (TRICLINIC, (1, 1, 1), 40),
    "left-handed": (TRICLINIC[[1, 0, 2]], (1, 1, 1), 40),
    "very oblique": ([[15, 0, 0], [14, 9, 0], [-13, 17, 9]], (1, 1, 1), 40),
    "small": (TRICLINIC / 4, (1, 1, 1), 3),
    "one site, many images": (TRICLINIC / 6, (1, 1, 1), 1),
    "large": (2.5 * TRICLINIC, (1, 1, 1), 150),
    "slab": (TRICLINIC, (1, 1, 0), 40),
    "slab without height": (TRICLINIC * [[1], [1], [0]], (1, 1, 0), 40),
    "sheet across x": (TRICLINIC, (0, 1, 1), 40),
    "wire": (TRICLINIC * [[0], [0.3], [0]], (0, 1, 0), 10),
    "long wire": (TRICLINIC * [[0], [0], [5]], (0, 0, 1), 60),
    "cluster": (np.zeros((3, 3)), (0, 0, 0), 60),
    "cluster in a cell": (TRICLINIC / 2, (0, 0, 0), 60),
    "one site": (np.zeros((3, 3)), (0, 0, 0), 1),
}


@pytest.mark.parametrize("name", CASES)
def test_all_pairs_are_found_once(rng, name):
    replica = replica_of(rng, *CASES[name])
    count, _ = compare(state_of(replica), replica)
    assert (count > 0) == (name != "one site")
    # a radius for each pair, and pairs that nobody asked for
    compare(state_of(replica), replica, numbers=[(1, 1), (1, 0)], radii=[4.5, 1.9])


def test_any_heights_of_the_cell(rng):
    """Directions are treated by the ratio of height and radius: all combinations of them."""
    ways = {}
    for k, ratios in enumerate(itertools.product((0.7, 2.2, 3.3), (0.6, 2.4, 3.2), (0.8, 1.7, 2.1))):
        cell = np.eye(3) + 0.3 * rng.normal(size=(3, 3))
        # heights of the cell
        cell *= (2.0 * np.array(ratios) * np.linalg.norm(np.linalg.inv(cell), axis=0))[:, None]
        pbc = (1, 1, 1) if k % 2 else tuple(rng.integers(0, 2, 3).tolist())
        replica = replica_of(rng, cell, pbc, 25, spread=rng.choice([1, 20]))
        _, grid = compare(state_of(replica), replica, radii=(2.0, 2.0, 1.5))
        for d in range(3):
            how = (bool(grid[BINS + d] > 1), bool(grid[NEAREST + d]), bool(grid[IMAGES + d]))
            ways.setdefault((d, bool(pbc[d])), set()).add(how)
    alone, bins, nearest, images = (False,) * 3, (True, False, False), (False, True, False), (False, False, True)
    for d in range(3):
        assert ways[d, True] == ({bins, images} if d == 2 else {bins, nearest, images})
        assert ways[d, False] <= {alone, bins}


@pytest.mark.parametrize("n", [7, 8, 9, 511, 513, 1500])
def test_batches_and_whole_vectors(rng, n):
    """Many sites in one bin: more pairs of one site than a batch takes."""
    x = rng.uniform(0, 1, (n, 3))
    s = state_of((x, np.zeros(n, int), np.eye(3) * 30, (1, 1, 0)))
    ints, floats = allocate(s, 0, [(0, 0)], [2.0], room=n * (n - 1) // 2)
    recorder()(s, 0, 0, ints, floats)
    assert ints[COUNT] == ints[ROOM] == n * (n - 1) // 2
    assert ints[LARGEST] <= BATCH + CHUNK
    assert (ints[LARGEST] > BATCH) == (ints[COUNT] > BATCH)
    d2 = floats[ints[RECORD] :].reshape(-1, WIDTH)[:, 1]
    i, j = np.triu_indices(n, 1)
    expected = ((x[i] - x[j]) ** 2).sum(axis=1)
    np.testing.assert_allclose(np.sort(d2), np.sort(expected), rtol=0, atol=1e-10)


def test_images_of_a_site_itself_count_for_all_of_its_kind():
    cell = np.diag([2.0, 3.0, 30.0])
    x = np.array([[0.1, 0.2, 1.0], [0.3, 0.1, 11.0], [0.5, 0.6, 21.0]])
    s = state_of((x, np.array([0, 0, 1]), cell, (1, 1, 1)))
    ints, floats = allocate(s, 0, EVERYTHING, (3.7, 3.7, 3.7))
    recorder()(s, 0, 0, ints, floats)
    records = floats[ints[RECORD] :][: WIDTH * ints[COUNT]].reshape(-1, WIDTH)[:, :3].tolist()
    # along the axes, and the two diagonals
    assert sorted(records) == sorted([k, d2, weight] for k, weight in ((0, 2), (2, 1)) for d2 in (4.0, 9.0, 13.0, 13.0))


def test_replicas_of_different_cells(rng):
    names = ("triclinic", "small", "cluster", "wire", "large")
    replicas = [replica_of(rng, *CASES[name]) for name in names]
    s = state_of(*replicas)
    for r, replica in enumerate(replicas):
        compare(s, replica, r)
        # the same bits in the same order as alone
        arrays = (
            allocate(s, r, EVERYTHING, (4.0, 4.0, 4.0)),
            allocate(state_of(replica), 0, EVERYTHING, (4.0, 4.0, 4.0)),
        )
        recorder()(s, r, 0, *arrays[0])
        recorder()(state_of(replica), 0, 0, *arrays[1])
        for one, other in zip(*arrays, strict=True):
            assert one.tobytes() == other.tobytes()


def test_a_cell_that_changes_during_the_run(rng):
    """With the memory of the first sample."""
    replica = replica_of(rng, TRICLINIC, (1, 1, 1), 40)
    s = state_of(replica)
    ints, floats = allocate(s, 0, EVERYTHING, (3.0, 3.0, 3.0))
    for factor in (1.0, 0.4, 1.7, 40.0, 1.0):
        x, cell = replica[0] * factor, replica[2] * factor
        s.x[:], s.cell[0] = x, cell
        ints[COUNT] = 0
        recorder()(s, 0, 0, ints, floats)
        records = floats[ints[RECORD] :][: WIDTH * ints[COUNT]].reshape(-1, WIDTH)
        expected = twin(x, replica[1], cell, (1, 1, 1), EVERYTHING, (3.0, 3.0, 3.0))
        for k, d2 in enumerate(expected):
            here = records[records[:, 0] == k]
            np.testing.assert_allclose(
                np.sort(np.repeat(here[:, 1], here[:, 2].astype(int))), d2, rtol=0, atol=1e-8 * factor**2
            )
    assert ints[SAMPLES] == 5


def test_samples_without_result_are_counted(rng):
    s = state_of(replica_of(rng, TRICLINIC, (1, 1, 1), 20))
    ints, floats = allocate(s, 0, EVERYTHING, (3.0, 3.0, 3.0))
    s.x[3, 2] = np.nan
    recorder()(s, 0, 0, ints, floats)
    recorder()(s, 0, 1, ints, floats)
    assert (ints[REFUSED], ints[SAMPLES], ints[COUNT]) == (2, 0, 0)


# ---- settings


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([("O", "H")], (("O", "H"),)),
        ((("a-long-tail", "O"), ["O", "O"]), (("a-long-tail", "O"), ("O", "O"))),
        (iter([("H", "O"), ("H", "H")]), (("H", "O"), ("H", "H"))),
    ],
)
def test_pairs_of_labels(given, expected):
    assert read_pairs(RDF(4.0), given) == expected


@pytest.mark.parametrize(
    "given", ["OH", ["OH"], [], (), 3, None, [3], [("O",)], [("O", "H", "H")], [("O", 1)], ["O"], ["WAT"], [None, None]]
)
def test_what_is_no_pairs_of_labels(given):
    with pytest.raises(ObserverError) as raised:
        read_pairs(RDF(4.0), given, "closest")
    assert str(raised.value) == f"RDF: closest must be pairs of labels like ('O', 'H'), got {given!r}"


@pytest.mark.parametrize("given", [[("O", "H"), ("H", "O")], [("O", "O"), ("H", "H"), ("O", "O")]])
def test_pairs_that_are_named_twice(given):
    with pytest.raises(ObserverError, match=f"RDF: pairs contains {'-'.join(given[-1])} twice"):
        read_pairs(RDF(4.0), given)


def test_pairs_that_a_replica_has(rng):
    info = ObserverInfo(1.0, 1, ("O", "H", "C"))
    cells = np.eye(3) * 9, (1, 1, 1)
    s = state_of(
        (rng.normal(size=(3, 3)), np.array([2, 0, 2]), *cells), (rng.normal(size=(2, 3)), np.array([1, 1]), *cells)
    )
    assert pairs_of(s, 0, info, None) == [(0, 0), (0, 2), (2, 2)]
    assert pairs_of(s, 1, info, None) == [(1, 1)]
    assert pairs_of(s, 0, info, [("C", "O"), ("O", "O")]) == [(2, 0), (0, 0)]
    with pytest.raises(ObserverError, match=r"species 'H' has no site in replica 0: .*'?O"):
        pairs_of(s, 0, info, [("O", "H")])
    with pytest.raises(ObserverError, match="species 'O' has no site in replica 1"):
        pairs_of(s, 1, info, [("H", "O")])
    with pytest.raises(ObserverError, match="unknown species 'Ow'"):
        pairs_of(s, 0, info, [("Ow", "O")])
