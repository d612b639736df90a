"""Losses and gradients of training on the device.

The frames are replicas of one evaluation, their neighbours are found once. Parameter vectors follow each other; their
errors stay on the device until all are there.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numba import cuda, float64

from ase_nepcg.potential.evaluate import Geometry

from .device import kernel
from .evaluate import CudaEvaluator
from .gradient import build_gradient
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

    def gradient(self, z: np.ndarray, frames: np.ndarray, a, move, eta) -> np.ndarray:
        """dL/dz (n,) of the data part of the loss, from the residual weights ``a`` (S,), ``move`` (N, 3) and ``eta``
        (S, 6) of :meth:`ase_nepcg.training.loss.Terms.residuals`."""
        batch = self._batch(frames)
        e, n, n_types, shape = batch.evaluator, batch.evaluator.n, batch.evaluator.n_types, batch.evaluator.shape
        real = precision(self.name).real
        e.parameters = p = pack(self.model.with_parameters(z), e.present, self.name)
        g = build_gradient(shape, self.name)
        residuals = a[frames], np.ascontiguousarray(move[batch.sites].T), eta[frames]
        a_energy, moves, strains = (cuda.to_device(one.astype(real).ravel()) for one in residuals)
        A, Ad, B, Bd, Q, Qd, U, V, S, Sd, hidden = batch.memory
        g.tangents.launch(
            n,
            (
                *(n, e.copies, n_types, e.u, e.replica, e.types, e.to_vector, e.near_end, e.near, e.angular_end),
                *(e.angular, p.pair, moves, strains, A, Ad, B, Bd),
            ),
            lanes=shape.k_angular + 1,
        )
        g.backward.launch(
            n,
            (
                *(n, n_types, e.types, e.replica, p.c_radial, p.c_angular, p.w0, p.b0, p.w1, e.temperatures, a_energy),
                *(A, Ad, B, Bd, Q, Qd, U, V, S, Sd, hidden),
            ),
        )
        sizes = (
            (n_types, shape.neurons, shape.n_descriptor + 2),
            (n_types, n_types, shape.n_radial, shape.k_radial),
            (n_types, n_types, shape.n_angular, shape.k_angular),
        )
        network, radial, angular = (cuda.device_array(math.prod(size), np.float64) for size in sizes)
        for sums, out, arguments in (
            (g.of_network, network, (Q, Qd, hidden)),
            (g.of_radial, radial, (A, Ad, U, V)),
            (g.of_angular, angular, (B, Bd, S, Sd)),
        ):
            sums[out.size, TEAM](n, n_types, e.types, arguments, out)
        found = (out.copy_to_host().reshape(size) for out, size in zip((network, radial, angular), sizes, strict=True))
        return self._unpack(e.present, *found, a, frames)

    def _unpack(self, present, network, radial, angular, a, frames) -> np.ndarray:
        """The parameter vector's gradient from those of the numbers that kernels read."""
        model, t = self.model, self.targets
        blocks, _ = model.parameter_blocks()
        result = np.zeros(model.n_parameters)
        depth = network.shape[2] - 2
        for own, kind in zip(network, present, strict=True):
            which = kind if len(model.w0) == model.n_types else 0
            result[blocks[f"w0[{which}]"]] += (own[:, :depth] * model.q_scaler).ravel()
            result[blocks[f"b0[{which}]"]] += own[:, depth]
            result[blocks[f"w1[{which}]"]] += own[:, depth + 1]
        result[blocks["bias"]] = -(a[frames] @ t.n_sites[frames])
        if model.type_bias is not None:
            for frame in frames:
                for kind, count in enumerate(np.bincount(t.types[t.sites(frame)], minlength=model.n_types)):
                    result[blocks[f"type_bias[{kind}]"]] -= a[frame] * count
        for name, folded in (("c_radial", radial), ("c_angular", angular)):
            whole = np.zeros(getattr(model, name).shape)
            # d_0 = c_0 + sum c_k / 2, d_k = c_k / 2
            unfolded = 0.5 * (folded + folded[..., :1])
            unfolded[..., 0] = folded[..., 0]
            n_functions, n_terms = whole.shape[:2]
            whole[np.ix_(range(n_functions), range(n_terms), present, present)] = unfolded.transpose(2, 3, 0, 1)
            result[blocks[name]] = whole.ravel()
        return result

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
        self._memory = None
        self.weights = cuda.to_device(np.ascontiguousarray(population.force_weights[self.sites], float).ravel())

    @property
    def memory(self) -> tuple:
        """Arrays of the gradient, in the order of ``gradient.py``."""
        if self._memory is None:
            e = self.evaluator
            s, types, real = e.shape, e.n_types, precision(e.precision).real
            radial, angular = types * s.k_radial, types * s.k_angular * s.n_sums
            sums = s.n_angular * s.n_sums
            rows = (*[radial] * 2, *[angular] * 2, *[s.n_descriptor] * 4, *[sums] * 2, 3 * s.neurons)
            self._memory = tuple(cuda.device_array(row * e.n, real) for row in rows)
        return self._memory
