"""Profiles along the cell: numpy twin, error bars, open and oblique axes."""

import numpy as np
import pytest
from ase import units

from ase_nepcg.md.observers import ObserverError, ObserverInfo, Profile
from ase_nepcg.md.state import make_state

CELL = np.array([[9.0, 0.5, 0], [2.0, 8.0, 1.0], [-1.0, 1.0, 12.0]])
INFO = ObserverInfo(1.0, 1, ("A", "B"))


def new_state(n=40, cell=CELL, pbc=(True, True, True), **keywords):
    zero = np.zeros((n, 3))
    return make_state([zero], [zero], [1.0 + np.arange(n) % 3], [np.arange(n) % 2], [cell], [pbc], **keywords)


def observe(observer, s, frames):
    arrays = observer.allocate(s, 0, INFO)
    for step, (x, v) in enumerate(frames):
        s.x[:], s.v[:] = x, v
        observer.kernel()(s, 0, step, *arrays)
    return observer.results(*arrays)


@pytest.mark.parametrize("axis", ["a", 1, "c"])
def test_equal_to_numpy(rng, axis):
    number = "abc".index(axis) if isinstance(axis, str) else axis
    frozen = np.arange(40) == 7
    s = new_state(frozen=[frozen])
    frames = [(rng.normal(size=(40, 3)) * 20, rng.normal(size=(40, 3)) * ~frozen[:, None]) for _ in range(30)]
    result = observe(Profile(axis, bins=6, quantity="temperature"), s, frames)
    volume = np.linalg.det(CELL)
    fraction = np.array([(x @ np.linalg.inv(CELL))[:, number] % 1 for x, _ in frames])
    twice = np.array([s.m * (v**2).sum(axis=1) for _, v in frames])
    for kind in range(2):
        mine = s.types == kind
        count, mass, moving, kinetic = (
            np.histogram(fraction[:, mine], 6, (0, 1), weights=np.broadcast_to(w, fraction.shape)[:, mine])[0]
            for w in (1.0, s.m, 1.0 - frozen, twice)
        )
        np.testing.assert_allclose(result.number_density[kind], count / 30 * 6 / volume)
        grams = mass / 30 * 6 / volume * units._amu * 1e3 * 1e24
        np.testing.assert_allclose(result.mass_density[kind], grams)
        # three degrees of freedom for each of 39 sites
        np.testing.assert_allclose(result.temperature_K[kind], kinetic / (3 * moving * units.kB))
    np.testing.assert_allclose(result.fraction, (np.arange(6) + 0.5) / 6)
    height = volume / np.linalg.norm(np.cross(CELL[number - 2], CELL[number - 1]))
    np.testing.assert_allclose(result.position_A, result.fraction * height)


def test_temperature_uses_the_degrees_of_freedom_of_the_run(rng):
    s = new_state(n_dof=[117.0])
    v = rng.normal(size=(40, 3))
    result = observe(Profile(0, bins=1, quantity="temperature"), s, [(np.zeros((40, 3)), v)])
    total = (s.m[:, None] * v**2).sum() / (117 * units.kB)
    assert result.temperature_K[:, 0].mean() == pytest.approx(total)


def test_sites_beyond_an_open_end_are_not_counted(rng):
    x = np.zeros((40, 3))
    x[:, 2] = np.linspace(-6, 18, 40)
    cell = np.diag([5.0, 5.0, 12.0])
    result = observe(Profile("c", bins=4), new_state(cell=cell, pbc=(True, True, False)), [(x, x)])
    inside = (x[:, 2] >= 0) & (x[:, 2] < 12)
    assert result.number_density.sum() * 300 / 4 == pytest.approx(inside.sum())
    assert result.temperature_K is None


def test_smallest_negative_fraction_is_in_the_cell():
    x = np.full((40, 3), -1e-18)
    result = observe(Profile("c", bins=4), new_state(cell=np.eye(3)), [(x, x)])
    assert result.number_density.sum() / 4 == pytest.approx(40)


def test_error_bars(rng):
    """Sites that hop between bins, with velocities that last."""
    s, pulls = new_state(60, cell=np.eye(3) * 5), []
    observer = Profile("b", bins=3, quantity="temperature")
    kernel = observer.kernel()
    for _ in range(30):
        arrays = observer.allocate(s, 0, INFO)
        x, v = rng.uniform(0, 5, (60, 3)), rng.normal(size=(60, 3))
        for _ in range(800):
            hop = rng.uniform(size=60) < 0.3
            x[hop], v[hop] = rng.uniform(0, 5, (hop.sum(), 3)), rng.normal(size=(hop.sum(), 3))
            s.x[:], s.v[:] = x, v / np.sqrt(s.m)[:, None]
            kernel(s, 0, 0, *arrays)
        result = observer.results(*arrays)
        pulls.append((result.number_density - 30 / 125) / result.number_density_error)
        pulls.append((result.temperature_K - 1 / units.kB) / result.temperature_error)
    pulls = np.array(pulls).reshape(30, 2, 6)
    for k in range(2):
        assert abs(np.std(pulls[:, k]) - 1) < 0.3
        assert abs(np.mean(pulls[:, k])) < 0.35


def test_bins_without_sites(rng):
    x = np.zeros((40, 3))
    result = observe(Profile("a", bins=5, quantity="temperature"), new_state(cell=np.eye(3) * 4), [(x, x)] * 20)
    assert (result.number_density[:, 1:] == 0).all()
    assert np.isnan(result.temperature_K[:, 1:]).all()
    assert (result.temperature_K[:, 0] == 0).all()


def test_bad_input():
    for arguments, message in (
        ({"axis": "x"}, "axis must be"),
        ({"axis": 3}, "axis must be"),
        ({"axis": True}, "axis must be"),
        ({"axis": 0, "bins": 0}, "bins must be an integer"),
        ({"axis": 0, "quantity": "charge"}, "density, temperature"),
    ):
        with pytest.raises(ObserverError, match=message):
            Profile(**arguments)
    with pytest.raises(ObserverError, match="volume"):
        Profile("c").allocate(new_state(cell=np.diag([1.0, 1.0, 0.0]), pbc=(True, True, False)), 0, INFO)
    with pytest.raises(ObserverError, match="no moving sites"):
        Profile("c", quantity="temperature").allocate(new_state(frozen=[np.ones(40, bool)]), 0, INFO)
