"""Constant rate of deformation along one axis, for stress-strain curves: engineering strain, L(t) = L_0 (1 + rate t).

Positions and cell vectors follow the stretch of the axes, and velocities scale inversely (conjugate momenta of scaled
coordinates; Andersen, J. Chem. Phys. 72, 2384, 1980)::

    dx_a/dt = v_a + g_a x_a        dv_a/dt = f_a/m - g_a v_a        dL_a/dt = g_a L_a

g is rate/(1 + rate t) for the axis that is deformed and 0 for axes that are held. So the energy changes by what the
stress-strain curve says: d(U + K)/dt = sum_a g_a S_a, S_a = V sigma_a = - (W_aa + sum m v_a^2). (A remap of positions
alone would leave out the kinetic part of the stress: an ideal gas would not heat up when compressed.)

Axes that are free follow stochastic cell rescaling (Bernetti & Bussi, J. Chem. Phys. 153, 114107, 2020), each on its
own, as in the anisotropic scheme of Del Tatto, Raiteri, Bernetti & Bussi (Appl. Sci. 12, 1139, 2022), with the
compressibility b and with one kT/V for the total momentum that is zero::

    d ln L_a = (b / (3 tau_p)) (P_a - P_0) dt + sqrt(2 kT b / (3 V tau_p)) dw
    P_a = (W_aa + sum m v_a^2 + kT) / V

The temperature is kept by stochastic velocity rescaling (:mod:`.bussi`). A step: half a kick; half of each stretch;
drift; half of each stretch; forces; half a kick; thermostat. Free axes take the pressure of the last complete step.

Conserved: U + K less the heat of the thermostat and the work of all stretches (kinetic part exactly, virial part by the
trapezoidal rule). This holds up to an oscillation of order h^2 with held axes; with free ones, whose steps are of order
sqrt(h), it also walks at random by an amount of order h.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ase import units

from ...errors import is_number
from ..noise import normals
from ..state import inlined
from ..steps import kick, kinetic_energy, volume
from .base import Ensemble, EnsembleError, Kernels, across_periodic, needs_motion, positive
from .bussi import rescale

__all__ = ["Deform"]

_STREAM = 2
# a larger strain in one time step is a wrong unit
_LARGEST = 0.01
# tau_p_fs is at least this many time steps
_STEPS = 10
# p: kT or 0; exp(-h/tau); rate; external pressure, eV/Å^3; b/(3 tau_p); per axis: 0 held, 1 deformed, 2 free
_KT, _DAMPING, _RATE, _PRESSURE, _MOBILITY, _ROLE = 0, 1, 2, 3, 4, 5
# q: heat of the thermostat; work of the stretches; steps made; factors of the axes in both halves of this step
_HEAT, _WORK, _COUNT, _FIRST, _SECOND = 0, 1, 2, 3, 6


@inlined
def _factors(s, r, h, p, q, step):
    """Stretches of the coming step, into ``q``."""
    now = 1.0 + p[_RATE] * h * q[_COUNT]
    middle = 1.0 + p[_RATE] * h * (q[_COUNT] + 0.5)
    q[_COUNT] += 1.0
    after = 1.0 + p[_RATE] * h * q[_COUNT]
    if after <= 0.0:
        # nothing is left of the axis
        after = math.nan
    a, b, c, _ = normals(s.seed[r], step, 0, _STREAM)
    v = volume(s, r)
    for k in range(3):
        q[_FIRST + k] = q[_SECOND + k] = 1.0
        if p[_ROLE + k] == 1.0:
            q[_FIRST + k], q[_SECOND + k] = middle / now, after / middle
        elif p[_ROLE + k] == 2.0:
            kinetic = 0.0
            for i in range(s.first[r], s.first[r + 1]):
                kinetic += s.m[i] * s.v[i, k] * s.v[i, k]
            square = s.virial[r, k, k] + p[_KT] + kinetic
            noise = a if k == 0 else (b if k == 1 else c)
            strain = p[_MOBILITY] * h * (square / v - p[_PRESSURE])
            strain += math.sqrt(2.0 * p[_KT] * p[_MOBILITY] * h / v) * noise
            q[_FIRST + k] = q[_SECOND + k] = math.exp(0.5 * strain)


@inlined
def _begin(s, r, h, p, q, step):
    _factors(s, r, h, p, q, step)
    kick(s, r, 0.5 * h)
    ax, ay, az = q[_FIRST], q[_FIRST + 1], q[_FIRST + 2]
    bx, by, bz = q[_SECOND], q[_SECOND + 1], q[_SECOND + 2]
    before = kinetic_energy(s, r)
    for i in range(s.first[r], s.first[r + 1]):
        vx, vy, vz = s.v[i, 0] / ax, s.v[i, 1] / ay, s.v[i, 2] / az
        s.x[i, 0] = bx * (ax * s.x[i, 0] + h * vx)
        s.x[i, 1] = by * (ay * s.x[i, 1] + h * vy)
        s.x[i, 2] = bz * (az * s.x[i, 2] + h * vz)
        s.v[i, 0], s.v[i, 1], s.v[i, 2] = vx / bx, vy / by, vz / bz
    for k in range(3):
        s.cell[r, k, 0] *= ax * bx
        s.cell[r, k, 1] *= ay * by
        s.cell[r, k, 2] *= az * bz
    q[_WORK] += kinetic_energy(s, r) - before
    for k in range(3):
        q[_WORK] -= s.virial[r, k, k] * math.log(q[_FIRST + k])


@inlined
def _end(s, r, h, p, q, step):
    for k in range(3):
        q[_WORK] -= s.virial[r, k, k] * math.log(q[_SECOND + k])
    kick(s, r, 0.5 * h)
    if p[_KT] > 0.0:
        q[_HEAT] += rescale(s, r, p[_KT], p[_DAMPING], step)


@inlined
def _extra(s, r, h, p, q):
    return -q[_HEAT] - q[_WORK]


@dataclass(frozen=True)
class Deform(Ensemble):
    """Constant rate of engineering strain along one Cartesian axis.

    axis
        "x", "y" or "z". Cell vectors of any direction follow the deformation of space: their components along the axis
        are stretched.
    rate_per_ps
        Of the strain L/L_0 - 1, 1/ps; negative: compression. L_0 is the length at the start of the run.
    temperature_K, tau_fs
        As of :class:`~.bussi.Bussi`; without temperature_K there is no thermostat and the deformation is adiabatic.
    free
        Axes whose length follows ``pressure_GPa``, as in "yz" for uniaxial stress; they need temperature_K. Others are
        held (uniaxial strain).
    pressure_GPa, tau_p_fs, compressibility_per_GPa
        Of the free axes: external pressure (kinetic part included), relaxation time and the compressibility (of the
        volume; 0.45 is water's) to which it belongs: with an estimate k times the true one they relax in tau_p_fs / k.
    """

    axis: str
    rate_per_ps: float
    temperature_K: float | None = None
    tau_fs: float = 100.0
    free: str | None = None
    pressure_GPa: float = 0.0
    tau_p_fs: float = 1000.0
    compressibility_per_GPa: float = 0.45

    name = "deform"
    n_params = 8
    n_state = 9
    changes_cell = True
    takes_constraints = False
    without_momentum = True

    def __post_init__(self):
        if not isinstance(self.axis, str) or self.axis not in ("x", "y", "z"):
            raise EnsembleError(f'Deform: axis must be "x", "y" or "z", got {self.axis!r}')
        for name in ("rate_per_ps", "pressure_GPa"):
            value = getattr(self, name)
            if not is_number(value) or not math.isfinite(value):
                raise EnsembleError(f"Deform: {name} must be a finite number, got {value!r}")
            object.__setattr__(self, name, float(value))
        if self.rate_per_ps == 0:
            raise EnsembleError("Deform: rate_per_ps must not be 0; for a cell that rests use NVE, Bussi or NPT")
        positive(self, "tau_fs", "tau_p_fs", "compressibility_per_GPa")
        if self.temperature_K is not None:
            positive(self, "temperature_K")
        if self.free is None:
            return
        others = "xyz".replace(self.axis, "")
        allowed = (others[0], others[1], others, others[::-1])
        if not isinstance(self.free, str) or self.free not in allowed:
            raise EnsembleError(
                f"Deform: free must be None or name axes other than {self.axis!r}: "
                f"{', '.join(map(repr, allowed[:3]))}; got {self.free!r}"
            )
        if self.temperature_K is None:
            raise EnsembleError(f"Deform: free={self.free!r} needs temperature_K: the barostat exchanges heat")

    def check(self, setup):
        super().check(setup)
        needs_motion(self, setup)
        for axis in self.axis + (self.free or ""):
            if across_periodic(setup, np.eye(3)["xyz".index(axis)]):
                raise EnsembleError(
                    f"Deform: the cell is not periodic along {axis}, where a length has no meaning; pbc is "
                    f"{tuple(bool(periodic) for periodic in setup.pbc)}"
                )
        strain = self.rate_per_ps * setup.timestep / (1000 * units.fs)
        if abs(strain) > _LARGEST:
            raise EnsembleError(
                f"Deform: rate_per_ps={self.rate_per_ps:g} strains the cell by {strain:g} in one time step, at most "
                f"{_LARGEST:g} is possible; rates are given in 1/ps, usual ones are 1e-4 to 1e-2"
            )
        if self.free is None:
            return
        if not abs(np.linalg.det(np.asarray(setup.cell, float))) > 1e-6:
            raise EnsembleError(
                f"Deform: free={self.free!r} needs a cell with a volume, got {np.asarray(setup.cell).tolist()}"
            )
        shortest = _STEPS * setup.timestep / units.fs
        if self.tau_p_fs < shortest * (1 - 1e-9):
            raise EnsembleError(
                f"Deform: tau_p_fs must be at least {_STEPS} time steps, here {shortest:g} fs, got {self.tau_p_fs:g}"
            )

    def parameters(self, setup):
        ps = 1000 * units.fs
        roles = [1 if axis == self.axis else 2 if axis in (self.free or "") else 0 for axis in "xyz"]
        mobility = self.compressibility_per_GPa / units.GPa / (3 * self.tau_p_fs * units.fs)
        damping = math.exp(-setup.timestep / (self.tau_fs * units.fs))
        return np.array(
            [
                units.kB * (self.temperature_K or 0.0),
                damping,
                self.rate_per_ps / ps,
                self.pressure_GPa * units.GPa,
                mobility,
                *roles,
            ]
        )

    @classmethod
    def kernels(cls) -> Kernels:
        return Kernels(_begin, _end, _extra)
