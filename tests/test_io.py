"""The format ``nepcg-train``: names, masses and results survive; the registration costs nothing."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from ase_nepcg.dataset import DatasetError, FrameCalculator
from ase_nepcg.io import read_nepcg_train, write_nepcg_train
from ase_nepcg.labels import get_labels, set_labels

pytestmark = pytest.mark.skipif(
    not entry_points(group="ase.ioformats", name="nepcg-train"), reason="the package is not installed"
)
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CELL = np.array([[10.0, 0.5, 0.0], [0.0, 11.0, 0.25], [1.0, 0.0, 12.0]])


def bead_frame(labels=("WAT", "F", "C60", "WAT"), seed=0):
    """Beads, one of them called like an element, with everything a training frame may have."""
    rng = np.random.default_rng(seed)
    n = len(labels)
    atoms = Atoms(positions=rng.uniform(0, 10, (n, 3)), cell=CELL, pbc=[True, True, False])
    set_labels(atoms, labels, masses=18.0 + np.arange(n))
    atoms.set_momenta(rng.normal(size=(n, 3)))
    atoms.set_array("force_error", 1e-7 * rng.uniform(size=(n, 3)))
    virial = np.diag([1.0, 2.0, 3.5]) + 0.25
    atoms.info |= {"virial": virial, "energy_weight": 0.25, "source": "aa_run_7", "weight": 0.5}
    stress = -virial[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]] / atoms.get_volume()
    atoms.calc = SinglePointCalculator(
        atoms, energy=-1.234567890123, forces=rng.normal(size=(n, 3)) / 3, stress=stress, charges=np.arange(n) / 3
    )
    return atoms


def check_same(found, expected, atol=0.0):
    """The same bits, or ``atol`` where ASE has written the file."""
    assert get_labels(found).tolist() == get_labels(expected).tolist()
    np.testing.assert_array_equal(found.numbers, expected.numbers)
    np.testing.assert_allclose(found.positions, expected.positions, rtol=0, atol=atol)
    np.testing.assert_allclose(found.get_masses(), expected.get_masses(), rtol=0, atol=atol)
    np.testing.assert_allclose(found.get_momenta(), expected.get_momenta(), rtol=0, atol=atol)
    np.testing.assert_array_equal(found.cell.array, expected.cell.array)
    np.testing.assert_array_equal(found.pbc, expected.pbc)
    assert found.get_potential_energy() == expected.get_potential_energy()
    np.testing.assert_allclose(found.get_forces(), expected.get_forces(), rtol=0, atol=atol)
    np.testing.assert_allclose(found.get_charges(), expected.get_charges(), rtol=0, atol=atol)


@pytest.mark.parametrize("name", ["frames.nepcg.xyz", "train.xyz"])
def test_round_trip(tmp_path, name):
    frames = [bead_frame(), bead_frame(("ION", "WAT"), seed=1)]
    before = [frame.copy() for frame in frames]
    ase.io.write(tmp_path / name, frames, format="nepcg-train")
    again = ase.io.read(tmp_path / name, index=":", format="nepcg-train")
    assert len(again) == 2
    for found, expected in zip(again, frames, strict=True):
        check_same(found, expected)
        np.testing.assert_allclose(found.get_stress(), expected.get_stress(), rtol=1e-15)
        np.testing.assert_array_equal(found.arrays["force_error"], expected.arrays["force_error"])
        np.testing.assert_array_equal(found.info["virial"], expected.info["virial"])
        assert {k: found.info[k] for k in ("energy_weight", "source", "weight")} == {
            "energy_weight": 0.25,
            "source": "aa_run_7",
            "weight": 0.5,
        }
        assert "symbols" not in found.arrays
        with pytest.raises(PropertyNotImplementedError):
            found.get_dipole_moment()
    # writing changes nothing in the frames given
    for found, expected in zip(frames, before, strict=True):
        assert found == expected
        assert found.arrays.keys() == expected.arrays.keys()
        assert found.info.keys() == expected.info.keys()


def test_the_name_implies_the_format(tmp_path):
    ase.io.write(tmp_path / "a.nepcg.xyz", bead_frame())
    check_same(ase.io.read(tmp_path / "a.nepcg.xyz"), bead_frame())
    assert ase.io.formats.filetype(str(tmp_path / "a.nepcg.xyz")) == "nepcg-train"
    ase.io.write(tmp_path / "plain.xyz", molecule("H2O"))
    assert ase.io.formats.filetype(str(tmp_path / "plain.xyz")) == "extxyz"


def test_the_file_is_what_the_usual_trainer_reads(tmp_path):
    """Names in the first column only; no blanks, quotes or '=' in values; the keys that are needed."""
    ase.io.write(tmp_path / "a.nepcg.xyz", bead_frame())
    count, comment, *lines = (tmp_path / "a.nepcg.xyz").read_text().splitlines()
    assert int(count) == 4
    assert [line.split()[0] for line in lines] == ["WAT", "F", "C60", "WAT"]
    properties = comment.split("Properties=")[1].split()[0]
    assert properties.startswith("species:S:1:pos:R:3:")
    assert ":forces:R:3" in properties
    assert ":masses:R:1:mass:R:1" in properties
    assert "bead" not in comment
    assert "tags" not in comment
    assert "_JSON" not in comment
    assert " energy=-1.234567890123" in comment
    assert 'virial="1.25 0.25 0.25 0.25 2.25 0.25 0.25 0.25 3.75"' in comment


def test_labels_survive_a_later_traj(tmp_path):
    ase.io.write(tmp_path / "a.nepcg.xyz", bead_frame())
    ase.io.write(tmp_path / "a.traj", ase.io.read(tmp_path / "a.nepcg.xyz"))
    check_same(ase.io.read(tmp_path / "a.traj"), bead_frame())


def test_elements_stay_elements(tmp_path):
    water = molecule("H2O", cell=CELL, pbc=True)
    ase.io.write(tmp_path / "a.nepcg.xyz", [water, water])
    found = ase.io.read(tmp_path / "a.nepcg.xyz", index=1)
    assert found.get_chemical_symbols() == water.get_chemical_symbols()
    assert found.arrays.keys() == {"numbers", "positions"}
    assert not found.info
    assert found.calc is None


def test_mixed_resolution_and_own_tags(tmp_path):
    atoms = Atoms("Au2X", positions=np.eye(3), tags=[3, 1, 2])
    atoms.set_array("bead", np.array(["Au", "Au", "Au13"], dtype="<U16"))
    atoms.set_constraint(FixAtoms([1]))
    ase.io.write(tmp_path / "a.nepcg.xyz", atoms)
    found = ase.io.read(tmp_path / "a.nepcg.xyz")
    assert found.numbers.tolist() == [79, 79, 0]
    assert get_labels(found).tolist() == ["Au", "Au", "Au13"]
    assert found.get_tags().tolist() == [3, 1, 2]
    assert found.constraints[0].index.tolist() == [1]


def test_element_named_beads_keep_their_masses(tmp_path):
    ase.io.write(tmp_path / "a.nepcg.xyz", bead_frame(("F", "F")))
    found = ase.io.read(tmp_path / "a.nepcg.xyz")
    assert get_labels(found).tolist() == ["F", "F"]
    assert found.get_masses().tolist() == [18.0, 19.0]


FOREIGN = """2
energy=-3 Lattice="9 0 0 0 9 0 0 0 9" VIRIAL="1 2 3 2 5 6 3 6 9" PROPERTIES=species:S:1:pos:R:3:force:R:3:mass:R:1 Id=x
WAT 0 0 0  1 2 3  18
AU  1 2 3 -1 -2 -3 197
2
lattice="9 0 0 0 8 0 0 0 9" Energy=1 properties=species:S:1:pos:R:3:forces:R:3
Au 0 0 0  1 2 3
Au 1 2 3 -1 -2 -3
"""


def test_spellings_of_other_programs(tmp_path):
    (tmp_path / "train.xyz").write_text(FOREIGN)
    first, second = ase.io.read(tmp_path / "train.xyz", index=":", format="nepcg-train")
    assert get_labels(first).tolist() == ["WAT", "AU"]
    assert first.numbers.tolist() == [0, 0]
    assert first.get_masses().tolist() == [18.0, 197.0]
    assert first.get_forces().tolist() == [[1, 2, 3], [-1, -2, -3]]
    assert first.get_potential_energy() == -3
    assert first.info["virial"].tolist() == [[1, 2, 3], [2, 5, 6], [3, 6, 9]]
    assert first.info["Id"] == "x"
    assert second.get_chemical_symbols() == ["Au", "Au"]
    assert second.cell.lengths().tolist() == [9, 8, 9]
    assert second.pbc.all()
    assert second.get_potential_energy() == 1
    assert second.get_forces()[1].tolist() == [-1, -2, -3]


def test_files_written_by_plain_ase(tmp_path):
    """Extended XYZ by ASE itself: species X, the names in a column of their own."""
    ase.io.write(tmp_path / "a.extxyz", bead_frame())
    check_same(ase.io.read(tmp_path / "a.extxyz", format="nepcg-train"), bead_frame(), atol=1e-8)
    ase.io.write(tmp_path / "b.extxyz", Atoms("X2", positions=np.eye(3)[:2]))
    assert get_labels(ase.io.read(tmp_path / "b.extxyz", format="nepcg-train")).tolist() == ["X", "X"]


def test_published_training_frames():
    if not (SHARED / "mos2").exists():
        pytest.skip("mos2 is not part of the repository")
    atoms = ase.io.read(SHARED / "mos2" / "train.xyz", index=3, format="nepcg-train")
    assert set(atoms.symbols) == {"Mo", "S"}
    assert atoms.get_forces().shape == (90, 3)
    assert atoms.info["virial"].shape == (3, 3)
    assert atoms.get_potential_energy() < 0


def test_virial_as_plain_list(tmp_path):
    atoms = Atoms("Au", cell=CELL, pbc=True)
    atoms.info["virial"] = [0, 1, 2, 1, 4, 5, 2, 5, 8]
    ase.io.write(tmp_path / "a.nepcg.xyz", atoms)
    found = ase.io.read(tmp_path / "a.nepcg.xyz")
    assert found.info["virial"].tolist() == [[0, 1, 2], [1, 4, 5], [2, 5, 8]]
    np.testing.assert_allclose(found.get_stress() * CELL.diagonal().prod(), [0, -4, -8, -5, -2, -1], rtol=0.01)


def test_compressed_append_and_open_files(tmp_path):
    ase.io.write(tmp_path / "a.nepcg.xyz.gz", bead_frame())
    check_same(ase.io.read(tmp_path / "a.nepcg.xyz.gz"), bead_frame())
    for _ in range(3):
        ase.io.write(tmp_path / "b.nepcg.xyz", bead_frame(), append=True)
    assert len(ase.io.read(tmp_path / "b.nepcg.xyz", index=":")) == 3
    write_nepcg_train(tmp_path / "c.xyz", bead_frame())
    with open(tmp_path / "c.xyz") as file:
        (found,) = read_nepcg_train(file, slice(None))
    check_same(found, bead_frame())


def test_choosing_frames(tmp_path):
    name = tmp_path / "a.nepcg.xyz"
    frames = [Atoms("Au", positions=[[i, 0, 0]]) for i in range(5)]
    ase.io.write(name, frames)
    for index in (slice(None), slice(1, 4), slice(-2, None), slice(None, None, -1), slice(0, -1), slice(3, None, 2)):
        found = ase.io.read(name, index=index)
        assert [int(atoms.positions[0, 0]) for atoms in found] == list(range(5))[index]
    for index in (0, 3, -1, -5):
        assert int(ase.io.read(name, index=index).positions[0, 0]) == range(5)[index]
        (atoms,) = read_nepcg_train(str(name), index)
        assert int(atoms.positions[0, 0]) == range(5)[index]
    assert int(next(read_nepcg_train(name)).positions[0, 0]) == 4
    for index in (5, -6):
        with pytest.raises(IndexError, match=f"frame {index}: the file has fewer frames"):
            list(read_nepcg_train(name, index))


def test_only_the_frames_asked_for_are_interpreted(tmp_path):
    name = tmp_path / "a.nepcg.xyz"
    ase.io.write(name, [Atoms("Au")] * 3)
    name.write_text(name.read_text() + "rubbish")
    assert ase.io.read(name, index=1).get_chemical_symbols() == ["Au"]
    with pytest.raises(DatasetError, match=r"a\.nepcg\.xyz, frame 3, line 10: .* got 'rubbish'"):
        ase.io.read(name, index=":")


def test_frames_without_energy(tmp_path):
    """What plain ASE cannot keep: forces with an error bar, and no energy."""
    atoms = bead_frame()
    atoms.info["energy_weight"] = 0.0
    atoms.calc = FrameCalculator(atoms, forces=atoms.get_forces(), stress=atoms.get_stress())
    ase.io.write(tmp_path / "a.nepcg.xyz", atoms)
    comment = (tmp_path / "a.nepcg.xyz").read_text().splitlines()[1]
    assert " energy=0 energy_weight=0 virial=" in comment
    found = ase.io.read(tmp_path / "a.nepcg.xyz")
    assert isinstance(found.calc, FrameCalculator)
    with pytest.raises(PropertyNotImplementedError, match="not the potential of mean force"):
        found.get_potential_energy()
    np.testing.assert_array_equal(found.get_forces(), atoms.get_forces())


def test_outdated_results_are_not_written(tmp_path):
    atoms = bead_frame()
    atoms.positions += 1
    atoms.info = {}
    ase.io.write(tmp_path / "a.nepcg.xyz", atoms)
    assert ase.io.read(tmp_path / "a.nepcg.xyz").calc is None


def test_nothing_is_written_if_a_frame_is_refused(tmp_path):
    bad = bead_frame()
    bad.positions[1, 2] = np.nan
    with pytest.raises(DatasetError, match=r"frame 1: pos: expected finite numbers, got .* for site 1"):
        write_nepcg_train(tmp_path / "a.xyz", [bead_frame(), bad])
    assert not (tmp_path / "a.xyz").exists()
    bad = bead_frame()
    bad.cell[0, 0] = np.inf
    bad.calc = None
    with pytest.raises(DatasetError, match="frame 0: cell: expected finite numbers"):
        write_nepcg_train(tmp_path / "a.xyz", bad)


def test_labels_that_break_columns_are_refused(tmp_path):
    atoms = Atoms("X2")
    atoms.set_array("bead", np.array(["WAT", "two words"], dtype="<U16"))
    with pytest.raises(DatasetError, match=r"frame 0: .* without blanks, .* got 'two words'"):
        ase.io.write(tmp_path / "a.nepcg.xyz", atoms)
    (tmp_path / "long.xyz").write_text("1\npbc=F\nANameOfManyLetters 0 0 0\n")
    with pytest.raises(DatasetError, match=r"long\.xyz, frame 0, line 2: .*at most 16 letters"):
        ase.io.read(tmp_path / "long.xyz", format="nepcg-train")


def test_no_atoms(tmp_path):
    ase.io.write(tmp_path / "a.nepcg.xyz", Atoms(cell=CELL, pbc=True))
    assert len(ase.io.read(tmp_path / "a.nepcg.xyz")) == 0


# ---- registration ---------------------------------------------------------------------------------------------------


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)


def test_listed_by_ase_info():
    assert "nepcg-train" in run("-m", "ase", "info", "--formats").stdout


def test_import_of_ase_io_stays_light():
    """The registration is loaded by every ``import ase.io``: nothing heavy, no warning."""
    result = run("-W", "error", "-X", "importtime", "-c", "import sys, ase.io; print(*sys.modules)")
    loaded = set(result.stdout.split())
    timed = {line.split("|")[-1].strip() for line in result.stderr.splitlines() if "|" in line}
    own = {module for module in loaded if module.startswith("ase_nepcg.")}
    assert {module for module in own if not module.startswith("ase_nepcg.constraints")} <= {
        "ase_nepcg.plugins",
        "ase_nepcg.errors",
    }
    assert not {m for m in loaded | timed if m.split(".")[0] in ("numba", "llvmlite", "matplotlib", "ase_nepcg_cuda")}
    assert not [line for line in result.stderr.splitlines() if "|" not in line]


def test_reading_in_a_fresh_process_stays_light(tmp_path):
    ase.io.write(tmp_path / "train.xyz", bead_frame(), format="nepcg-train")
    code = (
        "import sys, ase.io; a = ase.io.read(sys.argv[1], format='nepcg-train');"
        "print(*a.arrays['bead']); assert not {'numba', 'matplotlib', 'ase_nepcg.model'} & set(sys.modules)"
    )
    result = run("-W", "error", "-c", code, str(tmp_path / "train.xyz"))
    assert result.stdout.split() == ["WAT", "F", "C60", "WAT"]
    assert not result.stderr
