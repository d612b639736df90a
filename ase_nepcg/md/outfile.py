"""A file that a run writes, such that a killed run can go on with it; the kinds of files are in :mod:`.outputs`."""

from __future__ import annotations

import os
import stat
import weakref
from typing import ClassVar

from ..errors import NepCGError, is_integer
from ..locks import acquire

__all__ = ["HEAD", "REMEDY", "Output", "OutputError", "checked_interval", "write_all"]

# bytes at the beginning of a file that may change after they were written, and at its end that a mark knows
HEAD, _TAIL = 64, 64
# (device, inode) -> the output of this process that holds the file
_HOLDERS: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
REMEDY = "choose another name, or let the run overwrite it (append_trajectory=False)"


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
        self.interval = checked_interval(interval)
        self.path = os.fsdecode(path)
        # the same file wherever the process goes meanwhile
        self._place = os.path.abspath(self.path)
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
                write_all(self._fd, data, place)
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
        return {"size": size, "head": self._head().hex(), "tail": self._tail(size).hex()}

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
            if self._new and not self._size():
                # made by this object
                os.unlink(self._place)
                self.close()
                raise OutputError(f"{self.path}: the run has written {size} bytes, but there is no such file; {remedy}")
            raise OutputError(
                f"{self.path}: shorter ({self._size()} bytes) than at the time of the checkpoint ({size} bytes), so it "
                f"was cut or replaced; {remedy}"
            )
        if size and not self._is_same(size, head, tail):
            raise OutputError(f"{self.path}: not the file that the run has written, the contents differ; {remedy}")
        self._rewind(size, head)
        # what stands there was written by the run itself
        self._checked = size > 0

    def todict(self) -> dict:
        """What :func:`output_from_dict` needs, JSON-compatible."""
        return {"kind": self.kind, "path": self._place, "interval": self.interval}

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
        return os.pread(self._fd, HEAD, 0)

    def _tail(self, size: int) -> bytes:
        """What stands before the place ``size``."""
        start = max(size - _TAIL, 0)
        return os.pread(self._fd, size - start, start)

    def _is_same(self, size: int, head: bytes, tail: bytes) -> bool:
        """Whether the file has been the marked one."""
        return self._tail(size) == tail and self._head()[: len(head)] == head

    def _rewind(self, size: int, head: bytes) -> None:
        os.ftruncate(self._fd, size)
        write_all(self._fd, head, 0)
        self._forget()


def checked_interval(interval) -> int:
    if not is_integer(interval) or interval < 1:
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
    if holder is not None and holder._ended is None:
        holder._ended = "gave its file to a newer one of the same name"
        holder.close()
    try:
        if not acquire(fd):
            raise OutputError(
                f"{path}: another run writes to this file; wait until it has ended, or choose another name"
            )
    except BaseException:
        os.close(fd)
        raise
    return fd


def write_all(fd: int, data, place: int) -> None:
    data = memoryview(data)
    while data:
        written = os.pwrite(fd, data, place)
        data, place = data[written:], place + written
