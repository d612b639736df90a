import json

import numpy as np
import pytest

from ase_nepcg import locks
from ase_nepcg.quickstart.folder import FolderError, RunFolder

SETTINGS = {"temperature_K": 300.0, "cutoff": (6.0, 4.0)}


def test_numbers_come_back_to_the_last_bit(tmp_path):
    numbers = {"a": 0.1 + 0.2, "b": [1, 2.5e-310], "c": np.arange(3.0), "d": float("nan"), "e": None}
    with RunFolder(tmp_path / "new" / "run", SETTINGS) as folder:
        assert folder.finished("stage") is None
        now = folder.finish("stage", numbers)
    with RunFolder(tmp_path / "new" / "run", SETTINGS) as folder:
        later = folder.finished("stage")
    assert now["a"] == later["a"] == numbers["a"]
    assert later["b"] == numbers["b"]
    assert later["c"] == [0.0, 1.0, 2.0]
    assert np.isnan(later["d"])
    assert later["e"] is None


def test_other_settings_are_refused_by_name(tmp_path):
    with RunFolder(tmp_path / "run", SETTINGS) as folder:
        folder.finish("stage", {})
    with pytest.raises(FolderError, match=r"temperature_K was 300.0, now 310.0\); give the same ones"):
        RunFolder(tmp_path / "run", SETTINGS | {"temperature_K": 310.0}).__enter__()
    # and the folder is free again
    with RunFolder(tmp_path / "run", SETTINGS):
        pass


def test_settings_may_change_until_something_is_finished(tmp_path):
    with RunFolder(tmp_path / "run", SETTINGS):
        pass
    with RunFolder(tmp_path / "run", SETTINGS | {"temperature_K": 310.0}) as folder:
        assert json.loads(folder.file("settings.json").read_text())["temperature_K"] == 310.0


def test_killed_while_it_wrote(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".nepcg-0123456789abcdef.tmp").write_text("half of")
    with RunFolder(tmp_path / "run", SETTINGS) as folder:
        assert sorted(path.name for path in folder.path.iterdir()) == ["quickstart.lock", "settings.json"]


def test_other_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with RunFolder("run", SETTINGS) as folder:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        folder.finish("stage", {})
    assert (tmp_path / "run" / "stage.done.json").exists()


def test_folders_of_others_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(FolderError, match="not those of a quickstart"):
        RunFolder(tmp_path, SETTINGS).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(FolderError, match="expected a folder"):
        RunFolder(tmp_path / "thesis.tex", SETTINGS).__enter__()


def test_two_runs_in_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE_SECONDS", 0.05)
    with (
        RunFolder(tmp_path / "run", SETTINGS),
        pytest.raises(FolderError, match="another quickstart uses this folder"),
    ):
        RunFolder(tmp_path / "run", SETTINGS).__enter__()


@pytest.mark.parametrize("damage", ["", "{", "\x00"])
def test_damaged_files_are_named(tmp_path, damage):
    with RunFolder(tmp_path, SETTINGS) as folder:
        folder.finish("stage", {"a": 1})
        folder.file("stage.done.json").write_text(damage)
        with pytest.raises(FolderError, match=r"stage.done.json: damaged"):
            folder.finished("stage")
        folder.file("settings.json").write_text(damage)
    with pytest.raises(FolderError, match=r"settings.json: damaged"):
        RunFolder(tmp_path, SETTINGS).__enter__()


def test_settings_are_readable(tmp_path):
    with RunFolder(tmp_path, SETTINGS) as folder:
        assert json.loads(folder.file("settings.json").read_text())["cutoff"] == [6.0, 4.0]
