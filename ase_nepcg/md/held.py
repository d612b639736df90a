"""State of a run with held sites: what an engine advances, what a checkpoint stores."""

from __future__ import annotations

import numpy as np

from .accumulate import BlockTable
from .integrate import draw_velocities
from .loop import PHASE, REASON, STEP

__all__ = ["HeldRun"]


class HeldRun:
    """Atoms that move while the sites of a mapping stay where they are.

    Parameters
    ----------
    bound
        The mapping bound to the atoms (:class:`~ase_nepcg.mapping.BoundMapping`).
    x
        Positions (N, 3) in Å, every molecule whole.
    timestep, kT
        In ASE time units and eV.
    damping
        ``c = exp(-friction timestep)`` of the thermostat; 1: constant energy.
    interval
        Steps between two samples.
    moments
        Keep the moments with the energy that thermal response needs.
    seed
        Of velocities and noise, 0 to 2^63 - 1.

    Everything that changes during the run is in arrays, so that a kernel call or an interrupt leaves no half-way state
    behind: ``x``, ``v``, ``f`` (N, 3), ``virial`` (9,), ``progress`` (step, phase, reason), ``table`` (averages).
    """

    def __init__(self, bound, x, *, timestep, kT, damping, interval, moments, seed):
        n = bound.n_atoms
        self.bound = bound
        self.x = np.array(x, float)
        self.v, self.f = np.zeros((n, 3)), np.zeros((n, 3))
        self.backup = np.zeros((3, n, 3))
        self.virial = np.zeros(9)
        self.progress = np.zeros(3, np.int64)
        self.w = 1.0 / bound.masses
        sizes = np.array([len(group) for group in bound.groups], np.int64)
        self.start = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.members = np.concatenate([*bound.groups, np.zeros(0, int)]).astype(np.int64)
        site = np.repeat(np.arange(len(sizes)), sizes)
        self.share = bound.masses[self.members] / bound.site_masses[site]
        self.anchor = np.array(bound.anchor_of, np.int64)
        self.is_site = np.array(bound.is_site, np.bool_)
        totals = np.bincount(self.anchor, bound.masses, minlength=bound.n_sites + bound.n_implicit)
        self.implicit_share = np.where(self.anchor >= bound.n_sites, bound.masses / totals[self.anchor], 0.0)
        self.centre = np.array(bound.centres(self.x), float).reshape(-1, 3)
        self.h, self.kT, self.c = float(timestep), float(kT), float(damping)
        self.interval, self.seed = int(interval), int(seed)
        self.reference = 0.0
        self.y = np.zeros(3 * bound.n_sites + 14)
        self.table = BlockTable(len(self.y), len(self.y) - 2, moments)
        draw_velocities(self.v, self.w, *self.groups, self.kT, self.seed, 0)

    @property
    def groups(self) -> tuple:
        """The groups as the kernels take them: start, members, share."""
        return self.start, self.members, self.share

    @property
    def step(self) -> int:
        """Steps that are complete."""
        return int(self.progress[STEP])

    @property
    def observation(self) -> tuple:
        """What :func:`~ase_nepcg.md.accumulate.observe` takes before the virial."""
        return self.anchor, self.is_site, self.centre, self.implicit_share, self.bound.n_sites

    def rewind(self) -> None:
        """Back to the beginning of a step that was not completed."""
        if self.progress[PHASE]:
            self.x[:], self.v[:], self.f[:] = self.backup
            self.progress[PHASE] = 0
        self.progress[REASON] = 0

    def kinetic_energy(self) -> float:
        return float(0.5 * (self.v**2 / self.w[:, None]).sum())
