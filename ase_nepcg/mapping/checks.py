"""Checks of what a user passes to a mapping: each returns the value in its final form or says what is wrong with it."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
from ase.data import chemical_symbols

from ..errors import ModelError, validate_array
from .molecules import MappingError, bonds_of

__all__ = [
    "check_array",
    "check_bonds",
    "check_groups",
    "check_indices",
    "check_integers",
    "check_masses",
    "check_numbers",
    "check_range",
    "check_temperature",
    "check_virial",
    "shown",
]


def check_groups(groups) -> tuple[np.ndarray, ...]:
    """Groups as increasing int64 arrays; refuses what cannot be a list of lists of atoms."""
    if isinstance(groups, str | bytes | dict) or not hasattr(groups, "__iter__"):
        raise MappingError(f"groups: expected a list of lists of atoms, got {groups!r}")
    checked = []
    for k, group in enumerate(groups):
        if not hasattr(group, "__iter__") or isinstance(group, str | bytes | dict):
            raise MappingError(f"groups: expected a list of atoms for each group, got {group!r} for group {k}")
        group = check_integers(group, f"group {k}")
        group.sort()
        if len(group) and group[0] < 0:
            raise MappingError(f"group {k}: expected indices of atoms from 0, got {group[0]}")
        if len(group) > 1:
            same = group[1:] == group[:-1]
            if same.any():
                raise MappingError(f"group {k}: atom {group[np.argmax(same)]} is there twice")
        checked.append(group)
    if not checked:
        raise MappingError("groups: expected at least one group, got none")
    return tuple(checked)


def check_integers(values, name: str) -> np.ndarray:
    """``values`` as a new one-dimensional int64 array."""
    array = values if isinstance(values, np.ndarray) else np.asarray(_listed(values))
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        hint = "; of a mask take np.flatnonzero(mask)" if array.dtype.kind == "b" else ""
        raise MappingError(f"{name}: expected integers, got {array.dtype.name} of shape {array.shape}{hint}")
    return array.astype(np.int64)


def check_indices(indices, n_atoms: int) -> np.ndarray:
    """Different atoms out of ``n_atoms``, in the given order; a single one may come without a list."""
    indices = check_integers(np.atleast_1d(indices) if np.ndim(indices) == 0 else indices, "indices")
    if len(indices) == 0:
        raise MappingError("indices: expected at least one atom, got none")
    check_range([indices], n_atoms)
    values, counts = np.unique(indices, return_counts=True)
    if (counts > 1).any():
        raise MappingError(f"indices: atom {values[np.argmax(counts)]} is there twice")
    return indices


def check_range(groups, n_atoms: int) -> None:
    """Refuse groups with atoms that do not exist."""
    atoms = np.concatenate(groups)
    if len(atoms) and not 0 <= atoms.min() <= atoms.max() < n_atoms:
        wrong = atoms.max() if atoms.max() >= n_atoms else atoms.min()
        raise MappingError(f"mapping: expected atoms 0 to {n_atoms - 1}, got {wrong}; was it made for other atoms?")


def check_bonds(bonds, n_atoms: int | None) -> np.ndarray:
    """Bonds (M, 2) as pairs i < j, sorted, each once."""
    if n_atoms is None:
        raise MappingError("bonds: given without the number of atoms")
    array = np.asarray(bonds if isinstance(bonds, np.ndarray) else _listed(bonds))
    if array.size == 0:
        return np.zeros((0, 2), dtype=np.int64)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iu":
        raise MappingError(f"bonds: expected pairs of atoms (M, 2), got {array.dtype.name} of shape {array.shape}")
    wrong = (array < 0).any(axis=1) | (array >= n_atoms).any(axis=1) | (array[:, 0] == array[:, 1])
    if wrong.any():
        pair = array[np.argmax(wrong)].tolist()
        raise MappingError(f"bonds: expected pairs of different atoms from 0 to {n_atoms - 1}, got {pair}")
    return bonds_of(array.astype(np.int64))


def check_numbers(numbers, n_atoms: int | None) -> np.ndarray:
    """Atomic numbers (N,) int64."""
    numbers = check_integers(numbers, "numbers")
    if n_atoms is not None and len(numbers) != n_atoms:
        raise MappingError(f"numbers: expected one per atom, {n_atoms}, got {len(numbers)}")
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(chemical_symbols):
        raise MappingError(
            f"numbers: expected atomic numbers from 0 to {len(chemical_symbols) - 1}, got {numbers.min()} to "
            f"{numbers.max()}"
        )
    return numbers


def check_masses(atoms) -> np.ndarray:
    """Masses (N,) in atomic mass units: ASE's, or for atoms of no element those that were set."""
    masses = np.array(atoms.get_masses(), dtype=float)
    good = np.isfinite(masses) & (masses > 0)
    if not good.all():
        i = int(np.argmin(good))
        raise MappingError(f"masses: expected positive numbers, got {masses[i]} for atom {i}; see atoms.set_masses")
    if not atoms.has("masses") and (atoms.numbers == 0).any():
        i = int(np.argmax(atoms.numbers == 0))
        raise MappingError(f"masses: atom {i} is of no element (X) and has no mass of its own; call atoms.set_masses")
    return masses


def check_array(name: str, value, shape: tuple) -> np.ndarray:
    """Finite numbers of the given shape."""
    try:
        return validate_array(name, value, shape)
    except ModelError as error:
        raise MappingError(str(error)) from None


def check_virial(virial) -> np.ndarray:
    """A virial (3, 3) in eV."""
    if np.shape(virial) != (3, 3):
        raise MappingError(
            f"virial: expected shape (3, 3) in eV, got {np.shape(virial)}; it is "
            "-atoms.get_volume() * atoms.get_stress(voigt=False)"
        )
    return check_array("virial", virial, (3, 3))


def check_temperature(temperature_K) -> float:
    """A temperature in K."""
    value = np.asarray(temperature_K)
    if value.ndim or value.dtype.kind not in "iuf" or not 0 <= value < np.inf:
        raise MappingError(f"temperature_K: expected a temperature in K, got {temperature_K!r}")
    return float(value)


def shown(values) -> str:
    """The first dozen of several integers, and how many more there are."""
    values = [operator.index(value) for value in values]
    return ", ".join(map(str, values[:12])) + (f" and {len(values) - 12} more" if len(values) > 12 else "")


def _listed(values):
    return values if isinstance(values, Sequence) else list(values)
