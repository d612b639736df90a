"""Crystallographic orbits of beads: which beads the space group of the atoms maps onto each other."""

from __future__ import annotations

import warnings
from numbers import Real

import numpy as np
from scipy.spatial import cKDTree

from .molecules import MappingError, lattice_of, minimum_image

__all__ = ["orbits_of", "split_labels"]

_MOST = 94  # labels: as many as elements that other codes know
_CHUNK = 200_000  # images of atoms at a time


def split_labels(mapping, atoms, symprec: float) -> np.ndarray:
    """Labels (n_sites,) with a number, from 1 in order of appearance, where beads of one label are not equivalent."""
    orbits = orbits_of(mapping, atoms, symprec)
    labels = mapping.labels.astype(object)
    for label in dict.fromkeys(mapping.labels.tolist()):
        beads = np.flatnonzero(mapping.labels == label)
        distinct = list(dict.fromkeys(orbits[beads].tolist()))
        if len(distinct) == 1:
            continue
        names = {orbit: f"{label}_{k}" for k, orbit in enumerate(distinct, start=1)}
        taken = set(names.values()) & set(mapping.labels.tolist())
        if taken:
            raise MappingError(
                f"split_by_symmetry: the label {label} would become {', '.join(sorted(taken))}, which is another label "
                "already; rename it first (with_species)"
            )
        labels[beads] = [names[orbit] for orbit in orbits[beads].tolist()]
    return labels


def orbits_of(mapping, atoms, symprec: float = 1e-3) -> np.ndarray:
    """Orbit of each bead, (n_sites,) int64, numbered in order of appearance.

    Two beads are in one orbit if they have the same label and a symmetry operation of all atoms (same elements and
    masses within ``symprec`` Å) maps the atoms of one onto the atoms of the other. Directions without periodic
    boundaries have no translations. Raises :class:`MappingError` if fewer than two directions are periodic, if no
    symmetry can be determined, and for more orbits than a model has species (disorder); ImportError without
    spglib.
    """
    try:
        import spglib
    except ImportError:
        raise ImportError('split_by_symmetry needs spglib: pip install "ase_nepcg[symmetry]"') from None
    if not (isinstance(symprec, Real) and 0 < symprec < 1):
        raise MappingError(f"symprec: expected a distance in Å, such as 1e-3, got {symprec!r}")
    bound = mapping.bind(atoms)
    lattice, _, pbc = lattice_of(atoms.cell.array, atoms.pbc)
    if pbc.sum() < 2:
        raise MappingError(
            f"split_by_symmetry: expected at least two periodic directions (a crystal or a layer), got {pbc.sum()}; "
            "choose labels with with_species"
        )
    heights = atoms.positions @ lattice.T
    for axis in np.flatnonzero(~pbc):  # vacuum, so that no operation leads beyond the layer
        lattice[axis] *= 2 * np.ptp(heights[:, axis]) + 10
    inverse = np.linalg.inv(lattice)
    fractions = atoms.positions @ inverse
    _, kinds = np.unique(np.stack([bound.numbers, bound.masses]), axis=1, return_inverse=True)
    kinds = kinds.reshape(-1)
    rotations, translations = _operations(spglib, (lattice, fractions, kinds + 1), symprec)

    tree = cKDTree(fractions % 1.0 % 1.0, boxsize=1.0)  # twice: -1e-17 % 1 is 1
    sizes = np.array([len(group) for group in bound.groups])
    orbits = np.full(len(sizes), -1, dtype=np.int64)
    count = 0
    for bead, group in enumerate(bound.groups):
        if orbits[bead] >= 0:
            continue
        for start in range(0, len(rotations), max(1, _CHUNK // len(group))):
            part = slice(start, start + max(1, _CHUNK // len(group)))
            images = fractions[group] @ rotations[part].transpose(0, 2, 1) + translations[part, None]
            _, atom = tree.query(images % 1.0 % 1.0)
            steps = minimum_image((images - fractions[atom]) @ lattice, lattice, True)
            same = np.linalg.norm(steps, axis=2) < 10 * symprec
            target = bound.site_of[atom]
            onto = same.all(axis=1) & (target == target[:, :1]).all(axis=1) & (target[:, 0] >= 0)
            reached = np.unique(target[onto, 0])
            reached = reached[(sizes[reached] == len(group)) & (bound.labels[reached] == bound.labels[bead])]
            orbits[reached] = count
        orbits[bead] = count
        count += 1
        if count > _MOST:
            raise MappingError(
                f"split_by_symmetry: more than {_MOST} orbits among {len(sizes)} beads; the structure is disordered or "
                f"symprec = {symprec:g} Å is too small: use the ideal crystal"
            )
    return orbits


def _operations(spglib, cell, symprec: float) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (n, 3, 3) and translations (n, 3) of the space group, in fractions of the cell."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that failures will be exceptions; both are handled
        try:
            found, reason = spglib.get_symmetry(cell, symprec=symprec), ""
        except Exception as error:  # its own classes, which differ between versions
            found, reason = None, f" ({error})"
    if found is None:
        raise MappingError(
            f"split_by_symmetry: spglib finds no symmetry with symprec = {symprec:g} Å{reason}; do atoms overlap?"
        )
    return found["rotations"], found["translations"]
