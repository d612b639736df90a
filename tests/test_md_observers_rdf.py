"""Radial distribution functions: brute force, ASE, ideal gas, crystals, any cell."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.geometry.rdf import get_rdf

from ase_nepcg.md.observers import RDF, ObserverError, ObserverInfo
from ase_nepcg.md.state import make_state

TRICLINIC = np.array([[9.0, 0.4, -0.3], [2.5, 8.0, 0.2], [-1.5, 2.0, 10.0]])


def state_of(x, types, cell, pbc):
    n = len(x)
    return make_state([x], [np.zeros((n, 3))], [np.ones(n)], [types], [cell], [pbc])


def observe(observer, frames, types, species, pbc=(True, True, True)):
    """Results for frames (positions, cell)."""
    s = state_of(frames[0][0], types, frames[0][1], pbc)
    arrays = observer.allocate(s, 0, ObserverInfo(1.0, 1, species))
    for step, (x, cell) in enumerate(frames):
        s.x[:], s.cell[0] = x, cell
        observer.kernel()(s, 0, step, *arrays)
    return observer.results(*arrays)


def brute(x, types, cell, pbc, r_max, bins, a, b):
    """Ordered pairs a-b in each bin, over all images, the slow way."""
    cell = np.array(cell, float)
    reach = [0, 0, 0]
    for d in range(3):
        if pbc[d]:
            # the vectors of open directions do not matter for the number of images
            full = np.where(np.array(pbc)[:, None], cell, np.eye(3)) if not all(pbc) else cell
            height = abs(np.linalg.det(full)) / np.linalg.norm(np.cross(full[d - 2], full[d - 1]))
            spread = np.ptp(x @ np.linalg.inv(full), axis=0)[d]
            reach[d] = int(np.ceil(r_max / height + spread))
    grid = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), axis=-1).reshape(-1, 3)
    edges = np.linspace(0, r_max, bins + 1)
    total = np.zeros(bins)
    for shift in grid:
        one, two = x[types == a], x[types == b] + shift @ cell
        # only images that reach into the box around the sites
        near = ((two > one.min(axis=0) - r_max) & (two < one.max(axis=0) + r_max)).all(axis=1)
        d = np.linalg.norm(two[near] - one[:, None], axis=-1)
        if a == b and not shift.any():
            d = d[~np.eye(len(one), dtype=bool)[:, near]]
        total += np.histogram(d, edges)[0]
    return total


CELLS = {
    "small cube": (np.eye(3) * 5.0, (1, 1, 1), 24, 6.7),
    "nearest images": (np.diag([10.0, 11.0, 12.0]), (1, 1, 1), 80, 4.5),
    "mixed": (np.diag([4.0, 11.0, 30.0]), (1, 1, 1), 90, 5.1),
    "bins": (np.diag([20.0, 21.0, 22.0]), (1, 1, 1), 250, 4.0),
    "crowded bins": (np.diag([10.0, 9.0, 9.0]), (1, 1, 1), 880, 2.95),
    "triclinic": (TRICLINIC, (1, 1, 1), 60, 3.6),
    "small triclinic": (TRICLINIC, (1, 1, 1), 40, 9.0),
    "large triclinic": (3 * TRICLINIC, (1, 1, 1), 300, 6.0),
    "left-handed": (TRICLINIC[[1, 0, 2]], (1, 1, 1), 60, 3.9),
    "slab": (TRICLINIC, (1, 1, 0), 60, 5.0),
    "wire": (TRICLINIC, (0, 1, 0), 50, 6.0),
    "cluster": (np.zeros((3, 3)), (0, 0, 0), 60, 5.0),
    "flat cluster": (np.zeros((3, 3)), (0, 0, 0), 30, 5.0),
}


@pytest.mark.parametrize("name", CELLS)
def test_counts_equal_brute_force(rng, name):
    cell, pbc, n, r_max = CELLS[name]
    pbc = np.array(pbc, bool)
    box = np.where(pbc[:, None], cell, np.eye(3) * 11.0)
    # positions are not wrapped
    x = (rng.uniform(0, 1, (n, 3)) + rng.integers(-1, 2, (n, 3)) * (n < 90) * pbc) @ box
    if name == "flat cluster":
        x[:, 1] = 0.0
    if name == "slab":
        cell = cell.copy()
        cell[2] = 0.0
    types, species, pairs = (rng.uniform(size=n) < 0.3).astype(int), ("O", "H"), ((0, 0), (0, 1), (1, 1))
    if name == "crowded bins":
        types, species, pairs = np.zeros(n, int), ("O",), ((0, 0),)
    result = observe(RDF(r_max, bins=40), [(x, cell)], types, species, pbc)
    assert result.pairs == tuple((species[a], species[b]) for a, b in pairs)
    for k, (a, b) in enumerate(pairs):
        expected = brute(x, types, cell if pbc.any() else np.eye(3), pbc, r_max, 40, a, b)
        assert expected.sum() > 0
        found = result.coordination[k] * (types == a).sum()
        np.testing.assert_allclose(found, np.cumsum(expected), rtol=1e-12)
    # a number per volume only where there is one
    assert np.isfinite(result.g).all() == (abs(np.linalg.det(cell)) > 0)


def test_equals_ase(rng):
    atoms = Atoms(
        "O60H40", positions=rng.uniform(0, 1, (100, 3)) @ np.diag([11.0, 12, 13]), cell=[11, 12, 13], pbc=True
    )
    types = (atoms.numbers == 1).astype(int)
    result = observe(RDF(5.4, bins=30), [(atoms.positions, atoms.cell.array)], types, ("O", "H"))
    for k, pair in enumerate(((8, 8), (8, 1), (1, 1))):
        g, r = get_rdf(atoms, 5.4, 30, elements=pair)
        # ASE takes the area in the middle for the volume of a shell, and divides by the number of all sites
        edges = np.linspace(0, 5.4, 31)
        g = g * (4 * np.pi * r**2 * 5.4 / 30) / (4 / 3 * np.pi * np.diff(edges**3))
        kinds = [(atoms.numbers == z).sum() for z in pair]
        np.testing.assert_allclose(result.g[k] * kinds[1], g * kinds[1], rtol=0.02, atol=1e-9)
    np.testing.assert_allclose(result.r, r)


def test_ideal_gas_is_one_within_errors(rng):
    n, frames = 100, [(rng.uniform(0, 1, (100, 3)) @ TRICLINIC, TRICLINIC) for _ in range(400)]
    types = np.arange(n) % 2
    result = observe(RDF(6.0, bins=24), frames, types, ("A", "B"))
    # like sites lack one partner in half the cell, images make up for it farther out
    expected = np.array([1 - 2 / n, 1.0, 1 - 2 / n])[:, None]
    near = result.r < 3.5
    pulls = ((result.g - expected) / result.g_error)[:, near]
    pulls = pulls[np.isfinite(pulls)]
    assert len(pulls) > 30
    assert abs(np.std(pulls) - 1) < 0.35
    assert abs(pulls.mean()) < 0.6
    assert (result.g_error[:, near & (result.r > 1)] < 0.2).all()
    far = result.coordination[1, -1] / (n / 2 * 4 / 3 * np.pi * 6**3 / np.linalg.det(TRICLINIC))
    assert far == pytest.approx(1, abs=0.01)


def test_fcc_shells_of_a_primitive_cell():
    atoms = bulk("Cu", a=3.6)
    result = observe(RDF(5.5, bins=550), [(atoms.positions, atoms.cell.array)], [0], ("Cu",))
    shells = {3.6 * np.sqrt(k / 2): n for k, n in ((1, 12), (2, 6), (3, 24), (4, 12))}
    for r, n in shells.items():
        inside = np.searchsorted(result.r, r - 0.05), np.searchsorted(result.r, r + 0.05)
        assert result.coordination[0, inside[1]] - result.coordination[0, inside[0]] == pytest.approx(n)
    assert result.coordination[0, -1] == pytest.approx(54)


def test_chosen_pairs_and_their_order(rng):
    frames = [(rng.uniform(0, 10, (50, 3)), np.eye(3) * 10)]
    types = np.arange(50) % 5 // 2
    both = observe(RDF(4.0, pairs=[("B", "A"), ("C", "C")]), frames, types, ("A", "B", "C"))
    everything = observe(RDF(4.0), frames, types, ("A", "B", "C"))
    assert both.pairs == (("B", "A"), ("C", "C"))
    np.testing.assert_array_equal(both.g[0], everything.g[everything.pairs.index(("A", "B"))])
    counts = np.bincount(types)
    np.testing.assert_allclose(
        both.coordination[0] * counts[1], everything.coordination[everything.pairs.index(("A", "B"))] * counts[0]
    )


def test_cell_that_changes_beyond_all_bounds(rng):
    """More bins than memory, fewer than one; the average volume normalises."""
    n = 40
    types = np.zeros(n, int)
    fractions = rng.uniform(0, 1, (n, 3))
    frames = [(fractions * size, np.eye(3) * size) for size in (8.0, 3.0, 400.0, 40.0)]
    result = observe(RDF(4.9, bins=25), frames, types, ("A",))
    expected = sum(brute(x, types, cell, (1, 1, 1), 4.9, 25, 0, 0) for x, cell in frames) / len(frames)
    np.testing.assert_allclose(result.coordination[0] * n, np.cumsum(expected), rtol=1e-12)
    volume = np.mean([8.0**3, 3.0**3, 400.0**3, 40.0**3])
    assert result.volume_A3 == pytest.approx(volume)
    shells = 4 / 3 * np.pi * np.diff(np.linspace(0, 4.9, 26) ** 3)
    np.testing.assert_allclose(result.g[0], expected * volume / (n * n * shells), rtol=1e-12)


def test_collapsed_cell_gives_no_result(rng):
    x = rng.uniform(0, 5, (10, 3))
    for bad in ("cell", "x"):
        s = state_of(x, np.zeros(10, int), np.eye(3) * 5, (1, 1, 1))
        observer = RDF(4.0)
        arrays = observer.allocate(s, 0, ObserverInfo(1.0, 1, ("A",)))
        observer.kernel()(s, 0, 0, *arrays)
        if bad == "cell":
            s.cell[0] *= 1e-4
        else:
            s.x[3, 1] = np.nan
        observer.kernel()(s, 0, 1, *arrays)
        with pytest.raises(ObserverError, match="collapsed"):
            observer.results(*arrays)


def test_bad_input(rng):
    for arguments, message in (
        ({"r_max": 0}, "r_max must be a positive number, got 0"),
        ({"r_max": "6"}, "r_max"),
        ({"r_max": 5.0, "bins": 2.5}, "bins must be an integer"),
        ({"r_max": 5.0, "pairs": "OH"}, "pairs of labels"),
        ({"r_max": 5.0, "pairs": [("O",)]}, "pairs of labels"),
        ({"r_max": 5.0, "pairs": [("O", "H"), ("H", "O")]}, "twice"),
    ):
        with pytest.raises(ObserverError, match=message):
            RDF(**arguments)
    s = state_of(rng.uniform(0, 5, (4, 3)), np.zeros(4, int), np.eye(3) * 5, (1, 1, 1))
    info = ObserverInfo(1.0, 1, ("O", "H"))
    with pytest.raises(ObserverError, match="unknown species 'Ow'"):
        RDF(5.0, pairs=[("Ow", "O")]).allocate(s, 0, info)
    with pytest.raises(ObserverError, match="'H' has no site in replica 0"):
        RDF(5.0, pairs=[("H", "O")]).allocate(s, 0, info)
    with pytest.raises(
        ObserverError,
        match=r"100 Å is 20 times the smallest height of the cell \(5 Å\) and meets 8e\+04",
    ):
        RDF(100.0).allocate(s, 0, info)
    s.cell[0, 1] = s.cell[0, 0]
    with pytest.raises(ObserverError, match="linearly independent"):
        RDF(5.0).allocate(s, 0, info)
