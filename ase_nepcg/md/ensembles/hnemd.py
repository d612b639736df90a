"""Heat transport: homogeneous non-equilibrium MD (Evans, Phys. Lett. A 91, 457, 1982; many-body potentials: Fan, Dong,
Harju & Ala-Nissila, Phys. Rev. B 99, 064308, 2019).

Each site feels, besides the force of the potential, the driving force::

    D_i^b = sum_a F_e^a W_i^(ab)  [ + E_i F_e^b  with convective=True ]        E_i = U_i + m v_i^2 / 2
    F_i^ext = D_i - (1/N) sum_j D_j

so that ``sum_i D_i . v_i = F_e . J`` with the heat current ``J^a = sum_ib W_i^(ab) v_i^b [ + sum_i E_i v_i^a ]``
(W_i: virial of a site, first index separation, second force), and the momentum is conserved. To first order in the
field F_e, ``<J^a> = T V kappa^(ab) F_e^b``. The convective part matters where sites diffuse (bead fluids). The work of
the field is taken up by a Nosé-Hoover chain (:mod:`.nose_hoover`).

A step: half a chain, half a step of the convective force ``(m v^2 / 2) F_e`` less its mean, velocity Verlet with all
other forces, and the same in reverse order. The convective force depends on velocities, so it is integrated by the
midpoint rule and is no part of ``s.f``, which then depends on positions only and is the same when a restart evaluates
it anew. Conserved, not exactly but up to an oscillation of order h^2: what :mod:`.nose_hoover` conserves, less the work
of the driving force, summed kick by kick as ``h/2 sum_i F_i^ext . v_i`` with the mean of the velocities before and
after.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ase import units

from ..state import inlined
from ..steps import drift, kick, kinetic_energy
from .base import Ensemble, EnsembleError, Kernels, across_periodic, needs_motion, positive
from .nose_hoover import chain_energy, chain_length, thermostat

__all__ = ["HNEMD", "convect", "driving_force", "work_of_kick"]

# p
_KT, _TAU, _LENGTH, _FIELD, _CONVECTIVE = 0, 1, 2, 3, 6
# q: xi and eta of the chain, work of the driving force in eV


@inlined
def driving_force(i, w, energies, p):
    """``D_i`` of the module's text without the kinetic part of ``E_i``: three numbers, eV/Å.

    ``w``, ``energies``: virials and energies of the sites. (Functions that are called site by site take arrays and not
    the state, whose many references would be counted in every call.)
    """
    x, y, z = p[_FIELD], p[_FIELD + 1], p[_FIELD + 2]
    energy = energies[i] if p[_CONVECTIVE] != 0.0 else 0.0
    return (
        x * w[i, 0] + y * w[i, 3] + z * w[i, 6] + energy * x,
        x * w[i, 1] + y * w[i, 4] + z * w[i, 7] + energy * y,
        x * w[i, 2] + y * w[i, 5] + z * w[i, 8] + energy * z,
    )


@inlined
def _drive(s, r, h, p, q):
    begin, end = s.first[r], s.first[r + 1]
    mx = my = mz = 0.0
    for i in range(begin, end):
        x, y, z = driving_force(i, s.virials, s.energies, p)
        mx += x
        my += y
        mz += z
    mx, my, mz = mx / (end - begin), my / (end - begin), mz / (end - begin)
    for i in range(begin, end):
        x, y, z = driving_force(i, s.virials, s.energies, p)
        s.f[i, 0] += x - mx
        s.f[i, 1] += y - my
        s.f[i, 2] += z - mz


@inlined
def work_of_kick(s, r, h, p):
    """Work of the driving force, eV, in a kick by ``h`` that is about to be made."""
    begin, end = s.first[r], s.first[r + 1]
    work = mx = my = mz = ux = uy = uz = 0.0
    for i in range(begin, end):
        x, y, z = driving_force(i, s.virials, s.energies, p)
        half = 0.5 * h * s.w[i]
        vx, vy, vz = s.v[i, 0] + half * s.f[i, 0], s.v[i, 1] + half * s.f[i, 1], s.v[i, 2] + half * s.f[i, 2]
        work += x * vx + y * vy + z * vz
        mx += x
        my += y
        mz += z
        ux += vx
        uy += vy
        uz += vz
    return h * (work - (mx * ux + my * uy + mz * uz) / (end - begin))


@inlined
def _half_square(x, y, z, h, excess, p):
    """``u^2 / 2`` of the velocity ``u = v + h (v^2 / 2 - excess) F_e``."""
    a, b, c = p[_FIELD], p[_FIELD + 1], p[_FIELD + 2]
    now = 0.5 * (x * x + y * y + z * z)
    g = h * (now - excess)
    return now + g * (a * x + b * y + c * z) + 0.5 * g * g * (a * a + b * b + c * c)


@inlined
def convect(s, r, h, p):
    """Kick by ``h`` under the force ``(m v^2 / 2) F_e`` less its mean, by the midpoint rule; returns its work, eV."""
    begin, end = s.first[r], s.first[r + 1]
    before = kinetic_energy(s, r)
    mean = before / (end - begin)
    middle = 0.0
    for i in range(begin, end):
        middle += s.m[i] * _half_square(s.v[i, 0], s.v[i, 1], s.v[i, 2], 0.5 * h, mean * s.w[i], p)
    middle /= end - begin
    for i in range(begin, end):
        half_square = _half_square(s.v[i, 0], s.v[i, 1], s.v[i, 2], 0.5 * h, mean * s.w[i], p)
        kick_by = h * (half_square - middle * s.w[i])
        s.v[i, 0] += kick_by * p[_FIELD]
        s.v[i, 1] += kick_by * p[_FIELD + 1]
        s.v[i, 2] += kick_by * p[_FIELD + 2]
    return kinetic_energy(s, r) - before


@inlined
def _begin(s, r, h, p, q, step):
    length = int(p[_LENGTH])
    thermostat(s, r, p[_KT], p[_TAU], h, q, 0, length)
    if p[_CONVECTIVE] != 0.0:
        q[2 * length] += convect(s, r, 0.5 * h, p)
    q[2 * length] += work_of_kick(s, r, 0.5 * h, p)
    kick(s, r, 0.5 * h)
    drift(s, r, h)


@inlined
def _end(s, r, h, p, q, step):
    length = int(p[_LENGTH])
    q[2 * length] += work_of_kick(s, r, 0.5 * h, p)
    kick(s, r, 0.5 * h)
    if p[_CONVECTIVE] != 0.0:
        q[2 * length] += convect(s, r, 0.5 * h, p)
    thermostat(s, r, p[_KT], p[_TAU], h, q, 0, length)


@inlined
def _extra(s, r, h, p, q):
    length = int(p[_LENGTH])
    return chain_energy(s.n_dof[r], p[_KT], p[_TAU], q, 0, length) - q[2 * length]


@dataclass(frozen=True)
class HNEMD(Ensemble):
    """Constant temperature under a homogeneous field that drives heat.

    temperature_K: target, K; field_per_A: F_e, three numbers in 1/Å (small enough that kappa does not depend on it: run
    two fields); tau_fs, chain: as of :class:`~.nose_hoover.NoseHoover`; convective: with ``E_i F_e``, for fluids.
    """

    temperature_K: float
    field_per_A: tuple[float, float, float]
    tau_fs: float = 100.0
    chain: int = 3
    convective: bool = False

    name = "hnemd"
    n_params = 7
    per_site = True
    takes_constraints = False
    without_momentum = True

    def __post_init__(self):
        positive(self, "temperature_K", "tau_fs")
        chain_length(self)
        if not isinstance(self.convective, bool | np.bool_):
            raise EnsembleError(f"HNEMD: convective must be True or False, got {self.convective!r}")
        object.__setattr__(self, "convective", bool(self.convective))
        field = self.field_per_A
        if np.ndim(field) == 0:
            raise EnsembleError(
                f"HNEMD: field_per_A must be a vector, got {field!r}: give its three components in 1/Å, as in "
                f"field_per_A=({field!r}, 0, 0) for heat that flows along x"
            )
        try:
            values = tuple(float(component) for component in field)
        except (TypeError, ValueError):
            values = ()
        if len(values) != 3 or not all(math.isfinite(value) for value in values) or not any(values):
            raise EnsembleError(
                f"HNEMD: field_per_A must be three finite numbers in 1/Å, not all zero, got {field!r}; "
                "without a field use NoseHoover"
            )
        object.__setattr__(self, "field_per_A", values)

    @property
    def n_state(self) -> int:
        return 2 * self.chain + 1

    def check(self, setup):
        if setup.n_frozen or setup.n_held:
            what = "frozen atoms (FixAtoms)" if setup.n_frozen else "held beads (FixBeads)"
            raise EnsembleError(
                f"HNEMD drives all sites, and the heat current of a system with {what} has no meaning: remove the "
                "constraint"
            )
        super().check(setup)
        needs_motion(self, setup)
        if across_periodic(setup, self.field_per_A):
            raise EnsembleError(
                f"HNEMD: field_per_A={self.field_per_A} has a component along which the cell is not periodic (pbc "
                f"{tuple(bool(periodic) for periodic in setup.pbc)}) and heat cannot flow on: set it to 0"
            )

    def parameters(self, setup):
        settings = [units.kB * self.temperature_K, self.tau_fs * units.fs, self.chain]
        return np.array([*settings, *self.field_per_A, self.convective], float)

    @classmethod
    def kernels(cls) -> Kernels:
        return Kernels(_begin, _end, _extra, _drive)
