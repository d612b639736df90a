"""The pieces from which the ensembles build a time step; each acts on replica ``r`` of a :class:`~.state.State`.

Held groups obey by projection: after every change of velocities the centre-of-mass velocity of each group is taken
off its sites, after every drift each group is shifted rigidly to where its centre was. The constraint is linear with
constant metric, so no Fixman term appears. Frozen sites (``w = 0``) have no velocity and feel no kick.
"""

from __future__ import annotations

import math

from ..potential.cache import kernel_jit
from .noise import fill_bits, three_normals
from .state import inlined

__all__ = [
    "centre_velocity",
    "draw_velocities",
    "drift",
    "hold",
    "kick",
    "kinetic_energy",
    "kinetic_tensor",
    "ornstein_uhlenbeck",
    "project",
    "remove_momentum",
    "scale_velocities",
    "volume",
]


@inlined
def project(s, r):
    """``v_i -= sum_j (m_j/M) v_j`` in each held group."""
    for g in range(s.group_first[r], s.group_first[r + 1]):
        begin, end = s.start[g], s.start[g + 1]
        vx = vy = vz = 0.0
        for k in range(begin, end):
            i = s.members[k]
            vx += s.share[k] * s.v[i, 0]
            vy += s.share[k] * s.v[i, 1]
            vz += s.share[k] * s.v[i, 2]
        for k in range(begin, end):
            i = s.members[k]
            s.v[i, 0] -= vx
            s.v[i, 1] -= vy
            s.v[i, 2] -= vz


@inlined
def hold(s, r):
    """Shift each held group rigidly so that its centre is where it is held."""
    for g in range(s.group_first[r], s.group_first[r + 1]):
        begin, end = s.start[g], s.start[g + 1]
        dx, dy, dz = s.held[g, 0], s.held[g, 1], s.held[g, 2]
        for k in range(begin, end):
            i = s.members[k]
            dx -= s.share[k] * s.x[i, 0]
            dy -= s.share[k] * s.x[i, 1]
            dz -= s.share[k] * s.x[i, 2]
        for k in range(begin, end):
            i = s.members[k]
            s.x[i, 0] += dx
            s.x[i, 1] += dy
            s.x[i, 2] += dz


@inlined
def kick(s, r, h):
    """``v += h f/m``, held groups stay without velocity."""
    for i in range(s.first[r], s.first[r + 1]):
        s.v[i, 0] += h * s.w[i] * s.f[i, 0]
        s.v[i, 1] += h * s.w[i] * s.f[i, 1]
        s.v[i, 2] += h * s.w[i] * s.f[i, 2]
    project(s, r)


@inlined
def drift(s, r, h):
    """``x += h v``; call :func:`hold` after the last drift of a step."""
    for i in range(s.first[r], s.first[r + 1]):
        s.x[i, 0] += h * s.v[i, 0]
        s.x[i, 1] += h * s.v[i, 1]
        s.x[i, 2] += h * s.v[i, 2]


@inlined
def ornstein_uhlenbeck(s, r, c, kT, step):
    """``v = c v + sqrt((1 - c^2) kT/m) xi``; the noise of a site depends on (seed, step, site) only."""
    noise, seed, begin, end = math.sqrt((1.0 - c * c) * kT), s.seed[r], s.first[r], s.first[r + 1]
    fill_bits(seed, step, s.bits, s.more_bits, begin, end)
    for i in range(begin, end):
        a, b, d = three_normals(s.bits[i], s.more_bits[i], seed, step, i - begin)
        size = noise * math.sqrt(s.w[i])
        s.v[i, 0] = c * s.v[i, 0] + size * a
        s.v[i, 1] = c * s.v[i, 1] + size * b
        s.v[i, 2] = c * s.v[i, 2] + size * d
    project(s, r)


@inlined
def scale_velocities(s, r, factor):
    """``v *= factor``."""
    for i in range(s.first[r], s.first[r + 1]):
        s.v[i, 0] *= factor
        s.v[i, 1] *= factor
        s.v[i, 2] *= factor


@inlined
def kinetic_energy(s, r):
    """``sum m v^2 / 2`` in eV."""
    twice = 0.0
    for i in range(s.first[r], s.first[r + 1]):
        twice += s.m[i] * (s.v[i, 0] * s.v[i, 0] + s.v[i, 1] * s.v[i, 1] + s.v[i, 2] * s.v[i, 2])
    return 0.5 * twice


@inlined
def kinetic_tensor(s, r):
    """``sum m v (x) v`` in eV: xx, yy, zz, yz, xz, xy."""
    xx = yy = zz = yz = xz = xy = 0.0
    for i in range(s.first[r], s.first[r + 1]):
        px, py, pz = s.m[i] * s.v[i, 0], s.m[i] * s.v[i, 1], s.m[i] * s.v[i, 2]
        xx += px * s.v[i, 0]
        yy += py * s.v[i, 1]
        zz += pz * s.v[i, 2]
        yz += py * s.v[i, 2]
        xz += px * s.v[i, 2]
        xy += px * s.v[i, 1]
    return xx, yy, zz, yz, xz, xy


@inlined
def centre_velocity(s, r):
    """Velocity of the centre of mass of a replica."""
    mass = vx = vy = vz = 0.0
    for i in range(s.first[r], s.first[r + 1]):
        mass += s.m[i]
        vx += s.m[i] * s.v[i, 0]
        vy += s.m[i] * s.v[i, 1]
        vz += s.m[i] * s.v[i, 2]
    return vx / mass, vy / mass, vz / mass


@inlined
def remove_momentum(s, r):
    """Take the velocity of the centre of mass off all sites; only where nothing is frozen or held."""
    vx, vy, vz = centre_velocity(s, r)
    for i in range(s.first[r], s.first[r + 1]):
        s.v[i, 0] -= vx
        s.v[i, 1] -= vy
        s.v[i, 2] -= vz


@inlined
def volume(s, r):
    """Volume of the cell in Å^3."""
    a = s.cell[r]
    return abs(
        a[0, 0] * (a[1, 1] * a[2, 2] - a[1, 2] * a[2, 1])
        + a[0, 1] * (a[1, 2] * a[2, 0] - a[1, 0] * a[2, 2])
        + a[0, 2] * (a[1, 0] * a[2, 1] - a[1, 1] * a[2, 0])
    )


@kernel_jit()
def draw_velocities(s, kT, step):
    """Maxwellian velocities of all replicas, relative to the centres of held groups."""
    for r in range(s.first.size - 1):
        ornstein_uhlenbeck(s, r, 0.0, kT, step)
