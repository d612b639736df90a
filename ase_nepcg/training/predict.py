"""What a model makes of the frames of a data set, with the kernels of the calculator."""

from __future__ import annotations

import numpy as np

from ..potential.evaluate import EvaluationError, Evaluator, Geometry
from .loss import Predictions
from .targets import VOIGT, TargetError, Targets

__all__ = ["predict"]


def predict(
    model, targets: Targets, *, threads: int | None = None, temperature_K: float | None = None, path=None
) -> Predictions:
    """Energies, forces and virials of ``model`` (:class:`~ase_nepcg.NEPModel`) for all frames.

    ``temperature_K`` replaces the temperatures of the frames for a model with a temperature input. Raises
    :class:`~ase_nepcg.dataset.DatasetError` with the frame (and ``path``) that cannot be evaluated.
    """
    if targets.species != model.species:
        raise TargetError(
            f"expected frames taken for the species of the model ({', '.join(model.species)}), got "
            f"{', '.join(targets.species)}",
            path,
        )
    if model.temperature and temperature_K is None and targets.temperatures is None:
        raise TargetError("the model has a temperature input: expected frames taken with temperature=True", path)
    energies, forces, virials = np.empty(len(targets)), np.empty_like(targets.forces), np.empty((len(targets), 6))
    rows, columns = np.transpose(VOIGT)
    temperatures = targets.temperatures if temperature_K is None else np.full(len(targets), temperature_K)
    evaluator = Evaluator(model, threads=threads, temperature_K=300.0 if model.temperature else None)
    for s, n in enumerate(targets.n_sites):
        sites = targets.sites(s)
        if model.temperature:
            evaluator.temperature_K = temperatures[s]
        try:
            geometry = Geometry(targets.positions[sites], targets.cells[s], targets.pbc[s], targets.types[sites])
            result = evaluator(geometry)
        except EvaluationError as error:
            raise TargetError(str(error), path, s) from error
        energies[s] = result.energy / n
        forces[sites] = result.forces
        virials[s] = result.virial[rows, columns] / n
    return Predictions(energies, forces, virials)
