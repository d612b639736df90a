"""From atoms to the arrays of a run, with everything that can be wrong with them."""

from __future__ import annotations

import numpy as np
from ase import units
from ase.constraints import FixAtoms

from ..calculator import NEP
from ..constraints import FixBeads
from ..errors import NepCGError
from ..labels import get_types, has_labels
from .ensembles.base import Ensemble, Setup
from .state import State, make_state

__all__ = ["MDError", "check_calculator", "limits_of", "make_setup", "settle_velocities", "start_state"]


class MDError(NepCGError, ValueError):
    """Atoms, calculator or settings that a run cannot be made of."""


def check_calculator(atoms) -> NEP:
    """The NEP calculator of ``atoms``."""
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
    if not atoms.has("masses") and (has_labels(atoms) or (atoms.numbers == 0).any()):
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
            frozen[constraint.get_indices()] = True
        elif isinstance(constraint, FixBeads):
            groups += [np.asarray(group, np.int64) for group in constraint.groups]
        else:
            raise MDError(
                f"constraint {type(constraint).__name__}: MD knows FixAtoms and FixBeads; use a driver of ase.md for "
                "others"
            )
    members = np.concatenate([*groups, np.zeros(0, np.int64)])
    if len(np.unique(members)) < len(members):
        raise MDError("the groups of two FixBeads constraints overlap; expected every atom in one group at most")
    if frozen[members].any():
        raise MDError(
            f"atom {members[frozen[members]][0]} is frozen (FixAtoms) and member of a held group (FixBeads): remove "
            "one of the constraints"
        )
    if len(members) and members.max() >= len(atoms):
        raise MDError(f"FixBeads holds atom {members.max()}, but there are {len(atoms)} atoms")
    return frozen, groups


def make_setup(atoms, timestep: float) -> tuple[Setup, np.ndarray, list]:
    """What an ensemble must know of ``atoms``, frozen atoms (N,) and held groups."""
    if len(atoms) == 0:
        raise MDError("there are no atoms")
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
    for name, value in (("positions", atoms.positions), ("momenta", velocities), ("cell", atoms.cell.array)):
        if not np.isfinite(value).all():
            row = int(np.argwhere(~np.isfinite(value))[0][0])
            raise MDError(f"{name} must be finite, but row {row} is {value[row].tolist()}")
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

    Kinetic energy: ten times that of the hotter of target and start, plus 1000 K; displacement: 1 Å per step; volume:
    a fifth to twenty times that of the start.
    """
    n_dof = max(float(state.n_dof[0]), 1.0)
    start = (state.m[:, None] * state.v**2).sum() / (n_dof * units.kB)
    kelvin = 10.0 * max(start, ensemble.temperature or 0.0) + 1000.0
    volume = abs(np.linalg.det(state.cell[0]))
    bounds = (volume / 5.0, volume * 20.0) if ensemble.changes_cell else (-np.inf, np.inf)
    return np.array([[0.5 * n_dof * units.kB * kelvin, 1.0 / h, *bounds]])
