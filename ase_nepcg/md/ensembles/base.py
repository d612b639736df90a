"""What an ensemble is: parameters for the user, two half steps and a conserved quantity for the compiled loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np

from ...errors import NepCGError, is_number

__all__ = ["Ensemble", "EnsembleError", "Kernels", "Setup", "across_periodic", "needs_motion", "positive"]


class EnsembleError(NepCGError, ValueError):
    """Settings of an ensemble that make no sense, or atoms it cannot be used for."""


@dataclass(frozen=True)
class Setup:
    """One replica, as an ensemble sees it before the run."""

    n_sites: int
    n_dof: int  # of the velocities, after constraints; the ensemble may take off conserved momenta, see n_dof()
    n_frozen: int
    n_held: int  # held groups
    pbc: tuple
    cell: np.ndarray  # (3, 3) Å
    masses: np.ndarray  # (n_sites,)
    timestep: float  # ASE time units


@dataclass(frozen=True)
class Kernels:
    """Inlined functions of an ensemble (compiled with :data:`ase_nepcg.md.state.inlined`).

    ``s``: :class:`~ase_nepcg.md.state.State`; ``r``: replica; ``h``: time step in ASE units; ``p``: parameters, ``q``:
    own variables of this replica (1-d float64 views; ``q`` is saved in checkpoints); ``step``: number of the step
    being made, from 1.

    begin(s, r, h, p, q, step)
        From a complete step (forces, virial, energy valid) to the positions (and cell) of the next forces.
    end(s, r, h, p, q, step)
        The rest, with the new forces.
    extra(s, r, h, p, q) -> float
        What potential plus kinetic energy lack to be conserved, in eV.
    drive(s, r, h, p, q)
        None, or: changes ``s.f`` after each evaluation (external forces); may use ``s.energies`` and ``s.virials``.
    """

    begin: Callable
    end: Callable
    extra: Callable
    drive: Callable | None = None


class Ensemble:
    """Base of the ensembles, which are frozen dataclasses of what the user gives.

    ``name`` is that of trajectory headers and checkpoints. ``n_params`` and ``n_state``: lengths of ``p`` and ``q``.
    """

    name: ClassVar[str]
    n_params: ClassVar[int] = 0
    n_state: ClassVar[int] = 0
    # the cell changes during the run
    changes_cell: ClassVar[bool] = False
    # drive() needs the virials of the sites
    per_site: ClassVar[bool] = False
    # frozen atoms and held beads make sense
    takes_constraints: ClassVar[bool] = True
    # the total momentum is conserved and taken off at the start, with its three degrees of freedom
    without_momentum: ClassVar[bool] = False

    def check(self, setup: Setup) -> None:
        """Raise :class:`EnsembleError` where this ensemble cannot be used."""
        if not self.takes_constraints and (setup.n_frozen or setup.n_held):
            what = "frozen atoms (FixAtoms)" if setup.n_frozen else "held beads (FixBeads)"
            raise EnsembleError(
                f"{type(self).__name__} changes the cell, which has no meaning with {what}: remove the constraint, or "
                "use NVE, Langevin, Bussi or NoseHoover"
            )

    def n_dof(self, setup: Setup) -> int:
        """Degrees of freedom of the kinetic energy."""
        free = setup.n_dof
        if self.without_momentum and not (setup.n_frozen or setup.n_held):
            free -= 3
        return free

    def parameters(self, setup: Setup) -> np.ndarray:
        """``p`` of a replica, (n_params,)."""
        return np.zeros(self.n_params)

    def initial(self, setup: Setup) -> np.ndarray:
        """``q`` at the start, (n_state,)."""
        return np.zeros(self.n_state)

    @classmethod
    def kernels(cls) -> Kernels:
        raise NotImplementedError

    @property
    def temperature(self) -> float | None:
        """Target temperature in K, or None."""
        return getattr(self, "temperature_K", None)

    def todict(self) -> dict:
        """Name and settings, JSON-compatible."""
        return {"name": self.name} | {field.name: getattr(self, field.name) for field in fields(self)}


def positive(owner, *names: str) -> None:
    """Raise EnsembleError unless the fields ``names`` of ``owner`` are positive numbers; makes floats of them."""
    for name in names:
        value = getattr(owner, name)
        if not is_number(value) or not 0 < value < math.inf:
            raise EnsembleError(f"{type(owner).__name__}: {name} must be a positive number, got {value!r}")
        object.__setattr__(owner, name, float(value))


def needs_motion(owner: Ensemble, setup: Setup) -> None:
    """Raise EnsembleError where nothing can move: there is no temperature then."""
    if owner.n_dof(setup) < 1:
        raise EnsembleError(
            f"{type(owner).__name__} keeps a temperature, but no degrees of freedom are left ({setup.n_sites} sites, "
            f"{setup.n_frozen} frozen, {setup.n_held} held groups; of an isolated system the total momentum is taken "
            "off): remove constraints, or use more sites"
        )


def across_periodic(setup: Setup, vector) -> bool:
    """Whether a Cartesian vector has a component out of the space that the periodic cell vectors span."""
    vector = np.asarray(vector, float)
    rows = np.asarray(setup.cell, float)[np.asarray(setup.pbc, bool)]
    inside = rows.T @ np.linalg.lstsq(rows.T, vector, rcond=None)[0] if len(rows) else np.zeros(3)
    return bool(np.abs(vector - inside).max() > 1e-6 * np.abs(vector).max())
