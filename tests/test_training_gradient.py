"""L-BFGS on functions with known minima and against a dense twin, Adam against its formulas written out."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize

from ase_nepcg.checkpoint import read_checkpoint, write_checkpoint
from ase_nepcg.errors import NepCGError
from ase_nepcg.training.gradient import LBFGS, Adam, OptimizerError


def rosenbrock(z):
    return scipy.optimize.rosen(z), scipy.optimize.rosen_der(z)


def quadratic(condition, n=20, seed=3):
    """Function, minimum and Hessian of a quadratic with this condition number and no axis along a coordinate."""
    rng = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(rng.normal(size=(n, n)))
    hessian = (axes * np.geomspace(1, condition, n)) @ axes.T
    b = rng.normal(size=n)

    def function(z):
        return 0.5 * z @ hessian @ z - b @ z, hessian @ z - b

    return function, scipy.linalg.solve(hessian, b, assume_a="pos"), hessian


def log_cosh(z):
    """Convex, neither quadratic nor separable; its Hessian nearly vanishes far from the minimum."""
    rng = np.random.default_rng(2)
    u = (a := rng.normal(size=(3 * len(z), len(z)))) @ z - rng.normal(size=len(a))
    return np.logaddexp(u, -u).sum(), a.T @ np.tanh(u)


def logarithms(z):
    """Minimum at 1, 2, 3, ...; infinite or not a number where a coordinate is not positive."""
    c = 1.0 / np.arange(1, len(z) + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(c @ z - np.log(z).sum()), c - 1 / z


START = np.linspace(-1.5, 1.8, 10)


# ---- L-BFGS ----------------------------------------------------------------------------------------------------------


def test_rosenbrock():
    search = LBFGS(rosenbrock, START)
    for _ in range(100):
        if not search.step():
            break
    np.testing.assert_allclose(search.z, 1.0, atol=1e-7)
    assert search.value < 1e-13
    assert search.evaluations < 160


@pytest.mark.parametrize(("condition", "steps"), [(10, 20), (1e6, 250)])
def test_quadratic(condition, steps):
    function, minimum, hessian = quadratic(condition)
    search = LBFGS(function, np.zeros(20))
    for _ in range(steps):
        if not search.step():
            break
    excess = 0.5 * (search.z - minimum) @ hessian @ (search.z - minimum)
    assert excess < 1e-10 * abs(search.value)


def test_same_minimum_as_scipy():
    start = np.full(12, 5.0)
    search = LBFGS(log_cosh, start)
    # values are known to 1e-16 of themselves, and with them the place to 1e-8
    while np.abs(search.gradient).max() > 1e-6:
        assert search.step()
        assert search.evaluations < 200
    found = scipy.optimize.minimize(log_cosh, start, jac=True, method="BFGS", options={"gtol": 1e-7})
    np.testing.assert_allclose(search.z, found.x, atol=1e-6)
    assert search.value == pytest.approx(found.fun, rel=1e-14)


@pytest.mark.parametrize("function", [rosenbrock, log_cosh, quadratic(1e3, 10)[0]])
@pytest.mark.parametrize("memory", [1, 4, 50])
def test_accepted_steps_fulfil_the_strong_wolfe_conditions(function, memory):
    search = LBFGS(function, START, memory=memory)
    lengths = []
    for _ in range(60):
        z, value, gradient = search.z, search.value, search.gradient
        if np.linalg.norm(gradient) < 1e-4:
            break
        assert search.step()
        s = search.z - z
        slope = gradient @ s
        assert slope < 0
        assert search.value <= value + 1e-4 * slope
        assert abs(search.gradient @ s) <= -0.9 * slope * (1 + 1e-9)
        np.testing.assert_allclose(search.gradient, function(search.z)[1], rtol=1e-12, atol=1e-12)
        lengths.append(np.linalg.norm(s))
    assert len(lengths) > 10


@pytest.mark.parametrize("memory", [1, 3, 50])
def test_direction_is_that_of_the_dense_update(memory):
    search = LBFGS(rosenbrock, START, memory=memory)
    pairs = []
    for step in range(12):
        direction = search._direction()
        if step == 0:
            assert np.array_equal(direction, -search.gradient)
        else:
            s, y = pairs[-1]
            inverse = np.eye(10) * (s @ y) / (y @ y)
            for s, y in pairs[-memory:]:
                half = np.eye(10) - np.outer(s, y) / (s @ y)
                inverse = half @ inverse @ half.T + np.outer(s, s) / (s @ y)
            np.testing.assert_allclose(direction, -inverse @ search.gradient, rtol=1e-8, atol=1e-10)
        z, gradient = search.z, search.gradient
        assert search.step()
        pairs.append((search.z - z, search.gradient - gradient))
    assert len(search.state()["steps"]) == min(memory, 12)


def test_first_step_is_no_longer_than_a_tenth_per_parameter():
    seen = []

    def steep(z):
        seen.append(z.copy())
        return 1e6 * z @ z, 2e6 * z

    LBFGS(steep, np.ones(16)).step()
    assert np.linalg.norm(seen[1] - seen[0]) == pytest.approx(0.1 * 4)


@pytest.mark.parametrize("kind", ["value", "gradient"])
def test_backs_away_from_where_the_function_is_not_finite(kind):
    outside = []

    def function(z):
        value, gradient = logarithms(z)
        if (z <= 0).any():
            outside.append(z)
            return (np.nan, gradient) if kind == "value" else (-1e9, np.full_like(z, np.nan))
        return value, gradient

    # the last one is so near to the border that the first step leads across
    search = LBFGS(function, np.array([3.0, 1.0, 1.0, 1.0, 20.0, 200.0]))
    for _ in range(200):
        if not search.step():
            break
        assert np.isfinite(search.value)
        assert np.isfinite(search.gradient).all()
    np.testing.assert_allclose(search.z, np.arange(1, 7), rtol=1e-5)
    assert outside


def test_steps_beyond_the_border_become_ten_times_shorter():
    seen = []

    def function(z):
        seen.append(z[0])
        return (float(z[0] - np.log(z[0])), 1 - 1 / z) if z[0] > 0 else (np.inf, np.full(1, np.nan))

    search = LBFGS(function, np.array([20.0]))
    search.memory = 1
    # as if a step of 1000 had been right so far
    search._pairs = [(np.array([1000.0]), np.array([1.0]))]
    assert search.step()
    # the third one is inside, though not the last
    np.testing.assert_allclose(20.0 - np.array(seen[1:4]), [950.0, 95.0, 9.5], rtol=1e-12)
    assert len(seen) < 10
    assert seen[-1] == search.z[0] > 0


@pytest.mark.parametrize(("value", "gradient"), [(np.nan, 1.0), (np.inf, 1.0), (-np.inf, 1.0), (1.0, np.nan)])
def test_start_that_is_not_finite_is_an_error(value, gradient):
    with pytest.raises(OptimizerError, match="loss of the start") as caught:
        LBFGS(lambda z: (value, np.full_like(z, gradient)), START)
    assert isinstance(caught.value, NepCGError)
    assert isinstance(caught.value, ArithmeticError)


def test_says_when_it_has_converged():
    function, minimum, _ = quadratic(100.0)
    search = LBFGS(function, np.zeros(20))
    assert search.step()
    for _ in range(200):
        before = search.z
        if not search.step():
            break
    else:
        pytest.fail("never converged")
    assert np.array_equal(search.z, before)
    np.testing.assert_allclose(search.z, minimum, atol=1e-7)
    assert not search.step()
    assert not LBFGS(lambda z: (float(z @ z), 2 * z), np.zeros(3)).step()


def test_ends_at_a_kink():
    search = LBFGS(lambda z: (float(np.abs(z).sum()), np.where(z >= 0, 1.0, -1.0)), np.array([0.3, -1.7, 2.2]))
    values = [search.value]
    while search.step():
        values.append(search.value)
        assert len(values) < 100
    assert (np.diff(values) < 0).all()
    assert search.value < 1


def test_never_rises():
    search = LBFGS(rosenbrock, START, memory=5)
    values = [search.value]
    for _ in range(40):
        search.step()
        values.append(search.value)
    assert (np.diff(values) < 0).all()


def test_counts_evaluations_and_keeps_the_start():
    calls = []

    def function(z):
        calls.append(1)
        return rosenbrock(z)

    start = START.copy()
    search = LBFGS(function, start)
    for _ in range(9):
        search.step()
    assert search.evaluations == len(calls) > 9
    assert np.array_equal(start, START)


@pytest.mark.parametrize("steps", [0, 1, 8])
@pytest.mark.parametrize("memory", [2, 50])
def test_lbfgs_resumes_with_the_same_bits(tmp_path, steps, memory):
    unbroken = LBFGS(rosenbrock, START, memory=memory)
    for _ in range(steps):
        unbroken.step()
    write_checkpoint(tmp_path / "s.npz", "test", {}, unbroken.state())
    for _ in range(9):
        unbroken.step()
    resumed = LBFGS(rosenbrock, None, memory=memory, state=read_checkpoint(tmp_path / "s.npz", "test")[1])
    for _ in range(9):
        resumed.step()
    first, second = unbroken.state(), resumed.state()
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].tobytes() == second[name].tobytes(), name
    assert first["evaluations"] > 9


def test_state_does_not_change_afterwards():
    search = LBFGS(rosenbrock, START)
    for _ in range(5):
        search.step()
    state = search.state()
    kept = {name: array.copy() for name, array in state.items()}
    search.step()
    assert all(np.array_equal(state[name], kept[name]) for name in kept)


# ---- Adam ------------------------------------------------------------------------------------------------------------


def plain_adam(z, gradients, steps, warmup, high, low):
    """All parameters after every step and the learning rates, by loops over scalars."""
    z, m, v = list(z), [0.0] * len(z), [0.0] * len(z)
    average, path, rates, cut = None, [], [], 0
    for t, g in enumerate(gradients):
        norm = math.sqrt(sum(x * x for x in g))
        average = norm if average is None else 0.9 * average + 0.1 * norm
        factor = 1.0
        if norm > average:
            factor, cut = average / norm, cut + 1
        if t < warmup:
            rate = low + (high - low) * (t + 1) / warmup
        else:
            rate = low + (high - low) * (1 + math.cos(math.pi * min(1, (t - warmup) / max(1, steps - warmup)))) / 2
        for i in range(len(z)):
            m[i] = 0.9 * m[i] + 0.1 * factor * g[i]
            v[i] = 0.999 * v[i] + 0.001 * (factor * g[i]) ** 2
            z[i] -= rate * (m[i] / (1 - 0.9 ** (t + 1))) / (math.sqrt(v[i] / (1 - 0.999 ** (t + 1))) + 1e-8)
        path.append(list(z))
        rates.append(rate)
    return np.array(path), np.array(rates), cut


def random_gradients(steps, n=6, seed=4):
    """Of very different lengths."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(steps, n)) * np.exp(rng.normal(size=(steps, 1)))


@pytest.mark.parametrize(("steps", "warmup"), [(40, 7), (40, 1), (10, 0), (5, 5), (20, 10)])
def test_equals_the_plain_formulas(steps, warmup):
    settings = {"steps": steps, "warmup": warmup, "high": 0.03, "low": 1e-4}
    gradients = random_gradients(steps + 5)  # a few more than announced
    adam = Adam(START[:6], **settings)
    path, rates, cut = plain_adam(START[:6], gradients.tolist(), **settings)
    for gradient, z, rate in zip(gradients, path, rates, strict=True):
        assert adam.learning_rate == pytest.approx(rate, rel=1e-13)
        adam.step(gradient)
        np.testing.assert_allclose(adam.z, z, rtol=1e-12, atol=0)
    assert adam.count == steps + 5
    # a test of clipping needs both kinds
    assert 0 < cut < steps + 5


def test_learning_rate_rises_and_falls():
    adam = Adam(np.zeros(2), steps=100, warmup=10, high=0.5, low=0.001)
    rates = []
    for _ in range(120):
        rates.append(adam.learning_rate)
        adam.step(np.ones(2))
    rates = np.array(rates)
    np.testing.assert_allclose(np.diff(rates[:10]), 0.0499, rtol=1e-12)
    assert rates[9] == rates[10] == rates.max() == 0.5
    assert (np.diff(rates[10:100]) < 0).all()
    assert rates[55] == pytest.approx(0.2505, rel=1e-3)
    assert (rates[100:] == 0.001).all()


def test_an_outlier_is_cut():
    one, other = (Adam(np.zeros(3), steps=50, warmup=1) for _ in range(2))
    for _ in range(10):
        one.step(np.array([3.0, 0.0, 4.0]))
        other.step(np.array([3.0, 0.0, 4.0]))
    # the average becomes 0.9 * 5 + 0.1 * 1000
    one.step(np.array([600.0, 0.0, 800.0]))
    other._norm = 1e9
    other.step(np.array([600.0, 0.0, 800.0]) * 104.5 / 1000)
    np.testing.assert_allclose(one.z, other.z, rtol=1e-13)


def test_gradients_of_zero_move_nothing():
    adam = Adam(START, steps=5, warmup=1)
    for _ in range(5):
        adam.step(np.zeros(10))
    assert np.array_equal(adam.z, START)


def test_adam_finds_a_minimum_in_noise():
    rng = np.random.default_rng(1)
    target = np.linspace(-1, 1, 10)
    adam = Adam(np.zeros(10), steps=2000, warmup=20, high=0.05)
    for _ in range(2000):
        adam.step(adam.z - target + rng.normal(size=10))
    np.testing.assert_allclose(adam.z, target, atol=0.15)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_gradient_that_is_not_finite_changes_nothing(wrong):
    adam = Adam(START, steps=5, warmup=1)
    adam.step(np.ones(10))
    before = {name: array.copy() for name, array in adam.state().items()}
    gradient = np.ones(10)
    gradient[3] = wrong
    with pytest.raises(OptimizerError, match="smaller learning rate"):
        adam.step(gradient)
    assert all(np.array_equal(array, before[name]) for name, array in adam.state().items())


@pytest.mark.parametrize("steps", [0, 1, 12])
def test_adam_resumes_with_the_same_bits(tmp_path, steps):
    settings = {"steps": 30, "warmup": 4}
    gradients = random_gradients(30)
    unbroken = Adam(START[:6], **settings)
    for gradient in gradients[:steps]:
        unbroken.step(gradient)
    write_checkpoint(tmp_path / "s.npz", "test", {}, unbroken.state())
    for gradient in gradients[steps:]:
        unbroken.step(gradient)
    resumed = Adam(None, **settings, state=read_checkpoint(tmp_path / "s.npz", "test")[1])
    assert resumed.count == steps
    for gradient in gradients[steps:]:
        resumed.step(gradient)
    first, second = unbroken.state(), resumed.state()
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].tobytes() == second[name].tobytes(), name
