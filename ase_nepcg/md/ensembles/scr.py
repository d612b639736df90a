"""Stochastic cell rescaling with stochastic velocity rescaling: constant pressure of the first order.

Bernetti & Bussi, J. Chem. Phys. 153, 114107 (2020), isotropic and semi-isotropic; Del Tatto, Raiteri, Bernetti & Bussi,
Appl. Sci. 12, 1139 (2022), anisotropic. In the logarithmic strain e of :mod:`.strain` (dV/V = tr de), with the
instantaneous pressure, velocities scaled too, and steps that are deformations one after the other::

    de = (b / (3 tau_p)) (P - P0) dt + sqrt(2 kT b / (3 V tau_p)) dW

P = (sum m v (x) v + W)/V + kT/V (what the zero total momentum takes away); b: compressibility, which only sets the
relaxation time; dW: symmetric, independent along orthonormal strains, projected onto the coupling. Isotropic, this is
d ln V = (b/tau_p)(P - P0) dt + sqrt(2 kT b/(V tau_p)) dW of the first paper.

The step S of the strain is, as recommended there, one of y = sqrt(V), whose noise does not depend on V; the part of e
without trace follows with the geometric mean of the old and the new volume. With k axes that scale, m = b/(3 tau_p), G
of :mod:`.strain`, normal numbers xi, and dev: less its mean over the axes that scale::

    y' = y + A + s xi,             A = m h (k kT + 2 tr G) / (4 y),   s^2 = k kT m h / 2,      tr e = 2 ln(y'/y)
    dev e = m h dev G / (y y') + sqrt(2 kT m h / (y y')) dev xi

One step, time-reversible splitting (B kick, A drift, T the rescaling of :mod:`.bussi`)::

    B(h/2) A(h/2) T(h) S(h) A(h/2)  forces  B(h/2)

S takes the velocities of the middle and the virial of the last forces; on the way back it would take that of the new
forces. Conserved is the effective energy of the papers, whose change is kT times the logarithm of forward over backward
probability. With z = y y', A' and G' of the way back, c = 1/2 + (1 where the total momentum is zero)::

    U + K - heat of T + P0 V - c kT ln V + sum ((y' - y + A')^2 - (y' - y - A)^2) / (k m h)
                                         + sum z (|dev e + m h dev G'/z|^2 - |dev e - m h dev G/z|^2) / (4 m h)
"""

from __future__ import annotations

import math

from ..noise import normals
from ..state import inlined
from ..steps import drift, kick, volume
from .base import Kernels
from .bussi import rescale
from .strain import (
    AXES,
    HYDROSTATIC,
    KT,
    N_COMMON,
    REFERENCE,
    SHEAR,
    deform,
    deviatoric_work,
    driving_force,
    exponential,
    inverse,
    phi,
    project_strain,
    rotated,
    scaled,
    scaled_sum,
    square,
    stretch_velocities,
    unrotate,
)

__all__ = ["DAMPING", "KERNELS", "MOBILITY", "N_PARAMS", "N_STATE"]

_STREAM = 2
# p: m of the text in Å^3/eV per unit of time; exp(-h/tau) of T
MOBILITY, DAMPING, N_PARAMS = N_COMMON, N_COMMON + 1, N_COMMON + 2
# q: heat of T; work of the deviatoric pressure; the sums of the text
HEAT, WORK, NOISE = REFERENCE + 9, REFERENCE + 10, REFERENCE + 11
# q, within a step: dev e; y; the two squares of the way there
_STRAIN, _ROOT, _THERE, _THERE_DEV, N_STATE = NOISE + 1, NOISE + 7, NOISE + 8, NOISE + 9, NOISE + 10


@inlined
def missing(s, r):
    """Momenta per axis that are conserved: 0 or 1."""
    return float(s.first[r + 1] - s.first[r]) - s.n_dof[r] / 3.0


@inlined
def _split(a, p):
    """Trace of a matrix that the coupling allows, and what is left without it."""
    trace = a[0] + a[1] + a[2]
    return trace, scaled_sum(1.0, a, -trace / p[AXES], project_strain((1.0, 1.0, 1.0, 0.0, 0.0, 0.0), p))


@inlined
def _drifts(s, r, h, p, root):
    """A and m h dev G of the text, for the present velocities, virial and volume."""
    trace, dev = _split(driving_force(s, r, p, 0.0, missing(s, r) * p[KT]), p)
    size = p[MOBILITY] * h
    return 0.25 * size * (p[AXES] * p[KT] + 2.0 * trace) / root, scaled(size, dev)


@inlined
def _strain(s, r, h, p, q, step):
    """S of the text."""
    a, b, c, d = normals(s.seed[r], step, 0, _STREAM)
    e, f, _, _ = normals(s.seed[r], step, 1, _STREAM)
    # orthonormal strains have their entry off the diagonal twice
    half = math.sqrt(0.5)
    along, noise = _split(project_strain((a, b, c, half * d, half * e, half * f), p), p)
    size = p[KT] * p[MOBILITY] * h
    # the trace of the projected numbers has the variance k
    along *= math.sqrt(0.5 * size)
    before = volume(s, r)
    root = math.sqrt(before)
    push, pull = _drifts(s, r, h, p, root)
    new = root + push + along
    middle = root * new
    noise = scaled(math.sqrt(2.0 * size / middle), noise)
    dev = scaled_sum(1.0 / middle, pull, 1.0, noise)
    ones = project_strain((1.0, 1.0, 1.0, 0.0, 0.0, 0.0), p)
    strain = scaled_sum(1.0, dev, 2.0 * math.log(new / root) / p[AXES], ones)
    q[_ROOT], q[_THERE], q[_THERE_DEV] = root, along * along, square(noise)
    growth = exponential(strain, phi(strain))
    deform(s, r, growth, growth, 0.0)
    stretch_velocities(s, r, inverse(growth), growth, 0.0)
    work = deviatoric_work(dev, p)
    if p[SHEAR] > 0.0:
        dev = rotated(dev, unrotate(s, r, q))
    # the same on the way back
    q[WORK] += 0.25 * (before + volume(s, r)) * (work + deviatoric_work(dev, p))
    for k in range(6):
        q[_STRAIN + k] = dev[k]


@inlined
def _begin(s, r, h, p, q, step):
    kick(s, r, 0.5 * h)
    drift(s, r, 0.5 * h)
    q[HEAT] += rescale(s, r, p[KT], p[DAMPING], step)
    _strain(s, r, h, p, q, step)
    drift(s, r, 0.5 * h)


@inlined
def _end(s, r, h, p, q, step):
    # the velocities are still those after S
    k, old, new = _STRAIN, q[_ROOT], math.sqrt(volume(s, r))
    push, pull = _drifts(s, r, h, p, new)
    along = new - old + push
    middle = old * new
    dev = scaled_sum(1.0, (q[k], q[k + 1], q[k + 2], q[k + 3], q[k + 4], q[k + 5]), 1.0 / middle, pull)
    size = p[MOBILITY] * h
    q[NOISE] += (along * along - q[_THERE]) / (p[AXES] * size)
    q[NOISE] += 0.25 * middle * (square(dev) - q[_THERE_DEV]) / size
    kick(s, r, 0.5 * h)


@inlined
def _extra(s, r, h, p, q):
    v = volume(s, r)
    return p[HYDROSTATIC] * v - (0.5 + missing(s, r)) * p[KT] * math.log(v) + q[WORK] + q[NOISE] - q[HEAT]


KERNELS = Kernels(_begin, _end, _extra)
