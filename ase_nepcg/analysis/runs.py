"""Runs that a property is measured in: copies of a system with velocities of their own, and time to equilibrate."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
from ase import units

from ..md import MD, Bussi
from .frames import AnalysisError

__all__ = ["TAU_FS", "equilibrated", "hot_copy"]

#: of the thermostat, fs
TAU_FS = 100.0


def hot_copy(atoms, temperature_K: float, seed, calculator=None):
    """A copy of ``atoms`` with a calculator of its own, which keeps its results, and velocities drawn at a temperature.

    ``calculator``: instead of that of ``atoms``. Raises :class:`AnalysisError` if there is none.
    """
    calculator = atoms.calc if calculator is None else calculator
    if calculator is None:
        raise AnalysisError("the atoms have no calculator; set atoms.calc = NEP(...)")
    copy = atoms.copy()
    copy.calc = deepcopy(calculator)
    thermal = np.sqrt(units.kB * temperature_K * copy.get_masses())[:, None]
    copy.set_momenta(np.random.default_rng(seed).normal(size=(len(copy), 3)) * thermal)
    return copy


def equilibrated(atoms, count: int, temperature_K, timestep_fs, steps: int, seed: int, progress: bool) -> list:
    """``count`` copies of ``atoms`` with different velocities after ``steps`` at the temperature, in one batch."""
    runs = []
    for k in range(count):
        copy = hot_copy(atoms, temperature_K, [seed, k])
        runs.append(MD(copy, timestep_fs, Bussi(temperature_K, TAU_FS), seed=seed + k, progress=progress))
    MD.batch(runs).run(steps)
    return [run.atoms for run in runs]
