"""Training targets: what is taken from frames, in which units and order, and what is refused."""

from dataclasses import fields, replace

import numpy as np
import pytest
import training_twin as twin
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from ase_nepcg.dataset import DatasetError, FrameCalculator
from ase_nepcg.labels import get_types, set_labels
from ase_nepcg.training.targets import VOIGT, TargetError, Targets, species_of

SPECIES = ("H", "O")
VIRIAL = np.array([[1.0, 0.4, 0.6], [0.4, 2.0, 0.5], [0.6, 0.5, 3.0]])


def frame(symbols="OH", *, energy=None, stress=None, forces=None, **info):
    n = len(symbols)
    atoms = Atoms(symbols, [[1.5 * i, 0.1, 0.2] for i in range(n)], cell=[8, 9, 10], pbc=[True, True, False], info=info)
    results = {"forces": np.arange(3.0 * n).reshape(n, 3) if forces is None else forces}
    if stress is not None:
        results["stress"] = stress
    if energy is None:
        atoms.calc = FrameCalculator(atoms, **results)
    else:
        atoms.calc = SinglePointCalculator(atoms, energy=energy, **results)
    return atoms


def same(a: Targets, b: Targets) -> bool:
    def equal(x, y):
        if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
            return x.dtype == y.dtype and np.array_equal(x, y, equal_nan=x.dtype.kind == "f")
        return type(x) is type(y) and x == y

    return all(equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))


# ---- what is taken ---------------------------------------------------------------------------------------------------


def test_everything_a_frame_knows():
    frames = [
        frame("OH", energy=-6.0, virial=VIRIAL, weight=2.0, energy_weight=0.3, config_type="warm"),
        frame("HHO", temperature=290.0),
    ]
    frames[0].set_array("force_errors", np.full((2, 3), 0.1))
    frames[0].info["virial_error"] = np.arange(9.0).reshape(3, 3)
    found = Targets.from_frames(frames, SPECIES)
    assert len(found) == 2
    assert found.species == SPECIES
    assert found.n_sites.tolist() == [2, 3]
    assert found.first.tolist() == [0, 2, 5]
    assert [found.sites(s) for s in range(2)] == [slice(0, 2), slice(2, 5)]
    assert found.types.tolist() == [1, 0, 0, 0, 1]
    assert np.array_equal(found.positions, np.concatenate([f.positions for f in frames]))
    assert np.array_equal(found.cells, [np.diag([8.0, 9, 10])] * 2)
    assert found.pbc.tolist() == [[True, True, False]] * 2
    assert np.allclose(found.volumes, 720)
    assert np.array_equal(found.energies, [-3.0, np.nan], equal_nan=True)
    assert np.array_equal(found.forces, np.concatenate([np.arange(6).reshape(2, 3), np.arange(9).reshape(3, 3)]))
    # xx yy zz xy yz zx, per site
    assert np.allclose(found.virials[0], np.array([1, 2, 3, 0.4, 0.5, 0.6]) / 2)
    assert np.isnan(found.virials[1]).all()
    assert found.has_virial.tolist() == [True, False]
    assert found.weights.tolist() == [2.0, 1.0]
    assert found.energy_weights.tolist() == [0.3, 0.0]
    assert found.temperatures is None
    assert np.array_equal(found.force_errors, [[0.1] * 3] * 2 + [[np.nan] * 3] * 3, equal_nan=True)
    # of each pair of halves the lower one: yx, zy, zx
    assert np.allclose(found.virial_errors[0], np.array([0, 4, 8, 3, 7, 6]) / 2)
    assert np.isnan(found.virial_errors[1]).all()
    assert found.names == ("warm", "frame 1")


def test_order_of_the_virial():
    assert VOIGT == ((0, 0), (1, 1), (2, 2), (1, 0), (2, 1), (2, 0))


def test_a_stress_has_the_other_sign_and_order():
    xx, yy, zz, yz, xz, xy = stress = np.array([1.0, 2, 3, 4, 5, 6]) * 1e-3
    found = Targets.from_frames(frame(stress=stress), SPECIES)
    assert np.allclose(found.virials, -720 / 2 * np.array([[xx, yy, zz, xy, yz, xz]]), rtol=1e-14)


def test_the_virial_is_used_where_both_are_there():
    stress = -VIRIAL.ravel()[[0, 4, 8, 5, 2, 1]] / 720
    found = Targets.from_frames(frame(stress=stress * (1 + 1e-5), virial=VIRIAL), SPECIES)
    assert np.array_equal(found.virials[0], VIRIAL.ravel()[[0, 4, 8, 3, 7, 6]] / 2)


@pytest.mark.parametrize(
    ("energy", "given", "expected"),
    [(-1.0, None, 1.0), (-1.0, 0.0, 0.0), (-1.0, 2.5, 2.5), (None, None, 0.0), (None, 0.0, 0.0)],
)
def test_weight_of_energies(energy, given, expected):
    atoms = frame(energy=energy, **({} if given is None else {"energy_weight": given}))
    found = Targets.from_frames([atoms], SPECIES)
    assert found.energy_weights.tolist() == [expected]


def test_temperatures_only_where_asked_for():
    frames = [frame(temperature=290.0), frame(temperature=310)]
    assert Targets.from_frames(frames, SPECIES, temperature=True).temperatures.tolist() == [290.0, 310.0]
    assert Targets.from_frames(frames, SPECIES).temperatures is None


def test_without_error_bars():
    found = Targets.from_frames([frame(virial=VIRIAL)], SPECIES)
    assert found.force_errors is None
    assert found.virial_errors is None


def test_one_frame_and_an_iterator_are_taken_too():
    one = Targets.from_frames([frame()], SPECIES)
    assert same(Targets.from_frames(frame(), SPECIES), one)
    assert same(Targets.from_frames(iter([frame()]), list(SPECIES)), one)


def test_free_labels():
    atoms = frame("HHO")
    set_labels(atoms, ["W1", "tail-bead", "W1"], masses=18.0)
    atoms.calc = FrameCalculator(atoms, forces=np.zeros((3, 3)))
    assert species_of([atoms]) == ("W1", "tail-bead")
    assert Targets.from_frames(atoms, ("tail-bead", "W1")).types.tolist() == [1, 0, 1]


def test_species_of_frames():
    assert species_of([frame("OO"), frame("HC"), frame("OH")]) == ("C", "H", "O")


def test_random_frames_as_the_twin_reads_them():
    species = ("W1", "a-long-tail-bead", "C")
    frames = twin.random_frames(4, 12, species, temperatures=True, errors=True)
    found = Targets.from_frames(frames, species, temperature=True)
    for s, atoms in enumerate(frames):
        energy, virial = twin.reference_energy(atoms), twin.reference_virial(atoms)
        assert (np.isnan(found.energies[s])) == (energy is None)
        assert energy is None or found.energies[s] == energy
        assert found.has_virial[s] == (virial is not None)
        assert virial is None or np.allclose(found.virials[s], virial, rtol=1e-13, atol=1e-15)
        assert found.energy_weights[s] == twin.energy_weight(atoms)
        assert found.weights[s] == atoms.info["weight"]
        assert found.temperatures[s] == atoms.info["temperature"]
        sites = found.sites(s)
        assert np.array_equal(found.types[sites], get_types(atoms, species))
        assert np.array_equal(found.forces[sites], atoms.calc.results["forces"])
        assert np.array_equal(found.force_errors[sites], atoms.arrays["force_errors"])


def test_arrays_are_copies_in_rows():
    # numpy joins Fortran-ordered arrays to one of that order, which kernels do not read
    frames = [frame(forces=np.asfortranarray(np.arange(6.0).reshape(2, 3))) for _ in range(2)]
    for atoms in frames:
        atoms.positions = np.asfortranarray(atoms.positions)
        atoms.calc.atoms.positions = atoms.positions
    found = Targets.from_frames(frames, SPECIES)
    for name in ("positions", "forces", "virials", "cells", "types"):
        assert getattr(found, name).flags.c_contiguous, name
    positions, forces = found.positions.copy(), found.forces.copy()
    frames[0].positions += 1.0
    frames[0].calc.results["forces"] += 1.0
    assert np.array_equal(found.positions, positions)
    assert np.array_equal(found.forces, forces)


# ---- selection -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many():
    frames = twin.random_frames(8, 6, SPECIES, temperatures=True, errors=True)
    return frames, Targets.from_frames(frames, SPECIES, temperature=True)


@pytest.mark.parametrize("chosen", [[0], [5, 2, 3], [1, 1, 4], np.array([0, 1, 2, 3, 4, 5]), [-1, -6]])
def test_selection_is_the_targets_of_those_frames(many, chosen):
    frames, targets = many
    expected = Targets.from_frames([frames[s] for s in chosen], SPECIES, temperature=True)
    found = targets.select(chosen)
    assert len(found) == len(chosen)
    # frames without a name are called by their number in the whole set
    assert found.names == tuple(targets.names[s] for s in chosen)
    assert same(replace(found, names=expected.names), expected)


def test_selection_by_a_mask(many):
    _, targets = many
    mask = np.array([True, False, True, False, False, True])
    assert same(targets.select(mask), targets.select([0, 2, 5]))


def test_selection_keeps_what_is_missing():
    targets = Targets.from_frames([frame(), frame()], SPECIES)
    found = targets.select([1])
    assert found.temperatures is found.force_errors is found.virial_errors is None
    assert found.names == ("frame 1",)


@pytest.mark.parametrize("wrong", [[6], [-7], [0.5]])
def test_selection_of_what_is_not_there(many, wrong):
    with pytest.raises(IndexError):
        many[1].select(wrong)


# ---- what is refused -------------------------------------------------------------------------------------------------


def _without_forces(atoms):
    atoms.calc = None


def _outdated(atoms):
    atoms.positions[0] += 0.1


def _nan_forces(atoms):
    atoms.calc.results["forces"][1, 2] = np.nan


def _nan_positions(atoms):
    atoms.positions[0, 0] = np.nan
    atoms.calc = FrameCalculator(atoms, forces=np.zeros((2, 3)))


def _nan_energy(atoms):
    atoms.calc = SinglePointCalculator(atoms, energy=np.nan, forces=np.zeros((2, 3)))


def _infinite_energy(atoms):
    atoms.calc = SinglePointCalculator(atoms, energy=np.inf, forces=np.zeros((2, 3)))


def _conflict(atoms):
    atoms.info["virial"] = VIRIAL
    # the sign of a virial
    atoms.calc.results["stress"] = VIRIAL.ravel()[[0, 4, 8, 5, 2, 1]] / 720


def _label(atoms):
    set_labels(atoms, ["Xe", "H"])
    atoms.calc = FrameCalculator(atoms, forces=np.zeros((2, 3)))


def _flat_cell(atoms):
    atoms.cell[2] = 0
    atoms.calc = FrameCalculator(atoms, forces=np.zeros((2, 3)))


def _info(**values):
    return lambda atoms: atoms.info.update(values)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_forces, "forces: expected .* it has none"),
        (_outdated, "forces: expected .* other positions"),
        (_nan_forces, "forces"),
        (_nan_positions, "positions"),
        (_nan_energy, "energy: expected a finite number, got .*nan"),
        (_infinite_energy, "energy: expected a finite number, got .*inf"),
        (_info(energy_weight=0.5), "energy_weight is 0.5, but there is no energy"),
        (_info(energy_weight=-1.0), "energy_weight: expected a number >= 0"),
        (_info(weight=0.0), "weight: expected a number > 0"),
        (_info(weight=np.nan), "weight: expected a number"),
        (_info(temperature=None), r"temperature: .*expected info\['temperature'\] in K, got none"),
        (_info(temperature=0.0), "temperature: expected a number > 0"),
        (_info(temperature=np.nan), "temperature: expected a number"),
        (_info(virial=VIRIAL + np.triu(VIRIAL)), "symmetric"),
        (_info(virial=VIRIAL * np.nan), "virial.*finite"),
        (_info(virial=VIRIAL, virial_error=-VIRIAL), "virial_error: expected numbers >= 0"),
        (_info(virial_error=VIRIAL), "virial_error: expected virial with it"),
        (_conflict, "virial and stress disagree"),
        (_info(kinetic_temperature=2e5), "kinetic_temperature is 200000 K, temperature 300 K: the run .* went wrong"),
        (_label, r"labels Xe are not among the species of the model \(H, O\)"),
        (_flat_cell, "cell"),
    ],
)
def test_bad_frames_are_named(spoil, message):
    frames = [frame(temperature=300.0) for _ in range(4)]
    spoil(frames[2])
    with pytest.raises(DatasetError, match=f"^frame 2: .*{message}") as error:
        Targets.from_frames(frames, SPECIES, temperature=True)
    assert error.value.frame == 2


def test_kinetic_temperatures_that_chance_explains():
    for kelvin in (20.0, 900.0, np.nan, "hot", np.ones(3)):
        one = frame(temperature=300.0)
        one.info["kinetic_temperature"] = kelvin
        assert len(Targets.from_frames([one], SPECIES, temperature=True).types) == len(one)


def test_several_unknown_labels_are_all_told():
    with pytest.raises(TargetError, match="labels C, N are not among"):
        Targets.from_frames([frame("OH"), frame("NHCN")], SPECIES)


@pytest.mark.parametrize("nothing", [[], (), iter(())])
def test_no_frames(nothing):
    with pytest.raises(DatasetError, match="at least one frame"):
        Targets.from_frames(nothing, SPECIES)


def test_no_atoms():
    with pytest.raises(DatasetError, match="Atoms"):
        Targets.from_frames([frame(), "train.xyz"], SPECIES)
