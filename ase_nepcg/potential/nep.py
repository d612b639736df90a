"""The NEP kernel: sums over neighbours -> descriptor -> network -> partial forces -> forces and virials.

For each site i, with neighbours j at ``r_ij = r_j - r_i``, ``r = |r_ij|``, ``u = r_ij / r``::

    q_n      = sum_j g_n(r)                                 radial components
    s_{n,lm} = sum_j g_n(r) b_lm(u)                         angular sums
    q_{n,l}  = sum_k w_{l,k} s_{n,lk}^2, ...                angular components (3-body, then many-body)
    U_i      = w1 . tanh(w0 q - b0) - b1                    site energy
    f_ij     = dU_i/dr_ij                                   partial force
    F_i      = sum_j (f_ij - f_ji),  W_j -= r_ij (x) f_ij   force; virial booked on the neighbour

Order of work per site. Neighbours within the cutoff are packed by type, each type padded to full SIMD vectors with
dummies at ``r = rc``, where everything vanishes. Sums run over neighbours first and are contracted with the
coefficients after, so the radial part costs nothing per (neighbour, n). In the force pass ``sum_n P_n g_n(r)`` is one
Chebyshev series per type pair.

Array names: ``near_*`` one value per neighbour within any cutoff, ``ang_*`` per angular neighbour; views (``v_*``)
hold vectors. Everything that depends on the model's :class:`Shape` is a constant of the compiled kernel; types,
neighbours and cutoffs are not.

Sources: Fan et al., J. Chem. Phys. 157, 114801 (2022); virial: Gabourie et al., Phys. Rev. B 103, 205421 (2021).
"""

from __future__ import annotations

import functools
import math

from .angular import angular_components
from .basis import angular_basis, chebyshev_series, cutoff
from .cache import inlined, kernel_jit
from .gather import below, count, count_up, neighbor_vectors, store_kept, store_kept_integers
from .invariants import legendre_tables
from .layout import B0, B2, BIAS, D_ANGULAR, D_KN, D_NK, PAGE, PAIR, W0, W1, W2, Shape
from .linear import dot, matvec, pair_product, row_dots, row_sums, total
from .simd import LANES, advance, as_integers, fetch_add, lanes, load, padded, pointer, splat, store, vsum, where
from .zbl import zbl_energy

__all__ = ["build_kernel", "sum_chunks"]

# two sites closer than this (in A) have no direction between them
OVERLAP = 1e-6


@functools.cache
def build_kernel(shape: Shape):
    """The compiled evaluation for one shape: a function that works on chunks of sites until none is left."""
    NR, KR, NA, KA, L = shape[:5]
    LM, ZS, D = shape.n_sums, shape.n_zlm, shape.n_descriptor
    NG = padded(NA) // LANES
    NAP = NG * LANES
    NRP, KRP = padded(NR), padded(KR)
    NRV, KRV = NRP // LANES, KRP // LANES
    GROUPS, WIDTH = shape.neuron_groups
    NV = GROUPS * WIDTH
    N1 = shape.neurons
    NV2 = padded(shape.neurons2) // LANES
    N_OUT = NV2 or NV
    TWO_LAYERS = shape.neurons2 > 0
    TEMPERATURE, HAS_ZBL = shape.temperature, shape.zbl
    recur_a, recur_b, z_slope = legendre_tables(L)
    components, adjoint = angular_components(NR, NA, L, shape.many_body)[:2]

    @inlined
    def collect(i, T, a, positions, seg, neighbors, shifts, pair, near, near_j, near_end, cap, status, chunk):
        """Neighbours within the list cutoff: components and r^2 into ``near``, types one after the other, padded."""
        n = 0
        for t in range(T):
            limit = pair[(a * T + t) * PAIR]
            end = seg[i * (T + 1) + t + 1]
            for p in range(seg[i * (T + 1) + t], end, LANES):
                # beyond the end there are other numbers of the list, harmless to use
                dx, dy, dz, j = neighbor_vectors(positions, i, shifts, neighbors, p)
                d2 = dx * dx + dy * dy + dz * dz
                keep = below(d2, limit, end - p)
                store_kept(near, n, dx, keep)
                store_kept(near, cap + n, dy, keep)
                store_kept(near, 2 * cap + n, dz, keep)
                store_kept(near, 3 * cap + n, d2, keep)
                store_kept_integers(near_j, n, j, keep)
                n += count(keep)
                if count(below(d2, OVERLAP * OVERLAP, end - p)) > 0:
                    status[2 * chunk] = i + 1
                    status[2 * chunk + 1] = p
            near_end[t] = n
            # dummies up to a full vector
            for c in range(3):
                store(near, c * cap + n, splat(0.0))
            store(near, 3 * cap + n, splat(limit))
            n = -(-n // LANES) * LANES

    @inlined
    def radial_sums(T, a, pair, weights, at, near, near_end, cap, rad, sums, q):
        """``q_n = sum_t sum_k d_nk A_k``, ``A_k = sum_j fc T_k(x)``; keeps x, fc', fc dx/dr, fc, 1/r, r in ``rad``."""
        v_near, v_rad, v_sum, v_q, v_weights = (
            lanes(near, 0),
            lanes(rad, 0),
            lanes(sums, 0),
            lanes(q, 0),
            lanes(weights, 0),
        )
        step = cap // LANES
        for n in range(NRV):
            v_q[n] = 0.0
        begin = 0
        for t in range(T):
            stop = -(-near_end[t] // LANES)
            row = (a * T + t) * PAIR
            rc, inverse_rc = pair[row + 1], pair[row + 2]
            for k in range(KRP):
                v_sum[k] = 0.0
            for p in range(begin, stop):
                r = math.sqrt(v_near[3 * step + p])
                v = where(r, rc, 1.0 - r * inverse_rc, 0.0)
                fc, dfc = cutoff(v, inverse_rc)
                x = 2.0 * (v * v) - 1.0
                v_rad[p] = x
                v_rad[step + p] = dfc
                v_rad[2 * step + p] = (-4.0 * inverse_rc) * (v * fc)
                v_rad[3 * step + p] = fc
                v_rad[4 * step + p] = 1.0 / r
                v_rad[5 * step + p] = r
                x2 = 2.0 * x
                t0 = fc
                t1 = x * fc
                v_sum[0] += t0
                for k in range(1, KR):
                    v_sum[k] += t1
                    t0, t1 = t1, x2 * t1 - t0
            if stop > begin:
                for k in range(0, KRP, LANES):
                    store(sums, KRP * LANES + k, row_sums(v_sum, k))
                matvec(v_weights, (at[D_KN] + (a * T + t) * KR * NRP) // LANES, sums, KRP * LANES, KR, v_q, NRV)
            begin = stop

    @inlined
    def angular_functions(
        T, a, pair, weights, at, near, near_end, cap, rad, ang, ang_near, ang_end, g, dg, b, zlm, cheb
    ):
        """Pack the angular neighbours into ``ang`` (unit vector, 1/r, r); ``g_n``, ``dg_n/dr`` and ``b_lm`` of each."""
        v_near, v_rad = lanes(near, 0), lanes(rad, 0)
        step = cap // LANES
        m = 0
        begin = 0
        for t in range(T):
            rc = pair[(a * T + t) * PAIR + 3]
            stop = -(-near_end[t] // LANES)
            for p in range(begin, stop):
                inverse_r, r = v_rad[4 * step + p], v_rad[5 * step + p]
                keep = below(r, rc, near_end[t] - p * LANES)
                store_kept(ang, m, v_near[p] * inverse_r, keep)
                store_kept(ang, cap + m, v_near[step + p] * inverse_r, keep)
                store_kept(ang, 2 * cap + m, v_near[2 * step + p] * inverse_r, keep)
                store_kept(ang, 3 * cap + m, inverse_r, keep)
                store_kept(ang, 4 * cap + m, r, keep)
                store_kept_integers(ang_near, m, count_up(p * LANES), keep)
                m += count(keep)
            begin = stop
            ang_end[t] = m
            for c in range(4):
                store(ang, c * cap + m, splat(0.0))
            store(ang, 4 * cap + m, splat(rc))
            m = -(-m // LANES) * LANES

        v_ang, v_g, v_dg = lanes(ang, 0), lanes(g, 0), lanes(dg, 0)
        v_t, v_series = lanes(cheb, 0), lanes(cheb, 2 * KA * LANES)
        v_b, v_z = lanes(b, 0), lanes(zlm, 0)
        begin = 0
        for t in range(T):
            stop = -(-ang_end[t] // LANES)
            row = (a * T + t) * PAIR
            rc, inverse_rc = pair[row + 3], pair[row + 4]
            for p in range(begin, stop):
                r = v_ang[4 * step + p]
                v = where(r, rc, 1.0 - r * inverse_rc, 0.0)
                fc, dfc = cutoff(v, inverse_rc)
                x = 2.0 * (v * v) - 1.0
                fdx = (-4.0 * inverse_rc) * (v * fc)
                x2 = 2.0 * x
                v_t[0] = 1.0
                v_t[KA] = 0.0
                t0, t1 = 0.0 * x + 1.0, x
                u0, u1 = 0.0 * x, 0.0 * x + 1.0
                for k in range(1, KA):
                    v_t[k] = t1
                    v_t[KA + k] = u1
                    u0, u1 = u1, 2.0 * t1 + x2 * u1 - u0
                    t0, t1 = t1, x2 * t1 - t0
                pair_product(weights, at[D_ANGULAR] + (a * T + t) * NA * KA, KA, NA, v_t, 0, v_t, KA, KA, v_series)
                for n in range(NA):
                    v_g[p * NAP + n] = fc * v_series[2 * n]
                    v_dg[p * NAP + n] = dfc * v_series[2 * n] + fdx * v_series[2 * n + 1]
                angular_basis(
                    v_ang[p], v_ang[step + p], v_ang[2 * step + p], L, recur_a, recur_b, v_b, p * LM, v_z, p * ZS
                )
            begin = stop
        return begin

    @inlined
    def angular_sums(blocks, b, g, s):
        """``s_{n,lm}`` (lanes: n)."""
        v_b, v_g, v_s = lanes(b, 0), lanes(g, 0), lanes(s, 0)
        for lm in range(LM):
            for n in range(NG):
                v_s[lm * NG + n] = row_dots(v_b, lm, LM, v_g, n * LANES, NAP, 1, blocks)

    @inlined
    def network(a, q, weights, at, hidden, P):
        """Site energy ``U`` and ``P_d = dU/dq_d``. The scaler is in ``w0``; padded neurons have zero weights."""
        first = at[W0] + a * GROUPS * D * WIDTH * LANES
        v_w0, v_h, v_y = lanes(weights, first), lanes(hidden, 0), lanes(hidden, NV * LANES)
        v_b0, v_w1 = lanes(weights, at[B0] + a * NV * LANES), lanes(weights, at[W1] + a * N_OUT * LANES)
        for d in range(0, D, LANES):
            store(P, d, splat(0.0))
        U = splat(0.0)
        # the neurons go by in groups whose weights stay in the first-level cache for the way back
        for group in range(GROUPS):
            for v in range(group * WIDTH, (group + 1) * WIDTH):
                v_h[v] = -v_b0[v]
            matvec(v_w0, group * D * WIDTH, q, 0, D, lanes(hidden, group * WIDTH * LANES), WIDTH)
            for v in range(group * WIDTH, (group + 1) * WIDTH):
                h = math.tanh(v_h[v])
                if TWO_LAYERS:
                    v_h[v] = h
                else:
                    U += v_w1[v] * h
                    v_y[v] = v_w1[v] * (1.0 - h * h)
            if not TWO_LAYERS:
                for d in range(0, D, LANES):
                    dU = row_dots(v_y, group * WIDTH, 1, v_w0, (group * D + d) * WIDTH, 1, WIDTH, WIDTH)
                    store(P, d, load(P, d) + dU)
        if TWO_LAYERS:
            v_w2, v_b2 = lanes(weights, at[W2] + a * NV * LANES * NV2 * LANES), lanes(weights, at[B2] + a * NV2 * LANES)
            v_h2 = lanes(hidden, 2 * NV * LANES)
            for v in range(NV2):
                v_h2[v] = -v_b2[v]
            matvec(v_w2, 0, hidden, 0, N1, v_h2, NV2)
            for v in range(NV2):
                h = math.tanh(v_h2[v])
                U += v_w1[v] * h
                v_h2[v] = v_w1[v] * (1.0 - h * h)
            for v in range(NV):
                back = row_dots(v_h2, 0, 1, v_w2, v * LANES * NV2, 1, NV2, NV2)
                v_y[v] = back * (1.0 - v_h[v] * v_h[v])
            for group in range(GROUPS):
                for d in range(0, D, LANES):
                    dU = row_dots(v_y, group * WIDTH, 1, v_w0, (group * D + d) * WIDTH, 1, WIDTH, WIDTH)
                    store(P, d, load(P, d) + dU)
        return vsum(U) - weights[at[BIAS] + a]

    @inlined
    def radial_forces(T, a, weights, at, near, near_end, cap, rad, P, series, f):
        """``f = (sum_n P_n g_n') u``, with ``sum_n P_n g_n = fc p(x)`` one Chebyshev series per neighbour type."""
        v_near, v_rad, v_f, v_series, v_weights = (
            lanes(near, 0),
            lanes(rad, 0),
            lanes(f, 0),
            lanes(series, 0),
            lanes(weights, 0),
        )
        step = cap // LANES
        begin = 0
        for t in range(T):
            stop = -(-near_end[t] // LANES)
            if stop > begin:
                for k in range(KRV):
                    v_series[k] = 0.0
                matvec(v_weights, (at[D_NK] + (a * T + t) * NR * KRP) // LANES, P, 0, NR, v_series, KRV)
                for p in range(begin, stop):
                    s, ds = chebyshev_series(series, 0, KR, v_rad[p])
                    force = (v_rad[step + p] * s + v_rad[2 * step + p] * ds) * v_rad[4 * step + p]
                    v_f[p] = force * v_near[p]
                    v_f[step + p] = force * v_near[step + p]
                    v_f[2 * step + p] = force * v_near[2 * step + p]
            begin = stop

    @inlined
    def angular_forces(T, blocks, ang, ang_near, ang_end, cap, g, dg, zlm, S, Q, fa, f):
        """``f = sum_{n,lm} S [g' b u + (g/r) (grad b - (u . grad b) u)]``, added to ``f`` of the near neighbours.

        For each m the sums over l of Q = sum_n S g come first (alpha: cosine part, beta: sine part), then the powers
        of x + iy.
        """
        v_ang, v_g, v_dg, v_z = lanes(ang, 0), lanes(g, 0), lanes(dg, 0), lanes(zlm, 0)
        v_Q, v_f = lanes(Q, 0), lanes(fa, 0)
        step = cap // LANES
        for p in range(blocks):
            # Q_lm at 2 lm, with g' instead of g at 2 lm + 1
            pair_product(S, 0, NAP, LM, v_g, p * NAP, v_dg, p * NAP, NA, v_Q)
            x, y, z = v_ang[p], v_ang[step + p], v_ang[2 * step + p]
            zero = 0.0 * z
            radial = gx = gy = gz = zero
            cosine, sine = zero + 1.0, zero  # Re, Im of (x + iy)^m
            cosine1, sine1 = zero, zero  # of (x + iy)^(m-1)
            for m in range(L + 1):
                alpha = alpha_r = alpha_z = beta = beta_r = beta_z = zero
                for l in range(max(m, 1), L + 1):  # noqa: E741
                    zz = v_z[p * ZS + m * (L + 1) + l]
                    dz = z_slope[l, m] * v_z[p * ZS + (m + 1) * (L + 1) + l]
                    at = 2 * (l * l - 1 + max(2 * m - 1, 0))
                    alpha += v_Q[at] * zz
                    alpha_r += v_Q[at + 1] * zz
                    alpha_z += v_Q[at] * dz
                    if m > 0:
                        beta += v_Q[at + 2] * zz
                        beta_r += v_Q[at + 3] * zz
                        beta_z += v_Q[at + 2] * dz
                radial += alpha_r * cosine + beta_r * sine
                gz += alpha_z * cosine + beta_z * sine
                gx += m * (alpha * cosine1 + beta * sine1)
                gy += m * (beta * cosine1 - alpha * sine1)
                cosine1, sine1 = cosine, sine
                cosine, sine = x * cosine - y * sine, x * sine + y * cosine
            inverse_r = v_ang[3 * step + p]
            along = radial - inverse_r * (gx * x + gy * y + gz * z)
            v_f[p] = along * x + inverse_r * gx
            v_f[step + p] = along * y + inverse_r * gy
            v_f[2 * step + p] = along * z + inverse_r * gz
        begin = 0
        for t in range(T):
            for p in range(begin, ang_end[t]):
                j = ang_near[p]
                f[j] += fa[p]
                f[cap + j] += fa[cap + p]
                f[2 * cap + j] += fa[2 * cap + p]
            begin = -(-ang_end[t] // LANES) * LANES

    @inlined
    def zbl(T, a, table, ang, ang_near, ang_end, cap, f):
        """Half of the repulsion of each pair: energy of this site, force into ``f``."""
        energy = 0.0
        begin = 0
        for t in range(T):
            row = (a * T + t) * 10
            for p in range(begin, ang_end[t]):
                r = ang[4 * cap + p]
                if r < table[row + 1]:
                    value, slope = zbl_energy(r, table, row)
                    energy += 0.5 * value
                    j = ang_near[p]
                    f[j] += 0.5 * slope * ang[p]
                    f[cap + j] += 0.5 * slope * ang[cap + p]
                    f[2 * cap + j] += 0.5 * slope * ang[2 * cap + p]
            begin = -(-ang_end[t] // LANES) * LANES
        return energy

    @inlined
    def book(i, n, T, near, near_j, near_end, cap, f, forces, virial, virials, chunk, per_site):
        """``F_i += f_ij``, ``F_j -= f_ij``, total virial and, on request, ``W_j -= r_ij (x) f_ij``."""
        v_near, v_f = lanes(near, 0), lanes(f, 0)
        step = cap // LANES
        blocks = -(-near_end[T - 1] // LANES)
        mine = 3 * n * chunk
        for c in range(3):
            forces[mine + 3 * i + c] += total(v_f, c * step, blocks)
            for e in range(3):
                virial[9 * chunk + 3 * c + e] -= dot(v_near, c * step, v_f, e * step, blocks)
        begin = 0
        for t in range(T):
            for p in range(begin, near_end[t]):
                j = mine + 3 * near_j[p]
                forces[j] -= f[p]
                forces[j + 1] -= f[cap + p]
                forces[j + 2] -= f[2 * cap + p]
            if per_site:
                for p in range(begin, near_end[t]):
                    for c in range(9):
                        virials[9 * (n * chunk + near_j[p]) + c] -= near[c // 3 * cap + p] * f[c % 3 * cap + p]
            begin = -(-near_end[t] // LANES) * LANES

    @inlined
    def work_on_chunks(
        counter, n, T, positions, types, seg, neighbors, shifts, capacity, pair, zbl_table, weights, at, temperature,
        n_chunks, chunks, touched, per_site, with_q, work, place, energies, forces, virial, virials, descriptors,
        status,
    ):  # fmt: skip
        cap = capacity
        pages = -(-n // PAGE)
        mine = advance(work, fetch_add(counter, 1, 1) * place[22])
        near, rad, ang = advance(mine, place[0]), advance(mine, place[1]), advance(mine, place[2])
        f, fa = advance(mine, place[3]), advance(mine, place[4])
        g, dg, b, zlm = (
            advance(mine, place[5]),
            advance(mine, place[6]),
            advance(mine, place[7]),
            advance(mine, place[8]),
        )
        cheb, sums, series = advance(mine, place[9]), advance(mine, place[10]), advance(mine, place[11])
        s, S = advance(mine, place[12]), advance(mine, place[13])
        q, P, hidden = advance(mine, place[14]), advance(mine, place[15]), advance(mine, place[16])
        near_j, ang_near = as_integers(advance(mine, place[17])), as_integers(advance(mine, place[18]))
        near_end, ang_end = as_integers(advance(mine, place[19])), as_integers(advance(mine, place[20]))
        Q = advance(mine, place[21])
        chunk = fetch_add(counter, 0, 1)
        while chunk < n_chunks:
            for page in range(pages):
                if touched[chunk * pages + page]:
                    first, last = n * chunk + page * PAGE, n * chunk + min((page + 1) * PAGE, n)
                    for j in range(3 * first, 3 * last):
                        forces[j] = 0.0
                    if per_site:
                        for j in range(9 * first, 9 * last):
                            virials[j] = 0.0
            for c in range(9):
                virial[9 * chunk + c] = 0.0
            for i in range(chunks[chunk], chunks[chunk + 1]):
                a = types[i]
                collect(i, T, a, positions, seg, neighbors, shifts, pair, near, near_j, near_end, cap, status, chunk)
                radial_sums(T, a, pair, weights, at, near, near_end, cap, rad, sums, q)
                used = angular_functions(
                    T, a, pair, weights, at, near, near_end, cap, rad, ang, ang_near, ang_end, g, dg, b, zlm, cheb
                )
                angular_sums(used, b, g, s)
                components(s, q)
                if TEMPERATURE:
                    q[D - 1] = temperature
                energy = network(a, q, weights, at, hidden, P)
                adjoint(s, P, S)
                radial_forces(T, a, weights, at, near, near_end, cap, rad, P, series, f)
                angular_forces(T, used, ang, ang_near, ang_end, cap, g, dg, zlm, S, Q, fa, f)
                if HAS_ZBL:
                    energy += zbl(T, a, zbl_table, ang, ang_near, ang_end, cap, f)
                book(i, n, T, near, near_j, near_end, cap, f, forces, virial, virials, chunk, per_site)
                energies[i] = energy
                if with_q:
                    for m in range(D):
                        descriptors[i * D + m] = q[m]
            chunk = fetch_add(counter, 0, 1)

    @kernel_jit(shape)
    def nep_sites(
        counter, positions, types, seg, neighbors, shifts, capacity, pair, zbl_table, weights, at, temperature,
        chunks, touched, per_site, with_q, work, place, energies, forces, virial, virials, descriptors, status,
    ):  # fmt: skip
        work_on_chunks(
            pointer(counter), types.size, seg.size // types.size - 1, pointer(positions), pointer(types), pointer(seg),
            pointer(neighbors), pointer(shifts), capacity, pointer(pair), pointer(zbl_table), pointer(weights),
            pointer(at), temperature, chunks.size - 1, pointer(chunks), pointer(touched), per_site, with_q,
            pointer(work), pointer(place), pointer(energies), pointer(forces), pointer(virial), pointer(virials),
            pointer(descriptors), pointer(status),
        )  # fmt: skip

    return nep_sites


@kernel_jit()
def sum_chunks(counter, touched, pages, width, buffers, out):
    """``out[i] = sum over chunks of buffers[chunk, i]`` in the order of the chunks, for pages that the chunk wrote to.

    ``buffers`` (chunks, N, width) and ``out`` (N, width) are given flat.
    """
    p_counter, p_touched, p_buffers, p_out = pointer(counter), pointer(touched), pointer(buffers), pointer(out)
    page = fetch_add(p_counter, 0, 1)
    while page < pages:
        begin, end = page * PAGE * width, min((page + 1) * PAGE * width, out.size)
        for i in range(begin, end):
            p_out[i] = 0.0
        for chunk in range(touched.size // pages):
            if p_touched[chunk * pages + page]:
                for i in range(begin, end):
                    p_out[i] += p_buffers[chunk * out.size + i]
        page = fetch_add(p_counter, 0, 1)
