"""``train`` of several models, from another one, in several stages, interrupted and taken up again."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import training_shapes as shapes
import training_twin as twin
from training_teacher import CUTOFF, QUICK, SHAPE, quick, same, taught

from ase_nepcg import NEP, NEPModel, read_dataset, train, write_dataset
from ase_nepcg.checkpoint import CheckpointError
from ase_nepcg.training.core import TrainingError, cross_validate
from ase_nepcg.training.finetune import FineTuneError


@pytest.fixture(scope="module")
def teacher():
    return shapes.make_model("small", species=("H", "O"), seed=2, cutoff=CUTOFF)


@pytest.fixture(scope="module")
def frames():
    """With random numbers for all quantities, weights and error bars."""
    return twin.random_frames(3, 8, ("H", "O"), errors=True)


@pytest.fixture(scope="module")
def lesson(teacher):
    """Training and test frames that a model of this shape can learn."""
    made = taught(teacher, twin.random_frames(4, 14, ("H", "O")))
    return made[:9], made[9:]


# ---- several models, polish, start -----------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["lbfgs", "snes"])
def test_several_models(frames, optimizer):
    settings = {"optimizer": optimizer, "population": 4}
    training = quick(frames, n_models=3, seed=5, **settings)
    assert len(training.models) == len(training.histories) == 3
    assert training.model is training.models[0]
    assert training.history is training.histories[0]
    for k in range(3):
        assert np.array_equal(quick(frames, seed=5 + k, **settings).model.parameters(), training.models[k].parameters())
    assert repr(training).endswith(", 3 models)")
    atoms = frames[0].copy()
    atoms.calc = committee = training.committee(threads=1)
    each = []
    for model in training.models:
        one = frames[0].copy()
        one.calc = NEP(model, threads=1)
        each.append(one.get_forces())
    np.testing.assert_allclose(atoms.get_forces(), np.mean(each, axis=0), atol=1e-12)
    spread = np.sqrt(np.var(each, axis=0, ddof=1).sum(axis=1))
    np.testing.assert_allclose(committee.get_property("force_spread", atoms), spread, rtol=1e-9)
    assert (spread > 0).all()


def test_several_models_have_several_checkpoints(frames, tmp_path):
    path = tmp_path / "state.npz"
    training = quick(frames, n_models=3, checkpoint=path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state-1.npz", "state-2.npz", "state.npz"]
    (tmp_path / "state-1.npz").unlink()
    assert same(quick(frames, n_models=3, checkpoint=path), training)
    # one more
    four = quick(frames, n_models=4, checkpoint=path)
    assert all(
        np.array_equal(a.parameters(), b.parameters()) for a, b in zip(four.models, training.models, strict=False)
    )


def test_polish(lesson):
    frames, _ = lesson
    first = quick(frames)
    polished = quick(frames, polish=8, population=6)
    assert polished.history.step.tolist() == [2, 4, 6, 8, 10, 12, 14]
    assert np.array_equal(polished.history.total[:3], first.history.total)
    assert first.mu is None
    # from where the gradient ended, in small steps
    end = first.model.parameters()
    bias = first.model.parameter_blocks()[0]["bias"]
    distance = np.abs(polished.mu - end)
    distance[bias] = 0.0
    assert 0 < distance.max() < 0.2
    assert 0.003 < polished.sigma.min() < polished.sigma.max() < 0.03
    assert polished.reason == "steps"


def test_a_polish_lowers_the_loss(lesson):
    frames, _ = lesson
    training = quick(frames, steps=10, polish=300, population=20, interval=10)
    assert training.history.total[-1] < 0.9 * training.history.total[0]


def test_fine_tuning(lesson, teacher, tmp_path):
    frames, unseen = lesson
    teacher.write(tmp_path / "teacher.txt")
    for start in (teacher, tmp_path / "teacher.txt", str(tmp_path / "teacher.txt")):
        training = quick(frames, start=start, steps=1, interval=1, lambda_1=0.0, lambda_2=0.0)
        assert training.history.force[0] < 1e-5
    assert np.array_equal(training.model.q_scaler, NEPModel.read(tmp_path / "teacher.txt").q_scaler)
    worse = replace(teacher, w1=teacher.w1 * 1.1)
    again = quick(frames, start=worse, steps=20)
    assert again.rmse(unseen)["force"] < quick(frames, steps=20).rmse(unseen)["force"]
    # SNES goes on from there as well
    snes = quick(frames, start=teacher, optimizer="snes", population=4, sigma0=1e-3)
    assert np.abs(snes.mu - teacher.parameters()).max() < 0.01


def test_fine_tuning_with_fewer_species(teacher):
    frames = taught(teacher, twin.random_frames(9, 9, ("O",)))
    training = quick(frames, start=teacher, steps=1, lambda_1=0.0, lambda_2=0.0)
    assert training.model.species == ("O",)
    assert training.history.force[0] < 1e-5


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"cutoff": (4.0, 3.5)}, FineTuneError, "radial cutoff of H-H 4.5 and 4 Å"),
        ({"species": ("O", "H", "C")}, FineTuneError, "got C too"),
        ({"zbl": (1.0, 2.0)}, FineTuneError, "zbl None and"),
        (
            {"n_max": (3, 1)},
            TrainingError,
            "start: expected a model with 12 descriptor components, got 11: give the same n_max",
        ),
    ],
)
def test_a_start_of_another_kind_is_refused(lesson, teacher, changes, error, message):
    with pytest.raises(error, match=re.escape(message)):
        quick(lesson[0], start=teacher, **changes)


# ---- checkpoints, interrupts -----------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from ase_nepcg import read_dataset, train
from ase_nepcg.training import fit
fit._CHECKPOINT_INTERVAL = 0.0
def on_report(report):
    if report.step == 8:
        os.kill(os.getpid(), signal.SIGKILL)
train(read_dataset("train.xyz"), on_report=on_report, **{settings})
"""


def test_a_killed_process_is_taken_up(tmp_path, frames):
    write_dataset(tmp_path / "train.xyz", frames)
    frames = read_dataset(tmp_path / "train.xyz")
    settings = (
        SHAPE | {"cutoff": CUTOFF} | QUICK | {"steps": 14, "optimizer": "adam", "batch": 3, "checkpoint": "state"}
    )
    unbroken = train(frames, **settings | {"checkpoint": None})
    program = KILLED.replace("{settings}", repr(settings))
    process = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    started = (tmp_path / "state").stat().st_mtime_ns
    seen = []
    resumed = train(
        frames, **settings | {"checkpoint": tmp_path / "state"}, on_report=lambda report: seen.append(report.step)
    )
    assert same(resumed, unbroken)
    assert seen == [8, 10, 12, 14]
    assert (tmp_path / "state").stat().st_mtime_ns > started


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam", "snes"])
def test_an_interrupted_training_is_taken_up(tmp_path, frames, optimizer):
    settings = {
        "optimizer": optimizer,
        "steps": 8,
        "population": 4,
        "batch": 3,
        "polish": 4 if optimizer == "lbfgs" else 0,
    }
    settings |= {"test": frames[:2], "patience": 100, "checkpoint": tmp_path / "state"}

    def on_report(report):
        if report.step == 4:
            signal.raise_signal(signal.SIGINT)

    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        part = quick(frames, on_report=on_report, **settings)
    finally:
        signal.signal(signal.SIGINT, old)
    assert part.reason == "interrupted"
    assert part.history.step[-1] == 4
    assert "interrupted at step 4" in repr(part)
    assert same(quick(frames, **settings), quick(frames, **settings | {"checkpoint": None}))


@pytest.mark.parametrize("step", [2, 6])
def test_an_interrupt_is_one_for_all_models(tmp_path, frames, step):
    """Also where it comes in the last step of one."""

    def on_report(report):
        if report.step == step:
            signal.raise_signal(signal.SIGINT)

    path = tmp_path / "state"
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        part = quick(frames, n_models=3, checkpoint=path, on_report=on_report)
    finally:
        signal.signal(signal.SIGINT, old)
    assert part.reason == "interrupted"
    assert len(part.models) == 1
    assert same(quick(frames, n_models=3, checkpoint=path), quick(frames, n_models=3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lambda_f": 2.0}, "lambda_f was 1.0, is 2.0"),
        ({"lambda_1": 0.02}, "lambda_1 was 0.0"),
        ({"type_weight": (1.0, 2.0)}, r"type_weight was None, is \[1.0, 2.0\]"),
        ({"cutoff": (4.0, 3.5)}, r"cutoff was \[\[4.5, 4.5\], \[3.5, 3.5\]\], is \[\[4.0, 4.0\], \[3.5, 3.5\]\]"),
        ({"optimizer": "snes"}, r"optimizer was \['lbfgs'\], is \['snes'\]"),
        ({"polish": 4}, r"optimizer was \['lbfgs'\], is \['lbfgs', 'snes'\]"),
        ({"population": 8}, "population was 50, is 8"),
        ({"seed": 2}, "seed was 1, is 2"),
        ({"seed": None}, "seed was 1, is None"),
        ({"zbl": (1.0, 2.0)}, "zbl was None, is"),
        ({"species": ("O", "H")}, r"species was \['H', 'O'\], is \['O', 'H'\]"),
        ({"frames": slice(1, None)}, "data was '[0-9a-f]+', is '[0-9a-f]+'"),
        ({"test": slice(0, 2)}, "test was None, is '[0-9a-f]+'"),
        ({"start": True}, "start was None, is '[0-9a-f]+'"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(tmp_path, frames, teacher, changes, message):
    path = tmp_path / "state"
    quick(frames, checkpoint=path)
    content = path.read_bytes()
    changes = dict(changes)
    others = frames[changes.pop("frames", slice(None))]
    if "test" in changes:
        changes["test"] = frames[changes["test"]]
    if "start" in changes:
        changes["start"] = teacher
    with pytest.raises(CheckpointError, match=message) as caught:
        quick(others, checkpoint=path, **changes)
    assert "Give the same data and settings" in str(caught.value)
    assert path.read_bytes() == content


def test_what_a_checkpoint_does_not_depend_on(tmp_path, frames):
    path = tmp_path / "state"
    first = quick(frames, checkpoint=path)
    assert same(quick(frames, checkpoint=os.fspath(path), threads=2, cache_GB=0.1, progress=True), first)
    longer = quick(frames, checkpoint=path, steps=10)
    assert same(longer, quick(frames, steps=10))
    # the learning rate of Adam depends on the number of steps
    quick(frames, checkpoint=tmp_path / "adam", optimizer="adam")
    with pytest.raises(CheckpointError, match="steps was 6, is 10"):
        quick(frames, checkpoint=tmp_path / "adam", optimizer="adam", steps=10)


def test_a_truncated_checkpoint_is_refused(tmp_path, frames):
    path = tmp_path / "state"
    quick(frames, checkpoint=path)
    content = path.read_bytes()[:1000]
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        quick(frames, checkpoint=path)
    assert path.read_bytes() == content


# ---- cross-validation ------------------------------------------------------------------------------------------------


def test_cross_validation(lesson):
    frames, _ = lesson
    settings = {"n_max": SHAPE["n_max"]} | SHAPE | {"cutoff": CUTOFF} | {k: v for k, v in QUICK.items() if k != "seed"}
    errors, trainings = cross_validate(frames, 4, seed=3, **settings)
    assert len(trainings) == 4
    assert sorted(len(training.targets) for training in trainings) == [6, 7, 7, 7]
    # every frame is left out once
    seen = {frame.positions.tobytes(): 0 for frame in frames}
    squares = {"force": [], "energy": [], "virial": []}
    for training in trainings:
        assert training.model.species == ("H", "O")
        assert training.test_targets is None
        own = {training.targets.positions[training.targets.sites(s)].tobytes() for s in range(len(training.targets))}
        for frame in frames:
            if frame.positions.tobytes() in own:
                continue
            seen[frame.positions.tobytes()] += 1
            atoms = frame.copy()
            atoms.calc = NEP(training.model, threads=1)
            squares["force"].append(((atoms.get_forces() - frame.get_forces()) ** 2).ravel())
            energy = (atoms.get_potential_energy() - frame.get_potential_energy()) / len(frame)
            squares["energy"].append([energy**2])
            virial = -atoms.get_stress(voigt=False) * atoms.get_volume() - frame.info["virial"]
            squares["virial"].append([(virial[i, j] / len(frame)) ** 2 for i, j in twin.SIX])
    assert set(seen.values()) == {1}
    for name, values in squares.items():
        assert errors[name] == pytest.approx(np.sqrt(np.mean(np.concatenate(values))), rel=1e-6)
    again, _ = cross_validate(frames, 4, seed=3, **settings)
    assert again == errors
    other, _ = cross_validate(frames, 4, seed=4, **settings)
    assert other != errors


def test_cross_validation_with_checkpoints(frames, tmp_path):
    settings = SHAPE | {"cutoff": CUTOFF, "steps": 3, "threads": 1, "progress": False}
    errors, _ = cross_validate(frames, 2, **settings)
    for _ in range(2):
        assert cross_validate(frames, 2, checkpoint=tmp_path / "state.npz", **settings)[0] == errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state-fold0.npz", "state-fold1.npz"]


def test_cross_validation_of_frames_without_energies_or_virials():
    frames = twin.random_frames(5, 4, ("H", "O"), energies=False, virials=False)
    settings = SHAPE | {"cutoff": CUTOFF, "steps": 2, "threads": 1, "progress": False}
    errors, _ = cross_validate(frames, 2, **settings)
    assert errors["force"] > 0
    assert errors["energy"] == errors["virial"] == errors["stress"] == 0


@pytest.mark.parametrize(
    ("folds", "settings", "message"),
    [
        (1, {}, "folds: expected 2 to"),
        (9, {}, r"folds: expected at most as many as frames \(8\), got 9"),
        (2, {"test": []}, "test: cross-validation makes its own test sets"),
    ],
)
def test_cross_validation_refuses(frames, folds, settings, message):
    with pytest.raises(TrainingError, match=message):
        cross_validate(frames, folds, **settings)
