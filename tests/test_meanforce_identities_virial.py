"""Identities between averages of liquids and crystals: two virial estimators, two ensembles, the all-atom pressure.

Liquids are in ``toys.py``; the water models of ``shared/data`` are used where they are. All seeds are fixed.
"""

from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixBondLengths
from ase.units import kB

from ase_nepcg import NEP, Mapping, sample_mean_force
from ase_nepcg.meanforce.core import collect
from ase_nepcg.meanforce.sampler import Sampler, Settings

MODELS = Path(__file__).resolve().parents[2] / "shared" / "data" / "models"
SMALL, LARGE = "water_OH_small_nep4.txt", "water_OH_nep4.txt"
SEED = 1


def run(atoms, mapping, temperature_K, time_ps, **settings):
    """A sampler that has run."""
    settings = {"seed": SEED, "equilibration_ps": 0.5} | settings
    sampler = Sampler(atoms, mapping, Settings(temperature_K, **settings))
    sampler.run(time_ps=time_ps, progress=False)
    return sampler


def check_estimators(toys, sampler, slack=0.0, precision=6):
    """``<W_mol> - <W> = (N - n - n_implicit) kT 1``, in all six components and, more precisely, in the trace.

    The errors are those of the difference itself, since its two parts are correlated. ``slack``: of the right side, for
    the error of the kinetic temperature that a time step makes at constant energy.
    """
    bound, table, k = sampler.bound, sampler.held.table, 3 * sampler.bound.n_sites
    kT = kB * collect(sampler).temperature_K
    check_difference(
        toys,
        table.blocks[:, k : k + 6] - table.blocks[:, k + 6 : k + 12],
        (bound.n_atoms - bound.n_sites - bound.n_implicit) * kT,
        slack,
        precision,
    )


def check_difference(toys, series, ideal, slack=0.0, precision=6):
    """The average of ``series`` (S, 6), W_mol - W, is ``ideal`` on the diagonal and 0 elsewhere."""
    difference, error = series.mean(axis=0), toys.batch_error(series)
    toys.check(difference, ideal * np.array([1, 1, 1, 0, 0, 0]), error + slack * ideal / 6, sigma=6, high=2)
    trace = series[:, :3].mean(axis=1, keepdims=True)
    error = toys.batch_error(trace)[0]
    assert abs(trace.mean() - ideal) < 6 * error + slack * ideal
    # a missing or doubled term would be noticed
    assert error < ideal / precision


# --- flexible water ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def water(toys):
    """Function: model, molecules along a side -> liquid water of 1.0 g/cm^3 at 300 K with that model, equilibrated."""
    boxes = {}

    def make(name, side=3):
        if not (MODELS / name).exists():
            pytest.skip(f"needs {MODELS / name}")
        if (name, side) not in boxes:
            atoms = toys.rigid_water(side, 3.105)
            atoms.set_constraint()
            atoms.calc = NEP(MODELS / name, threads=1)
            toys.relax(atoms)
            # one atom held: a run of the free liquid
            one = Mapping.from_sites(atoms, [0])
            for temperature_K in (500.0, 300.0):
                atoms.positions = run(atoms, one, temperature_K, 0.8, friction_per_fs=0.02).held.x
            boxes[name, side] = atoms
        return boxes[name, side]

    return make


def water_mapping(atoms, kind):
    molecules = Mapping.from_molecules(atoms, "WAT")
    oxygens = np.arange(0, len(atoms), 3)
    return {
        "groups": lambda: molecules,
        "sites": lambda: Mapping.from_sites(atoms, oxygens, "WAT"),
        "hydrogens": lambda: Mapping.from_sites(atoms, oxygens + 1, "WAT"),
        "mixed": lambda: molecules.with_atomistic(np.arange(30)),
        "implicit": lambda: Mapping.from_groups(molecules.groups[:10], "WAT", atoms),
    }[kind]()


@pytest.mark.parametrize(
    ("model", "kind"),
    [(SMALL, kind) for kind in ("groups", "sites", "hydrogens", "mixed", "implicit")]
    + [(LARGE, kind) for kind in ("groups", "sites", "mixed")],
)
def test_water_has_one_virial(toys, water, model, kind):
    atoms = water(model)
    mapping = water_mapping(atoms, kind)
    sampler = run(atoms, mapping, 300.0, 1.0, timestep_fs=0.25, friction_per_fs=0.05, equilibration_ps=0.2)
    assert sampler.bound.n_implicit == (17 if kind == "implicit" else 0)
    check_estimators(toys, sampler)
    if kind != "implicit":
        assert np.abs(collect(sampler).forces.sum(axis=0)).max() < 1e-9


def test_runs_with_two_models_do_not_mix(water):
    """Models of different shapes have kernels of their own, in one process as in two."""
    runs = {}
    for name in (SMALL, LARGE, SMALL, LARGE):
        atoms = water(name)
        mapping = Mapping.from_molecules(atoms, "WAT")
        held = run(atoms, mapping, 300.0, 0.01, timestep_fs=0.5, equilibration_ps=0.01).held
        energy = atoms.copy()
        energy.calc = atoms.calc
        energy.positions = held.x
        assert held.y[-2] + held.reference == pytest.approx(energy.get_potential_energy(), abs=1e-6)
        assert np.array_equal(runs.setdefault(name, held.x), held.x)
    assert not np.array_equal(runs[SMALL], runs[LARGE])


def test_ensembles_agree_for_water(toys, water):
    """Within the errors of so short runs; more precisely for dimers, below."""
    atoms = water(SMALL)
    mapping = Mapping.from_molecules(atoms, "WAT")
    settings = {"friction_per_fs": 0.02, "equilibration_ps": 1.0}
    nvt, nve = (collect(run(atoms, mapping, 300.0, 3.0, ensemble=e, **settings)) for e in ("nvt", "nve"))
    assert abs(nve.temperature_K - 300.0) < 35
    toys.check(nvt.forces, nve.forces, np.hypot(nvt.force_errors, nve.force_errors), sigma=5, high=1.5)
    toys.check(nvt.virial, nve.virial, np.hypot(nvt.virial_error, nve.virial_error), sigma=8, high=2.5)


def check_pressure(toys, atoms, mapping, temperature_K, timestep_fs, friction_per_fs, steps):
    """``N kT + tr W / 3 = n kT + tr W_mol / 3`` on average over the same frames of a run in which no site is held."""
    bound, series = mapping.bind(atoms), []
    for step, _ in enumerate(toys.langevin(atoms, temperature_K, timestep_fs, friction_per_fs, steps, seed=SEED)):
        if step >= steps // 6 and step % 2 == 0:
            virial = -atoms.get_volume() * atoms.get_stress(voigt=False, apply_constraint=False)
            whole = bound.whole(atoms.positions, atoms.cell.array, atoms.pbc)
            molecular = bound.molecular_virial(whole, atoms.get_forces(apply_constraint=False), virial)
            series.append((molecular - virial)[toys.VOIGT])
    check_difference(toys, np.array(series), (len(atoms) - len(mapping)) * kB * temperature_K)


def test_all_atom_pressure_of_water(toys, water):
    atoms = water(SMALL).copy()
    atoms.calc = water(SMALL).calc
    check_pressure(toys, atoms, Mapping.from_molecules(atoms, "WAT"), 300.0, 0.25, 0.05, steps=4000)


@pytest.mark.slow
def test_errors_of_water_are_true(water):
    """64 molecules, 20 ps: small errors that agree with the differences between independent runs."""
    atoms = water(SMALL, side=4)
    mapping = Mapping.from_molecules(atoms, "WAT")
    results = [
        sample_mean_force(
            atoms, mapping, temperature_K=300.0, time_ps=20.0, equilibration_ps=3.0, seed=SEED + k, progress=False
        )
        for k in range(4)
    ]
    for result in results:
        assert result.force_error <= 0.012
        assert result.reliable
        assert result.virial_pull < 3.5
    for a in range(4):
        for b in range(a):
            pulls = (results[a].forces - results[b].forces) / np.hypot(results[a].force_errors, results[b].force_errors)
            assert 0.75 < np.sqrt((pulls**2).mean()) < 1.3


# --- dimers -----------------------------------------------------------------------------------------------------------


def dimers(toys, k=0):
    atoms = toys.dimer_liquid(seed=SEED + k)
    return atoms, Mapping.from_atoms_per_bead(atoms, 2, "D")


def test_all_atom_pressure_of_dimers(toys):
    check_pressure(toys, *dimers(toys), 500.0, 8.0, 0.01, steps=6000)


def compare_ensembles(toys, count, time_ps):
    """Mean forces, virials and virial estimators of ``count`` liquids in both ensembles.

    Returns the ratio of the variances of the energy, at constant energy to constant temperature, and what it should
    be: ``C_kin / C_V``, with ``C_V = C_kin + Var(U) / kT^2``.
    """
    small, large, expected = [], [], []
    for k in range(count):
        atoms, mapping = dimers(toys, k)
        settings = {"timestep_fs": 5.0, "friction_per_fs": 0.02, "equilibration_ps": 5.0}
        nvt, nve = (run(atoms, mapping, 500.0, time_ps, ensemble=e, **settings) for e in ("nvt", "nve"))
        check_estimators(toys, nvt)
        check_estimators(toys, nve, slack=0.015)
        a, b = collect(nvt), collect(nve)
        assert a.virial_pull < 3
        toys.check(a.forces, b.forces, np.hypot(a.force_errors, b.force_errors))
        toys.check(a.virial, b.virial, np.hypot(a.virial_error, b.virial_error))
        nvt, nve = nvt.held.table.variance, nve.held.table.variance
        kinetic = 1.5 * (len(atoms) - len(mapping))
        # at constant energy one part has what the other lacks; at constant temperature the kinetic part is ideal
        assert nve[-1] == pytest.approx(nve[-2], rel=0.05)
        assert nvt[-1] == pytest.approx(kinetic * (kB * 500.0) ** 2, rel=0.3)
        small.append(nve[-2])
        large.append(nvt[-2])
        expected.append(kinetic / (kinetic + nvt[-2] / (kB * 500.0) ** 2))
    return np.mean(small) / np.mean(large), np.mean(expected)


def test_ensembles_agree_for_dimers(toys):
    ratio, expected = compare_ensembles(toys, 2, 40.0)
    assert ratio == pytest.approx(expected, rel=0.2)
    assert expected < 0.7


@pytest.mark.slow
def test_ensembles_agree_for_many_dimers(toys):
    ratio, expected = compare_ensembles(toys, 12, 80.0)
    assert ratio == pytest.approx(expected, rel=0.06)


# --- gold -------------------------------------------------------------------------------------------------------------


def gold(side=2):
    """Strained gold with four atoms per bead, the beads displaced at random."""
    rng = np.random.default_rng(SEED)
    atoms = bulk("Au", cubic=True, a=4.1) * (side, side, side)
    strain = np.array([[0.01, 0.02, 0.0], [0.0, -0.01, 0.01], [0.0, 0.0, 0.0]])
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    atoms.positions += np.repeat(rng.normal(size=(side**3, 3)) * 0.1, 4, axis=0)
    atoms.calc = EMT()
    return atoms, Mapping.from_atoms_per_bead(atoms, 4, "Au4")


def test_gold_has_one_virial(toys):
    atoms, mapping = gold()
    sampler = run(atoms, mapping, 600.0, 9.6, timestep_fs=12.0, friction_per_fs=0.004, equilibration_ps=1.2)
    check_estimators(toys, sampler, precision=4)
    assert np.abs(collect(sampler).forces.sum(axis=0)).max() < 1e-9


@pytest.mark.slow
def test_gold_has_one_virial_in_a_long_run(toys):
    atoms, mapping = gold()
    sampler = run(atoms, mapping, 600.0, 96.0, timestep_fs=12.0, friction_per_fs=0.004, equilibration_ps=2.4)
    check_estimators(toys, sampler, precision=12)


# --- rigid water ------------------------------------------------------------------------------------------------------


def test_rigid_water_has_one_pressure(toys):
    """Trace of the atomic estimator with the forces of the bonds: ``tr (W + W_bonds) + n_dof kT = tr W_mol``."""
    atoms = toys.rigid_water(3)
    mapping = Mapping.from_molecules(atoms, "WAT")
    (bonds,) = atoms.constraints
    sampler = Sampler(atoms, mapping, Settings(400.0, 2.0, friction_per_fs=0.02, equilibration_ps=0.4, seed=SEED))
    work, series, kinetic = atoms.copy(), [], []
    bound, held = sampler.bound, sampler.held
    assert sampler.n_dof == 3 * len(mapping)
    for k in range(1, 101):
        sampler.run(time_ps=0.02 * k, progress=False)
        work.positions = held.x
        virial = held.virial.reshape(3, 3)
        molecular = bound.molecular_virial(held.x, held.f, virial)
        # rigid molecules stay what they are, centres stay where they are
        inner = bonds.constraint_forces(work, held.v, held.f)
        total = virial + held.x.T @ inner
        series.append(np.trace(molecular) - np.trace(total))
        kinetic.append(2 * held.kinetic_energy())
    result = collect(sampler)
    assert result.virial_atomic is None
    ideal = sampler.n_dof * kB * 400.0
    series = np.array(series)[:, None]
    error = toys.batch_error(series)[0]
    assert abs(series.mean() - ideal) < 6 * error
    assert error < ideal / 15
    # in every frame: the inner forces hold the molecules together against their rotation
    np.testing.assert_allclose(series[:, 0], kinetic, rtol=1e-6)
    assert abs(result.kinetic_temperature_K - 400.0) < 4 * result.kinetic_temperature_error_K
    assert result.kinetic_temperature_error_K < 20
    lengths = [
        np.linalg.norm(a.positions[bonds.pairs[:, 0]] - a.positions[bonds.pairs[:, 1]], axis=1) for a in (atoms, work)
    ]
    np.testing.assert_allclose(*lengths, atol=1e-9)
    np.testing.assert_allclose(bound.centres(held.x), bound.centres(sampler._start), atol=1e-9)
    assert np.abs(result.forces.sum(axis=0)).max() < 1e-9


def test_rigid_water_with_bonds_of_ase(toys):
    """The compiled rigid bonds of these tests do what ASE's do."""
    atoms = toys.rigid_water(2, n=3)
    mapping = Mapping.from_molecules(atoms, "WAT")
    results = []
    for constraint in (atoms.constraints[0], FixBondLengths(atoms.constraints[0].pairs.copy(), tolerance=1e-11)):
        atoms.set_constraint(constraint)
        sampler = run(atoms, mapping, 400.0, 0.016, timestep_fs=2.0, equilibration_ps=0.0)
        results.append(sampler.held.x.copy())
    np.testing.assert_allclose(*results, atol=1e-8)
    assert np.abs(results[0] - atoms.positions).max() > 0.03


def test_rigid_water_at_constant_energy(toys):
    atoms = toys.rigid_water(3)
    mapping = Mapping.from_molecules(atoms, "WAT")
    sampler = run(atoms, mapping, 400.0, 0.5, timestep_fs=1.0, ensemble="nve", friction_per_fs=0.02)
    held, total = sampler.held, []
    for k in range(1, 40):
        sampler.run(time_ps=0.5 + 0.01 * k, progress=False)
        total.append(held.kinetic_energy() + held.y[-2])
    assert np.std(total) < 0.02 * np.std(held.table.blocks[:, -2])
