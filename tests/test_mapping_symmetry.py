"""Crystallographic orbits of beads."""

import sys

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.spacegroup import crystal

from ase_nepcg.mapping import Mapping, MappingError
from ase_nepcg.mapping.symmetry import orbits_of

pytest.importorskip("spglib")

DUMBBELL = np.array([[0.0, 0, 0.55], [0, 0, -0.55]])
AXES = {"x": DUMBBELL[:, [2, 0, 1]], "y": DUMBBELL[:, [1, 2, 0]], "z": DUMBBELL}


def dumbbells(places, axes, cell, pbc=True, symbols="N2"):
    """Molecules N2 at fractional places along axes."""
    cell = np.asarray(cell, dtype=float)
    atoms = Atoms(cell=cell, pbc=pbc)
    for place, axis in zip(places, axes, strict=True):
        atoms += Atoms(symbols, positions=AXES[axis] + np.asarray(place) @ cell)
    return atoms


def split(atoms, labels="B", symprec=1e-3):
    mapping = Mapping.from_groups(np.arange(len(atoms)).reshape(-1, 2), labels, atoms)
    return mapping.split_by_symmetry(atoms, symprec).labels.tolist()


def test_equal_beads_keep_their_label():
    atoms = dumbbells([(0, 0, 0), (0.5, 0.5, 0.5)], "zz", np.diag([6, 6, 7]))
    assert split(atoms) == ["B", "B"]
    assert split(atoms.repeat((3, 2, 2))) == ["B"] * 24


def test_orientation_counts_not_the_centre_alone():
    # the centres form a body-centred lattice, the axes do not
    atoms = dumbbells([(0, 0, 0), (0.5, 0.5, 0.5)], "zx", np.diag([6.0, 6.5, 7.0]))
    assert split(atoms) == ["B_1", "B_2"]
    # in a tetragonal cell a fourfold screw axis exchanges x and y
    atoms = dumbbells([(0, 0, 0), (0.5, 0.5, 0.5)], "xy", np.diag([6.0, 6.0, 7.0]))
    assert split(atoms) == ["B", "B"]
    assert split(dumbbells([(0, 0, 0), (0.5, 0.5, 0.5)], "xy", np.diag([6.0, 6.1, 7.0]))) == ["B_1", "B_2"]


def test_supercells_cut_by_the_boundary_and_shuffled(rng):
    atoms = dumbbells([(0, 0, 0), (0.5, 0.5, 0.5)], "zx", np.diag([6.0, 6.5, 7.0])).repeat((2, 3, 2))
    atoms.positions += [0.3, 0.1, 0.2]
    atoms.wrap()
    expected = ["B_1", "B_2"] * 12
    assert split(atoms) == expected
    order = rng.permutation(24)
    shuffled = atoms[np.arange(48).reshape(-1, 2)[order].ravel()]
    found = split(shuffled)
    names = {found[order.tolist().index(0)]: "B_1", found[order.tolist().index(1)]: "B_2"}
    assert [names[label] for label in found] == [expected[k] for k in order]


def test_labels_are_not_merged_and_only_split_ones_change():
    atoms = dumbbells([(0, 0, 0), (0.5, 0.5, 0.5)], "zx", np.diag([6.0, 6.5, 7.0])).repeat((2, 1, 1))
    assert split(atoms, ["A", "B", "A", "B"]) == ["A", "B", "A", "B"]
    assert split(atoms, ["A", "A", "B", "A"]) == ["A_1", "A_2", "B", "A_2"]
    with pytest.raises(MappingError, match="the label A would become A_1, which is another label"):
        split(atoms, ["A", "A", "A_1", "A"])


def test_orbits_are_numbered_in_order_of_appearance():
    atoms = dumbbells([(0, 0, 0), (0.5, 0.5, 0.5)], "zx", np.diag([6.0, 6.5, 7.0])).repeat((2, 1, 1))
    groups = np.arange(8).reshape(-1, 2)
    assert orbits_of(Mapping.from_groups(groups, "B"), atoms).tolist() == [0, 1, 0, 1]
    assert orbits_of(Mapping.from_groups(groups, ["B", "B", "A", "B"]), atoms).tolist() == [0, 1, 2, 1]
    assert orbits_of(Mapping.from_groups(groups[[1, 0, 3]], "B"), atoms).tolist() == [0, 1, 0]


def test_elements_and_masses_count():
    cell = np.diag([6.0, 6.0, 7.0])
    atoms = dumbbells([(0, 0, 0), (0.5, 0.5, 0.5)], "zz", cell)
    mapping = Mapping.from_groups([[0, 1], [2, 3]], "B")
    heavy = atoms.copy()
    heavy.set_masses([15, 15, 14, 14])
    assert mapping.split_by_symmetry(heavy).labels.tolist() == ["B_1", "B_2"]
    other = atoms.copy()
    other.numbers[2:] = 8
    assert mapping.split_by_symmetry(other).labels.tolist() == ["B_1", "B_2"]
    assert mapping.split_by_symmetry(atoms).labels.tolist() == ["B", "B"]


def test_beads_of_several_sizes():
    gold = bulk("Au", cubic=True) * 2
    mapping = Mapping.from_atoms_per_bead(gold, 4, "B").with_atomistic(range(4))
    assert mapping.split_by_symmetry(gold).labels.tolist() == ["Au"] * 4 + ["B"] * 7
    uneven = Mapping.from_groups([[0, 1], [2, 3, 4], list(range(5, 32))], "B", gold)
    assert uneven.split_by_symmetry(gold).labels.tolist() == ["B_1", "B_2", "B_3"]


def test_atoms_in_no_bead_belong_to_the_crystal():
    cell = np.diag([6.0, 6.0, 7.0])
    atoms = dumbbells([(0, 0, 0), (0.5, 0.5, 0.5)], "zz", cell) + Atoms("Ne", [[0.5, 0, 3.5]])
    mapping = Mapping.from_groups([[0, 1], [2, 3]], "B", atoms)
    assert mapping.split_by_symmetry(atoms).labels.tolist() == ["B_1", "B_2"]


def test_a_space_group_with_general_positions():
    quartz = crystal(
        ["Si", "O"],
        [(0.4697, 0, 0), (0.4133, 0.2672, 0.1188)],
        spacegroup=152,
        cellpar=[4.916, 4.916, 5.405, 90, 90, 120],
    )
    atoms = quartz.repeat((2, 2, 1))
    mapping = Mapping.from_atoms(atoms, "Q").split_by_symmetry(atoms)
    assert mapping.labels.tolist() == ["Q_1" if symbol == "Si" else "Q_2" for symbol in atoms.get_chemical_symbols()]


def test_layers_have_no_translation_through_the_vacuum():
    # two layers, one above the other: equivalent as a crystal and by the mirror between them
    places, cell = [(0, 0, 0), (0, 0, 1 / 3), (0, 0, 2 / 3)], np.diag([6.0, 6.0, 12.0])
    atoms = dumbbells(places, "xxx", cell)
    assert split(atoms) == ["B", "B", "B"]
    atoms.pbc = (True, True, False)
    assert split(atoms) == ["B_1", "B_2", "B_1"]
    atoms.cell[2] = 0
    assert split(atoms) == ["B_1", "B_2", "B_1"]
    atoms.cell[2] = [7.0, 3.0, 12.0]  # says nothing: that direction is not periodic
    assert split(atoms) == ["B_1", "B_2", "B_1"]


def test_symprec():
    atoms = dumbbells([(0, 0, 0), (0.5, 0.5, 0.5)], "zz", np.diag([6, 6, 7]))
    atoms.positions[0, 2] += 0.01
    assert split(atoms) == ["B_1", "B_2"]
    assert split(atoms, symprec=0.05) == ["B", "B"]
    for wrong in (0, -1, 2.0, np.nan, "x", None):
        with pytest.raises(MappingError, match="symprec"):
            split(atoms, symprec=wrong)


def test_refusals():
    atoms = dumbbells([(0, 0, 0), (0.5, 0.5, 0.5)], "zz", np.diag([6, 6, 7]), pbc=(False, True, False))
    with pytest.raises(MappingError, match=r"at least two periodic directions.*got 1"):
        split(atoms)
    disordered = molecule("N2")
    disordered.center(vacuum=1.5)
    disordered.pbc = True
    disordered = disordered.repeat(5)
    disordered.rattle(0.1, seed=1)
    with pytest.raises(MappingError, match=r"more than 94 orbits among 125 beads.*disordered"):
        split(disordered)
    overlapping = atoms.copy()
    overlapping.pbc = True
    overlapping.positions[2:] = overlapping.positions[:2]
    with pytest.raises(MappingError, match="spglib finds no symmetry"):
        split(overlapping)
    mapping = Mapping.from_groups([[0, 1], [1, 2]], "B")
    with pytest.raises(MappingError, match="overlapping"):
        mapping.split_by_symmetry(atoms)


def test_without_spglib(monkeypatch):
    atoms = dumbbells([(0, 0, 0)], "z", np.diag([6, 6, 7]))
    monkeypatch.setitem(sys.modules, "spglib", None)
    with pytest.raises(ImportError, match=r"ase_nepcg\[symmetry\]"):
        split(atoms)
