"""Ziegler-Biersack-Littmark repulsion of one pair, as scalar maths.

``V(r) = s(r)/r sum_i A_i exp(-a_i r)`` with the four screening terms; charges, Coulomb constant and screening length
are folded into ``A_i`` and ``a_i`` (``NEPModel.zbl_pairs``). ``s`` falls from 1 at r_in to 0 at r_out as a half
cosine.
"""

from __future__ import annotations

import math

from numba.extending import register_jitable

__all__ = ["zbl_energy"]


@register_jitable(fastmath={"contract"})
def zbl_energy(r, table, first):
    """``V`` and ``dV/dr`` at ``r < r_out``; ``table[first:first+10]`` = r_in, r_out, A_1, a_1, ... A_4, a_4."""
    inner, outer = table[first], table[first + 1]
    inverse_r = 1.0 / r
    value = slope = 0.0
    for i in range(4):
        term = table[first + 2 + 2 * i] * math.exp(-table[first + 3 + 2 * i] * r)
        value += term
        slope -= table[first + 3 + 2 * i] * term
    value *= inverse_r
    slope = (slope - value) * inverse_r
    if r < inner:
        return value, slope
    width = math.pi / (outer - inner)
    phase = width * (r - inner)
    switch = 0.5 + 0.5 * math.cos(phase)
    return value * switch, slope * switch - 0.5 * width * math.sin(phase) * value
