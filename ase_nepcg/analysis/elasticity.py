"""Elastic constants at rest, by finite strains of the relaxed crystal.

::

    C_IJ = d sigma_I / d epsilon_J        Voigt order xx, yy, zz, yz, xz, xy; shears are engineering strains

by central differences of the stress, positions relaxed at each strain. Works with any ASE calculator.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import units
from ase.optimize import BFGS

from .frames import AnalysisError, positive

__all__ = ["ElasticConstants", "Moduli", "elastic_constants", "require_crystal", "strained", "stress_slopes"]

_PLACES = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
# residual stress at which strains are measured, over the largest constant
_LARGEST_RESIDUE = 0.02


class Moduli:
    """What follows from constants ``C_GPa`` (6, 6), symmetric."""

    C_GPa: np.ndarray

    @property
    def S_per_GPa(self) -> np.ndarray:
        """Compliances (6, 6)."""
        return np.linalg.inv(self.C_GPa)

    @property
    def bulk_modulus_GPa(self) -> float:
        """Average of Voigt and Reuss (Hill, Proc. Phys. Soc. A 65, 349, 1952)."""
        return float(0.5 * (self.C_GPa[:3, :3].sum() / 9.0 + 1.0 / self.S_per_GPa[:3, :3].sum()))

    @property
    def shear_modulus_GPa(self) -> float:
        """Average of Voigt and Reuss (Hill)."""
        c, s = self.C_GPa, self.S_per_GPa
        voigt = (np.trace(c[:3, :3]) - c[0, 1] - c[0, 2] - c[1, 2] + 3.0 * np.trace(c[3:, 3:])) / 15.0
        reuss = 15.0 / (4.0 * (np.trace(s[:3, :3]) - s[0, 1] - s[0, 2] - s[1, 2]) + 3.0 * np.trace(s[3:, 3:]))
        return float(0.5 * (voigt + reuss))

    @property
    def stable(self) -> bool:
        """Whether all homogeneous strains cost energy (Born)."""
        return bool(np.linalg.eigvalsh(self.C_GPa).min() > 0)


@dataclass(frozen=True)
class ElasticConstants(Moduli):
    """``C_GPa`` (6, 6), symmetrised, and ``asymmetry_GPa`` (6, 6): half the difference of the two derivatives that
    should be equal, a measure of the error. ``stress_GPa`` (6,): at the start, from which strains are counted."""

    C_GPa: np.ndarray
    asymmetry_GPa: np.ndarray
    stress_GPa: np.ndarray
    strain: float

    def as_table(self) -> tuple[tuple, np.ndarray]:
        return tuple(f"C_{k}_GPa" for k in range(1, 7)), self.C_GPa


def strained(atoms, voigt):
    """A copy of ``atoms`` with their calculator, deformed by strains (6,), fractional coordinates as they are."""
    deformation = np.eye(3)
    for value, (a, b) in zip(voigt, _PLACES, strict=True):
        deformation[a, b] += value if a == b else 0.5 * value
        deformation[b, a] += 0.0 if a == b else 0.5 * value
    copy = atoms.copy()
    copy.calc = atoms.calc
    copy.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    return copy


def stress_slopes(stress_at, strain: float) -> np.ndarray:
    """``d sigma_I / d epsilon_J`` (6, 6) of ``stress_at(voigt)`` (6,), by central differences."""
    slopes = np.zeros((6, 6))
    for j in range(6):
        step = np.zeros(6)
        step[j] = strain
        slopes[:, j] = (stress_at(step) - stress_at(-step)) / (2.0 * strain)
    return slopes


def require_crystal(function: str, atoms, strain: float) -> None:
    """Raise :class:`AnalysisError` unless ``atoms`` have a calculator and three periods, and ``strain`` is small."""
    positive("strain", strain)
    if atoms.calc is None:
        raise AnalysisError(f"{function}: the atoms have no calculator")
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        raise AnalysisError(f"{function}: expected a cell that is periodic in all directions")
    if strain > 0.05:
        raise AnalysisError(f"strain: expected a small number (0.005), got {strain:g}")


def elastic_constants(
    atoms, *, strain: float = 0.005, fmax: float = 1e-4, max_steps: int = 500, relax: bool = True
) -> ElasticConstants:
    """Elastic constants of a crystal that is periodic in all directions, at the volume it has.

    ``atoms``: with any calculator that gives stresses; relax its cell first (``ase.filters.FrechetCellFilter``).
    ``strain``: of the central differences; ``relax``: positions at each strain, until forces are below ``fmax`` (eV/Å).
    The atoms are not changed. Raises :class:`AnalysisError` where relaxations do not end, or the cell is far from its
    equilibrium (stress above 2 % of the largest constant), where constants depend on their definition.
    """
    require_crystal("elastic_constants", atoms, strain)
    positive("fmax", fmax)
    copy = atoms.copy()
    copy.calc = atoms.calc
    copy.set_constraint()

    def stress_at(voigt):
        one = strained(copy, voigt)
        if relax and not _relaxed(one, fmax, max_steps):
            raise AnalysisError(
                f"strain {np.round(voigt, 6).tolist()}: forces are not below {fmax:g} eV/Å after {max_steps} steps; "
                "raise max_steps or fmax"
            )
        return one.get_stress() / units.GPa

    # all strains start from there
    if relax and not _relaxed(copy, fmax, max_steps):
        raise AnalysisError(f"forces are not below {fmax:g} eV/Å after {max_steps} steps; raise max_steps or fmax")
    stress = copy.get_stress() / units.GPa
    constants = stress_slopes(stress_at, strain)
    residue, largest = np.abs(stress).max(), np.abs(constants).max()
    if residue > _LARGEST_RESIDUE * largest:
        raise AnalysisError(
            f"the cell is under a stress of {residue:.3g} GPa, constants are up to {largest:.3g} GPa: relax the cell "
            "first (ase.filters.FrechetCellFilter)"
        )
    return ElasticConstants(
        C_GPa=0.5 * (constants + constants.T),
        asymmetry_GPa=0.5 * (constants - constants.T),
        stress_GPa=stress,
        strain=float(strain),
    )


def _relaxed(atoms, fmax, max_steps) -> bool:
    return BFGS(atoms, logfile=None).run(fmax=fmax, steps=max_steps)
