"""From atoms to the arrays of a run, with everything that can be wrong with them."""

from __future__ import annotations

import math

import numpy as np
from ase import Atoms, units
from ase.constraints import FixAtoms

from ..calculator import NEP
from ..constraints import FixBeads
from ..errors import NepCGError, is_integer, is_number
from ..labels import get_types, needs_masses
from .ensembles.base import Ensemble, EnsembleError, Setup
from .state import State, make_state

__all__ = [
    "MDError",
    "check_calculator",
    "check_finite",
    "check_settings",
    "check_unchanged",
    "limits_of",
    "make_setup",
    "settle_velocities",
    "start_state",
]


class MDError(NepCGError, ValueError):
    """Atoms, calculator or settings that a run cannot be made of."""


def check_settings(ensemble, timestep_fs, seed, **intervals) -> None:
    """Raise EnsembleError or MDError for settings that are not what they should be."""
    if not isinstance(ensemble, Ensemble):
        hint = ""
        if isinstance(ensemble, type) and issubclass(ensemble, Ensemble):
            hint = f"; {ensemble.__name__} needs its settings: {ensemble.__name__}(...)"
        raise EnsembleError(
            "ensemble: expected one of ase_nepcg.md (NVE, Langevin, Bussi, NoseHoover, NPT, Deform, HNEMD), got "
            f"{ensemble!r}{hint}"
        )
    if not is_number(timestep_fs) or not 0 < timestep_fs < math.inf:
        raise MDError(f"timestep_fs: expected a positive number of femtoseconds, got {timestep_fs!r}")
    if seed is not None and (not is_integer(seed) or not 0 <= seed < 2**63):
        raise MDError(f"seed: expected an integer from 0 to 2^63 - 1, or None, got {seed!r}")
    for name, value in intervals.items():
        if value is not None and (not is_integer(value) or value < 1):
            raise MDError(f"{name}: expected a positive number of steps, got {value!r}")


def check_calculator(atoms) -> NEP:
    """The NEP calculator of ``atoms``."""
    if not isinstance(atoms, Atoms):
        raise MDError(f"atoms: expected an ase.Atoms, got {type(atoms).__name__}")
    calc = atoms.calc
    if calc is None:
        raise MDError("atoms have no calculator: set atoms.calc = NEP(...) first")
    if type(calc) is not NEP:
        raise MDError(
            f"MD runs NEP models, got the calculator {type(calc).__name__}; use a driver of ase.md for it (as "
            "ase.md.langevin.Langevin), which works with any calculator"
        )
    return calc


def _masses(atoms) -> np.ndarray:
    if needs_masses(atoms):
        raise MDError(
            "the beads have no masses (those of the elements would be used, which are wrong): atoms.set_masses(...), "
            "or take the beads from Mapping.beads, which sets them"
        )
    masses = atoms.get_masses()
    bad = np.flatnonzero(~(np.isfinite(masses) & (masses > 0)))
    if len(bad):
        raise MDError(f"the mass of atom {bad[0]} is {masses[bad[0]]}, expected a positive number")
    return masses


def _constraints(atoms) -> tuple[np.ndarray, list]:
    """Frozen atoms (N,) bool and held groups."""
    frozen, groups = np.zeros(len(atoms), bool), []
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            indices = constraint.get_indices()
            if len(indices) and (indices.max() >= len(atoms) or indices.min() < -len(atoms)):
                raise MDError(f"FixAtoms freezes atoms {indices.tolist()}, but there are {len(atoms)} atoms")
            frozen[indices] = True
        elif isinstance(constraint, FixBeads):
            groups += [np.asarray(group, np.int64) for group in constraint.groups]
        else:
            raise MDError(
                f"constraint {type(constraint).__name__}: MD knows FixAtoms and FixBeads; use a driver of ase.md for "
                "others"
            )
    members = np.concatenate([*groups, np.zeros(0, np.int64)])
    if len(members) and members.max() >= len(atoms):
        raise MDError(f"FixBeads holds atom {members.max()}, but there are {len(atoms)} atoms")
    if len(np.unique(members)) < len(members):
        raise MDError("the groups of two FixBeads constraints overlap; expected every atom in one group at most")
    if frozen[members].any():
        raise MDError(
            f"atom {members[frozen[members]][0]} is frozen (FixAtoms) and member of a held group (FixBeads): remove "
            "one of the constraints"
        )
    return frozen, groups


def check_finite(atoms) -> None:
    """Raise MDError for positions, momenta or a cell that are not finite."""
    momenta = atoms.arrays.get("momenta", np.zeros((0, 3)))
    for name, value in (("positions", atoms.positions), ("momenta", momenta), ("cell", atoms.cell.array)):
        if not np.isfinite(value).all():
            row = int(np.argwhere(~np.isfinite(value))[0][0])
            raise MDError(f"{name} must be finite, but row {row} is {value[row].tolist()}")


def check_unchanged(atoms, setup: Setup, state: State) -> None:
    """Raise MDError if something else than positions, momenta and cell of ``atoms`` has changed since the start."""
    if len(atoms) != setup.n_sites:
        raise MDError(f"the run has {setup.n_sites} atoms, now there are {len(atoms)}: make a new MD")
    now, frozen, groups = make_setup(atoms, setup.timestep)
    held = np.concatenate([*groups, np.zeros(0, np.int64)])
    sizes = [len(group) for group in groups]
    constraints = (frozen, state.w == 0), (held, state.members), (sizes, np.diff(state.start))
    for what, same in (
        ("masses", np.array_equal(now.masses, setup.masses)),
        ("periodic directions", now.pbc == setup.pbc),
        ("constraints", all(np.array_equal(a, b) for a, b in constraints)),
        ("labels or elements", np.array_equal(get_types(atoms, atoms.calc.model.species), state.types)),
    ):
        if not same:
            raise MDError(f"{what} of the atoms are others than when MD was made: make a new MD")


def make_setup(atoms, timestep: float) -> tuple[Setup, np.ndarray, list]:
    """What an ensemble must know of ``atoms``, frozen atoms (N,) and held groups."""
    if len(atoms) == 0:
        raise MDError("there are no atoms")
    check_finite(atoms)
    masses = _masses(atoms)
    frozen, groups = _constraints(atoms)
    return (
        Setup(
            n_sites=len(atoms),
            n_dof=3 * (len(atoms) - int(frozen.sum()) - len(groups)),
            n_frozen=int(frozen.sum()),
            n_held=len(groups),
            pbc=tuple(bool(periodic) for periodic in atoms.pbc),
            cell=atoms.cell.array.copy(),
            masses=masses,
            timestep=timestep,
        ),
        frozen,
        groups,
    )


def start_state(atoms, ensemble: Ensemble, setup: Setup, frozen, groups, seed: int) -> State:
    """Arrays of a run that starts at the positions and momenta of ``atoms``."""
    velocities = np.zeros((len(atoms), 3))
    if atoms.has("momenta"):
        velocities = atoms.arrays["momenta"] / setup.masses[:, None]
    n_dof = ensemble.n_dof(setup)
    state = make_state(
        *([atoms.positions], [velocities], [setup.masses], [get_types(atoms, atoms.calc.model.species)]),
        *(atoms.cell.array, atoms.pbc),
        frozen=[frozen],
        groups=[groups],
        seeds=[seed],
        n_dof=[max(n_dof, 0)],
    )
    settle_velocities(state, ensemble, setup)
    return state


def settle_velocities(state: State, ensemble: Ensemble, setup: Setup) -> None:
    """Make velocities obey the constraints, and the total momentum zero where the ensemble counts on that."""
    state.v[state.w == 0] = 0.0
    for g in range(len(state.start) - 1):
        members = state.members[state.start[g] : state.start[g + 1]]
        share = state.share[state.start[g] : state.start[g + 1]]
        state.v[members] -= share @ state.v[members]
    if ensemble.without_momentum and not (setup.n_frozen or setup.n_held):
        state.v[:] -= state.m @ state.v / state.m.sum()


def limits_of(state: State, ensemble: Ensemble, h: float) -> np.ndarray:
    """(1, 4) as ``Run.limits``: beyond them a step makes no sense.

    Kinetic energy: ten times that of the hotter of target and start, plus 5000 K; displacement: 1 Å per step; volume:
    a fifth to twenty times that of the start.
    """
    n_dof = max(float(state.n_dof[0]), 1.0)
    start = (state.m[:, None] * state.v**2).sum() / (n_dof * units.kB)
    kelvin = 10.0 * max(start, ensemble.temperature or 0.0) + 5000.0
    volume = abs(np.linalg.det(state.cell[0]))
    bounds = (volume / 5.0, volume * 20.0) if ensemble.changes_cell else (-np.inf, np.inf)
    return np.array([[0.5 * n_dof * units.kB * kelvin, 1.0 / h, *bounds]])
