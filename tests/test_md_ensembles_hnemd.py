"""ase_nepcg.md.ensembles.hnemd: the driving force is that of the heat current; momentum, energy, dissipation."""

import json

import md_twin
import numba
import numpy as np
import pytest
from ase import units

from ase_nepcg.md.ensembles.base import EnsembleError
from ase_nepcg.md.ensembles.hnemd import HNEMD, convect, driving_force, work_of_kick
from ase_nepcg.md.state import make_state

FS = units.fs
CRYSTAL = md_twin.lennard_jones(epsilon=0.1)
FIELD = (3e-3, -2e-3, 1e-3)


@numba.njit
def all_driving_forces(s, p, out):
    for i in range(len(out)):
        out[i, 0], out[i, 1], out[i, 2] = driving_force(i, s.virials, s.energies, p)


@numba.njit
def compiled_convect(s, r, h, p):
    return convect(s, r, h, p)


@numba.njit
def compiled_work(s, r, h, p):
    return work_of_kick(s, r, h, p)


def parameters(ensemble, state):
    return ensemble.parameters(md_twin.setup_of(state, 0, FS))


def random_sites(seed=0):
    """A state whose per-site arrays are random numbers: virials are not symmetric."""
    state = md_twin.argon(kT=0.025)
    draw = np.random.default_rng(seed)
    for name in ("f", "energies", "virials"):
        getattr(state, name)[:] = draw.normal(size=getattr(state, name).shape)
    return state


@pytest.mark.parametrize("convective", [False, True])
def test_driving_force_is_that_of_the_heat_current_of_a_nep(make_calculator, atoms, convective):
    """sum D . v = F_e . J, before the mean is taken off; J by the calculator (itself tested against d/dt sum r E)."""
    atoms.set_masses(np.linspace(1, 16, len(atoms)))
    draw = np.random.default_rng(2)
    atoms.set_velocities(draw.normal(size=(len(atoms), 3)) * 0.01)
    calculator = atoms.calc = make_calculator("plain")
    atoms.get_potential_energy()
    v, m = atoms.get_velocities(), atoms.get_masses()
    state = make_state([atoms.positions], [v], [m], [np.zeros(len(atoms))], [atoms.cell.array], [atoms.pbc])
    virials = np.asarray(calculator.get_property("virials", atoms))
    assert np.abs(virials - virials.transpose(0, 2, 1)).max() > 1e-3 * np.abs(virials).max()
    state.virials[:] = virials.reshape(-1, 9)
    state.energies[:] = calculator.get_property("energies", atoms)
    forces = np.empty_like(v)
    all_driving_forces(state, parameters(HNEMD(300.0, FIELD, convective=convective), state), forces)
    # the kinetic part is a force of its own, see convect()
    kinetic = 0.5 * m * (v**2).sum(axis=1)
    current = np.asarray(calculator.get_property("heat_current", atoms))
    power = (forces * v).sum()
    if convective:
        power += kinetic @ v @ FIELD
    else:
        current = current - (kinetic + state.energies) @ v
    assert abs(power) > 1e-6
    assert power == pytest.approx(np.dot(FIELD, current), rel=1e-10)


@pytest.mark.parametrize("convective", [False, True])
def test_driving_force_by_numpy(convective):
    state = random_sites()
    ensemble = HNEMD(300.0, FIELD, convective=convective)
    p = parameters(ensemble, state)
    out = np.empty_like(state.x)
    all_driving_forces(state, p, out)
    expected = np.einsum("a,iab->ib", FIELD, state.virials.reshape(-1, 3, 3))
    if convective:
        expected += state.energies[:, None] * FIELD
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-15)
    before = state.f.copy()
    md_twin.compiled(HNEMD)[2](state, FS, p[None], np.zeros((1, 7)))
    np.testing.assert_allclose(state.f - before, expected - expected.mean(axis=0), rtol=0, atol=1e-14)
    # work of a kick: velocities halfway
    v = state.v + 0.5 * FS * state.f / state.m[:, None]
    work = FS * ((expected - expected.mean(axis=0)) * v).sum()
    assert compiled_work(state, 0, FS, p) == pytest.approx(work, rel=1e-9)


def test_convection_solves_its_equation():
    """dv/dt = (v^2 / 2 - <m v^2 / 2> / m) F_e, third order in one step; no momentum; the work is the change of K."""
    state = random_sites()
    strong = (0.5, -0.3, 0.2)
    p = parameters(HNEMD(300.0, strong, convective=True), state)
    start, m = state.v.copy(), state.m[:, None]

    def exact(v, time, pieces=2000):
        for _ in range(pieces):
            h = time / pieces

            def rate(u):
                energy = 0.5 * m * (u**2).sum(axis=1, keepdims=True)
                return (energy - energy.mean()) / m * strong

            a = rate(v)
            b = rate(v + 0.5 * h * a)
            v = v + h * rate(v + 0.5 * h * b)
        return v

    errors = []
    for h in (10.0, 5.0):
        state.v[:] = start
        work = compiled_convect(state, 0, h, p)
        assert work == pytest.approx(0.5 * (m * (state.v**2 - start**2)).sum(), rel=1e-9)
        assert abs(work) > 1e-4
        np.testing.assert_allclose(state.m @ state.v, state.m @ start, atol=1e-12)
        errors.append(np.abs(state.v - exact(start, h)).max())
    assert 6 < errors[0] / errors[1] < 10
    assert errors[1] < 0.01 * np.abs(state.v - start).max()


@pytest.mark.parametrize("convective", [False, True])
def test_heat_is_driven_and_accounted_for(convective):
    """The field does work on average, the thermostat takes it, momentum stays zero and the temperature on target."""
    state = md_twin.argon(kT=0.005)
    field = 0.05
    twin = md_twin.Twin(HNEMD(60.0, (field, 0, 0), tau_fs=60.0, convective=convective), state, CRYSTAL, 4 * FS)
    assert state.n_dof[0] == 93
    twin.run(1000)
    before = twin.q[0, 6]

    def current(s):
        return (s.virials.reshape(-1, 3, 3) @ s.v[:, :, None])[:, 0, 0].sum() + convective * (
            (s.energies + 0.5 * s.m * (s.v**2).sum(axis=1)) @ s.v[:, 0]
        )

    record, currents = twin.run(10000, sample=current, interval=5)
    mean, error = md_twin.mean_error(currents)
    assert mean > 4 * error
    # power of the field, from the current and as summed up by the kernel (light and heavy sites: less the mean force)
    assert (twin.q[0, 6] - before) / (10000 * 4 * FS) == pytest.approx(field * mean, rel=0.1)
    assert np.abs(state.m @ state.v).max() < 1e-10
    kinetic, error = md_twin.mean_error(record.kinetic[:, 0])
    assert abs(kinetic - 93 / 2 * 60 * units.kB) < 4 * error + 2e-4 * kinetic
    assert error < 0.01 * kinetic
    assert np.ptp(record.conserved) < 0.05 * (twin.q[0, 6] - before)


@pytest.mark.parametrize("convective", [False, True])
def test_conserved_to_second_order(convective):
    ensemble = HNEMD(300.0, (0.02, 0.01, 0), convective=convective)
    coarse, fine, ratio = md_twin.order_of(ensemble, lambda: md_twin.argon(kT=0.025), CRYSTAL, 8 * FS, 2000 * FS)
    assert 3.3 < ratio < 4.7
    assert fine < coarse < 0.01


def test_reproducible():
    def build(seeds, numbers):
        return md_twin.argon(seeds, missing=numbers)

    ensembles = [HNEMD(200.0 + 100 * k, (0.01, 0.01 * k, 0), convective=k == 1) for k in range(3)]
    md_twin.assert_reproducible(ensembles, build, CRYSTAL, 4 * FS, random=False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"field_per_A": 1e-4}, r"field_per_A must be a vector, got 0.0001: .*field_per_A=\(0.0001, 0, 0\)"),
        ({"field_per_A": (0, 0, 0)}, "not all zero, got .*without a field use NoseHoover"),
        ({"field_per_A": (1e-4, 0)}, "three finite numbers in 1/Å"),
        ({"field_per_A": (1e-4, 0, np.nan)}, "three finite numbers in 1/Å"),
        ({"field_per_A": "xyz"}, "must be a vector, got 'xyz'"),
        ({"field_per_A": ("a", "b", "c")}, "three finite numbers in 1/Å"),
        ({"field_per_A": None}, "must be a vector, got None"),
        ({"temperature_K": 0}, "temperature_K must be a positive number"),
        ({"tau_fs": -1}, "tau_fs must be a positive number"),
        ({"chain": 1}, "chain must be a whole number of thermostats"),
        ({"convective": 1}, "convective must be True or False, got 1"),
    ],
)
def test_refuses(values, message):
    with pytest.raises(EnsembleError, match="HNEMD: .*" + message):
        HNEMD(**{"temperature_K": 300.0, "field_per_A": FIELD} | values)


@pytest.mark.parametrize(("constraint", "what"), [({"frozen": (1,)}, "FixAtoms"), ({"groups": [(0, 1)]}, "FixBeads")])
def test_refuses_constraints(constraint, what):
    with pytest.raises(EnsembleError, match=f"heat current of a system with .*{what}.*: remove the constraint"):
        md_twin.Twin(HNEMD(300.0, FIELD), md_twin.oscillators(**constraint), CRYSTAL, FS)


def test_refuses_fields_across_the_periodic_directions():
    state = md_twin.argon()
    state.pbc[:, 2] = False
    with pytest.raises(EnsembleError, match="component along which the cell is not periodic"):
        HNEMD(300.0, FIELD).check(md_twin.setup_of(state, 0, FS))
    HNEMD(300.0, (1e-4, 1e-4, 0)).check(md_twin.setup_of(state, 0, FS))


def test_todict():
    ensemble = HNEMD(300, [1e-4, 0, np.float64(0)])
    given = json.loads(json.dumps(ensemble.todict()))
    assert given.pop("name") == "hnemd"
    expected = {"temperature_K": 300, "field_per_A": [1e-4, 0, 0], "tau_fs": 100, "chain": 3, "convective": False}
    assert given == expected
    assert HNEMD(**given) == ensemble
    assert ensemble.temperature == 300.0
    assert ensemble.n_state == 7
    assert HNEMD.per_site
