"""Checks of the linter on geometry: mirror images under one label, and inequivalent positions in a crystal.

Functions take the ``System`` of :mod:`ase_nepcg.lint` and return findings.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from ase.geometry import complete_cell
from scipy.spatial import cKDTree

from .findings import Finding, uncommon
from .graph_keys import mix

__all__ = ["check_handedness", "check_surroundings", "near_pairs", "nearest_distance"]

_FLAT = 0.6  # volume of the directions to four neighbours, times six; 3.1 for a tetrahedron
_NEIGHBORS = 40  # in an environment, on average
_FEATURES = 12
_ALIKE = 0.03  # of features, which are sums of bumps of height 0.5 to 1.5


# ---- handedness ---------------------------------------------------------------------------------------------------


def check_handedness(system) -> list[Finding]:
    """Beads of one label and bond graph that are mirror images or other stereoisomers of each other.

    Stereocentres are atoms with four different neighbours; their handedness is the sign of the volume these span, in
    the order of their keys. Handedness without such a centre (helices, axes) is not seen.
    """
    centre, hand = _stereocentres(system)
    if len(centre) == 0:
        return []
    site = system.bound.site_of[centre]
    atom = system.keys.atom[centre]
    n_sites = len(system.groups)
    own, mirrored = np.zeros(n_sites, dtype=np.uint64), np.zeros(n_sites, dtype=np.uint64)
    for total, sign in ((own, 1), (mirrored, -1)):
        np.add.at(total, site, mix(atom + (sign * hand + 1).astype(np.uint64)))
    findings = []
    chiral = np.unique(site)
    for label in np.unique(system.labels[chiral]).tolist():
        mine = chiral[system.labels[chiral] == label]
        for graph in np.unique(system.keys.group[mine]):
            sites = mine[system.keys.group[mine] == graph]
            odd, counts = uncommon(own[sites])
            if len(counts) < 2:
                continue
            images = (np.isin(mirrored[sites], own[sites]) & (mirrored[sites] != own[sites])).any()
            code, what = (
                ("mirror-images", "mirror images of each other")
                if images
                else ("stereoisomers", "stereoisomers, differing in the handedness of some centres")
            )
            findings.append(
                system.finding(
                    "warning",
                    code,
                    f"beads {label} include {what} ({' + '.join(map(str, counts))}): under "
                    "one label the model treats both alike; give each form its own label",
                    sites[odd],
                )
            )
    return findings


def _stereocentres(system) -> tuple[np.ndarray, np.ndarray]:
    """Atoms in groups with four different, not coplanar neighbours, and their handedness, -1 or 1."""
    site_of = system.bound.site_of
    neighbors = np.concatenate([system.pairs, system.pairs[:, ::-1]])
    vectors = np.concatenate([system.vectors, -system.vectors])
    wanted = ((system.degree == 4) & (site_of >= 0))[neighbors[:, 0]]
    neighbors, vectors = neighbors[wanted], vectors[wanted]
    if len(neighbors) == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    atom, other = neighbors.T
    key = np.where(site_of[atom] == site_of[other], system.keys.atom[other], system.keys.outside[other])
    order = np.lexsort((key, atom))
    atom, key, vectors = atom[order][::4], key[order].reshape(-1, 4), vectors[order].reshape(-1, 4, 3)
    directions = vectors / np.linalg.norm(vectors, axis=2, keepdims=True)
    volume = np.linalg.det(directions[:, 1:] - directions[:, :1])
    good = (np.diff(key, axis=1) != 0).all(axis=1) & (np.abs(volume) > _FLAT)
    return atom[good], np.sign(volume[good])


# ---- surroundings -------------------------------------------------------------------------------------------------


def check_surroundings(system) -> list[Finding]:
    """Beads of one label on inequivalent positions of a crystal.

    Only for crystals at their symmetric positions, in which most atoms have equivalent ones; in liquids and thermally
    moved crystals no two surroundings are equal. Surroundings are compared by distances.
    """
    atoms = system.atoms
    cell, pbc = atoms.cell.array, atoms.pbc & atoms.cell.any(axis=1)
    labels = system.labels
    shared = [label for label in np.unique(labels[system.carries]) if np.count_nonzero(labels == label) > 1]
    if not shared or not pbc.any() or _disordered(system):
        return []
    classes = _classes(atoms.positions, atoms.numbers, cell, pbc)
    if classes is None or classes.max() + 1 > len(atoms) / 2:
        return []
    members = np.flatnonzero((system.bound.anchor_of < len(labels)) & ~system.left_out)
    inner = np.zeros(len(labels), dtype=np.uint64)
    np.add.at(inner, system.bound.anchor_of[members], mix(classes[members].astype(np.uint64)))
    outer = _classes(system.centres, np.unique(labels, return_inverse=True)[1], cell, pbc)
    findings = []
    for label in shared:
        sites = np.flatnonzero((labels == label) & system.carries)
        odd, counts = uncommon(inner[sites])
        if len(counts) < 2:
            continue
        # do the bead positions alone show which is which?
        told = outer is not None and len(np.unique(outer[sites])) >= len(counts)
        split = " + ".join(map(str, counts[:6])) + " + …" * (len(counts) > 6)
        advice = "label them by mapping.split_by_symmetry(atoms)"
        findings.append(
            system.finding(
                "note" if told else "warning",
                "inequivalent-beads",
                f"beads {label} sit on {len(counts)} inequivalent positions of a crystal ({split}), which "
                + (
                    f"the model can tell by the positions of the beads; if forces stay inaccurate, {advice}"
                    if told
                    else f"the model cannot tell by the positions of the beads: {advice}"
                ),
                sites[odd],
            )
        )
    return findings


def _disordered(system) -> bool:
    """True if bond lengths already show that this is no crystal at its symmetric positions; saves time."""
    if len(system.pairs) == 0:
        return False
    numbers = np.sort(system.atoms.numbers[system.pairs], axis=1)
    lengths = np.linalg.norm(system.vectors, axis=1)
    order = np.lexsort((lengths, *numbers.T))
    lengths, numbers = lengths[order], numbers[order]
    new = (np.diff(numbers, axis=0) != 0).any(axis=1) | (np.diff(lengths) > 0.01)
    start = np.concatenate([[0], np.flatnonzero(new) + 1])
    stop = np.append(start[1:], len(lengths))
    return bool((lengths[stop - 1] - lengths[start]).max() > 0.05)


def _classes(points: np.ndarray, kinds: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray | None:
    """Class of each point (n,): those of one kind with equal surroundings. None where no clear classes exist.

    Surroundings are smooth functions of the distances to the neighbours, so that rounded coordinates do not matter.
    """
    reach = _reach(points, cell, pbc, _NEIGHBORS)
    i, j, distance = near_pairs(points, cell, pbc, reach)
    _, kinds = np.unique(kinds, return_inverse=True)
    kinds = kinds.reshape(-1)
    weight = (0.5 + (0.5 + 0.6180339887 * kinds) % 1)[j] * (0.5 + 0.5 * np.cos(np.pi * distance / reach))
    width = reach / _FEATURES
    features = [
        np.bincount(i, weights=weight * np.exp(-(((distance - k * width) / width) ** 2)), minlength=len(points))
        for k in range(_FEATURES)
    ]
    classes, spread = _split(features, kinds, _ALIKE)
    # classes are clear if the gaps between them are wide compared with the classes themselves
    clear = _split(features, kinds, max(_ALIKE, 3 * spread))[0].max() == classes.max()
    return classes if clear else None


def _split(features, kinds: np.ndarray, gap: float) -> tuple[np.ndarray, float]:
    """Classes (n,) of points that gaps in no feature separate, and the largest extent of a class in any feature."""
    classes = kinds
    for feature in features:
        order = np.lexsort((feature, classes))
        new = (np.diff(classes[order]) != 0) | (np.diff(feature[order]) > gap)
        classes = np.empty_like(order)
        classes[order] = np.concatenate([[0], np.cumsum(new)])
    spread = 0.0
    for feature in features:
        low, high = np.full(classes.max() + 1, np.inf), np.full(classes.max() + 1, -np.inf)
        np.minimum.at(low, classes, feature)
        np.maximum.at(high, classes, feature)
        spread = max(spread, float((high - low).max()))
    return classes, spread


def near_pairs(points: np.ndarray, cell: np.ndarray, pbc: np.ndarray, reach: float):
    """Points i, j (P,) and distances (P,) in Å of all pairs at most ``reach`` apart, each from both of its ends.

    All periodic images count, those of the point itself too; ``pbc`` (3,) for cell vectors that are not zero.
    """
    lattice = complete_cell(np.where(pbc[:, None], cell, 0.0))
    inverse = np.linalg.inv(lattice)
    fractions = points @ inverse
    fractions[:, pbc] -= np.floor(fractions[:, pbc])
    # images that reach into the cell; faces are 1 / |column of the inverse| apart
    margin = reach * np.linalg.norm(inverse, axis=0)
    images, shifts = [], []
    for shift in product(*(range(-n, n + 1) for n in np.where(pbc, np.ceil(margin), 0).astype(int))):
        moved = fractions + shift
        near = np.flatnonzero(((moved > -margin) & (moved < 1 + margin) | ~pbc).all(axis=1))
        images.append(near)
        shifts.append(np.broadcast_to(shift, (len(near), 3)))
    images, shifts = np.concatenate(images), np.concatenate(shifts)
    home, ghosts = cKDTree(fractions @ lattice), cKDTree((fractions[images] + shifts) @ lattice)
    found = home.sparse_distance_matrix(ghosts, reach, output_type="ndarray")
    itself = (found["i"] == images[found["j"]]) & ~shifts[found["j"]].any(axis=1)
    found = found[~itself]
    return found["i"], images[found["j"]], found["v"]


def nearest_distance(points: np.ndarray, cell: np.ndarray, pbc) -> float:
    """Median distance in Å from a point to its nearest neighbour (periodic images included)."""
    pbc = np.asarray(pbc) & cell.any(axis=1)
    i, _, distance = near_pairs(points, cell, pbc, _reach(points, cell, pbc, _NEIGHBORS))
    nearest = np.full(len(points), np.inf)
    np.minimum.at(nearest, i, distance)
    return float(np.median(nearest))


def _reach(points: np.ndarray, cell: np.ndarray, pbc: np.ndarray, count: int) -> float:
    """Radius in Å of a sphere that holds ``count`` points on average."""
    full = np.where(pbc[:, None], cell, 0.0)
    _, _, rest = np.linalg.svd(full)
    rest = rest[pbc.sum() :]  # orthonormal directions without periodicity
    area = np.sqrt(np.linalg.det(full[pbc] @ full[pbc].T)) if pbc.any() else 1.0
    extents = np.maximum(np.ptp(points @ rest.T, axis=0), 3.0)
    return float((3 * count * area * extents.prod() / (4 * np.pi * len(points))) ** (1 / 3))
