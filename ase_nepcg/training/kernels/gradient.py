"""Exact gradient of a loss by one displacement per frame.

With the residual weights ``a = dL/dE`` of a frame, ``lambda_i = dL/dF_i`` and ``eta = dL/dW`` held fixed, the gradient
is that of ``sum_s (a_s E_s - D_s E_s)``, where ``D_s`` moves every pair vector by ``lambda_j - lambda_i + eta r_ij``.
For each site: tangents of the sums A along that displacement, forward to ``q``, then backward to all parameters
(``site.py``). No sum over neighbours runs over n.
"""

from __future__ import annotations

import functools

from ...potential.cache import inlined, kernel_jit
from ...potential.linear import row_sums
from ...potential.simd import LANES, advance, fetch_add, lanes, pointer, store
from .basis import fill_functions
from .layout import HEAD, Layout
from .site import site_functions

__all__ = ["build_gradient"]


@functools.cache
def tangent_functions(layout: Layout):
    """Tangents of the sums of one site along the displacement of its frame."""
    shape = layout.shape
    KR, KA = shape.k_radial, shape.k_angular
    LMV, RECORD, HEADER = layout.lm // LANES, layout.record, layout.head
    KRP = -(-KR // LANES) * LANES

    @inlined
    def radial_tangent(i, n_local, x, block, end, neighbors, df, move, eta, work, Ard, functions):
        """``sum_j (f_k'/r) r_ij . (lambda_j - lambda_i + eta r_ij)``; ``move``: four numbers per site, lambda and 0."""
        v_x, v_df, v_sum, v_work = lanes(x, 0), lanes(df, 0), lanes(functions, 0), lanes(work, 0)
        at = 0
        mx, my, mz = move[4 * i], move[4 * i + 1], move[4 * i + 2]
        for t in range(n_local):
            for k in range(KRP):
                v_sum[k] = 0.0
            for b in range(block, end[t]):
                for w in range(LANES):
                    j = 4 * neighbors[b * LANES + w]
                    work[w] = move[j]
                    work[LANES + w] = move[j + 1]
                    work[2 * LANES + w] = move[j + 2]
                dx, dy, dz = v_x[3 * b], v_x[3 * b + 1], v_x[3 * b + 2]
                d = (
                    dx * (v_work[0] - mx + eta[0] * dx + 2.0 * (eta[3] * dy))
                    + dy * (v_work[1] - my + eta[1] * dy + 2.0 * (eta[4] * dz))
                    + dz * (v_work[2] - mz + eta[2] * dz + 2.0 * (eta[5] * dx))
                )
                for k in range(KR):
                    v_sum[k] += d * v_df[at + k]
                at += KR
            block = max(block, end[t])
            for k in range(0, KR, LANES):
                store(functions, KRP * LANES, row_sums(v_sum, k))
                for m in range(k, min(k + LANES, KR)):
                    Ard[t * KR + m] = functions[KRP * LANES + m - k]

    @inlined
    def angular_tangent(i, n_local, pair, end, neighbors, rec, move, eta, Aad):
        """``sum_j [(f_k'/r) (r_ij . r_dot) b_lm + f_k db_lm/dr_ij . r_dot]``."""
        v_rec, v_A = lanes(rec, 0), lanes(Aad, 0)
        for m in range(n_local * KA * LMV):
            v_A[m] = 0.0
        mx, my, mz = move[4 * i], move[4 * i + 1], move[4 * i + 2]
        at = 0
        for t in range(n_local):
            while pair < end[t]:
                j = 4 * neighbors[pair]
                x, y, z = rec[at], rec[at + 1], rec[at + 2]
                vx = move[j] - mx + eta[0] * x + eta[3] * y + eta[5] * z
                vy = move[j + 1] - my + eta[3] * x + eta[1] * y + eta[4] * z
                vz = move[j + 2] - mz + eta[5] * x + eta[4] * y + eta[2] * z
                d = x * vx + y * vy + z * vz
                f, df, b = at + HEAD, at + HEAD + KA, (at + HEADER) // LANES
                for v in range(LMV):
                    along = d * v_rec[b + v]
                    across = vx * v_rec[b + LMV + v] + vy * v_rec[b + 2 * LMV + v] + vz * v_rec[b + 3 * LMV + v]
                    for k in range(KA):
                        v_A[(t * KA + k) * LMV + v] += rec[df + k] * along + rec[f + k] * across
                pair += 1
                at += RECORD

    return radial_tangent, angular_tangent


@functools.cache
def build_gradient(layout: Layout):
    """Kernel: adds the gradient of chunks of sites to one packed gradient per chunk."""
    fill, parts = fill_functions(layout)
    descriptor, network, adjoint, _, tangent, network_gradient, coefficient_gradient = site_functions(layout)
    radial_tangent, angular_tangent = tangent_functions(layout)
    D, TEMPERATURE = layout.shape.n_descriptor, layout.shape.temperature

    @kernel_jit(layout)
    def gradient(
        counter, chunks, sites, n_types, frame_of, first, types, local, present, cutoffs, radial_x, radial_j,
        radial_begin, radial_end, angular_x, angular_j, angular_begin, angular_end, basis_at, basis, temperatures,
        weights, stride, at, a_energy, move, eta, work, place, gradients,
    ):  # fmt: skip
        p_present, p_end, p_ang_end = pointer(present), pointer(radial_end), pointer(angular_end)
        p_cutoffs, p_x, p_ax, p_j, p_aj = (
            pointer(cutoffs),
            pointer(radial_x),
            pointer(angular_x),
            pointer(radial_j),
            pointer(angular_j),
        )
        p_basis, w, p_at, p_move, p_eta = (
            pointer(basis),
            pointer(weights),
            pointer(at),
            pointer(move),
            pointer(eta),
        )
        mine = advance(pointer(work), fetch_add(pointer(counter), 1, 1) * place[place.size - 1])
        q, P, qd, Q, R = (
            advance(mine, place[0]),
            advance(mine, place[1]),
            advance(mine, place[2]),
            advance(mine, place[3]),
            advance(mine, place[4]),
        )
        s, S, sd, V = (
            advance(mine, place[5]),
            advance(mine, place[6]),
            advance(mine, place[7]),
            advance(mine, place[8]),
        )
        Ard, Aad, h, y, zd, alpha = (
            advance(mine, place[10]),
            advance(mine, place[11]),
            advance(mine, place[12]),
            advance(mine, place[13]),
            advance(mine, place[14]),
            advance(mine, place[15]),
        )
        pair_work, scratch = advance(mine, place[16]), advance(mine, place[19])
        polynomials, functions = advance(mine, place[21]), advance(mine, place[22])
        chunk = fetch_add(pointer(counter), 0, 1)
        while chunk < chunks.size - 1:
            grad = advance(pointer(gradients), chunk * gradients.shape[1])
            for m in range(gradients.shape[1]):
                grad[m] = 0.0
            for m in range(chunks[chunk], chunks[chunk + 1]):
                i = sites[m]
                frame = frame_of[i]
                k, a, n_local = i - first[frame], types[i], local[i, 1]
                mv, et = advance(p_move, 4 * first[frame]), advance(p_eta, 6 * frame)
                here, ends, ang_ends = (
                    advance(p_present, local[i, 0]),
                    advance(p_end, local[i, 2]),
                    advance(p_ang_end, local[i, 2]),
                )
                if basis_at[i] >= 0:
                    Ar, Aa, df, rec = parts(n_local, radial_begin[i], ends, advance(p_basis, basis_at[i]))
                else:
                    Ar, Aa, df, rec = parts(n_local, radial_begin[i], ends, scratch)
                    fill(
                        n_types, a, n_local, here, p_cutoffs, p_x, radial_begin[i], ends, p_ax, angular_begin[i],
                        ang_ends, scratch, polynomials, functions,
                    )  # fmt: skip
                base = a * stride
                radial_tangent(k, n_local, p_x, radial_begin[i], ends, p_j, df, mv, et, pair_work, Ard, functions)
                angular_tangent(k, n_local, angular_begin[i], ang_ends, p_aj, rec, mv, et, Aad)
                descriptor(w, base, p_at, n_local, here, Ar, Aa, q, s)
                tangent(w, base, p_at, n_local, here, Ard, Aad, s, qd, sd)
                if TEMPERATURE:
                    q[D - 1] = temperatures[frame]
                    qd[D - 1] = 0.0
                network(w, base, p_at, q, h, y, P)
                adjoint(s, P, S)
                network_gradient(w, grad, base, p_at, a_energy[frame], q, qd, h, zd, alpha, Q)
                coefficient_gradient(grad, base, p_at, n_local, here, Ar, Aa, Ard, Aad, s, sd, S, P, Q, R, V)
            chunk = fetch_add(pointer(counter), 0, 1)

    return gradient
