"""Constant pressure and temperature: settings; the equations are in :mod:`.scr`, :mod:`.mttk` and :mod:`.strain`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from ase import units

from ...errors import closest, is_number
from . import mttk, scr
from .base import Ensemble, EnsembleError, Kernels, needs_motion, positive
from .strain import AXES, HYDROSTATIC, KT, N_COMMON, PROJECTOR, RANK, REFERENCE, SHEAR, TARGET

__all__ = ["NPT", "NPTbyMTTK", "NPTbySCR"]

# how many pressures a coupling takes besides a single one
_PRESSURES = {
    "isotropic": (1, "one number"),
    "semi-isotropic": (2, "one number, or two: in the plane, along the third axis"),
    "anisotropic": (3, "one number, or three: x, y, z"),
    "triclinic": (6, "one number, or six: xx, yy, zz, yz, xz, xy"),
}
_METHODS = ("scr", "mttk")
# the barostat needs this many time steps per tau_p_fs
_STEPS = 10
_AXES = "xyz"


@dataclass(frozen=True)
class NPT(Ensemble):
    """Constant temperature and pressure; frozen atoms and held beads are refused.

    temperature_K
        Target, K.
    pressure_GPa
        External pressure, positive = compressed, of the total stress (kinetic part included). One number; for
        "semi-isotropic" also (in-plane, third axis), for "anisotropic" (x, y, z), for "triclinic" six numbers in the
        order xx, yy, zz, yz, xz, xy. None in place of a number of "semi-isotropic" or "anisotropic": this axis keeps
        its length. Non-periodic axes have no pressure: for "anisotropic" they need None; for "semi-isotropic" the third
        axis, if not periodic, keeps its length and its number is left out or None.
    tau_fs, tau_p_fs
        Time scales of thermostat and barostat, fs; tau_p_fs at least ten time steps.
    coupling
        "isotropic": one scale factor. "semi-isotropic": for sheets and interfaces; two Cartesian axes have one scale
        factor, the third has another; the third is the non-periodic one, or z. The pressure in the plane is the mean of
        the two diagonal entries, with the volume of the *cell*: of a sheet it depends on the vacuum in the cell
        (pressure times height of the cell: tension of the sheet). "anisotropic": x, y and z have factors of their own.
        "triclinic": all components, see below.
    method
        "scr": stochastic cell rescaling (first order, no oscillations; the usual choice). "mttk":
        Martyna-Tobias-Klein (deterministic, oscillates about the target when started far from it; in small, nearly
        harmonic crystals the volume fluctuates wrongly unless tau_p_fs is long, about 1000 fs).
    compressibility_per_GPa
        Of the volume; 0.45 is water's. Only "scr" uses it, for the relaxation time alone: with an estimate k times the
        true one the volume relaxes in tau_p_fs / k. For a sheet it refers to the volume of the cell too.

    Axes are Cartesian ones: a cell that is not aligned with them is strained along x, y, z nevertheless. "triclinic"
    keeps the cell from turning: it is always the initial cell times a symmetric matrix.

    Positions are scaled about the origin, with the cell.
    """

    temperature_K: float
    pressure_GPa: float | tuple
    tau_fs: float
    tau_p_fs: float
    coupling: str = "isotropic"
    method: str = "scr"
    compressibility_per_GPa: float = 0.45

    name = "npt"
    changes_cell = True
    takes_constraints = False
    without_momentum = True
    # of the subclasses, one per method: the loop is compiled per class
    _method: ClassVar[str | None] = None

    def __new__(
        cls,
        temperature_K=None,
        pressure_GPa=None,
        tau_fs=None,
        tau_p_fs=None,
        coupling="isotropic",
        method="scr",
        compressibility_per_GPa=0.45,
    ):
        if cls is NPT:
            if method not in _METHODS:
                raise EnsembleError(f"NPT: there is no method {method!r}; {closest(str(method), _METHODS)}")
            cls = NPTbySCR if method == "scr" else NPTbyMTTK
        return object.__new__(cls)

    def __post_init__(self):
        if self.method != self._method:
            raise EnsembleError(
                f"{type(self).__name__} has the method {self._method!r}, got {self.method!r}: use NPT(...) instead"
            )
        positive(self, "temperature_K", "tau_fs", "tau_p_fs", "compressibility_per_GPa")
        if not isinstance(self.coupling, str) or self.coupling not in _PRESSURES:
            raise EnsembleError(
                f"NPT: there is no coupling {self.coupling!r}; {closest(str(self.coupling), _PRESSURES)}"
            )
        object.__setattr__(self, "pressure_GPa", self._pressures())

    def _pressures(self):
        """pressure_GPa as a float, or as a tuple of floats and None."""
        count, expected = _PRESSURES[self.coupling]
        given, single = self.pressure_GPa, np.ndim(self.pressure_GPa) == 0
        values = [given] if single else list(given)
        if not single and (len(values) != count or count == 1):
            raise EnsembleError(
                f"NPT: pressure_GPa of coupling {self.coupling!r} must be {expected}; got {len(values)}: {given!r}"
            )
        may_rest = not single and self.coupling in ("semi-isotropic", "anisotropic")
        if may_rest and all(value is None for value in values):
            raise EnsembleError("NPT: pressure_GPa is None for all axes, so no axis scales; use Bussi or NoseHoover")
        for value in values:
            if value is None and may_rest:
                continue
            if not is_number(value) or not math.isfinite(value):
                what = "finite numbers (None: this axis keeps its length)" if may_rest else "finite numbers"
                raise EnsembleError(f"NPT: pressure_GPa must be {expected}; {what}; got {given!r}")
        values = [None if value is None else float(value) for value in values]
        return values[0] if single else tuple(values)

    def check(self, setup):
        super().check(setup)
        needs_motion(self, setup)
        cell = np.asarray(setup.cell, float)
        if not abs(np.linalg.det(cell)) > 1e-9 * np.linalg.norm(cell, axis=1).prod():
            raise EnsembleError(
                f"NPT needs a cell with a volume, got {cell.tolist()}; a non-periodic axis needs a "
                "cell vector too (atoms.center(vacuum=..., axis=...)), because the pressure refers to this volume"
            )
        shortest = _STEPS * setup.timestep / units.fs
        if self.tau_p_fs < shortest * (1 - 1e-9):
            raise EnsembleError(
                f"NPT: tau_p_fs must be at least {_STEPS} time steps, here {shortest:g} fs, got {self.tau_p_fs:g}; a "
                "thousand steps or more are usual"
            )
        target = self._axis_pressures(setup.pbc)
        for axis in range(3):
            rests = target is not None and target[axis] is None
            if not setup.pbc[axis] and not rests:
                raise EnsembleError(
                    f"NPT: pressure on axis {_AXES[axis]}, which is not periodic; "
                    'use coupling="semi-isotropic" for a sheet, coupling="anisotropic" with None for this axis in '
                    "pressure_GPa, or a periodic cell"
                )
            if rests and not setup.pbc[axis]:
                others = [k for k in range(3) if k != axis and setup.pbc[k]]
                tilt = np.abs(cell[others, axis])
                if tilt.size and tilt.max() > 1e-6 * np.abs(cell).max():
                    raise EnsembleError(
                        f"NPT: axis {_AXES[axis]} is not periodic, but a periodic cell vector has a component of "
                        f"{tilt.max():.3g} Å along it; turn the atoms so that the periodic cell vectors are "
                        f"perpendicular to {_AXES[axis]}"
                    )

    def _third(self, pbc) -> int:
        """The axis of "semi-isotropic" that is not in the plane."""
        open_axes = [k for k in range(3) if not pbc[k]]
        if len(open_axes) > 1:
            names = " and ".join(_AXES[k] for k in open_axes)
            raise EnsembleError(
                f'NPT: coupling "semi-isotropic" needs two periodic axes for the plane, but {names} are not periodic; '
                'use coupling="anisotropic" with None for them in pressure_GPa'
            )
        return open_axes[0] if open_axes else 2

    def _axis_pressures(self, pbc) -> list | None:
        """Pressure of x, y and z in GPa, None where the axis keeps its length; None for triclinic coupling."""
        given = self.pressure_GPa
        if self.coupling == "triclinic":
            return None
        if self.coupling == "semi-isotropic":
            third = self._third(pbc)
            plane, along = given if isinstance(given, tuple) else (given, given if pbc[third] else None)
            return [along if axis == third else plane for axis in range(3)]
        return list(given) if isinstance(given, tuple) else [given] * 3

    def parameters(self, setup):
        p = np.zeros(self.n_params)
        p[KT] = units.kB * self.temperature_K
        axes = self._axis_pressures(setup.pbc)
        projector = np.eye(3)
        if axes is None:
            six = self.pressure_GPa if isinstance(self.pressure_GPa, tuple) else [self.pressure_GPa] * 3 + [0.0] * 3
            p[SHEAR], p[RANK] = 1.0, 6.0
        else:
            six = [0.0 if value is None else value for value in axes] + [0.0] * 3
            if self.coupling == "isotropic":
                groups = [[0, 1, 2]]
            elif self.coupling == "anisotropic":
                groups = [[0], [1], [2]]
            else:
                third = self._third(setup.pbc)
                groups = [[k for k in range(3) if k != third], [third]]
            projector[:] = 0.0
            for group in groups:
                if axes[group[0]] is not None:
                    projector[np.ix_(group, group)] = 1.0 / len(group)
                    p[RANK] += 1.0
        p[TARGET : TARGET + 6] = np.array(six) * units.GPa
        p[PROJECTOR : PROJECTOR + 9] = projector.ravel()
        scales = np.diag(projector) > 0
        p[AXES] = scales.sum()
        p[HYDROSTATIC] = p[TARGET : TARGET + 3][scales].mean()
        p[N_COMMON:] = self._method_parameters(setup, p)
        return p

    def _method_parameters(self, setup, p) -> list[float]:
        """The rest of ``p``."""
        raise NotImplementedError

    def initial(self, setup):
        q = np.zeros(self.n_state)
        q[REFERENCE : REFERENCE + 9] = np.linalg.inv(setup.cell).ravel()
        return q

    def todict(self):
        return super().todict() | {"name": NPT.name}


class NPTbySCR(NPT):
    """:class:`NPT` with method "scr"."""

    name = "npt_scr"
    n_params, n_state = scr.N_PARAMS, scr.N_STATE
    _method = "scr"

    def _method_parameters(self, setup, p):
        mobility = self.compressibility_per_GPa / units.GPa / (3.0 * self.tau_p_fs * units.fs)
        return [mobility, math.exp(-setup.timestep / (self.tau_fs * units.fs))]

    @classmethod
    def kernels(cls) -> Kernels:
        return scr.KERNELS


class NPTbyMTTK(NPT):
    """:class:`NPT` with method "mttk"."""

    name = "npt_mttk"
    n_params, n_state = mttk.N_PARAMS, mttk.N_STATE
    _method = "mttk"

    def _method_parameters(self, setup, p):
        tau, tau_p = self.tau_fs * units.fs, self.tau_p_fs * units.fs
        return [(self.n_dof(setup) + 3.0) * p[KT] * tau_p**2 / 3.0, tau, tau_p]

    @classmethod
    def kernels(cls) -> Kernels:
        return mttk.KERNELS
