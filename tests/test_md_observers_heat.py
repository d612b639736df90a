"""Heat current against the calculator, its correlations against numpy, Green-Kubo and HNEMD conductivities."""

import numpy as np
import pytest
from ase import units
from ase.md.velocitydistribution import Stationary
from scipy.integrate import trapezoid

from ase_nepcg.md.observers import Conductivity, HeatCurrent, ObserverError, ObserverInfo
from ase_nepcg.md.state import make_state

CELL = np.diag([5.0, 6.0, 7.0])
INFO = ObserverInfo(0.5, 4, ("O", "H"), 250.0, (0.0, 3e-4, 0.0))


def new_state(rng, n=5, cell=CELL):
    s = make_state(
        [np.zeros((n, 3))], [rng.normal(size=(n, 3))], [rng.uniform(1, 9, n)], [np.zeros(n, int)], [cell], [(1, 1, 1)]
    )
    s.energies[:], s.virials[:] = rng.normal(size=n), rng.normal(size=(n, 9))
    return s


def set_current(s, potential, convective):
    """Make the first sites carry these currents; the fourth takes up their momentum."""
    s.v[:], s.virials[:], s.energies[:] = 0.0, 0.0, 0.0
    s.v[:2] = [1.0, 0, 0], [0.0, 1.0, 0]
    s.virials[0, [0, 3, 6]] = potential
    s.energies[:2] = convective[0] - 0.5 * s.m[0], convective[1] - 0.5 * s.m[1]
    s.v[2], s.energies[2] = [0, 0, 1.0], convective[2] - 0.5 * s.m[2]
    s.v[3] = -s.m[:3] / s.m[3]
    s.energies[3] = -0.5 * s.m[3] * s.v[3] @ s.v[3]


def observe(observer, s, currents, info=INFO):
    arrays = observer.allocate(s, 0, info)
    for step, (potential, convective) in enumerate(currents):
        set_current(s, potential, convective)
        observer.kernel()(s, 0, step, *arrays)
    return observer.results(*arrays)


def test_current_is_that_of_the_calculator(atoms, make_calculator, rng):
    calculator = make_calculator()
    atoms.set_velocities(rng.normal(size=(len(atoms), 3)) * 0.05)
    Stationary(atoms, preserve_temperature=False)
    s = make_state(
        [atoms.positions], [atoms.get_velocities()], [atoms.get_masses()], [np.zeros(len(atoms), int)],
        [atoms.cell.array], [atoms.pbc],
    )  # fmt: skip
    s.virials[:] = calculator.get_property("virials", atoms).reshape(-1, 9)
    s.energies[:] = calculator.get_property("energies", atoms)
    observer = HeatCurrent(3)
    assert observer.per_site
    arrays = observer.allocate(s, 0, INFO)
    observer.kernel()(s, 0, 0, *arrays)
    result = observer.results(*arrays)
    current = calculator.get_property("heat_current", atoms)
    np.testing.assert_allclose(result.current, current * units.fs, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(result.acf[:, 0], (current * units.fs) ** 2, rtol=1e-10)
    assert result.samples == 1
    assert np.isnan(result.acf[:, 1:]).all()


def test_motion_of_the_whole_is_no_current(rng):
    one = new_state(rng)
    one.v[:] -= one.m @ one.v / one.m.sum()
    moving = one._replace(v=one.v + np.array([3.0, -2.0, 1.0]))
    frozen = moving._replace(w=np.where(np.arange(5) == 4, 0.0, moving.w))
    found = []
    for s in (one, moving, frozen):
        arrays = HeatCurrent(1).allocate(s, 0, INFO)
        HeatCurrent(1).kernel()(s, 0, 0, *arrays)
        found.append(HeatCurrent(1).results(*arrays).current)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-10)
    assert np.abs(found[2] - found[0]).max() > 0.1 * np.abs(found[0]).max()


@pytest.mark.parametrize(("length", "n"), [(4, 3), (6, 60), (1, 20), (9, 10), (9, 700)])
def test_correlations_equal_numpy(rng, length, n):
    currents = rng.normal(size=(n, 2, 3))
    result = observe(HeatCurrent(length), new_state(rng), currents)
    p, c = currents[:, 0] * units.fs, currents[:, 1] * units.fs
    for lag in range(length + 1):
        if lag >= n:
            assert np.isnan(result.acf[:, lag]).all()
            continue
        early, late = slice(0, n - lag), slice(lag, n)
        parts = [p[early] * p[late], p[early] * c[late] + c[early] * p[late], c[early] * c[late]]
        np.testing.assert_allclose(result.acf_parts[..., lag].T, np.mean(parts, axis=1), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(result.acf[:, lag], np.mean(sum(parts), axis=0), rtol=1e-9, atol=1e-12)
        # W/(m K) from SI: J in eV Å/fs
        integral = trapezoid(result.acf[:, : lag + 1], dx=2e-15, axis=1) * (1.602176634e-19 * 1e-10 / 1e-15) ** 2
        kappa = integral / (1.380649e-23 * 250.0**2 * CELL.diagonal().prod() * 1e-30)
        np.testing.assert_allclose(result.kappa[:, lag], kappa, rtol=1e-6, atol=1e-9 * abs(result.kappa[:, 1]).max())
    np.testing.assert_allclose(result.kappa_parts.sum(axis=1), result.kappa)
    np.testing.assert_allclose(result.kappa_mean, result.kappa.mean(axis=0))
    np.testing.assert_array_equal(result.time_fs, np.arange(length + 1) * 2.0)


def test_green_kubo_error_bars(rng):
    """A current that forgets exponentially: conductivity known, pulls of the error bars."""
    memory, pulls = 0.7, []
    s, observer = new_state(rng), HeatCurrent(15)
    kernel = observer.kernel()
    unit = units.s * units.m / units.J * 2 * units.fs / (units.kB * 250.0**2 * CELL.diagonal().prod())
    for _ in range(40):
        arrays, j = observer.allocate(s, 0, INFO), rng.normal(size=3)
        for noise in rng.normal(size=(1500, 3)) * np.sqrt(1 - memory**2):
            j = memory * j + noise
            set_current(s, j, (0, 0, 0))
            kernel(s, 0, 0, *arrays)
        result = observer.results(*arrays)
        for lag in (1, 5, 15):
            exact = unit * trapezoid(memory ** np.arange(lag + 1.0))
            pulls.append(
                [
                    *((result.kappa[:, lag] - exact) / result.kappa_error[:, lag]),
                    (result.kappa_mean[lag] - exact) / result.kappa_mean_error[lag],
                ]
            )
    pulls = np.array(pulls).reshape(40, 3, 4)
    assert (np.abs(np.std(pulls, axis=0) - 1) < 0.45).all()
    assert abs(np.std(pulls[..., :3]) - 1) < 0.2
    assert abs(np.mean(pulls)) < 0.35


def test_temperature_of_a_run_without_one(rng):
    s = new_state(rng)
    observer = HeatCurrent(2)
    arrays = observer.allocate(s, 0, ObserverInfo(1.0, 1, ("O",)))
    temperatures = []
    for _ in range(5):
        s.v[:] = rng.normal(size=s.v.shape)
        observer.kernel()(s, 0, 0, *arrays)
        temperatures.append((s.m[:, None] * s.v**2).sum() / (15 * units.kB))
    assert observer.results(*arrays).temperature_K == pytest.approx(np.mean(temperatures))


def test_conductivity_of_a_driven_run(rng):
    n = 900
    currents = rng.normal([[0.5, 4.0, 0], [0, 1.0, 0]], size=(n, 2, 3))
    result = observe(Conductivity(), new_state(rng), currents)
    # J in eV Å per ASE time, F in 1/Å, all to SI
    second = 1 / units.s
    si = 1.602176634e-19 * 1e-10 / second / (250.0 * CELL.diagonal().prod() * 1e-30 * 3e-4 * 1e10)
    mean = currents.mean(axis=0) * si
    np.testing.assert_allclose(result.potential, mean[0], rtol=1e-6)
    np.testing.assert_allclose(result.convective, mean[1], rtol=1e-6)
    np.testing.assert_allclose(result.kappa, mean.sum(axis=0), rtol=1e-6)
    assert result.kappa_parallel == pytest.approx(result.kappa[1])
    assert result.kappa_parallel_error == pytest.approx(np.sqrt(2 / n) * si, rel=0.5)
    assert result.kappa_error[2] == pytest.approx(np.sqrt(2 / n) * si, rel=0.5)
    assert abs(result.kappa_parallel - 5 * si) < 4 * result.kappa_parallel_error
    # running averages end with the whole run
    assert result.time_fs[-1] == n * 2.0
    assert (np.diff(result.time_fs) > 0).all()
    steps = (result.time_fs / 2).round().astype(int)
    expected = np.cumsum(currents.sum(axis=1), axis=0)[steps - 1] / steps[:, None] * si
    np.testing.assert_allclose(result.running, expected, rtol=1e-6, atol=1e-9 * si)


def test_field_in_any_direction(rng):
    field = np.array([1e-4, -2e-4, 2e-4])
    info = ObserverInfo(1.0, 1, ("O",), 300.0, tuple(field))
    result = observe(Conductivity(), new_state(rng), [((1.0, 2.0, 3.0), (0, 0, 0))], info)
    unit = units.s * units.m / units.J / (300.0 * CELL.diagonal().prod() * 3e-4)
    assert result.kappa_parallel == pytest.approx(unit * np.dot([1, 2, 3], field) / 3e-4)


def test_bad_input(rng):
    for length in (0, 2.5, "10"):
        with pytest.raises(ObserverError, match="length must be an integer"):
            HeatCurrent(length)
    s = new_state(rng)
    for field in (None, (0.0, 0.0, 0.0)):
        with pytest.raises(ObserverError, match="driving force"):
            Conductivity().allocate(s, 0, ObserverInfo(1.0, 1, ("O",), 300.0, field))
    with pytest.raises(ObserverError, match="temperature"):
        Conductivity().allocate(s, 0, ObserverInfo(1.0, 1, ("O",), None, (1e-4, 0, 0)))
    flat = new_state(rng, cell=np.diag([5.0, 6.0, 0.0]))
    for observer in (HeatCurrent(4), Conductivity()):
        with pytest.raises(ObserverError, match="volume"):
            observer.allocate(flat, 0, INFO)
