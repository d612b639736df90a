"""Frames with the energies, forces and virials of a model, so that another one of its shape can learn all of them."""

import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from ase_nepcg.training.predict import predict
from ase_nepcg.training.targets import Targets


def taught(model, frames, *, keep=(), noise=0.0, seed=0):
    """New ``frames`` with what ``model`` says about them; of their ``info`` the entries ``keep``.

    ``noise`` (eV/Å): standard deviation of an error of the forces, which then come with error bars.
    """
    targets = Targets.from_frames(frames, model.species, temperature=model.temperature)
    predictions = predict(model, targets, threads=1)
    rng = np.random.default_rng(seed)
    result = []
    for s, frame in enumerate(frames):
        new = frame.copy()
        new.info = {name: frame.info[name] for name in (*keep, "temperature") if name in frame.info}
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
