"""Data sets: what is written comes back bit for bit, means the same to GPUMD, and is refused where it could not."""

import copy
import os
import pickle
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian
from dataset_frames import CELL, check_same, mean_force_frame, ordinary_frame
from gpumd_twin import gpumd_trainer

import ase_nepcg
from ase_nepcg.dataset import DatasetError, FrameCalculator, read_dataset, split, summary, validate, write_dataset
from ase_nepcg.labels import set_labels

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


# ---- round trips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".xyz", ".nepcg.xyz", ".xyz.gz", ".xyz.bz2", ".xyz.xz"])
def test_round_trip_is_exact(tmp_path, suffix):
    frames = [mean_force_frame(), mean_force_frame(("WAT", "ION"), seed=1), mean_force_frame(seed=2)]
    before = [copy.deepcopy(frame) for frame in frames]
    ase_nepcg.write_dataset(tmp_path / f"a{suffix}", iter(frames))
    found = ase_nepcg.read_dataset(str(tmp_path / f"a{suffix}"))
    for a, b, untouched in zip(found, frames, before, strict=True):
        check_same(a, b)
        check_same(b, untouched)
        assert a.info["virial_molecular_error"].shape == (3, 3)
    through_ase = ase.io.read(tmp_path / f"a{suffix}", index=":", format="nepcg-train")
    for a, b in zip(through_ase, frames, strict=True):
        check_same(a, b)
    write_dataset(tmp_path / "again.xyz", found)
    write_dataset(tmp_path / "first.xyz", frames)
    assert (tmp_path / "again.xyz").read_bytes() == (tmp_path / "first.xyz").read_bytes()


def test_round_trip_of_ordinary_atoms(tmp_path):
    atoms = ordinary_frame()
    atoms.info |= {
        "config_type": "bulk melt",
        "Id": 7,
        "levels": np.array([1, 2]),
        "grid": np.ones((2, 2)),
        "who": ["a"],
    }
    atoms.info |= {"flags": [True, False], "nested": {"a": 1}, "nothing": None, "n32": np.float32(0.1)}
    atoms.set_constraint([FixAtoms([1])])
    atoms.set_array("kind", np.array(["a", "bc", "d", "e"]))
    atoms.set_array("on", np.array([True, False, True, True]))
    atoms.set_tags([3, 0, 0, 1])
    write_dataset(tmp_path / "a.xyz", atoms)
    (found,) = read_dataset(tmp_path / "a.xyz")
    assert not found.has("masses")
    assert "bead" not in found.arrays
    assert found.get_potential_energy() == -12.5
    np.testing.assert_array_equal(found.get_forces(apply_constraint=False), atoms.get_forces(apply_constraint=False))
    np.testing.assert_allclose(found.get_stress(), atoms.get_stress(), rtol=1e-14)
    np.testing.assert_allclose(found.info.pop("virial").trace(), -atoms.get_stress()[:3].sum() * atoms.get_volume())
    assert found.info["grid"].tolist() == [[1, 1], [1, 1]]
    assert found.info["levels"].dtype.kind == "i"
    assert {k: v for k, v in found.info.items() if k not in ("grid", "levels")} == {
        "config_type": "bulk melt",
        "Id": 7,
        "who": ["a"],
        "flags": [True, False],
        "nested": {"a": 1},
        "n32": float(np.float32(0.1)),
    }
    assert found.constraints[0].index.tolist() == [1]
    assert found.arrays["kind"].tolist() == ["a", "bc", "d", "e"]
    assert found.arrays["on"].tolist() == [True, False, True, True]
    assert found.get_tags().tolist() == [3, 0, 0, 1]


def test_partly_fixed_atoms(tmp_path):
    atoms = ordinary_frame()
    atoms.set_constraint([FixAtoms([3]), FixCartesian([0, 1], [True, False, True])])
    write_dataset(tmp_path / "a.xyz", atoms)
    (found,) = read_dataset(tmp_path / "a.xyz")
    fixed = {int(c.index[0]): c.mask.tolist() for c in found.constraints}
    assert fixed == {0: [True, False, True], 1: [True, False, True], 3: [True, True, True]}


def test_numbers_too_small_for_other_readers_become_zero(tmp_path):
    atoms = mean_force_frame()
    forces = np.full((4, 3), 1e-310)
    forces[0] = 2.2250738585072014e-308, -5e-324, -1e-307
    atoms.info["virial"] = np.full((3, 3), 5e-324)
    atoms.calc = FrameCalculator(atoms, forces=forces)
    write_dataset(tmp_path / "a.xyz", atoms)
    (seen,) = gpumd_trainer((tmp_path / "a.xyz").read_text())
    (found,) = read_dataset(tmp_path / "a.xyz")
    for back in (seen["forces"], found.get_forces()):
        assert back[0].tolist() == [2.2250738585072014e-308, 0, -1e-307]
        assert not back[1:].any()


def test_small_error_bars_keep_their_digits(tmp_path):
    atoms = mean_force_frame()
    atoms.arrays["force_errors"][:] = 1.23456789e-7
    write_dataset(tmp_path / "a.xyz", atoms)
    assert (read_dataset(tmp_path / "a.xyz")[0].arrays["force_errors"] == 1.23456789e-7).all()


# ---- no energy ------------------------------------------------------------------------------------------------------


def test_energies_of_mean_force_frames_are_refused(tmp_path):
    write_dataset(tmp_path / "a.xyz", mean_force_frame())
    (atoms,) = read_dataset(tmp_path / "a.xyz")
    for frame in (atoms, mean_force_frame(), copy.deepcopy(atoms), pickle.loads(pickle.dumps(atoms))):
        assert isinstance(frame.calc, FrameCalculator)
        for force_consistent in (False, True):
            with pytest.raises(PropertyNotImplementedError, match="not the potential of mean force"):
                frame.get_potential_energy(force_consistent=force_consistent)
        assert frame.calc.get_property("energy", frame, allow_calculation=False) is None
        assert frame.get_forces().shape == (4, 3)
        np.testing.assert_allclose(frame.get_stress(voigt=False) * -frame.get_volume(), frame.info["virial"])
    atoms.positions += 0.1
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_forces()
    with pytest.raises(TypeError, match="frames without energy"):
        FrameCalculator(atoms, energy=1.0)


def test_frames_without_energy_in_other_formats(tmp_path):
    atoms = mean_force_frame()
    for name in ("a.traj", "a.extxyz", "a.json"):
        frame = atoms.copy()
        if name == "a.json":  # the data base takes numbers and words only
            frame.info = {}
        frame.calc = atoms.calc
        ase.io.write(tmp_path / name, frame)
        found = ase.io.read(tmp_path / name)
        np.testing.assert_allclose(found.get_forces(), atoms.get_forces(), atol=1e-8)
        with pytest.raises(PropertyNotImplementedError):
            found.get_potential_energy()


def test_an_energy_without_weight_is_kept_apart(tmp_path):
    write_dataset(tmp_path / "a.xyz", ordinary_frame())
    text = (tmp_path / "a.xyz").read_text().replace("energy=-12.5", "energy=-12.5 Energy_Weight=0")
    (tmp_path / "a.xyz").write_text(text)
    (atoms,) = read_dataset(tmp_path / "a.xyz")
    assert atoms.info["unused_energy"] == -12.5
    assert atoms.info["energy_weight"] == 0
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_potential_energy()
    write_dataset(tmp_path / "b.xyz", atoms)
    assert gpumd_trainer((tmp_path / "b.xyz").read_text())[0]["energy"] == 0
    assert read_dataset(tmp_path / "b.xyz")[0].info["unused_energy"] == -12.5


# ---- what is refused when writing -----------------------------------------------------------------------------------


def changed(**edits):
    """A function that edits a frame: info, arrays, or forces."""

    def edit(atoms):
        for name, value in edits.items():
            if name == "forces":
                atoms.calc = FrameCalculator(atoms, forces=value)
            elif name in atoms.arrays:
                atoms.arrays[name] = value
            else:
                atoms.info[name] = value

    return edit


def asymmetric(atoms):
    atoms.info["virial"] = atoms.info["virial"] + np.triu(np.ones((3, 3)), 1)


def contradictory(atoms):
    atoms.info["virial"] = -atoms.info["virial"]


def no_calculator(atoms):
    atoms.calc = None


def outdated(atoms):
    atoms.positions[0] += 0.1


def live(atoms):
    atoms.calc = EMT()


def flat(atoms):
    atoms.cell[2] = atoms.cell[0] + atoms.cell[1]


def blanks(atoms):
    atoms.arrays["bead"][0] = "two words"
    del atoms.info["bead_labels"]


def lonely_error(atoms):
    del atoms.arrays["forces_dT"]


def lonely_tensor_error(atoms):
    del atoms.info["virial_atomic"]


def lost_virial(atoms):
    del atoms.info["virial"]
    atoms.calc = FrameCalculator(atoms, forces=np.ones((4, 3)))


def massless(atoms):
    atoms.arrays["masses"][:] = 0


def spectrum(atoms):
    atoms.arrays["spectrum"] = np.ones((4, 3, 3))


def column_vector(atoms):
    atoms.arrays["x"] = np.ones((4, 1))


NAN = np.full((4, 3), np.nan)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (changed(positions=NAN), r"positions: entry \(0, 0\) is nan"),
        (changed(forces=NAN), r"forces: entry \(0, 0\) is nan"),
        (no_calculator, "forces: expected a calculator with stored forces .* it has none"),
        (outdated, "belong to other positions"),
        (live, "forces: expected a calculator with stored forces .* it has none"),
        (asymmetric, "expected a symmetric tensor, got halves that differ by 1 eV"),
        (contradictory, "virial and stress disagree by .* positive = compressed"),
        (changed(virial=np.full((3, 3), np.inf)), "virial.*finite"),
        (changed(virial="big"), "virial.*finite numbers, got 'big'"),
        (changed(virial=np.ones(6)), r"virial.*expected \(3, 3\)"),
        (changed(virial_error=-np.ones((3, 3))), "virial_error: expected numbers >= 0, got -1"),
        (changed(virial_error=np.ones(6)), r"virial_error: expected shape \(3, 3\), got \(6,\)"),
        (changed(virial_dT=NAN[:3]), "virial_dT: entry"),
        (changed(force_errors=-np.ones((4, 3))), "force_errors: expected numbers >= 0, got -1"),
        (changed(force_errors=np.ones(4)), r"force_errors: expected shape \(4, 3\), got \(4,\)"),
        (changed(n_effective=np.full((4, 3), np.inf)), r"n_effective: entry \(0, 0\) is inf"),
        (changed(atoms_per_bead=np.zeros(4, int)), "atoms_per_bead: expected .* integers >= 1"),
        (changed(atoms_per_bead=np.ones(4)), "atoms_per_bead: expected .* integers >= 1, got float64"),
        (lonely_error, "forces_dT_errors: expected forces_dT with it, got none"),
        (lonely_tensor_error, "virial_atomic_error: expected virial_atomic with it, got none"),
        (lost_virial, "virial_error: expected virial with it, got none"),
        (flat, "cell: expected three vectors that span space"),
        (blanks, "labels: expected printable ASCII without blanks, quotes and '=', got 'two words'"),
        (massless, "masses: expected positive numbers, got 0"),
        (changed(temperature=-1.0), "temperature: expected a number > 0, got -1.0"),
        (changed(temperature="300 K"), "temperature: expected a number, got '300 K'"),
        (changed(weight=101), "weight: GPUMD expects at most 100, got 101"),
        (changed(weight=0), "weight: expected a number > 0, got 0"),
        (changed(energy_weight=-1), "energy_weight: expected a number >= 0"),
        (changed(energy_weight=1.0), "energy_weight.* is 1.0, but there is no energy"),
        (changed(calculator="my NEP"), "calculator: expected one word without blanks.*'my NEP'"),
        (changed(ensemble='n"v'), "ensemble: expected one word"),
        (changed(note="α"), "note.*printable ASCII"),
        (changed(note="007"), r"note.*'007' would be read back as 7; rename"),
        (changed(note=object()), "note.*rename or delete it"),
        (changed(drift=np.nan), "drift.*expected finite numbers, got nan"),
        (changed(seed=2**64), "seed.*would be read back"),
        (spectrum, r"spectrum: expected .* got float64 \(4, 3, 3\)"),
        (column_vector, r"'x'\]: shape \(N, 1\)"),
    ],
)
def test_unsuitable_frames_are_refused_and_the_old_file_stays(tmp_path, edit, message):
    path = tmp_path / "train.xyz"
    write_dataset(path, mean_force_frame())
    old = path.read_bytes()
    bad = mean_force_frame(seed=1)
    edit(bad)
    with pytest.raises(DatasetError, match=f"frame 1: .*{message}") as caught:
        write_dataset(path, [mean_force_frame(), bad])
    assert caught.value.frame == 1
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["train.xyz"]


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "at least one frame, got none"),
        ("train.xyz", "expected a list of Atoms"),
        (None, "expected a list of Atoms, got None"),
        ([1.0], "frame 0: expected Atoms, got float"),
        ([Atoms(cell=CELL)], "frame 0: expected at least one site, got none"),
        ([type("MeanForce", (), {"frame": None})()], "expected Atoms, got MeanForce: give its .frame"),
    ],
)
def test_what_is_not_frames(tmp_path, frames, message):
    with pytest.raises(DatasetError, match=message):
        write_dataset(tmp_path / "a.xyz", frames)
    assert os.listdir(tmp_path) == []


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "train.xyz"
    write_dataset(path, mean_force_frame())
    old = path.read_bytes()

    def fail(*_):
        raise KeyboardInterrupt

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(KeyboardInterrupt):
                write_dataset(path, mean_force_frame(seed=5))
        assert path.read_bytes() == old
        assert os.listdir(tmp_path) == ["train.xyz"]
    with pytest.raises(FileNotFoundError):
        write_dataset(tmp_path / "no_such_folder" / "a.xyz", mean_force_frame())


def test_one_label_for_two_kinds_of_sites(tmp_path):
    """Beads called F and fluorine atoms must not be trained as one species."""
    beads, fluorine = mean_force_frame(("F", "F")), ordinary_frame()
    fluorine.numbers[:] = 9
    fluorine.calc = SinglePointCalculator(fluorine, energy=-1.0, forces=np.zeros((4, 3)))
    with pytest.raises(DatasetError, match=r"frame 1: label 'F' has mass 18\.99.* but 18\.0153 in frame 0: one label"):
        write_dataset(tmp_path / "a.xyz", [beads, fluorine])
    set_labels(beads, "F", 18.9)
    beads.calc = FrameCalculator(beads, forces=np.zeros((2, 3)))
    beads.info = {}
    write_dataset(tmp_path / "a.xyz", [beads, fluorine])
    unknown = Atoms("X", cell=CELL, pbc=True)  # no mass at all: nothing to compare
    unknown.calc = FrameCalculator(unknown, forces=np.zeros((1, 3)))
    write_dataset(tmp_path / "a.xyz", [unknown, unknown])


# ---- splitting and describing ---------------------------------------------------------------------------------------


def test_split():
    frames = [ordinary_frame(seed) for seed in range(20)]
    train, test = split(frames, 0.3, seed=4)
    assert (len(train), len(test)) == (14, 6)
    positions = [frames.index(frame) for frame in train], [frames.index(frame) for frame in test]
    assert sorted(positions[0] + positions[1]) == list(range(20))
    assert positions[0] == sorted(positions[0])
    assert positions[1] == sorted(positions[1])
    again = split(iter(frames), 0.3, seed=4)
    assert [id(frame) for frame in again[1]] == [id(frame) for frame in test]
    assert len({tuple(frames.index(f) for f in split(frames, 0.3, seed=s)[1]) for s in range(8)}) > 4
    assert [len(part) for part in split(frames[:2], 0.01)] == [1, 1]
    assert [len(part) for part in split(frames[:3], 0.99)] == [1, 2]


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, np.nan, "half", None])
def test_split_refuses(fraction):
    with pytest.raises(DatasetError, match="fraction: expected a number between 0 and 1"):
        split([ordinary_frame(), ordinary_frame()], fraction)
    with pytest.raises(DatasetError, match="at least 2 frames"):
        split([ordinary_frame()], 0.5)


def test_remarks():
    assert validate(mean_force_frame()) == []
    unusual = mean_force_frame(("WAT", "ION"))
    unusual.pbc = False
    unusual.calc = FrameCalculator(unusual, forces=np.ones((2, 3)))
    deep = ordinary_frame()
    deep.calc = SinglePointCalculator(deep, energy=-500.0, forces=np.zeros((4, 3)))
    remarks = validate([mean_force_frame(), unusual, deep])
    assert len(remarks) == 4
    assert "1 of 3 frames have no virial" in remarks[0]
    assert remarks[0].endswith("the first is frame 2")
    assert "1 of 3 frames are not periodic in all directions" in remarks[1]
    assert "1 of 3 frames have energies below -100 eV" in remarks[2]
    assert "not ION, WAT" in remarks[3]


def test_summary():
    text = summary([mean_force_frame(("F", "Xe")), ordinary_frame(), mean_force_frame(("F",), seed=1)])
    lines = text.splitlines()
    assert lines[0] == "3 frames of 1 to 4 sites"
    assert lines[1].split() == ["F", "2", "sites,", "18.0153", "amu"]
    assert "virials: 3 frames" in text
    assert "energies: 1 frame\n" in text
    assert "thermal response: 2 frames" in text
    assert "temperatures: 300 K" in text
    forces = np.concatenate([mean_force_frame(("F", "Xe")).get_forces(), ordinary_frame().get_forces()])
    assert f"rms {np.sqrt((forces**2).mean()):.4g} eV/Å" in summary([mean_force_frame(("F", "Xe")), ordinary_frame()])
    bare = Atoms("X", cell=CELL, pbc=True)
    assert "no mass" in summary(bare)
    assert "forces: rms - eV" in summary(bare)
