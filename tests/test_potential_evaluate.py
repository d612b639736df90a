"""Energies, forces, virials and descriptors against plain numpy, published results and themselves."""

import itertools
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest

from ase_nepcg import NEPModel, reference, testing
from ase_nepcg.data import WATER_BEAD
from ase_nepcg.model import ZBL
from ase_nepcg.potential.evaluate import Evaluation, EvaluationError, Evaluator, Geometry, evaluate

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
FIELDS = ("energies", "forces", "virial", "virials", "descriptors")

# Shapes beside those of ``conftest.py``. All orders and functions that files may have, and next to nothing.
LARGE = {"n_max": (12, 8), "basis_size": (16, 12), "l_max": (8, 1, 1), "neurons": 61}
SMALL = {"n_max": (0, 0), "basis_size": (0, 0), "l_max": (2, 0, 0, 1), "neurons": 1}


def cloud(n_species, seed=0, n=14, spacing=2.3):
    """Disordered sites in a periodic triclinic cell, every other one moved by cell vectors."""
    rng = np.random.default_rng(seed)
    edge = int(np.ceil(n ** (1 / 3)))
    cell = spacing * edge * np.array([[1.0, 0, 0], [0.25, 0.95, 0], [-0.2, 0.15, 1.05]])
    grid = np.array(list(itertools.product(range(edge), repeat=3)))[:n] / edge
    positions = grid @ cell + rng.uniform(-0.18, 0.18, (n, 3)) * spacing
    positions[::2] += rng.integers(-2, 3, (len(positions[::2]), 3)) @ cell
    return Geometry(positions, cell, [True] * 3, rng.permutation(np.arange(n) % n_species))


def geometry_of(atoms, model):
    types = [model.species.index(symbol) for symbol in atoms.get_chemical_symbols()]
    return Geometry(atoms.positions, atoms.cell.array, atoms.pbc, types)


def compare(model, geometry, temperature_K=None, tolerance=1e-12):
    """Everything agrees with plain numpy; the error is measured against the largest number, at least 1."""
    found = evaluate(model, geometry, virials=True, descriptors=True, threads=1, temperature_K=temperature_K)
    g = geometry
    expected = reference.evaluate(model, g.positions, g.cell, g.pbc, g.types, temperature_K=temperature_K)
    for name in FIELDS:
        scale = max(1.0, np.abs(expected[name]).max())
        np.testing.assert_allclose(getattr(found, name), expected[name], rtol=0, atol=tolerance * scale, err_msg=name)
    assert found.energy == pytest.approx(expected["energy"], rel=1e-12, abs=1e-12)
    return found


def same_bits(a: Evaluation, b: Evaluation) -> bool:
    return all(
        (x is None and y is None) or x.tobytes() == y.tobytes()
        for x, y in ((getattr(a, name), getattr(b, name)) for name in FIELDS)
    )


# ---- against plain numpy


@pytest.mark.parametrize("name", testing.structures(["O", "H"]))
def test_named_structures_agree_with_plain_numpy(models, structures, name):
    model = models["plain"]
    compare(model, geometry_of(structures[name], model))


@pytest.mark.parametrize("name", ["triclinic", "thin", "slab", "cluster", "dimer"])
def test_all_terms_two_layers_and_temperature_agree_with_plain_numpy(models, structures, name):
    model = models["full"]
    geometry = geometry_of(structures[name], model)
    results = [compare(model, geometry, temperature_K=t) for t in (0.0, 300.0)]
    assert results[0].energy != results[1].energy


@pytest.mark.parametrize("name", ["nep3", "nep5", "single", "beads"])
def test_versions_and_numbers_of_types_agree_with_plain_numpy(models, name):
    model = models[name]
    compare(model, cloud(model.n_types))


@pytest.mark.parametrize("seed", range(3))
def test_largest_sizes_agree_with_plain_numpy(seed):
    model = NEPModel.random(["C"], seed=seed, **LARGE)
    compare(model, cloud(1, seed, n=8))


@pytest.mark.parametrize("species", [["A"], ["A", "B", "C"]])
@pytest.mark.parametrize("cutoff", [(6.0, 4.0), (3.0, 4.0)])
def test_smallest_sizes_agree_with_plain_numpy(species, cutoff):
    model = NEPModel.random(species, seed=3, cutoff=cutoff, **SMALL)
    compare(model, cloud(len(species)))


@pytest.mark.parametrize("version", [3, 4, 5])
@pytest.mark.parametrize(
    "cutoff",
    [
        {"O": (6.0, 4.0), "H": (5.0, 3.5), "C": (4.2, 4.1)},
        # angular cutoffs beyond the radial ones: for all pairs, for some
        {"O": (3.5, 4.0), "H": (3.0, 4.5), "C": (2.5, 5.0)},
        {"O": (6.0, 3.0), "H": (3.5, 5.0), "C": (5.0, 4.0)},
    ],
)
def test_cutoffs_per_type_agree_with_plain_numpy(version, cutoff):
    model = NEPModel.random(["O", "H", "C"], seed=version, version=version, cutoff=cutoff)
    compare(model, cloud(3))


@pytest.mark.parametrize("present", [(0,), (2,), (0, 3), (3, 1), (1, 2, 3)])
def test_species_may_be_missing_from_the_structure(present):
    cutoff = {"O": (6.0, 4.0), "H": (5.0, 3.5), "C": (4.2, 4.1), "N": (5.5, 3.0)}
    model = NEPModel.random(list(cutoff), seed=8, version=5, cutoff=cutoff)
    geometry = cloud(len(present))
    compare(model, replace(geometry, types=np.array(present)[geometry.types]))


FLEXIBLE = [[0.5 + 0.2 * k, 1.8 + 0.3 * k, 0.2, 3.0, 0.5, 0.9, 0.25, 0.4, 0.05, 0.2] for k in range(3)]


@pytest.mark.parametrize(
    "zbl",
    [
        ZBL(1.2, 2.4),
        ZBL(0.5, 3.9),
        # the outer radius lies beyond the angular cutoff: cut there
        ZBL(1.0, 4.9),
        ZBL(1.0, 2.5, factor=0.8),
        ZBL(0.0, 0.0, flexible=np.array(FLEXIBLE)),
    ],
    ids=["universal", "wide", "beyond the cutoff", "typewise", "flexible"],
)
def test_repulsion_agrees_with_plain_numpy(models, zbl):
    model = replace(models["zbl"], zbl=zbl)
    # near enough for the inner, the switching and the outer zone
    geometry = cloud(2, spacing=1.6)
    found = compare(model, geometry)
    without = evaluate(models["plain"], geometry)
    assert not np.allclose(found.forces, without.forces)


@pytest.mark.parametrize("typewise", [(2.5, 2.0, 0.0), (3.4, 1.7, 0.9), (0.0, 0.0, 0.9)])
@pytest.mark.parametrize("name", ["plain", "zbl"])
def test_elementwise_cutoffs_of_old_files_agree_with_plain_numpy(models, typewise, name):
    if name == "plain":
        typewise = (*typewise[:2], 0.0)
    compare(replace(models[name], typewise=typewise), cloud(2, spacing=1.7))


def test_many_chunks_agree_with_the_cell_they_repeat(models, atoms):
    model = models["plain"]
    one = geometry_of(atoms, model)
    expected = reference.evaluate(model, one.positions, one.cell, one.pbc, one.types)
    many = evaluate(model, geometry_of(atoms.repeat((4, 3, 3)), model), virials=True, threads=2)
    scale = np.abs(expected["virials"]).max()
    np.testing.assert_allclose(many.energies, np.tile(expected["energies"], 36), rtol=1e-12)
    np.testing.assert_allclose(many.forces, np.tile(expected["forces"], (36, 1)), rtol=0, atol=1e-12 * scale)
    np.testing.assert_allclose(many.virials, np.tile(expected["virials"], (36, 1, 1)), rtol=0, atol=1e-12 * scale)
    np.testing.assert_allclose(many.virial, 36 * expected["virial"], rtol=0, atol=36e-12 * scale)


def test_site_alone_has_the_energy_of_a_zero_descriptor(models):
    model = models["nep5"]
    geometry = Geometry(np.array([[0.0, 0, 0], [50.0, 0, 0]]), np.zeros((3, 3)), [False] * 3, [0, 1])
    found = evaluate(model, geometry, virials=True, descriptors=True)
    for a in (0, 1):
        expected = model.w1[a] @ np.tanh(-model.b0[a]) - model.type_bias[a] - model.bias
        assert found.energies[a] == pytest.approx(expected, abs=1e-14)
    for name in FIELDS[1:]:
        assert (getattr(found, name) == 0).all()


def test_counts_of_neighbours_in_the_file_are_of_no_importance(models):
    geometry = cloud(2)
    results = [
        evaluate(replace(models["plain"], max_neighbors=counts), geometry, virials=True, descriptors=True)
        for counts in ((1, 1), (500, 200), None)
    ]
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])


# ---- against itself


def strained(geometry, strain):
    return replace(geometry, positions=geometry.positions @ strain, cell=geometry.cell @ strain)


@pytest.mark.parametrize(("name", "spacing"), [("plain", 2.3), ("zbl", 1.7), ("full", 2.3)])
def test_forces_and_virial_are_derivatives_of_the_energy(models, name, spacing):
    model = models[name]
    evaluator = Evaluator(model, temperature_K=300.0 if model.temperature else None)
    geometry = cloud(2, spacing=spacing)
    found = evaluator(geometry, virials=True)
    h = 1e-4

    def slope(moved):
        e = [evaluator(moved(s)).energy for s in (-2 * h, -h, h, 2 * h)]
        return (e[0] - 8 * e[1] + 8 * e[2] - e[3]) / (12 * h)

    for i, c in itertools.product((0, 5, 9), range(3)):
        direction = np.zeros_like(geometry.positions)
        direction[i, c] = 1
        force = -slope(lambda s, d=direction: replace(geometry, positions=geometry.positions + s * d))
        assert found.forces[i, c] == pytest.approx(force, rel=1e-7, abs=2e-7)
    for a, b in itertools.product(range(3), repeat=2):
        shear = np.zeros((3, 3))
        shear[a, b] = 1
        virial = -slope(lambda s, d=shear: strained(geometry, np.eye(3) + s * d))
        assert found.virial[a, b] == pytest.approx(virial, rel=1e-6, abs=1e-5)
    np.testing.assert_allclose(found.virials.sum(0), found.virial, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.virial, found.virial.T, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.forces.sum(0), 0, atol=1e-10)


@pytest.mark.parametrize("name", ["plain", "full"])
def test_results_are_the_same_bits_for_any_number_of_threads(models, many, name):
    model = models[name]
    temperature = 300.0 if model.temperature else None
    geometry = geometry_of(many, model)
    results = [
        evaluate(model, geometry, virials=True, descriptors=True, threads=n, temperature_K=temperature)
        for n in (1, 2, 3, 3, None)
    ]
    assert all(same_bits(results[0], other) for other in results[1:])


def test_results_are_the_same_bits_for_any_number_of_threads_in_a_large_system(models):
    # so many sites that the sums over chunks are shared among threads as well; few neighbours, to be quick
    rng = np.random.default_rng(0)
    grid = np.array(list(itertools.product(range(28), repeat=3))) * 5.0
    n = len(grid)
    assert n > 20_000
    geometry = Geometry(grid + rng.uniform(-1, 1, (n, 3)), 140.0 * np.eye(3), [True] * 3, np.arange(n) % 2)
    results = [evaluate(models["plain"], geometry, virials=True, threads=threads) for threads in (1, 3)]
    assert same_bits(*results)
    assert np.abs(results[0].forces.sum(0)).max() < 1e-9


@pytest.mark.parametrize("name", ["plain", "zbl"])
def test_results_are_the_same_bits_for_old_and_new_neighbour_lists(models, many, name):
    model = models[name]
    start = geometry_of(many, model)
    rng = np.random.default_rng(1)
    evaluator = Evaluator(model, threads=2)
    evaluator(start)
    geometry = start
    for _ in range(4):
        geometry = replace(geometry, positions=geometry.positions + rng.uniform(-0.03, 0.03, start.positions.shape))
        geometry = strained(geometry, np.eye(3) + rng.uniform(-1e-3, 1e-3, (3, 3)))
        of_old = evaluator(geometry, virials=True, descriptors=True)
        assert same_bits(of_old, evaluate(model, geometry, virials=True, descriptors=True))
    assert evaluator.neighbors.builds == 1


def test_an_evaluator_may_be_used_for_one_system_after_the_other(models, structures):
    model = models["plain"]
    evaluator = Evaluator(model, threads=2)
    # in this order and back, so that buffers of all sizes are found from before
    geometries = [geometry_of(atoms, model) for atoms in structures.values()]
    geometries += [replace(g, types=1 - g.types) for g in geometries]
    for geometry in [*geometries, *geometries[::-1]]:
        found = evaluator(geometry, virials=True, descriptors=True)
        assert same_bits(found, evaluate(model, geometry, virials=True, descriptors=True))


def test_requests_do_not_change_the_other_results(models, many):
    geometry = geometry_of(many, models["plain"])
    evaluator = Evaluator(models["plain"])
    plain = evaluator(geometry)
    assert plain.virials is None
    assert plain.descriptors is None
    for virials, descriptors in itertools.product((False, True), repeat=2):
        found = evaluator(geometry, virials=virials, descriptors=descriptors)
        assert (found.virials is not None) is virials
        assert (found.descriptors is not None) is descriptors
        assert same_bits(plain, replace(found, virials=None, descriptors=None))


def test_results_and_geometry_belong_to_the_caller(models):
    evaluator = Evaluator(models["plain"])
    geometry = cloud(2)
    given = [getattr(geometry, name).copy() for name in ("positions", "cell", "pbc", "types")]
    first = evaluator(geometry, virials=True, descriptors=True)
    copies = [getattr(first, name).copy() for name in FIELDS]
    evaluator(replace(geometry, positions=geometry.positions * 1.001), virials=True, descriptors=True)
    for name, copy in zip(FIELDS, copies, strict=True):
        assert np.array_equal(getattr(first, name), copy)
        getattr(first, name)[...] = 7.0
    again = evaluator(geometry, virials=True, descriptors=True)
    assert all(np.array_equal(getattr(again, name), copy) for name, copy in zip(FIELDS, copies, strict=True))
    for name, value in zip(("positions", "cell", "pbc", "types"), given, strict=True):
        assert np.array_equal(getattr(geometry, name), value)


# ---- what has no result


def two_sites(**changes):
    settings = {"positions": [[0.0, 0, 0], [1, 2, 1.5]], "cell": np.zeros((3, 3)), "pbc": [False] * 3, "types": [0, 1]}
    return Geometry(**settings | changes)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_positions_and_cell_must_be_finite(bad):
    with pytest.raises(EvaluationError, match=r"positions must be finite, but row 1 is \[1.0, (nan|inf|-inf), 1.5\]"):
        two_sites(positions=[[0.0, 0, 0], [1, bad, 1.5]])
    with pytest.raises(EvaluationError, match="cell must be finite, but row 2 is"):
        two_sites(cell=[[5, 0, 0], [0, 5, 0], [0, bad, 5]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": [0.0, 1.0, 2.0]}, r"positions: expected shape \(N, 3\), got \(3,\)"),
        ({"positions": np.zeros((2, 2))}, r"positions: expected shape \(N, 3\), got \(2, 2\)"),
        ({"types": [0]}, r"types: expected shape \(2,\), got \(1,\)"),
        ({"cell": [1.0, 2, 3]}, r"expected cell \(3, 3\) and pbc \(3,\), got \(3,\) and \(3,\)"),
        ({"pbc": True}, r"expected cell \(3, 3\) and pbc \(3,\)"),
    ],
)
def test_shapes_of_the_geometry_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        two_sites(**changes)


@pytest.mark.parametrize("types", [[0, 2], [-1, 0]])
def test_types_must_be_those_of_the_model(models, types):
    with pytest.raises(ValueError, match=f"expected numbers from 0 to 1, got {min(types)} to {max(types)}"):
        evaluate(models["plain"], two_sites(types=types))


def test_an_empty_geometry_is_refused(models):
    with pytest.raises(EvaluationError, match="no sites"):
        evaluate(models["plain"], two_sites(positions=np.zeros((0, 3)), types=[]))


def test_dependent_cell_vectors_are_refused(models):
    with pytest.raises(ValueError, match="linearly independent"):
        evaluate(models["plain"], two_sites(pbc=[True] * 3, cell=[[5, 0, 0], [0, 5, 0], [5, 5, 0]]))


@pytest.mark.parametrize("distance", [0.0, 1e-8])
def test_sites_at_the_same_place_are_named(models, distance):
    geometry = cloud(2, n=27)
    positions = geometry.positions.copy()
    # an image of it, to be precise
    positions[21] = positions[4] + geometry.cell[0] - geometry.cell[2] + [0, distance, 0]
    evaluator = Evaluator(models["plain"], threads=2)
    for _ in range(2):
        with pytest.raises(EvaluationError, match="sites 4 and 21 are at the same place"):
            evaluator(replace(geometry, positions=positions))
    # usable afterwards
    assert same_bits(evaluator(geometry), evaluate(models["plain"], geometry))


def test_sites_that_come_together_while_the_list_is_reused_are_named(models):
    evaluator = Evaluator(models["plain"])
    positions = np.array([[0.0, 0, 0], [3, 0, 0], [3.2, 0, 0]])
    geometry = two_sites(positions=positions, types=[0, 1, 0])
    evaluator(geometry)
    positions[2, 0] = 3.0
    with pytest.raises(EvaluationError, match="sites 1 and 2 are at the same place"):
        evaluator(replace(geometry, positions=positions))
    assert evaluator.neighbors.builds == 1


def test_own_image_is_named(models, structures):
    evaluator = Evaluator(models["plain"])
    evaluator(geometry_of(structures["primitive"], models["plain"]))
    with pytest.raises(EvaluationError, match="site 0 is at the place of its own image"):
        evaluator._report_overlap(1, 0)


def test_near_sites_are_no_error_as_long_as_numbers_are_finite(models):
    found = evaluate(models["zbl"], two_sites(positions=[[0.0, 0, 0], [1e-3, 0, 0]]))
    assert found.energy > 1e3
    assert found.forces[0, 0] < -1e6


def test_a_result_that_is_not_finite_names_the_site(models):
    model = models["plain"]
    model = replace(model, w1=np.where(np.arange(2)[:, None] == 1, 1.7e308, model.w1), b0=-20 * np.ones_like(model.b0))
    with pytest.raises(EvaluationError, match="energy or force of site 1 is not finite"):
        evaluate(model, two_sites(positions=[[0.0, 0, 0], [30, 0, 0]]))


def test_temperature_is_given_exactly_to_the_models_that_need_it(models):
    with pytest.raises(ValueError, match="temperature_K is required"):
        Evaluator(models["full"])
    with pytest.raises(ValueError, match="must not be given"):
        Evaluator(models["plain"], temperature_K=300.0)


# ---- published models


def published(name):
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip("published data are not here")
    model = NEPModel.read(folder / "nep.txt")
    files = {k: np.loadtxt(folder / f"{k}_train.out") for k in ("energy", "force", "virial", "stress")}
    return model, ase.io.read(folder / "train.xyz", ":"), files


# errors: half of the last printed digit plus the noise of single precision
@pytest.mark.parametrize("name", ["pbte", "mos2"])
def test_published_results_of_training_are_reproduced(name):
    model, frames, files = published(name)
    evaluator = Evaluator(model)
    rows = {k: [] for k in files}
    for atoms in frames:
        found = evaluator(geometry_of(atoms, model))
        six = found.virial[[0, 1, 2, 0, 1, 2], [0, 1, 2, 1, 2, 0]]
        rows["energy"].append([found.energy / len(atoms)])
        rows["force"].extend(found.forces)
        rows["virial"].append(six / len(atoms))
        rows["stress"].append(six / abs(atoms.get_volume()) * 160.2177)
    # largest and root mean square deviation
    tolerances = {"energy": (7e-6, 4e-6), "force": (4e-5, 6e-6), "virial": (6e-6, 2e-6), "stress": (1e-5, 4e-6)}
    for key, (largest, typical) in tolerances.items():
        predicted = files[key][:, : files[key].shape[1] // 2]
        deviation = np.abs(np.array(rows[key]) - predicted)
        assert deviation.max() < largest, key
        assert np.sqrt((deviation**2).mean()) < typical, key


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(DATA.glob("models/*.txt")), ids=lambda path: path.stem)
def test_published_models_agree_with_plain_numpy(path):
    model = NEPModel.read(path)
    compare(model, cloud(model.n_types, n=max(8, model.n_types), spacing=2.4), tolerance=2e-12)


@pytest.mark.parametrize(
    ("cell", "positions", "message"),
    [
        (10 * np.eye(3), [[1e25, 0, 0], [0, 0, 0]], "too far for exact distances"),
        (1e-4 * np.eye(3), [[0, 0, 0], [0, 0, 0.5e-4]], "so small that a site would see more than a million images"),
    ],
)
def test_absurd_cells_and_positions_are_refused_at_once(cell, positions, message):
    model = NEPModel.read(WATER_BEAD)
    with pytest.raises(ValueError, match=message):
        evaluate(model, Geometry(positions, cell, [True] * 3, [0, 0]))
