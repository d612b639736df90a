import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones

from ase_nepcg import NEP, Mapping
from ase_nepcg.data import WATER_AA, water_box
from ase_nepcg.quickstart import QuickstartError, Settings
from ase_nepcg.quickstart.system import default_densities, make_system


class NoStress(LennardJones):
    implemented_properties = ("energy", "forces")


def test_water_where_nothing_is_given():
    system = make_system(None, None, None, Settings(edge=2))
    assert system.melts
    assert len(system.mapping) == 8
    assert system.identity()["structure"] is None


def test_identity_tells_systems_apart():
    gold = bulk("Au", cubic=True) * 2
    mapping = Mapping.from_atoms_per_bead(gold, 4, "Pt")
    one = make_system(gold, EMT(), mapping, Settings()).identity()
    assert one == make_system(gold.copy(), EMT(), mapping, Settings()).identity()
    moved = gold.copy()
    moved.positions[0, 0] += 1e-9
    for other in (
        make_system(moved, EMT(), mapping, Settings()),
        make_system(gold, LennardJones(), mapping, Settings()),
        make_system(gold, EMT(), Mapping.from_atoms_per_bead(gold, 8, "Pt"), Settings()),
    ):
        assert other.identity() != one


def test_calculator_of_the_atoms():
    gold = bulk("Au", cubic=True) * 2
    gold.calc = EMT()
    system = make_system(gold, None, Mapping.from_atoms_per_bead(gold, 4, "Pt"), Settings())
    assert system.calculator is gold.calc
    assert system.atoms.calc is None
    assert not system.melts


def test_default_densities_are_around_its_own():
    box = water_box(3, 0.9)
    densities = default_densities(box)
    assert np.isclose(densities[1], 0.9, atol=1e-3)
    assert densities[0] < 0.9 < densities[2]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"pbc": False}, "periodic in all directions"),
        ({"cell": np.zeros((3, 3))}, "cell with 0 vectors"),
    ],
)
def test_atoms_without_cell(change, text):
    box = water_box(2)
    for name, value in change.items():
        getattr(box, f"set_{name}")(value)
    with pytest.raises(QuickstartError, match=text):
        make_system(box, NEP(WATER_AA), None, Settings())


def test_what_cannot_be_used_is_named():
    box = water_box(2)
    with pytest.raises(QuickstartError, match="have no calculator"):
        make_system(box, None, None, Settings())
    with pytest.raises(QuickstartError, match="expected a calculator with forces and stress"):
        make_system(box, NoStress(), None, Settings())
    with pytest.raises(QuickstartError, match="expected Atoms, got str"):
        make_system("box.xyz", EMT(), None, Settings())
    with pytest.raises(QuickstartError, match="mapping: needs atoms"):
        make_system(None, None, Mapping.from_molecules(box, "Ar"), Settings())
    single = Atoms("Ar", cell=[5, 5, 5], pbc=True)
    with pytest.raises(QuickstartError, match="expected several beads"):
        make_system(single, LennardJones(), None, Settings())
