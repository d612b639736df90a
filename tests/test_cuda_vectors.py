"""Vectors between places against minimum images of positions."""

import numpy as np
import pytest
from ase_nepcg_cuda.device import blocks_for, kernel
from ase_nepcg_cuda.precision import precision
from ase_nepcg_cuda.vectors import build_vectors
from numba import cuda

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


@pytest.mark.parametrize(("name", "tolerance"), [("mixed", 1e-6), ("double", 1e-12)])
def test_the_vector_between_two_places_is_the_minimum_image(name, tolerance):
    kinds, rng = precision(name), np.random.default_rng(4)
    box = np.array([[9.0, 0.5, -1.0], [1.0, 8.0, 0.7], [-0.3, 0.4, 11.0]])
    fractions = rng.uniform(-0.5, 0.5, (6, 3))
    u = np.floor(fractions * 2.0**kinds.bits).astype(np.int64).astype(kinds.fixed)
    place, rows, between = build_vectors(name)
    n = len(u)

    @kernel
    def all_pairs(u, to_vector, out):
        i = cuda.grid(1)
        if i < n:
            here, box = place(u, i, n), rows(to_vector, 9)
            for j in range(n):
                x, y, z = between(u, j, n, here, box)
                out[i, j, 0], out[i, j, 1], out[i, j, 2] = x, y, z

    # the second of two boxes
    to_vector = np.stack([np.full((3, 3), np.nan), box * 2.0**-kinds.bits]).astype(kinds.real)
    out = cuda.to_device(np.zeros((n, n, 3), kinds.real))
    all_pairs[blocks_for(n), 8](cuda.to_device(u.T.ravel()), cuda.to_device(to_vector.ravel()), out)
    d = fractions[None] - fractions[:, None]
    np.testing.assert_allclose(out.copy_to_host(), (d - np.round(d)) @ box, atol=tolerance)
