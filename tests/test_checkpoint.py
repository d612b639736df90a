"""Checkpoints: exact, atomic, and refused when anything is wrong with them."""

import numpy as np
import pytest

from ase_nepcg.checkpoint import CheckpointError, may_be_checkpoint, read_checkpoint, write_checkpoint


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.npz"


ARRAYS = {"x": np.linspace(0, 1, 12).reshape(4, 3), "n": np.array([1, 2, 3], np.int64), "none": np.zeros((0, 5))}


def test_round_trip_is_exact(path):
    write_checkpoint(path, "kind", {"seed": 7, "name": "a"}, ARRAYS)
    header, arrays = read_checkpoint(path, "kind")
    assert header["seed"] == 7
    assert header["name"] == "a"
    assert arrays.keys() == ARRAYS.keys()
    for name, value in ARRAYS.items():
        assert arrays[name].dtype == value.dtype
        assert np.array_equal(arrays[name], value)


def test_file_holds_no_pickles_and_replaces_the_old_one(path):
    write_checkpoint(path, "kind", {}, {"x": np.zeros(3)})
    write_checkpoint(path, "kind", {}, {"x": np.ones(3)})
    with np.load(path, allow_pickle=False) as file:
        assert np.array_equal(file["x"], np.ones(3))
    assert [p.name for p in path.parent.iterdir()] == ["run.npz"]


def test_objects_are_refused_before_anything_is_written(path):
    with pytest.raises(ValueError, match="allow_pickle"):
        write_checkpoint(path, "kind", {}, {"x": np.array([object()])})
    assert not path.exists()


def test_missing_file(path):
    with pytest.raises(FileNotFoundError):
        read_checkpoint(path, "kind")


@pytest.mark.parametrize("keep", [0, 1, 100, -200, -1])
def test_truncated_files_are_refused(path, keep):
    write_checkpoint(path, "kind", {}, ARRAYS)
    content = path.read_bytes()
    path.write_bytes(content[:keep])
    with pytest.raises(CheckpointError, match=r"run\.npz"):
        read_checkpoint(path, "kind")


def test_changed_content_is_refused(path):
    write_checkpoint(path, "kind", {}, ARRAYS)
    with np.load(path) as file:
        arrays = dict(file)
    arrays["x"] = arrays["x"] + 1e-15
    np.savez(path, **arrays)
    with pytest.raises(CheckpointError, match="hash"):
        read_checkpoint(path, "kind")


def test_other_files_are_refused(path):
    np.savez(path, x=np.zeros(3))
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        read_checkpoint(path, "kind")
    path.write_text("nep4 1 C\n")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        read_checkpoint(path, "kind")
    np.save(path.with_suffix(".npy"), np.zeros(3))
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        read_checkpoint(path.with_suffix(".npy"), "kind")


def test_other_kinds_are_refused(path):
    write_checkpoint(path, "kind", {}, ARRAYS)
    with pytest.raises(CheckpointError, match="kind 'training'"):
        read_checkpoint(path, "training")


def test_what_may_be_a_checkpoint(path):
    write_checkpoint(path, "kind", {}, ARRAYS)
    content = path.read_bytes()
    assert may_be_checkpoint(content)
    # cut short
    assert may_be_checkpoint(content[:2])
    assert may_be_checkpoint(b"")
    assert not may_be_checkpoint(b"P")
    assert not may_be_checkpoint(b"7\nLattice=")
