"""The ASE file format ``nepcg-train``: training frames as extended XYZ whose species may be any bead name.

>>> frames = ase.io.read("train.xyz", index=":", format="nepcg-train")
>>> ase.io.write("test.nepcg.xyz", frames)  # the name *.nepcg.xyz implies the format

ASE alone refuses a species WAT, takes a bead called F for fluorine of mass 19, and rounds columns to 8 decimals. Here
every number is written with as many digits as it has, so that reading gives back the same bits.

Reading: names are taken literally. A frame of chemical symbols only becomes ordinary atoms; any other gets labels (see
:mod:`ase_nepcg.labels`). A column ``masses`` or ``mass`` gives the masses, ``force`` or ``forces`` the forces. The keys
that trainers know may be in any case (``lattice``, ``Energy``, ``Virial``). Keys ``virial…`` with nine numbers are
(3, 3) arrays in ``info``. ``virial`` is in eV, positive = compressed; ``stress`` has ASE's sign and becomes a virial;
either gives the calculator its stress. Where ``energy_weight`` is 0 there is no energy
(:class:`~ase_nepcg.dataset.FrameCalculator`); a number other than 0 that stands there all the same is kept as
``info["unused_energy"]``.

Writing: the labels stand in the species column and nowhere else. Masses stand in two equal columns, since a missing one
is a silent error in other programs: ``masses`` is what ASE reads, ``mass`` what ``gpumd`` reads when a frame serves as
its ``model.xyz``. Stresses are written as ``virial``. Results without an energy get ``energy=0 energy_weight=0``,
because GPUMD's trainer insists on a number. Entries of ``info`` that are None are left out.

GPUMD splits the comment line at blanks, in quotes too, and looks at the beginnings of the pieces: a string with
``energy=5`` in it would be an energy. Strings and names that could be misread so are refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from ase import Atoms

from .dataset.reader import read_frames
from .dataset.results import DatasetError
from .dataset.writer import format_frame

__all__ = ["read_nepcg_train", "write_nepcg_train"]


def read_nepcg_train(fileobj, index=-1) -> Iterator[Atoms]:
    """Yield the frames ``index`` (an integer or a slice) of a file, given as a name or an open text file.

    Raises :class:`~ase_nepcg.dataset.DatasetError` for a malformed file, ``IndexError`` for a frame that is not there.
    """
    if isinstance(fileobj, str | os.PathLike):
        with open(fileobj) as file:
            yield from read_frames(file, index, fileobj)
    else:
        yield from read_frames(fileobj, index, getattr(fileobj, "name", None))


def write_nepcg_train(fileobj, images) -> None:
    """Write ``Atoms`` or an iterable of them to a file, given as a name or an open text file.

    Results are those a calculator has stored for these very positions; nothing is calculated. Raises
    :class:`~ase_nepcg.dataset.DatasetError` for what cannot be written, and then writes nothing.
    :func:`~ase_nepcg.write_dataset` checks more and replaces files at once.
    """
    texts = []
    for i, atoms in enumerate([images] if isinstance(images, Atoms) else images):
        try:
            texts.append(format_frame(atoms))
        except DatasetError as error:
            raise DatasetError(str(error), frame=i) from error
    if isinstance(fileobj, str | os.PathLike):
        with open(fileobj, "w") as file:
            file.writelines(texts)
    else:
        fileobj.writelines(texts)
