"""Many parameter vectors on many frames: what an evolution strategy needs, on the device.

The frames are replicas of one evaluation, their neighbours are found once. Parameter vectors follow each other; their
errors stay on the device until all are there.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numba import cuda, float64

from ase_nepcg.potential.evaluate import Geometry

from .device import kernel
from .evaluate import CudaEvaluator
from .integrate import TEAM, make_team
from .lists import OVERLAP
from .parameters import pack
from .precision import precision
from .totals import TOTALS

__all__ = ["Population"]

# of the list, Å: nothing moves
_SKIN = 0.01
# numbers per frame: energy and virial, sum of weighted squared errors of the forces
_SCORE = TOTALS + 1
# data sets (batches) whose lists are kept
_KEPT = 8
_team = make_team("block", TEAM)
_rank, _sum = _team.rank, _team.sum


@kernel(threads=TEAM)
def score(first, n, row, forces, reference, weights, sums, out):
    """Row ``row`` of ``out`` (P, R, _SCORE): one block for each frame."""
    r = cuda.blockIdx.x
    memory = (cuda.shared.array(TEAM, float64), sums)
    total = 0.0
    for i in range(first[r] + _rank(), first[r + 1], TEAM):
        for c in range(3):
            d = forces[c * n + i] - reference[3 * i + c]
            total += weights[3 * i + c] * d * d
    total = _sum(total, memory)
    if _rank() == 0:
        at = (row * cuda.gridDim.x + r) * _SCORE
        for k in range(TOTALS):
            out[at + k] = sums[r * TOTALS + k]
        out[at + TOTALS] = total


class Population:
    """Evaluates parameter vectors of ``model`` (without its ZBL) on ``targets``, as
    :class:`~ase_nepcg.training.objective.Objective` wants it; ``force_weights`` (N, 3)."""

    def __init__(self, model, targets, force_weights, name: str = "mixed"):
        self.model, self.targets, self.force_weights, self.name = replace(model, zbl=None), targets, force_weights, name
        self._kept = {}

    def __call__(self, Z: np.ndarray, frames: np.ndarray, with_forces: bool):
        """Energies (P, S), weighted squared force errors (P, S), virials (P, S, 6) of whole frames in eV, and forces
        (N, 3) of the last vector or None; zero outside ``frames``. Raises EvaluationError for overlapping sites."""
        batch = self._batch(frames)
        e, n, replicas = batch.evaluator, batch.evaluator.n, len(frames)
        out = cuda.device_array(len(Z) * replicas * _SCORE, np.float64)
        for row, z in enumerate(Z):
            e.parameters = pack(self.model.with_parameters(z), e.present, self.name)
            e.compute(1)
            score[replicas, TEAM](e.first, n, row, e.forces, batch.reference, batch.weights, e.sums, out)
        found = out.copy_to_host().reshape(len(Z), replicas, _SCORE)
        energies, errors, virials = (np.zeros((len(Z), len(self.targets), *more)) for more in ((), (), (6,)))
        energies[:, frames], errors[:, frames] = found[:, :, 0], found[:, :, TOTALS]
        w = found[:, :, 1:TOTALS].reshape(len(Z), replicas, 3, 3)
        virials[:, frames] = np.stack([0.5 * (w[..., a, b] + w[..., b, a]) for a, b in batch.voigt], axis=-1)
        forces = None
        if with_forces:
            forces = np.zeros_like(self.targets.forces)
            forces[batch.sites] = e.forces.copy_to_host().reshape(3, n).T
        return energies, errors, virials, forces

    def _batch(self, frames: np.ndarray) -> _Batch:
        key = frames.tobytes()
        if key not in self._kept:
            while len(self._kept) >= _KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = _Batch(self, frames)
        return self._kept[key]


class _Batch:
    """Some frames on the device, with their neighbours."""

    def __init__(self, population: Population, frames: np.ndarray):
        from ase_nepcg.training.targets import VOIGT

        t = population.targets
        self.voigt = VOIGT
        self.sites = np.concatenate([np.arange(len(t.types))[t.sites(frame)] for frame in frames])
        first = np.concatenate([[0], np.cumsum(t.n_sites[frames])])
        kelvin = 0.0 if population.model.temperature else None
        self.evaluator = e = CudaEvaluator(
            population.model, precision=population.name, temperature_K=kelvin, skin=_SKIN
        )
        geometry = Geometry(t.positions[self.sites], t.cells[frames], t.pbc[frames], t.types[self.sites], first)
        e.take(geometry)
        if kelvin is not None:
            e.temperatures = cuda.to_device(t.temperatures[frames].astype(precision(population.name).real))
        e.set_box(geometry.positions, geometry.cell, geometry.pbc)
        e.x.copy_to_device(np.ascontiguousarray(geometry.positions).ravel())
        e.place()
        e.find_all()
        e.compute(0, totals=False)
        overlap = int(e.state.copy_to_host()[OVERLAP])
        if overlap:
            e.report_overlap(geometry.positions, geometry.cell, geometry.pbc, overlap - 1)
        self.reference = cuda.to_device(np.ascontiguousarray(t.forces[self.sites], float).ravel())
        self.weights = cuda.to_device(np.ascontiguousarray(population.force_weights[self.sites], float).ravel())
