"""Profiles of density and temperature along an axis of the cell.

The axis is divided into bins of the fractional coordinate, which is wrapped into the cell where it is periodic; a bin
is a slab parallel to the other two vectors, with the volume V/bins. Sites beyond the ends of a non-periodic axis are
not counted. The temperature of a bin is ``sum m v^2 / (3 k n)``, over the sites that are not frozen, scaled so that the
profile averages to the temperature of the run (constraints, total momentum); flow is not taken off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ase import units

from ...potential.cache import kernel_jit
from ...quantities import GRAMS_PER_CM3
from .base import (
    N_TYPES,
    OWN,
    Arena,
    Blocks,
    Observer,
    ObserverError,
    cell_volume,
    check_count,
    current_row,
    end_sample,
    info_of,
    sites_of,
    standard_errors,
)  # fmt: skip

__all__ = ["Profile", "ProfileResult"]

# head of ints: axis, bins, whether velocities count, table; of floats: degrees of freedom per moving site
_AXIS, _BINS, _VELOCITIES, _TABLE, _DOF = range(OWN, OWN + 5)
_ROWS = 64
_QUANTITIES = ("density", "temperature")
# amu/Å^3 in g/cm^3


@kernel_jit()
def observe_profile(s, r, step, ints, floats):
    """Add to each bin of each species: sites, mass [, moving sites, twice their kinetic energy]; volume, height."""
    axis, bins, parts = ints[_AXIS], ints[_BINS], 4 if ints[_VELOCITIES] else 2
    one, two = s.cell[r, (axis + 1) % 3], s.cell[r, (axis + 2) % 3]
    gx = one[1] * two[2] - one[2] * two[1]
    gy = one[2] * two[0] - one[0] * two[2]
    gz = one[0] * two[1] - one[1] * two[0]
    area = math.sqrt(gx * gx + gy * gy + gz * gz)
    volume = gx * s.cell[r, axis, 0] + gy * s.cell[r, axis, 1] + gz * s.cell[r, axis, 2]
    row = current_row(ints, _TABLE)
    for i in range(s.first[r], s.first[r + 1]):
        f = (s.x[i, 0] * gx + s.x[i, 1] * gy + s.x[i, 2] * gz) / volume
        if s.pbc[r, axis]:
            f -= np.floor(f)
            # rounding up of the smallest negative numbers
            f = 0.0 if f >= 1.0 else f
        if f >= 0.0 and f < 1.0:
            at = row + (s.types[i] * bins + min(int(f * bins), bins - 1)) * parts
            floats[at] += 1.0
            floats[at + 1] += s.m[i]
            if parts == 4 and s.w[i] > 0:
                floats[at + 2] += 1.0
                floats[at + 3] += s.m[i] * (s.v[i, 0] * s.v[i, 0] + s.v[i, 1] * s.v[i, 1] + s.v[i, 2] * s.v[i, 2])
    at = row + ints[N_TYPES] * bins * parts
    floats[at] += cell_volume(s, r)
    floats[at + 1] += abs(volume) / area
    end_sample(ints, floats, _TABLE)


@dataclass(frozen=True)
class ProfileResult:
    """Profiles of T species in bins along an axis, each with its standard error.

    ``fraction`` (bins,): middle of the bins in units of the cell; ``position_A``: the same times the height of the cell
    perpendicular to the other vectors; ``number_density`` (T, bins) in 1/Å^3; ``mass_density`` in g/cm^3;
    ``temperature_K`` (T, bins), NaN where no moving site was seen, None if not asked for; ``temperature_error``: from
    the fluctuations of kinetic energy and number in each bin.
    """

    species: tuple
    fraction: np.ndarray
    position_A: np.ndarray
    number_density: np.ndarray
    number_density_error: np.ndarray
    mass_density: np.ndarray
    mass_density_error: np.ndarray
    temperature_K: np.ndarray | None
    temperature_error: np.ndarray | None
    samples: int

    def as_table(self) -> tuple[tuple, np.ndarray]:
        header, columns = ["fraction", "position_A"], [self.fraction, self.position_A]
        for k, label in enumerate(self.species):
            quantities = [
                (f"number_density_{label}_A-3", self.number_density, self.number_density_error),
                (f"mass_density_{label}_g_cm3", self.mass_density, self.mass_density_error),
            ]
            if self.temperature_K is not None:
                quantities.append((f"temperature_{label}_K", self.temperature_K, self.temperature_error))
            for name, value, error in quantities:
                header += [name, f"{name}_error"]
                columns += [value[k], error[k]]
        return tuple(header), np.stack(columns, axis=1)


@dataclass(frozen=True)
class Profile(Observer):
    """Density, and temperature if wanted, along a vector of the cell.

    axis: 0, 1, 2 or "a", "b", "c"; quantity: "density", or "temperature" for both.
    """

    axis: int | str
    bins: int = 100
    quantity: str = "density"

    name = "profile"

    def __post_init__(self):
        axis = {"a": 0, "b": 1, "c": 2}.get(self.axis, self.axis) if isinstance(self.axis, str) else self.axis
        if axis not in (0, 1, 2) or isinstance(axis, bool):
            raise ObserverError(
                f'Profile: axis must be 0, 1, 2 or "a", "b", "c", a vector of the cell; got {self.axis!r}'
            )
        object.__setattr__(self, "axis", int(axis))
        object.__setattr__(self, "bins", check_count(self, "bins", self.bins))
        if self.quantity not in _QUANTITIES:
            raise ObserverError(f"Profile: quantity must be one of {', '.join(_QUANTITIES)}; got {self.quantity!r}")

    def allocate(self, state, replica, info):
        arena = Arena(state, replica, info)
        cell = state.cell[replica]
        if not abs(np.linalg.det(cell)) > 1e-10 * np.linalg.norm(cell, axis=1).prod():
            raise ObserverError(f"profile: expected a cell with three vectors and a volume, got {cell.tolist()}")
        velocities = self.quantity == "temperature"
        moving = int((state.w[sites_of(state, replica)] > 0).sum())
        if velocities and not (moving and state.n_dof[replica] > 0):
            raise ObserverError(f"profile: replica {replica} has no moving sites and therefore no temperature")
        arena.set(_AXIS, self.axis)
        arena.set(_BINS, self.bins)
        arena.set(_VELOCITIES, int(velocities))
        arena.add_table(_TABLE, _ROWS, len(info.species) * self.bins * (4 if velocities else 2) + 2)
        arena.add_floats(_DOF, np.array([state.n_dof[replica] / max(moving, 1)]))
        return arena.build()

    def kernel(self):
        return observe_profile

    def results(self, ints, floats) -> ProfileResult:
        info, blocks = info_of(ints, floats), Blocks(ints, floats, _TABLE)
        blocks.require(self, info.interval)
        n_types, bins, parts = len(info.species), int(ints[_BINS]), 4 if ints[_VELOCITIES] else 2
        shape = (-1, n_types, bins, parts)
        mean, each = blocks.mean, blocks.means
        volume, height = mean[-2:]
        values, blocks_of = mean[:-2].reshape(shape)[0], each[:, :-2].reshape(shape)
        # fluctuations of n/V and of a ratio to first order
        relative = each[:, -2, None, None] / volume - 1.0
        pools = [np.arange(k * bins, (k + 1) * bins) for k in range(n_types)]

        def error_of(blocks):
            return standard_errors(blocks.reshape(len(blocks), n_types * bins), pools)[0].reshape(n_types, bins)

        density = values[..., :2] * bins / volume
        errors = [error_of(blocks_of[..., k] * bins / volume - density[..., k] * relative) for k in range(2)]
        temperature = temperature_error = None
        if parts == 4:
            count = np.where(values[..., 2] > 0, values[..., 2], math.nan)
            unit = 1.0 / (units.kB * float(floats[ints[_DOF]]))
            temperature = unit * values[..., 3] / count
            temperature_error = error_of((unit * blocks_of[..., 3] - temperature * blocks_of[..., 2]) / count)
        fraction = (np.arange(bins) + 0.5) / bins
        return ProfileResult(
            species=info.species,
            fraction=fraction,
            position_A=fraction * height,
            number_density=density[..., 0],
            number_density_error=errors[0],
            mass_density=density[..., 1] * GRAMS_PER_CM3,
            mass_density_error=errors[1] * GRAMS_PER_CM3,
            temperature_K=temperature,
            temperature_error=temperature_error,
            samples=blocks.samples,
        )
