"""Systems and tolerances for the tests of the CUDA kernels, which are slow in the simulator."""

import numpy as np
from ase import Atoms

from ase_nepcg import MD, NEP
from ase_nepcg.labels import get_types
from ase_nepcg.md import HNEMD, NPT, NVE, Bussi, Deform, Langevin, NoseHoover
from ase_nepcg.potential.evaluate import Geometry

#: largest deviation from the CPU in units of the largest number, or of 1 (eV, eV/Å)
TOLERANCES = {"double": 1e-10, "mixed": 1e-5}


def geometry_of(atoms, model) -> Geometry:
    return Geometry(atoms.positions, atoms.cell.array, atoms.pbc, get_types(atoms, model.species))


def liquid(n, density, seed, n_types=1, closest=1.2):
    """n sites at random, none closer than ``closest`` (Å), in a slightly sheared cell: Geometry; density in 1/Å^3."""
    rng = np.random.default_rng(seed)
    edge = (n / density) ** (1 / 3)
    cell = edge * np.array([[1.0, 0.05, 0.0], [0.0, 1.0, -0.04], [0.02, 0.0, 1.0]])
    fractions = np.zeros((0, 3))
    while len(fractions) < n:
        new = rng.random(3)
        d = fractions - new
        if not len(d) or np.linalg.norm((d - np.round(d)) @ cell, axis=1).min() > closest:
            fractions = np.vstack([fractions, new])
    return Geometry(fractions @ cell, cell, np.ones(3, bool), rng.integers(0, n_types, n).astype(np.int32))


def together(geometries) -> Geometry:
    """Several systems as replicas of one."""
    return Geometry(
        np.concatenate([one.positions for one in geometries]),
        np.array([one.cell for one in geometries]),
        np.array([one.pbc for one in geometries]),
        np.concatenate([one.types for one in geometries]),
        np.concatenate([[0], np.cumsum([len(one.positions) for one in geometries])]),
    )


ENSEMBLES = {
    "nve": NVE(),
    "langevin": Langevin(300.0, 0.01),
    "bussi": Bussi(300.0, 50.0),
    "nose-hoover": NoseHoover(300.0, 50.0),
    "scr": NPT(300.0, 0.1, 50.0, 300.0),
    "scr triclinic": NPT(300.0, 0.1, 50.0, 300.0, coupling="triclinic"),
    "mttk": NPT(300.0, 0.1, 50.0, 300.0, method="mttk", coupling="anisotropic"),
    "deform": Deform("x", 0.5, 300.0, free="yz", tau_p_fs=200.0, tau_fs=50.0),
    "hnemd": HNEMD(300.0, (1e-3, 0.0, 2e-3), convective=True),
}


def system(n=5, seed=1, density=0.04):
    geometry = liquid(n, density, seed)
    atoms = Atoms(f"O{n}", positions=geometry.positions, cell=geometry.cell, pbc=True)
    rng = np.random.default_rng(seed)
    atoms.set_momenta(rng.normal(size=(n, 3)) * np.sqrt(0.02 * atoms.get_masses())[:, None])
    return atoms


def run_of(model, ensemble, device, atoms=None, steps=3, precision="double", seed=7, timestep_fs=1.0):
    atoms = system() if atoms is None else atoms
    atoms.calc = NEP(model, device=device, precision=precision, threads=1)
    md = MD(atoms, timestep_fs, ensemble, seed=seed, progress=False)
    md.run(steps)
    return md


def same(a, b, tolerance=1e-12):
    for get in (
        lambda md: md.atoms.positions,
        lambda md: md.atoms.get_velocities(),
        lambda md: md.atoms.cell.array,
        lambda md: md.atoms.get_forces(),
        lambda md: np.array([md.potential_energy(), md.conserved_energy()]),
    ):
        np.testing.assert_allclose(get(a), get(b), atol=tolerance)
