"""What all ensembles share: checks of settings, degrees of freedom, dictionaries. Nothing is compiled here."""

import copy
import dataclasses
import json
import math
import pickle

import numpy as np
import pytest
from ase import units

from ase_nepcg.errors import NepCGError
from ase_nepcg.md.ensembles import HNEMD, NPT, NVE, Bussi, Deform, Langevin, NoseHoover, ensemble_from_dict
from ase_nepcg.md.ensembles.base import Ensemble, EnsembleError, Kernels, Setup, across_periodic, needs_motion, positive

# all ensembles, with settings as users have them: numpy numbers and lists among them
ALL = [
    NVE(),
    Langevin(np.float32(300.0), 0.01),
    Bussi(np.int64(300), tau_fs=100),
    NoseHoover(300, np.float64(50.0), chain=np.int64(4)),
    NPT(300, [0.1, np.float64(0.2), None], 100, 1000, "anisotropic"),
    NPT(300, 0.1, 100, 1000, method="mttk"),
    Deform("x", np.float64(-1e-3), temperature_K=np.int64(300), free="zy"),
    HNEMD(300, np.array([1e-4, 0.0, 0.0]), convective=np.bool_(True)),
]


def name_of(ensemble):
    return type(ensemble).__name__


def setup(n=5, frozen=0, held=0, pbc=(True, True, True), cell=None):
    return Setup(
        n_sites=n,
        n_dof=3 * (n - frozen - held),
        n_frozen=frozen,
        n_held=held,
        pbc=pbc,
        cell=12.0 * np.eye(3) if cell is None else np.array(cell, float),
        masses=np.linspace(1.0, 2.0, n),
        timestep=2.0 * units.fs,
    )


@dataclasses.dataclass(frozen=True)
class Toy(Ensemble):
    """As little as an ensemble can be."""

    stiffness: float
    label: str = "a"

    name = "toy"
    n_params = 3
    n_state = 2


class Isolated(Toy):
    without_momentum = True


class Squeezed(Toy):
    takes_constraints = False


# ---- settings


@pytest.mark.parametrize("value", [1, 2.5, np.float32(0.5), np.int64(7), np.float64(1e-300)])
def test_positive_numbers_become_floats(value):
    toy = Toy(value)
    positive(toy, "stiffness")
    assert type(toy.stiffness) is float
    assert toy.stiffness == value


@pytest.mark.parametrize(
    "value", [0, -1.0, math.nan, math.inf, np.float64(-0.0), True, np.bool_(True), None, "1", [1.0], np.ones(1), 1j]
)
def test_what_is_not_a_positive_number_is_refused(value):
    toy = Toy(value)
    with pytest.raises(EnsembleError) as raised:
        positive(toy, "stiffness")
    assert str(raised.value) == f"Toy: stiffness must be a positive number, got {value!r}"
    assert toy.stiffness is value


def test_the_first_bad_setting_is_named():
    with pytest.raises(EnsembleError, match="Langevin: friction_per_fs must be a positive number, got 0"):
        Langevin(300.0, 0)
    with pytest.raises(EnsembleError, match="Langevin: temperature_K"):
        Langevin(-1, -1)


def test_errors_can_be_caught_as_values_and_as_ours():
    assert issubclass(EnsembleError, NepCGError)
    assert issubclass(EnsembleError, ValueError)


@pytest.mark.parametrize("ensemble", ALL, ids=name_of)
def test_settings_cannot_be_changed_or_misspelt(ensemble):
    for field in dataclasses.fields(ensemble):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(ensemble, field.name, 1.0)
    settings = {field.name: getattr(ensemble, field.name) for field in dataclasses.fields(ensemble)}
    with pytest.raises(TypeError, match="temprature_K"):
        type(ensemble)(**settings, temprature_K=300.0)


# ---- dictionaries


@pytest.mark.parametrize("ensemble", ALL, ids=name_of)
def test_an_ensemble_comes_back_from_json(ensemble):
    settings = ensemble.todict()
    assert next(iter(settings)) == "name"
    assert set(settings) == {"name"} | {field.name for field in dataclasses.fields(ensemble)}
    written = json.loads(json.dumps(settings))
    kept = copy.deepcopy(written)
    again = ensemble_from_dict(written)
    assert written == kept
    assert type(again) is type(ensemble)
    assert again == ensemble
    assert hash(again) == hash(ensemble)
    assert again.todict() == settings
    # the same numbers for the kernels
    for other in (again, pickle.loads(pickle.dumps(ensemble))):
        assert other == ensemble
        np.testing.assert_array_equal(other.parameters(setup()), ensemble.parameters(setup()))


def test_every_ensemble_is_listed_with_a_name_of_its_own():
    names = {ensemble.todict()["name"] for ensemble in ALL}
    assert names == {"nve", "langevin", "bussi", "nose_hoover", "npt", "deform", "hnemd"}
    with pytest.raises(EnsembleError, match=r"unknown ensemble 'nvt'; expected one of bussi, deform, .*, nve$"):
        ensemble_from_dict({"name": "nvt"})


def test_a_dictionary_with_settings_that_an_ensemble_does_not_have():
    with pytest.raises(TypeError, match="tau_fs"):
        ensemble_from_dict({"name": "nve", "tau_fs": 100.0})
    with pytest.raises(EnsembleError, match="temperature_K"):
        ensemble_from_dict({"name": "bussi", "temperature_K": -300.0, "tau_fs": 100.0})


# ---- of one replica


def test_defaults():
    toy = Toy(1.0)
    toy.check(setup(frozen=2, held=1))
    assert toy.n_dof(setup()) == 15
    np.testing.assert_array_equal(toy.parameters(setup()), np.zeros(3))
    np.testing.assert_array_equal(toy.initial(setup()), np.zeros(2))
    assert toy.temperature is None
    assert (toy.changes_cell, toy.per_site, toy.takes_constraints, toy.without_momentum) == (False, False, True, False)
    with pytest.raises(NotImplementedError):
        Toy.kernels()
    assert Kernels(1, 2, 3).drive is None


@pytest.mark.parametrize("ensemble", ALL, ids=name_of)
def test_what_the_loop_is_given(ensemble):
    s = setup()
    ensemble.check(s)
    p, q = ensemble.parameters(s), ensemble.initial(s)
    assert (p.shape, q.shape) == ((ensemble.n_params,), (ensemble.n_state,))
    assert np.isfinite(p).all()
    assert np.isfinite(q).all()
    assert ensemble.temperature == (None if isinstance(ensemble, NVE) else 300.0)
    kernels = type(ensemble).kernels()
    assert all(callable(function) for function in (kernels.begin, kernels.end, kernels.extra))
    assert (kernels.drive is not None) == isinstance(ensemble, HNEMD)
    assert ensemble.per_site == (kernels.drive is not None)


@pytest.mark.parametrize(("frozen", "held", "expected"), [(0, 0, 12), (1, 0, 12), (0, 2, 9), (2, 1, 6)])
def test_momentum_is_conserved_only_without_constraints(frozen, held, expected):
    s = setup(frozen=frozen, held=held)
    assert Isolated(1.0).n_dof(s) == expected
    assert Toy(1.0).n_dof(s) == s.n_dof


def test_no_temperature_without_motion():
    needs_motion(Toy(1.0), setup(n=1))
    with pytest.raises(EnsembleError, match=r"Isolated keeps a temperature.*1 sites, 0 frozen, 0 held.*more sites"):
        needs_motion(Isolated(1.0), setup(n=1))
    needs_motion(Isolated(1.0), setup(n=2))
    for ensemble in ALL[1:4]:
        for still in ({"n": 3, "frozen": 3}, {"n": 3, "held": 3}):
            with pytest.raises(EnsembleError, match="no degrees of freedom are left"):
                ensemble.check(setup(**still))
    # nothing has to move at constant energy
    NVE().check(setup(n=3, frozen=3))


def test_constraints_where_the_cell_changes():
    Squeezed(1.0).check(setup())
    with pytest.raises(EnsembleError, match=r"Squeezed changes the cell.*frozen atoms \(FixAtoms\).*NVE, Langevin"):
        Squeezed(1.0).check(setup(frozen=1, held=1))
    with pytest.raises(EnsembleError, match=r"held beads \(FixBeads\)"):
        Squeezed(1.0).check(setup(held=1))
    for ensemble in ALL:
        for constraint in ({"frozen": 1}, {"held": 1}):
            if ensemble.takes_constraints:
                ensemble.check(setup(**constraint))
            else:
                with pytest.raises(EnsembleError, match=r"Fix(Atoms|Beads).*remove the constraint"):
                    ensemble.check(setup(**constraint))


# ---- directions


def spanned(vector, rows):
    """By Gram-Schmidt."""
    rest, basis = np.array(vector, float), []
    for row in rows:
        row = row - sum((row @ b * b for b in basis), np.zeros(3))
        basis.append(row / np.linalg.norm(row))
        rest = rest - rest @ basis[-1] * basis[-1]
    return np.linalg.norm(rest) <= 1e-9 * np.linalg.norm(vector)


@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 1, 0), (0, 1, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0)])
def test_vectors_across_periodic_directions(rng, pbc):
    cell = np.diag([5.0, 6.0, 7.0]) + rng.normal(size=(3, 3))
    rows = cell[np.array(pbc, bool)]
    s = setup(pbc=pbc, cell=cell)
    vectors = [*np.eye(3), *cell, *rng.normal(size=(3, 3)) * 1e-6, *(rng.normal(size=(2, len(rows))) @ rows * 1e5)]
    answers = [across_periodic(s, vector) for vector in vectors]
    assert answers == [not spanned(vector, rows) for vector in vectors]
    assert all(type(answer) is bool for answer in answers)
    # a small component counts relative to the vector
    if 0 < sum(pbc) < 3:
        across = np.linalg.svd(rows)[2][-1]
        for scale in (1e-8, 1.0, 1e8):
            assert across_periodic(s, scale * (rows[0] + 1e-3 * across))
            assert not across_periodic(s, scale * (rows[0] + 1e-9 * across))
