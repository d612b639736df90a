"""The ``nepcg`` command itself, and ``nepcg info`` on every header variant."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest

import ase_nepcg
from ase_nepcg import NEPModel, cli
from ase_nepcg.cli import COMMANDS, Parser, UsageError, main
from ase_nepcg.model import ZBL

SIZES = {"n_max": (2, 1), "basis_size": (3, 2), "neurons": 3}


def nepcg(*arguments, code="import sys; from ase_nepcg.cli import main; sys.exit(main())", **settings):
    """Run the command in a new process."""
    root = str(Path(ase_nepcg.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, **settings}
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "nep.txt"
    NEPModel.random(["O"], seed=1, **SIZES).write(path)
    return str(path)


def info(capsys, path):
    """Lines of ``nepcg info`` by label; continuation lines are appended."""
    assert main(["info", str(path)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    first, *lines = out.splitlines()
    assert first == str(path)
    texts, column = (
        {},
        min(len(line) - len(line[2:].lstrip("abcdefghijklmnopqrstuvwxyz_ZBLN").lstrip()) for line in lines),
    )
    label = None
    for line in lines:
        label = line[2:column].strip() or label
        texts[label] = (texts.get(label, "") + "\n" + line[column:]).strip()
    return texts


# ---- the command --------------------------------------------------------------------------------------------------


def test_version(capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"nepcg {ase_nepcg.__version__}\n"


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--help"])
    out = capsys.readouterr().out
    for name, (summary, _) in COMMANDS.items():
        assert f"{name}  " in out
        assert summary in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        main([name, "--help"])
    out = capsys.readouterr().out
    assert out.startswith(f"usage: nepcg {name} ")
    module, attribute = COMMANDS[name][1].split(":")
    assert getattr(import_module(module), attribute).__doc__.splitlines()[0] in out


def test_without_a_command(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: nepcg ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inof", "x"], r"nepcg: error: unknown sub-command 'inof'; did you mean 'info'\?"),
        (["zzzzzz"], "unknown sub-command 'zzzzzz'; valid names: bench, eos, export, hnemd, info"),
        (["--verion"], r"nepcg: error: unknown option '--verion'; did you mean '--version'\?"),
        (["info", "x", "--jsno"], r"nepcg info: error: unknown option '--jsno'; did you mean '--json'\?"),
        (["info", "x", "--jso"], r"unknown option '--jso'; did you mean '--json'\?"),
        (["info"], "nepcg info: error: the following arguments are required: FILE"),
        (["bench", "extra"], "nepcg bench: error: unexpected argument 'extra'"),
    ],
)
def test_wrong_usage(arguments, message, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert re.search(message, err), err


def test_options_are_not_abbreviated():
    parser = Parser(prog="x")
    parser.add_argument("--repeat")
    assert parser.parse(["--repeat=3"]).repeat == "3"
    with pytest.raises(UsageError, match="unknown option '--rep'"):
        parser.parse(["--rep=3"])


class _Fails:
    """A command that fails."""

    error = None

    @staticmethod
    def add_arguments(parser):
        pass

    @classmethod
    def run(cls, args):
        raise cls.error


@pytest.fixture
def failing(monkeypatch):
    monkeypatch.setitem(COMMANDS, "fails", ("fails", "ase_nepcg.cli:_Fails"))
    monkeypatch.setattr(cli, "_Fails", _Fails, raising=False)

    def install(error):
        monkeypatch.setattr(_Fails, "error", error)

    return install


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FileNotFoundError(2, "No such file or directory", "a.txt"), "a.txt: No such file or directory"),
        (ValueError("two\n  lines"), "two lines"),
        (cli.NepCGError("own"), "own"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero (nepcg -T ... shows where)"),
        (RuntimeError(), "RuntimeError: no message (nepcg -T ... shows where)"),
    ],
)
def test_errors_are_one_sentence(failing, error, text, capsys):
    failing(error)
    assert main(["fails"]) == 1
    assert capsys.readouterr().err == f"nepcg fails: error: {text}\n"


@pytest.mark.parametrize("arguments", [["-T", "fails"], ["fails", "-T"], ["--traceback", "fails"]])
def test_traceback(failing, arguments):
    failing(ZeroDivisionError("here"))
    with pytest.raises(ZeroDivisionError, match="here"):
        main(arguments)


def test_interrupt(failing):
    failing(KeyboardInterrupt())
    assert main(["fails"]) == 130


def test_entry_point():
    found = [point for point in entry_points(group="console_scripts") if point.name == "nepcg"]
    if not found:
        pytest.skip("the package is not installed")
    assert found[0].load() is main


def test_starts_light(model_file):
    """Neither numba nor matplotlib, nor anything else that takes long, for help and info."""
    code = (
        "import sys\n"
        "from ase_nepcg.cli import main\n"
        "try:\n    status = main()\nexcept SystemExit as error:\n    status = error.code\n"
        "print('status', status, *sorted({'numba', 'matplotlib', 'scipy', 'ase'} & set(sys.modules)))"
    )
    for arguments in (["--help"], ["info", model_file], ["info", "--help"]):
        run = nepcg(*arguments, code=code)
        assert run.stderr == ""
        assert run.stdout.splitlines()[-1] == "status 0"


def test_exit_status_of_a_process(model_file, tmp_path):
    assert nepcg("info", model_file).returncode == 0
    missing = nepcg("info", tmp_path / "none")
    assert missing.returncode == 1
    assert missing.stderr == f"nepcg info: error: {tmp_path / 'none'}: No such file or directory\n"
    assert "Traceback" in nepcg("-T", "info", tmp_path / "none").stderr


def test_terminal_without_special_letters(model_file):
    run = nepcg("info", model_file, PYTHONIOENCODING="ascii")
    assert run.returncode == 0
    assert "radial 6 ?, angular 4 ?" in run.stdout


@pytest.mark.skipif(os.name != "posix", reason="closes the reading end of a pipe")
def test_closed_pipe(model_file):
    reading, writing = os.pipe()
    os.close(reading)
    run = subprocess.run(
        [sys.executable, "-m", "ase_nepcg.cli", "info", model_file],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(ase_nepcg.__file__).parent.parent)},
        check=False,
    )
    os.close(writing)
    assert (run.returncode, run.stderr) == (1, "")


# ---- nepcg info ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [3, 4, 5])
@pytest.mark.parametrize("zbl", [None, (1.0, 2.0)])
@pytest.mark.parametrize("temperature", [False, True])
def test_every_model_name(version, zbl, temperature, tmp_path, capsys):
    if version == 5 and temperature:
        pytest.skip("not a variant")
    model = NEPModel.random(["O", "H"], version=version, zbl=zbl, temperature=temperature, **SIZES)
    model.write(tmp_path / "nep.txt")
    text = info(capsys, tmp_path / "nep.txt")
    assert text["model"].startswith(f"{model.name}: NEP{version} potential, one network")
    assert ("all species" in text["network"]) == (version == 3)
    assert ("energy shift" in text["network"]) == (version == 5)
    assert ("ZBL" in text["model"]) == (zbl is not None)
    assert text["ZBL"] == ("none" if zbl is None else "universal: full below 1 Å, none beyond 2 Å")
    assert text["temperature"] == ("input of the network, in K" if temperature else "no input")
    assert text["species"] == "2: O H"
    assert text["parameters"].startswith(f"{model.n_parameters}: ")
    network, descriptor = (int(part.split()[0]) for part in text["parameters"].split(":")[1].split(","))
    assert network + descriptor == model.n_parameters
    assert descriptor == model.c_radial.size + model.c_angular.size


def test_sizes(tmp_path, capsys):
    model = NEPModel.random(["O"], n_max=(2, 1), basis_size=(3, 0), l_max=(4, 1, 1, 0, 1, 0, 1), neurons=(5, 4))
    model.write(tmp_path / "nep.txt")
    text = info(capsys, tmp_path / "nep.txt")
    assert text["radial"] == "n_max 2, basis_size 3: 3 functions of 4 basis functions"
    assert text["angular"] == "n_max 1, basis_size 0: 2 functions of 1 basis function"
    assert text["l_max"] == "4: 3-body up to l = 4, 4-body q222 q123 q134, 5-body q1111"
    assert text["descriptor"] == "19 components: 3 radial + 2 x 8 angular"
    assert text["network"].startswith("19 -> 5 -> 4 -> 1 ")
    assert text["file"] == f"{(tmp_path / 'nep.txt').stat().st_size} bytes"


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((30, 12), "at most 30 radial, 12 angular in training"),
        ((819, 819), "not counted (the file has GPUMD's limits, 819 and 819)"),
        (None, "not in the file"),
    ],
)
def test_neighbour_counts(counts, expected, tmp_path, capsys):
    NEPModel.random(["O"], max_neighbors=counts, **SIZES).write(tmp_path / "nep.txt")
    assert info(capsys, tmp_path / "nep.txt")["neighbours"] == expected


def test_uniform_cutoffs(model_file, capsys):
    assert info(capsys, model_file)["cutoffs"] == "radial 6 Å, angular 4 Å"


def test_cutoffs_per_type(tmp_path, capsys):
    NEPModel.random(["O", "H"], cutoff={"O": (6, 4), "H": (5, 3.5)}, **SIZES).write(tmp_path / "nep.txt")
    lines = info(capsys, tmp_path / "nep.txt")["cutoffs"].splitlines()
    assert lines[0].startswith("per species, radial/angular in Å")
    assert lines[1].split() == ["O", "6/4", "H", "5/3.5"]


def test_typewise_cutoffs_and_zbl(tmp_path, capsys):
    model = NEPModel.random(["O", "H"], cutoff=(6, 4), zbl=(1.0, 2.0), **SIZES)
    replace(model, typewise=(2.5, 2.0, 0.65)).write(tmp_path / "nep.txt")
    text = info(capsys, tmp_path / "nep.txt")
    head, *pairs = text["cutoffs"].splitlines()
    assert "2.5 (radial) and 2 (angular) times" in head
    # the radii of O and H are 0.84 and 0.426667 Å
    assert " ".join(pairs).split() == ["O-O", "4.2/3.36", "O-H", "3.167/2.533", "H-H", "2.133/1.707"]
    head, *pairs = text["ZBL"].splitlines()
    assert "0.65 times" in head
    assert " ".join(pairs).split()[:2] == ["O-O", "0.546/1.092"]


def test_typewise_factors_switched_off(tmp_path, capsys):
    replace(NEPModel.random(["O"], **SIZES), typewise=(0.0, 0.0, 0.0)).write(tmp_path / "nep.txt")
    assert info(capsys, tmp_path / "nep.txt")["cutoffs"] == "radial 6 Å, angular 4 Å"


def test_flexible_zbl(tmp_path, capsys):
    table = np.full((3, 10), 0.5)
    table[:, 0], table[:, 1] = [0.5, 0.6, 0.7], [1.5, 1.6, 1.7]
    model = NEPModel.random(["O", "H"], zbl=ZBL(0, 0, flexible=table), **SIZES)
    model.write(tmp_path / "nep.txt")
    head, *pairs = info(capsys, tmp_path / "nep.txt")["ZBL"].splitlines()
    assert head.startswith("flexible")
    assert " ".join(pairs).split() == ["O-O", "0.5/1.5", "O-H", "0.6/1.6", "H-H", "0.7/1.7"]


def test_many_types_stay_within_the_screen(tmp_path, capsys):
    species = list(ase_nepcg.model.RADII)[:20]
    cutoff = dict.fromkeys(species, (5.0, 4.0)) | {"H": (4.0, 3.0)}
    NEPModel.random(species, cutoff=cutoff, **SIZES).write(tmp_path / "nep.txt")
    main(["info", str(tmp_path / "nep.txt")])
    lines = capsys.readouterr().out.splitlines()[1:]
    assert max(map(len, lines)) <= 120
    assert sum(line.count("5/4") for line in lines) == 19


def test_json(model_file, tmp_path, capsys):
    model = NEPModel.random(["O", "H"], zbl=(1.0, 2.0), temperature=True, **SIZES)
    other = str(tmp_path / "other.txt")
    model.write(other)
    assert main(["info", "--json", model_file, other]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["file"], first["model"], first["zbl"]) == (model_file, "nep4", None)
    assert second["species"] == ["O", "H"]
    assert second["zbl"] == {"form": "universal", "inner": [[1.0, 1.0]] * 2, "outer": [[2.0, 2.0]] * 2}
    assert second["temperature"] is True
    assert second["n_parameters"] == second["n_parameters_network"] + second["n_parameters_descriptor"]
    assert second["n_parameters"] == model.n_parameters
    assert second["pair_cutoff_angular"] == [[4.0, 4.0], [4.0, 4.0]]
    assert second["bytes"] == os.path.getsize(other)


def test_a_bad_file_among_good_ones(model_file, tmp_path, capsys):
    bad = tmp_path / "bad.txt"
    bad.write_text("nep4 1 O\ncutoff 6 x\n")
    assert main(["info", model_file, str(bad), model_file]) == 1
    out, err = capsys.readouterr()
    assert out.count("one network per species\n") == 2
    assert err.startswith(f"nepcg info: error: {bad}, line 2: ")
    assert len(err.splitlines()) == 1

    assert main(["info", "--json", str(bad), model_file]) == 1
    records = json.loads(capsys.readouterr().out)
    assert records[0]["error"].startswith(f"{bad}, line 2: ")
    assert records[1]["model"] == "nep4"

    with pytest.raises(ase_nepcg.NepCGError, match="line 2"):
        main(["-T", "info", str(bad)])
