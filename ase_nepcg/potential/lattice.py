"""Cells in compiled code: completed where they are not periodic, inverted, compared."""

from __future__ import annotations

import math

from .cache import inlined, kernel_jit

__all__ = ["complete", "cross", "invert", "smallest_stretch"]


@inlined
def cross(a, b, out):
    """``out``: vector product of ``a`` and ``b``; returns its length."""
    x = a[1] * b[2] - a[2] * b[1]
    y = a[2] * b[0] - a[0] * b[2]
    z = a[0] * b[1] - a[1] * b[0]
    out[0], out[1], out[2] = x, y, z
    return math.sqrt(x * x + y * y + z * z)


@kernel_jit()
def complete(cell, pbc, out):
    """``out``: ``cell`` with the rows of non-periodic directions replaced by unit vectors orthogonal to the rest."""
    periodic = 0
    for d in range(3):
        periodic += pbc[d]
        for c in range(3):
            out[d, c] = cell[d, c] if pbc[d] else (1.0 if d == c else 0.0)
    if periodic == 2:
        for d in range(3):
            if not pbc[d]:
                size = cross(out[(d + 1) % 3], out[(d + 2) % 3], out[d])
                for c in range(3):
                    out[d, c] /= size
    elif periodic == 1:
        for d in range(3):
            if pbc[d]:
                # the Cartesian axis least parallel to the vector
                axis = 0
                for c in range(1, 3):
                    if abs(out[d, c]) < abs(out[d, axis]):
                        axis = c
                u, v = out[(d + 1) % 3], out[(d + 2) % 3]
                for c in range(3):
                    u[c] = 1.0 if c == axis else 0.0
                size = cross(out[d], u, v)
                for c in range(3):
                    v[c] /= size
                size = cross(v, out[d], u)
                for c in range(3):
                    u[c] /= size


@inlined
def invert(a, out):
    """Inverse of a 3 x 3 matrix."""
    determinant = (
        a[0, 0] * (a[1, 1] * a[2, 2] - a[1, 2] * a[2, 1])
        + a[0, 1] * (a[1, 2] * a[2, 0] - a[1, 0] * a[2, 2])
        + a[0, 2] * (a[1, 0] * a[2, 1] - a[1, 1] * a[2, 0])
    )
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        for c in range(3):
            d, e = (c + 1) % 3, (c + 2) % 3
            out[c, i] = (a[j, d] * a[k, e] - a[j, e] * a[k, d]) / determinant


@inlined
def smallest_stretch(f):
    """Smallest singular value of a 3 x 3 matrix near unity, less 1e-7 for rounding.

    Square root of the smallest eigenvalue of C = F F^T in closed form (O. K. Smith, Commun. ACM 4, 168, 1961).
    """
    xx = f[0, 0] ** 2 + f[0, 1] ** 2 + f[0, 2] ** 2
    yy = f[1, 0] ** 2 + f[1, 1] ** 2 + f[1, 2] ** 2
    zz = f[2, 0] ** 2 + f[2, 1] ** 2 + f[2, 2] ** 2
    xy = f[0, 0] * f[1, 0] + f[0, 1] * f[1, 1] + f[0, 2] * f[1, 2]
    xz = f[0, 0] * f[2, 0] + f[0, 1] * f[2, 1] + f[0, 2] * f[2, 2]
    yz = f[1, 0] * f[2, 0] + f[1, 1] * f[2, 1] + f[1, 2] * f[2, 2]
    mean = (xx + yy + zz) / 3.0
    xx, yy, zz = xx - mean, yy - mean, zz - mean
    size = math.sqrt((xx * xx + yy * yy + zz * zz + 2.0 * (xy * xy + xz * xz + yz * yz)) / 6.0)
    smallest = mean
    if size > 0.0:
        determinant = xx * (yy * zz - yz * yz) - xy * (xy * zz - yz * xz) + xz * (xy * yz - yy * xz)
        angle = math.acos(min(max(0.5 * determinant / size**3, -1.0), 1.0)) / 3.0
        smallest += 2.0 * size * math.cos(angle + 2.0 * math.pi / 3.0)
    return math.sqrt(max(smallest, 0.0)) - 1e-7
