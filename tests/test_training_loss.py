"""Terms of the loss and the errors that are reported, for given predictions, against loops and direct formulas."""

from dataclasses import replace

import numpy as np
import pytest
import training_shapes as shapes
import training_twin as twin

from ase_nepcg import NEPModel
from ase_nepcg.errors import NepCGError
from ase_nepcg.training.loss import (
    GPA,
    LossError,
    LossSettings,
    Predictions,
    Terms,
    noise_report,
    regularisation,
    rmse,
)
from ase_nepcg.training.targets import Targets

SPECIES = ("O", "H", "C")


def guess(targets, seed=0) -> Predictions:
    """Wrong in everything."""
    rng = np.random.default_rng(seed)
    n, s = len(targets.types), len(targets)
    return Predictions(rng.normal(-3, 0.3, s), rng.normal(0, 0.7, (n, 3)), rng.normal(0, 0.3, (s, 6)))


def as_lists(targets, predictions):
    """As the twin has them."""
    forces = [predictions.forces[targets.sites(s)] for s in range(len(targets))]
    return list(predictions.energies), forces, [list(virial) for virial in predictions.virials]


def force_squares(terms, forces):
    """Sums of each frame."""
    squares = terms.force_weights * (forces - terms.targets.forces) ** 2
    return np.array([squares[terms.targets.sites(s)].sum() for s in range(terms.n_frames)])


def squares_of(terms, predictions, frames=None):
    """(T + 1, 3)."""
    energies, forces, virials = predictions
    return terms.squares(energies[None], force_squares(terms, forces)[None], virials[None], frames)[0]


@pytest.fixture(scope="module")
def model():
    return NEPModel.random(SPECIES, seed=1)


@pytest.fixture(scope="module")
def case():
    """Frames of all kinds, their targets, and predictions."""
    frames = twin.random_frames(6, 13, SPECIES, errors=True)
    targets = Targets.from_frames(frames, SPECIES)
    return frames, targets, guess(targets)


# ---- against the twin ------------------------------------------------------------------------------------------------


def compare(model, frames, predictions, settings, chosen=None):
    """Terms, shift and penalties of all channels."""
    settings = LossSettings(**settings)
    targets = Targets.from_frames(frames, model.species)
    terms = Terms(targets, settings)
    root = np.sqrt(squares_of(terms, predictions, chosen))
    numbers = range(len(frames)) if chosen is None else chosen
    of_frames = [[values[s] for s in numbers] for values in as_lists(targets, predictions)]
    given = {name: getattr(settings, name) for name in twin.SETTINGS}
    expected = twin.loss(model, [frames[s] for s in numbers], given, of_frames)
    for term, name in enumerate(("energy", "force", "virial")):
        np.testing.assert_allclose(root[:, term], expected[name], rtol=1e-12, atol=1e-15, err_msg=name)
    shift = terms.shifts(predictions.energies[None], np.array(numbers))
    assert shift[0] == pytest.approx(expected["shift"], rel=1e-12, abs=1e-15)
    complete = settings.completed(model)
    penalties = regularisation(
        model.parameters()[None], model.parameter_blocks()[1], model.n_types, complete.lambda_1, complete.lambda_2
    )[0]
    np.testing.assert_allclose(penalties, np.transpose([expected["l1"], expected["l2"]]), rtol=1e-12)
    total = root @ terms.weights + penalties.sum(axis=1)
    np.testing.assert_allclose(total, expected["total"], rtol=1e-12)
    return expected


@pytest.mark.parametrize(
    "settings",
    [
        {},
        shapes.WEIGHTED | {"type_weight": (0.5, 2.0, 1.5)},
        {"lambda_e": 0.0, "lambda_1": 0.0, "lambda_2": 0.0},
        {"lambda_shear": 0.0},
        {"force_delta": 0.2},
        {"type_weight": (0.0, 0.0, 3.0)},
    ],
)
@pytest.mark.parametrize("chosen", [None, [2, 5, 8], [0, 1, 3, 4, 11], [12]])
def test_terms_shift_and_penalties_of_all_channels(model, case, settings, chosen):
    frames, _, predictions = case
    compare(model, frames, predictions, settings, chosen)


@pytest.mark.parametrize(
    "what", [{"energies": False}, {"virials": False}, {"weights": False}, {"energies": False, "virials": False}]
)
def test_frames_that_lack_something(model, what):
    frames = twin.random_frames(2, 6, SPECIES, **what)
    predictions = guess(Targets.from_frames(frames, SPECIES))
    expected = compare(model, frames, predictions, shapes.WEIGHTED)
    assert (np.array(expected["energy"]) == 0).all() == ("energies" in what)
    assert (np.array(expected["virial"]) == 0).all() == ("virials" in what)
    assert (expected["shift"] == 0) == ("energies" in what)


def test_energies_without_weight_have_no_shift(model):
    frames = twin.random_frames(2, 6, SPECIES)
    for atoms in frames:
        atoms.info["energy_weight"] = 0.0
    expected = compare(model, frames, guess(Targets.from_frames(frames, SPECIES)), {})
    assert expected["shift"] == 0
    assert expected["energy"] == [0.0] * 4


def test_a_type_without_frames_has_penalties_only(model):
    frames = twin.random_frames(2, 4, ("O", "C"))
    targets = Targets.from_frames(frames, SPECIES)
    expected = compare(model, frames, guess(targets), {})
    assert expected["force"][1] == 0.0
    assert expected["force"][0] > 0


@pytest.mark.parametrize("version", [3, 4, 5])
def test_penalties(version):
    model = NEPModel.random(SPECIES, seed=version, version=version)
    rng = np.random.default_rng(1)
    owners = model.parameter_blocks()[1]
    z = rng.normal(size=(3, model.n_parameters))
    found = regularisation(z, owners, 3, 0.7, 0.3)
    settings = twin.SETTINGS | {"lambda_1": 0.7, "lambda_2": 0.3}
    for p in range(3):
        mine = model.with_parameters(z[p])
        expected = [twin.regularisation(mine, t, settings) for t in range(4)]
        np.testing.assert_allclose(found[p], expected, rtol=1e-12)


@pytest.mark.parametrize("version", [3, 4, 5])
def test_default_penalties(version):
    model = NEPModel.random(SPECIES, seed=1, version=version)
    expected = np.sqrt(1e-6 * model.n_parameters / (1 if version == 3 else 3))
    found = LossSettings().completed(model)
    assert found.lambda_1 == found.lambda_2 == pytest.approx(expected, rel=1e-14)
    kept = LossSettings(lambda_1=0.0, lambda_e=3.0, type_weight=(1, 2, 3)).completed(model)
    assert kept == LossSettings(lambda_1=0.0, lambda_2=found.lambda_2, lambda_e=3.0, type_weight=(1, 2, 3))


def test_several_parameter_vectors_at_once(case):
    _, targets, first = case
    second = guess(targets, seed=1)
    terms = Terms(targets, LossSettings(**shapes.WEIGHTED))
    energies, virials = (np.stack([first[k], second[k]]) for k in (0, 2))
    forces = np.stack([force_squares(terms, p.forces) for p in (first, second)])
    together = terms.squares(energies, forces, virials)
    for p, predictions in enumerate((first, second)):
        # to the last bit
        assert np.array_equal(together[p], squares_of(terms, predictions))
    shifts = terms.shifts(energies, np.arange(len(targets)))
    assert shifts[0] != shifts[1]


# ---- error bars ------------------------------------------------------------------------------------------------------


def from_errors(sigma):
    """<sigma^2> / sigma^2 with the harmonic mean; none counts as less than 0.2 of the rms."""
    sigma = np.maximum(sigma, 0.2 * np.sqrt(np.mean(sigma**2)))
    return 1 / sigma**2 / np.mean(1 / sigma**2)


@pytest.mark.parametrize("chosen", [None, [1, 2, 7]])
def test_weights_from_error_bars(case, chosen):
    _, targets, predictions = case
    has = targets.has_virial
    # two that are far too good
    force_errors, virial_errors = targets.force_errors.copy(), targets.virial_errors.copy()
    force_errors[3, 1] = 1e-9
    virial_errors[np.flatnonzero(has)[1], 4] = 1e-9
    targets = replace(targets, force_errors=force_errors, virial_errors=virial_errors)
    settings = LossSettings(weighting="errorbars", lambda_shear=0.5, force_delta=0.3, type_weight=(1.0, 2.0, 0.5))
    found = squares_of(Terms(targets, settings), predictions, chosen)

    frames = np.arange(len(targets)) if chosen is None else np.array(chosen)
    sites = np.concatenate([np.arange(targets.n_sites.sum())[targets.sites(s)] for s in frames])
    w2 = targets.weights**2
    rho = 0.3 / (0.3 + np.linalg.norm(targets.forces, axis=1))
    force = np.repeat(w2, targets.n_sites)[:, None] * rho[:, None] * from_errors(force_errors)
    force *= np.array([1.0, 2.0, 0.5])[targets.types, None] ** 2 * (predictions.forces - targets.forces) ** 2
    assert found[-1, 1] == pytest.approx(force[sites].sum() / (3 * len(sites)), rel=1e-12)

    virial = np.zeros((len(targets), 6))
    error = predictions.virials[has] - targets.virials[has]
    virial[has] = w2[has, None] * from_errors(virial_errors[has]) * [1, 1, 1, 0.25, 0.25, 0.25] * error**2
    assert found[-1, 2] == pytest.approx(virial[frames].sum() / (6 * has[frames].sum()), rel=1e-12)
    # energies have none
    plain = squares_of(Terms(targets, LossSettings()), predictions, chosen)
    assert found[-1, 0] == plain[-1, 0]


def test_equal_error_bars_change_nothing(case):
    _, targets, predictions = case
    targets = replace(
        targets,
        force_errors=np.full_like(targets.force_errors, 0.3),
        virial_errors=np.where(targets.has_virial[:, None], 0.2, np.nan),
    )
    found = [squares_of(Terms(targets, LossSettings(weighting=how)), predictions) for how in (None, "errorbars")]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-13)


def test_error_bars_that_are_missing(case):
    _, targets, _ = case
    settings = LossSettings(weighting="errorbars")
    with pytest.raises(LossError, match=r"no error bars \(array force_errors\)"):
        Terms(replace(targets, force_errors=None), settings)
    for wrong in (np.nan, 0.0):
        errors = targets.force_errors.copy()
        errors[5, 1:] = wrong
        with pytest.raises(LossError, match=f"positive force_errors .* 2 of {errors.size} numbers"):
            Terms(replace(targets, force_errors=errors), settings)
    n = 6 * targets.has_virial.sum()
    with pytest.raises(LossError, match=f"positive virial_error .* {n} of {n} numbers"):
        Terms(replace(targets, virial_errors=None), settings)
    # no virials, no errors of them
    without = replace(targets, virials=np.full_like(targets.virials, np.nan), virial_errors=None)
    assert (Terms(without, settings).virial_weights == 0).all()


# ---- derivatives -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [None, [0, 1, 3, 4, 5]])
@pytest.mark.parametrize("factors", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.3, 0.8, 2.0)])
def test_residuals_are_derivatives_of_the_squares(case, factors, chosen):
    _, targets, predictions = case
    settings = LossSettings(**shapes.WEIGHTED, type_weight=(0.5, 2.0, 1.5), weighting="errorbars")
    terms = Terms(targets, settings)
    frames = np.arange(len(targets)) if chosen is None else np.array(chosen)
    assert len(set(targets.energy_weights[frames])) > 2
    a, move, eta = terms.residuals(*predictions, np.array(factors), frames)

    def slope(term, index, step):
        values = []
        for sign in (1, -1):
            moved = [array.copy() for array in predictions]
            moved[term][index] += sign * step
            values.append(squares_of(terms, Predictions(*moved), frames)[-1] @ factors)
        return (values[0] - values[1]) / 2

    n = targets.n_sites
    # the loss is quadratic: no error but rounding
    for s in range(len(targets)):
        assert a[s] == pytest.approx(slope(0, s, 1 / n[s]), abs=1e-12)
        for c in range(6):
            # both halves of the tensor
            both = 1 if c < 3 else 2
            assert both * eta[s, c] == pytest.approx(slope(2, (s, c), 1 / n[s]), abs=1e-12)
    for i in range(0, len(targets.types), 5):
        for c in range(3):
            assert move[i, c] == pytest.approx(slope(1, (i, c), 1.0), abs=1e-12)
    outside = np.setdiff1d(np.arange(len(targets)), frames)
    assert (a[outside] == 0).all()
    assert (eta[outside] == 0).all()
    assert all((move[targets.sites(s)] == 0).all() for s in outside)


# ---- reports ---------------------------------------------------------------------------------------------------------


def test_reported_errors_as_the_twin_has_them(case):
    frames, targets, predictions = case
    for shift in (None, 0.0, 0.37):
        expected = twin.rmse(frames, as_lists(targets, predictions), shift or 0.0)
        found = rmse(targets, predictions, shift)
        assert found == pytest.approx(expected, rel=1e-12)
        assert {type(value) for value in found.values()} == {float}


def test_reported_errors_are_not_weighted_but_for_energies(case):
    _, targets, predictions = case
    energies = np.linspace(-3, -2, len(targets))
    weights = np.resize([0.0, 1.0, 0.5, 0.0], len(targets))
    targets = replace(targets, energies=energies, energy_weights=weights, weights=7 * targets.weights)
    found = rmse(targets, predictions, 0.1)
    # the mean is over all frames, those without weight too
    square = (weights * (predictions.energies - energies - 0.1) ** 2).sum() / len(targets)
    assert found["energy"] == pytest.approx(np.sqrt(square), rel=1e-13)
    assert found["force"] == pytest.approx(np.sqrt(np.mean((predictions.forces - targets.forces) ** 2)), rel=1e-13)
    has = targets.has_virial
    error = (predictions.virials - targets.virials)[has]
    assert found["virial"] == pytest.approx(np.sqrt((error**2).sum() / (6 * has.sum())), rel=1e-13)
    stress = error * targets.n_sites[has, None] / targets.volumes[has, None] * 160.2177
    assert found["stress"] == pytest.approx(np.sqrt(np.mean(stress**2)), rel=1e-13)


def test_reported_errors_without_data():
    frames = twin.random_frames(1, 3, ("O",), energies=False, virials=False)
    targets = Targets.from_frames(frames, ("O",))
    predictions = guess(targets)
    found = rmse(targets, predictions, 5.0)
    assert found["energy"] == found["virial"] == found["stress"] == 0.0
    assert found["force"] > 0
    assert rmse(targets, predictions._replace(forces=targets.forces))["force"] == 0.0


def test_frames_without_weight_may_have_any_energy(case):
    _, targets, predictions = case
    expected = rmse(targets, predictions, 0.2)
    energies = np.where(targets.energy_weights > 0, targets.energies, np.nan)
    assert rmse(replace(targets, energies=energies), predictions, 0.2) == expected


def test_noise_report(case):
    _, targets, predictions = case
    sigma = targets.force_errors.copy()
    sigma[2:9] = np.nan
    sigma[11, 1] = 0.0
    virial_sigma = targets.virial_errors.copy()
    frame = np.flatnonzero(targets.has_virial)[0]
    virial_sigma[frame, 2:4] = 0.0
    # an error bar of a virial that is not there
    virial_sigma[~targets.has_virial] = 0.1
    targets = replace(targets, force_errors=sigma, virial_errors=virial_sigma)
    found = noise_report(targets, predictions)
    errors, sigmas = [], []
    for i, row in enumerate(sigma):
        for c, value in enumerate(row):
            if value > 0:
                errors.append(predictions.forces[i, c] - targets.forces[i, c])
                sigmas.append(value)
    errors, sigmas = np.array(errors), np.array(sigmas)
    assert found["force_noise"] == pytest.approx(np.sqrt(np.mean(sigmas**2)), rel=1e-13)
    assert found["force_chi2"] == pytest.approx(np.mean(errors**2 / sigmas**2), rel=1e-13)
    errors, sigmas, stresses = [], [], []
    for s in np.flatnonzero(targets.has_virial):
        for c, value in enumerate(virial_sigma[s]):
            if value > 0:
                errors.append(predictions.virials[s, c] - targets.virials[s, c])
                sigmas.append(value)
                stresses.append(value * targets.n_sites[s] / targets.volumes[s] * GPA)
    errors, sigmas = np.array(errors), np.array(sigmas)
    assert len(errors) == 6 * targets.has_virial.sum() - 2
    assert found["virial_noise"] == pytest.approx(np.sqrt(np.mean(sigmas**2)), rel=1e-13)
    assert found["stress_noise"] == pytest.approx(np.sqrt(np.mean(np.square(stresses))), rel=1e-13)
    assert found["virial_chi2"] == pytest.approx(np.mean(errors**2 / sigmas**2), rel=1e-13)
    assert set(found) == {"force_noise", "force_chi2", "virial_noise", "stress_noise", "virial_chi2"}


def test_perfect_predictions_with_honest_error_bars_have_a_chi2_of_one():
    rng = np.random.default_rng(2)
    frames = twin.random_frames(3, 20, ("O",), errors=True)
    targets = Targets.from_frames(frames, ("O",))
    forces = targets.forces + rng.normal(size=targets.forces.shape) * targets.force_errors
    virials = targets.virials + rng.normal(size=(20, 6)) * targets.virial_errors
    found = noise_report(targets, Predictions(targets.energies, forces, virials))
    assert found["force_chi2"] == pytest.approx(1, abs=5 * np.sqrt(2 / forces.size))
    assert found["virial_chi2"] == pytest.approx(1, abs=5 * np.sqrt(2 / (6 * targets.has_virial.sum())))


def test_no_noise_report_without_error_bars(case):
    _, targets, predictions = case
    assert noise_report(replace(targets, force_errors=None, virial_errors=None), predictions) == {}
    zeros = replace(targets, force_errors=np.zeros_like(targets.forces), virial_errors=None)
    assert noise_report(zeros, predictions) == {}
    assert set(noise_report(replace(targets, force_errors=None), predictions)) == {
        "virial_noise",
        "stress_noise",
        "virial_chi2",
    }


# ---- settings that make no sense -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["lambda_e", "lambda_f", "lambda_v", "lambda_1", "lambda_2", "lambda_shear", "force_delta"]
)
@pytest.mark.parametrize("value", [-1e-9, np.nan, np.inf, "1", True, [1.0]])
def test_bad_factors(name, value):
    with pytest.raises(LossError, match=f"^{name}: expected a number >= 0, got "):
        LossSettings(**{name: value})


@pytest.mark.parametrize("name", ["lambda_e", "lambda_f", "lambda_v", "lambda_shear", "force_delta"])
def test_only_penalties_have_defaults_that_depend_on_the_model(name):
    with pytest.raises(LossError, match=f"^{name}: expected a number >= 0, got None"):
        LossSettings(**{name: None})


@pytest.mark.parametrize(
    "value", [(1.0, -1.0), (1.0, np.nan), (0.0, 0.0), (), 1.0, ((1.0,), (2.0,)), ("a", "b"), ((1.0,), 2.0), (None, 1)]
)
def test_bad_weights_of_types(value):
    with pytest.raises(LossError, match=r"^type_weight: expected numbers >= 0, one per species"):
        LossSettings(type_weight=value)


def test_number_of_weights_of_types(model):
    with pytest.raises(LossError, match="type_weight: expected 3 numbers, one per species, got 2"):
        LossSettings(type_weight=(1.0, 2.0)).completed(model)


@pytest.mark.parametrize("value", ["sigma", "", 1, True])
def test_unknown_weighting(value):
    with pytest.raises(LossError, match="weighting: expected None or 'errorbars', got"):
        LossSettings(weighting=value)


def test_errors_are_those_of_the_package():
    assert issubclass(LossError, NepCGError)
    assert issubclass(LossError, ValueError)
