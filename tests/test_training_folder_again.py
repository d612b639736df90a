"""A folder with ``nep.in``: how a training goes on, and what ``nep.restart`` does."""

import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import training_twin as twin
from training_folders import (
    EARLIER,
    RESULTS,
    SHAPE,
    SPECIES,
    Killed,
    contents,
    killed_at,
    narrow_restart,
    nep_in,
    results,
    run,
    stopped_at,
)

from ase_nepcg import NEPModel
from ase_nepcg.checkpoint import CheckpointError
from ase_nepcg.dataset import write_dataset
from ase_nepcg.errors import ModelFileError
from ase_nepcg.nepfile import write_restart
from ase_nepcg.training import fit as fit_module
from ase_nepcg.training.core import TrainingError
from ase_nepcg.training.files import read_loss, read_out, truncate_loss
from ase_nepcg.training.folder import CHECKPOINT

# ---- going on -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_run(training_data, tmp_path_factory) -> dict[str, bytes]:
    """Results of a run that was not broken."""
    path = tmp_path_factory.mktemp("whole")
    shutil.copytree(training_data, path, dirs_exist_ok=True)
    (path / "nep.in").write_text(nep_in(batch="3"))
    run(path)
    return results(path)


@pytest.mark.parametrize("step", [10, 30, 40])
@pytest.mark.parametrize("often", [True, False])
def test_a_killed_run_goes_on_as_if_it_had_not_been(training_folder, whole_run, step, often, monkeypatch):
    if often:
        monkeypatch.setattr(fit_module, "_CHECKPOINT_INTERVAL", -1.0)
    folder = training_folder(test=True, batch="3")
    with pytest.raises(Killed):
        run(folder, on_report=killed_at(step))
    with open(folder / "loss.out", "a") as file:
        file.write("50      0.12")
    done, remarks = run(folder)
    assert done.first == (step - 1 if often else 0)
    assert remarks == [f"{folder / CHECKPOINT}: the run goes on after step {done.first}"]
    assert results(folder) == whole_run
    assert done.training.history.step.tolist() == [10, 20, 30, 40]


def test_killed_for_good(training_folder):
    """By a signal that nothing can catch, twice; with the random numbers of a seed that nobody chose."""
    folder = training_folder()
    script = (
        "import os, signal, sys\n"
        "from ase_nepcg.training import fit\n"
        "from ase_nepcg.training.folder import train_folder\n"
        "fit._CHECKPOINT_INTERVAL = -1.0\n"
        "def on_report(report):\n"
        "    if report.step == int(sys.argv[2]):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "train_folder(sys.argv[1], threads=1, progress=False, on_report=on_report)\n"
    )
    for step in (10, 30):
        ended = subprocess.run([sys.executable, "-c", script, folder, str(step)], capture_output=True, timeout=300)
        assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    done, _ = run(folder, seed=None)
    whole = training_folder("whole")
    run(whole, seed=done.training.seed)
    assert results(folder) == results(whole)


def test_interrupted(training_folder):
    folder, whole = training_folder(), training_folder("whole")
    run(whole)
    done, _ = run(folder, on_report=stopped_at(20))
    assert done.training.reason == "interrupted"
    assert set(done.files) == RESULTS
    assert read_loss(folder / "loss.out")["step"].tolist() == [10, 20]
    # the model is that of the predictions
    assert np.array_equal(NEPModel.read(folder / "nep.txt").parameters(), done.model.parameters())
    found = read_out(folder / "force_train.out")[0]
    assert np.allclose(found, done.predictions.forces, rtol=1e-5)
    run(folder)
    assert results(folder) == results(whole)


def test_more_generations(training_folder):
    folder, whole = training_folder(), training_folder("whole", generation="60")
    run(folder)
    again, remarks = run(folder)
    assert remarks[0].endswith("the run has all its 40 steps; more generations (steps) let it go on")
    assert again.training.history.step.tolist() == [10, 20, 30, 40]
    assert np.array_equal(again.model.parameters(), NEPModel.read(folder / "nep.txt").parameters())
    (folder / "nep.in").write_text(nep_in(generation="60"))
    run(folder)
    run(whole)
    assert results(folder) == results(whole)
    # less than there is
    done, _ = run(folder, steps=20)
    assert (done.first, results(folder)) == (60, results(whole))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lambda_f": "2"}, r"lambda_f was 1\.0, is 2\.0"),
        ({"type_weight": "1 2"}, r"type_weight was None, is \[1\.0, 2\.0\]"),
        ({"population": "12"}, r"population was 10, is 12"),
        ({"cutoff": "4.5 3"}, r"cutoff was .*4\.0.* is .*4\.5"),
        ({"initial_para": "0.5"}, r"initial_para was 1\.0, is 0\.5"),
        ({"batch": "3 1"}, r"batch was 1000, is 3; full_batch was False, is True"),
        ({"zbl": "2"}, r"zbl was None, is "),
    ],
)
def test_other_settings_are_no_continuation(training_folder, changes, message):
    folder = training_folder(generation="10")
    run(folder)
    (folder / "nep.in").write_text(nep_in(**{"generation": "20"} | changes))
    before = contents(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        run(folder)
    assert str(folder / CHECKPOINT) in str(caught.value)
    assert contents(folder) == before


def test_other_data_seed_or_optimizer_are_no_continuation(training_folder):
    folder = training_folder(generation="10")
    run(folder)
    with pytest.raises(CheckpointError, match="seed was 5, is 6"):
        run(folder, seed=6)
    with pytest.raises(CheckpointError, match=r"optimizer was \['snes'\], is \['lbfgs'\]"):
        run(folder, optimizer="gradient")
    write_dataset(folder / "train.xyz", twin.random_frames(8, 7, SPECIES))
    before = contents(folder)
    with pytest.raises(CheckpointError, match="data was"):
        run(folder)
    (folder / CHECKPOINT).write_bytes(before[CHECKPOINT][:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        run(folder)
    (folder / CHECKPOINT).write_bytes(before[CHECKPOINT])
    assert contents(folder) == before


def test_another_checkpoint_file(training_folder, tmp_path, saved_often):
    folder = training_folder(generation="20")
    path = tmp_path / "state.npz"
    with pytest.raises(Killed):
        run(folder, checkpoint=path, on_report=killed_at(20))
    assert path.exists()
    assert CHECKPOINT not in contents(folder)
    assert run(folder, checkpoint=path)[0].first == 19


# ---- nep.restart --------------------------------------------------------------------------------------------------


def without_bias(model) -> np.ndarray:
    z = model.parameters().copy()
    z[model.parameter_blocks()[0]["bias"]] = 0.0
    return z


def test_restart_file_is_the_start(training_folder):
    folder = training_folder(generation="10")
    mu = narrow_restart(folder)
    (folder / "loss.out").write_text(EARLIER + "300     0.7")
    done, remarks = run(folder)
    assert len(remarks) == 1
    assert remarks[0].startswith(f"{folder / 'nep.restart'}: the run starts from these parameters")
    expected = done.model.with_parameters(mu)
    assert np.allclose(without_bias(done.model), without_bias(expected), atol=1e-6)
    # appended, without the line that was cut off
    text = (folder / "loss.out").read_text()
    assert text.startswith(EARLIER)
    assert read_loss(folder / "loss.out")["step"].tolist() == [100, 200, 10]
    assert "loss.out.1" not in contents(folder)


@pytest.mark.parametrize("step", [10, 20])
def test_appended_lines_of_an_earlier_run_are_never_removed(training_folder, step):
    """Not even if nothing of this run was in the checkpoint yet, when all lines look like later ones of this run."""
    folder, whole = training_folder(), training_folder("whole")
    for place in (folder, whole):
        narrow_restart(place, 0.1)
        (place / "loss.out").write_text(EARLIER)
    run(whole)
    with pytest.raises(Killed):
        run(folder, on_report=killed_at(step))
    if step == 10:
        (folder / "loss.out").write_text(EARLIER)
    run(folder)
    assert results(folder) == results(whole)
    assert read_loss(folder / "loss.out")["step"].tolist() == [100, 200, 10, 20, 30, 40]


def test_truncation_leaves_earlier_lines_alone(tmp_path):
    path = tmp_path / "loss.out"
    lines = EARLIER.splitlines(keepends=True)
    path.write_text(EARLIER + lines[0].replace("100", "300"))
    truncate_loss(path, 0, earlier=2)
    assert path.read_text() == EARLIER
    truncate_loss(path, 0)
    assert path.read_text() == ""


@pytest.mark.parametrize("optimizer", ["snes", "lbfgs"])
def test_restart_of_another_model_is_refused(training_folder, optimizer):
    folder = training_folder()
    mu = narrow_restart(folder)
    before = contents(folder)
    write_restart(folder / "nep.restart", mu[1:], abs(mu[1:]))
    with pytest.raises(ModelFileError, match=r"nep\.restart, line"):
        run(folder, optimizer=optimizer)
    (folder / "nep.restart").write_bytes(before["nep.restart"])
    NEPModel.random(SPECIES, seed=1, **SHAPE | {"cutoff": (5.0, 3.0)}).write(folder / "nep.txt")
    with pytest.raises(TrainingError, match=r"nep\.restart: the nep\.txt beside it has other .*\(radial cutoff of"):
        run(folder, optimizer=optimizer)
    (folder / "nep.txt").unlink()
    assert contents(folder) == before


def test_a_new_run_keeps_what_an_earlier_one_left(training_folder):
    folder = training_folder(generation="10")
    run(folder)
    first = results(folder)
    for number in (1, 2):
        (folder / CHECKPOINT).unlink()
        (folder / "nep.restart").unlink()
        before = results(folder)
        _, remarks = run(folder, seed=5 + number)
        assert len(remarks) == 1
        assert f"kept with .{number} at the end" in remarks[0]
        after = results(folder)
        for name in RESULTS - {"nep.restart"}:
            assert after[f"{name}.{number}"] == before[name]
        assert len(read_loss(folder / "loss.out")["step"]) == 1
    assert after["nep.txt.1"] == first["nep.txt"]
    assert after["nep.txt.2"] != first["nep.txt"]
