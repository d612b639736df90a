"""Errors of averages over correlated series whose true errors are known."""

import numpy as np
import pytest

from ase_nepcg.meanforce.statistics import MIN_BLOCKS, block_errors, drift_of


def correlated(rng, n, components, tau):
    """Series with correlation exp(-t/tau) and variance 1."""
    a = np.exp(-1 / tau) if tau > 0 else 0.0
    x = np.empty((n, components))
    x[0] = rng.normal(size=components)
    noise = rng.normal(size=(n, components)) * np.sqrt(1 - a * a)
    for t in range(1, n):
        x[t] = a * x[t - 1] + noise[t]
    return x


def true_variance(n, tau):
    a = np.exp(-1 / tau) if tau > 0 else 0.0
    return (1 + 2 * sum((1 - t / n) * a**t for t in range(1, n))) / n


@pytest.mark.parametrize("tau", [0.0, 1.0, 3.0])
def test_error_of_a_series_with_known_correlation(rng, tau):
    x = correlated(rng, 200, 400, tau)
    errors = block_errors(x, [np.arange(400)])
    assert np.sqrt((errors.error**2).mean() / true_variance(200, tau)) == pytest.approx(1, abs=0.12)
    assert errors.reliable.all()


@pytest.mark.parametrize(("tau", "components"), [(0.0, 1), (2.0, 1), (2.0, 3), (4.0, 30)])
def test_pulls_have_unit_variance(rng, tau, components):
    pulls = []
    for _ in range(150):
        x = correlated(rng, 150, components, tau)
        pulls.append(x.mean(axis=0) / block_errors(x, [np.arange(components)]).error)
    assert np.std(pulls) == pytest.approx(1, abs=0.2)


def test_own_block_length_is_needed(rng):
    # what blocks of the given length would claim is far too small
    x = correlated(rng, 200, 300, 6.0)
    naive = x.std(axis=0, ddof=1) / np.sqrt(len(x))
    found = block_errors(x, [np.arange(300)]).error
    assert np.sqrt((naive**2).mean() / true_variance(200, 6.0)) < 0.35
    assert np.sqrt((found**2).mean() / true_variance(200, 6.0)) > 0.85


def test_fast_and_slow_components_of_a_pool_keep_their_own_errors(rng):
    # half of the components are slow: the average factor would be far too small for them, too large for the others
    fast, slow = correlated(rng, 250, 100, 0.5), correlated(rng, 250, 100, 4.0)
    error = block_errors(np.hstack([fast, slow]), [np.arange(200)]).error
    assert np.sqrt((error[:100] ** 2).mean() / true_variance(250, 0.5)) == pytest.approx(1, abs=0.5)
    assert np.sqrt((error[100:] ** 2).mean() / true_variance(250, 4.0)) == pytest.approx(1, abs=0.3)


def test_oscillation_makes_the_error_smaller(rng):
    # a damped vibration: averages over longer times scatter less than 1/sqrt(n) of independent blocks
    t = np.arange(200)
    phase = rng.uniform(0, 2 * np.pi, 100)
    x = np.cos(2.2 * t[:, None] + phase) + 0.05 * rng.normal(size=(200, 100))
    error = block_errors(x, [np.arange(100)]).error
    naive = x.std(axis=0) / np.sqrt(200)
    assert np.sqrt((error**2).mean() / (naive**2).mean()) < 0.3


def test_pools_are_independent(rng):
    x = np.hstack([correlated(rng, 120, 20, 0.0), 100 * correlated(rng, 120, 5, 3.0)])
    together = block_errors(x, [np.arange(20), np.arange(20, 25)])
    np.testing.assert_array_equal(together.error[:20], block_errors(x[:, :20], [np.arange(20)]).error)
    np.testing.assert_array_equal(together.error[20:], block_errors(x[:, 20:], [np.arange(5)]).error)


def test_run_shorter_than_its_correlation_is_reported(rng):
    flagged = [not block_errors(correlated(rng, 150, 60, 60.0), [np.arange(60)]).reliable.all() for _ in range(20)]
    assert sum(flagged) >= 16
    unflagged = [block_errors(correlated(rng, 150, 60, 1.0), [np.arange(60)]).reliable.all() for _ in range(20)]
    assert sum(unflagged) >= 19


def test_constants_have_no_error():
    x = np.tile([1.0, -3.0, 0.0], (50, 1))
    errors = block_errors(x, [np.arange(3)])
    assert np.array_equal(errors.error, np.zeros(3))
    assert errors.reliable.all()
    assert drift_of(x, errors, np.arange(3)) == (0.0, False)


def test_too_few_blocks_are_refused():
    with pytest.raises(ValueError, match=f"at least {MIN_BLOCKS}"):
        block_errors(np.zeros((MIN_BLOCKS - 1, 3)), [np.arange(3)])


def test_drift(rng):
    x = correlated(rng, 200, 90, 2.0)
    pool = np.arange(90)
    errors = block_errors(x, [pool])
    size, found = drift_of(x, errors, pool)
    assert size == pytest.approx(1, abs=0.35)
    assert not found
    shifted = x + 3.0 * np.exp(-np.arange(200) / 20)[:, None]
    size, found = drift_of(shifted, block_errors(shifted, [pool]), pool)
    assert size > 1.3
    assert found


def test_drift_is_rarely_seen_where_there_is_none(rng):
    found = 0
    for _ in range(60):
        x = correlated(rng, 150, 12, 1.0)
        found += drift_of(x, block_errors(x, [np.arange(12)]), np.arange(12))[1]
    assert found <= 3
