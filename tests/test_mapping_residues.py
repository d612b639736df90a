"""Beads from residue and atom names, as PDB and GRO files give them."""

import io

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import read, write

from ase_nepcg.labels import LabelError
from ase_nepcg.mapping import Mapping, MappingError


def named(residues, numbers=None):
    """Atoms of residues [(name, molecule, atom names)], 6 Å apart, numbered from 1 or as given."""
    atoms, arrays = Atoms(), {"residuenames": [], "residuenumbers": [], "atomtypes": []}
    for k, (name, formula, types) in enumerate(residues):
        piece = Atoms(formula) if formula in ("Na", "Ar") else molecule(formula)
        piece.positions += [6.0 * k, 0, 0]
        atoms += piece
        arrays["residuenames"] += [name] * len(piece)
        arrays["residuenumbers"] += [k + 1 if numbers is None else numbers[k]] * len(piece)
        arrays["atomtypes"] += types
        assert len(types) == len(piece)
    for key, value in arrays.items():
        atoms.set_array(key, np.array(value))
    return atoms


WATER = ("HOH", "H2O", ["O", "H1", "H2"])
ALCOHOL = ("MOH", "CH3OH", ["C", "O", "HA", "HO", "HB", "HC"])
ION = ("NA", "Na", ["NA"])


def groups_of(mapping):
    return [group.tolist() for group in mapping.groups]


def test_a_bead_per_residue():
    atoms = named([WATER, ALCOHOL, ION, WATER])
    mapping = Mapping.from_residues(atoms)
    assert groups_of(mapping) == [[0, 1, 2], [3, 4, 5, 6, 7, 8], [9], [10, 11, 12]]
    assert mapping.labels.tolist() == ["HOH", "MOH", "NA", "HOH"]
    assert mapping.numbers.tolist() == atoms.numbers.tolist()
    assert Mapping.from_residues(atoms, "B").labels.tolist() == ["B"] * 4
    names = {"HOH": "He", "MOH": "Ne", "NA": "Na"}
    assert Mapping.from_residues(atoms, names).labels.tolist() == ["He", "Ne", "Na", "He"]
    assert Mapping.from_residues(atoms, lambda piece: f"n{len(piece)}").labels.tolist() == ["n3", "n6", "n1", "n3"]
    del atoms.arrays["atomtypes"]
    assert groups_of(Mapping.from_residues(atoms)) == groups_of(mapping)


def test_names_with_blanks_around():
    atoms = named([WATER, ION])
    atoms.arrays["residuenames"] = np.array(["HOH "] * 3 + ["  NA"])
    atoms.arrays["atomtypes"] = np.array([" O  ", " H1 ", " H2 ", "NA  "])
    mapping = Mapping.from_residues(atoms, beads={"HOH": {"OW": ["O"]}, "NA": {"ION": ["NA"]}})
    assert groups_of(mapping) == [[0], [3]]


def test_several_beads_per_residue_and_atoms_integrated_out():
    atoms = named([WATER, ALCOHOL, ION, WATER])
    beads = {"MOH": {"CH3": ["C", "HA", "HB", "HC"], "OH": "O"}, "HOH": {}, "NA": {"ION": ["NA"]}}
    mapping = Mapping.from_residues(atoms, beads=beads)
    assert groups_of(mapping) == [[3, 5, 7, 8], [4], [9]]
    assert mapping.labels.tolist() == ["CH3", "OH", "ION"]
    bound = mapping.bind(atoms)
    assert bound.anchor_of.tolist() == [3, 3, 3, 0, 1, 0, 1, 0, 0, 2, 4, 4, 4]
    assert bound.n_implicit == 2


def test_residues_under_one_number_are_taken_apart():
    # the first water of each of three chains, all number 1
    atoms = named([WATER, WATER, WATER, ION], numbers=[1, 1, 1, 1])
    assert groups_of(Mapping.from_residues(atoms)) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    argon = named([("AR", "Ar", ["AR"])] * 3, numbers=[1, 1, 1])
    assert groups_of(Mapping.from_residues(argon)) == [[0], [1], [2]]


def test_repeated_names_within_a_molecule_are_not_taken_apart():
    atoms = named([("OXY", "O2", ["O", "O"]), ("CO2", "CO2", ["C", "O", "O"])], numbers=[1, 1])
    assert groups_of(Mapping.from_residues(atoms)) == [[0, 1], [2, 3, 4]]
    ring = named([("BEN", "C6H6", ["C"] * 6 + ["H"] * 6)] * 2, numbers=[4, 4])
    assert groups_of(Mapping.from_residues(ring)) == [list(range(12)), list(range(12, 24))]


@pytest.mark.parametrize("file_format", ["proteindatabank", "gromacs"])
def test_files(file_format, tmp_path):
    atoms = named([WATER, ALCOHOL, ION, WATER])
    atoms.set_cell([40, 20, 20])
    path = tmp_path / "structure"
    write(path, atoms, format=file_format)
    again = read(path, format=file_format)
    mapping = Mapping.from_residues(again)
    assert groups_of(mapping) == [[0, 1, 2], [3, 4, 5, 6, 7, 8], [9], [10, 11, 12]]
    assert mapping.labels.tolist() == ["HOH", "MOH", "NA", "HOH"]
    parts = {"HOH": {"O": ["O"]}, "MOH": {"M": ["C", "O"]}, "NA": {"NA": ["NA"]}}
    assert groups_of(Mapping.from_residues(again, beads=parts)) == [[0], [3, 4], [9], [10]]


def test_arrays_that_are_missing():
    with pytest.raises(MappingError, match=r"residuenames, residuenumbers.*numbers, positions.*from_molecules"):
        Mapping.from_residues(molecule("H2O"))
    atoms = named([WATER])
    del atoms.arrays["atomtypes"]
    with pytest.raises(MappingError, match="expected atomtypes"):
        Mapping.from_residues(atoms, beads={"HOH": {}})
    with pytest.raises(MappingError, match="no atoms"):
        Mapping.from_residues(named([WATER])[:0])
    text = io.StringIO()
    write(text, molecule("H2O"), format="extxyz")
    text.seek(0)
    with pytest.raises(MappingError, match="residuenames"):
        Mapping.from_residues(read(text, format="extxyz"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"species": {"HOH": "W"}}, "nothing is said about the residues MOH"),
        ({"species": {"HOH": "W", "MOH": "M", "MOG": "X1"}}, "no residue is called 'MOG'; did you mean 'MOH'"),
        ({"species": "two words"}, "two words"),
        ({"beads": {"HOH": {}}}, r"nothing is said about the residues MOH; \{\} integrates"),
        ({"beads": {"HOH": {}, "MOH": {}, "WAT": {}}}, "no residue is called 'WAT'"),
        ({"beads": {"HOH": {"W": ["OW"]}, "MOH": {}}}, "residue HOH has no atom 'OW'"),
        ({"beads": {"HOH": {"W": ["O", "O"]}, "MOH": {}}}, "residue HOH: atom 'O' is listed twice"),
        ({"beads": {"HOH": {"W": ["O"], "V": ["O"]}, "MOH": {}}}, "listed twice"),
        ({"beads": {"HOH": {"W": [1]}, "MOH": {}}}, "names of atoms"),
        ({"beads": {"HOH": "W", "MOH": {}}}, "for residue HOH, got 'W'"),
        ({"beads": {"HOH": {"W": []}, "MOH": {}}}, "no atoms for its bead W"),
        ({"beads": {"HOH": {}, "MOH": {}}}, "at least one group"),
        ({"beads": ["HOH"]}, "beads: expected"),
        ({"beads": {"HOH": {"W": ["O"]}, "MOH": {}}, "species": "W"}, "give one of the two"),
    ],
)
def test_typing_errors(arguments, message):
    with pytest.raises((MappingError, LabelError), match=message):
        Mapping.from_residues(named([WATER, ALCOHOL]), **arguments)


def test_a_residue_that_lacks_the_atoms_of_a_bead():
    atoms = named([WATER, ("HOH", "H2O", ["OX", "H1", "H2"])])
    with pytest.raises(MappingError, match="residue HOH of atom 3 has no atoms for its bead W; it has OX, H1, H2"):
        Mapping.from_residues(atoms, beads={"HOH": {"W": ["O"]}})
