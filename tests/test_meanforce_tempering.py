"""Replica exchange: the right average across a barrier that a plain run does not cross, and the exchanges themselves."""

import math
from types import SimpleNamespace

import numba
import numpy as np
import pytest
from ase import Atoms
from ase.units import kB

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
    on a spring to atom 1. The barrier is 12 kT; the wells differ by up to 1.6 kT.
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
        plain = sample_mean_force(*make(side), time_ps=8.0, equilibration_ps=0.5, seed=1, **RUN)
        # it never left its side, and knows nothing of the other one
        assert (side * deviations(plain, exact)[1::2] > 10).all()
        assert plain.force_error < 0.01
    result, rates = sample_tempered(*make(1), time_ps=60.0, equilibration_ps=3.0, seed=1, **LADDER, **RUN)
    toys.check(result.forces, exact["forces"], result.force_errors, low=0.6, high=1.6)
    toys.check(result.mean_energy, exact["mean_energy"], result.mean_energy_error)
    print(
        result,
        exact["forces"][1::2, 0],
        result.forces[1::2, 0],
        result.force_errors[:, 0],
        rates,
        result.kinetic_temperature_K,
        result.kinetic_temperature_error_K,
        result.mean_energy,
        exact["mean_energy"],
        result.mean_energy_error,
        result.warnings,
    )
