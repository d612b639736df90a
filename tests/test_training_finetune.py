"""Parameters handed from one model to another: the same potential, or a refusal that says why."""

from dataclasses import replace

import numpy as np
import pytest

from ase_nepcg import NEP, NEPModel
from ase_nepcg.errors import NepCGError
from ase_nepcg.model import ZBL
from ase_nepcg.training.finetune import FineTuneError, foundation_start, restrict, start_from_model

SMALL = {"neurons": 3, "n_max": (1, 2), "basis_size": (3, 2), "l_max": (3, 1), "cutoff": (5.0, 4.0)}
SPECIES = ["C", "H", "O", "N"]


def foundation(**settings):
    return NEPModel.random(SPECIES, seed=1, **(SMALL | settings))


def restart(model, seed=2):
    rng = np.random.default_rng(seed)
    return rng.normal(size=model.n_parameters), rng.uniform(0.01, 0.1, model.n_parameters)


def test_copies_networks_and_coefficients_of_ordered_pairs():
    big = foundation()
    model = NEPModel.zeros(["O", "C"], q_scaler=big.q_scaler, **SMALL)
    mu, sigma = restart(big)
    start = foundation_start(big, mu, sigma, model)
    for z, full in zip(start, (mu, sigma), strict=True):
        small, big_ = model.with_parameters(z), big.with_parameters(full)
        assert small.bias == 0
        for name, label in ((name, label) for name in ("w0", "b0", "w1") for label in ("O", "C")):
            here, there = getattr(small, name), getattr(big_, name)
            assert np.array_equal(here[model.species.index(label)], there[big.species.index(label)])
        for name in ("c_radial", "c_angular"):
            for a, first in enumerate("OC"):
                for b, second in enumerate("OC"):
                    there = getattr(big_, name)[:, :, SPECIES.index(first), SPECIES.index(second)]
                    assert np.array_equal(getattr(small, name)[:, :, a, b], there)


def test_frozen_descriptor():
    big = foundation()
    model = NEPModel.zeros(["H", "O"], q_scaler=big.q_scaler, **SMALL)
    free, frozen = (foundation_start(big, *restart(big), model, freeze_descriptor=f) for f in (False, True))
    assert np.array_equal(free[0], frozen[0])
    blocks, _ = model.parameter_blocks()
    for name, block in blocks.items():
        expected = np.zeros_like(free[1][block]) if name[:2] == "c_" else free[1][block]
        assert np.array_equal(frozen[1][block], expected)
        assert (free[1][block] > 0).all() == (name != "bias")


@pytest.mark.parametrize(("version", "neurons"), [(3, 3), (5, 3), (4, (3, 2))])
def test_other_versions_and_a_second_layer(version, neurons):
    settings = SMALL | {"version": version, "neurons": neurons}
    big = foundation(version=version, neurons=neurons)
    model = NEPModel.zeros(["N", "H"], q_scaler=big.q_scaler, **settings)
    mu, sigma = foundation_start(big, *restart(big), model)
    assert mu.shape == sigma.shape == (model.n_parameters,)
    assert (mu == 0).sum() == (sigma == 0).sum() == 1  # the common bias


def test_restrict_is_the_same_potential(models, structures):
    big = models["full"]
    atoms = structures["triclinic"]
    only = atoms[[k for k, symbol in enumerate(atoms.symbols) if symbol == "H"]]
    assert 0 < len(only) < len(atoms)
    forces = []
    for model in (big, restrict(big, ["H"]), restrict(big, ["H", "O"])):
        only.calc = NEP(model, temperature_K=300.0, threads=1)
        forces.append(only.get_forces())
    assert np.abs(forces[0]).max() > 1e-3
    np.testing.assert_allclose(forces[1], forces[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(forces[2], forces[0], rtol=0, atol=1e-12)


def test_restrict_picks_the_rows_of_a_flexible_repulsion():
    rows = np.tile([0.5, 1.0, 0.2, 3.0, 0.5, 0.9, 0.3, 0.4, 0.0, 0.2], (10, 1))
    rows[:, 1] += np.arange(10) * 0.1
    big = replace(foundation(), zbl=ZBL(0, 0, flexible=rows))
    small = restrict(big, ["N", "H"])
    where = np.ix_([3, 1], [3, 1])
    assert np.array_equal(small.zbl_pairs(), big.zbl_pairs()[where])


def test_start_from_model_makes_up_for_the_scaler(models, structures):
    old = models["plain"]
    rng = np.random.default_rng(3)
    new = NEPModel.zeros(["H", "O"], q_scaler=old.q_scaler * rng.uniform(0.5, 2.0, old.n_descriptor))
    new = new.with_parameters(start_from_model(old, new))
    atoms = structures["triclinic"]
    results = []
    for model in (old, new):
        atoms.calc = NEP(model, threads=1)
        results.append((atoms.get_potential_energy(), atoms.get_forces()))
    assert results[1][0] == pytest.approx(results[0][0], abs=1e-11)
    np.testing.assert_allclose(results[1][1], results[0][1], rtol=0, atol=1e-11)
    assert np.array_equal(start_from_model(old, old), old.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"neurons": 4}, "neurons 3 and 4$"),
        ({"neurons": 4, "n_max": (2, 2)}, r"n_max \(1, 2\) and \(2, 2\); neurons 3 and 4$"),
        ({"l_max": (3, 0)}, r"many_body \('q222',\) and \(\)"),
        ({"version": 3}, "version 4 and 3"),
        ({"cutoff": (5.5, 4.0)}, "radial cutoff of O-O 5 and 5.5 Å"),
        ({"cutoff": {"O": (5.0, 4.0), "H": (5.0, 3.0)}}, "angular cutoff of O-H 4 and 3.5 Å"),
        ({"zbl": (1.0, 2.0)}, r"zbl None and ZBL\(1, 2\)"),
    ],
)
def test_names_what_differs(settings, message):
    big, model = foundation(), NEPModel.zeros(["O", "H"], **(SMALL | settings))
    with pytest.raises(FineTuneError, match=message):
        foundation_start(big, *restart(big), model)
    with pytest.raises(FineTuneError, match=message) as caught:
        start_from_model(big, model)
    assert isinstance(caught.value, NepCGError)
    assert isinstance(caught.value, ValueError)


def test_equal_repulsion_in_two_forms_is_no_difference():
    big = foundation(zbl=(1.0, 2.0))
    rows = np.array([[1.0, 2.0, 0.18175, 3.1998, 0.50986, 0.94229, 0.28022, 0.4029, 0.02817, 0.20162]] * 3)
    model = NEPModel.zeros(["O", "H"], zbl=ZBL(0, 0, flexible=rows), **SMALL)
    assert start_from_model(big, model).shape == (model.n_parameters,)


def test_other_refusals():
    big = foundation()
    model = NEPModel.zeros(["O", "Na", "Cl"], **SMALL)
    with pytest.raises(FineTuneError, match=r"\(C, H, O, N\), got Na, Cl too"):
        start_from_model(big, model)
    model = NEPModel.zeros(["O"], **SMALL)
    mu, sigma = restart(big)
    with pytest.raises(FineTuneError, match=r"replace\(model, q_scaler=foundation.q_scaler\)"):
        foundation_start(big, mu, sigma, model)
    with pytest.raises(FineTuneError, match="restart of the foundation model: sigma: expected shape"):
        foundation_start(big, mu, sigma[:-1], model)
    with pytest.raises(FineTuneError, match=r"sigma is -0\.05, expected at least 0"):
        foundation_start(big, mu, np.full_like(sigma, -0.05), model)
    with pytest.raises(FineTuneError, match="mu: entry"):
        foundation_start(big, mu * np.nan, sigma, model)
