"""A file that a run writes: what it is after a kill, a full disk or an interrupt, and who may write to it.

Two formats of a few lines, and all the real ones.
"""

import fcntl
import gc
import json
import os
import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.constraints import FixAtoms
from md_files import KINDS, SUFFIXES, FakeMD, file_of, make, new_beads, read_count, write_frames

from ase_nepcg import FixBeads, NepCGError, locks
from ase_nepcg.md import outfile
from ase_nepcg.md.outfile import HEAD, Output, OutputError, checked_interval, write_all
from ase_nepcg.md.outputs import open_output, output_from_dict


@pytest.fixture
def beads():
    return new_beads()


class Lines(Output):
    """A line per frame: ``md`` is the text, ``atoms`` the name of the system in the first line."""

    kind = "lines"
    compared = 0

    def _patches(self, atoms, md):
        size = self._size()
        return [(size, (f"{atoms}\n" * (size == 0) + md).encode())]

    def _compare(self, atoms):
        self.compared += 1
        found = self._head().split(b"\n")[0].decode()
        if found != atoms:
            raise OutputError(f"{self.path}: frames of {found}, not of {atoms}")


class Counted(Output):
    """Records of eight bytes, and at the beginning how many there are: ``md`` is a number."""

    kind = "counted"
    count = None

    def _forget(self):
        self.count = None

    def _patches(self, atoms, md):
        if self.count is None:
            self.count = struct.unpack("<q", self._head()[:8])[0] if self._size() else 0
        self.count += 1
        return [(8 * self.count, struct.pack("<q", md)), (0, struct.pack("<q", self.count))]

    def _compare(self, atoms):
        pass

    def _is_same(self, size, head, tail):
        return True


def numbers_in(path):
    count, *numbers = struct.unpack(f"<{path.stat().st_size // 8}q", path.read_bytes())
    assert count == len(numbers)
    return numbers


# ---- marks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("before", "after"), [(0, 2), (1, 1), (1, 5), (3, 60), (42, 2), (43, 8)])
def test_a_killed_run_ends_with_the_same_file(beads, tmp_path, kind, before, after):
    """Before: frames at the mark; after: frames that a killed run had written beyond it. 42: first table of ulm."""
    beads.set_constraint([FixAtoms([0]), FixBeads([[1, 2]])])
    whole, killed = file_of(tmp_path / "whole", kind), file_of(tmp_path / "killed", kind)
    whole.parent.mkdir()
    killed.parent.mkdir()
    more = 2
    output = make(kind, whole)
    write_frames(output, FakeMD(beads.copy()), before + more)
    output.close()

    md = FakeMD(beads.copy())
    output = make(kind, killed)
    write_frames(output, md, before)
    mark = json.loads(json.dumps(output.mark()))
    settings = json.loads(json.dumps(output.todict()))
    at_mark = killed.read_bytes()
    write_frames(output, md, after)
    # half a frame, as left by kill -9
    output.close()
    with open(killed, "ab") as file:
        file.write(b"half a frame")

    # another process: other objects
    atoms = ase.io.jsonio.decode(ase.io.jsonio.encode(beads))
    output = output_from_dict(settings)
    assert output.interval == 10
    output.restore(mark)
    assert killed.read_bytes() == at_mark
    if kind in SUFFIXES and before:
        assert read_count(killed) == before
    write_frames(output, FakeMD(atoms, before), more)
    output.close()
    assert killed.read_bytes() == whole.read_bytes()
    if kind in SUFFIXES:
        assert read_count(killed) == before + more


def test_restore_while_open(beads, tmp_path):
    """The same object may go back and on."""
    for suffix in SUFFIXES:
        md = FakeMD(beads.copy())
        output = open_output(tmp_path / f"run{suffix}")
        write_frames(output, md, 2)
        mark = output.mark()
        write_frames(output, md, 45)
        output.restore(mark)
        md = FakeMD(beads.copy(), 2)
        write_frames(output, md, 1)
        assert read_count(tmp_path / f"run{suffix}") == 3


@pytest.mark.parametrize("kind", KINDS)
def test_restore_refuses_what_is_not_the_file(beads, tmp_path, kind):
    path = file_of(tmp_path, kind)
    md = FakeMD(beads)
    output = make(kind, path)
    write_frames(output, md, 3)
    mark, settings = output.mark(), output.todict()
    output.close()
    content = path.read_bytes()

    path.write_bytes(content[:-1])
    with pytest.raises(OutputError, match="shorter"):
        output_from_dict(settings).restore(mark)
    assert path.read_bytes() == content[:-1]

    path.write_bytes(b"something else" * 1000)
    with pytest.raises(OutputError, match="not the file"):
        output_from_dict(settings).restore(mark)
    assert path.read_bytes() == b"something else" * 1000

    path.unlink()
    with pytest.raises(OutputError, match="no such file"):
        output_from_dict(settings).restore(mark)
    assert not path.exists()


def test_a_mark_is_small_and_everything_up_to_it_is_on_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(outfile.os, "fsync", synced.append)
    output = Lines(tmp_path / "run", np.int64(5))
    assert output.mark() == {"size": 0, "head": "", "tail": ""}
    output.write("argon", "x" * 1000)
    mark = output.mark()
    assert len(synced) == 2
    assert mark == json.loads(json.dumps(mark))
    head = b"argon\n" + b"x" * (HEAD - 6)
    assert mark == {"size": 1006, "head": head.hex(), "tail": (b"x" * 64).hex()}
    assert output.todict() == {"kind": "lines", "path": str(tmp_path / "run"), "interval": 5}
    assert type(output.todict()["interval"]) is int


@pytest.mark.parametrize("name", ["run", b"run", Path("run")])
def test_a_relative_name_stays_the_same_file_in_another_folder(tmp_path, monkeypatch, name):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    output = Lines(name)
    output.write("argon", "1\n")
    mark, settings = output.mark(), output.todict()
    monkeypatch.chdir(tmp_path / "elsewhere")
    # errors name it as it was given
    assert output.path == os.fsdecode(name)
    assert settings["path"] == str(tmp_path / "run")
    output.write("argon", "2\n")
    output.close()
    Lines(settings["path"], append=True).restore(mark)
    assert (tmp_path / "run").read_text() == "argon\n1\n"
    assert list(Path().iterdir()) == []


def test_the_beginning_of_the_file_comes_back(tmp_path):
    path = tmp_path / "run"
    output = Counted(path)
    for number in (5, 6):
        output.write(None, number)
    mark = output.mark()
    for number in (7, 8):
        output.write(None, number)
    assert numbers_in(path) == [5, 6, 7, 8]
    output.restore(mark)
    assert numbers_in(path) == [5, 6]
    output.write(None, 9)
    assert numbers_in(path) == [5, 6, 9]


def test_a_mark_of_an_empty_file(tmp_path):
    output = Lines(tmp_path / "run")
    mark = output.mark()
    output.write("argon", "1\n")
    output.restore(mark)
    assert (tmp_path / "run").read_bytes() == b""
    # of whatever system now
    output.write("neon", "2\n")
    assert (tmp_path / "run").read_text() == "neon\n2\n"


def test_nothing_is_restored_without_a_mark(tmp_path):
    output = Lines(tmp_path / "run")
    output.write("argon", "1\n")
    output.restore(None)
    assert (tmp_path / "run").read_text() == "argon\n1\n"


@pytest.mark.parametrize("place", [0, 63, -64, -1])
def test_a_file_that_differs_in_its_first_or_last_bytes_is_another_one(tmp_path, place):
    path = tmp_path / "run"
    output = Lines(path)
    output.write("argon", "".join(map(chr, range(97, 123))) * 20)
    mark = output.mark()
    output.close()
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content + b"more")
    with pytest.raises(OutputError, match=r"run: not the file that the run has written.*put the file of the run back"):
        Lines(path, append=True).restore(mark)
    assert path.read_bytes() == content + b"more"


def test_a_file_that_was_cut_is_not_removed(tmp_path):
    """Also if the same output has made it."""
    path = tmp_path / "run"
    output = Lines(path)
    for text in ("1\n", "2\n"):
        output.write("argon", text)
    mark = output.mark()
    os.truncate(path, 8)
    with pytest.raises(OutputError, match=r"shorter \(8 bytes\) than at the time of the checkpoint \(10 bytes\)"):
        output.restore(mark)
    assert path.read_text() == "argon\n1\n"


# ---- what can go wrong --------------------------------------------------------------------------------------------


@pytest.fixture
def disk_limit():
    """A function: no file of this process gets longer than so many bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_full_disk(beads, tmp_path, kind, count, disk_limit):
    path = file_of(tmp_path, kind)
    md = FakeMD(beads)
    output = make(kind, path)
    write_frames(output, md, count)
    content = path.read_bytes()
    md.advance()
    disk_limit(len(content) + 20)
    try:
        with pytest.raises(OutputError, match=r"run.*File too large.*Make room"):
            output.write(md.atoms, md)
    finally:
        disk_limit(None)
    assert path.read_bytes() == content
    # and on it goes
    output.write(md.atoms, md)
    output.close()
    md = FakeMD(new_beads())
    output = make(kind, tmp_path / f"whole-{path.name}")
    write_frames(output, md, count + 1)
    output.close()
    assert path.read_bytes() == (tmp_path / f"whole-{path.name}").read_bytes()


def test_an_interrupt_leaves_no_half_frame(beads, tmp_path, monkeypatch):
    for suffix in SUFFIXES:
        path = tmp_path / f"run{suffix}"
        md = FakeMD(beads.copy())
        output = open_output(path)
        write_frames(output, md, 2)
        content = path.read_bytes()
        calls = []

        def interrupted(fd, data, place, calls=calls, original=os.pwrite):
            calls.append(place)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return original(fd, data[:10] if len(calls) == 1 else data, place)

        with monkeypatch.context() as patch:
            patch.setattr(outfile.os, "pwrite", interrupted)
            with pytest.raises(KeyboardInterrupt):
                output.write(md.atoms, md)
        assert len(calls) > 2
        assert path.read_bytes() == content
        write_frames(output, md, 1)
        assert read_count(path) == 3


@pytest.mark.parametrize("error", [ValueError("no such thing"), OutputError("cannot"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["frame", "second write"])
def test_errors_of_others_pass_and_leave_the_file_as_it_was(tmp_path, monkeypatch, error, where):
    path = tmp_path / "run"
    output = Counted(path)
    for number in (5, 6):
        output.write(None, number)

    def fail(*arguments):
        raise error

    with monkeypatch.context() as patch:
        if where == "frame":
            patch.setattr(output, "_patches", fail)
        else:
            # half of the count
            writes = iter([write_all, lambda fd, data, place: fail(write_all(fd, b"\xff" * 4, place)), write_all])
            patch.setattr(outfile, "write_all", lambda *a: next(writes)(*a))
        with pytest.raises(type(error)) as raised:
            output.write(None, 7)
    assert raised.value is error
    assert numbers_in(path) == [5, 6]
    # what is known of the file was forgotten
    assert output.count is None
    output.write(None, 8)
    assert numbers_in(path) == [5, 6, 8]


def test_slow_disks_that_take_a_few_bytes_at_a_time(tmp_path, monkeypatch):
    pwrite, calls = os.pwrite, []

    def few(fd, data, place):
        calls.append(place)
        return pwrite(fd, data[:3], place)

    monkeypatch.setattr(outfile.os, "pwrite", few)
    with open(tmp_path / "run", "w+b") as file:
        write_all(file.fileno(), bytearray(b"0123456789"), 4)
        write_all(file.fileno(), b"", 0)
    assert (tmp_path / "run").read_bytes() == b"\0\0\0\0000123456789"
    assert calls == [4, 7, 10, 13]


# ---- another system -----------------------------------------------------------------------------------------------


def test_a_file_is_compared_once_and_only_if_there_is_something_in_it(tmp_path):
    path = tmp_path / "run"
    output = Lines(path, append=True, atoms="argon")
    for text in ("1\n", "2\n"):
        output.write("argon", text)
    assert output.compared == 0
    output.close()
    output = Lines(path, append=True)
    for text in ("3\n", "4\n"):
        output.write("argon", text)
    assert output.compared == 1
    mark = output.mark()
    output.close()
    # a run that goes on has written the file itself
    output = Lines(path, append=True)
    output.restore(mark)
    output.write("argon", "5\n")
    assert output.compared == 0
    assert path.read_text() == "argon\n1\n2\n3\n4\n5\n"


def test_a_file_of_another_system_is_left_alone_and_free(tmp_path):
    path = tmp_path / "run"
    Lines(path).write("argon", "1\n")
    with pytest.raises(OutputError, match="frames of argon, not of neon") as raised:
        Lines(path, append=True, atoms="neon")
    # free at once, although the error still knows the output
    assert raised.tb is not None
    with open(path, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    output = Lines(path, append=True)
    with pytest.raises(OutputError, match="not of neon"):
        output.write("neon", "2\n")
    output.write("argon", "3\n")
    assert path.read_text() == "argon\n1\n3\n"
    # overwritten it may be
    Lines(path, atoms="neon").write("neon", "4\n")
    assert path.read_text() == "neon\n4\n"


# ---- who may write ------------------------------------------------------------------------------------------------

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def held(tmp_path):
    """A file that another process writes to until it is killed."""
    path = tmp_path / "run"
    path.write_text("argon\n1\n")
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield path, process
        process.kill()


@pytest.mark.parametrize("append", [True, False])
def test_a_file_of_another_process(held, monkeypatch, append):
    path, process = held
    with monkeypatch.context() as patch:
        patch.setattr(locks, "PATIENCE_SECONDS", 0.05)
        with pytest.raises(OutputError, match="another run writes to this file; wait until it has ended"):
            Lines(path, append=append)
    assert path.read_text() == "argon\n1\n"
    # killed runs leave no locks
    process.kill()
    output = Lines(path, append=append)
    output.write("argon", "2\n")
    assert path.read_text() == ("argon\n1\n2\n" if append else "argon\n2\n")


@pytest.mark.parametrize("end", ["close", "forget", "fail"])
def test_a_file_is_locked_as_long_as_its_output_is_there(tmp_path, end):
    path = tmp_path / "run"
    output = Lines(path)
    output.write("argon", "1\n")
    with open(path, "rb") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if end == "close":
            output.close()
        elif end == "forget":
            del output
            gc.collect()
        else:
            with pytest.raises(OutputError, match="not of neon"):
                Lines(path, append=True, atoms="neon")
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("name", ["same", "relative", "symbolic link", "hard link"])
def test_a_newer_output_of_the_same_process_takes_over(tmp_path, monkeypatch, name):
    path = tmp_path / "run"
    old = Lines(path)
    old.write("argon", "1\n")
    mark = old.mark()
    newer = {"same": path, "relative": "run"}.get(name, tmp_path / "link")
    monkeypatch.chdir(tmp_path)
    if name == "symbolic link":
        newer.symlink_to(path)
    elif name == "hard link":
        newer.hardlink_to(path)
    new = Lines(newer, append=True)
    for method, arguments in (
        (old.write, ("argon", "2\n")),
        (old.mark, ()),
        (old.check, ("argon",)),
        (old.restore, (mark,)),
    ):
        with pytest.raises(OutputError, match="gave its file to a newer one of the same name and cannot be used"):
            method(*arguments)
    new.write("argon", "3\n")
    # closing the older one does nothing to the newer one, nor to a file that has got its number since
    with open(tmp_path / "another", "wb") as another:
        old.close()
        del old, method
        gc.collect()
        os.fstat(another.fileno())
        new.write("argon", "4\n")
    assert path.read_text() == "argon\n1\n3\n4\n"


def test_two_files_of_one_process_do_not_disturb_each_other(tmp_path):
    outputs = [Lines(tmp_path / name) for name in ("a", "b")]
    for k, output in enumerate(outputs):
        output.write("argon", f"{k}\n")
    assert [(tmp_path / name).read_text() for name in ("a", "b")] == ["argon\n0\n", "argon\n1\n"]


def test_closed_outputs_say_so(tmp_path):
    output = Lines(tmp_path / "run")
    output.close()
    output.close()
    for attempt in (lambda: output.write("argon", "1\n"), output.mark, lambda: output.check("argon")):
        with pytest.raises(OutputError, match="this output was closed and cannot be used any more"):
            attempt()
    assert (tmp_path / "run").read_bytes() == b""


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_deleted_file_is_noticed(tmp_path, how):
    path = tmp_path / "run"
    output = Lines(path)
    output.write("argon", "1\n")
    if how == "deleted":
        path.unlink()
    else:
        (tmp_path / "other").write_text("other")
        (tmp_path / "other").replace(path)
    for attempt in (lambda: output.write("argon", "2\n"), output.mark):
        with pytest.raises(OutputError, match="deleted or replaced during the run"):
            attempt()
    output.close()
    # the name is free
    output = Lines(path)
    output.write("neon", "1\n")
    assert path.read_text() == "neon\n1\n"


def test_names_and_intervals_that_are_refused(tmp_path):
    assert issubclass(OutputError, NepCGError)
    assert issubclass(OutputError, OSError)
    with pytest.raises(OutputError, match=r"nowhere/run: cannot be written to \(No such file"):
        Lines(tmp_path / "nowhere" / "run")
    with pytest.raises(OutputError, match="expected the name of a file"):
        Lines(tmp_path)
    for interval in (0, -1, 1.0, True, "2", None):
        with pytest.raises(OutputError, match=r"interval: expected a positive number of steps, got "):
            Lines(tmp_path / "run", interval)
    assert list(tmp_path.iterdir()) == []
    assert [checked_interval(n) for n in (1, np.int32(7))] == [1, 7]
