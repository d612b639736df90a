"""Report of pairs that are closer than in the training data."""

import numpy as np
import pytest
from ase import Atoms

from ase_nepcg.labels import set_labels
from ase_nepcg.md.observers import ClosePairs, ObserverError, ObserverInfo
from ase_nepcg.md.state import make_state

INFO = ObserverInfo(1.0, 1, ("O", "H", "C"))


def state_of(x, types, cell, pbc=(True, True, True)):
    n = len(x)
    return make_state([x], [np.zeros((n, 3))], [np.ones(n)], [types], [cell], [pbc])


def distances(x, types, cell, a, b):
    """All distances of unordered pairs a-b with the images around."""
    shifts = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    i, j = np.flatnonzero(types == a), np.flatnonzero(types == b)
    d = np.linalg.norm(x[j][None, :, None] - x[i][:, None, None] + (shifts @ cell), axis=-1)
    keep = d > 0
    return np.sort(d[keep])[:: 2 if a == b else 1]


def test_report_equals_brute_force(rng):
    cell = np.array([[9.0, 0, 0], [2.0, 9.5, 0], [-1.0, 1.0, 10.0]])
    types = np.arange(40) % 2
    frames = [rng.uniform(0, 1, (40, 3)) @ cell for _ in range(12)]
    observer = ClosePairs({("O", "O"): 1.1, ("H", "O"): 0.8, ("H", "H"): 0.05, ("C", "O"): 1.0})
    s = state_of(frames[0], types, cell)
    arrays = observer.allocate(s, 0, INFO)
    for step, x in enumerate(frames):
        s.x[:] = x
        observer.kernel()(s, 0, 10 * step, *arrays)
    result = observer.results(*arrays)
    assert result.pairs == (("O", "O"), ("H", "O"), ("H", "H"))
    assert result.found
    assert result.samples == 12
    for k, (a, b, limit) in enumerate(((0, 0, 1.1), (1, 0, 0.8), (1, 1, 0.05))):
        per_frame = [distances(x, types, cell, a, b) for x in frames]
        assert result.counts[k] == sum((d < limit).sum() for d in per_frame)
        assert result.samples_with[k] == sum((d < limit).any() for d in per_frame)
        closest = np.array([d.min() for d in per_frame])
        if closest.min() < 1.25 * limit:
            assert result.smallest_A[k] == pytest.approx(closest.min(), rel=1e-12)
            assert result.step[k] == 10 * closest.argmin()
        else:
            assert np.isnan(result.smallest_A[k])
            assert result.step[k] == -1
    assert result.counts[0] > 0
    assert result.counts[2] == 0


def test_image_of_itself_and_margin():
    s = state_of(np.zeros((1, 3)), np.zeros(1, int), np.diag([2.0, 9, 9]))
    observer = ClosePairs({("O", "O"): 1.9})
    arrays = observer.allocate(s, 0, INFO)
    observer.kernel()(s, 0, 7, *arrays)
    result = observer.results(*arrays)
    assert not result.found
    assert result.smallest_A[0] == pytest.approx(2.0)
    s.cell[0, 0, 0] = 1.5
    observer.kernel()(s, 0, 8, *arrays)
    result = observer.results(*arrays)
    assert result.counts.tolist() == [1]
    assert result.step.tolist() == [8]


def test_limits_from_frames(rng):
    frames = []
    for k in range(4):
        atoms = Atoms("X6", positions=rng.uniform(0, 6, (6, 3)), cell=np.eye(3) * 6, pbc=True)
        set_labels(atoms, ["W1", "ion", "W1", "W1", "W1", "ion" if k % 2 else "W1"])
        frames.append(atoms)
    limits = {(a, b): d for a, b, d in ClosePairs.from_frames(frames, r_max=5.5).closest}
    assert set(limits) == {("W1", "W1"), ("W1", "ion"), ("ion", "ion")}
    for (a, b), found in limits.items():
        smallest = 5.5
        for atoms in frames:
            names = atoms.arrays["bead"]
            d = atoms.get_all_distances(mic=True)
            np.fill_diagonal(d, 6.0)
            here = d[np.ix_(names == a, names == b)]
            smallest = min(smallest, here.min(initial=9.0))
        assert found == pytest.approx(smallest)


def test_pairs_that_no_frame_has_near_get_the_range():
    far = Atoms("OH", positions=[[0, 0, 0], [0, 0, 7.0]])
    assert ClosePairs.from_frames([far]).closest == (("H", "H", 6.0), ("H", "O", 6.0), ("O", "O", 6.0))


def test_bad_input():
    for closest in ({}, None, {"OO": 2.0}, {("O", "O"): -1.0}, {("O", "O"): "2"}, [("O", "O")], [3], {("O",): 2.0}):
        with pytest.raises(ObserverError, match=r"closest|distance"):
            ClosePairs(closest)
    with pytest.raises(ObserverError, match="twice"):
        ClosePairs([("O", "H", 1.0), ("H", "O", 1.0)])
    with pytest.raises(ObserverError, match="at least one frame"):
        ClosePairs.from_frames([])
    s = state_of(np.zeros((1, 3)), np.zeros(1, int), np.eye(3) * 9)
    with pytest.raises(ObserverError, match="none of the pairs Si-O"):
        ClosePairs({("Si", "O"): 2.0}).allocate(s, 0, INFO)
