import numpy as np
import pytest
from ase import Atoms, units

from ase_nepcg import analysis
from ase_nepcg.analysis import AnalysisError

T = 300.0


def oscillators(frequencies_THz, masses, n_frames=2000, dt=2.0, seed=1):
    """Independent harmonic oscillators with exactly kT per mode; one atom (three modes) per frequency."""
    rng = np.random.default_rng(seed)
    t = np.arange(n_frames) * dt * 1e-3
    masses = np.asarray(masses, float)
    phase = rng.uniform(0, 2 * np.pi, size=(len(masses), 3))
    omega = 2 * np.pi * np.asarray(frequencies_THz)
    v = np.sqrt(2 * units.kB * T / masses)[None, :, None] * np.cos(omega[None, :, None] * t[:, None, None] + phase)
    frames = []
    for k in range(n_frames):
        atoms = Atoms(["H", "O"] * (len(masses) // 2), np.zeros((len(masses), 3)))
        atoms.set_masses(masses)
        atoms.set_momenta(masses[:, None] * v[k])
        atoms.info["time_ps"] = t[k]
        frames.append(atoms)
    return frames


def test_lines_are_where_they_belong_and_count_the_modes():
    frames = oscillators([10.0, 30.0, 10.0, 45.0], [1.0, 16.0, 1.0, 16.0])
    result = analysis.vdos(frames, T, segments=6)
    assert result.species == ("H", "O")
    assert result.frequency_THz[-1] == pytest.approx(250.0, rel=0.01)
    np.testing.assert_allclose(result.n_dof, [6.0, 6.0], rtol=0.02)
    peak = result.frequency_THz[np.argmax(result.dos, axis=1)]
    assert abs(peak[0] - 10.0) < result.resolution_THz
    step = result.frequency_THz[1]
    for centre in (30.0, 45.0):
        window = np.abs(result.frequency_THz - centre) < 5.0
        assert result.dos[1][window].sum() * step == pytest.approx(3.0, rel=0.03)


def test_errors_are_those_of_repeated_runs():
    # white noise: a flat spectrum
    rng, masses, found = np.random.default_rng(4), np.array([2.0]), []
    for _ in range(60):
        frames = []
        for _ in range(300):
            atoms = Atoms("H", np.zeros((1, 3)))
            atoms.set_masses(masses)
            atoms.set_momenta(rng.normal(size=(1, 3)) * np.sqrt(units.kB * T * masses)[:, None])
            frames.append(atoms)
        found.append(analysis.vdos(frames, T, segments=8, frame_fs=10.0))
    dos = np.array([one.dos[0] for one in found])
    assert found[0].n_dof[0] == pytest.approx(3.0, rel=0.15)
    inner = slice(2, -2)
    scatter = dos.std(axis=0, ddof=1)[inner].mean()
    quoted = np.mean([one.dos_error[0] for one in found], axis=0)[inner].mean()
    assert quoted == pytest.approx(scatter, rel=0.2)
    np.testing.assert_allclose(dos.mean(axis=0)[inner], 3.0 / 50.0, rtol=0.2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature_K": 0.0}, "temperature_K: expected a positive number"),
        ({"temperature_K": T, "segments": 0}, "segments: expected a positive number"),
        ({"temperature_K": T, "segments": 40}, "too few for 40 segments"),
        ({"temperature_K": T, "frame_fs": 5.0}, "frame_fs=5 was given, but the file says 2 fs"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(AnalysisError, match=message):
        analysis.vdos(oscillators([10.0, 20.0], [1.0, 2.0], 50), **settings)


def test_needs_momenta_and_time():
    frames = oscillators([10.0, 20.0], [1.0, 2.0], 50)
    for frame in frames:
        del frame.info["time_ps"]
    with pytest.raises(AnalysisError, match="give frame_fs"):
        analysis.vdos(frames, T)
    with pytest.raises(AnalysisError, match="frame 0 has no momenta"):
        analysis.vdos([Atoms("H")] * 50, T, frame_fs=1.0)
