"""Displacements and velocity correlations: numpy twins, random walks, oscillators, drift, cells that change."""

import numpy as np
import pytest
from ase import units
from scipy.integrate import trapezoid

from ase_nepcg.md.observers import MSD, VACF, ObserverError, ObserverInfo
from ase_nepcg.md.state import make_state

TYPES = np.array([0, 2, 2, 0, 2, 2, 2, 2, 2, 2, 2, 2, 2])
INFO = ObserverInfo(0.5, 4, ("A", "B", "C"))


def new_state(n=13, types=TYPES, cell=None, pbc=(True, True, True), frozen=None):
    cell = np.eye(3) * 9 if cell is None else cell
    zero = np.zeros((n, 3))
    frozen = None if frozen is None else [frozen]
    return make_state([zero], [zero], [np.arange(1.0, n + 1)], [types], [cell], [pbc], frozen=frozen)


def observe(observer, series, s, info=INFO, what="x"):
    arrays = observer.allocate(s, 0, info)
    kernel = observer.kernel()
    for step, values in enumerate(series):
        getattr(s, what)[:] = values
        kernel(s, 0, step, *arrays)
    return observer.results(*arrays)


def pairs_of_time(series, length, every, function):
    """Average of function(origin, later) over origins, (L+1, ...)."""
    found = [[] for _ in range(length + 1)]
    for origin in range(0, len(series), every):
        for lag in range(min(length, len(series) - 1 - origin) + 1):
            found[lag].append(function(series[origin], series[origin + lag]))
    return np.array([np.mean(values, axis=0) for values in found])


@pytest.mark.parametrize(("length", "every", "n"), [(7, 3, 40), (10, 10, 35), (12, 1, 30), (6, 4, 700)])
def test_equal_to_numpy(rng, length, every, n):
    walk = np.cumsum(rng.normal(size=(n, 13, 3)) * [1.0, 2.0, 3.0], axis=0)
    msd = observe(MSD(length, every, fit=(0, 1)), walk, new_state())
    assert msd.species == ("A", "C")
    np.testing.assert_array_equal(msd.time_fs, np.arange(length + 1) * 2.0)
    twin = pairs_of_time(walk, length, every, lambda a, b: (b - a) ** 2)
    for k, kind in enumerate((0, 2)):
        np.testing.assert_allclose(msd.msd_xyz[k], twin[:, kind == TYPES].mean(axis=1).T, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(msd.msd, msd.msd_xyz.sum(axis=1))
    slope = np.polyfit(msd.time_fs, msd.msd_xyz[1].T, 1)[0]
    np.testing.assert_allclose(msd.diffusion_xyz[1], slope / 2 * 1000, rtol=1e-9)
    np.testing.assert_allclose(msd.diffusion, msd.diffusion_xyz.mean(axis=1))

    speed = rng.normal(size=(n, 13, 3))
    vacf = observe(VACF(length, every), speed, new_state(), what="v")
    twin = pairs_of_time(speed * units.fs, length, every, lambda a, b: a * b)
    for k, kind in enumerate((0, 2)):
        np.testing.assert_allclose(vacf.vacf_xyz[k], twin[:, kind == TYPES].mean(axis=1).T, rtol=1e-10, atol=1e-12)
    integral = [trapezoid(vacf.vacf[1, : k + 1], vacf.time_fs[: k + 1]) for k in range(length + 1)]
    np.testing.assert_allclose(vacf.diffusion[1], np.array(integral) * 1000 / 3, atol=1e-12)


def test_lags_not_seen_yet_are_nan(rng):
    msd = observe(MSD(20, 2), np.cumsum(rng.normal(size=(8, 13, 3)), axis=0), new_state())
    assert np.isfinite(msd.msd[0]).tolist() == [True] * 8 + [False] * 13
    assert np.isnan(msd.diffusion).all()
    assert np.isnan(msd.msd_error).all()


def test_random_walk_diffuses_as_it_should(rng):
    """D of a walk is known; pulls of the error bars over many walks."""
    pulls, observer = [], MSD(20, origins_every=5, fit=(0.2, 1))
    kernel, info, zero = observer.kernel(), ObserverInfo(2.0, 1, ("A",)), np.zeros(10, int)
    exact = 0.3**2 / 2 / 0.002
    for _ in range(40):
        s = new_state(10, zero)
        arrays = observer.allocate(s, 0, info)
        for noise in rng.normal(size=(1500, 10, 3)) * 0.3:
            s.x[:] += noise
            kernel(s, 0, 0, *arrays)
        result = observer.results(*arrays)
        assert result.diffusion[0] == pytest.approx(exact, rel=0.3)
        assert result.diffusion_error[0] < 0.15 * exact
        pulls.append(
            [(result.diffusion[0] - exact) / result.diffusion_error[0]]
            + [(result.msd[0, k] - 3 * k * 0.09) / result.msd_error[0, k] for k in (1, 10, 20)]
        )
    assert result.msd_error[0, 0] == 0
    assert (np.abs(np.std(pulls, axis=0) - 1) < 0.4).all()
    assert (np.abs(np.mean(pulls, axis=0)) < 0.6).all()


def test_ballistic_motion_and_drift(rng):
    v = rng.normal(size=(13, 3))
    series = [v * t for t in range(30)]
    msd = observe(MSD(8, 2), series, new_state())
    np.testing.assert_allclose(msd.msd[0], (v[TYPES == 0] ** 2).sum(axis=1).mean() * np.arange(9) ** 2)
    mass = np.arange(1.0, 14)
    own = v - mass @ v / mass.sum()
    msd = observe(MSD(8, 2, remove_drift=True), series, new_state())
    np.testing.assert_allclose(msd.msd[0], (own[TYPES == 0] ** 2).sum(axis=1).mean() * np.arange(9) ** 2, atol=1e-12)
    vacf = observe(VACF(8, 2, remove_drift=True), [v] * 30, new_state(), what="v")
    np.testing.assert_allclose(vacf.vacf[1], (own[TYPES == 2] ** 2).sum(axis=1).mean() * units.fs**2)


def test_oscillator(rng):
    omega, phases = 0.05, rng.uniform(0, 2 * np.pi, (13, 3))
    t = np.arange(3000)[:, None, None] * 2.0
    vacf = observe(VACF(80, 1), np.cos(omega * t + phases) / units.fs, new_state(), what="v")
    expected = 1.5 * np.cos(omega * vacf.time_fs)
    np.testing.assert_allclose(vacf.vacf, [expected, expected], atol=0.03)
    integral = 1000 * np.sin(omega * vacf.time_fs) / (2 * omega)
    np.testing.assert_allclose(vacf.diffusion[1], integral, atol=0.03 * 1000 / omega)


def test_frozen_sites_are_left_out(rng):
    frozen = np.zeros(13, bool)
    frozen[[0, 5]] = True
    walk = np.cumsum(rng.normal(size=(30, 13, 3)), axis=0)
    msd = observe(MSD(4, 2, fit=(0, 1)), walk, new_state(frozen=frozen))
    twin = pairs_of_time(walk, 4, 2, lambda a, b: ((b - a) ** 2).sum(axis=1))
    np.testing.assert_allclose(msd.msd[0], twin[:, 3])
    with pytest.raises(ObserverError, match="frozen"):
        MSD(4, 2).allocate(new_state(frozen=np.ones(13, bool)), 0, INFO)


@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True)])
def test_affine_motion_is_no_diffusion(rng, pbc):
    cell = np.array([[9.0, 0, 0], [2, 8, 0], [0, 1, 7]])
    s = new_state(cell=cell, pbc=pbc)
    home = rng.uniform(-30, 30, (13, 3))
    observer = MSD(5, 1)
    arrays = observer.allocate(s, 0, INFO)
    for step in range(12):
        strain = np.eye(3) + 0.03 * step * np.array([[1, 0.2, 0.1], [0, -1, 0.4], [0, 0, 0.5]])
        if not all(pbc):
            # the open direction is not stretched
            strain = np.diag([1 + 0.03 * step, 1, 1 - 0.01 * step])
            s.cell[0] = np.diag([9.0, 0, 7.0])
        else:
            s.cell[0] = cell
        s.cell[0], s.x[:] = s.cell[0] @ strain, home @ strain
        observer.kernel()(s, 0, step, *arrays)
    np.testing.assert_allclose(observer.results(*arrays).msd, 0, atol=1e-24)


def test_bad_input():
    for kind in (MSD, VACF):
        for arguments, message in (
            ({"length": 0}, "length must be an integer of at least 1, got 0"),
            ({"length": 5.0}, "length"),
            ({"length": 20, "origins_every": 0}, "origins_every"),
            ({"length": 5, "origins_every": 6}, "must not exceed length"),
            ({"length": 50, "remove_drift": 1}, "remove_drift"),
        ):
            with pytest.raises(ObserverError, match=message):
                kind(**arguments)
    for fit in ((0.5, 0.5), (0.2, 1.5), 3, ("a", "b"), (0.9, 0.95)):
        with pytest.raises(ObserverError, match="fit must be"):
            MSD(10, 1, fit=fit)
