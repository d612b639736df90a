"""The NEP kernels: sums over neighbours -> network -> partial forces -> forces and virials.

For each site i, with neighbours j at ``r_ij = r_j - r_i``, ``r = |r_ij|``, ``u = r_ij / r``::

    A_tk     = sum_{j of type t} f_k(r)                   radial sums, before the contraction with c
    q_n      = sum_{t,k} c_{t,n,k} A_tk                   radial components of the descriptor
    s_{n,lm} = sum_j g_n(r) b_lm(u)                       angular sums
    q_{n,l}  = sum_k w_{l,k} s_{n,lk}^2, ...              angular components (3-body, then many-body)
    U_i      = w1 . tanh(w0 q - b0) - b1                  site energy
    f_ij     = dU_i/dr_ij                                 partial force
    F_i      = sum_j (f_ij - f_ji)                        force
    W_i      = sum_j r_ij (x) f_ji                        virial, booked on the neighbour

=========================  =======================================  ==========================
symbol                     meaning                                  shape (flat)
=========================  =======================================  ==========================
``S``                      s_{n,lm}, then dU_i/ds_{n,lm}            (NA, LM, N)
``Q``                      q_d                                      (D, N)
``P``                      dU_i/dq_d of the angular components      (blocks, NA, N)
``slope``                  series of sum_n P_n g_n for neighbours   (N, T, KR)
                           of type t: coefficients of T_k
``part``                   angular f_ij                             (3, slots, N)
``energies``, ``forces``   U_i, F_i                                 (N,), (3, N)
``virials``                W_i                                      (9, N)
=========================  =======================================  ==========================

No atomics: a force is gathered from the site's own partial forces and those of its neighbours, which are found in the
slot ``back``. The radial partial forces are not stored; both series of a pair are added and evaluated once.

One text serves two mappings, chosen at launch by the second dimension of the grid. With one *lane*, a thread does all
work of its site; with several, they share it: the functions n in ``sums``, the neighbours in ``partial_forces``. The
functions go by in groups of ``FUNCTIONS``, so that their LM sums each stay in registers.

Everything that depends on the model's shape is a constant of the compiled kernels. Source: Fan et al., J. Chem. Phys.
157, 114801 (2022); virial: Gabourie et al., Phys. Rev. B 103, 205421 (2021).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from numba import cuda

from ase_nepcg.potential.invariants import legendre_tables
from ase_nepcg.potential.layout import Shape

from .device import Stage, device_function, number_type, stage
from .lists import OVERLAP
from .precision import precision
from .terms import build_tanh, build_terms
from .vectors import build_vectors

__all__ = ["PAIR", "Kernels", "build_kernels", "functions_at_once", "parts"]

# columns of the table of pairs: radial rc, 1/rc, angular rc, 1/rc
PAIR = 4
# two sites closer than this (Å) have no direction between them
_OVERLAP = 1e-6
# registers for angular sums: the compiler has 255 and needs some for the rest
_SUMS_IN_REGISTERS = 130


class Kernels(NamedTuple):
    """The stages of one shape and precision; ``gather``: without virials, with their sum only, with those of sites."""

    sums: Stage
    network: Stage
    partial_forces: Stage
    gather: tuple[Stage, Stage, Stage]


def functions_at_once(shape: Shape) -> int:
    """Angular functions whose sums a thread holds in registers."""
    groups = -(-shape.n_angular * shape.n_sums // _SUMS_IN_REGISTERS)
    return -(-shape.n_angular // min(groups, shape.n_angular))


def parts(shape: Shape) -> int:
    """Into how many pieces ``sums`` divides the work of a site: radial, groups of angular functions, ZBL energy."""
    return 1 + -(-shape.n_angular // functions_at_once(shape)) + shape.zbl


@functools.cache
def build_kernels(shape: Shape, name: str) -> Kernels:
    """The kernels for one model shape and precision ("mixed" or "double")."""
    kinds = precision(name)
    real, maths, zbl_energy = number_type(kinds.real), kinds.maths, kinds.zbl_energy
    cutoff, chebyshev_series, angular_basis = maths.cutoff, maths.chebyshev_series, maths.angular_basis
    place, rows, between = build_vectors(name, kinds.fastmath)
    zero, half, one, two, four = (kinds.real(c) for c in (0.0, 0.5, 1.0, 2.0, 4.0))
    overlap = kinds.real(_OVERLAP**2)

    NR, KR, NA, KA, L = shape[:5]
    LM, ZS, D = shape.n_sums, shape.n_zlm, shape.n_descriptor
    N1, N2 = shape.neurons, shape.neurons2
    TEMPERATURE, HAS_ZBL = shape.temperature, shape.zbl
    FUNCTIONS = functions_at_once(shape)
    GROUPS = -(-NA // FUNCTIONS)
    PARTS = parts(shape)
    HELD = FUNCTIONS * LM
    recur_a, recur_b, _ = (table.astype(kinds.real) for table in legendre_tables(L))
    BLOCKS = L + len(shape.many_body)
    terms = build_terms(shape, name, FUNCTIONS)
    descriptor, adjoint, gradient = terms.descriptor, terms.adjoint, terms.gradient
    tanh = build_tanh(name)

    def on_sites(function):
        return stage(function, fastmath=kinds.fastmath)

    def on_lanes(function):
        return stage(function, fastmath=kinds.fastmath, lanes=True)

    inlined = device_function(fastmath=kinds.fastmath)

    @inlined
    def argument(v):
        """``x`` of the Chebyshev polynomials."""
        return two * (v * v) - one

    @on_lanes
    def sums(
        i, lane, lanes, n, copies, n_types, u, replica, types, to_vector, near_end, near, angular_end, angular, pair,
        c_radial, c_angular, zbl_table, temperatures, Q, S, zbl_energies, state,
    ):  # fmt: skip
        a, m, copied = types[i], 9 * replica[i], n * copies
        here, box = place(u, i, copied), rows(to_vector, m)
        for part in range(lane, PARTS, lanes):
            if part == 0:
                # radial: sums over the neighbours of one type first, then their contraction with c
                q = cuda.local.array(NR, real)
                A = cuda.local.array(KR, real)
                for d in range(NR):
                    q[d] = zero
                for t in range(n_types):
                    row = PAIR * (a * n_types + t)
                    rc, inverse_rc = pair[row], pair[row + 1]
                    for k in range(KR):
                        A[k] = zero
                    for slot in range(near_end[t * n + i], near_end[(t + 1) * n + i]):
                        j = near[slot * n + i]
                        rx, ry, rz = between(u, j, copied, here, box)
                        r2 = rx * rx + ry * ry + rz * rz
                        if r2 < overlap:
                            cuda.atomic.max(state, OVERLAP, i + 1)
                        r = math.sqrt(r2)
                        if r < rc:
                            v = one - r * inverse_rc
                            fc, _ = cutoff(v, inverse_rc)
                            x = argument(v)
                            t0, t1 = fc, x * fc
                            A[0] += t0
                            for k in range(1, KR):
                                A[k] += t1
                                t0, t1 = t1, two * x * t1 - t0
                    first = (a * n_types + t) * NR * KR
                    for d in range(NR):
                        for k in range(KR):
                            q[d] += c_radial[first + d * KR + k] * A[k]
                for d in range(NR):
                    Q[d * n + i] = q[d]
                if TEMPERATURE:
                    Q[(D - 1) * n + i] = temperatures[replica[i]]
            elif part <= GROUPS:
                # angular: the sums of FUNCTIONS functions, and their components of the descriptor
                begin = (part - 1) * FUNCTIONS
                s = cuda.local.array(HELD, real)
                b = cuda.local.array(LM, real)
                z = cuda.local.array(ZS, real)
                T = cuda.local.array(KA, real)
                for k in range(HELD):
                    s[k] = zero
                for t in range(n_types):
                    row = PAIR * (a * n_types + t)
                    rc, inverse_rc = pair[row + 2], pair[row + 3]
                    first = ((a * n_types + t) * GROUPS * FUNCTIONS + begin) * KA
                    for slot in range(angular_end[t * n + i], angular_end[(t + 1) * n + i]):
                        j = angular[slot * n + i]
                        rx, ry, rz = between(u, j, copied, here, box)
                        r2 = rx * rx + ry * ry + rz * rz
                        if r2 < overlap:
                            cuda.atomic.max(state, OVERLAP, i + 1)
                        r = math.sqrt(r2)
                        if r < rc:
                            inverse_r = one / r
                            v = one - r * inverse_rc
                            fc, _ = cutoff(v, inverse_rc)
                            x = argument(v)
                            T[0] = fc
                            if KA > 1:
                                T[1] = x * fc
                            for k in range(2, KA):
                                T[k] = two * x * T[k - 1] - T[k - 2]
                            angular_basis(
                                rx * inverse_r, ry * inverse_r, rz * inverse_r, L, recur_a, recur_b, b, 0, z, 0
                            )
                            for f in range(FUNCTIONS):
                                g = zero
                                for k in range(KA):
                                    g += c_angular[first + f * KA + k] * T[k]
                                for lm in range(LM):
                                    s[f * LM + lm] += g * b[lm]
                for f in range(FUNCTIONS):
                    for lm in range(LM):
                        if begin + f < NA:
                            S[((begin + f) * LM + lm) * n + i] = s[f * LM + lm]
                # one function after the other, from memory: only constants may be indices of registers
                for f in range(begin, min(begin + FUNCTIONS, NA)):
                    for lm in range(LM):
                        b[lm] = S[(f * LM + lm) * n + i]
                    descriptor(b, Q, (NR + f) * n + i, NA * n, 0)
            elif HAS_ZBL:
                energy = zero
                for slot in range(angular_end[n_types * n + i]):
                    j = angular[slot * n + i]
                    rx, ry, rz = between(u, j, copied, here, box)
                    r = math.sqrt(rx * rx + ry * ry + rz * rz)
                    row = 10 * (a * n_types + types[j % n])
                    # the list reaches beyond the cutoff by its skin
                    if r < zbl_table[row + 1] and r < pair[PAIR * (row // 10) + 2]:
                        value, _ = zbl_energy(r, zbl_table, row)
                        energy += half * value
                zbl_energies[i] = energy

    @on_sites
    def network(i, n, n_types, types, c_radial, w0, b0, w1, w2, b2, bias, Q, P, S, slope, zbl_energies, energies):
        """``U_i``, ``S`` becomes ``dU/ds``; the series of ``sum_n P_n g_n``.

        ``w0`` (T, neurons, D) holds the scaler.
        """
        a = types[i]
        q = cuda.local.array(D, real)
        p = cuda.local.array(D, real)
        for d in range(D):
            q[d] = Q[d * n + i]
            p[d] = zero
        energy = -bias[a]
        if HAS_ZBL:
            energy += zbl_energies[i]
        if N2 == 0:
            for neuron in range(N1):
                row = a * N1 + neuron
                y = -b0[row]
                for d in range(D):
                    y += w0[row * D + d] * q[d]
                y = tanh(y)
                energy += w1[row] * y
                y = w1[row] * (one - y * y)
                for d in range(D):
                    p[d] += y * w0[row * D + d]
        else:
            h = cuda.local.array(N1, real)
            g = cuda.local.array(N1, real)
            for neuron in range(N1):
                row = a * N1 + neuron
                y = -b0[row]
                for d in range(D):
                    y += w0[row * D + d] * q[d]
                h[neuron] = tanh(y)
                g[neuron] = zero
            for second in range(N2):
                row = a * N2 + second
                y = -b2[row]
                for neuron in range(N1):
                    y += w2[row * N1 + neuron] * h[neuron]
                y = tanh(y)
                energy += w1[row] * y
                y = w1[row] * (one - y * y)
                for neuron in range(N1):
                    g[neuron] += y * w2[row * N1 + neuron]
            for neuron in range(N1):
                y = g[neuron] * (one - h[neuron] * h[neuron])
                for d in range(D):
                    p[d] += y * w0[(a * N1 + neuron) * D + d]
        energies[i] = energy
        for d in range(NA * BLOCKS):
            P[d * n + i] = p[NR + d]
        s = cuda.local.array(LM, real)
        dS = cuda.local.array(LM, real)
        for f in range(NA):
            for lm in range(LM):
                s[lm] = S[(f * LM + lm) * n + i]
            adjoint(s, dS, P, f * n + i, NA * n)
            for lm in range(LM):
                S[(f * LM + lm) * n + i] = dS[lm]
        for t in range(n_types):
            first = (a * n_types + t) * NR * KR
            for k in range(KR):
                value = zero
                for d in range(NR):
                    value += p[d] * c_radial[first + d * KR + k]
                slope[(i * n_types + t) * KR + k] = value

    @on_lanes
    def partial_forces(
        i, lane, lanes, n, copies, n_types, slots, u, replica, types, to_vector, angular_end, angular, pair, c_angular,
        zbl_table, S, part,
    ):  # fmt: skip
        """``f = sum_{n,lm} S [g' b u + (g/r) (grad b - (u . grad b) u)]``, ``S = dU/ds``, and half of each ZBL pair."""
        a, m, copied = types[i], 9 * replica[i], n * copies
        here, box = place(u, i, copied), rows(to_vector, m)
        dS = cuda.local.array(HELD, real)
        g = cuda.local.array(FUNCTIONS, real)
        dg = cuda.local.array(FUNCTIONS, real)
        T = cuda.local.array(KA, real)
        dT = cuda.local.array(KA, real)
        b = cuda.local.array(LM, real)
        z = cuda.local.array(ZS, real)
        for group in range(GROUPS):
            begin = group * FUNCTIONS
            for f in range(FUNCTIONS):
                for lm in range(LM):
                    dS[f * LM + lm] = S[((begin + f) * LM + lm) * n + i] if begin + f < NA else zero
            for slot in range(lane, angular_end[n_types * n + i], lanes):
                j = angular[slot * n + i]
                t = a * n_types + types[j % n]
                rc, inverse_rc = pair[PAIR * t + 2], pair[PAIR * t + 3]
                first = (t * GROUPS * FUNCTIONS + begin) * KA
                rx, ry, rz = between(u, j, copied, here, box)
                r = math.sqrt(rx * rx + ry * ry + rz * rz)
                fx = fy = fz = zero
                if r < rc:
                    inverse_r = one / r
                    x, y, w = rx * inverse_r, ry * inverse_r, rz * inverse_r
                    v = one - r * inverse_rc
                    fc, dfc = cutoff(v, inverse_rc)
                    c = argument(v)
                    fdx = -four * inverse_rc * (v * fc)
                    # f_k and f_k' but for the folded constant: fc T_k, fc' T_k + fc T_k' dx/dr
                    t0, t1, d0, d1 = one, c, zero, one
                    T[0], dT[0] = fc, dfc
                    for k in range(1, KA):
                        T[k] = fc * t1
                        dT[k] = dfc * t1 + fdx * d1
                        d0, d1 = d1, two * t1 + two * c * d1 - d0
                        t0, t1 = t1, two * c * t1 - t0
                    for f in range(FUNCTIONS):
                        g[f] = dg[f] = zero
                        for k in range(KA):
                            g[f] += c_angular[first + f * KA + k] * T[k]
                            dg[f] += c_angular[first + f * KA + k] * dT[k]
                    angular_basis(x, y, w, L, recur_a, recur_b, b, 0, z, 0)
                    radial, gx, gy, gz = gradient(dS, g, dg, z, x, y)
                    along = radial - inverse_r * (gx * x + gy * y + gz * w)
                    fx, fy, fz = along * x + inverse_r * gx, along * y + inverse_r * gy, along * w + inverse_r * gz
                if group > 0:
                    fx += part[slot * n + i]
                    fy += part[(slots + slot) * n + i]
                    fz += part[(2 * slots + slot) * n + i]
                elif HAS_ZBL and r < zbl_table[10 * t + 1] and r < rc:
                    _, dV = zbl_energy(r, zbl_table, 10 * t)
                    dV *= half / r
                    fx, fy, fz = fx + dV * rx, fy + dV * ry, fz + dV * rz
                part[slot * n + i] = fx
                part[(slots + slot) * n + i] = fy
                part[(2 * slots + slot) * n + i] = fz

    def build_gather(SUM, SITES):
        @on_sites
        def gather(
            i, n, copies, n_types, slots, u, replica, types, to_vector, near_end, near, angular_end, angular, back,
            pair, slope, part, forces, virials,
        ):  # fmt: skip
            """``F_i``; ``virials``: those of the sites, or (SUM) other ones with the same sum."""
            a, m, copied = types[i], 9 * replica[i], n * copies
            here, box = place(u, i, copied), rows(to_vector, m)
            own = cuda.local.array(KR, real)
            both = cuda.local.array(KR, real)
            fx = fy = fz = zero
            w0 = w1 = w2 = w3 = w4 = w5 = w6 = w7 = w8 = zero
            for t in range(n_types):
                row = PAIR * (a * n_types + t)
                rc, inverse_rc = pair[row], pair[row + 1]
                for k in range(KR):
                    own[k] = slope[(i * n_types + t) * KR + k]
                for slot in range(near_end[t * n + i], near_end[(t + 1) * n + i]):
                    j = near[slot * n + i]
                    rx, ry, rz = between(u, j, copied, here, box)
                    r = math.sqrt(rx * rx + ry * ry + rz * rz)
                    if r < rc:
                        theirs = (j % n * n_types + a) * KR
                        v = one - r * inverse_rc
                        fc, dfc = cutoff(v, inverse_rc)
                        fdx = -four * inverse_rc * (v * fc)
                        x = argument(v)
                        inverse_r = one / r
                        if SITES:
                            # the series of the neighbour alone, for its partial force
                            for k in range(KR):
                                both[k] = slope[theirs + k]
                            p, dp = chebyshev_series(both, 0, KR, x)
                            other = (dfc * p + fdx * dp) * inverse_r
                            p, dp = chebyshev_series(own, 0, KR, x)
                            f = (dfc * p + fdx * dp) * inverse_r + other
                            # r_ij (x) f_ji, f_ji = other r_ji
                            scale = -other
                        else:
                            for k in range(KR):
                                both[k] = own[k] + slope[theirs + k]
                            p, dp = chebyshev_series(both, 0, KR, x)
                            f = (dfc * p + fdx * dp) * inverse_r
                            scale = -half * f
                        fx += f * rx
                        fy += f * ry
                        fz += f * rz
                        if SUM or SITES:
                            vx, vy, vz = scale * rx, scale * ry, scale * rz
                            w0, w1, w2 = w0 + rx * vx, w1 + rx * vy, w2 + rx * vz
                            w3, w4, w5 = w3 + ry * vx, w4 + ry * vy, w5 + ry * vz
                            w6, w7, w8 = w6 + rz * vx, w7 + rz * vy, w8 + rz * vz
            for slot in range(angular_end[n_types * n + i]):
                j = angular[slot * n + i]
                other = back[slot * n + i] * n + j % n
                px, py, pz = part[other], part[slots * n + other], part[2 * slots * n + other]
                mine = slot * n + i
                ox, oy, oz = part[mine], part[slots * n + mine], part[2 * slots * n + mine]
                fx, fy, fz = fx + (ox - px), fy + (oy - py), fz + (oz - pz)
                if SUM or SITES:
                    rx, ry, rz = between(u, j, copied, here, box)
                    if not SITES:
                        px, py, pz = half * (px - ox), half * (py - oy), half * (pz - oz)
                    w0, w1, w2 = w0 + rx * px, w1 + rx * py, w2 + rx * pz
                    w3, w4, w5 = w3 + ry * px, w4 + ry * py, w5 + ry * pz
                    w6, w7, w8 = w6 + rz * px, w7 + rz * py, w8 + rz * pz
            forces[i] = fx
            forces[n + i] = fy
            forces[2 * n + i] = fz
            if SUM or SITES:
                virials[i] = w0
                virials[n + i] = w1
                virials[2 * n + i] = w2
                virials[3 * n + i] = w3
                virials[4 * n + i] = w4
                virials[5 * n + i] = w5
                virials[6 * n + i] = w6
                virials[7 * n + i] = w7
                virials[8 * n + i] = w8

        return gather

    gathers = (build_gather(False, False), build_gather(True, False), build_gather(False, True))
    return Kernels(sums, network, partial_forces, gathers)
