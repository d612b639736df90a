import re

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from ase_nepcg.cli import main
from ase_nepcg.cli_quickstart import _SETTINGS
from ase_nepcg.data import WATER_AA, water_box
from ase_nepcg.quickstart import PRESETS, Settings
from ase_nepcg.quickstart import journey as journey_module


@pytest.fixture
def asked(monkeypatch):
    """Arguments with which ``quickstart`` was called."""
    calls = []
    monkeypatch.setattr(
        "ase_nepcg.quickstart.quickstart", lambda folder, **given: calls.append({"folder": folder} | given)
    )
    return calls


def test_options_arrive(asked, monkeypatch):
    line = "quickstart --quick --densities 1 1.1 --cutoff 5 4 --steps 7 --seed 3 --threads 2 --workers 1 --folder here"
    monkeypatch.setattr("sys.argv", ["nepcg", *line.split()])
    assert main(line.split()) == 0
    [given] = asked
    assert given["preset"] == "quick"
    assert given["densities"] == [1.0, 1.1]
    assert given["cutoff"] == [5.0, 4.0]
    assert (given["steps"], given["seed"], given["threads"], given["workers"]) == (7, 3, 2, 1)
    assert given["folder"] == "here"
    assert given["command"] == f"nepcg {line}"
    assert given["atoms"] is given["calculator"] is given["mapping"] is None
    # what is not said is left to the preset
    assert "time_ps" not in given


def test_help_names_the_defaults():
    """The text is written by hand, since the settings import what --help should not."""
    for option, (*_, text) in _SETTINGS.items():
        shown = [float(word) for word in re.search(r"\(default:? ([\d. ]*\d)", text)[1].split()]
        assert shown == np.atleast_1d(getattr(Settings, option.replace("-", "_"))).tolist()


@pytest.mark.parametrize(("words", "preset"), [([], "full"), (["--long"], "long")])
def test_presets(asked, words, preset):
    assert main(["quickstart", *words]) == 0
    assert asked[0]["preset"] == preset
    assert preset in PRESETS


def test_own_system(asked, tmp_path, capsys):
    write(tmp_path / "box.xyz", water_box(2))
    words = ["--structure", str(tmp_path / "box.xyz"), "--model", WATER_AA, "--species", "Ne", "--name", "mine"]
    assert main(["quickstart", *words]) == 0
    [given] = asked
    assert len(given["atoms"]) == 24
    assert set(given["mapping"].labels) == {"Ne"}
    assert set(given["calculator"].model.species) == {"O", "H"}
    assert given["calculator_options"] == f"--model {WATER_AA}"
    assert given["name"] == "mine"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--quik", "did you mean '--quick'"),
        ("--quick --long", "not allowed with"),
        ("--steps 0", "--steps: expected a positive integer, got '0'"),
        ("--densities 1 -1", "expected a positive number"),
        ("--seed 1.5", "--seed: expected an integer"),
        ("--model nep.txt", "--model and --calculator go with --structure"),
        ("--structure box.xyz", "where do the forces come from"),
        ("--species Ne", "--mapping, --species and --atomistic go with --structure"),
        ("--mapping blocks:3", "go with --structure"),
        ("--cutoff 5", "expected 2 arguments"),
        ("--calculator lj --calculator-option epsilon=x --structure b", "option epsilon: expected a number, got 'x'"),
    ],
)
def test_wrong_usage(asked, words, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("b", bulk("Au"), format="extxyz")
    assert main(["quickstart", *words.split()]) == 2
    assert text in capsys.readouterr().err
    assert asked == []


def test_structures_that_will_not_do(asked, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["quickstart", "--structure", "none.xyz", "--model", WATER_AA]) == 1
    assert "none.xyz" in capsys.readouterr().err
    cut = water_box(2)[:-1]
    write("cut.xyz", cut)
    # the bond graph finds a fragment, which becomes a bead of another species
    assert main(["quickstart", "--structure", "cut.xyz", "--model", WATER_AA, "--species", "H2O=Ne"]) == 1
    assert "HO" in capsys.readouterr().err


def test_models_of_other_species_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("gold.xyz", bulk("Au", cubic=True) * 2)
    words = "quickstart --structure gold.xyz --mapping blocks:4 --species Pt --folder run --quick --workers 1"
    assert main([*words.split(), "--model", WATER_AA]) == 1
    assert "Au" in capsys.readouterr().err


def test_from_the_shell_to_the_report(tmp_path, capsys, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PRESETS, "quick", tiny)
    assert main(["quickstart", "--quick", "--threads", "1", "--workers", "1", "--folder", "<run>"]) == 0
    shown = capsys.readouterr()
    assert "[6/6] speed" in shown.out
    text = (tmp_path / "<run>" / journey_module.REPORT).read_text()
    assert "<run>" not in text
    assert main(["quickstart", "--quick", "--threads", "1", "--workers", "1", "--folder", "<run>", "--steps", "6"]) == 1
    assert "steps was 5, now 6" in capsys.readouterr().err


def test_interrupt_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr("ase_nepcg.quickstart.quickstart", interrupted)
    assert main(["quickstart"]) == 130
    assert "the same command goes on" in capsys.readouterr().err
