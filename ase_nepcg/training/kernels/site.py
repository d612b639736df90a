"""One site, given the sums A of its neighbours: descriptor, network, and their derivatives forward and backward.

=============  ===================================================================  ==============================
symbol         meaning                                                              variable
=============  ===================================================================  ==============================
q_n, s_nlm     ``sum_tk c_tkn A_tk``, ``sum_tk c_tkn A_tklm``                         ``q``, ``s`` (lanes: n)
q_nl ...       invariants of s                                                      ``q``, from n_radial on
h, U           ``tanh(w0 q - b0)``, ``w1 . h - b1``                                  ``h``
P, S           ``dU/dq``, ``dU/ds``                                                 ``P``, ``S``
B              ``dU/dA = sum_n c P`` and ``sum_n c S``                               ``Br``, ``Ba``
dot            derivative along a displacement (tangent), A dot given               ``qd``, ``sd``
G              ``a U - P . qd``: the gradient of the loss is dG/d(parameters)
Q, R           ``dG/dq``, ``dG/d(qd) = -P``                                          ``Q``, ``R``
V, N           ``dG/ds``, ``dG/d(sd) = -S``                                          ``V``, ``N``
=============  ===================================================================  ==============================

With ``h' = 1 - h^2`` the network gives ``dG/dw1 = a h - h' zd``, ``dG/dz = a w1 h' + 2 w1 h h' zd = alpha`` and
``dG/d(zd) = -w1 h' = beta`` for its arguments ``z = w0 q - b0``, ``zd = w0 qd``.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from ...potential.angular import angular_components
from ...potential.cache import inlined
from ...potential.linear import columns_product, matvec, row_dots, rows_product
from ...potential.simd import LANES, lanes, splat, store, vsum
from .layout import Layout

__all__ = ["SiteFunctions", "site_functions"]


class SiteFunctions(NamedTuple):
    """Compiled functions for one layout; ``base`` is where the parameters of the site's type begin, ``at`` the offsets
    of their parts."""

    descriptor: object
    network: object
    adjoint: object
    derivatives_of_sums: object
    tangent: object
    network_gradient: object
    coefficient_gradient: object


@functools.cache
def site_functions(layout: Layout) -> SiteFunctions:
    """The functions of one site for models of this layout."""
    shape = layout.shape
    NR, KR, NA, KA, L = shape[:5]
    LM, LMP, D = shape.n_sums, layout.lm, shape.n_descriptor
    LMV = LMP // LANES
    NRV, NG, NV = layout.n_radial // LANES, layout.n_angular // LANES, layout.neurons // LANES
    NAP = layout.n_angular
    values, adjoint, tangent_of_values, add_second_derivatives = angular_components(NR, NA, L, shape.many_body)

    @inlined
    def contract(weights, base, at, n_local, present, Ar, Aa, q, s):
        """``q_n`` and ``s_nlm`` (also their tangents, from those of A)."""
        v_w, v_q, v_s = lanes(weights, 0), lanes(q, 0), lanes(s, 0)
        for n in range(NRV):
            v_q[n] = 0.0
        for m in range(LM * NG):
            v_s[m] = 0.0
        for t in range(n_local):
            radial = (base + at[4] + present[t] * KR * NRV * LANES) // LANES
            matvec(v_w, radial, Ar, t * KR, KR, v_q, NRV)
            angular = (base + at[5] + present[t] * KA * NAP) // LANES
            for g in range(NG):
                columns_product(Aa, t * KA * LMP, LMP, KA, v_w, angular + g, NG, LM, v_s, g, NG)

    @inlined
    def descriptor(weights, base, at, n_local, present, Ar, Aa, q, s):
        """``q`` and ``s``."""
        contract(weights, base, at, n_local, present, Ar, Aa, q, s)
        values(s, q)

    @inlined
    def tangent(weights, base, at, n_local, present, Ard, Aad, s, qd, sd):
        """``qd`` and ``sd`` from the tangents of A."""
        contract(weights, base, at, n_local, present, Ard, Aad, qd, sd)
        tangent_of_values(s, sd, qd)

    @inlined
    def network(weights, base, at, q, h, y, P):
        """Site energy, hidden layer, ``y = w1 h'`` and ``P``. Padded neurons have zero weights."""
        v_w0 = lanes(weights, base)
        v_b0, v_w1 = lanes(weights, base + at[1]), lanes(weights, base + at[2])
        v_h, v_y = lanes(h, 0), lanes(y, 0)
        for v in range(NV):
            v_h[v] = -v_b0[v]
        matvec(v_w0, 0, q, 0, D, v_h, NV)
        U = splat(0.0)
        for v in range(NV):
            t = math.tanh(v_h[v])
            v_h[v] = t
            U += v_w1[v] * t
            v_y[v] = v_w1[v] * (1.0 - t * t)
        for d in range(0, D, LANES):
            store(P, d, row_dots(v_y, 0, 1, v_w0, d * NV, 1, NV, NV))
        return vsum(U) - weights[base + at[3]] - weights[base + at[3] + 1]

    @inlined
    def derivatives_of_sums(weights, base, at, n_local, present, P, S, transposed, Br, Ba):
        """``Br[t KR + k] = sum_n c P`` and ``Ba[t KA + k, lm] = sum_n c S``."""
        v_w, v_P, v_S, v_B = lanes(weights, 0), lanes(P, 0), lanes(transposed, 0), lanes(Ba, 0)
        for n in range(NA):
            for lm in range(LM):
                transposed[n * LMP + lm] = S[lm * NAP + n]
        for t in range(n_local):
            radial = (base + at[4]) // LANES + present[t] * KR * NRV
            for k in range(0, KR, LANES):
                # the last rows belong to something else and are overwritten, or lie behind the end
                store(Br, t * KR + k, row_dots(v_P, 0, 1, v_w, radial + k * NRV, 1, NRV, NRV))
            angular = base + at[5] + present[t] * KA * NAP
            for k in range(KA):
                for v in range(LMV):
                    v_B[(t * KA + k) * LMV + v] = 0.0
                matvec(v_S, 0, weights, angular + k * NAP, NA, lanes(Ba, (t * KA + k) * LMP), LMV)

    @inlined
    def network_gradient(weights, grad, base, at, a, q, qd, h, zd, alpha, Q):
        """Adds ``dG/d(w0, b0, w1, b1)`` to ``grad``; ``Q``."""
        v_w0, v_w1 = lanes(weights, base), lanes(weights, base + at[2])
        g_w0, g_b0, g_w1 = lanes(grad, base), lanes(grad, base + at[1]), lanes(grad, base + at[2])
        v_h, v_zd, v_alpha = lanes(h, 0), lanes(zd, 0), lanes(alpha, 0)
        for v in range(NV):
            v_zd[v] = 0.0
        matvec(v_w0, 0, qd, 0, D, v_zd, NV)
        for v in range(NV):
            slope = 1.0 - v_h[v] * v_h[v]
            g_w1[v] += a * v_h[v] - slope * v_zd[v]
            beta = -v_w1[v] * slope
            v_alpha[v] = -beta * (a + 2.0 * (v_h[v] * v_zd[v]))
            g_b0[v] -= v_alpha[v]
            v_zd[v] = beta
        for d in range(D):
            for v in range(NV):
                g_w0[d * NV + v] += v_alpha[v] * q[d] + v_zd[v] * qd[d]
        for d in range(0, D, LANES):
            store(Q, d, row_dots(v_alpha, 0, 1, v_w0, d * NV, 1, NV, NV))
        grad[base + at[3]] -= a
        grad[base + at[3] + 1] -= a

    @inlined
    def coefficient_gradient(grad, base, at, n_local, present, Ar, Aa, Ard, Aad, s, sd, S, P, Q, R, V):
        """Adds ``dG/dc`` to ``grad``; needs ``S`` for ``N = -S``, which is made in place, as is ``R = -P``."""
        g = lanes(grad, 0)
        v_P, v_Q, v_R, v_S, v_V = lanes(P, 0), lanes(Q, 0), lanes(R, 0), lanes(S, 0), lanes(V, 0)
        for d in range(-(-(D + 1) // LANES) + NG):
            v_R[d] = -v_P[d]
        adjoint(s, Q, V)
        add_second_derivatives(s, sd, R, V)
        for m in range(LM * NG):
            v_S[m] = -v_S[m]
        for t in range(n_local):
            radial = (base + at[4]) // LANES + present[t] * KR * NRV
            for k in range(KR):
                for n in range(NRV):
                    g[radial + k * NRV + n] += Ar[t * KR + k] * v_Q[n] + Ard[t * KR + k] * v_R[n]
            angular = (base + at[5] + present[t] * KA * NAP) // LANES
            for n in range(NG):
                rows_product(Aa, t * KA * LMP, LMP, KA, v_V, n, NG, LM, g, angular + n, NG)
                rows_product(Aad, t * KA * LMP, LMP, KA, v_S, n, NG, LM, g, angular + n, NG)

    return SiteFunctions(
        descriptor, network, adjoint, derivatives_of_sums, tangent, network_gradient, coefficient_gradient
    )
