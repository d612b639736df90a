"""The pieces that the barostats share, against numpy and scipy."""

import npt_systems as systems
import numba
import numpy as np
import pytest
from ase import units
from md_twin import setup_of
from npt_systems import crystal, matrix
from scipy.linalg import expm, polar

from ase_nepcg.md.ensembles import strain
from ase_nepcg.md.ensembles.npt import NPT


@numba.njit
def functions(a, b):
    f = strain.phi(a)
    e = strain.exponential(a, f)
    return f, e, strain.inverse(e), strain.square(a), strain.scaled_sum(2.0, a, -1.0, b), strain.scaled(3.0, a)


@numba.njit
def force(s, p, share, constant):
    return (
        strain.driving_force(s, 0, p, share, constant),
        strain.deviatoric_work((0.1, 0.2, 0.3, 0.4, 0.5, 0.6), p),
        strain.project_strain((0.1, 0.2, 0.3, 0.4, 0.5, 0.6), p),
    )


@numba.njit
def turn(s, q, a):
    t = strain.unrotate(s, 0, q)
    return t, strain.rotated(a, t)


@numba.njit
def move(s, a, b, h):
    strain.deform(s, 0, a, b, h)
    strain.stretch_velocities(s, 0, a, b, h)


def test_matrix_functions_are_exact_to_rounding():
    rng = np.random.default_rng(1)
    for size in (1e-6, 1e-2, 0.4):
        a, b = tuple(size * rng.uniform(-1, 1, 6)), tuple(rng.uniform(-1, 1, 6))
        f, e, back, square, both, scaled = functions(a, b)
        assert np.abs(matrix(e) - expm(matrix(a))).max() < 3e-14
        assert np.abs(matrix(back) - expm(-matrix(a))).max() < 3e-14
        # the average of exp(t a), by Gauss-Legendre
        t, w = np.polynomial.legendre.leggauss(12)
        average = sum(0.5 * wk * expm(0.5 * (tk + 1) * matrix(a)) for tk, wk in zip(t, w, strict=True))
        assert np.abs(matrix(f) - average).max() < 3e-14
        assert square == pytest.approx((matrix(a) ** 2).sum(), rel=1e-14)
        assert np.allclose(both, 2 * np.array(a) - b, rtol=1e-14)
        assert np.allclose(scaled, 3 * np.array(a), rtol=1e-14)


def test_driving_force_is_minus_the_derivative_of_enthalpy():
    state = crystal(50.0)
    state.virial[0] = np.random.default_rng(2).normal(size=(3, 3))
    six = (0.3, 0.2, -0.1, 0.05, 0.02, -0.04)
    p = NPT(300.0, six, 100.0, 1000.0, coupling="triclinic").parameters(setup_of(state, 0, 1.0))
    g, work, same = force(state, p, 0.0, 0.0)
    v = abs(np.linalg.det(state.cell[0]))
    expected = v * (systems.pressure_tensor(state)[0] * units.GPa - matrix(six) * units.GPa)
    assert np.allclose(matrix(g), 0.5 * (expected + expected.T), rtol=1e-12, atol=1e-14)
    assert np.allclose(same, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6))
    traceless = matrix(six) - np.eye(3) * np.mean(six[:3])
    assert work == pytest.approx((traceless * matrix((0.1, 0.2, 0.3, 0.4, 0.5, 0.6))).sum() * units.GPa, rel=1e-12)
    twice = (state.m[:, None] * state.v**2).sum()
    more, _, _ = force(state, p, 0.5, 0.25)
    assert np.allclose(np.subtract(more, g), [0.5 * twice + 0.25] * 3 + [0.0] * 3, rtol=1e-10, atol=1e-13)


def test_deform_and_stretch():
    state = crystal(50.0)
    state.f[:] = np.random.default_rng(3).normal(size=state.f.shape)
    a, b = (1.1, 0.9, 1.2, 0.1, 0.05, -0.02), (1.0, 1.1, 0.8, -0.1, 0.02, 0.03)
    x, v, cell = state.x.copy(), state.v.copy(), state.cell.copy()
    move(state, a, b, 0.3)
    assert np.allclose(state.x, x @ matrix(a) + 0.3 * v @ matrix(b), rtol=1e-13, atol=1e-13)
    assert np.allclose(state.cell, cell @ matrix(a), rtol=1e-14)
    assert np.allclose(state.v, v @ matrix(a) + 0.3 * state.f / state.m[:, None] @ matrix(b), rtol=1e-13, atol=1e-15)
    # a vector of a non-periodic axis stays
    state.pbc[0, 2] = False
    kept = state.cell[0, 2].copy()
    move(state, a, b, 0.3)
    assert np.array_equal(state.cell[0, 2], kept)


def test_unrotate_is_the_polar_decomposition():
    rng = np.random.default_rng(4)
    for size in (1e-3, 0.3):
        state = crystal(50.0, strain=0.2 * rng.uniform(-1, 1, (3, 3)))
        first = state.cell[0].copy()
        f = np.eye(3) + size * rng.uniform(-1, 1, (3, 3))
        state.cell[0] = first @ f.T
        x, v = state.x.copy(), state.v.copy()
        a = tuple(rng.normal(size=6))
        t, turned = turn(state, np.linalg.inv(first).ravel(), a)
        q, u = polar(f)
        assert np.allclose(np.reshape(t, (3, 3)), q, atol=1e-14)
        assert np.allclose(state.cell[0], first @ u, atol=1e-12)
        assert np.allclose(state.x, x @ q, atol=1e-12)
        assert np.allclose(state.v, v @ q, atol=1e-14)
        assert np.allclose(matrix(turned), q.T @ matrix(a) @ q, atol=1e-14)
