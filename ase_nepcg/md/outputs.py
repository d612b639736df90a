"""Files that a run writes, frame by frame or line by line, such that a killed run can go on with them.

>>> md.add_output(open_output("run.nc", interval=1000))
>>> md.add_output(ThermoOutput("run.csv", interval=100))

Each output holds its file open and locked (``flock``). A frame is made in memory and then written: first what is new, at
the end of the file, then the few numbers at its beginning that make it count. So a reader sees complete frames at all
times, and a write that fails is undone. :meth:`Output.mark` describes the state of a file in a few bytes, which a
checkpoint contains; :meth:`Output.restore` brings this state back later, whatever has been written since.

Formats of trajectories: ``.traj`` (ASE; everything, the labels of beads in tags and ``info``), ``.xyz`` or ``.extxyz``
(extended XYZ; everything, labels in the column ``bead``; 8 decimals), ``.nc`` (AMBER, :mod:`.amber`; positions and
velocities in single precision, for long runs: 24 bytes per site and frame).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import stat
import struct
import time
import warnings
import weakref
from typing import ClassVar

import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_xyz
from ase.io.jsonio import encode
from ase.io.trajectory import TrajectoryReader, TrajectoryWriter
from ase.md.logger import MDLogger

from ..dataset.reader import read_frames
from ..dataset.results import DatasetError
from ..errors import NepCGError, closest
from ..labels import ARRAY, TABLE, get_labels, set_labels
from . import amber

__all__ = [
    "FORMATS",
    "AseLog",
    "Output",
    "OutputError",
    "ThermoOutput",
    "WriterOutput",
    "open_output",
    "output_from_dict",
]

# bytes at the beginning of a file that may change after they were written, and at its end that a mark knows
_HEAD, _TAIL = 64, 64
# a killed run may need this long to end
_PATIENCE_SECONDS = 1.0
# file systems without locks
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
# (device, inode) -> the output of this process that holds the file
_HOLDERS: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
_ANEW = "choose another name, or let the run overwrite it (append_trajectory=False)"


class OutputError(NepCGError, OSError):
    """A file that cannot be written, is used by another run, or is not the one that the run has written."""


class Output:
    """A file that grows by a frame or a line with each :meth:`write`.

    ``path``; ``interval``: steps between writes; ``append``: go on with an existing file, which must be of the same
    system (checked at the first write, or now if ``atoms`` are given), instead of overwriting it.

    A newer output of the same process takes the file over: the older one then refuses to write.

    Raises :class:`OutputError` if the file cannot be opened, or is used by another process.
    """

    kind: ClassVar[str]

    def __init__(self, path, interval=1, append=False, atoms=None):
        self.interval = _checked_interval(interval)
        self.path = os.fspath(path)
        self._new = not os.path.exists(self.path)
        self._fd, self._ended = _open_locked(self.path), None
        self._close = weakref.finalize(self, os.close, self._fd)
        place = os.fstat(self._fd)
        _HOLDERS[place.st_dev, place.st_ino] = self
        if not append:
            os.ftruncate(self._fd, 0)
        self._checked = False
        if atoms is not None:
            try:
                self.check(atoms)
            except BaseException:
                self.close()
                raise

    # --- of the kinds of files -------------------------------------------------------------------------------------

    def _patches(self, atoms, md) -> list:
        """What has to be written for a frame: pairs of a place in the file and bytes, in this order."""
        raise NotImplementedError

    def _compare(self, atoms) -> None:
        """Raise :class:`OutputError` if frames of ``atoms`` cannot follow what is in the file (which is not empty)."""
        raise NotImplementedError

    def _forget(self) -> None:
        """The file has changed: whatever is known of it is not valid any more."""

    # --- for the driver --------------------------------------------------------------------------------------------

    def check(self, atoms) -> None:
        """Raise :class:`OutputError` if the file has frames of another system than ``atoms``, naming the difference."""
        self._require_open()
        if not self._checked and self._size():
            self._compare(atoms)
        self._checked = True

    def write(self, atoms, md) -> None:
        """Append the present state of the run ``md`` of ``atoms``.

        Raises :class:`OutputError` if this fails, as on a full disk; then the file is as it was before.
        """
        self.check(atoms)
        size, head = self._size(), self._head()
        try:
            for place, data in self._patches(atoms, md):
                _write_all(self._fd, data, place)
        except BaseException as error:
            self._rewind(size, head)
            if not isinstance(error, OSError) or isinstance(error, OutputError):
                raise
            raise OutputError(
                f"{self.path}: a frame cannot be written ({error.strerror or error}); the file is as it was before, "
                "with all earlier frames. Make room or choose another place, then go on from the last checkpoint"
            ) from error

    def mark(self) -> dict | None:
        """The present state of the file, JSON-compatible; everything up to it is on disk. None: cannot be restored."""
        self._require_open()
        os.fsync(self._fd)
        size = self._size()
        tail = os.pread(self._fd, _TAIL, max(size - _TAIL, 0))
        return {"size": size, "head": self._head().hex(), "tail": tail.hex()}

    def restore(self, mark: dict | None) -> None:
        """Bring back the state of the file when :meth:`mark` returned ``mark``; what was written later is cut off.

        Raises :class:`OutputError` if the file is shorter, missing, or not the one that was marked.
        """
        if mark is None:
            return
        self._require_open()
        size, head, tail = mark["size"], bytes.fromhex(mark["head"]), bytes.fromhex(mark["tail"])
        remedy = "put the file of the run back in its place, or start a new run"
        if self._size() < size:
            if self._new:
                # made by this object
                os.unlink(self.path)
                self.close()
                raise OutputError(f"{self.path}: the run has written {size} bytes, but there is no such file; {remedy}")
            raise OutputError(
                f"{self.path}: shorter ({self._size()} bytes) than at the time of the checkpoint ({size} bytes), it was "
                f"cut or replaced; {remedy}"
            )
        if not self._is_same(size, head, tail):
            raise OutputError(f"{self.path}: not the file that the run has written, the contents differ; {remedy}")
        self._rewind(size, head)
        # what stands there was written by the run itself
        self._checked = size > 0

    def todict(self) -> dict:
        """What :func:`output_from_dict` needs, JSON-compatible."""
        return {"kind": self.kind, "path": self.path, "interval": self.interval}

    def close(self) -> None:
        """Close the file and release its lock."""
        if self._ended is None:
            self._ended = "was closed"
        self._forget()
        self._close()

    # --- the file --------------------------------------------------------------------------------------------------

    def _require_open(self) -> None:
        if self._ended is not None:
            raise OutputError(f"{self.path}: this output {self._ended} and cannot be used any more")
        if not os.fstat(self._fd).st_nlink:
            raise OutputError(
                f"{self.path}: the file was deleted or replaced during the run; what is written now would be lost"
            )

    def _size(self) -> int:
        return os.fstat(self._fd).st_size

    def _head(self) -> bytes:
        return os.pread(self._fd, _HEAD, 0)

    def _is_same(self, size: int, head: bytes, tail: bytes) -> bool:
        """Whether the file has been the marked one."""
        return os.pread(self._fd, _TAIL, max(size - _TAIL, 0)) == tail and self._head()[: len(head)] == head

    def _rewind(self, size: int, head: bytes) -> None:
        os.ftruncate(self._fd, size)
        _write_all(self._fd, head, 0)
        self._forget()


def _checked_interval(interval) -> int:
    if not isinstance(interval, int | np.integer) or isinstance(interval, bool) or interval < 1:
        raise OutputError(f"interval: expected a positive number of steps, got {interval!r}")
    return int(interval)


def _open_locked(path: str) -> int:
    """A descriptor for reading and writing of ``path``, made if necessary, that no other process has."""
    try:
        if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
            raise OutputError(f"{path}: expected the name of a file")
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{path}: cannot be written to ({error.strerror}); choose another name") from error
    place = os.fstat(fd)
    holder = _HOLDERS.get((place.st_dev, place.st_ino))
    if holder is not None:
        holder._ended = "gave its file to a newer one of the same name"
        holder.close()
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.02)
                continue
            os.close(fd)
            raise OutputError(
                f"{path}: another run writes to this file; wait until it has ended, or choose another name"
            ) from None
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return fd
            os.close(fd)
            raise


def _write_all(fd: int, data, place: int) -> None:
    data = memoryview(data)
    while data:
        written = os.pwrite(fd, data, place)
        data, place = data[written:], place + written


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
    raise OutputError(f"{path}: has frames of another system, nothing can be appended: {text}; {_ANEW}")


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


class _Traj(Output):
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
        self._writer.write(_with_table(atoms))
        patches, self._stage.patches = self._stage.patches, []
        return patches

    def _compare(self, atoms):
        try:
            with TrajectoryReader(_Stage(self._fd)) as reader:
                found = get_labels(reader[-1]) if len(reader) else None
        except Exception as error:
            # damaged files make ASE stumble in many ways
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OutputError(f"{self.path}: not a trajectory of ASE, or damaged ({reason}); {_ANEW}") from error
        if found is not None:
            _compare_labels(self.path, found, get_labels(atoms))

    def _is_same(self, size, head, tail):
        # the end may be a table of offsets, which fills later; format and tag stay
        return self._head()[: min(32, len(head))] == head[:32]

    def _rewind(self, size, head):
        super()._rewind(size, head)
        if size < _HEAD:
            return
        # offsets of the frames that are no more: so that the same frames give the same file
        items, table = struct.unpack("<qq", head[32:48])
        room = 1
        while room < items:
            room *= 42
        _write_all(self._fd, bytes(8 * (room - items)), table + 8 * items)


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


class _Xyz(Output):
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
        frame.calc = atoms.calc
        text = io.StringIO()
        write_xyz(text, frame)
        return [(self._size(), text.getvalue().encode())]

    def _compare(self, atoms):
        try:
            with open(self.path) as file:
                found = get_labels(next(read_frames(file, -1)))
        except (DatasetError, UnicodeDecodeError) as error:
            raise OutputError(
                f"{self.path}: nothing can be appended, its last frame cannot be read ({error}); {_ANEW}"
            ) from error
        _compare_labels(self.path, found, get_labels(atoms))


# ---- .nc ----------------------------------------------------------------------------------------------------------


class _Amber(Output):
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
            # that of another number of sites has another length
            found, masses = amber.parse_header(os.pread(self._fd, self._size(), 0)[: 1 << 30])
        except ValueError as error:
            raise OutputError(
                f"{self.path}: nothing can be appended to a file that another program or version has written ({error}); "
                f"{_ANEW}"
            ) from error
        _compare_labels(self.path, found, get_labels(atoms))
        wrong = masses != atoms.get_masses()
        if wrong.any():
            i = int(np.argmax(wrong))
            raise OutputError(
                f"{self.path}: has frames of another system, nothing can be appended: site {i} has mass {masses[i]:g} "
                f"in the file and {atoms.get_masses()[i]:g} in the run; {_ANEW}"
            )
        frames = struct.unpack(">i", self._head()[4:8])[0]
        if self._size() < len(header) + frames * amber.record_size(len(atoms)):
            raise OutputError(f"{self.path}: cut short, nothing can be appended; {_ANEW}")

    def _is_same(self, size, head, tail):
        # the number of frames may have grown
        now = self._head()
        same = now[:4] + now[8 : len(head)] == head[:4] + head[8:]
        return same and os.pread(self._fd, _TAIL, max(size - _TAIL, 0)) == tail


# ---- text ---------------------------------------------------------------------------------------------------------

_STRESS = ("xx", "yy", "zz", "yz", "xz", "xy")


class ThermoOutput(Output):
    """A table (CSV) with a line per write and units in the names of the columns; stress is positive under tension,
    with its kinetic part, and ``nan`` without a cell."""

    kind = "thermo"
    columns = (
        *("step", "time_ps", "temperature_K", "potential_energy_eV", "kinetic_energy_eV", "conserved_energy_eV"),
        *("pressure_GPa", *(f"stress_{name}_GPa" for name in _STRESS), "volume_A3"),
        *("a_A", "b_A", "c_A", "alpha_deg", "beta_deg", "gamma_deg"),
    )

    def _patches(self, atoms, md):
        stress = md.stress_GPa()
        stress = np.full(6, np.nan) if stress is None else stress
        numbers = [
            *(md.time_ps, md.temperature_K(), md.potential_energy(), md.kinetic_energy(), md.conserved_energy()),
            *(-(stress[0] + stress[1] + stress[2]) / 3.0, *stress),
            *(atoms.cell.volume if atoms.cell.rank == 3 else np.nan, *atoms.cell.cellpar()),
        ]
        line = ",".join([str(md.nsteps), *(f"{number:.10g}" for number in numbers)]) + "\n"
        size = self._size()
        return [(size, ((",".join(self.columns) + "\n") * (size == 0) + line).encode())]

    def _compare(self, atoms):
        expected = (",".join(self.columns) + "\n").encode()
        if os.pread(self._fd, len(expected), 0) != expected:
            raise OutputError(f"{self.path}: nothing can be appended to a table with other columns; {_ANEW}")
        if os.pread(self._fd, 1, self._size() - 1) != b"\n":
            raise OutputError(f"{self.path}: nothing can be appended, the last line is not complete; {_ANEW}")


class AseLog(Output):
    """The lines of ASE's ``MDLogger``; an existing file is continued, as by ASE, with a header per run.

    ``logfile``: name, "-" for standard output, or an open text file; the last two have no marks.
    """

    kind = "log"

    def __init__(self, logfile, interval=1, append=True):
        self._header_due, self._stream = True, None
        named = isinstance(logfile, str | os.PathLike)
        if named and logfile != "-" and (not os.path.exists(logfile) or os.path.isfile(logfile)):
            super().__init__(logfile, interval, append=append)
            return
        self.interval, self.path = _checked_interval(interval), None
        if named:
            self._stream, self._target = "-", os.fspath(logfile)
        elif hasattr(logfile, "write"):
            self._stream, self._target = logfile, None
        else:
            raise OutputError(f"logfile: expected a name, '-' or an open text file, got {logfile!r}")

    def _text(self, atoms, md) -> str:
        text = io.StringIO()
        MDLogger(md, atoms, text, header=self._header_due)()
        return text.getvalue()

    def _patches(self, atoms, md):
        return [(self._size(), self._text(atoms, md).encode())]

    def _compare(self, atoms):
        """Logs of several runs may stand in one file."""

    def write(self, atoms, md):
        if self._stream is None:
            super().write(atoms, md)
        elif self._target == "-":
            # sys.stdout of now: notebooks and tests replace it
            print(self._text(atoms, md), end="", flush=True)
        elif self._target is not None:
            with open(self._target, "a") as file:
                file.write(self._text(atoms, md))
        else:
            self._stream.write(self._text(atoms, md))
            self._stream.flush()
        self._header_due = False

    def mark(self):
        return None if self._stream is not None else super().mark() | {"header_due": self._header_due}

    def restore(self, mark):
        if mark is not None and self._stream is None:
            super().restore(mark)
            self._header_due = mark["header_due"]

    def todict(self):
        if self._stream is None:
            return super().todict()
        return {"kind": self.kind, "path": self._target, "interval": self.interval}

    def close(self):
        if self._stream is None:
            super().close()


# ---- writers of others --------------------------------------------------------------------------------------------


class WriterOutput:
    """An open writer, as an ``ase.io.Trajectory``: ``target.write(atoms)`` every ``interval`` steps, without marks."""

    kind = "writer"
    path = None

    def __init__(self, target, interval=1):
        self.interval, self.target = _checked_interval(interval), target
        self._described = False

    def write(self, atoms, md) -> None:
        if not self._described and hasattr(self.target, "set_description"):
            self.target.set_description(md.todict() | {"interval": self.interval})
        self._described = True
        self.target.write(atoms)

    def check(self, atoms) -> None:
        """The writer looks after its file itself."""

    def mark(self) -> None:
        """None: nothing is known of the file."""

    def restore(self, mark) -> None:
        """Nothing can be restored."""

    def todict(self) -> dict:
        return {"kind": self.kind, "path": type(self.target).__name__, "interval": self.interval}

    def close(self) -> None:
        """Whoever opened the writer closes it."""


class _Nowhere:
    """In place of a writer that a restarted run does not have any more."""

    def write(self, atoms):
        pass


# ---- which one ----------------------------------------------------------------------------------------------------

#: suffix -> class of the trajectory
FORMATS = {".traj": _Traj, ".xyz": _Xyz, ".extxyz": _Xyz, ".nc": _Amber}


def open_output(target, interval=1, append=False, atoms=None):
    """The trajectory ``target``: a file name with a suffix of :data:`FORMATS`, or an open writer.

    ``append``, ``atoms``: as of :class:`Output`. Raises :class:`OutputError`.
    """
    if isinstance(target, Output | WriterOutput):
        return target
    if hasattr(target, "write") and not isinstance(target, os.PathLike):
        return WriterOutput(target, interval)
    if not isinstance(target, str | os.PathLike):
        raise OutputError(f"trajectory: expected a file name or an open writer, got {target!r}")
    suffix = os.path.splitext(os.fspath(target))[1].lower()
    if suffix not in FORMATS:
        hint = f": {closest(suffix, FORMATS)}" if suffix else ""
        raise OutputError(
            f"{os.fspath(target)}: the suffix says the format of a trajectory, expected .traj (ASE), .xyz (extended XYZ) "
            f"or .nc (AMBER, NetCDF){hint}"
        )
    return FORMATS[suffix](target, interval, append=append, atoms=atoms)


def output_from_dict(settings: dict):
    """The output that ``todict()`` described, to be continued with :meth:`Output.restore`.

    Writers and text files that were given open cannot be opened again: they are left out, with a warning.
    """
    kind, path, interval = settings["kind"], settings["path"], settings["interval"]
    if kind == "trajectory":
        return open_output(path, interval, append=True)
    if kind == "thermo":
        return ThermoOutput(path, interval, append=True)
    if kind == "log" and path is not None:
        return AseLog(path, interval)
    if kind not in ("log", "writer"):
        raise OutputError(f"unknown kind of output {kind!r}; expected trajectory, thermo, log or writer")
    warnings.warn(
        f"an output of the run was given as an open {'text file' if kind == 'log' else path}, which cannot be opened "
        "again: attach it anew if it is wanted",
        RuntimeWarning,
        stacklevel=2,
    )
    return WriterOutput(_Nowhere(), interval)
