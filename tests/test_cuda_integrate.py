"""The box that follows its cell; sums of a team. (Whole steps: ``test_cuda_backend.py``.)"""

import numpy as np
import pytest
from ase_nepcg_cuda.integrate import build_follow
from ase_nepcg_cuda.lists import NARROW, STALE, STATE
from numba import cuda

REPEAT, CUTOFF, SKIN = (2, 1, 3), 4.0, 1.0


class Boxes:
    """Two replicas; the first is periodic, the second has no third vector."""

    def __init__(self):
        rng = np.random.default_rng(1)
        self.cell = np.array([np.diag([5.0, 9.0, 4.0]) + 0.2 * rng.normal(size=(3, 3)), np.diag([6.0, 10.0, 1.0])])
        self.pbc = np.array([[True] * 3, [True, True, False]])
        self.rows = np.zeros((2, 3, 3))
        self.rows[1, 2] = [0.0, 0.0, 40.0]
        self.built = np.linalg.inv(self.boxes())

    def boxes(self):
        boxes = self.cell * np.array(REPEAT)[:, None]
        boxes[1, 2] = self.rows[1, 2]
        return boxes

    def follow(self, bins=((2, 2, 2), (2, 2, 2))):
        device = cuda.to_device
        to_box, to_vector = device(np.zeros(18)), device(np.zeros(18))
        reach, state = device(np.zeros(2)), device(np.zeros(STATE, np.int32))
        built = device(self.built.ravel())
        follow, remember = build_follow("double")
        cells = device(self.cell), device(self.pbc), device(self.rows.ravel())
        bins = device(np.array(bins, np.int64).ravel())
        follow.launch(2, (*REPEAT, *cells, bins, CUTOFF, SKIN, built, to_box, to_vector, reach, state))
        self.remembered = remember, to_box, built
        return (*(a.copy_to_host().reshape(2, 3, 3) for a in (to_box, to_vector)), reach.copy_to_host(), state)


def test_fractions_and_vectors_are_those_of_the_cell():
    boxes = Boxes()
    to_box, to_vector, reach, state = boxes.follow()
    np.testing.assert_allclose(to_box, np.linalg.inv(boxes.boxes()), atol=1e-14)
    np.testing.assert_allclose(to_vector * 2.0**64, boxes.boxes(), atol=1e-12)
    np.testing.assert_allclose(reach, 0.5 * SKIN, atol=1e-12)
    assert not state.copy_to_host().any()


def test_a_strain_leaves_less_of_the_skin():
    boxes = Boxes()
    boxes.cell[1] *= 1.02
    *_, reach, _ = boxes.follow()
    assert reach[0] == pytest.approx(0.5 * SKIN)
    # two of three axes are strained
    assert reach[1] == pytest.approx(0.5 * (SKIN - 1.1 * 0.02 * np.sqrt(2) * CUTOFF))


@pytest.mark.parametrize(("bins", "edge"), [((2, 2, 2), 3.9), ((3, 2, 2), 5.9)])
def test_a_box_that_is_too_narrow_says_so(bins, edge):
    boxes = Boxes()
    boxes.cell[1, 0] = [edge, 0.0, 0.0]
    state = boxes.follow(bins=((2, 2, 2), bins))[-1].copy_to_host()
    assert state[NARROW] == 1


def test_a_new_list_remembers_its_box():
    boxes = Boxes()
    boxes.cell *= 1.05
    boxes.follow()
    remember, to_box, built = boxes.remembered
    for stale in (0, 1):
        state, reach = cuda.to_device(np.zeros(STATE, np.int32)), cuda.to_device(np.zeros(2))
        words = np.zeros(STATE, np.int32)
        words[STALE] = stale
        state.copy_to_device(words)
        remember.launch(2, (SKIN, to_box, built, reach, state))
        same = np.array_equal(built.copy_to_host(), to_box.copy_to_host())
        assert same == bool(stale)
        assert reach.copy_to_host()[0] == pytest.approx(0.5 * stale)
