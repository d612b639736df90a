"""The arrays of a run: defaults, steps that are taken back, addresses of kernels, what the conserved quantity needs."""

import numpy as np
import pytest
from ase import units

from ase_nepcg.md import NVE, Bussi, Deform
from ase_nepcg.md.ensembles import HNEMD
from ase_nepcg.md.ensembles.base import Setup
from ase_nepcg.md.loop import FINISHED, HOT, PHASE, REASON, STEP, WHERE
from ase_nepcg.md.run import Run, no_calendar
from ase_nepcg.md.state import make_state

H = 2.0 * units.fs


@pytest.fixture
def state(rng):
    """Two replicas of three and four sites."""
    sizes = (3, 4)
    return make_state(
        [rng.normal(size=(n, 3)) for n in sizes],
        [rng.normal(size=(n, 3)) for n in sizes],
        [rng.uniform(1, 20, n) for n in sizes],
        [np.zeros(n, int) for n in sizes],
        [10.0 * np.eye(3), 12.0 * np.eye(3)],
        [(True, True, True)] * 2,
        seeds=(1, 2),
    )


def make(state, ensemble=None, **keywords):
    ensemble = Bussi(300.0, 100.0) if ensemble is None else ensemble
    setups = [
        Setup(
            *(int(b - a), 3 * int(b - a), 0, 0, (True, True, True), state.cell[r], state.m[a:b], H),
        )
        for r, (a, b) in enumerate(zip(state.first, state.first[1:], strict=False))
    ]
    p = np.array([ensemble.parameters(setup) for setup in setups], float).reshape(len(setups), -1)
    q = np.array([ensemble.initial(setup) for setup in setups], float).reshape(len(setups), -1)
    return Run(state, type(ensemble), H, p, q, **keywords)


def copies(run):
    s = run.state
    return [array.copy() for array in (s.x, s.v, s.f, s.cell, run.q)]


def test_defaults_bound_nothing_and_are_not_shared(state):
    run, other = make(state), make(state)
    assert run.step == 0
    np.testing.assert_array_equal(run.limits, [[np.inf, np.inf, -np.inf, np.inf]] * 2)
    assert run.calendar.table.shape == (0, 9)
    assert run.calendar.table.dtype == run.calendar.ints.dtype == run.progress.dtype == np.int64
    assert run.calendar.ints.size == run.calendar.floats.size == 0
    assert [array.shape for array in run.backup] == [(7, 3), (7, 3), (7, 3), (2, 3, 3), run.q.shape]
    run.progress[STEP] = 5
    run.limits[0, 0] = 1.0
    assert run.step == 5
    assert other.step == 0
    assert other.limits[0, 0] == np.inf
    for name in ("progress", "limits"):
        assert not np.shares_memory(getattr(run, name), getattr(other, name))
    for one, two in zip(run.backup, other.backup, strict=True):
        assert not np.shares_memory(one, two)
    assert no_calendar() is not no_calendar()


def test_rewind_restores_the_beginning_of_a_step(state, rng):
    run = make(state)
    for array, old in zip((state.x, state.v, state.f, state.cell, run.q), run.backup, strict=True):
        old[:] = rng.normal(size=old.shape)
        array[:] = rng.normal(size=array.shape)
    run.progress[:] = 41, 1, HOT, 1
    run.rewind()
    for array, old in zip(copies(run), run.backup, strict=True):
        np.testing.assert_array_equal(array, old)
        assert array.size == 0 or not np.shares_memory(array, old)
    assert run.progress[PHASE] == 0
    assert run.progress[REASON] == FINISHED
    assert run.step == 41


def test_rewind_of_a_complete_step_changes_nothing(state):
    run = make(state)
    for old in run.backup:
        old[:] = 7.0
    before = copies(run)
    run.progress[:] = 3, 0, HOT, 0
    run.rewind()
    for array, old in zip(copies(run), before, strict=True):
        np.testing.assert_array_equal(array, old)
    assert run.progress[REASON] == FINISHED
    assert run.progress[WHERE] == 0
    run.rewind()
    assert run.step == 3


def test_addresses_are_kept_and_belong_to_the_ensemble(state):
    run = make(state, NVE())
    begin, end, drive = run.addresses()
    assert begin > 0
    assert end > 0
    assert begin != end
    assert drive == 0
    assert run.addresses() is run.addresses()
    driven = make(state, HNEMD(300.0, (1e-4, 0.0, 0.0)))
    assert driven.addresses()[2] > 0
    assert driven.addresses()[0] != begin
    # another ensemble: other kernels
    run.ensemble = Bussi
    assert run.addresses()[:2] != (begin, end)
    assert make(state, NVE()).addresses() == (begin, end, drive)


def test_extra_is_what_the_ensemble_says_for_each_replica(state):
    np.testing.assert_array_equal(make(state, NVE()).extra(), [0.0, 0.0])
    run = make(state)
    assert run.q.shape == (2, 1)
    run.q[:, 0] = 0.25, -1.5
    extra = run.extra()
    assert extra.shape == (2,)
    # Bussi: the energy that the thermostat has put in
    np.testing.assert_array_equal(np.abs(extra), [0.25, 1.5])
    assert np.sign(extra[0]) == -np.sign(extra[1])


def test_cells_are_part_of_a_step(state):
    run = make(state, Deform("x", 0.01, 300.0))
    run.backup.cell[:] = 3.0 * np.eye(3)
    run.progress[PHASE] = 1
    run.rewind()
    np.testing.assert_array_equal(state.cell, [3.0 * np.eye(3)] * 2)
