"""The numbers of a quickstart in words: a line or two per stage, and what was promised against what came out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ase import units

from ..quantities import with_error

__all__ = ["PRESSURE_LIMIT_GPA", "RDF_LIMIT", "Check", "checks", "correction_GPa", "speed_factors", "summary"]

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


def checks(numbers: dict, settings) -> list[Check]:
    """Structure and pressure of the beads against the atoms', at every density."""
    found, atoms, beads = [], numbers["atomistic"], numbers["beads"]
    expected = correction_GPa(numbers, settings.temperature_K)
    for k, density in enumerate(settings.densities):
        where = f"at {density:g} g/cm³"
        rdf = beads["rdf"][k]
        limit = RDF_LIMIT + rdf["halves"]
        found.append(
            Check(
                f"mean |Δg| {where}",
                f"{rdf['deviation']:.3f}",
                f"{RDF_LIMIT} + {rdf['halves']:.3f} (between halves of the all-atom run)",
                rdf["deviation"] <= limit,
            )
        )
        own, sigma = atoms["pressure_GPa"][k], atoms["pressure_error"][k]
        for model, shift in (("corrected", 0.0), ("uncorrected", -expected[k])):
            value, error = beads[model]["pressure_GPa"][k], beads[model]["pressure_error"][k]
            off, both = value - own, math.hypot(sigma, error)
            limit = PRESSURE_LIMIT_GPA + 2 * both
            what = "P(beads) − P(atoms)" if model == "corrected" else "the same without the correction of the virial"
            found.append(
                Check(
                    f"{what} {where}",
                    f"{with_error(off, both)} GPa",
                    f"{shift:+.3f} " * bool(shift) + f"± ({PRESSURE_LIMIT_GPA} + 2σ) GPa",
                    # NaN: too short for an error
                    bool(abs(off - shift) <= limit),
                )
            )
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
    found = checks(numbers, s)
    return [f"{'yes' if check.kept else 'NO ':3}  {check.what}: {check.value}; limit {check.limit}" for check in found]


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
