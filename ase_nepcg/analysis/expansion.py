"""Thermal expansion: volumes and cell lengths at several temperatures and one pressure, all in one batch.

::

    alpha_V = d ln V / dT        alpha_a = d ln a / dT

from a polynomial in T that is fitted to the logarithms of the averages, weighted by their errors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..md import MD, NPT, Thermo
from .frames import AnalysisError, count_of, positive
from .runs import check_run, hot_copy, run_seed, steps_of

__all__ = ["ThermalExpansion", "fit_expansion", "thermal_expansion"]

_SAMPLE = 10


@dataclass(frozen=True)
class ThermalExpansion:
    """Averages at n temperatures with standard errors, and expansion coefficients in 1/K.

    ``volume_A3`` (n,); ``lengths_A`` (n, 3): of the cell vectors; ``alpha_volume`` (n,) and ``alpha_lengths`` (n, 3):
    of the fitted polynomial at the temperatures, with errors, NaN where runs are too short for error bars.
    ``chi_square``: of the fit of the volumes, per degree of freedom; much above 1: a higher ``degree`` is needed.
    """

    temperature_K: np.ndarray
    volume_A3: np.ndarray
    volume_error: np.ndarray
    lengths_A: np.ndarray
    lengths_error: np.ndarray
    alpha_volume: np.ndarray
    alpha_volume_error: np.ndarray
    alpha_lengths: np.ndarray
    alpha_lengths_error: np.ndarray
    chi_square: float
    final: list

    def as_table(self) -> tuple[tuple, np.ndarray]:
        header, columns = ["temperature_K"], [self.temperature_K]
        for name, values, errors in (
            ("volume_A3", self.volume_A3, self.volume_error),
            *((f"{axis}_A", self.lengths_A[:, k], self.lengths_error[:, k]) for k, axis in enumerate("abc")),
            ("alpha_volume_per_K", self.alpha_volume, self.alpha_volume_error),
            *(
                (f"alpha_{axis}_per_K", self.alpha_lengths[:, k], self.alpha_lengths_error[:, k])
                for k, axis in enumerate("abc")
            ),
        ):
            header += [name, f"{name}_error"]
            columns += [values, errors]
        return tuple(header), np.stack(columns, axis=1)


def thermal_expansion(
    atoms,
    temperatures_K,
    *,
    pressure_GPa: float = 0.0,
    coupling: str = "isotropic",
    degree: int = 1,
    timestep_fs: float = 2.0,
    equilibration_ps: float = 20.0,
    time_ps: float = 100.0,
    tau_fs: float = 100.0,
    tau_p_fs: float = 1000.0,
    compressibility_per_GPa: float = 0.45,
    seed: int = 0,
    progress: bool = True,
) -> ThermalExpansion:
    """Expansion coefficients at constant pressure.

    ``atoms``: start of all runs, with a :class:`~ase_nepcg.NEP` calculator; ``temperatures_K``: at least two more than
    ``degree`` for an error of the fit, at least ``degree + 1``; ``coupling`` and the times of thermostat and barostat:
    as of :class:`ase_nepcg.md.NPT` (stochastic cell rescaling). Velocities are drawn anew. Raises
    :class:`AnalysisError`, EnsembleError, MDError, MDFailed.
    """
    try:
        temperatures = [positive("temperatures_K", value) for value in np.atleast_1d(temperatures_K).tolist()]
    except TypeError:
        raise AnalysisError(f"temperatures_K: expected positive numbers, got {temperatures_K!r}") from None
    check_run(seed, timestep_fs=timestep_fs, time_ps=time_ps, equilibration_ps=equilibration_ps)
    _check_fit(temperatures, degree)
    runs = []
    for k, kelvin in enumerate(temperatures):
        copy = hot_copy(atoms, kelvin, [seed, k])
        ensemble = NPT(
            *(kelvin, pressure_GPa, tau_fs, tau_p_fs),
            coupling=coupling,
            compressibility_per_GPa=compressibility_per_GPa,
        )
        runs.append(MD(copy, timestep_fs, ensemble, seed=run_seed(seed, k), progress=progress))
    batch = MD.batch(runs)
    batch.run(steps_of(equilibration_ps, timestep_fs))
    handles = [run.attach(Thermo(), _SAMPLE) for run in runs]
    batch.run(max(_SAMPLE, steps_of(time_ps, timestep_fs)))
    thermo = [handle.results() for handle in handles]
    names = ("volume_A3", "a_A", "b_A", "c_A")
    mean, error = np.array([[one[name] for name in names] for one in thermo]).transpose(2, 0, 1)
    alpha, alpha_error, chi_square = fit_expansion(temperatures, mean, error, degree)
    return ThermalExpansion(
        temperature_K=np.array(temperatures),
        volume_A3=mean[:, 0],
        volume_error=error[:, 0],
        lengths_A=mean[:, 1:],
        lengths_error=error[:, 1:],
        alpha_volume=alpha[:, 0],
        alpha_volume_error=alpha_error[:, 0],
        alpha_lengths=alpha[:, 1:],
        alpha_lengths_error=alpha_error[:, 1:],
        chi_square=float(chi_square[0]),
        final=[run.atoms for run in runs],
    )


def _check_fit(temperatures, degree) -> None:
    count_of("degree", degree, 1, "a positive integer")
    if len(set(temperatures)) <= degree:
        raise AnalysisError(
            f"temperatures_K: a polynomial of degree {degree} needs at least {degree + 1} different ones, got "
            f"{sorted(set(temperatures))}"
        )


def fit_expansion(temperatures, mean, error, degree: int = 1):
    """Derivatives d ln x / dT of polynomials fitted to the columns of ``mean`` (n, C) with standard errors ``error``.

    Returns derivatives (n, C), their errors (n, C), and chi^2 per degree of freedom (C,), NaN without any left. Columns
    whose errors are 0 or not known are fitted without weights, and have no error.
    """
    t = np.asarray(temperatures, float)
    _check_fit(t.tolist(), degree)
    mean, error = np.asarray(mean, float), np.asarray(error, float)
    centre, width = t.mean(), max(np.ptp(t) / 2.0, 1e-300)
    u = (t - centre) / width
    powers = np.vander(u, degree + 1, increasing=True)
    slopes = np.zeros_like(powers)
    slopes[:, 1:] = powers[:, :-1] * np.arange(1, degree + 1) / width
    alpha, alpha_error = np.zeros(mean.shape), np.full(mean.shape, np.nan)
    chi_square = np.full(mean.shape[1], np.nan)
    for c in range(mean.shape[1]):
        y, sigma = np.log(mean[:, c]), error[:, c] / mean[:, c]
        known = np.isfinite(sigma).all() and (sigma > 0).all()
        weights = 1.0 / sigma if known else np.ones(len(t))
        design = powers * weights[:, None]
        coefficients = np.linalg.lstsq(design, y * weights, rcond=None)[0]
        alpha[:, c] = slopes @ coefficients
        if known:
            covariance = np.linalg.inv(design.T @ design)
            alpha_error[:, c] = np.sqrt(np.einsum("ni,ij,nj->n", slopes, covariance, slopes))
            left = len(t) - degree - 1
            if left:
                chi_square[c] = (((y - powers @ coefficients) * weights) ** 2).sum() / left
    return alpha, alpha_error, chi_square
