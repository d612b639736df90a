"""Copies, places and bins of the boxes."""

import numpy as np
import pytest
from ase_nepcg_cuda.box import make_box

POSITIONS = np.array([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0], [2.5, 0.5, 1.5]])


def box_of(cell, pbc=(True, True, True), reach=6.6, name="mixed", positions=POSITIONS):
    return make_box(
        positions, np.asarray(cell, float)[None], np.array([pbc]), np.array([0, len(positions)]), reach, name
    )


@pytest.mark.parametrize(("edges", "copies"), [((40, 13.3, 13.1), (1, 1, 2)), ((5, 7, 30), (3, 2, 1))])
def test_a_thin_cell_is_repeated_until_images_are_apart(edges, copies):
    box = box_of(np.diag(edges))
    np.testing.assert_array_equal(box.copies, copies)
    widths = np.diag(np.linalg.inv(box.to_box[0]))
    np.testing.assert_allclose(widths, np.array(edges) * copies)
    assert (widths >= 2 * 6.6).all()
    np.testing.assert_allclose(box.to_vector[0] * 2.0**32, np.diag(widths))


@pytest.mark.parametrize(("name", "bits"), [("mixed", 32), ("double", 64)])
def test_offsets_lead_from_copy_to_copy_and_back(name, bits):
    box = box_of(np.diag([5.0, 3.0, 14.0]), name=name)
    n0, n1, n2 = box.copies
    offsets = {tuple(t): [int(k) for k in box.offsets[i]] for i, t in enumerate(np.ndindex(n0, n1, n2))}
    full = 2**bits
    for (a, b, c), offset in offsets.items():
        # what is subtracted is minus the fraction of the copy, to half a unit
        for k, n, number in zip((a, b, c), (n0, n1, n2), offset, strict=True):
            exact = -k * full / int(n)
            assert abs((number - exact + full / 2) % full - full / 2) <= (0.5 if bits == 32 else 2048.0)
        opposite = offsets[(n0 - a) % n0, (n1 - b) % n1, (n2 - c) % n2]
        assert all((p + q) % full == 0 for p, q in zip(offset, opposite, strict=True))


def test_room_around_what_is_not_periodic():
    box = box_of(np.zeros((3, 3)), (False, False, False))
    widths = np.diag(np.linalg.inv(box.to_box[0]))
    assert (widths >= 2 * (np.ptp(POSITIONS, axis=0) + 6.6)).all()
    np.testing.assert_array_equal(box.copies, 1)


@pytest.mark.parametrize("edge", [13.3, 20.0, 50.0, 1000.0])
def test_bins_are_wide_and_few_enough(edge):
    box = box_of(np.diag([edge] * 3))
    assert (edge / box.bins[0] >= 6.6).all()
    assert box.bin_first[-1] == box.bins[0].prod() <= 4 * 3 + 27


def test_bins_of_replicas_follow_each_other():
    cells = np.array([np.diag([20.0, 20.0, 20.0]), np.diag([30.0, 14.0, 50.0])])
    box = make_box(np.concatenate([POSITIONS] * 2), cells, np.ones((2, 3), bool), np.array([0, 3, 6]), 6.6, "double")
    np.testing.assert_array_equal(box.bins, [[3, 3, 3], [4, 2, 3]])
    np.testing.assert_array_equal(box.bin_first, [0, 27, 51])


def test_cells_that_are_no_cells():
    with pytest.raises(ValueError, match="so small that it would have to be repeated"):
        box_of(np.diag([1e-3, 1e-3, 10.0]))
    with pytest.raises(ValueError, match="linearly independent"):
        box_of([[1.0, 0, 0], [2.0, 0, 0], [0, 0, 1.0]])


def test_sites_may_move_until_images_of_open_cells_would_be_seen():
    rng = np.random.default_rng(2)
    positions, reach = rng.uniform(0, 9, (5, 3)), 3.0
    positions[0], positions[1] = [1.0, 0.0, 2.0], [1.0, 9.0, 2.0]
    for pbc, free in (((True, True, True), -1.0), ((True, False, True), 0.5 * 9.0 + reach)):
        box = make_box(positions, np.diag([9.5] * 3)[None], np.array([pbc]), np.array([0, 5]), reach, "double")
        assert box.free[0] == pytest.approx(free)
    # the two at the ends, as far apart as allowed: the image of one is one list cutoff away from the other
    width = np.linalg.norm(np.linalg.inv(box.to_box[0]), axis=1)[1]
    assert width - (9.0 + 2 * free) == pytest.approx(reach)
