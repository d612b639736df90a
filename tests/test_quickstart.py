"""The first thing a newcomer runs."""

import pytest

from ase_nepcg.cli import main
from ase_nepcg.quickstart import run


def test_energy_is_conserved_and_printed(capsys):
    figures = run(edge=4, steps=40, timestep_fs=1.0)
    assert figures["drift"] < 1e-4
    shown = capsys.readouterr().out
    assert "64 beads" in shown
    assert f"{figures['drift']:.1e} eV/bead" in shown


def test_same_seed_same_run(capsys):
    first, second = (run(edge=3, steps=10)["drift"] for _ in range(2))
    assert first == second


@pytest.mark.parametrize("arguments", [["--edge", "0"], ["--steps", "-1"], ["--timestep-fs", "nan"]])
def test_nonsense_is_refused(arguments, capsys):
    assert main(["quickstart", *arguments]) == 2
    assert "expected at least" in capsys.readouterr().err
