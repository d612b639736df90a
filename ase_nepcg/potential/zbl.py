"""Ziegler-Biersack-Littmark repulsion of one pair, as scalar maths.

``V(r) = s(r)/r sum_i A_i exp(-a_i r)`` with the four screening terms; charges, Coulomb constant and screening length
are folded into ``A_i`` and ``a_i`` (``NEPModel.zbl_pairs``). ``s`` falls from 1 at r_in to 0 at r_out as a half
cosine.
"""

from __future__ import annotations

import math

from numba.extending import register_jitable

from .basis import cutoff

__all__ = ["zbl_energy", "zbl_maths"]


def zbl_maths(real=float, cutoff=cutoff):
    """:func:`zbl_energy` with all constants of type ``real`` and the ``cutoff`` of ``basis.scalar_maths(real)``."""
    zero, one = real(0.0), real(1.0)

    @register_jitable(fastmath={"contract"})
    def zbl_energy(r, table, first):
        """``V`` and ``dV/dr`` at ``r < r_out``; ``table[first:first+10]`` = r_in, r_out, A_1, a_1, ... A_4, a_4."""
        inner, outer = table[first], table[first + 1]
        inverse_r = one / r
        value = slope = zero
        for i in range(4):
            term = table[first + 2 + 2 * i] * math.exp(-table[first + 3 + 2 * i] * r)
            value += term
            slope -= table[first + 3 + 2 * i] * term
        value *= inverse_r
        slope = (slope - value) * inverse_r
        if r < inner:
            return value, slope
        inverse_width = one / (outer - inner)
        switch, slope_of_switch = cutoff(one - (r - inner) * inverse_width, inverse_width)
        return value * switch, slope * switch + slope_of_switch * value

    return zbl_energy


zbl_energy = zbl_maths()
