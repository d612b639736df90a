"""What a training frame knows beyond its geometry: forces, virial, and perhaps an energy.

Virials are in eV for the whole cell, positive = compressed; a stress in ASE's sign is ``-virial / volume``.
"""

from __future__ import annotations

import numpy as np
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress

from ..errors import NepCGError

__all__ = [
    "TOLERANCE",
    "DatasetError",
    "FrameCalculator",
    "check_agreement",
    "frame_virial",
    "frame_volume",
    "stored_results",
    "stress_from_virial",
    "symmetric_virial",
    "virial_from_stress",
]

#: eV per site: how far virial and stress, or the two halves of a tensor, may differ (GPUMD's tolerance for the former)
TOLERANCE = 1e-3


class DatasetError(NepCGError, ValueError):
    """Frames that cannot be read, written or used. Says which: frames count from 0 (as in a list), lines from 1."""

    def __init__(self, message: str, path=None, frame: int | None = None, line: int | None = None):
        self.path, self.frame, self.line = None if path is None else str(path), frame, line
        where = [self.path, None if frame is None else f"frame {frame}", None if line is None else f"line {line}"]
        where = ", ".join(part for part in where if part is not None)
        super().__init__(f"{where}: {message}" if where else message)


class FrameCalculator(SinglePointCalculator):
    """Stored forces (N, 3) and stress (6,) of a frame that has no energy: asking for one is an error.

    The mean all-atom energy of a mean-force frame is not the potential of mean force, whose value is unknown.
    """

    name = "frame"

    def __init__(self, atoms, **results):
        if not {"energy", "free_energy"}.isdisjoint(results):
            raise TypeError("FrameCalculator is for frames without energy: use ase's SinglePointCalculator")
        super().__init__(atoms, **results)

    def get_property(self, name, atoms=None, allow_calculation=True):
        if name in ("energy", "free_energy") and allow_calculation:
            raise PropertyNotImplementedError(
                f"{name}: this frame has forces and no energy (energy_weight 0). The mean energy of the atoms is not "
                "the potential of mean force; where it is known it is in atoms.info['mean_energy']"
            )
        return super().get_property(name, atoms, allow_calculation)


def stored_results(atoms) -> dict:
    """What the calculator has stored for these very ``atoms``; nothing is calculated, outdated results do not count."""
    calc = atoms.calc
    if calc is None or not getattr(calc, "results", None) or calc.calculation_required(atoms, []):
        return {}
    return {name: value for name, value in calc.results.items() if value is not None}


def frame_volume(atoms) -> float:
    """Volume of the cell in Å^3, 0.0 if its vectors do not span space."""
    cell = atoms.cell.array
    volume = abs(np.linalg.det(cell))
    return float(volume) if volume > 1e-9 * np.linalg.norm(cell, axis=1).prod() else 0.0


def stress_from_virial(virial, volume: float) -> np.ndarray:
    """Stress (6,) in eV/Å^3, ASE's order and sign."""
    return full_3x3_to_voigt_6_stress(-np.asarray(virial) / volume)


def virial_from_stress(stress, volume: float) -> np.ndarray:
    """Virial (3, 3) in eV of a stress (6,) or (3, 3) in ASE's sign."""
    stress = np.asarray(stress, dtype=float)
    return -volume * (voigt_6_to_full_3x3_stress(stress) if stress.shape == (6,) else stress)


def symmetric_virial(name: str, virial, n: int) -> np.ndarray:
    """``virial`` (3, 3) of n sites with the rounding errors of its two halves averaged; refused if they differ more."""
    difference = np.abs(virial - virial.T).max()
    if difference > TOLERANCE * n:
        raise DatasetError(
            f"{name}: expected a symmetric tensor, got halves that differ by {difference:.3g} eV (a single snapshot of "
            "the molecular virial must be symmetrised)"
        )
    return 0.5 * (virial + virial.T)


def check_agreement(virial, from_stress, n: int) -> None:
    """Raise :class:`DatasetError` if the virial of n sites and the one that follows from the stress are different."""
    difference = np.abs(virial - from_stress).max()
    if difference > TOLERANCE * n:
        raise DatasetError(
            f"virial and stress disagree by {difference:.3g} eV: expected virial = -volume × stress (virial: positive "
            "= compressed, stress: ASE's sign, positive = stretched)"
        )


def frame_virial(atoms, results: dict):
    """The symmetric virial (3, 3) of a frame, from ``info["virial"]`` or the stress in ``results``, or None."""
    virial, stress = atoms.info.get("virial"), results.get("stress")
    if virial is not None:
        try:
            virial = np.asarray(virial, dtype=float)
        except (TypeError, ValueError):
            virial = np.empty(0)
        if virial.shape not in ((3, 3), (9,)) or not np.isfinite(virial).all():
            raise DatasetError(f"info['virial']: expected (3, 3) finite numbers, got {atoms.info['virial']!r}")
        virial = symmetric_virial("info['virial']", virial.reshape(3, 3), len(atoms))
    if stress is not None:
        volume = frame_volume(atoms)
        from_stress = virial_from_stress(stress, volume)
        if not volume or not np.isfinite(from_stress).all():
            raise DatasetError(f"stress: expected a cell with a volume and finite numbers, got {np.asarray(stress)}")
        if virial is None:
            return symmetric_virial("stress", from_stress, len(atoms))
        check_agreement(virial, from_stress, len(atoms))
    return virial
