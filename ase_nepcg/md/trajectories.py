"""Trajectories of a run: ASE's ``.traj``, extended XYZ and AMBER's NetCDF; see :mod:`.outputs`."""

from __future__ import annotations

import contextlib
import io
import os
import struct

import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_xyz
from ase.io.jsonio import encode
from ase.io.trajectory import TrajectoryReader, TrajectoryWriter

from ..dataset.reader import read_frames
from ..dataset.results import DatasetError
from ..labels import ARRAY, TABLE, get_labels, set_labels
from . import amber
from .outfile import HEAD, REMEDY, Output, OutputError, write_all

__all__ = ["AmberFile", "TrajFile", "XyzFile"]


def _compare_labels(path: str, found, labels) -> None:
    """Raise :class:`OutputError` naming the difference of the labels of a file and those of the run."""
    if len(found) != len(labels):
        text = f"its frames have {len(found)} sites, those of the run {len(labels)}"
    elif (found == labels).all():
        return
    else:
        i = int(np.argmax(found != labels))
        text = f"site {i} is {str(found[i])!r} in the file and {str(labels[i])!r} in the run"
        if sorted(found.tolist()) == sorted(labels.tolist()):
            text += " (the same sites in another order)"
    raise OutputError(f"{path}: has frames of another system, nothing can be appended: {text}; {REMEDY}")


# ---- .traj --------------------------------------------------------------------------------------------------------


class _Stage(io.RawIOBase):
    """A file as ASE sees it: reads come from the descriptor ``fd``, writes are collected in ``patches``.

    Reading is possible as long as nothing is collected.
    """

    def __init__(self, fd: int):
        self._fd, self._at, self._end = fd, 0, os.fstat(fd).st_size
        self.patches = []

    def write(self, data) -> int:
        last = self.patches[-1] if self.patches else None
        if last is None or last[0] + len(last[1]) != self._at:
            last = (self._at, bytearray())
            self.patches.append(last)
        last[1].extend(data)
        self._at += len(data)
        self._end = max(self._end, self._at)
        return len(data)

    def read(self, size=-1) -> bytes:
        data = os.pread(self._fd, self._end - self._at if size < 0 else size, self._at)
        self._at += len(data)
        return data

    def seek(self, offset, whence=os.SEEK_SET) -> int:
        self._at = int(offset) + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence]
        return self._at

    def tell(self) -> int:
        return self._at


class TrajFile(Output):
    """ASE's ``.traj``."""

    kind = "trajectory"
    _writer = None

    def _forget(self):
        self._writer = self._stage = None

    def _open(self, atoms, md) -> None:
        self._stage = _Stage(self._fd)
        if not self._size():
            self._writer = TrajectoryWriter(self._stage, "w")
            self._writer.set_description(md.todict() | {"interval": self.interval})
            return
        self._writer = TrajectoryWriter(self._stage, "a")
        # ASE has read the first frame in between
        self._stage.seek(0, os.SEEK_END)
        # ASE compares constraints by identity, and would repeat them in every frame
        known = self._writer.header_data
        if known is not None and encode(known["constraints"]) == encode(list(atoms.constraints)):
            known["constraints"] = list(atoms.constraints)

    def _patches(self, atoms, md):
        if self._writer is None:
            self._open(atoms, md)
        with _bare_calculator(_with_table(atoms)) as frame:
            self._writer.write(frame)
        patches, self._stage.patches = self._stage.patches, []
        return patches

    def _compare(self, atoms):
        try:
            with TrajectoryReader(_Stage(self._fd)) as reader:
                found = get_labels(reader[-1]) if len(reader) else None
        except Exception as error:
            # damaged files make ASE stumble in many ways
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OutputError(f"{self.path}: not a trajectory of ASE, or damaged ({reason}); {REMEDY}") from error
        if found is not None:
            _compare_labels(self.path, found, get_labels(atoms))

    def _is_same(self, size, head, tail):
        # the end may be a table of offsets, which fills later; format and tag stay
        return self._head()[: min(32, len(head))] == head[:32]

    def _rewind(self, size, head):
        super()._rewind(size, head)
        if size < HEAD:
            return
        # offsets of the frames that are no more: so that the same frames give the same file
        items, table = struct.unpack("<qq", head[32:48])
        room = 1
        while room < items:
            room *= 42
        write_all(self._fd, bytes(8 * (room - items)), table + 8 * items)


@contextlib.contextmanager
def _bare_calculator(atoms):
    """``atoms`` with the results of their calculator, without its parameters: ASE repeats these in every frame, and
    they are the whole model where it was not read from a file."""
    calc = atoms.calc
    if calc is not None and not isinstance(calc, SinglePointCalculator):
        atoms.calc = SinglePointCalculator(atoms, **calc.results)
        atoms.calc.name = calc.name
    try:
        yield atoms
    finally:
        atoms.calc = calc


def _with_table(atoms):
    """``atoms`` with the labels in tags and table, where ``.traj`` files keep them."""
    if ARRAY not in atoms.arrays or TABLE in atoms.info or atoms.get_tags().any():
        return atoms
    copy = atoms.copy()
    set_labels(copy, get_labels(atoms))
    if not np.array_equal(copy.numbers, atoms.numbers):
        return atoms
    if atoms.calc is not None:
        copy.calc = SinglePointCalculator(copy, **atoms.calc.results)
        copy.calc.name = atoms.calc.name
    return copy


# ---- .xyz ---------------------------------------------------------------------------------------------------------

# what the calculator says again for each frame, and the reader would take for its word
_STALE = ("energy", "free_energy", "stress", "dipole", "magmom", "energy_weight", "unused_energy", "step", "time_ps")


class XyzFile(Output):
    """Extended XYZ as ASE writes it, with step and time in ps in ``info`` and labels in the column ``bead``."""

    kind = "trajectory"

    def _patches(self, atoms, md):
        frame = atoms.copy()
        if ARRAY in frame.arrays or TABLE in frame.info:
            labels = get_labels(frame)
            frame.set_array(ARRAY, None)
            frame.set_array(ARRAY, labels, labels.dtype, ())
            if frame.info.pop(TABLE, None) is not None:
                # the tags were those of the table
                frame.set_array("tags", None)
        if not frame.has("masses"):
            frame.set_masses(frame.get_masses())
        frame.info = {
            key: value
            for key, value in frame.info.items()
            if not (key in _STALE or str(key).lower().startswith("virial"))
        }
        frame.info |= {"step": md.nsteps, "time_ps": md.time_ps}
        for name in ("forces", "energies", "stresses"):
            frame.arrays.pop(name, None)
        frame.calc = atoms.calc
        text = io.StringIO()
        write_xyz(text, frame)
        return [(self._size(), text.getvalue().encode())]

    def _compare(self, atoms):
        try:
            with open(self._place) as file:
                found = get_labels(next(read_frames(file, -1)))
        except (DatasetError, UnicodeDecodeError) as error:
            raise OutputError(
                f"{self.path}: nothing can be appended, its last frame cannot be read ({error}); {REMEDY}"
            ) from error
        _compare_labels(self.path, found, get_labels(atoms))


# ---- .nc ----------------------------------------------------------------------------------------------------------


class AmberFile(Output):
    """AMBER's NetCDF, see :mod:`.amber`."""

    kind = "trajectory"
    _begin = None

    def _forget(self):
        self._begin = None

    def _patches(self, atoms, md):
        record = amber.record_of(atoms, md.time_ps)
        if not self._size():
            header = amber.header_of(atoms)
            return [(0, header + record), (4, struct.pack(">i", 1))]
        if self._begin is None:
            self._begin = len(amber.header_of(atoms))
        frames = struct.unpack(">i", os.pread(self._fd, 4, 4))[0]
        return [(self._begin + frames * len(record), record), (4, struct.pack(">i", frames + 1))]

    def _compare(self, atoms):
        header = amber.header_of(atoms)
        try:
            with open(self._place, "rb") as file:
                found, masses = amber.read_header(file)
        except ValueError as error:
            raise OutputError(
                f"{self.path}: nothing can be appended to a file of another program or version ({error}); {REMEDY}"
            ) from error
        _compare_labels(self.path, found, get_labels(atoms))
        wrong = masses != atoms.get_masses()
        if wrong.any():
            i = int(np.argmax(wrong))
            raise OutputError(
                f"{self.path}: has frames of another system, nothing can be appended: site {i} has mass {masses[i]:g} "
                f"in the file and {atoms.get_masses()[i]:g} in the run; {REMEDY}"
            )
        frames = struct.unpack(">i", self._head()[4:8])[0]
        if self._size() < len(header) + frames * amber.record_size(len(atoms)):
            raise OutputError(f"{self.path}: cut short, nothing can be appended; {REMEDY}")

    def _is_same(self, size, head, tail):
        # the number of frames may have grown
        now = self._head()
        same = now[:4] + now[8 : len(head)] == head[:4] + head[8:]
        return same and self._tail(size) == tail
