"""FixBeads beside other constraints: the degrees of freedom are the rank, all constraints hold, or it is refused."""

import numpy as np
import pytest
from ase import Atoms
from ase.constraints import (
    ExternalForce,
    FixAtoms,
    FixBondLengths,
    FixCartesian,
    FixCom,
    FixedPlane,
    FixInternals,
    FixLinearTriatomic,
    FixSubsetCom,
    Hookean,
    MirrorForce,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_nepcg import FixBeads
from ase_nepcg.constraints import ConstraintError

WATER = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
TRIANGLE = np.array([[0, 1], [0, 2], [1, 2]])


def waters(n, pbc=False):
    """``n`` waters, each turned, in a row. (With periodic boundaries FixBondLengths takes 20 ms for one molecule.)"""
    rng = np.random.default_rng(5)
    positions = []
    for k in range(n):
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        positions.append(WATER @ turn + [3.0 * k + 1.0, 2.0, 2.0])
    return Atoms("OH2" * n, positions=np.concatenate(positions), cell=[3 * n, 9, 9], pbc=pbc)


def blocks(n, size=3):
    return np.arange(n * size).reshape(n, size)


def bonds(molecules):
    return FixBondLengths(np.concatenate([3 * k + TRIANGLE for k in molecules]))


def carbon_dioxides(n):
    """``n`` linear molecules O-C-O, whole, in a periodic cell."""
    rng = np.random.default_rng(6)
    positions = []
    for k in range(n):
        axis = rng.normal(size=3)
        axis /= np.linalg.norm(axis)
        positions.append(np.outer([-1.16, 0.0, 1.16], axis) + np.array([2.0, 2.0, 4.0 * k + 2.0]))
    return Atoms("OCO" * n, positions=np.concatenate(positions), cell=[9, 9, 4 * n], pbc=True)


def jacobian(atoms):
    """One row for each scalar constraint of ``atoms``: its gradient with respect to the 3N coordinates."""
    n, x, masses, rows = len(atoms), atoms.positions, atoms.get_masses(), []

    def row(terms):
        gradient = np.zeros((n, 3))
        for i, value in terms:
            gradient[i] += value
        rows.append(gradient.ravel())

    axes = np.eye(3)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixBeads):
            for group in constraint.groups:
                for axis in axes:
                    row((i, masses[i] / masses[group].sum() * axis) for i in group)
        elif isinstance(constraint, FixCom):
            for axis in axes:
                row((i, masses[i] / masses.sum() * axis) for i in range(n))
        elif isinstance(constraint, FixAtoms | FixCartesian):
            for i in constraint.index:
                for axis in axes[getattr(constraint, "mask", np.ones(3, dtype=bool))]:
                    row([(i, axis)])
        elif isinstance(constraint, FixBondLengths):
            for i, j in constraint.pairs:
                row([(i, x[i] - x[j]), (j, x[j] - x[i])])
        elif isinstance(constraint, FixLinearTriatomic):
            for i, o, j in constraint.triples:
                row([(i, x[i] - x[j]), (j, x[j] - x[i])])
                near, far = np.linalg.norm(x[o] - x[i]), np.linalg.norm(x[o] - x[j])
                for axis in axes:
                    row([(o, axis), (i, -far / (near + far) * axis), (j, -near / (near + far) * axis)])
        else:
            raise AssertionError(constraint)
    return np.array(rows).reshape(-1, 3 * n)


def assert_rank(atoms):
    rank = np.linalg.matrix_rank(jacobian(atoms), tol=1e-9)
    assert sum(constraint.get_removed_dof(atoms) for constraint in atoms.constraints) == rank
    assert atoms.get_number_of_degrees_of_freedom() == 3 * len(atoms) - rank


def assert_adjusted(atoms, seed=0):
    """Random steps: the result lies in the constraints' null space, and is reached along their gradients."""
    rng = np.random.default_rng(seed)
    matrix, masses = jacobian(atoms), np.repeat(atoms.get_masses(), 3)
    momenta = rng.normal(size=(len(atoms), 3))
    atoms.set_momenta(momenta)
    adjusted = atoms.get_momenta()
    np.testing.assert_allclose(matrix @ (adjusted.ravel() / masses), 0, atol=1e-11)
    removed = (momenta - adjusted).ravel()
    solution = np.linalg.lstsq(matrix.T, removed, rcond=None)[0]
    np.testing.assert_allclose(matrix.T @ solution, removed, atol=1e-10)
    forces = momenta.copy()
    for constraint in atoms.constraints:
        constraint.adjust_forces(atoms, forces)
    assert all(abs(forces[g].sum(axis=0)).max() < 1e-12 for g in beads_of(atoms).groups if not frozen_in(atoms, g))


def beads_of(atoms):
    return next(constraint for constraint in atoms.constraints if isinstance(constraint, FixBeads))


def frozen_in(atoms, group):
    fixed = [c.index for c in atoms.constraints if isinstance(c, FixAtoms | FixCartesian)]
    return len(fixed) and np.isin(group, np.concatenate(fixed)).any()


def centres(atoms, groups):
    return np.array([atoms[list(group)].get_center_of_mass() for group in groups])


# ---- degrees of freedom ---------------------------------------------------------------------------------


@st.composite
def frozen_systems(draw):
    """Up to nine atoms, disjoint groups of any size, frozen atoms and coordinates (overlapping too), any order."""
    n = draw(st.integers(1, 9))
    owner = draw(st.lists(st.integers(-1, 3), min_size=n, max_size=n).filter(lambda owner: max(owner) >= 0))
    groups = [[i for i in range(n) if owner[i] == k] for k in set(owner) - {-1}]
    subset = st.lists(st.integers(0, n - 1), max_size=n, unique=True)
    constraints = [FixBeads(groups)]
    constraints += [FixAtoms(draw(subset)) for _ in range(draw(st.integers(0, 2)))]
    for _ in range(draw(st.integers(0, 2))):
        mask = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
        constraints.append(FixCartesian(draw(subset), mask))
    masses = draw(st.lists(st.floats(1.0, 50.0), min_size=n, max_size=n))
    return Atoms(f"H{n}", positions=np.zeros((n, 3)), masses=masses, constraint=draw(st.permutations(constraints)))


@settings(max_examples=150, deadline=None)
@given(frozen_systems())
def test_rank_with_frozen_atoms(atoms):
    assert_rank(atoms)


@settings(max_examples=60, deadline=None)
@given(frozen_systems(), st.integers(0, 99))
def test_projection_with_frozen_atoms(atoms, seed):
    assert_adjusted(atoms, seed)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_rank_with_rigid_molecules(data):
    """Four waters: some rigid, groups made of one or two whole waters, of one atom or two, or of nothing."""
    atoms = waters(4)
    rigid = data.draw(st.sets(st.integers(0, 3), min_size=1))
    pieces = [[0, 1, 2], [0, 1, 2], [0], [1, 2], [2], None]
    groups = []
    if data.draw(st.booleans()):
        groups.append([0, 1, 2, 3, 4, 5])
    for k in range(2 * len(groups), 4):
        piece = data.draw(st.sampled_from(pieces))
        groups += [[3 * k + i for i in piece]] if piece else []
    if not groups:
        groups = [[9, 10, 11]]
    atoms.set_constraint([bonds(rigid), FixBeads(groups)])
    assert_rank(atoms)


def test_rank_with_fixed_centre_of_mass():
    atoms = waters(3)
    for constraints in ([FixCom(), FixBeads(blocks(3))], [FixCom(), FixCom(), FixBeads([range(9)])]):
        atoms.set_constraint(constraints)
        assert_rank(atoms)
        assert_adjusted(atoms)
        before = centres(atoms, beads_of(atoms).groups)
        atoms.set_positions(atoms.positions + np.random.default_rng(1).normal(size=(9, 3)))
        np.testing.assert_allclose(centres(atoms, beads_of(atoms).groups), before, rtol=0, atol=1e-12)


def test_two_constraints_with_groups_of_their_own():
    atoms = waters(3)
    atoms.set_constraint([FixBeads([[0, 1, 2]]), FixAtoms([3, 5]), FixBeads([[3, 4], [8, 6]])])
    assert_rank(atoms)
    assert_adjusted(atoms)
    atoms.set_constraint([FixBeads([[0, 1, 2]]), FixBeads([[5, 6], [2, 3]])])
    with pytest.raises(ConstraintError, match="atom 2 is in groups of two FixBeads"):
        atoms.get_number_of_degrees_of_freedom()
    constraint = FixBeads([[0, 1, 2]])
    atoms.set_constraint([constraint, constraint])
    with pytest.raises(ConstraintError, match="more than once"):
        atoms.set_momenta(np.ones((9, 3)))


def test_known_numbers():
    """Flexible molecules 3 (N - groups); rigid waters 3 rotations each, linear molecules 2."""
    atoms = waters(4)
    atoms.set_constraint(FixBeads(blocks(4)))
    assert atoms.get_number_of_degrees_of_freedom() == 3 * (12 - 4)
    for constraints in ([bonds(range(4)), FixBeads(blocks(4))], [FixBeads(blocks(4)), bonds(range(4))]):
        atoms.set_constraint(constraints)
        assert atoms.get_number_of_degrees_of_freedom() == 12
        assert_rank(atoms)
    atoms = carbon_dioxides(4)
    atoms.set_constraint([FixLinearTriatomic(blocks(4)), FixBeads(blocks(4))])
    assert atoms.get_number_of_degrees_of_freedom() == 8
    assert_rank(atoms)


# ---- rigid molecules: centres and shapes hold -----------------------------------------------------------


def shapes(atoms, molecules):
    return np.array([atoms.get_all_distances(mic=True)[np.ix_(m, m)] for m in molecules])


@pytest.mark.parametrize("groups", [blocks(3), [range(6)], [[0, 1, 2], [6, 7, 8]]])
@pytest.mark.parametrize("last", [True, False])
def test_rigid_waters_in_either_order(groups, last):
    atoms, rng = waters(3), np.random.default_rng(2)
    constraints = [bonds(range(3)), FixBeads(groups)]
    atoms.set_constraint(constraints if last else constraints[::-1])
    before, shape = centres(atoms, groups), shapes(atoms, blocks(3))
    for _ in range(10):
        atoms.set_positions(atoms.positions + 0.05 * rng.normal(size=(9, 3)))
    np.testing.assert_allclose(centres(atoms, groups), before, rtol=0, atol=1e-12)
    np.testing.assert_allclose(shapes(atoms, blocks(3)), shape, rtol=0, atol=1e-12)
    assert_adjusted(atoms)


def test_rigid_water_cut_by_the_boundary():
    atoms, rng = waters(2, pbc=True), np.random.default_rng(2)
    atoms.set_constraint([bonds(range(2)), FixBeads(blocks(2))])
    atoms.positions[4] -= atoms.cell[0]
    before, shape = centres(atoms, blocks(2)), shapes(atoms, blocks(2))
    atoms.set_positions(atoms.positions + 0.05 * rng.normal(size=(6, 3)))
    np.testing.assert_allclose(centres(atoms, blocks(2)), before, rtol=0, atol=1e-12)
    np.testing.assert_allclose(shapes(atoms, blocks(2)), shape, rtol=0, atol=1e-12)


@pytest.mark.parametrize("piece", [[0], [1], [0, 2], [1, 2]])
def test_rigid_water_partly_in_a_group(piece):
    """A site map of rigid molecules: the held centre is not that of the molecule, which turns around it."""
    atoms, rng = waters(1), np.random.default_rng(3)
    atoms.set_constraint([bonds([0]), FixBeads([piece])])
    before, shape, start = centres(atoms, [piece]), shapes(atoms, blocks(1)), atoms.get_positions()
    atoms.set_positions(atoms.positions + 0.03 * rng.normal(size=(3, 3)))
    np.testing.assert_allclose(centres(atoms, [piece]), before, rtol=0, atol=1e-12)
    np.testing.assert_allclose(shapes(atoms, blocks(1)), shape, rtol=0, atol=1e-11)
    assert np.abs(atoms.positions - start).max() > 0.01
    assert_rank(atoms)
    assert_adjusted(atoms)


@pytest.mark.parametrize("groups", [blocks(4), blocks(2, 6), [[0, 1, 2], [9, 10, 11]]])
def test_linear_molecules(groups):
    atoms, rng = carbon_dioxides(4), np.random.default_rng(4)
    atoms.set_constraint([FixLinearTriatomic(blocks(4)), FixBeads(groups)])
    before, shape = centres(atoms, groups), shapes(atoms, blocks(4))
    for _ in range(30):
        atoms.set_positions(atoms.positions + 0.05 * rng.normal(size=(12, 3)))
    np.testing.assert_allclose(centres(atoms, groups), before, rtol=0, atol=1e-12)
    np.testing.assert_allclose(shapes(atoms, blocks(4)), shape, rtol=0, atol=1e-10)
    assert_rank(atoms)
    atoms.set_momenta(rng.normal(size=(12, 3)))
    velocities = (atoms.get_velocities()).ravel()
    np.testing.assert_allclose(jacobian(atoms) @ velocities, 0, atol=1e-12)


# ---- accepted and refused -------------------------------------------------------------------------------


def test_indices_counted_from_the_end():
    atoms = waters(2)
    atoms.set_constraint([FixBondLengths([[-6, -5], [0, 2], [1, -4]]), FixAtoms([-1]), FixBeads([[0], [3, 4]])])
    assert atoms.get_number_of_degrees_of_freedom() == 18 - 3 - 3 - 6


def test_constraints_that_do_not_interfere():
    atoms = waters(3)
    others = [
        Hookean(0, 4, 5.0, 3.0),
        ExternalForce(0, 3, 0.1),
        FixedPlane(6, (0, 0, 1)),
        FixInternals(bonds=[[0.96, [6, 7]]]),
        FixLinearTriatomic([[7, 6, 8]]),
    ]
    for other in others:
        for constraints in ([other, FixBeads(blocks(2))], [FixBeads(blocks(2)), other]):
            atoms.set_constraint(constraints)
            assert beads_of(atoms).get_removed_dof(atoms) == 6


REFUSED = {
    "bond between groups": ([FixBondLengths([[2, 3]])], blocks(3), "rigid bonds connect groups 0 and 1"),
    "groups connected through a free atom": (
        [FixBondLengths([[0, 8]]), FixBondLengths([[5, 8]])],
        blocks(2),
        "rigid bonds connect groups 0 and 1",
    ),
    "rigid molecule split between groups": ([bonds([0])], [[0], [1, 2]], "rigid bonds connect groups 0 and 1"),
    "frozen atom of a rigid molecule": ([FixAtoms([1]), bonds([0])], blocks(3), "atom 1 is frozen and part of"),
    "frozen end of a leaving bond": ([FixAtoms([1]), bonds([0])], [[0]], "atom 1 is frozen and part of .* group 0"),
    "linear molecule partly in a group": (
        [FixLinearTriatomic([[1, 0, 2]])],
        [[0], [3, 4, 5]],
        r"FixLinearTriatomic molecule \[1, 0, 2\] is not inside one group",
    ),
    "linear molecule with a leaving bond": (
        [FixLinearTriatomic([[1, 0, 2]]), FixBondLengths([[0, 8]])],
        blocks(2),
        "FixLinearTriatomic and FixBondLengths on the same molecule",
    ),
    "subset": ([FixSubsetCom([6, 7, 8])], blocks(2), "FixSubsetCom moves all atoms"),
    "centre of all, groups of some": ([FixCom()], blocks(2), "FixCom moves the beads unless"),
    "centre of all, frozen atoms": ([FixCom(), FixAtoms([0])], blocks(3), "FixCom moves the beads unless"),
    "plane": ([FixedPlane(0, (1, 1, 1))], blocks(3), "cannot be combined with FixedPlane on the same atoms"),
    "internals": ([FixInternals(bonds=[[0.96, [0, 1]]])], blocks(3), "cannot be combined with FixInternals"),
    "unknown number": ([MirrorForce(0, 1)], blocks(3), "cannot be combined with MirrorForce"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    others, groups, message = REFUSED[name]
    atoms = waters(3)
    atoms.set_constraint([*others, FixBeads(groups)])
    mine = beads_of(atoms)
    for call in (mine.adjust_positions, mine.adjust_momenta, mine.adjust_forces):
        with pytest.raises(ConstraintError, match=message):
            call(atoms, atoms.get_positions())
    with pytest.raises(ConstraintError, match=message):
        mine.get_removed_dof(atoms)


@pytest.mark.parametrize(
    ("other", "groups"),
    [(FixCom(), blocks(3)), (FixLinearTriatomic([[1, 0, 2]]), blocks(3)), (bonds([0]), [[0]])],
)
def test_refused_order(other, groups):
    atoms = waters(3)
    atoms.set_constraint([FixBeads(groups), other])
    with pytest.raises(ConstraintError, match=rf"{type(other).__name__} after FixBeads .* put FixBeads last"):
        atoms.set_positions(atoms.positions + 0.1)
    atoms.set_constraint([other, FixBeads(groups)])
    atoms.set_momenta(atoms.positions)


def test_linear_molecules_cut_by_the_boundary():
    """ASE would put the central atom of all of them back into the cell: not a displacement."""
    atoms = carbon_dioxides(2)
    atoms.set_constraint([FixLinearTriatomic(blocks(2)), FixBeads(blocks(2))])
    atoms.positions[4] += atoms.cell[1]
    with pytest.raises(ConstraintError, match=r"molecule \[3, 4, 5\] is cut by a periodic boundary"):
        atoms.set_positions(atoms.positions + 0.01)


def test_no_solution_is_said():
    atoms = waters(1)
    atoms.set_constraint([bonds([0]), FixBeads([[1]])])
    mine = beads_of(atoms)
    with pytest.raises(ConstraintError, match="no solution in 50 iterations"):
        mine.adjust_positions(atoms, atoms.positions + 5.0 * WATER[::-1])
    with pytest.raises(ConstraintError, match="momenta are not finite"):
        mine.adjust_momenta(atoms, np.full((3, 3), np.nan))
