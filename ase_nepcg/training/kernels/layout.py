"""Where the training kernels find their numbers: packed parameters, the basis of a site, the workspace of a thread.

The parameters of type a are one row of vectors, in the order ``w0`` (D rows of neurons), ``b0``, ``w1``, the two
biases, ``c_radial`` (neighbour type, k, n), ``c_angular`` (likewise), each last axis padded to whole vectors. So are
the numbers of a gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...potential.layout import Shape
from ...potential.simd import LANES, padded

__all__ = ["Layout", "Packing", "workspace"]

# scalars at the beginning of an angular record: x, y, z, then f_k and f_k'/r
HEAD = 3


class Layout(NamedTuple):
    """Sizes that follow from a shape, in doubles."""

    shape: Shape
    lm: int  # row of angular sums, padded
    neurons: int  # padded
    n_radial: int  # padded
    n_angular: int  # padded
    head: int  # scalars of an angular record, padded
    record: int  # one angular neighbour: scalars, b, and db/dx, db/dy, db/dz

    @classmethod
    def of(cls, shape: Shape) -> Layout:
        lm, head = padded(shape.n_sums), padded(HEAD + 2 * shape.k_angular)
        return cls(
            shape, lm, padded(shape.neurons), padded(shape.n_radial), padded(shape.n_angular), head, head + 4 * lm
        )

    def parameters(self, n_types: int) -> np.ndarray:
        """Offsets of w0, b0, w1, biases, c_radial, c_angular in the row of one type, and its length."""
        s = self.shape
        sizes = (
            s.n_descriptor * self.neurons,
            self.neurons,
            self.neurons,
            LANES,
            n_types * s.k_radial * self.n_radial,
            n_types * s.k_angular * self.n_angular,
        )
        return np.cumsum([0, *sizes])

    def site(self, n_types: int, blocks, pairs):
        """Length of the basis of a site: radial sums, angular sums, f_k'/r of ``blocks`` vectors of neighbours, records
        of ``pairs`` angular neighbours."""
        s = self.shape
        sums = padded(n_types * s.k_radial) + n_types * s.k_angular * self.lm
        return sums + blocks * (s.k_radial * LANES) + pairs * self.record


class Packing:
    """From the parameter vector of a model to the rows that kernels read, and gradients back.

    ``source`` (n,): for each packed number the parameter it comes from, -1 for padding; the descriptor scaler is
    multiplied into ``w0``.
    """

    def __init__(self, model):
        shape = Shape.of(model)._replace(zbl=False)
        self.layout = layout = Layout.of(shape)
        n_types = model.n_types
        self.at = at = layout.parameters(n_types)
        blocks, _ = model.parameter_blocks()
        self.n_parameters = model.n_parameters
        number = np.arange(model.n_parameters)
        # LANES rows more, as kernels read so many at once
        widest = max(layout.neurons, layout.n_radial, layout.n_angular)
        self.stride = int(at[-1])
        self.size = n_types * self.stride + LANES * widest
        self.source = np.full(self.size, -1)
        self.factor = np.zeros(self.size)

        def place(first: int, indices: np.ndarray, width: int, factor=1.0):
            indices = np.atleast_2d(indices)
            target = first + width * np.arange(len(indices))[:, None] + np.arange(indices.shape[1])
            self.source[target] = indices
            self.factor[target] = factor

        for a in range(n_types):
            network = a if len(model.w0) == n_types else 0
            row = a * self.stride
            w0 = number[blocks[f"w0[{network}]"]].reshape(shape.neurons, -1).T
            place(row + at[0], w0, layout.neurons, model.q_scaler[:, None])
            place(row + at[1], number[blocks[f"b0[{network}]"]], layout.neurons)
            place(row + at[2], number[blocks[f"w1[{network}]"]], layout.neurons)
            place(row + at[3], number[blocks["bias"]], 1)
            if model.type_bias is not None:
                place(row + at[3] + 1, number[blocks[f"type_bias[{a}]"]], 1)
            for name, first, width in (("c_radial", at[4], layout.n_radial), ("c_angular", at[5], layout.n_angular)):
                c = number[blocks[name]].reshape(getattr(model, name).shape)[:, :, a]  # n, k, b
                place(row + first, c.transpose(2, 1, 0).reshape(-1, c.shape[0]), width)
        self._used = np.flatnonzero(self.source >= 0)
        self._source, self._factor = self.source[self._used], self.factor[self._used]

    def pack(self, z: np.ndarray, out: np.ndarray) -> None:
        """Rows of kernels ``out`` (..., size) from parameter vectors ``z`` (..., n_parameters); padding is left."""
        out[..., self._used] = z[..., self._source] * self._factor

    def unpack_gradient(self, packed: np.ndarray) -> np.ndarray:
        """dL/dz (n_parameters,) from the derivatives (size,) with respect to the packed numbers."""
        return np.bincount(self._source, weights=packed[self._used] * self._factor, minlength=self.n_parameters)


def workspace(layout: Layout, n_types: int, blocks: int, pairs: int, sites: int) -> np.ndarray:
    """Offsets (in doubles) of the parts of one thread's workspace, in the order in which the kernels take them; last:
    its size. ``blocks``, ``pairs``: largest numbers of vectors of radial, and of angular, neighbours of a site.
    ``sites``: room for forces. The workspace must be zero before its first use: padding is never written.
    """
    s = layout.shape
    q = padded(s.n_descriptor) + max(layout.n_angular, layout.n_radial) + LANES
    sums = s.n_sums * layout.n_angular
    sizes = (
        *[q] * 5,  # q, P, their tangent, adjoints
        *[sums] * 4,  # s, S, tangent, adjoint
        s.n_angular * layout.lm,  # S transposed
        padded(n_types * s.k_radial) + LANES,  # radial B or tangent of A
        n_types * s.k_angular * layout.lm,  # angular B or tangent of A
        *[layout.neurons] * 4,  # hidden layer
        3 * LANES * max(blocks, 1),  # pair forces, or x . (lambda_j - lambda_i)
        4 * (pairs + LANES),  # four sums for each angular neighbour
        LANES * LANES,  # rows to be summed
        padded(layout.site(n_types, blocks, pairs)),  # basis of a site that is not cached
        padded(3 * sites),  # forces
        2 * (s.n_zlm + s.n_sums) + 4 * s.n_sums,  # angular polynomials
        (padded(s.k_radial) + 1) * LANES,  # radial functions
    )
    return np.cumsum([0, *(padded(int(size)) for size in sizes)])
