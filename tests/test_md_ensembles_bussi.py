"""ase_nepcg.md.ensembles.bussi: gamma variates, the factor, canonical with the right degrees of freedom."""

import json
import math

import md_twin
import numba
import numpy as np
import pytest
from ase import units
from scipy import stats

from ase_nepcg.md.ensembles.base import EnsembleError
from ase_nepcg.md.ensembles.bussi import Bussi, bussi_factor, gamma_variate
from ase_nepcg.md.noise import normals

FS = units.fs
CRYSTAL = md_twin.lennard_jones(epsilon=0.1)


@numba.njit
def draw_gammas(shape, seed, out):
    for n in range(len(out)):
        out[n] = gamma_variate(shape, seed, n, 1)


@numba.njit
def draw_factors(kinetic, n_dof, kT, c, seed, first, gammas, factors):
    for n in range(len(first)):
        first[n] = normals(seed, n, 0, 1)[0]
        gammas[n] = gamma_variate(0.5 * (n_dof - 1.0), seed, n, 1) if n_dof > 1.0 else 0.0
        factors[n] = bussi_factor(kinetic, n_dof, kT, c, seed, n)


@pytest.mark.parametrize("shape", [0.5, 1.0, 1.5, 4.0, 46.0, 5e5])
def test_gamma_variates(shape):
    values = np.empty(40000)
    draw_gammas(shape, 17, values)
    assert stats.kstest(values, stats.gamma(shape).cdf).pvalue > 1e-3
    n, variance = len(values), shape
    assert abs(values.mean() - shape) < 4 * math.sqrt(variance / n)
    # the fourth central moment is 3 a^2 + 6 a
    assert abs(values.var() - variance) < 4 * math.sqrt((2 * shape**2 + 6 * shape) / n)
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 4 / math.sqrt(n)


@pytest.mark.parametrize("n_dof", [1.0, 2.0, 7.0, 93.0])
@pytest.mark.parametrize("c", [0.99, 0.3, 0.0])
def test_factor_is_that_of_the_paper(n_dof, c):
    kinetic, kT = 0.7, 0.05
    first, gammas, factors = np.empty((3, 20000))
    draw_factors(kinetic, n_dof, kT, c, 5, first, gammas, factors)
    target = 0.5 * n_dof * kT
    # equations A7 and A8
    ratio = target / (n_dof * kinetic)
    square = c + ratio * (1 - c) * (first**2 + 2 * gammas) + 2 * first * np.sqrt(c * ratio * (1 - c))
    np.testing.assert_allclose(factors**2, square, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(np.sign(factors), np.sign(first + np.sqrt(c / (ratio * (1 - c)))))
    assert abs(np.corrcoef(first, gammas)[0, 1]) < 4 / math.sqrt(len(first)) if n_dof > 1 else np.all(gammas == 0)
    # mean of the new kinetic energy
    new = factors**2 * kinetic
    error = new.std() / math.sqrt(len(new))
    assert abs(new.mean() - (c * kinetic + (1 - c) * target)) < 4 * error


def test_factor_can_reverse_velocities():
    first, gammas, factors = np.empty((3, 20000))
    draw_factors(0.7, 3.0, 0.05, 0.001, 5, first, gammas, factors)
    assert 0.1 < (factors < 0).mean() < 0.5


def test_nothing_moves_nothing_is_scaled():
    first, gammas, factors = np.empty((3, 3))
    draw_factors(0.0, 9.0, 0.05, 0.9, 5, first, gammas, factors)
    assert np.all(factors == 1)


def test_steps_are_velocity_verlet_and_one_factor():
    h, group = 3 * FS, [0, 1, 5]
    state = md_twin.oscillators(seeds=(9,), groups=[group])
    twin = md_twin.Twin(Bussi(300.0, 30.0), state, md_twin.wells(1.5), h)
    x, v, m, heat = state.x.copy(), state.v.copy(), state.m[:, None], 0.0
    first, gammas, factors = np.empty((3, 4))

    def kick():
        nonlocal v
        v = v - 0.5 * h * 1.5 * x / m
        v[group] -= np.average(v[group], axis=0, weights=state.m[group])

    for step in (1, 2, 3):
        twin.run(1)
        kick()
        x += h * v
        kick()
        kinetic = 0.5 * (m * v**2).sum()
        draw_factors(kinetic, 27.0, 300 * units.kB, math.exp(-3 / 30), 9, first, gammas, factors)
        v *= factors[step]
        heat += (factors[step] ** 2 - 1) * kinetic
        np.testing.assert_allclose(state.x, x, rtol=0, atol=1e-13)
        np.testing.assert_allclose(state.v, v, rtol=0, atol=1e-13)
        assert twin.q[0, 0] == pytest.approx(heat, abs=1e-13)


def test_kinetic_energy_is_canonical():
    state = md_twin.argon(missing=(1,))
    twin = md_twin.Twin(Bussi(300.0, 40.0), state, CRYSTAL, 4 * FS)
    twin.run(500)
    record = twin.run(16000)
    kT, n = 300 * units.kB, 3 * 31 - 3
    assert state.n_dof[0] == n
    kinetic = record.kinetic[:, 0]
    mean, error = md_twin.mean_error(kinetic)
    assert abs(mean - n / 2 * kT) < 4 * error
    assert error < 0.01 * mean
    variance, error = md_twin.mean_error((kinetic - n / 2 * kT) ** 2)
    assert abs(variance - n / 2 * kT**2) < 4 * error
    assert error < 0.1 * variance
    assert stats.kstest(kinetic[::100], stats.gamma(n / 2, scale=kT).cdf).pvalue > 1e-3
    # no flying ice cube
    assert np.abs(state.m @ state.v).max() < 1e-10
    # 64 ps
    conserved = record.conserved[:, 0]
    assert np.ptp(conserved) < 0.02
    assert abs(np.polyfit(np.linspace(0, 1, len(conserved)), conserved, 1)[0]) < 2e-3


def test_held_and_frozen_sites():
    """K is canonical with 30 - 3 - 3 degrees of freedom, and centres stay where they are."""
    state = md_twin.oscillators(frozen=(2,), groups=[(0, 1, 5)])
    held, frozen = state.held.copy(), state.x[2].copy()
    twin = md_twin.Twin(Bussi(300.0, 10.0), state, md_twin.wells(1.5), 4 * FS)
    assert state.n_dof[0] == 24
    kinetic = twin.run(40000).kinetic[:, 0]
    kT = 300 * units.kB
    mean, error = md_twin.mean_error(kinetic)
    assert abs(mean - 12 * kT) < 4 * error
    assert error < 0.01 * mean
    variance, error = md_twin.mean_error((kinetic - 12 * kT) ** 2)
    assert abs(variance - 12 * kT**2) < 4 * error
    np.testing.assert_array_equal(state.x[2], frozen)
    np.testing.assert_allclose(np.average(state.x[[0, 1, 5]], axis=0, weights=state.m[[0, 1, 5]]), held[0], atol=1e-12)
    np.testing.assert_allclose(state.m[[0, 1, 5]] @ state.v[[0, 1, 5]], 0, atol=1e-12)


def test_conserved_to_second_order():
    coarse, fine, ratio = md_twin.order_of(
        Bussi(300.0, 200.0), lambda: md_twin.argon(kT=0.025), CRYSTAL, 8 * FS, 4000 * FS
    )
    assert 3 < ratio < 5
    assert fine < coarse < 0.01


def test_reproducible():
    def build(seeds, numbers):
        return md_twin.argon(seeds, missing=numbers)

    md_twin.assert_reproducible([Bussi(200.0 + 100 * k, 50.0) for k in range(3)], build, CRYSTAL, 4 * FS)


@pytest.mark.parametrize("values", [(0, 100), (300, 0), (-1.0, 100), (300, np.inf), ("300", 100), (300, None)])
def test_refuses(values):
    with pytest.raises(EnsembleError, match=r"Bussi: (temperature_K|tau_fs) must be a positive number, got"):
        Bussi(*values)


@pytest.mark.parametrize("state", [md_twin.oscillators(frozen=range(10)), md_twin.oscillators(sizes=[1])])
def test_refuses_where_nothing_moves(state):
    with pytest.raises(EnsembleError, match="Bussi keeps a temperature, but no degrees of freedom are left"):
        md_twin.Twin(Bussi(300.0, 100.0), state, CRYSTAL, 1.0)


def test_todict():
    ensemble = Bussi(300, np.float64(100))
    given = json.loads(json.dumps(ensemble.todict()))
    assert given == {"name": "bussi", "temperature_K": 300.0, "tau_fs": 100.0}
    assert Bussi(given["temperature_K"], given["tau_fs"]) == ensemble
    assert ensemble.temperature == 300.0
