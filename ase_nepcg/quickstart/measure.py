"""What atoms and beads are compared by: pressures and radial distributions, each with an error; and their speed."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from ase import units

from .. import analysis
from ..analysis.blocks import FrameAverage
from ..analysis.runs import hot_copy
from ..calculator import NEP
from ..md import MD, Langevin
from ..md.observers.base import standard_errors
from .dynamics import AseLangevin

__all__ = ["BIN", "Comparison", "bins_up_to", "compare_rdf", "molecular_pressure", "ns_per_day"]

#: Å
BIN = 0.1


def molecular_pressure(frames, mapping, temperature_K: float) -> tuple[float, float, bool]:
    """Pressure, its standard error in GPa, and whether this is more than a lower bound (the run is long compared with
    the slowest correlation), from all-atom frames with forces and stress.

    ``P V = n kT + tr W_mol / 3``: the sites' ideal gas and the molecular estimator of their virial
    (:meth:`~ase_nepcg.Mapping.virial`), which has the average of the atoms' own pressure and a sixth of its scatter.
    """
    average = FrameAverage()
    for frame in frames:
        volume = frame.cell.volume
        virial = mapping.virial(frame, frame.get_forces(), -volume * frame.get_stress(voigt=False), temperature_K)
        pressure = (len(mapping) * units.kB * temperature_K + np.trace(virial) / 3.0) / volume
        average.add(np.array([pressure / units.GPa]))
    error, reliable = standard_errors(average.blocks())
    return float(average.mean[0]), float(error[0]), bool(reliable[0])


@dataclass(frozen=True)
class Comparison:
    """Radial distribution functions of two sets of frames, as :func:`compare_rdf` finds them."""

    atoms: object  #: RDFResult of the beads' centres in the all-atom frames
    beads: object  #: RDFResult of the bead frames
    deviation: float  #: mean of |g_beads - g_atoms|, over all pairs the largest
    halves: float  #: the same between the two halves of the all-atom frames


def compare_rdf(frames, beads) -> Comparison:
    """Compare the bead centres of all-atom ``frames`` (``Atoms``) with the result ``beads`` of a bead run.

    Deviations are ``int |g - g'| dr / r_max`` over the bins of ``beads``.
    """
    bins, middle = len(beads.r), len(frames) // 2
    r_max = float(beads.r[-1] + beads.r[0])
    whole, first, second = (
        analysis.rdf(part, r_max, bins, pairs=beads.pairs) for part in (frames, frames[:middle], frames[middle:])
    )
    return Comparison(whole, beads, _deviation(whole.g, beads.g), _deviation(first.g, second.g))


def bins_up_to(length: float) -> tuple[float, int]:
    """Largest distance (Å) and number of bins of 0.1 Å within half of ``length``."""
    bins = max(1, math.floor(0.5 * length / BIN + 1e-9))
    return bins * BIN, bins


def _deviation(g, h) -> float:
    return float(np.abs(g - h).mean(axis=1).max())


def ns_per_day(atoms, timestep_fs: float, temperature_K: float, friction_per_fs: float, seconds: float) -> dict:
    """Speed of a Langevin run of these atoms with their calculator: median of three timings of about ``seconds``.

    Keys: ``ns_per_day``, ``spread`` (largest over smallest timing), ``us_per_site`` (µs per site and step),
    ``timestep_fs``, ``sites``.
    """
    copy = hot_copy(atoms, temperature_K, 0)
    if isinstance(copy.calc, NEP):
        run = MD(copy, timestep_fs, Langevin(temperature_K, friction_per_fs), seed=0, progress=False).run
    else:
        rng = np.random.default_rng(0)
        settings = {"temperature_K": temperature_K, "friction": friction_per_fs / units.fs, "fixcm": False, "rng": rng}
        run = AseLangevin(copy, timestep_fs * units.fs, **settings).run
    run(5)
    steps, took = 5, 0.0
    while took < 0.1 * seconds:
        steps *= 2
        began = time.perf_counter()
        run(steps)
        took = time.perf_counter() - began
    steps = max(1, math.ceil(steps * seconds / took))
    marks = [time.perf_counter()]
    for _ in range(3):
        run(steps)
        marks.append(time.perf_counter())
    times = sorted((b - a) / steps for a, b in pairwise(marks))
    return {
        "ns_per_day": 86400.0 / times[1] * timestep_fs * 1e-6,
        "spread": times[2] / times[0],
        "us_per_site": 1e6 * times[1] / len(copy),
        "timestep_fs": timestep_fs,
        "sites": len(copy),
    }
