"""Options of the command line that say which atoms make which bead, shared by the sub-commands that need a mapping.

>>> add_mapping_arguments(parser)
>>> atoms = read_structure(args.structure)
>>> mapping = make_mapping(args, atoms)

The options' syntax is checked when they are parsed (wrong usage); what depends on the atoms raises
:class:`~ase_nepcg.mapping.MappingError` or :class:`~ase_nepcg.labels.LabelError`.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from .errors import NepCGError, closest

__all__ = ["StructureError", "add_mapping_arguments", "make_mapping", "read_structure"]

_PLAIN = ("molecules", "atoms", "residues")

_HELP = """\
HOW is one of: molecules (a bead each, found by their bonds), atoms (each atom is a site), blocks:N (N consecutive atoms
per bead, e.g. one fcc cell), residues (as named in .pdb and .gro files), sites:SYMBOL (the atoms of one element carry
the beads, the others are averaged over), or FILE.json (as Mapping.write leaves it)."""


class StructureError(NepCGError, ValueError):
    """A structure file that cannot be read."""


def add_mapping_arguments(parser) -> None:
    """Add ``--mapping``, ``--species`` and ``--atomistic`` to an argparse parser."""
    parser = parser.add_argument_group("which atoms make which bead", _HELP)
    parser.add_argument(
        "--mapping",
        type=_mapping,
        default=("molecules", None),
        metavar="HOW",
        help="see above (default molecules)",
    )
    parser.add_argument(
        "--species",
        type=_species,
        metavar="NAMES",
        help="one label for all beads, or labels by formula, e.g. H2O=WAT,CH4O=MET (by residue name for residues)",
    )
    parser.add_argument(
        "--atomistic",
        type=_ranges,
        metavar="ATOMS",
        help="keep the beads of these atoms at full resolution, e.g. 0-95,100 (from 0, ends included)",
    )


def read_structure(path: str):
    """The ``Atoms`` in a file of any format that ASE reads; the last ones, or those of ``FILE@INDEX``.

    Raises ``OSError`` for a file that cannot be opened and :class:`StructureError` for one that cannot be understood.
    """
    from ase import Atoms
    from ase.io import read

    exists = Path(path).exists()
    plain = path if exists else path.rpartition("@")[0] or path
    # ASE's formats report a missing file in many ways
    with open(plain, "rb"):
        pass
    try:
        atoms = read(path, do_not_split_by_at_sign=exists)
    except (IndexError, StopIteration) as error:
        raise StructureError(f"{path}: no such structure in the file, or the file is empty or cut short") from error
    except Exception as error:
        # readers raise whatever a damaged file makes them stumble over
        reason = " ".join(str(error).split()) or "no message"
        raise StructureError(f"{path}: cannot be read as a structure ({type(error).__name__}: {reason})") from error
    if not isinstance(atoms, Atoms):
        raise StructureError(f"{path}: expected one structure, got {len(atoms)}; say which, e.g. {plain}@0")
    if len(atoms) == 0:
        raise StructureError(f"{path}: expected a structure, got one without atoms")
    return atoms


def make_mapping(args, atoms):
    """The :class:`~ase_nepcg.mapping.Mapping` of ``atoms`` that the parsed options describe.

    Labels chosen by default are told on stderr. Raises :class:`~ase_nepcg.cli.UsageError` for options that do not go
    together.
    """
    # what the constructors print must not mix with the results
    with contextlib.redirect_stdout(sys.stderr):
        mapping = _make(*args.mapping, args.species, atoms)
        if args.atomistic is not None:
            mapping = mapping.with_atomistic(_expanded(args.atomistic, len(atoms)))
    return mapping


def _make(kind: str, value, species, atoms):
    import numpy as np
    from ase.data import atomic_numbers

    from .cli import UsageError
    from .mapping import Mapping, MappingError

    if kind == "residues":
        return Mapping.from_residues(atoms, species)
    if isinstance(species, dict):
        species = _by_hill(species)
    if kind == "molecules":
        return Mapping.from_molecules(atoms, species)
    if kind == "atoms":
        return Mapping.from_atoms(atoms, species)
    if kind == "blocks":
        if species is None:
            raise UsageError("--mapping blocks:N needs --species, the label of the beads")
        return Mapping.from_atoms_per_bead(atoms, value, species)
    if kind == "sites":
        indices = np.flatnonzero(atoms.numbers == atomic_numbers[value])
        if len(indices) == 0:
            present = sorted(set(atoms.get_chemical_symbols()))
            raise MappingError(f"sites:{value}: the structure has no {value} atoms, only {', '.join(present)}")
        return Mapping.from_sites(atoms, indices, species)
    mapping = Mapping.read(value)
    return mapping if species is None else mapping.with_species(species, atoms)


# ---- syntax -------------------------------------------------------------------------------------------------------


def _mapping(text: str) -> tuple[str, object]:
    """Kind of mapping and its value."""
    if text in _PLAIN:
        return text, None
    kind, colon, value = text.partition(":")
    if colon and kind == "blocks":
        if not value.isdecimal() or int(value) < 1:
            raise argparse.ArgumentTypeError(f"expected blocks:N with N atoms per bead, e.g. blocks:4, got {text!r}")
        return kind, int(value)
    if colon and kind == "sites":
        from ase.data import chemical_symbols

        if value not in chemical_symbols[1:]:
            raise argparse.ArgumentTypeError(f"expected sites:SYMBOL with an element, e.g. sites:O, got {text!r}")
        return kind, value
    if text.endswith(".json"):
        return "file", text
    names = [*_PLAIN, "blocks:N", "sites:SYMBOL", "FILE.json"]
    raise argparse.ArgumentTypeError(f"unknown mapping {text!r}; {closest(text, names)}")


def _species(text: str) -> str | dict[str, str]:
    """One label, or a dictionary of labels by formula."""
    if "=" not in text:
        if not text or "," in text:
            raise argparse.ArgumentTypeError(f"expected LABEL or FORMULA=LABEL,FORMULA=LABEL,…, got {text!r}")
        return text
    labels: dict[str, str] = {}
    for part in text.split(","):
        formula, _, label = (piece.strip() for piece in part.partition("="))
        if not formula or not label or "=" in label:
            raise argparse.ArgumentTypeError(f"expected FORMULA=LABEL, e.g. H2O=WAT, got {part!r}")
        if formula in labels:
            raise argparse.ArgumentTypeError(f"{formula} is there twice")
        labels[formula] = label
    return labels


def _ranges(text: str) -> list[tuple[int, int]]:
    """First and last of each range of atoms."""
    ranges = []
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal()) or int(first) > int(last):
            raise argparse.ArgumentTypeError(f"expected atoms and ranges such as 0-95,100, got {part!r}")
        ranges.append((int(first), int(last)))
    return ranges


def _expanded(ranges: list[tuple[int, int]], n_atoms: int) -> list[int]:
    """All atoms of the ranges, in ascending order."""
    from .mapping import MappingError

    highest = max(last for _, last in ranges)
    if highest >= n_atoms:
        raise MappingError(f"--atomistic: expected atoms 0 to {n_atoms - 1}, got {highest}")
    return sorted({index for first, last in ranges for index in range(first, last + 1)})


def _by_hill(species: dict[str, str]) -> dict[str, str]:
    """The labels by formulas in the order of elements that mappings use."""
    from .cli import UsageError

    spelling: dict[str, str] = {}
    for formula in species:
        other = spelling.setdefault(_hill(formula), formula)
        if other != formula:
            raise UsageError(f"--species: {other} and {formula} are the same formula ({_hill(formula)})")
    return {hill: species[formula] for hill, formula in spelling.items()}


def _hill(formula: str) -> str:
    """A formula in the order of elements that mappings use: C, H, then alphabetical. Anything else stays as it is."""
    from ase.formula import Formula

    try:
        return Formula(formula).format("hill")
    except ValueError:
        return formula
