"""Life cycle of FixBeads: copies, slices, repetition, files, and processes that know only ASE."""

import copy
import io
import json
import pickle
import subprocess
import sys

import ase.constraints
import numpy as np
import pytest
from ase import Atoms
from ase.build import sort
from ase.constraints import FixAtoms, FixConstraint, constrained_indices, dict2constraint
from ase.db import connect
from ase.io import read, write
from ase.io.jsonio import decode, encode

from ase_nepcg import FixBeads, Mapping

GROUPS = [[0, 3, 5], [1], [2, 4]]


@pytest.fixture
def atoms(rng):
    """Seven atoms, the last one free; in a cell."""
    atoms = Atoms("OHHCHOAr", positions=rng.uniform(0, 9, (7, 3)), cell=[9, 10, 11], pbc=True)
    atoms.set_constraint(FixBeads(GROUPS))
    return atoms


def groups_of(atoms):
    (constraint,) = atoms.constraints
    return [group.tolist() for group in constraint.groups]


# ---- copies ---------------------------------------------------------------------------------------------

COPIES = {
    "constraint.copy": lambda atoms: Atoms(atoms, constraint=atoms.constraints[0].copy()),
    "copy.copy": lambda atoms: Atoms(atoms, constraint=copy.copy(atoms.constraints[0])),
    "Atoms(atoms)": Atoms,
    "atoms.copy": lambda atoms: atoms.copy(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda atoms: pickle.loads(pickle.dumps(atoms)),
    "jsonio": lambda atoms: decode(encode(atoms)),
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_are_equal_and_independent(atoms, how):
    atoms.set_positions(atoms.positions + 0.1)  # used before
    made = COPIES[how](atoms)
    assert groups_of(made) == GROUPS
    assert made.constraints[0] == atoms.constraints[0]
    assert made.constraints[0] is not atoms.constraints[0]
    for each in (made, atoms):
        each *= (2, 1, 1)
        assert len(groups_of(each)) == 6
    made = made[:7]
    assert len(groups_of(atoms)) == 6
    before = made.get_center_of_mass(indices=[0, 3, 5])
    made.set_positions(made.positions + np.arange(21.0).reshape(7, 3))
    np.testing.assert_allclose(made.get_center_of_mass(indices=[0, 3, 5]), before, rtol=0, atol=1e-12)


def test_deepcopy_of_a_list_keeps_identities(atoms):
    constraint = atoms.constraints[0]
    first, second = copy.deepcopy([constraint, constraint])
    assert first is second
    assert first is not constraint


def test_copies_share_the_arrays(atoms):
    made = atoms.copy()
    assert np.shares_memory(made.constraints[0].groups[0], atoms.constraints[0].groups[0])
    with pytest.raises(ValueError, match="read-only"):
        made.constraints[0].groups[0][0] = 1


def test_equality():
    constraint = FixBeads([[2, 0], [1]])
    assert constraint == FixBeads([[0, 2], [1]])
    assert constraint != FixBeads([[0, 2]])
    assert constraint != FixBeads([[0], [1, 2]])
    assert constraint != FixAtoms([0, 1, 2])
    with pytest.raises(TypeError, match="unhashable"):
        hash(constraint)


def test_repr():
    constraint = FixBeads([[2, 0], [1]])
    assert repr(constraint) == "FixBeads([[0, 2], [1]])"
    assert eval(repr(constraint)) == constraint
    assert repr(FixBeads(np.arange(300).reshape(100, 3))) == "FixBeads(<100 groups, 300 atoms>)"


def test_dictionary():
    constraint = FixBeads(np.array([[2, 0], [1, 5]]))
    dictionary = json.loads(json.dumps(constraint.todict()))
    assert dictionary == {"name": "FixBeads", "kwargs": {"mapping_or_groups": [[0, 2], [1, 5]]}}
    assert dict2constraint(dictionary) == constraint
    assert isinstance(constraint, FixConstraint)


def test_groups_of_a_mapping(rng):
    water = Atoms("OH2OH2", positions=np.concatenate([np.eye(3) * 0.6, np.eye(3) * 0.6 + 5.0]))
    mapping = Mapping.from_groups([[3, 4, 5], [0, 1, 2]], "WAT")
    water.set_constraint(FixBeads(mapping))
    assert groups_of(water) == [[3, 4, 5], [0, 1, 2]]


def test_indices_for_the_gui(atoms):
    assert atoms.constraints[0].get_indices().tolist() == [0, 1, 2, 3, 4, 5]
    assert constrained_indices(atoms).tolist() == [0, 1, 2, 3, 4, 5]


# ---- slices, order, repetition --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selection", "groups"),
    [
        ([5, 4, 3, 2, 1, 0], [[0, 2, 5], [4], [1, 3]]),
        ([6, -3, 2, 1], [[3], [1, 2]]),
        (np.array([False, True, True, False, True, False, True]), [[0], [1, 2]]),
        (slice(None, None, -1), [[1, 3, 6], [5], [2, 4]]),
        (slice(1, 2), [[0]]),
        ([1, 1, 1], [[0], [1], [2]]),
        ([2, 4, 2, 4, 1], [[4], [0, 1], [2, 3]]),
        ([2, 2, 4, 4], [[0, 2], [1, 3]]),
    ],
)
def test_slices_with_whole_groups(atoms, selection, groups):
    before = atoms.constraints[0].copy()
    part = atoms[selection]
    assert groups_of(part) == groups
    originals = [set(atoms.positions[group, 0]) for group in before.groups]
    assert all(set(part.positions[group, 0]) in originals for group in groups)
    assert atoms.constraints[0] == before


def test_sorting_keeps_the_groups(atoms):
    ordered = sort(atoms)
    before = sorted(atoms.symbols[group].get_chemical_formula() for group in atoms.constraints[0].groups)
    assert sorted(ordered.symbols[group].get_chemical_formula() for group in ordered.constraints[0].groups) == before
    assert ordered.get_number_of_degrees_of_freedom() == atoms.get_number_of_degrees_of_freedom()


@pytest.mark.parametrize(
    ("selection", "message", "groups"),
    [
        (slice(0, 5), r"cuts 1 of 3 groups of FixBeads \(first: group 0, atoms \[0, 3, 5\]\)", [[1], [2, 4]]),
        ([0, 3, 5, 2], r"cuts 1 of 3 .*group 2, atoms \[2, 4\]", [[0, 1, 2]]),
        ([2, 4, 4], r"cuts 1 of 3 .*group 2", [[0, 1]]),
        ([0, 2, 6], r"cuts 2 of 3 .*group 0", None),
    ],
)
def test_cutting_a_group_warns(atoms, selection, message, groups):
    with pytest.warns(UserWarning, match=message) as caught:
        part = atoms[selection]
    assert caught[0].filename == __file__
    assert (groups_of(part) if part.constraints else None) == groups


def test_nothing_left(atoms):
    assert atoms[[6]].constraints == []
    with pytest.raises(IndexError, match="no group is part of the selection"):
        atoms.constraints[0].copy().index_shuffle(atoms, [6])


@pytest.mark.parametrize("m", [2, (2, 1, 1), (1, 2, 3)])
def test_repeat(atoms, m):
    large = atoms.repeat(m)
    images = len(large) // 7
    assert groups_of(large) == [[7 * k + i for i in group] for k in range(images) for group in GROUPS]
    assert large.get_number_of_degrees_of_freedom() == images * (21 - 9)
    assert groups_of(atoms) == GROUPS
    assert groups_of(atoms * m) == groups_of(large)
    constraint = FixBeads(GROUPS)
    assert constraint.repeat(m, 7) is constraint
    assert constraint == large.constraints[0]


def test_repeat_with_too_few_atoms():
    with pytest.raises(ValueError, match="holds atom 5, but there are 5 atoms"):
        FixBeads(GROUPS).repeat(2, 5)


def test_sums_keep_the_constraints_on_the_left(atoms):
    assert groups_of(atoms + atoms) == GROUPS
    assert (Atoms("H") + atoms).constraints == []
    with pytest.raises(RuntimeError, match="Remove constraint"):
        del atoms[6]


# ---- files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.traj", "a.json", "a.db"])
def test_files(tmp_path, atoms, name):
    atoms.set_constraint([FixAtoms([6]), *atoms.constraints])
    write(tmp_path / name, [atoms, atoms.repeat((2, 1, 1))])
    small, large = read(tmp_path / name, index=":")
    assert [type(constraint) for constraint in small.constraints] == [FixAtoms, FixBeads]
    assert small.constraints[1] == FixBeads(GROUPS)
    assert large.constraints[1] == atoms.repeat((2, 1, 1)).constraints[1]


def test_database_rows(tmp_path, atoms):
    with connect(tmp_path / "a.db") as database:
        database.write(atoms)
        assert database.get(1).constraints == [FixBeads(GROUPS)]


@pytest.mark.skipif(ase.__version__.startswith("3.26."), reason="ASE 3.26 cannot write most constraints")
def test_extended_xyz_drops_the_constraint(atoms):
    """Documented: only fixed atoms and coordinates have a column there."""
    buffer = io.StringIO()
    write(buffer, atoms, format="extxyz")
    buffer.seek(0)
    assert read(buffer, format="extxyz").constraints == []


# ---- other processes ------------------------------------------------------------------------------------


def run(code, *arguments):
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]


READ = """
import sys
from ase.io import read
for path in sys.argv[1:]:
    atoms = read(path)
    before = atoms.get_center_of_mass(indices=[0, 3, 5])
    atoms.rattle(0.1)
    held = abs(atoms.get_center_of_mass(indices=[0, 3, 5]) - before).max() < 1e-12
    print(atoms.constraints, held, atoms.get_number_of_degrees_of_freedom())
heavy = {"numba", "matplotlib", "ase_nepcg.mapping", "ase_nepcg.io"}
print(type(atoms.constraints[0]).__module__, heavy & set(sys.modules))
"""


@pytest.mark.parametrize("first", ["", "import ase_nepcg.constraints, ase_nepcg.plugins", "import ase.constraints"])
def test_reading_with_ase_alone(tmp_path, atoms, first):
    """The entry point of the package makes ASE know the class; importing it before makes no difference."""
    paths = [tmp_path / name for name in ("a.traj", "a.json", "a.db")]
    for path in paths:
        write(path, atoms)
    assert run(first + READ, *paths) == [f"[FixBeads({GROUPS})] True 12"] * 3 + ["ase_nepcg.constraints set()"]


def test_pickle_in_another_process(tmp_path, atoms):
    path = tmp_path / "atoms.pickle"
    path.write_bytes(pickle.dumps(atoms))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).constraints)"
    assert run("import warnings; warnings.simplefilter('ignore', ResourceWarning);" + code, path) == [
        f"[FixBeads({GROUPS})]"
    ]


def test_the_class_works_unregistered(monkeypatch, atoms):
    """As where another package removed or replaced the name: everything but reading files."""
    monkeypatch.setattr(ase.constraints, "__all__", [name for name in ase.constraints.__all__ if name != "FixBeads"])
    with pytest.raises(ValueError):  # noqa: PT011 - ASE gives no message
        dict2constraint(atoms.constraints[0].todict())
    for how in ("constraint.copy", "Atoms(atoms)", "atoms.copy", "deepcopy", "pickle"):
        assert groups_of(COPIES[how](atoms)) == GROUPS
    assert len(groups_of(atoms * 2)) == 24
