"""What is printed is executed: the README's Python blocks run, its shell blocks name commands that exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[0][:40])
def test_python_block_runs(code, tmp_path):
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_first_two_shell_blocks_are_install_and_tests():
    main_job, tests = blocks("bash")[:2]
    assert "pip install" in main_job
    assert "nepcg quickstart" in main_job
    assert "pytest" in tests


def test_commands_named_in_the_readme_exist():
    from ase_nepcg.cli import COMMANDS

    named = set(re.findall(r"nepcg ([a-z][a-z-]*)", "\n".join(blocks("bash"))))
    assert named
    assert named <= set(COMMANDS)
