"""Martyna-Tobias-Klein: one step against numpy, reversibility, conserved energy, distributions, virial theorem."""

import md_twin
import npt_systems as systems
import numba
import numpy as np
import pytest
from ase import units
from scipy.linalg import expm, polar

from ase_nepcg.md.ensembles import mttk
from ase_nepcg.md.ensembles.nose_hoover import half_chain
from ase_nepcg.md.ensembles.npt import NPT

Twin, mean_error = md_twin.Twin, md_twin.mean_error
PAIRS = md_twin.lennard_jones(**systems.PAIR)
H = 4.0 * units.fs
RANKS = {"isotropic": 1, "semi-isotropic": 2, "sheet": 1, "anisotropic": 3, "one axis": 1, "triclinic": 6}


def barostat(temperature, pressure, coupling="isotropic", **more):
    return NPT(temperature, pressure, coupling=coupling, method="mttk", **({"tau_fs": 100.0, "tau_p_fs": 300.0} | more))


@numba.njit
def chain(twice_kinetic, n, kT, tau, h, q):
    return half_chain(twice_kinetic, n, kT, tau, h, q, 0, 3)


def mean_exponential(a):
    """The average of exp(t a) over 0 < t < 1."""
    big = np.zeros((6, 6))
    big[:3, :3], big[:3, 3:] = a, np.eye(3)
    return expm(big)[:3, 3:]


def numpy_run(s, coupling, rests, target, ensemble, rank, steps):
    """Steps in matrices; returns the extended energies less U + K."""
    dof, kT = 3 * len(s.m) - 3, units.kB * ensemble.temperature_K
    m, cell, first = s.m[:, None], s.cell[0], s.cell[0].copy()
    tau, tau_p = ensemble.tau_fs * units.fs, ensemble.tau_p_fs * units.fs
    mass, share = (dof + 3) * kT * tau_p**2 / 3, (3 * len(s.m) + 3 - dof) / (3 * dof)
    ones = systems.projected(np.eye(3), coupling, rests)
    hydro = np.trace(target * ones) / np.trace(ones)
    g, sites, barostat, work, energies = np.zeros((3, 3)), np.zeros(6), np.zeros(6), 0.0, []

    def chains():
        nonlocal g
        g = g * chain(mass * (g**2).sum(), rank, kT, tau_p, H, barostat)
        s.v[:] *= chain((m * s.v**2).sum(), dof, kT, tau, H, sites)

    def kick_rate():
        nonlocal g
        kinetic = (m * s.v).T @ s.v
        force = kinetic + s.virial[0] - np.linalg.det(cell) * target + share * np.trace(kinetic) * np.eye(3)
        g = g + 0.5 * H / mass * systems.projected(0.5 * (force + force.T), coupling, rests)

    def kick():
        b = -0.5 * H * (g + share * np.trace(g) * np.eye(3))
        s.v[:] = s.v @ expm(b) + 0.5 * H * s.f / m @ mean_exponential(b)

    for _ in range(steps):
        chains()
        kick_rate()
        kick()
        before = np.linalg.det(cell)
        mean_volume = before * (np.expm1(H * np.trace(g)) / (H * np.trace(g)))
        rate = g
        s.x[:] = s.x @ expm(H * g) + H * s.v @ mean_exponential(H * g)
        cell[:] = np.where(s.pbc[0][:, None], cell @ expm(H * g), cell)
        if coupling == "triclinic":
            q, _ = polar(np.linalg.solve(first, cell).T)
            s.x[:], s.v[:], cell[:], g = s.x @ q, s.v @ q, cell @ q, q.T @ g @ q
        traceless = systems.projected(target, coupling, rests) - hydro * ones
        work += H * mean_volume * (traceless * 0.5 * (rate + g)).sum()
        PAIRS(s)
        kick()
        kick_rate()
        chains()
        energy = hydro * np.linalg.det(cell) + work + 0.5 * mass * (g**2).sum()
        for state, n, time in ((sites, dof, tau), (barostat, rank, tau_p)):
            weights = np.array([n, 1, 1])
            energy += kT * (weights * (state[:3] + 0.5 * time**2 * state[3:] ** 2)).sum()
        energies.append(energy)
    return np.array(energies)


@pytest.mark.parametrize("case", systems.CASES)
def test_steps_equal_numpy(case):
    coupling, pressure, rests = systems.CASES[case]
    state, target = systems.case_state(case)
    first = state.cell[0].copy()
    ensemble = barostat(systems.case_temperature(case), pressure, coupling)
    twin = Twin(ensemble, state, PAIRS, H)
    other = md_twin.copy_state(state)
    record = twin.run(5)
    energies = numpy_run(other, coupling, rests, target, ensemble, RANKS[case], 5)
    assert np.abs(state.x - other.x).max() < 1e-12
    assert np.abs(state.v - other.v).max() < 1e-13
    assert np.abs(state.cell - other.cell).max() < 1e-12
    assert not np.array_equal(state.cell[0], first)
    assert np.allclose((record.conserved - record.potential - record.kinetic)[:, 0], energies, rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", ["sheet", "anisotropic", "triclinic"])
def test_time_reversal(case):
    coupling, pressure, _ = systems.CASES[case]
    state, _ = systems.case_state(case)
    twin = Twin(barostat(systems.case_temperature(case), pressure, coupling), state, PAIRS, H)
    begin = md_twin.copy_state(state)

    def turn():
        state.v[:] *= -1
        rates = [mttk.RATE + k for k in range(6)]
        rates += [at + mttk.LENGTH + k for at in (mttk.CHAIN, mttk.BAROSTAT_CHAIN) for k in range(mttk.LENGTH)]
        twin.q[:, rates] *= -1

    twin.run(100)
    assert np.abs(state.cell - begin.cell).max() > 0.02
    turn()
    twin.run(100)
    turn()
    assert np.abs(state.cell - begin.cell).max() < 1e-9
    assert np.abs(state.x - begin.x).max() < 1e-8
    assert np.abs(state.v - begin.v).max() < 1e-8
    assert np.abs(twin.q[:, 9:]).max() < 1e-8


@pytest.mark.parametrize("case", systems.CASES)
def test_extended_energy_is_conserved_to_second_order(case):
    coupling, pressure, _ = systems.CASES[case]
    spreads = []
    for h in (1.0, 2.0, 4.0):
        state, _ = systems.case_state(case)
        record = Twin(barostat(systems.case_temperature(case), pressure, coupling), state, PAIRS, h * units.fs).run(
            int(800 / h)
        )
        spreads.append(np.ptp(record.conserved))
        assert spreads[-1] < 0.1 * np.ptp(record.potential)
    assert 3.0 < spreads[1] / spreads[0] < 5.0
    assert 3.0 < spreads[2] / spreads[1] < 5.0


def test_no_drift_of_the_extended_energy():
    state = systems.crystal(30.0)
    record = Twin(barostat(30.0, 0.1, "triclinic"), state, PAIRS, H).run(12000)
    halves = record.conserved[:, 0].reshape(2, -1).mean(axis=1)
    assert abs(halves[1] - halves[0]) < 0.1 * units.kB * 30.0
    assert np.ptp(record.conserved) < 3 * units.kB * 30.0


@pytest.mark.parametrize("coupling", ["isotropic", "anisotropic"])
def test_ideal_gas_with_collisions(coupling):
    n, pressure = 12, 0.1
    volume = (n + 1) * units.kB * 300.0 / (pressure * units.GPa)
    state = systems.gas(n, 300.0, volume, range(1, 65))
    ensemble = barostat(300.0, pressure, coupling, tau_p_fs=200.0, tau_fs=60.0)
    record = Twin(ensemble, state, systems.collisions, H).run(6000)
    mean, mean_se, variance, variance_se = systems.gamma_moments(record, n, pressure, 300.0, 1000)
    assert max(mean_se, 0.2 * variance_se) < 0.01
    assert abs(mean - 1) < 3.5 * mean_se
    assert abs(variance - 1) < 3.5 * variance_se
    kinetic = 2 * record.kinetic[1000:] / (units.kB * 300.0)
    assert kinetic.mean() == pytest.approx(3 * n - 3, rel=0.01)
    assert kinetic.var() == pytest.approx(2 * (3 * n - 3), rel=0.15)


@pytest.mark.parametrize("case", systems.CASES)
def test_mean_pressure_of_a_crystal_is_the_target(case):
    coupling, pressure, rests = systems.CASES[case]
    state, target = systems.case_state(case, (1, 2))
    # one chain for all strains of a small, nearly harmonic crystal is ergodic only if the barostat is slow
    ensemble = barostat(systems.case_temperature(case), pressure, coupling, tau_p_fs=1000.0)
    twin = Twin(ensemble, state, PAIRS, H)
    before, temperature = state.cell.copy(), systems.case_temperature(case)
    twin.run(2000)
    record, tensors = twin.run(
        8000,
        lambda s: (
            systems.pressure_tensor(s)
            + np.eye(3) * units.kB * temperature / (abs(np.linalg.det(s.cell))[:, None, None] * units.GPa)
        ),
        5,
    )
    mean, error = mean_error(tensors.mean(axis=1))
    difference = systems.projected(mean - target / units.GPa, coupling, rests)
    allowed = systems.projected(error, coupling, rests)
    assert np.all(np.abs(difference) < 4 * allowed + 1e-12)
    assert allowed.max() < 0.01
    sampled, error = mean_error((2 * record.kinetic / (units.kB * twin.state.n_dof)).mean(axis=1))
    assert abs(sampled - temperature) < 4 * error + 0.1
    for r in range(2):
        stretch = np.linalg.solve(before[r], state.cell[r])
        # symmetric: no rotation; what is not coupled has not changed
        assert np.abs(stretch - stretch.T).max() < 1e-10
        assert np.abs(stretch - np.eye(3) - systems.projected(stretch - np.eye(3), coupling, rests)).max() < 1e-10


def test_two_pressures():
    """ln of the ratio of the histograms of the volume is linear with slope (P2 - P1)/kT."""
    volumes = []
    for pressure in (0.0, 0.1):
        state = systems.crystal(40.0, range(1, 5))
        twin = Twin(barostat(40.0, pressure), state, PAIRS, H)
        twin.run(1500)
        volumes.append(twin.run(12000).volume[::10].T.reshape(8, -1))
    slope, error = systems.log_ratio_slope(*volumes[::-1])
    expected = 0.1 * units.GPa / (units.kB * 40.0)
    assert error < 0.15 * expected
    assert abs(slope - expected) < 3.5 * error


def test_split_and_batch():
    def run(seeds, blocks):
        state = systems.crystal(30.0, seeds)
        twin = Twin([barostat(30.0 + seed, 0.1 * seed, "triclinic") for seed in seeds], state, PAIRS, H)
        for steps in blocks:
            twin.run(steps)
            twin = twin.copy()
        return twin

    a, b = run((1, 2, 3), (40,)), run((1, 2, 3), (13, 27))
    for first, second in zip((*a.state, a.q), (*b.state, b.q), strict=True):
        assert np.array_equal(first, second)
    single = run((2,), (40,))
    assert np.array_equal(single.state.x, a.state.x[32:64])
    assert np.array_equal(single.state.cell[0], a.state.cell[1])
    assert np.array_equal(single.q[0], a.q[1])
    assert not np.array_equal(a.state.cell[0], a.state.cell[1])
