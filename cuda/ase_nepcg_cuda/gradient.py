"""The exact gradient of the loss: one displacement per frame, tangents forward, adjoints backward.

As ``ase_nepcg.training.kernels.gradient``: with ``a = dL/dE`` of a frame, ``lambda_i = dL/dF_i`` and ``eta = dL/dW``
held fixed, the gradient is that of ``G = sum_i (a U_i - U'_i)``, where ' is the derivative along the displacement
``r_ij' = lambda_j - lambda_i + eta r_ij`` of every pair vector.

=================  ==================================================================  ========================
symbol             meaning                                                             shape (flat)
=================  ==================================================================  ========================
``A``, ``Ad``      sums of T_k over neighbours of type t, and their tangents           (T, KR, N)
``B``, ``Bd``      sums of T_k b_lm, likewise                                          (T, KA, LM, N)
``Q``, ``Qd``      descriptor                                                          (D, N)
``U``, ``V``       dG/dq, dG/dq'                                                       (D, N)
``S``, ``Sd``      s_{n,lm} and tangents, then dG/ds and dG/ds'                        (NA, LM, N)
``hidden``         dG/dy, dG/dy' and dG/dw1 of every neuron                            (3, N1, N)
=================  ==================================================================  ========================

    y = w0 q - b0, h = tanh y, U_i = w1 . h - bias
    dG/dy = w1 h' (a + 2 h y'),  dG/dy' = -w1 h',  dG/dw1 = a h - h' y'          h' = 1 - h^2
    dG/dw0 = sum_i dG/dy q + dG/dy' q',   dG/dc_nk = sum_i dG/ds_n A_k + dG/ds'_n A'_k

Sums over sites are in double precision and a fixed order: one block of threads for each parameter.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from numba import cuda, float64

from ase_nepcg.potential.invariants import legendre_tables
from ase_nepcg.potential.layout import Shape

from .device import device_function, kernel, number_type, stage
from .integrate import TEAM, make_team
from .nep import PAIR, functions_at_once
from .precision import precision
from .terms import build_tanh, build_terms
from .vectors import build_vectors

__all__ = ["Gradient", "build_gradient"]


class Gradient(NamedTuple):
    """Stages ``tangents`` (lanes: KA + 1 parts) and ``backward``; kernels, one block for each number of ``out``:
    ``of_network`` (T, N1, D + 2): w0, b0, w1; ``of_radial`` (T, T, NR, KR), ``of_angular`` (T, T, NA, KA), folded."""

    tangents: object
    backward: object
    of_network: object
    of_radial: object
    of_angular: object


@functools.cache
def build_gradient(shape: Shape, name: str) -> Gradient:
    """The kernels for one model shape and precision."""
    kinds = precision(name)
    real, maths = number_type(kinds.real), kinds.maths
    cutoff, angular_basis = maths.cutoff, maths.angular_basis
    place, rows, between = build_vectors(name, kinds.fastmath)
    zero, one, two, four = (kinds.real(c) for c in (0.0, 1.0, 2.0, 4.0))
    NR, KR, NA, KA, L = shape[:5]
    LM, ZS, D, N1 = shape.n_sums, shape.n_zlm, shape.n_descriptor, shape.neurons
    TEMPERATURE = shape.temperature
    ROW = -(-NA // functions_at_once(shape)) * functions_at_once(shape)
    recur_a, recur_b, z_slope = (table.astype(kinds.real) for table in legendre_tables(L))
    terms = build_terms(shape, name, functions_at_once(shape))
    descriptor, adjoint, tangent, adjoint_tangent = (
        terms.descriptor, terms.adjoint, terms.tangent, terms.adjoint_tangent,
    )  # fmt: skip
    tanh = build_tanh(name)
    team = make_team("block", TEAM)
    rank, add = team.rank, team.sum
    inlined = device_function(fastmath=kinds.fastmath)

    @inlined
    def radius(r, rc_inverse):
        """x of the polynomials, cutoff and slope, dx/dr times the cutoff."""
        v = one - r * rc_inverse
        fc, dfc = cutoff(v, rc_inverse)
        return two * (v * v) - one, fc, dfc, -four * rc_inverse * (v * fc)

    @inlined
    def moved(r, move, mine, j, n, eta, e):
        """``r_ij'`` of the pair vector r; ``mine``: lambda_i."""
        x, y, z = r
        return (
            move[j] - mine[0] + eta[e] * x + eta[e + 3] * y + eta[e + 5] * z,
            move[n + j] - mine[1] + eta[e + 3] * x + eta[e + 1] * y + eta[e + 4] * z,
            move[2 * n + j] - mine[2] + eta[e + 5] * x + eta[e + 4] * y + eta[e + 2] * z,
        )

    @stage(lanes=True, fastmath=kinds.fastmath)
    def tangents(
        i, lane, lanes, n, copies, n_types, u, replica, types, to_vector, near_end, near, angular_end, angular, pair,
        move, eta, A, Ad, B, Bd,
    ):  # fmt: skip
        """Part k < KA: the angular sums with T_k; part KA: all radial ones."""
        a, copied, e = types[i], n * copies, 6 * replica[i]
        here, box = place(u, i, copied), rows(to_vector, 9 * replica[i])
        mine = move[i], move[n + i], move[2 * n + i]
        for part in range(lane, KA + 1, lanes):
            if part == KA:
                f, fd = cuda.local.array(KR, real), cuda.local.array(KR, real)
                for t in range(n_types):
                    rc, inverse_rc = pair[PAIR * (a * n_types + t)], pair[PAIR * (a * n_types + t) + 1]
                    for k in range(KR):
                        f[k] = fd[k] = zero
                    for slot in range(near_end[t * n + i], near_end[(t + 1) * n + i]):
                        j = near[slot * n + i]
                        vector = between(u, j, copied, here, box)
                        x, y, z = vector
                        r = math.sqrt(x * x + y * y + z * z)
                        if r < rc:
                            dx, dy, dz = moved(vector, move, mine, j % n, n, eta, e)
                            speed = (x * dx + y * dy + z * dz) / r
                            c, fc, dfc, fdx = radius(r, inverse_rc)
                            t0, t1, d0, d1 = one, c, zero, one
                            f[0] += fc
                            fd[0] += dfc * speed
                            for k in range(1, KR):
                                f[k] += fc * t1
                                fd[k] += (dfc * t1 + fdx * d1) * speed
                                d0, d1 = d1, two * t1 + two * c * d1 - d0
                                t0, t1 = t1, two * c * t1 - t0
                    for k in range(KR):
                        A[(t * KR + k) * n + i] = f[k]
                        Ad[(t * KR + k) * n + i] = fd[k]
            else:
                b, bd = cuda.local.array(LM, real), cuda.local.array(LM, real)
                s, sd = cuda.local.array(LM, real), cuda.local.array(LM, real)
                Z = cuda.local.array(ZS, real)
                for t in range(n_types):
                    rc, inverse_rc = pair[PAIR * (a * n_types + t) + 2], pair[PAIR * (a * n_types + t) + 3]
                    for lm in range(LM):
                        s[lm] = sd[lm] = zero
                    for slot in range(angular_end[t * n + i], angular_end[(t + 1) * n + i]):
                        j = angular[slot * n + i]
                        vector = between(u, j, copied, here, box)
                        x, y, z = vector
                        r = math.sqrt(x * x + y * y + z * z)
                        if r < rc:
                            dx, dy, dz = moved(vector, move, mine, j % n, n, eta, e)
                            inverse_r = one / r
                            x, y, z = x * inverse_r, y * inverse_r, z * inverse_r
                            speed = x * dx + y * dy + z * dz
                            # the motion of the unit vector
                            dx, dy, dz = dx - x * speed, dy - y * speed, dz - z * speed
                            dx, dy, dz = dx * inverse_r, dy * inverse_r, dz * inverse_r
                            c, fc, dfc, fdx = radius(r, inverse_rc)
                            t0, t1, d0, d1 = one, c, zero, one
                            for _ in range(part):
                                d0, d1 = d1, two * t1 + two * c * d1 - d0
                                t0, t1 = t1, two * c * t1 - t0
                            value, slope = fc * t0, (dfc * t0 + fdx * d0) * speed
                            angular_basis(x, y, z, L, recur_a, recur_b, b, 0, Z, 0)
                            cosine, sine, cosine1, sine1 = one, zero, zero, zero
                            for m in range(L + 1):
                                for l in range(max(m, 1), L + 1):  # noqa: E741
                                    legendre, steep = Z[m * (L + 1) + l], zero
                                    if m < l:
                                        steep = z_slope[l, m] * Z[(m + 1) * (L + 1) + l] * dz
                                    first = l * l - 1 + max(2 * m - 1, 0)
                                    legendre *= real(m)
                                    bd[first] = steep * cosine + legendre * (cosine1 * dx - sine1 * dy)
                                    if m > 0:
                                        bd[first + 1] = steep * sine + legendre * (sine1 * dx + cosine1 * dy)
                                cosine1, sine1 = cosine, sine
                                cosine, sine = x * cosine - y * sine, x * sine + y * cosine
                            for lm in range(LM):
                                s[lm] += value * b[lm]
                                sd[lm] += slope * b[lm] + value * bd[lm]
                    for lm in range(LM):
                        B[((t * KA + part) * LM + lm) * n + i] = s[lm]
                        Bd[((t * KA + part) * LM + lm) * n + i] = sd[lm]

    @stage(fastmath=kinds.fastmath)
    def backward(
        i, n, n_types, types, replica, c_radial, c_angular, w0, b0, w1, temperatures, a_energy, A, Ad, B, Bd, Q, Qd, U,
        V, S, Sd, hidden,
    ):  # fmt: skip
        """Forward to the descriptor and its tangent, through the network, and back to the sums."""
        a, weight = types[i], a_energy[replica[i]]
        s, sd = cuda.local.array(LM, real), cuda.local.array(LM, real)
        g, gd = cuda.local.array(LM, real), cuda.local.array(LM, real)
        q, qd = cuda.local.array(D, real), cuda.local.array(D, real)
        p, pd = cuda.local.array(D, real), cuda.local.array(D, real)
        for d in range(NR):
            value = slope = zero
            for t in range(n_types):
                first = ((a * n_types + t) * NR + d) * KR
                for k in range(KR):
                    value += c_radial[first + k] * A[(t * KR + k) * n + i]
                    slope += c_radial[first + k] * Ad[(t * KR + k) * n + i]
            Q[d * n + i], Qd[d * n + i] = value, slope
        for f in range(NA):
            for lm in range(LM):
                s[lm] = sd[lm] = zero
            for t in range(n_types):
                first = ((a * n_types + t) * ROW + f) * KA
                for k in range(KA):
                    for lm in range(LM):
                        s[lm] += c_angular[first + k] * B[((t * KA + k) * LM + lm) * n + i]
                        sd[lm] += c_angular[first + k] * Bd[((t * KA + k) * LM + lm) * n + i]
            descriptor(s, Q, (NR + f) * n + i, NA * n, 0)
            tangent(s, sd, Qd, (NR + f) * n + i, NA * n)
            for lm in range(LM):
                S[(f * LM + lm) * n + i], Sd[(f * LM + lm) * n + i] = s[lm], sd[lm]
        if TEMPERATURE:
            Q[(D - 1) * n + i], Qd[(D - 1) * n + i] = temperatures[replica[i]], zero
        for d in range(D):
            q[d], qd[d] = Q[d * n + i], Qd[d * n + i]
            p[d] = pd[d] = zero
        for neuron in range(N1):
            row = a * N1 + neuron
            y, yd = -b0[row], zero
            for d in range(D):
                y += w0[row * D + d] * q[d]
                yd += w0[row * D + d] * qd[d]
            h = tanh(y)
            slope = one - h * h
            by_y, by_yd = w1[row] * slope * (weight + two * h * yd), -w1[row] * slope
            hidden[neuron * n + i], hidden[(N1 + neuron) * n + i] = by_y, by_yd
            hidden[(2 * N1 + neuron) * n + i] = weight * h - slope * yd
            for d in range(D):
                p[d] += by_y * w0[row * D + d]
                pd[d] += by_yd * w0[row * D + d]
        for d in range(D):
            U[d * n + i], V[d * n + i] = p[d], pd[d]
        for f in range(NA):
            for lm in range(LM):
                s[lm], sd[lm] = S[(f * LM + lm) * n + i], Sd[(f * LM + lm) * n + i]
            adjoint(s, g, U, (NR + f) * n + i, NA * n)
            adjoint_tangent(s, sd, g, V, (NR + f) * n + i, NA * n)
            adjoint(s, gd, V, (NR + f) * n + i, NA * n)
            for lm in range(LM):
                S[(f * LM + lm) * n + i], Sd[(f * LM + lm) * n + i] = g[lm], gd[lm]

    def sum_over_sites(term):
        """Kernel: for every number of ``out``, the sum of ``term(i, n, entry, n_types, *arguments)`` over the sites
        of its central type, the first index of ``out``; one block each."""
        one = device_function()(term)

        def all_sums(n, n_types, types, arguments, out):
            entry = cuda.blockIdx.x
            a = entry // (out.size // n_types)
            memory = (cuda.shared.array(TEAM, float64), out)
            total = 0.0
            for i in range(rank(), n, TEAM):
                if types[i] == a:
                    total += one(i, n, entry, n_types, *arguments)
            total = add(total, memory)
            if rank() == 0:
                out[entry] = total

        all_sums.__name__ = all_sums.__qualname__ = term.__name__
        return kernel(all_sums, threads=TEAM)

    @sum_over_sites
    def of_network(i, n, entry, n_types, Q, Qd, hidden):
        column, neuron = entry % (D + 2), entry // (D + 2) % N1
        if column < D:
            by_y, by_yd = float64(hidden[neuron * n + i]), float64(hidden[(N1 + neuron) * n + i])
            return by_y * Q[column * n + i] + by_yd * Qd[column * n + i]
        if column == D:
            return -float64(hidden[neuron * n + i])
        return float64(hidden[(2 * N1 + neuron) * n + i])

    @sum_over_sites
    def of_radial(i, n, entry, n_types, A, Ad, U, V):
        k, d, t = entry % KR, entry // KR % NR, entry // (KR * NR) % n_types
        at = (t * KR + k) * n + i
        return float64(U[d * n + i]) * A[at] + float64(V[d * n + i]) * Ad[at]

    @sum_over_sites
    def of_angular(i, n, entry, n_types, B, Bd, S, Sd):
        k, f, t = entry % KA, entry // KA % NA, entry // (KA * NA) % n_types
        total = 0.0
        for lm in range(LM):
            at, of = ((t * KA + k) * LM + lm) * n + i, (f * LM + lm) * n + i
            total += float64(S[of]) * B[at] + float64(Sd[of]) * Bd[at]
        return total

    return Gradient(tangents, backward, of_network, of_radial, of_angular)
