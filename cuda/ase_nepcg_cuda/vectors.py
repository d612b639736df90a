"""Device functions for the vector between two sites, from their places (fixed-point fractions of the box)."""

from __future__ import annotations

import functools
from typing import NamedTuple

from .device import device_function, number_type, wrapping_difference
from .precision import precision

__all__ = ["Vectors", "build_vectors"]


class Vectors(NamedTuple):
    """``place(u, i, stride)``: the three coordinates of place i; ``rows(to_vector, m)``: the nine numbers from m on;
    ``between(u, j, stride, here, rows)``: the vector (x, y, z), Å, from the place ``here`` to place j."""

    place: object
    rows: object
    between: object


@functools.cache
def build_vectors(name: str, fastmath: bool = False) -> Vectors:
    """The functions for one precision; all that a caller reads again and again stays in its registers."""
    kinds = precision(name)
    real, difference = number_type(kinds.real), wrapping_difference(kinds.fixed)
    inlined = device_function(fastmath=fastmath)

    @inlined
    def place(u, i, stride):
        return u[i], u[stride + i], u[2 * stride + i]

    @inlined
    def rows(to_vector, m):
        return (
            to_vector[m], to_vector[m + 1], to_vector[m + 2],
            to_vector[m + 3], to_vector[m + 4], to_vector[m + 5],
            to_vector[m + 6], to_vector[m + 7], to_vector[m + 8],
        )  # fmt: skip

    @inlined
    def between(u, j, stride, here, rows):
        dx = real(difference(u[j], here[0]))
        dy = real(difference(u[stride + j], here[1]))
        dz = real(difference(u[2 * stride + j], here[2]))
        return (
            dx * rows[0] + dy * rows[3] + dz * rows[6],
            dx * rows[1] + dy * rows[4] + dz * rows[7],
            dx * rows[2] + dy * rows[5] + dz * rows[8],
        )

    return Vectors(place, rows, between)
