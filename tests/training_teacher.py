"""Frames with the energies, forces and virials of a model, so that another one of its shape can learn all of them, and
short trainings."""

import numpy as np
import training_shapes as shapes
from ase.calculators.singlepoint import SinglePointCalculator

from ase_nepcg import train
from ase_nepcg.training.core import Training
from ase_nepcg.training.predict import predict
from ase_nepcg.training.targets import Targets

SHAPE = {name: value for name, value in shapes.SHAPES["small"].items() if name != "species"}
CUTOFF = (4.5, 3.5)
QUICK = {"steps": 6, "interval": 2, "seed": 1, "threads": 1, "progress": False}


def taught(model, frames, *, noise=0.0, seed=0):
    """New ``frames`` with what ``model`` says about them, all of the same weight.

    ``noise`` (eV/Å): standard deviation of an error of the forces, which then come with error bars.
    """
    targets = Targets.from_frames(frames, model.species, temperature=model.temperature)
    predictions = predict(model, targets, threads=1)
    rng = np.random.default_rng(seed)
    result = []
    for s, frame in enumerate(frames):
        new = frame.copy()
        new.info = {name: frame.info[name] for name in ("temperature",) if name in frame.info}
        n = len(frame)
        xx, yy, zz, xy, yz, zx = predictions.virials[s] * n
        new.info["virial"] = np.array([[xx, xy, zx], [xy, yy, yz], [zx, yz, zz]])
        forces = predictions.forces[targets.sites(s)].copy()
        if noise:
            forces += noise * rng.normal(size=forces.shape)
            new.set_array("force_errors", np.full(forces.shape, noise))
        new.calc = SinglePointCalculator(new, energy=predictions.energies[s] * n, forces=forces)
        result.append(new)
    return result


def rms_force(frames):
    """eV/Å, per component."""
    return float(np.sqrt(np.mean(np.concatenate([frame.get_forces() for frame in frames]) ** 2)))


def quick(frames, **changes) -> Training:
    return train(frames, **SHAPE | {"cutoff": CUTOFF} | QUICK | changes)


def same(one: Training, other: Training) -> bool:
    """Whether two trainings have the same bits, apart from the time they took."""
    if len(one.models) != len(other.models) or one.reason != other.reason:
        return False
    for a, b in zip(one.models, other.models, strict=True):
        if a.parameters().tobytes() != b.parameters().tobytes() or not np.array_equal(a.q_scaler, b.q_scaler):
            return False
    for a, b in zip(one.histories, other.histories, strict=True):
        if a.names != b.names:
            return False
        if any(a[name].tobytes() != b[name].tobytes() for name in a.names if name != "seconds"):
            return False
    return True
