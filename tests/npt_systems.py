"""Small systems for the tests of NPT: an ideal gas, a crystal and a sheet of Lennard-Jones sites."""

import numba
import numpy as np
from ase import units
from md_twin import free

from ase_nepcg.md.noise import uniforms
from ase_nepcg.md.state import make_state

MASS = 40.0
# Keyword arguments of md_twin.lennard_jones: bonds of 3.76 Å and 0.009 eV between nearest neighbours, as a crystal with
# a bulk modulus of 10 GPa. The cells below are wider than twice the cutoff, with room to shrink.
PAIR = {"epsilon": 0.2, "minimum": 4.0, "cutoff": 4.8}


def state_of(positions, cell, temperature, seeds=(1,), pbc=(True, True, True)):
    """A replica for each seed, with the same positions and with velocities of a temperature."""
    n, r = len(positions), len(seeds)
    speed = np.sqrt(units.kB * temperature / MASS)
    velocities = [np.random.default_rng(seed).normal(size=(n, 3)) * speed for seed in seeds]
    return make_state(
        [positions] * r, velocities, [np.full(n, MASS)] * r, [np.zeros(n, int)] * r, [cell] * r, [pbc] * r, seeds=seeds
    )


def gas(n, temperature, volume, seeds):
    positions = np.random.default_rng(0).random((n, 3)) * volume ** (1 / 3)
    return state_of(positions, np.eye(3) * volume ** (1 / 3), temperature, seeds)


def crystal(temperature, seeds=(1,), lattice=5.33, strain=None):
    """2 x 2 x 2 cells fcc, 32 sites, deformed by the matrix ``1 + strain``."""
    basis = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
    corners = np.stack(np.meshgrid(*[[0, 1]] * 3, indexing="ij"), -1).reshape(-1, 1, 3)
    deformed = np.eye(3) + (0 if strain is None else np.asarray(strain))
    positions = (corners + basis).reshape(-1, 3) * lattice @ deformed.T
    return state_of(positions, 2 * lattice * np.eye(3) @ deformed.T, temperature, seeds)


def sheet(temperature, seeds=(1,), distance=3.77, height=20.0, normal=2):
    """A triangular layer of 24 sites in the plane perpendicular to an axis."""
    cell = np.array([[4 * distance, 0], [0, 3 * 3**0.5 * distance]])
    corners = np.stack(np.meshgrid(range(4), range(3), indexing="ij"), -1).reshape(-1, 1, 2)
    flat = (corners + np.array([[0, 0], [0.5, 0.5]])).reshape(-1, 2) * [distance, 3**0.5 * distance]
    plane = [k for k in range(3) if k != normal]
    positions, full = np.full((len(flat), 3), 0.5 * height), np.zeros((3, 3))
    positions[:, plane] = flat
    full[np.ix_(plane, plane)] = cell
    full[normal, normal] = height
    return state_of(positions, full, temperature, seeds, [k != normal for k in range(3)])


@numba.njit
def collisions(s):
    """No forces, but the velocities of random pairs of each replica are turned by collisions, which keep their energy
    and momentum: without them a gas would keep the directions of its velocities."""
    free(s)
    for r in range(s.first.shape[0] - 1):
        begin, n = s.first[r], s.first[r + 1] - s.first[r]
        # the number of the call, in an array that nothing else needs here
        s.types[begin] += 1
        for k in range(n // 2):
            a, b, c, d = uniforms(s.seed[r], s.types[begin], k, 7)
            i, j = begin + int(a * n), begin + int(b * n)
            dx, dy, dz = s.v[i, 0] - s.v[j, 0], s.v[i, 1] - s.v[j, 1], s.v[i, 2] - s.v[j, 2]
            speed = np.sqrt(dx * dx + dy * dy + dz * dz)
            z, angle = 2.0 * c - 1.0, 2.0 * np.pi * d
            side = np.sqrt(1.0 - z * z)
            turned = (speed * side * np.cos(angle) - dx, speed * side * np.sin(angle) - dy, speed * z - dz)
            # equal masses
            for axis in range(3):
                s.v[i, axis] += 0.5 * turned[axis]
                s.v[j, axis] -= 0.5 * turned[axis]


def gamma_moments(record, n, pressure_GPa, temperature, skip):
    """Mean and variance of the volume over those of p(V) ~ V^n exp(-P V/kT), with standard errors from replicas."""
    unit = units.kB * temperature / (pressure_GPa * units.GPa)
    v = record.volume[skip:]
    mean = v.mean(axis=0) / ((n + 1) * unit)
    variance = ((v - (n + 1) * unit) ** 2).mean(axis=0) / ((n + 1) * unit**2)
    root = np.sqrt(v.shape[1])
    return mean.mean(), mean.std(ddof=1) / root, variance.mean(), variance.std(ddof=1) / root


def pressure_tensor(s):
    """(R, 3, 3) GPa, with what the zero total momentum takes away from the kinetic part left out."""
    out = []
    for r in range(len(s.seed)):
        part = slice(s.first[r], s.first[r + 1])
        kinetic = (s.m[part, None, None] * s.v[part, :, None] * s.v[part, None, :]).sum(axis=0)
        out.append((kinetic + s.virial[r]) / abs(np.linalg.det(s.cell[r])) / units.GPa)
    return np.array(out)


def log_ratio_slope(low, high):
    """b of ln(p_high(V)/p_low(V)) = a + b V by maximum likelihood, from equally many samples of each; (blocks, samples)
    -> mean and standard error over the blocks."""
    slopes = []
    for first, second in zip(low, high, strict=True):
        v = np.concatenate([first, second])
        centre, width = v.mean(), v.std()
        x = np.stack([np.ones(len(v)), (v - centre) / width], axis=1)
        y = np.repeat([0.0, 1.0], [len(first), len(second)])
        b = np.zeros(2)
        for _ in range(30):
            p = 1 / (1 + np.exp(-x @ b))
            b += np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x, x.T @ (y - p))
        slopes.append(b[1] / width)
    return np.mean(slopes), np.std(slopes, ddof=1) / np.sqrt(len(slopes))


def matrix(six):
    """Symmetric matrix from xx, yy, zz, yz, xz, xy."""
    xx, yy, zz, yz, xz, xy = six
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])


def projected(a, coupling, rests=()):
    """What a coupling leaves of a symmetric matrix; ``rests``: axes that keep their length."""
    a = np.array(a, float)
    if coupling != "triclinic":
        a = np.diag(np.diag(a))
    if coupling == "isotropic":
        a = np.eye(3) * np.trace(a) / 3
    if coupling == "semi-isotropic":
        a[0, 0] = a[1, 1] = (a[0, 0] + a[1, 1]) / 2
    for k in rests:
        a[k, k] = 0.0
    return a


# coupling, pressure_GPa, non-periodic axes that keep their length
CASES = {
    "isotropic": ("isotropic", 0.2, ()),
    "semi-isotropic": ("semi-isotropic", (0.2, -0.1), ()),
    "sheet": ("semi-isotropic", -0.02, (2,)),
    "anisotropic": ("anisotropic", (0.2, 0.1, -0.1), ()),
    "one axis": ("anisotropic", (None, None, 0.1), (0, 1)),
    "triclinic": ("triclinic", (0.2, 0.1, -0.1, 0.05, -0.02, 0.03), ()),
}


def case_temperature(name):
    """K; a warm sheet would crumple."""
    return 6.0 if name == "sheet" else 30.0


def case_state(name, seeds=(3,)):
    """State and (3, 3) external pressure in eV/Å^3 of one of CASES."""
    coupling, given, _ = CASES[name]
    if name == "sheet":
        state = sheet(case_temperature(name), seeds)
    else:
        tilt = np.array([[0.01, 0.02, -0.01], [0.0, 0.02, 0.015], [0.01, 0.0, -0.01]])
        state = crystal(30.0, seeds, strain=tilt)
    state.x[:] += np.random.default_rng(5).normal(scale=0.05, size=state.x.shape)
    if coupling == "triclinic":
        target = matrix(given)
    elif coupling == "semi-isotropic":
        plane, along = given if isinstance(given, tuple) else (given, 0.0)
        target = np.diag([plane, plane, along])
    else:
        target = np.diag([0.0 if value is None else value for value in np.broadcast_to(given, 3)])
    return state, target * units.GPa
