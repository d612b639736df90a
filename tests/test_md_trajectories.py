"""Trajectories: what ASE reads from them, frames that others see at any time, and appending."""

import io
import os

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian
from ase.io import Trajectory
from md_files import SUFFIXES, FakeMD, new_beads, read_count, write_frames

from ase_nepcg import MD, FixBeads
from ase_nepcg.data import water_beads
from ase_nepcg.labels import TABLE, get_labels, set_labels
from ase_nepcg.md import NVE, outfile, trajectories
from ase_nepcg.md.outputs import OutputError, open_output
from ase_nepcg.md.trajectories import AmberFile, TrajFile, XyzFile


@pytest.fixture
def beads():
    return new_beads()


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


def test_elements_stay_elements(tmp_path):
    atoms = Atoms("OHH", positions=np.arange(9.0).reshape(3, 3))
    for suffix in (".traj", ".xyz"):
        output = open_output(tmp_path / f"run{suffix}")
        write_frames(output, FakeMD(atoms.copy()), 1)
        frame = ase.io.read(tmp_path / f"run{suffix}")
        assert str(frame.symbols) == "OH2"
        assert "bead" not in frame.arrays
        assert not frame.pbc.any()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("before", [0, 1, 42])
def test_a_frame_counts_when_it_is_complete(beads, tmp_path, monkeypatch, suffix, before):
    """Others read whole frames between any two writes. 42: a new table of offsets."""
    path, md = tmp_path / f"run{suffix}", FakeMD(beads)
    output = open_output(path)
    write_frames(output, md, before)
    found = []

    def watched(fd, data, place, original=outfile.write_all):
        original(fd, data, place)
        try:
            found.append(read_count(path))
        except (ase.io.formats.UnknownFileTypeError, ValueError, TypeError, OSError, IndexError):
            # nothing but a header: no reader takes it for a trajectory
            assert before == 0
            found.append(0)

    monkeypatch.setattr(outfile, "write_all", watched)
    write_frames(output, md, 1)
    # first what is new, last what counts
    assert found == [before] * (len(found) - 1) + [before + 1]
    assert (len(found) == 1) == (suffix == ".xyz")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_atoms_stay_as_they_are(beads, tmp_path, suffix):
    beads.set_constraint([FixAtoms([0]), FixBeads([[1, 2]])])
    beads.info |= {"virial": np.eye(3), "note": "mine", "energy": -3.0}
    beads.new_array("mine", np.arange(8.0))
    md = FakeMD(beads)
    before, results = beads.copy(), {key: np.copy(value) for key, value in beads.calc.results.items()}
    md.advance(0)
    output = open_output(tmp_path / f"run{suffix}")
    for _ in range(2):
        output.write(beads, md)
    assert beads.info.keys() == before.info.keys()
    assert beads.arrays.keys() == before.arrays.keys()
    for name, array in before.arrays.items():
        np.testing.assert_array_equal(beads.arrays[name], array)
    assert [type(constraint) for constraint in beads.constraints] == [FixAtoms, FixBeads]
    assert beads.calc.results.keys() == results.keys()
    for name, value in results.items():
        np.testing.assert_array_equal(beads.calc.results[name], value)


def test_classes_and_their_files(tmp_path):
    for suffix, kind in ((".traj", TrajFile), (".xyz", XyzFile), (".nc", AmberFile)):
        output = open_output(tmp_path / f"run{suffix}", 3)
        assert type(output) is kind
        assert output.todict() == {"kind": "trajectory", "path": str(tmp_path / f"run{suffix}"), "interval": 3}


# ---- .traj --------------------------------------------------------------------------------------------------------


def test_traj_describes_the_run_and_keeps_tags_of_the_user(beads, tmp_path):
    del beads.info[TABLE]
    beads.set_tags(range(5, 13))
    md = FakeMD(beads)
    write_frames(open_output(tmp_path / "run.traj", 7), md, 2)
    with Trajectory(tmp_path / "run.traj") as frames:
        assert frames.description == {"type": "molecular-dynamics", "md-type": "FakeMD", "interval": 7}
        np.testing.assert_array_equal(frames[-1].get_tags(), beads.get_tags())


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


def test_the_stage_is_a_file_for_ase(tmp_path, rng):
    """Against a file in memory, for random seeks and writes."""
    content = rng.bytes(50)
    (tmp_path / "file").write_bytes(content)
    with open(tmp_path / "file", "rb") as file:
        stage, plain = trajectories._Stage(file.fileno()), io.BytesIO(content)
        for _ in range(30):
            whence = int(rng.integers(3))
            offset = int(rng.integers(50)) - {0: 0, 1: plain.tell(), 2: 50}[whence]
            assert stage.seek(offset, whence) == plain.seek(offset, whence)
            assert stage.read(7) == plain.read(7)
            assert stage.tell() == plain.tell()
        stage.seek(5), plain.seek(5)
        assert stage.read() == plain.read() == content[5:]
        for _ in range(40):
            offset, data = int(rng.integers(90)), rng.bytes(int(rng.integers(1, 9)))
            for one in (stage, plain):
                one.seek(offset)
                assert one.write(data[:1]) + one.write(data[1:]) == len(data)
            assert stage.tell() == plain.tell()
        assert stage.seek(0, os.SEEK_END) == plain.seek(0, os.SEEK_END)
        assert (tmp_path / "file").read_bytes() == content
        # neighbouring writes are one patch
        assert len(stage.patches) <= 40
    result = bytearray(content)
    for place, data in stage.patches:
        result[len(result) :] = bytes(max(place + len(data) - len(result), 0))
        result[place : place + len(data)] = data
    assert bytes(result) == plain.getvalue()


def test_constraints_stand_in_the_first_frame_only(beads, tmp_path):
    """As with ASE's writer in one go; also after the file was opened again."""
    beads.set_constraint([FixAtoms([0, 5]), FixCartesian([7], [True, False, False]), FixBeads([[1, 2]])])
    md, sizes = FakeMD(beads), []
    for _ in range(4):
        output = open_output(tmp_path / "run.traj", append=True)
        write_frames(output, md, 1)
        sizes.append((tmp_path / "run.traj").stat().st_size)
        output.close()
    output = open_output(tmp_path / "whole.traj")
    write_frames(output, FakeMD(new_constrained(beads)), 4)
    output.close()
    assert sizes[3] == (tmp_path / "whole.traj").stat().st_size
    with Trajectory(tmp_path / "run.traj") as frames:
        for frame in frames:
            assert [type(constraint) for constraint in frame.constraints] == [FixAtoms, FixCartesian, FixBeads]
            assert frame.constraints[0].index.tolist() == [0, 5]
    # others are written anew
    beads.set_constraint(FixAtoms([3]))
    output = open_output(tmp_path / "run.traj", append=True)
    write_frames(output, md, 1)
    with Trajectory(tmp_path / "run.traj") as frames:
        assert [constraint.index.tolist() for constraint in frames[-1].constraints] == [[3]]
        assert len(frames[-2].constraints) == 3


def new_constrained(beads):
    atoms = new_beads()
    atoms.set_constraint(beads.copy().constraints)
    return atoms


def test_labels_without_a_table(beads, tmp_path):
    """They go into tags where these are free; elements and results stay."""
    del beads.info[TABLE]
    beads.set_array("tags", None)
    md = FakeMD(beads)
    output = open_output(tmp_path / "run.traj")
    write_frames(output, md, 1)
    frame = ase.io.read(tmp_path / "run.traj")
    assert (get_labels(frame) == get_labels(beads)).all()
    np.testing.assert_array_equal(frame.get_forces(), beads.calc.results["forces"])
    assert frame.calc.name == beads.calc.name
    assert TABLE not in beads.info
    assert "tags" not in beads.arrays


# ---- .xyz ---------------------------------------------------------------------------------------------------------


def test_what_training_frames_have_is_left_out(beads, tmp_path):
    """Energies and virials of another method would be taken for those of the run; what else is there stays."""
    stale = {"energy": -99.0, "virial": np.eye(3), "virials": "v", "Virial_dft": 1.0, "stress": np.ones(6), "step": 70}
    beads.info |= stale | {"free_energy": -98.0, "time_ps": 9.0, "note": "mine", "weight": 2.0}
    for name in ("forces", "energies"):
        beads.new_array(name, np.ones((8, 3) if name == "forces" else 8))
    beads.new_array("mine", np.arange(8.0))
    beads.pbc = (True, False, True)
    md = FakeMD(beads)
    write_frames(open_output(tmp_path / "run.xyz"), md, 3)
    for k, frame in enumerate(ase.io.read(tmp_path / "run.xyz", index=":"), start=1):
        assert frame.info == {"note": "mine", "weight": 2.0, "step": k, "time_ps": pytest.approx(0.002 * k)}
        np.testing.assert_array_equal(frame.arrays["mine"], np.arange(8.0))
        assert set(frame.arrays) == {"numbers", "positions", "momenta", "masses", "bead", "mine"}
        assert frame.pbc.tolist() == [True, False, True]
        assert set(frame.calc.results) == {"energy", "forces", "stress"}
    np.testing.assert_allclose(frame.get_forces(), beads.calc.results["forces"], atol=1e-8)
    assert frame.get_potential_energy() == pytest.approx(md.potential_energy(), abs=1e-8)


def test_frames_without_cell_momenta_or_stress(tmp_path):
    atoms = Atoms("Ar2", positions=[[0, 0, 0], [0, 0, 3.0]], masses=[40.0, 36.0])
    atoms.calc = SinglePointCalculator(atoms, energy=-1.5, forces=np.zeros((2, 3)))
    md = FakeMD(Atoms("Ar2"))
    for suffix in (".traj", ".xyz"):
        open_output(tmp_path / f"run{suffix}").write(atoms, md)
        frame = ase.io.read(tmp_path / f"run{suffix}")
        assert (frame.get_potential_energy(), frame.get_masses().tolist()) == (-1.5, [40.0, 36.0])
        assert "stress" not in frame.calc.results
        assert not frame.cell.any()
        assert not frame.get_momenta().any()


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


# ---- appending, also .nc; see test_md_amber.py for the rest of it


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
    output = open_output(tmp_path / "run.xyz")
    write_frames(output, FakeMD(beads), 2)
    output.close()
    os.truncate(tmp_path / "run.xyz", 700)
    with pytest.raises(OutputError, match="truncated"):
        open_output(tmp_path / "run.xyz", append=True, atoms=beads)


def test_append_compares_labels_of_elements_too(tmp_path):
    """Labels may be symbols of elements."""
    water = Atoms("OHH", positions=np.arange(9.0).reshape(3, 3), cell=9 * np.eye(3))
    for suffix in SUFFIXES:
        path = tmp_path / f"run{suffix}"
        output = open_output(path)
        write_frames(output, FakeMD(water.copy()), 1)
        output.close()
        open_output(path, append=True, atoms=water).close()
        with pytest.raises(
            OutputError, match=r"site 0 is 'O' in the file and 'H' in the run \(the same sites in anoth"
        ):
            open_output(path, append=True, atoms=water[[1, 0, 2]])
        with pytest.raises(OutputError, match=r"site 2 is 'H' in the file and 'F' in the run;"):
            open_output(path, append=True, atoms=Atoms("OHF", positions=water.positions, masses=water.get_masses()))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_append_to_an_empty_file(beads, tmp_path, suffix):
    path = tmp_path / f"run{suffix}"
    path.touch()
    output = open_output(path, append=True, atoms=beads)
    write_frames(output, FakeMD(beads), 2)
    assert read_count(path) == 2


def test_frames_do_not_repeat_the_model(tmp_path, make_calculator):
    # of a calculator whose model was not read from a file ASE would write all of it into each frame
    atoms = water_beads(2)
    set_labels(atoms, ["O", "H"] * 4)
    atoms.calc = calculator = make_calculator("plain")
    with MD(atoms, 1.0, NVE(), trajectory=tmp_path / "run.traj", progress=False) as md:
        md.run(3)
    assert atoms.calc is calculator
    size = (tmp_path / "run.traj").stat().st_size
    assert size / 4 < len(calculator.model.to_text())
    frames = ase.io.read(tmp_path / "run.traj", ":")
    assert [frame.calc.name for frame in frames] == [calculator.name] * 4
    assert frames[-1].get_potential_energy() == atoms.get_potential_energy()
    assert np.array_equal(frames[-1].get_forces(), atoms.get_forces())
