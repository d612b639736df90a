"""``nepcg md``: short runs of a few beads, what they leave behind, going on, and what users get wrong."""

import fcntl
import shutil

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.io import Trajectory
from scipy.io import netcdf_file

from ase_nepcg import MD, cli
from ase_nepcg.data import WATER_BEAD, water_beads
from ase_nepcg.labels import get_labels, set_labels

NPT = ("--ensemble", "npt", "--temperature-K", "300", "--pressure-GPa", "0.5", "--timestep-fs", "2")
NVE = ("--ensemble", "nve", "--timestep-fs", "2", "--initial-temperature-K", "300")


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with beads.nepcg.xyz (27 beads WAT), bare.nepcg.xyz (without masses) and nep.txt; we are in it."""
    monkeypatch.chdir(tmp_path)
    atoms = water_beads(3)
    ase.io.write("beads.nepcg.xyz", atoms)
    atoms.set_array("masses", None)
    ase.io.write("bare.nepcg.xyz", atoms)
    shutil.copy(WATER_BEAD, "nep.txt")
    return tmp_path


def run(capsys, *arguments, status=0):
    assert cli.main(["md", *map(str, arguments)]) == status
    return capsys.readouterr()


def md(capsys, *arguments, status=0, structure="beads.nepcg.xyz", length=("--steps", "20")):
    return run(capsys, structure, "nep.txt", *length, "--threads", "1", *arguments, status=status)


def table(path):
    return np.genfromtxt(path, delimiter=",", names=True)


def assert_same_files(one, other, *suffixes):
    for suffix in suffixes:
        assert (one.parent / (one.name + suffix)).read_bytes() == (other.parent / (other.name + suffix)).read_bytes()


# ---- runs ---------------------------------------------------------------------------------------------------------


def test_everything_of_a_run(work, capsys):
    out = md(
        capsys,
        *(*NPT, "--seed", "7", "--output", "run", "--rdf", "8,5", "--trajectory-interval", "10"),
        *("--thermo-interval", "5"),
    ).out
    assert "27 sites" in out
    assert "seed 7" in out
    assert "pressure_GPa=0.5" in out
    assert {path.name for path in work.glob("run*")} == {"run.traj", "run.csv", "run.npz", "run.rdf.csv"}
    rows = table("run.csv")
    assert rows["step"].tolist() == [0, 5, 10, 15, 20]
    np.testing.assert_allclose(rows["time_ps"], rows["step"] * 0.002)
    with Trajectory("run.traj") as frames:
        assert len(frames) == 3
        assert frames.description["md-type"] == "NPTbySCR"
        last = frames[-1]
        velocities = frames[0].get_velocities()
    assert set(get_labels(last)) == {"WAT"}
    assert last.get_potential_energy() == pytest.approx(rows["potential_energy_eV"][-1], rel=1e-9)
    assert last.get_volume() == pytest.approx(rows["volume_A3"][-1], rel=1e-9)
    assert last.get_volume() != pytest.approx(water_beads(3).get_volume(), rel=1e-9)
    # velocities of 300 K without total momentum
    np.testing.assert_allclose(velocities.sum(axis=0), 0, atol=1e-12)
    assert 150 < 18.015 * (velocities**2).sum() / (78 * units.kB) < 450
    rdf = table("run.rdf.csv")
    assert rdf["r_A"][-1] == pytest.approx(7.98)
    # the same numbers as the table prints: samples at steps 0, 10, 20
    line = next(line for line in out.splitlines() if line.strip().startswith("temperature"))
    assert float(line.split()[1]) == pytest.approx(rows["temperature_K"][[0, 2, 4]].mean(), rel=1e-5)
    assert "averages of 0.04 ps (3 samples)" in out
    assert "wrote run.traj run.csv run.npz run.rdf.csv" in out
    # and the driver does the same
    again = MD.restart("run.npz", progress=False)
    assert again.nsteps == 20
    again.close()


def test_same_seed_same_run(work, capsys):
    for name in ("a", "b", "c"):
        md(capsys, *NPT, "--seed", "8" if name == "c" else "7", "--output", name)
    assert_same_files(work / "a", work / "b", ".traj", ".csv")
    assert (work / "a.csv").read_text() != (work / "c.csv").read_text()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nve", ["--initial-temperature", "300"]),
        ("langevin", ["--temperature", "300", "--friction", "0.02"]),
        ("bussi", ["--temperature", "300"]),
        ("Nose_Hoover", ["--temperature", "300", "--chain", "4", "--tau", "50"]),
        ("npt", ["--temperature", "300", "--pressure=0.1,none", "--coupling", "semi-isotropic", "--tau-p", "500"]),
        ("deform", ["--temperature", "300", "--axis", "x", "--rate", "-0.01", "--free", "yz"]),
        ("hnemd", ["--temperature", "300", "--field", "1e-4,0,0", "--convective"]),
    ],
)
def test_ensembles(work, capsys, name, options):
    out = md(capsys, "--ensemble", name, "--timestep", "2", *options).out
    assert table("md.csv").size == 1
    with Trajectory("md.traj") as frames:
        description = frames.description
    expected = {"Nose_Hoover": ("chain", 4), "langevin": ("friction_per_fs", 0.02), "bussi": ("tau_fs", 100.0)}
    expected |= {"npt": ("pressure_GPa", [0.1, None]), "hnemd": ("field_per_A", [1e-4, 0, 0]), "deform": ("free", "yz")}
    key, value = expected.get(name, ("timestep", 2 * units.fs))
    assert description[key] == pytest.approx(value) if isinstance(value, float) else description[key] == value
    if name == "hnemd":
        assert "conductivity along the field" in out
        assert "kappa_x_W_mK" in table("md.conductivity.csv").dtype.names


@pytest.mark.parametrize("kind", ["xyz", "nc", "none"])
def test_formats(work, capsys, kind):
    md(capsys, *NVE, "--format", kind, "--trajectory-interval", "10")
    if kind == "none":
        assert not list(work.glob("md.traj")) + list(work.glob("md.xyz"))
        return
    if kind == "xyz":
        frames = ase.io.read("md.xyz", index=":")
        assert [frame.info["step"] for frame in frames] == [0, 10, 20]
        assert set(get_labels(frames[0])) == {"WAT"}
        return
    with netcdf_file("md.nc", mmap=False) as file:
        np.testing.assert_allclose(file.variables["time"][:], [0, 0.02, 0.04])


def test_time_instead_of_steps(work, capsys):
    md(capsys, *NVE, length=("--time-ps", "0.03"))
    assert MD.restart("md.npz", progress=False).nsteps == 15


def test_a_run_starts_from_the_last_frame_of_another(work, capsys):
    for kind in ("traj", "xyz"):
        md(capsys, *NVE, "--output", kind, "--format", kind, "--trajectory-interval", "10")
        start = ase.io.read(f"{kind}.{kind}", index=1)
        run(
            capsys,
            *(f"{kind}.{kind}@1", "nep.txt", "--ensemble", "nve", "--timestep", "2", "--steps", "10"),
            *("--output", f"{kind}2", "--threads", "1"),
        )
        first, last = table(f"{kind}.csv"), table(f"{kind}2.csv")
        energy = first["potential_energy_eV"] + first["kinetic_energy_eV"]
        assert float(last["conserved_energy_eV"]) == pytest.approx(float(energy), abs=1e-3)
        with Trajectory(f"{kind}2.traj") as frames:
            np.testing.assert_allclose(frames[0].get_momenta(), start.get_momenta(), atol=1e-8)
            assert set(get_labels(frames[0])) == {"WAT"}
            assert "step" not in frames[0].info


def test_start(work, capsys):
    """Copies, masses and velocities as the user wants them."""
    md(
        capsys,
        *("--ensemble", "langevin", "--temperature", "300", "--timestep", "2", "--replicate", "2 1x1"),
        *("--masses", "WAT=20", "--initial-temperature-K", "10"),
        structure="bare.nepcg.xyz",
    )
    atoms = ase.io.read("md.traj", index=0)
    assert len(atoms) == 54
    np.testing.assert_array_equal(atoms.get_masses(), 20)
    assert 5 < atoms.get_temperature() < 20
    np.testing.assert_allclose(atoms.cell.lengths() / water_beads(3).cell.lengths(), [2, 1, 1])
    assert not np.array_equal(*np.split(atoms.get_momenta(), 2))
    # velocities that are there are kept, unless others are asked for
    moving = water_beads(3)
    moving.set_momenta(np.random.default_rng(0).normal(size=(27, 3)))
    moving.set_momenta(moving.get_momenta() - moving.get_momenta().mean(axis=0))
    ase.io.write("moving.nepcg.xyz", moving)
    for name, options, same in (
        ("kept", [], True),
        ("keep", ["--velocities", "keep"], True),
        ("new", ["--velocities", "new"], False),
        ("cold", ["--initial-temperature-K", "0"], False),
    ):
        settings = ("--ensemble", "bussi", "--temperature", "300", "--timestep", "2")
        md(capsys, *settings, "--output", name, *options, structure="moving.nepcg.xyz")
        first = ase.io.read(f"{name}.traj", index=0)
        assert np.allclose(first.get_momenta(), moving.get_momenta(), atol=1e-12) == same
    assert not first.get_momenta().any()


def test_results_and_notes_of_training_frames_are_left_behind(work, capsys):
    from ase_nepcg.dataset import FrameCalculator, write_dataset

    atoms = water_beads(3)
    atoms.arrays["force_errors"] = np.ones((27, 3))
    atoms.info["virial"] = np.eye(3)
    atoms.calc = FrameCalculator(atoms, forces=np.ones((27, 3)))
    write_dataset("train.xyz", [atoms, atoms])
    md(capsys, *NVE, "--format", "xyz", structure="train.xyz@0")
    frame = ase.io.read("md.xyz")
    assert "force_errors" not in frame.arrays
    assert "virial" not in frame.info
    assert abs(frame.get_forces() - 1).max() > 0.1


def test_pairs_that_no_training_data_know(work, capsys):
    from ase_nepcg.dataset import FrameCalculator, write_dataset

    atoms = water_beads(3)
    atoms.calc = FrameCalculator(atoms, forces=np.zeros((27, 3)))
    write_dataset("train.xyz", [atoms])
    closest = atoms.get_all_distances(mic=True)[np.triu_indices(27, 1)].min()
    out = md(capsys, *NVE, "--training-data", "train.xyz", "--output", "same", length=("--steps", "0")).out
    assert "no pair came closer" in out
    squeezed = atoms.copy()
    squeezed.set_cell(atoms.cell * 0.9, scale_atoms=True)
    ase.io.write("squeezed.nepcg.xyz", squeezed)
    out = md(capsys, *NVE, "--training-data", "train.xyz", structure="squeezed.nepcg.xyz").out
    assert f"WAT-WAT closer than {closest:.3f} Å" in out


def test_temperature_of_the_model(work, capsys, models, atoms):
    models["full"].write("nep.txt")
    ase.io.write("atoms.xyz", atoms)
    settings = ("--ensemble", "bussi", "--temperature", "250", "--timestep", "0.1")
    md(capsys, *settings, structure="atoms.xyz")
    with MD.restart("md.npz", progress=False) as restarted:
        assert restarted.calc.parameters.temperature_K == 250
    err = md(capsys, "--ensemble", "nve", "--timestep", "0.1", "--output", "b", structure="atoms.xyz", status=2).err
    assert "nep.txt has a temperature input" in err


# ---- going on -----------------------------------------------------------------------------------------------------

LONG = (*NPT, "--seed", "3", "--rdf", "8", "--trajectory-interval", "7", "--thermo-interval", "5")


@pytest.mark.parametrize("kind", ["traj", "xyz", "nc"])
def test_a_run_in_two_parts_is_the_run(work, capsys, kind):
    md(capsys, *LONG, "--format", kind, "--output", "whole", length=("--steps", "60"))
    md(capsys, *LONG, "--format", kind, "--output", "parts", length=("--steps", "25"))
    out = run(capsys, "--restart", "parts.npz", "--steps", "35").out
    assert "goes on at step 25 (0.05 ps) for 35 steps" in out
    assert "averages of 0.12 ps (7 samples)" in out
    assert_same_files(work / "whole", work / "parts", f".{kind}", ".csv", ".rdf.csv")


@pytest.mark.parametrize("kind", ["traj", "nc"])
def test_what_was_written_after_the_checkpoint_is_cut_off(work, capsys, kind):
    md(capsys, *LONG, "--format", kind, "--output", "whole", length=("--steps", "60"))
    md(capsys, *LONG, "--format", kind, "--output", "killed", length=("--steps", "12"))
    shutil.copy("killed.npz", "old.npz")
    run(capsys, "--restart", "killed.npz", "--time-ps", "0.06")
    with open("killed.csv", "a") as file:
        file.write("42,half a li")
    shutil.move("old.npz", "killed.npz")
    run(capsys, "--restart", "killed.npz", "--steps", "48")
    assert_same_files(work / "whole", work / "killed", f".{kind}", ".csv", ".rdf.csv")


def test_an_interrupt_keeps_everything(work, capsys, monkeypatch):
    from ase_nepcg.md.outputs import ThermoOutput

    md(capsys, *LONG, "--output", "whole", length=("--steps", "60"))
    written = []
    original = ThermoOutput.write

    def write(self, atoms, md):
        original(self, atoms, md)
        written.append(md.nsteps)
        if md.nsteps == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(ThermoOutput, "write", write)
    err = md(capsys, *LONG, "--output", "part", length=("--steps", "60"), status=130).err
    assert "interrupted after step 20; nepcg md --restart part.npz goes on" in err
    monkeypatch.setattr(ThermoOutput, "write", original)
    run(capsys, "--restart", "part.npz", "--steps", "40")
    assert_same_files(work / "whole", work / "part", ".traj", ".csv", ".rdf.csv")


def test_a_run_that_died_at_once(work, capsys, monkeypatch):
    """There is a checkpoint before the first step, which knows how long the run was to be."""
    md(capsys, *LONG, "--output", "whole", length=("--steps", "30"))
    with monkeypatch.context() as patch:
        patch.setattr(MD, "run", lambda self, steps: (_ for _ in ()).throw(RuntimeError("killed")))
        md(capsys, *LONG, "--output", "died", length=("--steps", "30"), status=1)
    run(capsys, "--restart", "died.npz", "--steps", "30")
    assert_same_files(work / "whole", work / "died", ".traj", ".csv", ".rdf.csv")


def test_restart_refusals(work, capsys):
    md(capsys, *NVE)
    err = run(capsys, "--restart", "md.npz", status=2).err
    assert "at its end (step 20); how much further? Give --steps or --time-ps" in err
    for extra, name in ((["--temperature-K", "300"], "--temperature-K"), (["beads.nepcg.xyz"], "STRUCTURE")):
        assert f"{name} does not go with --restart" in run(capsys, "--restart", "md.npz", *extra, status=2).err
    assert "nothing.npz: No such file" in run(capsys, "--restart", "nothing.npz", "--steps", "1", status=1).err
    assert "not a checkpoint" in run(capsys, "--restart", "nep.txt", "--steps", "1", status=1).err
    (work / "md.csv").write_text("")
    assert "md.csv: shorter" in run(capsys, "--restart", "md.npz", "--steps", "1", status=1).err


# ---- files of an earlier run --------------------------------------------------------------------------------------


def test_nothing_is_overwritten_by_accident(work, capsys):
    md(capsys, *NVE)
    before = {path.name: path.read_bytes() for path in work.glob("md.*")}
    err = md(capsys, *NVE, status=2).err
    assert "there already: md.traj, md.csv, md.npz" in err
    assert "nepcg md --restart md.npz" in err
    assert "--overwrite" in err
    assert {path.name: path.read_bytes() for path in work.glob("md.*")} == before
    md(capsys, *NVE, "--overwrite")
    assert len(ase.io.read("md.traj", index=":")) == 1
    # what cannot begin replaces nothing
    before = {path.name: path.read_bytes() for path in work.glob("md.*")}
    twice = ase.io.read("md.traj", index=0)
    twice.positions[1] = twice.positions[0]
    ase.io.write("twice.traj", twice)
    assert "same place" in run(capsys, "twice.traj", "nep.txt", *NVE, "--steps", "5", "--overwrite", status=1).err
    assert {path.name: path.read_bytes() for path in work.glob("md.*")} == before
    assert "times the smallest height" in md(capsys, *NVE, "--overwrite", "--rdf", "500,10", status=1).err
    assert {path.name: path.read_bytes() for path in work.glob("md.*")} == before
    # nor does what another run writes to
    with open("md.traj", "r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "another run writes to this file" in md(capsys, *NVE, "--overwrite", status=1).err
    assert {path.name: path.read_bytes() for path in work.glob("md.*")} == before
    # even --overwrite does not touch what the run starts from
    err = run(capsys, "md.traj", "nep.txt", *NVE, "--steps", "5", "--overwrite", status=2).err
    assert "md.traj would be overwritten, which the run starts from" in err


def test_places_that_cannot_be_written(work, capsys):
    (work / "folder").mkdir()
    assert "there is no folder nowhere" in md(capsys, *NVE, "--output", "nowhere/run", status=2).err
    for name in ("folder", "folder/"):
        assert "that is a folder" in md(capsys, *NVE, "--output", name, status=2).err


# ---- what users get wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ensemble", "nvt"], "unknown 'nvt'; "),
        (["--ensemble", "langevine"], "did you mean 'langevin'?"),
        (["--ensembel", "npt"], "unknown option '--ensembel'; did you mean '--ensemble'?"),
        ([*NPT[:2], *NPT[4:]], "--ensemble npt needs --temperature-K"),
        ([*NPT[:4], *NPT[6:]], "--ensemble npt needs --pressure-GPa"),
        (NPT[:-2], "expected --timestep-fs"),
        (NPT[2:], "expected --ensemble, one of nve, langevin"),
        ([*NPT, "--friction", "0.1"], "--friction-per-fs does not go with --ensemble npt: it takes --temperature-K"),
        ([*NVE, "--temperature", "300"], "--temperature-K does not go with --ensemble nve: it has no settings; for"),
        ([*NPT, "--coupling", "isotropc"], "did you mean 'isotropic'?"),
        ([*NPT, "--pressure=1,2"], "pressure_GPa of coupling 'isotropic' must be one number"),
        ([*NPT, "--steps", "-5"], "expected a number of steps"),
        ([*NPT, "--time-ps", "5"], "--steps and --time-ps exclude each other"),
        ([*NPT, "--timestep-fs", "0"], "expected a positive number"),
        ([*NPT, "--seed", "-1"], "--seed: expected an integer from 0"),
        ([*NPT, "--format", "dcd"], "valid names: nc, none, traj, xyz"),
        ([*NPT, "--rdf", "8,0"], "expected a positive integer"),
        ([*NPT, "--replicate", "2 2"], "expected three positive integers"),
        ([*NPT, "--masses", "WAT"], "expected LABEL=MASS"),
        ([*NPT, "--masses", "WATER=18"], "there is no 'WATER' in beads.nepcg.xyz; did you mean 'WAT'?"),
        ([*NPT, "--velocities", "keep"], "--velocities keep: beads.nepcg.xyz has none"),
        (NVE[:-2], "velocities from where? Give --initial-temperature-K; the structure has none"),
        (["--ensemble", "hnemd", "--temperature", "300", "--timestep", "2", "--field", "1"], "expected three numbers"),
    ],
)
def test_mistakes(work, capsys, arguments, message):
    captured = md(capsys, *arguments, status=2)
    assert message in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.out == ""
    assert not list(work.glob("md.*"))


def test_missing_arguments(work, capsys):
    assert "expected STRUCTURE and MODEL" in run(capsys, *NPT, "--steps", "5", status=2).err
    assert "how long? Give --steps or --time-ps" in md(capsys, *NPT, length=(), status=2).err


def test_beads_without_masses(work, capsys):
    err = md(capsys, *NPT, structure="bare.nepcg.xyz", status=2).err
    assert "bare.nepcg.xyz has no masses of the beads WAT" in err
    assert "--masses WAT=18.015" in err


def test_structures_and_models_that_cannot_be_used(work, capsys):
    (work / "broken.xyz").write_text("3\n\nWAT 0 0 0\n")
    assert "truncated" in md(capsys, *NVE, structure="broken.xyz", status=1).err
    assert "nothing.xyz: No such file" in md(capsys, *NVE, structure="nothing.xyz", status=1).err
    assert "no such structure" in md(capsys, *NVE, structure="beads.nepcg.xyz@5", status=1).err
    assert "expected one structure" in md(capsys, *NVE, structure="beads.nepcg.xyz@:", status=1).err
    ase.io.write("argon.xyz", Atoms("Ar8", positions=water_beads(2).positions, cell=[6.2] * 3, pbc=True))
    assert "unknown species Ar; the model has WAT" in md(capsys, *NVE, structure="argon.xyz", status=1).err
    assert run(capsys, "beads.nepcg.xyz", "beads.nepcg.xyz", *NVE, "--steps", "5", status=1).err
    sheet = water_beads(3)
    set_labels(sheet, "WAT", masses=18.015)
    sheet.pbc = (True, True, False)
    ase.io.write("sheet.nepcg.xyz", sheet)
    assert "axis z, which is not periodic" in md(capsys, *NPT, structure="sheet.nepcg.xyz", status=1).err
    assert not list(work.glob("md.*"))


def test_a_time_step_that_is_too_large(work, capsys):
    err = md(capsys, "--ensemble", "nve", "--timestep", "200", "--initial-temperature", "3000", status=1).err
    assert "time step" in err
    # what is good can be looked at
    assert list(work.glob("md.npz.step*.xyz"))


def test_help(work, capsys):
    with pytest.raises(SystemExit):
        cli.main(["md", "--help"])
    out = capsys.readouterr().out
    for word in ("--restart", "--pressure-GPa", "--coupling", "PREFIX.npz", "nepcg md STRUCTURE MODEL"):
        assert word in out
