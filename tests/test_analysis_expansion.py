import md_physics as physics
import numpy as np
import pytest

from ase_nepcg import analysis
from ase_nepcg.analysis import AnalysisError
from ase_nepcg.analysis.expansion import fit_expansion

T = np.array([100.0, 150.0, 200.0, 300.0, 350.0])


@pytest.mark.parametrize("known", [True, False])
def test_polynomials_are_found_exactly(known):
    # ln V of degree 2, ln a of degree 1
    volume = 900 * np.exp(3e-5 * T + 2e-8 * T**2)
    length = 9 * np.exp(1e-5 * T)
    mean = np.stack([volume, length], axis=1)
    error = np.full(mean.shape, 1e-3 if known else np.nan)
    alpha, alpha_error, chi_square = fit_expansion(T, mean, error, 2)
    np.testing.assert_allclose(alpha, np.stack([3e-5 + 4e-8 * T, np.full(5, 1e-5)], axis=1), rtol=1e-8)
    assert np.isfinite(alpha_error).all() == known
    if known:
        assert (chi_square < 1e-10).all()
    else:
        assert np.isnan(chi_square).all()


def test_errors_are_those_of_repeated_fits():
    rng, found = np.random.default_rng(1), []
    sigma = np.array([0.1, 0.1, 0.3, 0.2, 0.1])
    for _ in range(400):
        volume = 900 * np.exp(3e-5 * T) + rng.normal(size=5) * sigma
        found.append(fit_expansion(T, volume[:, None], sigma[:, None], 2))
    alpha = np.array([one[0][:, 0] for one in found])
    np.testing.assert_allclose(alpha.std(axis=0, ddof=1), found[0][1][:, 0], rtol=0.15)
    assert (np.abs(alpha.mean(axis=0) - 3e-5) < 4 * found[0][1][:, 0] / 20).all()
    assert np.mean([one[2][0] for one in found]) == pytest.approx(1.0, abs=0.2)


def test_a_crystal():
    crystal = physics.crystal(17.0, 2)
    settings = {"pressure_GPa": 3.0, "timestep_fs": 4.0, "equilibration_ps": 0.4, "time_ps": 2.0, "progress": False}
    settings |= {"tau_p_fs": 100.0, "compressibility_per_GPa": 0.05}
    result = analysis.thermal_expansion(crystal, [20.0, 60.0], **settings)
    assert result.volume_A3.shape == (2,)
    np.testing.assert_allclose(result.lengths_A.prod(axis=1), result.volume_A3, rtol=1e-3)
    # two temperatures: the line through both
    expected = np.log(result.volume_A3[1] / result.volume_A3[0]) / 40
    np.testing.assert_allclose(result.alpha_volume, expected, rtol=1e-9)
    # isotropic: a third of it for each length
    third = np.repeat(result.alpha_volume[:, None] / 3, 3, axis=1)
    np.testing.assert_allclose(result.alpha_lengths, third, rtol=0.05, atol=2e-6)
    assert np.isnan(result.chi_square)
    header, rows = result.as_table()
    assert rows.shape == (2, len(header))
    assert [len(atoms) for atoms in result.final] == [16, 16]
    assert not crystal.has("momenta")


@pytest.mark.parametrize(
    ("temperatures", "settings", "message"),
    [
        ([100.0], {}, "needs at least 2 different ones"),
        ([100.0, 100.0], {}, "needs at least 2 different ones"),
        ([100.0, 200.0], {"degree": 2}, "needs at least 3 different ones"),
        ([100.0, 200.0], {"degree": 0}, "degree: expected a positive integer"),
        ([100.0, -5.0], {}, "temperatures_K: expected a positive number"),
        ([100.0, "x"], {}, "temperatures_K: expected"),
        ([100.0, 200.0], {"time_ps": 0}, "time_ps: expected a positive number"),
    ],
)
def test_refusals(temperatures, settings, message):
    with pytest.raises(AnalysisError, match=message):
        analysis.thermal_expansion(physics.crystal(17.0, 2), temperatures, **settings)


def test_needs_a_calculator():
    bare = physics.crystal(17.0, 2)
    bare.calc = None
    with pytest.raises(AnalysisError, match="no calculator"):
        analysis.thermal_expansion(bare, [100.0, 200.0])
