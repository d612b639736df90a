"""The embedded model is what its recipe makes."""

import numpy as np

from ase_nepcg import NEPModel
from ase_nepcg.data import WATER_BEAD, make_water_bead, water_beads


def test_embedded_model_is_reproduced_by_its_recipe():
    assert NEPModel.read(WATER_BEAD) == make_water_bead()


def test_water_beads_have_the_density_of_water():
    atoms = water_beads(4, seed=3)
    assert len(atoms) == 64
    assert np.isclose(atoms.get_masses().sum() / atoms.get_volume() / 0.602214, 0.997, rtol=1e-6)
    assert set(atoms.arrays["bead"]) == {"WAT"}
