"""Rigid molecules beside held groups: which combinations are possible, and those that must be solved together.

Groups and rigid bonds inside them do not interfere: a rigid bond keeps the centre of its two atoms, a shift of a group
keeps its bonds. Bonds from a group to atoms in no group do, as when only the oxygens of rigid waters are held;
:class:`RigidBonds` then finds the Lagrange multipliers of bonds and centres together.
"""

from __future__ import annotations

import warnings

import numpy as np
from ase.geometry import find_mic

from .errors import NepCGError

__all__ = ["ConstraintError", "RigidBonds", "find_leaving", "require_whole"]

#: Å, for bond lengths and centres
TOLERANCE = 1e-12
MAX_ITERATIONS = 50


class ConstraintError(NepCGError, ValueError):
    """Groups that cannot be held: malformed, not fitting the atoms, or at odds with another constraint."""


def require_whole(triples: np.ndarray, atoms) -> None:
    """Refuse linear molecules (B, 3) cut by a periodic boundary: ASE then wraps central atoms, as if they had moved."""
    ends = atoms.positions[triples[:, [0, 1, 2]]] - atoms.positions[triples[:, [1, 2, 0]]]
    nearest, _ = find_mic(ends.reshape(-1, 3), atoms.cell, atoms.pbc)
    cut = np.abs(nearest.reshape(ends.shape) - ends).max(axis=(1, 2)) > 1e-6
    if cut.any():
        raise ConstraintError(
            f"FixLinearTriatomic molecule {triples[np.argmax(cut)].tolist()} is cut by a periodic boundary, where ASE "
            "moves central atoms by a cell vector: make molecules whole, and do not wrap during the run"
        )


def find_leaving(bonds: np.ndarray, linear: np.ndarray, group: np.ndarray, frozen: np.ndarray) -> np.ndarray:
    """Which of the rigid ``bonds`` (B, 2) belong to molecules that are partly in a group, (B,) bool.

    ``linear`` (L, 3): linear molecules, each inside one group or in none; ``group`` (N,): -1 for none; ``frozen`` (N,)
    bool. Raises :class:`ConstraintError` if rigid molecules connect two groups (the sum of forces is then not the mean
    force on a bead), contain frozen atoms and atoms of a group, or are partly in a group and contain linear molecules.
    """
    pairs = np.concatenate([bonds, linear[:, :2], linear[:, 1:]])
    ends = group[pairs]
    leaving = ends[:, 0] != ends[:, 1]
    if not leaving.any() and not frozen[pairs[(ends >= 0).any(axis=1)]].any():
        return np.zeros(len(bonds), dtype=bool)

    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(group), len(group)))
    n, molecule = connected_components(graph, directed=False)
    held = np.flatnonzero(group >= 0)
    lowest, highest = np.full(n, len(group)), np.full(n, -1)
    np.minimum.at(lowest, molecule[held], group[held])
    np.maximum.at(highest, molecule[held], group[held])
    if (lowest < highest).any():
        k = int(np.argmax(lowest < highest))
        raise ConstraintError(
            f"rigid bonds connect groups {lowest[k]} and {highest[k]}: the sum of the forces is then not the mean "
            "force on a bead. Make each rigid molecule part of one group, or leave its bonds flexible"
        )
    bonded = np.unique(pairs)
    stuck = bonded[frozen[bonded] & (highest[molecule[bonded]] >= 0)]
    if len(stuck):
        raise ConstraintError(
            f"atom {stuck[0]} is frozen and part of a molecule with rigid bonds in group "
            f"{highest[molecule[stuck[0]]]}: remove these bonds, or do not freeze single atoms of rigid molecules"
        )
    partly = np.zeros(n, dtype=bool)
    partly[molecule[pairs[leaving, 0]]] = True
    if partly[molecule[linear]].any():
        raise ConstraintError(
            "FixLinearTriatomic and FixBondLengths on the same molecule, partly in a group: put the whole molecule "
            "into one group"
        )
    return partly[molecule[bonds[:, 0]]]


class RigidBonds:
    """Bonds of fixed length and groups of fixed centre that share atoms.

    ``pairs`` (B, 2), ``lengths`` (B,) in Å; ``groups``: sequence of index arrays; ``atoms`` at the old positions, which
    define the directions of the constraint forces. All corrections are along the gradients of the constraints, weighted
    with the inverse masses, as in RATTLE (H. C. Andersen, J. Comput. Phys. 52, 24 (1983)); the multipliers solve one
    sparse linear system (momenta) or, by Newton's method, a few of them (positions).
    """

    def __init__(self, pairs: np.ndarray, lengths: np.ndarray, groups, atoms):
        self.pairs, self.lengths = pairs, lengths
        self.inverse = 1.0 / np.repeat(atoms.get_masses(), 3)
        # rows of the gradients: bonds, then x, y, z of each centre
        members = np.concatenate(groups)
        masses = atoms.get_masses()[members]
        group = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        rows = (3 * group[:, None] + np.arange(3)).ravel()
        order = np.argsort(rows, kind="stable")
        self.shares = np.repeat(masses / np.bincount(group, masses)[group], 3)[order]
        self.columns = np.concatenate([_coordinates(pairs.ravel()), _coordinates(members)[order]])
        self.row_ends = np.cumsum([0, *[6] * len(pairs), *np.bincount(rows)])
        self.separation = atoms.positions[pairs[:, 0]] - atoms.positions[pairs[:, 1]]
        self.vectors, _ = find_mic(self.separation, atoms.cell, atoms.pbc)
        self.gradients = self._gradients(self.vectors)

    def adjust_momenta(self, momenta: np.ndarray) -> None:
        """Remove from ``momenta`` (N, 3), in place, what changes bond lengths or moves centres."""
        rates = self.gradients @ (self.inverse * momenta.ravel())
        momenta -= (self.gradients.T @ self._solve(self.gradients, rates)).reshape(momenta.shape)

    def adjust_positions(self, new: np.ndarray) -> None:
        """Correct ``new`` (N, 3), in place, so that bonds have their lengths; centres are as they should be before."""
        start = new.copy()
        for _ in range(MAX_ITERATIONS):
            vectors = new[self.pairs[:, 0]] - new[self.pairs[:, 1]] - self.separation + self.vectors
            gradients = self._gradients(vectors)
            excess = gradients @ (new - start).ravel()
            excess[: len(self.pairs)] = ((vectors**2).sum(axis=1) - self.lengths**2) / 2.0
            worst = np.abs(excess).max()
            if worst <= TOLERANCE * max(1.0, self.lengths.min()):
                return
            multipliers = self._solve(gradients, excess)
            new -= (self.inverse * (self.gradients.T @ multipliers)).reshape(new.shape)
        raise ConstraintError(
            f"held groups and rigid bonds out of them: no solution in {MAX_ITERATIONS} iterations (error {worst:.1e} "
            "Å²): use a shorter time step, or start from positions in which the bonds have their lengths"
        )

    def _gradients(self, vectors: np.ndarray):
        """Gradients of half the squared bond lengths and of the centres, sparse (B + 3G, 3N)."""
        from scipy.sparse import csr_array

        values = np.concatenate([np.concatenate([vectors, -vectors], axis=1).ravel(), self.shares])
        return csr_array((values, self.columns, self.row_ends), shape=(len(self.row_ends) - 1, len(self.inverse)))

    def _solve(self, gradients, excess: np.ndarray) -> np.ndarray:
        """Lagrange multipliers that remove ``excess``: what each constraint is violated by."""
        from scipy.sparse import csr_array
        from scipy.sparse.linalg import MatrixRankWarning, spsolve

        weighted = gradients.data * self.inverse[gradients.indices]
        matrix = csr_array((weighted, gradients.indices, gradients.indptr), shape=gradients.shape) @ self.gradients.T
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MatrixRankWarning)
            multipliers = spsolve(matrix.tocsc(), excess)
        remainder = np.abs(matrix @ multipliers - excess).max()
        if not remainder <= 1e-9 * np.abs(excess).max():
            raise ConstraintError(
                "rigid bonds out of held groups: the bonds depend on each other, or positions or momenta are not "
                "finite; give only as many bonds as make a molecule rigid"
            )
        return multipliers


def _coordinates(atoms: np.ndarray) -> np.ndarray:
    """Indices of x, y, z of each atom."""
    return (3 * atoms[:, None] + np.arange(3)).ravel()
