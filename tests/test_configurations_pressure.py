"""Configurations under pressure: volumes against exact distributions, and what is refused."""

import warnings

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, graphene
from ase.calculators.calculator import CalculationFailed, Calculator, PropertyNotImplementedError, all_changes
from ase.calculators.emt import EMT
from ase.calculators.fd import calculate_numerical_stress
from ase.constraints import FixAtoms
from test_configurations import state

from ase_nepcg import FixBeads, Mapping
from ase_nepcg.configurations import ConfigurationError, at_pressures, strained
from ase_nepcg.meanforce.statistics import block_errors


class Quartic(Calculator):
    """Atoms bound to the places of a lattice that scales with the cell, so that the volume's distribution is known.

    ``U = B V0 (x - 1)^2 / 2 + k x^-g sum_{i<j} |u_i - u_j|^4 / 4`` with ``x = V / V0`` and displacements u. Integrated
    over N atoms, ``p(V) ~ V x^(3 (N - 1) g / 4) exp(-(B V0 (x - 1)^2 / 2 + P V) / kT)``.
    """

    implemented_properties = ("energy", "forces", "stress")
    bulk_modulus, k, g = 20 * units.GPa, 0.2, 4.0

    def __init__(self, atoms):
        super().__init__()
        self.places, self.volume = atoms.get_scaled_positions(), atoms.get_volume()
        self.i, self.j = np.triu_indices(len(atoms), 1)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        u = self.atoms.positions - self.places @ self.atoms.cell.array
        volume = self.atoms.get_volume()
        x = volume / self.volume
        d = u[self.i] - u[self.j]
        square = (d**2).sum(axis=1)
        quartic = 0.25 * self.k * x**-self.g * (square**2).sum()
        pull = self.k * x**-self.g * square[:, None] * d
        forces = np.zeros_like(u)
        np.add.at(forces, self.i, -pull)
        np.add.at(forces, self.j, pull)
        stress = (self.bulk_modulus * volume * (x - 1) - self.g * quartic) * np.eye(3) + d.T @ pull
        self.results = {
            "energy": 0.5 * self.bulk_modulus * self.volume * (x - 1) ** 2 + quartic,
            "forces": forces,
            "stress": stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]] / volume,
        }

    def exact_volume(self, pressure_GPa, temperature_K):
        x = np.linspace(0.4, 1.6, 20001)
        energy = 0.5 * self.bulk_modulus * self.volume * (x - 1) ** 2 + pressure_GPa * units.GPa * self.volume * x
        log = (1 + 0.75 * (len(self.places) - 1) * self.g) * np.log(x) - energy / (units.kB * temperature_K)
        weight = np.exp(log - log.max())
        return self.volume * (weight * x).sum() / weight.sum()


def quartic_solid(n=16):
    places = np.random.default_rng(1).random((n, 3))
    atoms = Atoms(f"Ar{n}", cell=np.eye(3) * (17.0 * n) ** (1 / 3), pbc=True, scaled_positions=places)
    atoms.calc = Quartic(atoms)
    return atoms


QUICK = {"temperature_K": 300, "timestep_fs": 4, "tau_fs": 100, "tau_p_fs": 150, "progress": False}


def mean_and_error(values):
    values = np.asarray(values)[:, None]
    return values.mean(), block_errors(values, [np.array([0])]).error[0]


def test_the_stress_of_the_test_is_right():
    atoms = quartic_solid(4)
    atoms.rattle(0.3, seed=1)
    numerical = calculate_numerical_stress(atoms, eps=1e-5, force_consistent=False)
    np.testing.assert_allclose(atoms.get_stress(), numerical, atol=1e-8)


def test_volumes_at_pressures():
    atoms = quartic_solid()
    before = state(atoms)
    frames = at_pressures(atoms, (0.0, 5.0), time_ps=5, equilibration_ps=1, frames=1000, seed=2, **QUICK)
    assert state(atoms) == before
    assert len(frames) == 2000
    for pressure, part in ((0.0, frames[:1000]), (5.0, frames[1000:])):
        assert {frame.info["pressure_GPa"] for frame in part} == {pressure}
        exact = atoms.calc.exact_volume(pressure, 300)
        mean, error = mean_and_error([frame.get_volume() for frame in part])
        assert error < 0.005 * exact
        assert abs(mean - exact) < 4 * error
    # two pressures differ by far more than the errors
    assert atoms.calc.exact_volume(5, 300) < 0.85 * atoms.calc.exact_volume(0, 300)


def test_temperature_of_few_atoms():
    frames = at_pressures(quartic_solid(4), 0, time_ps=6, equilibration_ps=1, frames=1250, seed=1, **QUICK)
    kinetic = np.mean([2 * frame.get_kinetic_energy() / (9 * units.kB) for frame in frames])
    # standard error 15 K; a thermostat for 3 N degrees of freedom would give 400 K
    assert abs(kinetic - 300) < 50
    assert max(np.abs(frame.get_momenta().sum(axis=0)).max() for frame in frames) < 1e-10


def test_gold_under_pressure():
    atoms = bulk("Au", cubic=True)
    atoms.calc = EMT()
    keywords = {"timestep_fs": 5, "tau_p_fs": 250, "tau_fs": 100, "progress": False}
    frames = at_pressures(
        atoms, [20], temperature_K=300, time_ps=1.1, equilibration_ps=0.8, frames=30, seed=1, **keywords
    )
    ratios = np.linspace(0.9, 1.0, 11)
    cold = strained(atoms, Mapping.from_atoms(atoms), isotropic=ratios ** (1 / 3) - 1)
    stress = [frame.get_stress()[:3].mean() / units.GPa for frame in cold]
    expected = np.interp(-20, stress, ratios)
    # four atoms at 300 K: the volume fluctuates by 2 %, several times in the 0.3 ps, and is 1 % larger than at 0 K
    found = np.mean([frame.get_volume() for frame in frames]) / atoms.get_volume()
    assert abs(found - expected) < 0.025
    assert expected < 0.93
    for frame in frames:
        np.testing.assert_allclose(frame.cell.angles(), 90, atol=1e-9)


def test_frames_and_seeds_of_pressure_runs():
    atoms = quartic_solid(4)
    keywords = QUICK | {"tau_p_fs": 60, "time_ps": 0.4, "equilibration_ps": 0.2}
    frames = at_pressures(atoms, [1, 2], frames=2, seed=5, **keywords)
    assert [(f.info["pressure_GPa"], f.info["npt_time_ps"]) for f in frames] == [(1, 0.3), (1, 0.4), (2, 0.3), (2, 0.4)]
    for frame in frames:
        assert frame.calc is atoms.calc
        assert (frame.info["temperature_K"], frame.info["npt_seed"]) == (300, 5)
    again = at_pressures(atoms, [1], seed=5, **keywords)
    assert len(again) == 1
    assert again[0].positions.tobytes() == frames[1].positions.tobytes()
    assert again[0].cell.array.tobytes() == frames[1].cell.array.tobytes()
    other = at_pressures(atoms, 1, seed=6, **keywords)[0]
    assert other.get_volume() != again[0].get_volume()
    # runs of one call do not share their random numbers
    one, two = at_pressures(atoms, [1, 1], seed=5, **keywords)
    assert one.get_volume() != two.get_volume()


def test_pressure_needs_free_atoms():
    atoms = bulk("Au", cubic=True)
    atoms.calc = EMT()
    atoms.set_constraint([FixAtoms([0]), FixBeads([[1, 2]])])
    with pytest.raises(ConfigurationError, match=r"held beads \(FixBeads\): a barostat would move them"):
        at_pressures(atoms, [0], time_ps=1, **QUICK)
    atoms.set_constraint(FixAtoms([0]))
    with pytest.raises(ConfigurationError, match=r"constraints \(FixAtoms\)"):
        at_pressures(atoms, [0], time_ps=1, **QUICK)


def test_pressure_needs_a_periodic_cell_and_a_stress():
    layer = graphene(vacuum=5.0)
    layer.calc = EMT()
    with pytest.raises(ConfigurationError, match="periodic in all directions, got pbc = True, True, False"):
        at_pressures(layer, [0], time_ps=1, **QUICK)
    with pytest.raises(ConfigurationError, match="a cell of rank 0"):
        at_pressures(Atoms("Au2", positions=[[0, 0, 0], [3, 0, 0]], pbc=True), [0], time_ps=1, **QUICK)
    atoms = bulk("Au", cubic=True)
    with pytest.raises(ConfigurationError, match="no calculator"):
        at_pressures(atoms, [0], time_ps=1, **QUICK)
    with pytest.raises(ConfigurationError, match="at least two"):
        at_pressures(atoms[:1], [0], time_ps=1, **QUICK)

    class Stressless(EMT):
        implemented_properties = ("energy", "free_energy", "forces")

    atoms.calc = Stressless()
    with pytest.raises(PropertyNotImplementedError, match="needs forces and stress, but Stressless gives none"):
        at_pressures(atoms, [0], time_ps=1, **QUICK)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"pressures_GPa": []}, "pressures_GPa: expected at least one pressure"),
        ({"pressures_GPa": [0, np.nan]}, "pressures_GPa: expected finite numbers, got nan"),
        ({"pressures_GPa": [[0]]}, "pressures_GPa: expected a sequence of numbers"),
        ({"temperature_K": 0}, "temperature_K: expected a positive number of K, got 0"),
        ({"temperature_K": np.inf}, "temperature_K"),
        ({"time_ps": -1}, "time_ps"),
        ({"timestep_fs": 0}, "timestep_fs"),
        ({"tau_fs": -1}, "tau_fs"),
        ({"tau_p_fs": 0}, "tau_p_fs"),
        ({"frames": 0}, "frames: expected a positive integer"),
        ({"equilibration_ps": 2}, "leaves 0 steps for frames=1"),
        ({"frames": 200}, "leaves 125 steps for frames=200"),
        ({"seed": 1.5}, "seed"),
    ],
)
def test_pressure_runs_that_make_no_sense(keywords, message):
    with pytest.raises(ConfigurationError, match=message):
        at_pressures(quartic_solid(4), **{"pressures_GPa": [0], "time_ps": 1} | QUICK | keywords)


class Failing(Quartic):
    """Goes wrong after some evaluations."""

    def __init__(self, atoms, failure, after=20):
        super().__init__(atoms)
        self.failure, self.left = failure, after

    def calculate(self, *args, **keywords):
        super().calculate(*args, **keywords)
        self.left -= 1
        if self.left > 0:
            return
        if self.failure == "raises":
            raise RuntimeError("no convergence")
        self.results[self.failure] = np.full_like(self.results[self.failure], np.nan)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("forces", "NPT run at 3 GPa: step 19 of 250: positions, cell or forces are not finite"),
        ("stress", "NPT run at 3 GPa: step 20 of 250"),
        ("raises", "NPT run at 3 GPa: step 19 of 250 cannot be completed: RuntimeError: no convergence"),
    ],
)
def test_failures_name_the_pressure(failure, message):
    atoms = quartic_solid(4)
    atoms.calc = Failing(atoms, failure)
    with pytest.raises(CalculationFailed, match=message):
        at_pressures(atoms, [3], time_ps=1, seed=1, **QUICK)
    atoms.calc = Failing(atoms, "forces", after=1)
    with pytest.raises(CalculationFailed, match="of the given atoms are not finite"):
        at_pressures(atoms, [3], time_ps=1, seed=1, **QUICK)


def test_runaway_volumes_are_refused():
    atoms = quartic_solid(4)
    with pytest.raises(CalculationFailed, match=r"NPT run at -40 GPa: step .*: the volume is [2-9]\.\d\d times"):
        at_pressures(atoms, [-40], time_ps=1, seed=1, **QUICK)
    with pytest.raises(CalculationFailed, match=r"NPT run at 200 GPa: step .*: the volume is 0\.\d\d times"):
        at_pressures(atoms, [200], time_ps=1, seed=1, **QUICK)


def test_short_runs_are_said_to_be_short():
    atoms = quartic_solid(4)
    slow = QUICK | {"tau_p_fs": 1000}
    with pytest.warns(RuntimeWarning, match="equilibration_ps=0.1 is less than 3 times tau_p_fs=1000"):
        at_pressures(atoms, [0], time_ps=0.2, seed=1, **slow)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        at_pressures(atoms, [3], time_ps=0.6, equilibration_ps=0, seed=1, **slow | {"tau_p_fs": 5000})
    assert any("3 GPa: the volume is still changing" in str(warning.message) for warning in found)
