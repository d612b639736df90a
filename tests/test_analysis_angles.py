import itertools

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from ase_nepcg import analysis
from ase_nepcg.analysis import AnalysisError
from ase_nepcg.labels import get_labels, set_labels


def mixture(n_frames=2):
    rng = np.random.default_rng(1)
    cell = np.array([[6.0, 0, 0], [1, 5, 0], [0.5, -1, 6]])
    frames = []
    for _ in range(n_frames):
        atoms = Atoms("Ar20", rng.random((20, 3)) @ cell, cell=cell, pbc=[True, True, False])
        set_labels(atoms, ["A", "B"] * 10)
        frames.append(atoms)
    return frames


def twin(frame, r_max, images=2):
    """All angles of a frame by loops: {(neighbour, centre, neighbour): degrees}, and neighbours of each centre."""
    labels = get_labels(frame).tolist()
    counts = [range(-images, images + 1) if periodic else [0] for periodic in frame.pbc]
    shifts = [np.array(shift) @ frame.cell.array for shift in itertools.product(*counts)]
    found, near = {}, {}
    for i in range(len(frame)):
        around = []
        for j, shift in itertools.product(range(len(frame)), shifts):
            d = frame.positions[j] + shift - frame.positions[i]
            if 0 < np.linalg.norm(d) < r_max[tuple(sorted((labels[i], labels[j])))]:
                around.append((labels[j], d / np.linalg.norm(d)))
        for a, _ in around:
            near[i, a] = near.get((i, a), 0) + 1
        for (a, u), (b, v) in itertools.combinations(around, 2):
            key = (min(a, b), labels[i], max(a, b))
            found.setdefault(key, []).append(np.degrees(np.arccos(np.clip(u @ v, -1, 1))))
    return found, near


CUTOFFS = {("A", "A"): 3.0, ("A", "B"): 2.5, ("B", "B"): 3.5}


def test_equal_to_loops():
    frames = mixture()
    result = analysis.adf(frames, CUTOFFS, 36)
    assert len(result.triplets) == 6
    for k, key in enumerate(result.triplets):
        counts = sum(np.histogram(twin(frame, CUTOFFS)[0].get(key, []), np.linspace(0, 180, 37))[0] for frame in frames)
        np.testing.assert_allclose(result.density[k], counts / counts.sum() / 5.0, atol=1e-12)
        assert result.angles_per_centre[k] == pytest.approx(counts.sum() / (10 * len(frames)))
    assert (result.density.sum(axis=1) * 5.0) == pytest.approx(1.0)


def test_coordination_equal_to_loops():
    frames = mixture()
    result = analysis.coordination(frames, CUTOFFS)
    assert set(result.pairs) == {("A", "A"), ("A", "B"), ("B", "A"), ("B", "B")}
    labels = get_labels(frames[0])
    near = [twin(frame, CUTOFFS)[1] for frame in frames]
    for k, (centre, neighbour) in enumerate(result.pairs):
        numbers = [one.get((i, neighbour), 0) for one in near for i in np.flatnonzero(labels == centre)]
        assert result.mean[k] == pytest.approx(np.mean(numbers))
        expected = np.bincount(numbers, minlength=result.probability.shape[1]) / len(numbers)
        np.testing.assert_allclose(result.probability[k], expected, atol=1e-12)


def test_known_structures():
    water = analysis.adf(molecule("H2O"), {("O", "H"): 1.2}, 180)
    assert water.triplets == (("H", "O", "H"),)
    assert water.angle[np.argmax(water.density[0])] == pytest.approx(104, abs=0.51)
    diamond = analysis.adf(bulk("Si"), 2.5, 18)
    # tetrahedral: 109.47
    assert np.flatnonzero(diamond.density[0]).tolist() == [10]
    assert diamond.angles_per_centre[0] == pytest.approx(6)
    assert analysis.coordination(bulk("Cu"), 3.0).mean[0] == 12


def test_random_directions_have_a_sine_and_right_errors():
    rng = np.random.default_rng(2)
    frames = []
    for _ in range(400):
        u = rng.normal(size=(6, 3))
        u /= np.linalg.norm(u, axis=1)[:, None]
        # a centre with six neighbours that see each other not
        atoms = Atoms("XH6", np.concatenate([np.zeros((1, 3)), u]))
        set_labels(atoms, ["C", *["H"] * 6])
        frames.append(atoms)
    result = analysis.adf(frames, {("C", "H"): 1.5}, 9)
    edges = np.radians(np.linspace(0, 180, 10))
    expected = 0.5 * -np.diff(np.cos(edges)) / 20.0
    pull = (result.density[0] - expected) / result.density_error[0]
    assert np.abs(pull).max() < 4
    assert 0.4 < np.sqrt((pull**2).mean()) < 1.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r_max": -1.0}, "r_max: expected a positive number"),
        ({"r_max": {}}, "at least one pair"),
        ({"r_max": {("A", "C"): 2.0}}, "there is no site 'C'"),
        ({"r_max": {"A": 2.0}}, "expected pairs of labels"),
        ({"r_max": 3.0, "bins": 0}, "bins: expected a positive number"),
        ({"r_max": 3.0, "triplets": [("A", "B")]}, "expected triplets"),
        ({"r_max": 3.0, "triplets": [("A", "B", "C")]}, "there is no site 'C'"),
        ({"r_max": 3.0, "triplets": [("A", "B", "A")] * 2}, "different triplets"),
        ({"r_max": 0.01}, "no site has two neighbours"),
        ({"r_max": 0.01, "triplets": [("A", "B", "A")]}, "there is no angle A-B-A"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(AnalysisError, match=message):
        analysis.adf(mixture(1), **settings)


def test_refusals_of_coordination():
    with pytest.raises(AnalysisError, match="says nothing about B-B"):
        analysis.coordination(mixture(1), {("A", "B"): 3.0}, pairs=[("B", "B")])
    with pytest.raises(AnalysisError, match="r_max: A-B is there twice, with 3 and 2 Å"):
        analysis.coordination(mixture(1), {("A", "B"): 3.0, ("B", "A"): 2.0})
    for pairs in (5, "AB", [5], ["AB"], []):
        with pytest.raises(AnalysisError, match="pairs: expected"):
            analysis.coordination(mixture(1), 3.0, pairs=pairs)
    # may be anything that can be gone through once
    once = analysis.coordination(mixture(1), 3.0, pairs=(pair for pair in [("A", "B")]))
    assert once.pairs == (("A", "B"),)
    for triplets in (5, "ABA", [5], ["ABA"]):
        with pytest.raises(AnalysisError, match="triplets: expected"):
            analysis.adf(mixture(1), 3.0, triplets=triplets)
    with pytest.raises(AnalysisError, match="r_max: expected pairs of labels"):
        analysis.adf(mixture(1), {3: 4.0})
    with pytest.raises(AnalysisError, match="r_max is too large"):
        analysis.coordination(mixture(1), 14.0)
    with pytest.raises(AnalysisError, match="same place"):
        analysis.coordination(Atoms("H2", np.zeros((2, 3))), 1.0)
