"""Operations and bytes of each kernel per bead and step, and the time that a GPU cannot go below.

    python -m ase_nepcg_cuda.roofline [--tflops 67] [--bandwidth 4.8]

A multiplication with addition counts as two operations, a square root, division or exponential as one. Bytes are those
that must go through device memory if every array is read and written once per kernel and neighbours' data are found in
a cache. The defaults are the data sheet's for an H200: 67 TFLOP/s in single precision, 4.8 TB/s.
"""

from __future__ import annotations

import argparse
import math
from typing import NamedTuple

from ase_nepcg.md.backends import SKIN
from ase_nepcg.potential.invariants import cubic_terms
from ase_nepcg.potential.layout import Shape

from .ptx import SHAPES

__all__ = ["CASES", "Case", "Work", "count", "floor"]

# a vector between neighbours: three differences, matrix times vector, square, root
_VECTOR = 3 + 15 + 5 + 1
# polynomials of six terms for sine and cosine, and their products
_CUTOFF = 2 * 10 + 8


class Case(NamedTuple):
    """A model shape with what it is used for: density in beads per Å^3, radial and angular cutoff in Å, types."""

    shape: str
    density: float
    radial: float
    angular: float
    types: int = 1


CASES = {
    "water CG, 6/4 Å": Case("water CG", 0.0334, 6.0, 4.0),
    "water CG, 6/5 Å": Case("water CG", 0.0334, 6.0, 5.0),
    "gold AACG, 6/5 Å": Case("gold AACG", 0.059, 6.0, 5.0, 2),
    "water AA, 8/4 Å": Case("water AA", 0.1002, 8.0, 4.0, 2),
}


class Work(NamedTuple):
    """Of one kernel, per bead and step."""

    operations: float
    bytes: float


def _neighbors(density: float, reach: float) -> float:
    return 4 / 3 * math.pi * reach**3 * density


def count(shape: Shape, case: Case, virial: bool = False) -> dict[str, Work]:
    """kernel -> :class:`Work` in mixed precision, for a liquid; the time between two lists is not counted."""
    nr, kr, na, ka = shape[:4]
    lm, t = shape.n_sums, case.types
    blocks = shape.l_max + len(shape.many_body)
    cubic = sum(len(cubic_terms(name)[1]) for name in shape.many_body if name != "q1111")
    d, n1 = shape.n_descriptor, shape.neurons
    listed, near = (_neighbors(case.density, case.radial + skin) for skin in (SKIN, 0.0))
    listed_angular, angular = (_neighbors(case.density, case.angular + skin) for skin in (SKIN, 0.0))
    z = (shape.l_max + 1) * (shape.l_max + 2) // 2
    basis = 5 * z + 2 * lm
    return {
        "place": Work(3 * 8, 24 + 12),
        "moved": Work(_VECTOR, 24),
        "sums": Work(
            listed * _VECTOR
            + near * (_CUTOFF + 4 + 4 * kr)
            + 2 * t * nr * kr
            + listed_angular * _VECTOR
            + angular * (_CUTOFF + 6 + 3 * ka + basis + 2 * ka * na + 2 * lm * na)
            + na * (3 * lm + 3 * cubic),
            12 + 4 * listed + 4 * listed_angular + 8 * na * lm + 4 * d,
        ),
        "network": Work(
            4 * d * n1 + 10 * n1 + 2 * t * nr * kr + na * (2 * lm + 8 * cubic),
            4 * d + 8 * na * blocks + 8 * na * lm + 4 * t * kr + 4,
        ),
        "partial forces": Work(
            listed_angular * _VECTOR
            + angular * (_CUTOFF + 12 + 9 * ka + basis + 4 * ka * na + 4 * lm * na + 9 * lm + 30),
            12 + 4 * listed_angular + 4 * na * lm + 12 * listed_angular,
        ),
        "gather": Work(
            listed * _VECTOR + near * (_CUTOFF + 8 + kr + 7 * kr) + 6 * listed_angular
            + virial * (18 * near + (_VECTOR + 24) * listed_angular),
            12 + 4 * listed + 8 * listed_angular + 4 * t * kr + 24 * listed_angular + 12 + 36 * virial,
        ),
        "integrate": Work(60, 12 + 24 + (24 * 5 + 8) + (24 * 3 + 8)),
    }  # fmt: skip


def floor(work: dict[str, Work], tflops: float, bandwidth: float) -> float:
    """Shortest time per bead and step in ns: of each kernel the longer one of arithmetic and memory."""
    return sum(max(one.operations / tflops, one.bytes / bandwidth) for one in work.values()) * 1e-3


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tflops", type=float, default=67.0, help="single precision, 1e12 operations per second")
    parser.add_argument("--bandwidth", type=float, default=4.8, help="of the memory, 1e12 bytes per second")
    given = parser.parse_args(arguments)
    for title, case in CASES.items():
        work = count(SHAPES[case.shape], case)
        print(f"\n{title}\n| kernel | operations | bytes | floor, ns | limit |\n|---|---|---|---|---|")
        for kernel, one in work.items():
            arithmetic, memory = one.operations / given.tflops * 1e-3, one.bytes / given.bandwidth * 1e-3
            limit = "arithmetic" if arithmetic > memory else "memory"
            print(f"| {kernel} | {one.operations:.0f} | {one.bytes:.0f} | {max(arithmetic, memory):.3f} | {limit} |")
        total = Work(*map(sum, zip(*work.values(), strict=True)))
        least = floor(work, given.tflops, given.bandwidth)
        print(f"| all | {total.operations:.0f} | {total.bytes:.0f} | {least:.3f} | {1 / least:.2f}e9 bead·step/s |")


if __name__ == "__main__":
    main()
