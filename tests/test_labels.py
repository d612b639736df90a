"""Bead labels: the three places they live in, round trips through files, refusals."""

import subprocess
import sys
import time

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import CalculatorSetupError
from ase.io import read, write

from ase_nepcg.errors import NepCGError
from ase_nepcg.labels import LabelError, get_labels, get_types, has_labels, needs_masses, set_labels

LABELS = ["WAT", "Na", "WAT", "aVeryLongName_16"]


def test_masses_that_elements_cannot_give():
    assert not needs_masses(Atoms("H2O"))
    assert needs_masses(Atoms("X"))
    beads = Atoms("F2")
    set_labels(beads, "F")
    assert needs_masses(beads)
    beads.set_masses([18.0, 18.0])
    assert not needs_masses(beads)


def beads(labels=LABELS, masses=None):
    atoms = Atoms(f"X{len(labels)}", positions=np.arange(3.0 * len(labels)).reshape(-1, 3), cell=[20, 21, 22], pbc=True)
    set_labels(atoms, labels, masses)
    return atoms


def test_set_labels_fills_the_three_places():
    atoms = beads()
    assert atoms.arrays["bead"].dtype == "<U16"
    assert atoms.arrays["bead"].tolist() == LABELS
    assert atoms.numbers.tolist() == [0, 11, 0, 0]
    assert atoms.get_tags().tolist() == [0, 1, 0, 2]
    assert atoms.info["bead_labels"] == ["WAT", "Na", "aVeryLongName_16"]
    assert get_labels(atoms).tolist() == LABELS
    assert has_labels(atoms)


def test_order_of_sources():
    atoms = Atoms("OH2")
    assert not has_labels(atoms)
    assert get_labels(atoms).tolist() == ["O", "H", "H"]
    atoms.set_tags([1, 0, 0])
    atoms.info["bead_labels"] = ["H1", "O1"]
    assert has_labels(atoms)
    assert get_labels(atoms).tolist() == ["O1", "H1", "H1"]
    del atoms.info["bead_labels"]
    atoms.set_array("bead", np.array(["A", "B", "C"]))
    assert get_labels(atoms).tolist() == ["A", "B", "C"]
    assert get_labels(atoms).dtype == "<U16"


def test_labels_are_a_copy():
    atoms = beads()
    get_labels(atoms)[0] = "ION"
    assert get_labels(atoms).tolist() == LABELS


def test_relabelling_does_not_truncate():
    atoms = Atoms("X2")
    atoms.set_array("bead", np.array(["A", "B"]))  # <U1
    set_labels(atoms, ["longer", "B"])
    assert get_labels(atoms).tolist() == ["longer", "B"]


def test_one_label_for_all_and_no_atoms():
    atoms = Atoms("X3")
    set_labels(atoms, "WAT")
    assert get_labels(atoms).tolist() == ["WAT"] * 3
    empty = Atoms()
    set_labels(empty, [])
    assert get_labels(empty).shape == (0,)
    assert get_types(empty, ["WAT"]).shape == (0,)


@pytest.mark.parametrize(
    "array", [np.array(["A", "B"], dtype=object), np.array([b"A", b"B"]), np.array(["A", "B"], "<U40")]
)
def test_other_string_types_are_read(array):
    atoms = Atoms("X2")
    atoms.new_array("bead", array)
    assert get_labels(atoms).tolist() == ["A", "B"]
    assert get_labels(atoms).dtype == "<U16"


@pytest.mark.parametrize(
    "masses", [[18.0, 23.0, 18.0, 40.0], {"WAT": 18, "Na": 23, "aVeryLongName_16": 40, "other": 1}]
)
def test_masses(masses):
    assert beads(masses=masses).get_masses().tolist() == [18.0, 23.0, 18.0, 40.0]
    assert beads(masses=7.0).get_masses().tolist() == [7.0] * 4


@pytest.mark.parametrize(
    ("masses", "message"),
    [
        ({"WAT": 18.0}, "missing .'Na', 'aVeryLongName_16'."),
        ([1.0, 2.0], "expected one per site, 4 numbers"),
        ([1.0, 0.0, 1.0, 1.0], "got 0 for site 1"),
        ([1.0, np.nan, 1.0, 1.0], "nan"),
    ],
)
def test_wrong_masses_change_nothing(masses, message):
    atoms = beads()
    before = atoms.copy()
    with pytest.raises(LabelError, match=message):
        set_labels(atoms, ["Na"] * 4 if not isinstance(masses, dict) else LABELS, masses)
    assert atoms == before
    assert get_labels(atoms).tolist() == LABELS


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["A", ""], r"got an empty one for site 1"),
        (["A", "12345678901234567"], r"at most 16 letters, got '12345678901234567' \(17\)"),
        (["A"], r"shape \(2,\), got shape \(1,\)"),
        ([["A"], ["B"]], r"shape \(2,\), got shape \(2, 1\)"),
        ([1, 2], "expected strings, got numbers of type int64"),
        (np.array(["A", 2], dtype=object), "expected strings, got"),
        (["A", "a b"], "without blanks, quotes and '=', got 'a b'"),
        (["A", "µ"], "printable ASCII"),
    ],
)
def test_refused_labels(labels, message):
    with pytest.raises(LabelError, match=message) as caught:
        set_labels(Atoms("X2"), labels)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, NepCGError)


def test_unlabelled_part_of_joined_atoms_is_refused():
    with pytest.raises(LabelError, match=r"empty one for site 4 and 1 more .*set_labels"):
        get_labels(beads() + Atoms("Na2"))


def test_joined_tables_that_differ_are_refused_until_relabelled():
    joined = beads(["WAT", "ION"]) + beads(["ION", "WAT"])
    with pytest.raises(LabelError, match=r"site 2 is 'ION', but its tag 0 means 'WAT'.*call set_labels"):
        get_labels(joined)
    set_labels(joined, joined.arrays["bead"])
    assert get_labels(joined).tolist() == ["WAT", "ION", "ION", "WAT"]


def test_slices_repeats_and_equal_tables_just_work():
    atoms = beads()
    assert get_labels(atoms[1:3]).tolist() == ["Na", "WAT"]
    assert get_labels(atoms * (2, 1, 1)).tolist() == LABELS * 2
    assert get_labels(atoms + beads()).tolist() == LABELS * 2


def test_broken_tables_are_refused():
    atoms = beads()
    del atoms.arrays["bead"]
    atoms.set_tags([0, 1, 5, 0])
    with pytest.raises(LabelError, match=r"tags: expected 0 to 2, .* got 0 to 5"):
        get_labels(atoms)
    with pytest.raises(LabelError, match="tags"):
        get_types(atoms, ["WAT"])
    atoms.info["bead_labels"] = "WAT"
    with pytest.raises(LabelError, match="expected the list of labels"):
        get_labels(atoms)


# ---- files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.traj", "a.extxyz", "a.xyz"])
@pytest.mark.parametrize("labels", [LABELS, ["1", "T"], ["F"]])
def test_round_trip(tmp_path, name, labels):
    atoms = beads(labels, masses=np.arange(1.0, len(labels) + 1))
    write(tmp_path / name, [atoms, atoms])
    for frame in read(tmp_path / name, index=":"):
        assert get_labels(frame).tolist() == labels
        assert frame.get_masses().tolist() == atoms.get_masses().tolist()


def test_traj_in_a_fresh_process(tmp_path):
    write(tmp_path / "beads.traj", beads(masses=18.0))
    code = (
        "import sys; from ase.io import read; from ase_nepcg.labels import get_labels, get_types;"
        "atoms = read(sys.argv[1]); assert 'bead' not in atoms.arrays;"
        "print(*get_labels(atoms), *get_types(atoms, ['aVeryLongName_16', 'Na', 'WAT']), atoms.get_masses().sum());"
        "assert not {'numba', 'matplotlib', 'ase_nepcg.model'} & set(sys.modules)"
    )
    command = [sys.executable, "-W", "error", "-c", code, tmp_path / "beads.traj"]
    output = subprocess.run(command, capture_output=True, text=True, check=True)
    assert output.stdout.split() == [*LABELS, "2", "1", "2", "0", "72.0"]
    assert output.stderr == ""


# ---- types ----------------------------------------------------------------------------------------------


def test_types():
    atoms = beads()
    species = ["aVeryLongName_16", "WAT", "O", "Na"]
    types = get_types(atoms, species)
    assert types.tolist() == [1, 3, 1, 0]
    assert types.dtype == np.int32
    del atoms.arrays["bead"]
    assert get_types(atoms, species).tolist() == [1, 3, 1, 0]
    assert get_types(atoms, species).dtype == np.int32
    assert get_types(Atoms("OH2"), ("H", "O")).tolist() == [1, 0, 0]


def test_label_rules_over_symbol():
    atoms = Atoms("O2")
    set_labels(atoms, ["O", "Ow"])
    assert get_types(atoms, ["Ow", "O"]).tolist() == [1, 0]
    with pytest.raises(CalculatorSetupError, match="unknown species Ow; the model has O"):
        get_types(atoms, ["O"])


@pytest.mark.parametrize("route", ["bead", "tags", "numbers"])
def test_unknown_species_name_both_sets(route):
    atoms = Atoms("NaClNa") if route == "numbers" else beads(["Na", "Cl", "Na"])
    if route == "tags":
        del atoms.arrays["bead"]
    with pytest.raises(CalculatorSetupError, match=r"unknown species Cl; the model has WAT, Na$"):
        get_types(atoms, ["WAT", "Na"])


def test_forgotten_labels_are_explained():
    with pytest.raises(CalculatorSetupError, match=r"unknown species X \(X has no label: call .*set_labels\); .* WAT"):
        get_types(Atoms("X2"), ["WAT"])
    odd = Atoms("X")
    odd.numbers[:] = 500
    with pytest.raises(LabelError, match=r"atoms.numbers: expected 0 to 118, got 500"):
        get_types(odd, ["WAT"])


def test_no_loop_over_atoms():
    n = 300_000
    atoms = Atoms(numbers=np.zeros(n, dtype=int), positions=np.zeros((n, 3)))
    set_labels(atoms, np.array(["WAT", "ION"])[np.arange(n) % 2])
    start = time.process_time()
    types = get_types(atoms, ["WAT", "ION"])
    # 0.05 s; a Python loop over the atoms and their labels takes over a second
    assert time.process_time() - start < 0.7
    assert types.sum() == n // 2
