"""The embedded model is what its recipe makes, the embedded frames are what their description says."""

import numpy as np

from ase_nepcg import NEP, NEPModel, read_dataset
from ase_nepcg.data import WATER_AA, WATER_BEAD, WATER_CG, WATER_FRAMES, make_water_bead, water_beads, water_box
from ase_nepcg.dataset import validate


def test_embedded_model_is_reproduced_by_its_recipe():
    assert NEPModel.read(WATER_BEAD) == make_water_bead()


def test_water_beads_have_the_density_of_water():
    atoms = water_beads(4, seed=3)
    assert len(atoms) == 64
    assert np.isclose(atoms.get_masses().sum() / atoms.get_volume() / 0.602214, 0.997, rtol=1e-6)
    assert set(atoms.arrays["bead"]) == {"WAT"}


def test_embedded_frames_are_mean_forces_of_water():
    frames = read_dataset(WATER_FRAMES)
    assert validate(frames) == []
    assert [len(frame) for frame in frames] == [64] * 20
    assert len({frame.info["pressure_GPa"] for frame in frames}) == 10
    errors = np.array([frame.arrays["force_errors"] for frame in frames])
    assert np.isclose(np.sqrt((errors**2).mean()), 0.007, atol=0.0005)
    density = [frame.get_masses().sum() / frame.get_volume() / 0.602214 for frame in frames]
    assert 0.9 < min(density) < max(density) < 1.4


def test_water_box_has_its_density_and_no_overlaps():
    for density in (0.9, 1.3):
        box = water_box(4, density, seed=2)
        assert box.get_chemical_formula() == "H128O64"
        assert np.isclose(box.get_masses().sum() / box.get_volume() / 0.602214, density, rtol=1e-5)
        molecule = np.repeat(np.arange(64), 3)
        apart = box.get_all_distances(mic=True)[molecule[:, None] != molecule]
        assert apart.min() > 1.4
    assert np.array_equal(water_box(2, seed=1).positions, water_box(2, seed=1).positions)


def test_embedded_models_belong_together():
    """Both give sensible forces in boxes of their own."""
    box = water_box(3)
    box.calc = NEP(WATER_AA)
    assert np.abs(box.get_forces()).max() < 5
    beads = water_beads(3, label="Ar")
    beads.calc = NEP(WATER_CG)
    assert np.abs(beads.get_forces()).max() < 2
    assert NEPModel.read(WATER_CG).species == ("Ar",)
