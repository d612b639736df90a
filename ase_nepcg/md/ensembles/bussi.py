"""Constant temperature by stochastic velocity rescaling.

Bussi, Donadio & Parrinello, J. Chem. Phys. 126, 014101 (2007). Velocity Verlet, and after each step all velocities
times ``alpha``::

    alpha^2 = c + (1 - c) k (R_1^2 + S) + 2 R_1 sqrt(c (1 - c) k)           c = exp(-h/tau),  k = kT / (2 K)
    alpha has the sign of R_1 + sqrt(c / ((1 - c) k))

R_1 is standard normal; S, the sum of n - 1 squared normal numbers (n: degrees of freedom), is twice a gamma variate of
shape (n - 1)/2, drawn by Marsaglia & Tsang's rejection (ACM Trans. Math. Softw. 26, 363, 2000), its shape raised by one
where it is below one. This is an exact step of a stochastic process of K alone, with the canonical distribution of K,
whatever h/tau is. Conserved, up to an oscillation of order h^2: U + K less the kinetic energy that the rescalings have
brought in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ase import units

from ..noise import normals, uniforms
from ..state import inlined
from ..steps import drift, hold, kick, kinetic_energy, scale_velocities
from .base import Ensemble, Kernels, needs_motion, positive

__all__ = ["Bussi", "bussi_factor", "gamma_variate", "rescale"]

_STREAM = 1
# p
_KT, _DAMPING = 0, 1
# q
_HEAT = 0


@inlined
def gamma_variate(shape, seed, step, index):
    """A gamma variate of scale one; uses the numbers ``index``, ``index + 1``, ... of the thermostat in this step."""
    raised = shape if shape >= 1.0 else shape + 1.0
    d = raised - 1.0 / 3.0
    c = 1.0 / math.sqrt(9.0 * d)
    value = 0.0
    while value == 0.0:
        x, _, _, _ = normals(seed, step, index, _STREAM)
        u, again, _, _ = uniforms(seed, step, index + 1, _STREAM)
        index += 2
        v = (1.0 + c * x) ** 3
        if v > 0.0 and math.log(u) < 0.5 * x * x + d * (1.0 - v + math.log(v)):
            value = d * v
            if shape < 1.0:
                value *= again ** (1.0 / shape)
    return value


@inlined
def bussi_factor(kinetic, n_dof, kT, c, seed, step):
    """``alpha`` of the module's text; 1 where nothing moves, because there is no direction to scale."""
    if kinetic <= 0.0:
        return 1.0
    k = 0.5 * kT / kinetic
    first, _, _, _ = normals(seed, step, 0, _STREAM)
    others = 0.0
    if n_dof > 1.0:
        others = 2.0 * gamma_variate(0.5 * (n_dof - 1.0), seed, step, 1)
    # the sum of the text, written as |sqrt(c) + sqrt((1 - c) k) R_1|^2 + ... so that it cannot become negative
    along = math.sqrt(c) + math.sqrt((1.0 - c) * k) * first
    alpha = math.sqrt(along * along + (1.0 - c) * k * others)
    return alpha if along >= 0.0 else -alpha


@inlined
def rescale(s, r, kT, c, step):
    """Rescale the velocities of a replica; returns the kinetic energy brought in."""
    kinetic = kinetic_energy(s, r)
    alpha = bussi_factor(kinetic, s.n_dof[r], kT, c, s.seed[r], step)
    scale_velocities(s, r, alpha)
    return (alpha * alpha - 1.0) * kinetic


@inlined
def _begin(s, r, h, p, q, step):
    kick(s, r, 0.5 * h)
    drift(s, r, h)
    hold(s, r)


@inlined
def _end(s, r, h, p, q, step):
    kick(s, r, 0.5 * h)
    q[_HEAT] += rescale(s, r, p[_KT], p[_DAMPING], step)


@inlined
def _extra(s, r, h, p, q):
    return -q[_HEAT]


@dataclass(frozen=True)
class Bussi(Ensemble):
    """Constant temperature with dynamics close to constant energy.

    temperature_K: target, K; tau_fs: relaxation time of the kinetic energy, fs.
    """

    temperature_K: float
    tau_fs: float

    name = "bussi"
    n_params = 2
    n_state = 1
    without_momentum = True

    def __post_init__(self):
        positive(self, "temperature_K", "tau_fs")

    def check(self, setup):
        super().check(setup)
        needs_motion(self, setup)

    def parameters(self, setup):
        return np.array([units.kB * self.temperature_K, math.exp(-setup.timestep / (self.tau_fs * units.fs))])

    @classmethod
    def kernels(cls) -> Kernels:
        return Kernels(_begin, _end, _extra)
