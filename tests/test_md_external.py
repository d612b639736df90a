"""Steps with the forces of any ASE calculator, and with rigid bonds."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import SumCalculator
from ase.constraints import FixBondLengths

from ase_nepcg import Mapping
from ase_nepcg.md.external import CalculatorEngine
from ase_nepcg.md.held import HeldRun
from ase_nepcg.potential.evaluate import EvaluationError


def start(atoms, mapping, c=0.99, kT=0.025, h=1.0):
    bound = mapping.bind(atoms)
    x = bound.whole(atoms.positions, atoms.cell.array, atoms.pbc)
    return HeldRun(bound, x, timestep=h * units.fs, kT=kT, damping=c, interval=1, moments=False, seed=2)


@pytest.fixture
def gold():
    atoms = bulk("Au", cubic=True) * (2, 2, 2)
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.mark.parametrize("make", [EMT, lambda: SumCalculator([EMT(), EMT()])])
def test_forces_and_virial_are_those_of_the_calculator(gold, make):
    run = start(gold, Mapping.from_atoms_per_bead(gold, 4, "Au"))
    gold.calc = make()
    engine = CalculatorEngine(gold.copy())
    engine.atoms.calc = make()
    run.reference = engine.begin(run)
    assert engine.has_virial
    assert run.reference == pytest.approx(gold.get_potential_energy(), rel=1e-12)
    for _ in range(5):
        engine.advance(run, 5, 0)
    gold.positions[:] = run.x
    np.testing.assert_allclose(run.f, gold.get_forces(), rtol=0, atol=1e-12)
    virial = -gold.get_volume() * gold.get_stress(voigt=False)
    np.testing.assert_allclose(run.virial.reshape(3, 3), virial, rtol=0, atol=1e-9)
    assert run.y[-2] == pytest.approx(gold.get_potential_energy() - run.reference, abs=1e-9)


class Counting(LennardJones):
    calls = 0

    def calculate(self, *arguments, **keywords):
        type(self).calls += 1
        super().calculate(*arguments, **keywords)


def test_one_calculation_per_step():
    atoms = Atoms("Ar4", positions=[[0, 0, 0], [1.2, 0, 0], [0, 1.2, 0], [0, 0, 1.2]], cell=[9, 9, 9], pbc=True)
    run = start(atoms, Mapping.from_groups([[0, 1]], "A", atoms))
    atoms.calc = Counting(rc=3.0)
    engine = CalculatorEngine(atoms)
    engine.begin(run)
    Counting.calls = 0
    for _ in range(11):
        engine.advance(run, 100, 0)
    # the first one goes the long way round
    assert Counting.calls <= 12
    assert run.step == 11


def test_without_a_cell_there_is_no_virial():
    atoms = Atoms("Ar2", positions=[[0, 0, 0], [1.2, 0, 0]])
    run = start(atoms, Mapping.from_groups([[0, 1]], "A", atoms))
    atoms.calc = LennardJones()
    engine = CalculatorEngine(atoms)
    engine.begin(run)
    assert not engine.has_virial


class Odd(Calculator):
    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, energy=0.0, shape=None):
        super().__init__()
        self.energy, self.shape = energy, shape

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": self.energy, "forces": np.zeros(self.shape or atoms.positions.shape)}


@pytest.mark.parametrize(
    ("calculator", "message"), [(Odd(np.inf), "energy is not finite"), (Odd(shape=(3, 3)), r"expected shape \(2, 3\)")]
)
def test_results_that_make_no_sense(calculator, message):
    atoms = Atoms("Ar2", positions=[[0, 0, 0], [1.2, 0, 0]])
    run = start(atoms, Mapping.from_groups([[0, 1]], "A", atoms))
    atoms.calc = calculator
    with pytest.raises(EvaluationError, match=message):
        CalculatorEngine(atoms).begin(run)


@pytest.mark.parametrize("groups", [[[0, 1], [2, 3], [4, 5]], [[0], [2], [4]]])
@pytest.mark.parametrize("c", [0.99, 1.0])
def test_rigid_bonds_and_centres_hold(groups, c, rng):
    # three rigid dimers that repel each other; the sites are their centres, or one atom of each
    atoms = Atoms("COCOCO", positions=[[0, 0, 0], [1.1, 0, 0], [4, 0, 0], [4, 1.1, 0], [0, 4, 0], [0, 4, 1.1]])
    bonds = FixBondLengths([[0, 1], [2, 3], [4, 5]])
    run = start(atoms, Mapping.from_groups(groups, "D", atoms), c=c, h=0.5)
    atoms.set_constraint(bonds)
    atoms.calc = LennardJones(sigma=3.5, epsilon=0.01, rc=12.0)
    engine = CalculatorEngine(atoms, run.bound.groups)
    run.reference = engine.begin(run)
    centre = run.bound.centres(run.x)
    total = []
    for _ in range(300):
        engine.advance(run, 300, 0)
        total.append(run.y[-2] + run.y[-1])
    assert run.step == 300
    np.testing.assert_allclose(np.linalg.norm(run.x[1::2] - run.x[::2], axis=1), 1.1, rtol=0, atol=1e-10)
    np.testing.assert_allclose(run.bound.centres(run.x), centre, rtol=0, atol=1e-10)
    np.testing.assert_allclose(run.bound.centres(run.v), 0, atol=1e-12)
    assert np.abs(run.x - atoms.positions).max() < 1e-12
    if c == 1.0:
        assert np.ptp(total) < 2e-3 * np.mean([abs(k) for k in total]) + 1e-4
