"""Bond graph, minimum image and making whole, each against an obvious slow twin."""

from itertools import product

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, graphene, molecule
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list

from ase_nepcg.mapping.molecules import (
    IONIC,
    MappingError,
    bonded_pairs,
    find_bonds,
    find_links,
    grow_tree,
    label_molecules,
    minimum_image,
    nearest_sites,
)

CELLS = {
    "cubic": np.diag([7.0, 7.0, 7.0]),
    "triclinic": np.array([[7.0, 0.3, 0.0], [2.5, 6.5, 0.2], [-2.0, 1.5, 8.0]]),
    "skewed": np.array([[6.0, 0.0, 0.0], [15.0, 6.0, 0.0], [-13.0, 20.0, 7.0]]),
    "left-handed": np.array([[0.0, 7.0, 0.5], [6.5, 0.0, 0.0], [0.3, 0.0, 8.0]]),
}
PBC = [(True, True, True), (True, True, False), (False, True, True), (True, False, False), (False, False, False)]


def shortest_image(vector, cell, pbc, reach=6):
    """All images within ``reach`` cells, the shortest of them; the cell vectors that are not periodic are not used."""
    counts = [np.arange(-reach, reach + 1) if periodic else np.array([0]) for periodic in pbc]
    shifts = np.stack(np.meshgrid(*counts, indexing="ij"), axis=-1).reshape(-1, 3)
    images = vector + shifts @ cell
    return images[np.argmin(np.linalg.norm(images, axis=1))]


def random_molecules(rng, names, cell, pbc=True, n=3):
    """Molecules at random places and orientations, cut by the boundary, more than 2.5 Å apart."""
    cell = np.asarray(cell)
    atoms = Atoms(cell=cell, pbc=pbc)
    while n:
        new = molecule(names[n % len(names)])
        new.euler_rotate(*rng.uniform(0, 360, 3))
        new.positions += rng.random(3) @ cell - new.positions.mean(axis=0)
        both = atoms + new
        gaps = both.get_all_distances(mic=True)[: len(atoms), len(atoms) :]
        if gaps.size == 0 or gaps.min() > 2.5:
            atoms, n = both, n - 1
    return atoms


@pytest.mark.parametrize("pbc", PBC)
@pytest.mark.parametrize("name", CELLS)
def test_minimum_image_is_the_shortest(rng, name, pbc):
    cell = CELLS[name]
    vectors = rng.uniform(-12, 12, (15, 3))
    reach = 28 if name == "skewed" else 6
    expected = np.array([shortest_image(vector, cell, pbc, reach) for vector in vectors])
    found = minimum_image(vectors, cell, pbc)
    assert np.allclose(np.linalg.norm(found, axis=1), np.linalg.norm(expected, axis=1), atol=1e-12)
    assert np.allclose(found, expected, atol=1e-12)


def test_minimum_image_shapes_and_exactness(rng):
    cell = CELLS["triclinic"]
    short = rng.uniform(-1, 1, (4, 5, 3))
    found = minimum_image(short, cell, True)
    assert found.shape == (4, 5, 3)
    assert np.array_equal(found, short)  # to the last digit
    assert found is not short
    assert np.array_equal(minimum_image(short * 100, np.zeros((3, 3)), True), short * 100)


def test_tilted_vector_that_is_not_periodic_takes_no_part():
    cell = np.array([[5.0, 0, 0], [0, 5.0, 0], [20.0, 3.0, 10.0]])
    assert np.allclose(minimum_image(np.array([[1.0, 0, 60.0]]), cell, (True, True, False)), [[1.0, 0, 60.0]])


@pytest.mark.parametrize("pbc", PBC)
@pytest.mark.parametrize("name", ["cubic", "triclinic", "left-handed"])
def test_bonds_are_those_of_ase(rng, name, pbc):
    cell = CELLS[name]
    numbers = rng.choice([1, 6, 8, 79], 40)
    atoms = Atoms(numbers, positions=rng.uniform(-1, 2, (40, 3)) @ cell, cell=cell, pbc=pbc)
    i, j, vectors = neighbor_list("ijD", atoms, covalent_radii[atoms.numbers] + 0.2)
    pairs, found = bonded_pairs(atoms)
    both = np.concatenate([pairs, pairs[:, ::-1]])
    assert len(both) == len(i)
    expected = np.unique(np.round(np.column_stack([i, j, vectors]), 6) + 0.0, axis=0)
    got = np.unique(np.round(np.column_stack([both, np.concatenate([found, -found])]), 6) + 0.0, axis=0)
    assert np.allclose(got, expected, atol=2e-6)
    bonds = find_bonds(atoms)
    assert {tuple(bond) for bond in bonds.tolist()} == {(a, b) for a, b in zip(i, j, strict=True) if a < b}
    assert (np.diff(bonds[:, 0]) >= 0).all()


def test_bonds_of_a_cell_smaller_than_the_bonds():
    atoms = bulk("Au")  # one atom, twelve neighbours
    pairs, vectors = bonded_pairs(atoms)
    assert pairs.tolist() == [[0, 0]] * 6
    assert np.allclose(np.linalg.norm(vectors, axis=1), 4.08 / np.sqrt(2))
    assert find_bonds(atoms).shape == (0, 2)
    pairs, _ = bonded_pairs(bulk("Si"))
    assert pairs.tolist() == [[0, 1]] * 4


def test_bonded_water_and_hydrogen_bonds(rng):
    atoms = random_molecules(rng, ["H2O"], np.diag([9.0, 9.0, 9.0]), n=6)
    atoms.wrap()
    assert find_bonds(atoms).tolist() == [[3 * k, 3 * k + j] for k in range(6) for j in (1, 2)]
    close = Atoms("OHHOHH", [[0, 0, 0], [0.97, 0, 0], [-0.3, 0.9, 0], [2.5, 0, 0], [3.0, 0.8, 0], [3.0, -0.8, 0]])
    assert label_molecules(6, find_bonds(close)).tolist() == [0, 0, 0, 1, 1, 1]


def test_ions_are_not_bonded_unless_asked():
    atoms = Atoms("NaOH2", [[0, 0, 0], [2.3, 0, 0], [2.9, 0.8, 0], [2.9, -0.8, 0]])
    assert "Na" in IONIC
    assert find_bonds(atoms).tolist() == [[1, 2], [1, 3]]
    assert find_bonds(atoms, unbonded=()).tolist()[0] == [0, 1]
    assert find_bonds(atoms, unbonded=("O", "Na")).tolist() == []
    assert find_bonds(Atoms("X2", [[0, 0, 0], [0.1, 0, 0]])).tolist() == []


def test_tolerance():
    atoms = Atoms("C2", [[0, 0, 0], [2.0, 0, 0]])
    assert find_bonds(atoms).tolist() == []
    assert find_bonds(atoms, tolerance=0.5).tolist() == [[0, 1]]
    for wrong in (-0.1, np.nan, np.inf):
        with pytest.raises(MappingError, match="tolerance"):
            find_bonds(atoms, tolerance=wrong)
    with pytest.raises(MappingError, match="'Nq'"):
        find_bonds(atoms, unbonded=("Nq",))


def test_bad_geometry_is_refused():
    atoms = Atoms("H3", [[0, 0, 0], [np.nan, 0, 0], [1, 0, 0]])
    with pytest.raises(MappingError, match="atom 1"):
        find_bonds(atoms)
    flat = Atoms("H", cell=[[3, 0, 0], [0, 3, 0], [3, 3, 0]], pbc=True)
    with pytest.raises(MappingError, match="flat cell"):
        find_bonds(flat)
    with pytest.raises(MappingError, match="cell: expected finite"):
        minimum_image(np.zeros((1, 3)), np.full((3, 3), np.nan), True)


def test_molecules_are_numbered_by_their_lowest_atoms():
    assert label_molecules(6, [[5, 0], [1, 4]]).tolist() == [0, 1, 2, 3, 1, 0]
    assert label_molecules(3, np.zeros((0, 2), dtype=int)).tolist() == [0, 1, 2]
    assert label_molecules(0, []).tolist() == []


def slow_nearest(site_of, bonds):
    """Breadth-first search from every site by itself."""
    neighbours = [[] for _ in site_of]
    for i, j in bonds:
        neighbours[i].append(j)
        neighbours[j].append(i)
    best = {}
    for site in sorted(set(site_of[site_of >= 0].tolist())):
        front, depth, seen = set(np.flatnonzero(site_of == site).tolist()), 0, set()
        while front:
            for atom in front:
                best[atom] = min(best.get(atom, (depth, site)), (depth, site))
            seen |= front
            front = {j for i in front for j in neighbours[i]} - seen
            depth += 1
    return [best.get(atom, (0, -1))[1] for atom in range(len(site_of))]


def test_nearest_sites(rng):
    for _ in range(20):
        n = 30
        bonds = np.array([(int(rng.integers(i)), i) for i in range(1, n) if rng.random() < 0.9] + [(3, 17), (5, 22)])
        site_of = np.full(n, -1)
        chosen = rng.choice(n, 6, replace=False)
        site_of[chosen] = rng.permutation([0, 1, 2, 3, 3, 3])
        anchor = nearest_sites(site_of, bonds)
        assert anchor.tolist() == slow_nearest(site_of, bonds.tolist())
        # what is anchored at one site hangs together, so that a tree along its own bonds reaches it
        tree = grow_tree(chosen, np.where(anchor < 0, -1 - np.arange(n), anchor), bonds)
        assert (tree.parent[anchor >= 0] >= 0).all()


def test_tree_levels_and_parents(rng):
    n = 50
    edges = np.array([(int(rng.integers(max(0, i - 4), i)), i) for i in range(1, n)] + [(0, 9), (7, 30)])
    tree = grow_tree(np.array([4]), np.zeros(n, dtype=int), edges)
    known = {frozenset(edge) for edge in edges.tolist()}
    assert tree.parent[4] == 4
    assert sorted(np.concatenate(tree.levels).tolist()) == [i for i in range(n) if i != 4]
    reached = {4}
    for atoms in tree.levels:
        parents = tree.parent[atoms].tolist()
        assert set(parents) <= reached
        assert all(frozenset(pair) in known for pair in zip(parents, atoms.tolist(), strict=True))
        reached = set(atoms.tolist())


def test_tree_stays_in_its_set_and_tells_what_it_does_not_reach():
    sets = np.array([0, 0, 1, 1, 0])
    tree = grow_tree(np.array([0, 2]), sets, np.array([[0, 1], [1, 2], [2, 3]]))
    assert tree.parent.tolist() == [0, 0, 2, 2, -1]
    assert [level.tolist() for level in tree.levels] == [[1, 3]]
    alone = grow_tree(np.array([0, 1]), np.array([0, 1]), np.zeros((0, 2), dtype=int))
    assert alone.levels == ()


def slow_whole(positions, bonds, roots, cell, pbc):
    """Walk from the roots along the bonds, atom by atom."""
    whole, todo = {root: positions[root] for root in roots}, list(roots)
    while todo:
        atom = todo.pop(0)
        for a, b in [*bonds, *((b, a) for a, b in bonds)]:
            if a == atom and b not in whole:
                whole[b] = whole[a] + shortest_image(positions[b] - positions[a], cell, pbc, reach=5)
                todo.append(b)
    return np.array([whole[atom] for atom in range(len(positions))])


@pytest.mark.parametrize("pbc", PBC)
def test_whole_molecules(rng, pbc):
    cell = CELLS["triclinic"] * 1.6
    atoms = random_molecules(rng, ["CH3CH2OH", "H2O", "C6H6"], cell, pbc)
    original = atoms.positions.copy()
    bonds = find_bonds(atoms)
    sets = label_molecules(len(atoms), bonds)
    roots = np.unique(sets, return_index=True)[1]
    tree = grow_tree(roots, sets, bonds)
    assert np.allclose(tree.whole(original, cell, pbc), original, atol=1e-12)
    atoms.positions += rng.integers(-2, 3, (len(atoms), 3)) * np.array(pbc) @ cell
    whole = tree.whole(atoms.positions, cell, pbc)
    assert np.allclose(whole, slow_whole(atoms.positions, bonds.tolist(), roots.tolist(), cell, pbc), atol=1e-10)
    assert np.array_equal(whole[roots], atoms.positions[roots])
    moved = (whole - original) @ np.linalg.inv(cell)
    assert np.allclose(moved, np.rint(moved), atol=1e-10)
    for members in (np.flatnonzero(sets == k) for k in range(len(roots))):
        assert np.allclose(np.rint(moved[members]), np.rint(moved[members[0]]))


def test_whole_keeps_uncut_molecules_to_the_last_digit(rng):
    atoms = random_molecules(rng, ["CH3CH2OH"], CELLS["cubic"] * 2)
    bonds = find_bonds(atoms)
    sets = label_molecules(len(atoms), bonds)
    tree = grow_tree(np.unique(sets, return_index=True)[1], sets, bonds)
    assert np.array_equal(tree.whole(atoms.positions, atoms.cell.array, atoms.pbc), atoms.positions)


def test_long_chain_through_many_cells():
    n = 200
    positions = np.column_stack([1.3 * np.arange(n), 0.4 * (np.arange(n) % 2), np.zeros(n)])
    chain = Atoms(f"C{n}", positions=positions, cell=[10, 10, 10], pbc=True)
    bonds = np.column_stack([np.arange(n - 1), np.arange(1, n)])
    tree = grow_tree(np.array([0]), np.zeros(n, dtype=int), bonds)
    chain.wrap()
    assert np.ptp(chain.positions[:, 0]) < 10
    assert np.allclose(tree.whole(chain.positions, chain.cell.array, True), positions, atol=1e-9)


def tree_length(n, links, distances):
    assert len(links) == n - 1
    assert label_molecules(n, links).max() == 0
    return sum(distances[i, j] for i, j in links)


def test_links_are_a_minimum_spanning_tree(rng):
    cell = CELLS["triclinic"]
    atoms = Atoms("X23", positions=rng.uniform(-1, 2, (23, 3)) @ cell, cell=cell, pbc=True)
    groups = [np.arange(5), np.arange(5, 10), np.arange(10, 17), np.array([17]), np.arange(18, 20)]
    links = find_links(groups, atoms.positions, cell, True)
    for group in groups:
        own = links[np.isin(links[:, 0], group)] - group[0]
        vectors = atoms.positions[group] - atoms.positions[group][:, None]
        distances = np.array([[np.linalg.norm(shortest_image(v, cell, (1, 1, 1))) for v in row] for row in vectors])
        # Kruskal
        expected, piece = 0.0, list(range(len(group)))
        for i, j in sorted(product(range(len(group)), repeat=2), key=lambda pair: distances[pair]):
            if piece[i] != piece[j]:
                expected += distances[i, j]
                piece = [piece[i] if p == piece[j] else p for p in piece]
        assert tree_length(len(group), own, distances) == pytest.approx(expected, abs=1e-10)
    assert len(links) == sum(len(group) - 1 for group in groups)
    assert find_links([], atoms.positions, cell, True).shape == (0, 2)


def test_graphene_bonds():
    atoms = graphene(size=(3, 3, 1), vacuum=5.0)
    atoms.pbc = (True, True, False)
    assert len(find_bonds(atoms)) == 27
    assert label_molecules(18, find_bonds(atoms)).max() == 0
