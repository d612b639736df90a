"""ase_nepcg.md.driver: the calendar and the trajectories of ASE's drivers, the same bits however a run is made."""

import io

import ase.io
import md_physics as physics
import md_runs
import numpy as np
import pytest
from ase import units
from ase.constraints import FixAtoms
from ase.md import VelocityVerlet
from md_runs import LANGEVIN, Steps, assert_complete, beads, bits, start

from ase_nepcg import NEP, FixBeads
from ase_nepcg.md import NVE, Bussi
from ase_nepcg.md.outputs import ThermoOutput
from ase_nepcg.md.setup import MDError


def verlet(atoms, fs=2.0, **settings):
    return VelocityVerlet(atoms, fs * units.fs, **settings)


@pytest.fixture(scope="module")
def reference():
    """Bits after 120 undisturbed steps of Langevin dynamics."""
    return md_runs.reference_bits()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---- calendar -----------------------------------------------------------------------------------------------------


class Writer:
    """An open trajectory."""

    def __init__(self, note):
        self.note, self.description = note, None

    def set_description(self, description):
        self.description = description

    def write(self, atoms=None):
        self.note("frame")


def calendar_of(make):
    calls = []
    writer = Writer(lambda what: calls.append((driver.nsteps, what)))
    driver = make(beads(), writer)

    def note(*what, **more):
        calls.append((driver.nsteps, driver.get_time(), *what, *more.items()))

    for interval in (1, 3, 0, -4, -9):
        driver.attach(note, interval, interval, key="x")
    driver.insert_observer(note, 0, 2, "before the frame")
    driver.insert_observer(note, interval=5)
    driver.run(7)
    driver.attach(note, 2, "late")
    driver.attach(note, -7, "too late")
    driver.attach(Writer(lambda what: calls.append((driver.nsteps, "another"))), 3)
    driver.attach(note, -10, "once")
    calls.append([(last, driver.nsteps) for last in driver.irun(5)])
    driver.run(0)
    calls.append((driver.nsteps, driver.get_number_of_steps(), driver.max_steps, driver.get_time()))
    return calls, writer, driver


def test_calendar_is_that_of_ase():
    mine, writer, md = calendar_of(lambda atoms, writer: start(NVE(), atoms=atoms, trajectory=writer, loginterval=2))
    theirs, ase_writer, driver = calendar_of(lambda atoms, writer: verlet(atoms, trajectory=writer, loginterval=2))
    assert mine == theirs
    assert len(mine) == 46
    assert md.nsteps == 12
    assert md.time_ps == pytest.approx(0.024)
    assert driver.todict().keys() <= md.todict().keys()
    assert ase_writer.description.keys() <= writer.description.keys()
    assert md.todict()["timestep"] == driver.todict()["timestep"]


def test_start_is_called_once():
    # ASE calls everything again when a run of no steps is followed by another
    md = start(NVE())
    calls = []
    md.attach(lambda: calls.append(md.nsteps), 2)
    assert md.run(0) is True
    assert list(md.irun(0)) == [True]
    md.attach(lambda: calls.append("new"), 5)
    assert md.run(4) is True
    assert calls == [0, "new", 2, 4]


@pytest.mark.parametrize("interval", [2.5, "3", None, True])
def test_attach_refuses(interval):
    md = start(NVE())
    with pytest.raises(MDError, match="interval: expected a number of steps"):
        md.attach(print, interval)
    with pytest.raises(MDError, match="expected a function, a writer or an observer"):
        md.attach("trajectory")
    with pytest.raises(MDError, match="interval: expected a positive number of steps, got 0"):
        md.attach(Steps(), 0)


@pytest.mark.parametrize("suffix", [".traj", ".xyz"])
def test_files_have_the_frames_and_lines_of_ase(tmp_path, suffix):
    logs = io.StringIO(), io.StringIO()
    with start(NVE(), trajectory=f"run{suffix}", logfile=logs[0], loginterval=3) as md:
        for steps in (6, 4, 1):
            md.run(steps)
    with verlet(beads(), trajectory="ase.traj", logfile=logs[1], loginterval=3) as driver:
        for steps in (6, 4, 1):
            driver.run(steps)
    mine, theirs = (ase.io.read(tmp_path / name, index=":") for name in (f"run{suffix}", "ase.traj"))
    assert len(mine) == len(theirs) == 4
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a.positions, b.positions, rtol=0, atol=1e-5)
        np.testing.assert_allclose(a.get_velocities(), b.get_velocities(), rtol=0, atol=1e-5)
    mine, theirs = (log.getvalue().splitlines() for log in logs)
    assert mine[0] == theirs[0]
    assert len(mine) == len(theirs) == 5
    np.testing.assert_allclose(np.loadtxt(mine[1:]), np.loadtxt(theirs[1:]), atol=2e-3)


def test_append_trajectory():
    start(NVE(), trajectory="run.traj").run(2)
    start(NVE(), trajectory="run.traj", append_trajectory=True).run(2)
    assert len(ase.io.read("run.traj", index=":")) == 6
    start(NVE(), trajectory="run.traj").run(1)
    assert len(ase.io.read("run.traj", index=":")) == 2


def test_prints_nothing(capfd):
    start(NVE()).run(3)
    # stderr is no terminal here
    start(NVE(), progress=True).run(3)
    assert capfd.readouterr() == ("", "")


# ---- observers of the loop ----------------------------------------------------------------------------------------


def test_observers_sample_the_steps_of_their_grid():
    md = start(NVE())
    first = md.attach(Steps(), 3)
    assert first.results() == []
    md.run(0)
    at_start = md.insert_observer(Steps(), 0, 4)
    md.run(0)
    assert (first.results(), at_start.results()) == ([0], [0])
    md.run(6)
    on_grid, off_grid = md.attach(Steps(), 3), md.attach(Steps(), 4)
    md.run(0)
    assert on_grid.results() == off_grid.results() == []
    list(md.irun(3))
    md.run(4)
    assert first.results() == [0, 3, 6, 9, 12]
    assert at_start.results() == [0, 4, 8, 12]
    assert on_grid.results() == [9, 12]
    assert off_grid.results() == [8, 12]


# ---- trajectories -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("constrained", [False, True])
def test_equals_velocity_verlet(constrained):
    pair = beads(), beads()
    if constrained:
        for atoms in pair:
            atoms.set_constraint([FixAtoms([1, 8]), FixBeads([[2, 5, 7], [11], [20, 21]])])
            atoms.set_momenta(atoms.get_momenta())
    md, driver = start(NVE(), atoms=pair[0]), verlet(pair[1])
    energies = [], []
    md.attach(lambda: energies[0].append(pair[0].get_total_energy()), 10)
    driver.attach(lambda: energies[1].append(pair[1].get_total_energy()), 10)
    moved = pair[0].positions.copy()
    md.run(100)
    driver.run(100)
    np.testing.assert_allclose(pair[0].positions, pair[1].positions, rtol=0, atol=1e-8)
    np.testing.assert_allclose(pair[0].get_momenta(), pair[1].get_momenta(), rtol=0, atol=1e-7)
    np.testing.assert_allclose(*energies, rtol=0, atol=1e-9)
    assert np.abs(pair[0].positions - moved).max() > 0.1
    assert pair[0].get_temperature() == pytest.approx(md.temperature_K(), rel=1e-12)


def test_functions_see_everything_and_evaluate_nothing(evaluations):
    md = start()
    seen = []

    def look():
        count = len(evaluations)
        atoms = md.atoms
        atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(), atoms.get_potential_energies()
        assert len(evaluations) == count
        assert atoms.get_kinetic_energy() == pytest.approx(md.kinetic_energy(), rel=1e-12)
        assert md.conserved_energy() - md.potential_energy() - md.kinetic_energy() == pytest.approx(
            -md.simulation.q[0, 0], abs=1e-12
        )
        assert_complete(md)
        seen.append(atoms.positions.copy())

    md.attach(look, 4)
    md.run(12)
    for _ in md.irun(2):
        assert_complete(md)
    assert len(seen) == 4
    assert np.abs(np.diff(seen, axis=0)).max(axis=(1, 2)).min() > 1e-3


@pytest.mark.parametrize(
    "way", ["threads", "functions", "files", "checkpoints", "observers", "divided", "irun", "begun late"]
)
def test_bits_do_not_depend_on(way, reference):
    md = start(threads=2 if way == "threads" else 1)
    if way == "functions":
        md.attach(lambda: None, 1)
        md.attach(lambda: md.atoms.get_forces(), -7)
    if way == "files":
        md.add_output(ThermoOutput("run.csv", 7))
        md.checkpoint("point")
    if way == "checkpoints":
        md = start(checkpoint="point", checkpoint_interval=7)
    if way == "observers":
        md.attach(Steps(), 7)
    parts = {"divided": (50, 0, 1, 69), "begun late": (100, 20)}.get(way, (120,))
    for steps in parts:
        if way == "irun":
            list(md.irun(steps))
        else:
            md.run(steps)
    assert bits(md) == reference


def test_seed(reference):
    other = start(seed=6)
    other.run(120)
    assert bits(other) != reference
    assert 0 <= start(seed=None).seed < 2**31


CHANGES = {
    "positions": lambda atoms: atoms.positions.__setitem__(3, atoms.positions[3] + [0.1, 0, -0.2]),
    "momenta": lambda atoms: atoms.set_momenta(atoms.get_momenta()[::-1] * 1.2),
    "cell": lambda atoms: atoms.set_cell(atoms.cell * 1.02, scale_atoms=True),
}


@pytest.mark.parametrize("how", ["function", "between runs", "irun", "end of irun"])
@pytest.mark.parametrize("what", CHANGES)
def test_goes_on_from_what_the_user_leaves(what, how):
    md = start(NVE())
    atoms = md.atoms
    left = []

    def change():
        CHANGES[what](atoms)
        left.append(atoms.copy())

    if how == "function":
        md.attach(change, -5)
        # sees the change
        md.attach(lambda: assert_complete(md), 5)
        md.run(25)
    elif how == "between runs":
        md.run(5)
        change()
        md.run(20)
    else:
        for last in md.irun(25 if how == "irun" else 5):
            assert last == (md.nsteps == md.max_steps)
            if md.nsteps == 5:
                change()
                if how == "end of irun":
                    break
        md.run(25 - md.nsteps)
    assert md.nsteps == 25
    (anew,) = left
    anew.calc = NEP(physics.model(), threads=1)
    start(NVE(), atoms=anew).run(20)
    np.testing.assert_allclose(atoms.positions, anew.positions, rtol=0, atol=1e-11)
    np.testing.assert_allclose(atoms.get_momenta(), anew.get_momenta(), rtol=0, atol=1e-11)
    np.testing.assert_array_equal(atoms.cell.array, anew.cell.array)
    assert_complete(md)


def test_momentum_is_kept_where_nothing_else_is_documented():
    for ensemble, kept in ((NVE(), True), (LANGEVIN, True), (Bussi(300, 100), False)):
        atoms = beads()
        momentum = atoms.get_momenta().sum(axis=0)
        assert np.abs(momentum).max() > 0.1
        md = start(ensemble, atoms=atoms)
        assert md.n_dof == (81 if kept else 78)
        if ensemble == NVE():
            md.run(50)
        else:
            md.run(0)
        np.testing.assert_allclose(atoms.get_momenta().sum(axis=0), momentum if kept else 0, rtol=0, atol=1e-10)


@pytest.mark.parametrize("ensemble", [NVE(), LANGEVIN], ids=["NVE", "Langevin"])
def test_constraints(ensemble):
    atoms = beads()
    groups = [[2, 5, 7], [11], [20, 21]]
    atoms.set_constraint([FixAtoms([1, -1]), FixBeads(groups)])
    masses, before = atoms.get_masses(), atoms.positions.copy()
    md = start(ensemble, atoms=atoms)
    assert md.n_dof == 3 * (27 - 2 - 3) == 81 - sum(c.get_removed_dof(atoms) for c in atoms.constraints)
    md.run(300)
    np.testing.assert_array_equal(atoms.positions[[1, 26]], before[[1, 26]])
    np.testing.assert_array_equal(atoms.get_momenta()[[1, 26]], 0)
    for group in groups:
        shift = masses[group] @ (atoms.positions - before)[group] / masses[group].sum()
        np.testing.assert_allclose(shift, 0, atol=1e-10)
    assert np.abs(atoms.positions - before)[[0, 2, 5, 20]].max(axis=1).min() > 1e-2
    assert_complete(md)
