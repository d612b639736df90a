"""What the geometry of a site's neighbours says, whatever the coefficients: computed once per data set.

======  ====================================================  ==========================================
symbol  meaning                                               where
======  ====================================================  ==========================================
A_tk    sum_j f_k(r_ij), neighbours of type t, radial set     ``Ar[t KR + k]``
A_tklm  sum_j f_k(r_ij) b_lm(u_ij), angular set               ``Aa[(t KA + k) LM + lm]``
f_k'/r  of each radial neighbour                              ``df``, vectors [block, k]
record  x, y, z, f_k, f_k'/r, b_lm, db_lm/d(x, y, z)          ``rec``, one per angular neighbour
======  ====================================================  ==========================================

Then ``q_n = sum_tk c_tkn A_tk``, ``s_nlm = sum_tk c_tkn A_tklm``, and derivatives of A along any displacement follow
from the neighbours without the coefficients. Radial neighbours of one type are padded to whole vectors with dummies
at the cutoff, where everything vanishes.

Source: Fan et al., J. Chem. Phys. 157, 114801 (2022), Eqs. 6-17.
"""

from __future__ import annotations

import functools
import math

from ...potential.basis import angular_basis, cutoff
from ...potential.cache import inlined, kernel_jit
from ...potential.invariants import legendre_tables
from ...potential.linear import row_sums
from ...potential.simd import LANES, advance, fetch_add, lanes, padded, pointer, store, where
from .layout import HEAD, Layout

__all__ = ["build_fill", "collect_pairs", "count_pairs", "fill_functions"]

# columns of the table of pair cutoffs: radial rc, 1/rc, angular rc, 1/rc
CUTOFFS = 4


@kernel_jit()
def count_pairs(positions, seg, neighbors, shifts, n_types, types, limits, sets, counts):
    """Neighbours of each site and type within ``limits`` (two tables, radial and angular), into ``counts`` (N, T, 2).

    ``positions``, ``seg``, ``neighbors``, ``shifts``: a ``NeighborList``. ``limits`` (2, T, T). ``sets``: for each
    entry of the list, 1 if it is a radial neighbour + 2 if it is an angular one.
    """
    for i in range(types.size):
        for t in range(n_types):
            for p in range(seg[i * (n_types + 1) + t], seg[i * (n_types + 1) + t + 1]):
                j, code = neighbors[p] & 0xFFFFFFFF, neighbors[p] >> 32
                r2 = 0.0
                for c in range(3):
                    d = positions[4 * j + c] - positions[4 * i + c] + shifts[4 * code + c]
                    r2 += d * d
                r = math.sqrt(r2)
                sets[p] = 0
                for set_ in range(2):
                    if r < limits[set_, types[i], t]:
                        counts[i, t, set_] += 1
                        sets[p] += 1 + set_


@kernel_jit()
def collect_pairs(
    positions, seg, neighbors, shifts, n_types, types, limits, sets, begin_radial, begin_angular, radial_j,
    radial_x, angular_j, angular_x,
):  # fmt: skip
    """Neighbour index and r_ij of all pairs: radial ones from vector ``begin_radial`` (N, T) on, angular ones from
    number ``begin_angular`` (N, T) on. Places of ``radial_x`` that no neighbour takes are dummies at the cutoff.

    ``radial_x`` holds three vectors for each vector of neighbours, ``angular_x`` three numbers for each neighbour.
    Returns a site with a neighbour at distance zero, or -1.
    """
    bad = -1
    for i in range(types.size):
        for t in range(n_types):
            radial, angular = begin_radial[i, t] * LANES, begin_angular[i, t]
            for p in range(seg[i * (n_types + 1) + t], seg[i * (n_types + 1) + t + 1]):
                j, code = neighbors[p] & 0xFFFFFFFF, neighbors[p] >> 32
                dx = positions[4 * j] - positions[4 * i] + shifts[4 * code]
                dy = positions[4 * j + 1] - positions[4 * i + 1] + shifts[4 * code + 1]
                dz = positions[4 * j + 2] - positions[4 * i + 2] + shifts[4 * code + 2]
                r = math.sqrt(dx * dx + dy * dy + dz * dz)
                if r < 1e-6:
                    bad = i
                if sets[p] & 1:
                    at = radial // LANES * (3 * LANES) + radial % LANES
                    radial_j[radial] = j
                    radial_x[at], radial_x[at + LANES], radial_x[at + 2 * LANES] = dx, dy, dz
                    radial += 1
                if sets[p] & 2:
                    angular_j[angular] = j
                    angular_x[3 * angular], angular_x[3 * angular + 1], angular_x[3 * angular + 2] = dx, dy, dz
                    angular += 1
            while radial % LANES:
                at = radial // LANES * (3 * LANES) + radial % LANES
                radial_j[radial] = i
                radial_x[at], radial_x[at + LANES], radial_x[at + 2 * LANES] = limits[0, types[i], t], 0.0, 0.0
                radial += 1
    return bad


@functools.cache
def fill_functions(layout: Layout):
    """The function that computes the basis of one site."""
    shape = layout.shape
    KR, KA, L = shape.k_radial, shape.k_angular, shape.l_max
    LM, LMP = shape.n_sums, layout.lm
    RECORD, HEADER = layout.record, layout.head
    LMV, KRP = LMP // LANES, padded(KR)
    recur_a, recur_b, z_slope = legendre_tables(L)

    @inlined
    def radial(T, a, n_local, present, cutoffs, x, block, end, Ar, df, functions):
        """``A_tk`` and ``f_k'/r`` of the vectors of neighbours from ``block`` to ``end[t]``."""
        v_x, v_df, v_sum = lanes(x, 0), lanes(df, 0), lanes(functions, 0)
        first = block
        for t in range(n_local):
            row = (a * T + present[t]) * CUTOFFS
            rc, inverse_rc = cutoffs[row], cutoffs[row + 1]
            for k in range(KRP):
                v_sum[k] = 0.0
            while block < end[t]:
                at = (block - first) * KR
                dx, dy, dz = v_x[3 * block], v_x[3 * block + 1], v_x[3 * block + 2]
                r = math.sqrt(dx * dx + dy * dy + dz * dz)
                v = where(r, rc, 1.0 - r * inverse_rc, 0.0)
                fc, dfc = cutoff(v, inverse_rc)
                inverse_r = 1.0 / r
                y = 2.0 * (v * v) - 1.0
                # 1/r, 1/2 and dy/dr are in these
                slope, half_dfc = (-2.0 * inverse_rc) * (v * fc) * inverse_r, 0.5 * dfc * inverse_r
                half, y2 = 0.5 * fc, 2.0 * y
                v_sum[0] += fc
                v_df[at] = dfc * inverse_r
                t0, t1 = 0.0 * y + 1.0, y
                u0, u1 = 0.0 * y, 0.0 * y + 1.0
                for k in range(1, KR):
                    v_sum[k] += half * (t1 + 1.0)
                    v_df[at + k] = slope * u1 + half_dfc * (t1 + 1.0)
                    u0, u1 = u1, 2.0 * t1 + y2 * u1 - u0
                    t0, t1 = t1, y2 * t1 - t0
                block += 1
            for k in range(0, KR, LANES):
                store(functions, KRP * LANES, row_sums(v_sum, k))
                for m in range(k, min(k + LANES, KR)):
                    Ar[t * KR + m] = functions[KRP * LANES + m - k]

    @inlined
    def angular(T, a, n_local, present, cutoffs, x, pair, end, Aa, rec, polynomials):
        """``A_tklm`` and the records of the neighbours from ``pair`` to ``end[t]``."""
        b, zlm = polynomials, advance(polynomials, LM)
        v_A, v_rec = lanes(Aa, 0), lanes(rec, 0)
        for m in range(n_local * KA * LMV):
            v_A[m] = 0.0
        at = 0
        for t in range(n_local):
            row = (a * T + present[t]) * CUTOFFS + 2
            inverse_rc = cutoffs[row + 1]
            while pair < end[t]:
                dx, dy, dz = x[3 * pair], x[3 * pair + 1], x[3 * pair + 2]
                r = math.sqrt(dx * dx + dy * dy + dz * dz)
                inverse_r = 1.0 / r
                v = 1.0 - r * inverse_rc
                fc, dfc = cutoff(v, inverse_rc)
                y = 2.0 * (v * v) - 1.0
                slope, half_dfc = (-2.0 * inverse_rc) * (v * fc) * inverse_r, 0.5 * dfc * inverse_r
                rec[at], rec[at + 1], rec[at + 2] = dx, dy, dz
                f, df = at + HEAD, at + HEAD + KA
                rec[f], rec[df] = fc, dfc * inverse_r
                t0, t1, u0, u1 = 1.0, y, 0.0, 1.0
                for k in range(1, KA):
                    rec[f + k] = 0.5 * fc * (t1 + 1.0)
                    rec[df + k] = slope * u1 + half_dfc * (t1 + 1.0)
                    u0, u1 = u1, 2.0 * t1 + 2.0 * y * u1 - u0
                    t0, t1 = t1, 2.0 * y * t1 - t0
                ux, uy, uz = dx * inverse_r, dy * inverse_r, dz * inverse_r
                angular_basis(ux, uy, uz, L, recur_a, recur_b, b, 0, zlm, 0)
                first = at + HEADER
                for lm in range(LM, LMP):
                    for c in range(4):
                        rec[first + c * LMP + lm] = 0.0
                cosine, sine, cosine1, sine1 = 1.0, 0.0, 0.0, 0.0
                for m in range(L + 1):
                    for l in range(max(m, 1), L + 1):  # noqa: E741
                        zz = zlm[m * (L + 1) + l]
                        dz_l = z_slope[l, m] * zlm[(m + 1) * (L + 1) + l]
                        lm = l * l - 1 + max(2 * m - 1, 0)
                        gradient(
                            rec,
                            first,
                            lm,
                            b[lm],
                            m * zz * cosine1,
                            -m * zz * sine1,
                            dz_l * cosine,
                            ux,
                            uy,
                            uz,
                            inverse_r,
                        )
                        if m > 0:
                            gradient(
                                rec,
                                first,
                                lm + 1,
                                b[lm + 1],
                                m * zz * sine1,
                                m * zz * cosine1,
                                dz_l * sine,
                                ux,
                                uy,
                                uz,
                                inverse_r,
                            )
                    cosine1, sine1 = cosine, sine
                    cosine, sine = ux * cosine - uy * sine, ux * sine + uy * cosine
                vb = first // LANES
                for k in range(KA):
                    for w in range(LMV):
                        v_A[(t * KA + k) * LMV + w] += rec[f + k] * v_rec[vb + w]
                pair += 1
                at += RECORD

    @inlined
    def gradient(rec, first, lm, b, gx, gy, gz, ux, uy, uz, inverse_r):
        """``b`` and its derivative with respect to r_ij: the gradient of the polynomial without its part along u."""
        along = gx * ux + gy * uy + gz * uz
        rec[first + lm] = b
        rec[first + LMP + lm] = (gx - along * ux) * inverse_r
        rec[first + 2 * LMP + lm] = (gy - along * uy) * inverse_r
        rec[first + 3 * LMP + lm] = (gz - along * uz) * inverse_r

    @inlined
    def fill(
        T, a, n_local, present, cutoffs, radial_x, block, radial_end, angular_x, pair, angular_end, basis, polynomials,
        functions,
    ):  # fmt: skip
        """The basis of a site of type ``a``: returns pointers to Ar, Aa, df and rec within ``basis``."""
        Ar, Aa, df, rec = parts(n_local, block, radial_end, basis)
        radial(T, a, n_local, present, cutoffs, radial_x, block, radial_end, Ar, df, functions)
        angular(T, a, n_local, present, cutoffs, angular_x, pair, angular_end, Aa, rec, polynomials)

    @inlined
    def parts(n_local, block, radial_end, basis):
        Aa = advance(basis, -(-(n_local * KR) // LANES) * LANES)
        df = advance(Aa, n_local * KA * LMP)
        return basis, Aa, df, advance(df, (radial_end[n_local - 1] - block) * KR * LANES)

    return fill, parts


@functools.cache
def build_fill(layout: Layout):
    """Kernel that computes the basis of all cached sites."""
    fill, _ = fill_functions(layout)

    @kernel_jit(layout)
    def fill_basis(
        counter, chunks, n_types, types, local, present, cutoffs, radial_x, radial_begin, radial_end, angular_x,
        angular_begin, angular_end, basis_at, basis, work, place,
    ):  # fmt: skip
        p_end, p_ang_end, p_present, p_basis = (
            pointer(radial_end),
            pointer(angular_end),
            pointer(present),
            pointer(basis),
        )
        p_cutoffs, p_x, p_ax = pointer(cutoffs), pointer(radial_x), pointer(angular_x)
        mine = advance(pointer(work), fetch_add(pointer(counter), 1, 1) * place[place.size - 1])
        polynomials, functions = advance(mine, place[21]), advance(mine, place[22])
        chunk = fetch_add(pointer(counter), 0, 1)
        while chunk < chunks.size - 1:
            for i in range(chunks[chunk], chunks[chunk + 1]):
                if basis_at[i] >= 0:
                    fill(
                        n_types, types[i], local[i, 1], advance(p_present, local[i, 0]), p_cutoffs, p_x,
                        radial_begin[i], advance(p_end, local[i, 2]), p_ax, angular_begin[i],
                        advance(p_ang_end, local[i, 2]), advance(p_basis, basis_at[i]), polynomials, functions,
                    )  # fmt: skip
            chunk = fetch_add(pointer(counter), 0, 1)

    return fill_basis
