"""Mappings on disk: JSON and GPUMD's group column, round trips and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read

from ase_nepcg.labels import LabelError
from ase_nepcg.mapping import Mapping, MappingError

MODELS = Path(__file__).resolve().parents[2] / "shared" / "data" / "models"


def water_box():
    water = molecule("H2O")
    water.cell = [3.5] * 3
    water.pbc = True
    return water.repeat(2)


def examples():
    atoms = water_box()
    gold = bulk("Au", cubic=True) * 2
    return {
        "molecules": (atoms, Mapping.from_molecules(atoms, "WAT")),
        "sites": (atoms, Mapping.from_sites(atoms, [0, 3])),
        "mixed": (atoms, Mapping.from_molecules(atoms, "a-long-label_16x").with_atomistic(range(6))),
        "blocks": (gold, Mapping.from_atoms_per_bead(gold, 4, ["He", "Ne"] * 4)),
        "blind": (atoms, Mapping.from_groups([[5, 3], [0]], ["A", "B"])),
        "bonds": (atoms, Mapping.from_molecules(atoms, "A", bonds=[])),
    }


@pytest.mark.parametrize("name", examples())
def test_json_round_trip(name, tmp_path):
    atoms, mapping = examples()[name]
    text = mapping.to_json()
    again = Mapping.from_json(text)
    assert again == mapping
    assert again.to_json() == text
    assert again.bind(atoms).fingerprint() == mapping.bind(atoms).fingerprint()
    assert np.array_equal(again.beads(atoms).positions, mapping.beads(atoms).positions)
    mapping.write(tmp_path / "mapping.json")
    assert Mapping.read(str(tmp_path / "mapping.json")) == mapping
    assert [path.name for path in tmp_path.iterdir()] == ["mapping.json"]  # nothing temporary left


def test_json_is_plain():
    entries = json.loads(Mapping.from_groups([[2, 0], [1]], ["A", "B"]).to_json())
    assert entries == {
        "format": "ase_nepcg mapping",
        "version": 1,
        "groups": [[0, 2], [1]],
        "labels": ["A", "B"],
        "n_atoms": None,
        "numbers": None,
        "bonds": None,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "something"}, "format"),
        ({"version": 2}, "expected version 1, got 2"),
        ({"groups": 5}, "list of lists"),
        ({"groups": [[0, 0]]}, "twice"),
        ({"groups": [["a"]]}, "integers"),
        ({"groups": [[0], [99]]}, "0 to 23, got 99"),
        ({"labels": ["A"]}, "one label per site"),
        ({"labels": ["a b"] * 8}, "a b"),
        ({"labels": 7}, "labels"),
        ({"n_atoms": 23}, "one per atom"),
        ({"n_atoms": "24"}, "n_atoms: expected an integer"),
        ({"n_atoms": 24.0}, "n_atoms"),
        ({"numbers": [8.5] * 24}, "numbers: expected integers"),
        ({"numbers": {"O": 1}}, "numbers"),
        ({"bonds": [[0, 24]]}, "bonds"),
        ({"bonds": "none"}, "bonds"),
        ({"extra": 1}, "unknown entries .'extra'"),
    ],
)
def test_json_that_is_no_mapping(change, message):
    entries = json.loads(Mapping.from_molecules(water_box(), "WAT").to_json()) | change
    with pytest.raises((MappingError, LabelError), match=message):
        Mapping.from_json(json.dumps(entries))


def test_json_that_is_damaged(tmp_path):
    text = Mapping.from_molecules(water_box(), "WAT").to_json()
    entries = json.loads(text)
    del entries["labels"]
    with pytest.raises(MappingError, match=r"missing entries .'labels'"):
        Mapping.from_json(json.dumps(entries))
    for wrong in (text[:-20], "", "[]", "3", None):
        with pytest.raises(MappingError, match="mapping: expected"):
            Mapping.from_json(wrong)
    path = tmp_path / "cut.json"
    path.write_text(text[:-20])
    with pytest.raises(MappingError, match=r"cut\.json: mapping"):
        Mapping.read(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MappingError, match=r"cut\.json"):
        Mapping.read(path)
    with pytest.raises(FileNotFoundError):
        Mapping.read(tmp_path / "missing.json")


# GPUMD


def test_gpumd_files(tmp_path):
    atoms = water_box()
    atoms.positions += 1.7
    atoms.wrap()
    atoms.set_masses([15.999, 2.014, 1.008] * 8)
    atoms.pbc = (True, True, False)
    mapping = Mapping.from_molecules(atoms, {"H2O": "He"}).with_atomistic([0, 1, 2])
    folder = tmp_path / "new" / "run"
    mapping.write_gpumd(folder, atoms)
    assert sorted(path.name for path in folder.iterdir()) == ["bead_name.txt", "model.xyz"]
    assert (folder / "bead_name.txt").read_text().split("\n") == ["O", "H", "H"] + ["He"] * 21 + [""]
    lines = (folder / "model.xyz").read_text().splitlines()
    assert lines[0] == "24"
    assert lines[1] == (
        'Lattice="7.0 0.0 0.0 0.0 7.0 0.0 0.0 0.0 7.0" pbc="T T F" Properties=species:S:1:pos:R:3:mass:R:1:group:I:1'
    )
    columns = [line.split() for line in lines[2:]]
    assert [row[0] for row in columns] == atoms.get_chemical_symbols()
    assert [row[5] for row in columns] == ["0", "1", "2"] + [str(3 + k) for k in range(7) for _ in range(3)]
    assert np.array_equal(np.array([row[4] for row in columns], dtype=float), atoms.get_masses())
    bound = mapping.bind(atoms)
    assert np.array_equal(
        np.array([row[1:4] for row in columns], dtype=float),
        bound.whole(atoms.positions, atoms.cell.array, atoms.pbc),
    )
    # any program that knows extended XYZ
    plain = read(folder / "model.xyz")
    assert plain.arrays["group"].tolist() == bound.site_of.tolist()
    assert plain.pbc.tolist() == [True, True, False]


@pytest.mark.parametrize("name", ["molecules", "mixed", "blocks"])
def test_gpumd_round_trip(name, tmp_path):
    atoms, mapping = examples()[name]
    if name == "molecules":
        mapping = mapping.with_species("He")
    if name == "mixed":
        mapping = mapping.with_species({"O": "O", "H": "H", "a-long-label_16x": "F"})
    mapping.write_gpumd(tmp_path, atoms)
    again = Mapping.read_gpumd(tmp_path / "model.xyz", tmp_path / "bead_name.txt")
    assert [group.tolist() for group in again.groups] == [group.tolist() for group in mapping.groups]
    assert again.labels.tolist() == mapping.labels.tolist()
    assert again.numbers.tolist() == atoms.numbers.tolist()
    assert again.bind(atoms).fingerprint() == mapping.bind(atoms).fingerprint()


def test_gpumd_refuses_what_it_cannot_express(tmp_path):
    atoms = water_box()
    mapping = Mapping.from_molecules(atoms, "He")
    with pytest.raises(MappingError, match=r"every atom in a bead; 22 atoms are in none.*1, 2, 4"):
        Mapping.from_sites(atoms, [0, 3]).write_gpumd(tmp_path, atoms)
    with pytest.raises(MappingError, match=r"H to Pu only as bead names, got A, WAT; .*with_species"):
        mapping.with_species(["WAT", "A"] + ["He"] * 6).write_gpumd(tmp_path, atoms)
    for label in ("X", "Am"):
        with pytest.raises(MappingError, match=f"got {label};"):
            mapping.with_species(label).write_gpumd(tmp_path, atoms)
    with pytest.raises(MappingError, match="for 24 atoms"):
        mapping.write_gpumd(tmp_path, atoms[:3])
    for cell in ([0, 0, 0], [7, 7, 0]):
        flat = atoms.copy()
        flat.set_cell(cell)
        with pytest.raises(MappingError, match="three independent vectors"):
            mapping.write_gpumd(tmp_path, flat)
    unknown = Atoms("XH", [[0, 0, 0], [1, 0, 0]], cell=[5, 5, 5], pbc=True)
    unknown.set_masses([2.0, 1.0])
    with pytest.raises(MappingError, match="atom 0 is X"):
        Mapping.from_groups([[0, 1]], "He", unknown).write_gpumd(tmp_path, unknown)
    assert list(tmp_path.iterdir()) == []


HEADER = 'Lattice="9 0 0 0 9 0 0 0 9" Properties=species:S:1:pos:R:3:group:I:1'
ROWS = ["O 0 0 0 1", "H 1 0 0 1", "Na 4 4 4 0", "H 0 1 0 1"]


def write_files(folder, rows=ROWS, names="F\nF\nNa\nF\n", header=HEADER):
    (folder / "model.xyz").write_text("\n".join([str(len(rows)), header, *rows]) + "\n")
    (folder / "bead_name.txt").write_text(names)
    return folder / "model.xyz", folder / "bead_name.txt"


def test_gpumd_files_by_hand(tmp_path):
    mapping = Mapping.read_gpumd(*write_files(tmp_path))
    assert [group.tolist() for group in mapping.groups] == [[2], [0, 1, 3]]
    assert mapping.labels.tolist() == ["Na", "F"]
    # several grouping methods: the first counts; keys in lower case; names of our own
    rows = [f"{row} 7" for row in ROWS]
    files = write_files(tmp_path, rows, "WAT WAT ION WAT", HEADER.replace("I:1", "I:2").replace("Lattice", "lattice"))
    mapping = Mapping.read_gpumd(*map(str, files))
    assert [group.tolist() for group in mapping.groups] == [[2], [0, 1, 3]]
    assert mapping.labels.tolist() == ["ION", "WAT"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"header": HEADER.replace("group", "other")}, "expected a column group:I:1"),
        ({"header": HEADER.replace("group:I", "group:R")}, "expected integers in the column group"),
        ({"rows": ["O 0 0 0 0", "H 1 0 0 2"]}, "groups 0 to 2 without gaps, found no group 1"),
        ({"rows": ["O 0 0 0 -1", "H 1 0 0 0"]}, "without gaps"),
        ({"names": "F F Na"}, "a name for each of the 4 atoms, got 3"),
        ({"names": "F F Na Ne"}, "group 1 is F by its atom 0, and Ne by atom 3"),
        ({"rows": ["O 0 0 zero 0"]}, "expected one frame of extended XYZ"),
    ],
)
def test_gpumd_files_that_make_no_sense(changes, message, tmp_path):
    with pytest.raises(MappingError, match=message):
        Mapping.read_gpumd(*write_files(tmp_path, **changes))


def test_gpumd_files_that_are_not_there(tmp_path):
    model, names = write_files(tmp_path)
    with pytest.raises(FileNotFoundError):
        Mapping.read_gpumd(tmp_path / "none.xyz", names)
    with pytest.raises(FileNotFoundError):
        Mapping.read_gpumd(model, tmp_path / "none.txt")
    model.write_text("")
    with pytest.raises(MappingError, match=r"model\.xyz"):
        Mapping.read_gpumd(model, names)


@pytest.mark.skipif(not (MODELS / "water_216.xyz").is_file(), reason="needs ../shared/data")
def test_gpumd_water_216(tmp_path):
    atoms = read(MODELS / "water_216.xyz", index=0)
    mapping = Mapping.from_molecules(atoms, "F")
    mapping.write_gpumd(tmp_path, atoms)
    again = Mapping.read_gpumd(tmp_path / "model.xyz", tmp_path / "bead_name.txt")
    assert len(again) == 216
    assert again.bind(atoms).fingerprint() == mapping.bind(atoms).fingerprint()
