"""Committee: means and spreads of its models, and the behaviour of every calculator of the package."""

import copy
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.calculator import (
    CalculationFailed,
    Calculator,
    CalculatorSetupError,
    PropertyNotImplementedError,
)
from ase.io import Trajectory
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from ase_nepcg import NEP, NEPModel
from ase_nepcg.committee import Committee
from ase_nepcg.errors import ModelFileError
from ase_nepcg.labels import set_labels
from ase_nepcg.testing import check_calculator

STANDARD = ("energy", "free_energy", "energies", "forces", "stress")
SPREADS = ("force_spread", "energy_spread", "stress_spread", "forces_by_model")
MEMBERS = ("plain", "turned", "zbl")


@pytest.fixture(scope="module")
def crowd(models) -> dict[str, NEPModel]:
    """The models of the tests, and one that has the species in the other order."""
    return models | {"turned": NEPModel.random(["H", "O"], seed=11)}


@pytest.fixture
def committee(crowd):
    return Committee([crowd[name] for name in MEMBERS], threads=1)


@pytest.fixture
def singles(crowd):
    """The members as calculators of their own."""
    return [NEP(crowd[name], threads=1) for name in MEMBERS]


def by_model(singles, name, atoms):
    return np.array([calc.get_property(name, atoms) for calc in singles])


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STANDARD)
def test_properties_are_means_over_the_models(committee, singles, atoms, name):
    expected = sum(by_model(singles, name, atoms)) / 3
    assert np.allclose(committee.get_property(name, atoms), expected, rtol=1e-14, atol=1e-15)


def test_spreads_are_sample_standard_deviations(committee, singles, atoms):
    get = committee.get_property
    forces = by_model(singles, "forces", atoms)
    assert np.array_equal(get("forces_by_model", atoms), forces)
    mean = forces.sum(axis=0) / 3
    for i in range(len(atoms)):
        expected = np.sqrt(sum(np.dot(f[i] - mean[i], f[i] - mean[i]) for f in forces) / (3 - 1))
        assert np.isclose(get("force_spread", atoms)[i], expected, rtol=1e-13)
    for name, of in (("energy_spread", "energy"), ("stress_spread", "stress")):
        values = by_model(singles, of, atoms)
        expected = np.sqrt(((values - values.sum(axis=0) / 3) ** 2).sum(axis=0) / (3 - 1))
        assert np.allclose(get(name, atoms), expected, rtol=1e-13)
    shapes = [np.shape(get(name, atoms)) for name in SPREADS]
    assert shapes == [(12,), (), (6,), (3, 12, 3)]
    assert type(get("energy", atoms)) is type(get("energy_spread", atoms)) is float


def test_equal_models_agree(crowd, atoms):
    calc = Committee([crowd["plain"]] * 2, threads=1)
    assert not calc.get_property("force_spread", atoms).any()
    assert calc.get_property("energy_spread", atoms) == 0
    assert calc.get_property("energy", atoms) == NEP(crowd["plain"]).get_property("energy", atoms)


@pytest.mark.parametrize("name", ["triclinic", "thin", "slab_without_height", "cluster_in_cell", "single_site"])
def test_conformance(committee, structures, name):
    check_calculator(committee, structures[name])


def test_labelled_beads(models):
    model = models["beads"]
    calc = Committee([model, NEPModel.random(model.species[::-1], seed=8)])
    atoms = Atoms("XX", [[0, 0, 0], [2, 0, 0]], cell=[9, 9, 9], pbc=True)
    set_labels(atoms, model.species, masses=18.0)
    before = calc.get_property("energies", atoms)
    assert np.isclose(before[0], np.mean([NEP(m).get_property("energies", atoms)[0] for m in calc.models]))
    set_labels(atoms, model.species[::-1], masses=18.0)
    assert not np.allclose(calc.get_property("energies", atoms), before)


def test_temperature(crowd, atoms):
    calc = Committee([crowd["full"]] * 2, threads=1, temperature_K=300)
    first = calc.get_property("energy", atoms)
    assert first == NEP(crowd["full"], temperature_K=300).get_property("energy", atoms)
    calc.set(temperature_K=600)
    assert calc.get_property("energy", atoms) != first
    with pytest.raises(CalculatorSetupError, match="give temperature_K="):
        Committee([crowd["full"]] * 2)


# ---- cache -----------------------------------------------------------------------------------------------------------


def test_one_evaluation_of_each_model_serves_everything(committee, atoms, evaluations):
    atoms.calc = committee
    for _ in range(2):
        for name in (*STANDARD, *SPREADS):
            assert committee.get_property(name, atoms) is not None
        atoms.get_forces()
    equal = atoms.copy()
    equal.set_tags(range(12))
    committee.get_property("force_spread", equal)
    assert len(evaluations) == 3


@pytest.mark.parametrize("first", ["energy", "force_spread"])
def test_a_change_is_never_answered_from_the_cache(committee, crowd, atoms, evaluations, first):
    before = committee.get_property(first, atoms)
    for change in (
        lambda a: a.rattle(1e-6),
        lambda a: a.set_cell(a.cell.array * 1.001),
        lambda a: a.set_pbc([True, True, False]),
        lambda a: a.set_atomic_numbers(a.numbers[::-1].copy()),
    ):
        change(atoms)
        assert committee.get_property("energy", atoms, allow_calculation=False) is None
        assert committee.get_property("force_spread", atoms, allow_calculation=False) is None
        after = committee.get_property(first, atoms)
        fresh = Committee([crowd[name] for name in MEMBERS])
        assert np.array_equal(after, fresh.get_property(first, atoms))
        assert not np.array_equal(after, before)
        before = after
    assert len(evaluations) == 3 + 4 * 6


def test_set_discards_results_only_if_something_changed(committee, crowd, atoms, evaluations):
    energy = committee.get_property("energy", atoms)
    assert committee.set(threads=1) == {}
    assert committee.set(models=[crowd[name] for name in MEMBERS]) == {}
    committee.get_property("energy", atoms)
    assert len(evaluations) == 3
    assert committee.set(threads=2) == {"threads": 2}
    assert committee.results == {}
    assert committee.get_property("energy", atoms) == energy
    committee.set(models=[crowd["plain"], crowd["zbl"]])
    assert len(committee.models) == 2
    assert committee.get_property("forces_by_model", atoms).shape == (2, 12, 3)
    assert committee.parameters.threads == 2


def test_a_refused_set_changes_nothing(committee, crowd, atoms, evaluations):
    committee.get_property("energy", atoms)
    before = committee.todict()
    for bad in ({"threads": 0}, {"temperature_K": 300}, {"models": [crowd["plain"]]}, {"device": "tpu"}):
        with pytest.raises(CalculatorSetupError):
            committee.set(**bad)
    assert committee.todict() == before
    committee.get_property("energy", atoms)
    assert len(evaluations) == 3


def test_model_files_that_changed_are_read_by_set(tmp_path, crowd, atoms):
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path in paths:
        crowd["plain"].write(path)
    calc = Committee(paths)
    assert calc.get_property("energy_spread", atoms) == 0
    crowd["nep5"].write(paths[1])
    assert calc.get_property("energy_spread", atoms) == 0
    calc.set(models=paths)
    assert calc.get_property("energy_spread", atoms) > 0
    assert calc.models == (crowd["plain"], crowd["nep5"])


def test_a_failure_leaves_no_results(committee, atoms):
    committee.get_property("energy", atoms)
    overlapping = atoms.copy()
    overlapping.positions[1] = overlapping.positions[0]
    with pytest.raises(CalculationFailed, match="same place"):
        committee.calculate(overlapping)
    for name in ("energy", "force_spread"):
        assert committee.get_property(name, overlapping, allow_calculation=False) is None
    assert np.isfinite(committee.get_property("energy", atoms))


def test_reset_forgets(committee, atoms, evaluations):
    committee.get_property("force_spread", atoms)
    assert committee.check_state(atoms) == []
    committee.reset()
    assert committee.results == {}
    assert {*committee.check_state(atoms)} >= {"positions", "numbers", "cell", "pbc"}
    assert committee.get_property("force_spread", atoms, allow_calculation=False) is None
    committee.get_property("force_spread", atoms)
    assert len(evaluations) == 6


def test_returned_arrays_are_the_users(committee, atoms):
    names = ("energies", "forces", "stress", "force_spread", "stress_spread", "forces_by_model")
    kept = {}
    for name in names:
        first = committee.get_property(name, atoms)
        kept[name] = first.copy()
        first += 1.0
        assert np.array_equal(committee.get_property(name, atoms), kept[name])
    taken = {name: committee.get_property(name, atoms) for name in names}
    atoms.rattle(0.1)
    for name in names:
        assert not np.array_equal(committee.get_property(name, atoms), kept[name])
        assert np.array_equal(taken[name], kept[name])


# ---- copies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_bring_their_results_and_go_their_own_way(committee, atoms, evaluations, way):
    before = way(committee)
    spread = committee.get_property("force_spread", atoms)
    twin = way(committee)
    assert np.array_equal(twin.get_property("force_spread", atoms), spread)
    assert len(evaluations) == 3
    assert np.array_equal(before.get_property("force_spread", atoms), spread)
    moved = atoms.copy()
    moved.rattle(0.1)
    twin.get_property("energy", moved)
    twin.set(threads=2)
    assert len(evaluations) == 9
    assert np.array_equal(committee.get_property("force_spread", atoms), spread)
    assert committee.parameters.threads == 1
    assert len(evaluations) == 9


def test_todict(tmp_path, committee, crowd, atoms):
    again = Committee(**json.loads(json.dumps(committee.todict())))
    assert again.models == committee.models
    assert again.todict() == committee.todict()
    assert again.get_property("energy", atoms) == committee.get_property("energy", atoms)
    crowd["plain"].write(tmp_path / "nep.txt")
    mixed = Committee([tmp_path / "nep.txt", crowd["zbl"]], temperature_K=None)
    assert mixed.todict() == {"models": [str(tmp_path / "nep.txt"), {"text": crowd["zbl"].to_text()}]}


def test_python_threads_may_share_it(committee, atoms):
    frames = [atoms.copy() for _ in range(4)]
    for seed, frame in enumerate(frames):
        frame.rattle(0.05, seed=seed)
    expected = [committee.get_property("force_spread", frame) for frame in frames]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: committee.get_property("force_spread", frames[k % 4]), range(24)))
    assert all(np.array_equal(f, expected[k % 4]) for k, f in enumerate(found))


# ---- ASE -------------------------------------------------------------------------------------------------------------


def test_properties_are_listed(committee, atoms):
    assert isinstance(committee, Calculator)
    assert tuple(committee.implemented_properties) == STANDARD
    committee.get_property("force_spread", atoms)
    assert set(committee.export_properties()) >= {*STANDARD}


def test_relaxation(committee, structures):
    atoms = structures["thin"]
    atoms.calc = committee
    before = atoms.get_potential_energy()
    with BFGS(atoms, logfile=None) as run:
        run.run(fmax=0.05, steps=20)
    assert atoms.get_potential_energy() < before


def test_dynamics_and_files(tmp_path, committee, atoms):
    atoms.calc = committee
    atoms.set_masses([18.0] * 12)
    start = atoms.get_total_energy()
    with VelocityVerlet(atoms, 0.2 * units.fs, trajectory=str(tmp_path / "a.traj")) as run:
        run.run(20)
    assert abs(atoms.get_total_energy() - start) < 1e-3
    with Trajectory(tmp_path / "a.traj") as frames:
        last = frames[-1]
    assert last.get_potential_energy() == atoms.get_potential_energy()
    assert np.array_equal(last.get_forces(), atoms.get_forces())


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda m: [], "needs at least 2, got 0"),
        (lambda m: [m["plain"]], "needs at least 2, got 1: for one model use NEP"),
        (lambda m: m["plain"], "expected a list of paths or models, got NEPModel"),
        (lambda m: "nep.txt", "expected a list of paths or models, got str"),
        (lambda m: None, "expected a list of paths or models, got NoneType"),
        (lambda m: [m["plain"], 3], "expected the path of a nep.txt or a NEPModel, got int"),
        (lambda m: [m["plain"], m["single"]], "the same species in all, got O, H in model 0 and O in model 1"),
        (lambda m: [m["plain"], m["zbl"], m["full"]], "got nep4 as model 0 and nep4_temperature as model 2"),
    ],
)
def test_models_that_make_no_committee(models, choose, message):
    with pytest.raises(CalculatorSetupError, match=message):
        Committee(choose(models))


def test_a_model_file_that_cannot_be_read(tmp_path, models):
    (tmp_path / "nep.txt").write_text("nep4 2 O\n")
    with pytest.raises(ModelFileError, match=r"nep\.txt, line 1"):
        Committee([models["plain"], tmp_path / "nep.txt"])
    with pytest.raises(FileNotFoundError):
        Committee([models["plain"], tmp_path / "missing.txt"])


def test_misspelt_keywords_and_properties(models, committee, atoms):
    with pytest.raises(TypeError, match="unknown keyword 'thread': did you mean 'threads'"):
        Committee([models["plain"]] * 2, thread=1)
    with pytest.raises(TypeError, match="did you mean 'models'"):
        committee.set(model=models["plain"])
    with pytest.raises(PropertyNotImplementedError, match="did you mean 'force_spread'"):
        committee.get_property("forces_spread", atoms)
    with pytest.raises(CalculatorSetupError, match="force_spread of what"):
        committee.get_property("force_spread")


def test_unknown_species(committee):
    with pytest.raises(CalculatorSetupError, match="unknown species Cu; the model has O, H"):
        committee.get_property("energy", Atoms("OCu", [[0, 0, 0], [2, 0, 0]]))


@pytest.mark.parametrize("name", ["stress", "stress_spread"])
def test_no_stress_without_three_cell_vectors(committee, structures, name):
    with pytest.raises(PropertyNotImplementedError, match=f"{name} needs a cell with three vectors"):
        committee.get_property(name, structures["cluster"])
    assert committee.get_property("force_spread", structures["cluster"]).shape == (12,)
