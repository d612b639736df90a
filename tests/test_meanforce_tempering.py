"""Replica exchange: the right average across a barrier that a plain run does not cross, and the exchanges themselves."""

import math
from types import SimpleNamespace

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


@pytest.fixture(scope="module")
def two_wells(toys):
    """Function: side of the barrier -> atoms, mapping; exact averages.

    Each of four molecules has atoms 0 and 1, joined to a bead, with two minima of ``s_x``, and atom 2, a bead by itself
    on a spring to atom 1. The barrier is 14 kT; the wells differ by up to 1.4 kT.
    """

    class TwoWells(toys.Toy):
        height, half, stiffness, spring = 0.36, 0.8, 1.5, 0.35

        def terms(self, s, d):
            """Energies of separations and of the springs, per component, and their derivatives (..., 3)."""
            u = (s[..., 0] / self.half) ** 2 - 1
            inner, slope = 0.5 * self.stiffness * s**2, self.stiffness * s
            inner[..., 0], slope[..., 0] = self.height * u**2, 4 * self.height * u * s[..., 0] / self.half**2
            return inner + 0.5 * self.spring * d**2, slope, self.spring * d

        def evaluate(self, x):
            molecules = x.reshape(-1, 3, 3)
            energy, slope, pull = self.terms(molecules[:, 1] - molecules[:, 0], molecules[:, 1] - molecules[:, 2])
            forces = np.stack([slope, -slope - pull, pull], axis=1).reshape(-1, 3)
            return float(energy.sum()), forces, x.T @ forces

    sites = np.zeros((4, 2, 3))
    sites[:, 0, 1] = 6.0 * np.arange(4)
    sites[:, 1] = sites[:, 0] + [[0.10, 0.3, -0.2], [-0.06, -0.4, 0.1], [0.03, 0.2, 0.2], [-0.12, 0.0, 0.3]]

    def make(side):
        s = np.array([side * TwoWells.half, 0.0, 0.0])
        x = np.stack([sites[:, 0] - (1 - SHARE) * s, sites[:, 0] + SHARE * s, sites[:, 1]], axis=1).reshape(-1, 3)
        atoms = Atoms("HHC" * 4, x, masses=np.tile(MASSES, 4), cell=[toys.CLUSTER_CELL] * 3)
        atoms.calc = TwoWells(toys.CLUSTER_CELL**3)
        groups = [group for k in range(0, 12, 3) for group in ([k, k + 1], [k + 2])]
        return atoms, Mapping.from_groups(groups, ["A", "B"] * 4, atoms, bonds=[(k, k + 1) for k in range(0, 12, 3)])

    # the components are independent: quadrature of each
    grid = np.linspace(-2.0, 2.0, 4001)
    s = np.broadcast_to(grid[:, None, None], (4001, 4, 3))
    energy, _, pull = TwoWells(1.0).terms(s, SHARE * s - (sites[:, 1] - sites[:, 0]))
    weights = np.exp(-energy / (kB * KELVIN))
    weights /= weights.sum(axis=0)
    on_last = (weights * pull).sum(axis=0)
    forces = np.stack([-on_last, on_last], axis=1).reshape(-1, 3)
    return make, {"forces": forces, "mean_energy": (weights * energy).sum()}


def deviations(result, exact):
    """Of the forces along the barrier from the exact ones, in units of the errors quoted."""
    return ((result.forces - exact["forces"]) / result.force_errors)[:, 0]


RUN = {"temperature_K": KELVIN, "timestep_fs": 3.0, "friction_per_fs": 0.02, "progress": False}
LADDER = {"highest_K": 3000.0, "replicas": 6, "exchange_ps": 0.03}


def test_average_over_both_sides_of_a_barrier(toys, two_wells):
    make, exact = two_wells
    for side in (-1, 1):
        plain = sample_mean_force(*make(side), time_ps=15.0, equilibration_ps=1.0, seed=1, **RUN)
        # it never left its side, and knows nothing of the other one
        assert (side * deviations(plain, exact)[1::2] > 10).all()
        assert plain.force_error < 0.01
    result, rates = sample_tempered(*make(1), time_ps=100.0, equilibration_ps=3.0, seed=1, **LADDER, **RUN)
    toys.check(result.forces, exact["forces"], result.force_errors, low=0.6, high=1.6)
    toys.check(result.mean_energy, exact["mean_energy"], result.mean_energy_error)
    print(result, exact['forces'][1::2,0], result.forces[1::2,0], result.force_errors[:,0], rates, result.kinetic_temperature_K,result.kinetic_temperature_error_K,result.mean_energy, exact["mean_energy"],result.mean_energy_error, result.warnings)
