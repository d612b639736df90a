"""Stochastic cell rescaling: one step against numpy, exactly solvable cases, virial theorem, effective energy."""

import md_twin
import npt_systems as systems
import numba
import numpy as np
import pytest
from ase import units
from scipy.linalg import expm, polar

from ase_nepcg.md.ensembles.bussi import bussi_factor
from ase_nepcg.md.ensembles.npt import NPT
from ase_nepcg.md.ensembles.scr import MOBILITY
from ase_nepcg.md.ensembles.strain import KT
from ase_nepcg.md.noise import normals

Twin, mean_error = md_twin.Twin, md_twin.mean_error
PAIRS = md_twin.lennard_jones(**systems.PAIR)
H = 4.0 * units.fs


def barostat(temperature, pressure, coupling="isotropic", **more):
    more = {"tau_fs": 100.0, "tau_p_fs": 200.0, "compressibility_per_GPa": 0.2} | more
    return NPT(temperature, pressure, coupling=coupling, **more)


@numba.njit
def noise(seed, step):
    a, b, c, d = normals(seed, step, 0, 2)
    e, f, _, _ = normals(seed, step, 1, 2)
    return a, b, c, d, e, f


@numba.njit
def factor(kinetic, n, kT, c, seed, step):
    return bussi_factor(kinetic, n, kT, c, seed, step)


def numpy_step(s, coupling, rests, target, ensemble, first_cell, step):
    """One step in matrices; returns the change of the effective energy less that of U + K."""
    dof, kT = 3 * len(s.m) - 3, units.kB * ensemble.temperature_K
    m = s.m[:, None]
    mobility = ensemble.compressibility_per_GPa / units.GPa / (3 * ensemble.tau_p_fs * units.fs)
    ones = systems.projected(np.eye(3), coupling, rests)
    axes = np.trace(ones)
    cell = s.cell[0]

    def drifts():
        v = abs(np.linalg.det(cell))
        p = ((m * s.v).T @ s.v + s.virial[0]) / v + kT / v * np.eye(3) - target
        g = systems.projected(0.5 * v * (p + p.T), coupling, rests)
        return v, mobility * H * (axes * kT + 2 * np.trace(g)) / (4 * v**0.5), g - ones * np.trace(g) / axes

    s.v[:] += 0.5 * H * s.f / m
    s.x[:] += 0.5 * H * s.v
    kinetic = 0.5 * (m * s.v**2).sum()
    alpha = factor(kinetic, dof, kT, np.exp(-H / (ensemble.tau_fs * units.fs)), s.seed[0], step)
    s.v[:] *= alpha
    v, push, g = drifts()
    xi = np.array(noise(s.seed[0], step))
    xi[3:] /= np.sqrt(2)
    xi = systems.projected(systems.matrix(xi), coupling, rests)
    along = np.sqrt(axes * kT * mobility * H / 2) * np.trace(xi) / np.sqrt(axes)
    y = v**0.5
    new = y + push + along
    pull = mobility * H * g / (y * new)
    random = np.sqrt(2 * kT * mobility * H / (y * new)) * (xi - ones * np.trace(xi) / axes)
    dev = pull + random
    e = dev + ones * 2 * np.log(new / y) / axes
    s.x[:] = s.x @ expm(e)
    s.v[:] = s.v @ expm(-e)
    cell[:] = np.where(s.pbc[0][:, None], cell @ expm(e), cell)
    before = dev
    if coupling == "triclinic":
        q, _ = polar(np.linalg.solve(first_cell, cell).T)
        s.x[:], s.v[:], cell[:], dev = s.x @ q, s.v @ q, cell @ q, q.T @ dev @ q
    s.x[:] += 0.5 * H * s.v
    PAIRS(s)
    v_new, back, g = drifts()
    hydro = np.trace(target * ones) / np.trace(ones > 0)
    extra = (1 - alpha**2) * kinetic + hydro * (v_new - v) - 1.5 * kT * np.log(v_new / v)
    extra += (
        0.5 * (v + v_new) * ((systems.projected(target, coupling, rests) - hydro * ones) * 0.5 * (before + dev)).sum()
    )
    ahead, behind = along, new - y + back
    extra += kT * (behind**2 - ahead**2) / (axes * kT * mobility * H)
    there, again = random, dev + mobility * H * g / (y * new)
    extra += (y * new) / (4 * mobility * H) * ((again**2).sum() - (there**2).sum())
    s.v[:] += 0.5 * H * s.f / m
    return extra


@pytest.mark.parametrize("case", systems.CASES)
def test_steps_equal_numpy(case):
    coupling, pressure, rests = systems.CASES[case]
    state, target = systems.case_state(case)
    ensemble = barostat(systems.case_temperature(case), pressure, coupling)
    twin = Twin(ensemble, state, PAIRS, H)
    other, first = md_twin.copy_state(state), state.cell[0].copy()
    conserved = None
    for step in (1, 2, 3):
        record = twin.run(1)
        extra = numpy_step(other, coupling, rests, target, ensemble, first, step)
        assert np.abs(state.x - other.x).max() < 1e-12
        assert np.abs(state.v - other.v).max() < 1e-13
        assert np.abs(state.cell - other.cell).max() < 1e-12
        assert not np.array_equal(state.cell[0], first)
        energy = record.conserved[0, 0] - record.potential[0, 0] - record.kinetic[0, 0]
        if conserved is not None:
            assert energy - conserved == pytest.approx(extra, abs=1e-10)
        conserved = energy


def test_ideal_gas_isotropic():
    n, pressure = 12, 0.1
    volume = (n + 1) * units.kB * 300.0 / (pressure * units.GPa)
    state = systems.gas(n, 300.0, volume, range(1, 25))
    ensemble = barostat(300.0, pressure, tau_p_fs=200.0, compressibility_per_GPa=1 / pressure)
    record = Twin(ensemble, state, systems.collisions, H).run(30000)
    mean, mean_se, variance, variance_se = systems.gamma_moments(record, n, pressure, 300.0, 1000)
    assert max(mean_se, 0.2 * variance_se) < 0.005
    assert abs(mean - 1) < 3.5 * mean_se
    assert abs(variance - 1) < 3.5 * variance_se
    # twice the kinetic energy per kT, chi-squared with 3 n - 3 degrees of freedom
    kinetic = 2 * record.kinetic[1000:] / (units.kB * 300.0)
    mean, error = mean_error(kinetic.mean(axis=1))
    assert abs(mean - (3 * n - 3)) < 4 * error
    assert kinetic.var() == pytest.approx(2 * (3 * n - 3), rel=0.1)
    # the work of the barostat and the heat of the thermostat are accounted for
    drift = (record.conserved[-1] - record.conserved[0]) / (units.kB * 300.0)
    assert np.abs(drift).max() < 2.0


@pytest.mark.parametrize("coupling", ["anisotropic", "triclinic"])
def test_ideal_gas_with_collisions(coupling):
    """The volume has the same distribution; the shape of the cell diffuses freely."""
    n, pressure = 12, 0.1
    volume = (n + 1) * units.kB * 300.0 / (pressure * units.GPa)
    state = systems.gas(n, 300.0, volume, range(1, 65))
    ensemble = barostat(300.0, pressure, coupling, tau_p_fs=200.0, compressibility_per_GPa=1 / pressure)
    record = Twin(ensemble, state, systems.collisions, H).run(4000)
    mean, mean_se, variance, variance_se = systems.gamma_moments(record, n, pressure, 300.0, 400)
    assert max(mean_se, 0.2 * variance_se) < 0.02
    assert abs(mean - 1) < 3.5 * mean_se
    assert abs(variance - 1) < 3.5 * variance_se
    sides = np.linalg.norm(state.cell, axis=2)
    assert np.abs(np.log(sides / sides[:, :1])).max() > 0.1
    off = np.abs(state.cell - state.cell.transpose(0, 2, 1)).max()
    assert off < 1e-6
    assert (np.abs(state.cell[0, 0, 1]) > 0.1) == (coupling == "triclinic")


def sampled_pressure(twin, skip, steps, interval=5):
    """Mean pressure tensor in GPa and its error, with kT/V for the zero total momentum; temperature and its error.

    Over a long time t the strain goes nowhere, so the sum of G cancels that of the noise: the error of the mean of an
    orthonormal component of P is sqrt(2 kT/(m V t)).
    """
    twin.run(skip)
    kT, mobility = twin.p[0, KT], twin.p[0, MOBILITY]
    record, tensors = twin.run(
        steps,
        lambda s: systems.pressure_tensor(s) + np.eye(3) * kT / (abs(np.linalg.det(s.cell))[:, None, None] * units.GPa),
        interval,
    )
    error = np.sqrt(2 * kT / (mobility * record.volume.mean() * record.volume.size * twin.h)) / units.GPa
    temperature = 2 * record.kinetic / (units.kB * twin.state.n_dof)
    return tensors.mean(axis=(0, 1)), error, *mean_error(temperature.mean(axis=1))


@pytest.mark.parametrize("case", systems.CASES)
def test_mean_pressure_of_a_crystal_is_the_target(case):
    coupling, pressure, rests = systems.CASES[case]
    state, target = systems.case_state(case, (1, 2))
    temperature = systems.case_temperature(case)
    twin = Twin(barostat(temperature, pressure, coupling), state, PAIRS, H)
    before = state.cell.copy()
    mean, error, sampled, sampled_error = sampled_pressure(twin, 2000, 10000)
    assert error < 0.006
    assert np.abs(systems.projected(mean - target / units.GPa, coupling, rests)).max() < 3.5 * error
    assert abs(sampled - temperature) < 4 * sampled_error
    for r in range(2):
        stretch = np.linalg.solve(before[r], state.cell[r])
        # symmetric: no rotation; what is not coupled has not changed
        assert np.abs(stretch - stretch.T).max() < 1e-10
        assert np.abs(stretch - np.eye(3) - systems.projected(stretch - np.eye(3), coupling, rests)).max() < 1e-10


def test_sheet_keeps_its_normal_direction():
    for normal in (2, 0):
        state = systems.sheet(10.0, normal=normal)
        twin = Twin(barostat(10.0, 0.02, "semi-isotropic"), state, PAIRS, H)
        before, centre = state.cell[0].copy(), state.x[:, normal].mean()
        twin.run(500)
        assert np.array_equal(state.cell[0, normal], before[normal])
        assert np.array_equal(state.cell[0, :, normal], before[:, normal])
        assert state.x[:, normal].mean() == pytest.approx(centre, abs=1e-9)
        plane = [k for k in range(3) if k != normal]
        ratios = np.diag(state.cell[0])[plane] / np.diag(before)[plane]
        assert ratios[0] == pytest.approx(ratios[1], rel=1e-12)
        assert abs(ratios[0] - 1) > 1e-4


def test_shear_relaxes():
    state = systems.crystal(10.0, strain=[[0, 0.1, 0], [0, 0, 0.05], [0, 0, 0]])
    twin = Twin(barostat(10.0, 0.0, "triclinic"), state, PAIRS, H)
    first = systems.pressure_tensor(state)[0]
    before = state.cell[0].copy()
    assert abs(first[0, 1]) > 0.05
    mean, error, _, _ = sampled_pressure(twin, 1500, 2500)
    assert np.all(np.abs(mean) < 3.5 * error)
    assert error < 0.01
    metric = state.cell[0] @ state.cell[0].T
    cosines = metric / np.sqrt(np.outer(np.diag(metric), np.diag(metric)))
    assert np.abs(cosines - np.eye(3)).max() < 0.025 < np.abs(before @ before.T / 10.66**2 - np.eye(3)).max()
    stretch = np.linalg.solve(before, state.cell[0])
    assert np.abs(stretch - stretch.T).max() < 1e-10


def test_two_pressures():
    """ln of the ratio of the histograms of the volume is linear with slope (P2 - P1)/kT."""
    volumes = []
    for pressure in (0.0, 0.1):
        state = systems.crystal(40.0, range(1, 5))
        twin = Twin(barostat(40.0, pressure, tau_p_fs=300.0), state, PAIRS, H)
        twin.run(1500)
        volumes.append(twin.run(12000).volume[::10].T.reshape(8, -1))
    slope, error = systems.log_ratio_slope(*volumes[::-1])
    expected = 0.1 * units.GPa / (units.kB * 40.0)
    assert error < 0.15 * expected
    assert abs(slope - expected) < 3.5 * error


def test_effective_energy_shows_the_error_of_the_step():
    kT, spreads = units.kB * 30.0, []
    for h in (2.0, 4.0, 8.0):
        state = systems.crystal(30.0, (1, 2))
        twin = Twin(barostat(30.0, (0.1, 0.1, 0.3), "anisotropic"), state, PAIRS, h * units.fs)
        record = twin.run(int(8000 / h))
        spreads.append(np.abs(record.conserved - record.conserved[0]).max() / kT)
        # far less than what goes in and out
        assert spreads[-1] < 0.02 * np.ptp(record.potential + record.kinetic) / kT
    assert spreads[0] < 0.7 * spreads[1] < 0.49 * spreads[2]


def test_same_seed_split_and_batch():
    def run(seeds, blocks, pressures=(0.1,) * 3):
        state = systems.crystal(30.0, seeds)
        ensembles = [barostat(30.0 + 5 * r, pressures[r], "triclinic") for r in range(len(seeds))]
        if seeds == (2,):
            ensembles = [barostat(35.0, pressures[1], "triclinic")]
        twin = Twin(ensembles, state, PAIRS, H)
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
