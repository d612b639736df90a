"""Running the stages: reports, early stopping, checkpoints of every optimiser, interrupts."""

import json
import signal
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import tqdm
import training_shapes as shapes
from training_teacher import taught

from ase_nepcg import checkpoint as checkpoint_module
from ase_nepcg.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from ase_nepcg.training import fit as module
from ase_nepcg.training import stages as stages_module
from ase_nepcg.training.fit import fit, shifted
from ase_nepcg.training.loss import rmse
from ase_nepcg.training.predict import predict
from ase_nepcg.training.stages import initial_parameters

# stages, settings
RUNS = {
    "lbfgs": ([("lbfgs", 14)], {}),
    "adam": ([("adam", 14)], {"batch": 3}),
    "snes": ([("snes", 14)], {"batch": 3, "population": 6}),
    "full batch": ([("snes", 8)], {"batch": 3, "population": 4, "full_batch": True}),
    "two stages": ([("lbfgs", 7), ("snes", 7)], {"population": 6, "stage 1": {"sigma0": 0.01}}),
}


@pytest.fixture(scope="module")
def objectives():
    """Of a training and a test set, frames that a model of this shape can learn."""
    teacher = shapes.make_model("small", species=("O", "H"), seed=2)
    frames = taught(teacher, shapes.make_frames(teacher, 13, seed=4))
    return shapes.make_objective(teacher, frames[:8]), shapes.make_objective(teacher, frames[8:])


@pytest.fixture
def run(objectives):
    """Function: name of a run and keywords -> its result."""

    def start(name="lbfgs", *, tested=False, test=None, stages=None, **keywords):
        own, settings = RUNS[name]
        keywords = {"seed": 3, "interval": 2, "progress": False} | settings | keywords
        z = keywords.pop("z", initial_parameters(objectives[0].model, 3))
        test = objectives[1] if tested else test
        return fit(objectives[0], test, stages=stages or own, z=z, **keywords)

    return start


def same(one, other) -> bool:
    """Whether two results are the same bits, apart from the time they took."""
    assert one.history.names == other.history.names
    columns = [name for name in one.history.names if name != "seconds"]
    assert all(one.history[name].tobytes() == other.history[name].tobytes() for name in columns)
    assert one.model.parameters().tobytes() == other.model.parameters().tobytes()
    for name in ("mu", "sigma", "order"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is b is None) or a.tobytes() == b.tobytes()
    return (one.reason, one.seed) == (other.reason, other.seed)


class Crash(BaseException):
    """What a killed run does not survive."""


def crash_at(step):
    def on_report(report):
        if report.step >= step:
            raise Crash

    return on_report


def interrupt_at(step, times=1):
    def on_report(report):
        if report.step == step:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    return on_report


@pytest.fixture
def default_interrupt():
    """Ctrl-C raises KeyboardInterrupt, whatever the shell has set."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


# ---- reports ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_reports(run, objectives, name):
    reports = []
    result = run(name, tested=True, interval=3, on_report=reports.append)
    stages = RUNS[name][0]
    expected, before = [], 0
    for _, steps in stages:
        expected += [before + k for k in range(1, steps + 1) if k % 3 == 0 or k == steps]
        before += steps
    assert [report.step for report in reports] == result.history.step.tolist() == expected
    assert result.reason == "steps"
    history = result.history
    for k, report in enumerate(reports):
        assert history.total[k] == report.total
        assert (history.l1[k], history.l2[k]) == (report.l1, report.l2)
        for term in ("energy", "force", "virial"):
            assert history[term][k] == report.train[term]
            assert history[term + "_test"][k] == report.test[term]
        assert all(history[key][k] == value for key, value in report.others.items())
        assert report.l1 + report.l2 < report.total
        assert (
            (report.mu is None)
            == (report.sigma is None)
            == (report.step <= 7 if len(stages) > 1 else name in ("lbfgs", "adam"))
        )
    assert (np.diff(history.seconds) >= 0).all()


@pytest.mark.parametrize("name", ["lbfgs", "full batch"])
def test_a_report_is_about_the_model_it_has(run, objectives, name):
    """With the mean energy error taken up by the bias: no shift any more."""
    objective, test = objectives
    reports = []
    run(name, tested=True, on_report=reports.append)
    for report in reports:
        predictions = predict(report.model, objective.given, threads=1)
        assert rmse(objective.given, predictions) == pytest.approx(report.train, rel=1e-8)
        assert rmse(test.given, predict(report.model, test.given, threads=1)) == pytest.approx(report.test, rel=1e-8)
        terms = objective.losses(report.model.parameters()[None])[0][0, -1]
        assert report.total == pytest.approx(terms.sum(), rel=1e-9)
        assert (report.l1, report.l2) == pytest.approx(tuple(terms[3:]), rel=1e-9)
        assert abs(np.mean(predictions.energies - objective.given.energies)) < 1e-10


def test_a_report_of_snes_is_about_its_batch(run, objectives):
    objective = objectives[0]
    reports = []
    result = run("snes", interval=1, on_report=reports.append)
    order = np.argsort(objective.given.energies)
    for report in reports:
        batch = order[(report.step - 1) % 3 :: 3]
        z = report.model.parameters()
        terms, shift = objective.losses(z[None], batch)
        assert report.total == pytest.approx(terms[0, -1].sum(), rel=1e-9)
        assert abs(shift[0]) < 1e-9
        chosen = objective.given.select(batch)
        assert report.train == pytest.approx(rmse(chosen, predict(report.model, chosen, threads=1)), rel=1e-8)
    assert result.order.tolist() == [*order[0::3], *order[1::3], *order[2::3]]


def test_interval_if_none_is_given(run):
    assert run(interval=None, stages=[("lbfgs", 25)]).history.step.tolist() == [10, 20, 25]
    assert run(interval=None, stages=[("lbfgs", 4)]).history.step.tolist() == [4]
    assert run("snes", interval=None, stages=[("snes", 130)], population=2).history.step.tolist() == [100, 130]


def test_bias_takes_up_the_mean_energy_error(objectives):
    model = objectives[0].model
    z = initial_parameters(model, 1)
    raised = shifted(model, z, 0.3)
    assert raised.bias == pytest.approx(0.3)
    bias = model.parameter_blocks()[0]["bias"]
    assert np.array_equal(np.delete(raised.parameters(), bias), np.delete(z, bias))
    targets = objectives[0].given
    lower = (
        predict(model.with_parameters(z), targets, threads=1).energies - predict(raised, targets, threads=1).energies
    )
    np.testing.assert_allclose(lower, 0.3, rtol=1e-9)


def test_result_is_the_last_model(run):
    reports = []
    result = run(on_report=reports.append)
    assert result.model is reports[-1].model
    # a test set that nobody waits for changes nothing
    assert run(tested=True).model.parameters().tobytes() == result.model.parameters().tobytes()


# ---- early stopping --------------------------------------------------------------------------------------------------


def scripted(objective, course):
    """A test set of forces only, whose errors are those of ``course``, one report after the other."""
    numbers = iter(course)

    def predict(z):
        found = objective.predict(z)
        return found._replace(forces=objective.given.forces + next(numbers))

    terms = SimpleNamespace(weights=np.array([0.0, 1.0, 0.0]))
    return SimpleNamespace(given=objective.given, terms=terms, predict=predict)


def test_early_stopping_returns_the_best_model(run, objectives):
    course = [5.0, 4.0, 3.0, 3.5, 2.0, 2.5, 2.5, 2.0, 9.0, 1.0]
    test = scripted(objectives[1], course)
    reports = []
    result = run(test=test, stages=[("adam", 60)], batch=8, patience=5, on_report=reports.append)
    assert result.reason == "early stopping"
    # that of step 10, and after five more the next report
    assert reports[-1].step == 10 + 6
    assert result.model.parameters().tobytes() == reports[4].model.parameters().tobytes()
    assert [report.test["force"] for report in reports] == pytest.approx(course[:8])


def test_best_model_by_the_weighted_errors_of_the_test_set(run, objectives):
    reports = []
    stages = [("snes", 40)]
    result = run("snes", tested=True, stages=stages, patience=40, on_report=reports.append)
    weights = objectives[1].terms.weights
    values = [weights @ [report.test[term] for term in ("energy", "force", "virial")] for report in reports]
    best = int(np.argmin(values))
    assert 0 < best < len(values) - 1  # a test of anything
    assert result.model.parameters().tobytes() == reports[best].model.parameters().tobytes()
    assert result.reason == "steps"


def test_next_stage_starts_from_the_best_model_and_has_all_its_patience(run, objectives, monkeypatch):
    starts = []

    class Noted(stages_module.SnesStage):
        def __init__(self, objective, z, **settings):
            starts.append(z)
            super().__init__(objective, z, **settings)

    monkeypatch.setitem(stages_module.STAGES, "snes", Noted)
    reports = []
    stages = [("adam", 12), ("snes", 12)]
    run(tested=True, stages=stages, patience=12, batch=3, learning_rate=0.5, population=6, on_report=reports.append)
    weights = objectives[1].terms.weights
    first = [r for r in reports if r.step <= 12]
    values = [weights @ [r.test[term] for term in ("energy", "force", "virial")] for r in first]
    best = int(np.argmin(values))
    assert best < len(values) - 1
    assert starts[0].tobytes() == first[best].model.parameters().tobytes()
    assert reports[-1].step == 24


def test_patience_of_the_next_stage_begins_with_it(run, objectives):
    # the best one is that of step 2
    test = scripted(objectives[1], [1.0, 3.0, 3.0, 2.0, 2.0, 2.0, 2.0])
    stages = [("adam", 6), ("snes", 8)]
    result = run(test=test, stages=stages, batch=8, population=4, patience=4)
    assert result.reason == "early stopping"
    assert result.history.step.tolist() == [2, 4, 6, 8, 10]


def test_without_a_test_set_patience_means_nothing(run):
    assert run(patience=1).reason == "steps"


def test_converged(run, monkeypatch):
    monkeypatch.setattr(stages_module, "_WINDOW", 3)
    monkeypatch.setattr(stages_module, "_TOLERANCE", 1e9)
    result = run()
    assert result.reason == "converged"
    # between two reports
    assert result.history.step.tolist() == [2, 4]
    polished = run(stages=[("lbfgs", 14), ("snes", 5)], population=4)
    assert polished.reason == "steps"
    assert polished.history.step.tolist() == [2, 4, 6, 8, 9]


# ---- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("tested", [False, True])
@pytest.mark.parametrize(("crash", "every"), [(6, 0.0), (6, 1e9), (9, 0.0)])
def test_a_killed_run_goes_on_with_the_same_bits(run, tmp_path, monkeypatch, name, tested, crash, every):
    """Killed in its third report, or after a step in the second stage; checkpoints in every step or at the start."""
    patience = 20 if tested else None
    settings = {"tested": tested, "patience": patience, "fingerprint": {"a": 1}}
    unbroken = run(name, **settings)
    monkeypatch.setattr(module, "_CHECKPOINT_INTERVAL", every)
    path = tmp_path / "state"
    if crash < unbroken.history.step[-1]:
        with pytest.raises(Crash):
            run(name, checkpoint=path, on_report=crash_at(crash), **settings)
    resumed_at = []
    resumed = run(name, checkpoint=path, on_start=lambda step, note: resumed_at.append(step), **settings)
    assert same(resumed, unbroken)
    if crash < unbroken.history.step[-1]:
        assert resumed_at[0] == (0 if every else resumed.history.step[resumed.history.step >= crash][0] - 1)
    # and once more, when there is nothing left to do
    stat = path.stat()
    assert same(run(name, checkpoint=path, **settings), unbroken)
    assert path.stat().st_mtime_ns == stat.st_mtime_ns


@pytest.mark.parametrize("name", ["lbfgs", "adam", "snes"])
def test_early_stopping_and_convergence_survive_a_checkpoint(run, objectives, tmp_path, monkeypatch, name):
    # a start that is hard to leave
    start = np.zeros(objectives[0].model.n_parameters)
    settings = {"tested": True, "patience": 2, "z": start, "interval": 1}
    if name == "lbfgs":
        monkeypatch.setattr(stages_module, "_WINDOW", 3)
        monkeypatch.setattr(stages_module, "_TOLERANCE", 1e9)
        settings["patience"] = 9
    path = tmp_path / "state"
    first = run(name, checkpoint=path, stages=[(name, 200)], **settings)
    assert first.reason == ("converged" if name == "lbfgs" else "early stopping")
    assert first.history.step[-1] < 200
    assert same(run(name, checkpoint=path, stages=[(name, 200)], **settings), first)


@pytest.mark.parametrize("name", ["lbfgs", "snes"])
def test_more_steps_can_follow(run, tmp_path, name):
    path = tmp_path / "state"
    run(name, checkpoint=path, stages=[(name, 8)])
    longer = run(name, checkpoint=path, stages=[(name, 14)])
    assert same(longer, run(name, stages=[(name, 14)]))


@pytest.mark.parametrize("steps", [5, 2])
def test_fewer_steps_than_were_done(run, tmp_path, monkeypatch, steps):
    """Also where there has been no report yet."""
    monkeypatch.setattr(module, "_CHECKPOINT_INTERVAL", 0.0)
    path = tmp_path / "state"
    with pytest.raises(Crash):
        run(checkpoint=path, interval=4, on_report=crash_at(4))
    result = run(checkpoint=path, interval=4, stages=[("lbfgs", steps)])
    assert result.reason == "steps"
    assert result.history.step[-1] >= 3
    assert np.isfinite(result.model.parameters()).all()


def test_time_adds_up(run, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CHECKPOINT_INTERVAL", 0.0)
    path = tmp_path / "state"
    with pytest.raises(Crash):
        run(checkpoint=path, on_report=crash_at(6))
    header, arrays = read_checkpoint(path, "training")
    write_checkpoint(path, "training", header | {"seconds": 1000.0}, arrays)
    history = run(checkpoint=path).history
    assert history.seconds[1] < 1000 < history.seconds[2]
    assert (np.diff(history.seconds) >= 0).all()


def test_checkpoint_of_another_run_is_refused(run, tmp_path):
    path = tmp_path / "state"
    settings = {"data": "abc", "loss": {"lambda_e": 1.0, "lambda_f": 2.0}, "seed": None}
    run(checkpoint=path, fingerprint=settings)
    content = path.read_bytes()
    others = [
        ({"loss": {"lambda_e": 1.0, "lambda_f": 2.5}}, "run: lambda_f was 2.0, is 2.5. Give the same"),
        ({"data": "abd", "seed": 4}, "run: data was 'abc', is 'abd'; seed was None, is 4. Give"),
        ({"more": True}, "run: more was None, is True"),
    ]
    started = []
    for change, message in others:
        with pytest.raises(CheckpointError) as caught:
            run(checkpoint=path, fingerprint=settings | change, on_start=lambda *args: started.append(args))
        assert message in str(caught.value)
        assert str(path) in str(caught.value)
        assert path.read_bytes() == content
        assert not started
    assert run(checkpoint=path, fingerprint=json.loads(json.dumps(settings))).reason == "steps"


def test_damaged_checkpoints_are_refused(run, tmp_path, monkeypatch):
    path = tmp_path / "state"
    run(checkpoint=path)
    content = path.read_bytes()
    damaged = {len(content) // 2: "truncated or damaged", len(content) - 1: "truncated or damaged", 0: "checkpoint"}
    for length, message in damaged.items():
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=message):
            run(checkpoint=path)
        assert path.read_bytes() == content[:length]
    path.write_text("lattice")
    with pytest.raises(CheckpointError, match=r"not a checkpoint of ase_nepcg; .* choose another name"):
        run(checkpoint=path)
    assert path.read_text() == "lattice"
    write_checkpoint(path, "mean-force", {}, {})
    with pytest.raises(CheckpointError, match="of kind 'training', got 'mean-force'; to go on"):
        run(checkpoint=path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "_VERSION", 7)
        write_checkpoint(path, "training", {}, {})
    with pytest.raises(CheckpointError, match="of version 1, got version 7"):
        run(checkpoint=path)


def test_note_of_the_start_is_kept(run, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CHECKPOINT_INTERVAL", 0.0)
    path, seen = tmp_path / "state", []

    def on_start(step, note):
        # nothing has been written when it is called for the first time
        seen.append((step, note, path.exists()))
        return {"line": 7 if note is None else 8}

    with pytest.raises(Crash):
        run(checkpoint=path, on_start=on_start, on_report=crash_at(4))
    with pytest.raises(Crash):
        run(checkpoint=path, on_start=on_start, on_report=crash_at(8))
    run(checkpoint=path, on_start=on_start)
    assert seen == [(0, None, False), (3, {"line": 7}, True), (7, {"line": 7}, True)]


def test_seed_comes_from_the_checkpoint(run, tmp_path):
    path = tmp_path / "state"
    first = run("snes", checkpoint=path, stages=[("snes", 6)], seed=11)
    again = run("snes", checkpoint=path, seed=12)
    assert first.seed == again.seed == 11
    assert same(again, run("snes", seed=11))


def test_seed_is_kept_from_the_start(run, tmp_path):
    path = tmp_path / "state"
    with pytest.raises(Crash):
        run("snes", checkpoint=path, seed=11, on_report=crash_at(1))
    assert same(run("snes", checkpoint=path, seed=12), run("snes", seed=11))


# ---- interrupts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lbfgs", "adam", "snes", "two stages"])
@pytest.mark.parametrize("step", [2, 10])
def test_ctrl_c_ends_after_the_step_at_hand(run, tmp_path, name, step, default_interrupt):
    path, reports = tmp_path / "state", []
    stop = interrupt_at(step)

    def on_report(report):
        reports.append(report)
        stop(report)

    result = run(name, checkpoint=path, interval=1, on_report=on_report)
    assert result.reason == "interrupted"
    assert result.history.step[-1] == step
    assert result.model.parameters().tobytes() == reports[-1].model.parameters().tobytes()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert same(run(name, checkpoint=path, interval=1), run(name, interval=1))


def test_ctrl_c_between_two_reports(run, tmp_path, monkeypatch, default_interrupt):
    """The result is that of the last step; the history of a run that goes on has no trace of it."""
    path = tmp_path / "state"
    advance = stages_module.LBFGSStage.advance

    def interrupted(self):
        if self.step == 4:
            signal.raise_signal(signal.SIGINT)
        return advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(stages_module.LBFGSStage, "advance", interrupted)
        result = run(checkpoint=path, interval=4)
    assert result.reason == "interrupted"
    assert result.history.step.tolist() == [4, 5]
    assert same(run(checkpoint=path, interval=4), run(interval=4))


def test_a_second_ctrl_c_is_not_held_back(run, tmp_path, default_interrupt):
    path = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=path, on_report=interrupt_at(4, times=2))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert same(run(checkpoint=path), run())


def test_ctrl_c_is_as_before_after_the_run(run, default_interrupt):
    noted = []
    signal.signal(signal.SIGINT, lambda *_: noted.append(1))
    run()
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(Crash):
        run(on_report=crash_at(2))
    signal.raise_signal(signal.SIGINT)
    assert len(noted) == 2


def test_runs_in_a_thread(run):
    results = []
    thread = threading.Thread(target=lambda: results.append(run()))
    thread.start()
    thread.join()
    assert same(results[0], run())


# ---- progress bar ----------------------------------------------------------------------------------------------------


@pytest.fixture
def bars(monkeypatch):
    """Progress bars that are made: their arguments, and what they showed."""
    made = []

    class Bar(tqdm.tqdm):
        def __init__(self, **keywords):
            self.keywords, self.texts, self.steps = keywords, [], keywords.get("initial", 0)
            made.append(self)
            super().__init__(**keywords | {"disable": True})

        def update(self, n=1):
            self.steps += n

        def set_postfix_str(self, text="", refresh=True):
            self.texts.append(text)

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    return made


def test_progress_bar(run, bars, tmp_path):
    run("two stages", tested=True, progress=True)
    (bar,) = bars
    assert bar.keywords["total"] == bar.steps == 14
    # silent where nobody looks
    assert bar.keywords["disable"] is None
    assert len(bar.texts) == 8
    for part in ("loss 0.", ", energy ", " meV, force 0.", " eV/Å, virial ", ", test force 0."):
        assert part in bar.texts[-1]
    run(progress=False)
    assert bars[-1].keywords["disable"] is True
    path = tmp_path / "state"
    run(checkpoint=path, stages=[("lbfgs", 5)])
    run(checkpoint=path)
    assert bars[-1].keywords["initial"] == 5
    assert bars[-1].steps == 14


def test_nothing_is_printed_without_a_terminal(run, capfd):
    run(progress=True)
    assert capfd.readouterr() == ("", "")


def test_progress_shows_the_noise_floor(bars):
    teacher = shapes.make_model("small", species=("O", "H"), seed=2)
    frames = taught(teacher, shapes.make_frames(teacher, 4), noise=0.125)
    objective = shapes.make_objective(teacher, frames)
    result = fit(objective, stages=[("lbfgs", 2)], z=initial_parameters(teacher, 1), seed=1)
    assert ", noise 0.1250, chi² " in bars[0].texts[0]
    assert result.history["force_noise"].tolist() == pytest.approx([0.125])
