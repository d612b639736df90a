"""The many-body terms and the angular gradient as device functions without loops over tables.

The sums of a site live in registers, and registers can be indexed by constants only. So each term of a formula is a
function that holds its indices, and :func:`chained` makes one function of them (numba has no loop over functions).
"""

from __future__ import annotations

import functools
import math

from ase_nepcg.potential.invariants import QUARTIC, cubic_terms, legendre_tables, three_body_weights
from ase_nepcg.potential.layout import Shape

from .device import device_function
from .precision import precision

__all__ = ["Terms", "build_tanh", "build_terms", "chained"]


def chained(functions, inlined):
    """Device function that calls all ``functions``, each with the same arguments, one after the other."""
    if len(functions) == 1:
        return functions[0]
    half = len(functions) // 2
    first, second = chained(functions[:half], inlined), chained(functions[half:], inlined)

    @inlined
    def both(*arguments):
        first(*arguments)
        second(*arguments)

    return both


@functools.cache
def build_tanh(name: str):
    """tanh of one precision. That of CUDA's fast single-precision maths is good to 5e-4 only."""
    kinds = precision(name)
    one, two, mixed = kinds.real(1.0), kinds.real(2.0), name == "mixed"

    @device_function(fastmath=kinds.fastmath)
    def tanh(x):
        if mixed:
            # the absolute error counts, 1e-7
            return one - two / (math.exp(two * x) + one)
        return math.tanh(x)

    return tanh


class Terms:
    """``descriptor(s, Q, at, step, _)``: the angular components of one function, ``Q[at + step block]``;
    ``adjoint(s, dS, P, at, step)``: ``dS = sum_d P_d dq_d/ds``; ``gradient(dS, g, dg, z, x, y)``: see below.

    Tangents along ``sd``, for training: ``tangent(s, sd, Qd, at, step)``: ``Qd_d = (dq_d/ds) . sd``;
    ``adjoint_tangent(s, sd, dS, P, at, step)`` adds ``sum_d P_d (d^2 q_d/ds ds) . sd`` to ``dS``."""

    def __init__(self, shape: Shape, name: str, functions: int):
        kinds = precision(name)
        self._real = kinds.real
        self._zero, self._one = kinds.real(0.0), kinds.real(1.0)

        inlined = self._inlined = device_function(fastmath=kinds.fastmath)
        L = shape.l_max
        weights = three_body_weights(L).astype(kinds.real)
        values, slopes, tangents, curvatures = [], [], [], []
        for l in range(1, L + 1):  # noqa: E741
            value, slope, tangent, curvature = self._square(l, weights)
            values.append(value)
            slopes.append(slope)
            tangents.append(tangent)
            curvatures.append(curvature)
        for block, many_body in enumerate(shape.many_body, start=L):
            if many_body == "q1111":
                value, slope, tangent, curvature = self._quartic(block)
                values.append(value)
                slopes.append(slope)
                tangents.append(tangent)
                curvatures.append(curvature)
                continue
            terms = [self._cubic(block, *ijk, c) for ijk, c in zip(*cubic_terms(many_body), strict=True)]
            values.append(self._store(block, [term[0] for term in terms]))
            slopes += [term[1] for term in terms]
            tangents.append(self._store_tangent(block, [term[2] for term in terms]))
            curvatures += [term[3] for term in terms]
        self.descriptor = chained(values, inlined)
        self.adjoint = chained(slopes, inlined)
        self.tangent = chained(tangents, inlined)
        self.adjoint_tangent = chained(curvatures, inlined)
        self.gradient = self._gradient(L, functions)

    def _square(self, l, weights):  # noqa: E741
        """``q_l = sum_k w_{l,k} s_{l,k}^2``, block l - 1."""
        begin, end, two, zero, block = l * l - 1, l * l + 2 * l, self._real(2.0), self._zero, l - 1

        @self._inlined
        def value(s, Q, at, step, unused):
            q = zero
            for lm in range(begin, end):
                q += weights[lm] * (s[lm] * s[lm])
            Q[at + block * step] = q

        @self._inlined
        def slope(s, dS, P, at, step):
            dq = two * P[at + block * step]
            for lm in range(begin, end):
                dS[lm] = (weights[lm] * s[lm]) * dq

        @self._inlined
        def tangent(s, sd, Qd, at, step):
            q = zero
            for lm in range(begin, end):
                q += weights[lm] * (s[lm] * sd[lm])
            Qd[at + block * step] = two * q

        @self._inlined
        def curvature(s, sd, dS, P, at, step):
            dq = two * P[at + block * step]
            for lm in range(begin, end):
                dS[lm] += (weights[lm] * sd[lm]) * dq

        return value, slope, tangent, curvature

    def _quartic(self, block):
        """``q_1111 = QUARTIC (s0^2 + s1^2 + s2^2)^2``."""
        quartic, two, four = self._real(QUARTIC), self._real(2.0), self._real(4.0)

        @self._inlined
        def value(s, Q, at, step, unused):
            v2 = s[0] * s[0] + s[1] * s[1] + s[2] * s[2]
            Q[at + block * step] = quartic * (v2 * v2)

        @self._inlined
        def slope(s, dS, P, at, step):
            dv2 = four * quartic * ((s[0] * s[0] + s[1] * s[1] + s[2] * s[2]) * P[at + block * step])
            dS[0] += dv2 * s[0]
            dS[1] += dv2 * s[1]
            dS[2] += dv2 * s[2]

        @self._inlined
        def tangent(s, sd, Qd, at, step):
            v2 = s[0] * s[0] + s[1] * s[1] + s[2] * s[2]
            along = s[0] * sd[0] + s[1] * sd[1] + s[2] * sd[2]
            Qd[at + block * step] = four * quartic * (v2 * along)

        @self._inlined
        def curvature(s, sd, dS, P, at, step):
            v2 = s[0] * s[0] + s[1] * s[1] + s[2] * s[2]
            along = s[0] * sd[0] + s[1] * sd[1] + s[2] * sd[2]
            scale = four * quartic * P[at + block * step]
            dS[0] += scale * (v2 * sd[0] + two * along * s[0])
            dS[1] += scale * (v2 * sd[1] + two * along * s[1])
            dS[2] += scale * (v2 * sd[2] + two * along * s[2])

        return value, slope, tangent, curvature

    def _cubic(self, block, i, j, k, coefficient):
        """``c s_i s_j s_k``, one term of a block."""
        i, j, k, c = int(i), int(j), int(k), self._real(coefficient)

        @self._inlined
        def value(s):
            return c * (s[i] * s[j] * s[k])

        @self._inlined
        def slope(s, dS, P, at, step):
            dq = c * P[at + block * step]
            si, sj, sk = s[i], s[j], s[k]
            dS[i] += dq * (sj * sk)
            dS[j] += dq * (si * sk)
            dS[k] += dq * (si * sj)

        @self._inlined
        def tangent(s, sd):
            return c * (sd[i] * s[j] * s[k] + s[i] * sd[j] * s[k] + s[i] * s[j] * sd[k])

        @self._inlined
        def curvature(s, sd, dS, P, at, step):
            dq = c * P[at + block * step]
            dS[i] += dq * (sd[j] * s[k] + s[j] * sd[k])
            dS[j] += dq * (sd[i] * s[k] + s[i] * sd[k])
            dS[k] += dq * (sd[i] * s[j] + s[i] * sd[j])

        return value, slope, tangent, curvature

    def _total(self, functions):
        """The sum of functions of the same arguments."""
        if len(functions) == 1:
            return functions[0]
        half = len(functions) // 2
        first, second = self._total(functions[:half]), self._total(functions[half:])

        @self._inlined
        def both(*arguments):
            return first(*arguments) + second(*arguments)

        return both

    def _store_tangent(self, block, values):
        """The sum of the tangents of all terms of a block."""
        sum_of_terms = self._total(values)

        @self._inlined
        def tangent(s, sd, Qd, at, step):
            Qd[at + block * step] = sum_of_terms(s, sd)

        return tangent

    def _store(self, block, values):
        """The sum of all terms of a block."""
        sum_of_terms = self._total(values)

        @self._inlined
        def value(s, Q, at, step, unused):
            Q[at + block * step] = sum_of_terms(s)

        return value

    def _gradient(self, L, functions):
        """``gradient(dS, g, dg, z, x, y)`` returns radial, gx, gy, gz: ``sum_lm b Q'_lm`` and ``sum_lm Q_lm grad b``
        with ``Q_lm = sum_n dS_{n,lm} g_n`` and ``Q'`` likewise with the slopes ``dg``.

        Order m has ``b_{l,2m-1} = Z_{l,m}(z) Re (x + iy)^m`` and ``b_{l,2m} = Z_{l,m}(z) Im (x + iy)^m``. Its sums over
        l come first (alpha: those that go with the real part, beta: with the imaginary one; with _r the ones of Q',
        with _z the derivatives in z), then the powers of x + iy.
        """
        z_slope = legendre_tables(L)[2].astype(self._real)
        LM, zero, one = L * (L + 2), self._zero, self._one
        inlined, real = self._inlined, self._real

        @inlined
        def end(dS, g, dg, z, x, y, cosine, sine, cosine1, sine1, radial, gx, gy, gz):
            return radial, gx, gy, gz

        def order(m, following):
            lowest, degree = max(m, 1), real(m)

            @inlined
            def of_order(dS, g, dg, z, x, y, cosine, sine, cosine1, sine1, radial, gx, gy, gz):
                alpha = alpha_r = alpha_z = beta = beta_r = beta_z = zero
                for l in range(lowest, L + 1):  # noqa: E741
                    value, slope = z[m * (L + 1) + l], zero
                    if m < l:
                        slope = z_slope[l, m] * z[(m + 1) * (L + 1) + l]
                    first = l * l - 1 + max(2 * m - 1, 0)
                    q = dq = zero
                    for f in range(functions):
                        q += dS[f * LM + first] * g[f]
                        dq += dS[f * LM + first] * dg[f]
                    alpha += q * value
                    alpha_r += dq * value
                    alpha_z += q * slope
                    if m > 0:
                        q = dq = zero
                        for f in range(functions):
                            q += dS[f * LM + first + 1] * g[f]
                            dq += dS[f * LM + first + 1] * dg[f]
                        beta += q * value
                        beta_r += dq * value
                        beta_z += q * slope
                radial += alpha_r * cosine + beta_r * sine
                gz += alpha_z * cosine + beta_z * sine
                if m > 0:
                    gx += degree * (alpha * cosine1 + beta * sine1)
                    gy += degree * (beta * cosine1 - alpha * sine1)
                return following(
                    dS, g, dg, z, x, y, x * cosine - y * sine, x * sine + y * cosine, cosine, sine, radial, gx, gy, gz
                )

            return of_order

        function = end
        for m in range(L, -1, -1):
            function = order(m, function)
        orders = function

        @inlined
        def gradient(dS, g, dg, z, x, y):
            return orders(dS, g, dg, z, x, y, one, zero, zero, zero, zero, zero, zero, zero)

        return gradient


@functools.cache
def build_terms(shape: Shape, name: str, functions: int) -> Terms:
    """The :class:`Terms` of a shape, ``functions`` at a time in the gradient."""
    return Terms(shape, name, functions)
