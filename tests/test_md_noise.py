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


def ziggurat(edges, words_of, which, bits):
    """The method as published, in plain Python: layers, wedges, tail."""
    attempt = 0
    while True:
        layer, place = bits % 256, bits // 256
        u = (place + 0.5) / 2**33 - 1
        z = u * edges[layer]
        if abs(z) < edges[layer + 1]:
            return z
        if layer == 0:
            while True:
                a, b, _, _ = words_of(256 + 4 * attempt + which)
                x, y = -np.log((a + 0.5) / 2**32) / edges[1], -np.log((b + 0.5) / 2**32)
                attempt += 1
                if 2 * y > x * x:
                    return np.copysign(edges[1] + x, u)
        a, _, c, d = words_of(256 + 4 * attempt + which)
        f = np.exp(-0.5 * np.array([edges[layer], edges[layer + 1], z]) ** 2)
        if f[0] + (a + 0.5) / 2**32 * (f[1] - f[0]) < f[2]:
            return z
        bits = c * 2**10 + d // 2**22
        attempt += 1


def test_compiled_numbers_are_those_of_the_formula():
    seed, step, n = 2**40 + 3, 2**33 + 5, 3000
    # layers of equal area, from the tail inwards
    edge = 3.6541528853610088
    area = edge * np.exp(-0.5 * edge**2) + np.sqrt(2 * np.pi) * stats.norm.sf(edge)
    edges = [area / np.exp(-0.5 * edge**2), edge]
    while len(edges) < 256:
        edges.append(np.sqrt(-2 * np.log(area / edges[-1] + np.exp(-0.5 * edges[-1] ** 2))))
    assert edges[-1] * (1 - np.exp(-0.5 * edges[-1] ** 2)) == pytest.approx(area, rel=1e-6)
    edges.append(0.0)
    out = draw(seed, step, n)
    rejected = 0
    for i in range(n):

        def words_of(stream, i=i):
            counter = (step % 2**32, step // 2**32, i, stream, seed % 2**32, seed // 2**32)
            return [int(word) for word in philox.py_func(*map(np.uint64, counter))]

        a, b, c, d = words_of(0)
        first, second = a * 2**32 + b, c * 2**32 + d
        bits = first % 2**42, second % 2**42, (first >> 42 | (second >> 42) << 22) % 2**42
        expected = [ziggurat(edges, words_of, which, bits[which]) for which in range(3)]
        rejected += sum(abs((b // 256 + 0.5) / 2**33 - 1) * edges[b % 256] >= edges[b % 256 + 1] for b in bits)
        np.testing.assert_allclose(out[i], expected, rtol=1e-12, err_msg=str(i))
    # wedges and the tail were met
    assert 60 < rejected < 180
    assert np.abs(draw(seed, step, 30_000)).max() > edge


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
