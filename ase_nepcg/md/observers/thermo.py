"""Energies, temperature, stress and cell: averages with block errors.

Stress is that of ASE, positive under tension: ``sigma = -(W + sum m v (x) v) / V``, symmetrised; pressure is minus a
third of its trace.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ase import units

from ...potential.cache import kernel_jit
from ..state import inlined
from ..steps import kinetic_energy, kinetic_tensor
from .base import OWN, Arena, Blocks, Observer, cell_volume, current_row, end_sample, info_of, standard_errors

__all__ = ["COLUMNS", "Thermo", "ThermoResult", "fill_thermo", "thermo_row"]

COLUMNS = (
    "potential_eV", "kinetic_eV", "total_eV", "temperature_K", "pressure_GPa",
    "stress_xx_GPa", "stress_yy_GPa", "stress_zz_GPa", "stress_yz_GPa", "stress_xz_GPa", "stress_xy_GPa",
    "volume_A3", "a_A", "b_A", "c_A", "density_g_cm3",
)  # fmt: skip
_POOLS = [[0], [1], [2], [3], [4], [5, 6, 7], [8, 9, 10], [11], [12], [13], [14], [15]]
_ROWS = 256
_TABLE = OWN
_GPA, _KB = 1.0 / units.GPa, units.kB
# quantities.GRAMS_PER_CM3, but what is compiled must not depend on sources that its cache does not know
_DENSITY = 1e24 * units._amu * 1e3
# amu/Å^3 in g/cm^3


@inlined
def thermo_row(s, r, out, at):
    """The numbers named by ``COLUMNS`` into ``out[at : at + 16]``; NaN for what needs a volume or a degree of freedom
    that is not there. Needs ``s.energy`` and ``s.virial``."""
    kinetic = kinetic_energy(s, r)
    volume = cell_volume(s, r)
    xx, yy, zz, yz, xz, xy = kinetic_tensor(s, r)
    w = s.virial[r]
    unit = -_GPA / volume
    out[at] = s.energy[r]
    out[at + 1] = kinetic
    out[at + 2] = s.energy[r] + kinetic
    out[at + 3] = 2.0 * kinetic / (s.n_dof[r] * _KB) if s.n_dof[r] > 0 else math.nan
    out[at + 5] = unit * (w[0, 0] + xx)
    out[at + 6] = unit * (w[1, 1] + yy)
    out[at + 7] = unit * (w[2, 2] + zz)
    out[at + 8] = unit * (0.5 * (w[1, 2] + w[2, 1]) + yz)
    out[at + 9] = unit * (0.5 * (w[0, 2] + w[2, 0]) + xz)
    out[at + 10] = unit * (0.5 * (w[0, 1] + w[1, 0]) + xy)
    out[at + 4] = -(out[at + 5] + out[at + 6] + out[at + 7]) / 3.0
    out[at + 11] = volume
    for d in range(3):
        a = s.cell[r, d]
        out[at + 12 + d] = math.sqrt(a[0] * a[0] + a[1] * a[1] + a[2] * a[2])
    mass = 0.0
    for i in range(s.first[r], s.first[r + 1]):
        mass += s.m[i]
    out[at + 15] = _DENSITY * mass / volume


@kernel_jit()
def fill_thermo(s, r, out):
    """:func:`thermo_row` into ``out`` (16,), for callers outside the compiled loop."""
    thermo_row(s, r, out, 0)


@inlined
def _add_row(s, r, floats, row, work):
    thermo_row(s, r, floats, work)
    for c in range(16):
        floats[row + c] += floats[work + c]


@kernel_jit()
def observe_thermo(s, r, step, ints, floats):
    _add_row(s, r, floats, current_row(ints, _TABLE), ints[_TABLE + 1])
    end_sample(ints, floats, _TABLE)


@dataclass(frozen=True)
class ThermoResult:
    """Averages ``mean`` (16,) and their standard errors ``error`` of the quantities ``columns``, whose names end with
    their units; ``reliable``: False where the run is short compared with the slowest correlation, or too short for an
    error (then NaN). ``result["temperature_K"]`` is a pair (mean, error)."""

    columns: tuple
    mean: np.ndarray
    error: np.ndarray
    reliable: np.ndarray
    samples: int

    def __getitem__(self, name: str) -> tuple[float, float]:
        c = self.columns.index(name)
        return float(self.mean[c]), float(self.error[c])

    def as_table(self) -> tuple[tuple, np.ndarray]:
        header = tuple(name for column in self.columns for name in (column, f"{column}_error"))
        return header, np.stack([self.mean, self.error], axis=1).reshape(1, -1)


@dataclass(frozen=True)
class Thermo(Observer):
    """Energies, temperature, pressure and stress, volume, cell lengths and density."""

    name = "thermo"

    def allocate(self, state, replica, info):
        arena = Arena(state, replica, info)
        arena.add_table(_TABLE, _ROWS, len(COLUMNS))
        arena.add_floats(_TABLE + 1, len(COLUMNS))
        return arena.build()

    def kernel(self):
        return observe_thermo

    def results(self, ints, floats) -> ThermoResult:
        blocks = Blocks(ints, floats, _TABLE)
        blocks.require(self, info_of(ints, floats).interval)
        return ThermoResult(COLUMNS, blocks.mean, *standard_errors(blocks.means, _POOLS), blocks.samples)
