"""Where a kernel finds its numbers: model shape, packed parameters, workspace. Written here, read by ``nep.py``."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .basis import fold_coefficients
from .simd import LANES, aligned_empty, padded

__all__ = ["PAGE", "PAIR", "Parameters", "Shape", "workspace"]

# sites per page: force buffers of a chunk are cleared and summed page by page, where the chunk wrote anything
PAGE = 64
# columns of the pair table: (larger cutoff)^2, radial rc, 1/rc, angular rc, 1/rc
PAIR = 5
# parts of the parameter array: radial coefficients [a, b, k, n] and [a, b, n, k], angular ones [a, b, n, k], network
PARTS = D_KN, D_NK, D_ANGULAR, W0, B0, W1, BIAS, W2, B2 = range(9)


class Shape(NamedTuple):
    """What a kernel is compiled for: numbers of functions (not upper indices)."""

    n_radial: int
    k_radial: int
    n_angular: int
    k_angular: int
    l_max: int
    many_body: tuple[str, ...]
    neurons: int
    neurons2: int
    temperature: bool
    zbl: bool

    @classmethod
    def of(cls, model) -> Shape:
        """The shape of a :class:`~ase_nepcg.NEPModel`."""
        return cls(
            n_radial=model.n_max[0] + 1,
            k_radial=model.basis_size[0] + 1,
            n_angular=model.n_max[1] + 1,
            k_angular=model.basis_size[1] + 1,
            l_max=model.l_max,
            many_body=tuple(model.many_body),
            neurons=model.neurons,
            neurons2=model.neurons2,
            temperature=bool(model.temperature),
            zbl=model.zbl is not None,
        )

    @property
    def n_sums(self) -> int:
        """Angular sums (l, k) per radial function."""
        return self.l_max * (self.l_max + 2)

    @property
    def n_zlm(self) -> int:
        """Entries of the table of Z_{l,m}; the row m = l_max + 1 stays zero."""
        return (self.l_max + 1) * (self.l_max + 2)

    @property
    def n_descriptor(self) -> int:
        return self.n_radial + self.n_angular * (self.l_max + len(self.many_body)) + self.temperature

    @property
    def neuron_groups(self) -> tuple[int, int]:
        """Number of groups of first-layer neurons and vectors per group: as even as possible, at most 7."""
        vectors = padded(self.neurons) // LANES
        groups = -(-vectors // 7)
        return groups, -(-vectors // groups)


def workspace(shape: Shape, capacity: int, n_types: int) -> np.ndarray:
    """Offsets (in doubles) of the parts of one thread's workspace, in the order in which the kernel takes them; last:
    its size.

    ``capacity``: neighbours including padding. The workspace must be zero before its first use: padding is never
    written.
    """
    blocks = capacity // LANES
    n = padded(shape.n_angular)
    q = padded(shape.n_descriptor) + n + LANES + padded(shape.n_radial)
    sizes = (
        4 * capacity,  # near: x, y, z, r^2
        6 * capacity,  # rad: x, fc', fc dx/dr, fc, 1/r, r
        5 * capacity,  # ang: ux, uy, uz, 1/r, r
        3 * capacity,  # f
        3 * capacity,  # fa
        blocks * n * LANES,  # g
        blocks * n * LANES,  # dg
        blocks * shape.n_sums * LANES,  # b
        blocks * shape.n_zlm * LANES,  # zlm
        2 * (shape.k_angular + shape.n_angular) * LANES,  # cheb
        padded(shape.k_radial) * (LANES + 1),  # sums
        padded(shape.k_radial),  # series
        shape.n_sums * n,  # s
        shape.n_sums * n,  # S
        q,  # q
        q,  # P
        2 * np.prod(shape.neuron_groups) * LANES + padded(shape.neurons2),  # hidden
        capacity,  # near_j (integers)
        capacity,  # ang_near
        n_types,  # near_end
        n_types,  # ang_end
        2 * shape.n_sums * LANES,  # Q
    )
    return np.cumsum([0, *(padded(size) for size in sizes)])


def _lanes_last(array) -> np.ndarray:
    """Pad the last axis with zeros to full vectors and flatten; LANES rows more, as kernels read so many at once."""
    array = np.asarray(array, float)
    rows = array.reshape(-1, array.shape[-1])
    out = aligned_empty((len(rows) + LANES, padded(array.shape[-1])))
    out[:] = 0.0
    out[: len(rows), : array.shape[-1]] = rows
    return out.ravel()


class Parameters:
    """Model parameters as the kernel reads them, for the ``present`` types only.

    cutoffs (T, T) Å, the larger of radial and angular; pair (T, T, PAIR) flat; weights, one array with the parts that
    start at ``at``; zbl (T, T, 10) flat. The scaler is folded into the first layer.
    """

    def __init__(self, model, present: tuple[int, ...]):
        p = list(present)
        pairs = np.ix_(p, p)
        radial, angular = (c[pairs] for c in model.pair_cutoffs())
        self.cutoffs = np.maximum(radial, angular)
        self.pair = np.stack([self.cutoffs**2, radial, 1 / radial, angular, 1 / angular], axis=-1).ravel()
        # c[n, k, a, b] -> folded [a, b, ...]
        c_radial = fold_coefficients(model.c_radial, 1)[:, :, p][:, :, :, p].transpose(2, 3, 1, 0)
        c_angular = fold_coefficients(model.c_angular, 1)[:, :, p][:, :, :, p].transpose(2, 3, 0, 1)
        networks = p if len(model.w0) == model.n_types else [0] * len(p)
        bias = np.full(len(p), model.bias)
        if model.type_bias is not None:
            bias += model.type_bias[p]
        groups, width = Shape.of(model).neuron_groups
        neurons = groups * width * LANES

        def fill(array):
            # whole groups of neurons; those added have zero weights
            return np.pad(array[networks], [(0, 0)] * (array.ndim - 1) + [(0, neurons - array.shape[-1])])

        w0 = fill((model.w0 * model.q_scaler).transpose(0, 2, 1)).reshape(len(p), -1, groups, width * LANES)
        parts = {
            D_KN: c_radial,
            D_NK: c_radial.transpose(0, 1, 3, 2),
            D_ANGULAR: c_angular.ravel(),
            W0: w0.transpose(0, 2, 1, 3),  # [a, group, d, neuron]
            B0: fill(model.b0),
            W1: model.w1[networks] if model.neurons2 else fill(model.w1),
            BIAS: bias,
        }
        if model.neurons2:
            # rows are first-layer neurons, padded to whole vectors of them as b0 is
            w2 = np.zeros((len(p), neurons, model.neurons2))
            w2[:, : model.neurons] = model.w_hidden2[networks].transpose(0, 2, 1)
            parts |= {W2: w2, B2: model.b_hidden2[networks]}
        parts = {k: _lanes_last(v) for k, v in parts.items()}
        sizes = [parts[k].size if k in parts else 0 for k in PARTS]
        self.at = np.cumsum([0, *sizes[:-1]])
        self.weights = aligned_empty(sum(sizes))
        for k, part in parts.items():
            self.weights[self.at[k] : self.at[k] + part.size] = part
        table = model.zbl_pairs()
        self.zbl = np.zeros(0) if table is None else np.ascontiguousarray(table[pairs]).ravel()
