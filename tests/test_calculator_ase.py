"""NEP among the tools of ASE: mixing, relaxation, reaction paths, dynamics, files."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import AverageCalculator, LinearCombinationCalculator, MixedCalculator, SumCalculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import FrechetCellFilter
from ase.io import Trajectory, read, write
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS, FIRE

from ase_nepcg import testing
from ase_nepcg.labels import get_labels

COMMON = ("energy", "free_energy", "energies", "forces", "stress", "stresses")


def lennard_jones():
    return LennardJones(sigma=1.8, epsilon=0.1, rc=5.0, smooth=True)


# ---- mixing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMON)
def test_sum_with_another_calculator(make_calculator, atoms, name):
    a, b = make_calculator(), lennard_jones()
    total = SumCalculator([a, b])
    expected = a.get_property(name, atoms) + b.get_property(name, atoms)
    assert np.allclose(total.get_property(name, atoms), expected, rtol=1e-14)


def test_linear_combination_follows_the_atoms(make_calculator, atoms, evaluations):
    a, b = make_calculator("plain"), make_calculator("nep5")
    atoms.calc = LinearCombinationCalculator([a, b], [0.25, -2.0])
    for seed in range(3):
        atoms.rattle(0.05, seed=seed)
        forces = atoms.get_forces()
        assert np.allclose(forces, 0.25 * a.get_property("forces", atoms) - 2 * b.get_property("forces", atoms))
    assert len(evaluations) == 6


def test_mixed_and_average(make_calculator, atoms):
    a, b = make_calculator("plain"), make_calculator("nep5")
    e, f = a.get_property("energy", atoms), b.get_property("energy", atoms)
    assert np.isclose(AverageCalculator([a, b]).get_property("energy", atoms), (e + f) / 2)
    mixed = MixedCalculator(a, b, 0.3, 0.7)
    assert np.isclose(mixed.get_property("energy", atoms), 0.3 * e + 0.7 * f)


def test_a_sum_passes_the_conformance_kit(make_calculator, structures):
    total = SumCalculator([make_calculator("zbl"), lennard_jones()])
    # ASE's sums keep contributions in their results, for which ASE's own export_properties has no name
    testing.check_calculator(total, structures["slab"], skip=("shapes",))


# ---- relaxation and paths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [BFGS, FIRE])
def test_relaxation_of_sites_and_cell(make_calculator, structures, optimizer):
    atoms = structures["thin"]
    atoms.calc = make_calculator("zbl")
    before = atoms.get_potential_energy()
    with optimizer(FrechetCellFilter(atoms), logfile=None) as run:
        assert run.run(fmax=0.02, steps=400)
    assert atoms.get_potential_energy() < before - 0.1
    # the filter's criterion is a little different: forces seen from the undeformed cell
    assert abs(atoms.get_forces()).max() < 0.05
    assert abs(atoms.get_stress()).max() * atoms.get_volume() < 0.1


def band(make_calculator, shared):
    calc = make_calculator()
    first = testing.structures(["O", "H"])["cluster"]
    last = first.copy()
    last.rattle(0.2, seed=4)
    images = [first, *(first.copy() for _ in range(3)), last]
    for image in images:
        image.calc = calc if shared else make_calculator()
    neb = NEB(images, allow_shared_calculator=shared, method="improvedtangent")
    neb.interpolate()
    return neb, images


def test_a_band_with_one_calculator_for_all_images(make_calculator, evaluations):
    neb, images = band(make_calculator, shared=True)
    shared = neb.get_forces()
    assert len(evaluations) <= 2 * len(images)
    other, _ = band(make_calculator, shared=False)
    assert np.array_equal(other.get_forces(), shared)
    with BFGS(neb, logfile=None) as run:
        run.run(steps=3, fmax=1e-9)
    assert not np.array_equal(neb.get_forces(), shared)


# ---- dynamics --------------------------------------------------------------------------------------------------------


def total_energies(atoms, timestep_fs, steps):
    energies = []
    with VelocityVerlet(atoms, timestep_fs * units.fs) as run:
        run.attach(lambda: energies.append(atoms.get_total_energy()))
        run.run(steps)
    return np.array(energies)


@pytest.mark.parametrize("model", ["plain", "zbl", "full"])
def test_dynamics_conserve_the_energy(make_calculator, atoms, model):
    rng = np.random.default_rng(2)
    atoms.set_velocities(rng.normal(size=(12, 3)) * np.sqrt(units.kB * 300 / atoms.get_masses())[:, None])
    deviations = []
    for timestep in (0.2, 0.1):
        copy = atoms.copy()
        copy.calc = make_calculator(model)
        energies = total_energies(copy, timestep, int(40 / timestep))
        # an error of a force or a jump at a cutoff would add up
        deviations.append(np.ptp(energies))
    assert abs(copy.positions - atoms.positions).max() > 0.1
    assert deviations[0] < 0.05 * atoms.get_kinetic_energy()
    # the error of the integrator falls with the square of the time step, that of a wrong force does not
    assert 3.0 < deviations[0] / deviations[1] < 5.5


def test_dynamics_evaluate_once_per_step(make_calculator, atoms, evaluations):
    atoms.calc = make_calculator()
    total_energies(atoms, 0.2, 10)
    assert len(evaluations) == 11


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["plain", "beads"])
def test_traj_gives_the_numbers_back_without_a_calculation(make_calculator, models, tmp_path, evaluations, model):
    atoms = testing.structures(models[model].species)["triclinic"]
    atoms.set_momenta(np.arange(36.0).reshape(12, 3))
    atoms.calc = calc = make_calculator(model)
    expected = {name: calc.get_property(name, atoms) for name in COMMON}
    count = len(evaluations)
    with Trajectory(tmp_path / "run.traj", "w") as trajectory:
        trajectory.write(atoms)
    again = read(tmp_path / "run.traj")
    assert isinstance(again.calc, SinglePointCalculator)
    assert again.calc.name == "nep"
    for name in COMMON:
        assert np.array_equal(again.calc.get_property(name, again), expected[name]), name
    assert np.array_equal(again.get_momenta(), atoms.get_momenta())
    assert np.array_equal(again.get_masses(), atoms.get_masses())
    assert len(evaluations) == count
    # and the calculator takes the frame as it is, labels included
    assert np.array_equal(get_labels(again), get_labels(atoms))
    again.calc = make_calculator(model)
    assert again.get_potential_energy() == expected["energy"]


def test_traj_written_by_dynamics_holds_the_forces_of_each_frame(make_calculator, atoms, tmp_path, evaluations):
    atoms.calc = make_calculator()
    with VelocityVerlet(atoms, 0.2 * units.fs, trajectory=tmp_path / "run.traj") as run:
        run.run(3)
    assert len(evaluations) == 4
    frames = read(tmp_path / "run.traj", ":")
    assert len(frames) == 4
    for frame in frames:
        assert np.array_equal(frame.get_forces(), make_calculator().get_property("forces", frame))


@pytest.mark.parametrize("name", ["frame.xyz", "frame.json"])
def test_other_files_hold_the_standard_results(make_calculator, atoms, tmp_path, name):
    atoms.calc = calc = make_calculator()
    atoms.get_stress()
    # what ASE has no name for must not disturb the writer
    calc.get_property("virials", atoms)
    calc.get_property("descriptors", atoms)
    write(tmp_path / name, atoms)
    again = read(tmp_path / name)
    assert np.isclose(again.get_potential_energy(), atoms.get_potential_energy(), rtol=1e-12)
    # extended XYZ has eight decimals
    assert np.allclose(again.get_forces(), atoms.get_forces(), atol=1e-7)
    assert np.allclose(again.get_stress(), atoms.get_stress(), atol=1e-8)


def test_atoms_can_be_attached_on_construction(models, make_calculator):
    atoms = Atoms("OH", [[0, 0, 0], [1, 0, 0]])
    calc = make_calculator(atoms=atoms)
    assert atoms.calc is calc
    assert atoms.get_potential_energy() == make_calculator().get_property("energy", atoms)
