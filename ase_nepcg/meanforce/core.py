"""Mean forces on beads that are held still, with error bars: from all-atom configurations to training frames.

    F_I = < sum_{a(i)=I} f_i >_R,     W_CG = < W_mol >_R = < W_AA >_R + (N - n) kT 1

(arXiv:2603.01234, Eqs. 12 and 17): averages over the motion of the atoms while the n sites stay at R.
:func:`sample_mean_force` does one configuration, :func:`~ase_nepcg.meanforce.campaign.sample_many` many.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
from ase.units import kB

from ..dataset import FrameCalculator
from .sampler import Sampler, Settings, UnreliableError

__all__ = ["MeanForce", "UnreliableError", "sample_mean_force"]

# a kinetic temperature that is off by this part is no artefact of the integrator any more
_OFF = 0.15
# what ase_nepcg.configurations writes into a configuration, and frames keep
_PROVENANCE = ("strain", "strain_value", "pressure_GPa")
_VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


@dataclass(frozen=True, eq=False)
class MeanForce:
    """Averages over a run with held sites; energies in eV, forces in eV/Å, virials in eV (positive = compressed).

    Errors are standard errors of the averages, correlation included. Virials are None where the calculator gives no
    stress, the atomic one also for rigid molecules (it would need the forces of the bonds).

    Attributes
    ----------
    frame
        The beads (``Atoms``) with these averages, to be written by :func:`~ase_nepcg.write_dataset`. Its calculator
        refuses the energy: the average of the potential energy is not the potential of mean force.
    forces, force_errors, n_effective
        (n, 3): mean force on each site, its error, and the number of independent samples behind it.
    virial, virial_error
        (3, 3): target of the coarse-grained virial, by the molecular estimator.
    virial_atomic, virial_atomic_error
        (3, 3): the same by the atomic estimator, ``< W_AA > + (N - n) kT``.
    virial_pull
        Root mean square of the difference between the two (diagonal) in units of its error: about 1, or the run is not
        in equilibrium, the time step is too long or the forces do not belong to the virial.
    mean_energy, mean_energy_error
        Average potential energy of the atoms.
    drift
        Change of the forces from the first quarter to the second half in units of its error: about 1 in equilibrium.
    temperature_K
        The thermostat's in "nvt" (which the integrator's configurations have), the kinetic one in "nve".
    kinetic_temperature_K, kinetic_temperature_error_K
        From the mean kinetic energy and the degrees of freedom that are left.
    converged
        The run was not interrupted, its errors are reliable, its temperature is right, and the rms force error reached
        ``force_error`` (if one was asked for).
    reliable
        The run was long enough for its slowest correlation, ``correlation_time_ps``.
    interrupted
        Ctrl-C ended the run early.
    time_ps, n_samples, seed
        Length of the production run, samples in it, seed of its random numbers.
    forces_dT, forces_dT2, virial_dT and their errors
        Thermal response, None unless asked for: derivatives of ``forces`` (first and second) and ``virial`` with
        respect to temperature, eV/Å/K, eV/Å/K^2, eV/K (arXiv:2602.23198).
    """

    frame: object
    forces: np.ndarray
    force_errors: np.ndarray
    n_effective: np.ndarray
    virial: np.ndarray | None
    virial_error: np.ndarray | None
    virial_atomic: np.ndarray | None
    virial_atomic_error: np.ndarray | None
    virial_pull: float | None
    mean_energy: float
    mean_energy_error: float
    drift: float
    temperature_K: float
    kinetic_temperature_K: float
    kinetic_temperature_error_K: float
    converged: bool
    reliable: bool
    interrupted: bool
    correlation_time_ps: float
    time_ps: float
    n_samples: int
    seed: int
    forces_dT: np.ndarray | None = None
    forces_dT_errors: np.ndarray | None = None
    forces_dT2: np.ndarray | None = None
    forces_dT2_errors: np.ndarray | None = None
    virial_dT: np.ndarray | None = None
    virial_dT_error: np.ndarray | None = None
    warnings: tuple[str, ...] = field(default=())

    @property
    def force_error(self) -> float:
        """Root mean square error of the force components, eV/Å."""
        return float(np.sqrt((self.force_errors**2).mean()))

    def __repr__(self):
        rms = np.sqrt((self.forces**2).mean())
        return (
            f"MeanForce({len(self.forces)} sites, {self.time_ps:g} ps at {self.temperature_K:.4g} K: rms force "
            f"{rms:.3f} ± {self.force_error:.4f} eV/Å{'' if self.reliable else ', error not reliable'}"
            f"{', interrupted' if self.interrupted else ''})"
        )


def sample_mean_force(
    atoms,
    mapping,
    *,
    temperature_K,
    timestep_fs=0.5,
    ensemble="nvt",
    friction_per_fs=0.01,
    equilibration_ps=1.0,
    time_ps=None,
    force_error=None,
    interval=1,
    thermal_response=False,
    checkpoint=None,
    seed=None,
    progress=True,
) -> MeanForce:
    """Average the forces on the beads of one configuration while the beads are held.

    Parameters
    ----------
    atoms
        All-atom configuration with any ASE calculator that gives forces; without a stress there is no virial. It is
        not changed. With a :class:`~ase_nepcg.NEP` calculator the whole run is compiled. Constraints may be rigid
        molecules (``FixBondLengths``, ``FixLinearTriatomic``) within beads; rigid bonds between beads are refused.
    mapping
        The beads, a :class:`~ase_nepcg.Mapping`.
    temperature_K
        Of the Langevin thermostat, and of the equilibration where ``ensemble`` is "nve".
    timestep_fs, friction_per_fs, equilibration_ps
        Of the integrator (BAOAB), of the thermostat, and of the run that is thrown away.
    ensemble
        "nvt" (Langevin) or "nve" (velocity Verlet). Mean forces agree; fluctuations do not.
    time_ps, force_error
        When to stop: after this time, or once the root mean square error of the forces (eV/Å) is this small. One of
        them at least; with both, whichever comes first.
    interval
        Steps between two samples.
    thermal_response
        Also derivatives with respect to temperature, from covariances with the energy; "nvt" only.
    checkpoint
        File for the state of the run. If it exists, the run is continued from it, and ends with the same bits as if it
        had never been interrupted (if forces are a function of the positions alone: ASE's EMT and Lennard-Jones keep
        neighbour lists whose age shows in the last digit); a finished run can be made longer.
    seed
        Integer from 0; None: a new one each time. The same seed gives the same bits, for any number of threads.
    progress
        Show a progress bar with the current error, where the terminal allows.

    Raises
    ------
    MappingError
        Atoms that do not fit the mapping, or have no masses.
    SamplingError
        A step that cannot be completed (forces that are not finite); names the step, and the file to which the last
        good state was written.
    CheckpointError
        A checkpoint that is damaged or belongs to another run.
    ValueError, TypeError
        Arguments that make no sense.

    Warns (RuntimeWarning) if the run is too short for its slowest correlation time, drifts, was interrupted, or has a
    kinetic temperature far from the thermostat's, as with a time step that is too long. (A few per cent too low is
    normal: BAOAB gives positions, not momenta, the right temperature. At 0.5 fs flexible water shows 297 K for 300 K.)

    Error bars are those of what the run visits. Molecules that cannot move can hardly turn either: with every centre of
    mass held, liquid water at 300 K keeps the hydrogen bonds it starts with for longer than tens of picoseconds, and
    averages from other starts differ by far more than their error bars, whatever these say about one of them. See
    :mod:`ase_nepcg.meanforce.tempering`.
    """
    settings = Settings(
        temperature_K=temperature_K,
        timestep_fs=timestep_fs,
        ensemble=ensemble,
        friction_per_fs=friction_per_fs,
        equilibration_ps=equilibration_ps,
        interval=interval,
        thermal_response=thermal_response,
        seed=seed,
    )
    if not hasattr(mapping, "bind"):
        raise TypeError(f"mapping: expected a Mapping, got {type(mapping).__name__} (Mapping.from_groups makes one)")
    sampler = Sampler(atoms, mapping, settings, checkpoint=checkpoint)
    sampler.run(time_ps=time_ps, force_error=force_error, progress=progress)
    result = collect(sampler)
    for text in result.warnings:
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    return result


def collect(sampler) -> MeanForce:
    """The averages of a :class:`~ase_nepcg.meanforce.sampler.Sampler` that has run."""
    run, bound, settings = sampler.held, sampler.bound, sampler.settings
    n, k = bound.n_sites, 3 * bound.n_sites
    table, estimate = run.table, sampler.estimate()
    mean, error = table.mean, estimate.error
    forces, errors = mean[:k].reshape(n, 3), error[:k].reshape(n, 3)
    # what does not fluctuate has as many independent samples as there are samples
    effective = np.minimum(table.variance[:k] / np.maximum(error[:k] ** 2, 1e-300), table.samples)
    effective = np.where(error[:k] > 0, effective, table.samples).reshape(n, 3)
    to_kelvin = 2.0 / (sampler.n_dof * kB) if sampler.n_dof else 0.0
    kinetic, kinetic_error = mean[k + 13] * to_kelvin, error[k + 13] * to_kelvin
    temperature = settings.temperature_K if settings.ensemble == "nvt" else float(kinetic)
    kT = kB * temperature

    virial = virial_error = atomic = atomic_error = pull = None
    if sampler.has_virial:
        virial = _tensor(mean[k : k + 6]) + bound.n_implicit * kT * np.eye(3)
        virial_error = _tensor(error[k : k + 6])
        if not sampler.rigid:
            ideal = (bound.n_atoms - n) * kT
            atomic = _tensor(mean[k + 6 : k + 12]) + ideal * np.eye(3)
            atomic_error = _tensor(error[k + 6 : k + 12])
            pull = sampler.virial_pull(virial - atomic)
    response = sampler.response(kT) if settings.thermal_response else {}
    drift, drifts = sampler.drift(estimate)
    time_ps = table.samples * settings.interval * settings.timestep_fs / 1000.0
    correlation = estimate.slowest * table.length * settings.interval * settings.timestep_fs / 1000.0
    texts, reliable = [], sampler.reliable(estimate)
    if not reliable:
        texts.append(
            f"the run of {time_ps:g} ps is too short for its slowest correlation time (about {correlation:.2g} ps or "
            "more): the error bars are not reliable (they are too small rather than too large); sample some ten times "
            "longer, or more configurations"
        )
    hot = settings.ensemble == "nvt" and sampler.n_dof > 0
    hot = hot and abs(kinetic - temperature) > max(_OFF * temperature, 6 * kinetic_error)
    if hot:
        texts.append(
            f"the kinetic temperature is {kinetic:.0f} K, expected {temperature:g} K: the averages are wrong; the time "
            f"step of {settings.timestep_fs:g} fs is probably too long, or the configuration far from equilibrium"
        )
    if drifts:
        texts.append(
            "forces or energy drift from the first quarter of the run to its second half by more than chance: not yet "
            "in equilibrium (use a longer equilibration_ps), or heating up (use a shorter timestep_fs)"
        )
    if sampler.interrupted:
        texts.append(f"interrupted: these are the averages over the first {time_ps:g} ps")
    sound = reliable and not hot and not sampler.interrupted
    frame = bound.beads(sampler.atoms)
    frame.positions[:] = run.centre[:n]
    frame.arrays.pop("momenta", None)
    values = {
        "forces": forces,
        "force_errors": errors,
        "n_effective": effective,
        "virial": virial,
        "virial_error": virial_error,
        "virial_atomic": atomic,
        "virial_atomic_error": atomic_error,
        "mean_energy": float(mean[k + 12] + run.reference),
        "mean_energy_error": float(error[k + 12]),
        "drift": drift,
        "temperature_K": float(temperature),
        "converged": sound and sampler.converged(estimate),
        "time_ps": time_ps,
        "seed": run.seed,
        **response,
    }
    verdict = {
        "reliable": reliable,
        "interrupted": sampler.interrupted,
        "kinetic_temperature": float(kinetic),
        "correlation_time_ps": float(correlation),
    }
    if pull is not None:
        verdict["virial_pull"] = pull
    _annotate(frame, values, verdict, sampler)
    return MeanForce(
        frame=frame,
        **values,
        virial_pull=pull,
        kinetic_temperature_K=float(kinetic),
        kinetic_temperature_error_K=float(kinetic_error),
        reliable=reliable,
        interrupted=sampler.interrupted,
        correlation_time_ps=float(correlation),
        n_samples=table.samples,
        warnings=tuple(texts),
    )


def _tensor(six) -> np.ndarray:
    tensor = np.zeros((3, 3))
    for value, (a, b) in zip(six, _VOIGT, strict=True):
        tensor[a, b] = tensor[b, a] = value
    return tensor


def _annotate(frame, values, verdict, sampler) -> None:
    """Write the averages into ``frame``, under the names that files use."""
    settings, bound = sampler.settings, sampler.bound
    for name in ("force_errors", "n_effective", "forces_dT", "forces_dT_errors", "forces_dT2", "forces_dT2_errors"):
        if values.get(name) is not None:
            frame.set_array(name, np.array(values[name]))
    frame.set_array("atoms_per_bead", np.array([len(group) for group in bound.groups], int))
    info = {
        "energy_weight": 0.0,
        "temperature": values["temperature_K"],
        "ensemble": settings.ensemble,
        "timestep_fs": settings.timestep_fs,
        "time_ps": values["time_ps"],
        "seed": values["seed"],
        "calculator": sampler.calculator_name,
        "mean_energy": values["mean_energy"],
        "mean_energy_error": values["mean_energy_error"],
        "n_atoms": bound.n_atoms,
        "drift": values["drift"],
        "converged": values["converged"],
        **verdict,
    }
    info |= {name: sampler.atoms.info[name] for name in _PROVENANCE if name in sampler.atoms.info}
    results = {"forces": np.array(values["forces"])}
    if values["virial"] is not None:
        info |= {"virial": values["virial"], "virial_error": values["virial_error"]}
        info |= {"virial_molecular": values["virial"], "virial_molecular_error": values["virial_error"]}
        stress = -values["virial"] / frame.get_volume()
        results["stress"] = np.array([stress[a, b] for a, b in _VOIGT])
    for name in ("virial_atomic", "virial_atomic_error", "virial_dT", "virial_dT_error"):
        if values.get(name) is not None:
            info[name] = values[name]
    frame.info.update({name: np.array(v) if isinstance(v, np.ndarray) else v for name, v in info.items()})
    frame.calc = FrameCalculator(frame, **results)
