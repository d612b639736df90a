"""The plain-numpy twin (and the kernel) against reference results, published predictions, derivatives and limits."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read
from ase.neighborlist import primitive_neighbor_list

from ase_nepcg.errors import ModelError
from ase_nepcg.model import ZBL, NEPModel
from ase_nepcg.potential.evaluate import Geometry
from ase_nepcg.potential.evaluate import evaluate as fast_evaluate
from ase_nepcg.reference import evaluate, neighbors

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SMALL = {"cutoff": (5.0, 4.0), "n_max": (3, 2), "basis_size": (5, 4), "neurons": 8}
# rounding of sums of about 100 terms; central differences with steps of 1e-4 Å
EXACT, NUMERICAL = 1e-12, 2e-7

with np.load(Path(__file__).parent / "data" / "oracle.npz") as archive:
    ORACLE = dict(archive)
MODELS = [json.loads(entry) for entry in ORACLE["models"]]
CASES = [f"{MODELS[m]['name']}/{structure}" for m, structure in zip(ORACLE["model"], ORACLE["structure"], strict=True)]


def oracle_model(index):
    """The model of a reference case; skips where a published file is not at hand (tests/data/make_oracle.py)."""
    entry = MODELS[index]
    if "file" in entry:
        if not (SHARED / entry["file"]).exists():
            pytest.skip(f"{entry['file']} is not part of the repository")
        return NEPModel.read(SHARED / entry["file"])
    settings = dict(entry["random"])
    if entry["flexible"] is not None:
        settings["zbl"] = ZBL(0.0, 0.0, flexible=np.array(entry["flexible"]))
    model = NEPModel.random(**settings)
    found = hashlib.sha256(model.parameters().tobytes() + model.q_scaler.tobytes()).hexdigest()
    assert found == ORACLE["checksums"][index], "NEPModel.random has changed: run tests/data/make_oracle.py again"
    return model


def evaluate_atoms(model, atoms, **kwargs):
    types = [model.species.index(symbol) for symbol in atoms.symbols]
    return evaluate(model, atoms.positions, atoms.cell, atoms.pbc, types, **kwargs)


def by_kernel(model, positions, cell, pbc, types):
    """The compiled kernel in the place of the twin."""
    result = fast_evaluate(model, Geometry(positions, cell, np.full(3, pbc), types), virials=True)
    return {name: getattr(result, name) for name in ("energy", "energies", "forces", "virials", "virial")}


def triclinic(species, n=7, seed=0):
    """A few sites in a sheared cell thinner than the cut-off, none closer than 1.8 Å, some outside the cell."""
    rng = np.random.default_rng(seed)
    atoms = bulk("Po", "fcc", a=4.2) * (2, 2, 2)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.uniform(-0.15, 0.15, (3, 3))), scale_atoms=True)
    atoms = atoms[rng.permutation(8)[:n]]
    atoms.positions += rng.normal(0, 0.15, (n, 3)) + rng.integers(-2, 3, (n, 3)) @ atoms.cell.array
    atoms.symbols[:] = np.resize(species, n)
    return atoms


# ---- compiled reference, published predictions ----------------------------------------------------------------------


@pytest.mark.parametrize("code", [evaluate, by_kernel], ids=["twin", "kernel"])
@pytest.mark.parametrize("case", range(len(CASES)), ids=CASES)
def test_agrees_with_calorine(case, code):
    model = oracle_model(ORACLE["model"][case])
    sites = slice(*ORACLE["start"][case : case + 2])
    cell = ORACLE["cell"][case]
    types = [model.species.index(symbol) for symbol in ORACLE["symbols"][sites]]
    result = code(model, ORACLE["positions"][sites], cell, True, types)
    energies, forces, virials = (ORACLE[name][sites] for name in ("energies", "forces", "virials"))
    # contacts have forces of thousands of eV/Å; found: 1e-12 of the largest component
    tolerance = min(1e-9, 1e-11 * max(1.0, abs(forces).max()))
    np.testing.assert_allclose(result["energy"], energies.sum(), rtol=1e-11)
    np.testing.assert_allclose(result["energies"], energies, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(result["forces"], forces, rtol=0, atol=tolerance)
    np.testing.assert_allclose(result["virials"], virials, rtol=0, atol=tolerance)
    volume = abs(np.linalg.det(cell))
    np.testing.assert_allclose(result["virial"] / volume, virials.sum(0) / volume, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("folder", "frame", "first"), [("pbte", 0, 0), ("mos2", 3, 270)])
def test_agrees_with_published_predictions(folder, frame, first):
    """The trainer's own output files: float32, printed with 6 digits; first half of the columns is the prediction."""
    if not (SHARED / folder).exists():
        pytest.skip(f"{folder} is not part of the repository")
    atoms = read(SHARED / folder / "train.xyz", index=frame)
    result = evaluate_atoms(NEPModel.read(SHARED / folder / "nep.txt"), atoms)
    n = len(atoms)

    def published(name):
        return np.loadtxt(SHARED / folder / f"{name}_train.out", ndmin=2)

    assert result["energy"] / n == pytest.approx(published("energy")[frame, 0], abs=1e-5)
    np.testing.assert_allclose(result["forces"], published("force")[first : first + n, :3], rtol=1e-5, atol=3e-5)
    voigt = result["virial"][[0, 1, 2, 0, 1, 2], [0, 1, 2, 1, 2, 0]]
    np.testing.assert_allclose(voigt / n, published("virial")[frame, :6], rtol=1e-5, atol=1e-5)
    gpa = voigt / atoms.get_volume() * 160.2177
    np.testing.assert_allclose(gpa, published("stress")[frame, :6], rtol=1e-5, atol=2e-5)


# ---- derivatives ----------------------------------------------------------------------------------------------------

VARIANTS = {
    "all blocks, cut-offs per type": {
        "species": ("Te", "Pb"),
        "cutoff": {"Te": (5.0, 4.0), "Pb": (4.5, 3.4)},
        "l_max": (4, 1, 1, 1, 1, 1, 1),
    },
    "nep3": {"species": ("Te", "Pb"), "version": 3, "l_max": (3, 1, 0)},
    "nep5 with zbl": {"species": ("Te", "O"), "version": 5, "zbl": (1.5, 3.8), "l_max": (3, 0, 0)},
    "two hidden layers": {"species": ("Te",), "neurons": (6, 5), "l_max": (3, 0, 0)},
    "temperature": {"species": ("Te",), "temperature": True, "l_max": (3, 0, 0)},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_forces_and_virial_are_derivatives_of_the_energy(name):
    model = NEPModel.random(**{**SMALL, **VARIANTS[name]}, seed=5)
    temperature = {"temperature_K": 321.0} if model.temperature else {}
    atoms = triclinic(model.species, n=5)
    result = evaluate_atoms(model, atoms, **temperature)
    step = 1e-4

    def energy(displacement, strain):
        moved = atoms.copy()
        moved.positions += displacement
        moved.set_cell(moved.cell.array @ (np.eye(3) + strain).T, scale_atoms=False)
        moved.positions = moved.positions @ (np.eye(3) + strain).T
        return evaluate_atoms(model, moved, **temperature)["energy"]

    for i, a in ((0, 0), (2, 1), (4, 2)):
        unit = np.zeros((5, 3))
        unit[i, a] = step
        slope = (energy(unit, 0) - energy(-unit, 0)) / (2 * step)
        assert -slope == pytest.approx(result["forces"][i, a], abs=NUMERICAL)
    for a, b in ((0, 0), (0, 1), (2, 1)):
        strain = np.zeros((3, 3))
        strain[a, b] = step
        slope = (energy(0, strain) - energy(0, -strain)) / (2 * step)
        assert -slope == pytest.approx(result["virial"][a, b], abs=20 * NUMERICAL)
    np.testing.assert_allclose(result["forces"].sum(0), 0, atol=EXACT)
    np.testing.assert_allclose(result["virial"], result["virial"].T, atol=10 * EXACT)
    assert result["energies"].sum() == result["energy"]
    assert np.ptp(result["forces"]) > 0.01


def test_virials_are_booked_on_the_neighbour():
    """W_i = Σ_j r_ij ⊗ ∂U_j/∂r_ji: in a cluster, Σ_i W_i^{ab} v_i^b = Σ_ij r_ij^a d(U_j)/dt from moving i alone."""
    model = NEPModel.random(("Te", "Pb"), **SMALL, l_max=(4, 1, 1), seed=2)
    atoms = triclinic(model.species, n=6)
    atoms.wrap()
    atoms.pbc = False
    step, i = 1e-4, 1
    expected = np.zeros((3, 3))
    for b in range(3):
        change = np.zeros((6, 3))
        change[i, b] = step
        forward, backward = (
            evaluate(model, atoms.positions + s * change, atoms.cell, False, [0, 1] * 3)["energies"] for s in (1, -1)
        )
        slope = (forward - backward) / (2 * step)
        expected[:, b] = (slope[:, None] * (atoms.positions - atoms.positions[i])).sum(0)
    virials = evaluate_atoms(model, atoms)["virials"]
    np.testing.assert_allclose(virials[i], expected, atol=NUMERICAL)
    assert abs(virials[i] - virials[i].T).max() > 1e-3


# ---- model variants without a compiled reference --------------------------------------------------------------------


def same(a, b, tolerance=EXACT):
    for name in ("energies", "forces", "virials", "descriptors"):
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=tolerance, err_msg=name)


def test_nep3_equals_nep4_for_one_type():
    model = NEPModel.random(("Te",), **SMALL, version=4, seed=1)
    same(evaluate_atoms(model, triclinic(["Te"])), evaluate_atoms(replace(model, version=3), triclinic(["Te"])), 0)


def test_nep3_shares_the_network_of_nep4():
    model = NEPModel.random(("Te", "Pb"), **SMALL, version=3, seed=1)
    twice = {name: np.repeat(getattr(model, name), 2, axis=0) for name in ("w0", "b0", "w1")}
    atoms = triclinic(["Te", "Pb"])
    same(evaluate_atoms(model, atoms), evaluate_atoms(replace(model, version=4, **twice), atoms), 0)


def test_nep5_is_nep4_with_shifted_biases():
    model = NEPModel.random(("Te", "Pb"), **SMALL, version=5, seed=1)
    atoms = triclinic(["Te", "Pb"])
    shifted = evaluate_atoms(replace(model, version=4, type_bias=None), atoms)
    shifted["energies"] = shifted["energies"] - model.type_bias[[0, 1, 0, 1, 0, 1, 0]]
    assert abs(model.type_bias).min() > 0
    same(evaluate_atoms(model, atoms), shifted)


def test_uniform_cutoffs_per_type_and_halved_ones():
    atoms = triclinic(["Te", "Pb"])
    uniform = NEPModel.random(("Te", "Pb"), **SMALL, seed=3)
    listed = replace(uniform, per_type=True)
    same(evaluate_atoms(uniform, atoms), evaluate_atoms(listed, atoms), 0)
    shorter = replace(uniform, cutoff_radial=[5.0, 3.0], cutoff_angular=[4.0, 2.9])
    assert abs(evaluate_atoms(shorter, atoms)["energies"] - evaluate_atoms(uniform, atoms)["energies"]).min() > 1e-6


def test_elementwise_cutoffs_of_old_files():
    """Factors that give the cut-offs of a one-type model make no difference: 2·1.64 Å·factor is the pair cut-off."""
    atoms = triclinic(["Te"])
    model = NEPModel.random(("Te",), **{**SMALL, "cutoff": (4.592, 3.936)}, seed=3)
    old = replace(model, cutoff_radial=[8.0], cutoff_angular=[7.0], typewise=(1.4, 1.2, 0.0))
    np.testing.assert_allclose(old.pair_cutoffs(), model.pair_cutoffs(), rtol=1e-12)
    same(evaluate_atoms(model, atoms), evaluate_atoms(old, atoms))


def test_second_layer_that_passes_the_first_through():
    """h2 = tanh(ε h1) ≈ ε h1 with output weights w1/ε reproduces the one-layer energy."""
    model = NEPModel.random(("Te",), **SMALL, seed=4)
    small, n = 1e-4, model.neurons
    deep = replace(model, w_hidden2=small * np.eye(n)[None], b_hidden2=np.zeros((1, n)), w1=model.w1 / small)
    same(evaluate_atoms(model, triclinic(["Te"])), evaluate_atoms(deep, triclinic(["Te"])), 1e-7)


def test_temperature_is_one_more_input():
    """A temperature shifts the neurons' biases by w0 s T and has no force term of its own."""
    model = NEPModel.random(("Te",), **SMALL, temperature=True, seed=4)
    atoms, kelvin = triclinic(["Te"]), 450.0
    b0 = model.b0 - model.w0[:, :, -1] * model.q_scaler[-1] * kelvin
    plain = replace(model, temperature=False, w0=model.w0[:, :, :-1], b0=b0, q_scaler=model.q_scaler[:-1])
    expected, result = evaluate_atoms(plain, atoms), evaluate_atoms(model, atoms, temperature_K=kelvin)
    np.testing.assert_allclose(result["descriptors"][:, -1], 0.001 * kelvin)
    result["descriptors"] = result["descriptors"][:, :-1]
    same(result, expected)


def test_isolated_pair_has_only_the_zbl_of_its_elements():
    """The universal screened repulsion, written once more from its definition; cut at the angular cut-off."""
    zbl = NEPModel.zeros(("Te", "O"), **SMALL, zbl=ZBL(1.0, 2.0))
    d = 0.7
    result = evaluate(zbl, [[0, 0, 0], [0, 0, d]], np.zeros((3, 3)), False, [0, 1])
    x = d * (52**0.23 + 8**0.23) / 0.46848
    phi = sum(
        a * np.exp(-b * x) for a, b in ((0.18175, 3.1998), (0.50986, 0.94229), (0.28022, 0.4029), (0.02817, 0.20162))
    )
    assert result["energy"] == pytest.approx(14.399645 * 52 * 8 / d * phi, rel=1e-6)
    np.testing.assert_allclose(result["energies"], result["energy"] / 2)
    far = evaluate(zbl, [[0, 0, 0], [0, 0, 2.001]], np.zeros((3, 3)), False, [0, 1])
    assert far["energy"] == 0


# ---- geometry -------------------------------------------------------------------------------------------------------

CELLS = {
    "cubic": np.diag([7.0, 7.0, 7.0]),
    "triclinic": np.array([[5.0, 1.0, 0.3], [-2.0, 4.0, 0.8], [1.5, 2.5, 6.0]]),
    "left-handed": np.array([[-2.0, 4.0, 0.8], [5.0, 1.0, 0.3], [1.5, 2.5, 6.0]]),
    "thin": np.array([[2.1, 0.0, 0.0], [0.0, 9.0, 0.0], [0.9, 0.0, 3.0]]),
    "skewed": np.array([[3.0, 0.0, 0.0], [8.5, 3.0, 0.0], [0.0, -7.0, 3.5]]),
}


@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True), (False, True, False), (False, False, False)])
@pytest.mark.parametrize("name", CELLS)
def test_neighbors_agree_with_ase(name, pbc):
    rng = np.random.default_rng(1)
    positions = rng.uniform(-10, 15, (5, 3))
    i, j, vector = primitive_neighbor_list("ijD", pbc, CELLS[name], positions, 5.0)
    for k in range(5):
        found, separation = neighbors(k, positions, CELLS[name], np.array(pbc), 5.0)
        np.testing.assert_array_equal(np.sort(found), np.sort(j[i == k]))
        rows = [sorted(map(tuple, np.round(v, 9) + 0.0)) for v in (separation, vector[i == k])]
        np.testing.assert_allclose(*rows, atol=1e-8)


def test_results_do_not_depend_on_the_description_of_the_structure():
    model = NEPModel.random(("Te", "Pb"), **SMALL, l_max=(4, 1, 1, 1, 1, 1, 1), seed=6)
    atoms = triclinic(model.species, n=4)
    expected = evaluate_atoms(model, atoms)

    wrapped = atoms.copy()
    wrapped.positions += [0.3, 40.0, -7.0]
    wrapped.wrap()
    same(evaluate_atoms(model, wrapped), expected, 100 * EXACT)
    left = atoms.copy()
    left.cell = atoms.cell.array[[1, 0, 2]]
    same(evaluate_atoms(model, left), expected)
    double = evaluate_atoms(model, atoms * (2, 1, 1))
    assert double["energy"] == pytest.approx(2 * expected["energy"], rel=EXACT)
    np.testing.assert_allclose(double["forces"][4:], expected["forces"], atol=10 * EXACT)
    turned = atoms.copy()
    turned.rotate(77, (1, 2, 3), rotate_cell=True)
    assert evaluate_atoms(model, turned)["energy"] == pytest.approx(expected["energy"], rel=EXACT)
    order = [2, 0, 3, 1]
    np.testing.assert_allclose(evaluate_atoms(model, atoms[order])["forces"], expected["forces"][order], atol=EXACT)


@pytest.mark.parametrize("pbc", [(True, True, False), (False, False, True), (False, False, False)])
def test_partly_periodic_structures_are_large_clusters(pbc):
    model = NEPModel.random(("Te", "Pb"), **SMALL, seed=6)
    atoms = triclinic(model.species, n=3)
    atoms.wrap()
    cell = atoms.cell.array * np.array(pbc)[:, None]  # no vectors where not periodic
    result = evaluate(model, atoms.positions, cell, pbc, [0, 1, 0])
    repeats = [11 if periodic else 1 for periodic in pbc]
    cluster = atoms * repeats
    centre = 3 * int(np.ravel_multi_index([n // 2 for n in repeats], repeats))
    near = cluster.get_distances(centre, range(len(cluster))) < 18
    types = np.tile([0, 1, 0], len(cluster) // 3)
    sites = np.flatnonzero(near)
    expected = evaluate(model, cluster.positions[sites], np.zeros((3, 3)), False, types[sites])
    middle = np.searchsorted(sites, centre + np.arange(3))
    np.testing.assert_allclose(result["energies"], expected["energies"][middle], atol=EXACT)
    np.testing.assert_allclose(result["forces"], expected["forces"][middle], atol=EXACT)


def test_nothing_and_one_site():
    model = NEPModel.random(("Te",), **SMALL, l_max=(4, 1, 1, 1, 1, 1, 1), zbl=(1.0, 2.0))
    nothing = evaluate(model, np.zeros((0, 3)), np.zeros((3, 3)), False, [])
    assert nothing["energy"] == 0
    assert nothing["forces"].shape == (0, 3)
    one = evaluate(model, [[1.0, 2.0, 3.0]], np.zeros((3, 3)), False, [0])
    bare = model.w1[0] @ np.tanh(-model.b0[0]) - model.bias
    assert one["energy"] == pytest.approx(bare, rel=EXACT)
    assert not one["forces"].any()
    assert not one["descriptors"].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": [[0.0, 0.0]]}, "positions: expected shape"),
        ({"positions": [[0.0, 0.0, np.nan], [0.0, 0.0, 1.0]]}, "nan"),
        ({"positions": [[0.0, 0.0, 0.0], [4.0, 0.0, 0.0]]}, "another atom on top of atom 0"),
        ({"cell": np.diag([4.0, 4.0, 0.0])}, "expected independent lattice vectors"),
        ({"types": [0, 1]}, r"types: expected 0 to 0, got \[0, 1\]"),
        ({"types": [0]}, "types: expected shape"),
        ({"temperature_K": 300.0}, "temperature_K: got 300.0, but model.temperature is False"),
    ],
)
def test_refusals(change, message):
    model = NEPModel.random(("Te",), **SMALL)
    arguments = {"positions": [[0, 0, 0], [0, 0, 2]], "cell": np.diag([4.0, 4.0, 4.0]), "pbc": True, "types": [0, 0]}
    with pytest.raises(ModelError, match=message):
        evaluate(model, **{**arguments, **change})
    warm = NEPModel.random(("Te",), **SMALL, temperature=True)
    with pytest.raises(ModelError, match="temperature_K: got None"):
        evaluate(warm, **arguments)


def test_accepts_ase_cells():
    model = NEPModel.random(("Te",), **SMALL)
    atoms = Atoms("Te", cell=[3, 3, 3], pbc=True)
    assert np.isfinite(evaluate(model, atoms.positions, atoms.cell, atoms.pbc, [0])["energy"])
