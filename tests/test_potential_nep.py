"""The kernel itself; its results are compared with the twin in test_potential_evaluate.py and test_reference.py."""

import numpy as np

from ase_nepcg import NEPModel
from ase_nepcg.data import WATER_BEAD
from ase_nepcg.potential.evaluate import Geometry, evaluate
from ase_nepcg.potential.layout import PAGE, Shape
from ase_nepcg.potential.nep import build_kernel, sum_chunks
from ase_nepcg.potential.threads import run_chunks


def test_one_kernel_per_shape():
    model = NEPModel.read(WATER_BEAD)
    assert build_kernel(Shape.of(model)) is build_kernel(Shape.of(model.with_parameters(2 * model.parameters())))


def test_a_lone_site_has_the_energy_of_the_empty_descriptor():
    model = NEPModel.read(WATER_BEAD)
    result = evaluate(model, Geometry(np.zeros((1, 3)), np.zeros((3, 3)), [False] * 3, [0]), virials=True)
    expected = model.w1[0] @ np.tanh(-model.b0[0]) - model.bias
    assert np.isclose(result.energy, expected, rtol=1e-14)
    assert not result.forces.any()
    assert not result.virials.any()


def test_chunks_are_summed_in_order_and_only_where_touched():
    rng = np.random.default_rng(0)
    chunks, sites, width = 3, 2 * PAGE + 5, 3
    buffers = rng.normal(size=(chunks, sites, width))
    pages = -(-sites // PAGE)
    touched = rng.random((chunks, pages)) < 0.6
    # what was not touched is rubbish
    for chunk, page in np.argwhere(~touched):
        buffers[chunk, page * PAGE : (page + 1) * PAGE] = np.nan
    expected = np.zeros((sites, width))
    for chunk in range(chunks):
        for page in np.flatnonzero(touched[chunk]):
            block = slice(page * PAGE, (page + 1) * PAGE)
            expected[block] += buffers[chunk, block]
    for threads in (1, 3):
        out = np.full((sites, width), np.nan)
        run_chunks(sum_chunks, (touched.ravel(), pages, width, buffers.ravel(), out.ravel()), threads)
        assert np.array_equal(out, expected)
