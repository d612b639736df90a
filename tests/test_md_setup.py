"""ase_nepcg.md.setup and the arguments of MD: what is wrong with atoms and settings is refused, clearly."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.calculator import CalculatorSetupError
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import SumCalculator
from ase.constraints import FixAtoms, FixBondLength, FixCartesian

from ase_nepcg import MD, NEP, FixBeads, NepCGError, NEPModel
from ase_nepcg.data import WATER_BEAD, water_beads
from ase_nepcg.errors import is_integer
from ase_nepcg.md import NPT, NVE, Bussi, Deform, Langevin, NoseHoover
from ase_nepcg.md.ensembles.base import EnsembleError
from ase_nepcg.md.setup import (
    MDError,
    check_calculator,
    check_finite,
    check_settings,
    check_unchanged,
    limits_of,
    make_setup,
    settle_velocities,
    start_state,
)

FS = units.fs
BAROSTAT = NPT(300.0, 0.1, 100.0, 1000.0)
THERMOSTATS = [Langevin(300.0, 0.01), Bussi(300.0, 100.0), NoseHoover(300.0, 100.0)]


def name_of(value):
    return type(value).__name__


@pytest.fixture(scope="module")
def calculator():
    return NEP(WATER_BEAD, threads=1)


@pytest.fixture
def atoms(calculator):
    """27 beads WAT with momenta that have a sum."""
    atoms = water_beads(3)
    atoms.calc = calculator
    atoms.set_momenta(np.random.default_rng(1).normal(size=(27, 3)))
    return atoms


def start(atoms, ensemble):
    """Setup and state as MD makes them."""
    setup, frozen, groups = make_setup(atoms, FS)
    ensemble.check(setup)
    return setup, start_state(atoms, ensemble, setup, frozen, groups, 7)


# ---- arguments of MD ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ensemble", "message"),
    [
        (NVE, r"expected one of ase_nepcg.md \(NVE, .*got <class .*NVE.*NVE needs its settings: NVE\(\.\.\.\)"),
        (Langevin, r"Langevin needs its settings: Langevin\(\.\.\.\)"),
        ("nve", "expected one of .* got 'nve'$"),
        (None, "got None$"),
        (dict, "got <class 'dict'>$"),
    ],
)
def test_ensembles_that_are_none(atoms, ensemble, message):
    with pytest.raises(EnsembleError, match=f"^ensemble: .*{message}"):
        MD(atoms, 1.0, ensemble)


@pytest.mark.parametrize("value", [0, -1.0, np.nan, np.inf, "2", True, None, [2.0], 1j])
def test_time_steps(atoms, value):
    with pytest.raises(MDError, match="timestep_fs: expected a positive number of femtoseconds, got") as error:
        MD(atoms, value, NVE())
    assert isinstance(error.value, NepCGError)
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize("value", [-1, 2**63, 1.0, "1", True, [1], np.random.default_rng(1)])
def test_seeds(atoms, value):
    with pytest.raises(MDError, match=r"seed: expected an integer from 0 to 2\^63 - 1, or None, got"):
        MD(atoms, 1.0, NVE(), seed=value)


@pytest.mark.parametrize("name", ["loginterval", "checkpoint_interval"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "10", False])
def test_intervals(atoms, name, value):
    with pytest.raises(MDError, match=f"{name}: expected a positive number of steps, got"):
        MD(atoms, 1.0, NVE(), **{name: value})


@pytest.mark.parametrize("steps", [-1, 1.5, "10", None, True, np.nan])
def test_numbers_of_steps(atoms, steps):
    md = MD(atoms, 1.0, NVE(), progress=False)
    for call in (md.run, lambda n: next(md.irun(n))):
        with pytest.raises(MDError, match="steps: expected a number of steps, got"):
            call(steps)
    assert md.nsteps == 0


def test_good_settings_in_all_their_types(atoms):
    md = MD(atoms, np.float32(2), NVE(), seed=np.int32(3), loginterval=np.int64(2), progress=False)
    assert (md.dt, md.timestep_fs, md.seed) == (2 * FS, 2.0, 3)
    assert (type(md.timestep_fs), type(md.seed)) == (float, int)
    assert MD(atoms, 2, NVE(), seed=2**63 - 1).simulation.state.seed[0] == 2**63 - 1
    assert MD(atoms, 2, NVE()).seed != MD(atoms, 2, NVE()).seed
    check_settings(NVE(), 1, None, loginterval=None)
    assert [is_integer(value) for value in (1, np.int8(1), True, np.True_, 1.0, "1")] == [True, True, *[False] * 4]


def test_unknown_keywords(atoms):
    with pytest.raises(TypeError, match="temperature_K"):
        MD(atoms, 1.0, NVE(), temperature_K=300)
    with pytest.raises(TypeError, match="temperature"):
        MD(atoms, 1.0, Langevin(temperature=300, friction_per_fs=0.1))


@pytest.mark.parametrize(("name", "value"), [("device", "abacus"), ("precision", "half")])
def test_device_and_precision_are_those_of_the_calculator(atoms, name, value):
    with pytest.raises(CalculatorSetupError, match=f"{name}='{value}': expected one of"):
        MD(atoms, 1.0, NVE(), **{name: value})


def test_two_temperatures(make_calculator):
    atoms = Atoms("OH", positions=[[0, 0, 0], [0, 0, 1.5]])
    atoms.calc = make_calculator("full", temperature_K=300.0)
    with pytest.warns(RuntimeWarning, match="evaluated at temperature_K=300, the ensemble has 350 K"):
        MD(atoms, 1.0, Langevin(350.0, 0.01))
    # no warnings, which would be errors
    MD(atoms, 1.0, Langevin(300.0, 0.01))
    MD(atoms, 1.0, NVE())


# ---- calculators --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calc", [EMT(), LennardJones(), SumCalculator([LennardJones(), LennardJones()])], ids=name_of)
def test_other_calculators(atoms, calc):
    atoms.calc = calc
    with pytest.raises(MDError, match=rf"runs NEP models, got the calculator {name_of(calc)}; use a driver of ase\.md"):
        MD(atoms, 1.0, NVE())


def test_calculator_that_only_inherits(atoms):
    class Mine(NEP):
        """Might compute something else."""

    atoms.calc = Mine(WATER_BEAD)
    with pytest.raises(MDError, match="got the calculator Mine"):
        check_calculator(atoms)


def test_no_calculator(atoms):
    assert check_calculator(atoms) is atoms.calc
    atoms.calc = None
    with pytest.raises(MDError, match=r"no calculator: set atoms\.calc = NEP"):
        MD(atoms, 1.0, NVE())


@pytest.mark.parametrize("value", [None, "water.xyz", [1, 2]])
def test_no_atoms_object(value):
    with pytest.raises(MDError, match=f"atoms: expected an ase.Atoms, got {name_of(value)}"):
        MD(value, 1.0, NVE())


def test_empty_atoms(calculator):
    with pytest.raises(MDError, match="there are no atoms"):
        MD(Atoms(calculator=calculator), 1.0, NVE())


def test_species_that_the_model_does_not_have(calculator):
    atoms = Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 3]], calculator=calculator)
    with pytest.raises(CalculatorSetupError, match="unknown species Cu; the model has WAT"):
        MD(atoms, 1.0, NVE())


# ---- numbers of the atoms -----------------------------------------------------------------------------------------


def test_beads_without_masses(atoms, models):
    del atoms.arrays["masses"]
    with pytest.raises(MDError, match=r"the beads have no masses .*atoms\.set_masses.*Mapping\.beads"):
        MD(atoms, 1.0, NVE())
    # an element that a label says is a bead, too
    atoms = Atoms("O", positions=[[0, 0, 0]])
    atoms.set_array("bead", np.array(["O"], dtype="<U16"))
    with pytest.raises(MDError, match="the beads have no masses"):
        make_setup(atoms, 1.0)
    # elements have theirs
    del atoms.arrays["bead"]
    assert make_setup(atoms, 1.0)[0].masses.tolist() == [15.999]


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_masses(atoms, value):
    atoms.arrays["masses"][4] = value
    with pytest.raises(MDError, match=rf"the mass of atom 4 is {value}, expected a positive number"):
        MD(atoms, 1.0, NVE())


@pytest.mark.parametrize("ensemble", [NVE(), BAROSTAT], ids=name_of)
@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("name", ["positions", "momenta", "cell"])
def test_numbers_that_are_none(atoms, name, value, ensemble):
    check_finite(atoms)
    {"positions": atoms.positions, "momenta": atoms.arrays["momenta"], "cell": atoms.cell.array}[name][2, 1] = value
    for call in (lambda: MD(atoms, 1.0, ensemble), lambda: check_finite(atoms)):
        with pytest.raises(MDError, match=rf"{name} must be finite, but row 2 is \[.*{value}"):
            call()


# ---- constraints --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        ([FixCartesian([1], mask=[True, False, False])], "FixCartesian: MD knows FixAtoms and FixBeads; use"),
        ([FixAtoms([1]), FixBondLength(2, 3)], r"FixBondLength.*: MD knows FixAtoms and FixBeads"),
        ([FixBeads([[1, 2], [4, 5]]), FixBeads([[5, 6]])], "groups of two FixBeads constraints overlap"),
        ([FixAtoms([4]), FixBeads([[1, 2], [4, 5]])], r"atom 4 is frozen \(FixAtoms\) and member of a held group"),
        ([FixBeads([[1, 2], [4, 50]])], "FixBeads holds atom 50, but there are 27 atoms"),
        ([FixAtoms([3]), FixBeads([[27]])], "FixBeads holds atom 27, but there are 27 atoms"),
        ([FixAtoms([3, 27])], r"FixAtoms freezes atoms \[3, 27\], but there are 27 atoms"),
        ([FixAtoms([-28])], r"FixAtoms freezes atoms \[-28\], but there are 27 atoms"),
    ],
)
def test_constraints_that_cannot_be(atoms, constraints, message):
    # set_constraint of some ASE versions looks at them
    atoms.constraints = constraints
    with pytest.raises(MDError, match=message):
        MD(atoms, 1.0, NVE())


@pytest.mark.parametrize(
    ("constraints", "frozen", "held"),
    [
        ([], 0, 0),
        ([FixAtoms([2, 3])], 2, 0),
        ([FixAtoms([2, 3]), FixAtoms([3, -1])], 3, 0),
        ([FixAtoms(mask=[True] + [False] * 26)], 1, 0),
        ([FixAtoms([])], 0, 0),
        ([FixBeads([[1, 2], [4]])], 0, 2),
        ([FixBeads([[1, 2], [4]]), FixAtoms([6]), FixBeads([[7, 8, 9]])], 1, 3),
    ],
    ids=str,
)
def test_degrees_of_freedom(atoms, constraints, frozen, held):
    atoms.set_constraint(constraints)
    expected = 81 - 3 * frozen - 3 * held
    setup, state = start(atoms, NVE())
    assert (setup.n_sites, setup.n_dof, setup.n_frozen, setup.n_held) == (27, expected, frozen, held)
    assert MD(atoms, 1.0, NVE()).n_dof == state.n_dof[0] == expected
    if frozen < 3:
        # ASE counts atoms that are frozen twice twice
        assert expected == 81 - sum(constraint.get_removed_dof(atoms) for constraint in constraints)
    for ensemble in THERMOSTATS:
        # Langevin moves the centre of mass, the others conserve its momentum unless something is fixed
        without = 0 if frozen or held or isinstance(ensemble, Langevin) else 3
        assert MD(atoms, 1.0, ensemble).n_dof == expected - without, name_of(ensemble)
    assert setup.pbc == (True, True, True)
    assert setup.timestep == FS
    np.testing.assert_array_equal(setup.cell, atoms.cell.array)
    np.testing.assert_array_equal(np.flatnonzero(state.w == 0), np.unique(np.arange(27)[state.w == 0]))
    assert (state.w == 0).sum() == frozen


@pytest.mark.parametrize("constraint", [FixAtoms([2]), FixBeads([[2, 3]])], ids=name_of)
@pytest.mark.parametrize(
    "ensemble", [BAROSTAT, NPT(300.0, 0.1, 100.0, 1000.0, method="mttk"), Deform("x", 1e-3, 300.0, 100.0)], ids=name_of
)
def test_constraints_with_a_cell_that_changes(atoms, constraint, ensemble):
    MD(atoms, 1.0, ensemble)
    atoms.set_constraint(constraint)
    with pytest.raises(EnsembleError, match=rf"changes the cell, which has no meaning with .*{name_of(constraint)}"):
        MD(atoms, 1.0, ensemble)


@pytest.mark.parametrize("ensemble", [*THERMOSTATS, BAROSTAT], ids=name_of)
def test_thermostat_where_nothing_moves(atoms, ensemble):
    atoms.set_constraint(FixAtoms(range(27)))
    with pytest.raises(EnsembleError, match=r"no degrees of freedom are left|changes the cell"):
        MD(atoms, 1.0, ensemble)
    assert MD(atoms, 1.0, NVE()).n_dof == 0
    atoms.set_constraint(FixBeads([[k] for k in range(27)]))
    with pytest.raises(EnsembleError, match=r"no degrees of freedom are left|changes the cell"):
        MD(atoms, 1.0, ensemble)


def test_thermostat_of_a_single_site(atoms):
    single = atoms[:1]
    single.calc = atoms.calc
    MD(single, 1.0, Langevin(300, 0.01))
    with pytest.raises(EnsembleError, match=r"Bussi keeps a temperature, but no degrees of freedom are left \(1 sites"):
        MD(single, 1.0, Bussi(300, 100))


@pytest.mark.parametrize("temperature", [0, 0.0, -300, np.nan])
def test_langevin_needs_a_temperature(atoms, temperature):
    with pytest.raises(EnsembleError, match="Langevin: temperature_K must be a positive number, got"):
        MD(atoms, 1.0, Langevin(temperature, 0.01))


@pytest.mark.parametrize("pbc", [(True, True, False), (False, False, False)])
@pytest.mark.parametrize("method", ["scr", "mttk"])
def test_pressure_on_an_axis_that_is_not_periodic(atoms, method, pbc):
    atoms.set_pbc(pbc)
    for coupling in ("isotropic", "anisotropic", "triclinic"):
        with pytest.raises(EnsembleError, match="periodic"):
            MD(atoms, 1.0, NPT(300.0, 0.1, 100.0, 1000.0, coupling=coupling, method=method))
    if pbc[0]:
        MD(atoms, 1.0, NPT(300.0, (0.1, 0.2, None), 100.0, 1000.0, coupling="anisotropic", method=method))


# ---- state --------------------------------------------------------------------------------------------------------


def test_state_is_that_of_the_atoms(atoms):
    atoms.set_constraint([FixAtoms([2]), FixBeads([[7, 5], [9]])])
    _, state = start(atoms, NVE())
    masses = atoms.get_masses()
    np.testing.assert_array_equal(state.x, atoms.positions)
    np.testing.assert_array_equal(state.m, masses)
    np.testing.assert_array_equal(state.w, np.where(np.arange(27) == 2, 0, 1 / masses))
    np.testing.assert_array_equal(state.cell[0], atoms.cell.array)
    np.testing.assert_array_equal(state.pbc, [[True] * 3])
    np.testing.assert_array_equal(state.types, np.zeros(27))
    np.testing.assert_array_equal(state.members, [5, 7, 9])
    np.testing.assert_array_equal(state.start, [0, 2, 3])
    np.testing.assert_allclose(state.held, [atoms.positions[[5, 7]].mean(axis=0), atoms.positions[9]], atol=1e-14)
    assert state.seed.tolist() == [7]
    velocities = atoms.get_momenta() / masses[:, None]
    velocities[[2, 9]] = 0
    velocities[[5, 7]] -= velocities[[5, 7]].mean(axis=0)
    np.testing.assert_allclose(state.v, velocities, rtol=0, atol=1e-15)
    # copies
    state.x[:] = 0
    assert np.abs(atoms.positions).max() > 1


def test_atoms_without_momenta_are_at_rest(calculator):
    atoms = water_beads(2)
    atoms.calc = calculator
    assert not start(atoms, NVE())[1].v.any()
    md = MD(atoms, 1.0, NVE())
    assert md.kinetic_energy() == md.temperature_K() == 0


def test_settle_velocities(atoms):
    rng = np.random.default_rng(2)
    atoms.set_masses(rng.uniform(10, 40, 27))
    for ensemble, kept in ((NVE(), True), (Langevin(300, 0.1), True), (Bussi(300, 100), False), (BAROSTAT, False)):
        setup, state = start(atoms, ensemble)
        before = state.v[:] = rng.normal(size=(27, 3))
        settle_velocities(state, ensemble, setup)
        drift = 0 if kept else state.m @ before / state.m.sum()
        np.testing.assert_allclose(state.v, before - drift, rtol=0, atol=1e-14)
    atoms.set_constraint([FixAtoms([2]), FixBeads([[7, 5, 6]])])
    setup, state = start(atoms, Bussi(300, 100))
    before = state.v[:] = rng.normal(size=(27, 3))
    settle_velocities(state, Bussi(300, 100), setup)
    np.testing.assert_array_equal(state.v[2], 0)
    np.testing.assert_allclose(state.m[5:8] @ state.v[5:8], 0, atol=1e-12)
    np.testing.assert_allclose(state.v[5:8] - state.v[5], before[5:8] - before[5], atol=1e-14)
    others = np.r_[0:2, 3:5, 8:27]
    np.testing.assert_array_equal(state.v[others], before[others])


def test_limits(atoms):
    h = 2 * FS
    _, state = start(atoms, NVE())
    state.v[:] = 0
    at_rest = limits_of(state, NVE(), h)
    np.testing.assert_allclose(at_rest, [[0.5 * 81 * units.kB * 5000, 1 / h, -np.inf, np.inf]], rtol=1e-14)
    np.testing.assert_allclose(limits_of(state, Langevin(300, 0.1), h)[0, 0], at_rest[0, 0] * 1.6, rtol=1e-14)
    state.v[:] = np.sqrt(units.kB * 500 / state.m)[:, None]
    for ensemble in (NVE(), Langevin(300, 0.1)):
        np.testing.assert_allclose(limits_of(state, ensemble, h)[0, 0], at_rest[0, 0] * 2, rtol=1e-12)
    volume = atoms.get_volume()
    np.testing.assert_allclose(limits_of(state, BAROSTAT, h)[0, 2:], [volume / 5, volume * 20], rtol=1e-12)


def test_what_a_run_cannot_follow_is_noticed(atoms):
    atoms.set_constraint([FixAtoms([2]), FixBeads([[7, 5, 6]])])
    setup, state = start(atoms, NVE())
    check_unchanged(atoms, setup, state)
    atoms.rattle(0.1)
    atoms.set_momenta(np.zeros((27, 3)))
    atoms.set_cell(atoms.cell * 1.1)
    check_unchanged(atoms, setup, state)
    for change, message in (
        (lambda a: a.set_masses([1.0] * 27), "masses of the atoms are others"),
        (lambda a: a.set_pbc(False), "periodic directions of the atoms are others"),
        (lambda a: a.set_constraint(), "constraints of the atoms are others"),
        (lambda a: a.set_constraint(FixAtoms([2])), "constraints of the atoms are others"),
        (lambda a: a.set_constraint([FixAtoms([2]), FixBeads([[5, 6], [7]])]), "constraints of the atoms are others"),
    ):
        other = atoms.copy()
        other.calc = atoms.calc
        change(other)
        with pytest.raises(MDError, match=f"{message} than when MD was made: make a new MD"):
            check_unchanged(other, setup, state)
    with pytest.raises(MDError, match="the run has 27 atoms, now there are 26"):
        check_unchanged(atoms[:26], setup, state)
    two = Atoms("OH", positions=[[0, 0, 0], [0, 0, 1.5]])
    two.calc = NEP(NEPModel.random(["O", "H"], seed=1), threads=1)
    setup, state = start(two, NVE())
    two.symbols = "HO"
    two.set_masses(setup.masses)
    with pytest.raises(MDError, match="labels or elements of the atoms are others"):
        check_unchanged(two, setup, state)
