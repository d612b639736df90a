"""A unit that ASE does not have, and numbers with their errors as text."""

from __future__ import annotations

import numpy as np
from ase import units

__all__ = ["GRAMS_PER_CM3", "density_g_cm3", "with_error"]

#: u/Å^3 in g/cm^3
GRAMS_PER_CM3 = 1e24 * units._amu * 1e3


def density_g_cm3(atoms) -> float:
    """Density of atoms or beads with a cell, g/cm^3."""
    return float(GRAMS_PER_CM3 * atoms.get_masses().sum() / atoms.cell.volume)


def with_error(value: float, error: float) -> str:
    """As 2.30(4): the error in units of the last digit; three digits where there is no error."""
    if not np.isfinite(error) or error <= 0:
        return f"{value:.3g}"
    # an error of 10 and more has its digits in front of the point
    digits = max(0, -int(np.floor(np.log10(error))))
    return f"{value:.{digits}f}({round(error * 10**digits):d})"
