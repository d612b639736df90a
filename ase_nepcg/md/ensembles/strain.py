"""What the barostats share: the strain of a cell, its driving force, and how it deforms the sites.

A barostat strains everything by a symmetric matrix e, written xx, yy, zz, yz, xz, xy::

    x -> exp(e) x,   v -> exp(-e) v,   every cell vector a -> exp(e) a,   V -> V exp(tr e)

This leaves the volume element of phase space as it is, and d(U + K) = - e : (sum m v (x) v + W). A coupling is a linear
projection of e: all diagonal entries equal (isotropic), those of the plane equal (semi-isotropic), entries of axes that
keep their length zero, and so on. With the external pressure P0 the strain is driven by

    G = projection of (sum m v (x) v + W - V P0),   eV.

Where P0 is not hydrostatic its deviatoric part is a constant true (Cauchy) stress; this has no potential, so its work
is summed up along the trajectory.

Conserved momenta. The distribution to be sampled is exp(-(U + K + P V)/kT) with the volume element dV (dL_x dL_y dL_z
if the axes scale on their own; dh / V^2 for the whole cell: Martyna, Tobias & Klein, J. Chem. Phys. 101, 4177, 1994) so
that N sites without forces have p(V) ~ V^N exp(-P V/kT). A total momentum that is zero takes kT/V from the kinetic part
of the pressure; the barostats add it.
"""

from __future__ import annotations

from ..state import inlined
from ..steps import kinetic_tensor, volume

__all__ = [
    "AXES",
    "HYDROSTATIC",
    "KT",
    "N_COMMON",
    "PROJECTOR",
    "RANK",
    "REFERENCE",
    "SHEAR",
    "TARGET",
    "deform",
    "deviatoric_work",
    "driving_force",
    "exponential",
    "inverse",
    "phi",
    "project_strain",
    "rotated",
    "scaled",
    "scaled_sum",
    "square",
    "stretch_velocities",
    "unrotate",
]

# p of both methods: kT; mean external pressure of the axes that scale, eV/Å^3; external pressure (6); projector of the
# diagonal (3 x 3); 1 where shear is free, else 0; number of independent strains; number of axes that scale
KT, HYDROSTATIC, TARGET, PROJECTOR, SHEAR, RANK, AXES, N_COMMON = 0, 1, 2, 8, 17, 18, 19, 20
# q of both methods: inverse of the first cell (3 x 3), see unrotate()
REFERENCE = 0
# terms of the series of phi(); their sum is exact to rounding for strains below 0.5 in one step
_TERMS = 14


@inlined
def product(a, b):
    """Product of two symmetric matrices that commute."""
    return (
        a[0] * b[0] + a[5] * b[5] + a[4] * b[4],
        a[5] * b[5] + a[1] * b[1] + a[3] * b[3],
        a[4] * b[4] + a[3] * b[3] + a[2] * b[2],
        a[5] * b[4] + a[1] * b[3] + a[3] * b[2],
        a[0] * b[4] + a[5] * b[3] + a[4] * b[2],
        a[0] * b[5] + a[5] * b[1] + a[4] * b[3],
    )


@inlined
def scaled_sum(c, a, d, b):
    """``c a + d b`` of symmetric matrices."""
    return (
        c * a[0] + d * b[0],
        c * a[1] + d * b[1],
        c * a[2] + d * b[2],
        c * a[3] + d * b[3],
        c * a[4] + d * b[4],
        c * a[5] + d * b[5],
    )


@inlined
def scaled(c, a):
    """``c a`` of a symmetric matrix."""
    return c * a[0], c * a[1], c * a[2], c * a[3], c * a[4], c * a[5]


@inlined
def square(a):
    """Sum of the squares of all nine entries."""
    return a[0] * a[0] + a[1] * a[1] + a[2] * a[2] + 2.0 * (a[3] * a[3] + a[4] * a[4] + a[5] * a[5])


@inlined
def phi(a):
    """``(exp(a) - 1) / a``, the average of exp(t a) over 0 < t < 1."""
    one = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0)
    result = one
    for n in range(_TERMS, 1, -1):
        result = scaled_sum(1.0, one, 1.0 / n, product(a, result))
    return result


@inlined
def exponential(a, f):
    """``exp(a)`` of a symmetric matrix, given ``f = phi(a)``."""
    return scaled_sum(1.0, (1.0, 1.0, 1.0, 0.0, 0.0, 0.0), 1.0, product(a, f))


@inlined
def inverse(a):
    """Inverse of a symmetric matrix."""
    b0, b1, b2 = a[1] * a[2] - a[3] * a[3], a[0] * a[2] - a[4] * a[4], a[0] * a[1] - a[5] * a[5]
    b3, b4, b5 = a[4] * a[5] - a[0] * a[3], a[5] * a[3] - a[1] * a[4], a[3] * a[4] - a[2] * a[5]
    return scaled(1.0 / (a[0] * b0 + a[5] * b5 + a[4] * b4), (b0, b1, b2, b3, b4, b5))


@inlined
def transformed(a, x, y, z):
    """Symmetric matrix times vector."""
    return a[0] * x + a[5] * y + a[4] * z, a[5] * x + a[1] * y + a[3] * z, a[4] * x + a[3] * y + a[2] * z


@inlined
def project_strain(a, p):
    """What a coupling leaves of a symmetric matrix."""
    k = PROJECTOR
    return (
        p[k] * a[0] + p[k + 1] * a[1] + p[k + 2] * a[2],
        p[k + 3] * a[0] + p[k + 4] * a[1] + p[k + 5] * a[2],
        p[k + 6] * a[0] + p[k + 7] * a[1] + p[k + 8] * a[2],
        p[SHEAR] * a[3],
        p[SHEAR] * a[4],
        p[SHEAR] * a[5],
    )


@inlined
def driving_force(s, r, p, share, constant):
    """``G`` of the module's text plus ``share * 2 K + constant`` on the axes that scale, eV."""
    xx, yy, zz, yz, xz, xy = kinetic_tensor(s, r)
    w, v, k = s.virial[r], volume(s, r), TARGET
    more = share * (xx + yy + zz) + constant
    g = (
        xx + w[0, 0] - v * p[k] + more,
        yy + w[1, 1] - v * p[k + 1] + more,
        zz + w[2, 2] - v * p[k + 2] + more,
        yz + 0.5 * (w[1, 2] + w[2, 1]) - v * p[k + 3],
        xz + 0.5 * (w[0, 2] + w[2, 0]) - v * p[k + 4],
        xy + 0.5 * (w[0, 1] + w[1, 0]) - v * p[k + 5],
    )
    return project_strain(g, p)


@inlined
def deviatoric_work(e, p):
    """(P0 less its hydrostatic part) : e, eV/Å^3, for a strain that the coupling allows."""
    k = TARGET
    return (
        p[k] * e[0] + p[k + 1] * e[1] + p[k + 2] * e[2] - p[HYDROSTATIC] * (e[0] + e[1] + e[2])
        + 2.0 * (p[k + 3] * e[3] + p[k + 4] * e[4] + p[k + 5] * e[5])
    )  # fmt: skip


@inlined
def deform(s, r, a, b, h):
    """``x -> a x + h b v``, cell vectors ``-> a`` times themselves."""
    for i in range(s.first[r], s.first[r + 1]):
        x, y, z = transformed(a, s.x[i, 0], s.x[i, 1], s.x[i, 2])
        dx, dy, dz = transformed(b, s.v[i, 0], s.v[i, 1], s.v[i, 2])
        s.x[i, 0], s.x[i, 1], s.x[i, 2] = x + h * dx, y + h * dy, z + h * dz
    for k in range(3):
        if s.pbc[r, k]:
            x, y, z = transformed(a, s.cell[r, k, 0], s.cell[r, k, 1], s.cell[r, k, 2])
            s.cell[r, k, 0], s.cell[r, k, 1], s.cell[r, k, 2] = x, y, z


@inlined
def stretch_velocities(s, r, a, b, h):
    """``v -> a v + h b f/m``."""
    for i in range(s.first[r], s.first[r + 1]):
        x, y, z = transformed(a, s.v[i, 0], s.v[i, 1], s.v[i, 2])
        k = h * s.w[i]
        fx, fy, fz = transformed(b, s.f[i, 0], s.f[i, 1], s.f[i, 2])
        s.v[i, 0], s.v[i, 1], s.v[i, 2] = x + k * fx, y + k * fy, z + k * fz


@inlined
def rotated(a, t):
    """``Q^T a Q`` of a symmetric matrix; ``t``: Q, nine numbers."""
    # columns of a Q
    x0, x1, x2 = transformed(a, t[0], t[3], t[6])
    y0, y1, y2 = transformed(a, t[1], t[4], t[7])
    z0, z1, z2 = transformed(a, t[2], t[5], t[8])
    return (
        t[0] * x0 + t[3] * x1 + t[6] * x2,
        t[1] * y0 + t[4] * y1 + t[7] * y2,
        t[2] * z0 + t[5] * z1 + t[8] * z2,
        t[1] * z0 + t[4] * z1 + t[7] * z2,
        t[0] * z0 + t[3] * z1 + t[6] * z2,
        t[0] * y0 + t[3] * y1 + t[6] * y2,
    )


@inlined
def unrotate(s, r, q):
    """Turn the replica so that its cell is the first one times a symmetric matrix; returns Q, turned by is Q^T.

    Strains without rotation, one after the other, may add up to a rotation. With F from the first to the present cell,
    F = Q U (Q a rotation, U symmetric), everything is turned by Q^T. Q by Newton's iteration for the polar
    decomposition (Higham, SIAM J. Sci. Stat. Comput. 7, 1160, 1986).
    """
    c, k = s.cell[r], REFERENCE
    # F[a, b] = sum_k inverse[b, k] cell[k, a]
    a0 = q[k] * c[0, 0] + q[k + 1] * c[1, 0] + q[k + 2] * c[2, 0]
    a1 = q[k + 3] * c[0, 0] + q[k + 4] * c[1, 0] + q[k + 5] * c[2, 0]
    a2 = q[k + 6] * c[0, 0] + q[k + 7] * c[1, 0] + q[k + 8] * c[2, 0]
    a3 = q[k] * c[0, 1] + q[k + 1] * c[1, 1] + q[k + 2] * c[2, 1]
    a4 = q[k + 3] * c[0, 1] + q[k + 4] * c[1, 1] + q[k + 5] * c[2, 1]
    a5 = q[k + 6] * c[0, 1] + q[k + 7] * c[1, 1] + q[k + 8] * c[2, 1]
    a6 = q[k] * c[0, 2] + q[k + 1] * c[1, 2] + q[k + 2] * c[2, 2]
    a7 = q[k + 3] * c[0, 2] + q[k + 4] * c[1, 2] + q[k + 5] * c[2, 2]
    a8 = q[k + 6] * c[0, 2] + q[k + 7] * c[1, 2] + q[k + 8] * c[2, 2]
    # quadratic convergence: a handful of iterations where the strain is below a half
    for _ in range(40):
        o0, o4, o8, o1, o5, o6 = a0, a4, a8, a1, a5, a6
        b0, b1, b2 = a4 * a8 - a5 * a7, a5 * a6 - a3 * a8, a3 * a7 - a4 * a6
        b3, b4, b5 = a2 * a7 - a1 * a8, a0 * a8 - a2 * a6, a1 * a6 - a0 * a7
        b6, b7, b8 = a1 * a5 - a2 * a4, a2 * a3 - a0 * a5, a0 * a4 - a1 * a3
        d = 1.0 / (a0 * b0 + a1 * b1 + a2 * b2)
        a0, a1, a2 = 0.5 * (a0 + d * b0), 0.5 * (a1 + d * b1), 0.5 * (a2 + d * b2)
        a3, a4, a5 = 0.5 * (a3 + d * b3), 0.5 * (a4 + d * b4), 0.5 * (a5 + d * b5)
        a6, a7, a8 = 0.5 * (a6 + d * b6), 0.5 * (a7 + d * b7), 0.5 * (a8 + d * b8)
        if abs(a0 - o0) + abs(a4 - o4) + abs(a8 - o8) + abs(a1 - o1) + abs(a5 - o5) + abs(a6 - o6) < 1e-15:
            break
    for i in range(s.first[r], s.first[r + 1]):
        x, y, z = s.x[i, 0], s.x[i, 1], s.x[i, 2]
        s.x[i, 0], s.x[i, 1], s.x[i, 2] = a0 * x + a3 * y + a6 * z, a1 * x + a4 * y + a7 * z, a2 * x + a5 * y + a8 * z
        x, y, z = s.v[i, 0], s.v[i, 1], s.v[i, 2]
        s.v[i, 0], s.v[i, 1], s.v[i, 2] = a0 * x + a3 * y + a6 * z, a1 * x + a4 * y + a7 * z, a2 * x + a5 * y + a8 * z
    for j in range(3):
        x, y, z = c[j, 0], c[j, 1], c[j, 2]
        c[j, 0], c[j, 1], c[j, 2] = a0 * x + a3 * y + a6 * z, a1 * x + a4 * y + a7 * z, a2 * x + a5 * y + a8 * z
    return a0, a1, a2, a3, a4, a5, a6, a7, a8
