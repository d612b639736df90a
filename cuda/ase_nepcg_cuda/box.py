"""How a periodic cell becomes the box of the kernels: copies of thin cells, room around what is not periodic, bins."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ase_nepcg.potential.neighbors import complete_cell

from .precision import precision

__all__ = ["Box", "make_box"]

# a box may hold so many copies of its cell; beyond, it is a mistake (as the list of the CPU, which has a like limit)
_MOST_COPIES = 100_000
# bins of all replicas together, per site
_BINS_PER_SITE = 4


class Box(NamedTuple):
    """The boxes of R replicas, on the host; see ``lists.py`` for what they are for.

    copies (3,) of each cell along its vectors, the same for all replicas; to_box and to_vector (R, 3, 3), the latter
    times 2^-bits; offsets (copies, 3) fixed, by which the place of a copy is less; bins (R, 3), bin_first (R + 1,);
    free (R,): how far (Å) sites may move before images of those that are not periodic are seen, -1 for periodic cells.
    """

    copies: np.ndarray
    to_box: np.ndarray
    to_vector: np.ndarray
    offsets: np.ndarray
    bins: np.ndarray
    bin_first: np.ndarray
    free: np.ndarray


def make_box(positions, cell, pbc, first, reach: float, name: str) -> Box:
    """Boxes for cells (R, 3, 3) with pbc (R, 3) and list cutoff ``reach``; sites of r are first[r] ... first[r + 1].

    Raises ValueError for cells without volume, or so thin that they would have to be repeated too often.
    """
    kinds = precision(name)
    boxes, repeats, widths, free = [], [], [], []
    for r, (one, periodic) in enumerate(zip(cell, pbc, strict=True)):
        box = complete_cell(one, periodic)
        inverse = np.linalg.inv(box)
        width = 1 / np.linalg.norm(inverse, axis=0)
        free.append(-1.0)
        if not periodic.all():
            # the other vectors are of length 1 and at right angles to the rest: fractions are distances
            fractions = positions[first[r] : first[r + 1]] @ inverse
            # far enough that images are not seen, wherever in the box the sites are; twice, for them to move
            extent = np.ptp(fractions, axis=0) * width
            room = 2 * (extent + reach) + reach
            # of two sites, each may go half the way that is left between their images
            free[-1] = float(np.min((0.5 * (room - reach - extent))[~np.asarray(periodic, bool)]))
            scale = np.where(periodic, 1.0, room / width)
            box, width = box * scale[:, None], width * scale
        boxes.append(box)
        widths.append(width)
        repeats.append(np.maximum(1, np.ceil(2 * reach / width * (1 + 1e-6))).astype(int))
    repeat = np.max(repeats, axis=0)
    if not repeat.prod() <= _MOST_COPIES:
        raise ValueError(
            f"the cell {np.asarray(cell[0]).tolist()} is so small that it would have to be repeated "
            f"{'x'.join(map(str, repeat))} times for neighbours within {reach:g} Å; expected cell vectors in Å"
        )
    boxes = np.array(boxes) * repeat[:, None]
    widths = np.array(widths) * repeat
    sites = np.diff(first) * repeat.prod()
    bins = []
    for width, n in zip(widths, sites, strict=True):
        most = np.maximum(1, np.floor(width / reach * (1 - 1e-6)))
        # as cubic as they can be, and not many more than sites
        while most.prod() > _BINS_PER_SITE * n + 27:
            most = np.where(most == most.max(), np.maximum(1, most // 2), most)
        bins.append(most.astype(np.int64))
    modulus = 1 << kinds.bits
    triples = np.stack(np.meshgrid(*(range(k) for k in repeat), indexing="ij"), axis=-1).reshape(-1, 3)
    offsets = [[_signed(-round_half_up(int(k) * modulus, int(n)), modulus) for k, n in zip(t, repeat, strict=True)]
               for t in triples]  # fmt: skip
    return Box(
        copies=repeat,
        to_box=np.linalg.inv(boxes),
        to_vector=boxes / float(modulus),
        offsets=np.array(offsets, kinds.fixed),
        bins=np.array(bins, np.int64),
        bin_first=np.concatenate([[0], np.cumsum(np.prod(bins, axis=1))]).astype(np.int64),
        free=np.array(free),
    )


def round_half_up(a: int, b: int) -> int:
    """``a / b`` to the nearest integer, exactly; there are no halves here, as b is not a multiple of 2 a."""
    return (2 * a + b) // (2 * b)


def _signed(a: int, modulus: int) -> int:
    return (a + modulus // 2) % modulus - modulus // 2
