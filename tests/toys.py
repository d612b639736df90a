"""Potentials whose averages at held sites are known, and liquids for identities between averages.

============== =================================================================================================
chain          harmonic, tensor springs, unequal masses: averages by Gaussian integrals
cradle         two atoms in a smooth anharmonic well among two frozen ones: averages by quadrature, or, if the two
               are a rigid dimer, by quadrature over its directions
dimer_liquid   flexible dimers, Lennard-Jones
rigid_water    SPC/E geometry and charges, shifted force at the cutoff, rigid by ``FixBondLengths``
============== =================================================================================================

Several replicas of chain and cradle, which do not interact, fit into one ``Atoms``: one step then serves all of them.
Units of ASE.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.constraints import FixBondLengths, FixLinearTriatomic
from ase.units import kB
from scipy.stats import chi2

#: Angstrom; only to have a volume, clusters are not periodic
CLUSTER_CELL = 60.0
VOIGT = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])


def check(value, expected, error, sigma=4.0, low=0.8, high=1.25):
    """All components agree within ``sigma`` of the quoted error, and the errors are neither too large nor too small.

    Of symmetric tensors each component counts once; components whose error is 0 must agree exactly. Components are
    correlated: half of them count as independent for the range of the mean square deviation, 1e-4 of the probability
    on either side, and errors may be wrong by the factors ``low`` and ``high``.
    """
    value, expected, error = np.broadcast_arrays(value, expected, error)
    if value.shape == (3, 3) and np.array_equal(value, value.T):
        value, expected, error = (a[np.triu_indices(3)] for a in (value, expected, error))
    exact = error == 0
    np.testing.assert_allclose(value[exact], expected[exact], rtol=0, atol=1e-9)
    pulls = (value[~exact] - expected[~exact]) / error[~exact]
    assert np.abs(pulls).max(initial=0.0) < sigma, f"largest deviation {np.abs(pulls).max():.1f} errors"
    if pulls.size >= 4:
        n = pulls.size / 2
        rms = np.sqrt((pulls**2).mean())
        a, b = low * np.sqrt(chi2.ppf(1e-4, n) / n), high * np.sqrt(chi2.isf(1e-4, n) / n)
        assert a < rms < b, f"rms deviation {rms:.2f} errors, expected {a:.2f} to {b:.2f}"


def batch_error(series, batches=12):
    """Standard errors (C,) of the averages of ``series`` (S, C), from a few long batches.

    With so few the quotients are distributed as Student's t, with wide wings: allow 6 of these errors.
    """
    n = len(series) // batches
    means = np.asarray(series)[-n * batches :].reshape(batches, n, -1).mean(axis=1)
    return means.std(axis=0, ddof=1) / np.sqrt(batches)


class Toy(Calculator):
    """Calculator for atoms that change nothing but positions; subclasses evaluate energy, forces (N, 3), virial (3, 3).

    ASE's comparison of the whole ``Atoms`` takes longer than these potentials.
    """

    implemented_properties = ("energy", "free_energy", "forces", "stress")

    def __init__(self, volume):
        super().__init__()
        self.volume = volume

    def check_state(self, atoms, tol=1e-15):
        return [] if self.atoms is not None and np.array_equal(self.atoms, atoms.positions) else ["positions"]

    def calculate(self, atoms, properties, system_changes):
        self.atoms = atoms.positions.copy()
        energy, forces, virial = self.evaluate(self.atoms)
        stress = -0.5 * (virial + virial.T)[VOIGT] / self.volume
        self.results = {"energy": energy, "free_energy": energy, "forces": forces, "stress": stress}


def langevin(atoms, temperature_K, timestep_fs, friction_per_fs, steps, seed):
    """Unconstrained BAOAB dynamics of ``atoms`` with its calculator; yields the velocities after every step."""
    rng = np.random.default_rng(seed)
    masses = atoms.get_masses()[:, None]
    h, c = timestep_fs * units.fs, np.exp(-friction_per_fs * timestep_fs)
    thermal = np.sqrt(kB * temperature_K / masses)
    v = thermal * rng.normal(size=atoms.positions.shape)
    f = atoms.get_forces(apply_constraint=False)
    for _ in range(steps):
        v += 0.5 * h * f / masses
        x = atoms.positions + 0.5 * h * v
        v = c * v + np.sqrt(1 - c**2) * thermal * rng.normal(size=v.shape)
        atoms.positions = x + 0.5 * h * v
        f = atoms.get_forces(apply_constraint=False)
        v += 0.5 * h * f / masses
        yield v


# --- harmonic chain -------------------------------------------------------------------------------------------------


class Springs(Toy):
    """``U = (x - x0) H (x - x0) / 2`` of a cluster."""

    def __init__(self, hessian, x0):
        super().__init__(CLUSTER_CELL**3)
        self.hessian, self.x0 = hessian, x0

    def evaluate(self, x):
        d = (x - self.x0).ravel()
        f = -(self.hessian @ d)
        forces = f.reshape(-1, 3)
        return -0.5 * float(f @ d), forces, x.T @ forces

    def average(self, bound, x, kT):
        """Averages with the sites of ``bound`` held where they are in ``x``: a dict under the names of ``MeanForce``.

        ``x = B R + P y`` with ``C x = R``, ``C B = 1``, ``C P = 0``: integration over y leaves the PMF ``A(R)`` with
        gradient ``B^T H (<x> - x0)``; it is that of a cluster, so its virial is ``sum_I R_I (x) F_I``.
        """
        n = bound.n_atoms
        centre = np.zeros((bound.n_sites, n))
        for site, group in enumerate(bound.groups):
            centre[site, group] = bound.masses[group] / bound.masses[group].sum()
        C = np.kron(centre, np.eye(3))
        P = np.linalg.svd(C)[2][len(C) :].T
        inner = P.T @ self.hessian @ P
        d = (x - self.x0).ravel()
        d = d - P @ np.linalg.solve(inner, P.T @ self.hessian @ d)
        B = C.T @ np.linalg.inv(C @ C.T)
        forces = -(B.T @ self.hessian @ d).reshape(-1, 3)
        virial = (centre @ x).T @ forces
        return {
            "forces": forces,
            "virial": 0.5 * (virial + virial.T),
            "mean_energy": 0.5 * d @ self.hessian @ d + 0.5 * kT * P.shape[1],
        }


def chain(replicas=2, beads=3, per_bead=4, seed=0, field=0.0):
    """Harmonic chains of ``beads * per_bead`` atoms with unequal masses, at random displaced positions.

    Neighbours and next neighbours are joined by springs with different stiffness in all directions. ``field``:
    stiffness of springs that join the atoms to points in space. Returns atoms and bonds (M, 2).
    """
    rng = np.random.default_rng(seed)
    length = beads * per_bead
    n = replicas * length
    x0 = rng.normal(size=(n, 3)) * 0.3
    x0[:, 0] += np.tile(np.arange(length), replicas) * 0.9
    x0[:, 1] += np.repeat(np.arange(replicas), length) * 5.0
    hessian = np.zeros((n, 3, n, 3))
    bonds = []

    def tensor():
        a = rng.normal(size=(3, 3))
        return 1.5 * np.eye(3) + 0.4 * a @ a.T

    for first in range(0, n, length):
        for i in range(first, first + length):
            hessian[i, :, i] += field * tensor()
            for j in range(i + 1, min(i + 3, first + length)):
                k = tensor() / (j - i) ** 2
                hessian[i, :, i] += k
                hessian[j, :, j] += k
                hessian[i, :, j] -= k
                hessian[j, :, i] -= k
        bonds += [(i, i + 1) for i in range(first, first + length - 1)]
    masses = rng.choice([2.0, 5.0, 11.0, 16.0], n)
    atoms = Atoms("C" * n, x0 + rng.normal(size=(n, 3)) * 0.15, masses=masses, cell=[CLUSTER_CELL] * 3)
    atoms.calc = Springs(hessian.reshape(3 * n, 3 * n), x0)
    return atoms, np.array(bonds)


# --- two atoms among frozen ones ------------------------------------------------------------------------------------


class Cradle(Toy):
    """Replicas of four atoms: 0 and 1 in a quartic shell ``a (r^2 - r0^2)^2``, both repelled or attracted by 2 and 3.

    These pair energies are Gaussians ``e exp(-r^2 / 2 s^2)``; there is no external field, so that the forces sum to 0.
    ``bond=False`` leaves the bond 0-1 out (for a rigid dimer).
    """

    strength = np.array([0.5, -0.2, -0.25, 0.4])
    width = np.array([0.8, 1.0, 0.9, 0.7])
    a, r0 = 0.3, 0.7
    # separations of the pairs 0-2, 0-3, 1-2, 1-3 and 0-1 from the positions
    separations = np.array([[-1, 0, 1, 0], [-1, 0, 0, 1], [0, -1, 1, 0], [0, -1, 0, 1], [-1, 1, 0, 0]], float)

    def __init__(self, bond=True):
        super().__init__(CLUSTER_CELL**3)
        self.bond = bond

    def terms(self, x):
        """Energies (...) and forces (..., 4, 3) of molecules at ``x`` (..., 4, 3)."""
        d = self.separations @ x
        r2 = (d * d).sum(-1)
        pull = np.empty(r2.shape)  # on the first atom, per separation
        e = self.strength * np.exp(r2[..., :4] * (-0.5 / self.width**2))
        pull[..., :4] = e * (-1 / self.width**2)
        energy = e.sum(-1)
        excess = r2[..., 4] - self.r0**2 if self.bond else 0.0
        pull[..., 4] = 4 * self.a * excess
        return energy + self.a * excess**2, -self.separations.T @ (d * pull[..., None])

    def evaluate(self, x):
        energy, forces = self.terms(x.reshape(-1, 4, 3))
        forces = forces.reshape(-1, 3)
        return float(energy.sum()), forces, x.T @ forces

    def points(self, sites, share, n=28, reach=1.8):
        """Quadrature of one molecule: positions (Q, 4, 3), weights (Q,) without the Boltzmann factor.

        ``sites`` (3, 3): the site of atoms 0 and 1, atoms 2 and 3; ``share``: :func:`cradle_share`. A cubic grid for
        the separation of 0 and 1 (the integrand is smooth and vanishes at its border, so that it converges
        exponentially), or for a rigid molecule one over its directions.
        """
        if self.bond:
            axis = np.linspace(-reach, reach, n)
            s = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
            weights = np.ones(len(s))
        else:
            u, weight = np.polynomial.legendre.leggauss(n)
            phi = 2 * np.pi * np.arange(n) / n
            rho = np.sqrt(1 - u**2)[:, None]
            s = np.stack([rho * np.cos(phi), rho * np.sin(phi), np.broadcast_to(u[:, None], (n, n))], axis=-1)
            s, weights = self.r0 * s.reshape(-1, 3), np.repeat(weight, n)
        x = np.empty((len(s), 4, 3))
        x[:, 0] = sites[0] - share[1] * s
        x[:, 1] = sites[0] + share[0] * s
        x[:, 2:] = sites[1:]
        return x, weights

    def average(self, sites, share, kT):
        """Averages of one molecule, as :meth:`Springs.average` gives them.

        The mean force on a frozen atom is the average of its force; that on the third site follows from translation.
        """
        x, weights = self.points(sites, share)
        energy, forces = self.terms(x)
        weights = weights * np.exp((energy.min() - energy) / kT)
        weights /= weights.sum()
        forces = np.tensordot(weights, forces[:, 1:], 1)
        forces[0] = -forces[1] - forces[2]
        virial = sites.T @ forces
        return {"forces": forces, "virial": 0.5 * (virial + virial.T), "mean_energy": weights @ energy}


#: masses of a cradle, and what its three sites are
CRADLE_MASSES = np.array([7.0, 3.0, 12.0, 12.0])
CRADLES = {"group": ((0, 1), (2,), (3,)), "site": ((0,), (2,), (3,)), "linear": ((0, 1, 4), (2,), (3,))}


class LinearCradle(Cradle):
    """The same with a fifth atom, heavy and without interactions, between 0 and 1: a rigid linear molecule."""

    #: where on the way from 0 to 1, and its mass
    where, mass = 0.4, 16.0

    def __init__(self):
        super().__init__(bond=False)

    def evaluate(self, x):
        molecules = x.reshape(-1, 5, 3)
        energy, forces = self.terms(molecules[:, :4])
        forces = np.concatenate([forces, np.zeros((len(forces), 1, 3))], axis=1).reshape(-1, 3)
        return float(energy.sum()), forces, x.T @ forces


def cradle(kind, replicas=4, seed=0, rigid=False):
    """Atoms with replicas of the cradle in different geometries; groups and bonds for a mapping of that kind."""
    rng = np.random.default_rng(seed)
    linear = kind == "linear"
    calculator = LinearCradle() if linear else Cradle(bond=not rigid)
    sites = np.zeros((replicas, 3, 3))
    sites[:, 0] = rng.normal(size=(replicas, 3)) * 0.1
    sites[:, 1] = [1.3, 0.2, -0.1] + rng.normal(size=(replicas, 3)) * 0.25
    sites[:, 2] = [-0.4, 1.1, 0.6] + rng.normal(size=(replicas, 3)) * 0.25
    sites += 6.0 * np.stack(np.unravel_index(np.arange(replicas), (4, 4, 4)), axis=-1)[:, None]
    s = rng.normal(size=(replicas, 3))
    s *= calculator.r0 / np.linalg.norm(s, axis=1)[:, None]
    share = cradle_share(kind)
    x = [sites[:, 0] - share[1] * s, sites[:, 0] + share[0] * s, sites[:, 1], sites[:, 2]]
    masses = CRADLE_MASSES
    if linear:
        x.append(x[0] + calculator.where * s)
        masses = np.append(masses, calculator.mass)
    size = len(x)
    x = np.stack(x, axis=1).reshape(-1, 3)
    atoms = Atoms("C" * len(x), x, masses=np.tile(masses, replicas), cell=[CLUSTER_CELL] * 3)
    atoms.calc = calculator
    first = size * np.arange(replicas)
    bonds = np.stack([first, first + 1], axis=1)
    if linear:
        atoms.set_constraint(FixLinearTriatomic(np.stack([first, first + 4, first + 1], axis=1)))
    elif rigid:
        atoms.set_constraint(RigidBonds(bonds))
    return atoms, [[k + i for i in group] for k in first for group in CRADLES[kind]], bonds


def cradle_share(kind):
    """Distances of atoms 1 and 0 from the site that they belong to, as parts of their own distance."""
    if kind == "site":
        return np.array([1.0, 0.0])
    masses = CRADLE_MASSES[:2].copy()
    if kind == "linear":
        masses += LinearCradle.mass * np.array([1 - LinearCradle.where, LinearCradle.where])
    return masses / masses.sum()


def cradle_average(atoms, bound, kind, kT):
    """:meth:`Cradle.average` of all replicas in ``atoms``."""
    sites = bound.centres(atoms.positions).reshape(-1, 3, 3)
    each = [atoms.calc.average(s, cradle_share(kind), kT) for s in sites]
    return {
        "forces": np.concatenate([a["forces"] for a in each]),
        "virial": sum(a["virial"] for a in each),
        "mean_energy": sum(a["mean_energy"] for a in each),
    }


# --- rigid bonds ----------------------------------------------------------------------------------------------------


@numba.njit
def _solve_bonds(pairs, wanted, along, change, w, tolerance):
    """Move ``change`` (N, 3) along the bonds until ``wanted - |change_i - change_j|^2`` (positions) is zero, or, with
    ``wanted`` empty, the rate ``along . (change_i - change_j)`` (velocities); bond after bond, until all are right."""
    for _ in range(1000):
        largest = 0.0
        for b in range(len(pairs)):
            i, j = pairs[b]
            square = rate = length = 0.0
            for c in range(3):
                d = change[i, c] - change[j, c]
                square += d * d
                rate += d * along[b, c]
                length += along[b, c] * along[b, c]
            if len(wanted):
                excess, slope = 0.5 * (wanted[b] - square), rate
            else:
                excess, slope = -rate, length
            largest = max(largest, abs(excess))
            impulse = excess / (slope * (w[i] + w[j]))
            for c in range(3):
                change[i, c] += impulse * w[i] * along[b, c]
                change[j, c] -= impulse * w[j] * along[b, c]
        if largest < tolerance:
            return True
    return False


class RigidBonds(FixBondLengths):
    """ASE's ``FixBondLengths``, compiled; no bond across a boundary."""

    def _along(self, atoms):
        return atoms.positions[self.pairs[:, 0]] - atoms.positions[self.pairs[:, 1]]

    def adjust_positions(self, atoms, new):
        if self.bondlengths is None:
            self.bondlengths = np.linalg.norm(self._along(atoms), axis=1)
        w = 1 / atoms.get_masses()
        assert _solve_bonds(self.pairs, self.bondlengths**2, self._along(atoms), new, w, 1e-13)

    def adjust_momenta(self, atoms, p):
        w = 1 / atoms.get_masses()
        v = p * w[:, None]
        assert _solve_bonds(self.pairs, np.zeros(0), self._along(atoms), v, w, 1e-13)
        p[:] = v / w[:, None]

    def constraint_forces(self, atoms, v, forces):
        """Forces (N, 3) of the bonds on atoms that move with velocities ``v`` under ``forces``.

        From ``d . (a_i - a_j) + |v_i - v_j|^2 = 0``, the second derivative of the bonds' lengths.
        """
        i, j = self.pairs.T
        d, w = self._along(atoms), 1 / atoms.get_masses()
        a = forces * w[:, None]
        excess = ((a[i] - a[j]) * d).sum(-1) + ((v[i] - v[j]) ** 2).sum(-1)
        ends = np.zeros((len(d), len(w)))  # which way a force along a bond acts on an atom
        ends[np.arange(len(d)), i], ends[np.arange(len(d)), j] = 1.0, -1.0
        impulse = np.linalg.solve((ends * w) @ ends.T * (d @ d.T), -excess)
        return ends.T @ (impulse[:, None] * d)


# --- liquids --------------------------------------------------------------------------------------------------------


@numba.njit
def _pairs(x, length, rc, molecule, sqrt_epsilon, sigma, charge):
    """Lennard-Jones and Coulomb energy, forces (N, 3) and virial (3, 3) in a cubic cell, between molecules.

    Nearest images; shifted, so that energy and force of a pair end at ``rc``, at most half the cell. Charges in units
    of sqrt(eV Angstrom).
    """
    energy, forces, virial = 0.0, np.zeros(x.shape), np.zeros((3, 3))
    d = np.empty(3)
    for i in range(len(x)):
        for j in range(i):
            if molecule[i] == molecule[j]:
                continue
            for c in range(3):
                d[c] = x[i, c] - x[j, c]
                d[c] -= length * np.rint(d[c] / length)
            r = math.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
            if r >= rc:
                continue
            epsilon, qq = sqrt_epsilon[i] * sqrt_epsilon[j], charge[i] * charge[j]
            s, edge = (sigma / r) ** 6, (sigma / rc) ** 6
            e, f = 4 * epsilon * (s * s - s) + qq / r, (24 * epsilon * (2 * s * s - s) + qq / r) / r
            e_edge = 4 * epsilon * (edge * edge - edge) + qq / rc
            f_edge = (24 * epsilon * (2 * edge * edge - edge) + qq / rc) / rc
            energy += e - e_edge + (r - rc) * f_edge
            for c in range(3):
                pull = (f - f_edge) * d[c] / r
                forces[i, c] += pull
                forces[j, c] -= pull
                for k in range(3):
                    virial[k, c] += d[k] * pull
    return energy, forces, virial


class Dimers(Toy):
    """Atoms 2k and 2k + 1 joined by a harmonic bond; Lennard-Jones between all others."""

    epsilon, sigma, stiffness, bond = 0.02, 3.0, 1.0, 0.9

    def __init__(self, n_dimers, length):
        super().__init__(length**3)
        self.length, self.rc = length, 0.5 * length
        self.molecule = np.arange(2 * n_dimers) // 2
        self.sqrt_epsilon = np.full(2 * n_dimers, self.epsilon**0.5)
        self.charge = np.zeros(2 * n_dimers)

    def evaluate(self, x):
        energy, forces, virial = _pairs(
            x, self.length, self.rc, self.molecule, self.sqrt_epsilon, self.sigma, self.charge
        )
        d = x[1::2] - x[::2]
        d -= self.length * np.rint(d / self.length)
        r = np.sqrt((d * d).sum(1))
        pull = (self.stiffness * (1 - self.bond / r))[:, None] * d
        forces[::2] += pull
        forces[1::2] -= pull
        return float(energy + 0.5 * self.stiffness * ((r - self.bond) ** 2).sum()), forces, virial - d.T @ pull


def dimer_liquid(n_dimers=24, volume=1.6, temperature_K=500.0, seed=0, steps=1500):
    """Equilibrated periodic liquid; ``volume`` per dimer in units of sigma^3. Masses 12 and 18, bonds i - i + 1."""
    rng = np.random.default_rng(seed)
    length = Dimers.sigma * (n_dimers * volume) ** (1 / 3)
    side = int(np.ceil(n_dimers ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    centres = (rng.permutation(grid)[:n_dimers] + 0.5) * length / side
    axes = rng.normal(size=(n_dimers, 3))
    axes /= np.linalg.norm(axes, axis=1)[:, None]
    x = np.stack([centres - 0.5 * axes, centres + 0.5 * axes], axis=1).reshape(-1, 3)
    atoms = Atoms("C" * 2 * n_dimers, x, cell=[length] * 3, pbc=True, masses=[12.0, 18.0] * n_dimers)
    atoms.calc = Dimers(n_dimers, length)
    relax(atoms)
    for _ in langevin(atoms, temperature_K, 8.0, 0.01, steps, seed):
        pass
    return atoms


def relax(atoms, steps=300, longest=0.05):
    """Downhill with steps of limited length, out of the overlaps of a random packing."""
    for _ in range(steps):
        f = atoms.get_forces(apply_constraint=False)
        size = np.linalg.norm(f, axis=1, keepdims=True)
        atoms.positions += f * np.minimum(0.02, longest / np.maximum(size, 1e-12))


class RigidWater(Toy):
    """Atoms O, H, H, ...: Lennard-Jones between O, charges between molecules (SPC/E), for rigid molecules."""

    def __init__(self, n_molecules, length):
        super().__init__(length**3)
        self.length, self.rc = length, 0.5 * length
        self.molecule = np.arange(3 * n_molecules) // 3
        self.sqrt_epsilon = np.tile([0.00674**0.5, 0.0, 0.0], n_molecules)
        self.charge = np.tile([-0.8476, 0.4238, 0.4238], n_molecules) * np.sqrt(units.Hartree * units.Bohr)

    def evaluate(self, x):
        return _pairs(x, self.length, self.rc, self.molecule, self.sqrt_epsilon, 3.166, self.charge)


def rigid_water(n_side=3, spacing=3.1, n=None, seed=0):
    """``n`` (None: all) molecules at random orientations on ``n_side``^3 points, rigid by :class:`RigidBonds`."""
    rng = np.random.default_rng(seed)
    n = n_side**3 if n is None else n
    angle = np.radians(109.47)
    shape = np.array([[0.0, 0, 0], [1, 0, 0], [np.cos(angle), np.sin(angle), 0]])
    grid = np.stack(np.meshgrid(*[np.arange(n_side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    x = []
    for cell in grid[:n]:
        rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        x.append((cell + 0.5) * spacing + shape @ rotation.T)
    length = n_side * spacing
    atoms = Atoms("OHH" * n, np.concatenate(x), cell=[length] * 3, pbc=True)
    atoms.calc = RigidWater(n, length)
    pairs = [(3 * k + a, 3 * k + b) for k in range(n) for a, b in ((0, 1), (0, 2), (1, 2))]
    atoms.set_constraint(RigidBonds(pairs))
    return atoms
