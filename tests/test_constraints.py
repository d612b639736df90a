"""FixBeads: algebra against a loop over groups, exactness over many steps, refusals. See also test_constraints_*.py."""

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms, FixCartesian
from ase.optimize import BFGS, FIRE

from ase_nepcg import FixBeads
from ase_nepcg.constraints import ConstraintError
from ase_nepcg.errors import NepCGError

GROUPS = [[4, 0, 7], [2], [9, 3], [10, 5, 1, 12], [13]]  # atoms 6, 8, 11 are free
MEMBERS = [sorted(group) for group in GROUPS]
FREE = [6, 8, 11]


@pytest.fixture
def atoms(rng):
    """Fourteen atoms of unequal masses in a periodic cell, some outside of it."""
    atoms = Atoms("HOCNa" * 3 + "He2", positions=rng.uniform(-5, 25, (14, 3)), cell=[20, 21, 22], pbc=True)
    atoms.set_masses(rng.uniform(1, 200, 14))
    return atoms


def centres(atoms, positions=None, groups=GROUPS):
    masses, positions = atoms.get_masses(), atoms.positions if positions is None else positions
    return np.array([masses[group] @ positions[group] / masses[group].sum() for group in groups])


def totals(values, groups=GROUPS):
    return np.array([values[group].sum(axis=0) for group in groups])


# ---- algebra --------------------------------------------------------------------------------------------


def test_positions(atoms, rng):
    atoms.set_constraint(FixBeads(GROUPS))
    before, masses = atoms.get_positions(), atoms.get_masses()
    wanted = before + rng.normal(size=(14, 3))
    asked = wanted.copy()
    atoms.set_positions(wanted)
    assert np.array_equal(wanted, asked)
    for group in GROUPS:
        shift = masses[group] @ (wanted - before)[group] / masses[group].sum()
        np.testing.assert_allclose(atoms.positions[group], wanted[group] - shift, rtol=0, atol=1e-12)
    np.testing.assert_allclose(centres(atoms), centres(atoms, before), rtol=0, atol=1e-12)
    assert np.array_equal(atoms.positions[FREE], wanted[FREE])
    assert np.array_equal(atoms.positions[[2, 13]], before[[2, 13]])


def test_momenta_and_forces(atoms, rng):
    masses = atoms.get_masses()
    constraint = FixBeads(GROUPS)
    for adjust in (constraint.adjust_momenta, constraint.adjust_forces):
        wanted = rng.normal(size=(14, 3))
        got = wanted.copy()
        adjust(atoms, got)
        for group in GROUPS:
            velocity = wanted[group].sum(axis=0) / masses[group].sum()
            np.testing.assert_allclose(got[group], wanted[group] - masses[group][:, None] * velocity, atol=1e-14)
        assert np.abs(totals(got)).max() < 1e-13
        assert np.array_equal(got[FREE], wanted[FREE])
        assert not got[[2, 13]].any()
        once = got.copy()
        adjust(atoms, got)
        np.testing.assert_allclose(got, once, rtol=0, atol=1e-14)


def test_through_atoms(atoms, rng):
    atoms.set_constraint(FixBeads(GROUPS))
    atoms.set_momenta(rng.normal(size=(14, 3)))
    assert np.abs(totals(atoms.get_momenta())).max() < 1e-13
    atoms.calc = LennardJones(sigma=3.0, rc=8.0)
    raw = atoms.get_forces(apply_constraint=False)
    assert np.abs(totals(raw)).max() > 1e-6
    assert np.abs(totals(atoms.get_forces())).max() < 1e-12 * np.abs(raw).max()
    assert np.array_equal(atoms.get_forces(md=True), raw)


def test_projection_is_orthogonal_in_the_mass_metric(atoms, rng):
    constraint, masses = FixBeads(GROUPS), np.repeat(atoms.get_masses(), 3)
    matrix = np.zeros((42, 42))
    for k, momenta in enumerate(np.eye(42).reshape(42, 14, 3)):
        constraint.adjust_momenta(atoms, momenta)
        matrix[:, k] = momenta.ravel()
    np.testing.assert_allclose(matrix @ matrix, matrix, atol=1e-14)
    metric = matrix.T / masses  # p.q in the metric of the kinetic energy
    np.testing.assert_allclose(metric @ matrix, np.diag(1 / masses) @ matrix, atol=1e-14)
    assert np.linalg.matrix_rank(matrix) == 42 - constraint.get_removed_dof(atoms) == 42 - 15


def test_asking_for_what_is_there_changes_nothing(atoms, rng):
    atoms.set_constraint(FixBeads(GROUPS))
    for _ in range(2):
        before = atoms.get_positions()
        atoms.set_positions(before)
        assert np.array_equal(atoms.positions, before)
        atoms.set_positions(before + rng.normal(size=(14, 3)))
    wanted = atoms.positions + 1.0
    atoms.set_positions(wanted)
    once = atoms.get_positions()
    atoms.set_positions(wanted)
    np.testing.assert_allclose(atoms.positions, once, rtol=0, atol=1e-12)


def test_masses_at_the_time_of_use(atoms, rng):
    constraint = FixBeads(GROUPS)
    atoms.set_constraint(constraint)
    for masses in (atoms.get_masses(), rng.uniform(1, 9, 14), None):
        atoms.set_masses(masses)
        before = centres(atoms)
        atoms.set_positions(atoms.positions + rng.normal(size=(14, 3)))
        np.testing.assert_allclose(centres(atoms), before, rtol=0, atol=1e-12)
    other = atoms.copy()
    other.set_masses(np.arange(1.0, 15))
    for each in (atoms, other, atoms):  # one constraint, two sets of atoms in turn
        before, new = centres(each), each.positions + rng.normal(size=(14, 3))
        constraint.adjust_positions(each, new)
        np.testing.assert_allclose(centres(each, new), before, rtol=0, atol=1e-12)


def test_new_centres_after_a_deliberate_change(atoms, rng):
    atoms.set_constraint(FixBeads(GROUPS))
    for change in (
        lambda: atoms.set_positions(atoms.positions + rng.normal(size=(14, 3)), apply_constraint=False),
        lambda: atoms.wrap(),
        lambda: atoms.set_cell(atoms.cell * 1.01, scale_atoms=True),
        lambda: atoms.translate([1e-11, 0, 0]),
    ):
        old = centres(atoms)
        change()
        before = centres(atoms)
        assert np.abs(before - old).max() > 5e-12
        atoms.set_positions(atoms.positions + rng.normal(size=(14, 3)))
        np.testing.assert_allclose(centres(atoms), before, rtol=0, atol=1e-12)


def test_a_nan_stays_in_its_group(atoms, rng):
    constraint = FixBeads(GROUPS)
    for adjust in (constraint.adjust_positions, constraint.adjust_momenta):
        for bad, spoiled in ((0, [0, 4, 7]), (6, [6])):
            values = atoms.get_positions() + 1.0
            values[bad, 1] = np.nan
            adjust(atoms, values)
            assert np.flatnonzero(np.isnan(values).any(axis=1)).tolist() == spoiled
    wanted = atoms.get_positions() + rng.normal(size=(14, 3))
    expected = wanted.copy()
    constraint.adjust_positions(atoms, expected)
    atoms.positions[0, 1] = np.nan
    constraint.adjust_positions(atoms, wanted)
    expected[[0, 4, 7], 1] = np.nan
    np.testing.assert_allclose(wanted, expected, rtol=0, atol=1e-12)


def test_other_memory_layouts(atoms, rng):
    constraint, wanted = FixBeads(GROUPS), atoms.positions + rng.normal(size=(14, 3))
    expected = wanted.copy()
    constraint.adjust_positions(atoms, expected)
    for new in (np.asfortranarray(wanted), np.repeat(wanted, 2, axis=0)[::2]):
        constraint.adjust_positions(atoms, new)
        assert np.array_equal(new, expected)


def test_many_groups_of_different_sizes(rng):
    """Also sizes where plain sums lose digits, far from the origin, and more atoms than the constraint knows of."""
    sizes = rng.integers(1, 40, 200)
    order = rng.permutation(sizes.sum() + 50)
    groups = np.split(order[: sizes.sum()], np.cumsum(sizes)[:-1])
    atoms = Atoms(numbers=rng.integers(1, 80, len(order)), positions=rng.uniform(0, 100, (len(order), 3)))
    atoms.set_constraint(FixBeads(groups))
    before = centres(atoms, groups=groups)
    for _ in range(20):
        atoms.set_positions(atoms.positions + rng.normal(scale=0.3, size=(len(order), 3)))
    np.testing.assert_allclose(centres(atoms, groups=groups), before, rtol=0, atol=3e-12)
    assert atoms.get_number_of_degrees_of_freedom() == 3 * (len(order) - 200)


# ---- many steps -----------------------------------------------------------------------------------------


def centre_exactly(masses, positions, origin):
    """Centre minus ``origin``, rounded only at the end."""
    return (masses.astype(np.longdouble) @ (positions - origin).astype(np.longdouble)) / masses.sum()


def test_no_drift_in_100000_steps(rng):
    """Random kicks give a random walk of rounding errors; atoms in uniform motion err in one direction."""
    atoms = Atoms("OH2CAr" * 2 + "Na", positions=rng.uniform(40, 60, (11, 3)))
    groups = [[0, 1, 2], [3, 4], [5, 6, 7], [8, 9]]
    constraint = FixBeads(groups)
    masses, start = atoms.get_masses(), atoms.get_positions()
    steps = 1e-4 * rng.normal(size=(1000, 11, 3))
    steps[:, 5:] = steps[0, 5:]
    positions, worst, outside = atoms.positions, 0.0, start[10]
    for k in range(100_000):
        new = positions + steps[k % 1000]
        constraint.adjust_positions(atoms, new)
        positions[:] = new
        outside = outside + steps[k % 1000, 10]
        if k % 5000 == 4999:
            for group in groups:
                origin = start[group].mean(axis=0)
                now, then = (centre_exactly(masses[group], x[group], origin) for x in (positions, start))
                worst = max(worst, np.abs(now - then).max())
    assert worst < 1e-12
    assert np.median(np.abs(positions - start)) > 0.1  # they did move
    assert np.array_equal(positions[10], outside)


def test_nothing_is_remembered(atoms, rng):
    """Two runs that meet at the same positions continue bitwise equal."""
    used, fresh = FixBeads(GROUPS), FixBeads(GROUPS)
    for _ in range(5):
        used.adjust_positions(atoms, atoms.get_positions() + rng.normal(size=(14, 3)))
    wanted = atoms.positions + rng.normal(size=(14, 3))
    results = []
    for constraint in (used, fresh):
        results.append(wanted.copy())
        constraint.adjust_positions(atoms, results[-1])
    assert np.array_equal(*results)


# ---- frozen atoms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "frozen",
    [
        [FixAtoms([4, 6])],
        [FixAtoms([0, 4, 7])],
        [FixAtoms([10, 5, 1])],  # one atom is left
        [FixAtoms([0]), FixCartesian([4, 9, 8], (True, False, True)), FixAtoms([0, -1])],
    ],
)
def test_partly_frozen_groups(atoms, rng, frozen, first):
    """Frozen coordinates stay, centres stay, and the projection is the one onto both."""
    atoms.set_constraint([FixBeads(GROUPS), *frozen] if first else [*frozen, FixBeads(GROUPS)])
    masses, before = atoms.get_masses(), atoms.get_positions()
    free = np.ones((14, 3), dtype=bool)
    for constraint in frozen:
        free[constraint.index] &= ~getattr(constraint, "mask", np.ones(3, dtype=bool))
    wanted, momenta = before + rng.normal(size=(14, 3)), rng.normal(size=(14, 3))
    atoms.set_positions(wanted)
    atoms.set_momenta(momenta)
    expected, expected_momenta = np.where(free, wanted, before), np.where(free, momenta, 0.0)
    for group in GROUPS:
        for axis in range(3):
            moving = [i for i in group if free[i, axis]]
            if moving:
                mass = masses[moving].sum()
                shift = masses[moving] @ (expected - before)[moving, axis] / mass
                expected[moving, axis] -= shift
                expected_momenta[moving, axis] -= masses[moving] * expected_momenta[moving, axis].sum() / mass
    np.testing.assert_allclose(atoms.positions, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(atoms.get_momenta(), expected_momenta, rtol=0, atol=1e-13)
    np.testing.assert_allclose(centres(atoms), centres(atoms, before), rtol=0, atol=1e-12)
    assert np.array_equal(atoms.positions[~free], before[~free])


def test_freezing_and_releasing(atoms):
    constraint = FixBeads(GROUPS)
    dof = []
    for others in ([], [FixAtoms([0])], [FixAtoms([4])], []):
        atoms.set_constraint([*others, constraint])
        dof.append(atoms.get_number_of_degrees_of_freedom())
    assert dof == [27, 24, 24, 27]


# ---- optimisers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [BFGS, FIRE])
def test_optimisers_reach_the_constrained_minimum(optimizer):
    """At the minimum the raw force on each atom is its share, by mass, of the force on the centre."""
    atoms = Atoms("Cu4Au4Al4", positions=np.indices((3, 2, 2)).reshape(3, -1).T * 2.6 + [0, 0, 0])
    atoms.rattle(0.1, seed=1)
    groups = [[0, 4, 8], [1, 5, 9], [2, 6, 10]]
    atoms.calc = EMT()
    atoms.set_constraint(FixBeads(groups))
    before = centres(atoms, groups=groups)
    assert optimizer(atoms, logfile=None).run(fmax=1e-4, steps=500)
    np.testing.assert_allclose(centres(atoms, groups=groups), before, rtol=0, atol=1e-12)
    raw, masses = atoms.get_forces(apply_constraint=False), atoms.get_masses()
    for group in groups:
        share = masses[group][:, None] / masses[group].sum() * raw[group].sum(axis=0)
        np.testing.assert_allclose(raw[group], share, rtol=0, atol=1e-4)
    assert np.abs(totals(raw, groups)).max() > 0.1


# ---- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], "at least one group, got none"),
        ([[0, 1], [], [2]], "at least one atom in each group, got none in group 1"),
        ([[0, 1], [2, 1]], "atom 1 is in groups 0 and 1"),
        ([[0, 1], [2, 3, 2]], "atom 2 is twice in group 1"),
        ([0, 1, 2], r"got \[0, 1, 2\]; a single group is written FixBeads\(\[\[0, 1, 2\]\]\)"),
        (3, "a Mapping or a sequence of groups"),
        (None, "a Mapping or a sequence of groups"),
        ("abc", r"expected atom indices \(integers\), got str"),
        ({"WAT": [0, 1, 2]}, r"expected atom indices \(integers\), got str"),
        ([[0, 1.0]], "got float"),
        ([[True, False]], "got bool"),
        (np.eye(3, dtype=bool), "got bool"),
        ([[0, 1], [[2, 3]]], "got list"),
        ([[0, -1]], "from 0 on, got -1 to 0"),
        ([[0, 10**30]], "from 0 on, got 0 to 1000"),
    ],
)
def test_refused_groups(groups, message):
    with pytest.raises(ConstraintError, match=message) as caught:
        FixBeads(groups)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, NepCGError)


def test_accepted_forms_of_groups():
    class Sites:
        groups = (np.array([2, 0]), np.array([1]))

    for groups in (Sites(), [[2, 0], [1]], (np.array([0, 2], dtype=np.int32), {1}), (range(k, 3, 2) for k in (0, 1))):
        try:
            constraint = FixBeads(groups)
        except ConstraintError as error:
            assert "overlap" in str(error)  # noqa: PT017
            raise
        assert [group.tolist() for group in constraint.groups] == [[0, 2], [1]]
        assert all(group.dtype == np.int64 and not group.flags.writeable for group in constraint.groups)
        assert constraint.get_indices().tolist() == [0, 1, 2]
    constraint.get_indices()[:] = 0
    assert constraint.get_indices().tolist() == [0, 1, 2]


@pytest.mark.parametrize("wrong", [0.0, -1.0, np.nan, np.inf])
def test_refused_masses(atoms, wrong):
    constraint = FixBeads(GROUPS)
    masses = atoms.get_masses()
    masses[FREE] = wrong  # these do not matter
    atoms.arrays["masses"] = masses
    constraint.adjust_positions(atoms, atoms.get_positions() + 1.0)
    masses[[3, 9]] = wrong
    for call in (constraint.adjust_positions, constraint.adjust_momenta, constraint.adjust_forces):
        values = atoms.get_positions()
        with pytest.raises(ConstraintError, match=rf"got {wrong:g} for atom 3 and 1 more: call atoms.set_masses"):
            call(atoms, values)
        assert np.array_equal(values, atoms.positions)
    with pytest.raises(ConstraintError, match="masses"):
        constraint.get_removed_dof(atoms)


def test_missing_atoms(atoms):
    few = atoms.copy()
    del few[10:]
    few.set_constraint([FixAtoms([0]), FixBeads(GROUPS)])
    for call in (few.get_number_of_degrees_of_freedom, lambda: few.set_positions(few.positions + 1.0)):
        with pytest.raises(ConstraintError, match="holds atom 13, but there are 10 atoms"):
            call()


def test_no_stress_and_no_cell():
    """What ASE finds by hasattr: with a changed cell or stress the constraint would claim to know a barostat."""
    for name in ("adjust_stress", "adjust_cell", "adjust_potential_energy", "redistribute_forces_md"):
        assert not hasattr(FixBeads([[0]]), name)
