"""The pieces of a step against a plain numpy form."""

import numpy as np
import pytest

from ase_nepcg.md.ensembles.langevin import Langevin
from ase_nepcg.md.ensembles.nve import NVE
from ase_nepcg.md.loop import ensemble_kernels
from ase_nepcg.md.noise import fill_normals
from ase_nepcg.md.state import make_state
from ase_nepcg.md.steps import draw_velocities


class Groups:
    """Groups and masses."""

    def __init__(self, groups, masses):
        self.groups = [np.array(group) for group in groups]
        self.masses = masses

    def state(self, x, v, f, seed):
        n = len(x)
        state = make_state(
            [x], [v], [self.masses], [np.zeros(n)], [np.eye(3)], [[True] * 3], groups=[self.groups], seeds=[seed]
        )
        state.f[:] = f
        return state

    def centres(self, x):
        return np.array([self.masses[g] @ x[g] / self.masses[g].sum() for g in self.groups]).reshape(-1, 3)

    def project(self, v):
        v = v.copy()
        for g in self.groups:
            v[g] -= self.masses[g] @ v[g] / self.masses[g].sum()
        return v


def step_begin(x, v, f, groups, h, c, kT, seed, step):
    """The first half by the kernels, in place."""
    state = groups.state(x, v, f, seed)
    begin = ensemble_kernels(Langevin if c < 1 else NVE)[0]
    begin(state, h, np.array([[kT, c]]), np.zeros((1, 1)), step)
    x[:], v[:] = state.x, state.v


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
    held, before = groups.centres(x), x.copy()
    step_begin(x, v, f, groups, 0.3, c, 0.02, 11, 4)
    np.testing.assert_allclose(x, expected[0], rtol=0, atol=1e-13)
    np.testing.assert_allclose(v, expected[1], rtol=0, atol=1e-13)
    np.testing.assert_allclose(groups.centres(x), held, rtol=0, atol=1e-14)
    np.testing.assert_allclose(groups.centres(v), 0, atol=1e-14)
    assert np.array_equal(x[4], before[4])  # an atom that is a site itself


def test_atoms_outside_groups_move_freely(system):
    groups, x, v, f = system
    free = [5, 6, 7, 8]
    expected = x[free] + 0.3 * (v[free] + 0.15 * f[free] / groups.masses[free, None])
    step_begin(x, v, f, groups, 0.3, 1.0, 0.0, 0, 1)
    np.testing.assert_allclose(x[free], expected, rtol=0, atol=1e-13)


def test_velocities_are_maxwellian_relative_to_the_centres(rng):
    masses = np.tile([16.0, 1.0, 1.0], 2000)
    groups = Groups(np.arange(6000).reshape(-1, 3), masses)
    zero, kT = np.zeros((6000, 3)), 0.03
    state = groups.state(zero, zero, zero, 3)
    draw_velocities(state, kT, 0)
    v = state.v
    assert np.abs(groups.centres(v)).max() < 1e-14
    kinetic = 0.5 * (masses[:, None] * v**2).sum()
    freedom = 3 * (6000 - 2000)
    assert abs(kinetic / (0.5 * freedom * kT) - 1) < 4 * np.sqrt(2 / freedom)


def test_frozen_sites_do_not_move(rng):
    n = 4
    masses, frozen = rng.uniform(1, 5, n), np.array([False, True, False, True])
    x, v, f = rng.normal(size=(3, n, 3))
    state = make_state([x], [v], [masses], [np.zeros(n)], [np.eye(3)], [[True] * 3], frozen=[frozen])
    state.f[:] = f
    assert state.n_dof.tolist() == [6]
    for ensemble in (Langevin, NVE):
        begin, end, *_ = ensemble_kernels(ensemble)
        begin(state, 0.1, np.array([[0.02, 0.9]]), np.zeros((1, 1)), 1)
        end(state, 0.1, np.array([[0.02, 0.9]]), np.zeros((1, 1)), 1)
    assert np.array_equal(state.x[frozen], x[frozen])
    assert not state.v[frozen].any()
    assert (state.x[~frozen] != x[~frozen]).all()
