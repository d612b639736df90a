"""Wrong input never gives a number: what the NEP calculator refuses, with which class and which words."""

import dataclasses

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, CalculatorSetupError, PropertyNotImplementedError

from ase_nepcg import NEP
from ase_nepcg.errors import ModelFileError
from ase_nepcg.labels import LabelError, set_labels

# ---- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keyword", "message"),
    [
        ("temperature", "unknown keyword 'temperature': did you mean 'temperature_K'"),
        ("thread", "did you mean 'threads'"),
        ("modle", "did you mean 'model'"),
        ("zzz", "valid names: device, model, precision, temperature_K, threads"),
        ("restart", "NEP has no restart files: make a new calculator"),
    ],
)
def test_unknown_keywords(models, make_calculator, keyword, message):
    with pytest.raises(TypeError, match=message):
        NEP(models["plain"], **{keyword: 1})
    with pytest.raises(TypeError, match=message):
        make_calculator().set(**{keyword: 1})


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"device": "gpu"}, "device='gpu': expected one of auto, cpu, cuda"),
        ({"precision": "single"}, "precision='single': expected one of auto, double, mixed"),
        ({"precision": "mixed"}, "precision='mixed' belongs to device='cuda'"),
        ({"threads": 0}, "threads=0: expected a positive integer or None"),
        ({"threads": -1}, "threads=-1"),
        ({"threads": 2.0}, "threads=2.0"),
        ({"threads": True}, "threads=True"),
        ({"temperature_K": 300}, "temperature_K=300 was given, but nep4 has no temperature input"),
    ],
)
def test_parameters_that_are_refused(models, make_calculator, keywords, message):
    with pytest.raises(CalculatorSetupError, match=message):
        NEP(models["plain"], **keywords)
    calc = make_calculator()
    before = calc.todict()
    with pytest.raises(CalculatorSetupError, match=message):
        calc.set(**keywords)
    # and nothing was taken over
    assert calc.todict() == before


@pytest.mark.parametrize(
    ("temperature", "message"),
    [
        (None, r"has temperature as an input: give temperature_K="),
        (-1.0, "temperature_K=-1.0: expected a number of kelvins"),
        (np.nan, "temperature_K=nan"),
        (np.inf, "temperature_K=inf"),
        ("300", "temperature_K='300': expected a number of kelvins"),
        ([300.0], "expected a number of kelvins"),
    ],
)
def test_temperatures_that_are_refused(models, temperature, message):
    with pytest.raises(CalculatorSetupError, match=message):
        NEP(models["full"], temperature_K=temperature)


def test_a_model_without_its_temperature_cannot_be_set(make_calculator, models, atoms):
    calc = make_calculator()
    energy = calc.get_property("energy", atoms)
    with pytest.raises(CalculatorSetupError, match="give temperature_K="):
        calc.set(model=models["full"])
    assert calc.get_property("energy", atoms) == energy
    calc.set(model=models["full"], temperature_K=300)
    assert calc.get_property("energy", atoms) == make_calculator("full").get_property("energy", atoms)


def test_no_model():
    with pytest.raises(TypeError, match="model"):
        NEP()
    with pytest.raises(CalculatorSetupError, match=r"model: expected the path of a nep.txt or a NEPModel, got int"):
        NEP(4)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing.txt"):
        NEP(tmp_path / "missing.txt")
    wrong = tmp_path / "wrong.txt"
    wrong.write_text("nep4 2 O H\ncutoff six four\n")
    with pytest.raises(ModelFileError, match=r"wrong.txt, line 2: "):
        NEP(wrong)


# ---- species and labels ----------------------------------------------------------------------------------------------


def test_unknown_species_names_both_sets(make_calculator, atoms):
    atoms.symbols[:3] = ["Cu", "O", "Ag"]
    with pytest.raises(CalculatorSetupError, match="unknown species Cu, Ag; the model has O, H"):
        make_calculator().get_property("energy", atoms)


def test_unknown_labels_name_both_sets(make_calculator, atoms):
    set_labels(atoms, ["W1", "tail"] * 6)
    with pytest.raises(CalculatorSetupError, match="unknown species tail; the model has W1, a-long-tail-bead"):
        make_calculator("beads").get_property("energy", atoms)


def test_sites_without_labels_get_a_hint(make_calculator):
    with pytest.raises(CalculatorSetupError, match="set_labels"):
        make_calculator("beads").get_property("energy", Atoms("X2", [[0, 0, 0], [2, 0, 0]]))


def test_empty_labels_are_refused_instead_of_guessed(make_calculator, models):
    beads = Atoms("X", [[0, 0, 0]])
    set_labels(beads, "W1")
    # what adding unlabelled atoms leaves
    beads += Atoms("X", [[2, 0, 0]])
    assert beads.arrays["bead"].tolist() == ["W1", ""]
    with pytest.raises(LabelError, match="an empty one for site 1"):
        make_calculator("beads").get_property("energy", beads)


def test_over_long_labels_are_refused_instead_of_cut(make_calculator):
    beads = Atoms("X2", [[0, 0, 0], [2, 0, 0]])
    beads.set_array("bead", np.array(["W1", "a-long-tail-bead-indeed"]))
    with pytest.raises(LabelError, match=r"expected at most 16 letters, got 'a-long-tail-bead-indeed' \(23\)"):
        make_calculator("beads").get_property("energy", beads)


# ---- geometry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_positions_that_are_not_finite(make_calculator, atoms, value):
    atoms.positions[5, 1] = value
    calc = make_calculator()
    for _ in range(2):  # the first failure must not be taken for a result
        with pytest.raises(CalculationFailed, match="positions must be finite, but row 5 is "):
            calc.get_property("energy", atoms)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("pbc", [True, False])
def test_cells_that_are_not_finite(make_calculator, atoms, value, pbc):
    cell = atoms.cell.array.copy()
    cell[1, 2] = value
    atoms.set_cell(cell)
    atoms.pbc = pbc
    with pytest.raises(CalculationFailed, match="cell must be finite, but row 1 is "):
        make_calculator().get_property("energy", atoms)


def test_sites_at_the_same_place(make_calculator, atoms):
    atoms.positions[7] = atoms.positions[2]
    with pytest.raises(CalculationFailed, match="sites 2 and 7 are at the same place"):
        make_calculator().get_property("forces", atoms)


def test_a_site_at_the_place_of_an_image(make_calculator, atoms):
    atoms.positions[7] = atoms.positions[2] + [1, -2, 1] @ atoms.cell.array
    with pytest.raises(CalculationFailed, match="sites 2 and 7 are at the same place"):
        make_calculator().get_property("forces", atoms)


@pytest.mark.parametrize("model", ["plain", "full", "zbl"])
def test_a_failure_leaves_no_trace(make_calculator, atoms, model):
    calc = make_calculator(model)
    good, bad = atoms.copy(), atoms.copy()
    bad.positions[7] = bad.positions[2]
    expected = calc.get_property("forces", good)
    for wrong in (bad, Atoms("Cu"), bad):
        with pytest.raises((CalculationFailed, CalculatorSetupError)):
            calc.get_property("forces", wrong)
        with pytest.raises((CalculationFailed, CalculatorSetupError)):
            calc.get_property("forces", wrong)
        assert np.array_equal(calc.get_property("forces", good), expected)


def test_results_of_other_atoms_do_not_survive_a_failed_calculate(make_calculator, atoms):
    calc = make_calculator()
    calc.calculate(atoms)
    bad = atoms.copy()
    bad.positions[7] = bad.positions[2]
    with pytest.raises(CalculationFailed):
        calc.calculate(bad)
    with pytest.raises(CalculationFailed):
        calc.get_property("energy", bad)


@pytest.mark.parametrize(("axis", "pbc"), [(0, True), (2, [False, False, True])])
def test_periodicity_without_a_cell_vector(make_calculator, atoms, axis, pbc):
    cell = atoms.cell.array.copy()
    cell[axis] = 0
    atoms.set_cell(cell)
    atoms.pbc = pbc
    with pytest.raises(
        CalculatorSetupError, match=r"need linearly independent, non-zero cell vectors, got cell = .*pbc=False"
    ):
        make_calculator().get_property("energy", atoms)


def test_dependent_cell_vectors(make_calculator, atoms):
    cell = atoms.cell.array.copy()
    cell[2] = cell[0] - cell[1]
    atoms.set_cell(cell)
    with pytest.raises(CalculatorSetupError, match="linearly independent"):
        make_calculator().get_property("forces", atoms)
    # only the periodic directions need to be independent
    atoms.pbc = [True, True, False]
    assert np.isfinite(make_calculator().get_property("energy", atoms))


def test_no_sites(make_calculator):
    with pytest.raises(CalculationFailed, match="there are no sites to evaluate"):
        make_calculator().get_property("energy", Atoms())


def test_results_that_are_not_finite(make_calculator, models):
    # so close that the Coulomb repulsion of two nuclei is huge, but still a number
    atoms = Atoms("OH", [[0, 0, 0], [1e-5, 0, 0]])
    forces = make_calculator("zbl").get_property("forces", atoms)
    assert np.isfinite(forces).all()
    assert abs(forces).max() > 1e9
    # ten neurons, all saturated, with weights near the largest number there is
    plain = models["plain"]
    largest = dataclasses.replace(plain, b0=np.full_like(plain.b0, -1e3), w1=np.full_like(plain.w1, 1e308))
    with pytest.raises(CalculationFailed, match=r"energy or force of site 0 is not finite \(energy inf"):
        NEP(largest).get_property("energy", Atoms("O3", np.diag([2.0, 3.0, 4.0])))


# ---- properties ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dipole", "NEP has no property 'dipole': valid names: descriptors, energies"),
        ("magmoms", "no property 'magmoms'"),
        ("virial", "did you mean 'virials'"),
        ("force", "did you mean 'forces'"),
    ],
)
def test_properties_that_it_does_not_have(make_calculator, atoms, evaluations, name, message):
    with pytest.raises(PropertyNotImplementedError, match=message):
        make_calculator().get_property(name, atoms)
    assert not evaluations


def test_standard_getters_refuse_too(make_calculator, atoms):
    atoms.calc = make_calculator()
    for method in (atoms.get_dipole_moment, atoms.get_charges, atoms.get_magnetic_moments):
        with pytest.raises(PropertyNotImplementedError, match="NEP has no property"):
            method()


@pytest.mark.parametrize("name", ["virials", "descriptors", "heat_current"])
def test_properties_of_nothing(make_calculator, name):
    with pytest.raises(CalculatorSetupError, match=f"{name} of what"):
        make_calculator().get_property(name)


def test_heat_current_needs_masses(make_calculator, models):
    beads = Atoms("X2", [[0, 0, 0], [2, 0, 0]])
    set_labels(beads, models["beads"].species)
    calc = make_calculator("beads")
    with pytest.raises(CalculatorSetupError, match="needs the masses of the beads"):
        calc.get_property("heat_current", beads)
    beads.set_masses([18.0, 30.0])
    assert calc.get_property("heat_current", beads).tolist() == [0, 0, 0]
