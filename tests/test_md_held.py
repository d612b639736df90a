"""State of a run with held sites."""

import numpy as np
import pytest
from ase import Atoms

from ase_nepcg import Mapping
from ase_nepcg.md.held import HeldRun


@pytest.fixture
def run():
    atoms = Atoms(
        "OHHOHHHe2",
        positions=[[0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 0, 0], [6, 0, 0], [5, 1, 0], [0, 5, 0], [5, 5, 0]],
        cell=[10, 10, 10],
        pbc=True,
    )
    # a group, an oxygen that carries the bead of its molecule, two atoms without any site
    bound = Mapping.from_groups([[0, 1, 2], [3]], ["W", "O"], atoms).bind(atoms)
    return HeldRun(bound, atoms.positions, timestep=0.1, kT=0.02, damping=0.9, interval=1, moments=False, seed=1)


def test_groups_and_anchors(run):
    assert run.state.start.tolist() == [0, 3, 4]
    assert run.state.members.tolist() == [0, 1, 2, 3]
    masses = run.bound.masses
    np.testing.assert_allclose(run.state.share, [*(masses[:3] / masses[:3].sum()), 1.0])
    assert run.state.n_dof.tolist() == [3 * 8 - 6]
    np.testing.assert_allclose(run.centre[1], [5, 0, 0])
    np.testing.assert_allclose(run.centre[2:], [[0, 5, 0], [5, 5, 0]])


def test_velocities_are_relative_and_reproducible(run):
    np.testing.assert_allclose(run.bound.masses[:3] @ run.v[:3], 0, atol=1e-14)
    assert np.array_equal(run.v[3], np.zeros(3))
    assert (run.v[4:] != 0).all()
    assert run.kinetic_energy() == pytest.approx(0.5 * (run.bound.masses[:, None] * run.v**2).sum())


def test_sample_has_room_for_everything(run):
    assert len(run.y) == 3 * 2 + 14
    assert run.table.energy == len(run.y) - 2
