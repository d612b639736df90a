"""Data sets: what is written comes back bit for bit, means the same to GPUMD, and is refused where it could not."""

import copy
import os
import pickle
import re
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ase_nepcg
from ase_nepcg.dataset import DatasetError, FrameCalculator, read_dataset, split, summary, validate, write_dataset
from ase_nepcg.labels import get_labels, set_labels

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CELL = np.array([[10.0, 0.5, 0.0], [0.0, 11.0, 0.25], [1.0, 0.0, 12.0]])


def symmetric(rng):
    tensor = rng.normal(size=(3, 3)) * 7
    return tensor + tensor.T


def mean_force_frame(labels=("F", "Xe", "F", "F"), seed=0):
    """A frame with everything that constrained sampling can put into one."""
    rng = np.random.default_rng(seed)
    n = len(labels)
    atoms = Atoms(positions=rng.uniform(-5, 15, (n, 3)), cell=CELL, pbc=True)
    masses = {label: 18.01528 + 101.3 * k for k, label in enumerate(dict.fromkeys(labels))}
    set_labels(atoms, labels, masses)
    for name in ("forces_dT", "forces_dT2"):
        atoms.set_array(name, rng.normal(size=(n, 3)) * 1e-6)
        atoms.set_array(f"{name}_errors", rng.uniform(1e-9, 1e-7, (n, 3)))
    atoms.set_array("force_errors", rng.uniform(1e-5, 1e-2, (n, 3)))
    atoms.set_array("n_effective", rng.uniform(1, 1e5, (n, 3)))
    atoms.set_array("atoms_per_bead", rng.integers(1, 60, n))
    for name in ("virial", "virial_molecular", "virial_atomic", "virial_dT"):
        atoms.info[name] = symmetric(rng)
        atoms.info[f"{name}_error"] = np.abs(symmetric(rng)) * 1e-3
    atoms.info |= {
        "energy_weight": 0.0,
        "temperature": 300.0,
        "ensemble": "nvt",
        "timestep_fs": 0.5,
        "time_ps": 20.0,
        "seed": 1234567890123456789,
        "calculator": "nep:water_OH.txt",
        "mean_energy": -1234.5678901234567,
        "mean_energy_error": 1e-3 / 3,
        "n_atoms": 192,
        "drift": 0.1 + 0.2,
        "converged": True,
    }
    stress = -atoms.info["virial"][[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]] / atoms.get_volume()
    atoms.calc = FrameCalculator(atoms, forces=rng.normal(size=(n, 3)), stress=stress)
    return atoms


def ordinary_frame(seed=0):
    """Gold atoms with an energy, as from an electronic-structure calculation."""
    rng = np.random.default_rng(seed)
    atoms = Atoms("Au4", positions=rng.uniform(0, 10, (4, 3)), cell=CELL, pbc=True)
    stress = rng.normal(size=6)
    atoms.calc = SinglePointCalculator(atoms, energy=-12.5, forces=rng.normal(size=(4, 3)), stress=stress)
    return atoms


def check_same(found, expected):
    """The same bits everywhere, and the same types."""
    assert get_labels(found).tolist() == get_labels(expected).tolist()
    assert found.arrays.keys() - {"bead", "tags"} == expected.arrays.keys() - {"bead", "tags"}
    for name in found.arrays.keys() - {"bead", "tags"}:
        assert found.arrays[name].dtype == expected.arrays[name].dtype, name
        np.testing.assert_array_equal(found.arrays[name], expected.arrays[name], strict=True)
    info = {k: v for k, v in expected.info.items() if k != "bead_labels"}
    assert found.info.keys() - {"bead_labels"} == info.keys()
    for name, value in info.items():
        assert type(found.info[name]) is type(value), name
        np.testing.assert_array_equal(found.info[name], value, strict=isinstance(value, np.ndarray))
    np.testing.assert_array_equal(found.cell.array, expected.cell.array)
    np.testing.assert_array_equal(found.pbc, expected.pbc)
    assert type(found.calc) is type(expected.calc)
    np.testing.assert_array_equal(found.get_forces(), expected.get_forces())
    np.testing.assert_allclose(found.get_stress(), expected.get_stress(), rtol=1e-14)


# ---- GPUMD's parser, written anew from what it does (main_nep and model reader, August 2026) ------------------------


class GPUMDError(Exception):
    pass


def stod(text):
    """C++ ``std::stod``: the longest number at the beginning; out of range for infinities and subnormal numbers."""
    match = re.match(r"\s*[+-]?(inf|nan|(\d+\.?\d*|\.\d+)(e[+-]?\d+)?)", text, re.IGNORECASE)
    if not match:
        raise GPUMDError(f"no number: {text!r}")
    value = float(match.group())
    if not np.isfinite(value) or 0 < abs(value) < 2.2250738585072014e-308:
        raise GPUMDError(f"out of range: {text!r}")
    return value


def gpumd_tokens(line):
    """Blanks around '=' and inside of quotes, next to them, are removed; then blanks separate; then lower case."""
    line = re.sub(r"[ \t]*=[ \t]*", "=", line)
    if line.startswith('"'):
        raise GPUMDError("begins with a quote")
    line = re.sub(r'="[ \t]+', '="', line)
    line = re.sub(r'(?<!=)(?<![ \t=])[ \t]+"', '"', line)
    return [token.lower() for token in line.split()]


def values(tokens, key):
    """What follows ``key=`` at the beginning of tokens, the last one counts; None without any."""
    found = [token[len(key) + 1 :] for token in tokens if token.startswith(key + "=")]
    return stod(found[-1]) if found else None


def nine(tokens, key):
    found = None
    for k, token in enumerate(tokens):
        if token.startswith(key + "="):
            words = [token[len(key) + 2 :], *tokens[k + 1 : k + 8], tokens[k + 8][:-1]]
            found = [stod(word) for word in words]
    return found


def gpumd_properties(tokens, names):
    """Offset of each of ``names`` and the number of columns."""
    (fields,) = [token[len("properties=") :].split(":") for token in tokens if token.startswith("properties=")]
    offsets, total = {}, 0
    for name, width in zip(fields[::3], fields[2::3], strict=False):
        if name in names:
            offsets[names[name]] = total
        total += int(width)
    return offsets, total


def gpumd_trainer(text):
    """The frames as ``nep`` sees them: per-site energy, (xx, yy, zz, xy, yz, zx) of the virial per site, …"""
    lines = iter(text.split("\n"))
    frames = []
    while True:
        head = next(lines, "").split()
        if not head:
            return frames
        if len(head) > 1:
            raise GPUMDError("The first line for each frame should have one value.")
        n = int(head[0])
        if n < 1:
            raise GPUMDError("Number of atoms for each frame should >= 1.")
        tokens = gpumd_tokens(next(lines))
        energy, lattice = values(tokens, "energy"), nine(tokens, "lattice")
        if energy is None or lattice is None:
            raise GPUMDError("energy or lattice is missing")
        weight = values(tokens, "weight")
        if weight is not None and not 0 < weight <= 100:
            raise GPUMDError("Configuration weight should > 0 and <= 100.")
        lattice = np.reshape(lattice, (3, 3))
        full = nine(tokens, "virial")
        stress = nine(tokens, "stress")
        if stress is not None:
            from_stress = -np.array(stress) * abs(np.linalg.det(lattice))
            if full is not None and np.abs(np.subtract(full, from_stress)).max() > 1e-3 * n:
                raise GPUMDError("Virials and stresses for structure are inconsistent!")
            full = from_stress if full is None else full
        names = {"species": "species", "pos": "pos", "force": "forces", "forces": "forces"}
        offsets, total = gpumd_properties(tokens, names)
        if offsets.keys() != set(names.values()):
            raise GPUMDError("species, pos or force is missing in properties.")
        rows = [next(lines).split() for _ in range(n)]
        if any(len(row) != total for row in rows):
            raise GPUMDError("Number of items for an atom line mismatches properties.")
        three = {k: [[stod(w) for w in row[o : o + 3]] for row in rows] for k, o in offsets.items() if k != "species"}
        energy_weight = values(tokens, "energy_weight")
        frames.append(
            {
                "energy": energy / n,
                "energy_weight": 1.0 if energy_weight is None else energy_weight,
                "weight": 1.0 if weight is None else weight,
                "charge": values(tokens, "charge") or 0.0,
                "temperature": values(tokens, "temperature"),
                "lattice": lattice,
                "virial": None if full is None else np.array([full[k] for k in (0, 4, 8, 3, 7, 6)]) / n,
                "species": [row[offsets["species"]] for row in rows],
                **{name: np.array(table) for name, table in three.items()},
            }
        )


def gpumd_model(text):
    """A frame as ``gpumd`` reads it from ``model.xyz``: periodic directions, masses or None, groups or None."""
    count, comment, *rows = text.splitlines()
    tokens = gpumd_tokens(comment)
    pbc = [True] * 3
    for k, token in enumerate(tokens):
        if token.startswith("pbc="):
            pbc = [token[-1] == "t", tokens[k + 1] == "t", tokens[k + 2][0] == "t"]
    names = {name: name for name in ("species", "pos", "mass", "charge", "vel", "group")}
    offsets, total = gpumd_properties(tokens, names)
    rows = [row.split() for row in rows]
    assert len(rows) == int(count)
    assert all(len(row) == total for row in rows)
    masses = [stod(row[offsets["mass"]]) for row in rows] if "mass" in offsets else None
    return {"pbc": pbc, "masses": masses, "known": set(offsets)}


@pytest.mark.parametrize("name", ["pbte", "mos2"])
def test_twin_reads_published_files_as_we_do(name):
    """Shows that the twin is right, and that files of others are understood."""
    path = SHARED / name / "train.xyz"
    if not path.exists():
        pytest.skip("published training sets are not part of the repository")
    ours, theirs = read_dataset(path), gpumd_trainer(path.read_text())
    assert len(ours) == len(theirs) == {"pbte": 25, "mos2": 104}[name]
    for atoms, seen in zip(ours, theirs, strict=True):
        assert type(atoms.calc) is SinglePointCalculator
        assert atoms.get_potential_energy() == pytest.approx(seen["energy"] * len(atoms), rel=1e-15)
        assert atoms.get_chemical_symbols() == seen["species"]
        np.testing.assert_array_equal(atoms.positions, seen["pos"])
        np.testing.assert_array_equal(atoms.get_forces(), seen["forces"])
        np.testing.assert_array_equal(atoms.cell.array, seen["lattice"])
        assert (seen["virial"] is None) == (name == "pbte")
        if name == "mos2":
            xx, yy, zz, xy, yz, zx = seen["virial"] * len(atoms)
            np.testing.assert_allclose(atoms.get_stress() * atoms.get_volume(), -np.array([xx, yy, zz, yz, zx, xy]))
    assert get_labels(ours[0]).dtype == "<U16"


@pytest.mark.parametrize("labels", [("F", "Xe", "F", "F"), ("WAT", "ION", "WAT"), ("He",), ("#1", "a:b", "T")])
def test_mean_force_frames_as_the_trainer_sees_them(tmp_path, labels):
    frames = [mean_force_frame(labels), ordinary_frame(), mean_force_frame(labels, seed=1)]
    frames[2].info["weight"] = 2.5
    write_dataset(tmp_path / "train.xyz", frames)
    text = (tmp_path / "train.xyz").read_text()
    for atoms, seen in zip(frames, gpumd_trainer(text), strict=True):
        n = len(atoms)
        averaged = "mean_energy" in atoms.info
        assert seen["energy"] == (0.0 if averaged else -12.5 / n)
        assert seen["energy_weight"] == (0.0 if averaged else 1.0)
        assert seen["temperature"] == (300.0 if averaged else None)
        assert seen["weight"] == atoms.info.get("weight", 1.0)
        assert seen["charge"] == 0.0
        assert seen["species"] == get_labels(atoms).tolist()
        np.testing.assert_array_equal(seen["pos"], atoms.positions)
        np.testing.assert_array_equal(seen["forces"], atoms.get_forces())
        np.testing.assert_array_equal(seen["lattice"], CELL)
        expected = -atoms.get_stress()[[0, 1, 2, 5, 3, 4]] * atoms.get_volume() / n
        np.testing.assert_allclose(seen["virial"], expected, rtol=1e-14)
        if averaged:
            virial = atoms.info["virial"]
            np.testing.assert_array_equal(seen["virial"] * n, virial[[0, 1, 2, 0, 1, 2], [0, 1, 2, 1, 2, 0]] / n * n)


def test_a_frame_is_a_model_file_with_the_masses_of_beads(tmp_path):
    """``gpumd`` would take 19 for a bead called F, and so would plain ASE."""
    atoms = mean_force_frame()
    atoms.pbc = [True, False, True]
    atoms.calc = FrameCalculator(atoms, forces=np.ones((4, 3)))
    write_dataset(tmp_path / "model.xyz", atoms)
    seen = gpumd_model((tmp_path / "model.xyz").read_text())
    assert seen["pbc"] == [True, False, True]
    assert seen["masses"] == atoms.get_masses().tolist()
    assert seen["known"] == {"species", "pos", "mass"}
    np.testing.assert_array_equal(ase.io.read(tmp_path / "model.xyz", format="extxyz").get_masses(), seen["masses"])


def test_what_the_trainer_would_misread_is_refused(tmp_path):
    """The twin shows the danger, the writer the refusal."""
    write_dataset(tmp_path / "a.xyz", mean_force_frame())
    text = (tmp_path / "a.xyz").read_text()
    assert gpumd_trainer(text)[0]["energy"] == 0
    assert gpumd_trainer(text.replace("ensemble=nvt", 'ensemble="nvt energy=5"'))[0]["energy"] == 5 / 4
    assert gpumd_trainer(text.replace("ensemble=nvt", 'note="nvt weight = 7"'))[0]["weight"] == 7
    assert gpumd_trainer(text.replace("ensemble=nvt", "Temperature=5"))[0]["temperature"] == 5
    for name, value in {
        "note": "nvt energy=5",
        "Temperature": 5.0,
        "Virial": np.eye(3),
        "a=b": 1,
        "energy": -3.0,
    }.items():
        atoms = mean_force_frame()
        atoms.info[name] = value
        with pytest.raises(DatasetError, match=f"frame 0: info.'{name}'"):
            write_dataset(tmp_path / "b.xyz", atoms)
    for name in ("Force", "POS", "bec", "a b", "charge", "energies"):
        atoms = mean_force_frame()
        atoms.arrays[name] = np.ones((4, 3))
        with pytest.raises(DatasetError, match=f"frame 0: atoms.arrays.'{name}'"):
            write_dataset(tmp_path / "b.xyz", atoms)
    assert not (tmp_path / "b.xyz").exists()


words = st.text(st.characters(min_codepoint=1, max_codepoint=0x17F), max_size=12)
numbers = st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.booleans())
anything = st.one_of(
    words,
    numbers,
    st.lists(numbers, max_size=10),
    st.lists(words, max_size=3),
    st.none(),
    st.dictionaries(words, numbers, max_size=2),
    st.sampled_from(["energy=1", 'x" weight=3', "_JSON [1]", "T", "1e5", " 7", "a b", "[1 2]", "{a}", "2 3", "nan"]),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.one_of(words, st.sampled_from(["note", "virial_x", "x", "pol", "Charge"])), value=anything)
def test_any_info_is_refused_or_comes_back_and_misleads_nobody(tmp_path, key, value):
    atoms = ordinary_frame()
    atoms.info[key] = value
    try:
        write_dataset(tmp_path / "a.xyz", atoms)
    except DatasetError:
        return
    (found,) = read_dataset(tmp_path / "a.xyz")
    if value is None:
        assert key not in found.info
    else:
        np.testing.assert_array_equal(found.info[key], value)
        assert np.asarray(found.info[key]).dtype.kind == np.asarray(value).dtype.kind
    (seen,) = gpumd_trainer((tmp_path / "a.xyz").read_text())
    known = [seen[name] for name in ("energy", "energy_weight", "temperature", "charge")]
    assert known == [-12.5 / 4, 1.0, value if key == "temperature" else None, value if key == "charge" else 0.0]
    np.testing.assert_array_equal(seen["forces"], atoms.get_forces())


# ---- round trips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".xyz", ".nepcg.xyz", ".xyz.gz", ".xyz.bz2", ".xyz.xz"])
def test_round_trip_is_exact(tmp_path, suffix):
    frames = [mean_force_frame(), mean_force_frame(("WAT", "ION"), seed=1), mean_force_frame(seed=2)]
    before = [copy.deepcopy(frame) for frame in frames]
    ase_nepcg.write_dataset(tmp_path / f"a{suffix}", iter(frames))
    found = ase_nepcg.read_dataset(str(tmp_path / f"a{suffix}"))
    for a, b, untouched in zip(found, frames, before, strict=True):
        check_same(a, b)
        check_same(b, untouched)
        assert a.info["virial_molecular_error"].shape == (3, 3)
    through_ase = ase.io.read(tmp_path / f"a{suffix}", index=":", format="nepcg-train")
    for a, b in zip(through_ase, frames, strict=True):
        check_same(a, b)
    write_dataset(tmp_path / "again.xyz", found)
    write_dataset(tmp_path / "first.xyz", frames)
    assert (tmp_path / "again.xyz").read_bytes() == (tmp_path / "first.xyz").read_bytes()


def test_round_trip_of_ordinary_atoms(tmp_path):
    atoms = ordinary_frame()
    atoms.info |= {
        "config_type": "bulk melt",
        "Id": 7,
        "levels": np.array([1, 2]),
        "grid": np.ones((2, 2)),
        "who": ["a"],
    }
    atoms.info |= {"flags": [True, False], "nested": {"a": 1}, "nothing": None, "n32": np.float32(0.1)}
    atoms.set_constraint([FixAtoms([1])])
    atoms.set_array("kind", np.array(["a", "bc", "d", "e"]))
    atoms.set_array("on", np.array([True, False, True, True]))
    atoms.set_tags([3, 0, 0, 1])
    write_dataset(tmp_path / "a.xyz", atoms)
    (found,) = read_dataset(tmp_path / "a.xyz")
    assert not found.has("masses")
    assert "bead" not in found.arrays
    assert found.get_potential_energy() == -12.5
    np.testing.assert_array_equal(found.get_forces(apply_constraint=False), atoms.get_forces(apply_constraint=False))
    np.testing.assert_allclose(found.get_stress(), atoms.get_stress(), rtol=1e-14)
    np.testing.assert_allclose(found.info.pop("virial").trace(), -atoms.get_stress()[:3].sum() * atoms.get_volume())
    assert found.info["grid"].tolist() == [[1, 1], [1, 1]]
    assert found.info["levels"].dtype.kind == "i"
    assert {k: v for k, v in found.info.items() if k not in ("grid", "levels")} == {
        "config_type": "bulk melt",
        "Id": 7,
        "who": ["a"],
        "flags": [True, False],
        "nested": {"a": 1},
        "n32": float(np.float32(0.1)),
    }
    assert found.constraints[0].index.tolist() == [1]
    assert found.arrays["kind"].tolist() == ["a", "bc", "d", "e"]
    assert found.arrays["on"].tolist() == [True, False, True, True]
    assert found.get_tags().tolist() == [3, 0, 0, 1]


def test_partly_fixed_atoms(tmp_path):
    atoms = ordinary_frame()
    atoms.set_constraint([FixAtoms([3]), FixCartesian([0, 1], [True, False, True])])
    write_dataset(tmp_path / "a.xyz", atoms)
    (found,) = read_dataset(tmp_path / "a.xyz")
    fixed = {int(c.index[0]): c.mask.tolist() for c in found.constraints}
    assert fixed == {0: [True, False, True], 1: [True, False, True], 3: [True, True, True]}


def test_numbers_too_small_for_other_readers_become_zero(tmp_path):
    atoms = mean_force_frame()
    forces = np.full((4, 3), 1e-310)
    forces[0] = 2.2250738585072014e-308, -5e-324, -1e-307
    atoms.info["virial"] = np.full((3, 3), 5e-324)
    atoms.calc = FrameCalculator(atoms, forces=forces)
    write_dataset(tmp_path / "a.xyz", atoms)
    (seen,) = gpumd_trainer((tmp_path / "a.xyz").read_text())
    (found,) = read_dataset(tmp_path / "a.xyz")
    for back in (seen["forces"], found.get_forces()):
        assert back[0].tolist() == [2.2250738585072014e-308, 0, -1e-307]
        assert not back[1:].any()


def test_small_error_bars_keep_their_digits(tmp_path):
    atoms = mean_force_frame()
    atoms.arrays["force_errors"][:] = 1.23456789e-7
    write_dataset(tmp_path / "a.xyz", atoms)
    assert (read_dataset(tmp_path / "a.xyz")[0].arrays["force_errors"] == 1.23456789e-7).all()


# ---- no energy ------------------------------------------------------------------------------------------------------


def test_energies_of_mean_force_frames_are_refused(tmp_path):
    write_dataset(tmp_path / "a.xyz", mean_force_frame())
    (atoms,) = read_dataset(tmp_path / "a.xyz")
    for frame in (atoms, mean_force_frame(), copy.deepcopy(atoms), pickle.loads(pickle.dumps(atoms))):
        assert isinstance(frame.calc, FrameCalculator)
        for force_consistent in (False, True):
            with pytest.raises(PropertyNotImplementedError, match="not the potential of mean force"):
                frame.get_potential_energy(force_consistent=force_consistent)
        assert frame.calc.get_property("energy", frame, allow_calculation=False) is None
        assert frame.get_forces().shape == (4, 3)
        np.testing.assert_allclose(frame.get_stress(voigt=False) * -frame.get_volume(), frame.info["virial"])
    atoms.positions += 0.1
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_forces()
    with pytest.raises(TypeError, match="frames without energy"):
        FrameCalculator(atoms, energy=1.0)


def test_frames_without_energy_in_other_formats(tmp_path):
    atoms = mean_force_frame()
    for name in ("a.traj", "a.extxyz", "a.json"):
        frame = atoms.copy()
        if name == "a.json":  # the data base takes numbers and words only
            frame.info = {}
        frame.calc = atoms.calc
        ase.io.write(tmp_path / name, frame)
        found = ase.io.read(tmp_path / name)
        np.testing.assert_allclose(found.get_forces(), atoms.get_forces(), atol=1e-8)
        with pytest.raises(PropertyNotImplementedError):
            found.get_potential_energy()


def test_an_energy_without_weight_is_kept_apart(tmp_path):
    write_dataset(tmp_path / "a.xyz", ordinary_frame())
    text = (tmp_path / "a.xyz").read_text().replace("energy=-12.5", "energy=-12.5 Energy_Weight=0")
    (tmp_path / "a.xyz").write_text(text)
    (atoms,) = read_dataset(tmp_path / "a.xyz")
    assert atoms.info["unused_energy"] == -12.5
    assert atoms.info["energy_weight"] == 0
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_potential_energy()
    write_dataset(tmp_path / "b.xyz", atoms)
    assert gpumd_trainer((tmp_path / "b.xyz").read_text())[0]["energy"] == 0
    assert read_dataset(tmp_path / "b.xyz")[0].info["unused_energy"] == -12.5


# ---- what is refused when writing -----------------------------------------------------------------------------------


def changed(**edits):
    """A function that edits a frame: info, arrays, or forces."""

    def edit(atoms):
        for name, value in edits.items():
            if name == "forces":
                atoms.calc = FrameCalculator(atoms, forces=value)
            elif name in atoms.arrays:
                atoms.arrays[name] = value
            else:
                atoms.info[name] = value

    return edit


def asymmetric(atoms):
    atoms.info["virial"] = atoms.info["virial"] + np.triu(np.ones((3, 3)), 1)


def contradictory(atoms):
    atoms.info["virial"] = -atoms.info["virial"]


def no_calculator(atoms):
    atoms.calc = None


def outdated(atoms):
    atoms.positions[0] += 0.1


def live(atoms):
    atoms.calc = EMT()


def flat(atoms):
    atoms.cell[2] = atoms.cell[0] + atoms.cell[1]


def blanks(atoms):
    atoms.arrays["bead"][0] = "two words"
    del atoms.info["bead_labels"]


def lonely_error(atoms):
    del atoms.arrays["forces_dT"]


def lonely_tensor_error(atoms):
    del atoms.info["virial_atomic"]


def lost_virial(atoms):
    del atoms.info["virial"]
    atoms.calc = FrameCalculator(atoms, forces=np.ones((4, 3)))


def massless(atoms):
    atoms.arrays["masses"][:] = 0


def spectrum(atoms):
    atoms.arrays["spectrum"] = np.ones((4, 3, 3))


def column_vector(atoms):
    atoms.arrays["x"] = np.ones((4, 1))


NAN = np.full((4, 3), np.nan)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (changed(positions=NAN), r"positions: entry \(0, 0\) is nan"),
        (changed(forces=NAN), r"forces: entry \(0, 0\) is nan"),
        (no_calculator, "forces: expected a calculator with stored forces .* it has none"),
        (outdated, "belong to other positions"),
        (live, "forces: expected a calculator with stored forces .* it has none"),
        (asymmetric, "expected a symmetric tensor, got halves that differ by 1 eV"),
        (contradictory, "virial and stress disagree by .* positive = compressed"),
        (changed(virial=np.full((3, 3), np.inf)), "virial.*finite"),
        (changed(virial="big"), "virial.*finite numbers, got 'big'"),
        (changed(virial=np.ones(6)), r"virial.*expected \(3, 3\)"),
        (changed(virial_error=-np.ones((3, 3))), "virial_error: expected numbers >= 0, got -1"),
        (changed(virial_error=np.ones(6)), r"virial_error: expected shape \(3, 3\), got \(6,\)"),
        (changed(virial_dT=NAN[:3]), "virial_dT: entry"),
        (changed(force_errors=-np.ones((4, 3))), "force_errors: expected numbers >= 0, got -1"),
        (changed(force_errors=np.ones(4)), r"force_errors: expected shape \(4, 3\), got \(4,\)"),
        (changed(n_effective=np.full((4, 3), np.inf)), r"n_effective: entry \(0, 0\) is inf"),
        (changed(atoms_per_bead=np.zeros(4, int)), "atoms_per_bead: expected .* integers >= 1"),
        (changed(atoms_per_bead=np.ones(4)), "atoms_per_bead: expected .* integers >= 1, got float64"),
        (lonely_error, "forces_dT_errors: expected forces_dT with it, got none"),
        (lonely_tensor_error, "virial_atomic_error: expected virial_atomic with it, got none"),
        (lost_virial, "virial_error: expected virial with it, got none"),
        (flat, "cell: expected three vectors that span space"),
        (blanks, "labels: expected printable ASCII without blanks, quotes and '=', got 'two words'"),
        (massless, "masses: expected positive numbers, got 0"),
        (changed(temperature=-1.0), "temperature: expected a number > 0, got -1.0"),
        (changed(temperature="300 K"), "temperature: expected a number, got '300 K'"),
        (changed(weight=101), "weight: GPUMD expects at most 100, got 101"),
        (changed(weight=0), "weight: expected a number > 0, got 0"),
        (changed(energy_weight=-1), "energy_weight: expected a number >= 0"),
        (changed(energy_weight=1.0), "energy_weight.* is 1.0, but there is no energy"),
        (changed(calculator="my NEP"), "calculator: expected one word without blanks.*'my NEP'"),
        (changed(ensemble='n"v'), "ensemble: expected one word"),
        (changed(note="α"), "note.*printable ASCII"),
        (changed(note="007"), r"note.*'007' would be read back as 7; rename"),
        (changed(note=object()), "note.*rename or delete it"),
        (changed(drift=np.nan), "drift.*expected finite numbers, got nan"),
        (changed(seed=2**64), "seed.*would be read back"),
        (spectrum, r"spectrum: expected .* got float64 \(4, 3, 3\)"),
        (column_vector, r"'x'\]: shape \(N, 1\)"),
    ],
)
def test_unsuitable_frames_are_refused_and_the_old_file_stays(tmp_path, edit, message):
    path = tmp_path / "train.xyz"
    write_dataset(path, mean_force_frame())
    old = path.read_bytes()
    bad = mean_force_frame(seed=1)
    edit(bad)
    with pytest.raises(DatasetError, match=f"frame 1: .*{message}") as caught:
        write_dataset(path, [mean_force_frame(), bad])
    assert caught.value.frame == 1
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["train.xyz"]


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "at least one frame, got none"),
        ("train.xyz", "expected a list of Atoms"),
        (None, "expected a list of Atoms, got None"),
        ([1.0], "frame 0: expected Atoms, got float"),
        ([Atoms(cell=CELL)], "frame 0: expected at least one site, got none"),
        ([type("MeanForce", (), {"frame": None})()], "expected Atoms, got MeanForce: give its .frame"),
    ],
)
def test_what_is_not_frames(tmp_path, frames, message):
    with pytest.raises(DatasetError, match=message):
        write_dataset(tmp_path / "a.xyz", frames)
    assert os.listdir(tmp_path) == []


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "train.xyz"
    write_dataset(path, mean_force_frame())
    old = path.read_bytes()

    def fail(*_):
        raise KeyboardInterrupt

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(KeyboardInterrupt):
                write_dataset(path, mean_force_frame(seed=5))
        assert path.read_bytes() == old
        assert os.listdir(tmp_path) == ["train.xyz"]
    with pytest.raises(FileNotFoundError):
        write_dataset(tmp_path / "no_such_folder" / "a.xyz", mean_force_frame())


def test_one_label_for_two_kinds_of_sites(tmp_path):
    """Beads called F and fluorine atoms must not be trained as one species."""
    beads, fluorine = mean_force_frame(("F", "F")), ordinary_frame()
    fluorine.numbers[:] = 9
    fluorine.calc = SinglePointCalculator(fluorine, energy=-1.0, forces=np.zeros((4, 3)))
    with pytest.raises(DatasetError, match=r"frame 1: label 'F' has mass 18\.99.* but 18\.0153 in frame 0: one label"):
        write_dataset(tmp_path / "a.xyz", [beads, fluorine])
    set_labels(beads, "F", 18.9)
    beads.calc = FrameCalculator(beads, forces=np.zeros((2, 3)))
    beads.info = {}
    write_dataset(tmp_path / "a.xyz", [beads, fluorine])
    unknown = Atoms("X", cell=CELL, pbc=True)  # no mass at all: nothing to compare
    unknown.calc = FrameCalculator(unknown, forces=np.zeros((1, 3)))
    write_dataset(tmp_path / "a.xyz", [unknown, unknown])


# ---- splitting and describing ---------------------------------------------------------------------------------------


def test_split():
    frames = [ordinary_frame(seed) for seed in range(20)]
    train, test = split(frames, 0.3, seed=4)
    assert (len(train), len(test)) == (14, 6)
    positions = [frames.index(frame) for frame in train], [frames.index(frame) for frame in test]
    assert sorted(positions[0] + positions[1]) == list(range(20))
    assert positions[0] == sorted(positions[0])
    assert positions[1] == sorted(positions[1])
    again = split(iter(frames), 0.3, seed=4)
    assert [id(frame) for frame in again[1]] == [id(frame) for frame in test]
    assert len({tuple(frames.index(f) for f in split(frames, 0.3, seed=s)[1]) for s in range(8)}) > 4
    assert [len(part) for part in split(frames[:2], 0.01)] == [1, 1]
    assert [len(part) for part in split(frames[:3], 0.99)] == [1, 2]


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, np.nan, "half", None])
def test_split_refuses(fraction):
    with pytest.raises(DatasetError, match="fraction: expected a number between 0 and 1"):
        split([ordinary_frame(), ordinary_frame()], fraction)
    with pytest.raises(DatasetError, match="at least 2 frames"):
        split([ordinary_frame()], 0.5)


def test_remarks():
    assert validate(mean_force_frame()) == []
    unusual = mean_force_frame(("WAT", "ION"))
    unusual.pbc = False
    unusual.calc = FrameCalculator(unusual, forces=np.ones((2, 3)))
    deep = ordinary_frame()
    deep.calc = SinglePointCalculator(deep, energy=-500.0, forces=np.zeros((4, 3)))
    remarks = validate([mean_force_frame(), unusual, deep])
    assert len(remarks) == 4
    assert "1 of 3 frames have no virial" in remarks[0]
    assert remarks[0].endswith("the first is frame 2")
    assert "1 of 3 frames are not periodic in all directions" in remarks[1]
    assert "1 of 3 frames have energies below -100 eV" in remarks[2]
    assert "not ION, WAT" in remarks[3]


def test_summary():
    text = summary([mean_force_frame(("F", "Xe")), ordinary_frame(), mean_force_frame(("F",), seed=1)])
    lines = text.splitlines()
    assert lines[0] == "3 frames of 1 to 4 sites"
    assert lines[1].split() == ["F", "2", "sites,", "18.0153", "amu"]
    assert "virials: 3 frames" in text
    assert "energies: 1 frame\n" in text
    assert "thermal response: 2 frames" in text
    assert "temperatures: 300 K" in text
    forces = np.concatenate([mean_force_frame(("F", "Xe")).get_forces(), ordinary_frame().get_forces()])
    assert f"rms {np.sqrt((forces**2).mean()):.4g} eV/Å" in summary([mean_force_frame(("F", "Xe")), ordinary_frame()])
    bare = Atoms("X", cell=CELL, pbc=True)
    assert "no mass" in summary(bare)
    assert "forces: rms - eV" in summary(bare)
