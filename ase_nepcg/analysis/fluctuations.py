"""Isothermal elastic constants of a crystal at temperature, from the fluctuations of its stress at constant volume.

::

    C_IJ = d <sigma_I> / d epsilon_J  at constant T
         = < d s_I / d epsilon_J > - (V / kT) (<s_I s_J> - <s_I> <s_J>) + (N kT / V) d_I d_J
           Born term                 fluctuations                        kinetic term

``s``: stress of the potential alone, of a configuration, positive under tension; ``sigma = s - (N kT / V) d`` with its
kinetic part; ``d = (1, 1, 1, 0, 0, 0)``. Voigt order xx, yy, zz, yz, xz, xy; shears are engineering strains.

Why: with fractional coordinates x as variables, a strain changes their weight ``exp(-U(x, epsilon) / kT)`` by ``dU / d
epsilon_J = V s_J``, which gives the covariance, and the stress that belongs to them, which gives the Born term, the
derivative at constant x. Momenta are integrated out: their contribution to the stress, -N kT / V along each axis, is
that of the ideal gas, and its derivative the kinetic term. N counts all sites, as the free energy does; in runs that
keep the total momentum at zero the kinetic stress is that of N - 1.

Definition: the constants are derivatives of the Cauchy stress, what :func:`~ase_nepcg.analysis.elastic_constants` and
stress-strain curves measure (``B`` in Barron & Klein, Proc. Phys. Soc. 85, 523, 1965; stability under load is a
property of these). Second derivatives of the free energy with respect to the Lagrangian strain (Squire, Holt & Hoover,
Physica 42, 388, 1969; Lutsko, J. Appl. Phys. 65, 2991, 1989), whose kinetic term is ``(N kT / V)(d_ik d_jl + d_il
d_jk)``, differ by terms of the size of the stress: :attr:`ElasticFluctuations.lagrangian_GPa`.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
from ase import units

from ..md import MD, Langevin
from ..md.observers.base import standard_errors
from .elasticity import Moduli, require_crystal, strained, stress_slopes
from .frames import AnalysisError, count_of
from .runs import check_run, hot_copy, run_seed, steps_of

__all__ = ["ElasticFluctuations", "elastic_fluctuations"]

_FRICTION_PER_FS = 0.01
_NORMAL = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
_UPPER = np.triu_indices(6)
# tensor indices of Voigt's, and back
_FIRST, _SECOND = np.array([0, 1, 2, 1, 0, 0]), np.array([0, 1, 2, 2, 2, 1])
_VOIGT = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])


@dataclass(frozen=True)
class ElasticFluctuations(Moduli):
    """``C_GPa`` (6, 6), symmetrised, the sum of ``born_GPa``, ``fluctuation_GPa`` and ``kinetic_GPa``.

    ``C_error`` (6, 6): standard errors from blocks of all replicas; ``reliable`` (6, 6): False where runs are short
    compared with the slowest correlation. ``stress_GPa`` (6,): average with its kinetic part, with ``stress_error``.
    The two derivatives of which ``C_GPa`` is the mean differ only where the stress is not a pressure.
    """

    C_GPa: np.ndarray
    C_error: np.ndarray
    reliable: np.ndarray
    born_GPa: np.ndarray
    fluctuation_GPa: np.ndarray
    kinetic_GPa: np.ndarray
    stress_GPa: np.ndarray
    stress_error: np.ndarray
    temperature_K: float
    replicas: int

    @property
    def lagrangian_GPa(self) -> np.ndarray:
        """Second derivatives (6, 6) of the free energy per volume with respect to the Lagrangian strain."""
        stress, delta = self.stress_GPa[_VOIGT], np.eye(3)
        i, k = np.meshgrid(_FIRST, _FIRST, indexing="ij")
        j, m = np.meshgrid(_SECOND, _SECOND, indexing="ij")
        turned = delta[i, k] * stress[j, m] + delta[i, m] * stress[j, k]
        turned += delta[j, k] * stress[i, m] + delta[j, m] * stress[i, k]
        # symmetrised, as the constants are
        return self.C_GPa - 0.5 * (turned - stress[i, j] * delta[k, m] - delta[i, j] * stress[k, m])

    def as_table(self) -> tuple[tuple, np.ndarray]:
        header = tuple(f"C_{k}_GPa" for k in range(1, 7)) + tuple(f"C_{k}_error" for k in range(1, 7))
        return header, np.concatenate([self.C_GPa, self.C_error], axis=1)


def elastic_fluctuations(
    atoms,
    *,
    temperature_K: float,
    timestep_fs: float = 2.0,
    time_ps: float = 100.0,
    equilibration_ps: float = 10.0,
    interval: int = 5,
    snapshots: int = 50,
    strain: float = 1e-4,
    replicas: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> ElasticFluctuations:
    """Isothermal elastic constants of a crystal in the cell it has, see the text of this module for the equations.

    ``atoms``: with a :class:`~ase_nepcg.NEP` calculator, periodic in all directions, without constraints, in the
    average cell at temperature and pressure (:class:`ase_nepcg.md.NPT`). ``replicas``: runs with other velocities, at
    least two, in one batch (Langevin); ``interval``: steps between samples of the stress; ``snapshots``: of each
    replica, at least four, evenly over ``time_ps``, where the Born term is measured by ``strain`` in twelve
    evaluations. The atoms are not changed. Raises :class:`AnalysisError`, EnsembleError, MDError, MDFailed.
    """
    require_crystal("elastic_fluctuations", atoms, strain)
    if atoms.constraints:
        raise AnalysisError("elastic_fluctuations: held sites have no elastic constants; remove the constraints")
    settings = {"temperature_K": temperature_K, "timestep_fs": timestep_fs, "time_ps": time_ps}
    check_run(seed, replicas, **settings, equilibration_ps=equilibration_ps)
    for name, value, least in (("interval", interval, 1), ("snapshots", snapshots, 4)):
        count_of(name, value, least, f"an integer of at least {least}")
    steps = 1000.0 * time_ps / timestep_fs
    per_window = round(steps / (snapshots * interval))
    if per_window < 1:
        raise AnalysisError(
            f"time_ps: {steps:.0f} steps hold less than one sample ({interval} steps) for each of {snapshots} "
            "snapshots; use a longer time, fewer snapshots or a smaller interval"
        )
    runs = []
    for k in range(replicas):
        copy = hot_copy(atoms, temperature_K, [seed, k])
        ensemble = Langevin(temperature_K, _FRICTION_PER_FS)
        runs.append(MD(copy, timestep_fs, ensemble, seed=run_seed(seed, k), progress=progress))
    batch = MD.batch(runs)
    batch.run(steps_of(equilibration_ps, timestep_fs))
    # its results are not those of a run
    calculator = deepcopy(atoms.calc)
    records = [_Record(run.atoms, calculator, per_window, strain) for run in runs]
    for run, record in zip(runs, records, strict=True):
        run.attach(record, interval)
    batch.run(snapshots * per_window * interval)
    series = (np.array([getattr(one, name) for one in records]) for name in ("stress", "square", "born"))
    return _evaluate(*series, len(atoms), atoms.cell.volume, float(temperature_K))


class _Record:
    """Averages of the stress of the potential and of its products over windows, and the Born term at their ends."""

    def __init__(self, atoms, calculator, per_window, strain):
        self._atoms, self._calculator, self._per_window, self._strain = atoms, calculator, per_window, strain
        self._rows = []
        self.stress, self.square, self.born = [], [], []

    def __call__(self):
        self._rows.append(self._atoms.get_stress())
        if len(self._rows) < self._per_window:
            return
        rows = np.array(self._rows)
        self._rows.clear()
        self.stress.append(rows.mean(axis=0))
        self.square.append(rows.T @ rows / len(rows))
        snapshot = self._atoms.copy()
        snapshot.calc = self._calculator
        self.born.append(stress_slopes(lambda voigt: strained(snapshot, voigt).get_stress(), self._strain))


def _evaluate(stress, square, born, count: int, volume: float, temperature_K: float) -> ElasticFluctuations:
    """From ``stress`` (replicas, windows, 6), ``square`` and ``born`` (replicas, windows, 6, 6) in eV/Å^3, of ``count``
    sites in ``volume`` (Å^3)."""
    replicas, kT = len(stress), units.kB * temperature_K
    ideal = count * kT / volume
    born = 0.5 * (born + born.swapaxes(2, 3))
    mean = stress.mean(axis=(0, 1))
    # of each window, about the average of all
    crossed = stress[..., :, None] * mean
    spread = square - crossed - crossed.swapaxes(2, 3) + np.outer(mean, mean)
    # that average follows the samples, which makes them too narrow: products of averages of different replicas do not
    deviation = stress.mean(axis=1) - mean
    narrowed = deviation.T @ deviation / (replicas * (replicas - 1))
    terms = {
        "born": born.mean(axis=(0, 1)),
        "fluctuation": -volume / kT * (spread.mean(axis=(0, 1)) + narrowed),
        "kinetic": ideal * np.outer(_NORMAL, _NORMAL),
    }
    parts = born - volume / kT * spread
    blocks = np.concatenate([parts[..., *_UPPER], stress], axis=2).reshape(-1, len(_UPPER[0]) + 6)
    pools = np.split(np.arange(blocks.shape[1]), [len(_UPPER[0])])
    errors, known = standard_errors(blocks, pools)
    error, reliable = np.zeros((6, 6)), np.zeros((6, 6), bool)
    for full, values in ((error, errors), (reliable, known)):
        full[_UPPER] = full.T[_UPPER] = values[pools[0]]
    return ElasticFluctuations(
        C_GPa=sum(terms.values()) / units.GPa,
        C_error=error / units.GPa,
        reliable=reliable,
        **{f"{name}_GPa": term / units.GPa for name, term in terms.items()},
        stress_GPa=(mean - ideal * _NORMAL) / units.GPa,
        stress_error=errors[pools[1]] / units.GPa,
        temperature_K=temperature_K,
        replicas=replicas,
    )
