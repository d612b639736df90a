"""NEPModel as data: validation, derived tables, parameter vector, copies."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest

from ase_nepcg.errors import ModelError
from ase_nepcg.model import COULOMB, ZBL, NEPModel

SMALL = {"n_max": (2, 1), "basis_size": (3, 2), "l_max": (3, 2, 0), "neurons": 4}


@pytest.fixture
def model():
    return NEPModel.random(["O", "H"], seed=1, **SMALL)


def test_zeros_has_the_documented_shapes():
    model = NEPModel.zeros(["W", "tail"])
    assert (model.version, model.species, model.name) == (4, ("W", "tail"), "nep4")
    assert (model.n_types, model.neurons, model.neurons2) == (2, 10, 0)
    assert (model.n_descriptor, model.n_components) == (5 + 5 * 5, (5, 5))
    assert (model.l_max, model.many_body) == (4, ("q222",))
    assert model.w0.shape == (2, 10, 30)
    assert model.b0.shape == model.w1.shape == (2, 10)
    assert model.c_radial.shape == model.c_angular.shape == (5, 9, 2, 2)
    assert model.cutoff_radial.tolist() == [6.0, 6.0]
    assert model.cutoff_angular.tolist() == [4.0, 4.0]
    assert not model.parameters().any()
    assert (model.q_scaler == 1).all()
    assert model.n_parameters == len(model.parameters()) == 2 * 32 * 10 + 1 + 2 * 4 * 45


def test_zeros_temperature_scaler_and_given_scaler():
    assert NEPModel.zeros(["O"], temperature=True).q_scaler[-2:].tolist() == [1.0, 0.001]
    scaler = np.linspace(1, 2, 30)
    assert (NEPModel.zeros(["O"], q_scaler=scaler).q_scaler == scaler).all()
    assert (NEPModel.random(["O"], q_scaler=scaler).q_scaler == scaler).all()


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "nep4"),
        ({"version": 3}, "nep3"),
        ({"version": 5, "zbl": (1, 2)}, "nep5_zbl"),
        ({"temperature": True}, "nep4_temperature"),
        ({"version": 3, "zbl": (1, 2, 0.7), "temperature": True}, "nep3_zbl_temperature"),
    ],
)
def test_name(settings, name):
    assert NEPModel.zeros(["O", "H"], **settings).name == name


def test_networks_of_the_versions():
    for version, groups in ((3, 1), (4, 2), (5, 2)):
        model = NEPModel.zeros(["O", "H"], version=version, neurons=(5, 3))
        assert model.w0.shape == (groups, 5, 30)
        assert model.w_hidden2.shape == (groups, 3, 5)
        assert model.b_hidden2.shape == model.w1.shape == (groups, 3)
        assert (model.type_bias is not None) == (version == 5)
        assert (model.neurons, model.neurons2) == (5, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"version": 2}, "version: expected 3 to 5, got 2"),
        ({"version": 4.0}, "version: expected an integer"),
        ({"neurons": 121}, "neurons: expected 1 to 120, got 121"),
        ({"neurons": (10, -1)}, "second layer: expected 0 to 120, got -1"),
        ({"neurons": (1, 2, 3)}, "neurons: expected two numbers"),
        ({"n_max": (13, 4)}, "n_max radial: expected 0 to 12, got 13"),
        ({"n_max": (4, 11)}, "n_max angular: expected 0 to 10, got 11"),
        ({"n_max": 4}, "n_max: expected two numbers"),
        ({"basis_size": (17, 8)}, "basis_size radial: expected 0 to 16"),
        ({"basis_size": (8, 13)}, "basis_size angular: expected 0 to 12"),
        ({"l_max": (9, 0, 0)}, "l_max: expected 2 to 8, got 9"),
        ({"n_max": (4, 10), "l_max": (8, 1)}, "at most 90 angular components, got 99"),
        ({"cutoff": (0, 4)}, "cutoff_radial of O: expected a radius above 0"),
        ({"cutoff": (6, 101)}, "cutoff_angular of O: expected a radius above 0 and up to 100 Å, got 101"),
        ({"cutoff": (6, float("nan"))}, "cutoff_angular: entry .* is nan"),
        ({"cutoff": (6, 4, 2)}, "cutoff: expected two numbers"),
        ({"cutoff": {"O": (6, 4)}}, "cutoff: expected the labels O, H, got O"),
        ({"cutoff": {"O": (6, 4), "H": 4}}, "cutoff of H: expected two numbers"),
        ({"temperature": True, "version": 5}, "version 5 does not"),
        ({"temperature": 300}, "temperature: expected True or False, got 300"),
        ({"zbl": (2, 1)}, "zbl: expected 0 <= inner < outer"),
        ({"zbl": (1, 2, 0)}, "zbl factor: expected a number above 0"),
        ({"q_scaler": np.ones(29)}, r"q_scaler: expected shape \(30\), got \(29,\)"),
        ({"q_scaler": np.zeros(30)}, "q_scaler: expected numbers above 0, got 0 at index 0"),
        ({"max_neighbors": (-1, 3)}, "max_neighbors radial: expected 0"),
    ],
)
def test_settings_refused(settings, message):
    with pytest.raises(ModelError, match=message):
        NEPModel.zeros(["O", "H"], **settings)


def test_labels_that_are_no_elements_exclude_zbl():
    with pytest.raises(ModelError, match="ZBL needs chemical symbols H to Pu, got 'bead'"):
        NEPModel.zeros(["O", "bead"], zbl=(1, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w0": np.zeros((2, 4, 10))}, r"w0: expected shape \(2, 4, 11\), got \(2, 4, 10\)"),
        ({"w1": np.zeros((2, 5))}, r"w1: expected shape \(2, 4\), got \(2, 5\)"),
        ({"b0": np.zeros(4)}, "b0: expected an array of shape"),
        ({"b0": np.zeros((2, 121))}, "neurons: expected 1 to 120, got 121"),
        ({"c_radial": np.zeros((3, 4, 2, 1))}, "c_radial: expected shape"),
        ({"c_angular": np.full((2, 3, 2, 2), np.inf)}, "c_angular: entry .* is inf"),
        ({"bias": float("nan")}, "bias: expected a finite number"),
        ({"bias": "0"}, "bias: expected a number"),
        ({"species": ("O",)}, "cutoff_radial: expected shape"),
        ({"type_bias": np.zeros(2)}, "type_bias: only version 5"),
        ({"version": 5}, "type_bias: expected"),
        ({"w_hidden2": np.zeros((2, 3, 4))}, "w_hidden2, b_hidden2: expected both or none"),
        ({"w_hidden2": np.zeros((2, 3, 4)), "b_hidden2": np.zeros((2, 3))}, "w1: expected shape"),
        ({"temperature": True}, "w0: expected shape"),
        ({"many_body": ()}, "w0: expected shape"),
        ({"zbl": (1, 2)}, "zbl: expected ZBL or None"),
        ({"typewise": (1.0, 1.0)}, "typewise: expected three factors"),
        ({"typewise": (1.0, 1.0, 0.0), "per_type": True}, "exclude cutoffs per type"),
        ({"typewise": (0, 0, 0.7), "zbl": ZBL(1, 2, 0.7)}, "expected one of them"),
        ({"zbl": ZBL(0, 0, flexible=np.zeros((2, 10)))}, "expected 3 rows, one per pair of types, got 2"),
    ],
)
def test_replace_validates_again(model, change, message):
    with pytest.raises(ModelError, match=message):
        dataclasses.replace(model, **change)


def test_replace_and_frozen(model):
    other = dataclasses.replace(model, bias=2.5, zbl=ZBL(0.7, 1.4))
    assert other.bias == 2.5
    assert other.name == "nep4_zbl"
    assert other.w0 is model.w0
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.bias = 1.0
    with pytest.raises(ValueError, match="read-only"):
        model.w0[0, 0, 0] = 1.0


def test_arrays_of_the_caller_stay_writable(model):
    mine = np.ones(11)
    other = dataclasses.replace(model, q_scaler=mine)
    mine[0] = 7.0
    assert other.q_scaler[0] == 1.0
    # neither views of read-only arrays nor other layouts are taken over
    assert dataclasses.replace(model, q_scaler=other.q_scaler[:]).q_scaler.base is None
    fortran = np.asfortranarray(model.w0)
    fortran.setflags(write=False)
    assert dataclasses.replace(model, w0=fortran).w0.flags.c_contiguous


def test_equality(model):
    assert model == NEPModel.random(["O", "H"], seed=1, **SMALL)
    assert model != NEPModel.random(["O", "H"], seed=2, **SMALL)
    assert model != dataclasses.replace(model, max_neighbors=(1, 1))
    assert model != dataclasses.replace(model, bias=np.nextafter(model.bias, 9))
    assert model != "nep4"
    assert ZBL(1, 2) == ZBL(1.0, 2.0)
    assert ZBL(1, 2) != ZBL(1, 2, 0.7)
    assert ZBL(0, 0, flexible=np.zeros((1, 10))) == ZBL(0, 0, flexible=np.zeros((1, 10)))
    with pytest.raises(TypeError, match="unhashable"):
        hash(model)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(model, duplicate):
    model = dataclasses.replace(model, zbl=ZBL(0, 0, flexible=np.ones((3, 10))))
    other = duplicate(model)
    assert other == model
    assert not other.w0.flags.writeable
    assert not other.zbl.flexible.flags.writeable


def test_repr_is_short(model):
    assert repr(model) == (
        "NEPModel(nep4, O H, cutoff 6/4 Å, n_max 2 1, basis_size 3 2, l_max 3+q222, 4 neurons, 177 parameters)"
    )
    many = NEPModel.zeros([f"B{i}" for i in range(20)], cutoff={f"B{i}": (4 + i / 10, 4) for i in range(20)})
    assert "(20 types), cutoff 4–5.9/4 Å" in repr(many)
    assert repr(ZBL(1, 2, 0.7)) == "ZBL(1, 2, factor=0.7)"
    assert repr(ZBL(0, 0, flexible=np.ones((3, 10)))) == "ZBL(flexible, 3 pairs)"


# ---- cutoffs


def test_pair_cutoffs_uniform_and_per_type():
    radial, angular = NEPModel.zeros(["O", "H"], cutoff=(5, 3)).pair_cutoffs()
    assert (radial == 5).all()
    assert (angular == 3).all()
    radial, angular = NEPModel.zeros(["O", "H"], cutoff={"H": (4, 3), "O": (6, 5)}).pair_cutoffs()
    assert radial.tolist() == [[6, 5], [5, 4]]
    assert angular.tolist() == [[5, 4], [4, 3]]


def test_pair_cutoffs_typewise():
    model = dataclasses.replace(NEPModel.zeros(["Au", "H"], cutoff=(6, 4)), typewise=(4.0, 2.0, 0.0))
    radial, angular = model.pair_cutoffs()
    assert radial == pytest.approx(np.array([[6, 6], [6, 2 * 0.426667 * 4]]))
    assert angular == pytest.approx(np.array([[4, 2 * (1.50667 + 0.426667)], [2 * (1.50667 + 0.426667), 4 * 0.426667]]))
    off = dataclasses.replace(NEPModel.zeros(["W1", "H"]), typewise=(-1.0, 3.0, 0.0))
    assert (off.pair_cutoffs()[1] == 4).all()
    with pytest.raises(ModelError, match="element-wise cutoff needs chemical symbols"):
        dataclasses.replace(off, typewise=(1.0, 1.0, 0.0))


def test_cutoff_form_and_counts():
    model = NEPModel.zeros(["O", "H"])
    assert (model.cutoff_form, model.max_neighbors) == ("uniform", (819, 819))
    short = dataclasses.replace(model, max_neighbors=None)
    assert short.cutoff_form == "short"
    # only the short form can do without counts
    for change in ({"per_type": True}, {"cutoff_radial": [6, 5]}, {"typewise": (1, 1, 1)}):
        other = dataclasses.replace(short, **change)
        assert other.max_neighbors == (819, 819)
        assert other.cutoff_form == ("typewise" if "typewise" in change else "per-type")
    assert NEPModel.zeros(["O", "H"], cutoff={"O": (6, 4), "H": (6, 4)}).cutoff_form == "per-type"
    # with one type both forms are the same line
    assert NEPModel.zeros(["O"], cutoff={"O": (6, 4)}).cutoff_form == "uniform"


# ---- ZBL

UNIVERSAL = [(0.18175, 3.1998), (0.50986, 0.94229), (0.28022, 0.4029), (0.02817, 0.20162)]


def zbl_energy(row, r):
    inner, outer = row[:2]
    switch = 1.0 if r < inner else (0.5 + 0.5 * np.cos(np.pi * (r - inner) / (outer - inner)) if r < outer else 0.0)
    return sum(a * np.exp(-alpha * r) for a, alpha in row[2:].reshape(4, 2)) / r * switch


def test_no_zbl():
    assert NEPModel.zeros(["O"]).zbl_pairs() is None


def test_universal_zbl_is_the_textbook_formula():
    model = NEPModel.zeros(["O", "Au"], zbl=(1, 2))
    table = model.zbl_pairs()
    assert table.shape == (2, 2, 10)
    assert (table == table.transpose(1, 0, 2)).all()
    assert (table[..., 0] == 1).all()
    assert (table[..., 1] == 2).all()
    r, length = 0.8, 0.46848 / (8**0.23 + 79**0.23)
    screening = sum(a * np.exp(-b * r / length) for a, b in UNIVERSAL)
    assert zbl_energy(table[0, 1], r) == pytest.approx(14.399645 * 8 * 79 / r * screening, rel=1e-5)
    assert COULOMB == 14.399645


def test_typewise_zbl():
    table = NEPModel.zeros(["H", "Au"], zbl=(1, 2, 0.7)).zbl_pairs()
    assert table[0, 0, :2] == pytest.approx([0, 2 * 0.426667 * 0.7])
    assert table[0, 1, :2] == pytest.approx([0, (0.426667 + 1.50667) * 0.7])
    assert table[1, 1, :2].tolist() == [0, 2]


def test_legacy_typewise_zbl_has_half_the_outer_radius_inside():
    model = dataclasses.replace(NEPModel.zeros(["H", "Au"], zbl=(0.5, 2)), typewise=(0.0, 0.0, 0.6))
    table = model.zbl_pairs()
    assert table[0, 0, :2] == pytest.approx([0.426667 * 0.6, 2 * 0.426667 * 0.6])
    assert table[1, 1, :2] == pytest.approx([1.50667 * 0.6, 2 * 1.50667 * 0.6])
    off = dataclasses.replace(model, typewise=(0.0, 0.0, -1.0))
    assert off.zbl_pairs()[0, 0, :2].tolist() == [0.5, 2]


def test_flexible_zbl():
    flexible = np.array([[0.1 * i, 2 + i, *(v for pair in UNIVERSAL for v in pair)] for i in range(6)])
    flexible[:, 2:] *= np.arange(1, 7)[:, None]
    model = NEPModel.zeros(["H", "C", "O"], zbl=ZBL(0, 0, flexible=flexible))
    table = model.zbl_pairs()
    z = (1, 6, 8)
    index = {(0, 0): 0, (0, 1): 1, (0, 2): 2, (1, 1): 3, (1, 2): 4, (2, 2): 5}
    for (a, b), row in index.items():
        for entry in (table[a, b], table[b, a]):
            assert entry[:2] == pytest.approx(flexible[row, :2])
            assert entry[2::2] == pytest.approx(14.399645 * z[a] * z[b] * flexible[row, 2::2])
            assert entry[3::2] == pytest.approx(2.134563 * (z[a] ** 0.23 + z[b] ** 0.23) * flexible[row, 3::2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0), "0 <= inner < outer"),
        ((-1, 2), "0 <= inner < outer"),
        ((2, 2), "0 <= inner < outer <= 100 Å, got 2 and 2"),
        ((1, 200), "0 <= inner < outer"),
        (("1", 2), "zbl inner: expected a number"),
        ((1, float("inf")), "zbl outer: expected a finite number"),
        ((1, 2, -0.7), "zbl factor: expected a number above 0"),
        ((1, 2, None, np.zeros((1, 10))), "inner = outer = 0 and no factor"),
        ((0, 0, 0.7, np.zeros((1, 10))), "inner = outer = 0 and no factor"),
        ((0, 0, None, np.zeros((1, 9))), "zbl flexible: expected shape"),
        ((0, 0, None, [[0, 1] + [0] * 8, [2, 1] + [0] * 8]), "0 <= r_in <= r_out <= 100 Å, got 2 and 1 in row 1"),
    ],
)
def test_zbl_refused(arguments, message):
    with pytest.raises(ModelError, match=message):
        ZBL(*arguments)


# ---- parameter vector

VARIANTS = [
    {"version": 3},
    {"version": 4},
    {"version": 5},
    {"version": 4, "neurons": (4, 3)},
    {"version": 5, "neurons": (4, 3), "zbl": (1, 2)},
    {"version": 3, "neurons": (4, 3), "temperature": True},
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_round_trip(variant):
    model = NEPModel.random(["O", "H", "C"], seed=3, **(SMALL | variant))
    z = model.parameters()
    assert z.shape == (model.n_parameters,)
    assert model.with_parameters(z) == model
    other = model.with_parameters(np.arange(len(z)))
    assert other.parameters().tolist() == list(range(len(z)))
    assert (other.q_scaler == model.q_scaler).all()
    with pytest.raises(ModelError, match="parameters: expected shape"):
        model.with_parameters(z[:-1])
    z[5] = np.nan
    with pytest.raises(ModelError, match=r"parameters: entry .* is nan"):
        model.with_parameters(z)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_blocks_cover_the_vector(variant):
    model = NEPModel.random(["O", "H", "C"], seed=3, **(SMALL | variant))
    z = model.parameters()
    blocks, owner = model.parameter_blocks()
    assert owner.shape == z.shape
    assert np.concatenate([np.arange(s.start, s.stop) for s in blocks.values()]).tolist() == list(range(len(z)))
    for name, where in blocks.items():
        if "[" in name:
            field, group = name.rstrip("]").split("[")
            assert (z[where] == getattr(model, field)[int(group)].ravel()).all()
            assert (owner[where] == (3 if model.version == 3 else int(group))).all()
        else:
            assert (z[where] == np.ravel(getattr(model, name))).all()
    assert owner[blocks["bias"]].tolist() == [3]
    for name in ("c_radial", "c_angular"):
        owners = owner[blocks[name]].reshape(getattr(model, name).shape)
        for centre in range(3):
            assert (owners[:, :, centre] == centre).all()


# ---- random


def test_random_is_reproducible_and_moderate():
    settings = {"cutoff": (6, 4), "l_max": (4, 2, 1, 1, 1, 1, 1), "neurons": 40, "temperature": True}
    model = NEPModel.random(["O", "H"], seed=5, **settings)
    assert model == NEPModel.random(["O", "H"], seed=5, **settings)
    assert model == NEPModel.random(["O", "H"], seed=np.random.default_rng(5), **settings)
    assert np.std(model.w0) == pytest.approx(model.n_descriptor**-0.5, rel=0.1)
    assert np.std(model.c_radial) == pytest.approx(1 / 3, rel=0.2)
    assert model.q_scaler[-1] == 0.001
    assert all(float(f"{value:.7e}") == value for value in [*model.parameters(), *model.q_scaler])


def test_random_descriptors_are_of_order_one():
    reference = pytest.importorskip("ase_nepcg.reference")
    model = NEPModel.random(["O", "H"], seed=0, cutoff=(5, 4), n_max=(2, 1), basis_size=(4, 4), l_max=(4, 2, 1))
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[[0, 2.7]] * 3), -1).reshape(-1, 3)
    positions = grid + rng.uniform(-0.4, 0.4, grid.shape)
    result = reference.evaluate(model, positions, 5.4 * np.eye(3), True, np.arange(8) % 2)
    size = np.sqrt((result["descriptors"] ** 2).mean(0))
    assert (size > 0.01).all()
    assert (size < 10).all()
    assert np.abs(result["forces"]).max() < 100
