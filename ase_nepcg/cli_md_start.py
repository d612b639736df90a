"""What a run of ``nepcg md`` starts from: sites, labels, masses and velocities."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .cli_mapping import StructureError, read_structure
from .cli_numbers import frame_index
from .errors import closest

__all__ = ["set_velocities", "starting_structure"]

# arrays of the structure that belong to the run; others are results or notes of something else
_ARRAYS = ("numbers", "positions", "momenta", "masses", "tags", "bead", "initial_charges", "initial_magmoms")


def starting_structure(args):
    """The atoms at the start, with labels and masses and nothing that belongs to something else."""
    from .labels import ARRAY, TABLE, get_labels, set_labels

    atoms = _read(args.structure)
    atoms.calc = None
    atoms.info = {key: value for key, value in atoms.info.items() if key == TABLE}
    for name in set(atoms.arrays) - set(_ARRAYS):
        atoms.set_array(name, None)
    if "replicate" in args:
        atoms = atoms.repeat(args.replicate)
    _set_masses(args, atoms)
    if ARRAY in atoms.arrays and TABLE not in atoms.info and not atoms.get_tags().any():
        # so that .traj files keep the labels
        set_labels(atoms, get_labels(atoms))
    return atoms


def _read(path: str):
    """The structure in a file; names in extended XYZ are taken literally, as those of beads."""
    from .dataset.reader import read_frames
    from .dataset.results import DatasetError

    exists = os.path.exists(path)
    plain, _, index = (path, "", "-1") if exists or "@" not in path else path.rpartition("@")
    if Path(plain).suffix.lower() not in (".xyz", ".extxyz"):
        return read_structure(path)
    try:
        index = frame_index(index)
    except argparse.ArgumentTypeError as error:
        raise StructureError(f"{path}: {error}") from None
    if isinstance(index, slice):
        raise StructureError(f"{path}: expected one structure; say which, e.g. {plain}@0")
    try:
        with open(plain) as file:
            atoms = next(read_frames(file, index, plain))
    except IndexError:
        raise StructureError(f"{path}: no such structure in the file") from None
    except (DatasetError, UnicodeDecodeError) as error:
        try:
            # ASE understands more dialects
            return read_structure(path)
        except StructureError:
            raise StructureError(str(error)) from error
    if not len(atoms):
        raise StructureError(f"{path}: expected a structure, got one without atoms")
    return atoms


def _set_masses(args, atoms) -> None:
    from .cli import UsageError
    from .labels import get_labels, needs_masses

    labels = get_labels(atoms)
    kinds = sorted(set(labels.tolist()))
    given = {label: mass for part in getattr(args, "masses", []) for label, mass in part.items()}
    for label in given:
        if label not in kinds:
            raise UsageError(f"--masses: there is no {label!r} in {args.structure}; {closest(label, kinds)}")
    beads = needs_masses(atoms)
    missing = [label for label in kinds if label not in given]
    if beads and missing:
        example = ",".join(f"{label}=18.015" for label in missing)
        raise UsageError(
            f"{args.structure} has no masses of the beads {', '.join(missing)}, and a model has none either; give them "
            f"in u, e.g. --masses {example}"
        )
    if given:
        masses = atoms.get_masses()
        for label, mass in given.items():
            masses[labels == label] = mass
        atoms.set_masses(masses)


def set_velocities(args, atoms, target, seed: int) -> None:
    """Keep those of the structure, or draw new ones (Maxwell-Boltzmann, without total momentum)."""
    import numpy as np
    from ase import units

    from .cli import UsageError

    which, kelvin = getattr(args, "velocities", None), getattr(args, "initial_temperature_K", None)
    if which == "keep":
        if kelvin is not None:
            raise UsageError("--velocities keep and --initial-temperature-K exclude each other")
        if not atoms.has("momenta"):
            raise UsageError(f"--velocities keep: {args.structure} has none")
        return
    # copies of a cell must not move in step
    known = atoms.has("momenta") and "replicate" not in args
    if which is None and kelvin is None and known:
        return
    if kelvin is None:
        kelvin = target
    if kelvin is None:
        why = "copies need new ones" if "replicate" in args else "the structure has none"
        raise UsageError(f"velocities from where? Give --initial-temperature-K; {why}")
    masses = atoms.get_masses()[:, None]
    momenta = np.random.default_rng([seed, 1]).normal(size=(len(atoms), 3)) * np.sqrt(units.kB * kelvin * masses)
    if not atoms.constraints and len(atoms) > 1:
        momenta -= masses * momenta.sum(axis=0) / masses.sum()
    atoms.set_momenta(momenta)
