"""ase_nepcg.md.driver: whatever ends a run, it ends after a complete step and with all files."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import ase.io
import md_runs
import numpy as np
import pytest
from ase import units
from ase.calculators.calculator import CalculatorSetupError
from ase.constraints import FixAtoms
from md_runs import assert_complete, beads, bits, start

from ase_nepcg import MD, FixBeads
from ase_nepcg.md import NPT, NVE, Deform, driver
from ase_nepcg.md.driver import MDFailed
from ase_nepcg.md.outputs import OutputError, ThermoOutput
from ase_nepcg.md.setup import MDError


@pytest.fixture(scope="module")
def reference():
    """Bits after 120 undisturbed steps of Langevin dynamics."""
    return md_runs.reference_bits()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---- interrupts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [RuntimeError("mine"), KeyboardInterrupt(), SystemExit(3)], ids=lambda e: type(e).__name__
)
def test_errors_of_functions_leave_a_complete_step(error, reference):
    md = start(trajectory="run.traj", loginterval=15)
    before, after = [], []

    def fail():
        before.append(md.nsteps)
        if md.nsteps == 30:
            # given up with the call
            md.atoms.positions += 1
            raise error

    md.attach(fail, 10)
    md.attach(lambda: after.append(md.nsteps), 10)
    md.add_output(ThermoOutput("run.csv", 10))
    with pytest.raises(type(error)):
        md.run(120)
    assert md.nsteps == 30
    assert_complete(md)
    md.run(90)
    assert bits(md) == reference
    # what was due after it at that step was done, once
    assert before == after == list(range(0, 121, 10))
    md.close()
    assert np.loadtxt("run.csv", delimiter=",", skiprows=1)[:, 0].tolist() == before
    assert len(ase.io.read("run.traj", index=":")) == 9


def interrupt_after(seconds, sent):
    def send():
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(seconds, send)
    timer.start()
    return timer


def test_interrupt_is_seen_within_a_second():
    md = start()
    sent = []
    timer = interrupt_after(0.7, sent)
    with pytest.raises(KeyboardInterrupt):
        md.run(10**9)
    assert time.monotonic() - sent[0] < 1.0
    timer.join()
    assert md.nsteps > 0
    assert_complete(md)
    md.run(10)
    whole = start()
    whole.run(md.nsteps)
    assert bits(md) == bits(whole)


def test_interrupts_lose_and_repeat_no_frame():
    md = start(checkpoint="point", checkpoint_interval=400)
    md.add_output(ThermoOutput("run.csv", 2))
    rng = np.random.default_rng(1)
    interrupts = 0
    while md.nsteps < 2000:
        try:
            timer = interrupt_after(rng.uniform(0.02, 0.1), [])
            md.run(2000 - md.nsteps)
            # to be caught here and nowhere else
            timer.join()
            time.sleep(0.5)
        except KeyboardInterrupt:
            interrupts += 1
            assert_complete(md)
    assert interrupts > 2
    restarted = MD.restart("point", progress=False)
    assert restarted.nsteps == md.nsteps
    md.close(), restarted.close()
    assert np.loadtxt("run.csv", delimiter=",", skiprows=1)[:, 0].tolist() == list(range(0, 2001, 2))


def test_irun_may_be_closed_early(reference):
    md = start(checkpoint="point")
    steps = md.irun(100)
    assert [next(steps) for _ in range(4)] == [False] * 4
    steps.close()
    assert md.nsteps == 3
    assert_complete(md)
    assert MD.restart("point", progress=False).nsteps == 3
    md.run(117)
    assert bits(md) == reference


def test_full_disk_keeps_the_older_checkpoint_and_the_frame_is_written_later(reference, monkeypatch):
    md = start(checkpoint="point", checkpoint_interval=20)
    table = md.add_output(ThermoOutput("run.csv", 10))
    full = [False]

    def patches(atoms, run, original=table._patches):
        if full[0]:
            raise OSError(28, "No space left on device")
        return original(atoms, run)

    monkeypatch.setattr(table, "_patches", patches)
    md.attach(lambda: full.__setitem__(0, True), -35)
    with pytest.raises(OutputError, match=r"run\.csv.*No space left on device"):
        md.run(120)
    assert md.nsteps == 40
    assert_complete(md)
    assert MD.restart("point", progress=False).nsteps == 20
    full[0] = False
    # the restarted run has cut it and took it over
    table = md.outputs[0] = ThermoOutput("run.csv", 10, append=True)
    md._callers[0].function = table.write
    md.run(80)
    assert bits(md) == reference
    md.close()
    assert np.loadtxt("run.csv", delimiter=",", skiprows=1)[:, 0].tolist() == [0, 10, 20, *range(40, 121, 10)]


def test_checkpoint_of_a_function_has_the_frames_of_its_step():
    md = start()
    md.attach(lambda: md.checkpoint("point"), -10)
    md.add_output(ThermoOutput("run.csv", 5))
    md.run(12)
    restarted = MD.restart("point", progress=False)
    restarted.run(5)
    restarted.close()
    assert np.loadtxt("run.csv", delimiter=",", skiprows=1)[:, 0].tolist() == [0, 5, 10, 15]


# ---- blow-ups -----------------------------------------------------------------------------------------------------


def written(message, step, stem="md"):
    """The frame of the last good state that ``message`` names."""
    path = f"{stem}.step{step}.xyz"
    assert f"The state after step {step} is in the atoms and in " in message
    assert f"{path}; a shorter time step or another start may help" in message
    assert [str(name) for name in Path().rglob("*.step*.xyz")] == [path]
    return ase.io.read(path)


def hot(atoms, number=5, angstrom_per_step=3.0):
    momenta = atoms.get_momenta()
    momenta[number] = [0, angstrom_per_step / (2.0 * units.fs) * atoms.get_masses()[number], 0]
    atoms.set_momenta(momenta)


def test_time_step_far_too_large():
    md = start(NVE(), fs=25.0)
    with pytest.raises(
        MDFailed,
        match=r"conserved energy changed by .* eV in steps \d+ to \d+, .*time step of 25 fs is probably too large",
    ) as error:
        md.run(5000)
    assert f"to {md.nsteps}," in str(error.value)
    assert_complete(md)
    frame = written(str(error.value), md.nsteps)
    np.testing.assert_allclose(frame.positions, md.atoms.positions, atol=1e-7)
    np.testing.assert_allclose(frame.get_momenta(), md.atoms.get_momenta(), atol=1e-7)
    np.testing.assert_array_equal(frame.get_masses(), md.atoms.get_masses())


def test_hot_atom():
    atoms = beads()
    hot(atoms)
    before = atoms.copy()
    md = start(NVE(), atoms=atoms)
    with pytest.raises(
        MDFailed, match=r"step 1 cannot be completed: atom 5 moves .* in one step, expected at"
    ) as error:
        md.run(10)
    assert md.nsteps == 0
    np.testing.assert_array_equal(atoms.positions, before.positions)
    assert_complete(md)
    written(str(error.value), 0)


def test_start_on_a_steep_wall():
    atoms = beads()
    atoms.positions[1] = atoms.positions[0] + [0.6, 0, 0]
    md = start(NVE(), atoms=atoms, logfile="run.log")
    with pytest.raises(MDFailed, match=r"temperature is|moves|conserved energy") as error:
        md.run(1000)
    assert_complete(md)
    written(str(error.value), md.nsteps, "run.log")


def test_start_on_top_of_each_other():
    atoms = beads()
    atoms.positions[1] = atoms.positions[0]
    before = atoms.copy()
    md = start(NVE(), atoms=atoms, checkpoint="point")
    for _ in range(2):
        with pytest.raises(MDFailed, match=r"the atoms as they are cannot be evaluated: .*0.*1"):
            md.run(10)
    np.testing.assert_array_equal(atoms.positions, before.positions)
    assert os.listdir() == []
    # the way out
    atoms.positions[1, 0] += 2.9
    md.run(0)
    assert_complete(md)


@pytest.mark.parametrize("name", ["positions", "momenta", "cell"])
def test_values_that_are_no_numbers(name, reference):
    md = start()
    arrays = {"positions": md.atoms.positions, "momenta": md.atoms.arrays["momenta"], "cell": md.atoms.cell.array}
    md.attach(lambda: arrays[name].__setitem__((2, 0), np.nan), -20)
    with pytest.raises(MDError, match=f"{name} must be finite, but row 2 is .nan"):
        md.run(120)
    assert md.nsteps == 20
    assert_complete(md)
    arrays[name][2, 1] = np.inf
    with pytest.raises(MDError, match=f"{name} must be finite, but row 2 is"):
        md.run(100)
    arrays[name][2, 1] = getattr(md.simulation.state, {"positions": "x", "cell": "cell", "momenta": "v"}[name])[
        (0, 2, 1) if name == "cell" else (2, 1)
    ] * (md.atoms.get_masses()[2] if name == "momenta" else 1)
    md.run(100)
    assert bits(md) == reference


@pytest.mark.parametrize("speed", [np.nan, 1e30])
def test_step_to_nowhere(speed):
    md = start(NVE())
    md.run(10)
    before = md.atoms.positions.copy()
    md.simulation.state.v[3, 1] = speed
    with pytest.raises(MDFailed, match="step 11 cannot be completed"):
        md.run(10)
    assert md.nsteps == 10
    np.testing.assert_array_equal(md.atoms.positions, before)
    assert len(list(Path().glob("md.step10.xyz"))) == 1


def test_checkpoint_of_better_times_is_kept(reference):
    md = start(checkpoint="point", checkpoint_interval=7)
    md.run(20)
    md.attach(lambda: hot(md.atoms), -30)
    with pytest.raises(MDFailed, match="step 31 cannot be completed: atom 5 moves") as error:
        md.run(100)
    written(str(error.value), 30, "point")
    restarted = MD.restart("point", progress=False)
    assert restarted.nsteps == 28
    restarted.run(92)
    assert bits(restarted) == reference
    # the failed run may be taken up, too
    md.atoms.set_momenta(md.atoms.get_momenta() * 0)
    md.run(5)
    assert MD.restart("point", progress=False).nsteps == 35


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), None])
def test_frame_that_cannot_be_written(error, monkeypatch):
    os.mkdir("folder")
    md = start(NVE(), trajectory="folder/run.xyz")
    md.run(1)
    hot(md.atoms)
    if error is None:
        shutil.rmtree("folder")
    else:

        def refuse(path, content):
            raise error

        monkeypatch.setattr(driver, "write_atomically", refuse)
    expected = "No such file or directory" if error is None else error.strerror
    with pytest.raises(
        MDFailed, match=rf"is in the atoms \(folder/run\.xyz\.step1\.xyz cannot be written: {expected}\)"
    ):
        md.run(1)
    assert_complete(md)


# ---- changes that a run cannot follow -----------------------------------------------------------------------------


def remove_calculator(atoms):
    atoms.calc = None


def other_label(atoms):
    atoms.numbers[4] = 17


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda atoms: atoms.set_masses([20.0] * len(atoms)), "masses of the atoms are others"),
        (lambda atoms: atoms.set_pbc([True, True, False]), "periodic directions of the atoms are others"),
        (lambda atoms: atoms.set_constraint(FixAtoms([2])), "constraints of the atoms are others"),
        (lambda atoms: atoms.set_constraint(FixBeads([[2, 3]])), "constraints of the atoms are others"),
        (lambda atoms: atoms.__delitem__(3), "the run has 27 atoms, now there are 26: make a new MD"),
        (remove_calculator, "another calculator"),
        (other_label, "unknown species Cl"),
    ],
)
def test_other_changes_need_a_new_run(change, message):
    md = start()
    md.run(2)
    change(md.atoms)
    with pytest.raises((MDError, CalculatorSetupError), match=message):
        md.run(2)
    assert md.nsteps == 2


def test_function_that_removes_atoms():
    md = start(checkpoint="point", checkpoint_interval=3)
    md.attach(lambda: md.atoms.__delitem__(3), -5)
    with pytest.raises(MDError, match="the run has 27 atoms, now there are 26"):
        md.run(10)
    assert MD.restart("point", progress=False).nsteps == 3


@pytest.mark.parametrize("ensemble", [NPT(300.0, 0.1, 100.0, 1000.0), Deform("x", 1e-3, 300.0, 100.0)], ids=repr)
def test_cell_belongs_to_the_ensemble(ensemble):
    md = start(ensemble)
    md.run(2)
    md.atoms.set_cell(md.atoms.cell.array * 1.01, scale_atoms=True)
    with pytest.raises(MDError, match=r"the cell was changed, which .* is in charge of: make a new MD"):
        md.run(1)
