"""The three optimisers on the loss of tiny frames: what they take into each step, and that they can be stored."""

from dataclasses import replace

import numpy as np
import pytest
import training_shapes as shapes
import training_twin as twin
from test_training_snes import plain_update
from training_teacher import taught

from ase_nepcg.checkpoint import read_checkpoint, write_checkpoint
from ase_nepcg.training import stages as module
from ase_nepcg.training.stages import (
    SMOOTHING,
    STAGES,
    AdamStage,
    LBFGSStage,
    SnesStage,
    StageError,
    initial_parameters,
)

SETTINGS = {
    "lbfgs": {"steps": 40},
    "adam": {"steps": 40, "batch": 3},
    "snes": {"steps": 40, "batch": 3, "population": 8},
}


@pytest.fixture(scope="module")
def model():
    return shapes.make_model("small", species=("O", "H"))


@pytest.fixture(scope="module")
def frames(model):
    return shapes.make_frames(model, 8)


@pytest.fixture(scope="module")
def objective(model, frames):
    return shapes.make_objective(model, frames)


@pytest.fixture(scope="module")
def lesson(frames):
    """The same frames with what another model says about them."""
    teacher = shapes.make_model("small", species=("O", "H"), seed=2)
    return shapes.make_objective(teacher, taught(teacher, frames))


def make(name, objective, seed=5, **changes):
    z = initial_parameters(objective.model, seed)
    return STAGES[name](objective, z, **{"seed": seed} | SETTINGS[name] | changes)


def total(objective, z):
    return objective.evaluate(z)[0].sum()


class StandStill:
    """In place of :class:`Adam`: keeps the parameters and notes the gradients."""

    learning_rate = 0.0

    def __init__(self, z):
        self.z, self.count, self.gradients = z, 0, []

    def step(self, gradient):
        self.count += 1
        self.gradients.append(gradient)


def adam_at_rest(objective, epochs=1, z=None, **settings):
    """Gradients (steps, n) that Adam is given while the parameters stay, and the frames of each step."""
    stage = make("adam", objective, **settings)
    stage._adam = still = StandStill(stage.z if z is None else z)
    frames = []
    for _ in range(epochs * stage._per_epoch):
        frames.append(stage._frames())
        assert stage.advance()
    return np.array(still.gradients), frames


# ---- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STAGES)
def test_lowers_the_loss(lesson, name):
    objective, steps = lesson, 150 if name == "snes" else 40
    stage = make(name, objective, steps=steps, **({"learning_rate": 0.05} if name == "adam" else {}))
    assert stage.name == name
    before = total(objective, stage.z)
    for step in range(steps):
        assert stage.step == step
        assert stage.advance()
    assert stage.step == steps
    assert total(objective, stage.z) < 0.75 * before


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_resumes_with_the_same_bits(tmp_path, objective, name, steps):
    def follow(stage):
        """Parameters and what is told of each step, as bytes."""
        found = []
        for _ in range(5):
            stage.advance()
            found.append((stage.step, stage.z.tobytes(), stage.others))
            if name == "snes":
                found[-1] += (stage.mu.tobytes(), stage.sigma.tobytes(), stage.frames.tobytes())
        return found

    stage = make(name, objective)
    for _ in range(steps):
        stage.advance()
    header, arrays = stage.state()
    write_checkpoint(tmp_path / "s.npz", "test", header, arrays)
    expected = follow(stage)
    again = make(name, objective, state=read_checkpoint(tmp_path / "s.npz", "test"))
    assert again.step == steps
    assert follow(again) == expected


@pytest.mark.parametrize("name", STAGES)
def test_frozen_parameters_stay(objective, name):
    frozen = np.arange(objective.model.n_parameters) % 2 == 0
    stage = make(name, objective, frozen=frozen)
    start = stage.z.copy()
    for _ in range(4):
        stage.advance()
    assert np.array_equal(stage.z[frozen], start[frozen])
    moved = stage.z != start
    # the common bias changes nothing
    moved[objective.model.parameter_blocks()[0]["bias"]] = True
    assert moved[~frozen].all()


def test_random_start(model):
    z = initial_parameters(model, 3)
    assert z.shape == (model.n_parameters,)
    assert np.array_equal(z, initial_parameters(model, 3))
    assert not np.array_equal(z, initial_parameters(model, 4))
    wide = shapes.make_model("wide")
    start = initial_parameters(wide, 1)
    for name, part in wide.parameter_blocks()[0].items():
        if name == "bias":
            assert (start[part] == 0).all()
        elif name.startswith("c_"):
            assert 0.25 < start[part].std() < 0.35
        elif name.startswith("w0"):
            assert 0.8 < start[part].std() * np.sqrt(wide.n_descriptor) < 1.2
        else:
            assert 0.1 < start[part].std() < 1.0


# ---- L-BFGS ----------------------------------------------------------------------------------------------------------


def test_lbfgs_minimises_the_smoothed_loss(objective):
    stage = make("lbfgs", objective)
    values = [objective.loss_and_gradient(stage.z, SMOOTHING)[0]]
    for _ in range(10):
        assert stage.advance()
        values.append(objective.loss_and_gradient(stage.z, SMOOTHING)[0])
    assert (np.diff(values) < 0).all()
    assert stage._values == pytest.approx(values[1:], rel=1e-12)
    assert stage.frames is stage.mu is stage.sigma is None
    assert stage.others["evaluations"] >= 11


@pytest.mark.parametrize("resumed", [False, True])
def test_lbfgs_has_converged_when_the_loss_hardly_falls(lesson, monkeypatch, resumed):
    """By 20 % of the last value in 5 steps, here."""
    monkeypatch.setattr(module, "_WINDOW", 5)
    monkeypatch.setattr(module, "_TOLERANCE", 0.2)
    objective = lesson
    stage, values, more = make("lbfgs", objective), [], []
    while not more or more[-1]:
        if resumed:
            stage = make("lbfgs", objective, state=stage.state())
        more.append(stage.advance())
        values.append(stage._values[-1])
        assert len(values) < 40
    falls = [(a - b) / b for a, b in zip(values, values[5:], strict=False)]
    assert more == [True] * 5 + [fall >= 0.2 for fall in falls]
    assert len(more) > 6


def test_lbfgs_looks_at_a_whole_window(lesson, monkeypatch):
    monkeypatch.setattr(module, "_WINDOW", 5)
    monkeypatch.setattr(module, "_TOLERANCE", 1e9)
    stage = make("lbfgs", lesson)
    assert [stage.advance() for _ in range(6)] == [True] * 5 + [False]


# ---- Adam ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [2, 3, 4, 7, 8, 100])
def test_minibatches_cover_all_frames_in_every_epoch(objective, batch):
    _, frames = adam_at_rest(objective, epochs=3, batch=batch)
    per_epoch = len(frames) // 3
    assert per_epoch == -(-8 // batch)
    for epoch in range(3):
        parts = frames[epoch * per_epoch :][:per_epoch]
        sizes = [len(part) for part in parts]
        assert max(sizes) <= batch
        assert max(sizes) - min(sizes) <= 1
        assert sorted(np.concatenate(parts)) == list(range(8))


def test_minibatches_depend_on_seed_and_epoch_only(objective):
    def order(**settings):
        return [part.tolist() for part in adam_at_rest(objective, epochs=2, batch=2, **settings)[1]]

    first = order(seed=1)
    assert first[:4] != first[4:]
    assert order(seed=2) != first
    assert order(seed=1, z=np.full(objective.model.n_parameters, 0.1), steps=7) == first
    # a stage that is taken up within an epoch
    stage = make("adam", objective, batch=2, seed=1)
    for _ in range(3):
        stage.advance()
    again = make("adam", objective, batch=2, seed=1, state=stage.state())
    found = []
    for _ in range(5):
        found.append(again._frames().tolist())
        again.advance()
    assert found == first[3:]


def test_minibatches_have_4000_sites_if_not_said_otherwise(model):
    frames = [shapes.bare_frame(["O", "H"] * 400, np.zeros((800, 3)), pbc=True) for _ in range(12)]
    targets = shapes.make_targets(model, frames)

    class Counted:
        def __init__(self, chosen):
            self.targets = targets.select(np.arange(chosen))

        def __len__(self):
            return len(self.targets)

    start = np.zeros(3)
    assert len(AdamStage(Counted(12), start, seed=0, steps=5)._frames()) == 4  # three batches of at most five
    assert len(AdamStage(Counted(3), start, seed=0, steps=5)._frames()) == 3


def test_gradient_of_a_batch_with_all_frames_is_that_of_the_loss(objective):
    (gradient,), _ = adam_at_rest(objective, batch=8)
    _, expected = objective.loss_and_gradient(initial_parameters(objective.model, 5), SMOOTHING)
    np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-12)


def test_gradients_of_minibatches_are_right_on_average(model):
    # equal sizes; energies would need a larger batch, whose mean is that of all
    frames = shapes.make_frames(model, 8, sites=(5, 5), weights=False, virials=False)
    objective = shapes.make_objective(model, frames, {"lambda_e": 0.0})
    gradients, _ = adam_at_rest(objective, epochs=40, batch=2)
    _, expected = objective.loss_and_gradient(initial_parameters(model, 5), SMOOTHING)
    deviation = np.linalg.norm(gradients.mean(axis=0) - expected) / np.linalg.norm(expected)
    assert deviation < 0.01
    # one epoch is no more than that, single batches are
    assert np.linalg.norm(gradients[0] - expected) / np.linalg.norm(expected) > 0.1


def test_weight_of_a_minibatch_follows_the_errors_of_all_frames(objective):
    """Gradients of mean squares, with the weight that their running average gives them."""
    z = initial_parameters(objective.model, 5)
    gradients, frames = adam_at_rest(objective, epochs=2, batch=2)
    weights = np.array([1.0, 1.0, 0.1])
    average = (objective.evaluate(z)[0][:3] / weights) ** 2
    penalty = objective.penalty(z, SMOOTHING)[1]
    for gradient, chosen in zip(gradients, frames, strict=True):
        squares, expected = objective.data_gradient(z, chosen, weights / (2 * np.sqrt(average)))
        np.testing.assert_allclose(gradient, expected + penalty, rtol=1e-9, atol=1e-12)
        average = 0.9 ** (1 / 4) * average + (1 - 0.9 ** (1 / 4)) * squares


def test_warm_up_takes_an_epoch_and_no_more_than_a_tenth_of_the_steps(objective):
    rates = {}
    for steps in (20, 400):
        stage = make("adam", objective, batch=2, steps=steps, learning_rate=0.02)
        rates[steps] = []
        for _ in range(12):
            stage.advance()
            rates[steps].append(stage.others["learning_rate"])
    assert np.argmax(rates[20]) == 1  # the second step
    assert np.argmax(rates[400]) == 3  # the fourth batch
    assert max(rates[20]) == max(rates[400]) == 0.02


def test_single_frames_say_nothing_about_energies(model, frames):
    with pytest.raises(StageError, match=r"batch: expected at least 2 frames for Adam, got 1"):
        make("adam", shapes.make_objective(model, frames), batch=1)
    make("adam", shapes.make_objective(model, frames, {"lambda_e": 0.0}), batch=1)
    make("adam", shapes.make_objective(model, shapes.make_frames(model, 3, energies=False)), batch=1)
    make("adam", shapes.make_objective(model, frames[:1]))


@pytest.mark.parametrize("rate", [0.0, -0.01, np.nan, np.inf, "fast"])
def test_learning_rates_that_make_no_sense(objective, rate):
    with pytest.raises(StageError, match="learning_rate: expected a "):
        make("adam", objective, learning_rate=rate)


def test_terms_without_data_do_not_disturb_adam(model):
    frames = shapes.make_frames(model, 4, energies=False, virials=False)
    objective = shapes.make_objective(model, frames)
    stage = make("adam", objective, batch=2)
    before = total(objective, stage.z)
    for _ in range(40):
        stage.advance()
    assert np.isfinite(stage.z).all()
    assert total(objective, stage.z) < before


# ---- SNES ------------------------------------------------------------------------------------------------------------


def twin_losses(model, frames, parts, Z, generation):
    """(P, T + 1): what a generation is ranked by, from the slow loss. ``parts``: frames of the batches it sees."""
    rows = []
    for z in Z:
        found = [twin.loss(model.with_parameters(z), [frames[s] for s in part]) for part in parts]
        rows.append([l1 + l2 for l1, l2 in zip(found[0]["l1"], found[0]["l2"], strict=True)])
        if generation == 0:
            continue
        for t in range(len(model.species) + 1):
            for name, weight in (("energy", 1.0), ("force", 1.0), ("virial", 0.1)):
                rows[-1][t] += weight * np.sqrt(np.mean([f[name][t] ** 2 for f in found]))
    return np.array(rows)


@pytest.mark.parametrize("full", [False, True])
def test_snes_equals_its_twins(full):
    model = shapes.make_model("small", species=("O", "H"))
    frames = shapes.make_frames(model, 5, sites=(2, 3))
    objective = shapes.make_objective(model, frames)
    stage = SnesStage(objective, None, seed=3, steps=9, batch=3, population=4, full_batch=full)
    mu, sigma = stage.mu.copy(), stage.sigma.copy()
    assert (sigma == 0.1).all()
    energies = [twin.reference_energy(frame) or 0.0 for frame in frames]
    ranked = sorted(range(5), key=lambda s: energies[s])
    parts = [ranked[0::2], ranked[1::2]]
    for generation in range(3):
        Z = stage._snes.ask().copy()
        seen = parts if full else [parts[generation % 2]]
        losses = twin_losses(model, frames, seen, Z, generation)
        np.testing.assert_allclose(stage._losses(Z), losses, rtol=1e-9)
        mu, sigma, best = plain_update(mu, sigma, (Z - mu) / sigma, losses, objective.owners, 2)
        assert stage.advance()
        np.testing.assert_allclose(stage.mu, mu, rtol=0, atol=1e-13)
        np.testing.assert_allclose(stage.sigma, sigma, rtol=1e-13)
        assert np.array_equal(stage.z, Z[best])
        assert stage.others["sigma"] == np.median(stage.sigma)
        assert (stage.frames is None) if full else (stage.frames.tolist() == parts[generation % 2])
    assert stage.order.tolist() == [s for part in parts for s in part]


def test_first_generation_ranks_by_regularisation_only(objective, monkeypatch):
    stage = make("snes", objective)
    with monkeypatch.context() as patch:
        patch.setattr(objective, "losses", None)
        Z = stage._snes.ask().copy()
        stage.advance()
        assert np.array_equal(stage.z, Z[np.argmin(objective.regularisation(Z)[:, -1].sum(axis=1))])
        with pytest.raises(TypeError):
            stage.advance()
    assert stage.step == 1
    stage.advance()
    assert stage.step == 2


def test_a_polish_ranks_by_the_loss_from_the_first_generation_on(objective):
    stage = make("snes", objective, blind_start=False)
    Z = stage._snes.ask().copy()
    stage.advance()
    assert np.array_equal(stage.z, Z[np.argmin(objective.losses(Z)[0][:, -1].sum(axis=1))])


def test_one_batch_is_all_frames(objective):
    for batch in (None, 8, 1000):
        stage = make("snes", objective, batch=batch)
        stage.advance()
        assert stage.frames is None
        assert stage.order.tolist() == list(range(8))


def test_start_and_spread_of_snes(objective):
    z = initial_parameters(objective.model, 1)
    stage = make("snes", objective, sigma0=0.03)
    assert np.array_equal(stage.mu, initial_parameters(objective.model, 5))
    assert (stage.sigma == 0.03).all()
    sigma = np.linspace(0.01, 0.2, len(z))
    stage = make("snes", objective, mu=z, sigma=sigma)
    assert np.array_equal(stage.mu, z)
    assert np.array_equal(stage.sigma, sigma)
    uniform = SnesStage(objective, None, seed=2, steps=3)
    assert np.abs(uniform.mu).max() < 1
    assert uniform.mu.std() == pytest.approx(3**-0.5, rel=0.2)


def test_batches_follow_the_true_energies(model):
    """Not what remains of them without the repulsion at short distances."""
    model = replace(model, zbl=shapes.make_model("small", species=("O", "H"), zbl=shapes.ZBL).zbl)
    frames = shapes.make_frames(model, 6)
    objective = shapes.make_objective(model, frames)
    order = np.argsort(np.nan_to_num(objective.targets.energies), kind="stable")
    expected = np.argsort(np.nan_to_num(objective.given.energies), kind="stable")
    assert not np.array_equal(order, expected)
    stage = make("snes", objective, batch=2)
    assert stage.order.tolist() == [*expected[0::3], *expected[1::3], *expected[2::3]]


def test_lbfgs_ignores_settings_of_others(objective):
    a = LBFGSStage(objective, initial_parameters(objective.model, 1), seed=1, steps=9)
    b = LBFGSStage(objective, initial_parameters(objective.model, 1), seed=8, steps=7, population=4, batch=2)
    a.advance()
    b.advance()
    assert np.array_equal(a.z, b.z)
