"""Mappings as files: JSON of our own, and GPUMD's ``model.xyz`` with a group column and ``bead_name.txt``.

GPUMD (its constrained sampling ``dump_cg``) knows groups that cover all atoms, numbered from 0, in grouping method 0 of
``model.xyz``, and one bead name per atom, a chemical symbol; the name of a group's first atom is the one that counts.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers

from ..io import read_nepcg_train
from ..nepfile import write_atomically
from .checks import shown
from .core import Mapping
from .molecules import MappingError

__all__ = ["from_json", "read_gpumd", "read_mapping", "to_json", "write_gpumd", "write_mapping"]

FORMAT = "ase_nepcg mapping"
VERSION = 1
_HEAVIEST = 94  # Pu, the last element GPUMD knows
_KEYS = ("groups", "labels", "n_atoms", "numbers", "bonds")


def to_json(mapping: Mapping) -> str:
    """The mapping as JSON, one line per entry."""
    entries = {
        "format": FORMAT,
        "version": VERSION,
        "groups": [group.tolist() for group in mapping.groups],
        "labels": mapping.labels.tolist(),
        "n_atoms": mapping.n_atoms,
        "numbers": None if mapping.numbers is None else mapping.numbers.tolist(),
        "bonds": None if mapping.bonds is None else mapping.bonds.tolist(),
    }
    lines = (f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in entries.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def from_json(text: str) -> Mapping:
    """The mapping of :func:`to_json`; raises :class:`MappingError` for anything else."""
    try:
        entries = json.loads(text)
    except (TypeError, ValueError) as error:
        raise MappingError(f"mapping: expected JSON that Mapping.to_json wrote; it is none: {error}") from None
    if not isinstance(entries, dict) or entries.get("format") != FORMAT:
        raise MappingError(f'mapping: expected JSON with "format": "{FORMAT}", as Mapping.to_json writes it')
    if entries.get("version") != VERSION:
        raise MappingError(
            f"mapping: expected version {VERSION}, got {entries.get('version')!r}; written by another ase_nepcg?"
        )
    expected = {"format", "version", *_KEYS}
    if set(entries) != expected:
        missing, unknown = sorted(expected - set(entries)), sorted(set(entries) - expected)
        raise MappingError(f"mapping: missing entries {missing}, unknown entries {unknown}")
    if isinstance(entries["n_atoms"], bool | float | str | list | dict):
        raise MappingError(f"mapping: n_atoms: expected an integer or null, got {entries['n_atoms']!r}")
    return Mapping(**{key: entries[key] for key in _KEYS})


def write_mapping(mapping: Mapping, path) -> None:
    """Write :func:`to_json` to a file, atomically."""
    write_atomically(path, to_json(mapping))


def read_mapping(path) -> Mapping:
    """The mapping of :func:`write_mapping`; errors name the file."""
    try:
        return from_json(Path(path).read_text(encoding="utf-8"))
    except (MappingError, UnicodeDecodeError) as error:
        raise MappingError(f"{path}: {error}") from None


def write_gpumd(mapping: Mapping, folder, atoms) -> None:
    """Write ``model.xyz`` (elements, whole molecules, masses, group) and ``bead_name.txt``; makes ``folder``.

    Raises :class:`MappingError` for what GPUMD cannot express: atoms in no bead, labels that are no chemical symbols,
    atoms of no element, a cell without three vectors.
    """
    bound = mapping.bind(atoms)
    outside = np.flatnonzero(bound.site_of < 0)
    if len(outside):
        raise MappingError(
            f"GPUMD needs every atom in a bead; {len(outside)} atoms are in none (site map or implicit molecules): "
            f"{shown(outside)}"
        )
    names = sorted({label for label in mapping.labels.tolist() if not 1 <= atomic_numbers.get(label, 0) <= _HEAVIEST})
    if names:
        raise MappingError(
            f"GPUMD takes chemical symbols from H to Pu only as bead names, got {', '.join(names)}; choose some with "
            f'mapping.with_species({{"{names[0]}": "He", …}})'
        )
    if not atoms.numbers.all():
        raise MappingError(f"GPUMD needs an element for every atom; atom {int(np.argmin(atoms.numbers))} is X")
    if atoms.cell.rank < 3:
        raise MappingError(f"GPUMD needs a cell of three independent vectors, got {atoms.cell.array.tolist()}")
    lattice = " ".join(map(repr, atoms.cell.array.ravel().tolist()))
    pbc = " ".join("T" if periodic else "F" for periodic in atoms.pbc)
    lines = [
        str(len(atoms)),
        f'Lattice="{lattice}" pbc="{pbc}" Properties=species:S:1:pos:R:3:mass:R:1:group:I:1',
    ]
    whole = bound.whole(atoms.positions, atoms.cell.array, atoms.pbc)
    lines += [
        f"{symbol} {x!r} {y!r} {z!r} {mass!r} {group}"  # to the last digit
        for symbol, (x, y, z), mass, group in zip(
            atoms.get_chemical_symbols(), whole.tolist(), bound.masses.tolist(), bound.site_of.tolist(), strict=True
        )
    ]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "model.xyz", "\n".join(lines) + "\n")
    write_atomically(folder / "bead_name.txt", "\n".join(mapping.labels[bound.site_of].tolist()) + "\n")


def read_gpumd(model_xyz, bead_name_txt) -> Mapping:
    """The mapping of ``model.xyz`` (its first grouping method) and ``bead_name.txt``.

    Raises :class:`MappingError` for a missing group column, group numbers with gaps, a wrong number of names, and
    different names within one group.
    """
    try:
        atoms = next(read_nepcg_train(str(model_xyz), index=0))
    except (ValueError, KeyError, IndexError, StopIteration) as error:
        raise MappingError(f"{model_xyz}: expected one frame of extended XYZ ({error!r})") from None
    if "group" not in atoms.arrays:
        columns = ", ".join(sorted(atoms.arrays))
        raise MappingError(f"{model_xyz}: expected a column group:I:1 in Properties, got {columns}")
    group_of = atoms.arrays["group"].reshape(len(atoms), -1)[:, 0]
    if group_of.dtype.kind not in "iu":
        raise MappingError(f"{model_xyz}: expected integers in the column group, got {group_of.dtype.name}")
    found = np.unique(group_of)
    if not np.array_equal(found, np.arange(len(found))):
        gap = next(k for k, number in enumerate(found.tolist()) if k != number)
        raise MappingError(f"{model_xyz}: expected groups 0 to {found[-1]} without gaps, found no group {gap}")
    names = np.array(Path(bead_name_txt).read_text(encoding="utf-8").split())
    if len(names) != len(atoms):
        raise MappingError(f"{bead_name_txt}: expected a name for each of the {len(atoms)} atoms, got {len(names)}")
    order = np.argsort(group_of, kind="stable")
    starts = np.flatnonzero(np.diff(group_of[order], prepend=-1))
    first = order[starts]
    wrong = np.flatnonzero(names != names[first][group_of])
    if len(wrong):
        i = int(wrong[0])
        raise MappingError(
            f"{bead_name_txt}: atoms of one group have different names: group {group_of[i]} is "
            f"{names[first[group_of[i]]]} by its atom {first[group_of[i]]}, and {names[i]} by atom {i}"
        )
    return Mapping.from_groups(np.split(order, starts[1:]), names[first], atoms)
