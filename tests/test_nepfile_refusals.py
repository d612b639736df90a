"""nep.txt: every defect is refused with its line, and no altered file is misread."""

import contextlib
import os
import re
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ase_nepcg.errors import ModelFileError
from ase_nepcg.model import ZBL, NEPModel

SMALL = {"n_max": (1, 1), "basis_size": (1, 1), "l_max": (2, 0, 0), "neurons": 2}
FLEXIBLE = ZBL(0, 0, flexible=np.tile([0.5, 1.5, *np.arange(1, 9) / 8], (3, 1)))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "nep.txt"


def small(**changes) -> NEPModel:
    return NEPModel.random(["O", "H"], seed=1, **(SMALL | changes))


def lines_of(model: NEPModel) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "nep.txt"
        model.write(path)
        return path.read_text().splitlines()


def refuse(path, content, message, line):
    """Write ``content`` (lines, text or bytes), read it, compare the message and the line."""
    if isinstance(content, list):
        content = "\n".join(content) + "\n"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ModelFileError, match=message) as caught:
        NEPModel.read(path)
    assert caught.value.line == line
    assert caught.value.path == str(path)
    assert str(caught.value).startswith(str(path) if line is None else f"{path}, line {line}: ")


def edit_line(lines, number, text):
    return [*lines[: number - 1], text, *lines[number:]]


# ---- refusals: header


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("nep4_dipole", "'nep4_dipole' is not supported, dipole model: .* not an energy"),
        ("nep3_polarizability", "polarizability model: .* not an energy"),
        ("nep4_charge1", "charge model"),
        ("nep4_zbl_charge2", "charge model"),
        ("nep4_charge3", "charge model"),
        ("nep4_vdw", "dispersion model"),
        ("nep4_charge_vdw", "charges and dispersion"),
        ("nep4_charge2_vdw", "charges and dispersion"),
        ("nep", "nep is a model of the format NEP1; .* train the model again"),
        ("nep_zbl", "format NEP1"),
        ("nep2", "format NEP2"),
        ("nep6", "expected a model name .*, got 'nep6'; did you mean"),
        ("NEP4", r"expected a model name \(nep3, nep4 or nep5, .*got 'NEP4'"),
        ("nep4_zbI", "got 'nep4_zbI'; did you mean 'nep4_zbl'"),
        ("nep5_temperature", "got 'nep5_temperature'"),
        ("nep4_zbl_zbl", "got 'nep4_zbl_zbl'"),
        ("1.0", "got '1.0'"),
        ("x" * 100, r"got 'x{40}…'"),
    ],
)
def test_model_names_refused(path, token, message):
    refuse(path, edit_line(lines_of(small()), 1, f"{token} 2 O H"), message, 1)


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (1, "nep4", "expected 'nep4 T label_1 … label_T', got 'nep4' alone"),
        (1, "nep4 O H", "number of types: expected an integer, got 'O'"),
        (1, "nep4 2.0 O H", "number of types: expected an integer, got '2.0'"),
        (1, "nep4 0", "number of types: expected 1 to 94, got 0"),
        (1, "nep4 -1 O", "number of types: expected 1 to 94, got -1"),
        (1, "nep4 95 O H", "number of types: expected 1 to 94, got 95"),
        (1, "nep4 9999999999999 O", "number of types: expected an integer, got '9999999999999'"),
        (1, "nep4 3 O H", "expected 3 labels, got 2"),
        (1, "nep4 1 O H", "expected 1 labels, got 2"),
        (1, "nep4 2 O O", "expected different labels, got 'O' twice"),
        (1, "nep4 2 O H=1", "without blanks, quotes and '='"),
        (1, "nep4 2 O 'H'", "without blanks, quotes and '='"),
        (1, "nep4 2 O seventeen-letters", "labels of 1 to 16 characters"),
        (1, "nep4 2 O \u00c9", "expected plain text, got the byte 0xc3"),
        (1, "nep4 \uff12 O H", "expected plain text, got the byte 0xef"),
        (1, "nep4 2 O\x1cH", "expected plain text, got the byte 0x1c"),
        (2, "zbl 1 2", "expected the keyword 'cutoff', got 'zbl' .*model name with _zbl"),
        (2, "Cutoff 6 4", "expected the keyword 'cutoff', got 'Cutoff'"),
        (2, "n_max 1 1", "expected the keyword 'cutoff', got 'n_max'"),
        (2, "cutoff", "cutoff: expected 2, 4, 6, 7 numbers .for 2 types., got 0"),
        (2, "cutoff 6 4 1", "expected 2, 4, 6, 7 numbers .for 2 types., got 3"),
        (2, "cutoff 6 4 1 1 1", "numbers .for 2 types., got 5"),
        (2, "cutoff 6 4 6 4 6 4 1 1", "numbers .for 2 types., got 8"),
        (2, "cutoff 6 x 1 1", "cutoff: expected a number, got 'x'"),
        (2, "cutoff 6 1_0 1 1", "cutoff: expected a number, got '1_0'"),
        (2, "cutoff nan 4 1 1", "cutoff: expected a number, got 'nan'"),
        (2, "cutoff inf 4 1 1", "cutoff: expected a number, got 'inf'"),
        (2, "cutoff 1e999 4 1 1", "cutoff: expected a finite number, got '1e999'"),
        (2, "cutoff 6 0 1 1", "cutoff: expected a radius above 0 and up to 100 Å, got 0"),
        (2, "cutoff 6 -4", "above 0 and up to 100 Å, got -4"),
        (2, "cutoff 101 4 1 1", "above 0 and up to 100 Å, got 101"),
        (2, "cutoff 6 4 5 0 1 1", "above 0 and up to 100 Å, got 0"),
        (2, "cutoff 6 4 1.0 1", "largest neighbor count: expected an integer, got '1.0'"),
        (2, "cutoff 6 4 -1 1", "largest neighbor count radial: expected 0 to"),
        (2, "cutoff 6 4 1 1 2 0 1", "expected an angular factor above 0"),
        (2, "cutoff 6 4 1 1 2 1 y", "typewise factor: expected a number, got 'y'"),
        (3, "n_max 1", "expected 'n_max nR nA', got 1 numbers"),
        (3, "n_max 1 1 1", "expected 'n_max nR nA', got 3 numbers"),
        (3, "n_max 1 1.0", "n_max nA: expected an integer, got '1.0'"),
        (3, "n_max 1_0 1", "n_max nR: expected an integer, got '1_0'"),
        (3, "n_max 13 1", "n_max radial: expected 0 to 12, got 13"),
        (3, "n_max 1 11", "n_max angular: expected 0 to 10, got 11"),
        (3, "n_max -1 1", "n_max radial: expected 0 to 12, got -1"),
        (4, "l_max 2 0 0", "expected the keyword 'basis_size', got 'l_max' .*NEP1 or NEP2"),
        (4, "basis_size 17 1", "basis_size radial: expected 0 to 16, got 17"),
        (4, "basis_size 1 13", "basis_size angular: expected 0 to 12, got 13"),
        (5, "l_max", "l_max: expected 1 to 7 numbers, got 0"),
        (5, "l_max 4 0 0 0 0 0 0 0", "l_max: expected 1 to 7 numbers, got 8"),
        (5, "l_max 1", "l_max: expected 2 to 8, got 1"),
        (5, "l_max 9", "l_max: expected 2 to 8, got 9"),
        (5, "l_max 4 x", "l_max: expected an integer, got 'x'"),
        (5, "l_max 2 2 0 0 1", "q123 needs L >= 3, got L = 2"),
        (5, "l_max 3 2 0 0 0 0 1", "q134 needs L >= 4, got L = 3"),
        (6, "ANN 2", "expected 'ANN N1 N2', got 1 numbers"),
        (6, "ann 2 0", "expected the keyword 'ANN', got 'ann'"),
        (6, "ANN 0 0", "neurons: expected 1 to 120, got 0"),
        (6, "ANN 121 0", "neurons: expected 1 to 120, got 121"),
        (6, "ANN 1000000000 0", "neurons: expected 1 to 120, got 1000000000"),
        (6, "ANN 2 1000000000", "second layer: expected 0 to 120, got 1000000000"),
        (6, "ANN 2 -1", "second layer: expected 0 to 120, got -1"),
        (6, "ANN " + "9" * 5000 + " 0", "ANN N1: expected an integer, got '9{40}…'"),
    ],
)
def test_header_lines_refused(path, line, text, message):
    refuse(path, edit_line(lines_of(small()), line, text), message, line)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cutoff 6 4 1 1", "expected the keyword 'zbl', got 'cutoff'"),
        ("zbl 1", r"expected 'zbl inner outer \[factor\]', got 1 numbers"),
        ("zbl 1 2 0.7 1", "got 4 numbers"),
        ("zbl 2 1", "zbl: expected 0 <= inner < outer <= 100 Å, got 2 and 1"),
        ("zbl -1 2", "0 <= inner < outer"),
        ("zbl 1 2 0", "zbl factor: expected a number above 0, got 0"),
        ("zbl 0 0 0.7", "expected 'zbl 0 0' .flexible. or .* with a factor"),
        ("zbl 1 nan", "zbl: expected a number, got 'nan'"),
    ],
)
def test_zbl_line_refused(path, text, message):
    refuse(path, edit_line(lines_of(small(zbl=(1, 2))), 2, text), message, 2)


def test_elements_needed(path):
    lines = lines_of(small(zbl=(1, 2)))
    refuse(path, edit_line(lines, 1, "nep4_zbl 2 O bead"), "ZBL needs chemical symbols H to Pu, got 'bead'", 1)
    lines = edit_line(lines_of(small()), 1, "nep4 2 O bead")
    message = "an element-wise cutoff needs chemical symbols H to Pu, got 'bead'"
    refuse(path, edit_line(lines, 2, "cutoff 6 4 1 1 2 1 0"), message, 2)
    path.write_text("\n".join(edit_line(lines, 2, "cutoff 6 4 1 1 -1 -1 -1")) + "\n")
    assert NEPModel.read(path).species == ("O", "bead")


def test_two_zbl_factors(path):
    lines = lines_of(small(zbl=(1, 2, 0.7)))
    refuse(path, edit_line(lines, 3, "cutoff 6 4 1 1 -1 -1 0.6"), "a ZBL factor stands here and in the zbl line", 3)


def test_descriptor_too_long(path):
    lines = edit_line(lines_of(small()), 3, "n_max 1 10")
    refuse(path, edit_line(lines, 5, "l_max 8 1"), "at most 90 angular components, got 99", 5)


def test_nep5_allows_more_neurons(path):
    lines = edit_line(lines_of(small()), 6, "ANN 150 0")
    refuse(path, edit_line(lines, 1, "nep3 2 O H"), "neurons: expected 1 to 120, got 150", 6)
    refuse(path, edit_line(lines, 1, "nep5 2 O H"), "truncated", len(lines) + 1)


def test_absurd_sizes_are_refused_at_once(path):
    lines = edit_line(lines_of(small()), 6, "ANN 100000000000 100000000000")
    start = time.perf_counter()
    refuse(path, lines, "neurons: expected 1 to 120", 6)
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize("count", range(6))
def test_header_cut_off(path, count):
    lines = lines_of(small())
    keyword = ["model name", "'cutoff'", "'n_max'", "'basis_size'", "'l_max'", "'ANN'"][count]
    refuse(path, lines[:count] or "", f"expected the {keyword} line, got the end of the file", count + 1)


# ---- refusals: numbers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abc", "expected a number, got 'abc'"),
        ("1.0 2.0", "expected one number per line, got '1.0 2.0'"),
        ("1_000", "expected a number, got '1_000'"),
        ("nan", "expected a number, got 'nan'"),
        ("-inf", "expected a number, got '-inf'"),
        ("infinity", "expected a number, got 'infinity'"),
        ("1e999", "expected a finite number, got '1e999'"),
        ("1.0d+00", "expected a number, got '1.0d\\+00'"),
        ("1.2.3", "expected a number"),
        ("1.0-e5", "expected a number"),
        ("0x10", "expected a number, got '0x10'"),
        (".", "expected a number, got '.'"),
        ("1,5", "expected a number, got '1,5'"),
        ("\uff11.0", "expected one number per line, got the byte 0xef"),
        ("\x00", "got the byte 0x00"),
        ("1.0\r2.0", "got the byte 0x0d"),
        ("9" * 200 + "x", "expected a number, got '9{40}…'"),
    ],
)
def test_number_refused(path, text, message):
    lines = lines_of(small())
    for line in (7, 20, len(lines)):
        refuse(path, edit_line(lines, line, text), message, line)


def test_line_numbers_count_blank_lines(path):
    lines = lines_of(small())
    refuse(path, [*lines[:8], "", "", *lines[8:12], "x", *lines[13:]], "got 'x'", 15)
    refuse(path, ["", *edit_line(lines, 4, "basis_size 1 x")], "KA: expected an integer", 5)


def test_too_few_and_too_many_numbers(path):
    lines = lines_of(small())
    count = len(lines) - 6
    message = f"the file is truncated: expected {count} lines of numbers, found"
    refuse(path, lines[:-1], f"{message} {count - 1}", len(lines))
    refuse(path, lines[:6], f"{message} 0", 7)
    message = f"expected the end of the file after {count} lines of numbers, got '5.0'"
    refuse(path, [*lines, "5.0"], message, len(lines) + 1)
    refuse(path, [*lines, "", "5.0", "nonsense"], message, len(lines) + 2)
    # another l_max changes the count, so that no switch is overlooked
    refuse(path, edit_line(lines, 5, "l_max 2 2 0"), "truncated", len(lines) + 1)


def test_cut_inside_the_last_number(path):
    text = "\n".join(lines_of(small()))
    for cut in range(1, 12):
        path.write_text(text[:-cut])
        with pytest.raises(ModelFileError, match=r"cut off|expected a number|above 0"):
            NEPModel.read(path)
    refuse(path, text[:-1], "expected a line end after .* it is cut off", text.count("\n") + 1)


def test_scaler_must_be_positive(path):
    lines = lines_of(small())
    refuse(path, edit_line(lines, len(lines), "0.0"), "scaler: expected a number above 0, got 0", len(lines))
    line = len(lines) - 3
    refuse(path, ["", *edit_line(lines, line, "-1.5")], "scaler: expected a number above 0, got -1.5", line + 1)
    refuse(path, edit_line(lines, line, "1e-400"), "scaler: expected a number above 0, got 0", line)


def test_flexible_zbl_rows(path):
    lines = lines_of(small(zbl=FLEXIBLE))
    first = len(lines) - 30 + 1
    refuse(path, lines[:-1], "truncated", len(lines))
    refuse(path, edit_line(lines, first + 10, "9.0"), "expected 0 <= r_in <= r_out <= 100 Å, got 9 and 1.5", first + 10)


def test_a_huge_file_is_not_read(path):
    lines = lines_of(small())
    path.write_text("\n".join(lines) + "\n")
    with open(path, "r+b") as file:
        file.truncate(20_000_000_000)
    with pytest.raises(ModelFileError, match=r"lines of numbers, got more than [0-9]+ bytes"):
        NEPModel.read(path)
    path.write_text("\n".join([*lines, *[" " * 1000] * 3000]))
    with pytest.raises(ModelFileError, match=r"lines of numbers, got more than [0-9]+ bytes"):
        NEPModel.read(path)
    path.write_text("\n" * 100_000)
    with pytest.raises(ModelFileError, match="got a header of more than 65536 bytes"):
        NEPModel.read(path)
    for number in ("9" * 900_000, "9" * 900_000 + "x", "1e" + "9" * 900_000, "." + "0" * 900_000 + "1"):
        path.write_text("\n".join(edit_line(lines, 8, number)) + "\n")
        start = time.perf_counter()
        with contextlib.suppress(ModelFileError):
            NEPModel.read(path)
        assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"\x00" * 100,
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xfen\x00e\x00p\x00",
        b"\xef\xbb\xbfnep4 1 O\n",
        bytes(256),
    ],
)
def test_files_that_are_no_models(path, content):
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"expected (plain text|the model name line)"):
        NEPModel.read(path)


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(FileNotFoundError):
        NEPModel.read(tmp_path / "absent.txt")
    with pytest.raises(ModelFileError, match="expected a file, got a directory"):
        NEPModel.read(tmp_path)
    with pytest.raises(ModelFileError, match="expected a file, got a device or pipe"):
        NEPModel.read(os.devnull)


# ---- fuzz: an altered file is refused or means what it says

TINY = {"n_max": (0, 0), "basis_size": (1, 0), "l_max": (2, 0, 0), "neurons": 1}
SOURCES = [
    "\n".join(lines_of(NEPModel.random(["O", "H"], seed=1, **(TINY | changes)))) + "\n"
    for changes in (
        {},
        {"version": 3, "temperature": True},
        {"version": 5, "zbl": FLEXIBLE},
        {"zbl": (1, 2, 0.7), "cutoff": {"O": (6, 4), "H": (5, 3)}},
        {"neurons": (1, 1), "l_max": (4, 2, 1, 1, 1, 1, 1)},
    )
]
TOKENS = [
    "0",
    "1",
    "2",
    "3",
    "4",
    "8",
    "-1",
    "1.5",
    "1e3",
    "1e400",
    "1e-400",
    "nan",
    "inf",
    "1_0",
    "０",
    "x",
    "O",
    "zbl",
]
TOKENS += ["nep3", "nep4", "nep5", "nep4_zbl", "nep4_temperature", "cutoff", "n_max", "l_max", "ANN", "", "  ", "\n"]
POSITION = st.integers(0, 9999).map(lambda n: n / 10000)


@st.composite
def altered(draw):
    text = draw(st.sampled_from(SOURCES))
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["token", "line", "character", "cut"]))
        # header and end decide most, so they are hit more often than their share
        where = draw(st.one_of(POSITION, POSITION.map(lambda x: 0.15 * x), POSITION.map(lambda x: 1 - 0.1 * (1 - x))))
        pieces = (
            re.split(r"(\s+)", text) if kind == "token" else text.splitlines(True) if kind == "line" else list(text)
        )
        if not pieces:
            break
        index = min(int(where * len(pieces)), len(pieces) - 1)
        if kind == "cut":
            text = text[:index]
            continue
        action = draw(st.sampled_from(["delete", "duplicate", "replace", "swap"]))
        if action == "delete":
            del pieces[index]
        elif action == "duplicate":
            pieces.insert(index, pieces[index])
        elif action == "swap":
            other = int(draw(POSITION) * len(pieces))
            pieces[index], pieces[other] = pieces[other], pieces[index]
        elif kind == "character":
            pieces[index] = draw(st.one_of(st.sampled_from("0123456789+-.eE \n\r\t_"), st.characters(codec="utf-8")))
        else:
            pieces[index] = draw(st.sampled_from(TOKENS)) + "\n" * (kind == "line")
        text = "".join(pieces)
    return text


def meaning(text: str) -> tuple:
    """What a file says, by a reader that only splits: header tokens in one spelling, then the numbers."""
    lines = [line.split() for line in text.split("\n") if line.strip()]
    size = next(i for i, line in enumerate(lines) if line[0] == "ANN") + 1
    header = [[_number(token) for token in line] for line in lines[:size]]
    header[0][0] = "".join(sorted(header[0][0].replace("_", " _").split()))
    switches = next(line for line in header if line[0] == "l_max")
    switches[2:] = [bool(n) for n in switches[2:] + [0] * (8 - len(switches))]
    return header, [float(line[0]) for line in lines[size:]], {len(line) for line in lines[size:]}


def _number(token):
    try:
        return float(token)
    except ValueError:
        return token


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(altered())
def test_fuzz(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp()
    path = folder / "fuzz.txt"
    path.write_bytes(text.encode("utf-8"))
    model, refusal = None, None
    try:
        model = NEPModel.read(path)
    except ModelFileError as error:
        refusal = error
    if refusal is not None:
        assert str(refusal).startswith(f"{path}, line {refusal.line}: ")
        assert 1 <= refusal.line <= text.count("\n") + 2
        assert len(str(refusal)) < 500
        return
    model.write(path)
    assert meaning(path.read_text()) == meaning(text)
    assert NEPModel.read(path) == model


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(st.binary(max_size=300))
def test_fuzz_bytes(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes.txt"
    for prefix in (b"", b"nep4 1 O\ncutoff 6 4 1 1\n", b"\n".join(SOURCES[0].encode().split(b"\n")[:7]) + b"\n"):
        path.write_bytes(prefix + content)
        with pytest.raises(ModelFileError):
            NEPModel.read(path)
