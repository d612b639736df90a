"""Files of a run: what ASE reads from them, marks and what they bring back, and everything that can go wrong."""

import fcntl
import io
import json
import os
import resource
import signal

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import Trajectory
from ase.md import VelocityVerlet
from ase.md.logger import MDLogger

from ase_nepcg import FixBeads, NepCGError, locks
from ase_nepcg.data import water_beads
from ase_nepcg.labels import TABLE, get_labels, set_labels
from ase_nepcg.md import outfile, outputs
from ase_nepcg.md.outputs import AseLog, OutputError, ThermoOutput, WriterOutput, open_output, output_from_dict

SUFFIXES = (".traj", ".xyz", ".nc")


class FakeMD:
    """A run of random numbers: the state after a step depends on the number of the step only."""

    def __init__(self, atoms, step=0):
        self.atoms, self.nsteps = atoms, step
        self.start = atoms.positions.copy()
        self.advance(0)

    def advance(self, steps=1):
        self.nsteps += steps
        rng = np.random.default_rng(self.nsteps)
        n = len(self.atoms)
        self.atoms.positions[:] = self.start + rng.normal(size=(n, 3))
        self.atoms.set_momenta(rng.normal(size=(n, 3)), apply_constraint=False)
        self.atoms.calc = SinglePointCalculator(
            self.atoms, energy=rng.normal(), forces=rng.normal(size=(n, 3)), stress=rng.normal(size=6)
        )
        self.stress = rng.normal(size=6)

    @property
    def time_ps(self):
        return self.nsteps * 0.002

    def get_time(self):
        return self.time_ps * 1000 * units.fs

    def todict(self):
        return {"type": "molecular-dynamics", "md-type": "FakeMD"}

    def temperature_K(self):
        return 300.0 + self.nsteps / 3

    def potential_energy(self):
        return float(self.atoms.calc.results["energy"])

    def kinetic_energy(self):
        return 2.0

    def conserved_energy(self):
        return -1.25

    def stress_GPa(self):
        return self.stress


def write_frames(output, md, count):
    for _ in range(count):
        md.advance()
        output.write(md.atoms, md)


def make(kind, path, **keywords):
    return {"csv": ThermoOutput, "log": AseLog}.get(kind, open_output)(path, 10, **keywords)


@pytest.fixture
def beads():
    atoms = water_beads(2)
    labels = get_labels(atoms)
    labels[3:5] = "long-tail"
    set_labels(atoms, labels, {"WAT": 18.015, "long-tail": 33.0})
    return atoms


# ---- what is in the files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".traj", ".xyz", ".extxyz"])
@pytest.mark.parametrize("with_table", [True, False])
def test_ase_reads_everything(beads, tmp_path, suffix, with_table):
    if not with_table:
        del beads.info[TABLE]
        beads.set_array("tags", None)
    beads.info["virial"] = np.eye(3)  # as left by training frames
    md = FakeMD(beads)
    output = open_output(tmp_path / f"run{suffix}", 5)
    expected = []
    for _ in range(3):
        md.advance()
        output.write(beads, md)
        expected.append((beads.copy(), beads.calc.results))
    frames = ase.io.read(tmp_path / f"run{suffix}", index=":")
    assert len(frames) == 3
    tolerance = 0 if suffix == ".traj" else 1e-8
    for k, (frame, (atoms, results)) in enumerate(zip(frames, expected, strict=True)):
        assert (get_labels(frame) == get_labels(atoms)).all()
        assert (frame.numbers == 0).all()
        for got, wanted in (
            (frame.positions, atoms.positions),
            (frame.get_momenta(), atoms.get_momenta()),
            (frame.get_masses(), atoms.get_masses()),
            (frame.cell.array, atoms.cell.array),
            (frame.get_forces(), results["forces"]),
            (frame.get_stress(), results["stress"]),
            (frame.get_potential_energy(), results["energy"]),
        ):
            np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance)
        assert frame.pbc.all()
        if suffix != ".traj":
            assert (frame.info["step"], frame.info["time_ps"]) == (k + 1, (k + 1) * 0.002)
            assert "tags" not in frame.arrays
    assert get_labels(beads)[3] == "long-tail"
    assert ("tags" in beads.arrays) == with_table


def test_labels_are_restored_by_the_registered_reader(beads, tmp_path):
    # of a training frame; the reader would compare it with the stress of the run
    beads.info["virial"] = np.eye(3)
    md = FakeMD(beads)
    write_frames(open_output(tmp_path / "run.xyz"), md, 2)
    frame = ase.io.read(tmp_path / "run.xyz", format="nepcg-train")
    assert (get_labels(frame) == get_labels(beads)).all()
    assert TABLE in frame.info
    np.testing.assert_array_equal(frame.get_masses(), beads.get_masses())
    np.testing.assert_allclose(frame.get_stress(), beads.calc.results["stress"], atol=1e-12)


def test_elements_stay_elements(tmp_path):
    atoms = Atoms("OHH", positions=np.arange(9.0).reshape(3, 3))
    for suffix in (".traj", ".xyz"):
        output = open_output(tmp_path / f"run{suffix}")
        write_frames(output, FakeMD(atoms.copy()), 1)
        frame = ase.io.read(tmp_path / f"run{suffix}")
        assert str(frame.symbols) == "OH2"
        assert "bead" not in frame.arrays
        assert not frame.pbc.any()


def test_traj_describes_the_run_and_keeps_tags_of_the_user(beads, tmp_path):
    del beads.info[TABLE]
    beads.set_tags(range(5, 13))
    md = FakeMD(beads)
    write_frames(open_output(tmp_path / "run.traj", 7), md, 2)
    with Trajectory(tmp_path / "run.traj") as frames:
        assert frames.description == {"type": "molecular-dynamics", "md-type": "FakeMD", "interval": 7}
        np.testing.assert_array_equal(frames[-1].get_tags(), beads.get_tags())


def test_thermo_table(beads, tmp_path):
    beads.set_cell([6.0, 7.0, 8.0, 80, 90, 100])
    md = FakeMD(beads)
    write_frames(ThermoOutput(tmp_path / "run.csv", 10), md, 2)
    table = np.genfromtxt(tmp_path / "run.csv", delimiter=",", names=True)
    row = table[1]
    assert row["step"] == 2
    assert row["time_ps"] == 0.004
    assert row["temperature_K"] == pytest.approx(md.temperature_K(), rel=1e-9)
    assert row["conserved_energy_eV"] == -1.25
    assert row["pressure_GPa"] == pytest.approx(-md.stress[:3].mean(), rel=1e-9)
    assert row["stress_yz_GPa"] == pytest.approx(md.stress[3], rel=1e-9)
    assert row["volume_A3"] == pytest.approx(beads.get_volume(), rel=1e-9)
    np.testing.assert_allclose([row[name] for name in table.dtype.names[-6:]], [6, 7, 8, 80, 90, 100], rtol=1e-9)
    assert (tmp_path / "run.csv").read_text().startswith("step,time_ps,temperature_K,potential_energy_eV,")


def test_thermo_table_without_cell(tmp_path):
    md = FakeMD(Atoms("Ar", positions=[[0, 0, 0]]))
    md.stress = None
    ThermoOutput(tmp_path / "run.csv").write(md.atoms, md)
    table = np.genfromtxt(tmp_path / "run.csv", delimiter=",", names=True)
    assert np.isnan([float(table[name]) for name in ("pressure_GPa", "stress_xx_GPa", "volume_A3")]).all()


def test_log_has_the_lines_of_ase(beads, tmp_path, capsys):
    md = FakeMD(beads)
    expected = io.StringIO()
    logger = MDLogger(md, beads, expected)
    own = io.StringIO()
    logs = [AseLog(tmp_path / "run.log", 1), AseLog("-"), AseLog(own)]
    for _ in range(2):
        md.advance()
        logger()
        for log in logs:
            log.write(beads, md)
    assert (tmp_path / "run.log").read_text() == expected.getvalue() == own.getvalue() == capsys.readouterr().out
    assert logs[1].mark() is logs[2].mark() is logs[1].path is None
    logs[1].restore(None)
    logs[1].close()
    # as ASE: another run goes on in the same file, with a header of its own
    logs[0].close()
    AseLog(tmp_path / "run.log").write(beads, md)
    assert (tmp_path / "run.log").read_text().count("Time[ps]") == 2


def test_log_to_something_that_is_no_file(beads):
    log = AseLog("/dev/null")
    log.write(beads, FakeMD(beads))
    assert log.mark() is None


def test_open_writers_are_used_as_they_are(beads, tmp_path):
    md = FakeMD(beads)
    with Trajectory(tmp_path / "own.traj", "w") as writer:
        output = open_output(writer, 3)
        assert isinstance(output, WriterOutput)
        assert open_output(output) is output
        write_frames(output, md, 2)
        assert output.mark() is None
        output.restore(None)
        output.close()
    with Trajectory(tmp_path / "own.traj") as frames:
        assert len(frames) == 2
        assert frames.description["interval"] == 3


# ---- marks --------------------------------------------------------------------------------------------------------


def read_count(path):
    if path.suffix == ".nc":
        from scipy.io import netcdf_file

        with netcdf_file(path, mmap=False) as file:
            return file.variables["time"].shape[0]
    return len(ase.io.read(path, index=":"))


@pytest.mark.parametrize("kind", [*SUFFIXES, "csv", "log"])
@pytest.mark.parametrize(("before", "after"), [(0, 2), (1, 1), (1, 5), (3, 60), (42, 2), (43, 8)])
def test_a_killed_run_ends_with_the_same_file(beads, tmp_path, kind, before, after):
    """Before: frames at the mark; after: frames that a killed run had written beyond it. 42: first table of ulm."""
    name = f"run{kind}" if kind in SUFFIXES else f"run.{kind}"
    beads.set_constraint([FixAtoms([0]), FixBeads([[1, 2]])])
    whole, killed = tmp_path / "whole" / name, tmp_path / "killed" / name
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


def test_frames_of_the_mark_are_exactly_those(beads, tmp_path):
    md = FakeMD(beads)
    output = open_output(tmp_path / "run.traj")
    write_frames(output, md, 41)
    mark, positions = output.mark(), beads.positions.copy()
    write_frames(output, md, 1800)  # two more tables of offsets
    output.restore(mark)
    output.close()
    with Trajectory(tmp_path / "run.traj") as frames:
        assert len(frames) == 41
        np.testing.assert_array_equal(frames[-1].positions, positions)
        for k in (0, 20):
            rng = np.random.default_rng(k + 1)
            np.testing.assert_array_equal(frames[k].positions, md.start + rng.normal(size=(8, 3)))


@pytest.mark.parametrize("kind", [*SUFFIXES, "csv", "log"])
def test_restore_refuses_what_is_not_the_file(beads, tmp_path, kind):
    path = tmp_path / (f"run{kind}" if kind in SUFFIXES else f"run.{kind}")
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


def test_writers_and_streams_cannot_be_restored(beads, tmp_path):
    with Trajectory(tmp_path / "own.traj", "w") as writer, pytest.warns(RuntimeWarning, match="open TrajectoryWriter"):
        output = output_from_dict(open_output(writer, 3).todict())
    output.write(beads, FakeMD(beads))
    with pytest.warns(RuntimeWarning, match="open text file"):
        output_from_dict(AseLog(io.StringIO()).todict())
    assert output_from_dict(AseLog("-", 4).todict()).todict() == {"kind": "log", "path": "-", "interval": 4}
    with pytest.raises(OutputError, match="unknown kind"):
        output_from_dict({"kind": "movie", "path": "a", "interval": 1})


# ---- appending ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_append_and_overwrite(beads, tmp_path, suffix):
    path = tmp_path / f"run{suffix}"
    for append, count in ((True, 2), (True, 4), (False, 2)):
        output = open_output(path, append=append, atoms=beads)
        write_frames(output, FakeMD(beads.copy()), 2)
        output.close()
        assert read_count(path) == count


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_append_to_a_file_of_another_system(beads, tmp_path, suffix):
    path = tmp_path / f"run{suffix}"
    output = open_output(path)
    write_frames(output, FakeMD(beads.copy()), 2)
    output.close()
    content = path.read_bytes()
    more, other, swapped = beads.repeat((2, 1, 1)), beads.copy(), beads.copy()
    set_labels(other, "WAT", masses=18.015)
    labels = get_labels(beads)
    set_labels(swapped, np.roll(labels, 1))
    swapped.set_masses(np.roll(beads.get_masses(), 1))
    for atoms, message in (
        (more, "frames have 8 sites, those of the run 16"),
        (other, "site 3 is 'long-tail' in the file and 'WAT' in the run"),
        (swapped, r"same sites in another order"),
    ):
        with pytest.raises(OutputError, match=message):
            open_output(path, append=True, atoms=atoms)
        late = open_output(path, append=True)
        with pytest.raises(OutputError, match=message):
            late.write(atoms, FakeMD(atoms))
    assert path.read_bytes() == content
    # nothing is kept open or locked
    open_output(path, append=True, atoms=beads)


def test_append_checks_the_last_frame(beads, tmp_path):
    ase.io.write(tmp_path / "two.traj", [beads.repeat((2, 1, 1)), beads])
    open_output(tmp_path / "two.traj", append=True, atoms=beads).close()
    ase.io.write(tmp_path / "two.traj", [beads, beads.repeat((2, 1, 1))])
    with pytest.raises(OutputError, match="16 sites"):
        open_output(tmp_path / "two.traj", append=True, atoms=beads)


def test_append_to_damaged_and_foreign_files(beads, tmp_path):
    for suffix, message in ((".traj", "not a trajectory of ASE"), (".xyz", "cannot be read"), (".nc", "NetCDF-3")):
        path = tmp_path / f"text{suffix}"
        path.write_text("a text\nof some lines\n" * 5)
        with pytest.raises(OutputError, match=message):
            open_output(path, append=True, atoms=beads)
    (tmp_path / "run.csv").write_text("a,b\n1,2\n")
    with pytest.raises(OutputError, match="other columns"):
        ThermoOutput(tmp_path / "run.csv", append=True, atoms=beads)
    md = FakeMD(beads)
    write_frames(ThermoOutput(tmp_path / "run.csv"), md, 2)
    cut = (tmp_path / "run.csv").read_bytes()[:-5]
    (tmp_path / "run.csv").write_bytes(cut)
    with pytest.raises(OutputError, match="not complete"):
        ThermoOutput(tmp_path / "run.csv", append=True, atoms=beads)
    output = open_output(tmp_path / "run.xyz")
    write_frames(output, md, 2)
    output.close()
    os.truncate(tmp_path / "run.xyz", 700)
    with pytest.raises(OutputError, match="truncated"):
        open_output(tmp_path / "run.xyz", append=True, atoms=beads)


# ---- what can go wrong --------------------------------------------------------------------------------------------


@pytest.fixture
def disk_limit():
    """A function: no file of this process gets longer than so many bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("kind", [*SUFFIXES, "csv", "log"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_full_disk(beads, tmp_path, kind, count, disk_limit):
    path = tmp_path / (f"run{kind}" if kind in SUFFIXES else f"run.{kind}")
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
    md = FakeMD(water_like(beads))
    output = make(kind, tmp_path / f"whole-{path.name}")
    write_frames(output, md, count + 1)
    output.close()
    assert path.read_bytes() == (tmp_path / f"whole-{path.name}").read_bytes()


def water_like(beads):
    """The beads as they were before the run."""
    atoms = beads.copy()
    atoms.positions[:] = water_beads(2).positions
    return atoms


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


def test_two_processes(beads, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE_SECONDS", 0.1)
    path = tmp_path / "run.traj"
    write_frames(open_output(path), FakeMD(beads), 1)
    content = path.read_bytes()
    with open(path, "rb") as other:
        # the output above is gone, and its lock with it
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for append in (False, True):
            with pytest.raises(OutputError, match="another run writes to this file"):
                open_output(path, append=append)
    assert path.read_bytes() == content
    output = open_output(path, append=True)
    with open(path, "rb") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    output.close()


def test_a_newer_output_of_the_same_process_takes_over(beads, tmp_path):
    old = open_output(tmp_path / "run.xyz")
    md = FakeMD(beads)
    write_frames(old, md, 2)
    new = open_output(tmp_path / "run.xyz")
    write_frames(new, md, 1)
    for attempt in (lambda: old.write(beads, md), old.mark):
        with pytest.raises(OutputError, match="gave its file to a newer one"):
            attempt()
    write_frames(new, md, 1)
    assert read_count(tmp_path / "run.xyz") == 2
    new.close()
    new.close()
    with pytest.raises(OutputError, match="was closed"):
        new.write(beads, md)


def test_a_deleted_file_is_noticed(beads, tmp_path):
    output = open_output(tmp_path / "run.xyz")
    md = FakeMD(beads)
    write_frames(output, md, 1)
    (tmp_path / "run.xyz").unlink()
    for attempt in (lambda: output.write(beads, md), output.mark):
        with pytest.raises(OutputError, match="deleted or replaced"):
            attempt()


def test_refusals(beads, tmp_path):
    assert issubclass(OutputError, NepCGError)
    assert issubclass(OutputError, OSError)
    for target, message in (
        (tmp_path / "run.trj", "did you mean '.traj'"),
        (tmp_path / "run.xyz.gz", "expected .traj"),
        (tmp_path / "run", "expected .traj"),
        (3, "expected a file name or an open writer"),
        (tmp_path / "nowhere" / "run.traj", "No such file or directory"),
    ):
        with pytest.raises(OutputError, match=message):
            open_output(target)
    (tmp_path / "folder.traj").mkdir()
    with pytest.raises(OutputError, match="expected the name of a file"):
        open_output(tmp_path / "folder.traj")
    for interval in (0, -1, 1.5, True):
        with pytest.raises(OutputError, match="interval"):
            open_output(tmp_path / "run.traj", interval)
    with pytest.raises(OutputError, match="logfile"):
        AseLog(7)
    assert not (tmp_path / "run.traj").exists()
    assert set(outputs.FORMATS) == {".traj", ".xyz", ".extxyz", ".nc"}


def test_in_a_run_of_ase(beads, tmp_path):
    """The outputs need nothing of a driver but what the classes say."""
    from ase_nepcg import NEP
    from ase_nepcg.data import WATER_BEAD

    atoms = water_beads(3)
    atoms.calc = NEP(WATER_BEAD, threads=1)
    dynamics = VelocityVerlet(atoms, 2 * units.fs, logfile=str(tmp_path / "ase.log"))
    md = FakeMD(beads)
    md.get_time, md.todict = dynamics.get_time, dynamics.todict
    written = [AseLog(tmp_path / "own.log"), open_output(tmp_path / "run.traj"), open_output(tmp_path / "run.xyz")]

    def write():
        for output in written:
            output.write(atoms, md)

    dynamics.attach(write, 1)
    dynamics.run(3)
    dynamics.close()
    assert (tmp_path / "own.log").read_text() == (tmp_path / "ase.log").read_text()
    for name in ("run.traj", "run.xyz"):
        frame = ase.io.read(tmp_path / name)
        np.testing.assert_allclose(frame.get_forces(), atoms.get_forces(), atol=1e-8)
        assert frame.get_potential_energy() == pytest.approx(atoms.get_potential_energy())
