import md_physics as physics
import numpy as np
import pytest
from ase import units

from ase_nepcg.analysis import AnalysisError
from ase_nepcg.analysis.runs import check_run, equilibrated, hot_copy, run_seed, steps_of


def test_hot_copy():
    crystal = physics.crystal(17.0, 4)
    copy = hot_copy(crystal, 300.0, [3, 1])
    assert np.array_equal(copy.positions, crystal.positions)
    assert copy.calc is not crystal.calc
    assert copy.calc.model == crystal.calc.model
    assert not crystal.has("momenta")
    # 384 degrees of freedom
    kinetic = copy.get_kinetic_energy() / (0.5 * units.kB * 300.0 * 3 * len(copy))
    assert abs(kinetic - 1) < 4 * np.sqrt(2 / (3 * len(copy)))
    assert np.array_equal(hot_copy(crystal, 300.0, [3, 1]).get_momenta(), copy.get_momenta())
    assert not np.array_equal(hot_copy(crystal, 300.0, [3, 2]).get_momenta(), copy.get_momenta())
    other = physics.calculator()
    bare = crystal.copy()
    assert hot_copy(bare, 300.0, 1, other).calc.model == other.model
    with pytest.raises(AnalysisError, match="no calculator"):
        hot_copy(bare, 300.0, 1)


def test_equilibrated():
    crystal = physics.crystal(17.0, 2)
    one, two = equilibrated(crystal, 2, 100.0, 2.0, 5, 1, False)
    for atoms in (one, two):
        assert np.abs(atoms.positions - crystal.positions).max() > 1e-4
    assert not np.array_equal(one.positions, two.positions)
    again = equilibrated(crystal, 2, 100.0, 2.0, 5, 1, False)
    assert np.array_equal(again[1].positions, two.positions)


def test_runs_of_neighbouring_seeds_share_no_noise():
    seeds = {run_seed(seed, k) for seed in range(20) for k in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**53 for seed in seeds)


def test_settings():
    check_run(0, 2, time_ps=1.0)
    assert (steps_of(1.0, 2.0), steps_of(1e-9, 2.0)) == (500, 1)
    for arguments, values, message in (
        ((-1,), {}, "seed: expected an integer of at least 0, got -1"),
        ((1.5,), {}, "seed"),
        ((0, 1), {}, "replicas: expected an integer of at least 2"),
        ((0,), {"temperature_K": "300"}, "temperature_K: expected a positive number, got '300'"),
        ((0,), {"time_ps": np.nan}, "time_ps"),
    ):
        with pytest.raises(AnalysisError, match=message):
            check_run(*arguments, **values)
