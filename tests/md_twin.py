"""A slow, obvious driver for the kernels of ensembles, with toy forces: what tests of ``ase_nepcg.md.ensembles`` use.

    state = make_state(...)                         # ase_nepcg.md.state, one or several replicas
    record = run_twin(Bussi(300.0, 100.0), state, lennard_jones(), steps=1000, h=2.0 * units.fs)
    record.conserved[:, 0]                          # replica 0, eV

or, to go on after a run, look into ``q``, or sample::

    twin = Twin(ensemble, state, forces, h)         # one ensemble, or a list with one per replica (of one class)
    record = twin.run(1000)
    record, cells = twin.run(1000, sample=lambda s: s.cell[0].copy(), interval=10)     # cells: (100, 3, 3)
    other = twin.copy()                             # arrays copied: a restart

``forces(state)`` fills ``f``, ``energy``, ``virial``, ``energies`` and ``virials`` (and may read the cell) of all
replicas. It is a Python function, or one compiled by ``numba.njit``: then all steps between samples run compiled. Below
are ``wells``, ``lennard_jones`` and ``free``, and the states ``oscillators`` and ``argon``. The order of a step is that
of the compiled loop of ``ase_nepcg.md``.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numba
import numpy as np

from ase_nepcg.md.ensembles.base import Setup
from ase_nepcg.md.state import State, inlined, make_state
from ase_nepcg.md.steps import kinetic_energy, project, remove_momentum, volume

_OPTIONS = {"error_model": "numpy", "fastmath": {"contract"}}


class Record(NamedTuple):
    """Rows: after each step; columns: replicas. eV and Å^3."""

    potential: np.ndarray
    kinetic: np.ndarray
    conserved: np.ndarray
    volume: np.ndarray


@inlined
def _no_drive(s, r, h, p, q):
    pass


@functools.cache
def compiled(ensemble_class):
    """``first(s, h, p, q, step)`` up to the forces, ``second(s, h, p, q, step, row)`` from there; ``driven``: drive."""
    begin, end, extra, drive = ensemble_class.kernels().__dict__.values()
    drive = drive or _no_drive

    @numba.njit(**_OPTIONS)
    def first(s, h, p, q, step):
        for r in range(p.shape[0]):
            begin(s, r, h, p[r], q[r], step)

    @numba.njit(**_OPTIONS)
    def driven(s, h, p, q):
        for r in range(p.shape[0]):
            drive(s, r, h, p[r], q[r])

    @numba.njit(**_OPTIONS)
    def second(s, h, p, q, step, row):
        driven(s, h, p, q)
        for r in range(p.shape[0]):
            end(s, r, h, p[r], q[r], step)
            row[r, 0], row[r, 1] = s.energy[r], kinetic_energy(s, r)
            row[r, 2] = row[r, 0] + row[r, 1] + extra(s, r, h, p[r], q[r])
            row[r, 3] = volume(s, r)

    return first, second, driven


@functools.cache
def _compiled_loop(ensemble_class, forces):
    first, second, _ = compiled(ensemble_class)

    @numba.njit(**_OPTIONS)
    def loop(s, h, p, q, step, rows):
        for n in range(rows.shape[0]):
            first(s, h, p, q, step + n + 1)
            forces(s)
            second(s, h, p, q, step + n + 1, rows[n])

    return loop


@numba.njit
def _obey(s, r, without_momentum):
    if without_momentum:
        remove_momentum(s, r)
    project(s, r)


def setup_of(state: State, r: int, h: float) -> Setup:
    """What an ensemble is told about replica ``r``."""
    begin, end = state.first[r : r + 2]
    return Setup(
        n_sites=int(end - begin),
        n_dof=int(state.n_dof[r]),
        n_frozen=int((state.w[begin:end] == 0).sum()),
        n_held=int(state.group_first[r + 1] - state.group_first[r]),
        pbc=tuple(bool(periodic) for periodic in state.pbc[r]),
        cell=state.cell[r].copy(),
        masses=state.m[begin:end].copy(),
        timestep=h,
    )


def copy_state(state: State) -> State:
    return State(*(array.copy() for array in state))


class Twin:
    """A run. ``p`` (R, n_params), ``q`` (R, n_state), ``step``: what the ensemble is given; ``state`` is changed in
    place. ``state.n_dof`` must hold the default of make_state: what the ensemble takes off is taken off here."""

    def __init__(self, ensemble, state: State, forces, h: float):
        replicas = len(state.seed)
        each = list(ensemble) if isinstance(ensemble, list | tuple) else [ensemble] * replicas
        self.kind, self.state, self.forces, self.h, self.step = type(each[0]), state, forces, float(h), 0
        setups = [setup_of(state, r, self.h) for r in range(replicas)]
        for r, (e, setup) in enumerate(zip(each, setups, strict=True)):
            e.check(setup)
            state.n_dof[r] = e.n_dof(setup)
            _obey(state, r, e.without_momentum and not (setup.n_frozen or setup.n_held))
        self.p = np.array([e.parameters(setup) for e, setup in zip(each, setups, strict=True)], float)
        self.q = np.array([e.initial(setup) for e, setup in zip(each, setups, strict=True)], float)
        forces(state)
        compiled(self.kind)[2](state, self.h, self.p, self.q)

    def copy(self) -> Twin:
        other = object.__new__(type(self))
        other.__dict__ |= self.__dict__ | {"state": copy_state(self.state), "p": self.p.copy(), "q": self.q.copy()}
        return other

    def run(self, steps: int, sample=None, interval: int = 1):
        """Record of ``steps`` more steps; with ``sample``: (record, array of sample(state) after every
        ``interval``-th)."""
        rows = np.empty((steps, len(self.p), 4))
        samples = []
        block = steps if sample is None else interval
        for begin in range(0, steps, block):
            self._advance(rows[begin : begin + block])
            if sample is not None:
                samples.append(np.array(sample(self.state)))
        record = Record(*(np.ascontiguousarray(rows[:, :, k]) for k in range(4)))
        return record if sample is None else (record, np.array(samples))

    def _advance(self, rows):
        if isinstance(self.forces, numba.core.dispatcher.Dispatcher):
            _compiled_loop(self.kind, self.forces)(self.state, self.h, self.p, self.q, self.step, rows)
            self.step += len(rows)
            return
        first, second, _ = compiled(self.kind)
        for row in rows:
            self.step += 1
            first(self.state, self.h, self.p, self.q, self.step)
            self.forces(self.state)
            second(self.state, self.h, self.p, self.q, self.step, row)


def run_twin(ensemble, state: State, forces, steps: int, h: float) -> Record:
    """Record of a fresh run; ``state`` is changed in place."""
    return Twin(ensemble, state, forces, h).run(steps)


@functools.cache
def wells(stiffness: float = 1.0):
    """Each site in an isotropic harmonic well at the origin, eV/Å^2; the virial is that of the wells, r (x) f."""

    @numba.njit(**_OPTIONS)
    def forces(s):
        s.energy[:] = 0.0
        s.virial[:] = 0.0
        for r in range(s.first.shape[0] - 1):
            for i in range(s.first[r], s.first[r + 1]):
                s.energies[i] = 0.0
                for a in range(3):
                    s.f[i, a] = -stiffness * s.x[i, a]
                    s.energies[i] += 0.5 * stiffness * s.x[i, a] ** 2
                for a in range(3):
                    for b in range(3):
                        s.virials[i, 3 * a + b] = s.x[i, a] * s.f[i, b]
                        s.virial[r, a, b] += s.x[i, a] * s.f[i, b]
                s.energy[r] += s.energies[i]

    return forces


@numba.njit(**_OPTIONS)
def free(s):
    """No forces: an ideal gas."""
    s.f[:] = 0.0
    s.energy[:] = 0.0
    s.energies[:] = 0.0
    s.virial[:] = 0.0
    s.virials[:] = 0.0


@numba.njit(**_OPTIONS)
def _inverse(a):
    """Of a 3 x 3 matrix."""
    inverse = np.empty((3, 3))
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        for q in range(3):
            m, n = (q + 1) % 3, (q + 2) % 3
            inverse[q, i] = a[j, m] * a[k, n] - a[j, n] * a[k, m]
    determinant = a[0, 0] * inverse[0, 0] + a[0, 1] * inverse[1, 0] + a[0, 2] * inverse[2, 0]
    return inverse / determinant


@functools.cache
def lennard_jones(epsilon: float = 0.0104, minimum: float = 3.82, cutoff: float = 5.2):
    """``epsilon (x^12 - 2 x^6) (1 - (r/cutoff)^2)^3``, x = minimum/r (argon: eV, Å), minimum images in any cell.

    ``cutoff`` must stay below half the smallest height of the cell.
    """

    @numba.njit(**_OPTIONS)
    def forces(s):
        free(s)
        for r in range(s.first.shape[0] - 1):
            inverse = _inverse(s.cell[r])
            for i in range(s.first[r], s.first[r + 1]):
                for j in range(i):
                    if j < s.first[r]:
                        continue
                    dx, dy, dz = s.x[i, 0] - s.x[j, 0], s.x[i, 1] - s.x[j, 1], s.x[i, 2] - s.x[j, 2]
                    for k in range(3):
                        if s.pbc[r, k]:
                            n = np.rint(dx * inverse[0, k] + dy * inverse[1, k] + dz * inverse[2, k])
                            dx -= n * s.cell[r, k, 0]
                            dy -= n * s.cell[r, k, 1]
                            dz -= n * s.cell[r, k, 2]
                    d = (dx, dy, dz)
                    square = dx * dx + dy * dy + dz * dz
                    if square >= cutoff * cutoff:
                        continue
                    six = (minimum * minimum / square) ** 3
                    left = 1.0 - square / (cutoff * cutoff)
                    pair = epsilon * (six * six - 2.0 * six)
                    # force on i is push * d
                    push = epsilon * 12.0 * (six * six - six) / square * left**3
                    push += pair * 6.0 * left**2 / (cutoff * cutoff)
                    pair *= left**3
                    s.energy[r] += pair
                    s.energies[i] += 0.5 * pair
                    s.energies[j] += 0.5 * pair
                    for a in range(3):
                        s.f[i, a] += push * d[a]
                        s.f[j, a] -= push * d[a]
                        for b in range(3):
                            w = push * d[a] * d[b]
                            s.virial[r, a, b] += w
                            s.virials[i, 3 * a + b] += 0.5 * w
                            s.virials[j, 3 * a + b] += 0.5 * w

    return forces


def oscillators(seeds=(0,), frozen=(), groups=(), kT=0.025, sizes=None) -> State:
    """Ten sites (or ``sizes`` of each replica) of masses 10 ... 40 with velocities and positions at random; for
    :func:`wells`."""
    sizes = [10] * len(seeds) if sizes is None else sizes
    draws = [np.random.default_rng([7, seed]) for seed in seeds]
    masses = [np.linspace(10.0, 40.0, n) for n in sizes]
    still = [np.isin(np.arange(n), frozen) for n in sizes]
    positions = [draw.normal(size=(n, 3)) * np.sqrt(kT) for draw, n in zip(draws, sizes, strict=True)]
    velocities = [
        draw.normal(size=(len(m), 3)) * np.sqrt(kT / m)[:, None] for draw, m in zip(draws, masses, strict=True)
    ]
    cells, pbc = [20.0 * np.eye(3)] * len(seeds), [[False] * 3] * len(seeds)
    types = [np.zeros(n, int) for n in sizes]
    every = [[list(group) for group in groups] for _ in seeds]
    return make_state(positions, velocities, masses, types, cells, pbc, frozen=still, groups=every, seeds=seeds)


def argon(seeds=(0,), kT=0.005, a=5.4, missing=None, shear=0.0) -> State:
    """Periodic f.c.c. crystals of 2 x 2 x 2 cells; replica k lacks ``missing[k]`` of its 32 sites; masses 40 and 20."""
    missing = [0] * len(seeds) if missing is None else missing
    basis = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
    corners = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    cell = 2 * a * (np.eye(3) + shear * np.eye(3, k=1))
    sites = ((corners + basis).reshape(-1, 3) / 2) @ cell
    positions = [sites[: 32 - n] for n in missing]
    masses = [np.where(np.arange(len(x)) % 4 == 0, 20.0, 40.0) for x in positions]
    velocities = [
        np.random.default_rng([11, seed]).normal(size=x.shape) * np.sqrt(kT / m)[:, None]
        for seed, x, m in zip(seeds, positions, masses, strict=True)
    ]
    types = [np.zeros(len(x), int) for x in positions]
    replicas = len(seeds)
    return make_state(positions, velocities, masses, types, [cell] * replicas, [[True] * 3] * replicas, seeds=seeds)


def assert_same(one: Twin, other: Twin, replica: int = 0, of: int = 0) -> None:
    """All that replica ``replica`` of ``one`` and ``of`` of ``other`` have is bitwise equal."""
    a, b = one.state, other.state
    mine, its = slice(*a.first[replica : replica + 2]), slice(*b.first[of : of + 2])
    for name in ("x", "v", "f"):
        np.testing.assert_array_equal(getattr(a, name)[mine], getattr(b, name)[its], err_msg=name)
    np.testing.assert_array_equal(a.cell[replica], b.cell[of], err_msg="cell")
    np.testing.assert_array_equal(one.q[replica], other.q[of], err_msg="q")


def assert_reproducible(ensembles, build, forces, h: float, steps: int = 40, random: bool = True) -> None:
    """Same seed, same bits; replicas of a batch as runs of their own; a split run as an unsplit one.

    ``ensembles``: three of one class; ``build(seeds, numbers)``: a state with these replicas, where ``numbers`` (0, 1,
    2) tell which ones, with their own sizes. ``random``: another seed gives another run.
    """
    batch = Twin(ensembles, build((3, 4, 5), (0, 1, 2)), forces, h)
    whole = batch.copy()
    whole.run(steps)
    batch.run(steps // 3)
    copied = batch.copy()
    for twin in (batch, copied):
        # as after a restart: forces from scratch
        forces(twin.state)
        compiled(twin.kind)[2](twin.state, twin.h, twin.p, twin.q)
        twin.run(steps - steps // 3)
    for k in range(3):
        assert_same(whole, batch, k, k)
        assert_same(whole, copied, k, k)
        alone = Twin(ensembles[k], build((3 + k,), (k,)), forces, h)
        alone.run(steps)
        assert_same(whole, alone, k, 0)
    other = Twin(ensembles[0], build((3,), (0,)), forces, h)
    other.state.seed[0] += 1
    other.run(steps)
    assert np.array_equal(other.state.x, whole.state.x[: len(other.state.x)]) != random


def order_of(ensemble, build, forces, h: float, time: float) -> tuple:
    """Standard deviations of the conserved quantity at ``h`` and at ``h/2``, and the ratio (4: second order)."""
    spread = []
    for step in (h, h / 2):
        conserved = run_twin(ensemble, build(), forces, round(time / step), step).conserved[:, 0]
        spread.append((conserved - conserved.mean()).std())
    return spread[0], spread[1], spread[0] / spread[1]


def mean_error(series, blocks: int = 20):
    """Mean and standard error of the mean from block averages along the first axis."""
    series = np.asarray(series, float)
    size = len(series) // blocks
    means = series[: size * blocks].reshape(blocks, size, *series.shape[1:]).mean(axis=1)
    return means.mean(axis=0), means.std(axis=0, ddof=1) / np.sqrt(blocks)
