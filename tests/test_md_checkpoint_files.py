"""Checkpoints and the files of a run: folders that move, processes that meet or are killed, disks that are full."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import ase.io
import md_restarts as runs
import numpy as np
import pytest
from md_restarts import assert_same, start

from ase_nepcg import MD, locks, nepfile
from ase_nepcg.checkpoint import CheckpointError
from ase_nepcg.md import MDError, Thermo, driver
from ase_nepcg.md.outputs import OutputError


def restart(path, **keywords):
    return MD.restart(path, progress=False, **keywords)


def begun(folder, steps=20, **keywords):
    """A run that ended after some steps and left a checkpoint."""
    md = start(folder, checkpoint=folder / "run.npz", **keywords)
    md.run(steps)
    md.close()
    return md


@pytest.fixture
def unbroken(tmp_path):
    """The folder of a run of 40 steps, and the run."""
    (folder,) = runs.folders(tmp_path, "unbroken")
    md = start(folder, checkpoint=folder / "run.npz")
    md.run(40)
    return folder, md


# ---- folders ------------------------------------------------------------------------------------------------------


def test_a_copy_goes_on_in_the_copy(tmp_path, unbroken):
    (first,) = runs.folders(tmp_path, "first")
    begun(first)
    before = runs.contents(first)
    copy = runs.copied(first, tmp_path / "copy")
    md = restart(copy / "run.npz")
    md.run(20)
    assert runs.contents(first) == before
    assert_same(unbroken[1], md)
    runs.assert_same_files(unbroken[0], copy)
    assert restart(copy / "run.npz").nsteps == 40
    # the original has not noticed
    md = restart(first / "run.npz")
    md.run(20)
    assert_same(unbroken[1], md)
    runs.assert_same_files(unbroken[0], first)


def test_a_folder_that_was_moved_or_linked(tmp_path, unbroken):
    (first,) = runs.folders(tmp_path, "first")
    # written through a link, which is gone later
    (tmp_path / "link").symlink_to(first)
    begun(tmp_path / "link")
    (tmp_path / "link").unlink()
    moved = Path(shutil.move(first, tmp_path / "moved"))
    md = restart(moved / "run.npz")
    md.run(20)
    assert not first.exists()
    assert_same(unbroken[1], md)
    runs.assert_same_files(unbroken[0], moved)


def test_files_elsewhere_stay_where_they_are(tmp_path, unbroken):
    data, first = runs.folders(tmp_path, "data", "first")
    md = start(data, checkpoint=first / "run.npz")
    md.run(20)
    md.close()
    moved = Path(shutil.move(first, tmp_path / "moved"))
    md = restart(moved / "run.npz")
    md.run(20)
    assert_same(unbroken[1], md)
    runs.assert_same_files(unbroken[0], data)
    assert [path.name for path in moved.iterdir()] == ["run.npz"]


def test_relative_names(tmp_path, unbroken, monkeypatch):
    first, other = runs.folders(tmp_path, "first", "other")
    monkeypatch.chdir(first)
    begun(Path())
    monkeypatch.chdir(other)
    md = restart(os.path.join("..", "first", "run.npz"))
    monkeypatch.chdir(tmp_path)
    md.run(20)
    assert not list(other.iterdir())
    assert_same(unbroken[1], md)
    runs.assert_same_files(unbroken[0], first)
    assert restart(first / "run.npz").nsteps == 40


def test_the_process_goes_elsewhere_during_the_run(tmp_path, unbroken, monkeypatch):
    first, other = runs.folders(tmp_path, "first", "other")
    monkeypatch.chdir(first)
    md = start(first, checkpoint="run.npz", checkpoint_interval=7)
    md.run(10)
    monkeypatch.chdir(other)
    md.run(10)
    md.close()
    assert not list(other.iterdir())
    md = restart(first / "run.npz")
    md.run(20)
    assert_same(unbroken[1], md)
    runs.assert_same_files(unbroken[0], first)


def test_logs_on_the_screen(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    md = start(tmp_path, files=(), logfile="-", checkpoint="run.npz")
    md.run(2)
    restart("run.npz").run(2)
    assert [path.name for path in tmp_path.iterdir()] == ["run.npz"]
    assert len(capsys.readouterr().out.splitlines()) >= 5


@pytest.mark.parametrize("name", runs.FILES)
def test_a_file_that_is_shorter_or_another(tmp_path, name):
    begun(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-1])
    before = runs.contents(tmp_path)
    with pytest.raises(OutputError, match=rf"{name}: shorter .*put the file of the run back"):
        restart(tmp_path / "run.npz")
    assert runs.contents(tmp_path) == before
    (tmp_path / name).unlink()
    with pytest.raises(OutputError, match=rf"{name}: .*no such file.*put the file of the run back"):
        restart(tmp_path / "run.npz")
    assert runs.contents(tmp_path) == {file: old for file, old in before.items() if file != name}
    (tmp_path / name).write_bytes(content + b"written later")
    restart(tmp_path / "run.npz").close()
    assert (tmp_path / name).read_bytes() == content


# ---- when they are written ----------------------------------------------------------------------------------------


@pytest.fixture
def saved(monkeypatch):
    """Steps after which checkpoints were written."""
    steps = []
    write = driver._checkpoint.write

    def spy(path, md):
        steps.append(md.nsteps)
        write(path, md)

    monkeypatch.setattr(driver._checkpoint, "write", spy)
    return steps


def test_interval_of_checkpoints(tmp_path, saved):
    md = start(tmp_path, files=(), checkpoint=tmp_path / "run.npz", checkpoint_interval=7)
    md.run(20)
    md.run(10)
    assert sorted(set(saved)) == [7, 14, 20, 21, 28, 30]
    assert not list(tmp_path.glob("*.lock"))
    restart(tmp_path / "run.npz").run(6)
    assert sorted(set(saved)) == [7, 14, 20, 21, 28, 30, 35, 36]


def test_about_every_minute(tmp_path, saved, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(driver, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    md = start(tmp_path, files=(), checkpoint=tmp_path / "run.npz")

    def pass_time():
        clock[0] += 25.0

    md.attach(pass_time, 5)
    md.run(42)
    assert sorted(set(saved)) == [10, 25, 40, 42]


def test_about_every_minute_without_anything_due(tmp_path, saved, monkeypatch):
    clock = [0.0]

    def monotonic():
        clock[0] += 40.0
        return clock[0]

    monkeypatch.setattr(driver, "time", SimpleNamespace(monotonic=monotonic))
    md = start(tmp_path, files=(), checkpoint=tmp_path / "run.npz")
    md.run(5000)
    assert len(set(saved)) > 2
    assert 0 < min(saved) < max(saved) == 5000


def test_full_disk_keeps_the_older_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    md = start(tmp_path, files=(), checkpoint=path)
    md.run(10)
    content = path.read_bytes()

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(nepfile.os, "fsync", full)
        for attempt in (lambda: md.checkpoint(path), lambda: md.run(10)):
            with pytest.raises(CheckpointError, match=r"run\.npz: .*No space left.*older one is as it was.*Make room"):
                attempt()
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]
    # nothing is lost in memory either
    md.run(10)
    unbroken = start(tmp_path, files=())
    unbroken.run(30)
    assert_same(unbroken, md)
    assert restart(path).nsteps == 30


@pytest.mark.parametrize("times", [1, 99])
def test_full_disk_for_one_of_the_files(tmp_path, unbroken, monkeypatch, times):
    """Some files have the frame of this step, others have not: a checkpoint says so, or is not written."""
    (first,) = runs.folders(tmp_path, "first")
    md = start(first, checkpoint=first / "run.npz", checkpoint_interval=6)
    output = next(one for one in md.outputs if one.path.endswith(".nc"))
    patches, failed = output._patches, []

    def full(atoms, run):
        if run.nsteps == 20 and len(failed) < times:
            failed.append(run.nsteps)
            raise OSError(errno.ENOSPC, "No space left on device")
        return patches(atoms, run)

    monkeypatch.setattr(output, "_patches", full)
    with pytest.raises(OutputError, match=r"run\.nc: .*No space left"):
        md.run(40)
    assert failed
    md.close()
    again = restart(first / "run.npz")
    assert again.nsteps == (20 if times == 1 else 18)
    again.run(40 - again.nsteps)
    assert_same(unbroken[1], again)
    runs.assert_same_files(unbroken[0], first)


# ---- two processes ------------------------------------------------------------------------------------------------

CHILD = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_md_checkpoint_files
getattr(test_md_checkpoint_files, sys.argv[1])(Path(sys.argv[2]), int(sys.argv[3]))
"""


def process(function, folder, steps=0, **keywords):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, function, str(folder), str(steps)], stdout=subprocess.PIPE, text=True, **keywords
    )


def child_that_waits(folder, steps):
    md = start(folder, files=(), checkpoint=folder / "run.npz")

    def wait():
        print("in the run", flush=True)
        sys.stdin.readline()

    md.attach(wait, -5)
    md.run(10)


def test_two_processes_with_one_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE_SECONDS", 0.1)
    path = tmp_path / "run.npz"
    md = start(tmp_path, files=(), checkpoint=path)
    other = start(tmp_path, files=(), checkpoint=tmp_path / "other.npz")
    with process("child_that_waits", tmp_path, stdin=subprocess.PIPE) as child:
        assert child.stdout.readline() == "in the run\n"
        assert (tmp_path / "run.npz.lock").exists()
        for attempt in (lambda: md.run(5), lambda: next(md.irun(5)), lambda: MD.batch([other, md]).run(5)):
            with pytest.raises(MDError, match=r"run\.npz: another run writes this checkpoint; wait until"):
                attempt()
        assert md.nsteps == other.nsteps == 0
        assert not path.exists()
        child.kill()
        child.wait()
    assert (tmp_path / "run.npz.lock").exists()
    md.run(5)
    assert {p.name for p in tmp_path.iterdir()} == {"run.npz", "other.npz"}
    # another run in this process is another run, too
    twin = start(tmp_path, files=(), checkpoint=path)
    md.attach(lambda: twin.run(1), -7)
    with pytest.raises(MDError, match="another run"):
        md.run(5)
    assert not list(tmp_path.glob("*.lock"))
    assert restart(path).nsteps == 7


# ---- kill -9 ------------------------------------------------------------------------------------------------------

KILLED_FILES = ("run.traj", "run.nc", "run.csv")


def child_that_is_killed(folder, steps):
    path = folder / "run.npz"
    new = {"files": KILLED_FILES, "checkpoint": path, "checkpoint_interval": 20}
    md = restart(path) if path.exists() else start(folder, **new)
    first = md.nsteps
    # when all kernels are there
    md.attach(lambda: print(first, flush=True), -first - 1)
    md.run(steps - first)


def check_kills(tmp_path, kills, steps, longest):
    whole, part = runs.folders(tmp_path, "whole", "part")
    md = start(whole, files=KILLED_FILES, checkpoint=whole / "run.npz", checkpoint_interval=20)
    md.run(steps)
    rng = np.random.default_rng()
    began, killed = [], 0
    while True:
        with process("child_that_is_killed", part, steps) as child:
            began.append(int(child.stdout.readline()))
            if killed < kills:
                time.sleep(rng.uniform(0.0, longest))
                child.kill()
                killed += 1
            child.wait()
        assert child.returncode in (0, -signal.SIGKILL)
        if child.returncode == 0:
            break
    assert killed == kills, f"the run was too short: it had ended before, begun at {began}"
    assert began == sorted(began)
    assert not (part / "run.npz.lock").exists()
    again = restart(part / "run.npz")
    assert again.nsteps == steps
    assert_same(md, again)
    runs.assert_same_files(whole, part, KILLED_FILES)
    with ase.io.Trajectory(part / "run.traj") as frames:
        assert len(frames) == steps // 10 + 1
    table = np.genfromtxt(part / "run.csv", delimiter=",", names=True)
    np.testing.assert_array_equal(table["step"], np.arange(0, steps + 1, 3))
    return began


def test_killed_twice(tmp_path):
    check_kills(tmp_path, kills=2, steps=1500, longest=0.15)


@pytest.mark.slow
def test_killed_twenty_times(tmp_path):
    began = check_kills(tmp_path, kills=20, steps=12000, longest=0.25)
    # it was killed on its way, not before or after
    assert len(set(began)) > 10


def test_observers_count_what_was_done_twice_once(tmp_path):
    """A run that went beyond its checkpoint, as a killed one has."""
    path = tmp_path / "run.npz"
    md = start(tmp_path, files=(), observers=False, checkpoint=path)
    thermo = md.attach(Thermo(), 1)
    md.run(10)
    content = path.read_bytes()
    md.run(10)
    assert thermo.results().samples == 21
    path.write_bytes(content)
    again = restart(path)
    again.run(10)
    assert again.handles[0].results().samples == 21
    assert_same(md, again)
