"""Reading frames: every defect of a file is an error that says where it is; what others write is understood."""

import gzip

import numpy as np
import pytest
from ase.calculators.calculator import PropertyNotImplementedError

from ase_nepcg.dataset import DatasetError, read_dataset
from ase_nepcg.labels import get_labels

GOOD = """2
Lattice="9 0 0 0 8 0 0 0 7" energy=-3 virial="1 2 3 2 5 6 3 6 9" Properties=species:S:1:pos:R:3:forces:R:3:masses:R:1
WAT 0 0 0  1 2 3 18
ION 1 2 3 -1 -2 -3 35
"""
NINE = "1 2 3 2 5 6 3 6 9"


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("ION 1 2 3 -1 -2 -3 35\n", "", 5, r"comment line and 2 atom lines, got 2 lines: the file is truncated"),
        ("-1 -2 -3 35\n", "-1", 8, "expected 8 columns .*, got 5"),
        ("-1 -2 -3 35", "-1 -2 -3 35 7", 8, "expected 8 columns .*, got 9"),
        ("-1 -2 -3 35", "-1 -2 x3 35", 8, "forces: expected a number, got 'x3'"),
        ("-1 -2 -3 35", "-1 -2 nan 35", 8, "forces: expected finite numbers, got 'nan'"),
        ("-1 -2 -3 35", "-1 -2 -3 0", 8, "masses: expected positive numbers, got 0"),
        ("ION", "a_name_of_many_letters", 6, "at most 16 letters"),
        ("2\nL", "two\nL", 5, "expected a number of atoms, got 'two'"),
        ("2\nL", "2.0\nL", 5, "expected a number of atoms, got '2.0'"),
        ("2\nL", "-2\nL", 5, "expected a number of atoms, got '-2'"),
        ("2\nL", "3\nL", 5, "expected a comment line and 3 atom lines, got 3 lines"),
        ("2\nL", "1\nL", 8, "expected a number of atoms, got 'ION 1 2 3"),
        ("2\nL", "\n2\nL", 5, "a blank line between frames"),
        (NINE, "1 2 3", 6, "virial"),
        (NINE, "1 2 3 2 5 6 3 6 x", 6, "virial"),
        (NINE, "1 2 3 2 5 6 3 6 inf", 6, "virial: expected finite numbers"),
        (NINE, "1 2 3 4 5 6 7 8 9", 6, "virial: expected a symmetric tensor, got halves that differ by 4 eV"),
        ("virial=", "VIRIAL='1 2' virial=", 6, "virial: expected 9 numbers, got"),
        ("energy=-3", "energy=-3 Energy=4", 6, "energy is given twice"),
        ("energy=-3", "energy=low", 6, "energy: expected a number, got 'low'"),
        ("energy=-3", "energy=nan", 6, "energy: expected a number, got nan"),
        ("energy=-3", 'energy="1 2"', 6, "energy: expected a number, got"),
        ("energy=-3", "temperature=300K energy=-3", 6, "temperature: expected a number, got '300K'"),
        ("energy=-3", 'pbc="T T" energy=-3', 6, "pbc: expected T or F three times"),
        ("energy=-3", 'pbc="T 1 Q" energy=-3', 6, "pbc: expected T or F three times"),
        ("energy=-3", 'stress="1 0 0 0 1 0 0 0 1"', 6, "virial and stress disagree by 5.* eV"),
        ("energy=-3", 'x="_JSON [1"', 6, "comment line"),
        ("9 0 0 0 8", "9 0 0 0", 6, "Lattice"),
        ("9 0 0 0 8 0 0 0 7", "9 0 0 0 8 0 9 8 0", 6, "Lattice: expected three vectors that span space"),
        ("forces:R:3", "forces:R:2:x:R:1", 6, "expected forces to have width 3"),
        ("forces:R:3", "forces:Q:3", 6, "with type R, I, S or L"),
        ("forces:R:3", "forces:R", 6, "Properties: expected name:type:width"),
        ("forces:R:3", "positions:R:3", 6, "positions is given twice or under a wrong name"),
        ("forces:R:3:masses:R:1", "force:R:3:forces:R:1", 6, "forces is given twice"),
        ("masses:R:1", "Forces:R:1", 6, "forces is given twice"),
        ("masses:R:1", "POS:R:1", 6, "pos is given twice"),
        ("masses:R:1", "kind:I:1", 7, None),
        ("forces:R:3:masses:R:1", "masses:R:1:a:R:2:mass:R:1", 8, "masses -1 and mass 35 differ: remove one"),
        ("species:S:1", "name:S:1", 6, r"expected species:S:1 and pos:R:3"),
        ("forces:R:3", "forces:I:3", None, None),
        ("forces:R:3", "other:R:3", None, "frame 1: expected a column forces:R:3"),
        ("forces:R:3:masses", "forces:L:3:masses", 6, "forces: expected type R, got forces:L:3"),
        ("forces:R:3:masses", "forces:S:3:masses", 6, "forces: expected type R, got forces:S:3"),
        ("forces:R:3:masses", "forces:R:3:move_mask", 6, "move_mask: expected type L, got move_mask:R:1"),
        ("forces:R:3:masses:R:1", "a:R:2:move_mask:L:2", 6, "move_mask: expected width 1 or 3"),
        ("species:S:1", "species:R:1", 6, "species: expected type S, got species:R:1"),
        ("-1 -2 -3 35", "-1 -2 -3 3" + "0" * 400, 8, "masses: expected finite"),
    ],
)
def test_malformed_files(tmp_path, old, new, line, message):
    """The second of two frames is damaged."""
    path = tmp_path / "damaged.xyz"
    assert old in GOOD
    path.write_text(GOOD + GOOD.replace(old, new, 1))
    if message is None:
        assert len(read_dataset(path)) == 2
        return
    with pytest.raises(DatasetError, match=message) as caught:
        read_dataset(path)
    assert caught.value.path == str(path)
    assert caught.value.line == line
    assert caught.value.frame == (2 if line == 8 and "number of atoms" in message else 1)
    assert str(path) in str(caught.value)


def test_every_truncation_is_noticed(tmp_path):
    """Except in the last number and the end of line after it, where a shorter file is a legal file too."""
    text = GOOD + GOOD
    legal = {len(GOOD) - 2, len(GOOD) - 1, len(GOOD), len(text) - 2, len(text) - 1}
    for size in set(range(len(text))) - legal:
        (tmp_path / "cut.xyz").write_text(text[:size])
        with pytest.raises(DatasetError, match=r"cut\.xyz"):
            read_dataset(tmp_path / "cut.xyz")
    for size in legal:
        (tmp_path / "cut.xyz").write_text(text[:size])
        assert len(read_dataset(tmp_path / "cut.xyz")) == 1 + (size > len(GOOD))


def test_missing_empty_and_foreign_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_dataset(tmp_path / "none.xyz")
    with pytest.raises(IsADirectoryError):
        read_dataset(tmp_path)
    for content in (b"", b"\n\n"):
        (tmp_path / "empty.xyz").write_bytes(content)
        with pytest.raises(DatasetError, match=r"empty\.xyz: expected frames .* got an empty file"):
            read_dataset(tmp_path / "empty.xyz")
    (tmp_path / "binary.xyz").write_bytes(bytes(range(256)))
    with pytest.raises(DatasetError, match=r"binary\.xyz"):
        read_dataset(tmp_path / "binary.xyz")
    (tmp_path / "cut.xyz.gz").write_bytes(gzip.compress(GOOD.encode() * 50)[:-20])
    with pytest.raises(DatasetError, match=r"cut\.xyz\.gz"):
        read_dataset(tmp_path / "cut.xyz.gz")
    (tmp_path / "not.xyz.gz").write_bytes(GOOD.encode())
    with pytest.raises(DatasetError, match=r"not\.xyz\.gz"):
        read_dataset(tmp_path / "not.xyz.gz")


def test_spellings_of_others(tmp_path):
    """Blanks around '=', keys in any case, carriage returns, blank lines at the end, stress in place of the virial."""
    text = GOOD.replace("energy=-3 ", 'ENERGY = -3 pbc = "T T F" ').replace("\n", "\r\n") + "\n \n"
    (tmp_path / "a.xyz").write_text(text, newline="")
    (atoms,) = read_dataset(tmp_path / "a.xyz")
    assert atoms.get_potential_energy() == -3
    assert atoms.pbc.tolist() == [True, True, False]
    assert get_labels(atoms).tolist() == ["WAT", "ION"]
    stress = " ".join(str(float(x) / -504) for x in NINE.split())
    (tmp_path / "b.xyz").write_text(GOOD.replace(f'virial="{NINE}"', f'Stress="{stress}"'))
    (found,) = read_dataset(tmp_path / "b.xyz")
    np.testing.assert_allclose(found.info["virial"], np.reshape(NINE.split(), (3, 3)).astype(float), rtol=1e-14)
    np.testing.assert_allclose(found.get_stress(), atoms.get_stress(), rtol=1e-14)
    (tmp_path / "c.xyz").write_text(GOOD.replace("energy=-3", f'stress="{stress}"'))
    (both,) = read_dataset(tmp_path / "c.xyz")
    np.testing.assert_array_equal(both.info["virial"], atoms.info["virial"])
    with pytest.raises(PropertyNotImplementedError):
        both.get_potential_energy()
    rounded = GOOD.replace("1 2 3 2 5 6 3 6 9", "1 2 3 2.0001 5 6 3 6 9")
    (tmp_path / "d.xyz").write_text(rounded)
    assert read_dataset(tmp_path / "d.xyz")[0].info["virial"][0, 1] == pytest.approx(2.00005)
