"""Stress-strain curves: replicas of a system are stretched at a constant rate, all in one batch.

Engineering strain ``L/L_0 - 1`` along an axis, true (Cauchy) stress. With the other axes free at zero pressure the
initial slope is Young's modulus, and minus the ratio of the strains across and along is Poisson's ratio. Free axes are
at their pressure before the pull begins: sides that were still relaxing would show as a ratio.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..md import MD, NPT, Deform
from .conducting import axis_number, sheet_scale
from .frames import AnalysisError, count_of
from .runs import TAU_FS, check_run, equilibrated, run_seed, steps_of

__all__ = ["StressStrain", "stress_strain"]

# fs between samples of a window
_SAMPLE_FS = 20.0
# relaxation times of free axes before the pull
_RELAXED = 3
_VOIGT = ("xx", "yy", "zz", "yz", "xz", "xy")


@dataclass(frozen=True)
class StressStrain:
    """Averages over n windows of strain and over replicas, with standard errors from the scatter of the replicas.

    ``strain`` (n,): average of each window; ``stress_GPa`` (n, 6): xx, yy, zz, yz, xz, xy, positive under tension,
    with ``stress_error``; ``lateral`` (n, 3): engineering strains of the three axes, from the average lengths at which
    the pull begins, with error. ``modulus_GPa``: slope of the stress along the axis below ``linear``; ``poisson`` (3,):
    minus the ratio of the slopes of the lateral strains and of the strain, NaN for the axis itself and for
    axes that were held; both with error.
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
    thickness_A: float | None = None,
    replicas: int = 4,
    timestep_fs: float = 2.0,
    equilibration_ps: float = 5.0,
    seed: int = 0,
    progress: bool = True,
) -> StressStrain:
    """Stretch (or, with a negative rate, compress) ``atoms`` along ``axis`` up to ``max_strain`` (positive).

    ``atoms``: with a :class:`~ase_nepcg.NEP` calculator, at the length from which strains are counted. ``free``,
    ``pressure_GPa``, ``tau_p_fs``, ``compressibility_per_GPa``: of the other axes, see :class:`ase_nepcg.md.Deform`;
    ``replicas``: runs with other velocities (at least two), which equilibrate for ``equilibration_ps`` first, their
    free axes at ``pressure_GPa``, the others as they are (at least three ``tau_p_fs`` if axes are free). ``linear``:
    strain up to which the moduli are fitted, the average strains of at least two windows. ``thickness_A``: of a sheet,
    to whose volume stresses and ``pressure_GPa`` then refer; needed if a direction is not periodic. Raises
    :class:`AnalysisError`, and EnsembleError for settings of ``Deform``.
    """
    check_run(
        seed,
        replicas,
        max_strain=max_strain,
        temperature_K=temperature_K,
        linear=linear,
        timestep_fs=timestep_fs,
        equilibration_ps=equilibration_ps,
    )
    count_of("windows", windows, 2, "an integer of at least 2")
    deform = Deform(
        *(axis, rate_per_ps, temperature_K, TAU_FS),
        free=free,
        pressure_GPa=pressure_GPa,
        tau_p_fs=tau_p_fs,
        compressibility_per_GPa=compressibility_per_GPa,
    )
    scale = _scale(atoms, deform, thickness_A)
    deform = replace(deform, pressure_GPa=deform.pressure_GPa / scale)
    if rate_per_ps < 0 and max_strain >= 1:
        raise AnalysisError(f"max_strain: a compression ends before 1, got {max_strain:g}")
    linear = min(linear, max_strain)
    if free and 1000.0 * equilibration_ps < _RELAXED * tau_p_fs:
        raise AnalysisError(
            f"equilibration_ps: free axes need at least {_RELAXED} tau_p_fs ({_RELAXED * tau_p_fs * 1e-3:g} ps) to "
            f"come to their pressure, got {equilibration_ps:g} ps"
        )
    steps = round(max_strain / (abs(rate_per_ps) * timestep_fs * 1e-3))
    sample = max(1, round(_SAMPLE_FS / timestep_fs))
    if steps // sample < windows:
        raise AnalysisError(
            f"windows: {windows} windows for {steps} steps leave less than one sample ({sample} steps) for each; "
            "use fewer, or a smaller rate"
        )
    # samples in windows that are as equal as whole numbers allow
    ends = np.arange(1, windows + 1) * (steps // sample) // windows
    strains = [rows.mean() for rows in np.split(_strains(deform, timestep_fs, sample, ends[-1]), ends[:-1])]
    use = _linear(np.array(strains), linear)
    settle = steps_of(equilibration_ps, timestep_fs)
    starts = equilibrated(atoms, replicas, temperature_K, timestep_fs, settle, seed, progress, _at_rest(deform))
    pulled = [
        MD(start, timestep_fs, deform, seed=run_seed(seed, k), progress=progress) for k, start in enumerate(starts)
    ]
    extent = np.mean([_extent(start) for start in starts], axis=0)
    samples = [[] for _ in pulled]
    for rows, run in zip(samples, pulled, strict=True):

        def look(rows=rows, run=run):
            if run.nsteps:
                rows.append([*(scale * run.stress_GPa()), *(_extent(run.atoms) / extent - 1.0)])

        run.attach(look, sample)
    MD.batch(pulled).run(steps)
    table = [[part.mean(axis=0) for part in np.split(np.array(rows)[: ends[-1]], ends[:-1])] for rows in samples]
    return _evaluate(deform, np.array(table), use, linear)


def _scale(atoms, deform, thickness_A) -> float:
    """What stresses are multiplied by."""
    if np.count_nonzero(atoms.pbc) < 2:
        raise AnalysisError(
            f"pbc is {atoms.pbc.tolist()}: expected a cell that is periodic in all directions, or a sheet (in two)"
        )
    if thickness_A is None and not atoms.pbc.all():
        raise AnalysisError(
            f"pbc is {atoms.pbc.tolist()}: stresses refer to a volume, and that of the cell has a vacuum in it; give "
            "the thickness_A of the sheet"
        )
    return sheet_scale(atoms, axis_number(deform.axis), thickness_A)


def _at_rest(deform):
    """The ensemble before the pull: free axes at their pressure, the others at rest. None if all are."""
    if deform.free is None:
        return None
    return NPT(
        *(deform.temperature_K, tuple(deform.pressure_GPa if k in deform.free else None for k in "xyz")),
        *(TAU_FS, deform.tau_p_fs),
        coupling="anisotropic",
        compressibility_per_GPa=deform.compressibility_per_GPa,
    )


def _extent(atoms) -> np.ndarray:
    return np.abs(atoms.cell.array).max(axis=0)


def _strains(deform, timestep_fs, sample, count) -> np.ndarray:
    """Strains at which samples are taken."""
    return deform.rate_per_ps * 1e-3 * timestep_fs * sample * np.arange(1, count + 1)


def _linear(strain, linear) -> np.ndarray:
    """Which windows the slopes are fitted to."""
    use = np.abs(strain) <= linear
    if np.count_nonzero(use) < 2:
        raise AnalysisError(
            f"linear={linear:g}: less than two windows end below this strain, the first two are at {strain[0]:.3g} and "
            f"{strain[1]:.3g}; use more windows or a larger linear"
        )
    return use


def _evaluate(deform, table, use, linear) -> StressStrain:
    """``table`` (replicas, windows, 9): stresses and strains; ``use`` (windows,): those that slopes are fitted to."""
    along = "xyz".index(deform.axis)
    replicas = len(table)
    mean = table.mean(axis=0)
    error = table.std(axis=0, ddof=1) / np.sqrt(replicas)
    strain = mean[:, 6 + along]
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
