"""The contract of an ASE calculator: sums, shapes, derivatives, cache, aliasing, periodicity, one section each."""

import itertools

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.calculators.mixing import SumCalculator
from ase.calculators.singlepoint import SinglePointCalculator

from ase_nepcg import NEP, NEPModel
from ase_nepcg.labels import set_labels

STANDARD = ("energy", "free_energy", "energies", "forces", "stress", "stresses")


# ---- 1. sums ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "zbl", "full"])
def test_sums(make_calculator, many, name):
    many.calc = calc = make_calculator(name)
    energy = many.get_potential_energy()
    # site energies have either sign: rounding goes with the sum of their sizes
    assert abs(many.get_potential_energies().sum() - energy) <= 1e-12 * abs(many.get_potential_energies()).sum()
    assert np.allclose(many.get_stresses().sum(axis=0), many.get_stress(), rtol=1e-12, atol=1e-14)
    assert abs(many.get_forces().sum(axis=0)).max() < 1e-11 * len(many)
    assert calc.get_property("free_energy", many) == energy


# ---- 2. shapes and registry ------------------------------------------------------------------------------------------


def test_properties_are_listed_on_the_class_and_available(make_calculator, atoms):
    assert issubclass(NEP, Calculator)
    assert tuple(NEP.implemented_properties) == STANDARD
    calc = make_calculator()
    shapes = {name: np.shape(calc.get_property(name, atoms)) for name in STANDARD}
    assert shapes == {
        "energy": (), "free_energy": (), "energies": (12,), "forces": (12, 3), "stress": (6,), "stresses": (12, 6)
    }  # fmt: skip
    assert type(calc.get_property("energy", atoms)) is float


@pytest.mark.parametrize("asked", ["energy", "stresses", "virials", "descriptors", "heat_current"])
def test_export_properties_after_any_calculation(make_calculator, atoms, asked):
    calc = make_calculator()
    calc.get_property(asked, atoms)
    exported = calc.export_properties()
    assert set(exported) >= {"energy", "free_energy", "energies", "forces", "stress"}
    assert exported["natoms"] == 12


def test_export_properties_without_cell(make_calculator, structures):
    calc = make_calculator()
    calc.get_property("energy", structures["cluster"])
    assert "stress" not in calc.export_properties()


@pytest.mark.parametrize("properties", [["energy"], ["energy", "forces", "stress", "energies"], list(STANDARD), []])
def test_calculate_called_directly_with_only_some_changes(make_calculator, atoms, properties):
    calc = make_calculator()
    calc.calculate(atoms)
    first = calc.results["energy"]
    atoms.rattle(0.05, seed=1)
    calc.calculate(atoms, properties, ["positions"])
    assert calc.results["energy"] != first
    assert calc.results["energy"] == make_calculator().get_property("energy", atoms)


# ---- 3. derivatives --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["plain", "zbl", "full"])
@pytest.mark.parametrize("gap", [None, 5e-4, -5e-4])
def test_derivatives_on_a_triclinic_cell_and_near_the_cutoff(make_calculator, models, atoms, model, gap):
    if gap is not None:
        # the first two sites are an O and an H
        cutoff = models[model].pair_cutoffs()[1][0, 1]
        atoms.set_distance(0, 1, cutoff + gap, fix=0)
        assert abs(atoms.get_distance(0, 1) - cutoff) < 1e-3
    atoms.calc = make_calculator(model)
    some = [0, 1, 7]
    numerical = calculate_numerical_forces(atoms, eps=1e-4, iatoms=some)
    assert abs(atoms.get_forces()[some] - numerical).max() <= 1e-6
    assert abs(atoms.get_stress() - calculate_numerical_stress(atoms, eps=1e-5)).max() <= 1e-7


def test_forces_are_smooth_through_the_cutoff(make_calculator, structures):
    calc = make_calculator("full")
    pair = structures["dimer_at_A"]
    r = 4.0 * (1 + np.linspace(-1e-7, 1e-7, 21))
    forces = []
    for distance in r:
        pair.set_distance(0, 1, distance, fix=0)
        forces.append(calc.get_property("forces", pair)[1, 0])
    # steps of 4e-8 Å: nothing may jump
    assert abs(np.diff(forces)).max() < 1e-6


# ---- 4. cache --------------------------------------------------------------------------------------------------------


def ask(atoms):
    """What users ask for most, in one go."""
    return atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress() if atoms.cell.rank == 3 else None


def test_energy_forces_and_stress_are_one_evaluation(make_calculator, atoms, evaluations):
    atoms.calc = make_calculator()
    ask(atoms)
    atoms.get_potential_energies()
    atoms.get_potential_energy(force_consistent=True)
    ask(atoms)
    assert len(evaluations) == 1
    # an equal copy is the same question
    copy = atoms.copy()
    copy.calc = atoms.calc
    ask(copy)
    assert len(evaluations) == 1


def displace(atoms):
    atoms.positions[3, 1] += 1e-9


def strain(atoms):
    atoms.set_cell(atoms.cell.array * 1.001, scale_atoms=True)


def larger_cell(atoms):
    atoms.set_cell(atoms.cell.array * 1.001)


def open_z(atoms):
    atoms.pbc = [True, True, False]


def other_species(atoms):
    atoms.symbols[0] = "H"


def one_site_less(atoms):
    del atoms[-1]


def exchange_labels(atoms):
    set_labels(atoms, atoms.arrays["bead"][[1, 0, 2]])


def relabel_array_and_tag(atoms):
    atoms.arrays["bead"][0], atoms.arrays["bead"][1] = atoms.arrays["bead"][1], atoms.arrays["bead"][0]
    tags = atoms.get_tags()
    tags[[0, 1]] = tags[[1, 0]]
    atoms.set_tags(tags)


@pytest.mark.parametrize("change", [displace, strain, larger_cell, open_z, other_species, one_site_less])
def test_a_change_of_the_geometry_is_one_more_evaluation(make_calculator, atoms, evaluations, change):
    atoms.calc = make_calculator()
    before = ask(atoms)[0]
    change(atoms)
    after = ask(atoms)[0]
    assert len(evaluations) == 2
    fresh = atoms.copy()
    fresh.calc = make_calculator()
    assert after == ask(fresh)[0] != before


@pytest.mark.parametrize("change", [exchange_labels, relabel_array_and_tag])
def test_a_change_of_a_bead_label_is_one_more_evaluation(make_calculator, models, evaluations, change):
    species = models["beads"].species
    atoms = Atoms("XX", [[0, 0, 0], [2, 0, 0]], cell=[9, 9, 9], pbc=True)
    set_labels(atoms, species, masses=18.0)
    atoms += atoms[:1]
    atoms.positions[2] = [0.3, 2.5, 0]
    atoms.calc = make_calculator("beads")
    before = ask(atoms)[0]
    change(atoms)
    assert ask(atoms)[0] != before
    assert len(evaluations) == 2


def test_attaching_labels_of_the_same_meaning_is_no_change(make_calculator, atoms, evaluations):
    atoms.calc = make_calculator()
    ask(atoms)
    set_labels(atoms, atoms.get_chemical_symbols())
    ask(atoms)
    assert len(evaluations) == 1


def new_tags(atoms):
    atoms.set_tags(range(len(atoms)))


def new_info(atoms):
    atoms.info["note"] = "changed"


def new_momenta(atoms):
    atoms.set_momenta(np.ones((len(atoms), 3)))


def new_masses(atoms):
    atoms.set_masses(2 * atoms.get_masses())


def new_charges(atoms):
    atoms.set_initial_charges(np.ones(len(atoms)))


def new_moments(atoms):
    atoms.set_initial_magnetic_moments(np.ones(len(atoms)))


@pytest.mark.parametrize("change", [new_tags, new_info, new_momenta, new_masses, new_charges, new_moments])
def test_a_change_that_no_energy_depends_on_is_no_evaluation(make_calculator, atoms, evaluations, change):
    atoms.calc = make_calculator()
    ask(atoms)
    change(atoms)
    ask(atoms)
    assert len(evaluations) == 1


def test_check_state_names_the_changes_and_takes_a_tolerance(make_calculator, atoms):
    calc = make_calculator()
    assert set(calc.check_state(atoms)) >= {"positions", "numbers", "cell", "pbc"}
    calc.get_property("energy", atoms)
    assert calc.check_state(atoms) == []
    new_charges(atoms)
    new_moments(atoms)
    displace(atoms)
    assert calc.check_state(atoms) == ["positions"]
    assert calc.check_state(atoms, tol=1e-6) == []
    other_species(atoms)
    open_z(atoms)
    larger_cell(atoms)
    for tol in (1e-15, 1e-6):
        assert {*calc.check_state(atoms, tol=tol)} - {"positions"} == {"numbers", "pbc", "cell"}


def test_a_new_parameter_is_one_more_evaluation(make_calculator, models, atoms, evaluations):
    atoms.calc = calc = make_calculator()
    first = ask(atoms)[0]
    assert calc.set(threads=2) == {"threads": 2}
    assert ask(atoms)[0] == first
    assert len(evaluations) == 2
    assert calc.set(threads=2) == {}
    ask(atoms)
    assert len(evaluations) == 2
    calc.set(model=models["nep5"])
    assert ask(atoms)[0] == make_calculator("nep5").get_property("energy", atoms) != first


def test_a_new_temperature_changes_the_energy(make_calculator, atoms):
    atoms.calc = calc = make_calculator("full", temperature_K=300)
    first = atoms.get_potential_energy()
    calc.set(temperature_K=600)
    assert atoms.get_potential_energy() != first
    calc.set(temperature_K=300)
    assert atoms.get_potential_energy() == first


def test_a_model_file_that_changed_is_read_by_set(tmp_path, models, atoms):
    path = tmp_path / "nep.txt"
    models["plain"].write(path)
    atoms.calc = calc = NEP(path)
    first = atoms.get_potential_energy()
    models["nep5"].write(path)
    # the file is read once
    atoms.rattle(0)
    assert atoms.get_potential_energy() == first
    calc.set(model=path)
    assert calc.model == models["nep5"]
    assert atoms.get_potential_energy() == NEP(models["nep5"]).get_property("energy", atoms) != first


def test_site_stresses_come_with_every_evaluation_once_they_were_asked_for(make_calculator, atoms, evaluations):
    atoms.calc = make_calculator()
    ask(atoms)
    atoms.get_stresses()
    assert len(evaluations) == 2
    displace(atoms)
    ask(atoms)
    atoms.get_stresses()
    assert len(evaluations) == 3


def test_reset_forgets(make_calculator, atoms, evaluations):
    atoms.calc = calc = make_calculator()
    first = ask(atoms)[0]
    calc.reset()
    assert calc.results == {}
    assert calc.get_property("virials", atoms, allow_calculation=False) is None
    assert ask(atoms)[0] == first
    assert len(evaluations) == 2


# ---- 5. no calculation when forbidden --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*STANDARD, "virials", "descriptors", "heat_current"])
def test_no_calculation_when_forbidden(make_calculator, atoms, evaluations, name):
    calc = make_calculator()
    assert calc.get_property(name, atoms, allow_calculation=False) is None
    calc.get_property(name, atoms)
    assert calc.get_property(name, atoms, allow_calculation=False) is not None
    displace(atoms)
    assert calc.get_property(name, atoms, allow_calculation=False) is None
    assert len(evaluations) == 1


def test_calculation_required(make_calculator, atoms):
    calc = make_calculator()
    assert calc.calculation_required(atoms, ["energy"])
    calc.get_property("energy", atoms)
    assert not calc.calculation_required(atoms, ["energy", "forces"])
    displace(atoms)
    assert calc.calculation_required(atoms, ["energy", "forces"])


# ---- 6. no aliasing --------------------------------------------------------------------------------------------------


def test_results_are_not_overwritten_by_the_next_calculation(make_calculator, many):
    many.calc = calc = make_calculator()
    for name in ("stresses", "virials", "descriptors"):
        calc.get_property(name, many)
    taken = {**calc.results, "returned": many.get_forces(), "virials": calc.get_property("virials", many)}
    single = SinglePointCalculator(many, **{k: v for k, v in calc.results.items() if k in STANDARD})
    old = many.copy()
    copies = {name: np.copy(value) for name, value in taken.items()}
    for _ in range(2):
        many.rattle(0.05, seed=2)
        ask(many)
        calc.get_property("virials", many)
    assert not np.array_equal(many.get_forces(), copies["forces"])
    assert all(np.array_equal(taken[name], copies[name]) for name in taken)
    assert np.array_equal(single.get_property("forces", old), copies["forces"])


@pytest.mark.parametrize("name", ["forces", "energies", "stress", "stresses", "virials", "descriptors", "heat_current"])
def test_changing_a_returned_array_does_not_change_the_cache(make_calculator, atoms, name):
    atoms.set_momenta(np.ones((len(atoms), 3)))
    calc = make_calculator()
    first = calc.get_property(name, atoms)
    copy = first.copy()
    first += 1.0
    assert np.array_equal(calc.get_property(name, atoms), copy)


def test_the_calculator_does_not_see_later_changes_of_the_atoms(make_calculator, atoms):
    atoms.calc = calc = make_calculator()
    atoms.get_potential_energy()
    before = calc.atoms.positions.copy()
    atoms.positions += 0.1
    assert np.array_equal(calc.atoms.positions, before)


def test_sum_calculator_doubles_every_property(make_calculator, many):
    calc = make_calculator()
    expected = {name: calc.get_property(name, many) for name in STANDARD}
    before = {name: a.tobytes() for name, a in many.arrays.items()}
    total = SumCalculator([calc, calc])
    assert set(total.implemented_properties) == set(STANDARD)
    for name in STANDARD:
        assert np.array_equal(total.get_property(name, many), 2 * np.asarray(expected[name])), name
    assert {name: a.tobytes() for name, a in many.arrays.items()} == before
    assert not many.info


# ---- 7. periodicity --------------------------------------------------------------------------------------------------


def explicit_cluster(atoms, reach):
    """``atoms`` first, then all their periodic images within ``reach`` of any of them; no cell."""
    cell = atoms.cell.complete().array
    heights = abs(np.linalg.det(cell)) * np.linalg.norm(np.linalg.inv(cell), axis=0) ** -1 / abs(np.linalg.det(cell))
    extent = np.ptp(atoms.positions @ np.linalg.inv(cell), axis=0)
    n = np.where(atoms.pbc, np.ceil(reach / heights + extent), 0).astype(int)
    positions, symbols = [atoms.positions], list(atoms.symbols)
    for shift in itertools.product(*(range(-k, k + 1) for k in n)):
        if any(shift):
            moved = atoms.positions + np.array(shift) @ cell
            distance = np.linalg.norm(moved[:, None] - atoms.positions, axis=-1).min(axis=1)
            positions.append(moved[distance < reach])
            symbols += list(atoms.symbols[distance < reach])
    return Atoms(symbols, np.concatenate(positions))


@pytest.mark.parametrize("model", ["zbl", "full"])
@pytest.mark.parametrize(
    "name",
    [
        "triclinic",
        "left_handed",
        "primitive",
        "thin",
        "slab",
        "slab_without_height",
        "wire",
        "single_in_cell",
        "cluster_in_cell",
    ],
)
def test_images_agree_with_a_large_explicit_cluster(make_calculator, structures, model, name):
    atoms = structures[name]
    # a site feels its neighbours' neighbours
    cluster = explicit_cluster(atoms, 12.1)
    n = len(atoms)
    assert len(cluster) > n or name in ("cluster_in_cell",) or not atoms.pbc.any()
    calc = make_calculator(model)
    energies, forces = (calc.get_property(key, atoms) for key in ("energies", "forces"))
    assert np.allclose(energies, calc.get_property("energies", cluster)[:n], rtol=0, atol=1e-12)
    assert np.allclose(forces, calc.get_property("forces", cluster)[:n], rtol=1e-11, atol=1e-11)


def test_the_cell_does_not_matter_without_periodicity(make_calculator, structures):
    cluster, boxed = structures["cluster"], structures["cluster_in_cell"]
    calc = make_calculator()
    assert np.isclose(calc.get_property("energy", cluster), calc.get_property("energy", boxed), rtol=1e-13)
    # as for every calculator of ASE there is a stress where there is a volume
    assert calc.get_property("stress", boxed).shape == (6,)


def test_pbc_and_cell_are_looked_at_by_direction(make_calculator, atoms):
    calc = make_calculator()
    energies = set()
    for pbc in itertools.product([False, True], repeat=3):
        atoms.pbc = pbc
        energies.add(round(calc.get_property("energy", atoms), 10))
    assert len(energies) == 8


@pytest.mark.parametrize("name", ["cluster", "wire", "slab_without_height", "single_site"])
@pytest.mark.parametrize("wanted", ["stress", "stresses"])
def test_no_stress_without_three_cell_vectors(make_calculator, structures, name, wanted):
    atoms = structures[name]
    atoms.calc = calc = make_calculator()
    with pytest.raises(PropertyNotImplementedError, match=f"{wanted} needs a cell with three vectors, got"):
        calc.get_property(wanted, atoms)
    assert np.isfinite(atoms.get_potential_energy())
    assert atoms.get_forces().shape == (len(atoms), 3)


def test_atoms_far_outside_the_cell(make_calculator, atoms):
    calc = make_calculator()
    energy, forces = calc.get_property("energy", atoms), calc.get_property("forces", atoms)
    rng = np.random.default_rng(1)
    for far in (10, 10_000):
        moved = atoms.copy()
        moved.positions += rng.integers(-far, far, (len(atoms), 3)) @ atoms.cell.array
        # positions of size 1e5 Å are rounded to 1e-11 Å
        assert np.isclose(calc.get_property("energy", moved), energy, rtol=0, atol=1e-13 * far + 1e-11)
        assert np.allclose(calc.get_property("forces", moved), forces, rtol=0, atol=1e-12 * far + 1e-10)


def test_a_single_site_has_the_energy_of_its_empty_surroundings(make_calculator, models, structures):
    model: NEPModel = models["single"]
    h = np.tanh(-model.b0[0])
    atoms = Atoms("O", [[1.0, 2.0, 3.0]])
    assert np.isclose(make_calculator("single").get_property("energy", atoms), model.w1[0] @ h - model.bias, rtol=1e-13)
    assert not make_calculator("single").get_property("forces", atoms).any()
