"""What a mean-force run returns, and the frame made of it."""

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.emt import EMT
from ase.units import kB

from ase_nepcg import Mapping, read_dataset, sample_mean_force, write_dataset
from ase_nepcg.labels import get_labels

pytestmark = pytest.mark.filterwarnings("ignore:the run of:RuntimeWarning", "ignore:forces or energy:RuntimeWarning")

SETTINGS = {"temperature_K": 300.0, "timestep_fs": 5.0, "equilibration_ps": 0.2, "seed": 2, "progress": False}


@pytest.fixture(scope="module")
def gold():
    atoms = bulk("Au", cubic=True) * (2, 2, 2)
    atoms.rattle(0.05, seed=1)
    atoms.calc = EMT()
    atoms.info = {"strain": "xy", "strain_value": 0.01, "comment": "not for frames"}
    return atoms


@pytest.fixture(scope="module")
def mapping(gold):
    return Mapping.from_atoms_per_bead(gold, 4, "Au4")


@pytest.fixture(scope="module")
def result(gold, mapping):
    with pytest.warns(RuntimeWarning):
        return sample_mean_force(gold, mapping, time_ps=0.5, thermal_response=True, **SETTINGS)


def test_shapes_and_settings(result):
    for name in ("forces", "force_errors", "n_effective", "forces_dT", "forces_dT_errors", "forces_dT2"):
        assert getattr(result, name).shape == (8, 3)
        assert np.isfinite(getattr(result, name)).all()
    for name in ("virial", "virial_error", "virial_atomic", "virial_atomic_error", "virial_dT", "virial_dT_error"):
        tensor = getattr(result, name)
        assert np.array_equal(tensor, tensor.T)
    assert (result.force_errors > 0).all()
    assert (result.n_effective <= result.n_samples).all()
    assert result.n_samples == 100
    assert result.temperature_K == 300.0
    assert result.converged == result.reliable
    assert not result.interrupted
    assert result.force_error == pytest.approx(np.sqrt((result.force_errors**2).mean()))


def test_printed_form_says_how_good_it_is(result):
    assert f"± {result.force_error:.4f} eV/Å" in repr(result)
    assert ("error not reliable" in repr(result)) == (not result.reliable)


def test_atomic_estimator_has_the_ideal_term(result, gold):
    # what remains when it is taken off is the average of -V stress of the calculator, of the size of that of the start;
    # that both estimators have one average is tested on longer runs (test_meanforce_identities_virial.py)
    plain = result.virial_atomic - 24 * kB * 300 * np.eye(3)
    start = -gold.get_volume() * gold.get_stress(voigt=False)
    assert np.abs(plain - start).max() < 5
    assert np.abs(result.virial - result.virial_atomic).max() < 4


def test_frame_holds_the_averages(result, gold, mapping):
    frame = result.frame
    assert np.array_equal(frame.get_forces(), result.forces)
    np.testing.assert_allclose(frame.get_stress(voigt=False), -result.virial / gold.get_volume(), rtol=1e-12)
    np.testing.assert_allclose(frame.positions, mapping.beads(gold).positions, atol=1e-12)
    assert set(get_labels(frame)) == {"Au4"}
    np.testing.assert_allclose(frame.get_masses(), 4 * gold.get_masses()[0])
    assert frame.arrays["atoms_per_bead"].tolist() == [4] * 8
    assert not frame.has("momenta")
    assert frame.info["energy_weight"] == 0.0
    assert frame.info["temperature"] == 300.0
    assert frame.info["calculator"] == "emt"
    with pytest.raises(PropertyNotImplementedError, match="potential of mean force"):
        frame.get_potential_energy()


def test_frame_says_where_its_configuration_comes_from(result):
    assert result.frame.info["strain"] == "xy"
    assert result.frame.info["strain_value"] == 0.01
    assert "comment" not in result.frame.info
    assert result.frame.info["reliable"] == result.reliable
    assert result.frame.info["virial_pull"] == result.virial_pull


def test_time_step_that_is_too_long_is_told(gold, mapping):
    settings = {**SETTINGS, "timestep_fs": 60.0, "equilibration_ps": 0.0}
    with pytest.warns(RuntimeWarning, match=r"kinetic temperature is \d+ K, expected 300 K: the averages are wrong"):
        result = sample_mean_force(gold, mapping, time_ps=6.0, **settings)
    assert not result.converged
    assert abs(result.frame.info["kinetic_temperature"] - 300) > 45


def test_something_else_in_place_of_a_mapping(gold):
    with pytest.raises(TypeError, match="expected a Mapping, got NoneType"):
        sample_mean_force(gold, None, time_ps=1, **SETTINGS)


def test_frame_survives_a_file(result, tmp_path):
    write_dataset(tmp_path / "train.xyz", [result.frame])
    (frame,) = read_dataset(tmp_path / "train.xyz")
    assert np.array_equal(frame.get_forces(), result.forces)
    for name in ("force_errors", "n_effective", "forces_dT", "forces_dT_errors", "forces_dT2", "forces_dT2_errors"):
        assert np.array_equal(frame.arrays[name], getattr(result, name))
    for name in ("virial", "virial_error", "virial_atomic", "virial_atomic_error", "virial_dT", "virial_dT_error"):
        assert np.array_equal(frame.info[name], getattr(result, name))
    assert frame.info["seed"] == 2
    assert frame.info["mean_energy"] == result.mean_energy


def test_arrays_of_the_frame_are_its_own(result):
    result.frame.arrays["force_errors"][0, 0] += 1
    assert result.frame.arrays["force_errors"][0, 0] != result.force_errors[0, 0]
    result.frame.arrays["force_errors"][0, 0] -= 1
