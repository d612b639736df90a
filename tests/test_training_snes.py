"""The evolution strategy against the plain formulas of its specification, and what a run can rely on."""

import json
import math

import numpy as np
import pytest

from ase_nepcg.checkpoint import read_checkpoint, write_checkpoint
from ase_nepcg.errors import NepCGError
from ase_nepcg.model import NEPModel
from ase_nepcg.training.snes import Snes, SnesError

OWNERS = np.array([0, 1, 0, 2, 1, 1, 0, 0, 1, 2, 0])  # two types, two shared variables


def plain_update(mu, sigma, steps, losses, owners, n_types):
    """One generation as written in the specification: loops, no shortcuts."""
    population, n = steps.shape
    raw = [max(0.0, math.log(population / 2 + 1) - math.log(p + 1)) for p in range(population)]
    utility = [value / sum(raw) - 1 / population for value in raw]
    m = n // n_types
    rate = (3 + math.log(m)) / (5 * math.sqrt(m)) / 2
    ranking = [sorted(range(population), key=lambda p, t=t: losses[p, t]) for t in range(n_types + 1)]
    new_mu, new_sigma = [], []
    for v in range(n):
        g_mu = g_sigma = 0.0
        for p in range(population):
            s = steps[ranking[owners[v]][p], v]
            g_mu += utility[p] * s
            g_sigma += utility[p] * (s * s - 1)
        new_mu.append(mu[v] + sigma[v] * g_mu)
        new_sigma.append(min(1.0, sigma[v] * math.exp(rate * g_sigma)))
    return np.array(new_mu), np.array(new_sigma), ranking[n_types][0]


def toy_losses(z, owners, n_types):
    """Separate optima for the channels, so that their rankings differ."""
    target = np.linspace(-1.0, 1.0, z.shape[1])
    squares = (z - target) ** 2
    channels = [squares[:, owners == t].sum(axis=1) for t in range(n_types)]
    return np.stack([*channels, squares.sum(axis=1)], axis=1)


@pytest.mark.parametrize(("owners", "n_types"), [(OWNERS, 2), (np.zeros(7, int), 1), (np.arange(23) % 5, 4)])
@pytest.mark.parametrize("population", [2, 7, 20])
def test_equals_the_plain_formulas(owners, n_types, population):
    search = Snes(owners, n_types, population=population, sigma0=0.4, seed=3)
    mu, sigma = search.mu.copy(), search.sigma.copy()
    for _ in range(6):
        z = search.ask()
        steps = (z - mu) / sigma
        losses = toy_losses(z, owners, n_types)
        if population > 4:
            losses[4] = losses[2]  # a tie
        mu, sigma, best = plain_update(mu, sigma, steps, losses, owners, n_types)
        assert search.tell(losses) == best
        np.testing.assert_allclose(search.mu, mu, rtol=0, atol=1e-13)
        np.testing.assert_allclose(search.sigma, sigma, rtol=1e-13, atol=0)
    assert search.generation == 6
    assert np.ptp(sigma) > 1e-3  # it did something


def test_start():
    search = Snes(np.zeros(20_000, int), 1, sigma0=0.05, seed=8)
    assert -1 < search.mu.min() < -0.999
    assert 0.999 < search.mu.max() < 1
    assert (search.sigma == 0.05).all()
    assert np.array_equal(search.mu, Snes(np.zeros(20_000, int), 1, seed=8).mu)
    assert not np.array_equal(search.mu, Snes(np.zeros(20_000, int), 1, seed=9).mu)
    z = search.ask()
    steps = (z - search.mu) / search.sigma
    assert z.shape == (50, 20_000)
    assert abs(steps.mean()) < 4e-3
    assert abs(steps.std() - 1) < 3e-3
    assert len(np.unique(steps)) > 0.99 * steps.size
    given = np.linspace(0, 1, 11)
    assert np.array_equal(Snes(OWNERS, 2, seed=1, mu=given).mu, given)


def test_step_size_counts_variables_per_type():
    # N_par = 3033 and T = 2 of the PbTe example: floor(3033 / 2) = 1516
    search = Snes(np.zeros(3033, int), 2, seed=0)
    assert search.learning_rate == pytest.approx((3 + math.log(1516)) / (5 * math.sqrt(1516)) / 2, rel=1e-15)
    assert search.utilities.sum() == pytest.approx(0, abs=1e-15)
    assert (search.utilities[25:] == -1 / 50).all()
    assert search.utilities[24] > -1 / 50


def test_takes_the_owners_of_a_model():
    model = NEPModel.random(["O", "H"], neurons=3, n_max=(1, 1), basis_size=(2, 2), l_max=(2,))
    _, owners = model.parameter_blocks()
    search = Snes(owners, model.n_types, population=6, seed=0)
    before = search.mu.copy()
    losses = np.zeros((6, 3))
    losses[:, 0] = [5, 4, 3, 2, 1, 0]
    z = search.ask()
    search.tell(losses)
    moved = (search.mu - before) @ np.diag(owners == 0)
    best = (z[5] - before) @ np.diag(owners == 0)
    assert moved @ best > 0
    assert model.with_parameters(search.mu).n_types == 2


def test_finds_the_optimum_of_a_separable_quadratic():
    owners = np.repeat([0, 1, 2], [12, 12, 1])
    search = Snes(owners, 2, population=20, sigma0=0.1, seed=4)
    scale = np.logspace(0, 2, len(owners))
    target = np.linspace(-2, 2, len(owners))
    for _ in range(800):
        squares = scale * (search.ask() - target) ** 2
        channels = [squares[:, owners == t].sum(axis=1) for t in range(2)]
        search.tell(np.stack([*channels, squares.sum(axis=1)], axis=1))
    np.testing.assert_allclose(search.mu, target, atol=1e-3)


def test_ties_rank_by_position():
    search = Snes(OWNERS, 2, population=5, seed=0)
    assert search.tell(np.zeros((5, 3))) == 0
    first, second = (Snes(OWNERS, 2, population=5, seed=0) for _ in range(2))
    first.tell(np.zeros((5, 3)))
    second.tell(np.arange(15.0).reshape(5, 3))
    assert np.array_equal(first.mu, second.mu)


def test_losses_that_are_not_finite_rank_last():
    search, ordered = (Snes(OWNERS, 2, population=4, seed=0) for _ in range(2))
    losses = np.tile([[np.nan], [3.0], [-np.inf], [2.0]], 3)
    assert search.tell(losses) == 3
    ordered.tell(np.tile([[8.0], [3.0], [9.0], [2.0]], 3))
    assert np.array_equal(search.mu, ordered.mu)
    assert np.array_equal(search.sigma, ordered.sigma)


@pytest.mark.parametrize("column", [0, 2])
def test_a_column_without_finite_losses_is_refused_and_changes_nothing(column):
    search = Snes(OWNERS, 2, population=4, seed=0)
    mu, z = search.mu.copy(), search.ask()
    losses = np.zeros((4, 3))
    losses[:, column] = np.nan
    with pytest.raises(SnesError, match=f"column {column} .* none in generation 0"):
        search.tell(losses)
    assert search.generation == 0
    assert np.array_equal(search.mu, mu)
    assert np.array_equal(search.ask(), z)


def test_sigma_is_capped():
    search = Snes(np.zeros(4, int), 1, population=10, seed=2, sigma=np.full(4, 0.9))
    for _ in range(100):
        farther_is_better = -((search.ask() - search.mu) ** 2).sum(axis=1)
        search.tell(np.stack([farther_is_better] * 2, axis=1))
        assert search.sigma.max() <= 1.0
    assert search.sigma.max() == 1.0


def test_frozen_variables_stay():
    frozen = np.arange(11) % 3 == 0
    search = Snes(OWNERS, 2, population=8, seed=5, frozen=frozen)
    start = search.mu.copy()
    for _ in range(20):
        z = search.ask()
        assert (z[:, frozen] == start[frozen]).all()
        search.tell(toy_losses(z, OWNERS, 2))
    assert np.array_equal(search.mu[frozen], start[frozen])
    assert (search.mu[~frozen] != start[~frozen]).all()
    assert (search.sigma[frozen] == 0).all()


@pytest.mark.parametrize("asked", [True, False])
def test_resume_gives_the_same_bits(tmp_path, asked):
    def run(search, generations):
        for _ in range(generations):
            search.tell(toy_losses(search.ask(), OWNERS, 2))

    # a seed beyond 64 bits, as the system gives them
    unbroken = Snes(OWNERS, 2, population=8, seed=2**100 + 3, frozen=OWNERS == 2)
    run(unbroken, 5)
    if asked:
        unbroken.ask()
    header, arrays = unbroken.state()
    write_checkpoint(tmp_path / "s.npz", "test", {"other": 1, **header}, arrays | {"extra": np.zeros(2)})
    run(unbroken, 7)
    resumed = Snes.from_state(*read_checkpoint(tmp_path / "s.npz", "test"))
    assert resumed.generation == 5
    run(resumed, 7)
    assert resumed.mu.tobytes() == unbroken.mu.tobytes()
    assert resumed.sigma.tobytes() == unbroken.sigma.tobytes()
    assert resumed.generation == 12


def test_state_is_a_copy_of_plain_types():
    search = Snes(OWNERS, 2, population=4)
    header, arrays = search.state()
    assert json.loads(json.dumps(header)) == header
    mu = arrays["snes_mu"].copy()
    search.tell(np.zeros((4, 3)))
    assert np.array_equal(arrays["snes_mu"], mu)
    with pytest.raises(SnesError, match=r"expected what Snes.state\(\) returned"):
        Snes.from_state({}, arrays)
    with pytest.raises(SnesError, match=r"expected what Snes.state\(\) returned"):
        Snes.from_state(header, {})


def test_given_arrays_stay_as_they_are():
    mu, sigma = np.zeros(11), np.ones(11)
    search = Snes(OWNERS, 2, population=4, seed=0, mu=mu, sigma=sigma, frozen=np.ones(11, bool))
    search.tell(toy_losses(search.ask(), OWNERS, 2))
    assert (mu == 0).all()
    assert (sigma == 1).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"owners": [0, 1, 3]}, r"owners: expected integers from 0 to 2 \(shared\), got \[0 1 3\]"),
        ({"owners": [0, 1, 0.5]}, "owners: expected integers"),
        ({"owners": [0]}, r"at least one variable per type \(2\), got 1"),
        ({"owners": [[0, 1, 2]]}, r"owners: expected shape \(any\)"),
        ({"n_types": 0}, "n_types: expected 1 to"),
        ({"population": 1}, "population: expected 2 to"),
        ({"population": 8.5}, "population: expected an integer, got 8.5"),
        ({"seed": -1}, "seed: expected 0 to"),
        ({"sigma0": 0.0}, "sigma0: expected a number above 0 and up to 1, got 0.0"),
        ({"sigma0": math.nan}, "sigma0: expected a number"),
        ({"mu": np.zeros(4)}, r"mu: expected shape \(3\), got \(4,\)"),
        ({"mu": [0, np.nan, 0]}, r"mu: entry \(1,\) is nan"),
        ({"sigma": [0.1, -0.1, 0.1]}, "sigma: expected numbers of at least 0, got -0.1"),
        ({"frozen": [0, 1]}, "frozen: expected 3 truth values"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(SnesError, match=message) as caught:
        Snes(**({"owners": [0, 1, 2], "n_types": 2} | settings))
    assert isinstance(caught.value, NepCGError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (np.zeros((4, 2)), r"losses: .* shape \(4, 3\), got \(4, 2\)"),
        (np.zeros((3, 3)), r"losses: .* shape \(4, 3\), got \(3, 3\)"),
        ([["a"] * 3] * 4, "losses: expected numbers"),
    ],
)
def test_refused_losses(losses, message):
    with pytest.raises(SnesError, match=message):
        Snes(OWNERS, 2, population=4, seed=0).tell(losses)
