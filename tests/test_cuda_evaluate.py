"""The CUDA kernels against the CPU: in the simulator, or on the device where there is one."""

import dataclasses

import numpy as np
import pytest
from ase.calculators.calculator import CalculationFailed
from ase_nepcg_cuda import CudaEvaluator
from ase_nepcg_cuda.nep import parts
from cuda_systems import TOLERANCES, geometry_of, liquid, together

from ase_nepcg import NEP, testing
from ase_nepcg.potential.evaluate import EvaluationError, Geometry, evaluate

# a device divides by zero and overflows in silence; what comes of it is looked for afterwards
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

SMALL = ("dimer", "dimer_below_A", "single_site", "thin", "primitive", "slab", "wire", "cluster", "outside_cell")
FIELDS = ("energies", "forces", "virial", "virials", "descriptors")


def temperature_of(model):
    return {"temperature_K": 300.0} if model.temperature else {}


def largest_difference(result, expected):
    """Of all fields, each in units of its largest number, or of 1."""
    differences = []
    for field in FIELDS:
        numbers = getattr(expected, field)
        differences.append(np.abs(getattr(result, field) - numbers).max() / max(np.abs(numbers).max(), 1.0))
    return max(differences)


@pytest.mark.parametrize("name", SMALL)
def test_every_kind_of_structure_is_as_on_the_cpu(models, name):
    model = models["zbl"]
    geometry = geometry_of(testing.structures(["O", "H"])[name], model)
    expected = evaluate(model, geometry, virials=True, descriptors=True)
    for precision, tolerance in TOLERANCES.items():
        result = CudaEvaluator(model, precision=precision)(geometry, virials=True, descriptors=True)
        assert largest_difference(result, expected) < tolerance


@pytest.mark.parametrize("name", ["plain", "nep3", "nep5", "single", "full"])
@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_every_kind_of_model_is_as_on_the_cpu(models, name, precision):
    model = models[name]
    geometry = liquid(8, 0.05, seed=1, n_types=model.n_types)
    expected = evaluate(model, geometry, virials=True, descriptors=True, **temperature_of(model))
    evaluator = CudaEvaluator(model, precision=precision, **temperature_of(model))
    assert largest_difference(evaluator(geometry, virials=True, descriptors=True), expected) < TOLERANCES[precision]


@pytest.mark.parametrize("name", ["zbl", "full"])
def test_both_mappings_give_the_same_bits(models, name):
    model = models[name]
    geometry = liquid(8, 0.05, seed=2, n_types=2)
    lanes = 1, parts(CudaEvaluator(model, **temperature_of(model)).shape)
    results = [CudaEvaluator(model, lanes=k, **temperature_of(model))(geometry, virials=True) for k in lanes]
    for field in FIELDS[:4]:
        np.testing.assert_array_equal(getattr(results[0], field), getattr(results[1], field))


def test_the_total_virial_does_not_depend_on_how_it_was_summed(models):
    geometry = liquid(10, 0.05, seed=3)
    evaluator = CudaEvaluator(models["single"], precision="double")
    total, of_sites = evaluator(geometry).virial, evaluator(geometry, virials=True)
    np.testing.assert_allclose(total, of_sites.virial, atol=1e-12)
    np.testing.assert_allclose(total, of_sites.virials.sum(axis=0), atol=1e-12)


def test_replicas_are_what_they_are_alone(models):
    model = models["plain"]
    systems = [liquid(n, density, seed=n, n_types=2) for n, density in ((5, 0.04), (7, 0.06), (1, 0.02))]
    evaluator = CudaEvaluator(model, precision="double")
    result = evaluator(together(systems))
    expected = [evaluate(model, one) for one in systems]
    np.testing.assert_allclose(result.energies, np.concatenate([one.energies for one in expected]), atol=1e-12)
    np.testing.assert_allclose(result.forces, np.concatenate([one.forces for one in expected]), atol=1e-12)
    np.testing.assert_allclose(result.virial, sum(one.virial for one in expected), atol=1e-12)


def test_the_list_is_kept_while_nothing_moves_far_and_has_no_memory(models):
    rng = np.random.default_rng(4)
    model, geometry = models["single"], liquid(6, 0.04, seed=4)
    evaluator = CudaEvaluator(model)
    evaluator(geometry)
    for size, builds in ((0.1, 1), (0.1, 1), (0.9, 2)):
        moved = dataclasses.replace(geometry, positions=geometry.positions + size * rng.uniform(-0.5, 0.5, (6, 3)))
        old, fresh = evaluator(moved, virials=True), CudaEvaluator(model)(moved, virials=True)
        assert evaluator.builds == builds
        for field in FIELDS[:4]:
            np.testing.assert_array_equal(getattr(old, field), getattr(fresh, field))
    larger = dataclasses.replace(geometry, cell=1.01 * geometry.cell)
    np.testing.assert_allclose(evaluator(larger).forces, evaluate(model, larger).forces, atol=1e-5)


def test_memory_grows_with_the_neighbours(models):
    # more neighbours than there is room for at first, then more of them
    model = models["single"]
    evaluator = CudaEvaluator(model)
    evaluator(liquid(8, 0.01, seed=5))
    before = evaluator.near_slots
    dense = liquid(8, 0.12, seed=6, closest=0.9)
    result, expected = evaluator(dense), evaluate(model, dense)
    assert evaluator.near_slots > max(before, 32)
    scale = np.abs(expected.forces).max()
    assert np.abs(result.forces - expected.forces).max() < 1e-5 * max(scale, 1.0)


def test_small_differences_of_large_coordinates_are_exact(models):
    # float32 coordinates of 4000 Å would be good to 2e-4 Å; fixed-point places to 1e-6 Å
    near = Geometry(
        np.array([[1.0, 2.0, 3.0], [3.1, 2.2, 2.5]]), np.eye(3) * 4000.0, np.ones(3, bool), np.zeros(2, int)
    )
    far = dataclasses.replace(near, positions=near.positions + 3990.0)
    for geometry in (near, far):
        error = CudaEvaluator(models["single"])(geometry).forces - evaluate(models["single"], near).forces
        assert np.abs(error).max() < 2e-6


@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_two_sites_at_one_place(models, precision):
    geometry = liquid(6, 0.03, seed=7)
    positions = geometry.positions.copy()
    positions[4] = positions[1] + geometry.cell[2]
    with pytest.raises(EvaluationError, match="sites 1 and 4 are at the same place"):
        CudaEvaluator(models["single"], precision=precision)(dataclasses.replace(geometry, positions=positions))


def test_a_site_at_the_place_of_its_image(models):
    geometry = Geometry(np.zeros((1, 3)), np.diag([1e-7, 9.0, 9.0]), np.ones(3, bool), np.zeros(1, int))
    with pytest.raises((EvaluationError, ValueError), match=r"is so small|own image"):
        CudaEvaluator(models["single"])(geometry)


def test_infinite_forces_are_reported(models):
    # a repulsion beyond the range of single precision
    model = dataclasses.replace(models["single"], w1=np.full_like(models["single"].w1, 1e38))
    with pytest.raises(EvaluationError, match="energy or force of site 0 is not finite"):
        CudaEvaluator(model)(liquid(6, 0.05, seed=8))


def test_the_calculator_computes_where_it_is_told(models):
    atoms = testing.structures(["O", "H"])["cluster_in_cell"]
    expected, results = {}, {}
    for device, target in (("cpu", expected), ("cuda", results)):
        atoms.calc = NEP(models["plain"], device=device)
        assert atoms.calc.device == device
        for name in ("energy", "forces", "stress", "stresses", "virials", "descriptors", "heat_current"):
            target[name] = np.array(atoms.calc.get_property(name, atoms))
    for name, value in expected.items():
        np.testing.assert_allclose(results[name], value, atol=1e-5, err_msg=name)
    calc = NEP(models["plain"], device="cuda", precision="double")
    np.testing.assert_allclose(calc.get_property("forces", atoms), expected["forces"], atol=1e-11)
    atoms.positions[1] = atoms.positions[0]
    with pytest.raises(CalculationFailed, match="sites 0 and 1 are at the same place"):
        calc.get_property("energy", atoms)


@pytest.mark.parametrize(("positions", "message"), [(np.zeros((0, 3)), "no sites")])
def test_nothing_to_evaluate(models, positions, message):
    with pytest.raises(EvaluationError, match=message):
        CudaEvaluator(models["single"])(Geometry(positions, np.eye(3), np.zeros(3, bool), np.zeros(0, int)))


def test_types_and_temperature_that_the_model_does_not_have(models):
    with pytest.raises(ValueError, match="types: expected numbers from 0 to 0, got 0 to 1"):
        CudaEvaluator(models["single"])(liquid(4, 0.01, seed=9, n_types=2))
    with pytest.raises(ValueError, match="temperature_K is required"):
        CudaEvaluator(models["full"])
    with pytest.raises(ValueError, match="must not be given"):
        CudaEvaluator(models["single"], temperature_K=300.0)
    with pytest.raises(ValueError, match="precision: expected one of mixed, double, got 'half'"):
        CudaEvaluator(models["single"], precision="half")
