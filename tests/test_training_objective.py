"""The loss from compiled kernels against its slow twin, its gradient against differences, and itself in other ways."""

from dataclasses import replace

import numpy as np
import pytest
import training_shapes as shapes
import training_twin as twin
from ase.build import bulk
from training_shapes import WEIGHTED

from ase_nepcg import NEPModel, read_dataset, reference
from ase_nepcg.dataset import FrameCalculator
from ase_nepcg.errors import ModelError
from ase_nepcg.model import ZBL
from ase_nepcg.training.loss import LossError, LossSettings, Predictions, rmse
from ase_nepcg.training.objective import Objective, ScalerError, descriptor_names, descriptor_scaler
from ase_nepcg.training.targets import TargetError, Targets

ANGULAR_BEYOND = {"O": (3.0, 4.0), "H": (2.5, 4.5), "C": (5.0, 2.5)}
OF_TYPES = {"type_weight": (0.5, 2.0, 1.5)}
# name -> shape, changes of the model, settings of the loss, what the frames have
CASES = {
    "small": ("small", {}, {}, {}),
    "small, zbl": ("small", {"zbl": shapes.ZBL}, {"force_delta": 0.3}, {}),
    "full": ("full", {}, WEIGHTED | OF_TYPES, {}),
    "full, version 3": ("full", {"version": 3}, WEIGHTED | OF_TYPES, {}),
    "full, version 5": ("full", {"version": 5}, {"lambda_v": 2.0}, {}),
    "full, angular cutoff beyond": ("full", {"cutoff": ANGULAR_BEYOND}, {"lambda_v": 2.0}, {}),
    "full, without energies": ("full", {}, {}, {"energies": False}),
    "full, without virials": ("full", {}, {}, {"virials": False}),
    "full, virials only": ("full", {}, {"lambda_e": 0, "lambda_f": 0, "lambda_v": 1, "lambda_shear": 5}, {}),
    "thermal": ("thermal", {}, WEIGHTED, {}),
    "thermal, version 3": ("thermal", {"version": 3}, {}, {"weights": False}),
    "thermal, zbl": ("thermal", {"zbl": shapes.ZBL}, WEIGHTED, {}),
    "wide": ("wide", {}, {"lambda_v": 2.0}, {}),
}
# error bars, which the twin does not know
WITH_ERRORS = {
    "full, error bars": ("full", {}, WEIGHTED | OF_TYPES | {"weighting": "errorbars"}, {"errors": True}),
    "thermal, zbl, error bars": (
        "thermal",
        {"zbl": shapes.ZBL},
        {"weighting": "errorbars", "force_delta": 0.3},
        {"errors": True},
    ),
}


def build(name, n_frames=7, **keywords):
    """Model, frames and objective of a case."""
    shape, changes, settings, kinds = (CASES | WITH_ERRORS)[name]
    model = shapes.make_model(shape, **changes)
    frames = shapes.make_frames(model, n_frames, sites=(3, 5), **kinds)
    return model, frames, shapes.make_objective(model, frames, settings, **keywords)


def some_vectors(model, n=3, seed=2):
    rng = np.random.default_rng(seed)
    z = model.parameters()
    return np.stack([z, *(z + rng.normal(0, 0.1, (n - 1, len(z))))])


def assert_close(found: Predictions, expected: Predictions, tolerance=1e-11):
    for name in Predictions._fields:
        a, b = getattr(found, name), getattr(expected, name)
        scale = max(1.0, np.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=name)


def twin_predictions(model, frames) -> Predictions:
    energies, forces, virials = twin.predict(model, frames)
    return Predictions(np.array(energies), np.concatenate(forces), np.array(virials))


# ---- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_predictions_and_all_terms_in_all_channels(name):
    model, frames, objective = build(name, 6)
    # not the parameters that the model has
    Z = some_vectors(model)[1:]
    predicted = twin.predict(model.with_parameters(Z[0]), frames)
    energies, forces, virials = predicted
    expected = Predictions(np.array(energies), np.concatenate(forces), np.array(virials))
    assert_close(objective.predict(Z[0]), expected)

    settings = {key: getattr(objective.settings, key) for key in twin.SETTINGS}
    weights = [*objective.terms.weights, 1.0, 1.0]
    for chosen in (None, [0, 3, 4], [5]):
        numbers = range(6) if chosen is None else chosen
        losses, shifts = objective.losses(Z, chosen)
        assert losses.shape == (2, model.n_types + 1, 5)
        some, of_frames = [frames[s] for s in numbers], [[values[s] for s in numbers] for values in predicted]
        slow = twin.loss(model.with_parameters(Z[0]), some, settings, of_frames)
        for term, key in enumerate(("energy", "force", "virial", "l1", "l2")):
            of_channels = weights[term] * np.array(slow[key])
            np.testing.assert_allclose(losses[0, :, term], of_channels, rtol=1e-10, atol=1e-13, err_msg=key)
        np.testing.assert_allclose(losses[0].sum(axis=1), slow["total"], rtol=1e-10)
        assert shifts[0] == pytest.approx(slow["shift"], rel=1e-10, abs=1e-13)


def test_a_type_that_no_frame_has():
    model = shapes.make_model("full")
    frames = twin.random_frames(1, 4, ("O", "C"))
    losses, _ = shapes.make_objective(model, frames).losses(model.parameters()[None])
    np.testing.assert_allclose(losses[0].sum(axis=1), twin.loss(model, frames)["total"], rtol=1e-10)
    assert (losses[0, 1, :3] == 0).all()


def test_energies_of_weight_zero_say_nothing():
    model = shapes.make_model("full")
    frames = shapes.make_frames(model, 5)
    for atoms in frames:
        atoms.info["energy_weight"] = 0.0
    objective = shapes.make_objective(model, frames)
    losses, shifts = objective.losses(some_vectors(model))
    assert (losses[:, :, 0] == 0).all()
    assert (shifts == 0).all()


@pytest.mark.parametrize("name", ["full", "thermal, zbl"])
def test_repulsion_and_small_forces_and_error_bars(name):
    """Error bars by the formula of the loss."""
    model, frames, _ = build(name)
    rng = np.random.default_rng(1)
    for atoms in frames:
        atoms.set_array("force_errors", rng.uniform(0.05, 0.2, (len(atoms), 3)))
        if twin.reference_virial(atoms) is not None:
            error = rng.uniform(0.02, 0.1, (3, 3)) * len(atoms)
            atoms.info["virial_error"] = error + error.T
    settings = {"weighting": "errorbars", "force_delta": 0.5}
    objective = shapes.make_objective(model, frames, settings)
    chosen = [0, 1, 3, 4, 6]
    found = objective.losses(model.parameters()[None], chosen)[0][0, -1] / [*objective.terms.weights, 1, 1]

    def weights(sigma):
        inverse = 1 / np.maximum(sigma, 0.2 * np.sqrt(np.mean(sigma**2))) ** 2
        return inverse / inverse.mean()

    t, predicted = objective.given, twin_predictions(model, frames)
    has = t.has_virial
    force = weights(t.force_errors) * (predicted.forces - t.forces) ** 2
    force *= 0.5 / (0.5 + np.linalg.norm(t.forces, axis=1))[:, None]
    of_frames = t.weights**2 * [force[t.sites(s)].sum() for s in range(len(t))]
    expected = np.sqrt(of_frames[chosen].sum() / (3 * t.n_sites[chosen].sum()))
    assert found[1] == pytest.approx(expected, rel=1e-10)
    of_frames = np.zeros(len(t))
    squares = weights(t.virial_errors[has]) * (predicted.virials - t.virials)[has] ** 2
    of_frames[has] = t.weights[has] ** 2 * squares.sum(axis=1)
    assert found[2] == pytest.approx(np.sqrt(of_frames[chosen].sum() / (6 * has[chosen].sum())), rel=1e-10)


def test_evaluate_says_the_same_as_losses_and_predict():
    model, _, objective = build("thermal, zbl")
    z = model.parameters()
    for chosen in (None, [1, 4, 5]):
        terms, shift, predictions = objective.evaluate(z, chosen)
        losses, shifts = objective.losses(z[None], chosen)
        np.testing.assert_allclose(terms, losses[0, -1], rtol=1e-13)
        assert shift == pytest.approx(shifts[0], rel=1e-13)
        for a, b in zip(predictions, objective.predict(z, chosen), strict=True):
            assert np.array_equal(a, b)


def test_frames_may_be_a_mask_and_have_any_order():
    model, _, objective = build("small")
    z = model.parameters()
    mask = np.array([True, False, False, True, True, False, False])
    expected, _ = objective.losses(z[None], [0, 3, 4])
    assert np.array_equal(objective.losses(z[None], mask)[0], expected)
    np.testing.assert_allclose(objective.losses(z[None], [4, 0, -4])[0], expected, rtol=1e-13)
    a, b = (objective.data_gradient(z, chosen)[1] for chosen in ([0, 3, 4], mask))
    assert np.array_equal(a, b)
    for wrong in ([7], [-8], [0.5]):
        with pytest.raises(IndexError):
            objective.losses(z[None], wrong)


# ---- predictions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small", "full", "full, angular cutoff beyond", "thermal, zbl", "wide"])
def test_neighbourhoods_out_of_the_ordinary(name):
    """Thin cells with many images, open directions, sites without neighbours: predictions and gradient."""
    model, _, _ = build(name, 1)
    frames = shapes.odd_frames(model.species)
    if model.zbl is not None:
        # images nearer than the atoms of any molecule are no test of the rest
        frames = [frames[s] for s in (0, 1, 4)]
    objective = shapes.make_objective(model, frames)
    assert_close(objective.predict(model.parameters()), twin_predictions(model, frames))
    check_gradient(objective, model, most=4)


def test_a_lonely_site():
    model = shapes.make_model("small")
    objective = shapes.make_objective(model, [shapes.bare_frame("O", [[0, 0, 0]], virial=np.eye(3))])
    found = objective.predict(model.parameters())
    assert found.energies[0] == pytest.approx(model.w1[0] @ np.tanh(-model.b0[0]) - model.bias, rel=1e-13)
    assert (found.forces == 0).all()
    assert (found.virials == 0).all()
    _, gradient = objective.data_gradient(model.parameters())
    assert np.array_equal(gradient, np.zeros(model.n_parameters))


def test_predictions_depend_on_the_temperature_of_the_frame():
    model, frames, objective = build("thermal", 3)
    before = objective.predict(model.parameters())
    frames[1].info["temperature"] += 50
    after = shapes.make_objective(model, frames).predict(model.parameters())
    assert (before.energies == after.energies).tolist() == [True, False, True]


# ---- the gradient ----------------------------------------------------------------------------------------------------


def differences(value, z, indices, h=5e-4):
    """Derivatives by ``indices`` from values of several vectors ``value(Z)``, error h^4."""
    Z = np.repeat(z[None], 4 * len(indices), axis=0)
    for row, index in enumerate(indices):
        Z[4 * row : 4 * row + 4, index] += h * np.array([-2, -1, 1, 2])
    v = value(Z).reshape(-1, 4)
    return (v[:, 0] - 8 * v[:, 1] + 8 * v[:, 2] - v[:, 3]) / (12 * h)


def compare_blocks(model, z, gradient, value, most, tolerance=1e-6):
    """Errors of the gradient of every block of parameters relative to its largest component."""
    rng = np.random.default_rng(0)
    assert gradient.shape == z.shape
    for name, part in model.parameter_blocks()[0].items():
        indices = np.arange(part.start, part.stop)
        if len(indices) > most:
            indices = np.sort(rng.choice(indices, most, replace=False))
        expected = differences(value, z, indices)
        scale = np.abs(gradient[part]).max()
        error = np.abs(gradient[indices] - expected).max()
        assert error <= max(tolerance * scale, 1e-11 * np.abs(gradient).max(), 1e-20), f"{name}: {error:g} of {scale:g}"


def check_gradient(objective, model, most=20):
    # none so near to zero that a difference crosses the kink of L1
    z = model.parameters()
    z += 0.01 * np.sign(z)
    value, gradient = objective.loss_and_gradient(z)
    assert np.isfinite(gradient).all()
    losses, _ = objective.losses(z[None])
    assert value == pytest.approx(losses[0, -1].sum(), rel=1e-13)
    compare_blocks(model, z, gradient, lambda Z: objective.losses(Z)[0][:, -1].sum(axis=1), most)
    return gradient


@pytest.mark.parametrize("name", CASES | WITH_ERRORS)
def test_gradient_of_every_block(name):
    model, _, objective = build(name)
    gradient = check_gradient(objective, model)
    blocks, _ = model.parameter_blocks()
    # the shift takes up the common bias
    assert abs(gradient[blocks.pop("bias")]).max() < 1e-12
    for block, part in blocks.items():
        assert np.abs(gradient[part]).max() > 1e-5, block


@pytest.mark.parametrize("name", ["full", "thermal, zbl"])
def test_values_of_loss_and_gradient_itself(name):
    """Along random directions, with the very function that optimisers call."""
    model, _, objective = build(name)
    z, rng = model.parameters(), np.random.default_rng(5)
    for smoothing in (0.0, 0.05):
        _, gradient = objective.loss_and_gradient(z, smoothing)
        direction = rng.normal(size=len(z))
        direction /= np.linalg.norm(direction)
        h = 1e-3
        v = [objective.loss_and_gradient(z + k * h * direction, smoothing)[0] for k in (-2, -1, 1, 2)]
        slope = (v[0] - 8 * v[1] + 8 * v[2] - v[3]) / (12 * h)
        assert gradient @ direction == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("chosen", [[0, 2, 3, 4], [1], None])
@pytest.mark.parametrize("factors", [(0.3, 0.7, 2.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)])
@pytest.mark.parametrize("name", ["full", "thermal, zbl"])
def test_gradient_of_mean_squares_of_a_minibatch(name, factors, chosen):
    model, _, objective = build(name)
    z = model.parameters()
    weights = objective.terms.weights

    def squares(Z):
        return (objective.losses(Z, chosen)[0][:, -1, :3] / weights) ** 2

    found, gradient = objective.data_gradient(z, chosen, np.array(factors))
    np.testing.assert_allclose(found, squares(z[None])[0], rtol=1e-12, atol=1e-25)
    compare_blocks(model, z, gradient, lambda Z: squares(Z) @ factors, most=6)


def test_gradients_of_minibatches_add_up():
    """Of forces, whose squares are means over sites."""
    model, _, objective = build("full")
    z, n = model.parameters(), objective.targets.n_sites
    whole = objective.data_gradient(z, None, np.array([0.0, 1.0, 0.0]))[1]
    parts = [objective.data_gradient(z, [s], np.array([0.0, 1.0, 0.0]))[1] for s in range(len(n))]
    np.testing.assert_allclose((n / n.sum()) @ parts, whole, rtol=0, atol=1e-13 * np.abs(whole).max())


@pytest.mark.parametrize("term", ["energies", "forces", "virials", "all"])
def test_a_term_that_is_zero_has_no_gradient(term):
    model = shapes.make_model("full")
    targets = shapes.make_targets(model, shapes.make_frames(model, 1))
    settings = LossSettings(lambda_1=0.0, lambda_2=0.0)
    z = model.parameters()
    perfect = Objective(model, targets, settings, threads=1).predict(z)
    # the error of a single energy is its shift: always zero
    known = {name: getattr(perfect, name) for name in ("forces", "virials") if term in (name, "all")}
    objective = Objective(model, replace(targets, **known), settings, threads=1)
    squares, gradient = objective.data_gradient(z)
    assert (squares == 0).tolist() == [True, "forces" in known, "virials" in known]
    assert np.isfinite(gradient).all()
    assert (gradient == 0).all() == (term == "all")
    value, same = objective.loss_and_gradient(z)
    assert value == pytest.approx(np.sqrt(squares) @ [1, 1, 0.1], rel=1e-14)
    assert np.array_equal(same, gradient)


@pytest.mark.parametrize("version", [3, 4, 5])
@pytest.mark.parametrize("smoothing", [0.0, 0.02])
def test_penalty_and_its_gradient(version, smoothing):
    model = shapes.make_model("full", version=version)
    objective = shapes.make_objective(model, shapes.make_frames(model, 2), {"lambda_1": 0.7, "lambda_2": 0.4})
    z = model.parameters()
    value, gradient = objective.penalty(z, smoothing)
    size = np.sqrt(z**2 + smoothing**2) - smoothing
    rest = np.ones(len(z), bool)
    rest[model.parameter_blocks()[0]["bias"]] = False
    expected = 0.7 * size[rest].sum() / len(z) + 0.4 * np.sqrt((z[rest] ** 2).sum() / len(z))
    assert value == pytest.approx(expected, rel=1e-13)
    if smoothing == 0:
        assert value == pytest.approx(objective.regularisation(z[None])[0, -1].sum(), rel=1e-13)
    assert gradient[~rest] == 0
    h = 1e-6 * np.maximum(np.abs(z), 1e-3)
    for k in range(0, len(z), 7):
        up, down = z.copy(), z.copy()
        up[k] += h[k]
        down[k] -= h[k]
        slope = (objective.penalty(up, smoothing)[0] - objective.penalty(down, smoothing)[0]) / (up[k] - down[k])
        assert gradient[k] == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_penalty_where_it_has_a_kink():
    model = shapes.make_model("small")
    objective = shapes.make_objective(model, shapes.make_frames(model, 2))
    zeros = np.zeros(model.n_parameters)
    for smoothing in (0.0, 0.1):
        value, gradient = objective.penalty(zeros, smoothing)
        assert value == 0
        assert np.array_equal(gradient, zeros)
    # without any network there is no energy and no force, but no error either
    value, gradient = objective.loss_and_gradient(zeros)
    assert np.isfinite(gradient).all()
    assert np.isfinite(value)


# ---- the same in other ways ------------------------------------------------------------------------------------------


def everything(objective, Z, chosen=None):
    """All that an objective says about parameter vectors."""
    losses, shifts = objective.losses(Z, chosen)
    squares, gradient = objective.data_gradient(Z[0], chosen)
    return losses, shifts, squares, gradient, *objective.predict(Z[0], chosen)


def assert_same_bits(a, b):
    for x, y in zip(a, b, strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize("name", ["full", "thermal", "wide"])
def test_basis_from_memory_or_computed_again(name):
    model, _, objective = build(name)
    Z = some_vectors(model)
    expected = everything(objective, Z)
    total = objective.geometry.basis.size
    for share in (0.0, 0.5):
        _, _, other = build(name, cache_GB=share * total * 8e-9)
        assert 0 <= other.geometry.n_cached < len(other.geometry.types)
        assert (other.geometry.n_cached > 0) == (share > 0)
        assert_same_bits(everything(other, Z), expected)
        assert_same_bits(everything(other, Z, [1, 4, 5]), everything(objective, Z, [1, 4, 5]))


@pytest.mark.parametrize("name", ["full", "thermal, zbl", "wide"])
def test_number_of_threads(name):
    # more than one chunk of the gradient, and more than one group of vectors
    results = []
    for threads in (1, 2):
        model, _, objective = build(name, 12, threads=threads)
        results.append(everything(objective, some_vectors(model, 13)))
        assert len(objective.geometry.partition(objective.geometry.sites_of(range(12)))[0]) > 3
    assert_same_bits(*results)


@pytest.mark.parametrize("name", ["full", "thermal", "wide"])
def test_a_population_is_its_individuals(name):
    model, _, objective = build(name)
    Z = some_vectors(model, 23)
    for chosen in (None, [6, 2, 3]):
        losses, shifts = objective.losses(Z, chosen)
        for p in (0, 5, 10, 22):
            assert_same_bits(objective.losses(Z[p : p + 1], chosen), (losses[p : p + 1], shifts[p : p + 1]))
        some = objective.losses(Z[3:14], chosen)
        assert_same_bits(some, (losses[3:14], shifts[3:14]))


def test_results_do_not_depend_on_earlier_calls():
    model, _, objective = build("full")
    Z = some_vectors(model)
    expected = everything(objective, Z)
    objective.losses(some_vectors(model, 12, seed=9), [2])
    objective.data_gradient(Z[2], [3, 1])
    assert_same_bits(everything(objective, Z), expected)


def test_own_parameters_of_the_model_do_not_matter():
    model, frames, objective = build("thermal, zbl")
    Z = some_vectors(model)
    other = shapes.make_objective(model.with_parameters(Z[2]), frames, WEIGHTED)
    assert_same_bits(everything(other, Z), everything(objective, Z))


def test_geometry_may_be_shared():
    model, _, objective = build("full")
    other = Objective(model, objective.given, objective.settings, threads=1, geometry=objective.geometry)
    assert other.geometry is objective.geometry
    Z = some_vectors(model)
    assert_same_bits(everything(other, Z), everything(objective, Z))


def test_frames_are_not_changed():
    model, frames, objective = build("small, zbl")
    before = shapes.make_targets(model, frames)
    objective.loss_and_gradient(model.parameters())
    for a, b in ((objective.given, before), (shapes.make_targets(model, frames), before)):
        assert np.array_equal(a.forces, b.forces)
        assert np.array_equal(a.energies, b.energies, equal_nan=True)
        assert np.array_equal(a.virials, b.virials, equal_nan=True)
    assert np.abs(objective.fixed.forces).max() > 0.1


# ---- the scaler ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("initial", [1.0, 0.3])
@pytest.mark.parametrize("name", shapes.SHAPES)
def test_scaler_is_the_inverse_range_of_the_descriptors(name, initial):
    model = shapes.make_model(name)
    frames = shapes.make_frames(model, 4)
    found = descriptor_scaler(model, shapes.make_targets(model, frames), initial=initial, threads=2)
    raw = replace(model.with_parameters(np.full(model.n_parameters, initial)), q_scaler=np.ones(model.n_descriptor))
    t = shapes.make_targets(model, frames)
    rows = []
    for s in range(len(t)):
        sites = t.sites(s)
        temperature = 300.0 if model.temperature else None
        arguments = t.positions[sites], t.cells[s], t.pbc[s], t.types[sites], temperature
        rows.append(reference.evaluate(raw, *arguments)["descriptors"])
    rows = np.concatenate(rows)
    n = model.n_descriptor - model.temperature
    np.testing.assert_allclose(found[:n], 1 / np.ptp(rows[:, :n], axis=0), rtol=1e-10)
    if model.temperature:
        assert found[n] == 0.001


def test_scaler_depends_on_hyperparameters_and_geometry_only():
    model = shapes.make_model("full")
    frames = shapes.make_frames(model, 4)
    targets = shapes.make_targets(model, frames)
    expected = descriptor_scaler(model, targets, threads=1)
    other = replace(shapes.make_model("full", seed=9), q_scaler=3 * model.q_scaler)
    assert np.array_equal(descriptor_scaler(other, targets, threads=2), expected)
    objective = Objective(model, targets, threads=1)
    assert np.array_equal(descriptor_scaler(model, targets, geometry=objective.geometry), expected)
    fewer = descriptor_scaler(model, targets.select([0, 1]), threads=1)
    # a smaller range
    assert (fewer >= expected).all()
    assert (fewer > expected).any()


def test_crystals_cannot_be_scaled():
    model = shapes.make_model("small")
    atoms = bulk("O", "fcc", a=4.2, cubic=True)
    atoms.calc = FrameCalculator(atoms, forces=np.zeros((4, 3)))
    with pytest.raises(ScalerError, match=r"^11 of 11 .* \(radial n=0, radial n=1, .* …\)") as error:
        descriptor_scaler(model, shapes.make_targets(model, [atoms]))
    assert isinstance(error.value, TargetError)


@pytest.mark.parametrize(("lattice", "n_blocks"), [("fcc", 9), ("diamond", 8)])
def test_components_that_vanish_by_symmetry_are_found_under_their_rounding_errors(lattice, n_blocks):
    """Cubic crystals of different densities: of ten blocks that of l=4 varies, in diamond that of l=3 too."""
    model = shapes.make_model("full", species=("O",), cutoff=(5.0, 4.0))
    frames = []
    for stretch in (1.0, 1.02, 1.04):
        atoms = bulk("O", lattice, a=stretch * {"fcc": 4.0, "diamond": 5.2}[lattice], cubic=True)
        atoms.calc = FrameCalculator(atoms, forces=np.zeros((len(atoms), 3)))
        frames.append(atoms)
    # three components each
    with pytest.raises(ScalerError, match=f"^{3 * n_blocks} of 32 descriptor components"):
        descriptor_scaler(model, shapes.make_targets(model, frames))


def test_components_that_do_not_vary_are_named():
    """Pairs further apart than the angular cutoff, and a temperature, which always has its factor."""
    model = shapes.make_model("thermal")
    frames = [shapes.bare_frame("OH", [[0, 0, 0], [d, 0, 0]], temperature=300.0) for d in (3.6, 3.9, 4.2)]
    names = "l=1 n=0, l=1 n=1, l=2 n=0, l=2 n=1, q1111 n=0, q1111 n=1"
    with pytest.raises(ScalerError, match=rf"^6 of 10 descriptor components .* \({names}\)"):
        descriptor_scaler(model, shapes.make_targets(model, frames))


def test_names_of_components():
    names = descriptor_names(shapes.make_model("thermal"))
    blocks = [f"{block} n={n}" for block in ("l=1", "l=2", "q1111") for n in (0, 1)]
    assert names == ["radial n=0", "radial n=1", "radial n=2", *blocks, "temperature"]
    for name in shapes.SHAPES:
        model = shapes.make_model(name)
        assert len(descriptor_names(model)) == model.n_descriptor


# ---- published trainings ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published():
    """Name -> model, targets, last line of ``loss.out``."""
    if not shapes.DATA.exists():
        pytest.skip("needs ../shared/data")

    def load(name):
        folder = shapes.DATA / name
        model = NEPModel.read(folder / "nep.txt")
        targets = Targets.from_frames(read_dataset(folder / "train.xyz"), model.species)
        return model, targets, (folder / "loss.out").read_text().splitlines()[-1].split()

    return load


@pytest.mark.parametrize(("name", "settings"), [("pbte", {}), ("mos2", {"lambda_1": 0.0, "lambda_v": 1.0})])
def test_last_line_of_published_trainings(published, name, settings):
    model, targets, line = published(name)
    objective = Objective(model, targets, LossSettings(**settings), cache_GB=0.0)
    terms, shift, predictions = objective.evaluate(model.parameters())
    errors = rmse(targets, predictions, shift)
    found = [terms.sum(), terms[3], terms[4], errors["energy"], errors["force"], errors["virial"]]
    assert [f"{value:.5f}" for value in found] == line[1:7]
    # the bias in the file has taken up the mean error
    assert abs(shift) < 5e-6
    # all weights are one
    np.testing.assert_allclose(terms[:3], objective.terms.weights * found[3:], rtol=1e-12)


def test_published_scaler(published):
    model, targets, _ = published("pbte")
    found = descriptor_scaler(model, targets)
    assert np.abs(found / model.q_scaler - 1).max() < 1e-5


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_two_hidden_layers():
    model = shapes.make_model("small", neurons=(3, 2))
    with pytest.raises(ModelError, match="two hidden layers"):
        shapes.make_objective(model, shapes.make_frames(model, 2))


def test_missing_temperatures():
    model = shapes.make_model("thermal")
    targets = Targets.from_frames(shapes.make_frames(model, 2), model.species)
    with pytest.raises(TargetError, match="temperature input, but the frames were taken without temperatures"):
        Objective(model, targets)


def test_frames_for_other_species():
    model = shapes.make_model("thermal")
    targets = Targets.from_frames(shapes.make_frames(model, 2), ("H", "O"), temperature=True)
    for use in (Objective, descriptor_scaler):
        with pytest.raises(TargetError, match="species O, H, the frames were taken for H, O"):
            use(model, targets)


def test_coinciding_sites_are_named():
    model = shapes.make_model("small", zbl=ZBL(0.6, 1.2))
    frames = [shapes.bare_frame("OO", [[0, 0, 0], [d, 0, 0]]) for d in (1.0, 1.1, 0.0)]
    with pytest.raises(TargetError, match=r"^frame 2: .*same place"):
        shapes.make_objective(model, frames)


def test_settings_that_do_not_fit():
    model = shapes.make_model("full")
    frames = shapes.make_frames(model, 2)
    with pytest.raises(LossError, match="expected 3 numbers, one per species, got 2"):
        shapes.make_objective(model, frames, {"type_weight": (1.0, 2.0)})
    with pytest.raises(LossError, match="no error bars"):
        shapes.make_objective(model, frames, {"weighting": "errorbars"})
