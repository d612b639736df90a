"""Runs that a property is measured in: copies of a system with velocities of their own, and time to equilibrate."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
from ase import units

from ..md import MD, Bussi
from ..seeds import derived_seed
from .frames import AnalysisError, count_of, positive

__all__ = ["TAU_FS", "check_run", "equilibrated", "hot_copy", "run_seed", "steps_of"]

#: of the thermostat, fs
TAU_FS = 100.0


# parts of a measurement, each with noise of its own
_EQUILIBRATION, _MEASUREMENT = range(2)


def check_run(seed, replicas=None, least: int = 2, **values) -> None:
    """Raises :class:`AnalysisError` unless ``seed`` is one, there are ``least`` replicas, and ``values`` are positive
    numbers."""
    count_of("seed", seed, 0, "an integer of at least 0")
    if replicas is not None:
        count_of("replicas", replicas, least, f"an integer of at least {least}")
    for name, value in values.items():
        positive(name, value)


def run_seed(seed: int, number: int) -> int:
    """Of the noise of run ``number`` of a measurement."""
    return derived_seed(seed, _MEASUREMENT, number)


def steps_of(ps: float, timestep_fs: float) -> int:
    """Time steps of a run, at least one."""
    return max(1, round(1000.0 * ps / timestep_fs))


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


def equilibrated(
    atoms, count: int, temperature_K, timestep_fs, steps: int, seed: int, progress: bool, ensemble=None
) -> list:
    """``count`` copies of ``atoms`` with different velocities after ``steps`` at the temperature, in one batch.

    ``ensemble``: in which they equilibrate, instead of :class:`ase_nepcg.md.Bussi`.
    """
    ensemble = Bussi(temperature_K, TAU_FS) if ensemble is None else ensemble
    runs = []
    for k in range(count):
        copy = hot_copy(atoms, temperature_K, [seed, k])
        own = derived_seed(seed, _EQUILIBRATION, k)
        runs.append(MD(copy, timestep_fs, ensemble, seed=own, progress=progress))
    MD.batch(runs).run(steps)
    return [run.atoms for run in runs]
