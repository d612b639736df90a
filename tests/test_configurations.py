"""Proposed configurations: rigid molecules, affine centres, volumes under pressure against exact ones."""

import warnings

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, graphene, molecule
from ase.calculators.calculator import CalculationFailed, Calculator, PropertyNotImplementedError, all_changes
from ase.calculators.emt import EMT
from ase.calculators.fd import calculate_numerical_stress
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from ase_nepcg import FixBeads, Mapping
from ase_nepcg.configurations import ConfigurationError, at_pressures, from_trajectory, rattled, strained
from ase_nepcg.mapping import MappingError
from ase_nepcg.meanforce.statistics import block_errors

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


# --- pressure ---------------------------------------------------------------------------------------------------------


class Quartic(Calculator):
    """Atoms bound to the places of a lattice that scales with the cell, so that the volume's distribution is known.

    ``U = B V0 (x - 1)^2 / 2 + k x^-g sum_{i<j} |u_i - u_j|^4 / 4`` with ``x = V / V0`` and displacements u. Integrated
    over N atoms, ``p(V) ~ V x^(3 (N - 1) g / 4) exp(-(B V0 (x - 1)^2 / 2 + P V) / kT)``.
    """

    implemented_properties = ("energy", "forces", "stress")
    bulk_modulus, k, g = 20 * units.GPa, 0.2, 4.0

    def __init__(self, atoms):
        super().__init__()
        self.places, self.volume = atoms.get_scaled_positions(), atoms.get_volume()
        self.i, self.j = np.triu_indices(len(atoms), 1)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        u = self.atoms.positions - self.places @ self.atoms.cell.array
        volume = self.atoms.get_volume()
        x = volume / self.volume
        d = u[self.i] - u[self.j]
        square = (d**2).sum(axis=1)
        quartic = 0.25 * self.k * x**-self.g * (square**2).sum()
        pull = self.k * x**-self.g * square[:, None] * d
        forces = np.zeros_like(u)
        np.add.at(forces, self.i, -pull)
        np.add.at(forces, self.j, pull)
        stress = (self.bulk_modulus * volume * (x - 1) - self.g * quartic) * np.eye(3) + d.T @ pull
        self.results = {
            "energy": 0.5 * self.bulk_modulus * self.volume * (x - 1) ** 2 + quartic,
            "forces": forces,
            "stress": stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]] / volume,
        }

    def exact_volume(self, pressure_GPa, temperature_K):
        x = np.linspace(0.4, 1.6, 20001)
        energy = 0.5 * self.bulk_modulus * self.volume * (x - 1) ** 2 + pressure_GPa * units.GPa * self.volume * x
        log = (1 + 0.75 * (len(self.places) - 1) * self.g) * np.log(x) - energy / (units.kB * temperature_K)
        weight = np.exp(log - log.max())
        return self.volume * (weight * x).sum() / weight.sum()


def quartic_solid(n=16):
    places = np.random.default_rng(1).random((n, 3))
    atoms = Atoms(f"Ar{n}", cell=np.eye(3) * (17.0 * n) ** (1 / 3), pbc=True, scaled_positions=places)
    atoms.calc = Quartic(atoms)
    return atoms


QUICK = {"temperature_K": 300, "timestep_fs": 4, "tau_fs": 100, "tau_p_fs": 150, "progress": False}


def mean_and_error(values):
    values = np.asarray(values)[:, None]
    return values.mean(), block_errors(values, [np.array([0])]).error[0]


def test_the_stress_of_the_test_is_right():
    atoms = quartic_solid(4)
    atoms.rattle(0.3, seed=1)
    numerical = calculate_numerical_stress(atoms, eps=1e-5, force_consistent=False)
    np.testing.assert_allclose(atoms.get_stress(), numerical, atol=1e-8)


def test_volumes_at_pressures():
    atoms = quartic_solid()
    before = state(atoms)
    frames = at_pressures(atoms, (0.0, 5.0), time_ps=5, equilibration_ps=1, frames=1000, seed=2, **QUICK)
    assert state(atoms) == before
    assert len(frames) == 2000
    for pressure, part in ((0.0, frames[:1000]), (5.0, frames[1000:])):
        assert {frame.info["pressure_GPa"] for frame in part} == {pressure}
        exact = atoms.calc.exact_volume(pressure, 300)
        mean, error = mean_and_error([frame.get_volume() for frame in part])
        assert error < 0.005 * exact
        assert abs(mean - exact) < 4 * error
    # two pressures differ by far more than the errors
    assert atoms.calc.exact_volume(5, 300) < 0.85 * atoms.calc.exact_volume(0, 300)


def test_temperature_of_few_atoms():
    frames = at_pressures(quartic_solid(4), 0, time_ps=6, equilibration_ps=1, frames=1250, seed=1, **QUICK)
    kinetic = np.mean([2 * frame.get_kinetic_energy() / (9 * units.kB) for frame in frames])
    # standard error 15 K; a thermostat for 3 N degrees of freedom would give 400 K
    assert abs(kinetic - 300) < 50
    assert max(np.abs(frame.get_momenta().sum(axis=0)).max() for frame in frames) < 1e-10


def test_gold_under_pressure():
    atoms = bulk("Au", cubic=True)
    atoms.calc = EMT()
    keywords = {"timestep_fs": 5, "tau_p_fs": 250, "tau_fs": 100, "progress": False}
    frames = at_pressures(
        atoms, [20], temperature_K=300, time_ps=1.1, equilibration_ps=0.8, frames=30, seed=1, **keywords
    )
    ratios = np.linspace(0.9, 1.0, 11)
    cold = strained(atoms, Mapping.from_atoms(atoms), isotropic=ratios ** (1 / 3) - 1)
    stress = [frame.get_stress()[:3].mean() / units.GPa for frame in cold]
    expected = np.interp(-20, stress, ratios)
    # four atoms at 300 K: the volume fluctuates by 2 %, several times in the 0.3 ps, and is 1 % larger than at 0 K
    found = np.mean([frame.get_volume() for frame in frames]) / atoms.get_volume()
    assert abs(found - expected) < 0.025
    assert expected < 0.93
    for frame in frames:
        np.testing.assert_allclose(frame.cell.angles(), 90, atol=1e-9)


def test_frames_and_seeds_of_pressure_runs():
    atoms = quartic_solid(4)
    keywords = QUICK | {"tau_p_fs": 60, "time_ps": 0.4, "equilibration_ps": 0.2}
    frames = at_pressures(atoms, [1, 2], frames=2, seed=5, **keywords)
    assert [(f.info["pressure_GPa"], f.info["npt_time_ps"]) for f in frames] == [(1, 0.3), (1, 0.4), (2, 0.3), (2, 0.4)]
    for frame in frames:
        assert frame.calc is atoms.calc
        assert (frame.info["temperature_K"], frame.info["npt_seed"]) == (300, 5)
    again = at_pressures(atoms, [1], seed=5, **keywords)
    assert len(again) == 1
    assert again[0].positions.tobytes() == frames[1].positions.tobytes()
    assert again[0].cell.array.tobytes() == frames[1].cell.array.tobytes()
    other = at_pressures(atoms, 1, seed=6, **keywords)[0]
    assert other.get_volume() != again[0].get_volume()
    # runs of one call do not share their random numbers
    one, two = at_pressures(atoms, [1, 1], seed=5, **keywords)
    assert one.get_volume() != two.get_volume()


def test_pressure_needs_free_atoms():
    atoms = bulk("Au", cubic=True)
    atoms.calc = EMT()
    atoms.set_constraint([FixAtoms([0]), FixBeads([[1, 2]])])
    with pytest.raises(ConfigurationError, match=r"held beads \(FixBeads\): a barostat would move them"):
        at_pressures(atoms, [0], time_ps=1, **QUICK)
    atoms.set_constraint(FixAtoms([0]))
    with pytest.raises(ConfigurationError, match=r"constraints \(FixAtoms\)"):
        at_pressures(atoms, [0], time_ps=1, **QUICK)


def test_pressure_needs_a_periodic_cell_and_a_stress():
    layer = graphene(vacuum=5.0)
    layer.calc = EMT()
    with pytest.raises(ConfigurationError, match="periodic in all directions, got pbc = True, True, False"):
        at_pressures(layer, [0], time_ps=1, **QUICK)
    with pytest.raises(ConfigurationError, match="a cell of rank 0"):
        at_pressures(Atoms("Au2", positions=[[0, 0, 0], [3, 0, 0]], pbc=True), [0], time_ps=1, **QUICK)
    atoms = bulk("Au", cubic=True)
    with pytest.raises(ConfigurationError, match="no calculator"):
        at_pressures(atoms, [0], time_ps=1, **QUICK)
    with pytest.raises(ConfigurationError, match="at least two"):
        at_pressures(atoms[:1], [0], time_ps=1, **QUICK)

    class Stressless(EMT):
        implemented_properties = ("energy", "free_energy", "forces")

    atoms.calc = Stressless()
    with pytest.raises(PropertyNotImplementedError, match="needs forces and stress, but Stressless gives none"):
        at_pressures(atoms, [0], time_ps=1, **QUICK)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"pressures_GPa": []}, "pressures_GPa: expected at least one pressure"),
        ({"pressures_GPa": [0, np.nan]}, "pressures_GPa: expected finite numbers, got nan"),
        ({"pressures_GPa": [[0]]}, "pressures_GPa: expected a sequence of numbers"),
        ({"temperature_K": 0}, "temperature_K: expected a positive number of K, got 0"),
        ({"temperature_K": np.inf}, "temperature_K"),
        ({"time_ps": -1}, "time_ps"),
        ({"timestep_fs": 0}, "timestep_fs"),
        ({"tau_fs": -1}, "tau_fs"),
        ({"tau_p_fs": 0}, "tau_p_fs"),
        ({"frames": 0}, "frames: expected a positive integer"),
        ({"equilibration_ps": 2}, "leaves 0 steps for frames=1"),
        ({"frames": 200}, "leaves 125 steps for frames=200"),
        ({"seed": 1.5}, "seed"),
    ],
)
def test_pressure_runs_that_make_no_sense(keywords, message):
    with pytest.raises(ConfigurationError, match=message):
        at_pressures(quartic_solid(4), **{"pressures_GPa": [0], "time_ps": 1} | QUICK | keywords)


class Failing(Quartic):
    """Goes wrong after some evaluations."""

    def __init__(self, atoms, failure, after=20):
        super().__init__(atoms)
        self.failure, self.left = failure, after

    def calculate(self, *args, **keywords):
        super().calculate(*args, **keywords)
        self.left -= 1
        if self.left > 0:
            return
        if self.failure == "raises":
            raise RuntimeError("no convergence")
        self.results[self.failure] = np.full_like(self.results[self.failure], np.nan)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("forces", "NPT run at 3 GPa: step 19 of 250: positions, cell or forces are not finite"),
        ("stress", "NPT run at 3 GPa: step 20 of 250"),
        ("raises", "NPT run at 3 GPa: step 19 of 250 cannot be completed: RuntimeError: no convergence"),
    ],
)
def test_failures_name_the_pressure(failure, message):
    atoms = quartic_solid(4)
    atoms.calc = Failing(atoms, failure)
    with pytest.raises(CalculationFailed, match=message):
        at_pressures(atoms, [3], time_ps=1, seed=1, **QUICK)
    atoms.calc = Failing(atoms, "forces", after=1)
    with pytest.raises(CalculationFailed, match="of the given atoms are not finite"):
        at_pressures(atoms, [3], time_ps=1, seed=1, **QUICK)


def test_runaway_volumes_are_refused():
    atoms = quartic_solid(4)
    with pytest.raises(CalculationFailed, match=r"NPT run at -40 GPa: step .*: the volume is [2-9]\.\d\d times"):
        at_pressures(atoms, [-40], time_ps=1, seed=1, **QUICK)
    with pytest.raises(CalculationFailed, match=r"NPT run at 200 GPa: step .*: the volume is 0\.\d\d times"):
        at_pressures(atoms, [200], time_ps=1, seed=1, **QUICK)


def test_short_runs_are_said_to_be_short():
    atoms = quartic_solid(4)
    slow = QUICK | {"tau_p_fs": 1000}
    with pytest.warns(RuntimeWarning, match="equilibration_ps=0.1 is less than 3 times tau_p_fs=1000"):
        at_pressures(atoms, [0], time_ps=0.2, seed=1, **slow)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        at_pressures(atoms, [3], time_ps=0.6, equilibration_ps=0, seed=1, **slow | {"tau_p_fs": 5000})
    assert any("3 GPa: the volume is still changing" in str(warning.message) for warning in found)


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
