"""Energies, forces and virials of many parameter vectors at once, and the descriptors behind the scaler.

``F_i = sum_j (f_ij - f_ji)`` with ``f_ij = dU_i/dr_ij = sum_tk B dA/dr_ij``; virial ``W = -sum r_ij (x) f_ij``.

Work is divided into items: one frame and a group of parameter vectors. Within an item, sites go by in small blocks,
whose basis stays in the cache while all vectors of the group are applied to it.
"""

from __future__ import annotations

import functools

from ...potential.cache import inlined, kernel_jit
from ...potential.linear import row_sums
from ...potential.simd import LANES, advance, fetch_add, lanes, pointer, splat, store, vsum
from .basis import fill_functions
from .layout import HEAD, Layout
from .site import site_functions

__all__ = ["build_descriptors", "build_evaluate"]

# sites whose basis is used by one parameter vector after the other
SITES = 8


@functools.cache
def force_functions(layout: Layout):
    """Pair forces of one site, added to the forces and the virial of a frame."""
    shape = layout.shape
    KR, KA = shape.k_radial, shape.k_angular
    LMV, RECORD, HEADER = layout.lm // LANES, layout.record, layout.head
    AT_ONCE = LANES // 4

    @inlined
    def radial_forces(i, n_local, x, block, end, neighbors, df, Br, f, F, W):
        """``f_ij = (sum_k B_tk f_k'/r) r_ij``. ``i``, ``neighbors``: numbers within the frame."""
        v_x, v_df, v_f = lanes(x, 0), lanes(df, 0), lanes(f, 0)
        fx, fy, fz = splat(0.0), splat(0.0), splat(0.0)
        xx, yy, zz, yx, zy, xz = splat(0.0), splat(0.0), splat(0.0), splat(0.0), splat(0.0), splat(0.0)
        at = 0
        for t in range(n_local):
            for b in range(block, end[t]):
                force = Br[t * KR] * v_df[at]
                for k in range(1, KR):
                    force += Br[t * KR + k] * v_df[at + k]
                at += KR
                dx, dy, dz = v_x[3 * b], v_x[3 * b + 1], v_x[3 * b + 2]
                px, py, pz = force * dx, force * dy, force * dz
                v_f[0], v_f[1], v_f[2] = px, py, pz
                fx += px
                fy += py
                fz += pz
                xx += dx * px
                yy += dy * py
                zz += dz * pz
                yx += dy * px
                zy += dz * py
                xz += dx * pz
                for w in range(LANES):
                    j = 3 * neighbors[b * LANES + w]
                    F[j] -= f[w]
                    F[j + 1] -= f[LANES + w]
                    F[j + 2] -= f[2 * LANES + w]
            block = max(block, end[t])
        F[3 * i] += vsum(fx)
        F[3 * i + 1] += vsum(fy)
        F[3 * i + 2] += vsum(fz)
        W[0] -= vsum(xx)
        W[1] -= vsum(yy)
        W[2] -= vsum(zz)
        W[3] -= vsum(yx)
        W[4] -= vsum(zy)
        W[5] -= vsum(xz)

    @inlined
    def angular_forces(i, n_local, pair, end, neighbors, rec, Ba, sums, rows, F, W):
        """``f_ij = r_ij sum_lm b_lm sum_k B_tklm f_k'/r + sum_lm (db_lm/dr_ij) sum_k B_tklm f_k``."""
        v_rec, v_B, v_rows = lanes(rec, 0), lanes(Ba, 0), lanes(rows, 0)
        first, n, filled = pair, 0, 0
        for t in range(n_local):
            while pair < end[t]:
                at = n * RECORD
                f, df, b = at + HEAD, at + HEAD + KA, (at + HEADER) // LANES
                along, gx, gy, gz = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
                for v in range(LMV):
                    row = t * KA * LMV + v
                    h = rec[f] * v_B[row]
                    dh = rec[df] * v_B[row]
                    for k in range(1, KA):
                        h += rec[f + k] * v_B[row + k * LMV]
                        dh += rec[df + k] * v_B[row + k * LMV]
                    along += dh * v_rec[b + v]
                    gx += h * v_rec[b + LMV + v]
                    gy += h * v_rec[b + 2 * LMV + v]
                    gz += h * v_rec[b + 3 * LMV + v]
                v_rows[4 * filled], v_rows[4 * filled + 1], v_rows[4 * filled + 2], v_rows[4 * filled + 3] = (
                    along,
                    gx,
                    gy,
                    gz,
                )
                filled += 1
                n += 1
                if filled == AT_ONCE:
                    store(sums, 4 * (n - AT_ONCE), row_sums(v_rows, 0))
                    filled = 0
                pair += 1
        if filled > 0:
            store(sums, 4 * (n - filled), row_sums(v_rows, 0))
        for p in range(n):
            at = p * RECORD
            dx, dy, dz = rec[at], rec[at + 1], rec[at + 2]
            px = sums[4 * p] * dx + sums[4 * p + 1]
            py = sums[4 * p] * dy + sums[4 * p + 2]
            pz = sums[4 * p] * dz + sums[4 * p + 3]
            j = 3 * neighbors[first + p]
            F[3 * i] += px
            F[3 * i + 1] += py
            F[3 * i + 2] += pz
            F[j] -= px
            F[j + 1] -= py
            F[j + 2] -= pz
            W[0] -= dx * px
            W[1] -= dy * py
            W[2] -= dz * pz
            W[3] -= dy * px
            W[4] -= dz * py
            W[5] -= dx * pz

    return radial_forces, angular_forces


@functools.cache
def build_evaluate(layout: Layout):
    """Kernel: energies, virials, weighted squared force errors, and forces on request."""
    fill, parts = fill_functions(layout)
    site = site_functions(layout)
    descriptor, network, adjoint, derivatives_of_sums = site[:4]
    radial_forces, angular_forces = force_functions(layout)
    D, TEMPERATURE = layout.shape.n_descriptor, layout.shape.temperature

    @kernel_jit(layout)
    def evaluate(
        counter, items, n_types, first, types, local, present, cutoffs, radial_x, radial_j, radial_begin, radial_end,
        angular_x, angular_j, angular_begin, angular_end, basis_at, basis, temperatures, weights, stride, at, reference,
        force_weights, with_forces, work, place, energies, virials, errors, forces,
    ):  # fmt: skip
        p_present, p_end, p_ang_end = pointer(present), pointer(radial_end), pointer(angular_end)
        p_cutoffs, p_x, p_ax, p_j, p_aj = (
            pointer(cutoffs),
            pointer(radial_x),
            pointer(angular_x),
            pointer(radial_j),
            pointer(angular_j),
        )
        p_basis, p_weights, p_at, p_W = pointer(basis), pointer(weights), pointer(at), pointer(virials)
        p_reference, p_force_weights, p_forces = pointer(reference), pointer(force_weights), pointer(forces)
        n_frames = first.size - 1
        size = weights.shape[1]
        mine = advance(pointer(work), fetch_add(pointer(counter), 1, 1) * place[place.size - 1])
        q, P, s, S = advance(mine, place[0]), advance(mine, place[1]), advance(mine, place[5]), advance(mine, place[6])
        transposed, Br, Ba = advance(mine, place[9]), advance(mine, place[10]), advance(mine, place[11])
        h, y, f = advance(mine, place[12]), advance(mine, place[13]), advance(mine, place[16])
        sums, rows, scratch = advance(mine, place[17]), advance(mine, place[18]), advance(mine, place[19])
        polynomials, functions, F0 = advance(mine, place[21]), advance(mine, place[22]), advance(mine, place[20])
        item = fetch_add(pointer(counter), 0, 1)
        while item < items.shape[0]:
            frame, begin, end = items[item, 0], items[item, 1], items[item, 2]
            start, n_sites = first[frame], first[frame + 1] - first[frame]
            for m in range(3 * n_sites * (end - begin)):
                F0[m] = 0.0
            for z in range(begin, end):
                energies[z, frame] = 0.0
                for c in range(6):
                    p_W[(z * n_frames + frame) * 6 + c] = 0.0
            for block in range(0, n_sites, SITES):
                for z in range(begin, end):
                    W = advance(p_W, (z * n_frames + frame) * 6)
                    F = advance(F0, (z - begin) * 3 * n_sites)
                    for k in range(block, min(block + SITES, n_sites)):
                        i = start + k
                        a, n_local = types[i], local[i, 1]
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
                                n_types, a, n_local, here, p_cutoffs, p_x, radial_begin[i], ends, p_ax,
                                angular_begin[i], ang_ends, scratch, polynomials, functions,
                            )  # fmt: skip
                        w, base = advance(p_weights, z * size), a * stride
                        descriptor(w, base, p_at, n_local, here, Ar, Aa, q, s)
                        if TEMPERATURE:
                            q[D - 1] = temperatures[frame]
                        energies[z, frame] += network(w, base, p_at, q, h, y, P)
                        adjoint(s, P, S)
                        derivatives_of_sums(w, base, p_at, n_local, here, P, S, transposed, Br, Ba)
                        radial_forces(k, n_local, p_x, radial_begin[i], ends, p_j, df, Br, f, F, W)
                        angular_forces(k, n_local, angular_begin[i], ang_ends, p_aj, rec, Ba, sums, rows, F, W)
            for z in range(begin, end):
                F = advance(F0, (z - begin) * 3 * n_sites)
                error = 0.0
                for m in range(3 * n_sites):
                    d = F[m] - p_reference[3 * start + m]
                    error += p_force_weights[3 * start + m] * (d * d)
                errors[z, frame] = error
                if with_forces:
                    for m in range(3 * n_sites):
                        p_forces[3 * start + m] = F[m]
            item = fetch_add(pointer(counter), 0, 1)

    return evaluate


@functools.cache
def build_descriptors(layout: Layout):
    """Kernel: smallest and largest value of each raw descriptor component in each chunk of sites."""
    fill, parts = fill_functions(layout)
    descriptor = site_functions(layout).descriptor
    D = layout.shape.n_descriptor

    @kernel_jit(layout)
    def descriptor_range(
        counter, chunks, n_types, types, local, present, cutoffs, radial_x, radial_begin, radial_end, angular_x,
        angular_begin, angular_end, basis_at, basis, weights, stride, at, work, place, low, high,
    ):  # fmt: skip
        p_end, p_ang_end, p_present = pointer(radial_end), pointer(angular_end), pointer(present)
        p_basis, p_weights, p_at = pointer(basis), pointer(weights), pointer(at)
        mine = advance(pointer(work), fetch_add(pointer(counter), 1, 1) * place[place.size - 1])
        q, s, scratch = advance(mine, place[0]), advance(mine, place[5]), advance(mine, place[19])
        polynomials, functions = advance(mine, place[21]), advance(mine, place[22])
        chunk = fetch_add(pointer(counter), 0, 1)
        while chunk < chunks.size - 1:
            for i in range(chunks[chunk], chunks[chunk + 1]):
                n_local = local[i, 1]
                here, ends, ang_ends = (
                    advance(p_present, local[i, 0]),
                    advance(p_end, local[i, 2]),
                    advance(p_ang_end, local[i, 2]),
                )
                if basis_at[i] >= 0:
                    Ar, Aa, _, _ = parts(n_local, radial_begin[i], ends, advance(p_basis, basis_at[i]))
                else:
                    Ar, Aa, _, _ = parts(n_local, radial_begin[i], ends, scratch)
                    fill(
                        n_types, types[i], n_local, here, pointer(cutoffs), pointer(radial_x), radial_begin[i], ends,
                        pointer(angular_x), angular_begin[i], ang_ends, scratch, polynomials, functions,
                    )  # fmt: skip
                descriptor(p_weights, types[i] * stride, p_at, n_local, here, Ar, Aa, q, s)
                for d in range(D):
                    low[chunk, d] = min(low[chunk, d], q[d])
                    high[chunk, d] = max(high[chunk, d], q[d])
            chunk = fetch_add(pointer(counter), 0, 1)

    return descriptor_range
