"""Constant pressure by Martyna, Tobias & Klein: deterministic, time-reversible, with an exactly conserved energy.

Martyna, Tobias & Klein, J. Chem. Phys. 101, 4177 (1994); a Nosé-Hoover chain (:mod:`.nose_hoover`) on the sites and one
on the barostat. The strain rate g is a symmetric matrix (:mod:`.strain`)::

    dx/dt = v + g x                                da/dt = g a   (cell vectors)
    dv/dt = f/m - g v - s tr(g) v - eta v          M dg/dt = G + s (2 K) 1 - M eta_b g,    M = (n + 3) kT tau_p^2 / 3

n degrees of freedom of N sites; s = (3 N + 3 - n) / (3 n). This is 1/n as in the paper, or 2/n where the total momentum
is zero: then the same distribution is sampled (p(V) ~ V^N for an ideal gas; with 1/n it would be V^(N-1)). G and "1"
are projected onto the coupling. Conserved, up to an oscillation of order h^2 (deviatoric work: see :mod:`.strain`)::

    U + K + P0 V + M g:g / 2 + energies of both chains

Integrated by the Trotter factorisation of Martyna, Tuckerman, Tobias & Klein (Mol. Phys. 87, 1117, 1996) and Tuckerman,
Alejandre, López-Rendón, Jochim & Martyna (J. Phys. A 39, 5629, 2006)::

    chains(h/2)  g(h/2)  v(h/2)  x and cell(h)  forces  v(h/2)  g(h/2)  chains(h/2)

with phi(a) = (exp(a) - 1)/a, b = (g + s tr(g)) h/2::

    x -> exp(g h) x + h phi(g h) v            v -> exp(-b) v + (h/2) phi(-b) f/m

All strains share one chain, as in the papers. Where little scatters (a few tens of sites, nearly harmonic) energy need
not be shared equally among them: a crystal of 32 sites at 30 K had twice the variance of volume with tau_p = 300 fs,
the right one with 1000 fs.
"""

from __future__ import annotations

import math

from ..state import inlined
from ..steps import volume
from .base import Kernels
from .nose_hoover import chain_energy, half_chain, thermostat
from .strain import (
    HYDROSTATIC,
    KT,
    N_COMMON,
    RANK,
    REFERENCE,
    SHEAR,
    deform,
    deviatoric_work,
    driving_force,
    exponential,
    phi,
    rotated,
    scaled,
    scaled_sum,
    square,
    stretch_velocities,
    unrotate,
)

__all__ = [
    "BAROSTAT_CHAIN",
    "CHAIN",
    "KERNELS",
    "LENGTH",
    "MASS",
    "N_PARAMS",
    "N_STATE",
    "RATE",
    "TAU",
    "TAU_P",
    "WORK",
]

# thermostats in each chain
LENGTH = 3
# p: M in eV times time^2; times of the thermostat and the barostat
MASS, TAU, TAU_P, N_PARAMS = N_COMMON, N_COMMON + 1, N_COMMON + 2, N_COMMON + 3
# q: work of the deviatoric pressure; g (6); chain of the sites, chain of the barostat (xi and eta of each)
WORK, RATE = REFERENCE + 9, REFERENCE + 10
CHAIN, BAROSTAT_CHAIN, N_STATE = RATE + 6, RATE + 6 + 2 * LENGTH, RATE + 6 + 4 * LENGTH


@inlined
def _rate(q):
    k = RATE
    return q[k], q[k + 1], q[k + 2], q[k + 3], q[k + 4], q[k + 5]


@inlined
def _set_rate(q, g):
    for k in range(6):
        q[RATE + k] = g[k]


@inlined
def share(s, r):
    """``s`` of the module's text."""
    n = s.n_dof[r]
    return (3.0 * (s.first[r + 1] - s.first[r]) + 3.0 - n) / (3.0 * n)


@inlined
def _chains(s, r, h, p, q):
    g = _rate(q)
    factor = half_chain(p[MASS] * square(g), p[RANK], p[KT], p[TAU_P], h, q, BAROSTAT_CHAIN, LENGTH)
    _set_rate(q, scaled(factor, g))
    thermostat(s, r, p[KT], p[TAU], h, q, CHAIN, LENGTH)


@inlined
def _kick_rate(s, r, h, p, q):
    force = driving_force(s, r, p, share(s, r), 0.0)
    _set_rate(q, scaled_sum(1.0, _rate(q), 0.5 * h / p[MASS], force))


@inlined
def _kick(s, r, h, q):
    g = _rate(q)
    more = share(s, r) * (g[0] + g[1] + g[2])
    b = scaled_sum(-0.5 * h, g, -0.5 * h * more, (1.0, 1.0, 1.0, 0.0, 0.0, 0.0))
    mean = phi(b)
    stretch_velocities(s, r, exponential(b, mean), mean, 0.5 * h)


@inlined
def _begin(s, r, h, p, q, step):
    _chains(s, r, h, p, q)
    _kick_rate(s, r, h, p, q)
    _kick(s, r, h, q)
    g = _rate(q)
    strain = scaled(h, g)
    mean = phi(strain)
    # the volume grows exponentially during the step
    trace = strain[0] + strain[1] + strain[2]
    growth = math.expm1(trace) / trace if trace != 0.0 else 1.0
    growth *= volume(s, r)
    deform(s, r, exponential(strain, mean), mean, h)
    if p[SHEAR] > 0.0:
        _set_rate(q, rotated(g, unrotate(s, r, q)))
    # the same on the way back
    q[WORK] += 0.5 * h * growth * (deviatoric_work(g, p) + deviatoric_work(_rate(q), p))


@inlined
def _end(s, r, h, p, q, step):
    _kick(s, r, h, q)
    _kick_rate(s, r, h, p, q)
    _chains(s, r, h, p, q)


@inlined
def _extra(s, r, h, p, q):
    energy = p[HYDROSTATIC] * volume(s, r) + q[WORK] + 0.5 * p[MASS] * square(_rate(q))
    energy += chain_energy(s.n_dof[r], p[KT], p[TAU], q, CHAIN, LENGTH)
    return energy + chain_energy(p[RANK], p[KT], p[TAU_P], q, BAROSTAT_CHAIN, LENGTH)


KERNELS = Kernels(_begin, _end, _extra)
