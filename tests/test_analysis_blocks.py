import numpy as np
import pytest

from ase_nepcg.analysis.blocks import FrameAverage


@pytest.mark.parametrize("n", [1, 7, 255, 256, 257, 1000, 2049])
def test_mean_is_that_of_all_frames(n):
    x = np.random.default_rng(n).normal(size=(n, 2, 3))
    average = FrameAverage()
    for frame in x:
        average.add(frame)
    assert average.samples == n
    np.testing.assert_allclose(average.mean, x.mean(axis=0), atol=1e-12)
    blocks = average.blocks()
    assert len(blocks) <= 256
    length = next(2**k for k in range(20) if n <= 256 * 2**k)
    np.testing.assert_allclose(blocks[0], x[:length].mean(axis=0), atol=1e-12)


def test_error_of_correlated_numbers():
    # autoregressive: variance 1, correlation time 10 frames
    rng, c = np.random.default_rng(1), np.exp(-0.1)
    noise = rng.normal(size=(20_000, 8)) * np.sqrt(1 - c**2)
    x, average = rng.normal(size=8), FrameAverage()
    for step in noise:
        x = c * x + step
        average.add(x)
    expected = np.sqrt((1 + c) / (1 - c) / len(noise))
    error = average.error([np.arange(8)])
    assert error.mean() == pytest.approx(expected, rel=0.25)
    assert np.abs(average.mean / expected).max() < 4


def test_no_error_from_few_frames():
    average = FrameAverage()
    for k in range(7):
        average.add([k])
    assert np.isnan(average.error()).all()
