"""The wall below the distances of the frames: nothing changes above, and below it pushes apart."""

import itertools
import math
import warnings

import numpy as np
import pytest
from ase import Atoms
from ase.units import kB

from ase_nepcg import NEP, NEPModel
from ase_nepcg.errors import ModelError, NepCGError
from ase_nepcg.model import ZBL
from ase_nepcg.training import baseline
from ase_nepcg.training.baseline import BaselineError, as_zbl, repulsive_baseline


def liquid(rng, species=("O", "H"), n=40, edge=11.0, **info):
    """Random sites in a skewed periodic cell, none nearer than 2 Å, some outside of the cell."""
    cell = np.array([[edge, 0, 0], [3.0, edge, 0], [-2.0, 1.0, edge]])
    points = np.zeros((0, 3))
    while len(points) < n:
        new = rng.random(3) @ cell
        shifts = np.array(list(itertools.product((-1, 0, 1), repeat=3))) @ cell
        if len(points) == 0 or np.linalg.norm(points[:, None] + shifts - new, axis=2).min() > 2.0:
            points = np.concatenate([points, [new]])
    points += rng.integers(-1, 2, (n, 3)) @ cell
    symbols = [species[k % len(species)] for k in range(n)]
    return Atoms(symbols, positions=points, cell=cell, pbc=True, info=info)


def smallest(frames, first, second):
    """Over all pairs and images, one by one."""
    best = np.inf
    for atoms in frames:
        for i, j in itertools.product(range(len(atoms)), repeat=2):
            if {atoms.symbols[i], atoms.symbols[j]} == {first, second}:
                for shift in itertools.product((-2, -1, 0, 1, 2), repeat=3):
                    shift = np.where(atoms.pbc, shift, 0)
                    distance = np.linalg.norm(atoms.positions[j] - atoms.positions[i] + shift @ atoms.cell.array)
                    best = min(best, distance if distance > 0 else np.inf)
    return best


def dimer(distance, first="O", second="H"):
    return Atoms([first, second], positions=[[0, 0, 0], [distance, 0, 0]])


def curve(zbl, distances, pair=("O", "H"), **settings):
    """Energy and force along the bond of a dimer whose network is silent."""
    calculator = NEP(NEPModel.zeros(["O", "H"], zbl=zbl, **settings), threads=1)
    energies, forces = [], []
    for r in distances:
        atoms = dimer(r, *pair)
        atoms.calc = calculator
        energies.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces()[1, 0])
    return np.array(energies), np.array(forces)


@pytest.fixture
def frames(rng):
    return [liquid(rng, n=14, edge=8.0, temperature=T) for T in (290.0, 310.0)]


def test_begins_at_the_smallest_distances(frames):
    zbl = repulsive_baseline(frames, ["O", "H"])
    pairs = [("O", "O"), ("O", "H"), ("H", "H")]
    expected = [smallest(frames, *pair) for pair in pairs]
    assert (zbl.flexible[:, 1] <= expected).all()
    np.testing.assert_allclose(zbl.flexible[:, 1], expected, rtol=0, atol=1.01e-4)
    np.testing.assert_allclose(zbl.flexible[:, 0], 0.8 * zbl.flexible[:, 1], rtol=1e-14)
    # another order of the species, another order of the rows
    other = repulsive_baseline(frames[::-1], ["H", "O"])
    np.testing.assert_allclose(other.flexible, zbl.flexible[::-1], rtol=1e-13)


def test_nothing_happens_in_the_frames(frames):
    calculator = NEP(NEPModel.zeros(["O", "H"], zbl=repulsive_baseline(frames, ["O", "H"])), threads=1)
    for atoms in frames:
        atoms.calc = calculator
        assert atoms.get_potential_energy() == 0
        assert (atoms.get_forces() == 0).all()
        assert (atoms.get_stress() == 0).all()


def test_small_cells_see_their_own_images():
    atoms = Atoms("O", cell=[3.1, 9, 9], pbc=True)
    zbl = repulsive_baseline(atoms, ["O"])
    assert zbl.flexible[0, 1] == pytest.approx(3.1, abs=1.01e-4)
    atoms.pbc = False
    with pytest.warns(UserWarning, match="O-O: no wall"):
        assert (repulsive_baseline(atoms, ["O"]).flexible == 0).all()


def test_wall(frames):
    zbl = repulsive_baseline(frames, ["O", "H"])
    for row, pair in enumerate([("O", "O"), ("O", "H"), ("H", "H")]):
        inner, outer = zbl.flexible[row, :2]
        r = np.concatenate([np.linspace(0.3, outer - 1e-3, 60), np.linspace(outer, 6.0, 6)])
        energies, forces = curve(zbl, r, pair)
        assert (energies[60:] == 0).all()
        assert (forces[60:] == 0).all()
        assert (energies[:60] > 0).all()
        assert (forces[:60] > 0).all()  # apart
        assert (np.diff(energies[:60]) < 0).all()
        assert (np.diff(forces[:55]) < 0).all()  # softer outwards, but for the last bit
        # heights as promised, in kT of the hottest frame
        (low, at_outer, at_inner, deep), _ = curve(zbl, [0.9 * outer, 0.97 * outer, inner, 0.5 * inner], pair)
        kT = kB * 310.0
        assert at_inner == pytest.approx(50 * kT, rel=1e-12)
        assert at_outer == pytest.approx(0.217 * kT, rel=0.01)
        assert low == pytest.approx(5.62 * kT, rel=0.01)
        assert deep == pytest.approx(24469 * kT, rel=0.01)
        # forces are the slope, also across the two seams
        for seam in (inner, outer):
            h = 1e-5
            near = seam + np.array([-3.3, -1.2, -0.5, 0.5, 1.2, 3.3]) * h
            force = curve(zbl, near, pair)[1]
            slope = (curve(zbl, near + h, pair)[0] - curve(zbl, near - h, pair)[0]) / (2 * h)
            scale = at_inner / inner
            np.testing.assert_allclose(force, -slope, rtol=0, atol=1e-3 * scale)
            assert np.abs(np.diff(force)).max() < 2e-3 * scale


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"energy_eV": 0.7}, 0.7), ({"temperature_K": 400}, 50 * kB * 400), ({}, 50 * kB * 310)],
)
def test_height(frames, settings, expected):
    zbl = repulsive_baseline(frames, ["O", "H"], **settings)
    energies, _ = curve(zbl, zbl.flexible[1, :1])
    assert energies[0] == pytest.approx(expected, rel=1e-12)


def test_height_without_a_temperature(rng):
    zbl = repulsive_baseline(liquid(rng), ["O", "H"])
    assert curve(zbl, zbl.flexible[1, :1])[0][0] == pytest.approx(50 * kB * 300, rel=1e-12)


def test_survives_the_model_file(frames):
    model = NEPModel.zeros(["O", "H"], zbl=repulsive_baseline(frames, ["O", "H"]))
    assert NEPModel.from_text(model.to_text()) == model


def test_wall_does_not_begin_beyond_the_angular_cutoff():
    frames = Atoms("OOHH", positions=[[0, 0, 0], [4.5, 0, 0], [0, 2.6, 0], [4.5, 2.6, 0]])
    with pytest.warns(UserWarning, match=r"O-O \(4.00 Å instead of 4.50 Å\), H-H .*: wall begins at the angular"):
        zbl = repulsive_baseline(frames, ["O", "H"])
    np.testing.assert_allclose(zbl.flexible[:, 1], [4.0, 2.6, 4.0], atol=1.01e-4)
    with pytest.warns(UserWarning, match="angular"):
        zbl = repulsive_baseline(frames, ["O", "H"], cutoff={"O": (6.0, 5.0), "H": (6.0, 4.0)})
    np.testing.assert_allclose(zbl.flexible[:, 1], [4.5, 2.6, 4.0], atol=1.01e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        repulsive_baseline(frames, ["O", "H"], cutoff=(6.0, 5.0))


def test_pairs_that_are_never_seen():
    # one ion each, far from each other, and a label that does not occur
    positions = [[0, 0, 0], [2.3, 0, 0], [0, 3.0, 0], [20, 0, 0], [22.6, 0, 0], [20, 2.9, 0]]
    atoms = Atoms(["Na", "O", "O", "Cl", "O", "O"], positions=positions)
    species = ["O", "Na", "Cl", "K"]
    with pytest.warns(UserWarning, match="never within") as caught:
        zbl = repulsive_baseline(atoms, species)
    outer = dict(zip(itertools.combinations_with_replacement(species, 2), zbl.flexible[:, 1], strict=True))
    oo = np.hypot(2.3, 3.0)
    for pair, expected in {
        ("O", "O"): oo,
        ("O", "Na"): 2.3,
        ("O", "Cl"): 2.6,
        ("Na", "Na"): 2.3,
        ("Na", "Cl"): 2.3,
        ("Cl", "Cl"): 2.6,
        ("Na", "K"): 2.3,
        ("K", "K"): 0.0,
    }.items():
        assert outer[pair] == pytest.approx(expected, abs=1.01e-4)
    message = str(caught[0].message)
    assert "Na-Na (2.30 Å), Na-Cl (2.30 Å)" in message
    assert "K-K: no wall" in message


def test_each_pair_has_its_own_reach():
    # the hydrogens see each other up to 4 Å only, though oxygens are looked for up to 6 Å
    atoms = Atoms("OOHH", positions=[[0, 0, 0], [2.8, 0, 0], [0, 2.2, 0], [0, 2.2, 4.5]])
    with pytest.warns(UserWarning, match=r"H-H \(2\.20 Å\): never within 4 Å"):
        zbl = repulsive_baseline(atoms, ["O", "H"], cutoff={"O": (6.0, 4.0), "H": (4.0, 3.0)})
    np.testing.assert_allclose(zbl.flexible[:, 1], [2.8, 2.2, 2.2], atol=1.01e-4)


def test_as_zbl(frames):
    assert as_zbl(None) is None
    zbl = ZBL(1.0, 2.0)
    assert as_zbl(zbl) is zbl
    assert as_zbl((1.0, 2.0)) == zbl
    assert as_zbl([0.5, 2.0, 0.7]) == ZBL(0.5, 2.0, 0.7)
    made = as_zbl("repulsive", frames, ["O", "H"], cutoff=(5.0, 3.0), energy_eV=2.0)
    assert made == repulsive_baseline(frames, ["O", "H"], cutoff=(5.0, 3.0), energy_eV=2.0)
    with pytest.raises(BaselineError, match="unknown name 'repulsiv'; did you mean 'repulsive'"):
        as_zbl("repulsiv")
    with pytest.raises(BaselineError, match="expected None, 'repulsive', ZBL"):
        as_zbl(2.0)
    with pytest.raises(BaselineError, match="expected None, 'repulsive', ZBL"):
        as_zbl((1, 2, 3, 4))
    with pytest.raises(ModelError, match="inner < outer"):
        as_zbl((2.0, 1.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"species": ["O", "H", "W1"]}, "needs chemical symbols H to Pu as labels, got 'W1': rename"),
        ({"frames": []}, "needs frames, got none"),
        ({"frames": [dimer(2.0), dimer(0.0)]}, "frame 1: sites 0 and 1 are 0 Å apart"),
        ({"energy_eV": 0.0}, "above 0, got a wall of 0 eV"),
        ({"temperature_K": -3.0}, "above 0, got a wall of -"),
        ({"temperature_K": math.nan}, "temperature_K: expected a finite number"),
        ({"energy_eV": "high"}, "energy_eV: expected a number, got 'high'"),
    ],
)
def test_refusals(settings, message):
    settings = {"frames": [dimer(2.0)], "species": ["O", "H"]} | settings
    with pytest.raises(BaselineError, match=message) as caught:
        repulsive_baseline(**settings)
    assert isinstance(caught.value, NepCGError)
    assert isinstance(caught.value, ValueError)


def test_looks_only_for_pairs_nearer_than_any_so_far(rng, monkeypatch):
    limits, original = [], baseline.near_pairs

    def counted(positions, cell, pbc, limit):
        limits.append(limit)
        return original(positions, cell, pbc, limit)

    monkeypatch.setattr(baseline, "near_pairs", counted)
    zbl = repulsive_baseline([liquid(rng, ["O"]) for _ in range(4)], ["O"], cutoff=(7.0, 4.0))
    assert limits[0] == 7.0
    assert limits == sorted(limits, reverse=True)
    assert limits[1] < 3.0
    assert zbl.flexible[0, 1] <= limits[-1]
