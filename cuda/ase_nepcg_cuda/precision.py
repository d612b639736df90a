"""What the kernels compute in: the numbers of sites, pairs and sums.

==========  ==========================  ===================================
            ``mixed``                   ``double``
==========  ==========================  ===================================
arithmetic  float32                     float64
places      int32, 2^-32 of the box     int64, 2^-64 of the box
totals      float64                     float64
==========  ==========================  ===================================

Positions and velocities are float64 always. Before forces are computed, positions become *places*: fixed-point
fractions of the (periodic) box. The difference of two places is exact, its overflow is the minimum image, and what is
rounded is the short vector between neighbours, not the long ones to the origin: in a box of 100 Å an int32 place is
good to 2e-8 Å, a float32 coordinate to 4e-6 Å.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from ase_nepcg.potential.basis import ScalarMaths, scalar_maths
from ase_nepcg.potential.zbl import zbl_maths

__all__ = ["PRECISIONS", "Precision", "precision"]


class Precision(NamedTuple):
    """Types and scalar maths of one precision."""

    name: str
    real: type
    fixed: type
    bits: int
    maths: ScalarMaths
    zbl_energy: object
    fastmath: bool


PRECISIONS = ("mixed", "double")


@functools.cache
def precision(name: str) -> Precision:
    """The :class:`Precision` called ``name``, "mixed" or "double"."""
    if name == "mixed":
        maths = scalar_maths(np.float32, terms=6)
        return Precision(name, np.float32, np.int32, 32, maths, zbl_maths(np.float32, maths.cutoff), True)
    if name == "double":
        maths = scalar_maths(np.float64)
        return Precision(name, np.float64, np.int64, 64, maths, zbl_maths(np.float64, maths.cutoff), False)
    raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {name!r}")
