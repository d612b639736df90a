"""Constants of the angular descriptor, from their closed forms.

Notation: ``b_{l,0} = Z_{l,0}(z)``, ``b_{l,2m-1} = Z_{l,m}(z) Re (x+iy)^m``, ``b_{l,2m} = Z_{l,m}(z) Im (x+iy)^m`` at
the unit vector (x, y, z); ``Z_{l,m}`` is ``d^m P_l / dz^m`` divided by ``kappa_{l,m}``, which leaves coprime integer
coefficients. Sums over neighbours are numbered ``lm = l^2 - 1 + k``, k = 0 ... 2l.

Sources: Fan et al., J. Chem. Phys. 157, 114801 (2022), Eqs. 13-17; Song et al., Nat. Commun. 15, 10208 (2024).
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import numpy as np

__all__ = ["MANY_BODY", "QUARTIC", "cubic_table", "cubic_terms", "legendre_tables", "three_body_weights"]

MANY_BODY = ("q222", "q1111", "q112", "q123", "q233", "q134")

# q1111 = QUARTIC (s0^2 + s1^2 + s2^2)^2
QUARTIC = 21 / 5 / (4 * math.pi) ** 2


@functools.cache
def _kappa(l: int, m: int) -> Fraction:  # noqa: E741
    """``kappa_{l,m}`` of ``d^m P_l / dz^m = kappa_{l,m} Z_{l,m}``."""
    # P_l = 2^-l sum_j (-1)^j C(l,j) C(2l-2j,l) z^(l-2j)
    terms = [
        Fraction((-1) ** j * math.comb(l, j) * math.comb(2 * l - 2 * j, l), 2**l) * math.perm(l - 2 * j, m)
        for j in range(l // 2 + 1)
        if l - 2 * j >= m
    ]
    denominator = math.lcm(*(t.denominator for t in terms))
    return Fraction(math.gcd(*(int(t * denominator) for t in terms)), denominator)


def legendre_tables(l_max: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Recurrence and derivative of ``Z``, each of shape (l_max+2, l_max+2) with index [l, m].

    ``Z_{l,m} = A z Z_{l-1,m} - B Z_{l-2,m}`` (l > m, starting from ``Z_{m,m} = 1``), ``dZ_{l,m}/dz = R Z_{l,m+1}`` (R
    = 0 for m = l). Returns (A, B, R).
    """
    a, b, r = np.zeros((3, l_max + 2, l_max + 2))
    for l in range(1, l_max + 1):  # noqa: E741
        for m in range(l + 1):
            if m < l:
                # (l - m) p_l = (2l - 1) z p_{l-1} - (l + m - 1) p_{l-2} for p_l = d^m P_l / dz^m
                a[l, m] = Fraction(2 * l - 1, l - m) * _kappa(l - 1, m) / _kappa(l, m)
                if l - 2 >= m:
                    b[l, m] = Fraction(l + m - 1, l - m) * _kappa(l - 2, m) / _kappa(l, m)
                r[l, m] = _kappa(l, m + 1) / _kappa(l, m)
    return a, b, r


def three_body_weights(l_max: int) -> np.ndarray:
    """Weights of ``q_l = sum_k weight[l^2-1+k] s_{l,k}^2``: ``C_{l,0}`` for k = 0 and ``2 C_{l,m}`` for the others."""
    weights = []
    for l in range(1, l_max + 1):  # noqa: E741
        for k in range(2 * l + 1):
            m = (k + 1) // 2
            c = (2 * l + 1) / (4 * math.pi) * float(_kappa(l, m) ** 2 / math.perm(l + m, 2 * m))
            weights.append(c if m == 0 else 2 * c)
    return np.array(weights)


# Monomials s_i s_j s_k of the cubic invariants, as (coefficient / prefactor, "sign i j k ..."): the contraction of the
# tensors named in cubic_terms written out in the sums s. The coefficients are rational.
_CUBIC = {
    "q222": (
        -45 / math.sqrt(14),
        {
            Fraction(1, 36): "+3.3.3",
            Fraction(1, 2): "+3.4.4 +3.5.5",
            Fraction(-1, 4): "+3.6.6 +3.7.7",
            Fraction(-3, 2): "+6.5.5 -6.4.4",
            Fraction(3, 1): "+4.5.7",
        },
    ),
    "q112": (
        math.sqrt(27 / 2),
        {
            Fraction(1, 3): "+0.0.3",
            Fraction(2, 1): "+0.1.4 +0.2.5",
            Fraction(-1, 6): "+3.1.1 +3.2.2",
            Fraction(1, 2): "+6.1.1 -6.2.2",
            Fraction(1, 1): "+1.2.7",
        },
    ),
    "q123": (
        -15 / 2,
        {
            Fraction(1, 20): "+2.6.10 -1.7.10 -2.7.9 -1.6.9",
            Fraction(1, 10): "+0.3.8 +1.3.9 +2.3.10",
            Fraction(1, 5): "-1.4.8 -2.5.8",
            Fraction(1, 4): "+1.6.13 -2.7.13 +2.6.14 +1.7.14",
            Fraction(2, 5): "+0.4.9 +0.5.10",
            Fraction(1, 2): "+0.6.11 +0.7.12",
            Fraction(1, 1): "+1.4.11 -2.5.11 +2.4.12 +1.5.12",
        },
    ),
    "q233": (
        math.sqrt(13125) / 4,
        {
            Fraction(1, 75): "+3.8.8",
            Fraction(3, 200): "+3.9.9 +3.10.10",
            Fraction(3, 100): "+6.9.9 -6.10.10",
            Fraction(1, 25): "+4.8.9 +5.8.10",
            Fraction(1, 24): "-3.13.13 -3.14.14",
            Fraction(1, 20): "-6.9.13 +7.10.13 -7.9.14 -6.10.14",
            Fraction(3, 50): "+7.9.10",
            Fraction(1, 5): "-6.8.11 -7.8.12",
            Fraction(3, 10): "+4.9.11 -5.10.11 +5.9.12 +4.10.12",
            Fraction(1, 2): "+4.11.13 -5.12.13 +5.11.14 +4.12.14",
        },
    ),
    "q134": (
        math.sqrt(3675) / 4,
        {
            Fraction(3, 280): "-1.9.15 -2.10.15",
            Fraction(1, 70): "+0.8.15",
            Fraction(1, 56): "-1.13.18 +2.13.19 -2.14.18 -1.14.19",
            Fraction(3, 56): "+1.9.18 -2.10.18 +2.9.19 +1.10.19",
            Fraction(1, 14): "+1.8.16 +2.8.17",
            Fraction(3, 28): "+0.9.16 +0.10.17 -1.11.16 -2.12.16 +2.11.17 -1.12.17",
            Fraction(1, 8): "+1.13.22 -2.14.22 +2.13.23 +1.14.23",
            Fraction(3, 14): "+0.11.18 +0.12.19",
            Fraction(1, 4): "+0.13.20 +0.14.21",
            Fraction(3, 4): "+1.11.20 -2.12.20 +2.11.21 +1.12.21",
        },
    ),
}


def cubic_terms(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Monomials of a cubic invariant: indices (terms, 3) of the sums and coefficients (terms,).

    With ``v``, ``M``, ``T``, ``H`` the traceless Cartesian tensors of rank 1 to 4 of the neighbour density and ``(4
    pi)^(-3/2)`` in each prefactor: q222 = -45/sqrt(14) tr M^3, q112 = sqrt(27/2) v.M.v, q123 = -15/2 v_a M_bc T_abc,
    q233 = sqrt(13125)/4 M_ab T_acd T_bcd, q134 = sqrt(3675)/4 v_a T_bcd H_abcd.
    """
    prefactor, groups = _CUBIC[name]
    prefactor /= (4 * math.pi) ** 1.5
    indices, coefficients = [], []
    for fraction, monomials in groups.items():
        for monomial in monomials.split():
            indices.append([int(i) for i in monomial[1:].split(".")])
            coefficients.append((-1 if monomial[0] == "-" else 1) * float(fraction) * prefactor)
    return np.array(indices), np.array(coefficients)


def cubic_table(many_body: tuple[str, ...], l_max: int) -> tuple[np.ndarray, np.ndarray]:
    """Monomials of all cubic invariants among ``many_body``: (terms, 4) of int64, number of the block of components
    (``l_max`` and above) and indices of three sums; coefficients (terms,)."""
    rows, coefficients = [], []
    for block, name in enumerate(many_body, l_max):
        if name != "q1111":
            index, c = cubic_terms(name)
            rows += [[block, *ijk] for ijk in index]
            coefficients += list(c)
    return np.array(rows, dtype=np.int64).reshape(-1, 4), np.array(coefficients)
