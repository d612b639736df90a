"""Many steps in one launch, and step by step; replicas integrated by blocks, and by the whole grid."""

import numpy as np
import pytest
from ase_nepcg_cuda import backend
from cuda_systems import ENSEMBLES, run_of, same, system

from ase_nepcg import MD, NEP
from ase_nepcg.md import NPT, Langevin

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


@pytest.mark.parametrize("name", ["langevin", "scr", "hnemd"])
def test_single_launches_give_the_same(models, monkeypatch, name):
    together = run_of(models["single"], ENSEMBLES[name], "cuda", steps=2)
    monkeypatch.setattr(backend, "_ONE_LAUNCH_BELOW", 0)
    one_by_one = run_of(models["single"], ENSEMBLES[name], "cuda", steps=2)
    # but for the order of sums over sites
    same(together, one_by_one, tolerance=1e-13)


@pytest.mark.parametrize("below", [0, 1000], ids=["single launches", "one launch"])
def test_the_grid_integrates_replica_after_replica(models, monkeypatch, below):
    monkeypatch.setattr(backend, "_ONE_LAUNCH_BELOW", below)
    monkeypatch.setattr(backend, "_SITES_OF_BLOCK", 0)
    kinds = []
    team = backend.CudaBackend._team
    monkeypatch.setattr(backend.CudaBackend, "_team", lambda self, run: kinds.append(team(self, run)) or kinds[-1])

    def runs(device):
        made = []
        for k, n in enumerate((4, 5)):
            atoms = system(n, seed=k + 2)
            atoms.calc = NEP(models["single"], device=device, precision="double", threads=1)
            made.append(MD(atoms, 1.0, NPT(300.0, 0.1, 50.0, 300.0), seed=k, progress=False))
        return MD.batch(made)

    alone, together = runs("cpu"), runs("cuda")
    alone.run(2)
    together.run(2)
    for a, b in zip(alone.runs, together.runs, strict=True):
        same(a, b)
    assert set(kinds) == {"grid"}


def after_one_step(models) -> MD:
    atoms = system(6)
    atoms.calc = NEP(models["single"], device="cuda", precision="double", threads=1)
    md = MD(atoms, 1.0, Langevin(300.0, 0.01), seed=7, progress=False)
    md.run(1)
    return md


def test_a_block_that_needs_more_memory_is_made_again(models, monkeypatch):
    # room for too few neighbours: the launch of several steps ends with a word, and is repeated from its beginning
    reference = run_of(models["single"], Langevin(300.0, 0.01), "cuda", system(6), steps=3)
    md = after_one_step(models)
    grown = []
    made_room = backend.CudaBackend._make_room
    monkeypatch.setattr(
        backend.CudaBackend, "_make_room", lambda self, *rest: grown.append(1) or made_room(self, *rest)
    )
    take = backend.CudaBackend._upload

    def too_little(self, run):
        if not grown:
            # a new list is due, for which there is no memory
            self.evaluator._slots(near=1)
            self.evaluator.reach.copy_to_device(np.full(len(run.q), -1.0))
        take(self, run)

    monkeypatch.setattr(backend.CudaBackend, "_upload", too_little)
    md.run(2)
    assert grown
    same(reference, md, tolerance=1e-13)


def test_a_second_shortage_does_not_leave_a_list_without_neighbours(models, monkeypatch):
    reference = run_of(models["single"], Langevin(300.0, 0.01), "cuda", system(6), steps=4)
    md = after_one_step(models)
    upload, launches = backend.CudaBackend._upload, []

    def too_little(self, run):
        # first for neighbours, then, in the same call, for angular ones: the block is halved
        if len(launches) < 2:
            self.evaluator._slots(**{("near", "angular")[len(launches)]: 1})
            self.evaluator.reach.copy_to_device(np.full(len(run.q), -1.0))
        upload(self, run)

    launch = backend.CudaBackend._launch
    monkeypatch.setattr(backend.CudaBackend, "_upload", too_little)
    monkeypatch.setattr(
        backend.CudaBackend, "_launch", lambda self, run, steps: launches.append(steps) or launch(self, run, steps)
    )
    md.run(3)
    assert launches == [3, 3, 2, 1]
    same(reference, md, tolerance=1e-13)
