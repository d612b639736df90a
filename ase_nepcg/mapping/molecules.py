"""Bond graph, molecules, and making molecules whole that the periodic boundaries cut.

Atoms are bonded if they are nearer than the sum of their covalent radii plus 0.4 Å (the rule of the Cambridge
Structural Database; radii of ``ase.data``), through periodic boundaries. Everything else follows from that graph:
molecules are its connected components, :func:`nearest_sites` counts its edges, and a :class:`Tree` spans each set of
atoms, so that a set is made whole by minimum-image steps from neighbour to neighbour. Positions, distances in Å.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from ase.data import atomic_numbers, covalent_radii
from ase.geometry import complete_cell, find_mic, minkowski_reduce
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components
from scipy.spatial import cKDTree

from ..errors import NepCGError

__all__ = [
    "IONIC",
    "TOLERANCE",
    "MappingError",
    "Tree",
    "bonded_pairs",
    "bonds_of",
    "check_positions",
    "find_bonds",
    "find_links",
    "grow_tree",
    "label_molecules",
    "lattice_of",
    "minimum_image",
    "nearest_sites",
]

TOLERANCE = 0.4
# ions of these elements touch their neighbours at less than the sum of the radii without being bonded to them
IONIC = ("Li", "Na", "K", "Rb", "Cs", "Fr", "Mg", "Ca", "Sr", "Ba", "Ra")


class MappingError(NepCGError, ValueError):
    """A mapping that contradicts itself, or that does not fit the atoms."""


def find_bonds(atoms, tolerance: float = TOLERANCE, unbonded=IONIC) -> np.ndarray:
    """Bonds of ``atoms``: pairs of different atoms (M, 2), i < j, sorted, each once.

    ``tolerance`` in Å is added to the sum of the covalent radii; elements in ``unbonded`` and atoms of unknown element
    (X) form no bonds. Raises :class:`MappingError` for non-finite positions and flat periodic cells.
    """
    return bonds_of(bonded_pairs(atoms, tolerance, unbonded)[0])


def bonds_of(pairs: np.ndarray) -> np.ndarray:
    """The pairs of different atoms in ``pairs`` (M, 2), as i < j, sorted, each once."""
    pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
    return np.unique(pairs, axis=0)


def bonded_pairs(atoms, tolerance: float = TOLERANCE, unbonded=IONIC) -> tuple[np.ndarray, np.ndarray]:
    """All bonds including those to several images: atoms (M, 2) with i <= j, and vectors r_j - r_i (M, 3) in Å.

    Arguments and errors as :func:`find_bonds`. An atom bonded to its own image appears as a pair i, i.
    """
    if not (np.isfinite(tolerance) and tolerance >= 0):
        raise MappingError(f"tolerance: expected a number of Å that is not negative, got {tolerance!r}")
    unknown = [symbol for symbol in unbonded if symbol not in atomic_numbers]
    if unknown:
        raise MappingError(f"unbonded: expected chemical symbols, got {', '.join(map(repr, unknown))}")
    positions = atoms.positions
    check_positions(positions)
    silent = np.isin(atoms.numbers, [0] + [atomic_numbers[symbol] for symbol in unbonded])
    reach = np.where(silent, 0.0, covalent_radii[atoms.numbers] + 0.5 * tolerance)
    bonding = np.flatnonzero(~silent)
    if len(bonding) == 0:
        return np.zeros((0, 2), dtype=np.int64), np.zeros((0, 3))
    longest = 2 * reach.max()

    lattice, inverse, pbc = lattice_of(atoms.cell.array, atoms.pbc)
    fractions = positions[bonding] @ inverse
    fractions[:, pbc] -= np.floor(fractions[:, pbc])
    home = cKDTree(fractions @ lattice)
    # images that reach into the cell: in units of the cell, `longest` is `margin` of the distance between its faces
    margin = longest * np.linalg.norm(inverse, axis=0)
    images, shifts = [], []
    for shift in product(*(range(-n, n + 1) for n in np.where(pbc, np.ceil(margin), 0).astype(int))):
        moved = fractions + shift
        near = np.flatnonzero(((moved > -margin) & (moved < 1 + margin) | ~pbc).all(axis=1))
        images.append(near)
        shifts.append(np.broadcast_to(shift, (len(near), 3)))
    images, shifts = np.concatenate(images), np.concatenate(shifts)
    ghosts = (fractions[images] + shifts) @ lattice
    found = home.sparse_distance_matrix(cKDTree(ghosts), longest, output_type="ndarray")
    i, ghost, distance = found["i"], found["j"], found["v"]
    j = images[ghost]
    itself = (i == j) & ~shifts[ghost].any(axis=1)
    # each pair is found from both sides; of an atom and its own image one side is kept
    once = (i < j) | ((i == j) & _is_positive(shifts[ghost]))
    keep = once & ~itself & (distance <= reach[bonding[i]] + reach[bonding[j]])
    i, j, ghost = i[keep], j[keep], ghost[keep]
    vectors = ghosts[ghost] - home.data[i]
    pairs = np.stack([bonding[i], bonding[j]], axis=1).astype(np.int64)
    order = np.lexsort((*vectors.T, *pairs.T[::-1]))
    return pairs[order], vectors[order]


def label_molecules(n_atoms: int, bonds) -> np.ndarray:
    """Molecule of each atom, (n_atoms,) int64, numbered in the order of their lowest atoms."""
    _, found = connected_components(_graph(n_atoms, np.asarray(bonds)), directed=False)
    _, first, index = np.unique(found, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[index].astype(np.int64)


def nearest_sites(site_of: np.ndarray, bonds: np.ndarray) -> np.ndarray:
    """The site nearest to each atom in number of bonds, (N,) int64; -1 where its molecule has none.

    ``site_of`` (N,): site of the atoms that belong to one, else -1. Of equally near sites the lowest counts.
    """
    anchor = site_of.copy()
    ends = np.concatenate([bonds, bonds[:, ::-1]])
    while True:
        ends = ends[anchor[ends[:, 1]] < 0]
        step = ends[anchor[ends[:, 0]] >= 0]
        if len(step) == 0:
            return anchor
        reached = np.full(len(anchor), len(anchor), dtype=anchor.dtype)
        np.minimum.at(reached, step[:, 1], anchor[step[:, 0]])
        new = np.unique(step[:, 1])
        anchor[new] = reached[new]


def minimum_image(vectors: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """The shortest of all periodic images of each vector, (..., 3); right for any cell, however skewed."""
    lattice, inverse, pbc = lattice_of(np.asarray(cell), pbc)
    if not pbc.any():
        return np.array(vectors, dtype=float)
    shift = np.rint(vectors @ inverse)
    shift[..., ~pbc] = 0
    short = vectors - shift @ lattice
    # no lattice vector is shorter than the smallest distance between opposite faces
    safe = 0.5 / np.linalg.norm(inverse, axis=0)[pbc].max()
    unsafe = np.einsum("...i,...i", short, short) >= safe**2
    if unsafe.any():
        reduced, _ = minkowski_reduce(lattice, pbc)
        nearest = find_mic(short[unsafe], reduced, pbc)[0]
        short[unsafe] += np.rint((nearest - short[unsafe]) @ inverse) @ lattice
    return short


@dataclass(frozen=True)
class Tree:
    """A spanning tree for each of several sets of atoms.

    ``parent`` (N,): the atom from which an atom is reached, itself for the root of a set. ``levels``: the atoms 1, 2, …
    steps from their roots.
    """

    parent: np.ndarray
    levels: tuple[np.ndarray, ...]

    def steps(self, positions, cell, pbc) -> np.ndarray:
        """Vector (N, 3) from the parent to the nearest image of each atom; zero for roots."""
        return minimum_image(positions - positions[self.parent], cell, pbc)

    def whole(self, positions, cell, pbc) -> np.ndarray:
        """Positions (N, 3) of sets that no boundary cuts: roots stay, others are the images next to their parents."""
        # lattice vectors are summed, so that an atom which needs none keeps its position to the last digit
        shifts = self.steps(positions, cell, pbc) - (positions - positions[self.parent])
        for atoms in self.levels:
            shifts[atoms] += shifts[self.parent[atoms]]
        return positions + shifts


def grow_tree(roots: np.ndarray, sets: np.ndarray, edges: np.ndarray) -> Tree:
    """Breadth-first trees from ``roots`` along ``edges`` (M, 2) within each set; ``sets`` (N,) is the set of each atom.

    Atoms that are not reached keep -1 as parent.
    """
    n = len(sets)
    inside = edges[sets[edges[:, 0]] == sets[edges[:, 1]]]
    start = np.stack([np.full(len(roots), n), roots], axis=1)  # one more node, from which all trees grow
    order, parent = breadth_first_order(_graph(n + 1, np.concatenate([inside, start])), n, directed=False)
    order, parent = order[1:], parent[:n].astype(np.int64)
    parent[parent < 0] = -1
    parent[roots] = roots
    parent.setflags(write=False)
    depth = np.zeros(n, dtype=np.int64)
    above = np.where(parent < 0, np.arange(n), parent)
    depth[above != np.arange(n)] = 1
    while (above != above[above]).any():
        depth += depth[above]
        above = above[above]
    order = order[np.argsort(depth[order], kind="stable")]
    bounds = np.flatnonzero(np.diff(depth[order])) + 1
    return Tree(parent, tuple(part.astype(np.int64) for part in np.split(order, bounds)[1:]))


def find_links(groups, positions, cell, pbc) -> np.ndarray:
    """Pairs of atoms (K, 2) that connect each group: a minimum spanning tree of its minimum-image distances.

    Prim's algorithm, for all groups of the same size at once.
    """
    links = [np.zeros((0, 2), dtype=np.int64)]
    sizes = np.array([len(group) for group in groups], dtype=np.int64)
    for size in np.unique(sizes[sizes > 1]):
        atoms = np.array([groups[k] for k in np.flatnonzero(sizes == size)])
        rows = np.arange(len(atoms))
        distance = np.full(atoms.shape, np.inf)
        nearest = np.zeros(atoms.shape, dtype=np.int64)
        outside = np.ones(atoms.shape, dtype=bool)
        last = np.zeros(len(atoms), dtype=np.int64)
        for _ in range(size - 1):
            outside[rows, last] = False
            vectors = positions[atoms] - positions[atoms[rows, last]][:, None]
            new = np.linalg.norm(minimum_image(vectors, cell, pbc), axis=-1)
            closer = new < distance
            distance[closer] = new[closer]
            nearest[closer] = np.broadcast_to(last[:, None], atoms.shape)[closer]
            last = np.argmin(np.where(outside, distance, np.inf), axis=1)
            links.append(np.stack([atoms[rows, nearest[rows, last]], atoms[rows, last]], axis=1))
    return np.concatenate(links)


def check_positions(positions: np.ndarray) -> None:
    """Raise :class:`MappingError` that names the first atom without a finite position."""
    if not np.isfinite(positions).all():
        i = int(np.argmin(np.isfinite(positions).all(axis=1)))
        raise MappingError(f"positions: expected finite numbers, got {positions[i].tolist()} for atom {i}")


def lattice_of(cell: np.ndarray, pbc) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Periodic cell vectors, completed by perpendicular unit vectors, with inverse and the directions that count.

    A vector of the cell that is not periodic takes no part: it need not be perpendicular to the others.
    """
    if not np.isfinite(cell).all():
        raise MappingError(f"cell: expected finite numbers, got {cell.tolist()}")
    pbc = cell.any(axis=1) & np.broadcast_to(pbc, 3)
    lattice = complete_cell(cell * pbc[:, None])
    lengths = np.linalg.norm(lattice, axis=1)
    if abs(np.linalg.det(lattice)) < 1e-9 * lengths.prod():
        raise MappingError(f"cell: expected independent periodic vectors, got a flat cell {cell.tolist()}")
    return lattice, np.linalg.inv(lattice), pbc


def _graph(n: int, edges: np.ndarray) -> csr_array:
    edges = edges.reshape(-1, 2).astype(np.int32)  # the only indices that scipy.sparse.csgraph takes in all versions
    return csr_array((np.ones(len(edges), dtype=np.int8), (edges[:, 0], edges[:, 1])), shape=(n, n))


def _is_positive(shifts: np.ndarray) -> np.ndarray:
    """True where the first entry that is not zero is positive: one of each pair of opposite shifts."""
    weights = np.array([1 << 42, 1 << 21, 1], dtype=np.int64)
    return shifts @ weights > 0
