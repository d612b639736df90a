import os
import subprocess
import sys

import pytest

from ase_nepcg.locks import acquire, locked

_HOLD = """
import sys
from ase_nepcg.locks import locked
with locked(sys.argv[1], RuntimeError("taken")):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock until it reads a line or is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    with process:
        yield process
        process.kill()


def test_one_process_at_a_time(holder, tmp_path):
    path = tmp_path / "lock"
    with pytest.raises(RuntimeError, match="mine"), locked(path, RuntimeError("mine")):
        pass
    fd = os.open(path, os.O_RDWR)
    assert not acquire(fd, patience=0.0)
    os.close(fd)
    holder.stdin.write("\n")
    holder.stdin.flush()
    holder.wait()
    assert not path.exists()
    with locked(path, RuntimeError("mine")):
        assert path.exists()
    assert not path.exists()


def test_killed_holder_leaves_no_lock(holder, tmp_path):
    path = tmp_path / "lock"
    holder.kill()
    holder.wait()
    assert path.exists()
    with locked(path, RuntimeError("mine")):
        pass
    assert not path.exists()


def test_released_after_an_error(tmp_path):
    path = tmp_path / "lock"
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locked(path, RuntimeError("mine")):
            1 / 0  # noqa: B018
    assert not path.exists()


def test_lock_of_a_removed_file_is_left_alone(tmp_path):
    # somebody has cleaned up: the new file of that name is another holder's
    path = tmp_path / "lock"
    with locked(path, RuntimeError("mine")):
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"
