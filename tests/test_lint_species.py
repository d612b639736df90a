"""The linter on labels: what they stand for, who can read them, and bonds that can change partners."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from ase_nepcg.lint import lint
from ase_nepcg.mapping import Mapping


def gas(*names, edge=12.0):
    """One of each named molecule, far from each other."""
    atoms = Atoms(cell=[edge * len(names), edge, edge], pbc=True)
    for k, name in enumerate(names):
        piece = molecule(name) if isinstance(name, str) else name.copy()
        piece.translate(np.array([edge * (k + 0.5), edge / 2, edge / 2]) - piece.get_center_of_mass())
        atoms += piece
    return atoms


def found(findings):
    return {finding.code: finding.severity for finding in findings}


def pick(findings, code):
    return next(finding for finding in findings if finding.code == code)


# ---- names ---------------------------------------------------------------------------------------------------------


def test_free_labels():
    atoms = gas("H2O", "CH3OH")
    findings = lint(Mapping.from_molecules(atoms, {"H2O": "WAT", "CH4O": "Ne"}), atoms)
    assert found(findings) == {"free-labels": "note"}
    assert findings[0].sites == (0,)
    assert findings[0].message.startswith("WAT:")
    # a symbol of ASE's that GPUMD does not know
    findings = lint(Mapping.from_molecules(atoms, {"H2O": "Og", "CH4O": "Ne"}), atoms)
    assert found(findings) == {"free-labels": "note"}


def test_label_that_is_an_element_of_the_atoms():
    atoms = gas("H2O", "CH3OH")
    findings = lint(Mapping.from_molecules(atoms, {"H2O": "O", "CH4O": "C"}), atoms)
    elements = [finding for finding in findings if finding.code == "element-label"]
    assert [(finding.severity, finding.sites) for finding in elements] == [("warning", (1,)), ("warning", (0,))]


def test_atoms_may_be_called_by_their_element():
    atoms = gas("H2O", "H2O")
    assert lint(Mapping.from_atoms(atoms), atoms) == []
    mixed = Mapping.from_molecules(atoms, "Ne").with_atomistic([0, 1, 2])
    assert lint(mixed, atoms) == []
    # but a bead may not, and a hydrogen not like an oxygen
    mixed = Mapping.from_molecules(atoms, "O").with_atomistic([0, 1, 2])
    assert found(lint(mixed, atoms)) == {"element-label": "warning", "mixed-composition": "warning"}
    swapped = Mapping.from_atoms(atoms, ["O", "O", "H"] * 2)
    assert {f.sites for f in lint(swapped, atoms) if f.code == "element-label"} == {(1, 4)}


# ---- composition ---------------------------------------------------------------------------------------------------


def test_mixed_composition():
    atoms = gas("H2O", "CH3OH", "H2O", "NH3", "H2O")
    findings = lint(Mapping.from_molecules(atoms, "Ne"), atoms)
    assert found(findings) == {"mixed-composition": "warning"}
    assert findings[0].sites == (1, 3)
    assert "beads Ne are of 3 kinds (3 H2O, 1 CH4O, 1 H3N)" in findings[0].message


def test_site_maps_are_judged_by_their_molecules():
    atoms = gas("H2O", "CH3OH", "H2O")
    findings = lint(Mapping.from_sites(atoms, np.flatnonzero(atoms.numbers == 8)), atoms)
    assert found(findings) == {"mixed-composition": "warning", "anchored-atoms": "note"}
    assert findings[0].sites == (1,)
    assert "2 O of H2O, 1 O of CH4O" in findings[0].message
    waters = gas("H2O", "H2O")
    assert found(lint(Mapping.from_sites(waters, [0, 3]), waters)) == {"anchored-atoms": "note"}
    # atoms of the same molecule that share the others unevenly are still the same beads
    ether = gas("CH3OCH3")
    sites = np.flatnonzero(ether.numbers == 6)
    assert "mixed-composition" not in found(lint(Mapping.from_sites(ether, sites, "Ne"), ether))


def test_different_masses():
    atoms = gas("H2O", "H2O", "H2O")
    masses = atoms.get_masses()
    masses[[4, 5]] = 2.014
    atoms.set_masses(masses)
    findings = lint(Mapping.from_molecules(atoms, "Ne"), atoms)
    assert found(findings) == {"different-masses": "warning"}
    assert findings[0].sites == (1,)
    isotopes = Mapping.from_molecules(atoms, lambda piece: "He" if piece.get_masses().sum() < 19 else "Ne")
    assert lint(isotopes, atoms) == []


def test_isomers():
    atoms = gas("CH3CH2OH", "CH3OCH3", "CH3CH2OH")
    findings = lint(Mapping.from_molecules(atoms, "Ne"), atoms)
    assert found(findings) == {"different-bonds": "warning"}
    assert findings[0].sites == (1,)
    order = np.random.default_rng(0).permutation(9)
    atoms = gas("CH3CH2OH", molecule("CH3CH2OH")[order])
    assert lint(Mapping.from_molecules(atoms, "Ne"), atoms) == []


# ---- bonds that permute --------------------------------------------------------------------------------------------


def chains(gap: float) -> Atoms:
    """Two straight chains of three ethylene-like units, side by side at a distance of ``gap``."""
    unit = Atoms("C2", positions=[[0, 0, 0], [1.3, 0, 0]])
    atoms = Atoms(cell=[30, 30, 30], pbc=True)
    for y in (0.0, gap):
        for k in range(3):
            piece = unit.copy()
            piece.translate([2.8 * k + 29, y + 5, 5])  # through the boundary
            atoms += piece
    return atoms


def test_bond_permutation():
    """Bonded units are 2.8 Å apart."""
    near, far = chains(2.6), chains(3.0)
    mapping = Mapping.from_atoms_per_bead(near, 2, "Ne")
    findings = lint(mapping, near)
    assert found(findings)["bond-permutation"] == "warning"
    finding = pick(findings, "bond-permutation")
    assert finding.sites == tuple(range(6))
    assert "Ne-Ne: bonded beads are up to 2.80 Å apart here, and 3 pairs" in finding.message
    assert "bond-permutation" not in found(lint(mapping, far))
    # the same with labels that tell the chains' units apart: ends (He) are bonded to middles (Ne) only
    labelled = Mapping.from_groups(mapping.groups, ["He", "Ne", "He"] * 2, near)
    assert "bond-permutation" not in found(lint(labelled, near))
    labelled = Mapping.from_groups(mapping.groups, ["He", "He", "Ne"] * 2, near)
    assert pick(lint(labelled, near), "bond-permutation").sites == (0, 1, 3, 4)


def test_bonds_of_unequal_length():
    """A shorter bond is no pair that is not bonded, and each pair of labels has its own lengths."""
    unit = Atoms("C2", positions=[[0, 0, 0], [1.3, 0, 0]])
    atoms = Atoms(cell=[30, 30, 30], pbc=True)
    for x, y in ((0.0, 0), (2.8, 0), (5.4, 0), (0.0, 2.7), (2.6, 2.7), (0.0, 5.4), (2.6, 5.4)):
        piece = unit.copy()
        piece.translate([x + 5, y + 5, 5])
        atoms += piece
    # He: bonds of 2.8 and 2.6; Ne: 2.6; the three chains are 2.7 apart
    groups = np.arange(14).reshape(-1, 2)
    mapping = Mapping.from_groups(groups, ["He"] * 3 + ["Ne"] * 4, atoms)
    assert "bond-permutation" not in found(lint(mapping, atoms))
    finding = pick(lint(Mapping.from_groups(groups, "He", atoms), atoms), "bond-permutation")
    assert "and 4 pairs" in finding.message
    assert finding.sites == (0, 1, 3, 4, 5, 6)


def test_beads_bonded_by_atoms_that_carry_none():
    """Every second carbon carries a bead: no bond leads from bead to bead directly."""
    near = chains(2.6)
    sites = Mapping.from_sites(near, range(0, 12, 2), "Ne")
    assert "up to 2.80 Å apart here, and 3 pairs" in pick(lint(sites, near), "bond-permutation").message
    assert "bond-permutation" not in found(lint(sites, chains(3.0)))


def test_wrapped_chains_have_the_same_bonds():
    atoms = chains(2.6)
    mapping = Mapping.from_atoms_per_bead(atoms, 2, "Ne")
    expected = pick(lint(mapping, atoms), "bond-permutation")
    atoms.wrap()
    assert pick(lint(mapping, atoms), "bond-permutation") == expected


@pytest.mark.parametrize("name", ["network", "all atoms"])
def test_no_bead_bonds_to_permute(name):
    if name == "network":
        atoms = bulk("Cu", cubic=True).repeat(3)
        atoms.rattle(0.1, seed=0)
        mapping = Mapping.from_atoms_per_bead(atoms, 4, "Kr")
    else:
        atoms = gas("C6H6", "C6H6")
        mapping = Mapping.from_atoms(atoms)
    assert lint(mapping, atoms) == []
