"""What a model says about training frames, against plain numpy, and which frame it fails on."""

import numpy as np
import pytest
import training_shapes as shapes
import training_twin as twin

from ase_nepcg.dataset import DatasetError
from ase_nepcg.training.objective import Objective
from ase_nepcg.training.predict import predict
from ase_nepcg.training.targets import Targets

MODELS = {
    "small, zbl": ("small", {"zbl": shapes.ZBL}),
    "full, version 3": ("full", {"version": 3}),
    "full, version 5": ("full", {"version": 5}),
    "thermal": ("thermal", {}),
    "thermal, zbl": ("thermal", {"zbl": shapes.ZBL}),
    "thermal, version 3": ("thermal", {"version": 3}),
    "wide": ("wide", {}),
}


@pytest.fixture(params=MODELS)
def model(request):
    name, changes = MODELS[request.param]
    return shapes.make_model(name, **changes)


def compare(found, model, frames, tolerance=1e-11):
    energies, forces, virials = twin.predict(model, frames)
    expected = np.array(energies), np.concatenate(forces), np.array(virials)
    for name, a, b in zip(found._fields, found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, np.abs(b).max()), err_msg=name)


def test_as_plain_numpy(model):
    frames = shapes.make_frames(model, 5)
    targets = shapes.make_targets(model, frames)
    found = predict(model, targets)
    assert found.energies.shape == (5,)
    assert found.forces.shape == targets.forces.shape
    assert found.virials.shape == (5, 6)
    compare(found, model, frames)


def test_as_the_kernels_of_the_training(model):
    frames = shapes.make_frames(model, 4) + shapes.odd_frames(model.species)[:1]
    targets = shapes.make_targets(model, frames)
    found = predict(model, targets, threads=1)
    expected = Objective(model, targets, threads=1).predict(model.parameters())
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * max(1.0, np.abs(b).max()))


def test_one_temperature_for_all_frames():
    model = shapes.make_model("thermal")
    frames = shapes.make_frames(model, 3)
    found = predict(model, shapes.make_targets(model, frames), temperature_K=400.0)
    assert (found.energies != predict(model, shapes.make_targets(model, frames)).energies).all()
    # frames need none of their own
    without = Targets.from_frames(frames, model.species)
    assert np.array_equal(predict(model, without, temperature_K=400.0).forces, found.forces)
    for atoms in frames:
        atoms.info["temperature"] = 400.0
    compare(found, model, frames)


def test_threads_do_not_matter():
    model = shapes.make_model("full")
    targets = shapes.make_targets(model, shapes.make_frames(model, 4))
    for a, b in zip(predict(model, targets, threads=1), predict(model, targets, threads=2), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize(("path", "place"), [(None, "frame 1: "), ("folder/test.xyz", "folder/test.xyz, frame 1: ")])
def test_a_frame_that_cannot_be_evaluated_is_named(path, place):
    model = shapes.make_model("small", zbl=shapes.ZBL)
    frames = [shapes.bare_frame("OO", [[0, 0, 0], [d, 0, 0]]) for d in (1.5, 0.0, 1.5)]
    with pytest.raises(DatasetError, match=f"^{place}") as error:
        predict(model, shapes.make_targets(model, frames), path=path)
    assert error.value.frame == 1
    assert error.value.path == path


def test_frames_that_do_not_fit_the_model_are_refused():
    model = shapes.make_model("thermal")
    frames = shapes.make_frames(model, 1)
    with pytest.raises(DatasetError, match="expected frames taken with temperature=True"):
        predict(model, Targets.from_frames(frames, model.species))
    other = Targets.from_frames(frames, (*model.species, "Xe"), temperature=True)
    with pytest.raises(DatasetError, match="expected frames taken for the species of the model"):
        predict(model, other)
