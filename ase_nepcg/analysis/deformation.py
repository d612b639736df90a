"""Stress-strain curves: replicas of a system are stretched at a constant rate, all in one batch.

Engineering strain ``L/L_0 - 1`` along an axis, true (Cauchy) stress. With the other axes free at zero pressure the
initial slope is Young's modulus, and minus the ratio of the strains across and along is Poisson's ratio.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..md import MD, Deform
from .frames import AnalysisError, count_of, positive
from .runs import TAU_FS, equilibrated

__all__ = ["StressStrain", "stress_strain"]

# fs between samples of a window
_SAMPLE_FS = 20.0
_VOIGT = ("xx", "yy", "zz", "yz", "xz", "xy")


@dataclass(frozen=True)
class StressStrain:
    """Averages over n windows of strain and over replicas, with standard errors from the scatter of the replicas.

    ``strain`` (n,): average of each window; ``stress_GPa`` (n, 6): xx, yy, zz, yz, xz, xy, positive under tension,
    with ``stress_error``; ``lateral`` (n, 3): engineering strains of the three axes, with error. ``modulus_GPa``: slope
    of the stress along the axis below ``linear``; ``poisson`` (3,): minus the ratio of the slopes of the lateral
    strains and of the strain, NaN for the axis itself and for axes that were held; both with error.
    """

    axis: str
    strain: np.ndarray
    stress_GPa: np.ndarray
    stress_error: np.ndarray
    lateral: np.ndarray
    lateral_error: np.ndarray
    modulus_GPa: float
    modulus_error: float
    poisson: np.ndarray
    poisson_error: np.ndarray
    linear: float
    replicas: int

    def as_table(self) -> tuple[tuple, np.ndarray]:
        header, columns = ["strain"], [self.strain]
        for k, name in enumerate(_VOIGT):
            header += [f"stress_{name}_GPa", f"stress_{name}_error"]
            columns += [self.stress_GPa[:, k], self.stress_error[:, k]]
        for k, name in enumerate("xyz"):
            header += [f"strain_{name}", f"strain_{name}_error"]
            columns += [self.lateral[:, k], self.lateral_error[:, k]]
        return tuple(header), np.stack(columns, axis=1)


def stress_strain(
    atoms,
    axis: str,
    *,
    rate_per_ps: float,
    max_strain: float,
    temperature_K: float,
    free: str | None = None,
    pressure_GPa: float = 0.0,
    tau_p_fs: float = 1000.0,
    compressibility_per_GPa: float = 0.45,
    windows: int = 20,
    linear: float = 0.02,
    replicas: int = 4,
    timestep_fs: float = 2.0,
    equilibration_ps: float = 5.0,
    seed: int = 0,
    progress: bool = True,
) -> StressStrain:
    """Stretch (or, with a negative rate, compress) ``atoms`` along ``axis`` up to ``max_strain`` (positive).

    ``atoms``: with a :class:`~ase_nepcg.NEP` calculator, at the size from which strains are counted. ``free``,
    ``pressure_GPa``, ``tau_p_fs``, ``compressibility_per_GPa``: of the other axes, see :class:`ase_nepcg.md.Deform`;
    ``replicas``: runs with other velocities (at least two), equilibrated at constant volume first; ``linear``: strain
    up to which the moduli are fitted. Raises :class:`AnalysisError`, and EnsembleError for settings of ``Deform``.
    """
    settings = {"max_strain": max_strain, "temperature_K": temperature_K, "linear": linear, "timestep_fs": timestep_fs}
    for name, value in (settings | {"equilibration_ps": equilibration_ps}).items():
        positive(name, value)
    for name, value in (("windows", windows), ("replicas", replicas)):
        count_of(name, value, 2, "an integer of at least 2")
    deform = Deform(
        *(axis, rate_per_ps, temperature_K, TAU_FS),
        free=free,
        pressure_GPa=pressure_GPa,
        tau_p_fs=tau_p_fs,
        compressibility_per_GPa=compressibility_per_GPa,
    )
    if rate_per_ps < 0 and max_strain >= 1:
        raise AnalysisError(f"max_strain: a compression ends before 1, got {max_strain:g}")
    steps = max_strain / (abs(rate_per_ps) * timestep_fs * 1e-3)
    sample = max(1, round(_SAMPLE_FS / timestep_fs))
    per_window = round(steps / windows / sample)
    if per_window < 1:
        raise AnalysisError(
            f"windows: {windows} windows for {steps:.0f} steps leave less than one sample ({sample} steps) for each; "
            "use fewer, or a smaller rate"
        )
    settle = round(1000.0 * equilibration_ps / timestep_fs)
    starts = equilibrated(atoms, replicas, temperature_K, timestep_fs, settle, seed, progress)
    pulled = [MD(start, timestep_fs, deform, seed=seed + k, progress=progress) for k, start in enumerate(starts)]
    samples = [[] for _ in pulled]
    extent = np.abs(atoms.cell.array).max(axis=0)
    for rows, run in zip(samples, pulled, strict=True):

        def look(rows=rows, run=run):
            if run.nsteps:
                rows.append([*run.stress_GPa(), *(np.abs(run.atoms.cell.array).max(axis=0) / extent - 1.0)])

        run.attach(look, sample)
    MD.batch(pulled).run(windows * per_window * sample)
    table = np.array(samples).reshape(replicas, windows, per_window, 9).mean(axis=2)
    return _evaluate(deform, table, linear)


def _evaluate(deform, table, linear) -> StressStrain:
    """``table`` (replicas, windows, 9): stresses and strains."""
    along = "xyz".index(deform.axis)
    replicas = len(table)
    mean = table.mean(axis=0)
    error = table.std(axis=0, ddof=1) / np.sqrt(replicas)
    strain = mean[:, 6 + along]
    use = np.abs(strain) <= linear
    if np.count_nonzero(use) < 2:
        raise AnalysisError(
            f"linear={linear:g}: less than two windows end below this strain, the first two are at {strain[0]:.3g} and "
            f"{strain[1]:.3g}; use more windows or a larger linear"
        )
    x = strain[use] - strain[use].mean()
    slopes = np.einsum("w,rwc->rc", x / (x @ x), table[:, use])
    poisson = -slopes[:, 6:]
    unknown = np.array([k == along or name not in (deform.free or "") for k, name in enumerate("xyz")])
    poisson[:, unknown] = np.nan

    def over_replicas(values):
        return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(replicas)

    modulus, modulus_error = over_replicas(slopes[:, along])
    ratio, ratio_error = over_replicas(poisson)
    return StressStrain(
        axis=deform.axis,
        strain=strain,
        stress_GPa=mean[:, :6],
        stress_error=error[:, :6],
        lateral=mean[:, 6:],
        lateral_error=error[:, 6:],
        modulus_GPa=float(modulus),
        modulus_error=float(modulus_error),
        poisson=ratio,
        poisson_error=ratio_error,
        linear=float(linear),
        replicas=replicas,
    )
