"""The twin of the training loss against numbers worked out by hand, and against published ones."""

from pathlib import Path

import numpy as np
import pytest
import training_twin as twin
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from ase_nepcg import NEP, NEPModel, read_dataset
from ase_nepcg.dataset import FrameCalculator, validate
from ase_nepcg.labels import get_labels

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
ENERGY, VIRIAL = -3.0, [0.1, 0.2, 0.3, 0.04, 0.05, 0.06]
NO_PENALTY = {"lambda_1": 0.0, "lambda_2": 0.0}


def frame(symbols="OO", forces=None, energy=ENERGY, **info):
    """Sites 3 Å apart in a cube of 8 Å; energy in eV/atom, forces 0 if not given."""
    n = len(symbols)
    atoms = Atoms(symbols, [[3.0 * i, 0, 0] for i in range(n)], cell=[8, 8, 8], pbc=True, info=info)
    results = {"forces": np.zeros((n, 3)) if forces is None else np.array(forces, float)}
    if energy is None:
        atoms.calc = FrameCalculator(atoms, **results)
    else:
        atoms.calc = SinglePointCalculator(atoms, energy=n * energy, **results)
    return atoms


def tensor(six, n=2):
    """The virial (3, 3) of n sites."""
    xx, yy, zz, xy, yz, zx = six
    return n * np.array([[xx, xy, zx], [xy, yy, yz], [zx, yz, zz]])


def guesses(frames, energies=None, forces=None, virials=None):
    """Predictions that are right but for the given errors, per frame."""
    n = len(frames)
    energies, virials = energies or [0.0] * n, virials or [[0.0] * 6] * n
    forces = forces or [np.zeros((len(f), 3)) for f in frames]
    return (
        [ENERGY + e for e in energies],
        [f.calc.results["forces"] + np.array(d) for f, d in zip(frames, forces, strict=True)],
        [
            [r + d for r, d in zip(twin.reference_virial(f) or [0] * 6, v, strict=True)]
            for f, v in zip(frames, virials, strict=True)
        ],
    )


@pytest.fixture(scope="module")
def two_types() -> NEPModel:
    return NEPModel.random(["O", "H"], seed=1)


# ---- energies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "shift", "square"),
    [
        ({}, 0.2, 0.01),
        # errors 0.1 and 0.3: weights count squared, and not in the shift
        ({"weight": 2.0}, 0.2, (0.01 + 4 * 0.01) / 2),
        ({"energy_weight": 3.0}, 0.25, (0.15**2 + 3 * 0.05**2) / 2),
        ({"energy_weight": 0.0}, 0.1, 0.0),
    ],
)
def test_energy_and_shift(two_types, second, shift, square):
    frames = [frame(), frame(**second)]
    found = twin.loss(two_types, frames, NO_PENALTY | {"lambda_e": 5.0}, guesses(frames, [0.1, 0.3]))
    assert np.isclose(found["shift"], shift)
    assert np.isclose(found["energy"][2], np.sqrt(square), atol=1e-12)
    assert np.isclose(found["total"][2], 5 * np.sqrt(square), atol=1e-12)
    # of the weights only those of the energies are left in the report
    unweighted = square if "weight" not in second else 0.01
    assert np.isclose(found["rmse"]["energy"], np.sqrt(unweighted), atol=1e-12)


@pytest.mark.parametrize("how", [{"energy": None}, {"energy_weight": 0.0}])
def test_without_energies_there_is_no_shift(two_types, how):
    frames = [frame(**how), frame(**how)]
    found = twin.loss(two_types, frames, NO_PENALTY, guesses(frames, [7.0, 9.0]))
    assert found["shift"] == 0.0
    assert found["energy"] == [0.0, 0.0, 0.0]
    assert found["rmse"]["energy"] == 0.0


def test_report_without_shift():
    frames = [frame(), frame()]
    assert np.isclose(twin.rmse(frames, guesses(frames, [0.1, 0.3]))["energy"], np.sqrt(0.05))


# ---- forces ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "info", "square"),
    [
        ({}, {}, (0.09 + 0.16) / 6),
        ({}, {"weight": 3.0}, 9 * (0.09 + 0.16) / 6),
        ({"type_weight": [2.0, 0.5]}, {}, (4 * 0.09 + 0.25 * 0.16) / 6),
        # reference forces 0 and 5 eV/Å
        ({"force_delta": 1.0}, {}, (0.09 + 0.16 / 6) / 6),
    ],
)
def test_forces(two_types, settings, info, square):
    frames = [frame("OH", [[0, 0, 0], [3, 0, 4]], **info)]
    predicted = guesses(frames, forces=[[[0.3, 0, 0], [0, 0, 0.4]]])
    found = twin.loss(two_types, frames, NO_PENALTY | settings, predicted)
    assert np.allclose(found["force"], np.sqrt(square))
    assert np.allclose(found["total"], np.sqrt(square))
    assert np.isclose(found["rmse"]["force"], np.sqrt(0.25 / 6))


def test_forces_are_averaged_over_sites_not_frames(two_types):
    frames = [frame("OO"), frame("OOOOOO")]
    errors = [np.full((2, 3), 0.1), np.full((6, 3), 0.3)]
    found = twin.loss(two_types, frames, NO_PENALTY, guesses(frames, forces=errors))
    assert np.isclose(found["force"][2], np.sqrt((2 * 0.01 + 6 * 0.09) / 8))


# ---- virials ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shear", "weight", "square"), [(1.0, 1.0, 0.55 / 6), (3.0, 1.0, (0.30 + 9 * 0.25) / 6), (1.0, 2.0, 4 * 0.55 / 6)]
)
def test_virials(two_types, shear, weight, square):
    # the second frame has none
    frames = [frame(virial=tensor(VIRIAL), weight=weight), frame()]
    predicted = guesses(frames, virials=[[0.1, 0.2, 0.5, 0.3, 0.4, 0.0], [9.0] * 6])
    found = twin.loss(two_types, frames, NO_PENALTY | {"lambda_shear": shear}, predicted)
    assert np.isclose(found["virial"][2], np.sqrt(square))
    assert np.isclose(found["total"][2], 0.1 * np.sqrt(square))
    assert np.isclose(found["rmse"]["virial"], np.sqrt(0.55 / 6))
    # eV/atom * 2 atoms / 512 Å^3
    assert np.isclose(found["rmse"]["stress"], np.sqrt(0.55 / 6) * 2 / 512 * 160.2177)


def test_order_and_sign_of_virials():
    assert np.allclose(twin.reference_virial(frame(virial=tensor(VIRIAL))), VIRIAL)
    assert np.allclose(twin.reference_virial(frame(virial=tensor(VIRIAL).ravel().tolist())), VIRIAL)
    atoms = frame()
    xx, yy, zz, xy, yz, zx = VIRIAL
    atoms.calc.results["stress"] = -np.array([xx, yy, zz, yz, zx, xy]) * 2 / 512
    assert np.allclose(twin.reference_virial(atoms), VIRIAL)
    assert twin.reference_virial(frame()) is None


def test_without_virials_the_term_is_zero(two_types):
    frames = [frame()]
    found = twin.loss(two_types, frames, NO_PENALTY, guesses(frames, virials=[[9.0] * 6]))
    assert found["virial"] == [0.0, 0.0, 0.0]
    assert found["rmse"]["virial"] == found["rmse"]["stress"] == 0.0


# ---- channels --------------------------------------------------------------------------------------------------------


def test_a_channel_has_the_frames_with_its_type_and_all_their_sites(two_types):
    frames = [frame("OO", virial=tensor(VIRIAL)), frame("HH"), frame("OH", virial=tensor(VIRIAL))]
    forces = [np.full((2, 3), error) for error in (0.1, 0.2, 0.4)]
    virials = [[error] * 6 for error in (0.1, 0.2, 0.3)]
    found = twin.loss(two_types, frames, NO_PENALTY, guesses(frames, [0.0, 0.3, 0.6], forces, virials))
    assert np.allclose(found["force"], np.sqrt([(0.01 + 0.16) / 2, (0.04 + 0.16) / 2, (0.01 + 0.04 + 0.16) / 3]))
    assert np.allclose(found["virial"], np.sqrt([(0.01 + 0.09) / 2, 0.09, (0.01 + 0.09) / 2]))
    # the shift, 0.3, is that of all frames
    assert np.allclose(found["energy"], np.sqrt([0.09, 0.09 / 2, 0.18 / 3]))
    sums = np.array(found["energy"]) + found["force"] + 0.1 * np.array(found["virial"])
    assert np.allclose(found["total"], sums)


def test_a_channel_without_frames_has_only_its_penalties(two_types):
    frames = [frame("OO")]
    found = twin.loss(two_types, frames, None, guesses(frames, forces=[np.ones((2, 3))]))
    assert found["energy"][1] == found["force"][1] == found["virial"][1] == 0.0
    assert found["total"][1] == found["l1"][1] + found["l2"][1] > 0
    assert found["force"][0] == found["force"][2] == 1.0


# ---- L1 and L2 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "nep3", "nep5", "single", "full"])
def test_every_variable_but_the_bias_belongs_to_one_type(models, name):
    model = models[name]
    n, n_types = model.n_parameters, model.n_types
    blocks, owners = model.parameter_blocks()
    z = np.random.default_rng(3).normal(size=n)
    model = model.with_parameters(z)
    settings = twin.SETTINGS | {"lambda_1": 2.0, "lambda_2": 3.0}
    for t in range(n_types):
        mine = z[owners == t]
        expected = 2 * abs(mine).sum() / (n / n_types), 3 * np.sqrt((mine**2).sum() / (n / n_types))
        assert np.allclose(twin.regularisation(model, t, settings), expected)
    rest = np.delete(z, blocks["bias"])
    assert len(rest) == n - 1
    expected = 2 * abs(rest).sum() / n, 3 * np.sqrt((rest**2).sum() / n)
    assert np.allclose(twin.regularisation(model, n_types, settings), expected)


def test_default_penalties():
    model = NEPModel.zeros(
        ["Te", "Pb"], cutoff=(8, 4), n_max=(6, 6), basis_size=(6, 6), l_max=(4, 1), neurons=30
    ).with_parameters(np.ones(3033))
    default = 0.038942
    # of 3033 variables one is the bias, the others belong half to Te and half to Pb
    expected = default * np.array([1516 / 1516.5, 1516 / 1516.5, 3032 / 3033])
    found = [twin.regularisation(model, t, twin.SETTINGS) for t in range(3)]
    assert np.allclose([l1 for l1, _ in found], expected, rtol=2e-5)
    assert np.allclose([l2 for _, l2 in found], np.sqrt(expected * default), rtol=2e-5)


# ---- predictions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zbl", "full"])
def test_predictions_are_those_of_the_calculator(models, name):
    model = models[name]
    frames = twin.random_frames(1, 3, model.species, temperatures=True)
    energies, forces, virials = twin.predict(model, frames)
    for s, atoms in enumerate(frames):
        n, volume = len(atoms), atoms.cell.volume
        calc = NEP(model, threads=1, temperature_K=atoms.info["temperature"] if model.temperature else None)
        assert np.isclose(energies[s], calc.get_property("energy", atoms) / n, rtol=1e-12)
        assert np.allclose(forces[s], calc.get_property("forces", atoms), rtol=1e-10, atol=1e-10)
        virial = -volume / n * calc.get_property("stress", atoms)[[0, 1, 2, 5, 3, 4]]
        assert np.allclose(virials[s], virial, rtol=1e-10, atol=1e-10)


@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")
def test_published_model():
    folder = DATA / "pbte"
    model, frames = NEPModel.read(folder / "nep.txt"), read_dataset(folder / "train.xyz")[:2]
    predicted = twin.predict(model, frames)
    found = twin.loss(model, frames, None, predicted)
    # published to five decimals; the other numbers of that line are for 25 frames
    assert np.allclose([found["l1"][2], found["l2"][2]], [0.0050968, 0.0102931], rtol=0, atol=5e-8)
    energies = np.loadtxt(folder / "energy_train.out")[:2]
    forces = np.loadtxt(folder / "force_train.out")[:500]
    assert np.allclose(predicted[0], energies[:, 0], rtol=1e-5)
    assert np.allclose(np.concatenate(predicted[1]), forces[:, :3], rtol=0, atol=2e-5)
    calc = NEP(model, threads=1)
    deviation = [calc.get_property("forces", atoms) - atoms.calc.results["forces"] for atoms in frames]
    assert np.isclose(found["rmse"]["force"], np.sqrt(np.mean(np.square(deviation))), rtol=1e-10)
    assert np.allclose(found["force"], found["rmse"]["force"], rtol=1e-12)
    assert np.isclose(found["rmse"]["energy"], abs(np.diff(energies[:, 0] - energies[:, 1])[0]) / 2, atol=2e-5)


# ---- frames ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("species", [("O",), ("O", "H"), ("W1", "a-long-tail-bead", "C")])
def test_random_frames_are_training_frames_of_all_kinds(species):
    frames = twin.random_frames(5, 12, species, temperatures=True, errors=True)
    validate(frames)
    assert {4 <= len(atoms) <= 7 for atoms in frames} == {True}
    kinds = [set(get_labels(atoms).tolist()) for atoms in frames]
    for label in species:
        assert {label} in kinds
    assert set(species) in kinds
    for atoms in frames:
        heavy = atoms.repeat(2)
        assert heavy.get_all_distances(mic=True)[np.triu_indices(len(heavy), 1)].min() > 1.5
    weights = [twin.energy_weight(atoms) for atoms in frames]
    assert 0.0 in weights
    assert 1.0 in weights
    assert any(0 < w < 1 for w in weights)
    virials = [twin.reference_virial(atoms) for atoms in frames]
    assert None in virials
    assert {"virial" in a.info for a in frames} == {"stress" in a.calc.results for a in frames} == {True, False}
    assert all((atoms.arrays["force_errors"] > 0).all() for atoms in frames)


def test_random_frames_are_reproducible_and_as_asked_for():
    first, again, other = (twin.random_frames(seed, 4, ["O", "H"]) for seed in (1, 1, 2))
    for a, b, c in zip(first, again, other, strict=True):
        assert np.array_equal(a.positions, b.positions)
        assert np.array_equal(a.calc.results["forces"], b.calc.results["forces"])
        assert len(a) != len(c) or not np.allclose(a.positions, c.positions)
    bare = twin.random_frames(1, 6, ["O"], sites=(2, 3), energies=False, virials=False, weights=False)
    assert {len(atoms) for atoms in bare} <= {2, 3}
    assert not any(atoms.info or set(atoms.calc.results) != {"forces"} for atoms in bare)
