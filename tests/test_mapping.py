"""Mappings: the constructors, editing, refusals, and the object itself. What they compute: test_mapping_bound.py."""

import copy
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, graphene, molecule
from ase.constraints import FixAtoms
from ase.io import read

import ase_nepcg
from ase_nepcg.errors import NepCGError
from ase_nepcg.labels import LabelError, get_labels, set_labels
from ase_nepcg.mapping import BoundMapping, Mapping, MappingError

MODELS = Path(__file__).resolve().parents[2] / "shared" / "data" / "models"


def water_box(n=2, spacing=3.5):
    """n^3 molecules O H H in a cubic cell."""
    water = molecule("H2O")
    water.center(vacuum=0)
    water.cell = [spacing] * 3
    water.pbc = True
    return water.repeat(n)


def mixture():
    """H2O, Na, CH4, H2O in this order of lowest atoms, with the atoms of the molecules interleaved."""
    parts = [molecule("H2O"), Atoms("Na"), molecule("CH4"), molecule("H2O")]
    for k, part in enumerate(parts):
        part.positions += [5.0 * k, 0, 0]
    atoms = parts[0] + parts[1] + parts[2] + parts[3]
    order = [0, 3, 4, 9, 1, 2, 5, 6, 10, 11, 7, 8]
    atoms = atoms[order]
    atoms.set_cell([20, 8, 8])
    atoms.pbc = True
    return atoms


def groups_of(mapping):
    return [group.tolist() for group in mapping.groups]


# constructors


def test_public_name():
    assert ase_nepcg.Mapping is Mapping
    assert issubclass(MappingError, NepCGError)
    assert issubclass(MappingError, ValueError)


def test_from_molecules_orders_by_lowest_atom():
    atoms = mixture()
    mapping = Mapping.from_molecules(atoms, {"H2O": "WAT", "Na": "ION", "CH4": "MET"})
    assert groups_of(mapping) == [[0, 4, 5], [1], [2, 6, 7, 10, 11], [3, 8, 9]]
    assert mapping.labels.tolist() == ["WAT", "ION", "MET", "WAT"]
    assert mapping.labels.dtype == "<U16"
    assert all(group.dtype == np.int64 for group in mapping.groups)
    assert len(mapping) == 4
    assert mapping.n_atoms == 12
    assert mapping.numbers.tolist() == atoms.numbers.tolist()


def test_from_molecules_chooses_elements_that_do_not_occur(capsys):
    atoms = mixture()
    atoms += Atoms("He", [[0, 4, 4]])
    mapping = Mapping.from_molecules(atoms)
    assert mapping.labels.tolist() == ["Ne", "Ar", "Kr", "Ne", "Xe"]
    assert capsys.readouterr().out == "bead species: Ne = H2O, Ar = Na, Kr = CH4, Xe = He\n"
    many = Atoms(["Ne", "Ar", "Kr", "Xe", "Rn"], positions=[[9 * k, 0, 0] for k in range(5)])
    assert Mapping.from_molecules(many).labels.tolist() == ["He", "H", "Li", "Be", "B"]


def test_more_formulas_than_free_elements():
    sizes = range(1, 96)
    atoms = Atoms()
    for k, size in enumerate(sizes):
        atoms += Atoms(f"C{size}", [[1.4 * j, 5.0 * k, 0] for j in range(size)])
    with pytest.raises(MappingError, match="95 different formulas, but only 93 elements"):
        Mapping.from_molecules(atoms)


def test_from_molecules_with_a_function_of_whole_molecules():
    atoms = mixture()
    atoms.set_constraint(FixAtoms([0]))
    before = atoms.copy()
    atoms.positions += [3.0, 0.2, 0.1]
    atoms.wrap()
    sizes = []

    def label(piece):
        sizes.append(np.ptp(piece.positions, axis=0).max())
        return piece.get_chemical_formula() + "x"

    mapping = Mapping.from_molecules(atoms, label)
    assert mapping.labels.tolist() == ["H2Ox", "Nax", "CH4x", "H2Ox"]
    assert max(sizes) < 2  # the boundary cuts none of them
    assert np.array_equal(before.numbers, atoms.numbers)


def test_from_molecules_through_boundaries_is_the_same():
    atoms = mixture()
    mapping = Mapping.from_molecules(atoms, "M")
    for shift in np.random.default_rng(0).random((5, 3)) * 20:
        moved = atoms.copy()
        moved.positions += shift
        moved.wrap()
        assert Mapping.from_molecules(moved, "M") == mapping


def test_from_molecules_with_given_bonds():
    atoms = Atoms("H4", [[0, 0, 0], [0.74, 0, 0], [1.48, 0, 0], [2.22, 0, 0]])
    assert groups_of(Mapping.from_molecules(atoms, "A")) == [[0, 1, 2, 3]]
    assert groups_of(Mapping.from_molecules(atoms, "A", bonds=[(1, 0), (2, 3), (0, 1)])) == [[0, 1], [2, 3]]
    assert groups_of(Mapping.from_molecules(atoms, "A", bonds=[])) == [[0], [1], [2], [3]]
    for wrong, message in [
        ([(0, 4)], r"0 to 3, got \[0, 4\]"),
        ([(0, 0)], "different"),
        ([(0.0, 1.0)], "float64"),
        ([0, 1], "pairs"),
        ([(0, -1)], "-1"),
    ]:
        with pytest.raises(MappingError, match=message):
            Mapping.from_molecules(atoms, "A", bonds=wrong)


@pytest.mark.parametrize("crystal", [bulk("Au", cubic=True) * 2, bulk("Au"), bulk("Si"), graphene(size=(2, 2, 1))])
def test_crystals_are_no_molecules(crystal):
    with pytest.raises(MappingError, match=r"its own periodic image.*from_atoms_per_bead"):
        Mapping.from_molecules(crystal, "X1")


def test_polymer_through_the_boundary_is_no_molecule():
    n = 6
    chain = Atoms(f"C{n}", [[1.3 * k, 0.3 * (k % 2), 0] for k in range(n)], cell=[1.3 * n, 9, 9], pbc=True)
    with pytest.raises(MappingError, match=f"C{n}.*periodic image"):
        Mapping.from_molecules(chain, "P")
    with pytest.raises(MappingError, match="periodic image"):
        Mapping.from_molecules(chain, "P", bonds=[(k, (k + 1) % n) for k in range(n)])
    assert len(Mapping.from_molecules(chain, "P", bonds=[(k, k + 1) for k in range(n - 1)])) == 1
    chain.pbc = False
    assert len(Mapping.from_molecules(chain, "P")) == 1


@pytest.mark.parametrize(
    ("species", "message"),
    [
        ({"H2O": "WAT"}, r"no label for Na, CH4; the beads are H2O \(2\), Na \(1\), CH4 \(1\)"),
        ({"H2O": "A", "Na": "B", "CH4": "C", "OH2": "D"}, r"no bead is OH2 \(did you mean 'H2O'\?\)"),
        ({"H2O": "A", "Na": "B", "CH4": ""}, "empty"),
        ({"H2O": "A", "Na": "B", "CH4": "a b"}, "'a b'"),
        (["A", "B"], r"shape \(4,\), got shape \(2,\)"),
        ("a=b", "'a=b'"),
        ("seventeen_letters", "at most 16"),
        (lambda piece: None, "strings"),
        (7, "labels"),
    ],
)
def test_species_that_do_not_fit(species, message):
    with pytest.raises((MappingError, LabelError), match=message):
        Mapping.from_molecules(mixture(), species)


def test_from_groups():
    mapping = Mapping.from_groups([[5, 3], range(2), np.array([2], dtype=np.uint8)], ["A", "B", "A"])
    assert groups_of(mapping) == [[3, 5], [0, 1], [2]]
    assert mapping.n_atoms is None
    assert mapping.numbers is None
    atoms = water_box()
    known = Mapping.from_groups([[0, 1, 2], [3]], {"H2O": "W", "O": "Q"}, atoms)
    assert known.labels.tolist() == ["W", "Q"]
    assert Mapping.from_groups(({4}, (5, 6)), "A", atoms).n_atoms == 24
    assert Mapping.from_groups([[0, 1], [2]], lambda piece: f"n{len(piece)}", atoms).labels.tolist() == ["n2", "n1"]
    with pytest.raises(MappingError, match="pass atoms too"):
        Mapping.from_groups([[0]], {"O": "W"})
    with pytest.raises(MappingError, match="pass atoms too"):
        Mapping.from_groups([[0]], lambda piece: "W")
    with pytest.raises(MappingError, match="pass atoms too"):
        Mapping.from_groups([[0]], "W", bonds=[(0, 1)])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], "at least one group"),
        ([[0, -1]], "group 0: .*got -1"),
        ([[0], [1.0, 2.0]], "group 1: expected integers, got float64"),
        ([[0], [1, 1]], "group 1: atom 1 is there twice"),
        ([[True, False]], "np.flatnonzero"),
        ([0, 1, 2], "got 0 for group 0"),
        ([["a"]], "group 0: expected integers"),
        ([[[0, 1]]], r"shape \(1, 2\)"),
        ("01", "list of lists"),
        ({0: [1]}, "list of lists"),
        (7, "list of lists"),
        (["01"], "got '01' for group 0"),
    ],
)
def test_groups_that_are_nonsense(groups, message):
    with pytest.raises(MappingError, match=message):
        Mapping.from_groups(groups, "A")


def test_atoms_that_do_not_exist():
    with pytest.raises(MappingError, match="0 to 23, got 24"):
        Mapping.from_groups([[0, 24]], "A", water_box())
    with pytest.raises(MappingError, match="0 to 23, got 24"):
        Mapping.from_groups([[0, 24]], "A").bind(water_box())


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[0, 1], [1, 2], [2, 3]], "overlapping groups: 2 atoms, such as 1 in the sites 0, 1"),
        ([[0], [], [2], []], "without any atom: 1, 3"),
    ],
)
def test_overlapping_and_empty_groups_are_made_but_never_used(groups, message, known):
    atoms = water_box()
    mapping = Mapping.from_groups(groups, "A", atoms if known else None)
    assert groups_of(mapping) == groups
    zero, unit = np.zeros((24, 3)), np.zeros((3, 3))
    for use in (
        lambda: mapping.bind(atoms),
        lambda: mapping.beads(atoms),
        lambda: mapping.forces(atoms, zero),
        lambda: mapping.virial(atoms, zero, unit),
        lambda: mapping.virial_atomic(atoms, unit, 300),
        lambda: Mapping(mapping.groups, "A", numbers=atoms.numbers).with_atomistic([0]),
    ):
        with pytest.raises(MappingError, match=message):
            use()
    with pytest.raises(MappingError):
        Mapping.from_groups(groups, lambda piece: "A", atoms)
    assert pickle.loads(pickle.dumps(mapping)) == mapping


def test_from_atoms_per_bead():
    gold = bulk("Au", cubic=True) * (2, 1, 1)
    mapping = Mapping.from_atoms_per_bead(gold, 4, "He")
    assert groups_of(mapping) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert Mapping.from_atoms_per_bead(gold, 2, ["a", "b", "a", "b"]).labels.tolist() == ["a", "b", "a", "b"]
    assert Mapping.from_atoms_per_bead(gold, np.int32(8), {"Au8": "He"}).labels.tolist() == ["He"]
    for wrong in (3, 0, -4, 16):
        with pytest.raises(MappingError, match=rf"divisor of the 8 atoms \(1, 2, 4, 8\), got {wrong}"):
            Mapping.from_atoms_per_bead(gold, wrong, "He")
    with pytest.raises(MappingError, match=r"got 2\.5"):
        Mapping.from_atoms_per_bead(gold, 2.5, "He")


def test_from_atoms():
    atoms = mixture()
    mapping = Mapping.from_atoms(atoms)
    assert mapping.labels.tolist() == atoms.get_chemical_symbols()
    assert groups_of(mapping) == [[i] for i in range(12)]
    assert mapping.bind(atoms).is_site.all()
    assert Mapping.from_atoms(atoms, "Q").labels.tolist() == ["Q"] * 12
    set_labels(atoms, [f"t{k}" for k in range(12)], masses=1.5)
    assert Mapping.from_atoms(atoms).labels.tolist() == [f"t{k}" for k in range(12)]
    with pytest.raises(MappingError, match="at least one"):
        Mapping.from_atoms(Atoms())


def test_from_sites_anchors_the_rest():
    atoms = mixture()
    mapping = Mapping.from_sites(atoms, [3, 2, 0])
    assert groups_of(mapping) == [[3], [2], [0]]
    assert mapping.labels.tolist() == ["O", "C", "O"]
    bound = mapping.bind(atoms)
    assert bound.anchor_of.tolist() == [2, 3, 1, 0, 2, 2, 1, 1, 0, 0, 1, 1]
    assert bound.n_implicit == 1  # sodium
    assert Mapping.from_sites(atoms, np.flatnonzero(atoms.numbers == 8), {"O": "W"}).labels.tolist() == ["W", "W"]
    assert groups_of(Mapping.from_sites(atoms, 2)) == [[2]]
    for wrong, message in [
        ([], "at least one"),
        ([0, 0], "atom 0 is there twice"),
        ([12], "0 to 11, got 12"),
        ([-1], "got -1"),
        ([0.5], "float64"),
        (atoms.numbers == 8, "np.flatnonzero"),
    ]:
        with pytest.raises(MappingError, match=message):
            Mapping.from_sites(atoms, wrong)


def test_anchors_count_bonds_not_distances():
    # the last carbon is 4 bonds from one end and 2 from a branch
    ethanol = molecule("CH3CH2OH")
    symbols = ethanol.get_chemical_symbols()
    oxygen, carbon = symbols.index("O"), symbols.index("C")
    bound = Mapping.from_sites(ethanol, [oxygen, carbon]).bind(ethanol)
    distances = ethanol.get_all_distances()
    for i in range(len(ethanol)):
        near = [j for j in range(len(ethanol)) if j != i and distances[i, j] < 1.6]
        if symbols[i] == "H":
            assert bound.anchor_of[i] == bound.anchor_of[near[0]]
    other = next(i for i in range(len(ethanol)) if symbols[i] == "C" and i != carbon)
    assert bound.anchor_of[other] == 0  # one bond from both: the first site
    assert Mapping.from_sites(ethanol, [carbon, oxygen]).bind(ethanol).anchor_of[other] == 0


# other mappings from one


def test_with_atomistic():
    atoms = mixture()
    mapping = Mapping.from_molecules(atoms, {"H2O": "WAT", "Na": "ION", "CH4": "MET"})
    mixed = mapping.with_atomistic([5, 1, 4, 0])
    assert groups_of(mixed) == [[0], [4], [5], [1], [2, 6, 7, 10, 11], [3, 8, 9]]
    assert mixed.labels.tolist() == ["O", "H", "H", "Na", "MET", "WAT"]
    assert mixed.bind(atoms).is_site.tolist() == [i in (0, 1, 4, 5) for i in range(12)]
    assert len(mapping) == 4  # unchanged
    assert mixed.with_atomistic([0, 4]) == mixed
    whole = mapping.with_atomistic(range(12))
    assert len(whole) == 12
    assert groups_of(mapping.with_atomistic(1)) == [[0, 4, 5], [1], [2, 6, 7, 10, 11], [3, 8, 9]]


def test_with_atomistic_of_atoms_in_no_group():
    atoms = mixture()
    mapping = Mapping.from_sites(atoms, [0, 2], "S").with_atomistic([9, 3])
    assert groups_of(mapping) == [[0], [2], [3], [9]]
    assert mapping.labels.tolist() == ["S", "S", "O", "H"]
    assert mapping.bind(atoms).anchor_of.tolist() == [0, 4, 1, 2, 0, 0, 1, 1, 2, 3, 1, 1]


def test_with_atomistic_refusals():
    atoms = mixture()
    mapping = Mapping.from_molecules(atoms, "M")
    with pytest.raises(MappingError, match=r"bead 0 \(M\) .* atoms 0, 4, 5 the atoms 5 are left over"):
        mapping.with_atomistic([0, 4])
    with pytest.raises(MappingError, match="elements"):
        Mapping.from_groups([[0]], "A").with_atomistic([0])
    with pytest.raises(MappingError, match="got 12"):
        mapping.with_atomistic([12])


def test_with_species():
    atoms = mixture()
    mapping = Mapping.from_molecules(atoms, {"H2O": "WAT", "Na": "ION", "CH4": "MET"})
    assert mapping.with_species("He").labels.tolist() == ["He"] * 4
    assert mapping.with_species(["a", "b", "c", "d"]).labels.tolist() == ["a", "b", "c", "d"]
    assert mapping.with_species({"H2O": "He", "Na": "Na", "CH4": "C"}).labels.tolist() == ["He", "Na", "C", "He"]
    assert mapping.with_species({"WAT": "He", "ION": "Na", "MET": "C"}).labels.tolist() == ["He", "Na", "C", "He"]
    named = mapping.with_species(lambda piece: f"n{len(piece)}", atoms)
    assert named.labels.tolist() == ["n3", "n1", "n5", "n3"]
    assert groups_of(named) == groups_of(mapping)
    assert mapping.labels.tolist() == ["WAT", "ION", "MET", "WAT"]
    blind = Mapping.from_groups([[0, 4, 5], [1]], ["A", "B"])
    assert blind.with_species({"A": "C", "B": "D"}).labels.tolist() == ["C", "D"]
    assert blind.with_species({"H2O": "C", "Na": "D"}, atoms).labels.tolist() == ["C", "D"]
    with pytest.raises(MappingError, match="no new label for B; the labels are A, B"):
        blind.with_species({"A": "C"})
    with pytest.raises(MappingError, match="no bead is C"):
        blind.with_species({"A": "C", "B": "D", "C": "E"})
    with pytest.raises(MappingError, match="pass atoms"):
        mapping.with_species(lambda piece: "A")
    with pytest.raises(MappingError, match="for 12 atoms, got 3"):
        mapping.with_species({"H2O": "W"}, atoms[:3])
    with pytest.raises(LabelError):
        mapping.with_species("a b")


# fitting the atoms


def test_atoms_that_do_not_fit():
    atoms = mixture()
    mapping = Mapping.from_molecules(atoms, "M")
    with pytest.raises(MappingError, match="for 12 atoms, got 11"):
        mapping.bind(atoms[:-1])
    other = atoms.copy()
    other.numbers[[1, 5]] = [19, 9]
    with pytest.raises(MappingError, match=r"2 atoms are not.*atom 1: expected Na, got K"):
        mapping.bind(other)
    broken = atoms.copy()
    broken.positions[4, 1] = np.inf
    with pytest.raises(MappingError, match="atom 4"):
        mapping.bind(broken)
    with pytest.raises(MappingError, match="atom 4"):
        Mapping.from_molecules(broken, "M")


@pytest.mark.parametrize("mass", [0.0, -1.0, np.nan, np.inf])
def test_masses_that_are_none(mass):
    atoms = water_box()
    mapping = Mapping.from_molecules(atoms, "W")
    masses = atoms.get_masses()
    masses[7] = mass
    atoms.arrays["masses"] = masses
    with pytest.raises(MappingError, match=f"got {mass} for atom 7"):
        mapping.bind(atoms)


def test_atoms_of_no_element_need_masses():
    atoms = Atoms("XHX", np.eye(3) * 4)
    mapping = Mapping.from_groups([[0, 1], [2]], "A", atoms)
    with pytest.raises(MappingError, match=r"atom 0 is of no element \(X\)"):
        mapping.bind(atoms)
    atoms.set_masses([18.0, 1.0, 18.0])
    assert mapping.bind(atoms).site_masses.tolist() == [19.0, 18.0]


def test_molecules_in_another_order_are_noticed():
    atoms = water_box()
    mapping = Mapping.from_molecules(atoms, "W")
    shuffled = atoms.copy()
    shuffled.positions[[1, 4]] = atoms.positions[[4, 1]]  # a hydrogen of each of two molecules
    with pytest.raises(MappingError, match="bonds of the mapping are broken; atoms"):
        mapping.bind(shuffled)
    sites = Mapping.from_sites(atoms, np.flatnonzero(atoms.numbers == 8))
    with pytest.raises(MappingError, match="broken"):
        sites.bind(shuffled)
    stretched = atoms.copy()
    stretched.positions[1] += 0.8 * (atoms.positions[1] - atoms.positions[0])
    assert mapping.bind(stretched).n_sites == 8


def test_groups_of_atoms_that_are_not_bonded_follow_the_nearest(rng):
    """Liquid argon, four atoms per bead: there are no bonds, and neighbours change."""
    atoms = Atoms("Ar8", rng.random((8, 3)) * 3 + np.repeat([[0, 0, 0], [6, 0, 0]], 4, axis=0), cell=[12] * 3, pbc=True)
    mapping = Mapping.from_atoms_per_bead(atoms, 4, "A")
    first = mapping.beads(atoms).positions
    assert np.allclose(first, atoms.positions.reshape(2, 4, 3).mean(axis=1))
    # the group moves on, one of its atoms at a time, half a cell and more
    moved = atoms.copy()
    moved.positions[:4] += [7.0, 7.0, 7.0]
    moved.positions[4:] -= [7.0, 7.0, 7.0]
    expected = moved.positions.reshape(2, 4, 3).mean(axis=1)
    moved.wrap()
    difference = (mapping.beads(moved).positions - expected) / 12
    assert np.allclose(difference, np.rint(difference))


def test_stretched_trees_are_grown_anew():
    atoms = Atoms("Ar3", [[0, 0, 0], [3, 0, 0], [0, 4, 0]], cell=[20] * 3, pbc=True)
    mapping = Mapping.from_groups([[0, 1, 2]], "A", atoms)
    assert mapping.bind(atoms).tree.parent.tolist() == [0, 0, 0]
    atoms.positions[1] = [0, 8, 0]  # now the nearest of 1 is 2, and 12 through the boundary from 0
    bound = mapping.bind(atoms)
    assert bound.tree.parent.tolist() == [0, 2, 0]
    atoms.positions[1] = [0, 12, 0]
    atoms.positions[2] = [0, 6, 0]
    assert np.allclose(mapping.beads(atoms).positions, [[0, 6, 0]])


def test_trees_are_kept_while_they_fit(rng):
    atoms = water_box()
    mapping = Mapping.from_molecules(atoms, "W")
    tree = mapping.bind(atoms).tree
    atoms.rattle(0.05, rng=rng)
    atoms.positions += 2
    atoms.wrap()
    assert mapping.bind(atoms).tree is tree
    assert mapping.with_species("V").bind(atoms).tree is tree


def test_unknown_atoms_find_their_anchors_each_time():
    """Groups without atoms know no elements: the same mapping serves different systems, each with its own molecules."""
    mapping = Mapping.from_groups([[0], [3]], "O")
    water, ammonia = water_box(), Atoms("NHHNHH", np.zeros((6, 3)))
    ammonia.positions = [[0, 0, 0], [5, 0, 1], [1, 0, 0], [5, 0, 0], [0, 0, 1], [4, 0, 0]]
    assert mapping.bind(water).anchor_of[:6].tolist() == [0, 0, 0, 1, 1, 1]
    assert mapping.bind(ammonia).anchor_of.tolist() == [0, 1, 0, 1, 0, 1]
    assert mapping.bind(water).n_implicit == 6


def test_implicit_crystal_is_refused():
    gold = bulk("Au", cubic=True) * 2
    atoms = gold + Atoms("He", [[2.0, 2.0, 14.0]])
    atoms.cell[2, 2] = 20
    mapping = Mapping.from_groups([[32]], "He")
    with pytest.raises(MappingError, match=r"atom .* is in no bead.*periodic image.*give it a site"):
        mapping.bind(atoms)
    with pytest.raises(MappingError, match="give it a site"):
        Mapping.from_groups([[32]], "He", atoms)


# the object


def test_immutable():
    atoms = water_box()
    mapping = Mapping.from_molecules(atoms, "W")
    with pytest.raises(AttributeError):
        mapping.labels = ["A"]
    for array in (mapping.labels, mapping.groups[0], mapping.numbers, mapping.bonds):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[1]
    given = np.array([0, 1])
    Mapping.from_groups([given], "A")
    given[0] = 5  # the caller's array is copied, not locked
    before = atoms.copy()
    mapping.beads(atoms)
    assert before == atoms
    assert set(before.arrays) == set(atoms.arrays)


def test_equality_hash_copy_pickle():
    atoms = mixture()
    mapping = Mapping.from_molecules(atoms, "M")
    assert mapping == Mapping.from_molecules(atoms, "M")
    assert hash(mapping) == hash(Mapping.from_molecules(atoms, "M"))
    others = [
        mapping.with_species("N"),
        mapping.with_atomistic([1, 0, 4, 5]),
        Mapping.from_groups(mapping.groups, "M"),
        Mapping.from_groups(mapping.groups, "M", atoms),
        "M",
    ]
    assert all(mapping != other for other in others)
    assert Mapping.from_groups([[0], [1, 2]], "A") != Mapping.from_groups([[0, 1], [2]], "A")
    for twin in (pickle.loads(pickle.dumps(mapping)), copy.copy(mapping), copy.deepcopy(mapping)):
        assert twin == mapping
        assert not twin.groups[0].flags.writeable
        assert twin.bind(atoms).fingerprint() == mapping.bind(atoms).fingerprint()


def test_repr():
    assert repr(Mapping.from_groups([[0], [1], [2, 3]], ["A", "A", "B"])) == "Mapping(3 sites: 2 A, 1 B)"
    mapping = Mapping.from_molecules(water_box(), "W")
    assert repr(mapping) == "Mapping(8 sites: 8 W; 24 atoms)"
    assert repr(mapping.bind(water_box())) == "BoundMapping(24 atoms, 8 sites, 0 implicit molecules)"
    assert isinstance(mapping.bind(water_box()), BoundMapping)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"numbers": [1, 1], "n_atoms": 3}, "one per atom, 3, got 2"),
        ({"numbers": [1, 999]}, "0 to 118"),
        ({"n_atoms": 1}, "0 to 0, got 1"),
        ({"bonds": [[0, 1]]}, "without the number of atoms"),
    ],
)
def test_contradicting_parts(arguments, message):
    with pytest.raises(MappingError, match=message):
        Mapping([[0, 1]], "A", **arguments)


def test_lean_import():
    code = "import sys, ase_nepcg.mapping; print([m for m in ('numba', 'matplotlib', 'spglib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_speed():
    atoms = water_box(10, 3.1)
    start = time.perf_counter()
    mapping = Mapping.from_molecules(atoms, "W")
    built = time.perf_counter() - start
    mapping.beads(atoms)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        mapping.beads(atoms)
        times.append(time.perf_counter() - start)
    assert built < 1.0  # 0.1 s on an idle core
    assert min(times) < 0.05  # 3 ms


@pytest.mark.skipif(not (MODELS / "water_216.xyz").is_file(), reason="needs ../shared/data")
def test_water_216():
    atoms = read(MODELS / "water_216.xyz", index=0)
    mapping = Mapping.from_molecules(atoms, {"H2O": "WAT"})
    assert len(mapping) == 216
    assert {len(group) for group in mapping.groups} == {3}
    beads = mapping.beads(atoms)
    assert get_labels(beads).tolist() == ["WAT"] * 216
    assert np.allclose(beads.get_masses(), 18.015, atol=1e-3)
    # a centre of mass lies within 0.1 Å of its oxygen, in any periodic image
    oxygen = atoms.positions[[group[atoms.numbers[group] == 8][0] for group in mapping.groups]]
    gaps = np.linalg.norm(beads.positions - oxygen, axis=1)
    periodic = (beads.positions - oxygen) @ np.linalg.inv(atoms.cell.array)
    periodic = np.linalg.norm((periodic - np.rint(periodic)) @ atoms.cell.array, axis=1)
    assert periodic.max() < 0.12
    assert gaps.max() < 20
