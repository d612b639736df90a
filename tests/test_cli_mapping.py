"""The command line's options for a mapping."""

import argparse
import sys

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write

from ase_nepcg.cli import Parser, UsageError
from ase_nepcg.cli_mapping import StructureError, add_mapping_arguments, make_mapping, read_structure
from ase_nepcg.labels import LabelError
from ase_nepcg.mapping import Mapping, MappingError


def parsed(*arguments) -> argparse.Namespace:
    parser = Parser(prog="x")
    add_mapping_arguments(parser)
    return parser.parse(list(arguments))


def made(atoms, *arguments) -> Mapping:
    return make_mapping(parsed(*arguments), atoms)


@pytest.fixture
def mixture() -> Atoms:
    """Two waters, a methanol, a water."""
    atoms = Atoms(cell=[40, 10, 10], pbc=True)
    for k, name in enumerate(["H2O", "H2O", "CH3OH", "H2O"]):
        piece = molecule(name)
        piece.translate([10 * k + 5, 5, 5])
        atoms += piece
    return atoms


# ---- kinds of mapping ----------------------------------------------------------------------------------------------


def test_molecules_are_the_default(mixture, capsys):
    mapping = made(mixture)
    assert mapping == made(mixture, "--mapping", "molecules")
    assert mapping.labels.tolist() == ["He", "He", "Ne", "He"]
    out, err = capsys.readouterr()
    assert out == ""  # results go there
    assert "He = H2O" in err


@pytest.mark.parametrize("species", ["H2O=WAT,CH4O=MET", "OH2=WAT, CH3OH=MET", "CH3OH=MET,HOH=WAT"])
def test_species_by_formula(mixture, species, capsys):
    mapping = made(mixture, "--species", species)
    assert mapping == Mapping.from_molecules(mixture, {"H2O": "WAT", "CH4O": "MET"})
    assert capsys.readouterr() == ("", "")


def test_one_species(mixture):
    assert made(mixture, "--species", "BEAD") == Mapping.from_molecules(mixture, "BEAD")


def test_atoms(mixture):
    assert made(mixture, "--mapping", "atoms") == Mapping.from_atoms(mixture)
    species = {"O": "OW", "H": "HW", "C": "CW"}
    assert made(mixture, "--mapping=atoms", "--species=O=OW,H=HW,C=CW") == Mapping.from_atoms(mixture, species)


def test_blocks():
    gold = bulk("Au", cubic=True).repeat(2)
    mapping = made(gold, "--mapping", "blocks:4", "--species", "Kr")
    assert mapping == Mapping.from_atoms_per_bead(gold, 4, "Kr")
    assert made(gold, "--mapping", "blocks:4", "--species", "Au4=Kr") == mapping
    with pytest.raises(UsageError, match="blocks:N needs --species"):
        made(gold, "--mapping", "blocks:4")
    with pytest.raises(MappingError, match="divisor of the 32 atoms"):
        made(gold, "--mapping", "blocks:5", "--species", "Kr")


def test_sites(mixture):
    oxygens = np.flatnonzero(mixture.numbers == 8)
    assert made(mixture, "--mapping", "sites:O") == Mapping.from_sites(mixture, oxygens)
    assert made(mixture, "--mapping", "sites:O", "--species", "OW") == Mapping.from_sites(mixture, oxygens, "OW")
    with pytest.raises(MappingError, match="sites:Au: the structure has no Au atoms, only C, H, O"):
        made(mixture, "--mapping", "sites:Au")


def test_residues(mixture):
    names = ["HOH"] * 6 + ["MOH"] * 6 + ["HOH"] * 3
    numbers = np.repeat([1, 2, 3, 4], [3, 3, 6, 3])
    with pytest.raises(MappingError, match="residuenames"):
        made(mixture, "--mapping", "residues")
    mixture.set_array("residuenames", np.array(names))
    mixture.set_array("residuenumbers", numbers)
    assert made(mixture, "--mapping", "residues").labels.tolist() == ["HOH", "HOH", "MOH", "HOH"]
    # names of residues are not formulas: HOH would be H2O
    mapping = made(mixture, "--mapping", "residues", "--species", "HOH=WAT,MOH=MET")
    assert mapping.labels.tolist() == ["WAT", "WAT", "MET", "WAT"]


def test_file(mixture, tmp_path):
    mapping = Mapping.from_molecules(mixture, {"H2O": "WAT", "CH4O": "MET"})
    path = str(tmp_path / "mapping.json")
    mapping.write(path)
    assert made(mixture, "--mapping", path) == mapping
    relabelled = made(mixture, "--mapping", path, "--species", "OH2=He,CH4O=Ne")
    assert relabelled.labels.tolist() == ["He", "He", "Ne", "He"]
    with pytest.raises(FileNotFoundError):
        made(mixture, "--mapping", str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(MappingError, match=r"bad\.json"):
        made(mixture, "--mapping", str(tmp_path / "bad.json"))


# ---- atomistic -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["0-2,12-14", "0,1,2,12,13,14", "12-14, 0 - 2", "0-2,1,2,12-13,14-14"])
def test_atomistic(mixture, text):
    mapping = made(mixture, "--species", "BEAD", "--atomistic", text)
    assert mapping == Mapping.from_molecules(mixture, "BEAD").with_atomistic([0, 1, 2, 12, 13, 14])
    assert len(mapping) == 8


def test_atomistic_outside(mixture):
    with pytest.raises(MappingError, match="--atomistic: expected atoms 0 to 14, got 99999999999"):
        made(mixture, "--species", "BEAD", "--atomistic", "0-99999999999")
    with pytest.raises(MappingError, match="would be cut"):
        made(mixture, "--species", "BEAD", "--atomistic", "0")


# ---- wrong usage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mapping", "molecule"], "unknown mapping 'molecule'; did you mean 'molecules'"),
        (["--mapping", ""], "unknown mapping ''; valid names: FILE.json, atoms, blocks:N"),
        (["--mapping", "blocks"], "unknown mapping 'blocks'; did you mean 'blocks:N'"),
        (["--mapping", "blocks:"], "expected blocks:N .* got 'blocks:'"),
        (["--mapping", "blocks:0"], "expected blocks:N"),
        (["--mapping", "blocks:-4"], "expected blocks:N"),
        (["--mapping", "blocks:x"], "expected blocks:N"),
        (["--mapping", "sites:"], "expected sites:SYMBOL"),
        (["--mapping", "sites:Ow"], "expected sites:SYMBOL .* got 'sites:Ow'"),
        (["--mapping", "sites:X"], "expected sites:SYMBOL"),
        (["--species", ""], "expected LABEL or FORMULA=LABEL"),
        (["--species", "A,B"], "expected LABEL or FORMULA=LABEL"),
        (["--species", "H2O="], "expected FORMULA=LABEL"),
        (["--species", "=WAT"], "expected FORMULA=LABEL"),
        (["--species", "H2O=WAT,"], "expected FORMULA=LABEL, e.g. H2O=WAT, got ''"),
        (["--species", "H2O=WAT=X"], "expected FORMULA=LABEL"),
        (["--species", "H2O=A,H2O=B"], "H2O is there twice"),
        (["--atomistic", ""], "expected atoms and ranges"),
        (["--atomistic", "a"], "expected atoms and ranges such as 0-95,100, got 'a'"),
        (["--atomistic", "5-2"], "expected atoms and ranges"),
        (["--atomistic=-1"], "expected atoms and ranges"),
        (["--atomistic", "1.5"], "expected atoms and ranges"),
        (["--atomistic", "1,"], "expected atoms and ranges"),
    ],
)
def test_syntax(arguments, message):
    with pytest.raises(UsageError, match=f"argument {arguments[0].partition('=')[0]}: {message}"):
        parsed(*arguments)


def test_same_formula_twice(mixture):
    """Two spellings of one formula must not hide each other."""
    with pytest.raises(UsageError, match=r"--species: H2O and OH2 are the same formula \(H2O\)"):
        made(mixture, "--species", "H2O=WAT,OH2=ICE,CH4O=MET")


def test_bad_labels(mixture):
    with pytest.raises(LabelError, match="at most 16 letters"):
        made(mixture, "--species", "L" * 17)
    with pytest.raises(MappingError, match="no label for CH4O"):
        made(mixture, "--species", "H2O=WAT")


# ---- structures ----------------------------------------------------------------------------------------------------


def test_read_structure(mixture, tmp_path):
    path = str(tmp_path / "a.traj")
    moved = mixture.copy()
    moved.positions += 1
    write(path, [mixture, moved])
    assert read_structure(path) == moved
    assert read_structure(path + "@0") == mixture


def test_unreadable_structures(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_structure(str(tmp_path / "none.xyz"))
    with pytest.raises(FileNotFoundError):
        read_structure(str(tmp_path / "none.xyz@0"))
    with pytest.raises(IsADirectoryError):
        read_structure(str(tmp_path))
    path = tmp_path / "a.xyz"
    write(path, Atoms("He"))
    with pytest.raises(StructureError, match=r"a\.xyz@3: no such structure in the file"):
        read_structure(f"{path}@3")
    with pytest.raises(StructureError, match=r"expected one structure, got 1; say which, e\.g\. .*a\.xyz@0"):
        read_structure(f"{path}@:")
    for text in ("", "3\n\nHe 0 0 0\n", "nonsense\n", "1\n\nQq 0 0 0\n"):
        path.write_text(text)
        with pytest.raises(StructureError, match=r"a\.xyz: (cannot be read as a structure|no such structure)"):
            read_structure(str(path))
    path.write_text("0\n\n")
    with pytest.raises(StructureError, match=r"a\.xyz: "):
        read_structure(str(path))


def test_file_name_with_at(mixture, tmp_path):
    path = str(tmp_path / "300K@1bar.xyz")
    write(path, mixture, format="extxyz")
    assert len(read_structure(path)) == len(mixture)


def test_import_is_light():
    import subprocess

    code = "import sys, ase_nepcg.cli_mapping, ase_nepcg.cli_lint; print({'ase', 'scipy', 'numba'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
