"""Angular components against loops in numpy, and their derivatives against central differences of these."""

import numba
import numpy as np
import pytest

from ase_nepcg.potential.angular import angular_components
from ase_nepcg.potential.invariants import MANY_BODY, QUARTIC, cubic_terms, three_body_weights
from ase_nepcg.potential.simd import LANES, padded, pointer

NR, NA = 3, 5
SHAPES = {"three-body": (4, ()), "five-body": (4, ("q222", "q1111")), "all": (5, MANY_BODY)}


def compiled(L, many_body):
    """Kernel: sums s, their tangents sd, P, R -> q, S, qd, V."""
    values, adjoint, tangent, add_second_derivatives = angular_components(NR, NA, L, many_body)

    @numba.njit
    def call(s, sd, P, R, q, S, qd, V):
        values(pointer(s), pointer(q))
        adjoint(pointer(s), pointer(P), pointer(S))
        tangent(pointer(s), pointer(sd), pointer(qd))
        add_second_derivatives(pointer(s), pointer(sd), pointer(R), pointer(V))

    return call


def components(s, L, many_body):
    """The components (blocks, NA) of sums (LM, NA)."""
    weights = three_body_weights(L)
    rows = [
        sum(weights[k] * s[k] ** 2 for k in range(degree**2 - 1, degree**2 + 2 * degree)) for degree in range(1, L + 1)
    ]
    for name in many_body:
        if name == "q1111":
            rows.append(QUARTIC * (s[:3] ** 2).sum(axis=0) ** 2)
        else:
            rows.append(sum(c * s[i] * s[j] * s[k] for (i, j, k), c in zip(*cubic_terms(name), strict=True)))
    return np.array(rows)


def in_lanes(table):
    """(LM, NA) as the kernels have it: functions padded to whole vectors with zeros."""
    out = np.zeros((len(table), padded(NA)))
    out[:, :NA] = table
    return out.ravel()


def in_descriptor(table):
    """(blocks, NA) behind the radial components."""
    return np.concatenate([np.full(NR, np.nan), table.ravel(), np.zeros(LANES)])


@pytest.mark.parametrize("shape", SHAPES)
def test_components_and_their_derivatives(rng, shape):
    L, many_body = SHAPES[shape]
    s, sd = rng.normal(size=(2, L * (L + 2), NA))
    P, R = rng.normal(size=(2, L + len(many_body), NA))
    q, qd = (in_descriptor(np.zeros_like(P)) for _ in range(2))
    S, V = np.zeros((2, len(s) * padded(NA)))
    before = rng.normal(size=s.shape)
    V[:] = in_lanes(before)
    compiled(L, many_body)(in_lanes(s), in_lanes(sd), in_descriptor(P), in_descriptor(R), q, S, qd, V)

    def block_part(values):
        assert np.isnan(values[:NR]).all()
        return values[NR : NR + P.size].reshape(P.shape)

    def site_part(values):
        return values.reshape(len(s), -1)[:, :NA]

    np.testing.assert_allclose(block_part(q), components(s, L, many_body), rtol=1e-12, atol=1e-13)

    h = 1e-4
    along = (components(s + h * sd, L, many_body) - components(s - h * sd, L, many_body)) / (2 * h)
    np.testing.assert_allclose(block_part(qd), along, rtol=1e-6, atol=1e-7)

    def slopes(weights, at):
        """``sum weights dq/ds``, one sum after the other; functions n do not mix."""
        found = np.zeros_like(at)
        for k in range(len(at)):
            step = np.zeros_like(at)
            step[k] = h
            change = components(at + step, L, many_body) - components(at - step, L, many_body)
            found[k] = (weights * change).sum(axis=0) / (2 * h)
        return found

    np.testing.assert_allclose(site_part(S), slopes(P, s), rtol=1e-6, atol=1e-6)
    second = (slopes(R, s + h * sd) - slopes(R, s - h * sd)) / (2 * h)
    np.testing.assert_allclose(site_part(V) - before, second, rtol=1e-5, atol=1e-5)
