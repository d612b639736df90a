"""The mapping linter: what is wrong, risky or worth knowing about a mapping of some atoms, before time is spent on it.

>>> for finding in lint(mapping, atoms):
...     print(finding)

:func:`lint` looks at the mapping, at one configuration, and at the constraints and the calculator of the atoms; it
calculates no energies and changes nothing. It works on mappings that every use would refuse: groups that overlap or are
empty are reported and left out of the later checks. What is known about :mod:`ase.md` drivers with held beads is in
:func:`check_dynamics`.

Structure is judged by the bond graph of :mod:`ase_nepcg.mapping.molecules`. A molecule is *endless* if it is bonded
to its own periodic image, as in metals, network solids and polymers through the boundary: it has no centre, and bonds
between its beads say little. An atom without any bond (argon, sodium) is no defect of a group either. Groups of such
atoms are judged by distances instead of bonds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from ase.data import chemical_symbols

from ..mapping import Mapping
from ..mapping.molecules import (
    MappingError,
    bonded_pairs,
    bonds_of,
    find_links,
    grow_tree,
    label_molecules,
    minimum_image,
)
from .dynamics import check_calculator, check_constraints, check_dynamics
from .findings import Finding, plural, worst_first
from .graph_keys import GraphKeys, graph_keys
from .shape import check_handedness, check_surroundings, nearest_distance
from .species import check_bonded_distances, check_composition, check_names

__all__ = ["Finding", "check_dynamics", "lint"]

# Å; a bond that is a lattice vector away from where the whole molecule has it differs by much more
_MOVED = 0.1


def lint(mapping: Mapping, atoms) -> list[Finding]:
    """Findings about ``mapping`` applied to ``atoms``, worst first; none for a clean mapping.

    One configuration is looked at: repeat it on others if molecules may break, fold or change places.
    """
    findings = check_groups(mapping)
    unfit = check_fit(mapping, atoms)
    if unfit:
        return worst_first(findings + unfit)
    findings += check_names(mapping, atoms)
    try:
        system = System.of(mapping, atoms)
    except MappingError as error:
        findings.append(Finding("error", "unusable", str(error)))
        return worst_first(findings)
    if system is not None:
        for check in (
            check_ungrouped,
            check_connected,
            check_endless,
            check_size,
            check_cut,
            check_composition,
            check_handedness,
            check_surroundings,
            check_bonded_distances,
            check_constraints,
            check_calculator,
        ):
            findings += check(system)
    return worst_first(findings)


@dataclass(frozen=True)
class System:
    """What the checks share: a usable part of a mapping, bound to atoms, and the bond graph.

    ``sites``: the sites of the original mapping that are in that part; sites of ``bound`` and of all arrays here count
    within it. ``left_out`` (N,): atoms that are in some other group. ``pairs`` (P, 2) and ``vectors`` (P, 3) in Å: all
    bonds with their images, found by distance or given with the mapping.
    """

    atoms: object
    mapping: Mapping
    bound: object
    sites: np.ndarray
    left_out: np.ndarray
    pairs: np.ndarray
    vectors: np.ndarray

    @classmethod
    def of(cls, mapping: Mapping, atoms) -> System | None:
        """The system, or None if no group is usable. Raises :class:`MappingError` if the rest cannot be bound."""
        counts = np.zeros(len(atoms), dtype=np.int64)
        for group in mapping.groups:
            counts[group] += 1
        usable = [len(group) > 0 and bool((counts[group] == 1).all()) for group in mapping.groups]
        sites = np.flatnonzero(usable)
        if len(sites) == 0:
            return None
        if len(sites) < len(mapping):
            groups = [mapping.groups[k] for k in sites]
            mapping = Mapping(groups, mapping.labels[sites], mapping.n_atoms, mapping.numbers, mapping.bonds)
        bound = mapping.bind(atoms)
        pairs, vectors = bonded_pairs(atoms)
        if mapping.bonds is not None:
            new = mapping.bonds[~_among(mapping.bonds, bonds_of(pairs), len(atoms))]
            pairs = np.concatenate([pairs, new])
            vectors = np.concatenate([vectors, _spans(atoms, new)])
        return cls(atoms, mapping, bound, sites, (counts > 0) & (bound.site_of < 0), pairs, vectors)

    @property
    def groups(self) -> tuple:
        return self.bound.groups

    @property
    def labels(self) -> np.ndarray:
        return self.bound.labels

    @cached_property
    def sizes(self) -> np.ndarray:
        """Number of atoms in each group."""
        return np.array([len(group) for group in self.groups])

    @cached_property
    def whole(self) -> np.ndarray:
        """Positions (N, 3) with each site's atoms together."""
        return self.bound.whole(self.atoms.positions, self.atoms.cell.array, self.atoms.pbc)

    @cached_property
    def centres(self) -> np.ndarray:
        """Centres of mass of the groups, (n_sites, 3)."""
        return self.bound.centres(self.whole)[: len(self.groups)]

    @cached_property
    def molecule(self) -> np.ndarray:
        """Molecule of each atom (N,), by all bonds."""
        return label_molecules(len(self.atoms), bonds_of(self.pairs))

    @cached_property
    def connected(self) -> np.ndarray:
        """Whether bonds connect each group."""
        return _connected_sets(self.bound.site_of, bonds_of(self.pairs))

    @cached_property
    def endless(self) -> np.ndarray:
        """Whether each molecule is bonded to its own periodic image."""
        return _endless_sets(self.atoms, self.molecule, self.pairs, self.vectors)

    @cached_property
    def degree(self) -> np.ndarray:
        """Number of bonds of each atom (N,)."""
        return np.bincount(self.pairs.ravel(), minlength=len(self.atoms))

    @cached_property
    def keys(self) -> GraphKeys:
        """What tells atoms and groups apart by their bonds."""
        pairs = bonds_of(self.pairs)
        return graph_keys(self.atoms.numbers, self.bound.site_of, pairs)

    @cached_property
    def carries(self) -> np.ndarray:
        """Sites that stand for more than one atom, by their group or by what is anchored there."""
        anchored = np.bincount(self.bound.anchor_of[~self.left_out], minlength=len(self.groups))
        return anchored[: len(self.groups)] > 1

    def finding(self, severity, code, message, sites=(), atoms=()) -> Finding:
        """A finding whose ``sites`` count within this system."""
        sites = np.sort(self.sites[np.asarray(sites, dtype=np.int64)])
        return Finding(severity, code, message, tuple(sites.tolist()), tuple(np.asarray(atoms).tolist()))


# ---- the mapping alone, and whether it fits -----------------------------------------------------------------------


def check_groups(mapping: Mapping) -> list[Finding]:
    """Groups without atoms, and atoms in several groups."""
    findings = []
    empty = [k for k, group in enumerate(mapping.groups) if len(group) == 0]
    if empty:
        findings.append(
            Finding(
                "error",
                "empty-groups",
                f"{plural(len(empty), 'site')} without any atom: such a bead has neither mass nor position; remove the "
                "empty groups",
                tuple(empty),
            )
        )
    members = np.concatenate(mapping.groups)
    atoms, counts = np.unique(members, return_counts=True)
    shared = atoms[counts > 1]
    if len(shared):
        owner = np.repeat(np.arange(len(mapping)), [len(group) for group in mapping.groups])
        sites = np.unique(owner[np.isin(members, shared)])
        findings.append(
            Finding(
                "error",
                "overlapping-groups",
                f"{plural(len(shared), 'atom')} in more than one group: the centres of these beads are not independent "
                "and mean forces are not defined; give each atom to one group",
                tuple(sites.tolist()),
                tuple(shared.tolist()),
            )
        )
    return findings


def check_fit(mapping: Mapping, atoms) -> list[Finding]:
    """Number and elements of the atoms against those the mapping was made for; masses, positions."""
    n_atoms = len(atoms)
    members = np.concatenate(mapping.groups)
    highest = int(members.max(initial=-1))
    if n_atoms == 0 or (mapping.n_atoms or n_atoms) != n_atoms or highest >= n_atoms:
        wanted = f"is for {mapping.n_atoms} atoms" if mapping.n_atoms is not None else f"needs atom {highest}"
        return [
            Finding(
                "error",
                "wrong-atoms",
                f"the mapping {wanted}, the structure has {n_atoms}: use the structure it was made for, or make the "
                "mapping anew",
                atoms=np.unique(members[members >= n_atoms]),
            )
        ]
    if mapping.numbers is not None and not np.array_equal(mapping.numbers, atoms.numbers):
        wrong = np.flatnonzero(mapping.numbers != atoms.numbers)
        i = int(wrong[0])
        return [
            Finding(
                "error",
                "wrong-elements",
                f"{plural(len(wrong), 'atom')} not of the element the mapping was made for (atom {i}: expected "
                f"{chemical_symbols[mapping.numbers[i]]}, got {chemical_symbols[atoms.numbers[i]]}): the atoms are in "
                "another order or of another system; make the mapping anew",
                atoms=wrong,
            )
        ]
    findings = []
    masses = np.asarray(atoms.get_masses(), dtype=float)
    bad = np.flatnonzero(~(np.isfinite(masses) & (masses > 0)))
    if len(bad):
        findings.append(
            Finding(
                "error",
                "bad-masses",
                f"{plural(len(bad), 'atom')} with a mass that is not a positive number (atom {bad[0]}: "
                f"{masses[bad[0]]:g}): centres of mass need masses; call atoms.set_masses",
                atoms=bad,
            )
        )
    unknown = np.flatnonzero(atoms.numbers == 0)
    if len(unknown) and not atoms.has("masses"):
        findings.append(
            Finding(
                "error",
                "missing-masses",
                f"{plural(len(unknown), 'atom')} of no element (X) and without a mass, for which ASE assumes 1: call "
                "atoms.set_masses",
                atoms=unknown,
            )
        )
    lost = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
    if len(lost):
        message = f"{plural(len(lost), 'atom')} without a finite position: the structure is damaged"
        findings.append(Finding("error", "bad-positions", message, atoms=lost))
    return findings


# ---- groups and molecules -----------------------------------------------------------------------------------------


def check_ungrouped(system: System) -> list[Finding]:
    """Atoms in no bead: followed by a site of their molecule, or left as implicit molecules."""
    bound = system.bound
    outside = (bound.site_of < 0) & ~system.left_out
    anchored = np.flatnonzero(outside & (bound.anchor_of < bound.n_sites))
    implicit = np.flatnonzero(outside & (bound.anchor_of >= bound.n_sites))
    total = bound.masses.sum()
    findings = []
    if len(implicit):
        molecules = len(np.unique(bound.anchor_of[implicit]))
        findings.append(
            system.finding(
                "warning",
                "implicit-molecules",
                f"{plural(len(implicit), 'atom')} in {plural(molecules, 'molecule')} without any bead "
                f"({bound.masses[implicit].sum() / total:.1%} of the mass): they are averaged over as an implicit "
                "solvent and need long sampling; give them beads if that is not meant",
                atoms=implicit,
            )
        )
    if len(anchored):
        sites = np.unique(bound.anchor_of[anchored])
        findings.append(
            system.finding(
                "note",
                "anchored-atoms",
                f"{plural(len(anchored), 'atom')} in no bead but in molecules with one "
                f"({bound.masses[anchored].sum() / total:.1%} of the mass): each follows the nearest site, which gets "
                "its force but not its mass",
                sites,
                anchored,
            )
        )
    return findings


def check_connected(system: System) -> list[Finding]:
    """Groups of several pieces."""
    broken = ~system.connected
    if not broken.any():
        return []
    site_of = system.bound.site_of
    members = np.flatnonzero(site_of >= 0)
    # bonds say nothing about atoms that have none, and little about atoms of a network
    aside = (system.degree == 0) | system.endless[system.molecule]
    unjudged = np.ones(len(broken), dtype=bool)
    np.logical_and.at(unjudged, site_of[members], aside[members])
    findings = []
    apart = np.flatnonzero(broken & ~unjudged)
    if len(apart):
        findings.append(
            system.finding(
                "warning",
                "disconnected-groups",
                f"{plural(len(apart), 'group')} of several pieces that no bonds connect: a bead of parts that can move "
                "apart has no meaningful centre; check the indices, or give each molecule a bead of its own",
                apart,
            )
        )
    loose = np.flatnonzero(broken & unjudged)
    if len(loose):
        findings += _check_loose(system, loose)
    return findings


def _check_loose(system: System, loose: np.ndarray) -> list[Finding]:
    """Disconnected groups of atoms that form no molecules: warn if their atoms are not even neighbours."""
    positions, cell, pbc = system.atoms.positions, system.atoms.cell.array, system.atoms.pbc
    links = find_links([system.groups[k] for k in loose], positions, cell, pbc)
    lengths = np.linalg.norm(minimum_image(positions[links[:, 1]] - positions[links[:, 0]], cell, pbc), axis=1)
    reach = 1.5 * nearest_distance(positions, cell, pbc)  # beyond the first neighbours of any crystal
    scattered = np.unique(system.bound.site_of[links[lengths > reach, 0]])
    compact = np.setdiff1d(loose, scattered)
    findings = []
    if len(scattered):
        findings.append(
            system.finding(
                "warning",
                "disconnected-groups",
                f"{plural(len(scattered), 'group')} of atoms that are not neighbours (gaps above {reach:.1f} Å): order "
                "the atoms so that each bead is a compact piece, e.g. blocks of crystal.repeat(...)",
                scattered,
            )
        )
    if len(compact):
        findings.append(
            system.finding(
                "note",
                "unbonded-groups",
                f"{plural(len(compact), 'group')} of neighbouring atoms that no bonds connect, as in atomic crystals: "
                "fine as long as atoms do not change places",
                compact,
            )
        )
    return findings


def check_endless(system: System) -> list[Finding]:
    """Groups that are bonded to their own periodic image."""
    atoms, site_of, given = system.atoms, system.bound.site_of, system.mapping.bonds
    inside = _inside(site_of, system.pairs)
    endless = _endless_sets(atoms, site_of, system.pairs[inside], system.vectors[inside])
    if not endless.any():
        return []
    told = np.zeros(len(endless), dtype=bool)
    if given is not None:
        # where the mapping's own bonds connect a group, they decide
        inner = given[_inside(site_of, given)]
        told = _connected_sets(site_of, inner) & ~_endless_sets(atoms, site_of, inner, _spans(atoms, inner))
    findings = []
    wrong, odd = np.flatnonzero(endless & ~told), np.flatnonzero(endless & told)
    if len(wrong):
        findings.append(
            system.finding(
                "error",
                "endless-groups",
                f"{plural(len(wrong), 'group')} bonded to the own periodic image, so that there is no centre of mass: "
                "use a larger cell or smaller groups, or pass the bonds that count as bonds=[(i, j), …]",
                wrong,
            )
        )
    if len(odd):
        findings.append(
            system.finding(
                "warning",
                "endless-groups",
                f"{plural(len(odd), 'group')} within bonding distance of the own periodic image, though the mapping's "
                "bonds say otherwise: a larger cell is safer",
                odd,
            )
        )
    return findings


def check_size(system: System) -> list[Finding]:
    """Groups larger than half the cell."""
    cell = system.atoms.cell
    periodic = system.atoms.pbc & cell.any(axis=1)
    if not periodic.any():
        return []
    site_of = system.bound.site_of
    members = np.flatnonzero(site_of >= 0)
    fractions = np.linalg.solve(cell.complete().array.T, system.whole[members].T).T[:, periodic]
    low, high = (np.full((len(system.groups), periodic.sum()), sign * np.inf) for sign in (1, -1))
    np.minimum.at(low, site_of[members], fractions)
    np.maximum.at(high, site_of[members], fractions)
    large = (high - low).max(axis=1) > 0.5
    bonded = system.connected
    findings = []
    for severity, chosen, consequence in (
        ("error", large & ~bonded, "which images of their atoms belong together is ambiguous, and with it the centre"),
        ("warning", large & bonded, "bonds make them whole here, but minimum images within a bead are wrong elsewhere"),
    ):
        if chosen.any():
            findings.append(
                system.finding(
                    severity,
                    "large-groups",
                    f"{plural(int(chosen.sum()), 'group')} longer than half the periodic cell: {consequence}; "
                    "use a larger cell or smaller groups",
                    np.flatnonzero(chosen),
                )
            )
    return findings


def check_cut(system: System) -> list[Finding]:
    """Groups and molecules that the boundary cuts in the coordinates as given."""
    bound = system.bound
    tree = bound.tree
    positions = system.atoms.positions
    steps = tree.steps(positions, system.atoms.cell.array, system.atoms.pbc)
    cut = np.abs(steps - (positions - positions[tree.parent])).max(axis=1) > _MOVED
    cut &= ~system.left_out
    anchors = np.unique(bound.anchor_of[cut])
    sites = anchors[anchors < bound.n_sites]
    if len(anchors) == 0:
        return []
    others = len(anchors) - len(sites)
    what = [plural(len(sites), "bead")] * (len(sites) > 0) + [plural(others, "implicit molecule")] * (others > 0)
    return [
        system.finding(
            "note",
            "cut-molecules",
            f"the boundary cuts {' and '.join(what)} in the coordinates as given: centres are taken of whole molecules "
            "here, but other programs may need whole coordinates",
            sites,
            np.flatnonzero(np.isin(bound.anchor_of, anchors) & ~system.left_out),
        )
    ]


# ---- helpers ------------------------------------------------------------------------------------------------------


def _spans(atoms, pairs: np.ndarray) -> np.ndarray:
    """Vectors r_j - r_i (P, 3) to the nearest images."""
    return minimum_image(atoms.positions[pairs[:, 1]] - atoms.positions[pairs[:, 0]], atoms.cell.array, atoms.pbc)


def _inside(set_of: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """True for pairs within one set; ``set_of`` (N,) is -1 for atoms in none."""
    first, second = set_of[pairs].T
    return (first == second) & (first >= 0)


def _among(pairs: np.ndarray, others: np.ndarray, n: int) -> np.ndarray:
    """True for each pair (i < j) that is in ``others``."""
    return np.isin(pairs[:, 0] * n + pairs[:, 1], others[:, 0] * n + others[:, 1])


def _trees(set_of: np.ndarray, bonds: np.ndarray):
    """Trees from the lowest atom of each set along bonds within it; atoms in no set are roots of their own."""
    members = np.flatnonzero(set_of >= 0)
    _, first = np.unique(set_of[members], return_index=True)
    loners = np.flatnonzero(set_of < 0)
    sets = set_of.copy()
    sets[loners] = set_of.max(initial=-1) + 1 + np.arange(len(loners))
    return grow_tree(np.concatenate([members[first], loners]), sets, bonds)


def _connected_sets(set_of: np.ndarray, bonds: np.ndarray) -> np.ndarray:
    """Whether ``bonds`` (M, 2) connect each set."""
    connected = np.ones(set_of.max() + 1, dtype=bool)
    connected[set_of[_trees(set_of, bonds).parent < 0]] = False
    return connected


def _endless_sets(atoms, set_of: np.ndarray, pairs: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Whether each set has a bond within it that its whole atoms do not show, i.e. to a periodic image of itself.

    ``set_of`` (N,) from 0, -1 for atoms in none; ``pairs``, ``vectors``: bonds within sets. A set of several pieces is
    judged by the piece with its lowest atom.
    """
    endless = np.zeros(set_of.max() + 1, dtype=bool)
    tree = _trees(set_of, bonds_of(pairs))
    reached = tree.parent >= 0
    parent = np.where(reached, tree.parent, np.arange(len(set_of)))
    whole = type(tree)(parent, tree.levels).whole(atoms.positions, atoms.cell.array, atoms.pbc)
    i, j = pairs.T
    wound = reached[i] & reached[j] & (np.abs(whole[j] - whole[i] - vectors).max(axis=1, initial=0) > _MOVED)
    endless[set_of[i[wound]]] = True
    return endless
