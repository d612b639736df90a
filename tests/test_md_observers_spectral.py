"""Virial-velocity correlations against numpy and of driven runs, the rule for their integral, made-up vibrations."""

import md_physics as physics
import md_runs as runs
import numpy as np
import pytest
from ase import units
from scipy.integrate import trapezoid

from ase_nepcg import MD
from ase_nepcg.md import HNEMD
from ase_nepcg.md.observers import Conductivity, ObserverError, ObserverInfo, SpectralHeatCurrent
from ase_nepcg.md.observers.spectral import spectrum_of
from ase_nepcg.md.state import make_state

CELL = np.diag([5.0, 6.0, 7.0])
INFO = ObserverInfo(0.5, 4, ("O", "H"), 250.0, (0.0, 3e-4, 0.0))
# eV Å/fs and 1/Å to W/(m K)
SI = 1.602176634e-19 * 1e-10 / 1e-15 / (250.0 * CELL.diagonal().prod() * 1e-30 * 3e-4 * 1e10)


def new_state(rng, n=13, cell=CELL, masses=None):
    masses = rng.uniform(1, 9, n) if masses is None else masses
    return make_state([np.zeros((n, 3))], [rng.normal(size=(n, 3))], [masses], [np.zeros(n, int)], [cell], [(1, 1, 1)])


def observe(observer, s, series, info=INFO):
    """``series``: velocities in Å/fs (N, 3) and virials (N, 3, 3) of each sample."""
    arrays, kernel = observer.allocate(s, 0, info), observer.kernel()
    for step, (velocities, virials) in enumerate(series):
        s.v[:], s.virials[:] = velocities / units.fs, virials.reshape(-1, 9)
        kernel(s, 0, step, *arrays)
    return observer.results(*arrays)


def correlation_of(series, masses, axis, lags, every=1):
    """K(-L ... L) site by site; NaN where no pair of samples is so far apart."""
    found = [[] for _ in range(2 * lags + 1)]
    own = [v - masses @ v / masses.sum() for v, _ in series]
    for one, (_, virials) in enumerate(series):
        for other, velocities in enumerate(own):
            # the earlier of both is an origin
            if abs(other - one) <= lags and min(one, other) % every == 0:
                found[lags + other - one].append(sum(virials[i, axis] @ velocities[i] for i in range(len(masses))))
    return np.array([np.mean(values) if values else np.nan for values in found])


@pytest.mark.parametrize(("axis", "lags", "every", "n"), [("y", 5, 1, 30), ("x", 6, 3, 40), ("z", 9, 4, 7)])
def test_correlation_equals_numpy(rng, axis, lags, every, n):
    s, a = new_state(rng), "xyz".index(axis)
    field = [0.0, 0.0, 0.0]
    field[a] = 3e-4
    info = ObserverInfo(0.5, 4, ("O",), 250.0, tuple(field))
    series = [(rng.normal(size=(13, 3)), rng.normal(size=(13, 3, 3))) for _ in range(n)]
    result = observe(SpectralHeatCurrent(axis, lags, every), s, series, info)
    twin = correlation_of(series, s.m, a, lags, every)
    np.testing.assert_allclose(result.correlation, twin, rtol=1e-10, atol=1e-12)
    assert np.isnan(twin).any() == (n == 7)
    assert np.isnan(result.spectrum).all() == (n == 7)
    assert np.array_equal(result.time_fs, np.arange(-lags, lags + 1) * 2.0)
    assert (result.axis, result.field_per_A, result.samples) == (axis, 3e-4, n)
    assert result.kappa == pytest.approx(twin[lags] * SI, rel=1e-6)
    assert result.volume_A3 == pytest.approx(210.0)


@pytest.mark.parametrize("n", [60, 700])
def test_transform_and_its_integral(rng, n):
    """The definition, as a sum, and the integral over frequencies, for noise of any kind."""
    s, lags = new_state(rng), 8
    series = [(rng.normal(size=(13, 3)), rng.normal(size=(13, 3, 3))) for _ in range(n)]
    result = observe(SpectralHeatCurrent("y", lags), s, series)
    t = np.arange(-lags, lags + 1) * 2e-15
    window = 0.5 * (1 + np.cos(np.pi * np.arange(-lags, lags + 1) / lags))
    expected = [2 * SI * 2e-15 * np.sum(window * np.cos(2e12 * np.pi * f * t) * result.correlation)
                for f in result.frequency_THz]  # fmt: skip
    # per THz
    np.testing.assert_allclose(result.spectrum, np.array(expected) * 1e12, rtol=1e-6, atol=1e-9 * SI)
    np.testing.assert_allclose(result.frequency_THz, np.arange(9) * 1e3 / (2 * 8 * 2.0))
    assert trapezoid(result.spectrum, result.frequency_THz) == pytest.approx(result.kappa, rel=1e-11)
    assert result.kappa == pytest.approx(SI * result.correlation[lags], rel=1e-6)
    header, rows = result.as_table()
    assert rows.shape == (9, len(header))
    assert np.isfinite(result.spectrum_error).all()


def test_field_against_the_axis(rng):
    """Both the current and the field change sign."""
    series = [(rng.normal(size=(13, 3)), rng.normal(size=(13, 3, 3))) for _ in range(20)]
    s = new_state(rng)
    with_it = observe(SpectralHeatCurrent("y", 4), s, series)
    series = [(-v, virials) for v, virials in series]
    against = observe(SpectralHeatCurrent("y", 4), s, series, ObserverInfo(0.5, 4, ("O",), 250.0, (0.0, -3e-4, 0.0)))
    np.testing.assert_allclose(against.spectrum, with_it.spectrum, rtol=1e-12)


def test_spectrum_of_a_cosine():
    lags, step, line = 40, 0.01, 7
    t = np.arange(-lags, lags + 1) * step
    for odd in (0.0, 3.0):
        frequency, transform = spectrum_of(np.cos(2 * np.pi * line / (2 * lags * step) * t) + odd * np.sin(9 * t), step)
        expected = np.zeros(lags + 1)
        # the window of Hann spreads a line over three
        expected[line - 1 : line + 2] = np.array([0.25, 0.5, 0.25]) / frequency[1]
        np.testing.assert_allclose(2 * transform, expected, atol=1e-13)
    # a narrow function has a broad spectrum
    width = 0.02
    _, transform = spectrum_of(np.exp(-0.5 * (t / width) ** 2), step)
    exact = np.sqrt(2 * np.pi) * width * np.exp(-0.5 * (2 * np.pi * frequency * width) ** 2)
    np.testing.assert_allclose(transform, exact, atol=0.01 * exact[0])


@pytest.mark.parametrize("phase", [0.0, 1.0])
def test_vibrations_that_carry_heat(rng, phase):
    """Sites that vibrate at 62.5 THz, virials that follow by a phase: one line, of known area."""
    n, lags, samples = 16, 40, 400
    turn = 2 * np.pi * np.arange(n)[:, None] / n
    directions = rng.normal(size=(3, 3))
    series = []
    for k in range(samples):
        # eight samples of 2 fs per period
        angle = 2 * np.pi * k / 8 + turn
        virials = np.zeros((n, 3, 3))
        virials[:, 1] = np.cos(angle + phase) * directions[0]
        virials[:, 0] = np.cos(angle) * directions[2]
        series.append((np.cos(angle) * directions[1], virials))
    result = observe(SpectralHeatCurrent("y", lags), new_state(rng, n, masses=np.ones(n)), series)
    amplitude = 0.5 * n * directions[0] @ directions[1]
    expected = amplitude * np.cos(2 * np.pi * result.time_fs / 16 - phase)
    np.testing.assert_allclose(result.correlation, expected, atol=1e-10 * abs(amplitude))
    assert result.kappa == pytest.approx(SI * amplitude * np.cos(phase), rel=1e-6)
    peak = np.argmax(np.abs(result.spectrum))
    assert result.frequency_THz[peak] == pytest.approx(62.5)
    assert result.spectrum[peak] == pytest.approx(0.5 * result.kappa / result.frequency_THz[1], rel=1e-9)
    assert result.resolution_THz == pytest.approx(2 * result.frequency_THz[1])
    beyond = np.delete(result.spectrum, [peak - 1, peak, peak + 1])
    np.testing.assert_allclose(beyond, 0, atol=1e-9 * abs(SI * amplitude))


def test_error_bars(rng):
    """Velocities that forget exponentially, virials like them: pulls of everything that has an error."""
    n, memory, lags, pulls = 4, 0.6, 12, []
    s, observer = new_state(rng, n, masses=np.ones(n)), SpectralHeatCurrent("y", lags)
    kernel = observer.kernel()
    # the drift takes one of the n away
    exact = 3 * (n - 1) * units.fs * memory ** np.abs(np.arange(-lags, lags + 1.0))
    spectrum = 2 * SI * spectrum_of(exact, 2e-3)[1]
    for _ in range(60):
        arrays, v = observer.allocate(s, 0, INFO), rng.normal(size=(n, 3))
        for noise in rng.normal(size=(1500, n, 3)) * np.sqrt(1 - memory**2):
            v = memory * v + noise
            s.v[:], s.virials[:, 3:6] = v, v
            kernel(s, 0, 0, *arrays)
        one = observer.results(*arrays)
        pulls.append(
            [
                (one.kappa - SI * exact[lags]) / one.kappa_error,
                *((one.correlation - exact) / one.correlation_error)[[0, 9, 12, 20]],
                *((one.spectrum - spectrum) / one.spectrum_error)[[0, 2, 7, 12]],
            ]
        )
    assert (np.abs(np.std(pulls, axis=0) - 1) < 0.4).all()
    assert (np.abs(np.mean(pulls, axis=0)) < 0.5).all()


# ---- driven runs --------------------------------------------------------------------------------------------------


def driven(seed=0, **settings):
    atoms = physics.heat(physics.crystal(17.0, 2), 200.0, seed)
    return runs.start(HNEMD(200.0, (0.0, 2e-3, 0.0)), atoms=atoms, fs=4.0, seed=seed, **settings)


def test_of_a_run():
    """Correlation of recorded velocities and virials; the integral is what the conductivity's observer has found."""
    md, series = driven(), []
    handle, other = md.attach(SpectralHeatCurrent("y", 7), 2), md.attach(Conductivity(), 2)
    later = md.attach(SpectralHeatCurrent("y", 7, origins_every=3), 2)
    atoms = md.atoms

    def keep():
        virials = atoms.calc.get_property("virials", atoms)
        series.append((atoms.get_velocities() * units.fs, np.array(virials)))

    md.attach(keep, 2)
    md.run(60)
    result = handle.results()
    masses = atoms.get_masses()
    assert result.samples == len(series) == 31
    scale = abs(result.correlation).max()
    twin = correlation_of(series, masses, 1, 7)
    np.testing.assert_allclose(result.correlation, twin, atol=1e-10 * scale)
    np.testing.assert_allclose(later.results().correlation, correlation_of(series, masses, 1, 7, 3), atol=1e-10 * scale)
    assert result.correlation[7] != pytest.approx(result.correlation[8], rel=1e-3)
    assert result.kappa == pytest.approx(other.results().potential[1], rel=1e-10)
    assert trapezoid(result.spectrum, result.frequency_THz) == pytest.approx(result.kappa, rel=1e-10)


def test_same_numbers_after_a_restart_and_in_a_batch(tmp_path):
    observer, names = SpectralHeatCurrent("y", 5, 2), ("ints", "floats")
    alone = [driven(seed) for seed in (0, 1)]
    expected = [md.attach(observer, 3) for md in alone]
    for md in alone:
        md.run(40)
    together = [driven(0), driven(1, checkpoint=tmp_path / "run.npz")]
    handles = [md.attach(observer, 3) for md in together]
    MD.batch(together).run(22)
    together[0].run(18)
    together[1].close()
    again = MD.restart(tmp_path / "run.npz", progress=False)
    again.run(18)
    assert again.handles[0].observer == observer
    for one, other in zip(expected, (handles[0], again.handles[0]), strict=True):
        assert one.results().samples == 14
        for name in names:
            assert np.array_equal(getattr(one, name), getattr(other, name))
    assert not np.array_equal(expected[0].floats, expected[1].floats)


def test_bad_input(rng):
    for axis in ("w", 1, None):
        with pytest.raises(ObserverError, match="axis must be"):
            SpectralHeatCurrent(axis, 10)
    for lags in (1, 2.5, "10"):
        with pytest.raises(ObserverError, match="lags must be an integer of at least 2"):
            SpectralHeatCurrent("x", lags)
    with pytest.raises(ObserverError, match="origins_every must be an integer"):
        SpectralHeatCurrent("x", 10, 0)
    with pytest.raises(ObserverError, match=r"origins_every \(11\) must not exceed lags \(10\)"):
        SpectralHeatCurrent("x", 10, 11)
    s, observer = new_state(rng), SpectralHeatCurrent("x", 4)
    for field in (None, (0.0, 0.0, 0.0), (0.0, 1e-4, 0.0), (1e-4, 1e-4, 0.0)):
        with pytest.raises(ObserverError, match="driving force \\(HNEMD\\) along x only"):
            observer.allocate(s, 0, ObserverInfo(1.0, 1, ("O",), 300.0, field))
    with pytest.raises(ObserverError, match="temperature"):
        observer.allocate(s, 0, ObserverInfo(1.0, 1, ("O",), None, (1e-4, 0, 0)))
    info = ObserverInfo(1.0, 3, ("O",), 300.0, (1e-4, 0, 0))
    with pytest.raises(ObserverError, match="volume"):
        observer.allocate(new_state(rng, cell=np.diag([5.0, 6.0, 0.0])), 0, info)
    with pytest.raises(ObserverError, match=r"no sample yet.*3 steps"):
        observer.results(*observer.allocate(s, 0, info))
