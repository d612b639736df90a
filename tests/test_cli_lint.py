"""``nepcg lint``."""

import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import write

from ase_nepcg.cli import main
from ase_nepcg.lint import lint
from ase_nepcg.mapping import Mapping


@pytest.fixture
def box() -> Atoms:
    water = molecule("H2O")
    water.set_cell([4.0] * 3)
    water.center()
    box = water.repeat(3)
    box.pbc = True
    box.rattle(0.03, seed=2)
    return box


@pytest.fixture
def file(box, tmp_path) -> str:
    path = str(tmp_path / "water.xyz")
    write(path, box, format="extxyz")
    return path


def test_clean(file, capsys):
    assert main(["lint", file, "--species", "Ne"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{file}: 81 atoms, 27 sites: 27 Ne\nno errors, no warnings, no notes\n"
    assert err == ""


def test_findings_are_printed_worst_first(box, file, tmp_path, capsys):
    path = str(tmp_path / "mapping.json")
    groups = [[0, 1, 2], [2, 3, 4], *np.arange(6, 78).reshape(-1, 3)]
    Mapping.from_groups(groups, ["O", *["WAT"] * 25], box).write(path)
    assert main(["lint", file, "--mapping", path]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == f"{file}: 81 atoms, 26 sites: 1 O, 25 WAT"
    paragraphs = [line for line in lines[1:-1] if not line.startswith(" ")]
    expected = lint(Mapping.read(path), box)
    assert [line.partition(":")[0] for line in paragraphs] == [f"{f.severity} [{f.code}]" for f in expected]
    assert paragraphs[0].startswith("error [overlapping-groups]: 1 atom in more than one group")
    assert max(map(len, lines[1:])) <= 100
    counts = [sum(f.severity == name for f in expected) for name in ("error", "warning", "note")]
    assert lines[-1] == "1 error, 2 warnings, 1 note"
    assert counts == [1, 2, 1]


def test_warnings_are_no_failure(file, capsys):
    assert main(["lint", file, "--species", "O"]) == 0
    assert capsys.readouterr().out.endswith("no errors, 1 warning, no notes\n")


def test_json(box, file, capsys):
    assert main(["lint", file, "--mapping", "sites:O", "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    (finding,) = report.pop("findings")
    assert report == {
        "file": file,
        "n_atoms": 81,
        "n_sites": 27,
        "labels": {"O": 27},
        "errors": 0,
        "warnings": 0,
        "notes": 1,
    }
    assert finding["severity"] == "note"
    assert finding["code"] == "anchored-atoms"
    assert finding["sites"] == list(range(27))
    assert finding["atoms"] == np.flatnonzero(box.numbers == 1).tolist()
    assert err == ""


def test_json_is_json_when_labels_are_chosen(file, capsys):
    assert main(["lint", file, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["labels"] == {"He": 27}
    assert "He = H2O" in err


def test_one_of_several_structures(box, tmp_path, capsys):
    path = str(tmp_path / "water.traj")
    wrapped = box.copy()
    wrapped.positions += 2.0
    wrapped.wrap()
    write(path, [wrapped, box])
    main(["lint", path, "--species", "Ne"])
    assert "cut-molecules" not in capsys.readouterr().out
    main(["lint", path + "@0", "--species", "Ne"])
    assert "cut-molecules" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["FILE", "--mapping", "blocks:4"], 2, "--mapping blocks:N needs --species"),
        (["FILE", "--mapping", "molecles"], 2, "argument --mapping: unknown mapping 'molecles'"),
        (["FILE", "--atomistic", "x"], 2, "argument --atomistic: expected atoms and ranges"),
        ([], 2, "the following arguments are required: STRUCTURE"),
        (["none.xyz"], 1, "none.xyz: No such file or directory"),
        (["FILE", "--mapping", "none.json"], 1, "none.json: No such file or directory"),
        (["FILE", "--species", "CH4=MET"], 1, "species: no label for H2O"),
        (["FILE", "--species", "two words"], 1, "expected printable ASCII without blanks"),
        (["FILE", "--mapping", "residues"], 1, "residuenames"),
    ],
)
def test_errors_are_one_sentence(file, arguments, status, message, capsys):
    assert main(["lint", *[file if a == "FILE" else a for a in arguments]]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("nepcg lint: error: ")
    assert message in err
