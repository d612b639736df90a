"""One time step of held-site dynamics in two halves, with the forces in between.

Langevin dynamics in the splitting B A O A | B (Leimkuhler & Matthews, Appl. Math. Res. Express 2013, 34)::

    B   v += (h/2) f / m
    A   x += (h/2) v
    O   v  = c v + sqrt((1 - c^2) kT / m) xi        c = exp(-gamma h), xi standard normal

samples positions at the target temperature to fourth order in ``h`` for harmonic forces. With ``c = 1`` the same steps
are velocity Verlet.

Sites are held by projection: after B and O the centre-of-mass velocity of each group is taken off its atoms, ``v_i -=
sum_j (m_j/M) v_j``, and after A each group is shifted rigidly to where its centre was. The constraint is linear with
constant metric, so the projected dynamics samples the conditional average exactly (no Fixman term).

===============  ==========  =====================================================
symbol           array       meaning
===============  ==========  =====================================================
x, v, f          (N, 3)      Å, Å per ASE time unit, eV/Å
1/m              ``w`` (N,)  inverse masses
m_i / M          ``share``   mass fractions, in the order of ``members``
R                ``held``    (n, 3) centres of the sites, Å
groups           ``start``   site I holds ``members[start[I]:start[I+1]]``
===============  ==========  =====================================================
"""

from __future__ import annotations

import math

import numba

from ..potential.cache import kernel_jit
from .noise import normals

__all__ = ["draw_velocities", "first_half", "hold", "project", "second_half", "step_begin"]

_inlined = numba.njit(
    error_model="numpy", fastmath={"contract"}, nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True
)


@_inlined
def project(v, start, members, share):
    """Take the centre-of-mass velocity of each group off its atoms."""
    for site in range(start.size - 1):
        begin, end = start[site], start[site + 1]
        vx = vy = vz = 0.0
        for k in range(begin, end):
            i = members[k]
            vx += share[k] * v[i, 0]
            vy += share[k] * v[i, 1]
            vz += share[k] * v[i, 2]
        for k in range(begin, end):
            i = members[k]
            v[i, 0] -= vx
            v[i, 1] -= vy
            v[i, 2] -= vz


@_inlined
def hold(x, start, members, share, held):
    """Shift each group rigidly so that its centre is ``held``."""
    for site in range(start.size - 1):
        begin, end = start[site], start[site + 1]
        dx, dy, dz = held[site, 0], held[site, 1], held[site, 2]
        for k in range(begin, end):
            i = members[k]
            dx -= share[k] * x[i, 0]
            dy -= share[k] * x[i, 1]
            dz -= share[k] * x[i, 2]
        for k in range(begin, end):
            i = members[k]
            x[i, 0] += dx
            x[i, 1] += dy
            x[i, 2] += dz


@_inlined
def _kick(v, f, w, h):
    for i in range(w.size):
        v[i, 0] += h * w[i] * f[i, 0]
        v[i, 1] += h * w[i] * f[i, 1]
        v[i, 2] += h * w[i] * f[i, 2]


@_inlined
def _drift(x, v, h):
    for i in range(x.shape[0]):
        x[i, 0] += h * v[i, 0]
        x[i, 1] += h * v[i, 1]
        x[i, 2] += h * v[i, 2]


@_inlined
def _ornstein_uhlenbeck(v, w, c, kT, seed, step):
    noise = math.sqrt((1.0 - c * c) * kT)
    for i in range(w.size):
        a, b, d, _ = normals(seed, step, i)
        s = noise * math.sqrt(w[i])
        v[i, 0] = c * v[i, 0] + s * a
        v[i, 1] = c * v[i, 1] + s * b
        v[i, 2] = c * v[i, 2] + s * d


@_inlined
def first_half(x, v, f, w, start, members, share, held, h, c, kT, seed, step):
    """B A O A: to the positions at which the next forces are needed. ``c = 1``: no thermostat."""
    _kick(v, f, w, 0.5 * h)
    project(v, start, members, share)
    if c < 1.0:
        _drift(x, v, 0.5 * h)
        _ornstein_uhlenbeck(v, w, c, kT, seed, step)
        project(v, start, members, share)
        _drift(x, v, 0.5 * h)
    else:
        _drift(x, v, h)
    hold(x, start, members, share, held)


@_inlined
def second_half(v, f, w, start, members, share, h):
    """The last B, with the new forces."""
    _kick(v, f, w, 0.5 * h)
    project(v, start, members, share)


@kernel_jit()
def step_begin(x, v, f, w, start, members, share, held, h, c, kT, seed, step):
    """:func:`first_half`, for callers outside the compiled loop."""
    first_half(x, v, f, w, start, members, share, held, h, c, kT, seed, step)


@kernel_jit()
def draw_velocities(v, w, start, members, share, kT, seed, step):
    """Maxwellian velocities relative to the centres of the groups."""
    _ornstein_uhlenbeck(v, w, 0.0, kT, seed, step)
    project(v, start, members, share)
