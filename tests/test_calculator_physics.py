"""Numbers: the compiled kernels against the plain twin, and what each extra property means."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.calculator import PropertyNotImplementedError

from ase_nepcg import NEP, NEPModel, testing
from ase_nepcg.labels import get_types

STRUCTURES = (
    "dimer",
    "dimer_below_A",
    "dimer_at_R",
    "triclinic",
    "left_handed",
    "primitive",
    "slab_without_height",
    "wire",
)


# ---- the plain twin --------------------------------------------------------------------------------------------------


def assert_equals_twin(calc, atoms):
    model = calc.model
    twin = testing.reference_evaluate(
        model,
        atoms.positions,
        atoms.cell.array,
        atoms.pbc,
        get_types(atoms, model.species),
        temperature_K=calc.parameters.temperature_K,
    )
    for name in ("energies", "forces", "virials", "descriptors"):
        got = calc.get_property(name, atoms)
        assert got.shape == twin[name].shape, name
        # sums of some hundred terms of either sign: rounding goes with the largest
        assert abs(got - twin[name]).max() <= 1e-12 * max(1.0, abs(twin[name]).max()), name
    assert np.isclose(calc.get_property("energy", atoms), twin["energy"], rtol=1e-12)
    if atoms.cell.rank == 3:
        stress = -twin["virial"].ravel()[[0, 4, 8, 5, 2, 1]] / atoms.get_volume()
        assert np.allclose(
            atoms.get_volume() * calc.get_property("stress", atoms), atoms.get_volume() * stress, atol=1e-10
        )


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("model", ["plain", "nep3", "nep5", "zbl", "full"])
def test_equals_the_twin(make_calculator, structures, model, name):
    assert_equals_twin(make_calculator(model), structures[name])


@pytest.mark.parametrize("model", ["single", "beads"])
def test_equals_the_twin_for_other_species(make_calculator, models, model):
    assert_equals_twin(make_calculator(model), testing.structures(models[model].species)["triclinic"])


def test_equals_the_twin_when_only_some_species_are_there(make_calculator, structures):
    atoms = structures["triclinic"]
    atoms.symbols[:] = "H"
    for model in ("plain", "nep3", "nep5", "zbl", "full"):
        assert_equals_twin(make_calculator(model), atoms)


def test_equals_the_twin_with_many_species_and_cutoffs_per_type():
    species = ("C", "Si", "X9", "long-bead", "N")
    cutoff = {label: (6.0 - 0.3 * k, 4.0 - 0.2 * k) for k, label in enumerate(species)}
    model = NEPModel.random(species, seed=11, cutoff=cutoff)
    assert_equals_twin(NEP(model), testing.structures(species)["triclinic"])


def test_equals_the_twin_where_the_angular_cutoff_is_the_longer_one(structures):
    model = NEPModel.random(["O", "H"], seed=12, cutoff=(3.5, 5.0))
    assert_equals_twin(NEP(model), structures["triclinic"])


@pytest.mark.parametrize("distance", [0.3, 0.8, 1.2, 1.8, 2.4 - 1e-9, 2.4, 2.4 + 1e-9])
def test_repulsion_equals_the_twin_at_all_distances(make_calculator, distance):
    assert_equals_twin(make_calculator("zbl"), Atoms("OH", [[0.1, 0.2, 0.3], [0.1 + distance, 0.2, 0.3]]))


# ---- virials ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["plain", "zbl", "full"])
def test_virials_are_the_stress_and_not_symmetric(make_calculator, atoms, model):
    calc = make_calculator(model)
    virials = calc.get_property("virials", atoms)
    total = virials.sum(axis=0)
    assert np.allclose(total, total.T, atol=1e-11)
    stress = -total.ravel()[[0, 4, 8, 5, 2, 1]] / atoms.get_volume()
    assert np.allclose(stress, calc.get_property("stress", atoms), atol=1e-13)
    assert abs(virials - virials.transpose(0, 2, 1)).max() > 1e-3
    symmetric = (virials + virials.transpose(0, 2, 1)) / 2
    stresses = -symmetric.reshape(-1, 9)[:, [0, 4, 8, 5, 2, 1]] / atoms.get_volume()
    assert np.allclose(stresses, calc.get_property("stresses", atoms), atol=1e-14)


def test_virials_and_descriptors_are_there_without_a_cell(make_calculator, structures):
    calc = make_calculator()
    for name in ("cluster", "wire", "single_site"):
        n = len(structures[name])
        assert calc.get_property("virials", structures[name]).shape == (n, 3, 3)
        assert calc.get_property("descriptors", structures[name]).shape == (n, calc.model.n_descriptor)
        with pytest.raises(PropertyNotImplementedError, match="three vectors"):
            calc.get_property("stresses", structures[name])


def test_virials_of_a_pair(make_calculator):
    # W_i = r_ij f_ji for both sites, with f_12 + f_21' the force: for one pair the trace is r . F
    pair = Atoms("OH", [[0, 0, 0], [1.2, 0.9, -0.4]])
    calc = make_calculator()
    r = pair.positions[1]
    total = calc.get_property("virials", pair).sum(axis=0)
    assert np.allclose(total, np.outer(r, calc.get_property("forces", pair)[1]), atol=1e-13)


def test_descriptors_are_the_network_input(make_calculator, atoms):
    calc = make_calculator()
    model = calc.model
    types = get_types(atoms, model.species)
    hidden = np.tanh(
        np.einsum("imd,id->im", model.w0[types], calc.get_property("descriptors", atoms)) - model.b0[types]
    )
    energies = np.einsum("im,im->i", model.w1[types], hidden) - model.bias
    assert np.allclose(energies, calc.get_property("energies", atoms), atol=1e-12)


def test_the_last_descriptor_is_the_temperature(make_calculator, models, atoms):
    calc = make_calculator("full", temperature_K=450.0)
    assert np.allclose(calc.get_property("descriptors", atoms)[:, -1], 450.0 * models["full"].q_scaler[-1], rtol=1e-15)


# ---- heat current ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["plain", "zbl", "full"])
def test_heat_current_is_the_motion_of_the_energy(make_calculator, structures, model, rng):
    """``J = d/dt sum_i r_i (U_i + m_i v_i^2 / 2)`` along the motion that the forces make, in a finite cluster."""
    atoms = structures["cluster"]
    if model == "zbl":
        atoms.set_distance(0, 1, 1.7, fix=0)
    calc = make_calculator(model)
    masses = atoms.get_masses()
    # slow as atoms are, and fast enough that the term of third order in the velocities counts
    for speed in (0.02, 1.0):
        velocities = speed * rng.normal(size=(len(atoms), 3))
        accelerations = calc.get_property("forces", atoms) / masses[:, None]

        def moment(t, velocities=velocities, accelerations=accelerations):
            moved = atoms.copy()
            moved.positions += t * velocities + t**2 / 2 * accelerations
            v = velocities + t * accelerations
            energies = calc.get_property("energies", moved) + masses * (v**2).sum(axis=1) / 2
            return energies @ moved.positions

        h = 1e-4 / speed
        wide, narrow = ((moment(t) - moment(-t)) / (2 * t) for t in (h, h / 2))
        atoms.set_velocities(velocities)
        current = calc.get_property("heat_current", atoms)
        assert abs(current - (4 * narrow - wide) / 3).max() < 1e-8 * abs(current).max()


def test_heat_current_depends_on_momenta_but_needs_no_evaluation(make_calculator, atoms, evaluations, rng):
    calc = make_calculator()
    assert not calc.get_property("heat_current", atoms).any()
    virials, energies = calc.get_property("virials", atoms), calc.get_property("energies", atoms)
    for _ in range(3):
        v = rng.normal(size=(len(atoms), 3))
        atoms.set_velocities(v)
        kinetic = 0.5 * atoms.get_masses() * (v**2).sum(axis=1)
        expected = np.einsum("iab,ib->a", virials, v) + (kinetic + energies) @ v
        assert np.allclose(calc.get_property("heat_current", atoms), expected, rtol=1e-12)
    assert len(evaluations) == 1


def test_heat_current_of_free_flight_is_the_energy_carried(make_calculator, atoms):
    # all sites with the same velocity: the current is the enthalpy that moves, (E + W) . v
    atoms.set_velocities(np.tile([0.1, -0.2, 0.05], (len(atoms), 1)))
    calc = make_calculator()
    v = atoms.get_velocities()[0]
    energy = calc.get_property("energy", atoms) + atoms.get_kinetic_energy()
    stress = atoms.copy()
    stress.calc = calc
    expected = energy * v - atoms.get_volume() * stress.get_stress(voigt=False) @ v
    assert np.allclose(calc.get_property("heat_current", atoms), expected, rtol=1e-11)


def test_heat_current_has_the_units_of_ase(make_calculator, atoms):
    # twice the masses and the velocities of a picture run at half speed: only the units of time matter
    calc = make_calculator()
    atoms.set_velocities(np.full((len(atoms), 3), 1e-3 / units.fs))
    v = 1e-3 / units.fs
    kinetic = 0.5 * atoms.get_masses().sum() * 3 * v**2
    current = calc.get_property("heat_current", atoms)
    rest = calc.get_property("virials", atoms).sum(axis=(0, 2)) * v + calc.get_property("energy", atoms) * v
    assert np.allclose(current - rest, kinetic * v, rtol=1e-9)
