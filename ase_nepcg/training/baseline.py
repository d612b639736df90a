"""A wall at the distances that no training frame contains, so that beads cannot fall into what a model never learnt.

Forces tell nothing about distances that never occur, where the radial distribution function g(r) vanishes; there a
network may be attractive. The wall is part of the model file (the flexible form of ZBL, Ziegler, Biersack, Littmark
1985), one row for each pair of labels:

    V(r) = E (r_in / r) exp(-11 (r/r_in - 1)) s(r),   r_out = smallest distance in the frames,   r_in = 0.8 r_out

with the half cosine s from 1 at r_in to 0 at r_out, so that V and its slope vanish at r_out and everything that
occurs in the frames stays as it is. Below r_in, V rises as steeply as r^-12 does there, and diverges towards r = 0.
With the default E of 50 kT, V is 0.2 kT at 0.97 r_out, 6 kT at 0.9 r_out, 50 kT at r_in and 25 000 kT at r_in / 2:
pairs a little closer than any in the frames hardly notice it, thermal ones get no nearer than about 0.9 r_out, and a
time step that suits the forces of the frames suits the wall as well. A narrower wall would be stiffer, a wider one
would let the beads deeper into the unknown.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
from ase.units import kB

from ..errors import ModelError, NepCGError, closest
from ..hyper import RADII, check_number
from ..labels import get_types
from ..lint.shape import near_pairs
from ..model import ZBL, NEPModel

__all__ = ["BaselineError", "as_zbl", "repulsive_baseline"]

_WIDTH = 0.8  # r_in / r_out
_DECAY = 11.0  # of the exponential, times r_in: with 1/r the slope of r^-12
_HEIGHT = 50.0  # kT at r_in
_ROOM_TEMPERATURE = 300.0
_TOO_NEAR = 0.1  # Å


class BaselineError(NepCGError, ValueError):
    """A repulsion at short distances that cannot be made from what was given."""


def as_zbl(spec, frames=(), species=(), **settings) -> ZBL | None:
    """The repulsion at short distances as a model stores it.

    ``spec``: None, a :class:`ZBL`, (inner, outer) or (inner, outer, factor) in Å for the repulsion of nuclei, or
    ``"repulsive"`` for the wall that :func:`repulsive_baseline` makes of ``frames``, ``species`` and ``settings``.
    """
    if spec is None or isinstance(spec, ZBL):
        return spec
    if isinstance(spec, str):
        if spec != "repulsive":
            raise BaselineError(f"baseline: unknown name {spec!r}; {closest(spec, ['repulsive'])}")
        return repulsive_baseline(frames, species, **settings)
    if np.ndim(spec) != 1 or len(spec) not in (2, 3):
        raise BaselineError(
            f"baseline: expected None, 'repulsive', ZBL, (inner, outer) or (inner, outer, factor), got {spec!r}"
        )
    return ZBL(*spec)


def repulsive_baseline(
    frames, species, *, cutoff=(6.0, 4.0), energy_eV: float | None = None, temperature_K: float | None = None
) -> ZBL:
    """A wall for each pair of labels below the smallest distance of such a pair in ``frames`` (list of Atoms).

    ``cutoff``: of the model, as for :meth:`NEPModel.zeros`; pairs beyond the radial one count as never seen, and no
    wall begins beyond the angular one, where models stop looking for it. ``energy_eV``: height E at r_in, default 50 kT
    for ``temperature_K``, default the highest ``info["temperature"]`` of the frames, or 300 K.

    A pair of labels that is never seen gets the smallest distance of any pair with one of the two labels. This, and
    walls that begin at the angular cutoff, come with a ``UserWarning``. Raises :class:`BaselineError` for labels that
    are no chemical symbols, and for frames with sites at the same place.
    """
    frames = [frames] if hasattr(frames, "positions") else list(frames)
    beads = [label for label in species if label not in RADII]
    if beads:
        raise BaselineError(
            f"the repulsive baseline is stored as ZBL, which needs chemical symbols H to Pu as labels, got "
            f"{', '.join(map(repr, beads))}: rename them to symbols that do not occur otherwise, or train without it"
        )
    # of its table: Coulomb constant times both charges, and the inverse screening length
    probe = NEPModel.zeros(species, cutoff=cutoff, zbl=ZBL(0, 0, flexible=np.ones((_n_pairs(len(species)), 10))))
    charges, inverse_length = probe.zbl_pairs()[..., 2], probe.zbl_pairs()[..., 3]
    radial, angular = probe.pair_cutoffs()
    energy = _height(frames, energy_eV, temperature_K)

    distances = _smallest_distances(frames, probe.species, radial)
    sizes = distances.min(axis=1)
    outer = np.where(np.isfinite(distances), distances, np.minimum(sizes[:, None], sizes[None, :]))
    clipped = np.isfinite(outer) & (outer > angular)
    outer = np.where(np.isfinite(outer), np.minimum(outer, angular), 0.0)
    _tell(probe.species, distances, outer, clipped, radial)

    outer = np.floor(outer * 1e4) / 1e4  # so that single precision does not move it beyond the pair
    inner = _WIDTH * outer
    table = np.zeros((_n_pairs(probe.n_types), 10))
    for row, (a, b) in enumerate(zip(*np.triu_indices(probe.n_types), strict=True)):
        if outer[a, b] > 0:
            strength = energy * inner[a, b] * math.exp(_DECAY) / charges[a, b]
            table[row, :4] = inner[a, b], outer[a, b], strength, _DECAY / inner[a, b] / inverse_length[a, b]
    return ZBL(0, 0, flexible=table)


def _n_pairs(n_types: int) -> int:
    return n_types * (n_types + 1) // 2


def _height(frames, energy_eV, temperature_K) -> float:
    try:
        if energy_eV is None and temperature_K is None:
            known = [atoms.info["temperature"] for atoms in frames if atoms.info.get("temperature") is not None]
            temperature_K = max((check_number("temperature of a frame", t) for t in known), default=_ROOM_TEMPERATURE)
        if energy_eV is None:
            energy_eV = _HEIGHT * kB * check_number("temperature_K", temperature_K)
        energy = check_number("energy_eV", energy_eV)
    except ModelError as error:
        raise BaselineError(str(error)) from None
    if energy <= 0:
        raise BaselineError(f"energy_eV, temperature_K: expected numbers above 0, got a wall of {energy:g} eV")
    return energy


def _smallest_distances(frames, species, reach: np.ndarray) -> np.ndarray:
    """Smallest distance of each pair of labels, (T, T) in Å, inf where none is within ``reach`` (T, T)."""
    if not frames:
        raise BaselineError("the repulsive baseline needs frames, got none")
    smallest = np.full(reach.shape, np.inf)
    for index, atoms in enumerate(frames):
        types = get_types(atoms, species)
        # farther pairs change nothing any more
        limit = float(np.where(np.isfinite(smallest), smallest, reach).max())
        pbc = atoms.pbc & atoms.cell.array.any(axis=1)
        i, j, distance = near_pairs(atoms.positions, atoms.cell.array, pbc, limit)
        if len(distance) and distance.min() < _TOO_NEAR:
            k = int(np.argmin(distance))
            raise BaselineError(
                f"frame {index}: sites {i[k]} and {j[k]} are {distance[k]:.3g} Å apart, expected at least "
                f"{_TOO_NEAR:g} Å; no wall fits below"
            )
        np.minimum.at(smallest, (types[i], types[j]), distance)
    smallest[smallest > reach] = np.inf
    return smallest


def _tell(species, distances, outer, clipped, radial) -> None:
    remarks: dict[str, list[str]] = {}
    for a, b in zip(*np.triu_indices(len(species)), strict=True):
        pair, where = f"{species[a]}-{species[b]}", f"{outer[a, b]:.2f} Å"
        if outer[a, b] == 0:
            remarks.setdefault("no wall, since the frames never show one near any other bead", []).append(pair)
        elif np.isinf(distances[a, b]):
            remarks.setdefault(
                f"never within {radial[a, b]:g} Å of each other, wall from the distances of other pairs", []
            ).append(f"{pair} ({where})")
        elif clipped[a, b]:
            remarks.setdefault(
                "wall begins at the angular cutoff, though such pairs are never that close (a larger angular cutoff "
                "would let it begin there)",
                [],
            ).append(f"{pair} ({where} instead of {distances[a, b]:.2f} Å)")
    if remarks:
        text = "; ".join(f"{', '.join(pairs)}: {remark}" for remark, pairs in remarks.items())
        warnings.warn(f"repulsive baseline: {text}", UserWarning, stacklevel=3)
