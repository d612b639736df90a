import importlib
import sys

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from ase_nepcg import NEP, Mapping
from ase_nepcg.data import WATER_AA, water_box
from ase_nepcg.quickstart import QuickstartError, Settings
from ase_nepcg.quickstart.system import default_densities, make_system


class NoStress(LennardJones):
    implemented_properties = ("energy", "forces")


def around(atoms):
    return Settings(densities=default_densities(atoms))


def test_water_where_nothing_is_given():
    system = make_system(None, None, None, Settings(edge=2))
    assert system.melts
    assert len(system.mapping) == 8
    assert system.identity()["structure"] is None


def test_identity_tells_systems_apart():
    gold = bulk("Au", cubic=True) * 2
    mapping = Mapping.from_atoms_per_bead(gold, 4, "Pt")
    one = make_system(gold, EMT(), mapping, around(gold)).identity()
    assert one == make_system(gold.copy(), EMT(), mapping, around(gold)).identity()
    moved = gold.copy()
    moved.positions[0, 0] += 1e-9
    for other in (
        make_system(moved, EMT(), mapping, around(gold)),
        make_system(gold, LennardJones(), mapping, around(gold)),
        make_system(gold, EMT(), Mapping.from_atoms_per_bead(gold, 8, "Pt"), around(gold)),
    ):
        assert other.identity() != one


def test_calculator_of_the_atoms():
    gold = bulk("Au", cubic=True) * 2
    gold.calc = EMT()
    system = make_system(gold, None, Mapping.from_atoms_per_bead(gold, 4, "Pt"), around(gold))
    assert system.calculator is gold.calc
    assert system.atoms.calc is None
    assert not system.melts


def test_default_densities_are_around_its_own():
    box = water_box(3, 0.9)
    densities = default_densities(box)
    assert np.isclose(densities[1], 0.9, atol=1e-3)
    assert densities[0] < 0.9 < densities[2]


class Labelled(EMT):
    """Needs what trajectories do not keep."""

    def calculate(self, atoms=None, *arguments, **keywords):
        assert atoms.info["head"] == "small"
        assert atoms.arrays["kind"].sum() == 3
        super().calculate(atoms, *arguments, **keywords)


def test_what_trajectories_lose_comes_back():
    gold = bulk("Au", cubic=True) * 2
    gold.info["head"] = "small"
    gold.set_array("kind", np.array([3] + [0] * 31))
    system = make_system(gold, Labelled(), Mapping.from_atoms_per_bead(gold, 4, "Pt"), around(gold))
    bare = bulk("Au", cubic=True) * 2
    bare.info["step"] = 5
    dressed = system.dressed(bare)
    dressed.calc = Labelled()
    dressed.get_forces()
    assert dressed.info == {"head": "small", "step": 5}
    other = gold.copy()
    other.info["head"] = "large"
    assert (
        make_system(other, EMT(), system.mapping, around(gold)).identity()["structure"]
        != (make_system(gold, EMT(), system.mapping, around(gold)).identity()["structure"])
    )


def test_the_file_of_a_calculator_counts(tmp_path, monkeypatch):
    gold = bulk("Au", cubic=True) * 2
    mapping, found = Mapping.from_atoms_per_bead(gold, 4, "Pt"), []
    monkeypatch.syspath_prepend(tmp_path)
    for value in (1, 2):
        text = f"from ase.calculators.emt import EMT\nclass Mine(EMT):\n    constant = {value}\n"
        (tmp_path / "mine_of_this_test.py").write_text(text)
        sys.modules.pop("mine_of_this_test", None)
        calculator = importlib.import_module("mine_of_this_test").Mine()
        found.append(make_system(gold, calculator, mapping, around(gold)).identity())
    assert found[0] != found[1]
    assert found[0]["calculator"] == found[1]["calculator"]


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
    with pytest.raises(QuickstartError, match="mapping: needs atoms"):
        make_system(None, None, Mapping.from_molecules(box, "Ar"), Settings())
    stored = water_box(2)
    stored.calc = SinglePointCalculator(stored, energy=0.0)
    with pytest.raises(QuickstartError, match="stored results in place of a calculator"):
        make_system(stored, None, None, Settings())
    held = water_box(2)
    held.set_constraint(FixAtoms([0]))
    with pytest.raises(QuickstartError, match="have constraints"):
        make_system(held, NEP(WATER_AA), None, Settings())
    with pytest.raises(QuickstartError, match="chemical symbols, got 'WAT'"):
        make_system(box, NEP(WATER_AA), Mapping.from_molecules(box, "WAT"), Settings())
    for density in (0.01, 1000.0):
        with pytest.raises(QuickstartError, match=f"{density:g} g/cm³ is far from the 1 g/cm³ of the structure"):
            make_system(box, NEP(WATER_AA), None, Settings(densities=(density,)))
    single = Atoms("Ar", cell=[5, 5, 5], pbc=True)
    with pytest.raises(QuickstartError, match="expected several beads"):
        make_system(single, LennardJones(), None, Settings())
