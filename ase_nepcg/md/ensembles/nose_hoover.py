"""Constant temperature by a Nosé-Hoover chain (Martyna, Klein & Tuckerman, J. Chem. Phys. 97, 2635, 1992).

::

    dx/dt = v                        dxi_k/dt = eta_k                                k = 1 ... M
    dv/dt = f/m - eta_1 v            deta_k/dt = G_k - eta_(k+1) eta_k               eta_(M+1) = 0
    G_1 = (2 K - n kT) / Q_1         G_k = (Q_(k-1) eta_(k-1)^2 - kT) / Q_k          Q_1 = n kT tau^2,  Q_k = kT tau^2

n: degrees of freedom. Integrated by the Trotter factorisation of Martyna, Tuckerman, Tobias & Klein (Mol. Phys. 87,
1117, 1996): half a step of the chain, velocity Verlet, half a step of the chain, where the half step is made of
substeps with the Suzuki-Yoshida weights of fourth order. Conserved, up to an oscillation of order h^2::

    U + K + sum_k Q_k eta_k^2 / 2 + n kT xi_1 + kT (xi_2 + ... + xi_M)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ase import units

from ...errors import is_integer
from ..state import inlined
from ..steps import drift, hold, kick, kinetic_energy, scale_velocities
from .base import Ensemble, EnsembleError, Kernels, needs_motion, positive

__all__ = ["NoseHoover", "chain_energy", "chain_length", "half_chain", "thermostat"]

# substeps of half a step, before the weights
_SUBSTEPS = 2
# Suzuki-Yoshida, fourth order: outer, inner, outer
_OUTER = 1.0 / (2.0 - 2.0 ** (1.0 / 3.0))
_INNER = 1.0 - 2.0 * _OUTER
# p
_KT, _TAU, _LENGTH = 0, 1, 2
# q: xi_1 ... xi_M, eta_1 ... eta_M


@inlined
def _turn(k, twice_kinetic, n_dof, kT, tau, d, q, eta, last):
    """``eta`` of one thermostat, ``q[k]``, by half of ``d`` under the pull of its neighbours."""
    damping = 1.0 if k == last else math.exp(-0.25 * d * q[k + 1])
    if k == eta:
        pull = twice_kinetic / (n_dof * kT) - 1.0
    else:
        pull = (n_dof if k == eta + 1 else 1.0) * q[k - 1] * q[k - 1] * tau * tau - 1.0
    q[k] = (q[k] * damping + 0.5 * d * pull / (tau * tau)) * damping


@inlined
def half_chain(twice_kinetic, n_dof, kT, tau, h, q, at, length):
    """Half a time step ``h`` of a chain whose xi are ``q[at : at + length]`` and whose eta follow.

    ``twice_kinetic``: 2 K in eV of the ``n_dof`` degrees of freedom it acts on; returns the factor of their velocities.
    """
    eta = at + length
    last = eta + length - 1
    factor = 1.0
    for n in range(3 * _SUBSTEPS):
        d = 0.5 * h / _SUBSTEPS * (_INNER if n % 3 == 1 else _OUTER)
        # from the end of the chain to the system and back
        for k in range(last, eta - 1, -1):
            _turn(k, twice_kinetic * factor * factor, n_dof, kT, tau, d, q, eta, last)
        factor *= math.exp(-d * q[eta])
        for k in range(length):
            q[at + k] += d * q[eta + k]
        for k in range(eta, last + 1):
            _turn(k, twice_kinetic * factor * factor, n_dof, kT, tau, d, q, eta, last)
    return factor


@inlined
def chain_energy(n_dof, kT, tau, q, at, length):
    """``sum_k Q_k eta_k^2 / 2 + n kT xi_1 + kT (xi_2 + ...)`` in eV."""
    energy = 0.0
    for k in range(length):
        weight = n_dof if k == 0 else 1.0
        eta = q[at + length + k]
        energy += weight * kT * (0.5 * tau * tau * eta * eta + q[at + k])
    return energy


@inlined
def thermostat(s, r, kT, tau, h, q, at, length):
    """Half a time step of a chain that acts on all velocities of a replica."""
    factor = half_chain(2.0 * kinetic_energy(s, r), s.n_dof[r], kT, tau, h, q, at, length)
    scale_velocities(s, r, factor)


@inlined
def _begin(s, r, h, p, q, step):
    thermostat(s, r, p[_KT], p[_TAU], h, q, 0, int(p[_LENGTH]))
    kick(s, r, 0.5 * h)
    drift(s, r, h)
    hold(s, r)


@inlined
def _end(s, r, h, p, q, step):
    kick(s, r, 0.5 * h)
    thermostat(s, r, p[_KT], p[_TAU], h, q, 0, int(p[_LENGTH]))


@inlined
def _extra(s, r, h, p, q):
    return chain_energy(s.n_dof[r], p[_KT], p[_TAU], q, 0, int(p[_LENGTH]))


def chain_length(owner) -> None:
    """Raise EnsembleError unless ``owner.chain`` is a whole number from 2 to 10."""
    length = owner.chain
    if not is_integer(length) or not 2 <= length <= 10:
        raise EnsembleError(
            f"{type(owner).__name__}: chain must be a whole number of thermostats from 2 to 10, got {length!r}; "
            "3 is usual"
        )
    object.__setattr__(owner, "chain", int(length))


@dataclass(frozen=True)
class NoseHoover(Ensemble):
    """Constant temperature by deterministic, time-reversible equations.

    temperature_K: target, K; tau_fs: time scale of the thermostats, fs; chain: their number M.
    """

    temperature_K: float
    tau_fs: float
    chain: int = 3

    name = "nose_hoover"
    n_params = 3
    without_momentum = True

    def __post_init__(self):
        positive(self, "temperature_K", "tau_fs")
        chain_length(self)

    @property
    def n_state(self) -> int:
        return 2 * self.chain

    def check(self, setup):
        super().check(setup)
        needs_motion(self, setup)

    def parameters(self, setup):
        return np.array([units.kB * self.temperature_K, self.tau_fs * units.fs, self.chain])

    @classmethod
    def kernels(cls) -> Kernels:
        return Kernels(_begin, _end, _extra)
