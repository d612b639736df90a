"""Elements, limits and array shapes."""

import numpy as np
import pytest

from ase_nepcg.errors import ModelError
from ase_nepcg.hyper import (
    RADII,
    array_shapes,
    atomic_number,
    check_integer,
    check_l_max,
    check_neurons,
    check_number,
    check_size,
    check_species,
    check_typewise,
    count_parameters,
    switches,
    unpack_parameters,
)


def test_elements_are_those_of_ase():
    data = pytest.importorskip("ase.data")
    assert list(RADII) == data.chemical_symbols[1:95]
    assert [atomic_number(symbol) for symbol in RADII] == list(range(1, 95))
    with pytest.raises(KeyError):
        atomic_number("Am")


def test_radii_are_four_thirds_of_the_covalent_radii():
    covalent = {"H": 0.32, "C": 0.75, "O": 0.63, "Si": 1.04, "Cs": 2.09, "W": 1.23, "Au": 1.13, "Pu": 1.55}
    for symbol, radius in covalent.items():
        assert RADII[symbol] == pytest.approx(4 / 3 * radius, abs=1e-5)


def test_integers_and_numbers():
    assert check_integer("n", np.int64(3), 0, 3) == 3
    assert check_number("x", np.float32(0.5)) == 0.5
    for wrong in (1.0, True, "1", None):
        with pytest.raises(ModelError, match="n: expected an integer, got"):
            check_integer("n", wrong, 0, 3)
    with pytest.raises(ModelError, match="n: expected 0 to 3, got 4"):
        check_integer("n", 4, 0, 3)
    for wrong in ("1.0", None, [1.0, 2.0]):
        with pytest.raises(ModelError, match="x: expected a number, got"):
            check_number("x", wrong)
    with pytest.raises(ModelError, match="x: expected a finite number, got nan"):
        check_number("x", float("nan"))


@pytest.mark.parametrize(
    ("species", "message"),
    [
        ("OH", "expected a sequence of labels, got the single string 'OH'"),
        ([], "expected 1 to 94 labels, got 0"),
        (["O"] * 95, "expected 1 to 94 labels, got 95"),
        (["O", ""], "labels of 1 to 16 characters, got ''"),
        (["O", 8], "labels of 1 to 16 characters, got 8"),
        (["seventeen-letters"], "labels of 1 to 16 characters"),
        (["O", "H", "O"], "different labels, got 'O' twice"),
        *((["W" + char], "printable ASCII without blanks") for char in " \t\"'`=é１\x00"),
    ],
)
def test_species_refused(species, message):
    with pytest.raises(ModelError, match=message):
        check_species(species)


def test_species_accepted():
    assert check_species(["W", "C12E5-head_group"]) == ("W", "C12E5-head_group")
    assert type(check_species(np.array(["O", "H"]))[0]) is str
    with pytest.raises(ModelError, match="ZBL needs chemical symbols H to Pu, got 'Am'"):
        check_species(["O", "Am"], "ZBL")


def test_switches_follow_the_nonzero_rule():
    assert switches(4) == (4, ())
    assert switches((4, 2, 0)) == (4, ("q222",))
    assert switches((4, 1, -1)) == (4, ("q222", "q1111"))
    assert switches((4, 2, 0, 1)) == (4, ("q222", "q112"))
    assert switches((4, False, True, 0, 7, 0, 1)) == (4, ("q1111", "q123", "q134"))
    with pytest.raises(ModelError, match="expected 1 to 7 numbers, got 8"):
        switches((4,) * 8)


@pytest.mark.parametrize(
    ("l_max", "many_body", "message"),
    [
        (1, (), "l_max: expected 2 to 8, got 1"),
        (9, (), "l_max: expected 2 to 8, got 9"),
        (2, ("q123",), "q123 needs L >= 3, got L = 2"),
        (2, ("q233",), "q233 needs L >= 3"),
        (3, ("q134",), "q134 needs L >= 4"),
        (4, ("q22",), "unknown block 'q22'; did you mean 'q222'"),
        (4, ("q1111", "q222"), "in this order"),
        (4, ("q222", "q222"), "in this order"),
    ],
)
def test_l_max_refused(l_max, many_body, message):
    with pytest.raises(ModelError, match=message):
        check_l_max(l_max, many_body)


def test_descriptor_size():
    assert check_size((4, 4), 4, ("q222",)) == 30
    assert check_size((12, 8), 4, ("q222", "q1111", "q112", "q123", "q233", "q134")) == 103
    with pytest.raises(ModelError, match="at most 90 angular components, got 91"):
        check_size((0, 6), 8, ("q222", "q1111", "q112", "q123", "q134"))
    # 90 angular components with the most radial ones are exactly the limit of the sum
    assert check_size((12, 8), 8, ("q222", "q1111")) == 103


def test_neurons():
    assert check_neurons(4, 120) == (120, 0)
    assert check_neurons(5, 200, 3) == (200, 3)
    with pytest.raises(ModelError, match="neurons: expected 1 to 120, got 121"):
        check_neurons(4, 121)
    with pytest.raises(ModelError, match="neurons: expected 1 to 120, got 0"):
        check_neurons(3, 0)
    with pytest.raises(ModelError, match="second layer: expected 0 to 120, got 1000"):
        check_neurons(4, 10, 1000)


def test_typewise_factors():
    assert check_typewise((2, 1.5, -1)) == (2.0, 1.5, -1.0)
    assert check_typewise([-1, -1, 0.7]) == (-1.0, -1.0, 0.7)
    with pytest.raises(ModelError, match="expected three factors"):
        check_typewise((1, 1))
    with pytest.raises(ModelError, match="angular factor above 0, as the radial one is, got 0"):
        check_typewise((1, 0, 0))


@pytest.mark.parametrize(
    ("version", "count"), [(3, (30 + 2) * 7 + 1), (4, (30 + 2) * 7 * 2 + 1), (5, ((30 + 2) * 7 + 1) * 2 + 1)]
)
def test_parameter_counts(version, count):
    shapes = array_shapes(version, 2, (4, 4), (8, 6), 30, (7, 0))
    coefficients = 4 * 5 * 9 + 4 * 5 * 7
    assert count_parameters(*shapes) == count + coefficients


def test_unpacking_follows_the_file_order():
    shapes = array_shapes(5, 2, (0, 0), (1, 1), 4, (3, 2))
    result = unpack_parameters(np.arange(count_parameters(*shapes), dtype=float), *shapes)
    per_type = 12 + 3 + 6 + 2 + 2 + 1
    assert list(result) == ["w0", "b0", "w_hidden2", "b_hidden2", "w1", "type_bias", "bias", "c_radial", "c_angular"]
    # neuron-major
    assert result["w0"][1, 2, 3] == per_type + 2 * 4 + 3
    assert result["w_hidden2"][0, 1, 2] == 12 + 3 + 1 * 3 + 2
    assert result["type_bias"].tolist() == [per_type - 1, 2 * per_type - 1]
    assert result["bias"] == 2 * per_type
    # n, k, centre, neighbour (fastest)
    assert result["c_radial"][0, 1, 1, 0] == 2 * per_type + 1 + 1 * 4 + 1 * 2 + 0
