"""A folder with ``nep.in``: which files a training leaves, and what it refuses."""

import re

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
)

from ase_nepcg import NEPModel
from ase_nepcg.dataset import DatasetError, read_dataset, write_dataset
from ase_nepcg.nepfile import read_restart, write_restart
from ase_nepcg.training import folder as folder_module
from ase_nepcg.training.core import TrainingError, train
from ase_nepcg.training.files import OUT_FILES, batches, read_loss, read_out
from ase_nepcg.training.finetune import FineTuneError
from ase_nepcg.training.folder import CHECKPOINT
from ase_nepcg.training.loss import rmse
from ase_nepcg.training.nep_in import NepInError
from ase_nepcg.training.objective import ScalerError, descriptor_scaler
from ase_nepcg.training.predict import predict
from ase_nepcg.training.targets import Targets

# ---- the files ----------------------------------------------------------------------------------------------------


def test_files_of_snes(training_folder):
    folder = training_folder(test=True, batch="4")
    done, remarks = run(folder)
    assert remarks == []
    assert set(done.files) == RESULTS | {f"{quantity}_test.out" for quantity in OUT_FILES}
    assert set(contents(folder)) == {*done.files, "nep.in", "train.xyz", "test.xyz", CHECKPOINT}
    model = NEPModel.read(folder / "nep.txt")
    assert np.array_equal(model.parameters(), done.model.parameters())
    mu, sigma = read_restart(folder / "nep.restart", model)
    assert np.array_equal(mu, done.training.mu)
    assert np.array_equal(sigma, done.training.sigma)

    # what was reported is true for the files beside it
    frames = read_dataset(folder / "train.xyz")
    targets = Targets.from_frames(frames, SPECIES)
    dealt = batches(np.nan_to_num(targets.energies), 4)
    predictions = predict(model, targets, threads=1)
    last = dealt[(40 - 1) % 2]
    predicted = twin.predict(model, [frames[s] for s in last])
    shift = twin.energy_shift([frames[s] for s in last], predicted)
    # the bias takes up the mean error of that batch
    assert shift == pytest.approx(0, abs=1e-12)
    expected = twin.rmse([frames[s] for s in last], predicted)
    loss = read_loss(folder / "loss.out")
    assert loss["step"].tolist() == [10, 20, 30, 40]
    for name in ("energy", "force", "virial"):
        assert loss[name][-1] == pytest.approx(expected[name], abs=6e-6)
    test_targets = Targets.from_frames(read_dataset(folder / "test.xyz"), SPECIES)
    of_test = rmse(test_targets, predict(model, test_targets, threads=1))
    for name in ("energy", "force", "virial"):
        assert loss[f"{name}_test"][-1] == pytest.approx(of_test[name], abs=6e-6)

    # batch after batch
    order = np.concatenate(dealt)
    assert not np.array_equal(order, np.arange(len(targets)))
    found, reference = read_out(folder / "energy_train.out")
    assert np.allclose(found[:, 0], predictions.energies[order], rtol=1e-5)
    assert np.allclose(reference[:, 0], targets.energies[order], rtol=1e-5, equal_nan=True)
    forces = read_out(folder / "force_train.out")[1]
    assert np.allclose(forces, targets.select(order).forces, rtol=1e-5)
    assert np.allclose(read_out(folder / "virial_test.out")[1], test_targets.virials, rtol=1e-5, equal_nan=True)


def test_same_as_train(training_folder):
    """The folder adds files and nothing else: the numbers are those of ``train()`` with the same settings."""
    folder = training_folder(generation="20", lambda_v="0.3", lambda_1="0.01", force_delta="0.5")
    done, _ = run(folder)
    other = train(
        read_dataset(folder / "train.xyz"), species=SPECIES, optimizer="snes", steps=20, interval=10, population=10,
        lambda_v=0.3, lambda_1=0.01, force_delta=0.5, seed=5, threads=1, progress=False, **SHAPE,
    )  # fmt: skip
    assert np.array_equal(done.model.parameters(), other.model.parameters())
    assert np.array_equal(done.model.q_scaler, other.model.q_scaler)
    assert done.training.history.total.tolist() == other.history.total.tolist()


def test_when_files_are_written(training_folder, monkeypatch):
    monkeypatch.setattr(folder_module, "_PREDICTION_INTERVAL", 20)
    folder = training_folder(test=True, save_potential="20 0 1")
    seen = {}
    run(folder, on_report=lambda report: seen.update({report.step: set(contents(folder))}))
    assert "energy_test.out" in seen[10]
    assert "energy_train.out" not in seen[10]
    assert "energy_train.out" in seen[20]
    assert "nep_gen20.txt" not in seen[10]
    assert seen[20] - seen[10] == {f"{q}_train.out" for q in OUT_FILES} | {"nep_gen20.txt", "nep_gen20.restart"}
    assert seen[40] - seen[20] == {"nep_gen40.txt", "nep_gen40.restart"}
    for ending in ("txt", "restart"):
        assert (folder / f"nep_gen40.{ending}").read_bytes() == (folder / f"nep.{ending}").read_bytes()


def test_name_with_the_time_and_a_last_step_between_reports(training_folder):
    folder = training_folder(save_potential="10 1 0", generation="15")
    run(folder)
    kept = [name for name in contents(folder) if name.startswith("nep_y")]
    assert len(kept) == 1
    assert re.fullmatch(r"nep_y\d{4}_m\d\d_d\d\d_h\d\d_m\d\d_s\d\d_generation10\.txt", kept[0])
    assert read_loss(folder / "loss.out")["step"].tolist() == [10, 15]


def test_prediction(training_folder):
    folder = training_folder(prediction="1", batch="2")
    model = NEPModel.random(SPECIES, seed=3, **SHAPE)
    model.write(folder / "nep.txt")
    (folder / "nep.restart").write_text("is not read")
    before = contents(folder)
    done, _ = run(folder)
    after = contents(folder)
    assert done.training is None
    assert set(after) - set(before) == set(done.files) == {f"{quantity}_train.out" for quantity in OUT_FILES}
    assert {name: after[name] for name in before} == before
    found, reference = read_out(folder / "energy_train.out")
    # in the order of the frames
    assert np.allclose(found[:, 0], twin.predict(model, read_dataset(folder / "train.xyz"))[0], rtol=1e-5)
    assert np.allclose(reference[:, 0], done.targets.energies, rtol=1e-5, equal_nan=True)


def test_old_models_can_be_evaluated_only(training_folder):
    folder = training_folder(version="3", prediction="1")
    NEPModel.random(SPECIES, seed=3, version=3, **SHAPE).write(folder / "nep.txt")
    run(folder)
    folder = training_folder("b", version="3")
    before = contents(folder)
    with pytest.raises(NepInError, match=r"nep.in, line 10: version: 3 can be evaluated .*, not trained"):
        run(folder)
    assert contents(folder) == before


# ---- keywords -----------------------------------------------------------------------------------------------------


def test_scaler(training_folder):
    folder = training_folder(generation="5")
    plain = run(folder)[0].model
    targets = Targets.from_frames(read_dataset(folder / "train.xyz"), SPECIES)
    assert np.allclose(plain.q_scaler, descriptor_scaler(NEPModel.zeros(SPECIES, **SHAPE), targets), rtol=1e-12)
    half = run(training_folder("b", generation="5", initial_para="0.5"))[0].model
    # radial components are linear in the coefficients, angular ones of higher degree
    assert np.allclose(half.q_scaler[:3], 2 * plain.q_scaler[:3], rtol=1e-12)
    assert np.allclose(half.q_scaler[3:5], 4 * plain.q_scaler[3:5], rtol=1e-12)


def test_imported_scaler_survives_a_killed_run(training_folder):
    folder = training_folder(generation="10", import_q_scaler="1")
    other = NEPModel.random(SPECIES, seed=2, **SHAPE | {"neurons": 6})
    other.write(folder / "nep.txt")
    with pytest.raises(Killed):
        run(folder, on_report=killed_at(10))
    assert (folder / "nep.txt.1").exists()
    (folder / "nep.txt").write_bytes((folder / "nep.txt.1").read_bytes())
    assert np.array_equal(run(folder)[0].model.q_scaler, NEPModel.read(folder / "nep.txt.1").q_scaler)
    folder = training_folder("b", import_q_scaler="1")
    with pytest.raises(FileNotFoundError, match=r"nep\.txt"):
        run(folder)
    NEPModel.random(SPECIES, seed=2, **SHAPE | {"l_max": (3, 0)}).write(folder / "nep.txt")
    with pytest.raises(TrainingError, match="import_q_scaler needs a model with the same many_body"):
        run(folder)


def test_batches_repulsion_and_cutoffs(training_folder):
    table = " ".join(["0.5 2.5 1 2 1 1 1 1 1 1"] * 3)
    folder = training_folder(
        batch="3 1", zbl="2", cutoff="4 3 5 4", type_weight="1 2", lambda_shear="3", generation="5"
    )
    done, _ = run(folder)
    assert done.model.zbl.outer == 2
    assert done.model.cutoff_radial.tolist() == [4, 5]
    assert done.training.settings.type_weight == (1, 2)
    assert done.training.settings.lambda_shear == 3
    energies = np.nan_to_num(done.targets.energies)
    assert np.array_equal(done.training.order, np.concatenate(batches(energies, 3)))
    # all batches count in every generation
    assert done.training.history.force[-1] == pytest.approx(rmse(done.targets, done.predictions)["force"])
    assert NEPModel.read(folder / "nep.txt").zbl == done.model.zbl

    folder = training_folder("b", zbl="2", generation="5")
    (folder / "zbl.in").write_text(table)
    done, _ = run(folder)
    assert done.model.zbl.flexible.shape == (3, 10)
    assert np.array_equal(NEPModel.read(folder / "nep.txt").zbl.flexible, done.model.zbl.flexible)


def test_temperature(training_folder):
    thermal = {"n_max": "2 1", "basis_size": "2 3", "l_max": "2 0 1", "neuron": "4", "cutoff": "4.5 3.5"}
    folder = training_folder(model_type="3", generation="10", **thermal)
    run(folder)
    model = NEPModel.read(folder / "nep.txt")
    assert model.temperature
    assert model.q_scaler[-1] == 0.001
    found = read_out(folder / "energy_train.out")[0][:, 0]
    assert np.allclose(found, twin.predict(model, read_dataset(folder / "train.xyz"))[0], rtol=1e-5)
    write_dataset(folder / "test.xyz", twin.random_frames(2, 3, SPECIES))
    before = contents(folder)
    with pytest.raises(DatasetError, match=r"test\.xyz, frame 0, line 1: temperature: the model has a temperature"):
        run(folder)
    assert contents(folder) == before


# ---- fine-tuning --------------------------------------------------------------------------------------------------


def foundation(folder, sigma) -> tuple[NEPModel, np.ndarray]:
    """A model of more species with its restart file, and the means there."""
    model = NEPModel.random(("H", "C", "O"), seed=4, **SHAPE)
    model.write(folder / "big.txt")
    mu = np.random.default_rng(1).normal(size=model.n_parameters) * 0.3
    write_restart(folder / "big.restart", mu, np.full(len(mu), sigma))
    return NEPModel.read(folder / "big.txt"), mu


@pytest.mark.parametrize("optimizer", ["snes", "lbfgs"])
@pytest.mark.parametrize("descriptor", [0, 1])
def test_fine_tuning(training_folder, optimizer, descriptor):
    folder = training_folder(generation="10", fine_tune=f"big.txt big.restart {descriptor}")
    big, mu = foundation(folder, 0.05)
    # of an earlier run: the start is the foundation nevertheless
    narrow_restart(folder)
    done, _ = run(folder, optimizer=optimizer, steps=10)
    assert "nep.restart.1" in contents(folder)
    assert np.array_equal(done.model.q_scaler, big.q_scaler)
    start = big.with_parameters(mu)
    types = [2, 0]
    for name in ("c_radial", "c_angular"):
        there = getattr(start, name)[:, :, types][:, :, :, types]
        here = getattr(done.model, name)
        assert np.array_equal(here, there) == (descriptor == 0)
        assert np.allclose(here, there, atol=1.0)
    assert not np.array_equal(done.model.w0, start.w0[types])
    assert np.allclose(done.model.w0, start.w0[types], atol=1.0)
    sigma = read_restart(folder / "nep.restart", done.model)[1]
    block = done.model.parameter_blocks()[0]["c_radial"]
    assert (sigma[block] == 0).all() == (descriptor == 0)
    # the continuation needs no other start
    again, _ = run(folder, optimizer=optimizer, steps=10)
    assert np.array_equal(again.model.parameters(), done.model.parameters())


def test_fine_tuning_is_refused(training_folder):
    folder = training_folder(fine_tune="big.txt big.restart")
    with pytest.raises(FileNotFoundError, match=r"big\.txt"):
        run(folder)
    foundation(folder, 0.1)
    before = contents(folder)
    for changes, message in (
        ({"type": "2 O N"}, r"N too"),
        ({"neuron": "2"}, "neurons 3 and 2"),
        ({"n_max": "1 1"}, "n_max, l_max and model_type"),
    ):
        (folder / "nep.in").write_text(nep_in(fine_tune="big.txt big.restart", **changes))
        frames = twin.random_frames(1, 4, changes.get("type", "2 O H").split()[1:])
        write_dataset(folder / "train.xyz", frames)
        with pytest.raises(FineTuneError, match=message):
            run(folder)
    NEPModel.read(folder / "big.txt").write(folder / "nep.txt")
    (folder / "nep.in").write_text(nep_in(fine_tune="nep.txt big.restart"))
    write_dataset(folder / "train.xyz", twin.random_frames(1, 4, SPECIES))
    with pytest.raises(NepInError, match=r"line 10: fine_tune: nep\.txt in this folder will be replaced"):
        run(folder)
    assert set(contents(folder)) == {*before, "nep.txt"}


# ---- the gradient -------------------------------------------------------------------------------------------------


def test_files_of_the_gradient(training_folder):
    folder = training_folder(test=True, output_interval=None, batch="2", sigma0="0.05")
    done, remarks = run(folder, optimizer="gradient", steps=40)
    assert remarks == ["nep.in: generation, batch, population, sigma0 have no meaning for L-BFGS"]
    assert done.training.optimizer == "lbfgs"
    loss = read_loss(folder / "loss.out")
    assert loss["step"].tolist() == list(range(10, loss["step"][-1] + 1, 10))
    assert loss["total"][-1] < loss["total"][0]
    # that of the smallest weighted sum of test errors
    model = NEPModel.read(folder / "nep.txt")
    test = rmse(done.test_targets, predict(model, done.test_targets, threads=1))
    sums = loss["energy_test"] + loss["force_test"] + 0.1 * loss["virial_test"]
    assert test["energy"] + test["force"] + 0.1 * test["virial"] == pytest.approx(sums.min(), abs=2e-5)
    mu, sigma = read_restart(folder / "nep.restart", model)
    assert np.array_equal(mu, model.parameters())
    assert (sigma == 0.01).all()
    # in the order of the frames
    assert np.allclose(read_out(folder / "force_train.out")[1], done.targets.forces, rtol=1e-5)

    # from here on with the strategy
    (folder / CHECKPOINT).unlink()
    polished, remarks = run(folder, steps=10)
    assert "the run starts from these parameters" in remarks[0]
    assert np.abs(polished.model.parameters() - mu)[:-1].max() < 0.1


def test_adam_has_batches(training_folder):
    folder = training_folder(batch="2")
    done, remarks = run(folder, optimizer="adam", steps=10)
    assert remarks == ["nep.in: generation, population have no meaning for Adam"]
    assert done.training.optimizer == "adam"


def test_killed_gradient_goes_on(training_folder, saved_often):
    folder, whole = training_folder(), training_folder("whole")
    run(whole, optimizer="lbfgs", steps=20)
    with pytest.raises(Killed):
        run(folder, optimizer="lbfgs", steps=20, on_report=killed_at(20))
    run(folder, optimizer="lbfgs", steps=20)
    assert results(folder) == results(whole)


# ---- what is refused ----------------------------------------------------------------------------------------------


def damaged_number(folder):
    lines = (folder / "train.xyz").read_text().splitlines()
    second = int(lines[0]) + 2
    lines[second + 3] = lines[second + 3].replace(".", "x", 1)
    (folder / "train.xyz").write_text("\n".join(lines) + "\n")


def frames_with(change):
    def damage(folder):
        frames = twin.random_frames(1, 4, SPECIES)
        change(frames[1])
        # its results are those of the changed frame
        frames[1].calc.atoms = frames[1].copy()
        write_dataset(folder / "train.xyz", frames)

    return damage


def foreign_label(frame):
    frame.symbols[0] = "C"


def same_place(frame):
    frame.positions[2] = frame.positions[0] + frame.cell[1] - 2 * frame.cell[2]


def open_direction(frame):
    frame.pbc = [True, True, False]


SECOND = "frame 1, line "


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda folder: (folder / "nep.in").unlink(), FileNotFoundError, r"nep\.in"),
        (lambda folder: (folder / "train.xyz").unlink(), FileNotFoundError, r"train\.xyz"),
        (
            lambda folder: (folder / "nep.in").write_text("type 1 O\nneurons 3"),
            NepInError,
            r"line 2: unknown keyword",
        ),
        (lambda folder: (folder / "nep.in").write_text(nep_in(generation="0")), NepInError, "generation: expected at"),
        (damaged_number, DatasetError, rf"train\.xyz, {SECOND}\d+: .*expected a number"),
        (
            frames_with(foreign_label),
            DatasetError,
            rf"{SECOND}\d+: labels C, expected those .* line type in nep\.in",
        ),
        (frames_with(same_place), DatasetError, rf"train\.xyz, {SECOND}\d+: sites 0 and 2 are at the same place"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(training_folder, damage, error, message):
    folder = training_folder()
    (folder / "loss.out").write_text(EARLIER)
    damage(folder)
    before = contents(folder)
    with pytest.raises(error, match=message):
        run(folder)
    assert contents(folder) == before


def test_line_of_a_frame(training_folder):
    folder = training_folder()
    frames_with(foreign_label)(folder)
    with pytest.raises(DatasetError) as caught:
        run(folder)
    lines = (folder / "train.xyz").read_text().splitlines()
    assert caught.value.line == int(lines[0]) + 3
    assert lines[caught.value.line - 1].isdecimal()


def test_surroundings_that_are_all_the_same(training_folder):
    folder = training_folder()
    frame = twin.random_frames(1, 1, ("O",), sites=(1, 1))[0]
    write_dataset(folder / "train.xyz", [frame, frame])
    before = contents(folder)
    with pytest.raises(DatasetError, match=r"train\.xyz: .* descriptor components are the same") as caught:
        run(folder)
    assert isinstance(caught.value.__cause__, ScalerError)
    assert contents(folder) == before


def test_prediction_needs_the_model_of_nep_in(training_folder):
    folder = training_folder(prediction="1")
    with pytest.raises(FileNotFoundError, match=r"nep\.txt"):
        run(folder)
    NEPModel.random(("H", "O"), seed=3, **SHAPE).write(folder / "nep.txt")
    with pytest.raises(TrainingError, match=r"nep\.txt: has other .* than nep\.in \(species H O and O H\)"):
        run(folder)
    NEPModel.random(SPECIES, seed=3, **SHAPE | {"neurons": 4}).write(folder / "nep.txt")
    with pytest.raises(TrainingError, match=r"\(neurons 4 and 3\)"):
        run(folder)


def test_arguments(training_folder, tmp_path):
    folder = training_folder()
    for keywords, message in (
        ({"optimizer": "sness"}, "did you mean 'snes'"),
        ({"steps": 0}, "steps"),
        ({"seed": -1}, "seed"),
    ):
        with pytest.raises(TrainingError, match=message):
            run(folder, **keywords)
    with pytest.raises(TrainingError, match="expected a folder with"):
        run(tmp_path / "nothing")
    assert set(contents(folder)) == {"nep.in", "train.xyz"}


def test_open_directions_are_told(training_folder):
    folder = training_folder(generation="1")
    frames_with(open_direction)(folder)
    _, remarks = run(folder)
    assert remarks == [f"{folder / 'train.xyz'}: 1 of 4 frames are not periodic in all directions, which GPUMD ignores"]
