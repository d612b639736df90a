"""Samples of the mean force on the device against those of the CPU."""

from types import SimpleNamespace

import numpy as np
import pytest
from ase_nepcg_cuda import backend
from ase_nepcg_cuda.integrate import TEAM
from ase_nepcg_cuda.meanforce import build_kernel_of_mean_force, members_of
from cuda_systems import system
from numba import cuda

from ase_nepcg import NEP, Mapping, sample_mean_force
from ase_nepcg.md.accumulate import ANCHOR, COUNT, FILLED, FULL, LENGTH, ROWS, MeanForceSums, observe_mean_force
from ase_nepcg.md.state import make_state

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


def test_atoms_by_anchor():
    start, members = members_of(np.array([2, 0, 2, 0, 3]), 5)
    assert start.tolist() == [0, 2, 2, 4, 5, 5]
    assert members.tolist() == [1, 3, 0, 2, 4]


def start(moments):
    """Two molecules as beads, an atom that is a site, a molecule that is none: state and sums."""
    rng = np.random.default_rng(3)
    x, masses = rng.uniform(0, 5, (7, 3)), rng.uniform(1, 20, 7)
    anchor = np.array([0, 1, 0, 1, 2, 3, 3])
    bound = SimpleNamespace(n_sites=3, n_atoms=7, n_implicit=1, masses=masses, anchor_of=anchor, is_site=anchor == 2)
    bound.centres = lambda x: np.array(
        [np.average(x[anchor == a], axis=0, weights=masses[anchor == a]) for a in range(4)]
    )
    state = make_state([x], [rng.normal(size=(7, 3))], [masses], [np.zeros(7)], np.eye(3), np.zeros(3))
    return state, MeanForceSums(bound, x, moments), rng


@pytest.mark.parametrize("kind", ["block", "grid"])
@pytest.mark.parametrize("moments", [False, True])
def test_samples_and_their_sums(kind, moments):
    state, sums, rng = start(moments)
    sums.reference = 0.3
    # the second sample fills the last row, which is when rows are merged
    sums.ints[COUNT : COUNT + 4] = 0, 1, 0, 0
    sums.ints[COUNT + FULL], sums.ints[COUNT + LENGTH], sums.ints[COUNT + FILLED] = ROWS - 1, 2, 0
    sums.table.sums[:] = rng.normal(size=sums.table.sums.shape)
    ints, floats = cuda.to_device(sums.ints), cuda.to_device(sums.floats)
    members = members_of(sums.ints[ANCHOR : ANCHOR + 7], len(sums.centre))
    members = [cuda.to_device(one) for one in members]
    sample = build_kernel_of_mean_force(kind)
    for step in range(3):
        state.x[:] += rng.normal(0, 0.1, state.x.shape)
        state.f[:], state.virial[:], state.energy[:] = rng.normal(size=(7, 3)), rng.normal(size=(1, 3, 3)), rng.normal()
        device = type(state)(*(cuda.to_device(one) for one in state))
        sample[1, TEAM](device, ints, floats, *members, cuda.to_device(np.zeros(1)))
        observe_mean_force(state, 0, step, sums.ints, sums.floats)
        np.testing.assert_array_equal(ints.copy_to_host(), sums.ints)
        np.testing.assert_allclose(floats.copy_to_host(), sums.floats, atol=1e-12)
    assert sums.ints[COUNT + FULL] == ROWS // 2
    assert sums.ints[COUNT + LENGTH] == 4


@pytest.mark.parametrize("below", [0, 1000], ids=["single launches", "one launch"])
def test_a_run_is_sampled_without_the_host(models, monkeypatch, below):
    monkeypatch.setattr(backend, "_ONE_LAUNCH_BELOW", below)
    blocks = []
    launch = backend.CudaBackend._launch
    monkeypatch.setattr(
        backend.CudaBackend, "_launch", lambda self, run, steps: blocks.append(steps) or launch(self, run, steps)
    )
    results = []
    for device in ("cpu", "cuda"):
        atoms = system()
        atoms.calc = NEP(models["single"], device=device, precision="double", threads=1)
        mapping = Mapping.from_groups([[0, 1], [2, 3, 4]], "Ar")
        times = {"timestep_fs": 0.5, "time_ps": 0.008, "equilibration_ps": 0.0005, "interval": 2}
        results.append(sample_mean_force(atoms, mapping, temperature_K=300.0, **times, seed=1, progress=False))
    for name in ("forces", "force_errors", "virial"):
        np.testing.assert_allclose(getattr(results[0], name), getattr(results[1], name), atol=1e-10)
    # more steps at once than lie between two samples
    assert max(blocks) > 2
