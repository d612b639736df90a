"""Constants of the angular descriptor against Legendre polynomials and Cartesian tensors."""

import itertools
import math

import numpy as np
import pytest
from numpy.polynomial import Polynomial
from numpy.polynomial.legendre import leg2poly, legval
from scipy.spatial.transform import Rotation

from ase_nepcg.hyper import MANY_BODY as FILE_ORDER
from ase_nepcg.potential.basis import angular_basis
from ase_nepcg.potential.invariants import MANY_BODY, QUARTIC, cubic_terms, legendre_tables, three_body_weights

CUBIC = [name for name in MANY_BODY if name != "q1111"]
DELTA = np.eye(3)
LETTERS = "abcdefgh"


def neighbors(seed, count=7):
    """Unit vectors and weights of a few neighbours."""
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(count, 3))
    return u / np.linalg.norm(u, axis=1, keepdims=True), rng.normal(size=count)


def sums(u, g, l_max):
    """s_lk = sum_j g_j b_lk(u_j)."""
    recur_a, recur_b, _ = legendre_tables(l_max)
    total = np.zeros(l_max * (l_max + 2))
    for vector, weight in zip(u.tolist(), g, strict=True):
        b = np.zeros_like(total)
        angular_basis(*vector, l_max, recur_a, recur_b, b, 0, np.zeros((l_max + 1) ** 2), 0)
        total += weight * b
    return total


def cubic(name, s):
    indices, coefficients = cubic_terms(name)
    return float((s[indices].prod(axis=1) * coefficients).sum())


def traceless_moment(u, g, rank):
    """Sum over neighbours of the traceless part of u (x) ... (x) u, by explicit subtraction of the traces."""
    total = np.zeros((3,) * rank)
    for vector, weight in zip(u, g, strict=True):
        tensor = vector
        for _ in range(rank - 1):
            tensor = np.multiply.outer(tensor, vector)
        # coefficients of the Legendre polynomial of this rank: u^l - (l(l-1)/2)/(2l-1)/... delta u^(l-2) + ...
        for pairs, factor in {1: {}, 2: {1: -1 / 3}, 3: {1: -1 / 5}, 4: {1: -1 / 7, 2: 1 / 35}}[rank].items():
            for index in itertools.product(range(3), repeat=rank):
                value = 0.0
                for chosen in pairings(range(rank), pairs):
                    rest = [k for k in range(rank) if not any(k in pair for pair in chosen)]
                    value += math.prod(DELTA[index[p], index[q]] for p, q in chosen) * math.prod(
                        vector[index[k]] for k in rest
                    )
                tensor[index] += factor * value
        total += weight * tensor
    return total


def pairings(items, count):
    """All ways to choose ``count`` disjoint pairs."""
    pairs = itertools.combinations(itertools.combinations(items, 2), count)
    return [chosen for chosen in pairs if len({k for pair in chosen for k in pair}) == 2 * count]


CONTRACTIONS = {
    "q222": (-45 / math.sqrt(14), "ab,bc,ca", (2, 2, 2)),
    "q112": (math.sqrt(27 / 2), "a,b,ab", (1, 1, 2)),
    "q123": (-15 / 2, "a,bc,abc", (1, 2, 3)),
    "q233": (math.sqrt(13125) / 4, "ab,acd,bcd", (2, 3, 3)),
    "q134": (math.sqrt(3675) / 4, "a,bcd,abcd", (1, 3, 4)),
}


def test_order_of_the_many_body_terms_is_that_of_the_file():
    assert tuple(FILE_ORDER) == MANY_BODY


@pytest.mark.parametrize("l_max", [1, 2, 4, 8])
def test_three_body_terms_are_double_sums_of_legendre_polynomials(l_max):
    weights = three_body_weights(l_max)
    assert weights.shape == (l_max * (l_max + 2),)
    for seed in range(3):
        u, g = neighbors(seed)
        s = sums(u, g, l_max)
        for order in range(1, l_max + 1):
            part = slice(order**2 - 1, (order + 1) ** 2 - 1)
            legendre = legval(u @ u.T, np.eye(order + 1)[order])
            expected = (2 * order + 1) / (4 * math.pi) * g @ legendre @ g
            assert weights[part] @ s[part] ** 2 == pytest.approx(expected, rel=1e-12, abs=1e-13)


def test_three_body_weights_are_the_published_constants():
    published = {
        1: [0.238732414637843, 0.119366207318922],
        4: [0.011190581936149, 0.223811638722978, 0.111905819361489, 1.566681471060845, 0.195835183882606],
        8: [
            *(0.000082569397966, 0.005944996653579, 0.104037441437634, 0.762941237209318, 0.114441185581398),
            *(5.950941650232678, 0.141689086910302, 4.250672607309055, 0.265667037956816),
        ],
    }
    weights = three_body_weights(8)
    for order, constants in published.items():
        of_order = weights[order**2 - 1 : (order + 1) ** 2 - 1]
        assert of_order[0] == pytest.approx(constants[0], rel=1e-11)
        np.testing.assert_allclose(of_order[1::2], 2 * np.array(constants[1:]), rtol=1e-11)
        assert np.array_equal(of_order[1::2], of_order[2::2])


def test_slopes_of_the_legendre_factors():
    recur_a, recur_b, slope = legendre_tables(8)
    z = 0.37
    tables = {}
    for value in (z - 1e-5, z, z + 1e-5):
        zlm = np.zeros(10 * 9)
        angular_basis(0.0, 0.0, value, 8, recur_a, recur_b, np.zeros(80), 0, zlm, 0)
        tables[value] = zlm.reshape(10, 9).T
    low, here, high = tables.values()
    for order in range(1, 9):
        for m in range(order + 1):
            derivative = (high[order, m] - low[order, m]) / 2e-5
            assert slope[order, m] * here[order, m + 1] == pytest.approx(derivative, rel=1e-7, abs=1e-5)
        assert slope[order, order] == 0


def test_recurrence_reproduces_legendre_polynomials_up_to_their_normalisation():
    for order in range(1, 9):
        coefficients = np.array([round(c * 2**order) for c in leg2poly(np.eye(order + 1)[order])])
        normalised = Polynomial(coefficients / np.gcd.reduce(coefficients))
        recur_a, recur_b, _ = legendre_tables(order)
        b = np.zeros(order * (order + 2))
        angular_basis(0.6, 0.0, 0.8, order, recur_a, recur_b, b, 0, np.zeros((order + 1) ** 2), 0)
        assert b[order**2 - 1] == pytest.approx(normalised(0.8), rel=1e-12)


@pytest.mark.parametrize("name", CUBIC)
def test_cubic_terms_are_contractions_of_traceless_tensors(name):
    prefactor, form, ranks = CONTRACTIONS[name]
    for seed in range(3):
        u, g = neighbors(seed, count=5)
        tensors = [traceless_moment(u, g, rank) for rank in ranks]
        for tensor in tensors:
            if tensor.ndim > 1:
                assert np.abs(np.trace(tensor)).max() < 1e-14
        expected = prefactor / (4 * math.pi) ** 1.5 * np.einsum(form, *tensors)
        assert cubic(name, sums(u, g, 4)) == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_quartic_term_is_the_square_of_the_first_three_body_term():
    u, g = neighbors(3)
    s = sums(u, g, 1)
    quartic = QUARTIC * (s @ s) ** 2
    assert pytest.approx(7 / 15 * (three_body_weights(1) @ s**2) ** 2, rel=1e-14) == quartic
    assert pytest.approx(0.026596810706114, rel=1e-12) == QUARTIC


@pytest.mark.parametrize("name", CUBIC)
def test_cubic_terms_do_not_change_under_rotation_and_inversion(name):
    u, g = neighbors(4)
    value = cubic(name, sums(u, g, 4))
    assert abs(value) > 1e-4
    for turn in Rotation.random(5, rng=np.random.default_rng(0)):
        assert cubic(name, sums(turn.apply(u), g, 4)) == pytest.approx(value, rel=1e-12)
    # the orders of each term add up to an even number
    assert cubic(name, sums(-u, g, 4)) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("name", CUBIC)
def test_each_monomial_is_listed_once(name):
    indices, coefficients = cubic_terms(name)
    assert indices.shape == (len(coefficients), 3)
    assert len({tuple(sorted(row)) for row in indices.tolist()}) == len(indices)
    assert (coefficients != 0).all()
    # one factor of each order l that the name says
    orders = [sorted(math.isqrt(i + 1) for i in row) for row in indices.tolist()]
    assert all(order == sorted(int(digit) for digit in name[1:]) for order in orders)
