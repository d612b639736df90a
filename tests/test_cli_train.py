"""``nepcg train``: what it hands over, writes and prints, and what it refuses.

The shape of model is that called "small" in ``training_shapes.py``.
"""

import os
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import training_twin as twin

from ase_nepcg import NEPModel
from ase_nepcg.checkpoint import CheckpointError
from ase_nepcg.cli import main
from ase_nepcg.cli_predict import _report
from ase_nepcg.dataset import read_dataset, write_dataset
from ase_nepcg.locks import locked
from ase_nepcg.model import ZBL
from ase_nepcg.training import core
from ase_nepcg.training import fit as fit_module
from ase_nepcg.training.files import OUT_FILES, read_loss, read_out
from ase_nepcg.training.folder import CHECKPOINT
from ase_nepcg.training.predict import predict
from ase_nepcg.training.targets import Targets

SPECIES = ("H", "O")
SHAPE = {"n_max": (2, 1), "basis_size": (3, 2), "l_max": (3, 1, 0), "neurons": 3, "cutoff": (4.0, 3.0)}
OPTIONS = ["--n-max", 2, 1, "--basis-size", 3, 2, "--l-max", 3, 1, 0, "--neurons", 3, "--cutoff", 4, 3]
RUN = [*OPTIONS, "--steps", "20", "--seed", "3"]
NEP_IN = """type 2 H O
n_max 2 1
basis_size 3 2
l_max 3 1 0
neuron 3
cutoff 4 3
population 10
generation 20
output_interval 10
"""
TRAIN_FILES = {f"{quantity}_train.out" for quantity in OUT_FILES}
TEST_FILES = {f"{quantity}_test.out" for quantity in OUT_FILES}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with frames, and in it one with ``nep.in``."""
    path = tmp_path_factory.mktemp("inputs")
    (path / "folder").mkdir()
    (path / "folder/nep.in").write_text(NEP_IN)
    write_dataset(path / "frames.xyz", twin.random_frames(1, 7, SPECIES))
    write_dataset(path / "others.xyz", twin.random_frames(2, 3, SPECIES, errors=True))
    write_dataset(path / "folder/train.xyz", twin.random_frames(1, 7, SPECIES, errors=True))
    return path


@pytest.fixture
def work(inputs, tmp_path, monkeypatch):
    """A copy of ``inputs``, in which the test runs."""
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_training(monkeypatch):
    """Keeps the arguments of ``train()`` and raises ``error`` instead of training."""
    fake = SimpleNamespace(error=core.TrainingError("enough"), calls=[])

    def train(frames, **keywords):
        fake.calls.append(keywords | {"frames": frames})
        raise fake.error

    monkeypatch.setattr(core, "train", train)
    return fake


def run(capsys, *arguments, status=0):
    assert main(["train", *map(str, arguments), "--threads", "1"]) == status
    return capsys.readouterr()


def everything() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path().rglob("*")) if path.is_file()}


# ---- frames -------------------------------------------------------------------------------------------------------


def test_frames(work, capsys):
    out, err = run(capsys, "frames.xyz", "--test", "others.xyz", "--output", "new", *RUN, "--n-models", 2, "--plot")
    assert err == ""
    models = {"nep.txt", "nep-1.txt", "loss.csv", "loss-1.csv", "loss.out", "training.png"}
    names = models | TRAIN_FILES | TEST_FILES
    assert set(os.listdir("new")) == names | {CHECKPOINT, "nepcg.checkpoint-1.npz"}

    frames, test = read_dataset("frames.xyz"), read_dataset("others.xyz")
    expected = core.train(frames, test=test, steps=20, seed=3, n_models=2, threads=1, progress=False, **SHAPE)
    for name, model, history in zip(("", "-1"), expected.models, expected.histories, strict=True):
        assert np.array_equal(NEPModel.read(f"new/nep{name}.txt").parameters(), model.parameters())
        rows = Path(f"new/loss{name}.csv").read_text().splitlines()
        assert rows[0].startswith("step,total,l1,l2,energy (eV/atom)")
        assert [float(row.split(",")[1]) for row in rows[1:]] == history.total.tolist()
    loss = read_loss("new/loss.out")
    for name in ("step", "total", "l2", "force", "virial_test"):
        assert np.allclose(loss[name], expected.history[name], atol=6e-6)

    # the table is that of nepcg predict
    for path, stem in (("frames.xyz", "train"), ("others.xyz", "test")):
        targets = Targets.from_frames(read_dataset(path), SPECIES)
        predictions = predict(expected.model, targets, threads=1)
        sites = len(targets.forces)
        assert f"{path}: {len(targets)} frames, {sites} sites\n{_report(targets, predictions)}\n" in out
        assert np.allclose(read_out(f"new/force_{stem}.out")[0], predictions.forces, rtol=1e-5)
    assert re.search(r"force: noise floor 0\.\d+ eV/Å \(rms error bar\), reduced chi\^2 \d", out)
    lines = out.splitlines()
    assert re.fullmatch(r"nep-1\.txt: force RMSE 0\.\d+ eV/Å, test force RMSE 0\.\d+ eV/Å", lines[-3])
    last = expected.history.step[-1]
    assert re.fullmatch(rf"lbfgs: {last} steps \(.*\), seed 3, \d+\.\d s", lines[-2])
    assert lines[-1].startswith("new: wrote nep.txt loss.csv nep-1.txt ")
    assert set(lines[-1].split()[2:]) == names
    assert Path("new/training.png").read_bytes().startswith(b"\x89PNG")


def test_it_goes_on_or_starts_anew(work, capsys, monkeypatch):
    monkeypatch.setattr(fit_module, "_CHECKPOINT_INTERVAL", -1.0)
    run(capsys, "frames.xyz", "--output", "whole", *RUN)

    original = core.fit

    def interrupted(*arguments, **keywords):
        keywords["on_report"] = lambda report: report.step == 10 and os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **keywords)

    monkeypatch.setattr(core, "fit", interrupted)
    out, err = run(capsys, "frames.xyz", "--output", "new", *RUN, status=130)
    assert err == f"nepcg train: interrupted after step 10; the same command goes on from new/{CHECKPOINT}\n"
    assert "lbfgs: 10 steps (interrupted)" in out
    assert read_loss("new/loss.out")["step"].tolist() == [10]
    monkeypatch.setattr(core, "fit", original)
    out, err = run(capsys, "frames.xyz", "--output", "new", *RUN)
    assert (out.splitlines()[0], err) == (f"new/{CHECKPOINT}: the run goes on from there", "")
    for name in ("nep.txt", "loss.out", "force_train.out"):
        assert Path("new", name).read_bytes() == Path("whole", name).read_bytes()

    # with other settings it is another run
    before = everything()
    other = ["frames.xyz", "--output", "new", *RUN, "--lambda-f", "2"]
    _, err = run(capsys, *other, status=1)
    assert f"new/{CHECKPOINT}: this checkpoint belongs to another training run: lambda_f was 1.0, is 2.0" in err
    assert everything() == before
    # which must be able to begin before anything is lost
    _, err = run(capsys, *other, "--overwrite", "--type-weight", "1", status=2)
    assert "type_weight: expected 2 numbers, one per species, got 1" in err
    assert everything() == before
    run(capsys, *other, "--overwrite")
    after = everything()
    assert set(after) == set(before)
    assert after["new/nep.txt"] != before["new/nep.txt"]


def test_one_training_at_a_time_uses_a_folder(work, capsys):
    run(capsys, "frames.xyz", "--output", "a", *RUN)
    before = everything()
    with locked("a/.nepcg-train.lock", RuntimeError()):
        for extra in ((), ("--overwrite",)):
            _, err = run(capsys, "frames.xyz", "--output", "a", *RUN, *extra, status=2)
            assert "a: another training writes its results here" in err
    with locked(f"a/{CHECKPOINT}.lock", RuntimeError()):
        _, err = run(capsys, "frames.xyz", "--output", "a", *RUN, status=1)
        assert f"a/{CHECKPOINT}: another training writes this checkpoint" in err
    assert everything() == before


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--population", "20"), "--population is an option of snes, the optimizer is lbfgs"),
        (("--batch", "2"), "--batch is an option of adam and snes, the optimizer is lbfgs"),
        (("--optimizer", "adam", "--sigma0", "1"), "--sigma0 is an option of snes, the optimizer is adam"),
        (("--optimizer", "snes", "--learning-rate", "1"), "--learning-rate is an option of adam"),
    ],
)
def test_options_that_would_do_nothing(work, capsys, no_training, extra, message):
    assert message in run(capsys, "frames.xyz", *RUN, *extra, status=2)[1]
    assert no_training.calls == []


def test_what_a_user_should_notice(work, capsys, no_training):
    _, err = run(capsys, "frames.xyz", *RUN, "--test", "frames.xyz", status=2)
    assert "note: --test is the training file" in err


def test_overwriting_touches_checkpoints_only(work, capsys):
    """Those of this name, and not what merely begins like it."""
    run(capsys, "frames.xyz", "--checkpoint", "f.npz", *RUN)
    for name in ("f10.npz", "f-notes.npz", "f-1.npz"):
        shutil.copy("f.npz", name)
    before = everything()
    run(capsys, "frames.xyz", "--checkpoint", "f.npz", *RUN, "--seed", "9", "--overwrite")
    after = everything()
    assert set(before) - set(after) == {"f-1.npz"}
    assert [after[name] == before[name] for name in ("f10.npz", "f-notes.npz", "frames.xyz", "f.npz")] == [True] * 3 + [
        False
    ]
    _, err = run(capsys, "frames.xyz", "--checkpoint", "frames.xyz", *RUN, "--overwrite", status=2)
    assert "frames.xyz: that is no checkpoint, and will not be replaced" in err
    with locked("f.npz.lock", RuntimeError()):
        _, err = run(capsys, "frames.xyz", "--checkpoint", "f.npz", "--output", "new", *RUN, "--overwrite", status=1)
    assert "f.npz: another training writes this checkpoint" in err
    assert everything() == after


def test_more_steps_with_a_test_set(work, capsys):
    """The patience that nobody gave follows the number of steps; that is no other run."""
    start = ["frames.xyz", "--test", "frames.xyz", "--output", "a", *RUN]
    run(capsys, *start)
    out, _ = run(capsys, *start, "--steps", "40")
    assert "frames of H O" in out
    assert "the run goes on from there" in out
    _, err = run(capsys, *start, "--steps", "40", "--patience", "3", status=1)
    assert "patience was None, is 3" in err


def test_results_without_checkpoint_are_not_overwritten(work, capsys, no_training):
    Path("nep.txt").write_text("mine")
    _, err = run(capsys, "frames.xyz", status=2)
    assert f".: nep.txt there already, but no {CHECKPOINT} to go on from; give --output FOLDER, or --overwrite" in err
    assert no_training.calls == []
    run(capsys, "frames.xyz", "--overwrite", status=2)
    assert len(no_training.calls) == 1
    assert Path("nep.txt").read_text() == "mine"
    # a folder that was made for nothing
    run(capsys, "frames.xyz", "--output", "new", status=2)
    assert no_training.calls[-1]["checkpoint"] == Path("new", CHECKPOINT)
    assert not Path("new").exists()


def handed_over(no_training, capsys, *arguments) -> dict:
    _, err = run(capsys, *arguments, status=2)
    assert err == "nepcg train: error: enough (see nepcg train --help)\n"
    return no_training.calls.pop()


def test_options_are_arguments(work, capsys, no_training):
    found = handed_over(no_training, capsys, "frames.xyz")
    assert len(found.pop("frames")) == 7
    assert found == {"test": None, "species": SPECIES, "checkpoint": Path(CHECKPOINT), "threads": 1}

    given = {
        "--optimizer adam": {"optimizer": "adam"},
        "--species O H C": {"species": ("O", "H", "C")},
        "--cutoff 5.5 4": {"cutoff": (5.5, 4.0)},
        "--label-cutoff O 5 3.5": {"cutoff": {"H": (6.0, 4.0), "O": (5.0, 3.5)}},
        "--l-max 4": {"l_max": (4, 1)},
        "--l-max 4 0": {"l_max": (4, 0)},
        "--n-max 3 2 --basis-size 5 6 --neurons 7": {"n_max": [3, 2], "basis_size": [5, 6], "neurons": 7},
        "--zbl repulsive": {"zbl": "repulsive"},
        "--zbl 0.5 1.5": {"zbl": (0.5, 1.5)},
        "--zbl 0.5 1.5 0.7": {"zbl": (0.5, 1.5, 0.7)},
        "--lambda-e 0 --lambda-f 2 --lambda-v 0.3": {"lambda_e": 0, "lambda_f": 2, "lambda_v": 0.3},
        "--lambda-1 0.1 --lambda-2 0.2": {"lambda_1": 0.1, "lambda_2": 0.2},
        "--lambda-shear 3 --force-delta 0.5": {"lambda_shear": 3, "force_delta": 0.5},
        "--type-weight 1 0": {"type_weight": [1, 0]},
        "--weighting errorbars": {"weighting": "errorbars"},
        "--polish 3 --batch 3 --full-batch --population 20 --sigma0 0.05": {
            "polish": 3,
            "batch": 3,
            "full_batch": True,
            "population": 20,
            "sigma0": 0.05,
        },
        "--optimizer adam --learning-rate 1e-3": {"optimizer": "adam", "learning_rate": 1e-3},
        "--polish 10 --patience 5 --interval 2": {"polish": 10, "patience": 5, "interval": 2},
        "--n-models 3 --seed 0 --steps 7": {"n_models": 3, "seed": 0, "steps": 7},
        "--cache-GB 0.5 --checkpoint a.npz": {"cache_GB": 0.5, "checkpoint": Path("a.npz")},
    }
    for options, expected in given.items():
        found = handed_over(no_training, capsys, "frames.xyz", *options.split())
        assert {name: found.get(name) for name in expected} == expected
        assert set(found) == {"frames", "test", "species", "checkpoint", "threads", *expected}
    assert len(handed_over(no_training, capsys, "frames.xyz", "--test", "others.xyz")["test"]) == 3


def test_a_start_brings_its_shape(work, capsys, no_training):
    cutoff = {"C": (5.0, 4.0), "O": (4.5, 3.5), "H": (4.0, 3.0)}
    big = NEPModel.random(("C", "O", "H"), seed=1, zbl=ZBL(0.5, 1.5), **SHAPE | {"cutoff": cutoff})
    big.write("big.txt")
    found = handed_over(no_training, capsys, "frames.xyz", "--start", "big.txt")
    assert found["start"].species == ("C", "O", "H")
    assert found["cutoff"] == {"H": (4.0, 3.0), "O": (4.5, 3.5)}
    assert (found["zbl"], found["temperature"], found["neurons"]) == (big.zbl, False, 3)
    assert (found["n_max"], found["basis_size"], found["l_max"]) == ((2, 1), (3, 2), (3, 1, 0, 0, 0, 0, 0))
    # what is said counts
    found = handed_over(no_training, capsys, "frames.xyz", "--start", "big.txt", "--cutoff", "5", "4")
    assert found["cutoff"] == (5.0, 4.0)
    found = handed_over(no_training, capsys, "frames.xyz", "--start", "big.txt", "--label-cutoff", "H", "5", "4")
    assert found["cutoff"] == {"H": (5.0, 4.0), "O": (4.5, 3.5)}


def test_a_start_is_where_it_starts(work, capsys):
    run(capsys, "frames.xyz", "--output", "first", *RUN)
    run(capsys, "frames.xyz", "--output", "second", "--start", "first/nep.txt", "--steps", 5, "--interval", 1)
    first, second = (read_loss(f"{name}/loss.out")["total"] for name in ("first", "second"))
    assert (np.diff(second) <= 0).all()
    assert second[0] <= first[-1] + 1e-5


def test_warnings_are_told(work, capsys):
    frames = twin.random_frames(1, 7, ("O",))
    write_dataset("oxygen.xyz", frames)
    options = ["oxygen.xyz", *OPTIONS, "--zbl", "repulsive", "--species", "O", "H"]
    _, err = run(capsys, *options, "--steps", 1)
    assert re.fullmatch(r"nepcg train: repulsive baseline: .*H-H: no wall.*\n", err)
    assert NEPModel.read("nep.txt").zbl.flexible is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: TRAIN.xyz|FOLDER"),
        (["frames.xyz", "--neuron", "3"], "unknown option '--neuron'; did you mean '--neurons'?"),
        (["frames.xyz", "--optimizer", "sgd"], "argument --optimizer: unknown name 'sgd'; valid names: adam, gradient"),
        (["frames.xyz", "--weighting", "errors"], "argument --weighting: expected errorbars, got 'errors'"),
        (["frames.xyz", "--steps", "0"], "argument --steps: expected a positive integer, got '0'"),
        (["frames.xyz", "--seed", "-1"], "argument --seed: expected an integer from 0 to 2^63 - 1, got '-1'"),
        (["frames.xyz", "--lambda-f", "nan"], "argument --lambda-f: expected a number, got 'nan'"),
        (["frames.xyz", "--cutoff", "4"], "argument --cutoff: expected 2 arguments"),
        (["frames.xyz", "--cutoff", "3", "400"], "cutoff"),
        (["frames.xyz", "--n-max", "30", "4"], "n_max"),
        (["frames.xyz", "--neurons", "1000"], "neurons: expected 1 to"),
        (["frames.xyz", "--l-max", "3", "0", "0", "0", "0", "0", "0", "0"], "l_max: expected 1 to 7 numbers, got 8"),
        (["frames.xyz", "--label-cutoff", "C", "5", "4"], "--label-cutoff C: unknown label; valid names: H, O"),
        (["frames.xyz", "--label-cutoff", "O", "5", "x"], "--label-cutoff O: expected a number, got 'x'"),
        (["frames.xyz", "--zbl", "nuclear"], "--zbl: expected 'repulsive' or two radii, got 'nuclear'"),
        (["frames.xyz", "--zbl", "1", "b"], "--zbl: expected a number, got 'b'"),
        (["frames.xyz", "--zbl", "1", "2", "3", "4"], "--zbl: expected INNER OUTER [FACTOR], got 4 values"),
        (["frames.xyz", "--weighting", "errorbars"], "the frames have no error bars"),
        (["frames.xyz", "--start", "small.txt"], "--start small.txt: expected species of the model to start from (C)"),
        (["frames.xyz", "--output", "others.xyz"], "--output others.xyz: expected a folder, that is a file"),
        (["frames.xyz", "--output", "a/b"], "--output a/b: there is no folder a"),
        (["frames.xyz", "--checkpoint", "a/b.npz"], "--checkpoint a/b.npz: there is no folder a"),
        (["folder", "--neurons", "5"], "--neurons goes with a file of frames; in a folder nep.in says so (neuron)"),
        (["folder", "--lambda-e", "5"], "in a folder nep.in says so (lambda_e)"),
        (["folder", "--test", "others.xyz"], "--test goes with a file of frames, folder is a folder"),
    ],
)
def test_wrong_usage(work, arguments, message, capsys):
    NEPModel.random(("C",), seed=1, **SHAPE).write("small.txt")
    before = everything()
    out, err = run(capsys, *arguments, status=2)
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("nepcg train: error: ")
    assert message in err
    assert everything() == before


def damaged(text: str) -> str:
    lines = text.splitlines()
    second = int(lines[0]) + 2
    lines[second + 4] = lines[second + 4].replace(".", "x", 1)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.xyz"], "none.xyz: No such file or directory"),
        (["frames.xyz", "--test", "none.xyz"], "none.xyz: No such file or directory"),
        (["frames.xyz", "--start", "none.txt"], "none.txt: No such file or directory"),
        (["frames.xyz", "--start", "frames.xyz"], "frames.xyz, line 1: expected a model name"),
        (["damaged.xyz"], "damaged.xyz, frame 1, line "),
        (["folder/nep.in"], "folder/nep.in, frame 0, line 1: expected a number of atoms"),
        (
            ["frames.xyz", "--species", "H"],
            "frames.xyz, frame 0, line 1: labels O, expected those of the model (H): give",
        ),
        (
            ["frames.xyz", "--test", "carbon.xyz"],
            "carbon.xyz, frame 0, line 1: labels C, expected those of the model (H,",
        ),
        (
            ["frames.xyz", "--temperature"],
            "frames.xyz, frame 0, line 1: temperature: the model has a temperature input",
        ),
        (["single.xyz"], "single.xyz: 11 of 11 descriptor components are the same for all sites"),
        (["."], "nep.in: No such file or directory"),
    ],
)
def test_errors_in_data(work, arguments, message, capsys):
    Path("damaged.xyz").write_text(damaged(Path("frames.xyz").read_text()))
    write_dataset("carbon.xyz", twin.random_frames(3, 1, ("C",)))
    write_dataset("single.xyz", twin.random_frames(3, 1, ("O",), sites=(1, 1)))
    before = everything()
    out, err = run(capsys, *arguments, *([] if arguments == ["."] else OPTIONS), status=1)
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("nepcg train: error: ")
    assert message in err
    assert everything() == before


# ---- a folder -----------------------------------------------------------------------------------------------------


def test_folder(work, capsys):
    out, err = run(capsys, "folder", "--seed", 3, "--plot")
    assert err == ""
    names = {"nep.txt", "nep.restart", "loss.out", "training.png", *TRAIN_FILES}
    assert set(os.listdir("folder")) == {*names, "nep.in", "train.xyz", CHECKPOINT}
    targets = Targets.from_frames(read_dataset("folder/train.xyz"), SPECIES)
    table = _report(targets, predict(NEPModel.read("folder/nep.txt"), targets, threads=1))
    assert "noise floor" in table
    lines = out.splitlines()
    assert out.startswith(f"folder/train.xyz: 7 frames, {len(targets.forces)} sites\n{table}\n")
    assert re.fullmatch(r"snes: 20 steps \(all that were asked for\), seed 3, \d+\.\d s", lines[-2])
    assert lines[-1].startswith("folder: wrote ")
    assert set(lines[-1].split()[2:]) == names

    # more of it, then another optimiser
    write_dataset("folder/test.xyz", twin.random_frames(2, 3, SPECIES))
    _, err = run(capsys, "folder", "--seed", 3, "--steps", 30, status=1)
    assert "test was None, is " in err
    Path("folder/test.xyz").unlink()
    out, _ = run(capsys, "folder", "--seed", 3, "--steps", 30)
    assert f"folder/{CHECKPOINT}: the run goes on after step 20" in out
    assert read_loss("folder/loss.out")["step"].tolist() == [10, 20, 30]
    write_dataset("folder/test.xyz", twin.random_frames(2, 3, SPECIES))
    out, _ = run(capsys, "folder", "--steps", 20, "--optimizer", "gradient", "--checkpoint", "folder/other.npz")
    assert "nep.in: generation, population have no meaning for L-BFGS" in out
    assert "folder/test.xyz: 3 frames" in out
    assert set(os.listdir("folder")) >= TEST_FILES | {"other.npz"}


def test_folder_interrupted(work, capsys, monkeypatch):
    original = core.fit

    def interrupted(*arguments, **keywords):
        inner = keywords["on_report"]

        def on_report(report):
            inner(report)
            os.kill(os.getpid(), signal.SIGINT)

        return original(*arguments, **keywords | {"on_report": on_report})

    monkeypatch.setattr(core, "fit", interrupted)
    out, err = run(capsys, "folder", status=130)
    assert err == f"nepcg train: interrupted after step 10; the same command goes on from folder/{CHECKPOINT}\n"
    assert "folder: wrote energy_train.out" in out
    assert read_loss("folder/loss.out")["step"].tolist() == [10]


def test_folder_prediction(work, capsys):
    NEPModel.random(SPECIES, seed=1, **SHAPE).write("folder/nep.txt")
    Path("folder/nep.in").write_text(NEP_IN + "prediction 1\n")
    out, err = run(capsys, "folder", "--plot")
    assert err == ""
    assert out.splitlines()[-1] == "folder: wrote energy_train.out force_train.out stress_train.out virial_train.out"
    assert set(os.listdir("folder")) == {"nep.in", "nep.txt", "train.xyz", *TRAIN_FILES}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("neuron 3", "neuron 3 3"), "folder/nep.in, line 5: neuron: networks with a second hidden layer"),
        (("neuron 3", "neurons 3"), "folder/nep.in, line 5: unknown keyword 'neurons'; did you mean 'neuron'?"),
        (("neuron 3", "neuron 3\nversion 3"), "folder/nep.in, line 6: version: 3 can be evaluated"),
        (("type 2 H O", "type 1 H"), "folder/train.xyz, frame 0, line 1: labels O, expected those of the model (H)"),
        (("population 10", "model_type 3"), "folder/train.xyz, frame 0, line 1: temperature: the model has"),
    ],
)
def test_errors_in_a_folder(work, change, message, capsys):
    Path("folder/nep.in").write_text(NEP_IN.replace(*change))
    before = everything()
    out, err = run(capsys, "folder", status=1)
    assert out == ""
    assert len(err.splitlines()) == 1
    assert message in err
    assert everything() == before


def test_a_damaged_checkpoint_is_told(work, capsys):
    Path("folder", CHECKPOINT).write_bytes(b"PK and nothing else")
    before = everything()
    _, err = run(capsys, "folder", status=1)
    assert f"folder/{CHECKPOINT}: not a checkpoint, truncated or damaged" in err
    assert issubclass(CheckpointError, ValueError)
    assert everything() == before


def test_help_names_both_uses(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    out = capsys.readouterr().out
    assert "nepcg train TRAIN.xyz" in out
    assert "nepcg train FOLDER" in out
    assert max(map(len, out.splitlines())) <= 140
