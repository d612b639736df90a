"""ase_nepcg.md.ensembles.langevin: against numpy, canonical with the right degrees of freedom, bitwise reproducible."""

import json
import math

import md_twin
import numpy as np
import pytest
from ase import units
from scipy import stats

from ase_nepcg.md.ensembles.base import EnsembleError
from ase_nepcg.md.ensembles.langevin import Langevin
from ase_nepcg.md.noise import fill_normals

FS = units.fs
K = 1.5
WELLS = md_twin.wells(K)


def test_one_step_is_baoab():
    ensemble, h = Langevin(300.0, 0.05), 3 * FS
    state = md_twin.oscillators(seeds=(9,))
    x, v, m = state.x.copy(), state.v.copy(), state.m[:, None]
    twin = md_twin.Twin(ensemble, state, WELLS, h)
    heat = 0.0
    for step in (1, 2, 3):
        twin.run(1)
        noise = np.empty_like(x)
        fill_normals(9, step, noise)
        v -= 0.5 * h * K * x / m
        x += 0.5 * h * v
        c = math.exp(-0.05 * 3)
        heat -= 0.5 * (m * v**2).sum()
        v = c * v + np.sqrt((1 - c**2) * 300 * units.kB / m) * noise
        heat += 0.5 * (m * v**2).sum()
        x += 0.5 * h * v
        v -= 0.5 * h * K * x / m
        np.testing.assert_allclose(state.x, x, rtol=0, atol=1e-13)
        np.testing.assert_allclose(state.v, v, rtol=0, atol=1e-13)
        assert twin.q[0, 0] == pytest.approx(heat, abs=1e-13)


@pytest.fixture(scope="module")
def long_run():
    """Ten sites, one frozen and three held at their centre, in wells at 300 K, 200 ps; forces: h is a tenth of a
    period."""
    state = md_twin.oscillators(frozen=(2,), groups=[(0, 1, 5)])
    state.held[:] = 0
    twin = md_twin.Twin(Langevin(300.0, 0.02), state, WELLS, 4 * FS)
    twin.run(1000)
    record, x = twin.run(50000, sample=lambda s: s.x, interval=5)
    return state, record, x


def test_kinetic_energy_is_canonical(long_run):
    state, record, _ = long_run
    kT, n = 300 * units.kB, 3 * 10 - 3 - 3
    assert state.n_dof[0] == n
    kinetic = record.kinetic[:, 0]
    mean, error = md_twin.mean_error(kinetic)
    # velocities of BAOAB are off by (h omega)^2 / 4
    assert abs(mean / (n / 2 * kT) - 1) < 4 * error / mean + 0.01
    variance, error = md_twin.mean_error((kinetic - mean) ** 2)
    assert abs(variance - n / 2 * kT**2) < 4 * error + 0.02 * variance
    assert error < 0.1 * variance
    assert stats.kstest(kinetic[::250], stats.gamma(n / 2, scale=mean / (n / 2)).cdf).pvalue > 1e-3


def test_positions_are_canonical(long_run):
    _, _, x = long_run
    kT = 300 * units.kB
    for site in (3, 4, 6, 7, 8, 9):
        mean, error = md_twin.mean_error((K * x[:, site] ** 2).mean(axis=1))
        assert abs(mean - kT) < 4 * error
        assert error < 0.05 * kT
    # the held group: three sites, one centre, six degrees of freedom
    centre = np.average(x[:, [0, 1, 5]], axis=1, weights=np.linspace(10, 40, 10)[[0, 1, 5]])
    np.testing.assert_allclose(centre, 0, atol=1e-12)
    assert np.ptp(x[:, 2], axis=0).max() == 0
    # positions orthogonal to the masses: kT/2 for each of the six degrees of freedom
    mean, error = md_twin.mean_error(K * (x[:, [0, 1, 5]] ** 2).sum(axis=(1, 2)))
    assert abs(mean - 6 * kT) < 4 * error


def test_conserved_to_second_order(long_run):
    _, record, _ = long_run
    conserved = record.conserved[:, 0]
    # no drift in 200 ps, while the thermostat has exchanged much more
    assert abs(np.polyfit(np.linspace(0, 1, len(conserved)), conserved, 1)[0]) < 0.02
    _, fine, ratio = md_twin.order_of(Langevin(300.0, 0.002), md_twin.oscillators, WELLS, 4 * FS, 4000 * FS)
    assert 3 < ratio < 5
    assert fine < 2e-3


def test_reproducible():
    def build(seeds, numbers):
        return md_twin.oscillators(seeds, sizes=[8 + k for k in numbers], frozen=(2,), groups=[(0, 1, 5)])

    ensembles = [Langevin(200.0 + 100 * k, 0.01) for k in range(3)]
    md_twin.assert_reproducible(ensembles, build, WELLS, 2 * FS)


@pytest.mark.parametrize("values", [(0, 0.1), (300, 0), (-1.0, 0.1), (300, np.nan), ("300", 0.1), (300, None)])
def test_refuses(values):
    with pytest.raises(EnsembleError, match=r"Langevin: (temperature_K|friction_per_fs) must be a positive number"):
        Langevin(*values)


def test_refuses_where_nothing_moves():
    state = md_twin.oscillators(frozen=range(10))
    with pytest.raises(EnsembleError, match="Langevin keeps a temperature, but no degrees of freedom are left"):
        md_twin.Twin(Langevin(300.0, 0.1), state, WELLS, 1.0)


def test_todict():
    ensemble = Langevin(300, np.float64(0.1))
    given = json.loads(json.dumps(ensemble.todict()))
    assert given == {"name": "langevin", "temperature_K": 300.0, "friction_per_fs": 0.1}
    assert Langevin(given["temperature_K"], given["friction_per_fs"]) == ensemble
    assert ensemble.temperature == 300.0
    # all sites of an isolated system: the total momentum is thermal, too
    assert ensemble.n_dof(md_twin.setup_of(md_twin.oscillators(), 0, 1.0)) == 30
