"""Batches on several devices. In the simulator, and on one device, two backends share the device."""

import numpy as np
import pytest
from ase_nepcg_cuda import several
from cuda_systems import same, system

from ase_nepcg import MD, NEP, FixBeads
from ase_nepcg.md import NPT, NVE, Langevin, MDError, MDFailed, Thermo
from ase_nepcg.potential.evaluate import EvaluationError

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
SIZES = (4, 5, 4)


def runs_of(models, ensemble, device, change=lambda k, atoms: None):
    made = []
    for k, n in enumerate(SIZES):
        atoms = system(n, seed=k + 2)
        change(k, atoms)
        atoms.calc = NEP(models["single"], device=device, precision="double", threads=1)
        made.append(MD(atoms, 1.0, ensemble, seed=k, progress=False))
    return made


def hold(k, atoms):
    if k != 1:
        atoms.set_constraint(FixBeads([[0, 2], [1, 3]]))


def test_parts_are_views_of_the_whole(models):
    runs = runs_of(models, NVE(), "cpu", hold)
    for run in runs:
        run.attach(Thermo(), 2)
    batch = MD.batch(runs)
    batch.run(1)
    whole = batch._join()
    parts = several.divide(whole, 2)
    assert [len(part.state.x) for part in parts] == [9, 4]
    assert [part.part_from for part in parts] == [0, 2]
    own = [run.simulation.state for run in runs]
    for part, members in zip(parts, ([0, 1], [2]), strict=True):
        assert np.shares_memory(part.state.x, whole.state.x)
        assert part.state.first.tolist() == np.cumsum([0, *(SIZES[k] for k in members)]).tolist()
        for name in ("x", "cell", "held", "share", "seed"):
            joined = np.concatenate([getattr(own[k], name) for k in members])
            np.testing.assert_array_equal(getattr(part.state, name), joined)
        assert part.calendar.table[:, 1].tolist() == list(range(len(members)))
    # two groups of the first run, none of the second, two of the third
    assert [part.state.group_first.tolist() for part in parts] == [[0, 2, 2], [0, 2]]
    assert all(part.state.members.tolist() == [0, 2, 1, 3] for part in parts)
    assert all(part.state.start.tolist() == [0, 2, 4] for part in parts)
    # a part for each replica, and one that is all
    assert [len(part.state.seed) for part in several.divide(whole, 3)] == [1, 1, 1]
    np.testing.assert_array_equal(several.divide(whole, 1)[0].state.members, whole.state.members)


def test_every_part_has_a_replica(models):
    runs = []
    for k, n in enumerate((4, 4, 30, 4, 4)):
        atoms = system(n, seed=k + 2)
        atoms.calc = NEP(models["single"], threads=1)
        runs.append(MD(atoms, 1.0, NVE(), progress=False))
    whole = MD.batch(runs)._join()
    for count in range(1, 6):
        found = [len(part.state.seed) for part in several.divide(whole, count)]
        assert len(found) == count
        assert sum(found) == 5
        assert min(found) > 0


def test_a_repetition_that_does_not_fail(models, monkeypatch):
    # blocks of other lengths may differ by rounding: here the step that failed can be made when it is repeated
    alone, together = (runs_of(models, NVE(), device) for device in ("cpu", "cuda"))
    for run in alone:
        run.run(4)
    batch = MD.batch(together, devices=[0, 0])
    backend, failed = batch._backend._backends[1], []
    advance = backend.advance

    def once(part, last_step):
        if part.step == 2 and not failed:
            failed.append(last_step)
            raise EvaluationError("the energy is not finite")
        # one step after the other
        advance(part, min(part.step + 1, last_step))

    monkeypatch.setattr(backend, "advance", once)
    batch.run(4)
    assert failed
    for a, b in zip(alone, together, strict=True):
        same(a, b)


@pytest.mark.parametrize("ensemble", [Langevin(300.0, 0.01), NPT(300.0, 0.1, 50.0, 300.0)])
def test_a_batch_on_two_devices_is_what_its_runs_are(models, ensemble):
    change = hold if isinstance(ensemble, Langevin) else lambda k, atoms: None
    alone, together = (runs_of(models, ensemble, device, change) for device in ("cpu", "cuda"))
    seen = [[run.attach(Thermo(), 2) for run in runs] for runs in (alone, together)]
    for run in alone:
        run.run(4)
    batch = MD.batch(together, devices=[0, 0])
    batch.run(3)
    batch.run(1)
    for a, b in zip(alone, together, strict=True):
        same(a, b)
    for a, b in zip(*seen, strict=True):
        np.testing.assert_array_equal(a.ints, b.ints)
        np.testing.assert_allclose(a.floats, b.floats, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("guilty", [0, 2])
def test_a_member_that_fails_ends_all_after_the_same_step(models, guilty, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def rest(k, atoms):
        if k == guilty:
            # warms up from nothing
            atoms.set_momenta(np.zeros((len(atoms), 3)))

    probe, energies = runs_of(models, NVE(), "cpu", rest)[guilty], []
    for _ in range(3):
        probe.run(1)
        energies.append(probe.kinetic_energy())
    assert energies[0] < energies[1] < energies[2]
    outcomes = []
    for device in ("cpu", "cuda"):
        runs = runs_of(models, NVE(), device, rest)
        seen = [run.attach(Thermo(), 1) for run in runs]
        runs[guilty].simulation.limits[0, 0] = 0.5 * (energies[1] + energies[2])
        batch = MD.batch(runs, devices=[0, 0] if device == "cuda" else None)
        with pytest.raises(MDFailed, match=f"replica {guilty}: step 3 cannot be completed: the temperature") as failure:
            batch.run(8)
        outcomes.append((str(failure.value), batch.nsteps, runs, seen))
    (text, steps, alone, counted), (same_text, same_steps, together, counted_too) = outcomes
    assert (same_text, same_steps) == (text, steps)
    assert steps == 2
    for a, b in zip(alone, together, strict=True):
        same(a, b)
    for a, b in zip(counted, counted_too, strict=True):
        np.testing.assert_array_equal(a.ints, b.ints)


def test_what_no_device_can_do(models):
    runs = runs_of(models, NVE(), "cuda")
    for devices in ([7], "both", [], [0, "x"], 3):
        with pytest.raises(MDError, match="expected 'all' or numbers of CUDA devices, from 0 to"):
            MD.batch(runs, devices=devices)
    assert MD.batch(runs, devices="all")._backend.numbers
    with pytest.raises(MDError, match="the runs are on the CPU"):
        MD.batch(runs_of(models, NVE(), "cpu"), devices="all")
