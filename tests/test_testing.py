"""The conformance kit: good calculators pass, and every kind of mistake is found and named."""

import doctest

import numpy as np
import pytest
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones

from ase_nepcg import reference, testing
from ase_nepcg.labels import get_labels, has_labels
from ase_nepcg.testing import CHECKS, TOLERANCES, check_calculator

NAMES = list(testing.structures(["Cu", "Au"]))


def lennard_jones():
    return LennardJones(sigma=2.0, rc=5.0, smooth=True)


# ---- structures ------------------------------------------------------------------------------------------------------


def test_structures_are_what_their_names_say():
    found = testing.structures(["A1", "B"], cutoff=(7.0, 5.0))
    assert found["dimer_at_R"].get_distance(0, 1) == 7.0
    assert found["dimer_at_A"].get_distance(0, 1) == 5.0
    for letter, distance in (("R", 7.0), ("A", 5.0)):
        assert 0 < distance - found[f"dimer_below_{letter}"].get_distance(0, 1) < 1e-3
        assert 0 < found[f"dimer_above_{letter}"].get_distance(0, 1) - distance < 1e-3
    assert found["two_sites_apart"].get_distance(0, 1) > 7.0
    assert found["triclinic"].cell.handedness == 1
    assert found["left_handed"].cell.handedness == -1
    scaled = found["outside_cell"].get_scaled_positions(wrap=False)
    assert scaled.min() < -1
    assert scaled.max() > 2
    for name, most in (("primitive", 1), ("thin", 4)):
        heights = found[name].get_volume() / found[name].cell.areas()
        assert len(found[name]) == most
        assert heights.min() < 5.0
    assert found["slab"].pbc.tolist() == found["slab_without_height"].pbc.tolist() == [True, True, False]
    assert (found["slab"].cell.rank, found["slab_without_height"].cell.rank) == (3, 2)
    assert (found["wire"].pbc.tolist(), found["wire"].cell.rank) == ([False, False, True], 1)
    assert (found["cluster"].cell.rank, found["cluster_in_cell"].cell.rank) == (0, 3)
    assert len(found["single_site"]) == len(found["single_in_cell"]) == 1


def test_structures_hold_sites_at_reasonable_distances():
    for name, atoms in testing.structures(["A", "B", "C"], cutoff=(12.0, 8.0)).items():
        if len(atoms) > 1:
            distances = atoms.get_all_distances(mic=atoms.cell.rank == 3)[np.triu_indices(len(atoms), 1)]
            assert distances.min() > 2.0, name


def test_structures_use_every_species_and_labels_where_needed():
    beads = testing.structures(["W1", "tail"])["triclinic"]
    assert set(get_labels(beads)) == {"W1", "tail"}
    assert (beads.get_masses() == testing.BEAD_MASS).all()
    elements = testing.structures(["O", "H"])["triclinic"]
    assert not has_labels(elements)
    assert set(elements.symbols) == {"O", "H"}


def test_structures_are_the_same_each_time():
    first, second = testing.structures(["O"]), testing.structures(["O"])
    assert all((first[name].positions == second[name].positions).all() for name in first)


def test_reference_is_the_plain_twin():
    assert testing.reference_evaluate is reference.evaluate


@pytest.mark.parametrize("precision", TOLERANCES)
def test_tolerances_are_ordered(precision):
    tolerance = TOLERANCES[precision]
    # numerical derivatives cannot be better than what they are made of
    assert tolerance.force_derivative > tolerance.force
    assert tolerance.stress_derivative > tolerance.stress
    assert 0 < tolerance.energy <= tolerance.force


# ---- calculators that pass -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["dimer_below_R", "single_in_cell", "primitive", "slab_without_height", "wire", "cluster_in_cell"]
)
def test_lennard_jones_passes(name):
    check_calculator(lennard_jones(), testing.structures(["Cu", "Au"])[name])


@pytest.mark.parametrize("name", ["dimer", "primitive", "slab_without_height", "single_site"])
def test_emt_passes_but_for_its_alias(name):
    # EMT hands out its own buffer of site energies: the kit is right to complain
    check_calculator(EMT(), testing.structures(["Cu", "Au"])[name], skip=("no_aliasing",))


def test_emt_hands_out_its_buffer():
    with pytest.raises(AssertionError, match=r"emt fails 'no_aliasing' on AuCu: .* overwrote results\['energies'\]"):
        check_calculator(EMT(), testing.structures(["Cu", "Au"])["dimer"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", ["plain", "full"])
def test_nep_passes(make_calculator, structures, model, name):
    check_calculator(make_calculator(model), structures[name])


@pytest.mark.parametrize("name", ["dimer", "dimer_below_A", "triclinic", "primitive"])
@pytest.mark.parametrize("model", ["nep3", "nep5", "zbl", "beads", "single"])
def test_every_kind_of_model_passes(make_calculator, models, model, name):
    check_calculator(make_calculator(model), testing.structures(models[model].species)[name])


def test_the_example_of_the_documentation_runs():
    assert doctest.testmod(testing, raise_on_error=True).attempted == 3


def test_atoms_given_are_not_changed():
    atoms = testing.structures(["Cu", "Au"])["triclinic"]
    before = atoms.copy()
    check_calculator(lennard_jones(), atoms)
    assert atoms.calc is None
    assert atoms == before


def test_a_calculator_with_an_energy_only_passes():
    class Energy(Calculator):
        implemented_properties = ("energy",)

        def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
            super().calculate(atoms, properties, system_changes)
            self.results = {"energy": float(len(self.atoms))}

    check_calculator(Energy(), testing.structures(["Cu"])["triclinic"])


# ---- calculators that do not -----------------------------------------------------------------------------------------


class Broken(LennardJones):
    """Lennard-Jones whose results go through ``spoil(results, atoms, calc)``."""

    def __init__(self, spoil):
        super().__init__(sigma=2.0, rc=5.0, smooth=True)
        self.spoil = spoil
        self.buffer = np.zeros((100, 3))

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.spoil(self.results, atoms if atoms is not None else self.atoms, self)


def forces_off_by_1e_4(results, atoms, calc):
    results["forces"] = results["forces"] * (1 + 1e-4)


def stress_of_wrong_sign(results, atoms, calc):
    if "stress" in results:
        results["stress"] = -results["stress"]
        results["stresses"] = -results["stresses"]


def stress_in_another_voigt_order(results, atoms, calc):
    if "stress" in results:
        results["stress"] = results["stress"][[0, 1, 2, 5, 4, 3]]
        results["stresses"] = results["stresses"][:, [0, 1, 2, 5, 4, 3]]


def free_energy_of_its_own(results, atoms, calc):
    results["free_energy"] = results["energy"] * (1 + 1e-15) + 1e-15


def energies_that_do_not_add_up(results, atoms, calc):
    results["energies"] = results["energies"] + 1e-9


def one_force_forgotten(results, atoms, calc):
    results["forces"] = results["forces"].copy()
    results["forces"][0] += 1e-8


def stresses_not_divided_by_the_volume(results, atoms, calc):
    if "stresses" in results:
        results["stresses"] = results["stresses"] * atoms.get_volume()


def wrong_shape(results, atoms, calc):
    results["forces"] = results["forces"].ravel()


def forces_in_a_buffer(results, atoms, calc):
    calc.buffer[: len(atoms)] = results["forces"]
    results["forces"] = calc.buffer[: len(atoms)]


def wrapping_the_callers_atoms(results, atoms, calc):
    atoms.positions += 1e-9


def energy_that_knows_the_origin(results, atoms, calc):
    shift = 1e-6 * atoms.positions[:, 0].sum()
    results["energy"] += shift
    results["free_energy"] = results["energy"]


def energy_that_knows_the_order(results, atoms, calc):
    extra = 1e-6 * np.arange(len(atoms)) * atoms.numbers
    results["energies"] = results["energies"] + extra
    results["energy"] = results["free_energy"] = results["energy"] + extra.sum()


def energy_that_knows_the_axes(results, atoms, calc):
    spread = 1e-7 * np.ptp(atoms.positions[:, 0]) if not atoms.pbc.any() else 0.0
    results["energy"] += spread
    results["free_energy"] = results["energy"]


def jump_of_the_energy(results, atoms, calc):
    if atoms.get_distance(0, 1) > 2.0:
        results["energy"] += 1e-3
        results["free_energy"] = results["energy"]


@pytest.mark.parametrize(
    ("spoil", "structure", "check", "message"),
    [
        (
            forces_off_by_1e_4,
            "triclinic",
            "forces",
            r"force against the derivative .* \(tolerance double.force_derivative\)",
        ),
        (stress_of_wrong_sign, "triclinic", "stress", r"\(tolerance double.stress_derivative\)"),
        (stress_in_another_voigt_order, "triclinic", "stress", "stress against the derivative by strain: got"),
        (free_energy_of_its_own, "cluster", "sums", "free_energy .* is not the energy"),
        (energies_that_do_not_add_up, "cluster", "sums", r"sum of energies: got .*\(tolerance double.energy\)"),
        (one_force_forgotten, "cluster", "sum_of_forces", "expected 0 at"),
        (stresses_not_divided_by_the_volume, "triclinic", "sums", "sum of stresses: got"),
        (wrong_shape, "cluster", "shapes", r"forces has shape \(36,\), expected \(12, 3\)"),
        (forces_in_a_buffer, "cluster", "no_aliasing", r"the next calculation overwrote results\['forces'\]"),
        (wrapping_the_callers_atoms, "cluster", "atoms_unchanged", "changed positions of the atoms"),
        (energy_that_knows_the_origin, "two_sites_apart", "translation", "energy after translation: got"),
        (energy_that_knows_the_order, "cluster", "permutation", "energy after permutation: got"),
        (energy_that_knows_the_axes, "cluster", "rotation", "energy after rotation: got"),
        (jump_of_the_energy, "jump", "forces", r"\(tolerance double.force_derivative\)"),
    ],
)
def test_mistakes_are_found(spoil, structure, check, message):
    found = testing.structures(["Cu", "Au"])
    found["jump"] = found["dimer"].copy()
    found["jump"].set_distance(0, 1, 2.0)
    others = [name for name in CHECKS if name != check]
    with pytest.raises(AssertionError, match=f"fails {check!r} on .*{message}"):
        check_calculator(Broken(spoil), found[structure], skip=others)
    # and nothing but the mistake was the reason
    check_calculator(Broken(lambda *_: None), found["dimer" if structure == "jump" else structure], skip=others)


def test_a_stress_without_volume_is_found():
    class Bold(LennardJones):
        def calculate(self, *args, **keywords):
            super().calculate(*args, **keywords)
            self.results.setdefault("stress", np.zeros(6))

    with pytest.raises(AssertionError, match="expected PropertyNotImplementedError"):
        check_calculator(Bold(), testing.structures(["Cu"])["wire"], skip=("stress",))


class IgnoresPBC(LennardJones):
    """Takes every cell for periodic along the first vector only: what a wrong image count looks like."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        atoms = atoms.copy()
        atoms.pbc = [True, False, False]
        super().calculate(atoms, properties, system_changes)


@pytest.mark.parametrize(("check", "message"), [("lattice", "swapping two cell vectors"), ("wrapping", "cell vectors")])
def test_wrong_images_are_found(check, message):
    with pytest.raises(AssertionError, match=message):
        check_calculator(
            IgnoresPBC(sigma=2.0, rc=5.0, smooth=True),
            testing.structures(["Cu"])["triclinic"],
            skip=[name for name in CHECKS if name != check],
        )


def test_an_energy_that_does_not_grow_with_the_system_is_found():
    def constant(results, atoms, calc):
        results["energy"] += 1e-6

    with pytest.raises(AssertionError, match=r"energy after repetition \[2, 1, 1\]"):
        check_calculator(
            Broken(constant), testing.structures(["Cu"])["triclinic"], skip=[n for n in CHECKS if n != "repetition"]
        )


def test_not_a_number_is_found():
    def nan(results, atoms, calc):
        results["forces"] = results["forces"] * np.nan

    with pytest.raises(AssertionError, match="forces is not finite"):
        check_calculator(Broken(nan), testing.structures(["Cu"])["dimer"])


def test_single_precision_passes_as_mixed_and_fails_as_double():
    def rounded(results, atoms, calc):
        results["energies"] = results["energies"].astype(np.float32).astype(float)
        results["energy"] = results["free_energy"] = results["energies"].sum()
        for name in ("forces", "stress", "stresses"):
            if name in results:
                results[name] = results[name].astype(np.float32).astype(float)

    atoms = testing.structures(["Cu", "Au"])["triclinic"]
    check_calculator(Broken(rounded), atoms, precision="mixed")
    with pytest.raises(AssertionError, match=r"tolerance double\."):
        check_calculator(Broken(rounded), atoms)


def test_unknown_names_are_refused():
    atoms = testing.structures(["Cu"])["dimer"]
    with pytest.raises(ValueError, match=r"no check is called foces; there are shapes"):
        check_calculator(lennard_jones(), atoms, skip=("foces",))
    with pytest.raises(ValueError, match=r"precision='half': expected one of double, mixed"):
        check_calculator(lennard_jones(), atoms, precision="half")


def test_errors_of_the_calculator_are_not_hidden():
    class NoEnergy(Calculator):
        implemented_properties = ("energy",)

        def calculate(self, *args, **keywords):
            raise PropertyNotImplementedError("no luck")

    with pytest.raises(PropertyNotImplementedError, match="no luck"):
        check_calculator(NoEnergy(), testing.structures(["Cu"])["dimer"])
