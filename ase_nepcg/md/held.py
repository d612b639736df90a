"""Runs with held sites: Langevin or constant energy, with the averages of :mod:`~ase_nepcg.md.accumulate`."""

from __future__ import annotations

import functools

import numba
import numpy as np

from .accumulate import MeanForceSums, observe_mean_force
from .backends import make_backend
from .ensembles.langevin import Langevin
from .ensembles.nve import NVE
from .loop import Calendar, kernel_address
from .run import Run
from .state import make_state
from .steps import draw_velocities

__all__ = ["HeldRun", "NepEngine"]


@functools.cache
def _address(signature) -> int:
    observe_mean_force.compile(signature)
    return kernel_address(observe_mean_force)


class HeldRun(Run):
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
    """

    def __init__(self, bound, x, *, timestep, kT, damping, interval, moments, seed):
        n = bound.n_atoms
        state = make_state(
            *([np.array(x, float)], [np.zeros((n, 3))], [bound.masses], [np.zeros(n)]),
            *(np.eye(3), np.zeros(3)),
            groups=[bound.groups],
            seeds=[int(seed)],
            n_dof=[float(bound.n_dof)],
        )
        super().__init__(state, Langevin, float(timestep), np.array([[kT, damping]], float), np.zeros((1, 1)))
        self.bound, self.interval = bound, int(interval)
        self.sums = MeanForceSums(bound, self.x, moments)
        self.c = damping
        draw_velocities(state, float(kT), 0)

    def sample_after(self, step: int) -> None:
        """Steps after ``step`` are sampled."""
        if len(self.calendar.table) and self.calendar.table[0, 3] == step:
            return
        sums = self.sums
        signature = (
            *(numba.typeof(self.state), numba.int64, numba.int64, numba.typeof(sums.ints), numba.typeof(sums.floats)),
        )
        row = [_address(signature), 0, self.interval, step, 0, len(sums.ints), 0, len(sums.floats), 0]
        self.calendar = Calendar(np.array([row], np.int64), sums.ints, sums.floats)

    @property
    def mean_force(self) -> MeanForceSums:
        return self.sums

    @property
    def x(self) -> np.ndarray:
        return self.state.x

    @property
    def v(self) -> np.ndarray:
        return self.state.v

    @property
    def f(self) -> np.ndarray:
        return self.state.f

    @property
    def virial(self) -> np.ndarray:
        """Of the potential, (9,) eV; a view."""
        return self.state.virial.reshape(9)

    @property
    def y(self) -> np.ndarray:
        """The last sample."""
        return self.sums.y

    @property
    def table(self):
        """Averages (:class:`~ase_nepcg.md.accumulate.BlockTable`)."""
        return self.sums.table

    @property
    def centre(self) -> np.ndarray:
        """Centres (Å) of the sites, and of implicit molecules in the last sample."""
        return self.sums.centre

    @property
    def reference(self) -> float:
        """Energy (eV) that is taken off the potential energy of samples."""
        return self.sums.reference

    @reference.setter
    def reference(self, value: float) -> None:
        self.sums.reference = value

    @property
    def kT(self) -> float:
        """Of the thermostat, eV."""
        return float(self.p[0, 0])

    @kT.setter
    def kT(self, value: float) -> None:
        self.p[0, 0] = value

    @property
    def seed(self) -> int:
        return int(self.state.seed[0])

    @property
    def c(self) -> float:
        """Damping of the velocities per step; 1: constant energy."""
        return float(self.p[0, 1])

    @c.setter
    def c(self, value: float) -> None:
        self.p[0, 1] = value
        self.ensemble = Langevin if value < 1.0 else NVE

    def kinetic_energy(self) -> float:
        return float(0.5 * (self.state.m[:, None] * self.v**2).sum())


class NepEngine:
    """Advances a :class:`HeldRun` by the forces of a NEP model."""

    has_virial = True

    def __init__(self, model, types, cell, pbc, *, threads=None, temperature_K=None, device="cpu", precision="double"):
        # for a few hundred atoms a list costs as much as an evaluation; this one holds longer than usual
        settings = {"threads": threads, "temperature_K": temperature_K, "skin": 1.5}
        self.backend = make_backend(model, device, precision, **settings)
        self._geometry = types, cell, pbc

    def _enter(self, run) -> None:
        s = run.state
        s.types[:], s.cell[0], s.pbc[0] = self._geometry

    def begin(self, run) -> float:
        """Forces at the present positions into ``run.f``; returns the potential energy."""
        self._enter(run)
        self.backend.evaluate(run)
        return float(run.state.energy[0])

    def advance(self, run, last_step: int, sample_from: int) -> None:
        """Some steps towards ``last_step``, about 0.1 s; steps after ``sample_from`` are sampled.

        Raises EvaluationError where a step cannot be completed; ``run.rewind()`` leads back to its beginning.
        """
        self._enter(run)
        run.sample_after(sample_from)
        self.backend.advance(run, last_step)
