import pytest

from ase_nepcg.quickstart import PRESETS, QuickstartError, Settings
from ase_nepcg.quickstart.settings import settings_of


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_consistent(preset):
    settings = settings_of(preset)
    for name, value in PRESETS[preset].items():
        assert getattr(settings, name) == value
    assert settings_of(preset, seed=5).seed == 5


def test_densities_are_sorted():
    assert Settings(densities=[1.1, 0.9]).densities == (0.9, 1.1)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"densities": (1.0, 1.0)}, "different positive numbers"),
        ({"densities": (-1.0,)}, "different positive numbers"),
        ({"densities": ()}, "different positive numbers"),
        ({"densities": 3}, "expected numbers in g/cm"),
        ({"temperature_K": 0.0}, "temperature_K: expected a positive number, got 0.0"),
        ({"temperature_K": float("nan")}, "temperature_K: expected a positive number"),
        ({"temperature_K": "300"}, "expected a positive number, got '300'"),
        ({"melt_ps": -1.0}, "melt_ps: expected a number from 0"),
        ({"frames": 0}, "frames: expected an integer of at least 1"),
        ({"frames": 2.5}, "frames: expected an integer"),
        ({"time_ps": 0.001}, "fewer than 64 steps of 0.5 fs"),
        ({"bead_time_ps": 0.1}, "bead_time_ps: 0.1 ps are fewer than 64 steps of 4 fs"),
        ({"record_fs": 5000.0}, "give 8 records in 40 ps, expected 16"),
        ({"cutoff": (4.0, 6.0)}, "the angular one at most the radial one"),
        ({"cutoff": (-6.0, -7.0)}, "no model can be made of cutoff"),
        ({"cutoff": 6.0}, "cutoff: expected two numbers, got 6.0"),
        ({"cutoff": (6.0,)}, "cutoff: expected two numbers"),
        ({"n_max": (4, "x")}, "n_max: expected two numbers"),
        ({"n_max": (99, 4)}, "no model can be made of"),
        ({"seed": 2**70}, "seed: expected an integer"),
        # 6 fs of 8 are 10 fs: 94 records, not 100
        ({"timestep_fs": 4.0, "record_fs": 30.0, "time_ps": 3.0, "frames": 96}, "to be taken from 93 records"),
        ({"frames": 1000}, "1000 .* configurations are to be taken from 800 records"),
    ],
)
def test_nonsense_is_refused(given, text):
    with pytest.raises(QuickstartError, match=text):
        Settings(**given)


def test_unknown_names():
    with pytest.raises(QuickstartError, match="did you mean 'quick'"):
        settings_of("qick")
    with pytest.raises(TypeError, match="no setting 'temperture_K'; did you mean 'temperature_K'"):
        settings_of(temperture_K=300)
