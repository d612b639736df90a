"""Thermal response: derivatives of averages at held sites with respect to temperature.

Exact systems and liquids are in ``toys.py``. All seeds are fixed.
"""

import numpy as np
import pytest
from ase import Atoms
from ase.units import kB

from ase_nepcg import Mapping, sample_mean_force
from ase_nepcg.md.accumulate import BlockTable
from ase_nepcg.meanforce.thermal import response, response_blocks

# whether a short run is long enough is not what these tests are about
pytestmark = pytest.mark.filterwarnings(
    "ignore:the run of:RuntimeWarning",
    "ignore:forces or energy:RuntimeWarning",
    "ignore:the kinetic temp:RuntimeWarning",
)

SEED = 1


def sample(atoms, mapping, **settings):
    settings = {"progress": False, "seed": SEED, "thermal_response": True} | settings
    return sample_mean_force(atoms, mapping, **settings)


# --- the accumulator, by quadrature -----------------------------------------------------------------------------------


def quadrature(toys, kind):
    """Function T -> forces, virial and energy at the points of a quadrature (Q, 13), their weights (Q,)."""
    atoms, groups, bonds = toys.cradle(kind, replicas=1)
    bound = Mapping.from_groups(groups, "A", atoms, bonds=bonds).bind(atoms)
    share = toys.cradle_share(kind)
    x, weights = atoms.calc.points(bound.centres(atoms.positions), share, n=20)
    energy, forces = atoms.calc.terms(x)
    # three forces on sites, molecular virial as in Sampler's samples
    rows = np.empty((len(x), 16))
    for row, positions, f in zip(rows, x, forces, strict=True):
        row[:9] = bound.forces(f).ravel()
        row[9:15] = bound.molecular_virial(positions, f, positions.T @ f)[toys.VOIGT]
    rows[:, 15] = energy

    def at(temperature_K):
        boltzmann = weights * np.exp((energy.min() - energy) / (kB * temperature_K))
        return rows, boltzmann

    return at


@pytest.mark.parametrize("kind", ["group", "site"])
def test_derivatives_by_quadrature(toys, kind):
    """F', F'' and dW/dT of the accumulator against differences of averages at five temperatures."""
    at = quadrature(toys, kind)
    T, h = 600.0, 4.0
    rows, weights = at(T)
    table = BlockTable(16, 15, moments=True)
    # an energy far from 0, in an order that makes all blocks different
    for k in np.random.default_rng(0).permutation(len(rows)):
        table.add(rows[k], weights[k])

    def average(temperature_K):
        _, w = at(temperature_K)
        return w @ rows / w.sum()

    below2, below, here, above, above2 = (average(T + m * h) for m in (-2, -1, 0, 1, 2))
    np.testing.assert_allclose(table.mean, here, rtol=1e-12)
    first, second = response(table, kB * T)
    expected = (below2 - 8 * below + 8 * above - above2) / (12 * h)
    np.testing.assert_allclose(first, expected, rtol=1e-6, atol=1e-6 * np.abs(expected[:9]).max())
    expected = (-below2 + 16 * below - 30 * here + 16 * above - above2) / (12 * h**2)
    np.testing.assert_allclose(second, expected, rtol=1e-6, atol=1e-6 * np.abs(expected[:9]).max())


def test_series_of_the_errors_are_derivatives_of_the_response(rng):
    """The response of a run in which one block weighs a little more changes by that block's entry in the series."""
    y = rng.normal(size=(64, 5))
    y[:, 1] += y[:, 4] ** 2
    kT, more = 0.03, 1e-6
    table = BlockTable(5, 4, moments=True)
    for row in y:
        table.add(row)
    series = response_blocks(table, kT)
    base = response(table, kT)
    for block in (0, 17, 63):
        changed = BlockTable(5, 4, moments=True)
        for k, row in enumerate(y):
            changed.add(row, 1.0 + more * len(y) * (k == block))
        for old, new, entries in zip(base, response(changed, kT), series, strict=True):
            np.testing.assert_allclose((new - old) / more, entries[block], rtol=1e-3, atol=1e-3 * np.abs(entries).max())
    for entries in series:
        np.testing.assert_allclose(entries.mean(axis=0), 0, atol=1e-9 * np.abs(entries).max())


# --- runs with an exact answer ----------------------------------------------------------------------------------------


def test_ideal_internal_modes(toys):
    """Springs inside beads and springs between centres: the mean force is the direct force, without noise."""
    rng = np.random.default_rng(0)
    masses = np.array([1.0, 16.0, 3.0, 7.0, 2.0, 12.0])
    atoms = Atoms("C6", rng.normal(size=(6, 3)), masses=masses, cell=[toys.CLUSTER_CELL] * 3)
    share = np.zeros((2, 6))
    for bead in range(2):
        mine = slice(3 * bead, 3 * bead + 3)
        share[bead, mine] = masses[mine] / masses[mine].sum()
    between = np.kron(share.T @ np.array([[1.0, -1.0], [-1.0, 1.0]]) @ share, np.diag([1.0, 2.0, 3.0]))
    inside = np.zeros((6, 6))
    for i, j in ((0, 1), (1, 2), (3, 4), (4, 5)):
        inside[[i, j], [i, j]] += 2.0
        inside[[i, j], [j, i]] -= 2.0
    atoms.calc = toys.Springs(between + np.kron(inside, np.eye(3)), np.zeros((6, 3)))
    mapping = Mapping.from_atoms_per_bead(atoms, 3, "A")
    result = sample(atoms, mapping, temperature_K=300.0, timestep_fs=1.0, time_ps=1.0)
    direct = -(share @ atoms.positions)[0] + (share @ atoms.positions)[1]
    direct *= [1.0, 2.0, 3.0]
    np.testing.assert_allclose(result.forces, [direct, -direct], atol=1e-9)
    # rounding of the sums is all that is left
    assert np.abs(result.force_errors).max() < 1e-9
    assert np.abs(result.forces_dT).max() < 1e-10
    virial = np.outer((share @ atoms.positions)[0] - (share @ atoms.positions)[1], direct)
    np.testing.assert_allclose(result.virial, 0.5 * (virial + virial.T), atol=1e-9)
    assert np.abs(result.virial_dT).max() < 1e-10
    # while the inner modes do move
    assert result.kinetic_temperature_K > 200


def test_harmonic_forces_do_not_depend_on_temperature(toys):
    """Fluctuating forces without response: F' = F'' = dW/dT = 0."""
    atoms, _ = toys.chain(replicas=2, beads=2)
    mapping = Mapping.from_atoms_per_bead(atoms, 4, "A")
    result = sample(atoms, mapping, temperature_K=400.0, timestep_fs=3.0, friction_per_fs=0.05, time_ps=36.0)
    toys.check(result.forces_dT, 0.0, result.forces_dT_errors)
    toys.check(result.forces_dT2, 0.0, result.forces_dT2_errors)
    toys.check(result.virial_dT, 0.0, result.virial_dT_error)
    assert result.force_error > 0


def test_molecules_without_a_site(toys):
    """Atoms in harmonic wells of their own, ``<x f> = -kT``: each adds kT to the virial, which then is that of the
    only site, zero at any temperature."""
    wells = np.kron(np.diag([1.0, 2.0, 4.0, 2.0, 1.0]), np.eye(3))
    atoms = Atoms("He5", np.zeros((5, 3)), masses=[4.0, 4.0, 9.0, 4.0, 7.0], cell=[toys.CLUSTER_CELL] * 3)
    atoms.calc = toys.Springs(wells, atoms.positions.copy())
    mapping = Mapping.from_sites(atoms, [0], bonds=np.zeros((0, 2), int))
    assert mapping.bind(atoms).n_implicit == 4
    result = sample(atoms, mapping, temperature_K=400.0, timestep_fs=3.0, friction_per_fs=0.05, time_ps=36.0)
    for value, error, size in (
        (result.virial, result.virial_error, 4 * kB * 400.0),
        (result.virial_atomic, result.virial_atomic_error, 4 * kB * 400.0),
        (result.virial_dT, result.virial_dT_error, 4 * kB),
    ):
        toys.check(value, 0.0, error)
        assert error.max() < 0.15 * size


def test_anharmonic_forces(toys):
    atoms, groups, bonds = toys.cradle("group", replicas=1)
    mapping = Mapping.from_groups(groups, ["bead", "P", "Q"], atoms, bonds=bonds)
    bound = mapping.bind(atoms)
    T, h = 600.0, 10.0
    below, here, above = (toys.cradle_average(atoms, bound, "group", kB * t) for t in (T - h, T, T + h))
    result = sample(atoms, mapping, temperature_K=T, timestep_fs=4.0, friction_per_fs=0.02, time_ps=60.0)
    slope, bend = (
        (above["forces"] - below["forces"]) / (2 * h),
        (above["forces"] - 2 * here["forces"] + below["forces"]) / h**2,
    )
    toys.check(result.forces_dT, slope, result.forces_dT_errors)
    toys.check(result.forces_dT2, bend, result.forces_dT2_errors)
    toys.check(result.virial_dT, (above["virial"] - below["virial"]) / (2 * h), result.virial_dT_error)
    # there is something to see
    assert np.abs(result.forces_dT / result.forces_dT_errors).max() > 8
    assert np.abs(result.virial_dT / result.virial_dT_error).max() > 8
    # forces sum to zero, and so do their derivatives
    assert np.abs(result.forces_dT.sum(axis=0)).max() < 1e-12
    assert np.abs(result.forces_dT2.sum(axis=0)).max() < 1e-12


# --- a liquid ---------------------------------------------------------------------------------------------------------


def compare_with_difference(toys, seed, time_ps):
    """Pulls of F' (72,) and dW/dT (6,) from covariances against runs at 400 and 600 K with the same held beads."""
    T, h = 500.0, 100.0
    atoms = toys.dimer_liquid(seed=seed)
    mapping = Mapping.from_atoms_per_bead(atoms, 2, "D")
    settings = {"timestep_fs": 8.0, "equilibration_ps": 2.0}
    here = sample(atoms, mapping, temperature_K=T, time_ps=time_ps, seed=10 * seed, **settings)
    above, below = (
        sample(
            atoms, mapping, temperature_K=T + s * h, time_ps=0.6 * time_ps, seed=10 * seed + 5 + s,
            thermal_response=False, **settings,
        )
        for s in (1, -1)
    )  # fmt: skip
    pulls = []
    for name, error, error_dT in (
        ("forces", "force_errors", "forces_dT_errors"),
        ("virial", "virial_error", "virial_dT_error"),
    ):
        difference = (getattr(above, name) - getattr(below, name)) / (2 * h)
        noise = np.hypot(getattr(above, error), getattr(below, error)) / (2 * h)
        value, own = getattr(here, f"{name}_dT"), getattr(here, error_dT)
        # there is a response to compare
        assert ((value / own) ** 2).mean() > 2.5
        pulls.append((value - difference) / np.hypot(own, noise))
    assert np.abs(here.forces_dT.sum(axis=0)).max() < 1e-12
    return pulls[0].ravel(), pulls[1][np.triu_indices(3)]


def compare_many(toys, count, time_ps):
    pulls = [compare_with_difference(toys, SEED + k, time_ps) for k in range(count)]
    return np.concatenate([p[0] for p in pulls]), np.concatenate([p[1] for p in pulls])


def test_response_of_a_liquid(toys):
    forces, virials = compare_many(toys, 3, 40.0)
    assert np.abs(forces).max() < 4.5
    assert np.abs(virials).max() < 4
    # so few runs leave some uncertainty
    assert 0.65 < (forces**2).mean() < 1.35


@pytest.mark.slow
def test_response_of_a_liquid_in_many_runs(toys):
    forces, virials = compare_many(toys, 12, 60.0)
    assert np.abs(forces).max() < 4.5
    assert np.abs(virials).max() < 4.5
    assert 0.8 < (forces**2).mean() < 1.2
    assert 0.6 < (virials**2).mean() < 1.5
