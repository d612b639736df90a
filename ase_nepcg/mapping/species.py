"""Which label each bead gets: one for all, one per bead, by composition, or by a function of the bead's atoms."""

from __future__ import annotations

from collections.abc import Mapping as AbstractMapping

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from ..errors import closest
from ..labels import get_labels, set_labels
from .checks import shown
from .molecules import MappingError

__all__ = ["check_labels", "choose_labels", "formulas_of", "free_symbols", "relabel"]

_NOBLE = ("He", "Ne", "Ar", "Kr", "Xe", "Rn")


def check_labels(labels, n_sites: int) -> np.ndarray:
    """``labels``, one for all or one per site, as a new array (n_sites,) of dtype ``<U16``.

    Raises :class:`~ase_nepcg.labels.LabelError` for a wrong number of labels and for names no file can hold.
    """
    sites = Atoms(numbers=np.zeros(n_sites, dtype=int))
    set_labels(sites, labels)
    return get_labels(sites)


def formulas_of(numbers: np.ndarray, groups) -> tuple[list[str], np.ndarray]:
    """Distinct formulas (Hill order of elements) of groups in order of appearance, and the formula of each group."""
    if not groups:
        return [], np.zeros(0, dtype=np.int64)
    elements, index = np.unique(numbers, return_inverse=True)
    owner = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    counts = np.zeros((len(groups), len(elements)), dtype=np.int64)
    np.add.at(counts, (owner, index.reshape(-1)[np.concatenate(groups)]), 1)
    kinds, first, kind = np.unique(counts, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    formulas = [Atoms(numbers=np.repeat(elements, kinds[k])).get_chemical_formula("hill") for k in order]
    return formulas, np.argsort(order)[kind.reshape(-1)]


def free_symbols(numbers: np.ndarray, count: int) -> list[str]:
    """``count`` chemical symbols of elements that are not in ``numbers``, noble gases first, then by atomic number.

    None is heavier than Pu, the last one GPUMD knows.
    """
    taken = {chemical_symbols[number] for number in np.unique(numbers)}
    free = [symbol for symbol in (*_NOBLE, *chemical_symbols[1:95]) if symbol not in taken]
    free = list(dict.fromkeys(free))
    if count > len(free):
        raise MappingError(
            f"species: {count} different formulas, but only {len(free)} elements up to Pu do not occur in the atoms; "
            "pass species as one label, as {formula: label} or as a function of the bead's atoms"
        )
    return free[:count]


def choose_labels(species, groups, numbers=None, pieces=None) -> np.ndarray:
    """Label of each group, (n_sites,) ``<U16``.

    ``species``: one label, one per group, ``{formula: label}`` (needs ``numbers`` (N,)) or a function of the bead's
    ``Atoms`` (needs ``pieces``, an iterable of them). Raises :class:`MappingError` for formulas without a label and for
    formulas that no group has.
    """
    if isinstance(species, AbstractMapping):
        if numbers is None:
            raise MappingError("species: {formula: label} needs to know the elements; pass atoms too")
        empty = [k for k, group in enumerate(groups) if len(group) == 0]
        if empty:
            raise MappingError(f"species: {{formula: label}} for groups without any atom: {shown(empty)}")
        formulas, kind = formulas_of(numbers, groups)
        missing = [formula for formula in formulas if formula not in species]
        unknown = [str(formula) for formula in species if formula not in formulas]
        if missing or unknown:
            found = ", ".join(f"{formula} ({np.count_nonzero(kind == k)})" for k, formula in enumerate(formulas))
            what = f"no label for {', '.join(missing)}" if missing else f"no bead is {', '.join(unknown)}"
            hint = f" ({closest(unknown[0], formulas)})" if unknown else ""
            raise MappingError(f"species: {what}{hint}; the beads are {found} (Hill order: C, H, then alphabetical)")
        table = check_labels([species[formula] for formula in formulas], len(formulas))
        return table[kind]
    if callable(species):
        if pieces is None:
            raise MappingError("species: a function of the bead's atoms needs them; pass atoms too")
        species = [species(piece) for piece in pieces]
    return check_labels(species, len(groups))


def relabel(species, labels: np.ndarray, groups, numbers=None, pieces=None) -> np.ndarray:
    """New labels (n_sites,) ``<U16``; as :func:`choose_labels`, and ``{label: new label}`` for all present labels."""
    if isinstance(species, AbstractMapping):
        names, index = np.unique(labels, return_inverse=True)
        names = names.tolist()
        if numbers is None or set(species) == set(names):
            missing = sorted(set(names) - set(species))
            unknown = sorted(str(name) for name in set(species) - set(names))
            if missing or unknown:
                what = f"no new label for {', '.join(missing)}" if missing else f"no bead is {', '.join(unknown)}"
                raise MappingError(f"species: {what}; the labels are {', '.join(names)}, the elements are not known")
            return check_labels([species[name] for name in names], len(names))[index.reshape(-1)]
    return choose_labels(species, groups, numbers, pieces)
