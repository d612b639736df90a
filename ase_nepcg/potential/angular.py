"""Angular components of the descriptor from the sums of one site, and their derivatives, as compiled functions.

=============  ==============================================================  ==========================
symbol         meaning                                                         variable (lanes: n)
=============  ==============================================================  ==========================
s_{n,lm}       angular sums                                                    ``s``
q_{n,l}        ``sum_k w_{l,k} s_{n,lk}^2``, then one block per many-body      ``q``
               term: ``QUARTIC (s_0^2 + s_1^2 + s_2^2)^2`` or
               ``sum_m c_m s_i s_j s_k``
S              ``sum P dq/ds`` for any P                                       ``S``
sd, qd         derivatives of s and q along a displacement (tangents)          ``sd``, ``qd``
V              ``sum R d2q/ds2 sd`` for any R                                  ``V``
=============  ==============================================================  ==========================

Coefficients and indices are in :mod:`.invariants`. The radial components come before the angular ones in q.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from .cache import inlined
from .invariants import QUARTIC, cubic_table, three_body_weights
from .simd import LANES, lanes, load, padded, splat, store

__all__ = ["AngularComponents", "angular_components"]


class AngularComponents(NamedTuple):
    """Compiled functions for one shape of model."""

    values: object
    adjoint: object
    tangent: object
    add_second_derivatives: object


@functools.cache
def angular_components(NR: int, NA: int, L: int, many_body: tuple[str, ...]) -> AngularComponents:
    """Functions for NR radial and NA angular functions, sums up to degree L and some many-body terms."""
    NG = padded(NA) // LANES
    square_weights = three_body_weights(L)
    cubic, cubic_c = cubic_table(many_body, L)
    N_CUBIC, N_BLOCKS = len(cubic_c), L + len(many_body)
    HAS_QUARTIC = "q1111" in many_body
    QUARTIC_BLOCK = L + many_body.index("q1111") if HAS_QUARTIC else 0

    @inlined
    def values(s, q):
        """``q``."""
        v_s = lanes(s, 0)
        for l in range(1, L + 1):  # noqa: E741
            for n in range(NG):
                value = splat(0.0)
                for lm in range(l * l - 1, l * l + 2 * l):
                    value += square_weights[lm] * (v_s[lm * NG + n] * v_s[lm * NG + n])
                store(q, NR + (l - 1) * NA + n * LANES, value)
        for block in range(L, N_BLOCKS):
            for n in range(NG):
                value = splat(0.0)
                if HAS_QUARTIC and block == QUARTIC_BLOCK:
                    v2 = v_s[n] * v_s[n] + v_s[NG + n] * v_s[NG + n] + v_s[2 * NG + n] * v_s[2 * NG + n]
                    value = QUARTIC * (v2 * v2)
                else:
                    for m in range(N_CUBIC):
                        if cubic[m, 0] == block:
                            i, j, k = cubic[m, 1] * NG + n, cubic[m, 2] * NG + n, cubic[m, 3] * NG + n
                            value += cubic_c[m] * (v_s[i] * v_s[j] * v_s[k])
                store(q, NR + block * NA + n * LANES, value)

    @inlined
    def adjoint(s, P, S):
        """``S``."""
        v_s, v_S = lanes(s, 0), lanes(S, 0)
        for l in range(1, L + 1):  # noqa: E741
            for n in range(NG):
                dq = 2.0 * load(P, NR + (l - 1) * NA + n * LANES)
                for lm in range(l * l - 1, l * l + 2 * l):
                    v_S[lm * NG + n] = (square_weights[lm] * v_s[lm * NG + n]) * dq
        for n in range(NG):
            if HAS_QUARTIC:
                v2 = v_s[n] * v_s[n] + v_s[NG + n] * v_s[NG + n] + v_s[2 * NG + n] * v_s[2 * NG + n]
                dv2 = (4.0 * QUARTIC) * (v2 * load(P, NR + QUARTIC_BLOCK * NA + n * LANES))
                for lm in range(3):
                    v_S[lm * NG + n] += dv2 * v_s[lm * NG + n]
            for m in range(N_CUBIC):
                dq = cubic_c[m] * load(P, NR + cubic[m, 0] * NA + n * LANES)
                i, j, k = cubic[m, 1] * NG + n, cubic[m, 2] * NG + n, cubic[m, 3] * NG + n
                si, sj, sk = v_s[i], v_s[j], v_s[k]
                v_S[i] += dq * (sj * sk)
                v_S[j] += dq * (si * sk)
                v_S[k] += dq * (si * sj)

    @inlined
    def tangent(s, sd, qd):
        """``qd``."""
        v_s, v_d = lanes(s, 0), lanes(sd, 0)
        for l in range(1, L + 1):  # noqa: E741
            for n in range(NG):
                value = splat(0.0)
                for lm in range(l * l - 1, l * l + 2 * l):
                    value += (2.0 * square_weights[lm]) * (v_s[lm * NG + n] * v_d[lm * NG + n])
                store(qd, NR + (l - 1) * NA + n * LANES, value)
        for block in range(L, N_BLOCKS):
            for n in range(NG):
                value = splat(0.0)
                if HAS_QUARTIC and block == QUARTIC_BLOCK:
                    v2 = v_s[n] * v_s[n] + v_s[NG + n] * v_s[NG + n] + v_s[2 * NG + n] * v_s[2 * NG + n]
                    vd = v_s[n] * v_d[n] + v_s[NG + n] * v_d[NG + n] + v_s[2 * NG + n] * v_d[2 * NG + n]
                    value = (4.0 * QUARTIC) * (v2 * vd)
                else:
                    for m in range(N_CUBIC):
                        if cubic[m, 0] == block:
                            i, j, k = cubic[m, 1] * NG + n, cubic[m, 2] * NG + n, cubic[m, 3] * NG + n
                            si, sj, sk = v_s[i], v_s[j], v_s[k]
                            value += cubic_c[m] * (v_d[i] * sj * sk + si * (v_d[j] * sk + sj * v_d[k]))
                store(qd, NR + block * NA + n * LANES, value)

    @inlined
    def add_second_derivatives(s, sd, R, V):
        """Adds to ``V``."""
        v_s, v_d, v_V = lanes(s, 0), lanes(sd, 0), lanes(V, 0)
        for l in range(1, L + 1):  # noqa: E741
            for n in range(NG):
                r = 2.0 * load(R, NR + (l - 1) * NA + n * LANES)
                for lm in range(l * l - 1, l * l + 2 * l):
                    v_V[lm * NG + n] += (square_weights[lm] * v_d[lm * NG + n]) * r
        for n in range(NG):
            if HAS_QUARTIC:
                r = (4.0 * QUARTIC) * load(R, NR + QUARTIC_BLOCK * NA + n * LANES)
                v2 = v_s[n] * v_s[n] + v_s[NG + n] * v_s[NG + n] + v_s[2 * NG + n] * v_s[2 * NG + n]
                vd = v_s[n] * v_d[n] + v_s[NG + n] * v_d[NG + n] + v_s[2 * NG + n] * v_d[2 * NG + n]
                for lm in range(3):
                    v_V[lm * NG + n] += r * (v2 * v_d[lm * NG + n] + (2.0 * vd) * v_s[lm * NG + n])
            for m in range(N_CUBIC):
                r = cubic_c[m] * load(R, NR + cubic[m, 0] * NA + n * LANES)
                i, j, k = cubic[m, 1] * NG + n, cubic[m, 2] * NG + n, cubic[m, 3] * NG + n
                si, sj, sk = v_s[i], v_s[j], v_s[k]
                di, dj, dk = v_d[i], v_d[j], v_d[k]
                v_V[i] += r * (dj * sk + sj * dk)
                v_V[j] += r * (di * sk + si * dk)
                v_V[k] += r * (di * sj + si * dj)

    return AngularComponents(values, adjoint, tangent, add_second_derivatives)
