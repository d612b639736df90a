"""Frames from all-atom trajectories and from GPUMD's dump_cg."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.units import kB

from ase_nepcg.dataset import DatasetError, FrameCalculator, read_dataset, write_dataset
from ase_nepcg.dataset.sources import force_matching_frames, read_dump_cg, replace_temperature
from ase_nepcg.labels import get_labels
from ase_nepcg.mapping import Mapping, MappingError

CELL = np.array([[9.5, 0.0, 0.0], [0.7, 10.0, 0.0], [-0.3, 0.4, 10.5]])


def shifts():
    return [np.array([i, j, k]) @ CELL for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)]


def pair_forces(positions):
    """Forces and virial of springs between all pairs closer than 4 Å (nearest images), one pair after the other.

    Also every pair with its separation (from j to i) and the force on i.
    """
    forces, virial, pairs = np.zeros_like(positions), np.zeros((3, 3)), []
    for i in range(len(positions)):
        for j in range(i):
            separation = min((positions[i] - positions[j] + s for s in shifts()), key=np.linalg.norm)
            distance = np.linalg.norm(separation)
            if distance < 4:
                force = (4 - distance) ** 2 * separation / distance
                forces[i] += force
                forces[j] -= force
                virial += np.outer(separation, force)
                pairs.append((i, j, separation, force))
    return forces, virial, pairs


def water(seed=0, wrapped=True):
    """Eight molecules in a skew cell, cut by its boundaries, with forces and stress of pair springs."""
    rng = np.random.default_rng(seed)
    atoms = Atoms(cell=CELL, pbc=True)
    for place in np.argwhere(np.ones((2, 2, 2))):
        one = molecule("H2O")
        one.euler_rotate(*rng.uniform(0, 180, 3))
        one.positions += (place / 2 + 0.03) @ CELL + rng.uniform(-0.2, 0.2, 3)
        atoms += one
    if wrapped:
        atoms.wrap()
    atoms.set_momenta(rng.normal(size=(24, 3)))
    attach(atoms)
    return atoms


def attach(atoms, stress=True):
    forces, virial, _ = pair_forces(atoms.positions)
    results = {"energy": -3.0, "forces": forces}
    if stress:
        full = -virial / atoms.get_volume()
        results["stress"] = full[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    atoms.calc = SinglePointCalculator(atoms, **results)


def centres(whole):
    """Centres of mass of the eight unwrapped molecules, and for each atom the way from its centre."""
    masses = molecule("H2O").get_masses()
    found = np.array([masses @ whole[3 * k : 3 * k + 3] / masses.sum() for k in range(8)])
    return found, whole - np.repeat(found, 3, axis=0)


def test_molecules_as_beads_against_pairs_of_molecules():
    """Bead forces are sums, and W_mol is the sum over pairs of different molecules of R_IJ f_ij, symmetrised."""
    frames = [water(seed) for seed in range(3)]
    mapping = Mapping.from_molecules(frames[0], species={"H2O": "WAT"})
    found = force_matching_frames(iter(frames), mapping)
    assert len(found) == 3
    for seed, (atoms, beads) in enumerate(zip(frames, found, strict=True)):
        middle, arms = centres(water(seed, wrapped=False).positions)
        difference = (beads.positions - middle) @ np.linalg.inv(CELL)
        np.testing.assert_allclose(difference, difference.round(), atol=1e-10)
        forces, _, pairs = pair_forces(atoms.positions)
        expected = [forces[3 * k : 3 * k + 3].sum(axis=0) for k in range(8)]
        np.testing.assert_allclose(beads.get_forces(), expected, atol=1e-12)
        virial = np.zeros((3, 3))
        for i, j, separation, force in pairs:
            if i // 3 != j // 3:
                virial += np.outer(separation - arms[i] + arms[j], force)
        assert np.abs(virial - virial.T).max() > 1e-3  # symmetrising means something
        np.testing.assert_allclose(beads.info["virial"], 0.5 * (virial + virial.T), atol=1e-9)
        np.testing.assert_allclose(beads.get_stress(voigt=False) * -beads.get_volume(), beads.info["virial"])
        assert get_labels(beads).tolist() == ["WAT"] * 8
        np.testing.assert_allclose(beads.get_masses(), 18.015, atol=1e-3)
        np.testing.assert_allclose(beads.get_momenta().sum(axis=0), atoms.get_momenta().sum(axis=0))
        assert beads.arrays["atoms_per_bead"].tolist() == [3] * 8
        assert {k: v for k, v in beads.info.items() if k not in ("virial", "bead_labels")} == {
            "energy_weight": 0.0,
            "n_atoms": 24,
            "source": "force_matching",
        }
        with pytest.raises(PropertyNotImplementedError, match="not the potential of mean force"):
            beads.get_potential_energy()
        assert atoms.get_potential_energy() == -3  # untouched


def test_frames_can_be_written(tmp_path):
    frames = force_matching_frames(water(), Mapping.from_molecules(water(), species="Xe"), temperature_K=310)
    write_dataset(tmp_path / "train.xyz", frames)
    (found,) = read_dataset(tmp_path / "train.xyz")
    assert found.info["temperature"] == 310.0
    assert found.info["source"] == "force_matching"
    np.testing.assert_array_equal(found.get_forces(), frames[0].get_forces())
    np.testing.assert_array_equal(found.info["virial"], frames[0].info["virial"])


def test_molecules_without_bead_need_the_temperature():
    """Five molecules are beads; three are anchored at their own centres and add kT each."""
    atoms = water()
    mapping = Mapping.from_groups([range(3 * k, 3 * k + 3) for k in range(5)], "WAT", atoms)
    with pytest.raises(DatasetError, match=r"frame 0: temperature_K: expected .* 3 molecules have no site and add kT"):
        force_matching_frames([atoms], mapping)
    (beads,) = force_matching_frames([atoms], mapping, temperature_K=300)
    (everything,) = force_matching_frames([atoms], Mapping.from_molecules(atoms, "WAT"))
    np.testing.assert_allclose(beads.info["virial"], everything.info["virial"] + 3 * kB * 300 * np.eye(3), atol=1e-10)
    np.testing.assert_allclose(beads.get_forces(), everything.get_forces()[:5], atol=1e-12)
    np.testing.assert_allclose(beads.get_stress(voigt=False) * -beads.get_volume(), beads.info["virial"])
    attach(atoms, stress=False)
    assert len(force_matching_frames([atoms], mapping)) == 1  # no virial, no temperature


def test_site_map_and_one_atom_sites():
    """Oxygens as sites, hydrogens integrated out; and the identity mapping, which changes nothing."""
    atoms = water()
    whole = water(wrapped=False).positions
    (oxygen,) = force_matching_frames(atoms, Mapping.from_sites(atoms, range(0, 24, 3), "O"))
    forces, virial, _ = pair_forces(atoms.positions)
    np.testing.assert_allclose(oxygen.get_forces(), forces.reshape(8, 3, 3).sum(axis=1), atol=1e-12)
    for i in range(24):
        virial -= np.outer(whole[i] - whole[3 * (i // 3)], forces[i])
    np.testing.assert_allclose(oxygen.info["virial"], 0.5 * (virial + virial.T), atol=1e-9)
    (same,) = force_matching_frames(atoms, Mapping.from_atoms(atoms))
    np.testing.assert_allclose(same.get_forces(), forces, atol=1e-12)
    np.testing.assert_allclose(same.get_stress(), atoms.get_stress(), atol=1e-12)
    assert same.arrays["atoms_per_bead"].tolist() == [1] * 24


def test_constraints_do_not_touch_the_forces():
    atoms = water()
    mapping = Mapping.from_molecules(atoms, "WAT")
    (free,) = force_matching_frames(atoms, mapping)
    atoms.set_constraint(FixAtoms(range(24)))
    (held,) = force_matching_frames(atoms, mapping)
    assert np.abs(free.get_forces()).max() > 0.1
    np.testing.assert_array_equal(held.get_forces(), free.get_forces())


def test_without_stress_or_cell_there_is_no_virial():
    atoms = water()
    attach(atoms, stress=False)
    mapping = Mapping.from_molecules(atoms, "WAT")
    (beads,) = force_matching_frames(atoms, mapping)
    assert "virial" not in beads.info
    with pytest.raises(PropertyNotImplementedError):
        beads.get_stress()
    cluster = Atoms("Au3", positions=2.6 * np.eye(3))
    cluster.calc = EMT()
    (beads,) = force_matching_frames(cluster, Mapping.from_groups([[0, 1, 2]], "Xe", cluster))
    assert "virial" not in beads.info
    np.testing.assert_allclose(beads.get_forces(), 0, atol=1e-10)


def test_live_calculators_are_asked():
    """Gold, one bead for each cubic cell of four atoms."""
    atoms = bulk("Au", cubic=True) * 2
    atoms.rattle(0.1, seed=1)
    atoms.calc = EMT()
    (beads,) = force_matching_frames(atoms, Mapping.from_atoms_per_bead(atoms, 4, "Xe"))
    np.testing.assert_allclose(beads.get_forces(), atoms.get_forces().reshape(8, 4, 3).sum(axis=1), atol=1e-12)
    volume = atoms.get_volume()
    virial = -volume * atoms.get_stress(voigt=False)
    for k in range(8):
        four = atoms.positions[4 * k : 4 * k + 4]
        virial -= (four - four.mean(axis=0)).T @ atoms.get_forces()[4 * k : 4 * k + 4]
    np.testing.assert_allclose(beads.info["virial"], 0.5 * (virial + virial.T), atol=1e-9)


def test_what_does_not_fit_is_refused():
    atoms = water()
    mapping = Mapping.from_molecules(atoms, "WAT")
    with pytest.raises(DatasetError, match="frame 1: expected atoms with stored forces or a calculator, got neither"):
        force_matching_frames([atoms, atoms.copy()], mapping)
    moved = water()
    moved.positions[0, 0] += 1e-3
    with pytest.raises(DatasetError, match="frame 0: forces: the calculator has none for these positions"):
        force_matching_frames([moved], mapping)
    energy_only = atoms.copy()
    energy_only.calc = SinglePointCalculator(energy_only, energy=1.0)
    with pytest.raises(DatasetError, match="frame 0: forces: the calculator has none"):
        force_matching_frames([energy_only], mapping)
    for name, value in (("forces", np.full((24, 3), np.nan)), ("stress", np.full(6, np.inf))):
        bad = water()
        bad.calc = SinglePointCalculator(bad, **(bad.calc.results | {name: value}))
        with pytest.raises(DatasetError, match=f"frame 1: {name}: entry"):
            force_matching_frames([atoms, bad], mapping)
    with pytest.raises(MappingError, match="frame 1: "):
        force_matching_frames([atoms, atoms[:21]], mapping)
    for temperature in (-1, np.nan, "warm"):
        with pytest.raises(ValueError, match="temperature_K"):
            force_matching_frames([atoms], mapping, temperature_K=temperature)


# ---- dump_cg --------------------------------------------------------------------------------------------------------


def dumped(seed=0, temperature=280.0, n_atoms=9):
    """A frame as ``dump_cg`` prints it (8 decimals), and what went into it."""
    rng = np.random.default_rng(seed)
    positions, forces = rng.uniform(0, 9, (3, 3)), rng.normal(size=(3, 3))
    virial = rng.normal(size=(3, 3))
    virial = virial + virial.T
    written = virial + (n_atoms - 3) * kB * temperature * np.eye(3)
    lattice, nine = (" ".join(f"{x:.8f}" for x in tensor.ravel()) for tensor in (CELL, written))
    text = f'3\n pbc="T T F" Lattice="{lattice}" energy={-123.25:.8f} virial="{nine}"'
    text += " Properties=species:S:1:pos:R:3:forces:R:3\n"
    for name, numbers in zip("FFO", np.hstack([positions, forces]), strict=True):
        text += name + "".join(f" {x:.8f}" for x in numbers) + "\n"
    return text, positions, forces, virial


def test_read_dump_cg(tmp_path):
    (tmp_path / "train.xyz").write_text(dumped(0)[0] + dumped(1)[0])
    masses = {"F": 18.015, "O": 15.999}
    for seed, atoms in enumerate(read_dump_cg(tmp_path / "train.xyz", masses=masses, temperature_K=280)):
        _, positions, forces, virial = dumped(seed)
        np.testing.assert_allclose(atoms.positions, positions, atol=1e-8)
        np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-8)
        np.testing.assert_allclose(atoms.info["virial"], virial + 6 * kB * 280 * np.eye(3), atol=1e-8)
        np.testing.assert_allclose(atoms.get_stress(voigt=False) * -atoms.get_volume(), atoms.info["virial"])
        assert atoms.get_masses().tolist() == [18.015, 18.015, 15.999]
        assert atoms.arrays["bead"].tolist() == ["F", "F", "O"]
        assert atoms.pbc.tolist() == [True, True, False]
        assert atoms.info["mean_energy"] == -123.25
        assert atoms.info["energy_weight"] == 0
        assert atoms.info["temperature"] == 280.0
        with pytest.raises(PropertyNotImplementedError, match="not the potential of mean force"):
            atoms.get_potential_energy()
    write_dataset(tmp_path / "again.xyz", read_dump_cg(tmp_path / "train.xyz", masses=20.0))
    found = read_dump_cg(tmp_path / "again.xyz")
    assert found[1].info["mean_energy"] == -123.25
    assert found[1].get_masses().tolist() == [20.0] * 3
    assert " energy=0 energy_weight=0 " in (tmp_path / "again.xyz").read_text()
    assert not read_dump_cg(tmp_path / "train.xyz")[0].has("masses")


def test_replace_temperature(tmp_path):
    """The virial as if GPUMD had known the temperature."""
    (tmp_path / "train.xyz").write_text(dumped(temperature=280.0)[0])
    (frame,) = read_dump_cg(tmp_path / "train.xyz", masses=18.0)
    before = frame.info["virial"].copy()
    changed = replace_temperature(frame, 280.0, 305.5, n_atoms=9)
    expected = dumped()[3] + 6 * kB * 305.5 * np.eye(3)
    np.testing.assert_allclose(changed.info["virial"], expected, atol=1e-8)
    np.testing.assert_allclose(changed.get_stress(voigt=False) * -changed.get_volume(), expected, atol=1e-8)
    np.testing.assert_array_equal(changed.get_forces(), frame.get_forces())
    assert isinstance(changed.calc, FrameCalculator)
    assert {name: changed.info[name] for name in ("temperature", "n_atoms", "energy_weight", "mean_energy")} == {
        "temperature": 305.5,
        "n_atoms": 9,
        "energy_weight": 0.0,
        "mean_energy": -123.25,
    }
    assert changed.get_masses().tolist() == [18.0] * 3
    np.testing.assert_array_equal(frame.info["virial"], before)
    assert "temperature" not in frame.info
    write_dataset(tmp_path / "repaired.xyz", changed)
    np.testing.assert_array_equal(read_dataset(tmp_path / "repaired.xyz")[0].info["virial"], changed.info["virial"])
    back = replace_temperature(changed, 305.5, 280.0, 9)
    np.testing.assert_allclose(back.info["virial"], before, rtol=1e-14)
    np.testing.assert_array_equal(replace_temperature(frame, 0.0, 300.0, 3).info["virial"], before)  # atoms only


def test_replace_temperature_refuses(tmp_path):
    (tmp_path / "train.xyz").write_text(dumped()[0])
    (frame,) = read_dump_cg(tmp_path / "train.xyz")
    once = replace_temperature(frame, 280.0, 300.0, 9)
    with pytest.raises(DatasetError, match=r"old_K is 280, but the frame notes info\['temperature'\] = 300"):
        replace_temperature(once, 280.0, 300.0, 9)
    with pytest.raises(DatasetError, match=r"n_atoms is 12, but the frame notes info\['n_atoms'\] = 9"):
        replace_temperature(once, 300.0, 310.0, 12)
    with pytest.raises(DatasetError, match="n_atoms: expected at least the 3 sites of the frame, got 2"):
        replace_temperature(frame, 280.0, 300.0, 2)
    with pytest.raises(DatasetError, match=r"n_atoms: expected an integer, got 9\.0"):
        replace_temperature(frame, 280.0, 300.0, 9.0)
    for old, new in ((-1, 300), (280, np.nan), (280, "x"), (280, -5)):
        with pytest.raises(ValueError, match=r"old_K|new_K"):
            replace_temperature(frame, old, new, 9)
    (own,) = force_matching_frames(water(), Mapping.from_molecules(water(), "WAT"))
    with pytest.raises(DatasetError, match="molecular estimator: no temperature is in it"):
        replace_temperature(own, 280.0, 300.0, 24)
    energies = read_dataset(tmp_path / "train.xyz")[0]
    with pytest.raises(DatasetError, match="as read_dump_cg returns"):
        replace_temperature(energies, 280.0, 300.0, 9)
    frame.positions += 1
    with pytest.raises(DatasetError, match="as read_dump_cg returns"):
        replace_temperature(frame, 280.0, 300.0, 9)


def test_read_dump_cg_refuses(tmp_path):
    (tmp_path / "train.xyz").write_text(dumped()[0] + dumped()[0])
    with pytest.raises(DatasetError, match=r"train\.xyz, frame 0: masses: .* missing \['O'\]"):
        read_dump_cg(tmp_path / "train.xyz", masses={"F": 18.0})
    with pytest.raises(DatasetError, match="frame 0: masses: expected positive"):
        read_dump_cg(tmp_path / "train.xyz", masses=-1.0)
    with pytest.raises(ValueError, match="temperature_K"):
        read_dump_cg(tmp_path / "train.xyz", temperature_K=-3)
    with pytest.raises(FileNotFoundError):
        read_dump_cg(tmp_path / "none.xyz")
    text = dumped()[0] + dumped()[0]
    (tmp_path / "train.xyz").write_text(text[:-40])
    with pytest.raises(DatasetError, match=r"train\.xyz, frame 1, line"):
        read_dump_cg(tmp_path / "train.xyz")
