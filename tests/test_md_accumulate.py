"""Samples and block sums against plain numpy."""

import numpy as np
import pytest

from ase_nepcg.errors import ModelError
from ase_nepcg.md.accumulate import ROWS, BlockTable, observe

VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def series(rng, n, width=5):
    return rng.normal(size=(n, width)) + np.arange(width)


@pytest.mark.parametrize("n", [1, 100, ROWS, ROWS + 1, 3 * ROWS + 7, 5000])
def test_table_equals_averages_of_the_whole_series(rng, n):
    data = series(rng, n)
    table = BlockTable(5, 3)
    for row in data:
        table.add(row)
    np.testing.assert_allclose(table.mean, data.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(table.variance, data.var(axis=0), rtol=1e-9, atol=1e-12)
    assert table.samples == n
    full = table.full
    assert full < ROWS
    assert full * table.length <= n < (full + 1) * table.length or table.length == 1
    expected = data[: full * table.length].reshape(full, table.length, 5).mean(axis=1)
    np.testing.assert_allclose(table.blocks, expected, rtol=1e-12)


def test_memory_does_not_depend_on_the_length(rng):
    table = BlockTable(5, 3, moments=True)
    sizes = []
    for n in (10, 3000):
        for row in series(rng, n):
            table.add(row)
        sizes.append(sum(array.nbytes for array in table.arrays))
    assert sizes[0] == sizes[1]
    assert ROWS // 2 <= table.full < ROWS


def test_moments_and_weights(rng):
    data, weight = series(rng, 700), rng.uniform(0.5, 2, 700)
    table = BlockTable(5, 3, moments=True)
    for row, w in zip(data, weight, strict=True):
        table.add(row, w)
    u = data[:, [3]]
    for part, power in ((table.sums, 0), (table.sums_u, 1), (table.sums_uu, 2)):
        expected = (weight[:, None] * data * u**power).sum(axis=0)
        np.testing.assert_allclose(part.sum(axis=0), expected, rtol=1e-12)
    np.testing.assert_allclose(table.mean, np.average(data, axis=0, weights=weight), rtol=1e-12)


def test_bad_samples_are_refused():
    table = BlockTable(3, 1)
    with pytest.raises(ModelError, match="shape"):
        table.add([1.0, 2.0])
    with pytest.raises(ModelError, match="finite"):
        table.add([1.0, np.nan, 2.0])
    assert table.samples == 0


def test_clear_forgets(rng):
    table = BlockTable(5, 3)
    table.add(np.ones(5))
    table.clear()
    assert table.samples == 0
    table.add(np.full(5, 2.0))
    assert np.array_equal(table.mean, np.full(5, 2.0))


def test_observation_equals_the_formulas(rng):
    # two groups of unequal size, an atom that is a site, one anchored atom in no group, an implicit molecule
    n, n_sites = 10, 3
    masses = rng.uniform(1, 20, n)
    groups = [[0, 1, 2], [3], [4, 5]]
    anchor = np.array([0, 0, 0, 1, 2, 2, 2, 3, 3, 3])
    is_site = np.zeros(n, np.bool_)
    is_site[3] = True
    x, v, f = rng.normal(size=(3, n, 3))
    centre = np.zeros((4, 3))
    for k, g in enumerate(groups):
        centre[k] = masses[g] @ x[g] / masses[g].sum()
    share = np.zeros(n)
    share[7:] = masses[7:] / masses[7:].sum()
    virial = rng.normal(size=(3, 3))
    y = np.empty(3 * n_sites + 14)
    run = _compiled_observe()
    run(x, v, f, 1 / masses, anchor, is_site, centre, share, n_sites, virial.ravel(), 5.0, 2.0, y)

    np.testing.assert_allclose(centre[3], masses[7:] @ x[7:] / masses[7:].sum(), atol=1e-13)
    forces = np.array([f[anchor == k].sum(axis=0) for k in range(n_sites)])
    np.testing.assert_allclose(y[:9].reshape(3, 3), forces, atol=1e-13)
    molecular = virial.copy()
    for i in range(n):
        if not is_site[i]:
            molecular -= np.outer(x[i] - centre[anchor[i]], f[i])
    for tensor, begin in ((molecular, 9), (virial, 15)):
        symmetric = 0.5 * (tensor + tensor.T)
        np.testing.assert_allclose(y[begin : begin + 6], [symmetric[ab] for ab in VOIGT], atol=1e-12)
    assert y[21] == 3.0
    assert y[22] == pytest.approx(0.5 * (masses[:, None] * v**2).sum(), rel=1e-13)


def _compiled_observe():
    import numba

    @numba.njit
    def call(*arguments):
        observe(*arguments)

    return call
