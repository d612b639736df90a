"""Thermal response: cumulants against plain numpy, errors of derivatives by repetition."""

import numpy as np
import pytest
from ase.units import kB

from ase_nepcg.md.accumulate import BlockTable
from ase_nepcg.meanforce.statistics import block_errors
from ase_nepcg.meanforce.thermal import response, response_blocks

KT = kB * 300


def filled(rng, n=3000):
    """A table with two quantities, the energy (index 2) and its data; the first depends on the energy."""
    u = rng.normal(size=n) * 0.2 + 0.05
    x = np.stack([0.5 * u + 0.1 * u**2 + 0.1 * rng.normal(size=n), rng.normal(size=n), u], axis=1)
    table = BlockTable(3, 2, moments=True)
    for row in x:
        table.add(row)
    return table, x


def test_response_equals_the_cumulants(rng):
    table, x = filled(rng)
    first, second = response(table, KT)
    d = x - x.mean(axis=0)
    k2 = (d * d[:, [2]]).mean(axis=0)
    k3 = (d * d[:, [2]] ** 2).mean(axis=0)
    np.testing.assert_allclose(first, k2 / (kB * 300**2), rtol=1e-10)
    np.testing.assert_allclose(second, k3 / (kB**2 * 300**4) - 2 * k2 / (kB * 300**3), rtol=1e-9)


def test_energy_may_be_shifted(rng):
    # the response does not depend on the zero of the energy
    _, x = filled(rng, 500)
    tables = []
    for shift in (0.0, 3.0):
        table = BlockTable(3, 2, moments=True)
        for row in x:
            table.add([*row[:2], row[2] + shift])
        tables.append(response(table, KT))
    np.testing.assert_allclose(tables[0][0], tables[1][0], rtol=1e-9)
    np.testing.assert_allclose(tables[0][1], tables[1][1], rtol=1e-7)


def test_linearised_blocks_average_to_nothing(rng):
    table, _ = filled(rng, 256 * 8)
    for series, value in zip(response_blocks(table, KT), response(table, KT), strict=True):
        assert np.abs(series.mean(axis=0)).max() < 1e-9 * np.abs(value).max()


def test_errors_of_the_derivatives_are_true():
    pulls = []
    for seed in range(80):
        table, _ = filled(np.random.default_rng(seed), 2048)
        errors = [block_errors(series, [np.arange(2)]).error[:2] for series in response_blocks(table, KT)]
        pulls.append([value[:2] for value in response(table, KT)] + errors)
    pulls = np.array(pulls)  # run, (first, second, their errors), quantity
    s2 = 0.2**2
    k2, k3 = 0.5 * s2 + 0.2 * 0.05 * s2, 0.2 * s2**2
    true = np.array([[k2 / (kB * 300**2), 0.0], [k3 / (kB**2 * 300**4) - 2 * k2 / (kB * 300**3), 0.0]])
    z = (pulls[:, :2] - true) / pulls[:, 2:]
    assert np.abs(z.mean(axis=0)).max() < 4 / np.sqrt(80)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=0.25)


def test_table_without_moments_is_refused():
    with pytest.raises(ValueError, match="moments=True"):
        response(BlockTable(3, 2), KT)
