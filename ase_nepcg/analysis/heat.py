"""Thermal conductivity by a driving force (HNEMD) and from fluctuations at equilibrium (Green-Kubo).

The equations are in :mod:`ase_nepcg.md.observers.heat` and :mod:`ase_nepcg.md.ensembles.hnemd`. The volume of the cell
is that of the material, unless a thickness is given: for a sheet in a cell with vacuum, conductivities along it are
multiplied by (height of the cell across the sheet) / thickness.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..md import MD, NVE, Conductivity, HeatCurrent
from ..md.ensembles.base import across_periodic
from .conducting import axis_number, driven, scaled, sheet_scale
from .frames import AnalysisError, count_of, positive
from .runs import check_run, equilibrated, run_seed, steps_of

__all__ = ["GreenKuboResult", "HNEMDResult", "green_kubo", "hnemd"]

# of correlation times, from where on the running integral counts as its limit
_PLATEAU = 0.5
_MIN_REPLICAS = 4
# fields of ConductivityResult in W/(m K)
_PARTS = ("kappa", "kappa_error", "kappa_parallel", "kappa_parallel_error", "potential", "convective", "running")


@dataclass(frozen=True)
class HNEMDResult:
    """Conductivity along ``axis`` for each of F driving forces ``fields_per_A`` (F,), in W/(m K).

    ``kappa`` (F,) with standard error ``kappa_error`` from the scatter of the replicas; ``potential`` and
    ``convective`` (F,): its parts; ``runs``: ConductivityResult of each replica, a list for each field. In the linear
    regime ``kappa`` does not depend on the field: ``linear`` (F,) says by how many standard errors it differs from that
    of the weakest field.
    """

    axis: str
    fields_per_A: np.ndarray
    kappa: np.ndarray
    kappa_error: np.ndarray
    potential: np.ndarray
    convective: np.ndarray
    temperature_K: float
    scale: float
    runs: list

    @property
    def linear(self) -> np.ndarray:
        weakest = int(np.argmin(self.fields_per_A))
        difference = self.kappa - self.kappa[weakest]
        error = np.hypot(self.kappa_error, self.kappa_error[weakest])
        return np.where(np.arange(len(difference)) == weakest, 0.0, difference / error)

    def as_table(self) -> tuple[tuple, np.ndarray]:
        header = ("field_per_A", "kappa_W_mK", "kappa_error", "potential_W_mK", "convective_W_mK")
        columns = (self.fields_per_A, self.kappa, self.kappa_error, self.potential, self.convective)
        return header, np.stack(columns, axis=1)


def hnemd(
    atoms,
    axis: str,
    *,
    temperature_K: float,
    fields_per_A,
    convective: bool = False,
    thickness_A: float | None = None,
    timestep_fs: float = 2.0,
    equilibration_ps: float = 10.0,
    settle_ps: float = 10.0,
    time_ps: float = 100.0,
    interval: int = 10,
    replicas: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> HNEMDResult:
    """Conductivity from the response to driving forces of several strengths, all runs in one batch.

    ``atoms``: with a :class:`~ase_nepcg.NEP` calculator; ``axis``: "x", "y" or "z"; ``fields_per_A``: strengths in 1/Å,
    two or more to see the linear regime; ``convective``: for fluids, see :class:`ase_nepcg.md.HNEMD`; ``settle_ps``:
    with the field on, before averaging; ``replicas``: runs per field with other velocities. Raises
    :class:`AnalysisError`, EnsembleError, MDError, MDFailed.
    """
    along = axis_number(axis)
    fields = np.array([positive("fields_per_A", f) for f in np.atleast_1d(fields_per_A).tolist()])
    if len(set(fields.tolist())) != len(fields) or not len(fields):
        raise AnalysisError(f"fields_per_A: expected different strengths, got {fields_per_A!r}")
    check_run(
        seed,
        replicas,
        timestep_fs=timestep_fs,
        temperature_K=temperature_K,
        equilibration_ps=equilibration_ps,
        settle_ps=settle_ps,
        time_ps=time_ps,
    )
    steps = steps_of(time_ps, timestep_fs)
    if count_of("interval", interval, 1, "a positive number of steps") > steps:
        raise AnalysisError(f"interval: {interval} steps are more than the {steps} steps of time_ps")
    scale = sheet_scale(atoms, along, thickness_A)
    vectors = np.zeros((len(fields) * replicas, 3))
    vectors[:, along] = np.repeat(fields, replicas)
    batch = driven(
        *(atoms, vectors, temperature_K, convective, timestep_fs, equilibration_ps, settle_ps, seed, progress)
    )
    handles = [run.attach(Conductivity(), interval) for run in batch.runs]
    batch.run(steps)
    results = [scaled(handle.results(), scale, _PARTS) for handle in handles]

    def table(pick):
        return np.array([pick(one) for one in results]).reshape(len(fields), replicas)

    kappa = table(lambda one: one.kappa[along])
    return HNEMDResult(
        axis=axis,
        fields_per_A=fields,
        kappa=kappa.mean(axis=1),
        kappa_error=kappa.std(axis=1, ddof=1) / math.sqrt(replicas),
        potential=table(lambda one: one.potential[along]).mean(axis=1),
        convective=table(lambda one: one.convective[along]).mean(axis=1),
        temperature_K=float(temperature_K),
        scale=scale,
        runs=[results[k : k + replicas] for k in range(0, len(results), replicas)],
    )


@dataclass(frozen=True)
class GreenKuboResult:
    """Conductivity from fluctuations, W/(m K), for each axis and averaged over ``axes``.

    ``time_fs`` (L+1,): upper limit of the integral; ``running`` (3, L+1) with standard error ``running_error`` from the
    scatter of the replicas; ``kappa``: average of the running integral over ``axes`` and over the second half of the
    times, with error ``kappa_error``; ``per_axis`` (3,) likewise with error.
    """

    axes: str
    time_fs: np.ndarray
    running: np.ndarray
    running_error: np.ndarray
    kappa: float
    kappa_error: float
    per_axis: np.ndarray
    per_axis_error: np.ndarray
    temperature_K: float
    replicas: int

    # what ase_nepcg.plot.running_conductivity draws
    @property
    def kappa_mean(self) -> np.ndarray:
        return self.running[["xyz".index(a) for a in self.axes]].mean(axis=0)

    @property
    def kappa_mean_error(self) -> np.ndarray:
        errors = self.running_error[["xyz".index(a) for a in self.axes]]
        return np.sqrt((errors**2).sum(axis=0)) / len(self.axes)

    def as_table(self) -> tuple[tuple, np.ndarray]:
        header = ["time_fs"]
        columns = [self.time_fs]
        for k, name in enumerate("xyz"):
            header += [f"kappa_{name}_W_mK", f"kappa_{name}_error"]
            columns += [self.running[k], self.running_error[k]]
        return tuple(header), np.stack(columns, axis=1)


def green_kubo(
    atoms,
    *,
    temperature_K: float,
    correlation_ps: float,
    time_ps: float,
    axes: str = "xyz",
    thickness_A: float | None = None,
    timestep_fs: float = 2.0,
    equilibration_ps: float = 10.0,
    interval: int = 10,
    replicas: int = 8,
    seed: int = 0,
    progress: bool = True,
) -> GreenKuboResult:
    """Conductivity from the autocorrelation of the heat current at constant energy, replicas in one batch.

    ``correlation_ps``: largest lag; the running integral must have become flat before half of it. ``axes``: those that
    are alike and averaged; ``replicas``: at least four. Other arguments as of :func:`hnemd`.
    """
    if not isinstance(axes, str) or not axes or set(axes) - set("xyz") or len(set(axes)) < len(axes):
        raise AnalysisError(f'axes: expected some of "xyz", got {axes!r}')
    settings = {"correlation_ps": correlation_ps, "equilibration_ps": equilibration_ps, "time_ps": time_ps}
    check_run(seed, replicas, _MIN_REPLICAS, timestep_fs=timestep_fs, temperature_K=temperature_K, **settings)
    count_of("interval", interval, 1, "a positive number of steps")
    for axis in axes:
        if across_periodic(atoms, np.eye(3)["xyz".index(axis)]):
            raise AnalysisError(
                f"axes: the cell is not periodic along {axis}, where no heat can flow on; pbc is {atoms.pbc.tolist()}"
            )
    length = round(1000.0 * correlation_ps / (timestep_fs * interval))
    if length < 2 or correlation_ps > 0.5 * time_ps:
        raise AnalysisError(
            f"correlation_ps: expected at least two intervals ({2 * interval * timestep_fs:g} fs) and at most half of "
            f"time_ps, got {correlation_ps:g} ps of {time_ps:g} ps"
        )
    scales = np.array([sheet_scale(atoms, k, thickness_A) if "xyz"[k] in axes else 1.0 for k in range(3)])
    steps = steps_of(equilibration_ps, timestep_fs)
    starts = equilibrated(atoms, replicas, temperature_K, timestep_fs, steps, seed, progress)
    runs = [MD(start, timestep_fs, NVE(), seed=run_seed(seed, k), progress=progress) for k, start in enumerate(starts)]
    handles = [run.attach(HeatCurrent(length), interval) for run in runs]
    MD.batch(runs).run(steps_of(time_ps, timestep_fs))
    results = [handle.results() for handle in handles]
    # <JJ> averaged over starts from the canonical ensemble, over the square of its temperature
    running = np.array([one.kappa * (one.temperature_K / temperature_K) ** 2 for one in results])
    running *= scales[:, None]
    late = slice(int(_PLATEAU * length), None)
    each = running[:, :, late].mean(axis=2)
    chosen = each[:, ["xyz".index(a) for a in axes]].mean(axis=1)

    def error(values):
        return values.std(axis=0, ddof=1) / math.sqrt(replicas)

    return GreenKuboResult(
        axes=axes,
        time_fs=results[0].time_fs,
        running=running.mean(axis=0),
        running_error=error(running),
        kappa=float(chosen.mean()),
        kappa_error=float(error(chosen)),
        per_axis=each.mean(axis=0),
        per_axis_error=error(each),
        temperature_K=float(temperature_K),
        replicas=replicas,
    )
