"""ase_nepcg.md.ensembles.nve and what all ensembles share (base): against numpy, reversible, of second order."""

import md_twin
import numpy as np
import pytest
from ase import units

from ase_nepcg.errors import NepCGError
from ase_nepcg.md.ensembles.base import Ensemble, EnsembleError, Kernels, Setup, across_periodic, positive
from ase_nepcg.md.ensembles.nve import NVE

FS = units.fs
WELLS = md_twin.wells(1.5)


def setup(**changes):
    default = {
        "n_sites": 4, "n_dof": 12, "n_frozen": 0, "n_held": 0, "pbc": (True, True, True), "cell": np.eye(3) * 9,
        "masses": np.ones(4), "timestep": 1.0,
    }  # fmt: skip
    return Setup(**default | changes)


def test_is_velocity_verlet():
    state = md_twin.oscillators()
    x, v, m, h = state.x.copy(), state.v.copy(), state.m[:, None], 3 * FS
    md_twin.run_twin(NVE(), state, WELLS, 100, h)
    for _ in range(100):
        v -= 0.5 * h * 1.5 * x / m
        x += h * v
        v -= 0.5 * h * 1.5 * x / m
    np.testing.assert_allclose(state.x, x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(state.v, v, rtol=0, atol=1e-12)


def test_is_reversible_with_held_groups_and_frozen_sites():
    state = md_twin.oscillators(frozen=(2,), groups=[(0, 1, 5), (7, 8)])
    twin = md_twin.Twin(NVE(), state, WELLS, 3 * FS)
    x, v = state.x.copy(), state.v.copy()
    twin.run(200)
    assert np.abs(state.x - x)[[0, 3, 8]].min() > 1e-3
    state.v[:] *= -1
    twin.run(200)
    np.testing.assert_allclose(state.x, x, rtol=0, atol=1e-11)
    np.testing.assert_allclose(state.v, -v, rtol=0, atol=1e-11)


def test_energy_is_conserved_to_second_order():
    force = md_twin.lennard_jones(epsilon=0.1)
    coarse, fine, ratio = md_twin.order_of(NVE(), md_twin.argon, force, 8 * FS, 2000 * FS)
    assert 3.6 < ratio < 4.4
    assert 0 < fine < coarse < 1e-3


def test_constraints_conserve_energy_and_hold_centres():
    state = md_twin.oscillators(frozen=(2,), groups=[(0, 1, 5), (7, 8)])
    frozen, held = state.x[2].copy(), state.held.copy()
    conserved = md_twin.run_twin(NVE(), state, WELLS, 500, 2 * FS).conserved[:, 0]
    assert np.ptp(conserved) < 2e-3 * conserved[0]
    np.testing.assert_array_equal(state.x[2], frozen)
    for g, members in enumerate([[0, 1, 5], [7, 8]]):
        np.testing.assert_allclose(np.average(state.x[members], axis=0, weights=state.m[members]), held[g], atol=1e-13)
        np.testing.assert_allclose(state.m[members] @ state.v[members], 0, atol=1e-14)


def test_reproducible():
    def build(seeds, numbers):
        return md_twin.oscillators(seeds, sizes=[8 + k for k in numbers], frozen=(2,), groups=[(0, 1, 5)])

    md_twin.assert_reproducible([NVE()] * 3, build, WELLS, 2 * FS, random=False)


def test_todict_and_defaults():
    nve = NVE()
    assert nve.todict() == {"name": "nve"}
    assert nve.temperature is None
    assert nve.n_dof(setup()) == 12
    assert len(nve.parameters(setup())) == nve.n_params == 0
    assert len(nve.initial(setup())) == nve.n_state == 0
    nve.check(setup(n_frozen=4, n_dof=0))


class Free(Ensemble):
    takes_constraints = False
    without_momentum = True


@pytest.mark.parametrize(
    ("changes", "expected"), [({}, 9), ({"n_frozen": 1, "n_dof": 9}, 9), ({"n_held": 1, "n_dof": 9}, 9)]
)
def test_momentum_is_taken_off_where_it_is_conserved(changes, expected):
    assert Free().n_dof(setup(**changes)) == expected


@pytest.mark.parametrize(("changes", "what"), [({"n_frozen": 1}, "FixAtoms"), ({"n_held": 1}, "FixBeads")])
def test_refuses_constraints(changes, what):
    with pytest.raises(EnsembleError, match=rf"Free changes the cell, .*{what}.*use NVE, Langevin"):
        Free().check(setup(**changes))
    Free().check(setup())


@pytest.mark.parametrize("value", [0, -1.0, np.inf, np.nan, "300", None, True, [300.0], 1j])
def test_positive_refuses(value):
    owner = Free()
    object.__setattr__(owner, "speed", value)
    with pytest.raises(EnsembleError, match="Free: speed must be a positive number, got") as error:
        positive(owner, "speed")
    assert isinstance(error.value, NepCGError)
    assert isinstance(error.value, ValueError)


def test_positive_makes_floats():
    owner = Free()
    owner.speed = np.float32(2)
    positive(owner, "speed")
    assert type(owner.speed) is float


def test_across_periodic():
    turned = np.array([[0, 9.0, 0], [-9.0, 0, 0], [0, 0, 20.0]])
    assert not across_periodic(setup(), [1, 2, 3])
    assert not across_periodic(setup(pbc=(True, True, False)), [1e-5, -1, 0])
    assert across_periodic(setup(pbc=(True, True, False)), [1, 0, 1e-3])
    assert across_periodic(setup(pbc=(True, False, False), cell=turned), [1, 0, 0])
    assert not across_periodic(setup(pbc=(True, False, False), cell=turned), [0, 1, 0])
    assert across_periodic(setup(pbc=(False, False, False)), [1e-9, 0, 0])
    # a sheet without a third vector
    assert not across_periodic(setup(pbc=(True, True, False), cell=np.diag([9, 9, 0.0])), [1, 1, 0])


def test_base_has_no_kernels():
    with pytest.raises(NotImplementedError):
        Ensemble.kernels()
    assert Kernels(None, None, None).drive is None
