"""Equation of state: a gas of the model's beads without neighbours is ideal; liquids agree between both ways."""

import numpy as np
import pytest
from ase import units

from ase_nepcg import NEP, analysis
from ase_nepcg.analysis import AnalysisError
from ase_nepcg.data import WATER_BEAD, water_beads
from ase_nepcg.md import MDError

T = 300.0
SHORT = {"equilibration_ps": 0.1, "time_ps": 0.4, "progress": False}


def test_ideal_gas():
    # eight beads that see nobody: P V = N kT, since Langevin's noise moves the centre of mass too
    edge = 60.0
    atoms = water_beads(2)
    atoms.set_cell([edge] * 3)
    atoms.positions[:] = np.indices((2, 2, 2)).reshape(3, -1).T * (edge / 2)
    atoms.calc = NEP(WATER_BEAD, threads=1)
    settings = SHORT | {"equilibration_ps": 1.0, "time_ps": 8.0}
    result = analysis.eos(atoms, temperature_K=T, volumes_A3=[edge**3, 1.1 * edge**3], **settings)
    expected = 8 * units.kB * T / result.volume_A3 / units.GPa
    assert (np.abs(result.pressure_GPa - expected) < 4 * result.pressure_error).all()
    assert (result.pressure_error < 0.2 * expected).all()


@pytest.fixture
def beads():
    atoms = water_beads(4)
    atoms.calc = NEP(WATER_BEAD, threads=1)
    return atoms


def test_volumes_and_results(beads):
    volumes = [1900.0, 2000.0, 2200.0]
    result = analysis.eos(beads, temperature_K=T, volumes_A3=volumes, **SHORT)
    assert result.given == "volume"
    np.testing.assert_allclose(result.volume_A3, volumes, rtol=1e-12)
    assert (result.volume_error == 0).all()
    mass = beads.get_masses().sum()
    np.testing.assert_allclose(result.density_g_cm3, mass * units._amu * 1e3 / (np.array(volumes) * 1e-24))
    assert [len(atoms) for atoms in result.final] == [64] * 3
    np.testing.assert_allclose([atoms.cell.volume for atoms in result.final], volumes)
    header, rows = result.as_table()
    assert rows.shape == (3, len(header))
    # the same seed gives the same numbers; the atoms that were given are as before
    again = analysis.eos(beads, temperature_K=T, volumes_A3=volumes, **SHORT)
    assert np.array_equal(again.pressure_GPa, result.pressure_GPa)
    assert not beads.has("momenta")
    assert not np.array_equal(result.final[0].positions, beads.positions)


def test_pressures(beads):
    result = analysis.eos(beads, temperature_K=T, pressures_GPa=[0.0, 0.5], **SHORT)
    assert result.given == "pressure"
    assert (result.volume_A3 > 0).all()
    assert result.volume_A3[0] != result.volume_A3[1]


def test_several_models_have_their_own_runs(beads):
    other = beads.copy()
    calculators = {"a": NEP(WATER_BEAD, threads=1), "b": NEP(WATER_BEAD, threads=1)}
    results = analysis.eos(other, temperature_K=T, volumes_A3=[2000.0], models=calculators, **SHORT)
    alone = analysis.eos(beads, temperature_K=T, volumes_A3=[2000.0], **SHORT)
    assert set(results) == {"a", "b"}
    for result in results.values():
        assert np.array_equal(result.pressure_GPa, alone.pressure_GPa)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either volumes_A3 or pressures_GPa"),
        ({"volumes_A3": [1000.0], "pressures_GPa": [0.0]}, "either volumes_A3 or pressures_GPa"),
        ({"volumes_A3": [-1.0]}, "volumes_A3: expected finite numbers"),
        ({"volumes_A3": ["big"]}, "volumes_A3: expected finite numbers"),
        ({"pressures_GPa": []}, "pressures_GPa: expected finite numbers"),
        ({"volumes_A3": [2000.0], "time_ps": 0.0}, "time_ps: expected a positive number"),
        ({"volumes_A3": [2000.0], "time_ps": 0.001}, "time_ps: expected at least one sample"),
        ({"volumes_A3": [2000.0], "temperature_K": "300"}, "temperature_K: expected a positive number"),
        ({"volumes_A3": [2000.0], "seed": -1}, "seed: expected an integer"),
        ({"volumes_A3": [2.0]}, r"2 Å\^3 is \d+ times smaller than the start"),
        ({"volumes_A3": [2000.0], "models": [1]}, "models: expected"),
    ],
)
def test_refusals(beads, settings, message):
    with pytest.raises(AnalysisError, match=message):
        analysis.eos(beads, **({"temperature_K": T} | SHORT | settings))


def test_refused_atoms(beads):
    with pytest.raises(AnalysisError, match="one for each of the 2 points; got 1"):
        analysis.eos([beads], temperature_K=T, volumes_A3=[2000.0, 2100.0], **SHORT)
    with pytest.raises(AnalysisError, match="expected an Atoms, or a list of them"):
        analysis.eos([beads, 5], temperature_K=T, volumes_A3=[2000.0, 2100.0], **SHORT)
    flat = beads.copy()
    flat.pbc = [True, True, False]
    with pytest.raises(AnalysisError, match="periodic in all directions"):
        analysis.eos(flat, temperature_K=T, volumes_A3=[2000.0], **SHORT)
    bare = beads.copy()
    with pytest.raises(AnalysisError, match="no calculator"):
        analysis.eos(bare, temperature_K=T, volumes_A3=[2000.0], **SHORT)
    from ase.calculators.lj import LennardJones

    bare.calc = LennardJones()
    with pytest.raises(MDError, match="LennardJones"):
        analysis.eos(bare, temperature_K=T, volumes_A3=[2000.0], **SHORT)
