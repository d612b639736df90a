"""ase_nepcg.md.ensembles.nose_hoover: against plain Python and an ODE solver, reversible, canonical."""

import json
import math

import md_twin
import numba
import numpy as np
import pytest
from ase import units
from scipy import stats
from scipy.integrate import solve_ivp

from ase_nepcg.md.ensembles.base import EnsembleError
from ase_nepcg.md.ensembles.nose_hoover import NoseHoover, chain_energy, half_chain

FS = units.fs
CRYSTAL = md_twin.lennard_jones(epsilon=0.1)
KT, TAU = 0.025, 30.0 * FS


@numba.njit
def compiled_half(twice_kinetic, n_dof, kT, tau, h, q, at, length):
    return half_chain(twice_kinetic, n_dof, kT, tau, h, q, at, length)


@numba.njit
def compiled_energy(n_dof, kT, tau, q, at, length):
    return chain_energy(n_dof, kT, tau, q, at, length)


def plain_half(twice_kinetic, n_dof, kT, tau, h, xi, eta):
    """Half a step as Martyna et al. (1996) write it, with masses."""
    length = len(xi)
    masses = kT * tau**2 * np.array([n_dof] + [1.0] * (length - 1))
    outer = 1 / (2 - 2 ** (1 / 3))
    factor = 1.0
    for _ in range(2):
        for weight in (outer, 1 - 2 * outer, outer):
            d = weight * h / 2

            def force(k, factor=factor):
                source = twice_kinetic * factor**2 - n_dof * kT if k == 0 else masses[k - 1] * eta[k - 1] ** 2 - kT
                return source / masses[k]

            eta[-1] += force(length - 1) * d / 4
            for k in range(length - 2, -1, -1):
                eta[k] *= math.exp(-d / 8 * eta[k + 1])
                eta[k] += force(k) * d / 4
                eta[k] *= math.exp(-d / 8 * eta[k + 1])
            factor *= math.exp(-d / 2 * eta[0])
            xi += d / 2 * eta
            for k in range(length - 1):
                eta[k] *= math.exp(-d / 8 * eta[k + 1])
                eta[k] += force(k, factor) * d / 4
                eta[k] *= math.exp(-d / 8 * eta[k + 1])
            eta[-1] += force(length - 1) * d / 4
    return factor


@pytest.mark.parametrize("length", [2, 3, 10])
def test_half_chain_against_plain_python(length):
    draw = np.random.default_rng(4)
    q = np.concatenate([[7.0, 8.0], draw.normal(size=length), draw.normal(size=length) / TAU, [9.0]])
    xi, eta = q[2 : 2 + length].copy(), q[2 + length : -1].copy()
    factor = compiled_half(0.9, 27.0, KT, TAU, 4 * FS, q, 2, length)
    expected = plain_half(0.9, 27.0, KT, TAU, 4 * FS, xi, eta)
    assert factor == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(q, [7, 8, *xi, *eta, 9], rtol=1e-11)


def test_half_chain_solves_the_equations():
    """Against an ODE solver: the thermostat alone, acting on the kinetic energy."""
    n_dof, length, h = 9.0, 3, 4 * FS
    start = np.array([0.3, -0.2, 0.1, 0.5 / TAU, -0.7 / TAU, 0.2 / TAU, 0.4])

    def rates(_, y):
        eta, twice = y[3:6], y[6]
        pull = [twice / (n_dof * KT) - 1, n_dof * (eta[0] * TAU) ** 2 - 1, (eta[1] * TAU) ** 2 - 1]
        change = np.array(pull) / TAU**2
        change[:2] -= eta[:2] * eta[1:]
        return [*eta, *change, -2 * eta[0] * twice]

    exact = solve_ivp(rates, (0, h / 2), start, rtol=1e-12, atol=1e-14).y[:, -1]
    errors = []
    for pieces in (1, 2):
        q, twice = start[:6].copy(), start[6]
        for _ in range(pieces):
            twice *= compiled_half(twice, n_dof, KT, TAU, h / pieces, q, 0, length) ** 2
        np.testing.assert_allclose([*q, twice], exact, rtol=1e-5, atol=1e-7)
        errors.append(np.abs(q - exact[:6]).max())
    # fourth order
    assert 12 < errors[0] / errors[1] < 20


def test_kinetic_energy_is_canonical():
    state = md_twin.argon(missing=(1,))
    twin = md_twin.Twin(NoseHoover(300.0, 60.0), state, CRYSTAL, 4 * FS)
    twin.run(1000)
    record, v = twin.run(16000, sample=lambda s: s.v, interval=10)
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
    # equipartition between light and heavy sites; the total momentum takes m/M of a site's share
    share = 1 - state.m / state.m.sum()
    for mass in (20.0, 40.0):
        sites = state.m == mass
        mean, error = md_twin.mean_error((mass * v[:, sites] ** 2 / share[sites, None]).mean(axis=(1, 2)))
        assert abs(mean - kT) < 4 * error
    assert np.abs(state.m @ state.v).max() < 1e-10
    conserved = record.conserved[:, 0]
    assert np.ptp(conserved) < 0.02
    assert abs(np.polyfit(np.linspace(0, 1, len(conserved)), conserved, 1)[0]) < 6e-3


def test_conserved_is_that_of_the_paper():
    state = md_twin.argon()
    ensemble = NoseHoover(300.0, 60.0, chain=4)
    twin = md_twin.Twin(ensemble, state, CRYSTAL, 4 * FS)
    record = twin.run(300)
    kT, tau, n = 300 * units.kB, 60 * FS, state.n_dof[0]
    xi, eta = twin.q[0, :4], twin.q[0, 4:]
    masses = kT * tau**2 * np.array([n, 1, 1, 1])
    chain = (masses * eta**2).sum() / 2 + n * kT * xi[0] + kT * xi[1:].sum()
    assert abs(chain) > 0.01
    total = record.potential[-1, 0] + record.kinetic[-1, 0] + chain
    assert record.conserved[-1, 0] == pytest.approx(total, abs=1e-12)
    assert compiled_energy(n, kT, tau, twin.q[0], 0, 4) == pytest.approx(chain, abs=1e-13)


def test_conserved_to_second_order():
    coarse, fine, ratio = md_twin.order_of(
        NoseHoover(300.0, 100.0), lambda: md_twin.argon(kT=0.025), CRYSTAL, 8 * FS, 2000 * FS
    )
    assert 3.5 < ratio < 4.5
    assert fine < coarse < 0.01


@pytest.mark.parametrize("chain", [2, 5])
def test_is_reversible(chain):
    # a chain far from equilibrium forgets: its damping loses the digits that a way back needs
    state = md_twin.argon(kT=0.026)
    twin = md_twin.Twin(NoseHoover(300.0, 100.0, chain), state, CRYSTAL, 2 * FS)
    x, v = state.x.copy(), state.v.copy()
    twin.run(100)
    assert twin.q.shape == (1, 2 * chain)
    assert np.abs(twin.q).min() > 1e-3
    state.v[:] *= -1
    twin.q[0, chain:] *= -1
    twin.run(100)
    np.testing.assert_allclose(state.x, x, rtol=0, atol=1e-9)
    np.testing.assert_allclose(state.v, -v, rtol=0, atol=1e-9)
    np.testing.assert_allclose(twin.q, 0, atol=1e-9)


def test_held_and_frozen_sites():
    """30 - 3 - 3 degrees of freedom; centres stay where they are; what is conserved is."""
    state = md_twin.oscillators(frozen=(2,), groups=[(0, 1, 5)])
    held, frozen = state.held.copy(), state.x[2].copy()
    twin = md_twin.Twin(NoseHoover(300.0, 50.0), state, md_twin.wells(1.5), 2 * FS)
    assert state.n_dof[0] == 24
    record = twin.run(20000)
    mean, error = md_twin.mean_error(record.kinetic[:, 0])
    assert abs(mean - 12 * 300 * units.kB) < 4 * error
    assert error < 0.01 * mean
    assert np.ptp(record.conserved) < 5e-3 * mean
    np.testing.assert_array_equal(state.x[2], frozen)
    np.testing.assert_allclose(np.average(state.x[[0, 1, 5]], axis=0, weights=state.m[[0, 1, 5]]), held[0], atol=1e-12)
    np.testing.assert_allclose(state.m[[0, 1, 5]] @ state.v[[0, 1, 5]], 0, atol=1e-12)


def test_reproducible():
    def build(seeds, numbers):
        return md_twin.argon(seeds, missing=numbers)

    ensembles = [NoseHoover(200.0 + 100 * k, 50.0, chain=4) for k in range(3)]
    md_twin.assert_reproducible(ensembles, build, CRYSTAL, 4 * FS, random=False)


@pytest.mark.parametrize("values", [(0, 100), (300, 0), (-1.0, 100), (300, np.inf), ("300", 100), (300, None)])
def test_refuses(values):
    with pytest.raises(EnsembleError, match=r"NoseHoover: (temperature_K|tau_fs) must be a positive number, got"):
        NoseHoover(*values)


@pytest.mark.parametrize("chain", [1, 11, 2.0, True, "3", None])
def test_refuses_chains(chain):
    with pytest.raises(EnsembleError, match="NoseHoover: chain must be a whole number of thermostats from 2 to 10"):
        NoseHoover(300.0, 100.0, chain)


def test_refuses_where_nothing_moves():
    with pytest.raises(EnsembleError, match="NoseHoover keeps a temperature, but no degrees of freedom are left"):
        md_twin.Twin(NoseHoover(300.0, 100.0), md_twin.oscillators(frozen=range(10)), CRYSTAL, 1.0)


def test_todict():
    ensemble = NoseHoover(300, 100, np.int64(4))
    given = json.loads(json.dumps(ensemble.todict()))
    assert given == {"name": "nose_hoover", "temperature_K": 300.0, "tau_fs": 100.0, "chain": 4}
    assert NoseHoover(given["temperature_K"], given["tau_fs"], given["chain"]) == ensemble
    assert ensemble.temperature == 300.0
    assert ensemble.n_state == len(ensemble.initial(None)) == 8
