"""Model parameters as the kernels read them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import cuda

from ase_nepcg.potential.basis import fold_coefficients
from ase_nepcg.potential.layout import Shape

from .nep import functions_at_once
from .precision import precision

__all__ = ["Parameters", "pack"]


class Parameters(NamedTuple):
    """Device arrays, for the types that are present, flat; ``limits`` stays on the host: (2, T, T) cutoffs, Å.

    pair (T, T, PAIR); c_radial (T, T, NR, KR) and c_angular (T, T, functions, KA) folded, functions filled up with
    zeros to whole groups; w0 (T, N1, D), with the scaler; b0 (T, N1); w1 (T, N2 or N1); w2 (T, N2, N1), b2 (T, N2),
    bias (T,); zbl (T, T, 10).
    """

    limits: np.ndarray
    pair: object
    c_radial: object
    c_angular: object
    w0: object
    b0: object
    w1: object
    w2: object
    b2: object
    bias: object
    zbl: object


def pack(model, present: tuple[int, ...], name: str) -> Parameters:
    """The parameters of ``model`` for the types ``present``, in the precision ``name``."""
    real, p = precision(name).real, list(present)
    pairs = np.ix_(p, p)
    radial, angular = (c[pairs] for c in model.pair_cutoffs())
    shape = Shape.of(model)
    # c[n, k, a, b] -> [a, b, n, k]
    c_radial, c_angular = (
        fold_coefficients(c, 1)[:, :, p][:, :, :, p].transpose(2, 3, 0, 1) for c in (model.c_radial, model.c_angular)
    )
    whole = -shape.n_angular % functions_at_once(shape)
    networks = p if len(model.w0) == model.n_types else [0] * len(p)
    bias = np.full(len(p), model.bias)
    if model.type_bias is not None:
        bias += model.type_bias[p]
    table = model.zbl_pairs()

    def on_device(array):
        array = np.ascontiguousarray(array, real).ravel()
        # the kernels of other shapes do not look at these
        return cuda.to_device(array if array.size else np.zeros(1, real))

    return Parameters(
        limits=np.stack([np.maximum(radial, angular), angular]),
        pair=on_device(np.stack([radial, 1 / radial, angular, 1 / angular], axis=-1)),
        c_radial=on_device(c_radial),
        c_angular=on_device(np.pad(c_angular, [(0, 0), (0, 0), (0, whole), (0, 0)])),
        w0=on_device((model.w0 * model.q_scaler)[networks]),
        b0=on_device(model.b0[networks]),
        w1=on_device(model.w1[networks]),
        w2=on_device(model.w_hidden2[networks] if model.neurons2 else ()),
        b2=on_device(model.b_hidden2[networks] if model.neurons2 else ()),
        bias=on_device(bias),
        zbl=on_device(() if table is None else table[pairs]),
    )
