"""Runs on the device against runs on the CPU: the same trajectories."""

import numpy as np
import pytest
from ase.constraints import FixAtoms
from ase_nepcg_cuda import backend
from cuda_systems import ENSEMBLES, run_of, same, system

from ase_nepcg import MD, NEP, FixBeads
from ase_nepcg.md import NPT, NVE, RDF, Bussi, Deform, HeatCurrent, Langevin, MDFailed, Thermo

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


@pytest.mark.parametrize("name", ENSEMBLES)
def test_every_ensemble_moves_as_on_the_cpu(models, name):
    same(*(run_of(models["single"], ENSEMBLES[name], device) for device in ("cpu", "cuda")))


def test_mixed_precision_stays_near(models):
    runs = [
        run_of(models["single"], Langevin(300.0, 0.01), device, precision=precision, steps=6)
        for device, precision in (("cpu", "double"), ("cuda", "mixed"))
    ]
    same(*runs, tolerance=2e-6)


@pytest.mark.parametrize("constraint", [FixAtoms([1]), FixBeads([[0, 2], [3, 4]])])
def test_held_and_frozen_sites(models, constraint):
    runs = []
    for device in ("cpu", "cuda"):
        atoms = system()
        atoms.set_constraint(constraint)
        runs.append(run_of(models["single"], Langevin(300.0, 0.05), device, atoms))
    same(*runs)


def test_observers_see_the_same(models):
    tables = []
    for device in ("cpu", "cuda"):
        atoms = system()
        atoms.calc = NEP(models["single"], device=device, precision="double", threads=1)
        md = MD(atoms, 1.0, NVE(), seed=1, progress=False)
        thermo, rdf = md.attach(Thermo(), 2), md.attach(RDF(3.0, 30), 1)
        heat = md.attach(HeatCurrent(length=2), 2)
        md.run(4)
        tables.append((thermo.floats, rdf.ints, rdf.floats, heat.floats))
    for a, b in zip(*tables, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)


def test_a_run_in_pieces_is_the_same_bits(models):
    whole = run_of(models["single"], Langevin(300.0, 0.01), "cuda", steps=4)
    pieces = run_of(models["single"], Langevin(300.0, 0.01), "cuda", steps=1)
    for steps in (2, 1):
        pieces.run(steps)
    np.testing.assert_array_equal(whole.atoms.positions, pieces.atoms.positions)
    np.testing.assert_array_equal(whole.atoms.get_velocities(), pieces.atoms.get_velocities())


@pytest.mark.parametrize("ensemble", [Bussi(300.0, 50.0), NPT(300.0, 0.1, 50.0, 300.0)])
def test_a_batch_is_what_its_runs_are(models, ensemble):
    def runs(device):
        made = []
        for k, n in enumerate((4, 6)):
            atoms = system(n, seed=k + 2)
            atoms.calc = NEP(models["single"], device=device, precision="double", threads=1)
            made.append(MD(atoms, 1.0, ensemble, seed=k, progress=False))
        return made

    alone, together = runs("cpu"), runs("cuda")
    for md in alone:
        md.run(3)
    MD.batch(together).run(3)
    for a, b in zip(alone, together, strict=True):
        same(a, b)


def test_a_restart_goes_on_as_if_nothing_had_happened(models, tmp_path):
    whole = run_of(models["single"], ENSEMBLES["scr"], "cuda", steps=4)
    half = run_of(models["single"], ENSEMBLES["scr"], "cuda", steps=2)
    half.checkpoint(tmp_path / "half.npz")
    rest = MD.restart(tmp_path / "half.npz")
    rest.progress = False
    assert type(rest._backend).__module__ == backend.__name__
    rest.run(2)
    same(whole, rest, tolerance=1e-13)


def test_lists_and_boxes_are_made_anew_on_the_way(models, monkeypatch):
    # fast sites in a cell that becomes too thin for its first box
    monkeypatch.setattr(backend, "_SPARE", 1.001)
    runs = []
    for device in ("cpu", "cuda"):
        atoms = system(6, density=0.0020)
        atoms.set_momenta(20.0 * atoms.get_momenta())
        runs.append(run_of(models["single"], Deform("x", -4.0), device, atoms, steps=5, timestep_fs=2.0))
    same(*runs, tolerance=1e-10)
    evaluator = runs[1]._backend.evaluator
    assert evaluator.builds > 2
    np.testing.assert_array_equal(evaluator.box.copies, [2, 1, 1])


def test_a_step_that_cannot_be_made_leaves_the_one_before(models, tmp_path, monkeypatch):
    # the failed run leaves its last state there
    monkeypatch.chdir(tmp_path)
    failures = []
    for device in ("cpu", "cuda"):
        atoms = system()
        momenta = atoms.get_momenta()
        momenta[2] = [4000.0, 0.0, 0.0]
        atoms.set_momenta(momenta)
        atoms.calc = NEP(models["single"], device=device, precision="double", threads=1)
        md = MD(atoms, 1.0, NVE(), seed=1, progress=False)
        with pytest.raises(MDFailed, match=r"step 1 cannot be completed: (atom 2 moves|the temperature is)") as failure:
            md.run(5)
        failures.append(str(failure.value).split(": ")[1])
        assert md.nsteps == 0
        np.testing.assert_allclose(atoms.positions, system().positions)
    assert failures[0] == failures[1]
