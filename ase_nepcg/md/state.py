"""What a running simulation consists of, as the kernels see it: arrays of one or several replicas.

Replicas are independent systems that are advanced together; their sites follow each other in all arrays. A run of one
system is a batch of one replica.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..potential.cache import inlined

__all__ = ["State", "inlined", "make_state"]


class State(NamedTuple):
    """N sites in R replicas, G held groups. Kernels change the arrays in place."""

    first: np.ndarray  # (R + 1,) sites of replica r: first[r] ... first[r+1] - 1
    x: np.ndarray  # (N, 3) positions, never wrapped, Å
    v: np.ndarray  # (N, 3) velocities, Å per ASE time unit
    f: np.ndarray  # (N, 3) forces, eV/Å
    m: np.ndarray  # (N,) masses, amu
    w: np.ndarray  # (N,) inverse masses; 0: frozen, its velocity is 0
    types: np.ndarray  # (N,) int64, as the model numbers its species
    cell: np.ndarray  # (R, 3, 3) rows are vectors, Å
    virial: np.ndarray  # (R, 3, 3) W = sum r (x) f of the potential, positive = compressed, eV
    energy: np.ndarray  # (R,) potential energy, eV
    energies: np.ndarray  # (N,) potential energies of the sites, eV
    virials: np.ndarray  # (N, 9) virials of the sites where asked for, eV; not symmetric
    bits: np.ndarray  # (N,) uint64, work space of random numbers, as more_bits
    more_bits: np.ndarray
    group_first: np.ndarray  # (R + 1,) held groups of replica r
    start: np.ndarray  # (G + 1,) group g holds members[start[g] : start[g+1]]
    members: np.ndarray  # sites of the held groups
    share: np.ndarray  # mass fraction of each member in its group
    held: np.ndarray  # (G, 3) where the centres are held, Å
    seed: np.ndarray  # (R,) int64
    n_dof: np.ndarray  # (R,) float64, degrees of freedom of the kinetic energy
    pbc: np.ndarray  # (R, 3) bool


def make_state(
    positions, velocities, masses, types, cells, pbc, *, frozen=None, groups=None, seeds=(0,), n_dof=None
) -> State:
    """Arrays of a :class:`State` from lists with one entry per replica.

    ``frozen``: bool (n,) per replica; ``groups``: held groups (lists of indices) per replica; ``n_dof`` (R,): by
    default three per free site less three per held group.
    """
    sizes = [len(x) for x in positions]
    first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    n, replicas = int(first[-1]), len(sizes)
    m = np.concatenate(masses).astype(float)
    still = np.zeros(n, bool) if frozen is None else np.concatenate(frozen).astype(bool)
    w = np.where(still, 0.0, 1.0 / m)
    x = np.concatenate(positions).astype(float)
    v = np.where(still[:, None], 0.0, np.concatenate(velocities).astype(float))
    groups = [[] for _ in sizes] if groups is None else groups
    flat = [np.asarray(g, np.int64) + first[r] for r in range(replicas) for g in groups[r]]
    start = np.concatenate([[0], np.cumsum([len(g) for g in flat])]).astype(np.int64)
    members = np.concatenate([*flat, np.zeros(0, np.int64)]).astype(np.int64)
    share = np.concatenate([*(m[g] / m[g].sum() for g in flat), np.zeros(0)])
    held = np.array([(m[g] / m[g].sum()) @ x[g] for g in flat], float).reshape(-1, 3)
    if n_dof is None:
        n_dof = [3.0 * (sizes[r] - still[first[r] : first[r + 1]].sum() - len(groups[r])) for r in range(replicas)]
    return State(
        first=first,
        x=np.ascontiguousarray(x),
        v=np.ascontiguousarray(v),
        f=np.zeros((n, 3)),
        m=m,
        w=w,
        types=np.concatenate(types).astype(np.int64),
        cell=np.array(cells, float, order="C").reshape(replicas, 3, 3),
        virial=np.zeros((replicas, 3, 3)),
        energy=np.zeros(replicas),
        energies=np.zeros(n),
        virials=np.zeros((n, 9)),
        bits=np.zeros(n, np.uint64),
        more_bits=np.zeros(n, np.uint64),
        group_first=np.concatenate([[0], np.cumsum([len(g) for g in groups])]).astype(np.int64),
        start=start,
        members=members,
        share=share,
        held=held,
        seed=np.array(seeds, np.int64).reshape(replicas),
        n_dof=np.array(n_dof, float).reshape(replicas),
        pbc=np.array(pbc, bool, order="C").reshape(replicas, 3),
    )
