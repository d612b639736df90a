"""Proposed configurations: rigid molecules, affine centres, volumes under pressure against exact ones."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, graphene, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from ase_nepcg import FixBeads, Mapping
from ase_nepcg.configurations import ConfigurationError, from_trajectory, rattled, strained
from ase_nepcg.mapping import MappingError

CELLS = {
    "cubic": np.diag([9.0, 9.0, 9.0]),
    "triclinic": np.array([[9.0, 0.3, 0.0], [2.5, 8.5, 0.2], [-2.0, 1.5, 10.0]]),
    "left-handed": np.array([[0.0, 9.0, 0.5], [8.5, 0.0, 0.0], [0.3, 0.0, 10.0]]),
}


def solution(cell="triclinic", seed=0):
    """Four molecules, wrapped into the cell so that boundaries cut some of them."""
    cell = CELLS[cell]
    rng = np.random.default_rng(seed)
    atoms = Atoms(cell=cell, pbc=True)
    for k, name in enumerate(("H2O", "CO2", "H2O", "NH3")):
        new = molecule(name)
        new.euler_rotate(*rng.uniform(0, 360, 3))
        # on a face of the cell each, far from each other
        place = np.array([[0.0, 0.25, 0.25], [0.5, 1.0, 0.75], [0.25, 0.75, 0.0], [0.75, 0.3, 0.5]][k])
        new.positions += place @ cell - new.get_center_of_mass()
        atoms += new
    atoms.wrap()
    atoms.calc = EMT()
    atoms.info["origin"] = "made up"
    return atoms


def lengths(atoms, groups):
    """All distances within each group, by minimum images."""
    return np.concatenate([atoms[list(g)].get_all_distances(mic=True).ravel() for g in groups])


def state(atoms):
    return {k: v.tobytes() for k, v in atoms.arrays.items()}, atoms.cell.array.tobytes(), dict(atoms.info), atoms.calc


def slow_strained(atoms, mapping, gradient):
    """Molecule by molecule, atom by atom."""
    bound = mapping.bind(atoms)
    deformation = np.eye(3) + gradient
    cell = np.array([deformation @ vector for vector in atoms.cell.array])
    whole = bound.whole(atoms.positions, atoms.cell.array, atoms.pbc)
    positions = np.zeros_like(whole)
    for anchor in range(bound.n_sites + bound.n_implicit):
        atoms_here = [i for i in range(len(atoms)) if bound.anchor_of[i] == anchor]
        members = [i for i in atoms_here if anchor >= bound.n_sites or bound.site_of[i] == anchor]
        centre = sum(bound.masses[i] * whole[i] for i in members) / sum(bound.masses[i] for i in members)
        for i in atoms_here:
            image = np.rint(np.linalg.solve(atoms.cell.array.T, atoms.positions[i] - whole[i]))
            positions[i] = deformation @ centre + (whole[i] - centre) + image @ cell
    return positions, cell


def mappings(atoms):
    """Molecules, a site map with a molecule without any site, mixed resolution, all atoms."""
    beads = Mapping.from_molecules(atoms, "A")
    return {
        "molecules": beads,
        "sites": Mapping.from_sites(atoms, [0, 3, 6]),
        "mixed": beads.with_atomistic(beads.groups[1]),
        "atoms": Mapping.from_atoms(atoms),
    }


# --- strain -----------------------------------------------------------------------------------------------------------


GRADIENTS = {
    "isotropic": ({"isotropic": 0.04}, 0.04 * np.eye(3)),
    "biaxial": ({"biaxial": [-0.06]}, -0.06 * np.diag([1, 1, 0])),
    "biaxial-yz": ({"biaxial": {"yz": 0.03}}, 0.03 * np.diag([0, 1, 1])),
    "uniaxial": ({"uniaxial": (0.1,)}, 0.1 * np.diag([1, 0, 0])),
    "uniaxial-z": ({"uniaxial": {"z": [0.1]}}, 0.1 * np.diag([0, 0, 1])),
    "shear": ({"shear": np.array([0.05])}, 0.05 * np.eye(3)[:, [2, 0, 1]] * np.array([[1], [0], [0]])),
    "shear-xz": ({"shear": {"xz": -0.05}}, np.array([[0, 0, -0.05], [0, 0, 0], [0, 0, 0]])),
}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kind", GRADIENTS)
def test_strain_against_the_slow_twin(kind, cell):
    keywords, gradient = GRADIENTS[kind]
    atoms = solution(cell)
    for mapping in mappings(atoms).values():
        (frame,) = strained(atoms, mapping, **keywords)
        positions, new_cell = slow_strained(atoms, mapping, gradient)
        np.testing.assert_allclose(frame.cell.array, new_cell, rtol=0, atol=1e-12)
        np.testing.assert_allclose(frame.positions, positions, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_centres_are_affine_and_molecules_rigid(cell):
    atoms = solution(cell)
    mapping = Mapping.from_molecules(atoms, "A")
    whole = mapping.bind(atoms).whole(atoms.positions, atoms.cell.array, atoms.pbc)
    assert np.abs(whole - atoms.positions).max() > 5  # the boundary cuts some of them
    centres = mapping.beads(atoms).positions
    before = lengths(atoms, mapping.groups)
    for keywords, gradient in GRADIENTS.values():
        (frame,) = strained(atoms, mapping, **keywords)
        beads = mapping.beads(frame)
        np.testing.assert_allclose(beads.positions, centres @ (np.eye(3) + gradient).T, rtol=0, atol=1e-12)
        np.testing.assert_allclose(
            beads.get_scaled_positions(wrap=False),
            mapping.beads(atoms).get_scaled_positions(wrap=False),
            rtol=0,
            atol=1e-12,
        )
        np.testing.assert_allclose(lengths(frame, mapping.groups), before, rtol=0, atol=1e-12)


def test_followers_of_a_site_keep_their_place_beside_it():
    atoms = solution()
    mapping = mappings(atoms)["sites"]
    bound = mapping.bind(atoms)
    assert bound.n_implicit == 1
    (frame,) = strained(atoms, mapping, uniaxial=0.08)
    np.testing.assert_allclose(frame.positions[0], atoms.positions[0] * [1.08, 1, 1], rtol=0, atol=1e-12)
    for anchor in range(4):
        group = np.flatnonzero(bound.anchor_of == anchor)
        np.testing.assert_allclose(lengths(frame, [group]), lengths(atoms, [group]), rtol=0, atol=1e-12)


def test_atoms_that_are_sites_move_affinely():
    atoms = bulk("Au", cubic=True).repeat(2)
    atoms.rattle(0.1, seed=1)
    mapping = Mapping.from_atoms_per_bead(atoms, 4, "Bi").with_atomistic(range(16))
    (frame,) = strained(atoms, mapping, isotropic=-0.1)
    np.testing.assert_allclose(frame.positions[:16], 0.9 * atoms.positions[:16], rtol=0, atol=1e-12)
    assert np.abs(frame.positions[16:] - 0.9 * atoms.positions[16:]).max() > 0.05
    (frame,) = strained(atoms, Mapping.from_atoms(atoms), isotropic=-0.1)
    atoms.set_cell(0.9 * atoms.cell.array, scale_atoms=True)
    np.testing.assert_allclose(frame.positions, atoms.positions, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["isotropic", "biaxial", "uniaxial", "shear"])
def test_no_strain_changes_no_bit(kind):
    atoms = solution()
    for mapping in mappings(atoms).values():
        (frame,) = strained(atoms, mapping, **{kind: 0.0})
        assert frame.positions.tobytes() == atoms.positions.tobytes()
        assert frame.cell.array.tobytes() == atoms.cell.array.tobytes()


def test_order_names_and_what_is_carried_over():
    atoms = solution()
    mapping = Mapping.from_molecules(atoms, "A")
    atoms.set_constraint(FixBeads(mapping))
    before = state(atoms)
    frames = strained(
        atoms, mapping, shear={"yz": 0.01}, uniaxial={"z": (0.1, -0.1), "x": 0.0}, isotropic=(0, 0.05), biaxial=[0.02]
    )
    names = [(frame.info["strain"], frame.info["strain_value"]) for frame in frames]
    assert names == [
        ("isotropic", 0.0),
        ("isotropic", 0.05),
        ("biaxial-xy", 0.02),
        ("uniaxial-z", 0.1),
        ("uniaxial-z", -0.1),
        ("uniaxial-x", 0.0),
        ("shear-yz", 0.01),
    ]
    for frame in frames:
        assert frame.calc is atoms.calc
        assert frame.constraints[0] == atoms.constraints[0]
        assert frame.info["origin"] == "made up"
    assert state(atoms) == before


def test_volumes_and_shapes():
    atoms = bulk("Au", cubic=True)
    mapping = Mapping.from_atoms_per_bead(atoms, 4, "Bi")
    frames = strained(atoms, mapping, isotropic=0.1, biaxial=0.1, uniaxial=0.1, shear=0.1)
    ratios = [frame.get_volume() / atoms.get_volume() for frame in frames]
    np.testing.assert_allclose(ratios, [1.331, 1.21, 1.1, 1.0], rtol=1e-12)
    # lower triangular cells stay so
    np.testing.assert_allclose(frames[3].cell.array, np.array([[1, 0, 0], [0.1, 1, 0], [0, 0, 1]]) * 4.08, atol=1e-12)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({}, "no strain given"),
        ({"isotropic": ()}, "no strain given"),
        ({"isotropic": [0.0, np.nan]}, "isotropic: expected finite numbers, got nan"),
        ({"biaxial": -1.0}, "biaxial: expected fractions between -1 and 1 .*got -1"),
        ({"uniaxial": 5}, "fractions between -1 and 1 .0.05 for 5 %., got 5"),
        ({"shear": "0.1"}, "shear: expected a sequence of numbers"),
        ({"shear": [True]}, "shear: expected a sequence of numbers"),
        ({"shear": [[0.1]]}, "shear: expected a sequence of numbers"),
        ({"shear": {"yx": 0.1}}, "shear: expected axes xy, xz, yz, got 'yx'"),
        ({"uniaxial": {"a": 0.1}}, "uniaxial: expected axes x, y, z, got 'a'"),
    ],
)
def test_strains_that_make_no_sense(keywords, message):
    atoms = solution()
    with pytest.raises(ConfigurationError, match=message):
        strained(atoms, Mapping.from_molecules(atoms, "A"), **keywords)


def test_atoms_that_do_not_fit_the_mapping():
    atoms = solution()
    mapping = Mapping.from_molecules(atoms, "A")
    with pytest.raises(MappingError, match="the mapping is for 13 atoms, got 12"):
        strained(atoms[:-1], mapping, isotropic=0.1)
    atoms.positions[3, 1] = np.nan
    with pytest.raises(MappingError, match="for atom 3"):
        strained(atoms, mapping, isotropic=0.1)
    with pytest.raises(MappingError, match="for atom 3"):
        rattled(atoms, mapping, stdev=0.1)


def test_layers_and_wires():
    layer = graphene(size=(2, 2, 1), vacuum=5.0)
    assert layer.pbc.tolist() == [True, True, False]
    mapping = Mapping.from_atoms_per_bead(layer, 2, "Bi")
    frames = strained(layer, mapping, biaxial=0.1, uniaxial={"x": 0.1, "y": 0.1}, shear=0.1)
    for frame in frames:
        np.testing.assert_allclose(frame.positions[:, 2], layer.positions[:, 2], rtol=0, atol=1e-12)
        assert frame.cell.array[2].tobytes() == layer.cell.array[2].tobytes()
    np.testing.assert_allclose(frames[0].cell.array[:2, :2], 1.1 * layer.cell.array[:2, :2], rtol=1e-12)
    for keywords in ({"isotropic": 0.1}, {"uniaxial": {"z": 0.1}}, {"shear": {"xz": 0.1}}, {"biaxial": {"yz": 0.1}}):
        with pytest.raises(ConfigurationError, match=r"not periodic \(pbc = True, True, False\); give strains within"):
            strained(layer, mapping, **keywords)
    layer.pbc = (True, False, False)
    assert len(strained(layer, mapping, uniaxial=0.1)) == 1
    with pytest.raises(ConfigurationError, match="not periodic"):
        strained(layer, mapping, biaxial=0.1)
    layer.pbc = False
    with pytest.raises(ConfigurationError, match=r"the atoms are not periodic, .*use rattled"):
        strained(layer, mapping, uniaxial=0.1)


# --- rattled ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rotation", [0.0, 20.0])
def test_rattled_molecules_stay_rigid(rotation):
    atoms = solution()
    for name, mapping in mappings(atoms).items():
        before, bound = state(atoms), mapping.bind(atoms)
        anchored = [np.flatnonzero(bound.anchor_of == k) for k in range(bound.n_sites + bound.n_implicit)]
        frames = rattled(atoms, mapping, stdev=0.1, n=3, rotation_deg=rotation, seed=7)
        assert state(atoms) == before
        for k, frame in enumerate(frames):
            assert frame.calc is atoms.calc
            assert frame.cell.array.tobytes() == atoms.cell.array.tobytes()
            assert (frame.info["rattle_seed"], frame.info["rattle_index"]) == (7, k)
            np.testing.assert_allclose(lengths(frame, anchored), lengths(atoms, anchored), rtol=0, atol=1e-12)
            moved = frame.positions - atoms.positions
            centres = mapping.beads(frame).positions - mapping.beads(atoms).positions
            assert np.abs(centres).min() > 0
            if rotation == 0:
                for site, group in enumerate(mapping.groups):
                    np.testing.assert_allclose(moved[group], np.tile(centres[site], (len(group), 1)), atol=1e-12)
            if name == "sites":
                assert not moved[anchored[3]].any()  # has no site


def test_rattled_by_as_much_as_asked():
    atoms = Atoms("Ar1000", cell=[60] * 3, pbc=True, positions=np.random.default_rng(0).random((1000, 3)) * 60)
    mapping = Mapping.from_atoms(atoms)
    (frame,) = rattled(atoms, mapping, stdev=0.2, seed=1)
    moved = frame.positions - atoms.positions
    # 3000 numbers: standard error of the deviation 0.2 / sqrt(6000), of the mean 0.2 / sqrt(3000)
    assert abs(moved.std() - 0.2) < 4 * 0.2 / 6000**0.5
    assert abs(moved.mean()) < 4 * 0.2 / 3000**0.5


def test_rotated_by_as_much_as_asked():
    pair = np.array([[0.0, 0.0, -0.6], [0.0, 0.0, 0.6]])
    places = 10.0 * np.stack(np.meshgrid(*[np.arange(8)] * 3), axis=-1).reshape(-1, 1, 3) + 5.0
    atoms = Atoms("N1024", positions=(places + pair).reshape(-1, 3), cell=[80] * 3, pbc=True)
    (frame,) = rattled(atoms, Mapping.from_molecules(atoms, "A"), stdev=0, rotation_deg=3.0, seed=1)
    axis = frame.positions[1::2] - frame.positions[::2]
    np.testing.assert_allclose(np.linalg.norm(axis, axis=1), 1.2, rtol=1e-12)
    # small rotations about x and y tilt the axis by their angle
    tilt = np.degrees(axis[:, :2] / 1.2)
    assert abs(tilt.std() - 3.0) < 4 * 3.0 / 2048**0.5


def test_rattled_by_seed():
    atoms = solution()
    mapping = Mapping.from_molecules(atoms, "A")
    atoms.set_constraint(FixBeads(mapping))
    first, second = rattled(atoms, mapping, stdev=0.1, n=2, rotation_deg=5, seed=3)
    again = rattled(atoms, mapping, stdev=0.1, n=3, rotation_deg=5, seed=3)
    assert again[0].positions.tobytes() == first.positions.tobytes()
    assert again[1].positions.tobytes() == second.positions.tobytes()
    other = rattled(atoms, mapping, stdev=0.1, rotation_deg=5, seed=4)[0]
    anew = rattled(atoms, mapping, stdev=0.1, rotation_deg=5)[0]
    repeated = rattled(atoms, mapping, stdev=0.1, rotation_deg=5, seed=anew.info["rattle_seed"])[0]
    assert repeated.positions.tobytes() == anew.positions.tobytes()
    for one, two in ((first, second), (first, other), (first, anew)):
        assert np.abs(one.positions - two.positions).max() > 0.01


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"stdev": -0.1}, "stdev: expected a number of Å, got -0.1"),
        ({"stdev": np.nan}, "stdev"),
        ({"stdev": 0}, "nothing would move"),
        ({"stdev": "0.1"}, "stdev"),
        ({"stdev": 0.1, "rotation_deg": np.inf}, "rotation_deg: expected a number of degrees, got inf"),
        ({"stdev": 0.1, "n": 0}, "n: expected a positive integer, got 0"),
        ({"stdev": 0.1, "n": 2.0}, "n: expected a positive integer, got 2.0"),
        ({"stdev": 0.1, "seed": -1}, "seed: expected an integer from 0, or None, got -1"),
        ({"stdev": 0.1, "seed": True}, "seed"),
    ],
)
def test_rattling_that_makes_no_sense(keywords, message):
    atoms = solution()
    with pytest.raises(ConfigurationError, match=message):
        rattled(atoms, Mapping.from_molecules(atoms, "A"), **keywords)


# --- trajectories -----------------------------------------------------------------------------------------------------


def trajectory(n, correlation=0.0, seed=0):
    rng = np.random.default_rng(seed)
    energy, memory, frames = 0.0, np.exp(-1 / correlation) if correlation else 0.0, []
    for k in range(n):
        energy = memory * energy + np.sqrt(1 - memory**2) * rng.normal()
        frame = Atoms("Ar2", positions=[[0, 0, 0], [3, 0.01 * k, 0]], cell=[9] * 3, pbc=True)
        frame.calc = SinglePointCalculator(frame, energy=energy)
        frames.append(frame)
    return frames


def test_frames_of_a_trajectory():
    frames = trajectory(100)
    chosen = from_trajectory(frames, 4)
    assert [frame.info["trajectory_index"] for frame in chosen] == [24, 49, 74, 99]
    for frame in chosen:
        original = frames[frame.info["trajectory_index"]]
        assert frame.positions.tobytes() == original.positions.tobytes()
        assert frame is not original
        assert frame.calc is original.calc
        assert "trajectory_index" not in original.info
    assert [frame.info["trajectory_index"] for frame in from_trajectory(frames[:3], 3)] == [0, 1, 2]
    assert [frame.info["trajectory_index"] for frame in from_trajectory(iter(frames), 1)] == [99]
    calculator = EMT()
    assert all(frame.calc is calculator for frame in from_trajectory(frames, 2, calculator=calculator))
    for frame in frames:
        frame.calc = None
    assert len(from_trajectory(frames, 100)) == 100


def test_frames_that_resemble_each_other():
    frames = trajectory(1000, correlation=20.0)
    from_trajectory(frames, 20)
    with pytest.warns(RuntimeWarning, match="hold about .* independent ones"):
        from_trajectory(frames, 200)
    for frame in frames:
        frame.calc = None
    for frame, volume in zip(frames, np.linspace(700, 800, 1000), strict=True):
        frame.set_cell([volume ** (1 / 3)] * 3)
    with pytest.warns(RuntimeWarning, match="independent"):
        from_trajectory(frames, 200)


def test_trajectories_that_make_no_sense():
    frames = trajectory(5)
    with pytest.raises(ConfigurationError, match="frames: expected at least n = 6, got 5"):
        from_trajectory(frames, 6)
    with pytest.raises(ConfigurationError, match="n: expected a positive integer, got 0"):
        from_trajectory(frames, 0)
    with pytest.raises(ConfigurationError, match="expected at least n = 1, got 0"):
        from_trajectory([], 1)
    frames[2].positions[1, 0] = np.inf
    with pytest.raises(MappingError, match="for atom 1"):
        from_trajectory(frames, 2)
    frames[2] = Atoms("ArNe")
    with pytest.raises(ConfigurationError, match="frame 2 has other atoms than frame 0"):
        from_trajectory(frames, 2)
