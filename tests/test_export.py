"""Files for GPUMD and LAMMPS: what they say is what was given, and what would be misread is refused."""

import io
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.constraints import FixAtoms
from ase.io.lammpsdata import read_lammps_data

from ase_nepcg import NEP, Mapping, NEPModel
from ase_nepcg.cli import main
from ase_nepcg.export import ExportError, export_gpumd, export_lammps
from ase_nepcg.labels import set_labels

RUN = {"timestep_fs": 2.0, "steps": 1000, "temperature_K": 300.0}
SYMBOLS = {"W1": "He", "a-long-tail-bead": "Ne"}


@pytest.fixture
def beads(structures):
    """Twelve sites of two labels in a triclinic cell, with masses and velocities."""
    atoms = structures["triclinic"]
    labels = np.where(np.arange(len(atoms)) % 3 == 0, "a-long-tail-bead", "W1")
    set_labels(atoms, labels, masses={"W1": 18.0, "a-long-tail-bead": 100.0})
    atoms.set_momenta(np.random.default_rng(1).normal(size=(len(atoms), 3)))
    return atoms


def energy(model, atoms):
    copy = atoms.copy()
    copy.calc = NEP(model, threads=1)
    return copy.get_potential_energy()


def test_gpumd(beads, models, tmp_path):
    paths = export_gpumd(tmp_path / "run", beads, models["beads"], symbols=SYMBOLS, **RUN)
    assert [Path(path).name for path in paths] == ["nep.txt", "model.xyz", "run.in"]
    model = NEPModel.read(tmp_path / "run" / "nep.txt")
    assert model.species == ("He", "Ne")
    atoms = ase.io.read(tmp_path / "run" / "model.xyz")
    assert "group" not in atoms.arrays
    assert atoms.pbc.all()
    # the column of masses, and not those of helium and neon
    np.testing.assert_allclose(atoms.arrays["mass"], beads.get_masses())
    np.testing.assert_allclose(atoms.arrays["vel"], beads.get_velocities() * units.fs, rtol=1e-10)
    assert energy(model, atoms) == pytest.approx(energy(models["beads"], beads), rel=1e-9)
    text = (tmp_path / "run" / "run.in").read_text().splitlines()
    assert "velocity" not in text
    # relaxation time in time steps: 100 fs
    assert "ensemble nvt_bdp 300 300 50" in text
    assert text[0] == "potential nep.txt"
    assert text[-1] == "run 1000"


@pytest.mark.parametrize(
    ("settings", "ensemble"),
    [
        ({"temperature_K": None}, "ensemble nve"),
        ({}, "ensemble nvt_bdp 300 300 50"),
        ({"pressure_GPa": 0.1}, "ensemble npt_scr 300 300 50 0.1 2.2 500"),
    ],
)
def test_gpumd_ensembles(beads, models, tmp_path, settings, ensemble):
    if "pressure_GPa" in settings:
        with pytest.raises(ExportError, match="isotropic barostat for cells along x, y and z only"):
            export_gpumd(tmp_path, beads, models["beads"], symbols=SYMBOLS, **(RUN | settings))
        beads.set_cell(np.diag(beads.cell.lengths()), scale_atoms=True)
    export_gpumd(tmp_path, beads, models["beads"], symbols=SYMBOLS, **(RUN | settings))
    assert ensemble in (tmp_path / "run.in").read_text().splitlines()


def test_gpumd_draws_velocities_where_there_are_none(beads, models, tmp_path):
    beads.set_momenta(np.zeros((len(beads), 3)))
    export_gpumd(tmp_path, beads, models["beads"], symbols=SYMBOLS, **RUN)
    assert "velocity 300" in (tmp_path / "run.in").read_text().splitlines()
    assert "vel" not in ase.io.read(tmp_path / "model.xyz").arrays
    with pytest.raises(ExportError, match="no velocities"):
        export_gpumd(tmp_path / "new", beads, models["beads"], symbols=SYMBOLS, **(RUN | {"temperature_K": None}))


def test_groups(models, tmp_path):
    water = molecule("H2O", cell=[6, 6, 6], pbc=True)
    atoms = water.repeat((2, 1, 1))
    mapping = Mapping.from_groups([[0, 1, 2], [3, 4, 5]], "F")
    export_gpumd(tmp_path, atoms, models["plain"], mapping=mapping, **RUN)
    assert ase.io.read(tmp_path / "model.xyz").arrays["group"].tolist() == [0, 0, 0, 1, 1, 1]
    assert (tmp_path / "bead_name.txt").read_text() == "F\n" * 6
    with pytest.raises(ExportError, match="atom 3 is in no bead"):
        export_gpumd(tmp_path / "b", atoms, models["plain"], mapping=Mapping.from_groups([[0, 1, 2]], "F"), **RUN)


def test_lammps(beads, models, tmp_path):
    paths = export_lammps(tmp_path, beads, models["beads"], symbols=SYMBOLS, pressure_GPa=0.1, **RUN)
    assert [Path(path).name for path in paths] == ["nep.txt", "structure.data", "in.lammps"]
    text = (tmp_path / "in.lammps").read_text().splitlines()
    assert "pair_coeff * * nep.txt He Ne" in text
    assert "boundary p p p" in text
    assert "timestep 0.002" in text
    # 0.1 GPa in bar; relaxation times in ps
    assert "fix integrate all npt temp 300 300 0.1 iso 1000 1000 1" in text
    assert not any(line.startswith("velocity") for line in text)
    data = (tmp_path / "structure.data").read_text()
    atoms = read_lammps_data(io.StringIO(data), Z_of_type={1: 2, 2: 10}, atom_style="atomic")
    # the structure is turned; energy, masses and speeds are as before
    assert energy(NEPModel.read(tmp_path / "nep.txt"), atoms) == pytest.approx(energy(models["beads"], beads), rel=1e-9)
    np.testing.assert_allclose(atoms.get_masses(), beads.get_masses())
    speeds = [np.linalg.norm(a.get_velocities(), axis=1) for a in (atoms, beads)]
    np.testing.assert_allclose(*speeds, rtol=1e-8)


def test_lammps_types_follow_the_model(models, tmp_path):
    # only the second species of the model is there
    atoms = Atoms("H4", np.eye(4, 3) * 2, cell=[8, 8, 8], pbc=[True, True, False])
    export_lammps(tmp_path, atoms, models["plain"], seed=7, **RUN)
    text = (tmp_path / "in.lammps").read_text().splitlines()
    assert "pair_coeff * * nep.txt H" in text
    assert "1 atom types" in (tmp_path / "structure.data").read_text()
    assert "boundary p p s" in text
    assert "velocity all create 300 7 mom yes rot no dist gaussian" in text


def test_masses_of_a_type(beads, models, tmp_path):
    masses = beads.get_masses()
    masses[1] = 20.0
    beads.set_masses(masses)
    export_gpumd(tmp_path / "gpumd", beads, models["beads"], symbols=SYMBOLS, **RUN)
    with pytest.raises(ExportError, match=r"one mass per type, the sites 'He' have 18 to 20 u"):
        export_lammps(tmp_path / "lammps", beads, models["beads"], symbols=SYMBOLS, **RUN)


@pytest.mark.parametrize("export", [export_gpumd, export_lammps])
def test_refusals(beads, models, tmp_path, export):
    def refused(message, atoms=beads, model=models["beads"], **settings):
        with pytest.raises(ExportError, match=message):
            export(tmp_path / "new", atoms, model, **({"symbols": SYMBOLS} | RUN | settings))
        assert not (tmp_path / "new").exists()

    refused(r"'W1' must become a chemical symbol .* symbols={'W1': 'He'}", symbols={})
    refused("'W1' must become a chemical symbol", symbols=SYMBOLS | {"W1": "Wx"})
    refused("two species would get the same symbol", symbols=SYMBOLS | {"W1": "Ne"})
    refused("the model has no 'W2'; valid names: W1", symbols=SYMBOLS | {"W2": "Ar"})
    refused("the model knows O, H, the structure has", model=models["plain"], symbols={})
    refused("timestep_fs: expected a positive", timestep_fs=0)
    refused("steps: expected a positive", steps=2.5)
    refused("a pressure needs a temperature", temperature_K=None, pressure_GPa=1.0)
    slab = beads.copy()
    slab.pbc = [True, True, False]
    refused(r"pbc is \[True, True, False\], and an isotropic barostat", atoms=slab, pressure_GPa=1.0)
    held = beads.copy()
    held.set_constraint(FixAtoms([0]))
    refused(r"constraints \(FixAtoms\), which the input would not have", atoms=held)
    lost = beads.copy()
    lost.arrays["momenta"][3, 1] = np.nan
    refused("momenta must be finite", atoms=lost)
    beyond = NEPModel.random(models["beads"].species, cutoff=(4.0, 6.0), seed=1)
    refused("angular cutoff beyond the radial one", model=beyond)
    refused("pressure_GPa: expected a number", pressure_GPa="1")
    bare = beads.copy()
    del bare.arrays["masses"]
    refused("the beads have no masses", atoms=bare)
    box = beads.copy()
    box.cell[2] = 0
    refused("set atoms.cell", atoms=box)
    water = Atoms("OH", [[0, 0, 0], [0, 0, 2]], cell=[9, 9, 9], pbc=True)
    refused("labels cannot be renamed", atoms=water, model=models["zbl"], symbols={"O": "F"})


def test_what_a_program_cannot_read(models, tmp_path):
    atoms = Atoms("OH", [[0, 0, 0], [0, 0, 2]], cell=[9, 9, 9], pbc=True)
    with pytest.raises(ExportError, match="this is nep3"):
        export_gpumd(tmp_path, atoms, models["nep3"], **RUN)
    with pytest.raises(ExportError, match="no temperature input"):
        export_lammps(tmp_path, atoms, models["full"], **RUN)
    assert not list(tmp_path.iterdir())


def test_files_are_not_replaced(beads, models, tmp_path):
    (tmp_path / "run.in").write_text("mine")
    with pytest.raises(ExportError, match=r"there already: .*run\.in"):
        export_gpumd(tmp_path, beads, models["beads"], symbols=SYMBOLS, **RUN)
    assert [path.name for path in tmp_path.iterdir()] == ["run.in"]
    export_gpumd(tmp_path, beads, models["beads"], symbols=SYMBOLS, overwrite=True, **RUN)
    assert "potential" in (tmp_path / "run.in").read_text()


def test_command(beads, models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    models["beads"].write("nep.txt")
    ase.io.write("beads.traj", beads)
    start = ["beads.traj", "nep.txt", "--timestep", "2", "--steps", "100", "--temperature", "300"]
    symbols = ["--symbols", "W1=He,a-long-tail-bead=Ne"]
    assert main(["export", "gpumd", *start, *symbols]) == 0
    assert "gpumd/run.in" in capsys.readouterr().out
    assert main(["export", "LAMMPS", *start, *symbols, "--output", "lmp"]) == 0
    assert Path("lmp/in.lammps").exists()
    assert main(["export", "gpumd", *start]) == 1
    assert "must become a chemical symbol" in capsys.readouterr().err
    # copies of a cell do not move in step: velocities are drawn
    assert main(["export", "gpumd", *start, *symbols, "--output", "two", "--replicate", "2 1 1"]) == 0
    assert "velocity 300" in Path("two/run.in").read_text()
    assert "vel" not in ase.io.read("two/model.xyz").arrays
    cold = ["export", "gpumd", *start[:-2], *symbols, "--output", "three", "--replicate"]
    assert main([*cold, "2 1 1"]) == 2
    assert "copies need velocities of their own" in capsys.readouterr().err
    assert main([*cold, "1 1 1"]) == 0
    assert "vel" in ase.io.read("three/model.xyz").arrays
    assert main(["export", "gromacs", *start]) == 2
    assert main(["export", "gpumd", *start, "--symbols", "W1"]) == 2
    assert "expected LABEL=SYMBOL" in capsys.readouterr().err
    assert main(["export", "lammps", *start, *symbols, "--groups"]) == 2
