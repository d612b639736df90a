"""``train``: what its arguments do, what it refuses, what it returns, and whether it finds a potential again."""

import re
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import training_shapes as shapes
import training_twin as twin
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from training_teacher import CUTOFF, QUICK, SHAPE, quick, rms_force, same, taught

import ase_nepcg
from ase_nepcg import NEP, read_dataset, train, write_dataset
from ase_nepcg.dataset import DatasetError, FrameCalculator
from ase_nepcg.errors import ModelError, NepCGError
from ase_nepcg.model import ZBL
from ase_nepcg.training import baseline
from ase_nepcg.training import core as module
from ase_nepcg.training.core import TrainingError
from ase_nepcg.training.loss import LossError, noise_report, rmse
from ase_nepcg.training.objective import ScalerError
from ase_nepcg.training.targets import TargetError, Targets


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


@pytest.fixture(scope="module")
def base(frames):
    return quick(frames)


# ---- a potential is found again --------------------------------------------------------------------------------------


def test_finds_the_potential_that_made_the_frames(tmp_path):
    """Of a teacher of the same shape, from 20 frames; the errors are those on frames it has not seen."""
    teacher = shapes.make_model("small", seed=2, cutoff=(5.0, 4.0))
    frames, unseen = (taught(teacher, twin.random_frames(s, n, ("O",), sites=(6, 9))) for s, n in ((10, 20), (11, 10)))
    settings = {"lambda_1": 0.0, "lambda_2": 0.0, "seed": 1, "progress": False}
    training = train(frames, **SHAPE, cutoff=(5.0, 4.0), steps=500, interval=100, **settings)
    errors = training.rmse(unseen)
    assert errors["force"] < 0.005 * rms_force(unseen)
    assert errors["energy"] < 0.005 * np.std([frame.get_potential_energy() / len(frame) for frame in unseen])
    spread = np.std([frame.info["virial"] / len(frame) for frame in unseen])
    assert errors["virial"] < 0.005 * spread
    # parts of the start were far from it
    assert training.history.force[0] > 20 * training.history.force[-1]

    # through a file and the calculator
    training.model.write(tmp_path / "nep.txt")
    squares = []
    for frame in unseen:
        atoms = frame.copy()
        atoms.calc = NEP(tmp_path / "nep.txt", threads=1)
        squares.append((atoms.get_forces() - frame.get_forces()) ** 2)
        assert atoms.get_potential_energy() == pytest.approx(
            frame.get_potential_energy(), abs=4 * errors["energy"] * len(atoms)
        )
    assert np.sqrt(np.mean(np.concatenate(squares))) == pytest.approx(errors["force"], rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "snes"])
def test_others_learn_too(lesson, optimizer):
    frames, unseen = lesson
    settings = {"adam": {"steps": 400, "batch": 3}, "snes": {"steps": 400, "population": 20}}[optimizer]
    training = quick(frames, optimizer=optimizer, lambda_1=0.0, lambda_2=0.0, interval=50, **settings)
    assert training.rmse()["force"] < 0.5 * rms_force(frames)
    assert training.rmse(unseen)["force"] < 0.7 * rms_force(unseen)


# ---- arguments -------------------------------------------------------------------------------------------------------

STRONG = {
    "zbl": (1.5, 3.0),
    "lambda_e": 5.0,
    "lambda_f": 5.0,
    "lambda_v": 5.0,
    "lambda_1": 0.5,
    "lambda_2": 0.5,
    "lambda_shear": 4.0,
    "force_delta": 0.1,
    "type_weight": (1.0, 3.0),
    "weighting": "errorbars",
    "cutoff": (4.0, 3.0),
    "species": ("O", "H"),
    "seed": 2,
    "steps": 4,
}


@pytest.mark.parametrize("name", STRONG)
def test_every_setting_acts(frames, base, name):
    training = quick(frames, **{name: STRONG[name]})
    assert not np.array_equal(training.model.parameters(), base.model.parameters())
    if hasattr(training.settings, name):
        assert getattr(training.settings, name) == STRONG[name]
        for field in base.settings.__dataclass_fields__:
            assert field == name or getattr(training.settings, field) == getattr(base.settings, field)
    if name not in ("species", "seed", "steps"):
        assert training.history.total[0] != base.history.total[0]


def test_settings_of_adam(lesson):
    frames, _ = lesson
    first = quick(frames, optimizer="adam")
    assert first.optimizer == "adam"
    # all frames are few: no minibatches
    assert same(first, quick(frames, optimizer="adam", batch=9))
    for changes in ({"batch": 3}, {"learning_rate": 0.1}, {"steps": 10}):
        other = quick(frames, optimizer="adam", **changes)
        assert other.history.total[1] != first.history.total[1]
    assert quick(frames, optimizer="adam", learning_rate=0.1).history["learning_rate"].max() <= 0.1


def test_settings_of_snes(lesson):
    frames, _ = lesson
    first = quick(frames, optimizer="snes", population=6)
    assert first.mu.shape == first.sigma.shape == (first.model.n_parameters,)
    assert sorted(first.order) == list(range(9))
    # its own start is uniform from -1 to 1
    assert 0.5 < first.mu.std() < 0.65
    for changes in ({"population": 8}, {"sigma0": 0.2}, {"batch": 4}):
        other = quick(frames, optimizer="snes", **{"population": 6} | changes)
        assert not np.array_equal(other.mu, first.mu)
    some = quick(frames, optimizer="snes", population=6, batch=4)
    full = quick(frames, optimizer="snes", population=6, batch=4, full_batch=True)
    assert not np.array_equal(some.mu, full.mu)
    assert np.array_equal(some.order, full.order)


def test_hyperparameters_of_the_model():
    shape = dict(shapes.SHAPES["thermal"])
    frames = twin.random_frames(3, 6, shape["species"], temperatures=True)
    training = train(frames, **shape, **QUICK)
    model = training.model
    for name in ("species", "n_max", "basis_size", "neurons", "temperature"):
        assert getattr(model, name) == shape[name]
    assert (model.l_max, model.many_body) == (2, ("q1111",))  # l_max = (2, 0, 1)
    assert model.cutoff_radial.tolist() == [4.5, 4.5]
    assert model.cutoff_angular.tolist() == [3.5, 3.5]
    assert model.q_scaler[-1] == 0.001
    assert np.array_equal(training.targets.temperatures, [frame.info["temperature"] for frame in frames])
    warmer = [frame.copy() for frame in frames]
    for one, other in zip(warmer, frames, strict=True):
        one.calc = other.calc
        one.info["temperature"] += 50.0
    assert training.rmse(warmer)["force"] != training.rmse(frames)["force"]
    del warmer[3].info["temperature"]
    with pytest.raises(DatasetError, match=r"frame 3: temperature: the model has a temperature input"):
        train(warmer, **shape, **QUICK)


def test_cutoffs_per_species(frames):
    training = quick(frames, cutoff={"H": (4.0, 3.0), "O": (4.5, 3.5)})
    assert training.model.cutoff_radial.tolist() == [4.0, 4.5]
    assert training.model.cutoff_angular.tolist() == [3.0, 3.5]


@pytest.mark.parametrize("spec", [(1.5, 3.0), (1.5, 3.0, 0.6), ZBL(1.5, 3.0), "repulsive"])
def test_repulsion_at_short_distances(frames, spec):
    training = quick(frames, zbl=spec)
    if spec == "repulsive":
        expected = baseline.repulsive_baseline(frames, ("H", "O"), cutoff=CUTOFF)
        assert np.array_equal(training.model.zbl.flexible, expected.flexible)
    else:
        zbl = training.model.zbl
        assert (zbl.inner, zbl.outer) == (1.5, 3.0)
        assert zbl.factor == (0.6 if len(np.atleast_1d(spec)) == 3 else ZBL(1.5, 3.0).factor)
    # far below the distances of the frames it is all there is, and pushes
    atoms = Atoms("OH", [[0, 0, 0], [0.4, 0, 0]], cell=[20.0] * 3)
    atoms.calc = NEP(training.model, threads=1)
    assert atoms.get_forces()[1, 0] > 5


def test_the_wall_is_one_for_the_cutoffs_of_the_model(frames, monkeypatch):
    seen, make = [], baseline.repulsive_baseline

    def noted(*arguments, **settings):
        seen.append(settings)
        return make(*arguments, **settings)

    monkeypatch.setattr(baseline, "repulsive_baseline", noted)
    quick(frames, zbl="repulsive", cutoff=(4.0, 3.0))
    assert seen == [{"cutoff": (4.0, 3.0)}]


def test_the_wall_leaves_the_frames_alone(lesson):
    frames, _ = lesson
    # it ends at the smallest distances in the frames
    plain, walled = quick(frames), quick(frames, zbl="repulsive")
    np.testing.assert_allclose(walled.history.total, plain.history.total, rtol=1e-4)


def test_interval_and_reports(frames):
    reports = []
    training = quick(frames, test=frames[:3], interval=4, on_report=reports.append)
    assert [report.step for report in reports] == training.history.step.tolist() == [4, 6]
    assert isinstance(reports[0], ase_nepcg.training.core.Report)
    found = training._predict(training.test_targets, reports[-1].model)
    expected = rmse(training.test_targets, found) | noise_report(training.test_targets, found)
    assert reports[-1].test == pytest.approx(expected)


def test_steps_if_none_are_given(frames, monkeypatch):
    monkeypatch.setattr(module, "STEPS", {"lbfgs": 3, "adam": 4, "snes": 5})
    for optimizer, steps in module.STEPS.items():
        training = quick(frames, steps=None, optimizer=optimizer, population=4)
        assert training.history.step[-1] == steps
        assert training.reason == "steps"
    assert quick(frames, steps=None).optimizer == "lbfgs"
    monkeypatch.setattr(module, "_MOST_SITES", 10)
    assert quick(frames, steps=None).optimizer == "adam"
    assert quick(frames, steps=None).history.step[-1] == 4


def test_no_seed_is_another_one_each_time(frames):
    one, other = (quick(frames, seed=None) for _ in range(2))
    assert one.seed != other.seed
    assert not same(one, other)
    assert same(quick(frames, seed=one.seed), one)


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam", "snes"])
def test_results_do_not_depend_on_threads_or_memory(frames, optimizer):
    settings = {"optimizer": optimizer, "population": 6, "batch": 3, "test": frames[:2]}
    first = quick(frames, **settings)
    assert same(quick(frames, threads=2, **settings), first)
    assert same(quick(frames, cache_GB=0.0, **settings), first)


def test_frames_stay_as_they_are(frames):
    before = [(frame.positions.copy(), dict(frame.info), frame.get_forces().copy()) for frame in frames]
    quick(frames, zbl="repulsive")
    for frame, (positions, info, forces) in zip(frames, before, strict=True):
        assert np.array_equal(frame.positions, positions)
        assert np.array_equal(frame.get_forces(), forces)
        assert frame.info.keys() == info.keys()


def test_one_frame_need_not_be_a_list(frames, lesson):
    assert same(quick(lesson[0][0]), quick(lesson[0][:1]))
    assert same(quick(lesson[0], test=lesson[1][0]), quick(lesson[0], test=lesson[1][:1]))


def test_frames_from_a_file(tmp_path, frames):
    write_dataset(tmp_path / "train.xyz", frames)
    assert same(quick(read_dataset(tmp_path / "train.xyz")), quick(frames))


# ---- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam", "snes"])
def test_frames_without_energies(optimizer):
    frames = twin.random_frames(5, 6, ("H", "O"), energies=False)
    training = quick(frames, optimizer=optimizer, population=4, batch=2)
    assert (training.history.energy == 0).all()
    assert training.rmse()["energy"] == 0
    # the common bias stays where it was
    start = 0.0 if optimizer != "snes" else training.mu[training.model.parameter_blocks()[0]["bias"]][0]
    assert training.model.bias == pytest.approx(start, abs=1.0 if optimizer == "snes" else 0.0)


def test_energies_of_weight_zero_change_nothing():
    without = twin.random_frames(5, 6, ("H", "O"), energies=False)
    rng = np.random.default_rng(1)
    with_energies = []
    for frame in without:
        new = frame.copy()
        new.info["energy_weight"] = 0.0
        new.calc = SinglePointCalculator(new, energy=float(rng.normal()), **frame.calc.results)
        with_energies.append(new)
    assert same(quick(with_energies), quick(without))


def test_mean_energy_error_is_gone(lesson, tmp_path):
    frames, _ = lesson
    for optimizer in ("lbfgs", "snes"):
        training = quick(frames, optimizer=optimizer, population=6)
        deviation = training.predictions.energies - training.targets.energies
        assert abs(deviation.mean()) < 1e-9
        assert np.sqrt(np.mean(deviation**2)) == pytest.approx(training.history.energy[-1], rel=1e-6)


def test_errors_are_those_of_the_calculator(tmp_path, lesson):
    frames, unseen = lesson
    training = quick(frames, steps=20)
    training.model.write(tmp_path / "nep.txt")
    squares = {"energy": [], "force": [], "virial": [], "stress": []}
    for frame in unseen:
        atoms = frame.copy()
        atoms.calc = NEP(tmp_path / "nep.txt", threads=1)
        n, volume = len(atoms), atoms.get_volume()
        squares["energy"].append(((atoms.get_potential_energy() - frame.get_potential_energy()) / n) ** 2)
        squares["force"].append((atoms.get_forces() - frame.get_forces()) ** 2)
        stress = atoms.get_stress(voigt=False) + frame.info["virial"] / volume
        six = np.array([stress[i, j] for i, j in twin.SIX])
        squares["virial"].append((six * volume / n) ** 2)
        squares["stress"].append((six * twin.GPA) ** 2)
    expected = {
        name: np.sqrt(np.mean(np.concatenate([np.ravel(v) for v in values]))) for name, values in squares.items()
    }
    assert training.rmse(unseen) == pytest.approx(expected, rel=1e-5)


def test_error_bars_that_differ_decide():
    """Half of the frames are far too noisy; with weights the model learns from the others."""
    teacher = shapes.make_model("small", seed=2, cutoff=CUTOFF)
    plain = twin.random_frames(6, 20, ("O",))
    frames = taught(teacher, plain[::2], noise=0.01) + taught(teacher, plain[1::2], noise=1.0, seed=1)
    for frame in frames:
        del frame.info["virial"]
    unseen = taught(teacher, twin.random_frames(7, 6, ("O",)))
    settings = {"steps": 150, "interval": 150, "lambda_1": 0.0, "lambda_2": 0.0, "lambda_e": 0.0}
    one, other = (quick(frames, weighting=weighting, **settings).rmse(unseen) for weighting in (None, "errorbars"))
    assert other["force"] < 0.4 * one["force"]
    with pytest.raises(LossError, match="the frames have no error bars"):
        quick(unseen, weighting="errorbars")


# ---- test set --------------------------------------------------------------------------------------------------------


def test_the_best_model_on_the_test_set_is_returned(frames):
    """Random numbers cannot be learnt: the errors of other frames rise."""
    reports = []
    test = twin.random_frames(8, 4, ("H", "O"))
    training = quick(frames, test=test, steps=300, interval=5, patience=30, on_report=reports.append)
    assert training.reason == "early stopping"
    values = [sum(w * r.test[t] for t, w in (("energy", 1.0), ("force", 1.0), ("virial", 0.1))) for r in reports]
    best = int(np.argmin(values))
    assert reports[-1].step - reports[best].step == 30
    assert reports[-1].step < 300
    assert training.model.parameters().tobytes() == reports[best].model.parameters().tobytes()
    assert training.rmse(test)["force"] == pytest.approx(reports[best].test["force"], rel=1e-9)
    assert len(training.test_targets) == 4
    assert np.array_equal(training.test_predictions.forces.shape, training.test_targets.forces.shape)


def test_patience_if_none_is_given(frames):
    test = twin.random_frames(8, 2, ("H", "O"))
    stopped = quick(frames, test=test, steps=400, interval=5, patience=None)
    assert stopped.reason == "early stopping"
    by_hand = quick(frames, test=test, steps=400, interval=5, patience=100)
    assert same(stopped, by_hand)


def test_type_weights_and_error_bars_do_not_judge_test_frames(frames):
    """Which need not have error bars."""
    test = twin.random_frames(8, 3, ("H", "O"))
    training = quick(
        frames, test=test, weighting="errorbars", type_weight=(1.0, 2.0), force_delta=0.3, lambda_shear=2.0
    )
    assert np.isfinite(training.history.force_test).all()


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"optimizer": "lbgfs"}, TrainingError, "optimizer: unknown name 'lbgfs'; did you mean 'lbfgs'?"),
        ({"optimizer": "x"}, TrainingError, "valid names: adam, gradient, lbfgs, snes"),
        ({"optimizer": None}, TrainingError, "optimizer: unknown name None"),
        ({"cutoff": (3.0, 4.0)}, TrainingError, "cutoff: expected an angular radius up to the radial one"),
        ({"steps": 0}, TrainingError, "steps: expected 1 to"),
        ({"steps": 1.5}, TrainingError, "steps: expected an integer, got 1.5"),
        ({"batch": 0}, TrainingError, "batch: expected 1 to"),
        ({"patience": 0}, TrainingError, "patience: expected 1 to"),
        ({"interval": -1}, TrainingError, "interval: expected 1 to"),
        ({"n_models": 0}, TrainingError, "n_models: expected 1 to"),
        ({"polish": -1}, TrainingError, "polish: expected 0 to"),
        ({"seed": -1}, TrainingError, "seed: expected 0 to"),
        ({"seed": "a"}, TrainingError, "seed: expected an integer, got 'a'"),
        ({"lambda_e": -1.0}, LossError, "lambda_e: expected a number >= 0, got -1.0"),
        ({"lambda_f": np.nan}, LossError, "lambda_f: expected a number >= 0, got nan"),
        ({"weighting": "errorbar"}, LossError, "weighting: expected None or 'errorbars', got 'errorbar'"),
        ({"type_weight": (1.0,)}, LossError, "type_weight: expected 2 numbers, one per species, got 1"),
        ({"neurons": (3, 4)}, TrainingError, "neurons: expected one number"),
        ({"neurons": 0}, ModelError, "neurons"),
        ({"cutoff": -1.0}, ModelError, "cutoff"),
        ({"n_max": (-1, 0)}, ModelError, "n_max"),
        ({"zbl": "wall"}, NepCGError, "unknown name 'wall'"),
        ({"population": 1, "optimizer": "snes"}, NepCGError, "population: expected 2 to"),
        ({"sigma0": 0.0, "optimizer": "snes"}, NepCGError, "sigma0: expected a number above 0"),
        ({"optimizer": "adam", "learning_rate": 0.0}, NepCGError, "learning_rate: expected a number above 0, got 0"),
        ({"optimizer": "adam", "batch": 1}, NepCGError, "batch: expected at least 2 frames for Adam, got 1"),
        ({"species": ("O",)}, DatasetError, "labels H are not among the species of the model (O); give species="),
    ],
)
def test_refusals(frames, changes, error, message):
    with pytest.raises(error, match=re.escape(message)) as caught:
        quick(frames, **changes)
    assert isinstance(caught.value, NepCGError)
    assert isinstance(caught.value, ValueError)


def with_forces(frame, forces):
    new = frame.copy()
    new.calc = None if forces is None else FrameCalculator(new, forces=forces)
    return new


def test_bad_frames_are_named(frames):
    missing = [*frames[:3], with_forces(frames[3], None), *frames[4:]]
    with pytest.raises(DatasetError, match=r"frame 3: .*forces"):
        quick(missing)
    for wrong in (np.nan, np.inf):
        forces = frames[2].get_forces().copy()
        forces[1, 2] = wrong
        with pytest.raises(DatasetError, match=r"frame 2: .*forces"):
            quick([*frames[:2], with_forces(frames[2], forces), *frames[3:]])
    moved = with_forces(frames[5], frames[5].get_forces())
    moved.positions[0, 0] = np.nan
    with pytest.raises(DatasetError, match=r"frame 5: .*positions"):
        quick([*frames[:5], moved])
    double = with_forces(frames[1], frames[1].get_forces())
    double.positions[1] = double.positions[0]
    with pytest.raises(DatasetError, match="frame 1"):
        quick([frames[0], double])
    for changes in ({}, {"species": ("H", "O")}, {"zbl": "repulsive"}):
        with pytest.raises(DatasetError, match="frames: expected at least one frame, got none"):
            quick([], **changes)
    with pytest.raises(DatasetError, match="frames: expected at least one frame, got none"):
        quick(frames, test=[])
    with pytest.raises(DatasetError, match="expected Atoms, got str"):
        quick(["train.xyz"])
    with pytest.raises(DatasetError, match=r"labels C are not among the species of the model \(H, O\)"):
        quick(frames, test=taught(shapes.make_model("small", species=("C",)), twin.random_frames(1, 2, ("C",))))


def test_a_perfect_crystal_cannot_be_scaled():
    atoms = bulk("O", "fcc", a=4.0, cubic=True)
    atoms.calc = FrameCalculator(atoms, forces=np.zeros((4, 3)))
    with pytest.raises(ScalerError, match="descriptor components are the same for all sites of the training set"):
        quick([atoms])
    assert issubclass(ScalerError, TargetError)


# ---- what comes back -------------------------------------------------------------------------------------------------


def test_result(frames, base):
    assert base.model.species == ("H", "O")
    assert base.models == (base.model,)
    assert base.histories == (base.history,)
    assert (base.optimizer, base.reason, base.seed, base.threads) == ("lbfgs", "steps", 1, 1)
    assert base.test_targets is base.test_predictions is base.mu is base.sigma is base.order is None
    assert isinstance(base.targets, Targets)
    errors = base.rmse()
    for term in ("energy", "force", "virial"):
        assert errors[term] == pytest.approx(base.history[term][-1], rel=1e-8)
    assert base.rmse(frames) == base.rmse(base.targets) == errors
    assert base.rmse(frames[:3]) != errors
    assert base.rmse(frames[0]) == base.rmse(frames[:1])
    text = repr(base)
    assert text.startswith("Training(NEPModel(nep4, H O, ")
    assert f"lbfgs, steps at step 6, energy {errors['energy']:.4g}, force {errors['force']:.4g}" in text
    assert base.settings.lambda_1 == pytest.approx(np.sqrt(1e-6 * base.model.n_parameters / 2))
    assert base.model.max_neighbors is not None


def test_report_says_what_is_noise(frames, base):
    report = base.report()
    assert base.rmse().items() <= report.items()
    errors = np.concatenate([frame.arrays["force_errors"] for frame in frames])
    assert report["force_noise"] == pytest.approx(np.sqrt(np.mean(errors**2)))
    deviation = base.predictions.forces - base.targets.forces
    assert report["force_chi2"] == pytest.approx(np.mean((deviation / errors) ** 2))
    assert {"virial_noise", "stress_noise", "virial_chi2"} <= report.keys()
    bare = twin.random_frames(1, 2, ("H", "O"))
    assert base.report(bare).keys() == base.rmse(bare).keys()


def test_chi_square_of_the_right_model_is_one(teacher):
    frames = taught(teacher, twin.random_frames(6, 20, ("H", "O")), noise=0.2)
    training = quick(frames, start=teacher, steps=1, lambda_1=0.0, lambda_2=0.0)
    exact = replace(training, model=teacher, targets=training.targets)
    assert exact.report()["force_chi2"] == pytest.approx(1.0, abs=0.15)


def test_figures(frames, base):
    axes = base.plot()
    assert len(axes) == 3
    plt.close(axes[0].figure)
    tested = quick(frames, test=frames[:3])
    _, mine = plt.subplots(1, 3)
    assert tested.plot(mine)[1] is mine[1]
    assert any("test" in text.get_text() for text in mine[1].get_legend().get_texts())
    assert any("noise" in text.get_text() for text in mine[1].get_legend().get_texts())
    plt.close(mine[0].figure)
