"""The numbers of a quickstart in words: a line or two per stage, and what was promised against what came out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ase import units

from ..quantities import with_error

__all__ = [
    "PRESSURE_LIMIT_GPA",
    "RDF_LIMIT",
    "Check",
    "checks",
    "correction_GPa",
    "differences",
    "speed_factors",
    "summary",
]

#: mean |Δg| beyond the difference between the two halves of the all-atom run
RDF_LIMIT = 0.03
#: GPa, beyond two standard errors
PRESSURE_LIMIT_GPA = 0.03


@dataclass(frozen=True)
class Check:
    """``what`` was to be at most ``limit``, and is ``value``; both as text."""

    what: str
    value: str
    limit: str
    kept: bool


def correction_GPa(numbers: dict, temperature_K: float) -> np.ndarray:
    """``(N_atoms - N_sites) kT / V`` of each box, GPa: the kinetic part of the pressure that averaging removes."""
    boxes = numbers["boxes"]
    removed = boxes["atoms"] - boxes["sites"]
    return removed * units.kB * temperature_K / np.array(boxes["volumes_A3"]) / units.GPa


def differences(numbers: dict, model: str) -> list[tuple[float, float]]:
    """P(beads) - P(atoms) and its standard error at each density, GPa; ``model``: "corrected" or "uncorrected"."""
    atoms, beads = numbers["atomistic"], numbers["beads"][model]
    return [
        (value - own, math.hypot(sigma, error))
        for own, sigma, value, error in zip(
            *(atoms["pressure_GPa"], atoms["pressure_error"], beads["pressure_GPa"], beads["pressure_error"]),
            strict=True,
        )
    ]


def checks(numbers: dict, settings) -> list[Check]:
    """Structure and pressure of the beads against the atoms', at every density."""
    found = []
    compared = zip(settings.densities, numbers["beads"]["rdf"], differences(numbers, "corrected"), strict=True)
    for density, rdf, (off, error) in compared:
        where = f"at {density:g} g/cm³"
        found += [
            Check(
                f"mean |Δg| {where}",
                f"{rdf['deviation']:.3f}",
                f"{RDF_LIMIT} + {rdf['halves']:.3f} (between halves of the all-atom run)",
                rdf["deviation"] <= RDF_LIMIT + rdf["halves"],
            ),
            Check(
                f"P(beads) − P(atoms) {where}",
                f"{with_error(off, error)} GPa",
                f"± ({PRESSURE_LIMIT_GPA} + 2σ) GPa",
                # NaN: too short for an error
                bool(abs(off) <= PRESSURE_LIMIT_GPA + 2 * error),
            ),
        ]
    return found


def speed_factors(numbers: dict) -> dict:
    """Factors of the speed-up, whose product is the ratio of the ns/day: fewer sites, longer steps, faster sites."""
    atoms, beads = numbers["speed"]["atoms"], numbers["speed"]["beads"]
    return {
        "particles": atoms["sites"] / beads["sites"],
        "time step": beads["timestep_fs"] / atoms["timestep_fs"],
        "throughput": atoms["us_per_site"] / beads["us_per_site"],
    }


def summary(stage: str, numbers: dict, settings) -> list[str]:
    """What the terminal shows after a stage."""
    return _SUMMARIES[stage](numbers[stage], numbers, settings)


def _boxes(own, numbers, s):
    texts = ", ".join(f"{density:g}" for density in s.densities)
    return [f"{own['atoms']} atoms, {own['sites']} beads ({', '.join(own['labels'])}); {texts} g/cm³"]


def _atomistic(own, numbers, s):
    texts = (with_error(*pair) for pair in zip(own["pressure_GPa"], own["pressure_error"], strict=True))
    return [f"pressures {', '.join(texts)} GPa"]


def _frames(own, numbers, s):
    return [
        f"{own['train']} + {own['test']} frames: rms force {own['rms_force']:.3f} eV/Å, standard error "
        f"{own['force_error']:.3f} eV/Å"
    ]


def _models(own, numbers, s):
    return [
        f"{name}: {model['steps']} steps, test frames {model['test']['force']:.3f} eV/Å (noise "
        f"{model['test'].get('force_noise', math.nan):.3f}), {model['test']['stress']:.3f} GPa"
        for name, model in own.items()
        if name != "seconds"
    ]


def _beads(own, numbers, s):
    lines = [
        f"{'yes' if check.kept else 'NO ':3}  {check.what}: {check.value}; limit {check.limit}"
        for check in checks(numbers, s)
    ]
    off = ", ".join(with_error(*pair) for pair in differences(numbers, "uncorrected"))
    expected = ", ".join(f"{-value:.3f}" for value in correction_GPa(numbers, s.temperature_K))
    return [*lines, f"virial not corrected: off by {off} GPa; −(N − n) kT/V = {expected}"]


def _speed(own, numbers, s):
    factors = " × ".join(f"{value:.2g} ({name})" for name, value in speed_factors(numbers).items())
    ratio = own["beads"]["ns_per_day"] / own["atoms"]["ns_per_day"]
    return [
        f"atoms {own['atoms']['ns_per_day']:.3g} ns/day, beads {own['beads']['ns_per_day']:.3g} ns/day: {ratio:.3g} = "
        f"{factors}"
    ]


_SUMMARIES = {
    "boxes": _boxes,
    "atomistic": _atomistic,
    "frames": _frames,
    "models": _models,
    "beads": _beads,
    "speed": _speed,
}
