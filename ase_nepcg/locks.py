"""Locks on files that one run at a time may use."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time

__all__ = ["acquire", "locked"]

# a killed run may need this long to end
PATIENCE_SECONDS = 2.0
# file systems without locks
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def acquire(fd: int, patience: float | None = None) -> bool:
    """Lock the open file ``fd`` (``flock``, released when it is closed or the process ends).

    False: after ``patience`` seconds (None: PATIENCE_SECONDS) another process still has it. True where the file system
    knows no locks.
    """
    deadline = time.monotonic() + (PATIENCE_SECONDS if patience is None else patience)
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return True
            raise


@contextlib.contextmanager
def locked(path, error: Exception):
    """Hold the lock file ``path``, which is there for that time only; raises ``error`` if another process holds it."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not acquire(fd):
                raise error
            if _is_file(fd, path):
                break
        except BaseException:
            os.close(fd)
            raise
        # its last holder has removed it between opening and locking
        os.close(fd)
    try:
        yield
    finally:
        if _is_file(fd, path):
            os.unlink(path)
        os.close(fd)


def _is_file(fd: int, path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
