"""Tutorials run as they are, anywhere, and leave their files where they run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "tutorials"
TUTORIALS = sorted(FOLDER.glob("*.py"))

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the tutorials are in the repository only")


def test_there_are_tutorials():
    assert TUTORIALS


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs(path, tmp_path):
    before = set(FOLDER.iterdir())
    # a run that is too short for its error bars may say so: the numbers differ from one machine to the next
    command = [sys.executable, "-W", "error", "-W", "default::RuntimeWarning", str(path)]
    environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=550)
    assert run.returncode == 0, run.stdout + run.stderr
    assert list(tmp_path.glob("*.png"))
    assert set(FOLDER.iterdir()) == before


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_is_a_notebook(path):
    """Percent format: cells begin with ``# %%``, the first is a text with a title."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# %% [markdown]"
    assert lines[1].startswith("# # ")
    markers = [line for line in lines if line.startswith("# %%")]
    assert set(markers) == {"# %%", "# %% [markdown]"}
