"""Checks of the linter on bead species: what shares a label, which labels other programs can read, bonds that permute.

Functions take the ``System`` of :mod:`ase_nepcg.lint` and return findings.
"""

from __future__ import annotations

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from ..hyper import RADII
from ..mapping.species import formulas_of
from .findings import Finding, plural, uncommon
from .shape import near_pairs

__all__ = ["check_bonded_distances", "check_composition", "check_names"]


def check_names(mapping, atoms) -> list[Finding]:
    """Labels that are no chemical symbols, and symbols that mean an element of the atoms but label something else.

    GPUMD accepts symbols up to Pu only; it takes the ZBL charge from the symbol, and the mass unless the file gives it.
    """
    labels = np.unique(mapping.labels).tolist()
    findings = []
    names = [label for label in labels if label not in RADII]
    if names:
        findings.append(
            Finding(
                "note",
                "free-labels",
                f"{', '.join(names)}: fine here, but GPUMD and potentials of LAMMPS read chemical symbols (H to Pu) "
                "only; to use the model there, relabel with mapping.with_species",
                tuple(np.flatnonzero(np.isin(mapping.labels, names)).tolist()),
            )
        )
    present = {chemical_symbols[number] for number in np.unique(atoms.numbers)} - {"X"}
    for label in labels:
        if label not in present:
            continue
        number = atomic_numbers[label]
        sites = [
            k
            for k in np.flatnonzero(mapping.labels == label).tolist()
            if not (len(mapping.groups[k]) == 1 and atoms.numbers[mapping.groups[k][0]] == number)
        ]
        if sites:
            findings.append(
                Finding(
                    "warning",
                    "element-label",
                    f"{plural(len(sites), 'bead')} labelled {label}, an element of the atoms: files and ZBL would take "
                    f"them for {label} atoms (mass, nuclear charge), and mixed resolution could not tell them apart; "
                    "use the symbol of an element that does not occur",
                    tuple(sites),
                )
            )
    return findings


def check_composition(system) -> list[Finding]:
    """Beads of one label made of different atoms, differently bonded, or of different mass."""
    kinds, formulas = _composition(system)
    masses = system.bound.site_masses
    findings = []
    for label in np.unique(system.labels).tolist():
        sites = np.flatnonzero(system.labels == label)
        odd, counts = uncommon(kinds[sites])
        if len(counts) > 1:
            names, numbers = np.unique(kinds[sites], return_counts=True)
            order = np.argsort(-numbers, kind="stable")
            listed = ", ".join(f"{numbers[k]} {formulas[names[k]]}" for k in order[:6]) + ", …" * (len(order) > 6)
            findings.append(
                system.finding(
                    "warning",
                    "mixed-composition",
                    f"beads {label} are of {len(counts)} kinds ({listed}), which the model cannot tell apart: give "
                    "each its own label, e.g. species={formula: label}, unless one effective bead is meant",
                    sites[odd],
                )
            )
            continue
        spread = np.ptp(masses[sites])
        if spread > 1e-6 * masses[sites].max():
            findings.append(
                system.finding(
                    "warning",
                    "different-masses",
                    f"beads {label} of the same atoms weigh {masses[sites].min():g} to {masses[sites].max():g}: mean "
                    "forces hold for the given masses, and files may keep one mass per label only; use one mass, or "
                    "one label per isotope",
                    sites[np.abs(masses[sites] - np.median(masses[sites])) > 0.5e-6 * masses[sites].max()],
                )
            )
        # bonds in a network come and go with small displacements, and pieces are reported on their own
        network = system.endless[system.molecule[[system.groups[k][0] for k in sites]]]
        judged = sites[system.connected[sites] & ~network]
        odd, counts = uncommon(system.keys.group[judged]) if len(judged) else ([], [])
        if len(counts) > 1:
            findings.append(
                system.finding(
                    "warning",
                    "different-bonds",
                    f"beads {label} of the same formula are bonded in {len(counts)} different ways (isomers, or bonds "
                    "broken in this configuration): give isomers labels of their own",
                    judged[odd],
                )
            )
    return findings


def _composition(system) -> tuple[np.ndarray, list[str]]:
    """Kind of each site, and the formula of each kind.

    A site that stands for a whole molecule counts with all its atoms, so that a site map tells water from methanol.
    """
    bound, n_sites, numbers = system.bound, len(system.groups), system.atoms.numbers
    formulas, kinds = formulas_of(numbers, system.groups)
    members = np.flatnonzero((bound.anchor_of < n_sites) & ~system.left_out)
    members = members[np.argsort(bound.anchor_of[members], kind="stable")]
    owner, molecule = bound.anchor_of[members], system.molecule[members]
    sizes = np.bincount(owner, minlength=n_sites)
    # all of a molecule's atoms at one site, and all of the site's atoms in one molecule
    start = np.cumsum(sizes) - sizes
    alone = sizes == np.bincount(system.molecule)[molecule[start]]
    np.logical_and.at(alone, owner, molecule == molecule[start][owner])
    larger = np.flatnonzero(alone & (sizes > system.sizes))
    if len(larger) == 0:
        return kinds, formulas
    sets = np.split(members, start[1:])
    molecules, of = formulas_of(numbers, [sets[k] for k in larger])
    both, index = np.unique(np.stack([kinds[larger], of], axis=1), axis=0, return_inverse=True)
    names = [f"{formulas[group]} of {molecules[k]}" for group, k in both]
    kinds[larger] = len(formulas) + index.reshape(-1)
    return kinds, formulas + names


def check_bonded_distances(system) -> list[Finding]:
    """Pairs of bead species whose bonded distances reach those of beads that are not bonded: their bonds can permute.

    After Görlich and Zavadlav, JCIM 66, 2166 (2026): a model without bond terms knows who is bonded by distance only.
    Networks, groups of several pieces and pairs of atomistic sites are left out.
    """
    # beads are bonded if atoms that follow them are
    owner = system.bound.anchor_of[system.pairs]
    bead = (owner < len(system.groups)).all(axis=1) & (owner[:, 0] != owner[:, 1])
    bead &= ~system.left_out[system.pairs].any(axis=1)
    bead &= ~system.endless[system.molecule[system.pairs[:, 0]]]
    bead[bead] &= system.carries[owner[bead]].any(axis=1) & system.connected[owner[bead]].all(axis=1)
    if not bead.any():
        return []
    i, j = system.pairs[bead].T
    first, second = owner[bead].T
    # the vector between centres along this bond: the bond closes where whole coordinates may be a lattice vector apart
    span = system.centres[second] - system.centres[first] + system.whole[i] - system.whole[j] + system.vectors[bead]
    lengths = np.linalg.norm(span, axis=1)
    names, kind = np.unique(system.labels, return_inverse=True)
    kind = kind.reshape(-1)
    pair_kind = np.sort(kind[owner[bead]], axis=1) @ [len(names), 1]
    limit = np.zeros(len(names) ** 2)
    np.maximum.at(limit, pair_kind, lengths)

    cell, pbc = system.atoms.cell.array, system.atoms.pbc & system.atoms.cell.any(axis=1)
    # a little further than the longest bond, whose own length is subject to rounding
    a, b, distance = near_pairs(system.centres, cell, pbc, lengths.max() * 1.001)
    low = np.sort(kind[np.stack([a, b], axis=1)], axis=1) @ [len(names), 1]
    near = (a <= b) & (distance < limit[low] - 1e-6)
    bonded = {}
    for s, t, length in zip(first, second, lengths, strict=True):
        bonded.setdefault((min(s, t), max(s, t)), []).append(length)
    free = [
        (s, t, code)
        for s, t, length, code in zip(a[near], b[near], distance[near], low[near], strict=True)
        if all(abs(length - other) > 1e-6 for other in bonded.get((s, t), ()))
    ]
    findings = []
    for code in sorted({code for *_, code in free}):
        sites = sorted({site for *ends, k in free if k == code for site in ends})
        pair = f"{names[code // len(names)]}-{names[code % len(names)]}"
        count = sum(k == code for *_, k in free)
        findings.append(
            system.finding(
                "warning",
                "bond-permutation",
                f"{pair}: bonded beads are up to {limit[code]:.2f} Å apart here, and {plural(count, 'pair')} of beads "
                "that are not bonded {} nearer: a model that knows no bonds may exchange bond partners; label beads "
                "along the molecule differently, or map it differently".format("is" if count == 1 else "are"),
                sites,
            )
        )
    return findings
