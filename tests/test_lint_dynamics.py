"""The linter on constraints, calculators and ASE's drivers; and that ASE does what the findings say."""

import warnings

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.calculators.tip3p import TIP3P, angleHOH, rOH
from ase.calculators.tip4p import TIP4P
from ase.constraints import (
    FixAtoms,
    FixBondLengths,
    FixCartesian,
    FixCom,
    FixedPlane,
    FixInternals,
    FixLinearTriatomic,
    FixSubsetCom,
    Hookean,
)
from ase.md.andersen import Andersen
from ase.md.bussi import Bussi
from ase.md.langevin import Langevin
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.melchionna import MelchionnaNPT
from ase.md.nose_hoover_chain import IsotropicMTKNPT, NoseHooverChainNVT
from ase.md.nptberendsen import NPTBerendsen
from ase.md.nvtberendsen import NVTBerendsen
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from ase_nepcg.constraints import FixBeads
from ase_nepcg.lint import check_dynamics, lint
from ase_nepcg.lint.dynamics import _andersen
from ase_nepcg.mapping import Mapping

EDGE = 3.1
GROUPS = np.arange(24).reshape(-1, 3)


class Free(Calculator):
    """No forces at all."""

    implemented_properties = ("energy", "forces", "stress")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 0.0, "forces": np.zeros((len(self.atoms), 3)), "stress": np.zeros(6)}


@pytest.fixture
def box() -> Atoms:
    """Eight whole rigid waters, with momenta."""
    half = np.radians(angleHOH / 2)
    y, z = rOH * np.cos(half), rOH * np.sin(half)
    box = Atoms("OH2", positions=[[0, 0, 0], [0, y, z], [0, y, -z]], cell=[EDGE] * 3, pbc=True)
    box.center()
    box = box.repeat(2)
    rng = np.random.default_rng(1)
    box.set_momenta(rng.normal(size=(24, 3)) * np.sqrt(300 * units.kB * box.get_masses())[:, None])
    return box


@pytest.fixture
def mapping(box):
    return Mapping.from_molecules(box, "Ne")


def found(findings):
    return {finding.code: finding.severity for finding in findings}


# ---- constraints ---------------------------------------------------------------------------------------------------


def test_rigid_bonds(box, mapping):
    inside = [[3 * k, 3 * k + 1] for k in range(8)]
    box.set_constraint(FixBondLengths(inside))
    assert lint(mapping, box) == []
    box.set_constraint(FixBondLengths([*inside, [1, 3], [2, 3]]))
    (finding,) = lint(mapping, box)
    assert (finding.severity, finding.code) == ("error", "rigid-between-beads")
    assert (finding.sites, finding.atoms) == ((0, 1), (1, 2, 3))
    assert "2 rigid bonds" in finding.message
    # all atoms of a molecule follow its only site
    box.set_constraint(FixBondLengths(inside))
    assert found(lint(Mapping.from_sites(box, range(0, 24, 3)), box)) == {"anchored-atoms": "note"}


def test_rigid_bonds_in_overlapping_groups(box):
    """They are judged when the groups have been put right."""
    box.set_constraint(FixBondLengths([[0, 1], [2, 3]]))
    mapping = Mapping.from_groups([range(6), range(5, 9), *GROUPS[3:]], "Ne", box)
    assert found(lint(mapping, box)) == {"overlapping-groups": "error"}


def test_other_rigid_constraints(box, mapping):
    box.set_constraint(FixLinearTriatomic([[0, 1, 2], [3, 4, 6]]))
    (finding,) = lint(mapping, box)
    assert (finding.code, finding.sites, finding.atoms) == ("rigid-between-beads", (1, 2), (3, 4, 6))
    box.set_constraint(
        FixInternals(
            bonds=[[1.0, [0, 1]]],
            angles_deg=[[104.0, [4, 3, 8]]],
            bondcombos=[[0.1, [[9, 10, 1.0], [9, 12, -1.0]]]],
        )
    )
    (finding,) = lint(mapping, box)
    assert (finding.code, finding.atoms) == ("rigid-between-beads", (3, 4, 8, 9, 10, 12))


@pytest.mark.parametrize(
    "constraint", [FixAtoms([3, 4, 5, 10]), FixCartesian([3, 4, 5, 10]), FixedPlane([3, 4, 5, 10], [0, 0, 1])]
)
def test_fixed_atoms(box, mapping, constraint):
    box.set_constraint(constraint)
    (finding,) = lint(mapping, box)
    assert (finding.severity, finding.code) == ("error", "fixed-atoms")
    assert (finding.sites, finding.atoms) == ((1, 3), (3, 4, 5, 10))
    # sites are held anyway
    (finding,) = lint(mapping.with_atomistic([3, 4, 5]), box)
    assert finding.atoms == (10,)


@pytest.mark.parametrize("constraint", [FixCom(), FixSubsetCom([0, 1, 2]), Hookean(a1=0, a2=1, rt=2.0, k=1.0)])
def test_other_constraints(box, mapping, constraint):
    box.set_constraint(constraint)
    (finding,) = lint(mapping, box)
    assert (finding.severity, finding.code) == ("warning", "other-constraint")
    assert finding.message.startswith(type(constraint).__name__)


def test_held_beads(box, mapping):
    box.set_constraint(FixBeads(mapping))
    assert found(lint(mapping, box)) == {"held-beads": "note"}
    box.set_constraint([FixBeads(GROUPS[:4]), FixBeads(GROUPS[4:])])
    assert found(lint(mapping, box)) == {"held-beads": "note"}
    box.set_constraint(FixBeads([*GROUPS[:6], [18, 19], [20, 21, 22]]))
    findings = lint(mapping, box)
    assert found(findings) == {"other-beads-held": "error", "held-beads": "note"}
    assert findings[0].sites == (6, 7)


# ---- calculators ---------------------------------------------------------------------------------------------------


class NoForces(Free):
    implemented_properties = ("energy", "stress")


def test_calculators(box, mapping):
    box.calc = LennardJones()
    assert lint(mapping, box) == []
    box.calc = SinglePointCalculator(box, energy=1.0)
    assert lint(mapping, box) == []
    box.calc = TIP3P(rc=3.0)
    assert found(lint(mapping, box)) == {"no-virial": "note"}
    box.calc = NoForces()
    assert found(lint(mapping, box)) == {"no-forces": "error"}
    box.calc = LennardJones()
    box.pbc = (True, True, False)
    (finding,) = lint(mapping, box)
    assert (finding.code, finding.severity) == ("no-virial", "note")
    assert "no volume" in finding.message


@pytest.mark.parametrize("calculator", [TIP3P, TIP4P])
def test_water_models_need_whole_molecules(box, calculator):
    box = box[:3]
    box.cell = [EDGE] * 3
    box = box.repeat(3)
    mapping = Mapping.from_molecules(box, "Ne")
    box.calc = calculator(rc=4.6)
    whole = box.get_potential_energy()
    box.positions += [0.0, 1.2, 0.8]
    assert box.get_potential_energy() == pytest.approx(whole)
    assert "calculator-needs-whole-molecules" not in found(lint(mapping, box))
    box.wrap()
    assert abs(box.get_potential_energy() - whole) > 1.0
    assert found(lint(mapping, box))["calculator-needs-whole-molecules"] == "error"


# ---- drivers -------------------------------------------------------------------------------------------------------


def held(box) -> Atoms:
    box.set_constraint(FixBeads(GROUPS))
    box.calc = Free()
    box.set_momenta(box.get_momenta())
    return box


STEP = 0.5 * units.fs
GOOD = {
    "VelocityVerlet": lambda a: VelocityVerlet(a, STEP),
    "Langevin": lambda a: Langevin(
        a, STEP, temperature_K=300, friction=0.01, fixcm=False, rng=np.random.default_rng(0)
    ),
    "Bussi": lambda a: Bussi(a, STEP, temperature_K=300, taut=100 * STEP),
    "LangevinBAOAB": lambda a: LangevinBAOAB(a, STEP, temperature_K=300, T_tau=100 * STEP, rng=1),
    "BFGS": lambda a: BFGS(a, logfile=None),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_drivers(box, name):
    assert check_dynamics(GOOD[name](held(box))) == []


def langevin_fixing_the_centre(atoms):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # since ASE 3.28
        return Langevin(
            atoms, STEP, temperature_K=300, friction=0.2 / units.fs, fixcm=True, rng=np.random.default_rng(0)
        )


def melchionna(atoms):
    return MelchionnaNPT(atoms, STEP, temperature_K=300, externalstress=0.0, ttime=50 * STEP, pfactor=None)


BAD = {
    "NoseHooverChainNVT": (lambda a: NoseHooverChainNVT(a, STEP, 300, 20 * STEP), "miscounted-degrees-of-freedom"),
    "MelchionnaNPT": (melchionna, "miscounted-degrees-of-freedom"),
    "Langevin(fixcm=True)": (langevin_fixing_the_centre, "wrong-temperature"),
    "Andersen": (lambda a: Andersen(a, STEP, 300, 0.02), "wrong-temperature"),
    "NPTBerendsen": (
        lambda a: NPTBerendsen(a, STEP, temperature_K=300, pressure_au=0.1, compressibility_au=1.0),
        "barostat",
    ),
    "LangevinBAOAB": (
        lambda a: LangevinBAOAB(
            a, STEP, temperature_K=300, externalstress=0.0, T_tau=100 * STEP, P_tau=1000 * STEP, P_mass=1.0, rng=1
        ),
        "barostat",
    ),
}


@pytest.mark.filterwarnings("ignore:WARNING. LangevinBAOAB")
@pytest.mark.parametrize("name", BAD)
def test_bad_drivers(box, name):
    make, code = BAD[name]
    findings = check_dynamics(make(held(box)))
    assert found(findings)[code] == "error"
    assert all(finding.message.startswith(name.partition("(")[0]) for finding in findings)
    box = box.copy()
    box.set_constraint()
    box.calc = Free()
    assert check_dynamics(make(box)) == []


def test_berendsen_is_a_warning(box):
    dyn = NVTBerendsen(held(box), STEP, temperature_K=300, taut=50 * STEP)
    assert found(check_dynamics(dyn)) == {"not-canonical": "warning"}


def test_constraints_that_came_too_late(box):
    box.calc = Free()
    dyn = Bussi(box, STEP, temperature_K=300, taut=100 * STEP)
    assert check_dynamics(dyn) == []
    dyn.atoms.set_constraint(FixBeads(GROUPS))
    (finding,) = check_dynamics(dyn)
    assert (finding.severity, finding.code) == ("error", "miscounted-degrees-of-freedom")
    assert "counted 72 degrees of freedom when it was made, now there are 48" in finding.message
    # and the barostat that would have refused
    box.set_constraint()
    dyn = IsotropicMTKNPT(box, STEP, 300, 0.0, 100 * STEP, 1000 * STEP)
    box.set_constraint(FixBeads(GROUPS))
    assert found(check_dynamics(dyn)) == {"barostat": "error"}


def test_uncountable(box):
    box.calc = Free()
    box.set_constraint([FixBeads(GROUPS), FixCartesian([0]), FixSubsetCom([0, 1])])
    (finding,) = check_dynamics(VelocityVerlet(box, STEP))
    assert (finding.severity, finding.code) == ("error", "uncounted-degrees-of-freedom")
    assert "FixSubsetCom" in finding.message


@pytest.mark.parametrize("thing", [None, Atoms("H"), Free()])
def test_what_is_no_driver(thing):
    with pytest.raises(TypeError, match="expected an ASE dynamics object"):
        check_dynamics(thing)


# ---- that ASE does what is said about it ---------------------------------------------------------------------------


def test_nose_hoover_counts_all(box):
    """Held free molecules at the target temperature are heated to 3N / (3N - 3n) times that."""
    box = held(box)
    box.set_momenta(box.get_momenta() * np.sqrt(300 / box.get_temperature()))
    dyn = NoseHooverChainNVT(box, STEP, 300, 20 * STEP)
    (finding,) = check_dynamics(dyn)
    assert "would be 1.50 times the target" in finding.message
    temperatures = []
    dyn.attach(lambda: temperatures.append(box.get_temperature()))
    dyn.run(600)
    assert np.mean(temperatures[200:]) == pytest.approx(1.5 * 300, rel=0.1)


def test_langevin_fixing_the_centre_heats(box):
    """The random momenta of one step from rest."""
    box = held(box)
    dyn = langevin_fixing_the_centre(box)
    energies = {True: 0.0, False: 0.0}
    for fix_centre in energies:
        dyn.fix_com = fix_centre
        for _ in range(150):
            box.set_momenta(np.zeros((24, 3)))
            dyn.step()
            energies[fix_centre] += box.get_kinetic_energy()
    # the standard error of either sum is 2 %
    assert energies[True] > 1.12 * energies[False]


def test_andersen_is_too_cold():
    """The estimate against collisions and projections of momenta alone."""
    masses = np.tile([16.0, 1.0, 1.0], 4)
    atoms = Atoms("OH2" * 4, masses=masses)
    constraint = FixBeads(np.arange(12).reshape(-1, 3))
    atoms.set_constraint(constraint)
    assert _andersen(atoms, [constraint]) == pytest.approx(2.0 / 2.2037, abs=1e-4)
    rng = np.random.default_rng(0)
    width = np.sqrt(masses)[:, None]
    momenta = rng.normal(size=(12, 3)) * width
    total = 0.0
    for _ in range(6000):
        momenta = np.where(rng.random((12, 3)) < 0.03, rng.normal(size=(12, 3)) * width, momenta)
        constraint.adjust_momenta(atoms, momenta)
        total += (momenta**2 / masses[:, None]).sum()
    assert total / 6000 / 24 == pytest.approx(0.907, abs=0.03)
    # an atom on its own is thermalised as it should be
    assert _andersen(atoms, []) == 1.0
    assert _andersen(Atoms("OH"), [FixBeads([[0]])]) == 1.0


def test_barostat_moves_held_centres(box):
    box = held(box)
    before = Mapping.from_groups(GROUPS, "Ne").beads(box).positions
    make, _ = BAD["NPTBerendsen"]
    make(box).run(3)
    assert np.abs(Mapping.from_groups(GROUPS, "Ne").beads(box).positions - before).max() > 1e-5


def test_baoab_stretches_rigid_bonds():
    lengths = {}
    for name in ("LangevinBAOAB", "Langevin"):
        pair = Atoms("N2", positions=[[0, 0, 0], [0, 0, 1.1]])
        pair.calc = EMT()
        pair.set_constraint(FixBondLengths([[0, 1]]))
        pair.set_momenta(np.random.default_rng(0).normal(size=(2, 3)))
        dyn = GOOD[name](pair)
        assert found(check_dynamics(dyn)) == ({"constraints-ignored": "error"} if name == "LangevinBAOAB" else {})
        dyn.run(100)
        lengths[name] = pair.get_distance(0, 1)
    assert abs(lengths["Langevin"] - 1.1) < 1e-6
    assert abs(lengths["LangevinBAOAB"] - 1.1) > 1e-4


def test_findings_do_not_need_a_cell_of_gold():
    """A crystal with some frozen atoms: those that are sites may be."""
    gold = bulk("Au", cubic=True).repeat(2)
    mapping = Mapping.from_atoms_per_bead(gold, 4, "Kr").with_atomistic(range(4))
    gold.set_constraint(FixAtoms(range(4)))
    assert "fixed-atoms" not in found(lint(mapping, gold))
