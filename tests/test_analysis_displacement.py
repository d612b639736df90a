"""Diffusion of trajectories. That files and runs agree is tested in test_analysis_frames.py."""

import dataclasses

import numpy as np
import pytest
from ase import Atoms, units

from ase_nepcg import analysis
from ase_nepcg.analysis import AnalysisError


def walkers(n=100, steps=2000, sigma=0.1, seed=1):
    """A random walk: D = sigma^2/2 per frame and direction."""
    rng = np.random.default_rng(seed)
    x = np.cumsum(rng.normal(scale=sigma, size=(steps, n, 3)), axis=0)
    return [Atoms(["Ar"] * n, positions, cell=[20, 20, 20], pbc=True) for positions in x]


def test_random_walk_has_its_diffusion_coefficient():
    result = analysis.diffusion(walkers(), 20, frame_fs=10.0, origins_every=1)
    expected = 0.1**2 / 2 / 0.01  # Å^2/ps
    assert result.diffusion_error[0] < 0.02 * expected
    assert abs(result.diffusion[0] - expected) < 4 * result.diffusion_error[0]
    np.testing.assert_allclose(result.msd[0], 6 * expected * result.time_fs * 1e-3, rtol=0.05)


def test_ornstein_uhlenbeck_velocities():
    # <v(0) v(t)> = (kT/m) exp(-g t): D = kT/(m g)
    rng, n, dt, g, m = np.random.default_rng(2), 200, 5.0, 0.02, 20.0
    kTm = units.kB * 300 / m
    c = np.exp(-g * dt)
    v = rng.normal(size=(n, 3)) * np.sqrt(kTm)
    frames = []
    for _ in range(2000):
        atoms = Atoms(["Ar"] * n, np.zeros((n, 3)), cell=[9, 9, 9], pbc=True)
        atoms.set_masses([m] * n)
        atoms.set_momenta(m * v)
        frames.append(atoms)
        v = c * v + np.sqrt(kTm * (1 - c**2)) * rng.normal(size=(n, 3))
    result = analysis.vacf(frames, 80, frame_fs=dt, origins_every=2)
    per_fs = units.fs
    np.testing.assert_allclose(
        result.vacf[0], 3 * kTm * per_fs**2 * np.exp(-g * result.time_fs), atol=4 * result.vacf_error[0].max()
    )
    # trapezoids of an exponential
    expected = kTm * per_fs**2 / g * 1e3 * (g * dt / 2) / np.tanh(g * dt / 2) * (1 - c**80)
    assert abs(result.diffusion[0, -1] - expected) < 4 * result.diffusion_error[0, -1]
    assert result.diffusion_error[0, -1] < 0.03 * expected


def test_finite_size_correction():
    # Yeh and Hummer: water, 298 K, 0.896 mPa s, 20 Å
    box = Atoms(cell=[20.0, 20.0, 20.0], pbc=True)
    expected = 2.837297 * 1.380649e-23 * 298 / (6 * np.pi * 0.896e-3 * 20e-10) / 1e-8
    assert analysis.finite_size_correction(box, 298.0, 0.896) == pytest.approx(expected, rel=1e-6)
    assert analysis.finite_size_correction([box, box], 298.0, 0.896) == pytest.approx(expected, rel=1e-6)
    for cell, pbc in (([20, 20, 21], True), ([20, 20, 20], [True, True, False]), (None, True)):
        with pytest.raises(AnalysisError, match="periodic cubic cells"):
            analysis.finite_size_correction(Atoms(cell=cell, pbc=pbc), 298.0, 0.896)
    for settings in ((0.0, 1.0), (300.0, -1.0), (300.0, None)):
        with pytest.raises(AnalysisError, match="expected a positive number"):
            analysis.finite_size_correction(box, *settings)


def test_speed_up():
    slow = analysis.diffusion(walkers(50, 500), 10, frame_fs=10.0, origins_every=1)
    fast = analysis.diffusion(walkers(50, 500, sigma=0.2, seed=2), 10, frame_fs=10.0, origins_every=1)
    result = analysis.speed_up(fast, slow)
    assert result.species == ("Ar", "Ar")
    assert abs(result.ratio - 4.0) < 4 * result.error
    assert result.error < 0.5
    with pytest.raises(AnalysisError, match=r"species 'Xe': expected one of Ar"):
        analysis.speed_up(fast, slow, ("Xe", "Ar"))
    for wrong in ("Ar", ("Ar",)):
        with pytest.raises(AnalysisError, match="species: expected two labels"):
            analysis.speed_up(fast, slow, wrong)
    with pytest.raises(AnalysisError, match="two positive diffusion coefficients"):
        analysis.speed_up(dataclasses.replace(fast, diffusion=-fast.diffusion), slow)


def test_refusals():
    with pytest.raises(AnalysisError, match="unwrap: expected True or False"):
        analysis.diffusion(walkers(2, 20), 5, frame_fs=1.0, unwrap="yes")
