"""ase_nepcg.md.ensembles.deform: lengths, energy = work, ideal gases, free axes at their pressure."""

import json
import math

import md_twin
import numpy as np
import pytest
from ase import units

from ase_nepcg.md.ensembles.base import EnsembleError
from ase_nepcg.md.ensembles.deform import Deform
from ase_nepcg.md.state import make_state

FS, GPA, PS = units.fs, units.GPa, 1000 * units.fs
CRYSTAL = md_twin.lennard_jones(epsilon=0.1)


def gas(seeds=(0,), n=20, kT=0.025):
    """Sites without forces in a cube of 20 Å."""
    draws = [np.random.default_rng([5, seed]) for seed in seeds]
    r = len(seeds)
    return make_state(
        [draw.uniform(0, 20, size=(n, 3)) for draw in draws],
        [draw.normal(size=(n, 3)) * math.sqrt(kT / 30) for draw in draws],
        [np.full(n, 30.0)] * r, [np.zeros(n, int)] * r, [20 * np.eye(3)] * r, [[True] * 3] * r, seeds=seeds,
    )  # fmt: skip


@pytest.mark.parametrize(("axis", "rate"), [("x", 0.05), ("y", -0.1), ("z", 0.02)])
def test_length_grows_linearly(axis, rate):
    """In a triclinic cell: Cartesian components along the axis, nothing else."""
    state = md_twin.argon(shear=0.1)
    cell, k = state.cell[0].copy(), "xyz".index(axis)
    twin = md_twin.Twin(Deform(axis, rate), state, CRYSTAL, 4 * FS)
    _, cells = twin.run(500, sample=lambda s: s.cell[0], interval=100)
    for n, now in enumerate(cells):
        expected = cell.copy()
        expected[:, k] *= 1 + rate * 0.4 * (n + 1)
        np.testing.assert_allclose(now, expected, rtol=1e-13)
    assert np.linalg.det(state.cell[0]) == pytest.approx((1 + 2 * rate) * np.linalg.det(cell))


def test_ideal_gas_is_exact():
    """Scaled coordinates: L^2 ds/dt is constant, so v L is, and positions follow from the integral of 1/L^2."""
    state = gas()
    rate, h, n = 0.1, 2 * FS, 2000
    twin = md_twin.Twin(Deform("x", rate), state, md_twin.free, h)
    x, v = state.x.copy(), state.v.copy()
    conserved = twin.run(n).conserved[:, 0]
    stretch = 1 + rate * n * h / PS
    np.testing.assert_allclose(state.v, v / [stretch, 1, 1], rtol=0, atol=1e-14)
    # s(t) - s(0) = (v L)(0) integral dt / L^2 = v / L_0 * t / (1 + rate t)
    time = n * h
    np.testing.assert_allclose(state.x[:, 0], (x[:, 0] + v[:, 0] * time / stretch) * stretch, rtol=1e-6)
    np.testing.assert_allclose(state.x[:, 1:], x[:, 1:] + time * v[:, 1:], atol=1e-9)
    # the kinetic work is exact
    np.testing.assert_allclose(conserved, 0.5 * state.m[0] * (v**2).sum(), rtol=1e-12)


@pytest.mark.parametrize("rate", [0.05, -0.03])
def test_energy_is_the_work_of_the_stress(rate):
    """First law: the change of U + K is the integral of V sigma over the strain, with the stress as users get it."""
    state = md_twin.argon(kT=0.02)
    twin = md_twin.Twin(Deform("y", rate), state, CRYSTAL, 2 * FS)

    def stress_times_volume(s):
        return -(s.virial[0, 1, 1] + (s.m * s.v[:, 1] ** 2).sum())

    twin.run(1)
    record, force = twin.run(1000, sample=stress_times_volume)
    strain = 1 + rate * 2e-3 * np.arange(2, 1002)
    work = (0.5 * (force[1:] + force[:-1]) * np.diff(np.log(strain))).sum()
    energy = (record.potential + record.kinetic)[:, 0]
    assert energy[-1] - energy[0] == pytest.approx(work, abs=2e-3)
    assert abs(work) > 0.05
    assert record.conserved[-1, 0] - record.conserved[0, 0] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("temperature", [None, 300.0])
def test_conserved_to_second_order(temperature):
    ensemble = Deform("x", 0.02, temperature)
    coarse, fine, ratio = md_twin.order_of(ensemble, lambda: md_twin.argon(kT=0.02), CRYSTAL, 8 * FS, 2000 * FS)
    assert 3 < ratio < 5
    assert fine < coarse < 5e-3


def test_thermostat_keeps_the_temperature():
    state = md_twin.argon(kT=0.026)
    twin = md_twin.Twin(Deform("x", 1e-3, 300.0, tau_fs=40.0), state, CRYSTAL, 4 * FS)
    assert state.n_dof[0] == 93
    twin.run(500)
    kinetic = twin.run(8000).kinetic[:, 0]
    kT = 300 * units.kB
    mean, error = md_twin.mean_error(kinetic)
    assert abs(mean - 46.5 * kT) < 4 * error
    assert error < 0.01 * mean
    variance, error = md_twin.mean_error((kinetic - 46.5 * kT) ** 2)
    assert abs(variance - 46.5 * kT**2) < 4 * error
    assert np.abs(state.m @ state.v).max() < 1e-10


@pytest.mark.parametrize("free", ["z", "xz"])
def test_free_axes_of_an_ideal_gas(free):
    """p(V) ~ V^N exp(-P V/kT): mean (N + 1) kT/P, variance (N + 1) (kT/P)^2; the deformation is negligible.

    Without collisions nothing moves kinetic energy from one axis to another: velocities are drawn anew now and then.
    """
    n, kT, pressure = 20, 300 * units.kB, 0.01
    state = gas(n=n)
    ensemble = Deform(
        "y", 1e-12, 300.0, tau_fs=20.0, free=free, pressure_GPa=pressure, tau_p_fs=200.0, compressibility_per_GPa=100.0
    )
    twin = md_twin.Twin(ensemble, state, md_twin.free, 4 * FS)
    draw = np.random.default_rng(8)

    def refresh(s):
        s.v[:] = draw.normal(size=s.v.shape) * math.sqrt(kT / 30)
        s.v[:] -= s.v.mean(axis=0)

    twin.run(4000, sample=refresh, interval=20)
    record, _ = twin.run(200000, sample=refresh, interval=20)
    unit = kT / (pressure * GPA)
    mean, error = md_twin.mean_error(record.volume[:, 0])
    assert abs(mean - (n + 1) * unit) < 4 * error
    assert error < 0.02 * mean
    variance, error = md_twin.mean_error((record.volume[:, 0] - (n + 1) * unit) ** 2)
    assert abs(variance - (n + 1) * unit**2) < 4 * error + 0.02 * variance
    assert error < 0.12 * variance
    np.testing.assert_allclose(state.cell[0][[1, 0, 0], [1, 1, 2]], [20, 0, 0], rtol=1e-6)


def test_free_axes_of_a_crystal_contract():
    """Uniaxial stress: free axes come to the external pressure while the other is stretched, held ones do not."""
    stress = {}
    for free in (None, "yz"):
        state = md_twin.argon(kT=0.02)
        ensemble = Deform(
            "x", 5e-3, 100.0, tau_fs=40.0, free=free, pressure_GPa=0.1, tau_p_fs=200.0, compressibility_per_GPa=0.3
        )
        twin = md_twin.Twin(ensemble, state, CRYSTAL, 4 * FS)
        twin.run(500)

        def pressure(s):
            total = np.diag(s.virial[0]) + s.m @ s.v**2
            return total / abs(np.linalg.det(s.cell[0])) / GPA

        record, samples = twin.run(1000, sample=pressure)
        stress[free] = md_twin.mean_error(samples)
        # 4 ps
        conserved = record.conserved[:, 0]
        assert np.ptp(conserved) < 5e-3
        length = np.diag(state.cell[0])
        assert length[0] == pytest.approx(10.8 * 1.03, rel=1e-12)
    mean, error = stress["yz"]
    assert np.abs(mean[1:] - 0.1).max() < 4 * error[1:].max() + 0.01
    assert mean[0] < -0.1
    mean, error = stress[None]
    assert np.abs(mean[1:] - 0.1).min() > 8 * error[1:].max()
    assert length[1] < 10.8
    assert length[1] != length[2]


def test_a_length_that_ends_gives_no_numbers():
    state = gas()
    twin = md_twin.Twin(Deform("x", -9.0), state, md_twin.free, FS)
    twin.run(100)
    assert np.isfinite(state.x).all()
    twin.run(20)
    assert np.isnan(state.x[:, 0]).all()
    assert np.isnan(state.cell[0, 0, 0])


def test_reproducible():
    def build(seeds, numbers):
        return md_twin.argon(seeds, missing=numbers)

    ensembles = [
        Deform("x", 0.01, 300.0, free="yz"), Deform("y", 0.02, 200.0), Deform("z", -0.01, 200.0, free="x")
    ]  # fmt: skip
    md_twin.assert_reproducible(ensembles, build, CRYSTAL, 4 * FS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"axis": "a"}, "axis must be"),
        ({"axis": 0}, "axis must be"),
        ({"axis": "xy"}, "axis must be"),
        ({"rate_per_ps": 0}, "rate_per_ps must not be 0"),
        ({"rate_per_ps": np.nan}, "rate_per_ps must be a finite number"),
        ({"rate_per_ps": "1"}, "rate_per_ps must be a finite number"),
        ({"temperature_K": 0}, "temperature_K must be a positive number"),
        ({"tau_fs": 0}, "tau_fs must be a positive number"),
        ({"tau_p_fs": 0}, "tau_p_fs must be a positive number"),
        ({"pressure_GPa": None}, "pressure_GPa must be a finite number"),
        ({"compressibility_per_GPa": 0}, "compressibility_per_GPa must be a positive number"),
        ({"free": "x"}, "free must be None or name axes other than 'x': 'y', 'z', 'yz'; got 'x'"),
        ({"free": "xyz"}, "free must be None or name axes other than"),
        ({"free": "yy"}, "free must be None or name axes other than"),
        ({"free": ""}, "free must be None or name axes other than"),
        ({"free": True}, "free must be None or name axes other than"),
        ({"free": "y", "temperature_K": None}, "free='y' needs temperature_K"),
    ],
)
def test_refuses(values, message):
    with pytest.raises(EnsembleError, match="Deform: " + message):
        Deform(**{"axis": "x", "rate_per_ps": 1e-3, "temperature_K": 300.0} | values)


def test_refuses_systems():
    def check(ensemble, **changes):
        ensemble.check(md_twin.setup_of(md_twin.argon(), 0, FS).__class__(**setup | changes))

    setup = md_twin.setup_of(md_twin.argon(), 0, FS).__dict__
    sheet = {"pbc": (True, True, False)}
    check(Deform("x", 1e-3), **sheet)
    with pytest.raises(EnsembleError, match=r"not periodic along z.*pbc is \(True, True, False\)"):
        check(Deform("z", 1e-3), **sheet)
    with pytest.raises(EnsembleError, match="not periodic along z"):
        check(Deform("x", 1e-3, 300.0, free="yz"), **sheet)
    with pytest.raises(EnsembleError, match="needs a cell with a volume"):
        check(Deform("x", 1e-3, 300.0, free="y"), **sheet, cell=np.diag([9, 9, 0.0]))
    with pytest.raises(EnsembleError, match=r"strains the cell by 1 in one time step, .*1/ps"):
        check(Deform("x", 1000.0))
    with pytest.raises(EnsembleError, match="tau_p_fs must be at least 10 time steps, here 10 fs, got 5"):
        check(Deform("x", 1e-3, 300.0, free="y", tau_p_fs=5))
    for constraint, what in (({"n_frozen": 1}, "FixAtoms"), ({"n_held": 1}, "FixBeads")):
        with pytest.raises(EnsembleError, match=f"Deform changes the cell, which has no meaning with .*{what}"):
            check(Deform("x", 1e-3), **constraint)


def test_todict():
    ensemble = Deform("x", np.float64(1e-3), 300, free="zy")
    given = json.loads(json.dumps(ensemble.todict()))
    assert given.pop("name") == "deform"
    assert Deform(**given) == ensemble
    assert given["rate_per_ps"] == 1e-3
    assert given["free"] == "zy"
    assert ensemble.temperature == 300.0
    assert Deform("x", 1e-3).temperature is None
    assert Deform.changes_cell
