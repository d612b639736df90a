import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from ase_nepcg import analysis
from ase_nepcg.analysis import AnalysisError
from ase_nepcg.analysis.elasticity import ElasticConstants


def relaxed(atoms, calculator):
    atoms.calc = calculator
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-6, steps=200)
    return atoms


@pytest.fixture(scope="module")
def copper():
    return relaxed(bulk("Cu", cubic=True), EMT())


def energy_of(atoms, strain):
    copy = atoms.copy()
    copy.calc = atoms.calc
    copy.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    return copy.get_potential_energy()


def test_against_second_differences_of_the_energy(copper):
    result = analysis.elastic_constants(copper, strain=0.001)
    h, volume = 0.004, copper.get_volume()
    zero = energy_of(copper, np.zeros((3, 3)))

    def second(direction):
        return (energy_of(copper, h * direction) + energy_of(copper, -h * direction) - 2 * zero) / (
            h**2 * volume * units.GPa
        )

    xx = np.diag([1.0, 0, 0])
    c11 = second(xx)
    both = second(np.diag([1.0, 1.0, 0]))
    shear = second(np.array([[0, 0.5, 0], [0.5, 0, 0], [0, 0, 0]]))
    c = result.C_GPa
    assert c[0, 0] == pytest.approx(c11, rel=2e-3)
    assert c[0, 1] == pytest.approx((both - 2 * c11) / 2, rel=2e-3)
    assert c[5, 5] == pytest.approx(shear, rel=2e-3)
    # cubic
    np.testing.assert_allclose(c[:3, :3], c[0, 1] + (c[0, 0] - c[0, 1]) * np.eye(3), atol=1e-6)
    np.testing.assert_allclose(c[3:, 3:], c[5, 5] * np.eye(3), atol=1e-6)
    np.testing.assert_allclose(c[:3, 3:], 0.0, atol=1e-6)
    assert np.abs(result.asymmetry_GPa).max() < 1e-6
    assert result.bulk_modulus_GPa == pytest.approx((c[0, 0] + 2 * c[0, 1]) / 3)
    assert result.stable
    np.testing.assert_allclose(result.S_per_GPa @ c, np.eye(6), atol=1e-10)


def test_positions_are_relaxed():
    # a hexagonal crystal with an internal degree of freedom: relaxing makes it softer
    atoms = relaxed(
        bulk("Zr", "hcp", a=3.2, c=5.1).repeat((1, 1, 1)),
        LennardJones(epsilon=1.0, sigma=2.85, ro=6.0, rc=8.0, smooth=True),
    )
    soft, stiff = (analysis.elastic_constants(atoms, relax=relax).C_GPa for relax in (True, False))
    assert soft[0, 0] < stiff[0, 0] - 0.01 * stiff[0, 0]
    # isotropic in the plane
    assert soft[5, 5] == pytest.approx(0.5 * (soft[0, 0] - soft[0, 1]), rel=5e-3)


def test_averages_of_an_isotropic_solid():
    lame, shear = 50.0, 30.0
    c = np.zeros((6, 6))
    c[:3, :3] = lame + 2 * shear * np.eye(3)
    c[3:, 3:] = shear * np.eye(3)
    result = ElasticConstants(c, 0 * c, np.zeros(6), 0.01)
    assert result.bulk_modulus_GPa == pytest.approx(lame + 2 / 3 * shear)
    assert result.shear_modulus_GPa == pytest.approx(shear)
    c[5, 5] = -1.0
    assert not ElasticConstants(c, 0 * c, np.zeros(6), 0.01).stable


def test_refusals(copper):
    squeezed = copper.copy()
    squeezed.calc = copper.calc
    squeezed.set_cell(copper.cell.array * 0.97, scale_atoms=True)
    with pytest.raises(AnalysisError, match="relax the cell first"):
        analysis.elastic_constants(squeezed)
    rattled = copper.repeat(2)
    rattled.calc = EMT()
    rattled.rattle(0.1, seed=1)
    with pytest.raises(AnalysisError, match="after 1 steps; raise max_steps"):
        analysis.elastic_constants(rattled, max_steps=1)
    with pytest.raises(AnalysisError, match="no calculator"):
        analysis.elastic_constants(bulk("Cu"))
    molecule = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.5]], calculator=EMT())
    with pytest.raises(AnalysisError, match="periodic in all directions"):
        analysis.elastic_constants(molecule)
    for settings in ({"strain": 0.0}, {"strain": 0.2}, {"fmax": -1.0}):
        with pytest.raises(AnalysisError, match="expected a"):
            analysis.elastic_constants(copper, **settings)
