"""Runs that write files, for the tests of outputs: a driver of random numbers, beads, and all kinds of files.

Tests load this module by its path, since ``tests`` is no package.
"""

import ase.io
import numpy as np
from ase import units
from ase.calculators.singlepoint import SinglePointCalculator

from ase_nepcg.data import water_beads
from ase_nepcg.labels import get_labels, set_labels
from ase_nepcg.md.outputs import AseLog, ThermoOutput, open_output

SUFFIXES = (".traj", ".xyz", ".nc")
# all kinds of files: trajectories by suffix, the rest by name
KINDS = (*SUFFIXES, "csv", "log")


class FakeMD:
    """A run of random numbers: the state after a step depends on the number of the step only."""

    def __init__(self, atoms, step=0):
        self.atoms, self.nsteps = atoms, step
        self.start = atoms.positions.copy()
        self.advance(0)

    def advance(self, steps=1):
        self.nsteps += steps
        rng = np.random.default_rng(self.nsteps)
        n = len(self.atoms)
        self.atoms.positions[:] = self.start + rng.normal(size=(n, 3))
        self.atoms.set_momenta(rng.normal(size=(n, 3)), apply_constraint=False)
        self.atoms.calc = SinglePointCalculator(
            self.atoms, energy=rng.normal(), forces=rng.normal(size=(n, 3)), stress=rng.normal(size=6)
        )
        self.stress = rng.normal(size=6)

    @property
    def time_ps(self):
        return self.nsteps * 0.002

    def get_time(self):
        return self.time_ps * 1000 * units.fs

    def todict(self):
        return {"type": "molecular-dynamics", "md-type": "FakeMD"}

    def temperature_K(self):
        return 300.0 + self.nsteps / 3

    def potential_energy(self):
        return float(self.atoms.calc.results["energy"])

    def kinetic_energy(self):
        return 2.0

    def conserved_energy(self):
        return -1.25

    def stress_GPa(self):
        return self.stress


def new_beads():
    """Eight beads of water, two of them relabelled."""
    atoms = water_beads(2)
    labels = get_labels(atoms)
    labels[3:5] = "long-tail"
    set_labels(atoms, labels, {"WAT": 18.015, "long-tail": 33.0})
    return atoms


def write_frames(output, md, count):
    for _ in range(count):
        md.advance()
        output.write(md.atoms, md)


def file_of(folder, kind):
    return folder / (f"run{kind}" if kind in SUFFIXES else f"run.{kind}")


def make(kind, path, **keywords):
    return {"csv": ThermoOutput, "log": AseLog}.get(kind, open_output)(path, 10, **keywords)


def read_count(path):
    """Frames of a trajectory, as others see them."""
    if path.suffix == ".nc":
        from scipy.io import netcdf_file

        with netcdf_file(path, mmap=False) as file:
            return file.variables["time"].shape[0]
    return len(ase.io.read(path, index=":"))
