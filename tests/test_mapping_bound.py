"""What a mapping computes: centres, momenta, forces, virials, against loops over atoms and against derivatives."""

import hashlib

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from ase_nepcg.labels import get_labels
from ase_nepcg.mapping import Mapping, MappingError

CELLS = {
    "cubic": np.diag([16.0, 16.0, 16.0]),
    "triclinic": np.array([[16.0, 0.5, 0.0], [5.0, 15.0, 0.5], [-4.0, 3.0, 17.0]]),
    "skewed": np.array([[16.0, 0.0, 0.0], [30.0, 15.0, 0.0], [-20.0, 33.0, 16.0]]),
}
PBC = [(True, True, True), (True, False, True), (False, False, False)]


def solution(rng, cell=CELLS["triclinic"], pbc=(True, True, True)):
    """Ethanol, two waters, methane and neon, whole, with unequal masses and momenta; 9 + 3 + 3 + 5 + 1 atoms."""
    atoms = Atoms(cell=cell, pbc=pbc)
    parts = [molecule(name) for name in ("CH3CH2OH", "H2O", "H2O", "CH4")] + [Atoms("Ne")]
    places = np.array([(0.1, 0.1, 0.1), (0.6, 0.1, 0.2), (0.6, 0.1, 0.2), (0.6, 0.6, 0.6), (0.2, 0.3, 0.7)]) @ cell
    places[2, 2] += 4.0  # a pair of waters
    for part, place in zip(parts, places, strict=True):
        part.euler_rotate(*rng.uniform(0, 360, 3))
        part.positions += place
        atoms += part
    atoms.set_masses(atoms.get_masses() * rng.uniform(0.8, 1.3, len(atoms)))
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)))
    return atoms


OXYGENS, CARBONS = [2, 9, 12], [0, 1, 15]


def mappings(atoms):
    """name -> mapping of the solution."""
    return {
        "molecules": Mapping.from_molecules(atoms, {"C2H6O": "EtOH", "H2O": "WAT", "CH4": "MET", "Ne": "Ne"}),
        "mixed": Mapping.from_molecules(atoms, "M").with_atomistic(range(9)),
        "sites": Mapping.from_sites(atoms, OXYGENS),
        "sizes": Mapping.from_groups([[9, 10], [0, 1, 2], [12], [15, 17]], ["a", "b", "c", "d"], atoms),
        "across": Mapping.from_groups([[9, 10, 11, 12, 13, 14], [15, 16], [20]], "b", atoms),
        "blind": Mapping.from_groups([[9, 10], [0, 1, 2], [12], [15, 17]], ["a", "b", "c", "d"]),
        "atoms": Mapping.from_atoms(atoms),
    }


NAMES = ["molecules", "mixed", "sites", "sizes", "across", "blind", "atoms"]


def anchors_by_hand(atoms, groups):
    """Anchor of each atom of a whole, unwrapped structure: nearest group in bonds within 1.7 Å, else its molecule."""
    n = len(atoms)
    near = [
        [j for j in range(n) if j != i and np.linalg.norm(atoms.positions[i] - atoms.positions[j]) < limit(atoms, i, j)]
        for i in range(n)
    ]
    anchor, molecules = [], []
    for i in range(n):
        seen, front = [i], [i]
        while True:
            found = sorted(k for k, group in enumerate(groups) if set(group) & set(front))
            if found:
                anchor.append(found[0])
                break
            front = [b for a in front for b in near[a] if b not in seen]
            seen += front
            if not front:
                key = frozenset(seen)
                if key not in molecules:
                    molecules.append(key)
                anchor.append(len(groups) + molecules.index(key))
                break
    return anchor


def limit(atoms, i, j):
    return 1.2 if 1 in (atoms.numbers[i], atoms.numbers[j]) else 1.7


def slow(atoms, groups):
    """Centres, masses, momenta and anchors of a whole structure, with loops."""
    masses, momenta = atoms.get_masses(), atoms.get_momenta()
    anchor = anchors_by_hand(atoms, groups)
    sets = [list(group) for group in groups]
    sets += [[i for i in range(len(atoms)) if anchor[i] == k] for k in range(len(groups), max(anchor) + 1)]
    centres, total, bead_momenta = [], [], []
    for members in sets:
        mass = sum(masses[i] for i in members)
        centres.append(sum(masses[i] * atoms.positions[i] for i in members) / mass)
        total.append(mass)
        bead_momenta.append(sum(momenta[i] for i in members))
    return np.array(centres), np.array(total), np.array(bead_momenta), anchor


def cut(atoms, rng):
    """A copy whose atoms are shifted by lattice vectors, each by its own."""
    copy = atoms.copy()
    copy.positions += (rng.integers(-2, 3, (len(atoms), 3)) * atoms.pbc) @ atoms.cell.array
    return copy


def assert_same_images(found, expected, cell):
    fractions = (found - expected) @ np.linalg.inv(cell)
    assert np.allclose(fractions, np.rint(fractions), atol=1e-9)


@pytest.mark.parametrize("pbc", PBC)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", NAMES)
def test_beads_are_those_of_loops_wherever_the_boundary_cuts(rng, name, cell, pbc):
    atoms = solution(rng, CELLS[cell], pbc)
    mapping = mappings(atoms)[name]
    n = len(mapping)
    centres, masses, momenta, anchor = slow(atoms, mapping.groups)
    for image in (atoms, cut(atoms, rng), cut(atoms, rng)):
        bound = mapping.bind(image)
        assert bound.anchor_of.tolist() == anchor
        assert bound.n_implicit == len(centres) - n
        whole = bound.whole(image.positions, image.cell.array, image.pbc)
        assert_same_images(whole, image.positions, atoms.cell.array)
        assert_same_images(bound.centres(whole), centres, atoms.cell.array)
        assert np.allclose(bound.anchor_masses, masses)
        beads = mapping.beads(image)
        assert_same_images(beads.positions, centres[:n], atoms.cell.array)
        assert np.array_equal(beads.positions, bound.centres(whole)[:n])
        assert np.allclose(beads.get_masses(), masses[:n])
        assert np.allclose(beads.get_momenta(), momenta[:n])
        # arms do not depend on the images
        arms = whole - bound.centres(whole)[bound.anchor_of]
        assert np.allclose(arms, atoms.positions - centres[anchor], atol=1e-9)
    assert np.allclose(mapping.beads(atoms).positions, centres[:n], atol=1e-10)


def test_beads_are_complete_atoms(rng):
    atoms = solution(rng, pbc=(True, False, True))
    atoms.info["note"] = "keep"
    atoms.set_constraint(FixAtoms([0]))
    atoms.calc = SinglePointCalculator(atoms, energy=1.0)
    atoms.set_celldisp([1.0, 2.0, 3.0])
    before = atoms.copy()
    beads = mappings(atoms)["molecules"].beads(atoms)
    assert get_labels(beads).tolist() == ["EtOH", "WAT", "WAT", "MET", "Ne"]
    assert beads.numbers.tolist() == [0, 0, 0, 0, 10]
    assert np.array_equal(beads.cell.array, atoms.cell.array)
    assert beads.pbc.tolist() == [True, False, True]
    assert np.array_equal(beads.get_celldisp(), atoms.get_celldisp())
    assert beads.calc is None
    assert beads.constraints == []
    assert set(beads.info) == {"bead_labels"}
    assert atoms.info == before.info == {"note": "keep"}
    assert atoms == before
    del atoms.arrays["momenta"]
    assert not mappings(atoms)["molecules"].beads(atoms).has("momenta")


def test_momenta_of_atoms_in_no_group_are_left_out(rng):
    atoms = solution(rng)
    beads = Mapping.from_sites(atoms, OXYGENS).beads(atoms)
    assert np.array_equal(beads.get_momenta(), atoms.get_momenta()[OXYGENS])
    assert np.array_equal(beads.get_masses(), atoms.get_masses()[OXYGENS])
    assert np.allclose(beads.get_velocities(), atoms.get_velocities()[OXYGENS])


def test_one_atom_sites_keep_their_positions_to_the_last_digit(rng):
    atoms = cut(solution(rng), rng)
    assert np.array_equal(Mapping.from_atoms(atoms).beads(atoms).positions, atoms.positions)
    assert np.array_equal(Mapping.from_sites(atoms, CARBONS).beads(atoms).positions, atoms.positions[CARBONS])


@pytest.mark.parametrize("name", NAMES)
def test_forces_and_virials_are_those_of_loops(rng, name):
    atoms = solution(rng)
    mapping = mappings(atoms)[name]
    n, kT = len(mapping), 300 * units.kB
    centres, _, _, anchor = slow(atoms, mapping.groups)
    forces, virial = rng.normal(size=(len(atoms), 3)), rng.normal(size=(3, 3))
    virial += virial.T
    expected_forces = np.zeros((n, 3))
    expected = virial.copy()
    for i, a in enumerate(anchor):
        if a < n:
            expected_forces[a] += forces[i]
        expected -= np.outer(atoms.positions[i] - centres[a], forces[i])
    expected = (expected + expected.T) / 2
    n_implicit = len(centres) - n
    image = cut(atoms, rng)
    assert np.allclose(mapping.forces(image, forces), expected_forces)
    bound = mapping.bind(image)
    whole = bound.whole(image.positions, image.cell.array, image.pbc)
    assert np.allclose(bound.forces(forces), expected_forces)
    assert np.allclose(bound.molecular_virial(whole, forces, virial), expected)
    found = mapping.virial(image, forces, virial, temperature_K=300)
    assert np.allclose(found, expected + n_implicit * kT * np.eye(3))
    if n_implicit == 0:
        assert np.array_equal(mapping.virial(image, forces, virial), mapping.virial(image, forces, virial, 300))
    assert np.allclose(mapping.virial_atomic(image, virial, 300), virial + (len(atoms) - n) * kT * np.eye(3))
    assert bound.n_dof == 3 * (len(atoms) - n)


def test_virial_of_a_cluster_is_that_of_its_centres(rng):
    """W_AA = sum r_i f_i without boundaries, hence W_mol = sum R_I F_I over sites and implicit molecules."""
    atoms = solution(rng, pbc=False)
    forces = rng.normal(size=(len(atoms), 3))
    virial = atoms.positions.T @ forces
    for mapping in mappings(atoms).values():
        bound = mapping.bind(atoms)
        centres = bound.centres(bound.whole(atoms.positions, atoms.cell.array, atoms.pbc))
        total = np.zeros_like(centres)
        np.add.at(total, bound.anchor_of, forces)
        expected = centres.T @ total
        found = bound.molecular_virial(atoms.positions, forces, virial)
        assert np.allclose(found, (expected + expected.T) / 2)


def strained(atoms, bound, strain):
    """Atoms whose centres follow the strain while everything anchored there moves along without turning."""
    whole = bound.whole(atoms.positions, atoms.cell.array, atoms.pbc)
    centres = bound.centres(whole)
    copy = atoms.copy()
    copy.calc = atoms.calc
    copy.set_cell(atoms.cell.array @ (np.eye(3) + strain).T)
    copy.positions = whole + (centres @ strain.T)[bound.anchor_of]
    return copy


@pytest.mark.parametrize("kind", ["groups", "mixed sizes", "sites", "implicit"])
def test_molecular_virial_is_minus_the_derivative_by_the_strain_of_centres(rng, kind):
    atoms = bulk("Au", cubic=True) * 2
    atoms.set_cell(atoms.cell.array @ np.array([[1, 0.1, 0], [0, 1, -0.05], [0.02, 0, 1]]), scale_atoms=True)
    atoms.rattle(0.1, seed=1)
    atoms.wrap()
    atoms.calc = EMT()
    if kind == "groups":
        mapping = Mapping.from_atoms_per_bead(atoms, 4, "He")
    elif kind == "mixed sizes":
        mapping = Mapping.from_atoms_per_bead(atoms, 8, "He").with_atomistic(range(16, 24))
    elif kind == "sites":
        mapping = Mapping.from_sites(atoms, range(0, 32, 4))
    else:  # pretend that neighbours are molecules, every other one without a site
        mapping = Mapping.from_groups(
            np.arange(32).reshape(-1, 2)[::2], "He", atoms, bonds=np.arange(32).reshape(-1, 2)
        )
    bound = mapping.bind(atoms)
    assert bound.n_implicit == (8 if kind == "implicit" else 0)
    virial = -atoms.get_volume() * atoms.get_stress(voigt=False)
    whole = bound.whole(atoms.positions, atoms.cell.array, atoms.pbc)
    found = bound.molecular_virial(whole, atoms.get_forces(), virial)
    expected = np.zeros((3, 3))
    for a in range(3):
        for b in range(3):
            strain = np.zeros((3, 3))
            strain[a, b] += 5e-5
            strain[b, a] += 5e-5
            up = strained(atoms, bound, strain).get_potential_energy()
            down = strained(atoms, bound, -strain).get_potential_energy()
            expected[a, b] = -(up - down) / 2e-4
    assert np.allclose(found, expected, atol=2e-6 * abs(expected).max())
    assert abs(found - virial).max() > 0.1  # the arms matter


def test_site_forces_are_minus_the_derivative_by_the_centre(rng):
    atoms = solution(rng)
    atoms.calc = LennardJones(sigma=2.0, epsilon=0.01, rc=6.0)
    mapping = Mapping.from_molecules(atoms, "M")
    forces = mapping.forces(atoms, atoms.get_forces())
    for site, group in enumerate(mapping.groups):
        for axis in range(3):
            energies = []
            for step in (1e-4, -1e-4):
                moved = atoms.copy()
                moved.calc = atoms.calc
                moved.positions[group, axis] += step
                energies.append(moved.get_potential_energy())
            assert forces[site, axis] == pytest.approx(-(energies[0] - energies[1]) / 2e-4, abs=1e-6)


def test_inner_forces_of_molecules_do_no_work_on_centres(rng):
    """Central forces inside the molecules add nothing to bead forces and molecular virial."""
    atoms = solution(rng)
    mapping = Mapping.from_molecules(atoms, "M")
    forces, virial = np.zeros((len(atoms), 3)), np.zeros((3, 3))
    for group in mapping.groups:
        for i in group:
            for j in group[group > i]:
                arm = atoms.positions[j] - atoms.positions[i]
                force = rng.normal() * arm
                forces[j] += force
                forces[i] -= force
                virial += np.outer(arm, force)
    assert np.allclose(mapping.forces(atoms, forces), 0, atol=1e-12)
    assert np.allclose(mapping.virial(atoms, forces, virial), 0, atol=1e-11)


def test_virial_needs_a_temperature_only_for_implicit_molecules(rng):
    atoms = solution(rng)
    forces, virial = np.zeros((len(atoms), 3)), np.zeros((3, 3))
    sites = Mapping.from_sites(atoms, OXYGENS)
    with pytest.raises(MappingError, match="temperature_K: needed, since 2 molecules"):
        sites.virial(atoms, forces, virial)
    assert np.allclose(sites.virial(atoms, forces, virial, 100.0), 2 * 100 * units.kB * np.eye(3))
    for wrong in (-1, np.nan, np.inf, "300", None, True, [300.0]):
        with pytest.raises(MappingError, match="temperature_K"):
            sites.virial(atoms, forces, virial, wrong)
        with pytest.raises(MappingError, match="temperature_K"):
            sites.virial_atomic(atoms, virial, wrong)


def test_forces_and_virials_of_the_wrong_shape(rng):
    atoms = solution(rng)
    mapping = Mapping.from_molecules(atoms, "M")
    n = len(atoms)
    forces = np.zeros((n, 3))
    with pytest.raises(MappingError, match=rf"forces: expected shape \({n}, 3\), got \(3, 3\)"):
        mapping.forces(atoms, np.zeros((3, 3)))
    with pytest.raises(MappingError, match="forces: entry"):
        mapping.forces(atoms, forces + np.nan)
    with pytest.raises(MappingError, match=r"virial: expected shape \(3, 3\) in eV, got \(6,\); it is -atoms"):
        mapping.virial(atoms, forces, np.zeros(6))
    with pytest.raises(MappingError, match="virial: entry"):
        mapping.virial_atomic(atoms, np.full((3, 3), np.inf), 300)


def test_bound_to_other_atoms(rng):
    atoms = solution(rng)
    bound = Mapping.from_molecules(atoms, "M").bind(atoms)
    with pytest.raises(MappingError, match="call bind again"):
        bound.beads(atoms[:-1])
    atoms.positions[3] = np.nan
    with pytest.raises(MappingError, match="atom 3"):
        bound.beads(atoms)


def test_arrays_of_a_bound_mapping_are_read_only(rng):
    atoms = solution(rng)
    bound = Mapping.from_sites(atoms, OXYGENS).bind(atoms)
    assert bound.n_atoms == 21
    assert bound.n_sites == 3
    assert bound.labels.tolist() == ["O", "O", "O"]
    assert np.flatnonzero(bound.site_of >= 0).tolist() == OXYGENS
    for array in (
        bound.masses,
        bound.site_masses,
        bound.site_of,
        bound.anchor_of,
        bound.is_site,
        bound.labels,
        bound.numbers,
        bound.tree.parent,
        bound.groups[0],
    ):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[0]
    masses = atoms.get_masses()
    atoms.set_masses(masses * 2)
    assert np.array_equal(bound.masses, masses)


def test_fingerprint(rng):
    atoms = solution(rng)
    mapping = Mapping.from_molecules(atoms, "M")
    print_of = mapping.bind(atoms).fingerprint()
    assert len(print_of) == 2 * hashlib.sha256().digest_size
    assert mapping.bind(cut(atoms, rng)).fingerprint() == print_of
    heavier = atoms.copy()
    heavier.set_masses(atoms.get_masses() * (1 + 1e-12))
    others = [
        mapping.bind(heavier),
        mapping.with_species("N").bind(atoms),
        mapping.with_atomistic([20]).bind(atoms),
        mapping.with_atomistic(range(9)).bind(atoms),
        Mapping.from_sites(atoms, OXYGENS, "M").bind(atoms),
        Mapping.from_sites(atoms, OXYGENS[::-1], "M").bind(atoms),
    ]
    prints = [other.fingerprint() for other in others]
    assert len(set(prints)) == len(others)
    assert print_of not in prints
