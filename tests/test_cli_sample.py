"""``nepcg sample``: what it writes and prints, and what it refuses before any time is spent."""

import itertools
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.lj import LennardJones
from ase.io import write

from ase_nepcg import Mapping, read_dataset, sample_mean_force, train
from ase_nepcg.cli import main
from ase_nepcg.dataset import DatasetError
from ase_nepcg.meanforce import campaign
from ase_nepcg.meanforce.campaign import CampaignInterrupted, frame_seed

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(error bars are not reliable|not yet in equilibrium|averages are wrong):RuntimeWarning"
)

LJ = ["--calculator", "lj", "--calculator-option", "sigma=3.0", "--calculator-option", "epsilon=0.05"]
BEADS = ["--mapping", "blocks:2", "--species", "Ne"]
RUN = ["--temperature-K", "100", "--time-ps", "0.1", "--timestep-fs", "2", "--equilibration-ps", "0.02"]
RUN += ["--workers", "1", "--seed", "3"]


def crystal(seed=0):
    """Eight gold atoms on a rattled simple cubic lattice."""
    lattice = np.stack(np.meshgrid(*[range(2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3) * 3.4
    moved = lattice + np.random.default_rng(seed).normal(scale=0.05, size=lattice.shape)
    return Atoms("Au8", positions=moved, cell=[6.8] * 3, pbc=True)


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with a file of one structure, and one of three."""
    monkeypatch.chdir(tmp_path)
    write("one.traj", crystal())
    write("three.traj", [crystal(seed) for seed in range(3)])
    return tmp_path


@pytest.fixture
def no_run(monkeypatch):
    """Fails if anything is sampled; ``results`` may hold what to say instead."""
    fake = SimpleNamespace(error=AssertionError("sampled"), calls=[])

    def sample_many(*arguments, **keywords):
        fake.calls.append((arguments, keywords))
        raise fake.error

    monkeypatch.setattr(campaign, "sample_many", sample_many)
    return fake


def sample(capsys, *arguments, status=0):
    assert main(["sample", *map(str, arguments)]) == status
    return capsys.readouterr()


def test_averages_of_a_run_that_went_wrong(work, capsys):
    """From a start far from equilibrium, which heats up: the frame is written, but nobody can miss it."""
    hot = crystal()
    hot.positions[1] += [0, 0, -1.6]
    write("hot.traj", hot)
    settings = [*LJ, *BEADS, *RUN, "--equilibration-ps", "0.002", "--friction-per-fs", "0.001"]
    out, err = sample(capsys, "one.traj", "hot.traj", *settings, "--output", "a.xyz", status=1)
    assert "a.xyz: 2 frames" in out
    assert "nepcg sample: error: hot.traj: the kinetic temperature is wrong" in err
    with pytest.raises(DatasetError, match=r"frame 1: kinetic_temperature is .* went wrong"):
        train(read_dataset("a.xyz"), steps=1, progress=False)


def test_frames_are_those_of_single_runs(work, capsys):
    structures = ["three.traj", "one.traj@0", "--index", "1:"]
    out, err = sample(capsys, *structures, *LJ, *BEADS, *RUN, "--output", "a.xyz", "--thermal-response")
    assert err == ""
    frames = read_dataset("a.xyz")
    lines = out.splitlines()
    titles = ["no.", "sites", "time", "rms force", "rms error", "n_eff", "pull", "drift", "remarks", "structure"]
    assert re.split("  +", lines[0].strip()) == titles
    assert [line.split()[0] for line in lines[2:5]] == ["0", "1", "2"]
    assert [line.split("  ")[-1].strip() for line in lines[2:5]] == [
        "three.traj, 1 of 2",
        "three.traj, 2 of 2",
        "one.traj@0",
    ]
    assert lines[-1] == "a.xyz: 3 frames, seed 3"
    calc = LennardJones(sigma=3.0, epsilon=0.05)
    for k, atoms in enumerate([crystal(1), crystal(2), crystal(0)]):
        mapping = Mapping.from_atoms_per_bead(atoms, 2, "Ne")
        atoms.calc = LennardJones(**calc.parameters)
        result = sample_mean_force(
            atoms,
            mapping,
            temperature_K=100.0,
            time_ps=0.1,
            timestep_fs=2.0,
            equilibration_ps=0.02,
            thermal_response=True,
            seed=frame_seed(3, k),
            progress=False,
        )
        assert np.array_equal(frames[k].get_forces(), result.forces)
        assert np.array_equal(frames[k].arrays["forces_dT"], result.forces_dT)
        row = lines[2 + k].split()
        assert float(row[3]) == pytest.approx(np.sqrt((result.forces**2).mean()), abs=6e-5)
        assert float(row[4]) == pytest.approx(result.force_error, abs=6e-5)
        assert int(row[8]) == len(result.warnings)
        assert all(f"no. {k}: {text}" in out for text in result.warnings)


def test_model_and_wanted_error(work, capsys, models):
    models["single"].write("nep.txt")
    atoms = crystal()
    atoms.symbols[:] = "O"
    write("oxygen.traj", atoms)
    options = ["oxygen.traj", "--model", "nep.txt", *BEADS, *RUN, "--force-error", "1e-6"]
    out, err = sample(capsys, *options, "--folder", "c")
    assert err == ""
    assert "no. 0: the force error did not get down to 1e-06 eV/Å; sample longer" in out
    (frame,) = read_dataset("train.xyz")
    assert frame.info["calculator"].startswith(models["single"].name)
    assert frame.info["converged"] in (False, np.False_)
    before = (work / "train.xyz").read_bytes()
    # again, from the folder
    again, _ = sample(capsys, *options, "--folder", "c", "--force")
    assert again == out
    assert (work / "train.xyz").read_bytes() == before


def test_failed_structures_are_told_and_the_others_written(work, capsys):
    atoms = crystal(4)
    atoms.positions[1] = atoms.positions[0] + 1e-3
    write("bad.traj", atoms)
    out, err = sample(capsys, "one.traj", "bad.traj", *LJ, *BEADS, *RUN, "--folder", "c", status=1)
    assert "train.xyz: 1 frame, seed 3" in out
    assert re.search(r"^ +1 .* failed  bad.traj$", out, re.MULTILINE)
    assert re.search(r"^nepcg sample: error: bad.traj \(no. 1\): SamplingError: step \d+ cannot be completed", err)
    assert len(err.splitlines()) == 1
    assert len(read_dataset("train.xyz")) == 1
    _, err = sample(capsys, "bad.traj", *LJ, *BEADS, *RUN, "--folder", "d", "--output", "none.xyz", "-T", status=1)
    assert "Traceback" in err
    assert not os.path.exists("none.xyz")


def test_no_stress_no_virial(work, capsys, monkeypatch):
    monkeypatch.setattr(LennardJones, "implemented_properties", ["energy", "forces"])
    monkeypatch.setattr(LennardJones, "calculate", _without_stress(LennardJones.calculate))
    out, _ = sample(capsys, "one.traj", *LJ, *BEADS, *RUN[:-2])
    assert out.splitlines()[2].split()[6] == "-"
    assert out.splitlines()[-2:] == [
        "train.xyz: 1 frame, seed drawn anew (give --seed, or --folder, to get the same again)",
        "the calculator gives no stress: frames without virials",
    ]


def _without_stress(calculate):
    def changed(self, *arguments, **keywords):
        calculate(self, *arguments, **keywords)
        self.results.pop("stress", None)

    return changed


def test_options_reach_the_run(work, capsys, no_run):
    sample(
        capsys,
        *("three.traj", "--index", ":", *LJ, "--calculator-option", "smooth=true", *BEADS),
        *("--temperature-K", "250", "--force-error", "0.02", "--timestep-fs", "1.5", "--ensemble", "nve"),
        *("--friction-per-fs", "0.03", "--equilibration-ps", "0", "--interval", "4", "--seed", "9", "--workers", "3"),
        *("--threads", "2", "--folder", "c"),
        status=1,
    )
    ((frames, mappings), keywords) = no_run.calls[0]
    calculator = keywords.pop("calculator")
    assert (len(frames), len(mappings)) == (3, 3)
    assert mappings[0] == Mapping.from_atoms_per_bead(crystal(), 2, "Ne")
    assert keywords == {
        "temperature_K": 250.0,
        "time_ps": None,
        "force_error": 0.02,
        "timestep_fs": 1.5,
        "ensemble": "nve",
        "friction_per_fs": 0.03,
        "equilibration_ps": 0.0,
        "interval": 4,
        "thermal_response": False,
        "seed": 9,
        "workers": 3,
        "threads": 2,
        "folder": "c",
    }
    assert calculator.parameters["smooth"] is True
    assert calculator.parameters["sigma"] == 3.0


def test_interrupt(work, capsys, no_run):
    atoms = crystal()
    atoms.calc = LennardJones(sigma=3.0, epsilon=0.05)
    mapping = Mapping.from_atoms_per_bead(atoms, 2, "Ne")
    result = sample_mean_force(atoms, mapping, temperature_K=100.0, time_ps=0.05, equilibration_ps=0.0, progress=False)
    no_run.error = CampaignInterrupted([None, result, None])
    options = ["three.traj", "--index", ":", *LJ, *BEADS, *RUN]
    _, err = sample(capsys, *options, "--folder", "c", status=130)
    assert err == "nepcg sample: interrupted, 1 of 3 finished; the same command goes on from c\n"
    assert not os.path.exists("train.xyz")
    out, err = sample(capsys, *options, status=130)
    assert "train.xyz: 1 frame, seed 3" in out
    assert err == "nepcg sample: interrupted, 1 of 3 finished\n"
    assert len(read_dataset("train.xyz")) == 1


def test_labels_by_default_are_told_once(work, capsys, no_run):
    box = molecule("H2O", vacuum=3.0)
    box.pbc = True
    write("water.traj", [box, box])
    options = ["water.traj", "--index", ":", *LJ, "--temperature-K", "300", "--time-ps", "1"]
    _, err = sample(capsys, *options, status=1)
    assert err.splitlines()[0] == "bead species: He = H2O"
    assert len(err.splitlines()) == 2
    # another composition gets the same label: refused before anything is sampled
    other = molecule("CH3OH", vacuum=3.0)
    other.pbc = True
    write("methanol.traj", other)
    no_run.calls.clear()
    _, err = sample(capsys, "methanol.traj", *options, status=1)
    assert "water.traj, 1 of 2: the frames could not be written: frame 1: label 'He' has mass 18.015" in err
    assert err.rstrip().endswith("to choose the labels give --species")
    assert no_run.calls == []


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--time-ps", "1"], 2, "the following arguments are required: --temperature-K"),
        (["--temperature-K", "300"], 2, r"when to stop\? Give --time-ps, --force-error, or both"),
        (["--temperature-K", "-3"], 2, "argument --temperature-K: expected a positive number, got -3"),
        ([*RUN, "--time-ps", "inf"], 2, "argument --time-ps: expected a number, got 'inf'"),
        ([*RUN, "--equilibration-ps", "-1"], 2, "expected a number from 0, got -1"),
        ([*RUN, "--interval", "0"], 2, "argument --interval: expected a positive integer, got '0'"),
        ([*RUN, "--seed", "-1"], 2, r"--seed: expected an integer from 0 to 2\^63 - 1, got -1"),
        ([*RUN, "--ensemble", "NPT"], 2, "NPT: pressure and held beads exclude each other"),
        ([*RUN, "--ensemble", "nvv"], 2, "expected nvt or nve, got 'nvv'"),
        ([*RUN, "--ensemble", "nve", "--thermal-response"], 2, "--thermal-response needs --ensemble nvt"),
        ([*RUN, "--index", "a"], 2, "argument --index: expected an index or a slice"),
        ([*RUN, "--index", "::0"], 2, "argument --index: expected an index or a slice"),
        ([*RUN, "--calculator", "ljj"], 2, r"unknown calculator 'ljj'; did you mean 'lj'\?"),
        ([*RUN, "--calculator-option", "sigma"], 2, "expected KEY=VALUE, e.g. sigma=3.4, got 'sigma'"),
        (
            [*RUN, "--calculator-option", "sigmma=3"],
            2,
            r"--calculator lj has no option 'sigmma'; did you mean 'sig",
        ),
        ([*RUN, "--calculator-option", "sigma=x"], 2, "--calculator-option sigma: expected a number, got 'x'"),
        ([*RUN, "--calculator-option", "smooth=x"], 2, "--calculator-option smooth: expected true or false, got 'x'"),
        ([*RUN, "--calculator", "morse"], 2, "--calculator morse has no option 'sigma'"),
        ([*RUN, "--model", "nep.txt"], 2, "Give --model FILE or --calculator NAME, not both"),
        ([*RUN, "--output", "no/where.xyz"], 2, "--output no/where.xyz: there is no folder no"),
        ([*RUN, "--output", "one.traj", "--force"], 2, "--output one.traj: that is one of the structures"),
        ([*RUN, "--output", "three.traj"], 2, "three.traj: the file exists; choose another name, or --force"),
        ([*RUN, "--output", "."], 2, "expected a file name, that is a folder"),
        ([*RUN, "--index", "5"], 1, "one.traj: no such structure in the file"),
        ([*RUN, "--index", "5:"], 1, "one.traj: expected structures, got none"),
        (["nothing.xyz", *RUN], 1, "nothing.xyz: No such file or directory"),
        (["nothing.xyz@0", *RUN], 1, "nothing.xyz: No such file or directory"),
        (["one.traj@x", *RUN], 1, "one.traj@x: expected an index or a slice"),
        (["text.xyz", *RUN], 1, "text.xyz: cannot be read as a structure"),
        (
            ["cluster.traj", *RUN],
            1,
            "cluster.traj: the frames could not be written: frame 1: cell: expected three vect",
        ),
        (
            [*RUN, "--mapping", "blocks:3"],
            1,
            "one.traj: n: expected a divisor of the 8 atoms",
        ),
    ],
)
def test_refused_before_anything_is_run(arguments, status, message, work, capsys, no_run):
    (work / "text.xyz").write_text("this is\nnot a structure\n")
    cluster = crystal()
    cluster.pbc, cluster.cell = False, None
    write("cluster.traj", cluster)
    files = list(itertools.takewhile(lambda text: not text.startswith("-"), arguments))
    out, err = sample(capsys, "one.traj", *files, *LJ, *BEADS, *arguments[len(files) :], status=status)
    assert out == ""
    assert re.search(message, err), err
    assert len(err.splitlines()) == 1
    assert no_run.calls == []
    assert not os.path.exists("train.xyz")


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ([], 2, r"where do the forces come from\? Give --model FILE or --calculator NAME \("),
        (["--calculator-option", "a=1"], 2, "where do the forces come from"),
        (["--model", "nep.txt", "--calculator-option", "a=1"], 2, "--calculator-option goes with --calculator"),
        (["--model", "nep.txt"], 1, "nep.txt: No such file or directory"),
        (["--calculator", "lj"], 2, "needs --calculator-option epsilon=… --calculator-option sigma=… "),
    ],
)
def test_forces_must_come_from_somewhere(options, status, message, work, capsys, no_run):
    out, err = sample(capsys, "one.traj", *BEADS, *RUN, *options, status=status)
    assert out == ""
    assert re.search(message, err), err
    assert no_run.calls == []


def test_unsuitable_calculator(work, capsys):
    atoms = crystal()
    atoms.symbols[:] = "Fe"
    write("iron.traj", atoms)
    _, err = sample(capsys, "iron.traj", "--calculator", "emt", *BEADS, *RUN, status=1)
    assert "iron.traj (no. 0): " in err
    assert not os.path.exists("train.xyz")
