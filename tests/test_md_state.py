"""Arrays of one or several replicas."""

import numba
import numpy as np
import pytest

from ase_nepcg.md.state import inlined, make_state

SIZES = (3, 5, 2)
FROZEN = [[False, True, False], [False] * 5, [True, True]]
GROUPS = [[[2, 0]], [[4], [1, 3, 0]], []]


def replica(rng, n):
    """positions, velocities, masses, types, cell, pbc."""
    return (
        rng.normal(size=(n, 3)),
        rng.normal(size=(n, 3)),
        rng.uniform(1.0, 30.0, n),
        rng.integers(0, 4, n),
        rng.normal(size=(3, 3)),
        rng.uniform(size=3) < 0.5,
    )


@pytest.fixture
def replicas(rng):
    return [replica(rng, n) for n in SIZES]


def state_of(replicas, **more):
    return make_state(*map(list, zip(*replicas, strict=True)), **more)


def test_each_replica_is_as_if_alone(replicas):
    seeds = [7, -3, 2**62]
    s = state_of(replicas, frozen=FROZEN, groups=GROUPS, seeds=seeds)
    assert s.first.tolist() == [0, 3, 8, 10]
    assert s.group_first.tolist() == [0, 1, 3, 3]
    assert s.seed.tolist() == seeds
    per_site = ("x", "v", "f", "m", "w", "types", "energies", "virials", "bits", "more_bits")
    per_replica = ("cell", "virial", "energy", "seed", "n_dof", "pbc")
    for r in range(3):
        alone = state_of(
            replicas[r : r + 1], frozen=FROZEN[r : r + 1], groups=GROUPS[r : r + 1], seeds=seeds[r : r + 1]
        )
        sites, groups = slice(*s.first[r : r + 2]), slice(*s.group_first[r : r + 2])
        for name in per_site:
            np.testing.assert_array_equal(getattr(s, name)[sites], getattr(alone, name), err_msg=name)
        for name in per_replica:
            np.testing.assert_array_equal(getattr(s, name)[r], getattr(alone, name)[0], err_msg=name)
        np.testing.assert_array_equal(s.held[groups], alone.held)
        for g, one in zip(range(groups.start, groups.stop), range(len(GROUPS[r])), strict=True):
            members, own = slice(*s.start[g : g + 2]), slice(*alone.start[one : one + 2])
            np.testing.assert_array_equal(s.members[members] - s.first[r], alone.members[own])
            np.testing.assert_array_equal(s.share[members], alone.share[own])
    assert {len(getattr(s, name)) for name in per_site} == {10}


def test_what_is_given(replicas):
    s = state_of(replicas, seeds=(1, 2, 3))
    for name, column in (("x", 0), ("v", 1), ("m", 2), ("types", 3)):
        np.testing.assert_array_equal(getattr(s, name), np.concatenate([one[column] for one in replicas]))
    np.testing.assert_array_equal(s.cell, [one[4] for one in replicas])
    np.testing.assert_array_equal(s.pbc, [one[5] for one in replicas])
    np.testing.assert_array_equal(s.w, 1.0 / s.m)
    for name in ("f", "virial", "energy", "energies", "virials"):
        assert not getattr(s, name).any()
    # no groups
    assert s.start.tolist() == [0]
    assert [len(getattr(s, name)) for name in ("members", "share", "held")] == [0, 0, 0]
    assert s.held.shape == (0, 3)
    assert s.n_dof.tolist() == [9.0, 15.0, 6.0]


def test_degrees_of_freedom(replicas):
    assert state_of(replicas, frozen=FROZEN, seeds=range(3)).n_dof.tolist() == [6.0, 15.0, 0.0]
    assert state_of(replicas, groups=GROUPS, seeds=range(3)).n_dof.tolist() == [6.0, 9.0, 6.0]
    assert state_of(replicas, frozen=FROZEN, groups=GROUPS, seeds=range(3)).n_dof.tolist() == [3.0, 9.0, 0.0]
    assert state_of(replicas, frozen=FROZEN, n_dof=[1, 2, 3.5], seeds=range(3)).n_dof.tolist() == [1.0, 2.0, 3.5]


def test_frozen_sites_have_mass_but_neither_inverse_mass_nor_velocity(replicas):
    s = state_of(replicas, frozen=FROZEN, seeds=range(3))
    free = state_of(replicas, seeds=range(3))
    still = np.concatenate(FROZEN)
    assert (s.w == 0).tolist() == still.tolist()
    assert not s.v[still].any()
    np.testing.assert_array_equal(s.v[~still], free.v[~still])
    np.testing.assert_array_equal(s.w[~still], free.w[~still])
    np.testing.assert_array_equal(s.m, free.m)
    np.testing.assert_array_equal(s.x, free.x)


def test_groups_are_held_at_their_centres_of_mass(replicas):
    s = state_of(replicas, groups=GROUPS, seeds=range(3))
    assert s.members.tolist() == [2, 0, 3 + 4, 3 + 1, 3 + 3, 3 + 0]
    assert s.start.tolist() == [0, 2, 3, 6]
    for g in range(3):
        members, share = (a[s.start[g] : s.start[g + 1]] for a in (s.members, s.share))
        total = sum(s.m[i] for i in members)
        assert share == pytest.approx([s.m[i] / total for i in members], rel=1e-15)
        np.testing.assert_allclose(s.held[g], sum(s.m[i] * s.x[i] for i in members) / total, rtol=0, atol=1e-14)
    assert s.share[2] == 1.0
    np.testing.assert_array_equal(s.held[1], s.x[7])


def test_arrays_are_copies_of_the_kind_that_kernels_take(replicas):
    from_arrays = state_of(replicas[:1], frozen=[np.array(FROZEN[0])], groups=[[np.array([0, 2])]])
    kept = [np.array(value) for value in replicas[0]]
    for array in from_arrays:
        array[...] = 0
    for before, now in zip(kept, replicas[0], strict=True):
        np.testing.assert_array_equal(before, now)
    # of whatever type or memory order the input is: one compiled form serves all
    x, v, m, types, cell, pbc = replicas[1]
    x, v = np.asfortranarray(x), v.astype(np.float32)[::-1]
    m, types = m.round().astype(int), types.astype(np.uint8)
    others = make_state([x], [v], [m.tolist()], [types.tolist()], cell.T, pbc.astype(int), groups=[[(1, 2)]])
    assert numba.typeof(others) == numba.typeof(from_arrays)
    assert all(array.flags.c_contiguous and array.flags.writeable and array.flags.owndata for array in others[:7])
    np.testing.assert_array_equal(others.cell[0], cell.T)
    np.testing.assert_array_equal(others.v, v)
    assert numba.typeof(state_of(replicas, seeds=range(3))) == numba.typeof(others)


def test_numbers_of_replicas_must_agree(replicas):
    with pytest.raises(ValueError, match="reshape"):
        state_of(replicas)  # one seed for three replicas
    with pytest.raises(ValueError, match="reshape"):
        state_of(replicas, seeds=range(3), n_dof=[1.0])
    x, v, m, types, _, pbc = zip(*replicas, strict=True)
    with pytest.raises(ValueError, match="reshape"):
        make_state(x, v, m, types, [np.eye(3)], pbc, seeds=range(3))


def test_a_kernel_changes_the_state_in_place(replicas):
    s = state_of(replicas, seeds=range(3))

    @inlined
    def push(s, r, by):
        for i in range(s.first[r], s.first[r + 1]):
            s.x[i, 0] += by

    @numba.njit
    def push_all(s):
        for r in range(s.first.size - 1):
            push(s, r, 10.0 * r)

    before = s.x.copy()
    push_all(s)
    before[:, 0] += np.repeat([0.0, 10.0, 20.0], SIZES)
    np.testing.assert_array_equal(s.x, before)
