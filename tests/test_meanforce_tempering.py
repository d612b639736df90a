"""Replica exchange: the right average across a barrier that a plain run does not cross, and single exchanges."""

import itertools
import math

import numba
import numpy as np
import pytest
from ase import Atoms
from ase.units import kB
from tqdm import tqdm

from ase_nepcg import Mapping, sample_mean_force
from ase_nepcg.meanforce import tempering
from ase_nepcg.meanforce.sampler import Sampler, SamplingError, Settings
from ase_nepcg.meanforce.tempering import sample_tempered

pytestmark = pytest.mark.filterwarnings("ignore:the run of:RuntimeWarning", "ignore:forces or energy:RuntimeWarning")

KELVIN = 300.0
MASSES = np.array([3.0, 2.0, 12.0])
# of atom 1 from the centre of atoms 0 and 1, as a part of their separation s
SHARE = MASSES[0] / MASSES[:2].sum()


HEIGHT, HALF, STIFFNESS, SPRING = 0.27, 0.7, 1.5, 0.4


@numba.njit
def energy_of(component, s, d):
    """Of one component of the separation and of the spring, with its derivatives."""
    energy, slope = 0.5 * STIFFNESS * s * s, STIFFNESS * s
    if component == 0:
        u = (s / HALF) ** 2 - 1
        energy, slope = HEIGHT * u * u, 4 * HEIGHT * u * s / HALF**2
    return energy + 0.5 * SPRING * d * d, slope, SPRING * d


@numba.njit
def evaluate(x):
    """Energy and forces of molecules of three atoms."""
    total, forces = 0.0, np.empty_like(x)
    for i in range(0, len(x), 3):
        for c in range(3):
            energy, slope, pull = energy_of(c, x[i + 1, c] - x[i, c], x[i + 1, c] - x[i + 2, c])
            total += energy
            forces[i, c], forces[i + 1, c], forces[i + 2, c] = slope, -slope - pull, pull
    return total, forces


@pytest.fixture(scope="module")
def two_wells(toys):
    """Function: side of the barrier -> atoms, mapping; exact averages.

    Each of four molecules has atoms 0 and 1, joined to a bead, with two minima of ``s_x``, and atom 2, a bead by itself
    on a spring to atom 1. The barrier is 10 kT; the wells differ by up to 1.6 kT.
    """

    class TwoWells(toys.Toy):
        implemented_properties = ("energy", "forces")

        def calculate(self, atoms, properties, system_changes):
            energy, forces = evaluate(atoms.positions)
            self.results = {"energy": energy, "forces": forces}

    sites = np.zeros((4, 2, 3))
    sites[:, 0, 1] = 6.0 * np.arange(4)
    sites[:, 1] = sites[:, 0] + [[0.10, 0.3, -0.2], [-0.06, -0.4, 0.1], [0.03, 0.2, 0.2], [-0.12, 0.0, 0.3]]

    def make(side):
        s = np.array([side * HALF, 0.0, 0.0])
        x = np.stack([sites[:, 0] - (1 - SHARE) * s, sites[:, 0] + SHARE * s, sites[:, 1]], axis=1).reshape(-1, 3)
        atoms = Atoms("HHC" * 4, x, masses=np.tile(MASSES, 4))
        atoms.calc = TwoWells(1.0)
        groups = [group for k in range(0, 12, 3) for group in ([k, k + 1], [k + 2])]
        return atoms, Mapping.from_groups(groups, ["A", "B"] * 4, atoms, bonds=[(k, k + 1) for k in range(0, 12, 3)])

    forces, mean_energy = np.zeros((8, 3)), 0.0
    grid = np.linspace(-2.0, 2.0, 4001)
    for molecule, (first, last) in enumerate(sites):
        for c in range(3):  # which are independent of each other
            points = [energy_of(c, s, first[c] + SHARE * s - last[c]) for s in grid]
            energy, _, pull = np.transpose(points)
            weights = np.exp(-energy / (kB * KELVIN))
            weights /= weights.sum()
            mean_energy += weights @ energy
            forces[2 * molecule : 2 * molecule + 2, c] = np.array([-1.0, 1.0]) * (weights @ pull)
    return make, {"forces": forces, "mean_energy": mean_energy}


def deviations(result, exact):
    """Of the forces along the barrier from the exact ones, in units of the errors quoted."""
    return ((result.forces - exact["forces"]) / result.force_errors)[:, 0]


RUN = {"temperature_K": KELVIN, "timestep_fs": 3.0, "friction_per_fs": 0.02, "progress": False}
LADDER = {"highest_K": 1500.0, "replicas": 4, "exchange_ps": 0.015}


def test_average_over_both_sides_of_a_barrier(toys, two_wells):
    make, exact = two_wells
    for side in (-1, 1):
        plain = sample_mean_force(*make(side), time_ps=8.0, equilibration_ps=0.5, seed=2, **RUN)
        # it never left its side, and knows nothing of the other one
        assert (side * deviations(plain, exact)[1::2] > 50).all()
        assert plain.force_error < 0.01
    result, rates = sample_tempered(*make(1), time_ps=45.0, equilibration_ps=6.0, seed=1, **LADDER, **RUN)
    # errors of a slow motion are not known well
    toys.check(result.forces, exact["forces"], result.force_errors, sigma=5.0, low=0.4, high=1.8)
    toys.check(result.mean_energy, exact["mean_energy"], result.mean_energy_error)
    assert result.force_error < 0.025
    assert rates.shape == (3,)
    assert (rates > 0.2).all()
    assert (rates < 0.5).all()
    # of the coldest copy; the time step makes the velocities a little too slow
    assert result.temperature_K == KELVIN
    assert 0.9 * KELVIN < result.kinetic_temperature_K < 1.02 * KELVIN
    assert result.frame.info["temperature"] == KELVIN
    assert np.array_equal(result.frame.get_forces(), result.forces)


SHORT = {"time_ps": 0.6, "equilibration_ps": 0.06, "seed": 4}


def test_same_seed_same_bits(two_wells):
    make, _ = two_wells
    runs = [sample_tempered(*make(1), **RUN | LADDER | SHORT | {"seed": seed}) for seed in (4, 4, 5)]
    first, second, other = [result.forces.tobytes() for result, _ in runs]
    assert first == second != other
    assert np.array_equal(runs[0][1], runs[1][1])
    new = [sample_tempered(*make(1), **RUN | LADDER | SHORT | {"seed": None})[0].seed for _ in range(2)]
    assert new[0] != new[1]


def test_what_is_wrong_with_the_result_is_told(two_wells):
    make, _ = two_wells
    with pytest.warns(RuntimeWarning, match="the run of 0.12 ps is too short for its slowest correlation time"):
        sample_tempered(*make(1), **RUN | LADDER | SHORT | {"time_ps": 0.12})


def test_the_atoms_stay_as_they_are(two_wells):
    make, _ = two_wells
    atoms, mapping = make(1)
    before = atoms.positions.copy()
    result, _ = sample_tempered(atoms, mapping, **RUN | LADDER | SHORT)
    assert np.array_equal(atoms.positions, before)
    # and the beads where they were
    np.testing.assert_allclose(result.frame.positions, mapping.beads(atoms).positions, atol=1e-12)


# ---- exchanges -------------------------------------------------------------------------------------------------------


def copies(two_wells, colder=300.0, warmer=500.0):
    """Two samplers, some steps from their start; their kinetic and potential energies differ."""
    make, _ = two_wells
    pair = []
    for seed, (kelvin, side) in enumerate([(colder, 1), (warmer, -1)]):
        settings = Settings(kelvin, timestep_fs=3.0, friction_per_fs=0.02, equilibration_ps=0.0, seed=seed)
        pair.append(Sampler(*make(side), settings))
        pair[-1]._advance(10 + 7 * seed, tqdm(disable=True))
    return pair


def energies(sampler):
    """Potential energy of the positions themselves, and what the sampler takes for it."""
    return evaluate(sampler.held.x)[0], sampler.held.y[-2] + sampler.held.reference


class Given:
    """Random numbers: always this one."""

    def __init__(self, number):
        self.number = number

    def random(self):
        return self.number


def test_exchanged_copies_are_those_of_the_other_temperature(two_wells):
    cold, warm = copies(two_wells)
    before = [(s.held.x.copy(), s.held.v.copy(), s.held.f.copy(), energies(s)[0]) for s in (cold, warm)]
    assert before[0][3] != before[1][3]
    assert not tempering._exchange(cold, warm, Given(1.0 - 1e-12)) or before[0][3] > before[1][3]
    assert tempering._exchange(cold, warm, Given(0.0))
    scale = math.sqrt(300.0 / 500.0)
    for sampler, (x, v, f, energy), factor in ((cold, before[1], scale), (warm, before[0], 1 / scale)):
        assert np.array_equal(sampler.held.x, x)
        assert np.array_equal(sampler.held.f, f)
        np.testing.assert_allclose(sampler.held.v, factor * v, rtol=1e-14)
        assert energies(sampler) == pytest.approx((energy, energy), rel=1e-12)
    # and back
    assert tempering._exchange(cold, warm, Given(0.0))
    assert np.array_equal(cold.held.x, before[0][0])
    np.testing.assert_allclose(cold.held.v, before[0][1], rtol=1e-14)


def test_a_refused_exchange_changes_nothing(two_wells):
    cold, warm = copies(two_wells)
    for sampler, energy in ((cold, -2.0), (warm, 3.0)):
        sampler.held.y[-2] = energy - sampler.held.reference
    before = [(s.held.x.tobytes(), s.held.v.tobytes(), s.held.f.tobytes(), s.held.y.tobytes()) for s in (cold, warm)]
    assert not tempering._exchange(cold, warm, Given(0.5))
    assert before == [
        (s.held.x.tobytes(), s.held.v.tobytes(), s.held.f.tobytes(), s.held.y.tobytes()) for s in (cold, warm)
    ]


@pytest.mark.parametrize("gap", [-0.3, -0.05, 0.0, 0.02, 0.07, 0.3])
def test_detailed_balance(two_wells, gap):
    """``p_cold(A) p_warm(B) w(AB -> BA) = p_cold(B) p_warm(A) w(BA -> AB)``, with ``U_B - U_A = gap`` (eV)."""
    cold, warm = copies(two_wells)
    rng = np.random.default_rng(1)

    def rate(a, b):
        """Accepted part of the exchanges from energies ``a`` of the cold and ``b`` of the warm copy."""
        accepted = 0
        for _ in range(4000):
            for sampler, energy in ((cold, a), (warm, b)):
                sampler.held.y[-2] = energy - sampler.held.reference
            accepted += tempering._exchange(cold, warm, rng)
        return accepted / 4000

    there, back = rate(1.0, 1.0 + gap), rate(1.0 + gap, 1.0)
    ratio = math.exp((1 / (kB * 300.0) - 1 / (kB * 500.0)) * -gap)  # p(AB -> BA) / p(BA -> AB)
    assert max(there, back) == 1.0
    assert there == pytest.approx(min(1.0, ratio), abs=0.03)
    assert back == pytest.approx(min(1.0, 1 / ratio), abs=0.03)


def test_neighbours_take_turns(two_wells, monkeypatch):
    make, _ = two_wells
    tried, seeds = [], set()

    def note(cold, warm, rng):
        tried.append((round(cold.held.kT / kB), round(warm.held.kT / kB), cold.held.step))
        seeds.update((cold.held.seed, warm.held.seed))
        return True

    monkeypatch.setattr(tempering, "_exchange", note)
    _, rates = sample_tempered(*make(1), **RUN | LADDER | SHORT)
    kelvins = np.geomspace(300, 1500, 4).round().astype(int)
    pairs = list(itertools.pairwise(kelvins.tolist()))
    by_step = {}
    for cold, warm, step in tried:
        by_step.setdefault(step, []).append((cold, warm))
    assert list(by_step)[:3] == [5, 10, 15]
    for turn, found in enumerate(by_step.values()):
        assert found == (pairs[0::2] if turn % 2 == 0 else pairs[1::2])
    assert (rates == 1).all()
    # none of them has the noise of another one, or of a run with another seed
    assert len(seeds) == 4
    assert 4 in seeds
    first = set(seeds)
    sample_tempered(*make(1), **RUN | LADDER | SHORT | {"seed": 5})
    assert len(seeds) == 8
    assert 5 in seeds - first


@pytest.mark.parametrize("interval", [1, 3])
def test_exchanges_see_the_energies_of_the_present(two_wells, monkeypatch, interval):
    """Not those of the last sample, where not every step is sampled."""
    make, _ = two_wells
    wrong, exchange = [], tempering._exchange

    def compare(cold, warm, rng):
        wrong.extend(there - known for there, known in map(energies, (cold, warm)))
        return exchange(cold, warm, rng)

    monkeypatch.setattr(tempering, "_exchange", compare)
    result, _ = sample_tempered(*make(1), interval=interval, **RUN | LADDER | SHORT)
    assert len(wrong) > 100
    np.testing.assert_allclose(wrong, 0.0, atol=1e-10)
    assert result.n_samples == 200 // interval


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"replicas": 1}, "replicas: expected an integer from 2, got 1"),
        ({"replicas": 2.5}, "replicas: expected an integer from 2, got 2.5"),
        ({"highest_K": 300.0}, "expected highest_K > temperature_K, got 300.0 and 300.0"),
        ({"highest_K": math.nan}, "expected highest_K > temperature_K, got nan and 300.0"),
        ({"highest_K": math.inf}, "expected highest_K > temperature_K, got inf and 300.0"),
        ({"temperature_K": -1.0}, "temperature_K: expected a positive number"),
        ({"timestep_fs": 0.0}, "timestep_fs: expected a positive number"),
        ({"interval": 0}, "interval: expected a positive number"),
        ({"equilibration_ps": -1.0}, "equilibration_ps: expected 0 or more"),
        ({"seed": -1}, "seed: expected an integer from 0"),
        ({"seed": "a"}, "seed: expected an integer from 0"),
        ({"exchange_ps": 0.0}, "exchange_ps: expected a positive number"),
        ({"exchange_ps": math.nan}, "exchange_ps: expected a positive number"),
        ({"time_ps": -1.0}, "time_ps: expected a positive number"),
        ({"time_ps": 0.01}, "time_ps=0.01 holds 3 samples; expected at least"),
    ],
)
def test_arguments_that_make_no_sense(two_wells, changes, message):
    make, _ = two_wells
    with pytest.raises((ValueError, SamplingError), match=message):
        sample_tempered(*make(1), **RUN | LADDER | SHORT | changes)


def test_a_step_that_cannot_be_completed_is_told(two_wells, tmp_path, monkeypatch):
    make, _ = two_wells
    monkeypatch.chdir(tmp_path)
    atoms, mapping = make(1)
    calculate, calls = atoms.calc.calculate, []

    def fail_later(*args):
        calls.append(1)
        calculate(*args)
        if len(calls) > 50:
            atoms.calc.results["forces"] = np.full((12, 3), np.nan)

    atoms.calc.calculate = fail_later
    with pytest.raises(SamplingError, match=r"cannot be completed: the force on atom 0 is not finite"):
        sample_tempered(atoms, mapping, **RUN | LADDER | SHORT)
