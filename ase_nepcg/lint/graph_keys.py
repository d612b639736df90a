"""Keys of atoms and groups that depend on the bond graph only: equal for equivalent atoms, and for equal groups.

Colour refinement (Weisfeiler and Leman): the key of an atom is a 64-bit hash of its element, its bonds to atoms of
other groups, and the keys of its neighbours, again and again. Mirror images have equal keys, since bonds know no
handedness.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["GraphKeys", "graph_keys", "mix"]

# keys tell neighbours at this distance apart at most; groups are rarely larger, and rings repeat
_ROUNDS = 24


@dataclass(frozen=True)
class GraphKeys:
    """``atom`` (N,): key within the atom's group; ``outside`` (N,): key as seen from another group (the element only);
    ``group`` (n_sites,): sum over the group. All ``uint64``.
    """

    atom: np.ndarray
    outside: np.ndarray
    group: np.ndarray


def graph_keys(numbers: np.ndarray, site_of: np.ndarray, bonds: np.ndarray) -> GraphKeys:
    """Keys for atoms of elements ``numbers`` (N,) in groups ``site_of`` (N,), -1 for none.

    ``bonds`` (M, 2): pairs of atoms, each once.
    """
    outside = mix(numbers.astype(np.uint64))
    inner = (site_of[bonds[:, 0]] == site_of[bonds[:, 1]]) & (site_of[bonds[:, 0]] >= 0)
    crossing = _both_ways(bonds[~inner])
    foreign = np.zeros(len(numbers), dtype=np.uint64)
    np.add.at(foreign, crossing[:, 0], mix(outside[crossing[:, 1]]))
    atom = mix(outside + mix(foreign))
    inner = _both_ways(bonds[inner])
    distinct = 0
    for _ in range(_ROUNDS):
        around = np.zeros(len(numbers), dtype=np.uint64)
        np.add.at(around, inner[:, 0], mix(atom[inner[:, 1]]))
        atom = mix(atom + mix(around))
        found = len(np.unique(atom))
        # refinement never merges: once nothing splits, nothing will
        if found == distinct:
            break
        distinct = found
    members = site_of >= 0
    group = np.zeros(site_of.max(initial=-1) + 1, dtype=np.uint64)
    np.add.at(group, site_of[members], mix(atom[members]))
    return GraphKeys(atom, outside, group)


def mix(values: np.ndarray) -> np.ndarray:
    """A well-mixed hash of each value of a ``uint64`` array: the finaliser of SplitMix64 (Steele et al. 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _both_ways(bonds: np.ndarray) -> np.ndarray:
    return np.concatenate([bonds, bonds[:, ::-1]])
