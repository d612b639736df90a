"""FixBeads under the drivers of ase.md: centres stay, averages are those of the constrained ensemble."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.constraints import FixAtoms, FixBondLengths, FixLinearTriatomic
from ase.md.andersen import Andersen
from ase.md.bussi import Bussi
from ase.md.langevin import Langevin
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.verlet import VelocityVerlet

from ase_nepcg import FixBeads

FS = units.fs
TEMPERATURE = 300.0
KT = units.kB * TEMPERATURE


class Springs:
    """Each atom ``i`` is bound to where it is now by ``stiffness[i]`` (eV/Å²) and feels a constant force."""

    def __init__(self, atoms, stiffness, constant=0.0):
        self.origin, self.stiffness = atoms.get_positions(), np.reshape(stiffness, (-1, 1))
        self.constant = np.broadcast_to(constant, self.origin.shape)

    def get_forces(self, atoms):
        return self.constant - self.stiffness * (atoms.positions - self.origin)

    def get_potential_energy(self, atoms=None, force_consistent=False):
        moved = atoms.positions - self.origin
        return float((self.stiffness * moved**2).sum() / 2 - (self.constant * moved).sum())


def flexible():
    """100 atoms of unequal masses: groups of one to four, two of them partly and one completely frozen, free atoms."""
    rng = np.random.default_rng(0)
    groups = np.split(np.arange(90), np.cumsum([1, 2, 3, 4] * 8 + [3] * 3))[:-1]
    atoms = Atoms("H100", positions=rng.uniform(-20, 60, (100, 3)), cell=[40, 40, 40], pbc=True)
    atoms.set_masses(rng.uniform(5, 40, 100))
    atoms.calc = Springs(atoms, 4e-4 * atoms.get_masses() / FS**2 * rng.uniform(0.5, 1.0, 100))
    atoms.set_constraint([FixAtoms([6, 7, 8, 9, 16, 95]), FixBeads(groups)])
    assert atoms.get_number_of_degrees_of_freedom() == 300 - 6 * 3 - (len(groups) - 1) * 3
    return atoms


def dipoles(n, field=2.0):
    """``n`` rigid rods of length 1 Å with charges of unlike sign: U = -field kT cos(angle to the z axis)."""
    rng = np.random.default_rng(1)
    atoms = Atoms("CH" * n, positions=np.repeat(8.0 * rng.uniform(size=(n, 3)), 2, axis=0))
    axes = rng.normal(size=(n, 3)) + np.array([0.0, 0.0, 1.5])
    atoms.positions[1::2] += axes / np.linalg.norm(axes, axis=1)[:, None]
    atoms.set_masses(np.tile([1.0, 0.5], n))
    force = np.zeros((2 * n, 3))
    force[1::2, 2], force[::2, 2] = field * KT, -field * KT
    atoms.calc = Springs(atoms, np.zeros(2 * n), force)
    return atoms


def cosines(atoms):
    return atoms.positions[1::2, 2] - atoms.positions[::2, 2]


def thermalise(atoms, seed=1):
    rng = np.random.default_rng(seed)
    masses = atoms.get_masses()[:, None]
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * np.sqrt(masses * KT))


def centres(atoms):
    return np.array([atoms[list(group)].get_center_of_mass() for c in beads(atoms) for group in c.groups])


def beads(atoms):
    return [constraint for constraint in atoms.constraints if isinstance(constraint, FixBeads)]


def average(atoms, driver, steps, *functions, start=100):
    """Means of functions of ``atoms`` and their standard errors from 20 blocks, as one (mean, error) per function."""
    values = []
    driver.run(start)
    driver.attach(lambda: values.append([function(atoms) for function in functions]))
    driver.run(steps)
    blocks = np.array([block.mean(axis=0) for block in np.array_split(np.array(values), 20)])
    return list(zip(blocks.mean(axis=0), blocks.std(axis=0, ddof=1) / np.sqrt(20), strict=True))


def assert_equal_within(measured, exact, resolution, sigmas=4.0):
    """Equal within errors, where the error is small enough to see a difference of ``resolution``."""
    mean, error = measured
    assert abs(mean - exact) < sigmas * error
    assert sigmas * error < resolution


def langevin(atoms, **keywords):
    keywords = {"timestep": 1.0 * FS, "friction": 0.05 / FS} | keywords
    return Langevin(atoms, temperature_K=TEMPERATURE, fixcm=False, rng=np.random.RandomState(3), **keywords)


# ---- ensembles ------------------------------------------------------------------------------------------


def test_langevin():
    """Kinetic and potential energy are kT / 2 for each degree of freedom that is left."""
    atoms = flexible()
    thermalise(atoms)
    before, n_dof = centres(atoms), atoms.get_number_of_degrees_of_freedom()
    kinetic, potential = average(
        atoms,
        langevin(atoms),
        3000,
        lambda atoms: atoms.get_kinetic_energy(),
        lambda atoms: atoms.get_potential_energy(),
    )
    assert_equal_within(kinetic, n_dof * KT / 2, resolution=0.05 * n_dof * KT / 2)
    assert_equal_within(potential, n_dof * KT / 2, resolution=0.1 * n_dof * KT / 2)
    np.testing.assert_allclose(centres(atoms), before, rtol=0, atol=1e-12)


def test_bussi():
    atoms = flexible()
    thermalise(atoms)
    before, n_dof = centres(atoms), atoms.get_number_of_degrees_of_freedom()
    driver = Bussi(atoms, 1.0 * FS, TEMPERATURE, taut=5 * FS, rng=np.random.RandomState(4))
    assert driver.ndof == n_dof
    (kinetic,) = average(atoms, driver, 2000, lambda atoms: atoms.get_kinetic_energy())
    assert_equal_within(kinetic, n_dof * KT / 2, resolution=0.08 * n_dof * KT / 2)
    np.testing.assert_allclose(centres(atoms), before, rtol=0, atol=1e-12)


def test_andersen_holds_centres_but_is_too_cold():
    """It draws single velocity components anew; what it gives to a centre is lost. The docstring says so."""
    atoms = flexible()
    thermalise(atoms)
    before, n_dof = centres(atoms), atoms.get_number_of_degrees_of_freedom()
    driver = Andersen(
        atoms, 1.0 * FS, temperature_K=TEMPERATURE, andersen_prob=0.1, fixcm=False, rng=np.random.RandomState(5)
    )
    (kinetic,) = average(atoms, driver, 1000, lambda atoms: atoms.get_kinetic_energy())
    assert 0.7 < kinetic[0] / (n_dof * KT / 2) < 0.95
    np.testing.assert_allclose(centres(atoms), before, rtol=0, atol=1e-12)


def test_velocity_verlet_conserves_energy_and_can_be_reversed():
    atoms = flexible()
    thermalise(atoms)
    before, start = centres(atoms), atoms.get_positions()
    driver, energies = VelocityVerlet(atoms, 0.5 * FS), []
    driver.attach(lambda: energies.append(atoms.get_total_energy()))
    driver.run(400)
    assert np.ptp(energies) < 1e-4 * atoms.get_kinetic_energy()
    assert np.abs(atoms.positions - start).max() > 0.1
    np.testing.assert_allclose(centres(atoms), before, rtol=0, atol=1e-12)
    atoms.set_momenta(-atoms.get_momenta())
    driver.run(400)
    np.testing.assert_allclose(atoms.positions, start, rtol=0, atol=1e-9)


def test_barostats_of_ase_refuse():
    atoms = flexible()
    with pytest.raises(NotImplementedError, match="does not support constraints"):
        IsotropicMTKNPT(atoms, timestep=FS, temperature_K=TEMPERATURE, pressure_au=0.0, tdamp=100 * FS, pdamp=1000 * FS)


# ---- rigid molecules ------------------------------------------------------------------------------------

LANGEVIN_FUNCTION = 1 / np.tanh(2.0) - 1 / 2.0  # mean cosine of a dipole in a field of 2 kT


@pytest.mark.parametrize(("held", "steps"), [("centres", 1000), ("ends", 250)])
def test_rigid_rods(held, steps):
    """Held at the centre, or (a site map) at the heavier end: both turn on a sphere."""
    n = 5
    atoms = dipoles(n)
    pairs = np.arange(2 * n).reshape(-1, 2)
    atoms.set_constraint([FixBondLengths(pairs), FixBeads(pairs if held == "centres" else pairs[:, :1])])
    assert atoms.get_number_of_degrees_of_freedom() == 2 * n
    thermalise(atoms)
    before = centres(atoms)
    driver = langevin(atoms, timestep=2.0 * FS, friction=0.02 / FS)
    kinetic, cosine = average(
        atoms, driver, steps, lambda atoms: atoms.get_kinetic_energy() / KT, lambda atoms: cosines(atoms).mean()
    )
    assert_equal_within(kinetic, n, resolution=0.4 * n)
    assert_equal_within(cosine, LANGEVIN_FUNCTION, resolution=0.4)
    np.testing.assert_allclose(centres(atoms), before, rtol=0, atol=1e-12)
    lengths = np.linalg.norm(atoms.positions[1::2] - atoms.positions[::2], axis=1)
    np.testing.assert_allclose(lengths, 1.0, rtol=0, atol=1e-11)


@pytest.mark.parametrize("molecules_per_group", [1, 2])
def test_linear_molecules(molecules_per_group):
    n = 20
    rng = np.random.default_rng(2)
    axes = rng.normal(size=(n, 3))
    axes /= np.linalg.norm(axes, axis=1)[:, None]
    positions = 5.0 * np.arange(n)[:, None, None] + np.array([-1.2, 0.0, 1.0])[:, None] * axes[:, None]
    atoms = Atoms("OCS" * n, positions=positions.reshape(-1, 3))
    atoms.calc = Springs(atoms, np.full(3 * n, 0.05))
    atoms.set_constraint(
        [
            FixLinearTriatomic(np.arange(3 * n).reshape(n, 3)),
            FixBeads(np.arange(3 * n).reshape(n // molecules_per_group, -1)),
        ]
    )
    n_dof = atoms.get_number_of_degrees_of_freedom()
    assert n_dof == 5 * n - 3 * n // molecules_per_group
    thermalise(atoms)
    before = centres(atoms)
    (kinetic,) = average(atoms, langevin(atoms), 700, lambda atoms: atoms.get_kinetic_energy())
    assert_equal_within(kinetic, n_dof * KT / 2, resolution=0.15 * n_dof * KT / 2)
    np.testing.assert_allclose(centres(atoms), before, rtol=0, atol=1e-12)
    ends = atoms.positions.reshape(n, 3, 3)
    np.testing.assert_allclose(np.linalg.norm(ends[:, 2] - ends[:, 0], axis=1), 2.2, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ends[:, 1], (1.0 * ends[:, 0] + 1.2 * ends[:, 2]) / 2.2, rtol=0, atol=1e-9)
