"""``nepcg predict``."""

import os
from pathlib import Path

import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from ase_nepcg import cli
from ase_nepcg.cli_predict import errors
from ase_nepcg.dataset import DatasetError, FrameCalculator, read_dataset, write_dataset
from ase_nepcg.training.files import OUT_FILES, read_loss, read_out
from ase_nepcg.training.predict import predict
from ase_nepcg.training.targets import Targets

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
ERRORS = 0.02  # eV/Å
VOIGT = [0, 1, 2, 5, 3, 4]  # of the files, in ASE's order xx yy zz yz xz xy


@pytest.fixture
def work(tmp_path, monkeypatch, models):
    monkeypatch.setitem(cli.COMMANDS, "predict", ("…", "ase_nepcg.cli_predict:Predict"))
    monkeypatch.chdir(tmp_path)
    for name in ("plain", "beads", "full"):
        models[name].write(f"{name}.txt")
    return tmp_path


@pytest.fixture
def frames(atoms, rng):
    """Three frames of different sizes with random references; the second has forces with error bars and no more."""
    frames = [atoms, atoms.repeat((2, 1, 1)), atoms.copy()]
    for k, frame in enumerate(frames):
        frame.calc = None
        frame.rattle(0.05, seed=k)
        forces = rng.normal(size=(len(frame), 3))
        if k == 1:
            frame.calc = FrameCalculator(frame, forces=forces)
            frame.arrays["force_errors"] = rng.uniform(0.5, 1.5, forces.shape) * ERRORS
            frame.arrays["force_errors"][3, 1] = 0.0
        else:
            stress = rng.normal(size=6) * 0.01
            frame.calc = SinglePointCalculator(frame, energy=rng.normal(), forces=forces, stress=stress)
    return frames


def run(capsys, *arguments, status=0):
    assert cli.main(["predict", *map(str, arguments), "--threads", "1"]) == status
    return capsys.readouterr()


def table(out: str) -> dict[str, list[str]]:
    """Numbers in the rows of the table by quantity."""
    rows = [line.split("  ") for line in out.splitlines()[2:7]]
    return {row[0]: " ".join(row[1:]).split()[1:] for row in rows}


def test_table_and_files_agree_with_the_calculator(work, frames, capsys, make_calculator):
    write_dataset("train.xyz", frames)
    out, err = run(capsys, "plain.txt", "train.xyz")
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == f"train.xyz: 3 frames, {sum(map(len, frames))} sites; plain.txt: nep4, O H"
    assert lines[1].split() == ["quantity", "unit", "RMSE", "MAE", "numbers"]
    assert lines[-1] == "wrote energy_train.out force_train.out virial_train.out stress_train.out"

    difference = {name: [] for name in OUT_FILES}
    expected = {name: [] for name in OUT_FILES}
    for frame, ours in ((frame, frame.copy()) for frame in frames):
        ours.calc = make_calculator()
        energy, forces, stress = ours.get_potential_energy() / len(ours), ours.get_forces(), ours.get_stress()
        gpa = -stress[VOIGT] * 160.2177
        virial = gpa / 160.2177 * ours.get_volume() / len(ours)
        known = frame.calc.results
        with_energy = "energy" in known
        e0 = known["energy"] / len(ours) if with_energy else np.nan
        gpa0 = -known["stress"][VOIGT] * 160.2177 if with_energy else np.full(6, np.nan)
        virial0 = gpa0 / 160.2177 * ours.get_volume() / len(ours)
        pairs = {
            "energy": ([energy], [e0]),
            "force": (forces, known["forces"]),
            "virial": ([virial], [virial0]),
            "stress": ([gpa], [gpa0]),
        }
        for name, (predicted, reference) in pairs.items():
            expected[name] += np.column_stack([predicted, reference]).tolist()
            difference[name] += (np.array(predicted) - reference).ravel().tolist()
    for name, rows in expected.items():
        predicted, reference = read_out(f"{name}_train.out")
        assert np.allclose(np.hstack([predicted, reference]), rows, rtol=1e-5, atol=1e-9, equal_nan=True)

    rows = table(out)
    energies = np.array(difference["energy"])[[0, 2]]
    difference["energy, mean error removed"] = energies - energies.mean()
    assert list(rows) == ["energy", "energy, mean error removed", "force", "virial", "stress"]
    for name, (rmse, mae, count) in rows.items():
        values = np.array(difference[name])
        values = values[~np.isnan(values)]
        assert float(rmse) == pytest.approx(np.sqrt((values**2).mean()), rel=1e-3)
        assert float(mae) == pytest.approx(np.abs(values).mean(), rel=1e-3)
        assert int(count) == len(values)

    bars = frames[1].arrays["force_errors"]
    first = 3 * len(frames[0])
    forces = np.array(difference["force"][first : first + bars.size]).reshape(-1, 3)
    known = bars > 0
    floor = np.sqrt((bars[known] ** 2).mean())
    chi2 = ((forces[known] / bars[known]) ** 2).mean()
    assert lines[-2] == f"force: noise floor {floor:.4g} eV/Å (rms error bar), reduced chi^2 {chi2:.4g}"


def test_a_model_that_is_right_has_chi2_one(work, frames, models, rng, capsys):
    model = models["plain"]
    exact = predict(model, Targets.from_frames(frames[1], model.species), threads=1)
    frames[1].arrays["force_errors"][:] = ERRORS
    frames[1].calc = FrameCalculator(frames[1], forces=exact.forces + ERRORS * rng.normal(size=exact.forces.shape))
    write_dataset("train.xyz", frames[1])
    out, _ = run(capsys, "plain.txt", "train.xyz")
    assert f"noise floor {ERRORS} eV/Å" in out
    # of 72 numbers
    chi2 = float(out.partition("chi^2 ")[2].split()[0])
    assert chi2 == pytest.approx(1, abs=0.5)
    assert chi2 == pytest.approx((float(table(out)["force"][0]) / ERRORS) ** 2, rel=2e-3)


def test_noise_of_virials(work, frames, capsys):
    frames[0].info["virial_error"] = np.full((3, 3), 0.5)
    write_dataset("train.xyz", frames)
    out, _ = run(capsys, "plain.txt", "train.xyz")
    assert f"virial: noise floor {0.5 / len(frames[0]):.4g} eV/atom (rms error bar), reduced chi^2 " in out


def test_frames_with_forces_only(work, frames, capsys):
    del frames[1].arrays["force_errors"]
    write_dataset("test.xyz.gz", frames[1])
    out, _ = run(capsys, "plain.txt", "test.xyz.gz")
    rows = table(out)
    assert [rows[name] for name in rows if name != "force"] == [["-", "-", "0"]] * 4
    assert int(rows["force"][2]) == 3 * len(frames[1])
    assert "noise" not in out
    assert Path("energy_test.out").read_text().endswith(" nan\n")
    assert Path("stress_test.out").read_text().endswith(" -1e+06" * 6 + "\n")


def test_temperature(work, frames, capsys, make_calculator):
    for k, frame in enumerate(frames):
        frame.info["temperature"] = 200.0 + 100.0 * k
    write_dataset("train.xyz", frames)
    run(capsys, "full.txt", "train.xyz")
    run(capsys, "full.txt", "train.xyz", "--temperature-K", "450", "--output", "450")
    for folder, temperatures in ((".", (200, 300, 400)), ("450", (450,) * 3)):
        energies = read_out(f"{folder}/energy_train.out")[0][:, 0]
        for frame, temperature, energy in zip(frames, temperatures, energies, strict=True):
            frame.calc = make_calculator("full", temperature_K=temperature)
            assert energy == pytest.approx(frame.get_potential_energy() / len(frame), rel=1e-5)


def test_nothing_is_overwritten_unless_asked(work, frames, capsys):
    write_dataset("train.xyz", frames)
    Path("virial_train.out").write_text("mine")
    before = sorted(os.listdir())
    _, err = run(capsys, "plain.txt", "train.xyz", status=2)
    assert ".: virial_train.out there already; --output FOLDER, or --overwrite" in err
    assert sorted(os.listdir()) == before
    assert Path("virial_train.out").read_text() == "mine"
    run(capsys, "plain.txt", "train.xyz", "--output", "folder")
    assert sorted(os.listdir("folder")) == sorted(f"{name}_train.out" for name in OUT_FILES)
    run(capsys, "plain.txt", "train.xyz", "--overwrite")
    assert Path("virial_train.out").read_text() == Path("folder/virial_train.out").read_text()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["plain.txt"], 2, "the following arguments are required: FRAMES"),
        (["none.txt", "train.xyz"], 1, "none.txt: No such file or directory"),
        (["plain.txt", "none.xyz"], 1, "none.xyz: No such file or directory"),
        (["train.xyz", "plain.txt"], 1, "train.xyz, line 1: expected a model name"),
        (["plain.txt", "plain.txt"], 1, "plain.txt, frame 0, line 1: expected a number of atoms"),
        (["beads.txt", "train.xyz"], 1, "train.xyz: labels H, O, which beads.txt does not know (its species: W1, a-"),
        (["full.txt", "train.xyz"], 1, "train.xyz, frame 0: full.txt has a temperature input, expected temperature="),
        (["plain.txt", "overlap.xyz"], 1, "overlap.xyz, frame 1: sites 0 and 1 are at the same place"),
        (["plain.txt", "train.xyz", "--temperature-K", "300"], 2, "--temperature-K: plain.txt has no temperature"),
        (["plain.txt", "train.xyz", "--temperature-K", "-1"], 2, "expected a number above 0, got '-1'"),
        (["plain.txt", "train.xyz", "--output", "plain.txt"], 2, "--output plain.txt: expected a folder"),
        (["plain.txt", "train.xyz", "--output", "a/b"], 2, "--output a/b: there is no folder a"),
    ],
)
def test_errors_are_one_sentence_and_leave_nothing(work, frames, arguments, status, message, capsys):
    write_dataset("train.xyz", frames)
    frames[2].positions[1] = frames[2].positions[0]
    frames[2].calc = FrameCalculator(frames[2], forces=np.zeros((len(frames[2]), 3)))
    write_dataset("overlap.xyz", frames[1:])
    before = sorted(os.listdir())
    out, err = run(capsys, *arguments, status=status)
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("nepcg predict: error: ")
    assert message in err
    assert sorted(os.listdir()) == before


def test_malformed_frames_are_named(work, frames, models, capsys):
    write_dataset("train.xyz", frames)
    lines = Path("train.xyz").read_text().splitlines()
    second = len(frames[0]) + 2
    lines[second + 1] = lines[second + 1].replace("energy_weight=0", "energy_weight=-1")
    Path("train.xyz").write_text("\n".join(lines) + "\n")
    _, err = run(capsys, "plain.txt", "train.xyz", status=1)
    assert "train.xyz: frame 1: energy_weight: expected a number >= 0" in err
    frames[1].positions[1] = frames[1].positions[0]
    frames[1].calc = FrameCalculator(frames[1], forces=np.zeros((len(frames[1]), 3)))
    with pytest.raises(DatasetError, match="frame 0: sites 0 and 1 are at the same place"):
        predict(models["plain"], Targets.from_frames(frames[1], models["plain"].species))


@pytest.mark.skipif(not DATA.is_dir(), reason="no shared data")
@pytest.mark.parametrize("name", ["pbte", "mos2"])
def test_published_errors(work, name, capsys):
    out, _ = run(capsys, DATA / name / "nep.txt", DATA / name / "train.xyz", "--output", "files")
    rows, loss = table(out), read_loss(DATA / name / "loss.out")
    for quantity in ("energy", "force"):
        assert float(f"{float(rows[quantity][0]):.5f}") == loss[quantity][-1]
    if name == "mos2":
        assert float(f"{float(rows['virial'][0]):.5f}") == loss["virial"][-1]
    assert len(read_dataset(DATA / name / "train.xyz")) == int(rows["energy"][2])


def test_errors_without_anything_to_compare(frames, models):
    model = models["plain"]
    targets = Targets.from_frames(frames[1], model.species)
    found = errors(targets, predict(model, targets, threads=1))
    assert {name: entry[2] for name, entry in found.items() if name != "force"} == dict.fromkeys(
        ("energy", "energy_shifted", "virial", "stress"), 0
    )
    assert np.isnan(found["energy"][:2]).all()
