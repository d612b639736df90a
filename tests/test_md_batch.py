"""Batches: bit for bit the runs they are made of, whatever each of them has attached, and whatever fails."""

from pathlib import Path
from types import SimpleNamespace

import ase.io
import md_restarts as runs
import numpy as np
import pytest
from ase import Atoms
from md_restarts import assert_same

from ase_nepcg import MD, NEP, NEPModel
from ase_nepcg.data import WATER_BEAD
from ase_nepcg.md import (
    MSD,
    NVE,
    RDF,
    Bussi,
    Conductivity,
    HeatCurrent,
    Langevin,
    MDError,
    MDFailed,
    NoseHoover,
    Thermo,
    driver,
)
from ase_nepcg.md.outputs import ThermoOutput, open_output

FILES = {0: ("run0.traj", "run0.csv"), 1: ("run1.csv",), 2: ("run2.nc",), 3: ()}


def members(folder, name="langevin", threads=1, checkpoints=False):
    """Four runs that differ in everything that may differ."""
    made = []
    for k, (n, stretch) in enumerate([(3, 1.0), (4, 1.0), (3, 1.03), (3, 0.99)]):
        atoms = runs.beads(n, seed=k, kelvin=280 + 20 * k, threads=threads)
        cell = atoms.cell.array * [[stretch], [1.0], [1.0]]
        cell[2, 0] = 0.3 * k
        atoms.set_cell(cell, scale_atoms=True)
        if k == 3 and name in runs.CONSTRAINED:
            runs.hold(atoms)
        checkpoint = {"checkpoint": folder / f"run{k}.npz", "checkpoint_interval": 9 + k} if checkpoints else {}
        ensemble = runs.ensemble(name, 280.0 + 20 * k, 0.1 * k)
        made.append(MD(atoms, 1.0, ensemble, seed=11 * k, progress=False, **checkpoint))
    made[0].attach(Thermo(), 1)
    made[0].add_output(open_output(folder / "run0.traj", 5))
    made[0].add_output(ThermoOutput(folder / "run0.csv", 2))
    made[1].attach(RDF(4.0, bins=30), 3)
    made[1].attach(Conductivity() if name == "hnemd" else HeatCurrent(length=4), 2)
    made[1].add_output(ThermoOutput(folder / "run1.csv", 7))
    made[2].add_output(open_output(folder / "run2.nc", 6))
    made[3].attach(MSD(length=5, origins_every=2), 4)
    made[3].attach(RDF(4.0, bins=10), 1)
    return made


def assert_same_runs(alone, together, *folders):
    for k, (one, other) in enumerate(zip(alone, together, strict=True)):
        assert_same(one, other)
        if folders:
            runs.assert_same_files(*folders, FILES[k])


def plain(count=2, ensemble=None, **keywords):
    """Runs without anything attached."""
    ensemble = ensemble or (lambda k: Langevin(300.0 + k, 0.01))
    keywords = {"progress": False} | keywords
    return [MD(runs.beads(seed=k), 1.0, ensemble(k), seed=k, **keywords) for k in range(count)]


# ---- the same bits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", runs.NAMES)
def test_each_as_if_it_were_alone(tmp_path, name, threads):
    one, many = runs.folders(tmp_path, "one", "many")
    alone, together = members(one, name), members(many, name, threads)
    for md in alone:
        md.run(50)
    batch = MD.batch(together)
    assert batch.run(50) is True
    assert batch.nsteps == 50
    # trajectories of ASE name the number of threads
    assert_same_runs(alone, together, *((one, many) if threads == 1 else ()))
    assert together[0].handles[0].results().samples == 51


def test_before_and_after_they_are_on_their_own(tmp_path):
    one, many = runs.folders(tmp_path, "one", "many")
    alone, together = members(one), members(many)
    for md in alone:
        md.run(90)
    for md in together:
        md.run(7)
    batch = MD.batch(together)
    batch.run(13)
    batch.run(0)
    batch.run(25)
    for md in reversed(together):
        md.run(5)
    # others of them, in another order
    MD.batch(together[2:0:-1]).run(20)
    together[0].run(20)
    together[3].run(20)
    batch.run(20)
    assert [md.nsteps for md in together] == [90] * 4
    assert_same_runs(alone, together, one, many)


def test_runs_of_one_are_not_touched_by_others_later(tmp_path):
    together = plain(2)
    MD.batch(together).run(10)
    x = together[1].simulation.state.x.copy()
    together[0].run(10)
    assert [md.nsteps for md in together] == [20, 10]
    np.testing.assert_array_equal(together[1].simulation.state.x, x)


def test_members_restart_alone(tmp_path):
    one, many = runs.folders(tmp_path, "one", "many")
    alone, together = members(one), members(many, checkpoints=True)
    for md in alone:
        md.run(40)
    MD.batch(together).run(25)
    for md in together:
        md.close()
    again = [MD.restart(many / f"run{k}.npz", progress=False) for k in range(4)]
    assert [md.nsteps for md in again] == [25] * 4
    again[0].run(15)
    MD.batch(again[1:]).run(15)
    assert_same_runs(alone, again, one, many)
    assert not list(many.glob("*.lock"))


def test_checkpoints_have_their_intervals(tmp_path, monkeypatch):
    saved = []
    write = driver._checkpoint.write

    def spy(path, md):
        saved.append((Path(path).name, md.nsteps))
        write(path, md)

    monkeypatch.setattr(driver._checkpoint, "write", spy)
    MD.batch(members(tmp_path, checkpoints=True)).run(20)
    for k in range(4):
        steps = {step for name, step in saved if name == f"run{k}.npz"}
        assert steps == {9 + k, 18 + 2 * k, 20} - set(range(21, 30))


def test_checkpoints_about_every_minute(tmp_path, monkeypatch):
    clock = [0.0]

    def monotonic():
        clock[0] += 20.0
        return clock[0]

    monkeypatch.setattr(driver, "time", SimpleNamespace(monotonic=monotonic))
    saved = []
    write = driver._checkpoint.write
    monkeypatch.setattr(driver._checkpoint, "write", lambda path, md: (saved.append(md.nsteps), write(path, md)))
    together = [*plain(1), *(MD(runs.beads(), 1.0, Langevin(300, 0.01), progress=False, checkpoint=tmp_path / "b"),)]
    MD.batch(together).run(5000)
    assert len(set(saved)) > 2
    assert 0 < min(saved) < max(saved) == 5000


def test_species_that_others_do_not_have(models):
    """A batch numbers species once for all."""

    def make():
        made = []
        for k, symbols in enumerate(("O8", "H8", "O4H4")):
            lattice = np.indices((2, 2, 2)).reshape(3, -1).T * 2.5
            atoms = Atoms(symbols, lattice + np.random.default_rng(k).normal(scale=0.05, size=(8, 3)), pbc=True)
            atoms.set_cell([5.0, 5.0, 5.0 + k])
            atoms.calc = NEP(models["plain"], threads=1)
            made.append(MD(atoms, 0.2, Langevin(100, 0.01), seed=k, progress=False))
            made[-1].attach(Thermo(), 1)
        return made

    alone, together = make(), make()
    for md in alone:
        md.run(30)
    MD.batch(together).run(30)
    assert_same_runs(alone, together)


def test_functions_see_and_change_their_atoms():
    def make():
        made = plain(3)
        seen = []

        def look(k):
            md = made[k]
            fresh = md.atoms.copy()
            fresh.calc = NEP(WATER_BEAD, threads=1)
            seen.append((k, md.nsteps))
            assert md.atoms.get_potential_energy() == pytest.approx(fresh.get_potential_energy(), abs=1e-10)
            np.testing.assert_allclose(md.atoms.get_forces(), fresh.get_forces(), atol=1e-10)

        def push():
            made[1].atoms.positions += 0.01 * np.sin(np.arange(81.0)).reshape(27, 3)
            made[1].atoms.set_momenta(0.9 * made[1].atoms.get_momenta())

        made[0].attach(look, 4, 0)
        made[2].attach(look, 6, 2)
        made[1].attach(push, -5)
        # as of that step
        made[1].attach(lambda: made[1].attach(Thermo(), 2), -7)
        return made, seen

    (alone, one), (together, other) = make(), make()
    for md in alone:
        md.run(20)
    MD.batch(together).run(20)
    assert sorted(one) == sorted(other) == [*((0, k) for k in range(0, 21, 4)), *((2, k) for k in range(0, 21, 6))]
    assert_same_runs(alone, together)
    # steps 8, 10, ..., 20
    assert together[1].handles[0].results().samples == 7


# ---- refusals -----------------------------------------------------------------------------------------------------


def test_what_does_not_fit_together(tmp_path):
    def other(fs=1.0, ensemble=None, model=WATER_BEAD, **keywords):
        return MD(runs.beads(model=model), fs, ensemble or Langevin(300, 0.01), progress=False, **keywords)

    steps = other()
    steps.run(1)
    for second, message in (
        (other(model=NEPModel.random(["WAT"], seed=8)), "need the same model: run 0 has"),
        (other(fs=2.0), "need the same time step: run 0 has 1.0, run 1 has 2.0"),
        (other(ensemble=Bussi(300, 50.0)), "need the same kind of ensemble: run 0 has Langevin, run 1 has Bussi"),
        (steps, "need the same number of steps made: run 0 has 0, run 1 has 1"),
    ):
        with pytest.raises(MDError, match=message):
            MD.batch([other(), second])
    chains = [other(ensemble=NoseHoover(300, 50.0, chain=length)) for length in (3, 4)]
    with pytest.raises(MDError, match="same number of variables of the ensemble"):
        MD.batch(chains)
    npt = [other(ensemble=runs.ensemble(name)) for name in ("scr", "mttk")]
    with pytest.raises(MDError, match="same kind of ensemble: run 0 has NPTbySCR, run 1 has NPTbyMTTK"):
        MD.batch(npt)
    with pytest.raises(MDError, match="at least one run"):
        MD.batch([])
    files = [other(checkpoint=name) for name in (tmp_path / "run.npz", tmp_path / ".." / tmp_path.name / "run.npz")]
    with pytest.raises(MDError, match="the same checkpoint file: give each its own"):
        MD.batch(files)


def test_shared_atoms_and_calculators():
    one = plain(1)[0]
    with pytest.raises(MDError, match="share, the same atoms"):
        MD.batch([one, one])
    with pytest.raises(MDError, match="share, the same atoms"):
        MD.batch([one, MD(one.atoms, 1.0, Langevin(300, 0.01), progress=False)])
    copy = one.atoms.copy()
    copy.calc = one.calc
    with pytest.raises(MDError, match="share a calculator"):
        MD.batch([one, MD(copy, 1.0, Langevin(300, 0.01), progress=False)])


def test_another_temperature_of_the_model(atoms, make_calculator):
    made = []
    for kelvin in (300.0, 320.0):
        copy = atoms.copy()
        copy.calc = make_calculator("full", temperature_K=kelvin)
        made.append(MD(copy, 0.1, Langevin(kelvin, 0.01), progress=False))
    with pytest.raises(MDError, match=r"same temperature_K of the model: run 0 has 300\.0, run 1 has 320\.0"):
        MD.batch(made)


def test_a_member_that_went_on_alone():
    together = plain(2)
    batch = MD.batch(together)
    batch.run(5)
    together[1].run(3)
    before = [md.simulation.state.x.copy() for md in together]
    with pytest.raises(MDError, match="same number of steps made: run 0 has 5, run 1 has 8"):
        batch.run(5)
    for md, x in zip(together, before, strict=True):
        np.testing.assert_array_equal(md.simulation.state.x, x)
    together[0].run(3)
    batch.run(2)
    assert [md.nsteps for md in together] == [10, 10]


@pytest.mark.parametrize("steps", [-1, 1.5, True, "10"])
def test_numbers_of_steps(steps):
    together = plain(2)
    with pytest.raises(MDError, match="steps: expected a number of steps"):
        MD.batch(together).run(steps)
    assert together[0].nsteps == 0


# ---- failures -----------------------------------------------------------------------------------------------------


def assert_complete(md, step):
    """Everything in the run and its atoms belongs to the same step."""
    assert md.nsteps == step
    fresh = md.atoms.copy()
    fresh.calc = NEP(WATER_BEAD, threads=1)
    fresh.set_constraint()
    np.testing.assert_array_equal(md.atoms.positions, md.simulation.state.x)
    assert md.potential_energy() == pytest.approx(fresh.get_potential_energy(), abs=1e-10)
    assert md.atoms.get_potential_energy() == md.potential_energy()
    np.testing.assert_allclose(md.simulation.state.f, fresh.get_forces(), atol=1e-10)
    np.testing.assert_allclose(md.atoms.get_stress(), fresh.get_stress(), atol=1e-12)
    assert md.atoms.get_kinetic_energy() == pytest.approx(md.kinetic_energy(), rel=1e-12)


@pytest.mark.parametrize("guilty", [0, 2])
def test_a_member_that_blows_up(tmp_path, monkeypatch, guilty):
    monkeypatch.chdir(tmp_path)
    one, many = runs.folders(tmp_path, "one", "many")
    alone, together = members(one), members(many, checkpoints=True)

    def kick():
        together[guilty].atoms.set_momenta(400 * together[guilty].atoms.get_momenta())

    together[guilty].attach(kick, -16)
    with pytest.raises(MDFailed, match=rf"replica {guilty}.*step 17 cannot be completed.*state after step 16 is in"):
        MD.batch(together).run(40)
    assert [path.name for path in many.glob("*.xyz")] == [f"run{guilty}.npz.step16.xyz"]
    assert ase.io.read(many / f"run{guilty}.npz.step16.xyz").positions.shape == (27, 3)
    for md in together:
        assert_complete(md, 16)
    # the older checkpoint of this one, the last step of the others
    steps = [MD.restart(many / f"run{k}.npz", progress=False) for k in range(4)]
    assert [md.nsteps for md in steps] == [9 + guilty if k == guilty else 16 for k in range(4)]
    for md in steps:
        md.close()
    others = [k for k in range(4) if k != guilty]
    again = {k: MD.restart(many / f"run{k}.npz", progress=False) for k in others}
    for k in others:
        alone[k].run(30)
        again[k].run(14)
        assert_same(alone[k], again[k])
        runs.assert_same_files(one, many, FILES[k])


def test_a_member_whose_energy_drifts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    together = plain(3, lambda k: NVE())
    monkeypatch.setattr(driver, "_LARGEST_DRIFT", 1e-30)
    for md in (together[0], together[2]):
        monkeypatch.setattr(md, "_check_energy", lambda first: None)
    with pytest.raises(MDFailed, match=r"replica 1.*conserved energy changed by"):
        MD.batch(together).run(20)
    steps = together[0].nsteps
    assert 0 < steps <= 20
    for md in together:
        assert_complete(md, steps)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("step", [0, 10])
def test_an_interrupt_from_a_function(tmp_path, error, step):
    one, many = runs.folders(tmp_path, "one", "many")
    alone, together = members(one), members(many)
    raised = []

    def interrupt():
        if together[1].nsteps == step and not raised:
            raised.append(step)
            raise error

    together[1].attach(interrupt, 1)
    batch = MD.batch(together)
    with pytest.raises(error):
        batch.run(30)
    for md in together:
        assert_complete(md, step)
    batch.run(30 - step)
    for md in alone:
        md.run(30)
    assert_same_runs(alone, together, one, many)


def test_an_interrupt_within_a_step(tmp_path, monkeypatch):
    """As Ctrl-C, which comes between two calls of the compiled loop or where a step was not completed."""
    one, many = runs.folders(tmp_path, "one", "many")
    alone, together = members(one), members(many)
    batch = MD.batch(together)
    advance, calls = batch._backend.advance, []

    def interrupted(run, last):
        advance(run, last)
        calls.append(run.step)
        if run.step >= 12 and len(calls) < 100:
            # as it is in the middle of the next step
            for array, old in zip((run.state.x, run.state.v, run.state.f), run.backup, strict=False):
                old[:] = array
            run.backup.cell[:], run.backup.q[:] = run.state.cell, run.q
            run.state.x[:] += 0.1
            run.state.energy[:] += 1.0
            run.progress[1] = 1
            calls.extend([0] * 100)
            raise KeyboardInterrupt

    monkeypatch.setattr(batch._backend, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        batch.run(30)
    step = batch.nsteps
    assert 12 <= step < 30
    for md in together:
        assert_complete(md, step)
    batch.run(30 - step)
    for md in alone:
        md.run(30)
    assert_same_runs(alone, together, one, many)
