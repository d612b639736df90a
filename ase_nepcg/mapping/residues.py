"""Groups from the residues that PDB and GRO files name.

ASE's readers leave ``residuenames``, ``residuenumbers`` and ``atomtypes`` (the names of the atoms) as arrays.
"""

from __future__ import annotations

from collections.abc import Mapping as AbstractMapping

import numpy as np

from ..errors import closest
from .molecules import MappingError, find_bonds, label_molecules

__all__ = ["residue_groups"]


def residue_groups(atoms, species=None, beads=None) -> tuple[list[np.ndarray], object]:
    """Groups of atoms and their labels; arguments as :meth:`ase_nepcg.Mapping.from_residues`.

    A residue is a run of atoms with the same residue number and name. Where several molecules follow each other under
    one number (chains that all begin at 1), the run is a repetition of atom names and is taken apart. Raises
    :class:`MappingError` for missing arrays, unknown residues and atom names, and beads without atoms.
    """
    needed = ["residuenames", "residuenumbers"] + ([] if beads is None else ["atomtypes"])
    missing = [name for name in needed if name not in atoms.arrays]
    if missing:
        raise MappingError(
            f"atoms.arrays: expected {', '.join(missing)} as read from a .pdb or .gro file, got "
            f"{', '.join(sorted(atoms.arrays))}; use from_molecules or from_groups, or set the arrays"
        )
    names = np.char.strip(atoms.arrays["residuenames"].astype(str))
    residues = _residues(atoms, names)
    kinds = list(dict.fromkeys(names.tolist()))
    if beads is None:
        labels = [str(names[residue[0]]) for residue in residues]
        if species is None:
            return residues, labels
        if isinstance(species, AbstractMapping):
            _check_keys("species", species, kinds)
            labels = [species[label] for label in labels]
            return residues, labels
        return residues, species
    if species is not None:
        raise MappingError("species: beads already names the labels; give one of the two")
    if not isinstance(beads, AbstractMapping):
        raise MappingError(f"beads: expected {{residue name: {{label: [atom names]}}}}, got {beads!r}")
    _check_keys("beads", beads, kinds)
    return _split(atoms, residues, names, beads)


def _residues(atoms, names: np.ndarray) -> list[np.ndarray]:
    """Atoms of each residue, in the order of the file."""
    numbers = np.asarray(atoms.arrays["residuenumbers"])
    if len(atoms) == 0:
        raise MappingError("atoms: expected at least one residue, got no atoms")
    starts = np.flatnonzero((numbers[1:] != numbers[:-1]) | (names[1:] != names[:-1])) + 1
    runs = np.split(np.arange(len(atoms)), starts)
    if "atomtypes" not in atoms.arrays:
        return runs
    types = np.char.strip(atoms.arrays["atomtypes"].astype(str))
    molecule = label_molecules(len(atoms), find_bonds(atoms))
    return [piece for run in runs for piece in _repetitions(run, types[run], molecule[run])]


def _repetitions(run: np.ndarray, types: np.ndarray, molecule: np.ndarray) -> list[np.ndarray]:
    """The run, or its parts if it repeats the names of its first part and no bond leads from part to part."""
    for size in np.flatnonzero(types == types[0])[1:]:
        if len(run) % size == 0 and (types.reshape(-1, size) == types[:size]).all():
            owners = [set(part.tolist()) for part in molecule.reshape(-1, size)]
            if len(set().union(*owners)) == sum(map(len, owners)):
                return list(run.reshape(-1, size))
    return [run]


def _split(atoms, residues, names: np.ndarray, beads) -> tuple[list[np.ndarray], list[str]]:
    types = np.char.strip(atoms.arrays["atomtypes"].astype(str))
    for kind, parts in beads.items():
        if not isinstance(parts, AbstractMapping):
            raise MappingError(f"beads: expected {{label: [atom names]}} for residue {kind}, got {parts!r}")
        present = sorted(set(types[names == kind].tolist()))
        listed = [name for part in parts.values() for name in _atom_names(part)]
        for name in listed:
            if name not in present:
                raise MappingError(f"beads: residue {kind} has no atom {name!r}; {closest(name, present)}")
            if listed.count(name) > 1:
                raise MappingError(f"beads: residue {kind}: atom {name!r} is listed twice")
    groups, labels = [], []
    for residue in residues:
        kind = str(names[residue[0]])
        for label, part in beads[kind].items():
            group = residue[np.isin(types[residue], _atom_names(part))]
            if len(group) == 0:
                raise MappingError(
                    f"beads: residue {kind} of atom {residue[0]} has no atoms for its bead {label}; it has "
                    f"{', '.join(types[residue].tolist())}"
                )
            groups.append(group)
            labels.append(label)
    return groups, labels


def _atom_names(part) -> list[str]:
    names = [part] if isinstance(part, str) else list(part)
    if not all(isinstance(name, str) for name in names):
        raise MappingError(f"beads: expected names of atoms, got {part!r}")
    return names


def _check_keys(argument: str, given, kinds: list[str]) -> None:
    unknown = [str(kind) for kind in given if kind not in kinds]
    missing = [kind for kind in kinds if kind not in given]
    if unknown:
        raise MappingError(f"{argument}: no residue is called {unknown[0]!r}; {closest(unknown[0], kinds)}")
    if missing:
        hint = "; {} integrates a residue out" if argument == "beads" else ""
        raise MappingError(f"{argument}: nothing is said about the residues {', '.join(missing)}{hint}")
