"""What a mapping needs to know of the atoms' bonds: the anchor of every atom, and trees that make molecules whole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase.data import covalent_radii

from .checks import check_range
from .molecules import (
    TOLERANCE,
    MappingError,
    Tree,
    check_positions,
    find_bonds,
    find_links,
    grow_tree,
    label_molecules,
    minimum_image,
    nearest_sites,
)

__all__ = ["Topology", "find_endless", "find_topology", "members_of", "pieces_of"]


@dataclass(frozen=True)
class Topology:
    """For N atoms of the elements ``numbers``: sites (-1: none) and anchors (N,), and trees that span what is anchored.

    Anchors from n_sites on are the ``n_implicit`` molecules without a site. ``lengths`` (N,): of the trees' steps when
    they were found, Å.
    """

    numbers: np.ndarray
    site_of: np.ndarray
    anchor_of: np.ndarray
    n_implicit: int
    tree: Tree
    lengths: np.ndarray

    def fits(self, atoms) -> bool:
        """True for the same elements if every step of the trees still leads to a neighbour."""
        if not np.array_equal(self.numbers, atoms.numbers):
            return False
        steps = self.tree.steps(atoms.positions, atoms.cell.array, atoms.pbc)
        return bool((np.einsum("ij,ij->i", steps, steps) <= (1.5 * self.lengths + 0.5) ** 2).all())


def find_topology(groups, bonds, atoms) -> Topology:
    """The topology of disjoint, non-empty groups in these atoms.

    ``bonds`` (M, 2): those that belong to the mapping, or None: all are found. Groups they do not connect are connected
    by other bonds that are found, else by a minimum spanning tree of distances. Raises :class:`MappingError` for bonds
    of the mapping that are broken, and for molecules without a site that are bonded to their own periodic image.
    """
    check_positions(atoms.positions)
    check_range(groups, len(atoms))
    positions, cell, pbc = atoms.positions, atoms.cell.array, atoms.pbc
    n_atoms, n_sites = len(atoms), len(groups)
    site_of = np.full(n_atoms, -1, dtype=np.int64)
    site_of[np.concatenate(groups)] = np.repeat(np.arange(n_sites), [len(group) for group in groups])
    known = find_bonds(atoms) if bonds is None else bonds
    anchor_of = nearest_sites(site_of, known)
    free = np.flatnonzero(anchor_of < 0)
    if len(free):
        _, first, index = np.unique(label_molecules(n_atoms, known)[free], return_index=True, return_inverse=True)
        anchor_of[free] = n_sites + index
        free = free[first]
    if bonds is not None:
        _check_unbroken(atoms, bonds, anchor_of)

    roots = np.concatenate([[group[0] for group in groups], free]).astype(np.int64)
    tree = grow_tree(roots, anchor_of, known)
    edges = known
    if (tree.parent < 0).any() and bonds is not None:
        edges = np.concatenate([known, find_bonds(atoms)])
        tree = grow_tree(roots, anchor_of, edges)
    if (tree.parent < 0).any():
        apart = [groups[k] for k in np.unique(anchor_of[tree.parent < 0])]
        edges = np.concatenate([edges, find_links(apart, positions, cell, pbc)])
        tree = grow_tree(roots, anchor_of, edges)
    if len(free):
        implicit = known[(anchor_of[known] >= n_sites).all(axis=1)]
        vectors = minimum_image(positions[implicit[:, 1]] - positions[implicit[:, 0]], cell, pbc)
        endless = find_endless(tree.whole(positions, cell, pbc), implicit, vectors)
        if endless is not None:
            raise MappingError(
                f"atom {endless} is in no bead, and its molecule has no site and is bonded to its own periodic image, "
                "so that it cannot be anchored at its centre of mass; give it a site"
            )
    lengths = np.linalg.norm(tree.steps(positions, cell, pbc), axis=1)
    return Topology(np.array(atoms.numbers, dtype=np.int64), site_of, anchor_of, len(free), tree, lengths)


def find_endless(whole: np.ndarray, pairs: np.ndarray, vectors: np.ndarray) -> int | None:
    """An atom of a molecule that is bonded to its own periodic image, or None.

    ``whole`` (N, 3): positions of whole molecules; ``pairs`` (M, 2) and ``vectors`` (M, 3): their bonds. A molecule
    without end has bonds that no finite piece of it can show.
    """
    if len(pairs) == 0:
        return None
    mismatch = np.abs(whole[pairs[:, 1]] - whole[pairs[:, 0]] - vectors).max(axis=1)
    return int(pairs[np.argmax(mismatch), 0]) if mismatch.max() > 0.1 else None


def members_of(set_of: np.ndarray) -> list[np.ndarray]:
    """Increasing atoms of each set, given the set (numbered from 0, none empty) of each atom."""
    order = np.argsort(set_of, kind="stable").astype(np.int64)
    return np.split(order, np.cumsum(np.bincount(set_of))[:-1])


def pieces_of(atoms, groups, tree: Tree):
    """The atoms of each group, whole, as ``Atoms`` without constraints; one after the other."""
    atoms = atoms.copy()
    atoms.set_constraint()
    atoms.positions = tree.whole(atoms.positions, atoms.cell.array, atoms.pbc)
    return (atoms[group] for group in groups)


def _check_unbroken(atoms, bonds: np.ndarray, anchor_of: np.ndarray) -> None:
    """Refuse atoms whose bonds inside a set are more than twice as long as what counts as a bond."""
    inside = bonds[anchor_of[bonds[:, 0]] == anchor_of[bonds[:, 1]]]
    inside = inside[atoms.numbers[inside].all(axis=1)]
    vectors = minimum_image(atoms.positions[inside[:, 1]] - atoms.positions[inside[:, 0]], atoms.cell.array, atoms.pbc)
    lengths = np.linalg.norm(vectors, axis=1)
    limits = 2 * (covalent_radii[atoms.numbers[inside]].sum(axis=1) + TOLERANCE)
    broken = lengths > limits
    if broken.any():
        worst = int(np.argmax(np.where(broken, lengths, 0)))
        i, j = inside[worst]
        raise MappingError(
            f"atoms: {np.count_nonzero(broken)} bonds of the mapping are broken; atoms {i} and {j} are "
            f"{lengths[worst]:.2f} Å apart (at most {limits[worst]:.2f}). These are other molecules, their atoms are "
            "in another order, or the bonds given are wrong: make the mapping anew from these atoms"
        )
