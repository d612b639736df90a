"""Configurations to be sampled: strained, rattled, at given pressures, picked from a trajectory.

>>> frames = strained(atoms, mapping, isotropic=(-0.05, 0.0, 0.05), shear={"xy": (-0.05, 0.05)})
>>> frames += at_pressures(atoms, (0.0, 1.0, 10.0), temperature_K=300, time_ps=20, seed=1)
>>> results = sample_many(frames, mapping, folder="frames", temperature_K=300, force_error=0.01)

Held beads stay where they are, so what a model is to know has to be in the configurations: other volumes and shapes of
the cell for the stress, other places of the beads for the forces. Gold beads of arXiv:2603.01234 were sampled at
isotropic and biaxial strains of -10 to 5 %, uniaxial ones of -10 to 10 % and shears of -5 to 5 %; water at pressures.

Every function returns a list of new ``Atoms`` that share the calculator of the given ones, which are not changed;
``info`` says where a configuration comes from. Beads move, molecules do not deform: an atom keeps its place relative to
its anchor (:meth:`~ase_nepcg.Mapping.bind`), atoms that are sites themselves move as a bead does. Lengths in Å, strains
as fractions (0.05 for 5 %), pressures in GPa, positive = compressed.
"""

from __future__ import annotations

import math
import secrets
import warnings
from collections.abc import Mapping as Dictionary

import numpy as np
from ase import units
from ase.calculators.calculator import CalculationFailed, PropertyNotImplementedError
from scipy.spatial.transform import Rotation

from .constraints import FixBeads
from .errors import NepCGError
from .mapping.checks import check_masses
from .mapping.molecules import check_positions, lattice_of
from .meanforce.statistics import block_errors, drift_of

__all__ = ["ConfigurationError", "at_pressures", "from_trajectory", "rattled", "strained"]

# kind of strain -> the Cartesian axes it can have, the first is the default
_AXES = {"isotropic": ("xyz",), "biaxial": ("xy", "xz", "yz"), "uniaxial": ("x", "y", "z"), "shear": ("xy", "xz", "yz")}
# the swing of the volume from a start at another pressure falls by e in about half the time of the barostat
_RINGING = 3.0
# a series shorter than this says nothing about correlation, and one of a few hundred is certain within this factor
_ENOUGH, _CERTAINTY = 32, 3.0


class ConfigurationError(NepCGError, ValueError):
    """Arguments or atoms from which no configuration can be made."""


# --- strain -----------------------------------------------------------------------------------------------------------


def strained(atoms, mapping, *, isotropic=(), biaxial=(), uniaxial=(), shear=()) -> list:
    """Configurations with a strained cell: bead centres move affinely with it, molecules rigidly.

    Each kind of strain takes a number or a sequence of numbers ``e``, or ``{axes: numbers}`` for other Cartesian axes
    than the first of these: ``biaxial`` "xy", "xz", "yz"; ``uniaxial`` "x", "y", "z"; ``shear`` "xy", "xz", "yz".
    Lengths along the axes become ``1 + e`` times as long; a shear "xy" moves x by ``e y`` and keeps the volume. All
    act on Cartesian axes about the origin, whatever the cell vectors, without any rotation: ``cell @ F.T`` with the
    deformation gradient F, lower triangular cells stay so. Of a cell that is not periodic in all directions, only
    strains within the periodic ones make sense. ``info``: ``strain`` (as "shear-xy") and ``strain_value``.

    Raises :class:`ConfigurationError` for strains that are not between -1 and 1 (percent, mostly), for none at all, and
    for strains in directions that are not periodic; :class:`~ase_nepcg.mapping.MappingError` for atoms that do not fit.
    """
    wanted = [
        (kind, axes, value)
        for kind, values in (("isotropic", isotropic), ("biaxial", biaxial), ("uniaxial", uniaxial), ("shear", shear))
        for axes, value in _strains(kind, values)
    ]
    if not wanted:
        raise ConfigurationError("no strain given: expected isotropic=, biaxial=, uniaxial= or shear=")
    whole, centres, anchor = _anchored(atoms, mapping)
    lattice, _, periodic = lattice_of(atoms.cell.array, atoms.pbc)
    images = atoms.positions - whole  # lattice vectors
    plane = np.linalg.pinv(lattice[periodic]) @ lattice[periodic]
    frames = []
    for kind, axes, value in wanted:
        gradient = _gradient(kind, axes, value)
        if np.abs(plane @ gradient @ plane - gradient).max() > 1e-6 * abs(value):
            raise ConfigurationError(_not_periodic(kind, axes, atoms))
        frame = _copy(atoms)
        frame.cell[periodic] += frame.cell[periodic] @ gradient.T
        move = (centres @ gradient.T)[anchor] + images @ gradient.T
        frame.set_positions(atoms.positions + move, apply_constraint=False)
        frame.info["strain"] = kind if kind == "isotropic" else f"{kind}-{axes}"
        frame.info["strain_value"] = value
        frames.append(frame)
    return frames


def _strains(kind: str, values) -> list:
    """Pairs (axes, strain) in the order given."""
    allowed = _AXES[kind]
    given = values if isinstance(values, Dictionary) else {allowed[0]: values}
    unknown = [axes for axes in given if axes not in allowed]
    if unknown:
        raise ConfigurationError(f"{kind}: expected axes {', '.join(allowed)}, got {unknown[0]!r}")
    pairs = [(axes, value) for axes, several in given.items() for value in _numbers(kind, several)]
    for _, value in pairs:
        if not -1 < value < 1:
            raise ConfigurationError(f"{kind}: expected fractions between -1 and 1 (0.05 for 5 %), got {value:g}")
    return pairs


def _gradient(kind: str, axes: str, value: float) -> np.ndarray:
    """Displacement gradient (3, 3): the deformation gradient less one."""
    gradient = np.zeros((3, 3))
    index = ["xyz".index(axis) for axis in axes]
    if kind == "shear":
        gradient[index[0], index[1]] = value
    else:
        gradient[index, index] = value
    return gradient


def _not_periodic(kind: str, axes: str, atoms) -> str:
    if not (atoms.pbc & atoms.cell.any(axis=1)).any():
        return f"{kind} strain: the atoms are not periodic, so that a strain has no stress; use rattled()"
    pbc = ", ".join(str(bool(periodic)) for periodic in atoms.pbc)
    return (
        f"{kind} strain along {axes}: part of it is in a direction that is not periodic (pbc = {pbc}); give strains "
        "within the periodic directions only, such as biaxial={'xy': ...} for a layer in the xy plane"
    )


# --- displaced beads --------------------------------------------------------------------------------------------------


def rattled(atoms, mapping, *, stdev, n=1, rotation_deg=0.0, seed=None) -> list:
    """``n`` configurations with beads displaced at random, molecules rigid.

    ``stdev``: standard deviation of each Cartesian coordinate of a bead's displacement, Å. ``rotation_deg``: that of
    each component of a rotation vector about the bead's centre, degrees (for molecules; not for pieces of a crystal or
    of a longer molecule). Molecules without a site stay: sampling moves them. ``seed``: integer from 0, None for a new
    one; configuration k depends on seed and k only. ``info``: ``rattle_stdev``, ``rattle_rotation_deg``,
    ``rattle_seed``, ``rattle_index``.

    Raises :class:`ConfigurationError` for arguments that make no sense; :class:`~ase_nepcg.mapping.MappingError`.
    """
    stdev = _number("stdev", stdev, "Å", zero=True)
    rotation_deg = _number("rotation_deg", rotation_deg, "degrees", zero=True)
    if stdev == 0 and rotation_deg == 0:
        raise ConfigurationError("stdev and rotation_deg are zero: nothing would move")
    n, seed = _count("n", n), _seed(seed)
    whole, centres, anchor = _anchored(atoms, mapping)
    n_sites = len(mapping)
    arms = whole - centres[anchor]
    frames = []
    for k in range(n):
        rng = np.random.default_rng((seed, k))
        shifts, angles = np.zeros((2, len(centres), 3))
        shifts[:n_sites] = rng.normal(scale=stdev, size=(n_sites, 3))
        angles[:n_sites] = rng.normal(scale=math.radians(rotation_deg), size=(n_sites, 3))
        move = shifts[anchor]
        if rotation_deg:
            move += Rotation.from_rotvec(angles[anchor]).apply(arms) - arms
        frame = _copy(atoms)
        frame.set_positions(atoms.positions + move, apply_constraint=False)
        frame.info |= {"rattle_stdev": stdev, "rattle_rotation_deg": rotation_deg}
        frame.info |= {"rattle_seed": seed, "rattle_index": k}
        frames.append(frame)
    return frames


# --- pressure ---------------------------------------------------------------------------------------------------------


def at_pressures(
    atoms,
    pressures_GPa,
    *,
    temperature_K,
    time_ps,
    timestep_fs=0.5,
    frames=1,
    equilibration_ps=None,
    tau_fs=None,
    tau_p_fs=None,
    seed=None,
    progress=True,
) -> list:
    """Configurations from a run at constant pressure and temperature for each pressure; beads are not held.

    Each run starts from ``atoms`` with new velocities and lasts ``time_ps`` (ps). Of what follows the first
    ``equilibration_ps`` (None: half of it), ``frames`` configurations are taken at equal intervals, the last one at the
    end, so one is the end of the run. ``tau_fs``, ``tau_p_fs``: times of thermostat and barostat, None: 100 and 1000
    time steps. ``seed``: integer from 0, None for a new one; run k depends on seed and k. ``progress``: show a bar
    where the terminal allows. ``info``: ``pressure_GPa``, ``temperature_K``, ``npt_time_ps``, ``npt_seed``.

    Method: Martyna, Tobias and Klein, J. Chem. Phys. 101, 4177 (1994), as in ``ase.md.nose_hoover_chain``: the volume
    fluctuates, the shape of the cell is kept. (ASE's version for the whole cell thermostats nine momenta of the cell
    where a symmetric stress leaves six, so that the cell is too hot; combine pressures with :func:`strained` instead.)
    The total momentum is zero, and the temperature is that of the remaining 3 N - 3 degrees of freedom.

    Raises :class:`ConfigurationError` for constraints (held beads and rigid bonds among them), cells that are not
    periodic in all directions, and arguments that make no sense; ``PropertyNotImplementedError`` for calculators
    without stress; ``CalculationFailed``, naming the pressure, for a step that fails, positions or forces that are not
    finite, and a volume that doubles or halves. Warns (RuntimeWarning) if the volume still drifts at the end.
    """
    pressures = _numbers("pressures_GPa", pressures_GPa)
    if not pressures:
        raise ConfigurationError("pressures_GPa: expected at least one pressure, got none")
    temperature_K = _number("temperature_K", temperature_K, "K")
    time_ps = _number("time_ps", time_ps, "ps")
    timestep_fs = _number("timestep_fs", timestep_fs, "fs")
    tau_fs = 100 * timestep_fs if tau_fs is None else _number("tau_fs", tau_fs, "fs")
    tau_p_fs = 1000 * timestep_fs if tau_p_fs is None else _number("tau_p_fs", tau_p_fs, "fs")
    frames, seed = _count("frames", frames), _seed(seed)
    if equilibration_ps is None:
        equilibration_ps = 0.5 * time_ps
    equilibration_ps = _number("equilibration_ps", equilibration_ps, "ps", zero=True)
    steps, thrown_away = (round(t * 1000 / timestep_fs) for t in (time_ps, equilibration_ps))
    if steps - thrown_away < frames:
        raise ConfigurationError(
            f"time_ps={time_ps:g} with equilibration_ps={equilibration_ps:g} leaves "
            f"{max(steps - thrown_away, 0)} steps for frames={frames}; use a longer time_ps"
        )
    if equilibration_ps < _RINGING * tau_p_fs / 1000:
        warnings.warn(
            f"equilibration_ps={equilibration_ps:g} is less than {_RINGING:g} times tau_p_fs={tau_p_fs:g}: the volume "
            "still swings from the start; use a longer time_ps",
            RuntimeWarning,
            stacklevel=2,
        )
    _check_for_pressure(atoms)

    from ase.md.nose_hoover_chain import IsotropicMTKNPT
    from tqdm import tqdm

    n_atoms = len(atoms)
    # frame k is taken after these steps
    marks = {thrown_away + (k + 1) * (steps - thrown_away) // frames for k in range(frames)}
    chosen = []
    with tqdm(total=steps * len(pressures), unit="step", disable=None if progress else True) as bar:
        for k, pressure in enumerate(pressures):
            bar.set_description(f"{pressure:g} GPa")
            work = _copy(atoms)
            _thermalise(work, temperature_K, np.random.default_rng((seed, k)))
            # ASE gives N atoms 3 N degrees of freedom
            run = IsotropicMTKNPT(
                work,
                timestep=timestep_fs * units.fs,
                temperature_K=temperature_K * (n_atoms - 1) / n_atoms,
                pressure_au=pressure * units.GPa,
                tdamp=tau_fs * units.fs,
                pdamp=tau_p_fs * units.fs,
            )
            volumes = np.empty(steps)
            start = work.get_volume()
            for step in range(1, steps + 1):
                _advance(run, work, start, f"NPT run at {pressure:g} GPa: step {step} of {steps}")
                volumes[step - 1] = work.get_volume()
                bar.update()
                if step in marks:
                    frame = _copy(work)
                    frame.info |= {"pressure_GPa": pressure, "temperature_K": temperature_K}
                    frame.info |= {"npt_time_ps": step * timestep_fs / 1000, "npt_seed": seed}
                    chosen.append(frame)
            _warn_of_drift(volumes[thrown_away:], pressure)
    return chosen


def _check_for_pressure(atoms) -> None:
    """Refuse atoms that cannot run at constant pressure."""
    if len(atoms) < 2:
        raise ConfigurationError(f"atoms: expected at least two for a run at constant pressure, got {len(atoms)}")
    if any(isinstance(constraint, FixBeads) for constraint in atoms.constraints):
        raise ConfigurationError(
            "atoms have held beads (FixBeads): a barostat would move them with the cell. Run at constant pressure "
            "without the constraint and hold the beads afterwards, or set the volume by strained(..., isotropic=...)"
        )
    if atoms.constraints:
        names = ", ".join(sorted({type(constraint).__name__ for constraint in atoms.constraints}))
        raise ConfigurationError(
            f"atoms have constraints ({names}), which the barostat of ASE cannot take into account: remove them by "
            "atoms.set_constraint(), or set the volume by strained(..., isotropic=...)"
        )
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        pbc = ", ".join(str(bool(periodic)) for periodic in atoms.pbc)
        raise ConfigurationError(
            f"a pressure needs a cell that is periodic in all directions, got pbc = {pbc} and a cell of rank "
            f"{atoms.cell.rank}; for a layer use strained(..., biaxial=...)"
        )
    check_positions(atoms.positions)
    lattice_of(atoms.cell.array, atoms.pbc)
    check_masses(atoms)
    if atoms.calc is None:
        raise ConfigurationError("atoms have no calculator: set atoms.calc = ... first")
    try:
        results = atoms.get_forces(), atoms.get_stress()
    except (PropertyNotImplementedError, NotImplementedError) as error:
        raise PropertyNotImplementedError(
            f"a run at constant pressure needs forces and stress, but {type(atoms.calc).__name__} gives none "
            f"({error}); set the volume by strained(..., isotropic=...)"
        ) from error
    if not all(np.isfinite(values).all() for values in results):
        raise CalculationFailed("forces or stress of the given atoms are not finite")


def _thermalise(atoms, temperature_K: float, rng) -> None:
    """Velocities of the Maxwell-Boltzmann distribution with zero total momentum."""
    masses = atoms.get_masses()[:, None]
    momenta = rng.normal(size=(len(atoms), 3)) * np.sqrt(masses * units.kB * temperature_K)
    atoms.set_momenta(momenta - masses * momenta.sum(axis=0) / masses.sum())


def _advance(run, atoms, start: float, where: str) -> None:
    """One step, after which everything is finite and the volume within a factor of two of ``start``."""
    try:
        with np.errstate(all="ignore"):
            run.step()
    except Exception as error:
        raise CalculationFailed(f"{where} cannot be completed: {type(error).__name__}: {error}") from error
    # the forces are in the momenta already, the stress in the cell after the next step
    if not all(np.isfinite(values).all() for values in (atoms.positions, atoms.arrays["momenta"], atoms.cell.array)):
        raise CalculationFailed(f"{where}: positions, cell or forces are not finite; use a shorter timestep_fs")
    ratio = atoms.get_volume() / start
    if not 0.5 < ratio < 2:
        raise CalculationFailed(
            f"{where}: the volume is {ratio:.2f} times that at the beginning. The pressure is out of reach of these "
            "atoms (boiling, or a start far from equilibrium), timestep_fs is too long or tau_p_fs too short"
        )


def _warn_of_drift(volumes: np.ndarray, pressure: float) -> None:
    """Warn if the volume after the equilibration is still changing, as far as its fluctuations allow to tell."""
    series = volumes[:, None]
    if len(series) >= _ENOUGH and drift_of(series, block_errors(series, [np.array([0])]), np.array([0]))[1]:
        quarter, half = volumes[: len(volumes) // 4].mean(), volumes[len(volumes) // 2 :].mean()
        warnings.warn(
            f"{pressure:g} GPa: the volume is still changing ({quarter:.6g} to {half:.6g} Å³ during the part of the "
            "run from which configurations are taken): use a longer time_ps",
            RuntimeWarning,
            stacklevel=3,
        )


# --- trajectories -----------------------------------------------------------------------------------------------------


def from_trajectory(frames, n, *, calculator=None) -> list:
    """``n`` of the given frames (``Atoms``), as far apart in time as possible, the last one among them.

    ``calculator``: given to all of them; None: they keep their own, which of a file only repeats what it says. Leave
    out the equilibration: ``frames[100:]``. ``info``: ``trajectory_index``, counted in the frames given.

    Warns (RuntimeWarning) if energy (where frames have one) or volume say that there are far fewer than ``n``
    independent frames. Raises :class:`ConfigurationError` for fewer than ``n`` frames, or frames with different atoms.
    """
    frames, n = list(frames), _count("n", n)
    if len(frames) < n:
        raise ConfigurationError(f"frames: expected at least n = {n}, got {len(frames)}")
    for k, frame in enumerate(frames):
        if not np.array_equal(frame.numbers, frames[0].numbers):
            raise ConfigurationError(f"frames: frame {k} has other atoms than frame 0, or in another order")
        check_positions(frame.positions)
    independent = _independent(frames)
    if n > _CERTAINTY * independent:
        warnings.warn(
            f"the {len(frames)} frames hold about {max(independent, 1):.0f} independent ones, by their energy or "
            f"volume, and {n} are taken: they resemble each other; use a longer trajectory or a smaller n",
            RuntimeWarning,
            stacklevel=2,
        )
    chosen = []
    for k in range(n):
        index = (k + 1) * len(frames) // n - 1
        frame = frames[index].copy()
        frame.calc = frames[index].calc if calculator is None else calculator
        frame.info["trajectory_index"] = index
        chosen.append(frame)
    return chosen


def _independent(frames) -> float:
    """Number of independent frames, as the slower one of energy and volume has it; infinite if that cannot be said."""
    smallest = math.inf
    if len(frames) < _ENOUGH:
        return smallest
    energies = [None if frame.calc is None else frame.calc.get_property("energy", frame, False) for frame in frames]
    for values in (energies, [frame.cell.volume for frame in frames]):
        if any(value is None for value in values):
            continue
        series = np.array(values, dtype=float)[:, None]
        error = block_errors(series, [np.array([0])]).error[0]
        if error > 0:
            smallest = min(smallest, series.var() / error**2)
    return smallest


# --- shared -----------------------------------------------------------------------------------------------------------


def _anchored(atoms, mapping) -> tuple:
    """Whole positions (N, 3), centres of all anchors, and the anchor of each atom (N,)."""
    bound = mapping.bind(atoms)
    whole = bound.whole(atoms.positions, atoms.cell.array, atoms.pbc)
    return whole, bound.centres(whole), bound.anchor_of


def _copy(atoms):
    new = atoms.copy()
    new.calc = atoms.calc
    return new


def _numbers(name: str, values) -> list[float]:
    """Finite numbers; one may come without a sequence."""
    array = np.asarray(values if np.ndim(values) else [values])
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iuf"):
        raise ConfigurationError(f"{name}: expected a sequence of numbers, got {values!r}")
    if array.size and not np.isfinite(array).all():
        raise ConfigurationError(f"{name}: expected finite numbers, got {array[~np.isfinite(array)][0]}")
    return [float(value) for value in array]


def _number(name: str, value, unit: str, *, zero: bool = False) -> float:
    """A positive number, or zero if that is allowed."""
    array = np.asarray(value)
    if array.ndim or array.dtype.kind not in "iuf" or not (0 < array < np.inf or (zero and array == 0)):
        raise ConfigurationError(f"{name}: expected a {'' if zero else 'positive '}number of {unit}, got {value!r}")
    return float(array)


def _count(name: str, value) -> int:
    array = np.asarray(value)
    if array.ndim or array.dtype.kind not in "iu" or array < 1:
        raise ConfigurationError(f"{name}: expected a positive integer, got {value!r}")
    return int(array)


def _seed(seed) -> int:
    if seed is None:
        return secrets.randbits(31)
    array = np.asarray(seed)
    if array.ndim or array.dtype.kind not in "iu" or array < 0:
        raise ConfigurationError(f"seed: expected an integer from 0, or None, got {seed!r}")
    return int(array)
