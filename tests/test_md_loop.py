"""The compiled loop: the same trajectory as step by step, for any number of threads and any division into calls."""

import numpy as np
import pytest
from ase import units

from ase_nepcg import Mapping
from ase_nepcg.md import cpu
from ase_nepcg.md.external import CalculatorEngine
from ase_nepcg.md.held import HeldRun, NepEngine
from ase_nepcg.md.loop import PHASE
from ase_nepcg.potential.evaluate import EvaluationError


def start(atoms, *, groups=None, h=0.5, c=0.99, seed=4, moments=False, interval=1, kT=0.01):
    groups = np.arange(len(atoms) - len(atoms) % 3).reshape(-1, 3)[::2] if groups is None else groups
    bound = Mapping.from_groups([list(g) for g in groups], "B", atoms).bind(atoms)
    # the structures are no molecules: positions as they are
    return HeldRun(
        bound, atoms.positions, timestep=h * units.fs, kT=kT, damping=c, interval=interval, moments=moments, seed=seed
    )


def engine(atoms, model, threads=1):
    types = np.array([model.species.index(symbol) for symbol in atoms.symbols])
    return NepEngine(model, types, atoms.cell.array, atoms.pbc, threads=threads)


def advance(engine, run, steps, sample_from=0):
    while run.step < steps:
        engine.advance(run, steps, sample_from)


@pytest.fixture
def compiled(many, models):
    """Function: keywords -> a run of 60 compiled steps."""

    def make(steps=60, threads=1, sample_from=0, **settings):
        run, forces = start(many, **settings), engine(many, models["plain"], threads)
        run.reference = forces.begin(run)
        advance(forces, run, steps, sample_from)
        return run

    return make


def same(a, b):
    pairs = [(a.x, b.x), (a.v, b.v), (a.f, b.f), (a.y, b.y), *zip(a.table.arrays, b.table.arrays, strict=True)]
    return all(np.array_equal(p, q) for p, q in pairs)


@pytest.mark.parametrize("c", [0.99, 1.0])
def test_equals_step_by_step_with_the_calculator(many, compiled, make_calculator, c):
    fast = compiled(c=c, interval=3, sample_from=6)
    slow = start(many, c=c, interval=3)
    atoms = many.copy()
    atoms.calc = make_calculator("plain")
    steps = CalculatorEngine(atoms)
    slow.reference = steps.begin(slow)
    advance(steps, slow, 60, 6)
    assert steps.has_virial
    np.testing.assert_allclose(fast.x, slow.x, rtol=0, atol=1e-10)
    np.testing.assert_allclose(fast.v, slow.v, rtol=0, atol=1e-10)
    assert fast.table.samples == slow.table.samples == 18
    np.testing.assert_allclose(fast.table.mean, slow.table.mean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_threads_do_not_change_a_bit(compiled, threads):
    assert same(compiled(), compiled(threads=threads))


def test_division_into_calls_does_not_change_a_bit(compiled, many, models, monkeypatch):
    whole = compiled(moments=True)
    monkeypatch.setattr(cpu, "_MAX_TASKS", 4)
    run, forces = start(many, moments=True), engine(many, models["plain"])
    run.reference = forces.begin(run)
    forces.backend._tasks = 4
    advance(forces, run, 60)
    assert same(whole, run)


def test_age_of_the_neighbour_list_does_not_change_a_bit(compiled, many, models):
    whole = compiled()
    run, forces = start(many), engine(many, models["plain"])
    forces.backend._evaluator.neighbors.skin = 0.05
    run.reference = forces.begin(run)
    advance(forces, run, 60)
    assert forces.backend._evaluator.neighbors.builds > 5
    assert same(whole, run)


def test_sites_stay_and_energy_is_conserved(compiled):
    run = compiled(steps=1, c=1.0, h=0.05)
    centre, first = run.centre.copy(), run.y[-2] + run.y[-1]
    run = compiled(steps=400, c=1.0, h=0.05)
    assert np.abs(run.bound.centres(run.x)[: run.bound.n_sites] - centre[: run.bound.n_sites]).max() < 1e-12
    assert abs(run.y[-2] + run.y[-1] - first) < 1e-3 * run.y[-1]


def test_rewind_leads_to_the_beginning_of_the_step(compiled):
    run = compiled(steps=10)
    x, v, f = run.x.copy(), run.v.copy(), run.f.copy()
    run.backup.x[:], run.backup.v[:], run.backup.f[:], run.backup.q[:] = x, v, f, run.q
    run.x[:] += 1
    run.progress[PHASE] = 1
    run.rewind()
    assert np.array_equal(run.x, x)
    assert np.array_equal(run.v, v)
    assert np.array_equal(run.f, f)
    assert run.step == 10
    run.rewind()
    assert np.array_equal(run.x, x)


def test_atoms_on_top_of_each_other_are_named(many, models):
    run, forces = start(many, groups=[[0]]), engine(many, models["plain"])
    forces.begin(run)
    # lands on atom 3 at the end of the next step
    run.c = 1.0
    run.v[:] = 0
    run.f[:] = 0
    run.v[5] = (run.x[3] - run.x[5]) / run.h
    before = run.x.copy()
    with pytest.raises(EvaluationError, match="sites 3 and 5"):
        advance(forces, run, 10)
    run.rewind()
    assert np.array_equal(run.x, before)
    assert run.step == 0


def test_velocity_that_is_no_number_is_reported(many, models):
    run, forces = start(many), engine(many, models["plain"])
    forces.begin(run)
    run.v[7] = np.nan
    with pytest.raises(EvaluationError, match="finite"):
        advance(forces, run, 5)
    assert run.step == 0


def test_all_atoms_held_or_none(many, compiled):
    # every atom a site: nothing moves, the mean force is the force
    run = compiled(groups=np.arange(len(many))[:, None], steps=20)
    assert np.array_equal(run.x, many.positions)
    np.testing.assert_allclose(run.table.mean[: 3 * len(many)].reshape(-1, 3), run.f, rtol=0, atol=1e-12)
