"""Limits of a run: who is beyond them, and what is said."""

from types import SimpleNamespace

import numpy as np
import pytest

from ase_nepcg.md.blowup import check_limits, describe
from ase_nepcg.md.loop import BAD_CELL, HOT
from ase_nepcg.md.state import make_state


@pytest.fixture
def run():
    """Two replicas of two and one sites of mass 2, at rest in cells of 8 and 27 Å³."""
    state = make_state(
        [np.zeros((2, 3)), np.zeros((1, 3))],
        [np.zeros((2, 3)), np.zeros((1, 3))],
        [np.full(2, 2.0), np.full(1, 2.0)],
        [np.zeros(2, int), np.zeros(1, int)],
        [2.0 * np.eye(3), 3.0 * np.eye(3)],
        np.ones((2, 3), bool),
        seeds=(0, 1),
    )
    limits = np.array([[10.0, 4.0, 4.0, 16.0], [10.0, 4.0, 20.0, 30.0]])
    return SimpleNamespace(state=state, limits=limits, h=0.5, which=lambda replica: f" of replica {replica}")


def test_within_limits(run):
    assert check_limits(run.state, run.limits) is None


@pytest.mark.parametrize("speed", [5.0, np.nan])
def test_a_fast_site(run, speed):
    run.state.v[2, 1] = speed
    assert check_limits(run.state, run.limits) == (HOT, 1)
    if speed == 5.0:
        text = "atom 0 of replica 1 moves 2.5 Å in one step, expected at most 2 Å"
        assert describe(run, HOT, 1) == text


def test_heat(run):
    run.state.v[:2, 0] = 3.5
    assert check_limits(run.state, run.limits) == (HOT, 0)
    assert describe(run, HOT, 0).startswith("the temperature of replica 0 is ")


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_cell_that_collapses_or_flies_apart(run, factor):
    run.state.cell[1] *= factor
    assert check_limits(run.state, run.limits) == (BAD_CELL, 1)
    assert "expected 20 to 30 Å³" in describe(run, BAD_CELL, 1)
