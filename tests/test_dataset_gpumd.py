"""Data sets mean the same to GPUMD's trainer as to us, or are refused."""

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from dataset_frames import CELL, mean_force_frame, ordinary_frame
from gpumd_twin import gpumd_model, gpumd_trainer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ase_nepcg.dataset import DatasetError, FrameCalculator, read_dataset, write_dataset
from ase_nepcg.labels import get_labels

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.mark.parametrize("name", ["pbte", "mos2"])
def test_twin_reads_published_files_as_we_do(name):
    """Shows that the twin is right, and that files of others are understood."""
    path = SHARED / name / "train.xyz"
    if not path.exists():
        pytest.skip("published training sets are not part of the repository")
    ours, theirs = read_dataset(path), gpumd_trainer(path.read_text())
    assert len(ours) == len(theirs) == {"pbte": 25, "mos2": 104}[name]
    for atoms, seen in zip(ours, theirs, strict=True):
        assert type(atoms.calc) is SinglePointCalculator
        assert atoms.get_potential_energy() == pytest.approx(seen["energy"] * len(atoms), rel=1e-15)
        assert atoms.get_chemical_symbols() == seen["species"]
        np.testing.assert_array_equal(atoms.positions, seen["pos"])
        np.testing.assert_array_equal(atoms.get_forces(), seen["forces"])
        np.testing.assert_array_equal(atoms.cell.array, seen["lattice"])
        assert (seen["virial"] is None) == (name == "pbte")
        if name == "mos2":
            xx, yy, zz, xy, yz, zx = seen["virial"] * len(atoms)
            np.testing.assert_allclose(atoms.get_stress() * atoms.get_volume(), -np.array([xx, yy, zz, yz, zx, xy]))
    assert get_labels(ours[0]).dtype == "<U16"


@pytest.mark.parametrize("labels", [("F", "Xe", "F", "F"), ("WAT", "ION", "WAT"), ("He",), ("#1", "a:b", "T")])
def test_mean_force_frames_as_the_trainer_sees_them(tmp_path, labels):
    frames = [mean_force_frame(labels), ordinary_frame(), mean_force_frame(labels, seed=1)]
    frames[2].info["weight"] = 2.5
    write_dataset(tmp_path / "train.xyz", frames)
    text = (tmp_path / "train.xyz").read_text()
    for atoms, seen in zip(frames, gpumd_trainer(text), strict=True):
        n = len(atoms)
        averaged = "mean_energy" in atoms.info
        assert seen["energy"] == (0.0 if averaged else -12.5 / n)
        assert seen["energy_weight"] == (0.0 if averaged else 1.0)
        assert seen["temperature"] == (300.0 if averaged else None)
        assert seen["weight"] == atoms.info.get("weight", 1.0)
        assert seen["charge"] == 0.0
        assert seen["species"] == get_labels(atoms).tolist()
        np.testing.assert_array_equal(seen["pos"], atoms.positions)
        np.testing.assert_array_equal(seen["forces"], atoms.get_forces())
        np.testing.assert_array_equal(seen["lattice"], CELL)
        expected = -atoms.get_stress()[[0, 1, 2, 5, 3, 4]] * atoms.get_volume() / n
        np.testing.assert_allclose(seen["virial"], expected, rtol=1e-14)
        if averaged:
            virial = atoms.info["virial"]
            np.testing.assert_array_equal(seen["virial"] * n, virial[[0, 1, 2, 0, 1, 2], [0, 1, 2, 1, 2, 0]] / n * n)


def test_a_frame_is_a_model_file_with_the_masses_of_beads(tmp_path):
    """``gpumd`` would take 19 for a bead called F, and so would plain ASE."""
    atoms = mean_force_frame()
    atoms.pbc = [True, False, True]
    atoms.calc = FrameCalculator(atoms, forces=np.ones((4, 3)))
    write_dataset(tmp_path / "model.xyz", atoms)
    seen = gpumd_model((tmp_path / "model.xyz").read_text())
    assert seen["pbc"] == [True, False, True]
    assert seen["masses"] == atoms.get_masses().tolist()
    assert seen["known"] == {"species", "pos", "mass"}
    np.testing.assert_array_equal(ase.io.read(tmp_path / "model.xyz", format="extxyz").get_masses(), seen["masses"])


def test_what_the_trainer_would_misread_is_refused(tmp_path):
    """The twin shows the danger, the writer the refusal."""
    write_dataset(tmp_path / "a.xyz", mean_force_frame())
    text = (tmp_path / "a.xyz").read_text()
    assert gpumd_trainer(text)[0]["energy"] == 0
    assert gpumd_trainer(text.replace("ensemble=nvt", 'ensemble="nvt energy=5"'))[0]["energy"] == 5 / 4
    assert gpumd_trainer(text.replace("ensemble=nvt", 'note="nvt weight = 7"'))[0]["weight"] == 7
    assert gpumd_trainer(text.replace("ensemble=nvt", "Temperature=5"))[0]["temperature"] == 5
    for name, value in {
        "note": "nvt energy=5",
        "Temperature": 5.0,
        "Virial": np.eye(3),
        "a=b": 1,
        "energy": -3.0,
    }.items():
        atoms = mean_force_frame()
        atoms.info[name] = value
        with pytest.raises(DatasetError, match=f"frame 0: info.'{name}'"):
            write_dataset(tmp_path / "b.xyz", atoms)
    for name in ("Force", "POS", "bec", "a b", "charge", "energies"):
        atoms = mean_force_frame()
        atoms.arrays[name] = np.ones((4, 3))
        with pytest.raises(DatasetError, match=f"frame 0: atoms.arrays.'{name}'"):
            write_dataset(tmp_path / "b.xyz", atoms)
    assert not (tmp_path / "b.xyz").exists()


words = st.text(st.characters(min_codepoint=1, max_codepoint=0x17F), max_size=12)
numbers = st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.booleans())
anything = st.one_of(
    words,
    numbers,
    st.lists(numbers, max_size=10),
    st.lists(words, max_size=3),
    st.none(),
    st.dictionaries(words, numbers, max_size=2),
    st.sampled_from(["energy=1", 'x" weight=3', "_JSON [1]", "T", "1e5", " 7", "a b", "[1 2]", "{a}", "2 3", "nan"]),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.one_of(words, st.sampled_from(["note", "virial_x", "x", "pol", "Charge"])), value=anything)
def test_any_info_is_refused_or_comes_back_and_misleads_nobody(tmp_path, key, value):
    atoms = ordinary_frame()
    atoms.info[key] = value
    try:
        write_dataset(tmp_path / "a.xyz", atoms)
    except DatasetError:
        return
    (found,) = read_dataset(tmp_path / "a.xyz")
    if value is None:
        assert key not in found.info
    else:
        np.testing.assert_array_equal(found.info[key], value)
        assert np.asarray(found.info[key]).dtype.kind == np.asarray(value).dtype.kind
    (seen,) = gpumd_trainer((tmp_path / "a.xyz").read_text())
    known = [seen[name] for name in ("energy", "energy_weight", "temperature", "charge")]
    assert known == [-12.5 / 4, 1.0, value if key == "temperature" else None, value if key == "charge" else 0.0]
    np.testing.assert_array_equal(seen["forces"], atoms.get_forces())
