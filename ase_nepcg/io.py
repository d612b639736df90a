"""The ASE file format ``nepcg-train``: training frames as extended XYZ whose species may be any bead name.

>>> frames = ase.io.read("train.xyz", index=":", format="nepcg-train")
>>> ase.io.write("test.nepcg.xyz", frames)  # the name *.nepcg.xyz implies the format

Numbers are read and written by :mod:`ase.io.extxyz` (8 decimals in columns, full precision in the comment line). This
module adds the names: ASE alone refuses a species WAT and takes a bead called F for fluorine of mass 19.

Reading: names are taken literally. A frame of chemical symbols only becomes ordinary atoms; any other gets labels (see
:mod:`ase_nepcg.labels`). A column ``masses`` or ``mass`` gives the masses, ``force`` or ``forces`` the forces. Keys of
the comment line may be in any case (``lattice``, ``Energy``, ``Virial``). ``virial`` (eV, positive = compressed) stays
in ``info`` as a (3, 3) array.

Writing: the labels stand in the species column and nowhere else, masses in a column if they are set.
"""

from __future__ import annotations

import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_numbers
from ase.io.extxyz import key_val_str_to_dict, read_xyz, write_xyz

from .labels import ARRAY, TABLE, check_characters, get_labels, set_labels

__all__ = ["read_nepcg_train", "write_nepcg_train"]

_SPECIES = "nepcg_species"
_KEYS = {"lattice": "Lattice", "properties": "Properties"} | {
    key: key for key in ("energy", "virial", "stress", "pbc", "weight", "energy_weight", "temperature", "charge")
}
_COLUMNS = {"species": _SPECIES, "force": "forces"}


def read_nepcg_train(fileobj, index=-1):
    """Yield the frames ``index`` (an integer or a slice) of a file, given as a name or an open text file."""
    for atoms in read_xyz(fileobj, index=index, properties_parser=_parse_comment):
        yield _restored(atoms)


def write_nepcg_train(fileobj, images, **kwargs):
    """Write frames; ``kwargs`` (``columns``, ``write_info``, ``write_results``, …) as for ``ase.io.extxyz.write_xyz``.

    Raises :class:`~ase_nepcg.labels.LabelError` for labels that do not fit into one column.
    """
    images = [images] if hasattr(images, "get_positions") else images
    write_xyz(fileobj, (_prepared(atoms) for atoms in images), **kwargs)


def _parse_comment(line: str) -> dict:
    """The comment line as dictionary, keys in ASE's spelling, the species column under a name that ASE leaves alone."""
    info = {}
    for key, value in key_val_str_to_dict(line).items():
        key = _KEYS.get(key.lower(), key)
        if key in ("Lattice", "virial", "stress") and np.shape(value) == (9,):
            value = np.reshape(value, (3, 3), order="F")
        info[key] = value
    fields = info.get("Properties", "species:S:1:pos:R:3").split(":")
    names = fields[::3]
    fields[::3] = [_COLUMNS.get(name, name) if _COLUMNS.get(name) not in names else name for name in names]
    info["Properties"] = ":".join(fields)
    return info


def _restored(atoms):
    """``atoms`` with numbers, labels and masses from the columns of the file."""
    names = atoms.arrays.pop(_SPECIES, None)
    names = atoms.arrays.pop(ARRAY, names)
    if names is not None and not set(names) <= atomic_numbers.keys() - {"X"}:
        own_tags = atoms.get_tags() if atoms.has("tags") and TABLE not in atoms.info else None
        set_labels(atoms, names)
        if own_tags is not None:  # with another use than labels
            atoms.set_tags(own_tags)
            del atoms.info[TABLE]
    elif names is not None:
        atoms.numbers[:] = [atomic_numbers[name] for name in names]
    if "mass" in atoms.arrays and not atoms.has("masses"):
        atoms.set_masses(atoms.arrays.pop("mass"))
    if atoms.calc is not None:  # results belong to the numbers they were stored with
        atoms.calc = SinglePointCalculator(atoms, **atoms.calc.results)
    return atoms


def _prepared(atoms):
    """A copy of ``atoms`` that ASE writes with the labels as species."""
    labels = get_labels(atoms)
    check_characters(labels)
    frame = atoms.copy()
    frame.calc = atoms.calc
    frame.arrays.pop(ARRAY, None)
    if frame.info.pop(TABLE, None) is not None:
        frame.arrays.pop("tags", None)
    if np.size(frame.info.get("virial")) == 9:
        frame.info["virial"] = np.reshape(np.asarray(frame.info["virial"], dtype=float), (3, 3))
    frame.set_array("symbols", labels)
    return frame
