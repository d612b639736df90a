"""What tests of the MD driver share: short runs of a few beads, and what must hold whenever somebody looks at them."""

import functools
from dataclasses import dataclass

import md_physics as physics
import numba
import numpy as np

from ase_nepcg import MD, NEP
from ase_nepcg.md import Langevin
from ase_nepcg.md.observers import Observer

LANGEVIN = Langevin(300.0, 0.01)


def beads(threads=1):
    """27 beads of water at 300 K."""
    atoms = physics.water(3)
    atoms.calc = NEP(physics.model(), threads=threads)
    return atoms


def start(ensemble=LANGEVIN, *, atoms=None, threads=1, fs=2.0, **settings):
    atoms = beads(threads) if atoms is None else atoms
    return MD(atoms, fs, ensemble, **{"seed": 5, "progress": False} | settings)


@functools.cache
def reference_bits():
    """After 120 undisturbed steps."""
    md = start()
    md.run(120)
    return bits(md)


def bits(md):
    atoms = md.atoms
    return b"".join(
        array.tobytes()
        for array in (atoms.positions, atoms.get_momenta(), atoms.cell.array, atoms.get_forces(), atoms.get_stress())
    )


def assert_complete(md):
    """Atoms hold the state of the run, and the results that belong to it."""
    atoms, s = md.atoms, md.simulation.state
    np.testing.assert_array_equal(atoms.positions, s.x)
    np.testing.assert_array_equal(atoms.get_momenta(), s.m[:, None] * s.v)
    assert not atoms.calc.calculation_required(atoms, ["energy", "forces", "stress", "energies"])
    fresh = atoms.copy()
    fresh.calc = NEP(physics.model(), threads=1)
    # summed in another order
    np.testing.assert_allclose(atoms.get_potential_energy(), fresh.get_potential_energy(), rtol=1e-13, atol=1e-13)
    assert atoms.get_potential_energy() == md.potential_energy()
    for name in ("get_forces", "get_stress", "get_potential_energies"):
        np.testing.assert_array_equal(getattr(atoms, name)(), getattr(fresh, name)(), err_msg=name)


@numba.njit(error_model="numpy")
def _note_step(s, r, step, ints, floats):
    floats[ints[0]] = step
    ints[0] += 1


@dataclass(frozen=True)
class Steps(Observer):
    """Which steps were sampled."""

    name = "steps"

    def allocate(self, state, replica, info):
        return np.zeros(1, np.int64), np.zeros(100)

    def kernel(self):
        return _note_step

    def results(self, ints, floats):
        return floats[: ints[0]].astype(int).tolist()
