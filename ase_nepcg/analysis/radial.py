"""Radial distribution functions and coordination numbers."""

from __future__ import annotations

from ..md import RDF
from ..md.observers.rdf import RDFResult
from .frames import observe

__all__ = ["rdf"]


def rdf(frames, r_max: float, bins: int = 200, *, pairs=None) -> RDFResult:
    """Radial distribution functions of a trajectory.

    ``frames``: as of :func:`~ase_nepcg.analysis.frames.read_frames`; ``r_max``: Å, may be larger than half the cell
    (all periodic images are counted, up to about 18 times the height of the cell); ``pairs``: pairs of labels, by
    default all. The result holds ``r``, ``g`` and ``coordination`` with errors, see
    :class:`~ase_nepcg.md.observers.rdf.RDFResult`; ``as_table()`` for a file. In a cell that is not periodic in all
    directions g refers to the density of the cell, vacuum included. During a run attach :class:`ase_nepcg.md.RDF`
    instead.
    """
    return observe(RDF(r_max, bins, None if pairs is None else tuple(map(tuple, pairs))), frames)
