"""Populations on the device against the CPU: losses, predictions, generations."""

import numpy as np
import pytest
import training_shapes as shapes
from ase.calculators.calculator import CalculatorSetupError
from ase_nepcg_cuda import Population

from ase_nepcg import train
from ase_nepcg.potential.evaluate import EvaluationError

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


def objectives(shape, precision, n_frames=3, **changes):
    """The same objective on the CPU and on the device."""
    model = shapes.make_model(shape, **changes)
    frames = shapes.make_frames(model, n_frames, sites=(3, 4))
    cpu, device = (shapes.make_objective(model, frames, shapes.WEIGHTED) for _ in range(2))
    device._population = Population(model, device.targets, device.terms.force_weights, precision)
    return cpu, device


@pytest.mark.parametrize(
    ("shape", "changes", "precision", "tolerance"),
    [
        ("small", {"zbl": shapes.ZBL}, "double", 1e-11),
        ("small", {}, "mixed", 2e-5),
        ("thermal", {}, "double", 1e-11),
    ],
)
def test_losses_and_predictions(shape, changes, precision, tolerance):
    cpu, device = objectives(shape, precision, **changes)
    rng = np.random.default_rng(5)
    z = cpu.model.parameters()
    Z = np.stack([z, z + rng.normal(0, 0.05, len(z))])
    for frames in (None, [0, 2]):
        for a, b in zip(cpu.losses(Z, frames), device.losses(Z, frames), strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    for a, b in zip(cpu.predict(z), device.predict(z), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * max(1.0, np.abs(a).max()))


def test_lists_of_batches_are_kept_and_forgotten():
    _, device = objectives("small", "double")
    z = device.model.parameters()[None]
    for frames in ([0], [1], [0]):
        device.losses(z, frames)
    assert len(device._population._kept) == 2
    kept = device._population._batch(np.array([0]))
    assert kept is device._population._batch(np.array([0]))


def settings_of(model):
    settings = {"n_max": model.n_max, "basis_size": model.basis_size, "l_max": (model.l_max, 0, 0)}
    settings |= {"cutoff": (4.0, 3.0), "neurons": model.neurons, "species": model.species}
    return settings | {"seed": 3, "progress": False, "interval": 1}


def test_generations_are_those_of_the_cpu():
    model = shapes.make_model("small")
    frames = shapes.make_frames(model, 3, sites=(3, 4))
    settings = settings_of(model) | {"optimizer": "snes", "steps": 2, "population": 4}
    cpu, cuda = (train(frames, device=device, **settings) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(cpu.mu, cuda.mu, atol=1e-12)
    np.testing.assert_allclose(cpu.sigma, cuda.sigma, atol=1e-12)
    assert cpu.history.total[-1] == pytest.approx(cuda.history.total[-1], rel=1e-4)


def test_overlapping_sites_are_named():
    _, device = objectives("small", "double")
    positions = device._population.targets.positions
    positions[1] = positions[0]
    with pytest.raises(EvaluationError, match="sites 0 and 1 are at the same place"):
        device.losses(device.model.parameters()[None], [0])


def test_steps_of_the_gradient_are_those_of_the_cpu():
    model = shapes.make_model("small")
    frames = shapes.make_frames(model, 3, sites=(3, 4))
    settings = settings_of(model) | {"optimizer": "lbfgs", "steps": 2}
    cpu, cuda = (train(frames, device=device, **settings) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(cpu.model.parameters(), cuda.model.parameters(), atol=1e-4)
    with pytest.raises(CalculatorSetupError, match="expected one of auto, cpu, cuda"):
        train(frames, device="gpu", **settings_of(model))


@pytest.mark.parametrize(
    ("shape", "changes", "precision", "tolerance"),
    [
        ("small", {"zbl": shapes.ZBL}, "double", 1e-10),
        ("small", {"version": 5}, "double", 1e-10),
        ("small", {}, "mixed", 2e-4),
        ("thermal", {"version": 3}, "double", 1e-10),
        ("full", {}, "double", 1e-10),
    ],
)
def test_gradients(shape, changes, precision, tolerance):
    cpu, device = objectives(shape, precision, 2 if shape == "full" else 3, **changes)
    z = cpu.model.parameters()
    for frames in (None, [1]) if shape == "small" else (None,):
        (squares, expected), (same, found) = (one.data_gradient(z, frames) for one in (cpu, device))
        np.testing.assert_allclose(squares, same, rtol=tolerance)
        for name, block in cpu.model.parameter_blocks()[0].items():
            scale = max(np.abs(expected[block]).max(), 1e-3)
            np.testing.assert_allclose(found[block], expected[block], atol=tolerance * scale, err_msg=name)
