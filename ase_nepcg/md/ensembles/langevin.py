"""Langevin dynamics in the splitting B A O A | B (Leimkuhler & Matthews, Appl. Math. Res. Express 2013, 34).

::

    B   v += (h/2) f / m
    A   x += (h/2) v
    O   v  = c v + sqrt((1 - c^2) kT / m) xi        c = exp(-gamma h), xi standard normal

samples positions at the target temperature to fourth order in ``h`` for harmonic forces. Conserved: U + K less the
kinetic energy that O has brought in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ase import units

from ..state import inlined
from ..steps import drift, hold, kick, kinetic_energy, ornstein_uhlenbeck
from .base import Ensemble, Kernels, needs_motion, positive

__all__ = ["Langevin"]

# p
_KT, _DAMPING = 0, 1
# q
_HEAT = 0


@inlined
def _begin(s, r, h, p, q, step):
    kick(s, r, 0.5 * h)
    drift(s, r, 0.5 * h)
    before = kinetic_energy(s, r)
    ornstein_uhlenbeck(s, r, p[_DAMPING], p[_KT], step)
    q[_HEAT] += kinetic_energy(s, r) - before
    drift(s, r, 0.5 * h)
    hold(s, r)


@inlined
def _end(s, r, h, p, q, step):
    kick(s, r, 0.5 * h)


@inlined
def _extra(s, r, h, p, q):
    return -q[_HEAT]


@dataclass(frozen=True)
class Langevin(Ensemble):
    """Constant temperature by friction and noise on every site.

    temperature_K: target, K; friction_per_fs: gamma, 1/fs.
    """

    temperature_K: float
    friction_per_fs: float

    name = "langevin"
    n_params = 2
    n_state = 1

    def __post_init__(self):
        positive(self, "temperature_K", "friction_per_fs")

    def check(self, setup):
        super().check(setup)
        needs_motion(self, setup)

    def parameters(self, setup):
        damping = math.exp(-self.friction_per_fs / units.fs * setup.timestep)
        return np.array([units.kB * self.temperature_K, damping])

    @classmethod
    def kernels(cls) -> Kernels:
        return Kernels(_begin, _end, _extra)
