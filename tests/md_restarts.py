"""Short runs of a few beads with everything attached, and what has to be equal at the end of two of them."""

import shutil
from pathlib import Path

import numpy as np
from ase import units
from ase.constraints import FixAtoms

from ase_nepcg import MD, NEP, FixBeads
from ase_nepcg.data import WATER_BEAD, water_beads
from ase_nepcg.md import (
    HNEMD,
    MSD,
    NPT,
    NVE,
    RDF,
    VACF,
    Bussi,
    Conductivity,
    Deform,
    HeatCurrent,
    Langevin,
    NoseHoover,
    Thermo,
)
from ase_nepcg.md.outputs import ThermoOutput, open_output

NAMES = ("nve", "langevin", "bussi", "nose-hoover", "scr", "mttk", "deform", "hnemd")
CONSTRAINED = ("nve", "langevin", "bussi", "nose-hoover")
FILES = ("run.traj", "run.xyz", "run.nc", "run.csv", "run.log")
_INTERVALS = {"run.traj": 10, "run.xyz": 20, "run.nc": 10, "run.csv": 3}


def ensemble(name, kelvin=300.0, pressure=0.5):
    return {
        "nve": lambda: NVE(),
        "langevin": lambda: Langevin(kelvin, 0.01),
        "bussi": lambda: Bussi(kelvin, 50.0),
        "nose-hoover": lambda: NoseHoover(kelvin, 50.0),
        "scr": lambda: NPT(kelvin, pressure, 50.0, 500.0),
        "mttk": lambda: NPT(kelvin, pressure, 50.0, 500.0, method="mttk"),
        "deform": lambda: Deform("x", 0.02, kelvin, free="yz"),
        "hnemd": lambda: HNEMD(kelvin, (1e-4, 0.0, 0.0)),
    }[name]()


def beads(n=3, seed=1, kelvin=300.0, threads=1, model=WATER_BEAD):
    """``n^3`` beads with momenta of ``kelvin`` and a calculator of their own."""
    atoms = water_beads(n, seed=seed)
    rng = np.random.default_rng(seed)
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * np.sqrt(units.kB * kelvin * atoms.get_masses())[:, None])
    atoms.calc = NEP(model, threads=threads)
    return atoms


def hold(atoms):
    atoms.set_constraint([FixAtoms([0, 9]), FixBeads([[1, 2], [4, 5, 6]])])
    return atoms


def start(folder, name="langevin", held=False, files=FILES, observers=True, **keywords):
    """A run with observers and all kinds of files in ``folder``."""
    atoms = beads()
    keywords = {"seed": 5, "progress": False} | keywords
    if "run.log" in files:
        keywords |= {"logfile": folder / "run.log", "loginterval": 10}
    md = MD(hold(atoms) if held else atoms, 1.0, ensemble(name), **keywords)
    for file in files:
        if file == "run.csv":
            md.add_output(ThermoOutput(folder / file, _INTERVALS[file]))
        elif file != "run.log":
            md.add_output(open_output(folder / file, _INTERVALS[file]))
    if observers:
        attach(md)
    return md


def attach(md):
    md.attach(Thermo(), 1)
    md.attach(RDF(4.0, bins=20), 3)
    md.attach(MSD(length=8, origins_every=3), 5)
    md.attach(VACF(length=8, origins_every=3), 5)
    driven = hasattr(md.ensemble, "field_per_A")
    md.attach(Conductivity() if driven else HeatCurrent(length=6), 5)


def assert_same(one, other):
    """Bit for bit the same state, variables of the ensemble, energies and numbers of observers."""
    assert one.nsteps == other.nsteps
    for name in ("x", "v", "f", "cell", "virial", "energy", "energies", "held", "n_dof"):
        np.testing.assert_array_equal(getattr(one.simulation.state, name), getattr(other.simulation.state, name), name)
    np.testing.assert_array_equal(one.simulation.q, other.simulation.q)
    np.testing.assert_array_equal(one.simulation.limits, other.simulation.limits)
    assert one.conserved_energy() == other.conserved_energy()
    assert len(one.handles) == len(other.handles)
    for a, b in zip(one.handles, other.handles, strict=True):
        assert a.observer == b.observer
        assert (a.interval, a.after) == (b.interval, b.after)
        np.testing.assert_array_equal(a.ints, b.ints)
        np.testing.assert_array_equal(a.floats, b.floats)
    a, b = one.atoms, other.atoms
    np.testing.assert_array_equal(a.positions, b.positions)
    np.testing.assert_array_equal(a.get_momenta(), b.get_momenta())
    np.testing.assert_array_equal(a.cell.array, b.cell.array)
    np.testing.assert_array_equal(a.get_forces(apply_constraint=False), b.get_forces(apply_constraint=False))
    assert a.get_potential_energy() == b.get_potential_energy()


def assert_same_files(one: Path, other: Path, files=FILES):
    for name in files:
        assert (one / name).stat().st_size > 0
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def contents(folder: Path) -> dict:
    """name -> bytes of all files."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def folders(tmp_path, *names):
    for name in names:
        (tmp_path / name).mkdir()
    return [tmp_path / name for name in names]


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))
