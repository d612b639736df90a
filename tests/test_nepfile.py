"""nep.txt and nep.restart: exact round trips, what else is accepted, writing."""

import dataclasses
import os
import re
import stat
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from ase_nepcg.errors import ModelError, ModelFileError
from ase_nepcg.model import ZBL, NEPModel
from ase_nepcg.nepfile import read_restart, write_atomically, write_restart

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
FILES = ["models/" + name for name in ("UNEP-v1_16metals_nep4_zbl", "carbon_2024_nep4", "silicon_2022_nep4_5body")]
FILES += ["models/water_OH_nep4", "models/water_OH_small_nep4", "pbte/nep", "mos2/nep"]
SMALL = {"n_max": (1, 1), "basis_size": (1, 1), "l_max": (2, 0, 0), "neurons": 2}
ALL_SWITCHES = {"n_max": (1, 1), "basis_size": (1, 1), "l_max": (4, 2, 1, 1, 1, 1, 1), "neurons": 2}
FLEXIBLE = ZBL(0, 0, flexible=np.tile([0.5, 1.5, *np.arange(1, 9) / 8], (3, 1)))


@pytest.fixture
def data_file(request):
    path = DATA / (request.param + ".txt")
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path


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


# ---- round trips


@pytest.mark.parametrize("data_file", FILES, indirect=True)
def test_published_files_round_trip(data_file, path):
    model = NEPModel.read(data_file)
    model.write(path)
    assert NEPModel.read(path) == model
    old, new = data_file.read_bytes().splitlines(), path.read_bytes().splitlines()
    assert new[7:] == old[7:]
    header = [[line.split() for line in lines[:7]] for lines in (old, new)]
    if "small" not in data_file.name:
        assert path.read_bytes().split() == data_file.read_bytes().split()
    else:
        assert header[0][1] == [b"cutoff", b"6.0", b"4.0", b"251", b"80"]
        assert header[1][1] == [b"cutoff", b"6", b"4", b"251", b"80"]


@pytest.mark.parametrize("data_file", FILES[:1], indirect=True)
def test_contents_of_a_published_file(data_file):
    model = NEPModel.read(data_file)
    lines = data_file.read_text().splitlines()
    assert model.name == "nep4_zbl"
    assert model.species[:2] == ("Ag", "Al")
    assert (model.zbl, model.max_neighbors, model.cutoff_form) == (ZBL(1, 2), (200, 134), "uniform")
    assert (model.l_max, model.many_body, model.neurons, model.n_descriptor) == (4, ("q222", "q1111"), 80, 35)
    per_type = 37 * 80
    assert model.w0[1, 2, 3] == float(lines[7 + per_type + 2 * 35 + 3])
    assert model.b0[1, 2] == float(lines[7 + per_type + 35 * 80 + 2])
    assert model.w1[1, 2] == float(lines[7 + per_type + 36 * 80 + 2])
    assert model.bias == float(lines[7 + 16 * per_type])
    assert model.c_radial[1, 2, 3, 4] == float(lines[8 + 16 * per_type + ((1 * 9 + 2) * 16 + 3) * 16 + 4])
    assert model.c_angular[0, 0, 0, 1] == float(lines[8 + 16 * per_type + 45 * 256 + 1])
    assert model.q_scaler[-1] == float(lines[-1])


@pytest.mark.parametrize("data_file", FILES[:1], indirect=True)
def test_reading_is_fast(data_file):
    NEPModel.read(data_file)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        NEPModel.read(data_file)
        times.append(time.perf_counter() - start)
    # 0.05 s on an idle core; the margin is for a loaded one
    assert min(times) < 0.5


def replaced(**changes):
    return lambda model: dataclasses.replace(model, **changes)


HEADERS = {
    "nep3": ({"version": 3}, None),
    "nep4": ({}, None),
    "nep5": ({"version": 5}, None),
    "nep3 zbl": ({"version": 3, "zbl": (0.7, 1.4)}, None),
    "nep5 zbl typewise": ({"version": 5, "zbl": (1, 2, 0.65)}, None),
    "nep4 zbl flexible": ({"zbl": FLEXIBLE}, None),
    "nep3 temperature": ({"version": 3, "temperature": True}, None),
    "nep4 zbl temperature": ({"zbl": FLEXIBLE, "temperature": True}, None),
    "per type": ({"cutoff": {"O": (6, 4.25), "H": (5.123456789, 3)}}, None),
    "per type, all equal": ({"cutoff": {"O": (6, 4), "H": (6, 4)}}, None),
    "typewise": ({"zbl": (1, 2)}, replaced(typewise=(2.5, 2.0, 0.7), max_neighbors=(50, 20))),
    "typewise off": ({}, replaced(typewise=(-1.0, -1.0, -1.0))),
    "short": ({"max_neighbors": None}, None),
    "two layers": ({"neurons": (3, 2)}, None),
    "two layers, nep3": ({"version": 3, "neurons": (3, 2)}, None),
    "two layers, nep5": ({"version": 5, "neurons": (3, 2)}, None),
    "all switches": (ALL_SWITCHES, None),
    "third switch only": ({"l_max": (4, 0, 0, 1)}, None),
    "L = 8": ({"l_max": (8, 2, 1)}, None),
    "200 neurons": ({"version": 5, "neurons": 200}, None),
    "label cut-off": ({"cutoff": (7.1, 1 / 3)}, None),
}


@pytest.mark.parametrize("name", HEADERS)
def test_every_header_round_trips(name, path):
    changes, edit = HEADERS[name]
    model = small(**changes)
    model = edit(model) if edit else model
    model.write(path)
    again = NEPModel.read(path)
    assert again == model
    assert again.cutoff_form == model.cutoff_form
    lines = path.read_text().splitlines()
    extra = 0 if model.zbl is None or model.zbl.flexible is None else 30
    assert len(lines) == 6 + (model.zbl is not None) + model.n_parameters + model.n_descriptor + extra
    # the random parameters have 8 digits
    assert all(re.fullmatch(r"( |-)?-?\d\.\d{7}e[+-]\d\d", line[1:]) for line in lines[8:100])


def test_free_labels_round_trip(path):
    model = NEPModel.random(["W1", "C12E5-head+tail", "x"], seed=1, **SMALL)
    model.write(path)
    assert NEPModel.read(path) == model


def test_header_is_the_one_of_gpumd():
    model = small(zbl=(1, 2.5, 0.65), cutoff={"O": (6, 4.25), "H": (5, 3)}, l_max=(4, 0, 0, 1), max_neighbors=(70, 30))
    assert lines_of(model)[:7] == [
        "nep4_zbl 2 O H ",
        "zbl 1 2.5 0.65",
        "cutoff 6 4.25 5 3 70 30",
        "n_max 1 1",
        "basis_size 1 1",
        "l_max 4 0 0 1",
        "ANN 2 0",
    ]
    assert lines_of(small(zbl=FLEXIBLE))[1] == "zbl 0 0"
    assert lines_of(small(l_max=(4, 1)))[4] == "l_max 4 2 0"
    assert lines_of(small(l_max=4))[4] == "l_max 4 0 0"
    assert lines_of(NEPModel.zeros(["O", "H"], **ALL_SWITCHES))[4] == "l_max 4 2 1 1 1 1 1"


def test_no_digit_is_lost(path):
    rng = np.random.default_rng(0)
    model = small(zbl=FLEXIBLE)
    z = rng.normal(size=model.n_parameters) * 10.0 ** rng.integers(-20, 20, model.n_parameters)
    z[:8] = [0.1 + 0.2, -0.0, 5e-324, -1.7976931348623157e308, 1e-310, 1 / 3, 123456789.0, 0.0]
    model = dataclasses.replace(model.with_parameters(z), q_scaler=rng.uniform(0.1, 1, model.n_descriptor))
    model.write(path)
    assert NEPModel.read(path) == model
    lines = path.read_text().splitlines()
    assert lines[7] == "3.0000000000000004e-01"
    assert lines[8] == " -0.0000000e+00"


# ---- what else is accepted


def edit_line(lines, number, text):
    return [*lines[: number - 1], text, *lines[number:]]


@pytest.mark.parametrize(
    ("line", "text", "expected"),
    [
        (4, "l_max 2", ()),
        (4, "l_max 2 0", ()),
        (4, "l_max 2 0 0 0 0 0 0", ()),
    ],
)
def test_missing_switches_are_off(path, line, text, expected):
    lines = lines_of(small())
    assert lines[line] == "l_max 2 0 0"
    path.write_text("\n".join(edit_line(lines, line + 1, text)) + "\n")
    assert NEPModel.read(path).many_body == expected


def test_any_nonzero_switch_is_on(path):
    model = small(l_max=(4, 2, 0, 1))
    lines = lines_of(model)
    for text in ("l_max 4 1 0 1", "l_max 4 2 0 3 0 0 0", "l_max 4 -1 0 +1"):
        path.write_text("\n".join(edit_line(lines, 5, text)) + "\n")
        assert NEPModel.read(path) == model


def test_suffixes_in_either_order(path):
    model = small(zbl=(1, 2), temperature=True)
    lines = lines_of(model)
    assert lines[0] == "nep4_zbl_temperature 2 O H "
    path.write_text("\n".join(edit_line(lines, 1, "nep4_temperature_zbl 2 O H")) + "\n")
    assert NEPModel.read(path) == model


def test_white_space_is_free(path):
    model = small()
    lines = lines_of(model)
    path.write_bytes("\r\n".join(["", *lines[:3], "  ", *lines[3:9], "", *lines[9:], "", " "]).encode())
    assert NEPModel.read(path) == model
    path.write_text("\n".join(f"\t{line} \t" for line in lines) + "\n")
    assert NEPModel.read(path) == model
    # without the last line end, as all lines are of the same length
    path.write_text("\n".join(lines))
    assert NEPModel.read(path) == model


def test_neighbor_counts_do_not_matter(path):
    lines = lines_of(small())
    path.write_text("\n".join(edit_line(lines, 2, "cutoff 6 4 0 +7")) + "\n")
    model = NEPModel.read(path)
    assert model.max_neighbors == (0, 7)
    assert dataclasses.replace(model, max_neighbors=(819, 819)) == small()


def test_other_ways_to_write_a_number(path):
    lines = lines_of(small())
    for text, value in (("1", 1.0), ("+.5E+01", 5.0), ("-1.", -1.0), ("1e-400", 0.0), ("0" * 90 + "2", 2.0)):
        path.write_text("\n".join(edit_line(lines, 10, text)) + "\n")
        assert NEPModel.read(path).parameters()[3] == value


# ---- writing


def test_writing_replaces_at_once(tmp_path, path, monkeypatch):
    model = small()
    model.write(str(path))
    before = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        small(neurons=3).write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_writing_keeps_links_and_modes(tmp_path, path):
    small().write(path)
    path.chmod(0o600)
    link = tmp_path / "link.txt"
    link.symlink_to(path)
    small(neurons=3).write(link)
    assert link.is_symlink()
    assert NEPModel.read(path).neurons == 3
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_writing_refuses_what_is_no_file(tmp_path):
    with pytest.raises(IsADirectoryError, match="expected a regular file"):
        small().write(tmp_path)
    with pytest.raises(FileNotFoundError):
        small().write(tmp_path / "absent" / "nep.txt")
    with pytest.raises(OSError, match="expected a regular file"):
        write_atomically(os.devnull, "")
    assert list(tmp_path.iterdir()) == []


def test_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small().write("nep.txt")
    assert NEPModel.read("nep.txt") == NEPModel.read(b"nep.txt") == small()


# ---- nep.restart


def test_published_restart(path):
    source = DATA / "pbte" / "nep.restart"
    if not source.exists():
        pytest.skip(f"{source} is absent")
    model = NEPModel.read(source.parent / "nep.txt")
    mu, sigma = read_restart(source, model)
    assert mu.shape == sigma.shape == (model.n_parameters,)
    assert (mu[0], sigma[0]) == (2.5474238e-01, 2.7413245e-02)
    write_restart(path, mu, sigma)
    assert path.read_bytes() == source.read_bytes()


def test_restart_round_trip(path):
    rng = np.random.default_rng(0)
    mu, sigma = rng.normal(size=50), rng.uniform(size=50)
    mu[0], sigma[0] = 0.5, 0.0
    write_restart(path, mu, sigma)
    again = read_restart(path)
    assert again[0].tolist() == mu.tolist()
    assert again[1].tolist() == sigma.tolist()
    assert path.read_text().splitlines()[0] == "  5.0000000e-01   0.0000000e+00"


@pytest.mark.parametrize(
    ("content", "message", "line"),
    [
        ("", "expected lines of numbers, got an empty file", 1),
        ("  ", "expected lines of numbers, got an empty file", 1),
        ("1 1\n1\n", "expected 2 numbers per line, got '1'", 2),
        ("1 1\n1 1 1\n", "expected 2 numbers per line, got '1 1 1'", 2),
        ("1 1 1 1\n", "expected 2 numbers per line", 1),
        ("1\n1\n", "expected 2 numbers per line, got '1'", 1),
        ("1 nan\n", "expected a number, got 'nan'", 1),
        ("1 1\n\n1 -1\n", "expected a standard deviation of at least 0, got -1", 3),
        ("1.0e+00 1.0e+00\n1.0e+00 1.0e+0", "cut off", 2),
    ],
)
def test_restart_refused(path, content, message, line):
    path.write_text(content)
    with pytest.raises(ModelFileError, match=message) as caught:
        read_restart(path)
    assert caught.value.line == line


def test_restart_must_fit_the_model(path):
    model = small()
    ones = np.ones(model.n_parameters)
    write_restart(path, ones[1:], ones[1:])
    with pytest.raises(ModelFileError, match=f"expected {len(ones)} lines of numbers, found {len(ones) - 1}"):
        read_restart(path, model)
    write_restart(path, np.ones(len(ones) + 1), np.ones(len(ones) + 1))
    with pytest.raises(ModelFileError, match=f"expected the end of the file after {len(ones)} lines"):
        read_restart(path, model)


def test_restart_arguments(path):
    with pytest.raises(ModelError, match="sigma: expected shape"):
        write_restart(path, np.ones(3), np.ones(2))
    with pytest.raises(ModelError, match="sigma: expected numbers of at least 0, got -1"):
        write_restart(path, np.ones(3), -np.ones(3))
    with pytest.raises(ModelError, match=r"mu: entry .* is nan"):
        write_restart(path, np.full(3, np.nan), np.ones(3))
    assert not path.exists()
