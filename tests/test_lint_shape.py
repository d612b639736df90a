"""The linter on geometry: mirror images and inequivalent positions."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import primitive_neighbor_list

from ase_nepcg.lint import lint
from ase_nepcg.lint.rules import System
from ase_nepcg.lint.shape import _disordered, near_pairs, nearest_distance
from ase_nepcg.mapping import Mapping

CORNERS = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)


def found(findings):
    return {finding.code: finding.severity for finding in findings}


def pick(findings, code):
    return next(finding for finding in findings if finding.code == code)


# ---- handedness ----------------------------------------------------------------------------------------------------


def alanine() -> Atoms:
    """The heavy atoms of alanine with the hydrogen of its stereocentre: two of four neighbours are carbons."""
    atoms = Atoms("C", positions=[[0, 0, 0]])
    for symbol, corner, length in zip(["H", "N", "C", "C"], CORNERS, [1.09, 1.47, 1.53, 1.52], strict=True):
        atoms += Atoms(symbol, positions=[corner * length])
    side = np.cross(CORNERS[3], CORNERS[0])
    for sign in (1, -1):
        atoms += Atoms("O", positions=[CORNERS[3] * 2.15 + sign * 1.05 * side])
    return atoms


def two_centres(first: int, second: int) -> Atoms:
    """CHFCl-CHFCl with given handedness of both halves (1, 1), (-1, -1) or mixed (the meso form)."""
    atoms = Atoms()
    for side, hand in ((1, first), (-1, second)):
        half = Atoms("CHFCl", positions=[[0, 0, 0], *(CORNERS[1:] * [[1.09], [1.37], [1.77]])])
        half.rotate(CORNERS[0], [0, 0, -1])
        if hand < 0:
            half.positions[:, 0] *= -1
        half.translate([0, 0, 0.78])
        if side < 0:
            half.rotate(180, "x")
        atoms += half
    return atoms


def box_of(pieces, seed=0, shuffle=True) -> tuple[Atoms, list]:
    """Pieces turned at random, their atoms in random order, far from each other; wrapped. And the groups."""
    rng = np.random.default_rng(seed)
    atoms, groups = Atoms(cell=[10 * len(pieces), 10, 10], pbc=True), []
    for k, piece in enumerate(pieces):
        piece = piece[rng.permutation(len(piece))] if shuffle else piece.copy()
        piece.rotate(rng.uniform(0, 360), rng.normal(size=3))
        piece.rattle(0.03, seed=int(rng.integers(1000)))
        piece.translate([10 * k, 0, 0])
        groups.append(np.arange(len(piece)) + len(atoms))
        atoms += piece
    atoms.wrap()
    return atoms, groups


def mirrored(atoms: Atoms) -> Atoms:
    atoms = atoms.copy()
    atoms.positions[:, 1] *= -1
    return atoms


def test_mirror_images():
    left = alanine()
    pieces = [left, left, mirrored(left), left, mirrored(left)]
    atoms, groups = box_of(pieces)
    findings = lint(Mapping.from_groups(groups, "Ne", atoms), atoms)
    assert found(findings) == {"mirror-images": "warning", "cut-molecules": "note"}
    assert pick(findings, "mirror-images").sites == (2, 4)
    assert "(3 + 2)" in pick(findings, "mirror-images").message
    # each form under its own label, or one form only
    labels = ["Ne", "Ne", "He", "Ne", "He"]
    assert found(lint(Mapping.from_groups(groups, labels, atoms), atoms)) == {"cut-molecules": "note"}
    atoms, groups = box_of([left] * 5)
    assert found(lint(Mapping.from_groups(groups, "Ne", atoms), atoms)) == {"cut-molecules": "note"}


def test_no_centre_without_four_different_neighbours():
    glycine = alanine()
    glycine.symbols[3] = "H"
    glycine.positions[3] *= 1.09 / 1.53
    atoms, groups = box_of([glycine, mirrored(glycine)])
    assert "mirror-images" not in found(lint(Mapping.from_groups(groups, "Ne", atoms), atoms))


def test_flat_centres_have_no_handedness():
    """A square of four different ligands moves through its own plane."""
    lengths = np.array([1.6, 1.9, 2.3, 2.45])[:, None]
    square = Atoms("PtHFClBr", positions=[[0, 0, 0], *([[1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]] * lengths)])
    atoms, groups = box_of([square] * 6)
    assert "mirror-images" not in found(lint(Mapping.from_groups(groups, "Ne", atoms), atoms))


def test_stereoisomers():
    atoms, groups = box_of([two_centres(1, 1), two_centres(1, -1), two_centres(-1, 1)])
    findings = lint(Mapping.from_groups(groups, "Ne", atoms), atoms)
    # the meso form is its own mirror image, and (1, -1) is (-1, 1)
    assert pick(findings, "stereoisomers").severity == "warning"
    assert pick(findings, "stereoisomers").sites == (0,)
    atoms, groups = box_of([two_centres(1, -1), two_centres(-1, 1), mirrored(two_centres(1, -1))])
    assert not {"stereoisomers", "mirror-images"} & found(lint(Mapping.from_groups(groups, "Ne", atoms), atoms)).keys()
    atoms, groups = box_of([two_centres(1, 1), two_centres(-1, -1), two_centres(1, 1)])
    assert pick(lint(Mapping.from_groups(groups, "Ne", atoms), atoms), "mirror-images").sites == (1,)


def test_centres_with_neighbours_in_other_beads():
    """Side groups cut off: the centre keeps its handedness if the neighbour outside is of another element."""
    left = alanine()
    atoms, _ = box_of([left, mirrored(left)], shuffle=False)
    heads = [[0, 1, 3, 4, 5, 6], [7, 8, 10, 11, 12, 13]]
    mapping = Mapping.from_groups([*heads, [2], [9]], ["Ne", "Ne", "N", "N"], atoms)
    assert pick(lint(mapping, atoms), "mirror-images").sites == (1,)
    # both carbons outside are carbons to this bead
    mapping = Mapping.from_groups([[0, 1, 2], [7, 8, 9], [3], [10], [4, 5, 6], [11, 12, 13]], "Ne", atoms)
    assert "mirror-images" not in found(lint(mapping, atoms))


# ---- surroundings --------------------------------------------------------------------------------------------------


def dimers(second, stretch=1.0, n=4) -> Atoms:
    """A lattice of N2 molecules, a checkerboard in the plane; the white ones along x, the black along ``second``."""
    a = 4.0
    atoms = Atoms(cell=[n * a, n * a, n * a * stretch], pbc=True)
    for place in np.ndindex(n, n, n):
        axis = np.array([1.0, 0, 0] if (place[0] + place[1]) % 2 == 0 else second)
        centre = (np.array(place) + 0.5) * [a, a, a * stretch]
        atoms += Atoms("N2", positions=[centre - 0.55 * axis, centre + 0.55 * axis])
    return atoms


def test_inequivalent_beads():
    atoms = dimers([0, 0, 1], stretch=1.2)
    mapping = Mapping.from_molecules(atoms, "Ne")
    findings = lint(mapping, atoms)
    assert found(findings) == {"inequivalent-beads": "warning"}
    assert "2 inequivalent positions of a crystal (32 + 32)" in findings[0].message
    assert "split_by_symmetry" in findings[0].message
    black = {k for k, group in enumerate(mapping.groups) if np.ptp(atoms.positions[group, 2]) > 1}
    assert set(findings[0].sites) in (black, set(range(64)) - black)
    labels = ["He" if k in black else "Ne" for k in range(64)]
    assert lint(Mapping.from_groups(mapping.groups, labels, atoms), atoms) == []


@pytest.mark.parametrize("digits", [3, None])
@pytest.mark.parametrize("second", [[1.0, 0, 0], [0, 1.0, 0]], ids=["same", "related by a rotation"])
def test_equivalent_beads(second, digits):
    atoms = dimers(second, stretch=1.2)
    if digits:
        atoms.positions = np.round(atoms.positions, digits)
    assert lint(Mapping.from_molecules(atoms, "Ne"), atoms) == []


def test_positions_that_the_beads_show_are_a_note():
    slab = bulk("Au", cubic=True).repeat(3)
    slab.center(8.0, axis=2)
    findings = lint(Mapping.from_atoms_per_bead(slab, 4, "Kr"), slab)
    assert found(findings) == {"inequivalent-beads": "note"}
    assert "(18 + 9)" in findings[0].message


@pytest.mark.parametrize("rattle", [0.005, 0.02, 0.1])
def test_moved_crystals_say_nothing(rattle):
    atoms = dimers([1.0, 0, 0], stretch=1.2)
    for seed in range(5):
        moved = atoms.copy()
        moved.rattle(rattle, seed=seed)
        assert lint(Mapping.from_molecules(moved, "Ne"), moved) == []


def test_bond_lengths_show_disorder():
    for atoms, expected in ((dimers([0, 0, 1.0]), False), (bulk("Ar", cubic=True), False), (dimers([0, 0, 1.0]), True)):
        if expected:
            atoms.rattle(0.03, seed=0)
        system = System.of(Mapping.from_groups([range(len(atoms))], "Ne", atoms), atoms)
        assert _disordered(system) == expected


@pytest.mark.parametrize("rattle", [0.004, 0.012, 0.06])
def test_moved_crystals_without_bonds_say_nothing(rattle):
    """No bond lengths that show the disorder, and some surroundings that are equal by chance."""
    argon = bulk("Ar", cubic=True).repeat(2)
    for seed in range(12):
        moved = argon.copy()
        moved.rattle(rattle, seed=seed)
        assert found(lint(Mapping.from_atoms_per_bead(moved, 4, "Kr"), moved)) == {"unbonded-groups": "note"}


@pytest.mark.parametrize("edge", [4.0, 12.0], ids=["liquid", "gas"])
@pytest.mark.parametrize("count", [2, 3, 12, 64])
def test_rigid_molecules_at_random_say_nothing(count, edge):
    """Identical molecules, so that bond lengths do not show the disorder; some far from all others."""
    rng = np.random.default_rng(count)
    places = rng.permutation(np.array(list(np.ndindex(4, 4, 4))))[:count]
    atoms = Atoms(cell=[4 * edge] * 3, pbc=True)
    for place in places:
        axis = rng.normal(size=3)
        axis *= 0.55 / np.linalg.norm(axis)
        centre = (place + 0.5) * edge + rng.normal(0, 0.3, 3)
        atoms += Atoms("N2", positions=[centre - axis, centre + axis])
    assert lint(Mapping.from_molecules(atoms, "Ne"), atoms) == []


# ---- neighbours ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True), (False, False, False), (False, True, False)])
@pytest.mark.parametrize("reach", [1.0, 4.5])
def test_near_pairs(pbc, reach):
    rng = np.random.default_rng(5)
    cell = np.array([[5.0, 0, 0], [2.0, 4.0, 0], [-1.0, 1.5, 3.0]])
    points = rng.uniform(-6, 6, (30, 3))
    i, j, distance = near_pairs(points, cell, np.array(pbc), reach)
    expected = primitive_neighbor_list("ijd", pbc, cell, points, reach)
    assert len(i) > 0
    order, other = np.lexsort((distance, j, i)), np.lexsort(expected[::-1])
    for mine, theirs in zip((i, j), expected[:2], strict=True):
        assert (mine[order] == theirs[other]).all()
    np.testing.assert_allclose(distance[order], expected[2][other], atol=1e-12)


def test_nearest_distance():
    argon = bulk("Ar", cubic=True, a=5.26)
    for pbc in (True, False):
        distance = nearest_distance(argon.positions, argon.cell.array, np.array([pbc] * 3))
        assert distance == pytest.approx(5.26 / np.sqrt(2))
