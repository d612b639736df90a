"""Random numbers of the dynamics: the published generator, normal distribution, independence of seed, step and atom."""

import numpy as np
import pytest
from scipy import stats

from ase_nepcg.md.noise import fill_normals, philox

# known answers published with the generator (Salmon et al. 2011)
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_published_answers(counter, key, expected):
    words = [np.uint64(value) for value in (*counter, *key)]
    assert tuple(int(word) for word in philox.py_func(*words)) == expected


def draw(seed, step, n):
    out = np.empty((n, 3))
    fill_normals(seed, step, out)
    return out


def test_compiled_numbers_are_those_of_the_formula():
    seed, step = 2**40 + 3, 2**33 + 5
    out = draw(seed, step, 4)
    for i in range(4):
        words = (step % 2**32, step // 2**32, i, 0, seed % 2**32, seed // 2**32)
        u = (np.array(philox.py_func(*map(np.uint64, words)), float) + 0.5) / 2**32
        first, second = np.sqrt(-2 * np.log(u[[0, 2]]))
        expected = first * np.cos(2 * np.pi * u[1]), first * np.sin(2 * np.pi * u[1]), second * np.cos(2 * np.pi * u[3])
        np.testing.assert_allclose(out[i], expected, rtol=1e-13)


def test_normal_distribution():
    x = np.concatenate([draw(7, step, 500).ravel() for step in range(200)])
    assert stats.kstest(x, "norm").pvalue > 0.01
    assert abs(x.mean()) < 4 / np.sqrt(len(x))
    assert abs((x**2).mean() - 1) < 4 * np.sqrt(2 / len(x))
    assert abs((x**4).mean() - 3) < 4 * np.sqrt(96 / len(x))


def test_numbers_of_other_seeds_steps_and_atoms_are_independent():
    first, other_seed, other_step = draw(1, 1, 20000), draw(2, 1, 20000), draw(1, 2, 20000)
    for a, b in (
        (first, other_seed),
        (first, other_step),
        (first[:-1], first[1:]),
        (first[:, 0], first[:, 1]),
        (first[:, 1], first[:, 2]),
    ):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / np.sqrt(a.size)


def test_a_stream_can_be_taken_up_anywhere():
    assert np.array_equal(draw(5, 9, 10)[:4], draw(5, 9, 4))
