"""Integrator and held sites against a plain numpy form, and against what is known of harmonic oscillators."""

import numpy as np
import pytest
from ase import units

from ase_nepcg.md.integrate import draw_velocities, step_begin
from ase_nepcg.md.loop import complete_step
from ase_nepcg.md.noise import fill_normals


class Groups:
    """Groups as the kernels take them."""

    def __init__(self, groups, masses):
        self.groups = [np.array(group) for group in groups]
        sizes = [len(group) for group in groups]
        self.start = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.members = np.concatenate([*self.groups, np.zeros(0, int)]).astype(np.int64)
        self.share = np.concatenate([masses[g] / masses[g].sum() for g in self.groups] or [np.zeros(0)])
        self.masses = masses

    @property
    def arrays(self):
        return self.start, self.members, self.share

    def centres(self, x):
        return np.array([self.masses[g] @ x[g] / self.masses[g].sum() for g in self.groups]).reshape(-1, 3)

    def project(self, v):
        v = v.copy()
        for g in self.groups:
            v[g] -= self.masses[g] @ v[g] / self.masses[g].sum()
        return v


def half_step(x, v, f, groups, h, c, kT, seed, step):
    """B A O A, plainly."""
    m = groups.masses[:, None]
    held = groups.centres(x)
    v = groups.project(v + 0.5 * h * f / m)
    if c < 1:
        x = x + 0.5 * h * v
        noise = np.empty_like(v)
        fill_normals(seed, step, noise)
        v = groups.project(c * v + np.sqrt((1 - c * c) * kT / m) * noise)
        x = x + 0.5 * h * v
    else:
        x = x + h * v
    for g, centre in zip(groups.groups, held, strict=True):
        x[g] += centre - groups.masses[g] @ x[g] / groups.masses[g].sum()
    return x, v


@pytest.fixture
def system(rng):
    masses = rng.uniform(1, 30, 10)
    groups = Groups([[0, 3, 1], [4], [2, 9]], masses)
    x, f = rng.normal(size=(10, 3)), rng.normal(size=(10, 3))
    v = groups.project(rng.normal(size=(10, 3)))
    return groups, x, v, f


@pytest.mark.parametrize("c", [0.9, 1.0])
def test_first_half_equals_the_plain_form(system, c):
    groups, x, v, f = system
    expected = half_step(x, v, f, groups, 0.3, c, 0.02, 11, 4)
    held = groups.centres(x)
    step_begin(x, v, f, 1 / groups.masses, *groups.arrays, held, 0.3, c, 0.02, 11, 4)
    np.testing.assert_allclose(x, expected[0], rtol=0, atol=1e-13)
    np.testing.assert_allclose(v, expected[1], rtol=0, atol=1e-13)
    np.testing.assert_allclose(groups.centres(x), held, rtol=0, atol=1e-14)
    np.testing.assert_allclose(groups.centres(v), 0, atol=1e-14)
    assert np.array_equal(x[4], held[1])  # an atom that is a site itself


def test_atoms_outside_groups_move_freely(system):
    groups, x, v, f = system
    free = [5, 6, 7, 8]
    expected = x[free] + 0.3 * (v[free] + 0.15 * f[free] / groups.masses[free, None])
    step_begin(x, v, f, 1 / groups.masses, *groups.arrays, groups.centres(x), 0.3, 1.0, 0.0, 0, 1)
    np.testing.assert_allclose(x[free], expected, rtol=0, atol=1e-13)


def test_velocities_are_maxwellian_relative_to_the_centres(rng):
    masses = np.tile([16.0, 1.0, 1.0], 2000)
    groups = Groups(np.arange(6000).reshape(-1, 3), masses)
    v, kT = np.zeros((6000, 3)), 0.03
    draw_velocities(v, 1 / masses, *groups.arrays, kT, 3, 0)
    assert np.abs(groups.centres(v)).max() < 1e-14
    kinetic = 0.5 * (masses[:, None] * v**2).sum()
    freedom = 3 * (6000 - 2000)
    assert abs(kinetic / (0.5 * freedom * kT) - 1) < 4 * np.sqrt(2 / freedom)


def oscillators(h, c, steps, kT=0.025, n=2000, frequency=None):
    """Harmonic oscillators in their own groups of two atoms: run and return <x.f>/kT and the kinetic temperature."""
    omega = frequency
    masses = np.tile([16.0, 1.0], n)
    groups = Groups(np.arange(2 * n).reshape(-1, 2), masses)
    reduced = 16.0 / 17.0
    k = reduced * omega**2
    x, v, f = np.zeros((2 * n, 3)), np.zeros((2 * n, 3)), np.zeros((2 * n, 3))
    w, held = 1 / masses, np.zeros((n, 3))
    draw_velocities(v, w, *groups.arrays, kT, 1, 0)
    progress, count = np.zeros(3, np.int64), np.zeros(4, np.int64)
    y, nothing = np.zeros(3 * n + 14), np.zeros((0, 3 * n + 14))
    weights, sums = np.zeros((1, 1)), np.zeros((1, len(y)))
    count[1] = 10**9
    anchor, is_site = np.repeat(np.arange(n), 2), np.zeros(2 * n, np.bool_)
    position = kinetic = 0.0
    for step in range(1, steps + 1):
        step_begin(x, v, f, w, *groups.arrays, held, h, c, kT, 1, step)
        d = x[1::2] - x[::2]
        f[::2], f[1::2] = k * d, -k * d
        complete_step(
            *(True, h, *groups.arrays, steps, 1, progress, x, v, f, w, held, anchor, is_site, np.zeros(2 * n)),
            *(0.0, 0.0, np.zeros(9), y, count, weights, np.zeros(len(y)), sums, nothing, nothing),
        )
        if step > steps // 5:
            position += k * (d**2).mean() / kT
            kinetic += (masses[:, None] * v**2).sum() / (3 * n) / kT
    done = steps - steps // 5
    assert progress[0] == steps
    assert count[3] == 0  # nothing is sampled up to the last step
    return position / done, kinetic / done


def test_positions_of_a_fast_mode_have_the_temperature_of_the_thermostat():
    # an O-H vibration at 0.5 fs: the kinetic temperature is low by (omega h)^2 / 4, positions are exact
    h = 0.5 * units.fs
    omega = 2 * np.pi * 2.998e10 * 3700 / units.s
    position, kinetic = oscillators(h, np.exp(-0.02 * 0.5), 2500, frequency=omega)
    assert abs(position - 1) < 0.012
    assert abs(kinetic - (1 - (omega * h) ** 2 / 4)) < 0.012


def test_without_thermostat_it_is_velocity_verlet(rng):
    h, n = 0.1, 5
    masses = rng.uniform(1, 5, n)
    groups = Groups([], masses)
    x, v = rng.normal(size=(n, 3)), rng.normal(size=(n, 3))
    k = 1.3
    expected_x, expected_v = x.copy(), v.copy()
    f, w = -k * x, 1 / masses
    for step in range(50):
        expected_v += 0.5 * h * (-k * expected_x) / masses[:, None]
        expected_x += h * expected_v
        expected_v += 0.5 * h * (-k * expected_x) / masses[:, None]
        step_begin(x, v, f, w, *groups.arrays, np.zeros((0, 3)), h, 1.0, 0.0, 0, step + 1)
        f = -k * x
        v += 0.5 * h * f / masses[:, None]
    np.testing.assert_allclose(x, expected_x, atol=1e-12)
    np.testing.assert_allclose(v, expected_v, atol=1e-12)
