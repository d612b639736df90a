"""Which output a name means, tables, logs, writers of others, and all of them in a run of ASE.

The file itself: ``test_md_outfile.py``; trajectories: ``test_md_trajectories.py`` and ``test_md_amber.py``.
"""

import io

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.io import Trajectory
from ase.md import VelocityVerlet
from ase.md.logger import MDLogger
from md_files import FakeMD, new_beads, write_frames

from ase_nepcg import NepCGError
from ase_nepcg.data import water_beads
from ase_nepcg.md import outputs
from ase_nepcg.md.outputs import AseLog, OutputError, ThermoOutput, WriterOutput, open_output, output_from_dict


@pytest.fixture
def beads():
    return new_beads()


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


def test_append_to_a_table(beads, tmp_path):
    path, md = tmp_path / "run.csv", FakeMD(beads)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(OutputError, match="other columns"):
        ThermoOutput(path, append=True, atoms=beads)
    for append, count in ((False, 2), (True, 4)):
        output = ThermoOutput(path, append=append)
        write_frames(output, md, 2)
        output.close()
        assert np.genfromtxt(path, delimiter=",", names=True)["step"].tolist() == [1.0, 2.0, 3.0, 4.0][:count]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(OutputError, match="not complete"):
        ThermoOutput(path, append=True, atoms=beads)


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


def test_writers_and_streams_cannot_be_restored(beads, tmp_path):
    with Trajectory(tmp_path / "own.traj", "w") as writer, pytest.warns(RuntimeWarning, match="open TrajectoryWriter"):
        output = output_from_dict(open_output(writer, 3).todict())
    output.write(beads, FakeMD(beads))
    with pytest.warns(RuntimeWarning, match="open text file"):
        output_from_dict(AseLog(io.StringIO()).todict())
    assert output_from_dict(AseLog("-", 4).todict()).todict() == {"kind": "log", "path": "-", "interval": 4}
    with pytest.raises(OutputError, match="unknown kind"):
        output_from_dict({"kind": "movie", "path": "a", "interval": 1})


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
