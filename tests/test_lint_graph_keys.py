"""Keys of atoms and groups by their bonds, against brute force on small graphs."""

from itertools import combinations, permutations

import numpy as np
import pytest

from ase_nepcg.lint.graph_keys import graph_keys, mix

# carbon skeletons: edges of small connected graphs
CHAIN, STAR = [(0, 1), (1, 2), (2, 3)], [(0, 1), (0, 2), (0, 3)]


def keys_of(numbers, edges, groups=None):
    site_of = np.zeros(len(numbers), dtype=np.int64) if groups is None else np.array(groups)
    return graph_keys(np.array(numbers), site_of, np.array(edges, dtype=np.int64).reshape(-1, 2))


def isomorphic(numbers, edges, other_numbers, other_edges):
    """Whether some renumbering turns one coloured graph into the other."""
    other = {frozenset(edge) for edge in other_edges}
    return any(
        [numbers[k] for k in order] == list(other_numbers)
        and {frozenset((order.index(i), order.index(j))) for i, j in edges} == other
        for order in map(list, permutations(range(len(numbers))))
    )


def test_groups_are_equal_exactly_for_isomorphic_graphs(rng):
    """All trees and rings of four atoms with random elements (colour refinement decides these graphs)."""
    pairs = list(combinations(range(4), 2))
    graphs = [
        ([int(z) for z in rng.choice([6, 8], 4)], [pairs[k] for k in rng.choice(6, rng.integers(2, 5), replace=False)])
        for _ in range(40)
    ]
    seen = set()
    for first, second in combinations(graphs, 2):
        same = isomorphic(*first, *second)
        assert (keys_of(*first).group[0] == keys_of(*second).group[0]) == same
        seen.add(same)
    assert seen == {True, False}


def test_equivalent_atoms_share_a_key():
    chain = keys_of([6, 6, 6, 6], CHAIN).atom
    assert chain[0] == chain[3]
    assert chain[1] == chain[2]
    assert chain[0] != chain[1]
    assert len(np.unique(keys_of([6] * 4, STAR).atom)) == 2


def test_numbering_does_not_matter(rng):
    numbers, edges = np.array([6, 6, 8, 1, 1, 7]), np.array([(0, 1), (1, 2), (0, 3), (0, 4), (1, 5)])
    order = rng.permutation(6)
    original, renumbered = keys_of(numbers, edges), keys_of(numbers[order], np.argsort(order)[edges])
    assert (original.atom[order] == renumbered.atom).all()
    assert original.group == renumbered.group


def test_other_groups_count_by_element_only():
    """Two dimers cut out of chains: what lies behind the neighbour does not matter, its element does."""
    numbers = [6, 6, 6, 6, 6, 6, 8, 6]
    edges = [(0, 1), (1, 2), (2, 3), (4, 5), (5, 6)]
    groups = [0, 0, -1, -1, 1, 1, -1, -1]
    keys = keys_of(numbers, edges, groups)
    assert keys.group[0] != keys.group[1]
    numbers[6] = 6
    keys = keys_of(numbers, edges, groups)
    assert keys.group[0] == keys.group[1]
    assert keys.outside[0] == keys.outside[2]


def test_far_ends_are_told_apart():
    """Keys reach along long groups: the ends of a chain of 30 carbons that differ in their last atom only."""
    numbers = [6] * 30 + [8]
    atom = keys_of(numbers, [(k, k + 1) for k in range(30)]).atom
    # both are 8 bonds from an end
    assert atom[8] != atom[22]


@pytest.mark.parametrize("n", [0, 1])
def test_no_bonds(n):
    keys = graph_keys(np.full(n, 6), np.full(n, -1), np.zeros((0, 2), dtype=np.int64))
    assert len(keys.atom) == n
    assert len(keys.group) == 0


def test_mix_scatters():
    values = mix(np.arange(10_000, dtype=np.uint64))
    assert len(np.unique(values)) == 10_000
    bits = (values[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.03
