import md_physics as physics
import numpy as np
import pytest
from ase import units

from ase_nepcg.analysis import AnalysisError
from ase_nepcg.analysis.runs import equilibrated, hot_copy


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
