"""Reading ``nep.in``."""

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_nepcg import NepCGError, NEPModel
from ase_nepcg.model import ZBL
from ase_nepcg.training.loss import LossSettings
from ase_nepcg.training.nep_in import NepInError, NepInput, parse_nep_in, read_nep_in

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TYPE = "type 2 Te Pb\n"


def test_defaults():
    found = parse_nep_in(TYPE)
    assert found == NepInput(species=("Te", "Pb"))
    model = found.model()
    # the example of the trainer: 42 descriptor components, 3033 parameters
    assert model.name == "nep4"
    assert (model.n_descriptor, model.n_parameters) == (42, 3033)
    assert (model.n_max, model.basis_size, model.l_max, model.many_body) == ((6, 6), (6, 6), 4, ("q222",))
    assert not model.parameters().any()
    assert found.loss_settings() == {
        "lambda_1": None,
        "lambda_2": None,
        "lambda_e": 1.0,
        "lambda_f": 1.0,
        "lambda_v": 0.1,
        "lambda_shear": 1.0,
        "force_delta": 0.0,
        "type_weight": None,
    }
    assert LossSettings(**found.loss_settings()) == LossSettings()


EVERYTHING = """\
# a comment in another language: 训练
  type 3 O H C   # three
version 3
mode 3
prediction 0
cutoff 8 4 7.5 3.5 6 3
n_max 5 4
basis_size 7 8
l_max 5 2 0 1 -1
neuron 40 0
lambda_1 0
lambda_2 1e-2
lambda_e .5
lambda_f 2
lambda_v 0.3
lambda_shear 4
force_delta 0.25
type_weight 1 0.5 0

zbl 2.5
use_typewise_cutoff_zbl 0.6
batch 20 1
population 60
generation 500
output_interval 10
save_potential 200 0 1
initial_para 0.5
sigma0 0.05
fine_tune nep.txt nep.restart 0
import_q_scaler 0
"""


def test_every_keyword():
    found = parse_nep_in(EVERYTHING)
    expected = {
        "species": ("O", "H", "C"),
        "version": 3,
        "model_type": 3,
        "prediction": False,
        "cutoff": ((8.0, 4.0), (7.5, 3.5), (6.0, 3.0)),
        "n_max": (5, 4),
        "basis_size": (7, 8),
        "l_max": (5, 1, 0, 1, 1, 0, 0),
        "neuron": 40,
        "lambda_1": 0.0,
        "lambda_2": 0.01,
        "lambda_e": 0.5,
        "lambda_f": 2.0,
        "lambda_v": 0.3,
        "lambda_shear": 4.0,
        "force_delta": 0.25,
        "type_weight": (1.0, 0.5, 0.0),
        "zbl": 2.5,
        "use_typewise_cutoff_zbl": 0.6,
        "flexible_zbl": None,
        "batch": 20,
        "full_batch": True,
        "population": 60,
        "generation": 500,
        "output_interval": 10,
        "save_potential": (200, 0, True),
        "initial_para": 0.5,
        "sigma0": 0.05,
        "fine_tune": ("nep.txt", "nep.restart"),
        "fine_tune_descriptor": False,
        "import_q_scaler": False,
    }
    assert dataclasses.asdict(found) == expected
    assert all(type(getattr(found, name)) is type(value) for name, value in expected.items())
    model = found.model()
    assert model.name == "nep3_zbl_temperature"
    assert model.zbl == ZBL(1.25, 2.5, 0.6)
    assert model.cutoff_form == "per-type"
    assert model.cutoff_radial.tolist() == [8.0, 7.5, 6.0]
    assert model.cutoff_angular.tolist() == [4.0, 3.5, 3.0]
    assert model.many_body == ("q222", "q112", "q123")
    assert (model.neurons, model.neurons2, model.l_max) == (40, 0, 5)
    assert model.q_scaler[-1] == 0.001


@pytest.mark.parametrize(
    ("line", "many_body"),
    [
        ("l_max 4", ("q222",)),
        ("l_max 4 0", ()),
        ("l_max 4 2 1", ("q222", "q1111")),
        ("l_max 4 0 0 0 0 0 1", ("q134",)),
    ],
)
def test_switches_of_l_max(line, many_body):
    assert parse_nep_in(TYPE + line).model().many_body == many_body


def test_line_ends_and_comments():
    expected = parse_nep_in("type 1 C\ngeneration 7")
    assert parse_nep_in("\r\n\ttype  1\tC\r\n#generation 8\r\n# x\r\ngeneration 7 # 9 10\r\n") == expected
    assert parse_nep_in("type 1 C#\ngeneration 7 #8").species == ("C#",)


def test_one_type():
    assert parse_nep_in("type 1 C\ncutoff 6 5").cutoff == ((6.0, 5.0),)
    assert parse_nep_in("type 1 WAT\nmodel_type 3").model().name == "nep4_temperature"


@pytest.mark.parametrize(
    "line",
    [
        "atomic_v 0",
        "charge_mode 0",
        "charge_mode 0 0",
        "lambda_q 0.1",
        "lambda_z 5e-1",
        "vdw 0",
        "charge_vdw 0",
        "output_descriptor 0",
    ],
)
def test_what_is_off_in_any_case(line):
    assert parse_nep_in(TYPE + line) == parse_nep_in(TYPE)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "expected a line with type, got the end of the file"),
        ("generation 5\n\n", 1, "expected a line with type, got the end"),
        ("type", 1, "type: expected 'type T label_1 … label_T', got no value"),
        ("type 2 Te", 1, "type: expected 2 labels, got 1"),
        ("type 0", 1, "type: expected 1 to 94, got 0"),
        ("type Te Pb", 1, "type: expected an integer, got 'Te'"),
        ("type 2 Te Te", 1, "expected different labels, got 'Te' twice"),
        ("cutoff 6 5\n" + TYPE, 1, "cutoff: expected a line with type before this one"),
        ("\n#\ntype_weight 1 2\n" + TYPE, 3, "type_weight: expected a line with type before this one"),
        ("type 1 C\ntype 1 C", 2, "type: stands in line 1 already"),
        (TYPE + "lambda_e 1\n\nlambda_e 1", 4, "lambda_e: stands in line 2 already"),
        (TYPE + "mode 0\nmodel_type 0", 3, "model_type: stands in line 2 already"),
        (TYPE + "cutof 6 5", 2, "unknown keyword 'cutof'; did you mean 'cutoff'?"),
        (TYPE + "Generation 6", 2, "did you mean 'generation'?"),
        (TYPE + "zzz 6", 2, "unknown keyword 'zzz'; valid names: "),
        (TYPE + "neuron", 2, "neuron: expected 'neuron number [0]', got no values"),
        (TYPE + "neuron 30 20", 2, "neuron: networks with a second hidden layer cannot be trained"),
        (TYPE + "neuron 121", 2, "neuron: expected 1 to 120, got 121"),
        (TYPE + "version 5", 2, "version: expected 3 to 4, got 5"),
        (TYPE + "model_type 1", 2, "model_type: 1 is a dipole model, not supported"),
        (TYPE + "mode 2", 2, "model_type: 2 is a polarizability model, not supported"),
        (TYPE + "prediction 2", 2, "prediction: expected 0 to 1, got 2"),
        (TYPE + "cutoff 6", 2, "cutoff: expected 2 numbers or 4 (a pair per species), got 1"),
        (TYPE + "cutoff 4 5", 2, "cutoff: expected an angular radius up to the radial one, got 4 and 5"),
        (TYPE + "cutoff 8 4 6 6.5", 2, "got 6 and 6.5"),
        (TYPE + "cutoff 8 2.9", 2, "cutoff: expected 3 to 100, got 2.9"),
        (TYPE + "cutoff 101 4", 2, "cutoff: expected 3 to 100, got 101"),
        (TYPE + "cutoff 8 4A", 2, "cutoff: expected a number, got '4A'"),
        (TYPE + "n_max 13 4", 2, "n_max: radial: expected 0 to 12, got 13"),
        (TYPE + "n_max 4 9", 2, "n_max: angular: expected 0 to 8, got 9"),
        (TYPE + "n_max 4.0 4", 2, "n_max: expected an integer, got '4.0'"),
        (TYPE + "basis_size 4 13", 2, "basis_size: angular: expected 0 to 12, got 13"),
        (TYPE + "l_max 1", 2, "l_max: expected 2 to 8, got 1"),
        (TYPE + "l_max 3 1 0 0 0 0 1", 2, "q134 needs L >= 4, got L = 3"),
        (TYPE + "l_max 4 1 1 1 1 1 1 1", 2, "l_max: expected 'l_max L [q222] [q1111]"),
        (TYPE + "l_max 8 1 1 1 1 1 1", 2, "l_max: descriptor: expected at most 90 angular components, got 98"),
        (TYPE + "l_max 8 1 1 1\nn_max 4 8", 3, "n_max: descriptor: expected at most 90 angular components, got 99"),
        (TYPE + "lambda_1 -1", 2, "lambda_1: expected at least 0, got -1"),
        (TYPE + "lambda_2 nan", 2, "lambda_2: expected a number, got 'nan'"),
        (TYPE + "lambda_2 1e999", 2, "lambda_2: expected a number, got '1e999'"),
        (TYPE + "lambda_v 1_0", 2, "lambda_v: expected a number, got '1_0'"),
        (TYPE + "force_delta -0.1", 2, "force_delta: expected at least 0"),
        (TYPE + "type_weight 1", 2, "type_weight: expected 2 numbers, one per species, got 1"),
        (TYPE + "type_weight 1 -1", 2, "type_weight: expected at least 0, got -1"),
        (TYPE + "type_weight 0 0", 2, "type_weight: expected a number above 0 among them"),
        (TYPE + "zbl 0.9", 2, "zbl: expected 1 to 4, got 0.9"),
        ("type 1 WAT\nzbl 2", 2, "zbl: species: ZBL needs chemical symbols H to Pu, got 'WAT'"),
        (TYPE + "use_typewise_cutoff_zbl", 2, "use_typewise_cutoff_zbl: expected a line with zbl too"),
        (TYPE + "zbl 2\nuse_typewise_cutoff_zbl 0.4", 3, "use_typewise_cutoff_zbl: expected at least 0.5, got 0.4"),
        (TYPE + "use_typewise_cutoff", 2, "use_typewise_cutoff: not supported"),
        (TYPE + "batch 0", 2, "batch: expected at least 1, got 0"),
        (TYPE + "batch 5 2", 2, "batch: expected 0 to 1, got 2"),
        (TYPE + "population 5", 2, "population: expected 10 to 200, got 5"),
        (TYPE + "generation 10000001", 2, "generation: expected 0 to 10000000, got 10000001"),
        (TYPE + "output_interval 0", 2, "output_interval: expected at least 1, got 0"),
        (TYPE + "save_potential 1000", 2, "expected 'save_potential interval format restart', got 1 value"),
        (TYPE + "save_potential 1000 2 1", 2, "save_potential: expected 0 to 1, got 2"),
        (TYPE + "initial_para 0.05", 2, "initial_para: expected 0.1 to 1, got 0.05"),
        (TYPE + "sigma0 0.2", 2, "sigma0: expected 0.01 to 0.1, got 0.2"),
        (TYPE + "fine_tune nep.txt", 2, "expected 'fine_tune nep.txt nep.restart [descriptor]', got 1 value"),
        (TYPE + "fine_tune a b\nimport_q_scaler 1", 3, "import_q_scaler: expected 0, as fine_tune takes the scaler"),
        (TYPE + "atomic_v 1", 2, "atomic_v: tensors per atom, expected 0 or no such line, got '1': not supported"),
        (TYPE + "charge_mode 1", 2, "charge_mode: charges (qNEP), expected 0 or no such line, got '1': not supported"),
        (TYPE + "charge_mode 0 1", 2, "charge_mode: charges (qNEP)"),
        (TYPE + "lambda_q 0.2", 2, "lambda_q: charges (qNEP), expected 0.1 or no such line"),
        (TYPE + "lambda_z 0.1", 2, "lambda_z: charges (qNEP), expected 0.5 or no such line"),
        (TYPE + "vdw 1", 2, "vdw: dispersion"),
        (TYPE + "charge_vdw 1", 2, "charge_vdw: charges with dispersion"),
        (TYPE + "output_descriptor 2", 2, "output_descriptor: files of descriptors"),
    ],
)
def test_errors_name_file_and_line(text, line, message):
    with pytest.raises(NepInError) as caught:
        parse_nep_in(text, "folder/nep.in")
    assert str(caught.value).startswith(f"folder/nep.in, line {line}: ")
    assert message in str(caught.value)
    assert (caught.value.path, caught.value.line) == ("folder/nep.in", line)
    assert isinstance(caught.value, NepCGError)
    assert isinstance(caught.value, ValueError)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([*EVERYTHING.splitlines(), "type 1 C", "l_max 8 1 1", "n_max 12 8"]), max_size=12))
def test_lines_in_any_order_make_a_model_or_an_error(lines):
    with contextlib.suppress(NepInError):
        assert isinstance(parse_nep_in("\n".join(lines)).model(), NEPModel)


def test_files(tmp_path):
    path = tmp_path / "nep.in"
    path.write_bytes(b"\xef\xbb\xbf# \xe8\xae\xad\xff\ntype 2 Te Pb\n")
    assert read_nep_in(str(path)) == parse_nep_in(TYPE)
    path.write_bytes(b"type 2 Te Pb\nneuron \xff\n")
    with pytest.raises(NepInError, match=r"nep\.in, line 2: neuron: expected an integer"):
        read_nep_in(path)
    path.write_text(TYPE + "#\n" * 500_000)
    with pytest.raises(NepInError, match="more than 1000000 bytes"):
        read_nep_in(path)
    with pytest.raises(FileNotFoundError):
        read_nep_in(tmp_path / "none.in")
    with pytest.raises(IsADirectoryError):
        read_nep_in(tmp_path)


def test_flexible_zbl(tmp_path):
    path, beside = tmp_path / "nep.in", tmp_path / "zbl.in"
    table = np.arange(30.0).reshape(3, 10)
    beside.write_text("\n".join(" ".join(map(str, row)) for row in table.reshape(-1, 6)) + "\n\n")
    path.write_text(TYPE)
    assert read_nep_in(path) == parse_nep_in(TYPE)  # no repulsion, no look at the file
    path.write_text(TYPE + "zbl 2\n")
    found = read_nep_in(path)
    assert found.flexible_zbl == tuple(map(tuple, table.tolist()))
    assert found.model().zbl == ZBL(0, 0, flexible=table)
    path.write_text(TYPE + "zbl 2\n\nuse_typewise_cutoff_zbl")
    with pytest.raises(NepInError, match=r"nep\.in, line 4: use_typewise_cutoff_zbl: expected no file zbl\.in"):
        read_nep_in(path)
    path.write_text(TYPE + "zbl 2\n")
    for text, message in [
        ("1 2 3\n4", r"zbl\.in, line 2: expected 30 numbers, 10 for each pair of species, got 4"),
        ("1 " * 31, r"zbl\.in, line 1: expected 30 numbers, 10 for each pair of species, got more"),
        ("1 2\nx", r"zbl\.in, line 2: zbl\.in: expected a number, got 'x'"),
        ("1 2 3 4 5\n6 7 8 9 10\n" + "2 1 1 1 1\n" * 4, r"zbl\.in, line 3: zbl: expected 0 <= r_in <= r_out"),
    ]:
        beside.write_text(text)
        with pytest.raises(NepInError, match=message):
            read_nep_in(path)


@pytest.mark.skipif(not DATA.is_dir(), reason="no shared data")
@pytest.mark.parametrize("name", ["pbte", "mos2"])
def test_published_files(name):
    found = read_nep_in(DATA / name / "nep.in")
    trained = NEPModel.read(DATA / name / "nep.txt")
    model = found.model()
    # the same header, but for the numbers of neighbours
    model = dataclasses.replace(model, max_neighbors=trained.max_neighbors, q_scaler=trained.q_scaler)
    assert model.with_parameters(trained.parameters()) == trained
    if name == "mos2":
        assert found.fine_tune == ("nep89_20250409.txt", "nep89_20250409.restart")
        assert found.fine_tune_descriptor
        assert (found.lambda_1, found.lambda_2, found.lambda_v) == (0.0, None, 1.0)
        assert (found.batch, found.full_batch, found.generation) == (5000, False, 11000)
        assert found.save_potential == (1000, 0, True)
    else:
        assert found == NepInput(species=("Te", "Pb"), generation=20000)
