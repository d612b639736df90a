"""nepcg rdf | eos | hnemd | stress-strain: tables, figures, refusals; the numbers are those of ase_nepcg.analysis."""

from pathlib import Path

import ase.io
import md_physics as physics
import numpy as np
import pytest
from ase import Atoms

from ase_nepcg import analysis
from ase_nepcg.cli import main

MODEL = str(Path(__file__).with_name("data") / "water_bead_trained.txt")
PNG = b"\x89PNG"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def crystal(folder):
    """crystal.xyz, at rest, with masses."""
    atoms = physics.crystal(17.0, 2)
    atoms.calc = None
    ase.io.write("crystal.xyz", atoms)
    return atoms


@pytest.fixture
def gas(folder):
    rng = np.random.default_rng(1)
    frames = [Atoms("H20O20", rng.random((40, 3)) * 12, cell=[12] * 3, pbc=True) for _ in range(20)]
    ase.io.write("gas.traj", frames)
    return frames


def table(path):
    lines = Path(path).read_text().splitlines()
    return lines[0].split(","), np.array([[float(x) for x in line.split(",")] for line in lines[1:]])


def run(*arguments):
    return main([str(argument) for argument in arguments])


def refused(capsys, *arguments, status=2):
    assert run(*arguments) == status
    return capsys.readouterr().err


def test_rdf(gas, capsys):
    assert run("rdf", "gas.traj", "--r-max", 5, "--bins", 10) == 0
    out = capsys.readouterr().out
    assert "20 frames, average volume 1728 Å^3" in out
    assert "wrote rdf.csv rdf.png" in out
    header, rows = table("rdf.csv")
    expected = analysis.rdf(gas, 5.0, 10)
    assert header == list(expected.as_table()[0])
    np.testing.assert_allclose(rows, expected.as_table()[1], rtol=1e-9)
    assert Path("rdf.png").read_bytes().startswith(PNG)


def test_rdf_of_a_part(gas, capsys):
    assert (
        run("rdf", "gas.traj", "--r-max", 5, "--pairs", "O-H", "--skip", 15, "--output", "new", "--figure", "none") == 0
    )
    assert "5 frames" in capsys.readouterr().out
    header, rows = table("new.csv")
    assert header[1] == "g_O-H"
    np.testing.assert_allclose(rows[:, 1], analysis.rdf(gas[15:], 5.0, pairs=[("O", "H")]).g[0], rtol=1e-9)
    assert sorted(path.name for path in Path().iterdir()) == ["gas.traj", "new.csv"]


def test_rdf_refusals(gas, capsys):
    Path("rdf.csv").write_text("mine")
    assert "there already: rdf.csv" in refused(capsys, "rdf", "gas.traj", "--r-max", 5)
    assert Path("rdf.csv").read_text() == "mine"
    assert run("rdf", "gas.traj", "--r-max", 5, "--overwrite") == 0
    capsys.readouterr()
    new = ("--output", "new")
    assert "expected a positive number" in refused(capsys, "rdf", "gas.traj", "--r-max", -5, *new)
    assert "expected pairs of labels" in refused(capsys, "rdf", "gas.traj", "--r-max", 5, "--pairs", "OH", *new)
    assert "unknown species 'N'" in refused(capsys, "rdf", "gas.traj", "--r-max", 5, "--pairs", "O-N", *new, status=1)
    assert "no more frames" in refused(capsys, "rdf", "gas.traj", "--r-max", 5, "--skip", 20, *new, status=1)
    assert "No such file" in refused(capsys, "rdf", "gsa.traj", "--r-max", 5, *new, status=1)
    assert "there is no folder" in refused(capsys, "rdf", "gas.traj", "--r-max", 5, "--output", "no/rdf")
    for folder in (".", "no/", "../.."):
        assert "got a folder; for example" in refused(capsys, "rdf", "gas.traj", "--r-max", 5, "--output", folder)
    assert "times the smallest height" in refused(capsys, "rdf", "gas.traj", "--r-max", 500, *new, status=1)
    assert "--r-max" in refused(capsys, "rdf", "gas.traj", "--rmax", 5, *new)
    assert not list(Path().glob("new*"))


def test_rdf_without_volume_or_with_vacuum(gas, capsys):
    frames = ase.io.read("gas.traj", ":3")
    for frame in frames:
        frame.pbc = [True, True, False]
    ase.io.write("slab.traj", frames)
    assert run("rdf", "slab.traj", "--r-max", 5) == 0
    assert "g refers to the density of the cell with the vacuum in it" in capsys.readouterr().out
    for frame in frames:
        frame.pbc, frame.cell = False, None
    ase.io.write("cluster.traj", frames)
    assert run("rdf", "cluster.traj", "--r-max", 5, "--overwrite") == 0
    assert "no density and no g" in capsys.readouterr().out


SHORT = ("--timestep-fs", 4, "--equilibration-ps", 0.1, "--temperature-K", 50, "--threads", 1)


def test_eos(crystal, capsys):
    arguments = (*SHORT, "--time-ps", 0.4)
    assert run("eos", "crystal.xyz", MODEL, "--volumes", "272,280", *arguments) == 0
    out = capsys.readouterr().out
    assert "water_bead_trained: volume" in out
    header, rows = table("eos.csv")
    np.testing.assert_allclose(rows[:, header.index("volume_A3")], [272, 280])
    crystal.calc = physics.calculator()
    expected = analysis.eos(
        crystal, temperature_K=50.0, volumes_A3=[272.0, 280.0], timestep_fs=4.0, equilibration_ps=0.1, time_ps=0.4,
        progress=False,
    )  # fmt: skip
    np.testing.assert_allclose(rows[:, header.index("pressure_GPa")], expected.pressure_GPa, rtol=1e-6)
    assert Path("eos.png").read_bytes().startswith(PNG)
    # the same points by density, two models
    density = ",".join(f"{value:.12g}" for value in expected.density_g_cm3)
    two = ("eos", "crystal.xyz", f"a={MODEL}", f"b={MODEL}", "--densities", density)
    assert run(*two, *arguments, "--output", "two", "--figure", "none") == 0
    for name in "ab":
        np.testing.assert_allclose(table(f"two.{name}.csv")[1][:, :6], rows[:, :6], rtol=1e-6)


def test_eos_refusals(crystal, capsys):
    start = ("eos", "crystal.xyz", MODEL, *SHORT, "--time-ps", 0.4)
    assert "--volumes" in refused(capsys, *start)
    assert "not allowed with" in refused(capsys, *start, "--volumes", 270, "--densities", 1)
    assert "expected a number, got 'x'" in refused(capsys, *start, "--volumes", "270,x")
    assert "times smaller than the start" in refused(capsys, *start, "--densities", 950, status=1)
    assert "two models are called" in refused(capsys, *start[:2], MODEL, MODEL, *start[3:], "--volumes", 270)
    atoms = Atoms("N2", [[0, 0, 0], [0, 0, 2]], cell=[9, 9, 9], pbc=True)
    ase.io.write("nitrogen.xyz", atoms)
    assert "N" in refused(capsys, "eos", "nitrogen.xyz", *start[2:], "--volumes", 270, status=1)
    assert not list(Path().glob("eos*"))


def test_hnemd(crystal, capsys):
    arguments = (*SHORT, "--time-ps", 0.8, "--settle-ps", 0.1, "--replicas", 2)
    assert run("hnemd", "crystal.xyz", MODEL, "--axis", "x", "--fields", "1e-3,2e-3", *arguments) == 0
    out = capsys.readouterr().out
    assert "0.002 1/Å" in out
    assert "standard errors from the weakest" in out
    _, rows = table("hnemd.csv")
    assert rows[:, 0].tolist() == [0.001, 0.002]
    assert Path("hnemd.png").read_bytes().startswith(PNG)
    wrong = ("hnemd", "crystal.xyz", MODEL, "--axis", "w", "--fields", "1e-3", *arguments, "--overwrite")
    assert "unknown 'w'" in refused(capsys, *wrong)


def test_stress_strain(crystal, capsys):
    arguments = (*SHORT, "--rate", 0.01, "--max-strain", 0.01, "--windows", 4, "--replicas", 2)
    arguments += ("--equilibration-ps", 0.3, "--tau-p-fs", 100, "--compressibility-per-GPa", 0.05)
    assert run("stress-strain", "crystal.xyz", MODEL, "--axis", "z", "--free", "xy", *arguments) == 0
    out = capsys.readouterr().out
    # the fit goes no further than the curve
    assert "slope of the stress below 0.01" in out
    assert "Poisson's ratio zx" in out
    header, rows = table("stress-strain.csv")
    assert len(rows) == 4
    np.testing.assert_allclose(rows[:, header.index("strain_z")], rows[:, 0])
    assert Path("stress-strain.png").read_bytes().startswith(PNG)
    again = ("stress-strain", "crystal.xyz", MODEL, "--axis", "z", "--free", "z", *arguments, "--overwrite")
    assert "free must be None or name axes" in refused(capsys, *again, status=1)
