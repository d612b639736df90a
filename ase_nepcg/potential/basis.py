"""Basis functions of the descriptor as scalar maths: one source for SIMD vectors, CUDA threads and plain floats.

=====================  ===========================================================  ===============
symbol                 meaning                                                      variable
=====================  ===========================================================  ===============
v = 1 - r/rc           distance from the cutoff, 0 at rc                            ``v``
fc = (1+cos(pi r/rc))/2  cutoff function, ``sin^2(pi v/2)``                           ``fc``
x = 2 v^2 - 1          argument of the Chebyshev polynomials                        ``x``
T_k(x)                 Chebyshev polynomials of the first kind
f_k = (T_k + 1) fc/2   radial basis, f_0 = fc
b_{l,k}(u)             angular polynomials at the unit vector u = (x, y, z)         ``b``
Z_{l,m}(z)             their z part, see ``invariants.py``                          ``zlm``
=====================  ===========================================================  ===============

A radial function is used as one Chebyshev series with folded coefficients, ``sum_k c_k f_k = fc p(x)``,
``p = sum_k d_k T_k`` with ``d_0 = c_0 + sum_{k>0} c_k / 2`` and ``d_k = c_k / 2``.

Source: Fan et al., J. Chem. Phys. 157, 114801 (2022), Eqs. 6-10.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from numba.extending import register_jitable

__all__ = ["ScalarMaths", "angular_basis", "chebyshev_series", "cutoff", "fold_coefficients", "scalar_maths"]

inlined = register_jitable(forceinline=True, fastmath={"contract"})

# sin(pi v/2) / v and cos(pi v/2) as polynomials of v^2 on [0, 1]: Chebyshev interpolation, errors 3e-19 and 4e-18
_SIN = (
    1.5707963267948966,
    -0.6459640975062462,
    0.07969262624616565,
    -0.004681754135304255,
    0.0001604411847130916,
    -3.5988430204672576e-06,
    5.6921364280986254e-08,
    -6.684416831856085e-10,
    5.87297574479995e-12,
)
_COS = (
    1.0,
    -1.233700550136169,
    0.25366950790103104,
    -0.02086348076317886,
    0.0009192602739434877,
    -2.5202039782228713e-05,
    4.7108307433635577e-07,
    -6.382235924529259e-09,
    6.3317327178079e-11,
)


class ScalarMaths(NamedTuple):
    """The functions of :func:`scalar_maths`."""

    cutoff: object
    chebyshev_series: object
    angular_basis: object


def scalar_maths(real=float, terms: int = 9) -> ScalarMaths:
    """The basis functions with all constants of type ``real``: ``float`` (also for SIMD vectors) or ``np.float32``.

    In single precision a constant in double would bring double-precision arithmetic. ``terms``: of the polynomials for
    sine and cosine (6 are enough in single precision: errors 4e-8).
    """
    zero, one, two, pi = (real(c) for c in (0.0, 1.0, 2.0, math.pi))
    sine_terms, cosine_terms = (tuple(real(c) for c in series[:terms]) for series in (_SIN, _COS))
    last = terms - 1

    @inlined
    def even_polynomial(c, w):
        p = c[last] * w + c[last - 1]
        for k in range(last - 2, -1, -1):
            p = p * w + c[k]
        return p

    @inlined
    def cutoff(v, inverse_rc):
        """``fc = sin^2(pi v/2)`` and ``dfc/dr = -(pi/rc) sin cos`` at ``v = 1 - r/rc``, 0 <= v <= 1."""
        w = v * v
        sine = v * even_polynomial(sine_terms, w)
        cosine = even_polynomial(cosine_terms, w)
        return sine * sine, (-pi * inverse_rc) * sine * cosine

    @inlined
    def chebyshev_series(d, first, n, x):
        """``p = sum_k d[first + k] T_k(x)``, k < n, and ``dp/dx`` by Clenshaw's recurrence (n >= 1)."""
        x2 = two * x
        b1 = b2 = p1 = p2 = zero * x
        for k in range(n - 1, 0, -1):
            p1, p2 = two * b1 + x2 * p1 - p2, p1
            b1, b2 = d[first + k] + x2 * b1 - b2, b1
        return d[first] + (x * b1 - b2), b1 + (x * p1 - p2)

    @inlined
    def angular_basis(x, y, z, l_max, recur_a, recur_b, b, b_first, zlm, z_first):
        """All ``b_{l,k}(x, y, z)``, 1 <= l <= l_max, into ``b[b_first + l^2 - 1 + k]``.

        The factors ``Z_{l,m}`` go to ``zlm[z_first + m (l_max + 1) + l]`` for the gradient. ``recur_a``, ``recur_b``:
        ``invariants.legendre_tables``.
        """
        unit = zero * z + one
        cosine, sine = unit, zero * z  # Re, Im of (x + iy)^m
        for m in range(l_max + 1):
            z1 = z2 = zero * z
            for l in range(m, l_max + 1):  # noqa: E741
                zz = unit if l == m else recur_a[l, m] * (z * z1) - recur_b[l, m] * z2
                zlm[z_first + m * (l_max + 1) + l] = zz
                if l > 0:
                    at = b_first + l * l - 1
                    if m == 0:
                        b[at] = zz
                    else:
                        b[at + 2 * m - 1] = zz * cosine
                        b[at + 2 * m] = zz * sine
                z2, z1 = z1, zz
            cosine, sine = x * cosine - y * sine, x * sine + y * cosine

    return ScalarMaths(cutoff, chebyshev_series, angular_basis)


cutoff, chebyshev_series, angular_basis = scalar_maths()


def fold_coefficients(c, axis):
    """Coefficients ``d`` of ``fc sum_k d_k T_k`` from ``c`` of ``sum_k c_k f_k`` (numpy array, k along ``axis``)."""
    import numpy as np

    c = np.moveaxis(np.asarray(c, float), axis, 0)
    d = 0.5 * c
    d[0] = c[0] + d[1:].sum(axis=0)
    return np.moveaxis(d, 0, axis)
