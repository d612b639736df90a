"""Messages say got, expected and what to do."""

import numpy as np
import pytest

from ase_nepcg import NepCGError
from ase_nepcg.errors import ModelError, ModelFileError, closest, is_integer, is_number, validate_array


def test_closest_names_the_nearest_or_all():
    assert closest("thread", ["threads", "device"]) == "did you mean 'threads'?"
    assert closest("zzz", ["threads", "device"]) == "valid names: device, threads"


def test_validate_array_returns_contiguous_numbers_of_the_shape():
    given = np.arange(6).reshape(2, 3).T
    array = validate_array("x", given, (None, 2))
    assert array.dtype == float
    assert array.flags.c_contiguous
    assert np.array_equal(array, given)
    assert validate_array("x", 2.5, ()).shape == ()


@pytest.mark.parametrize(
    ("value", "shape", "message"),
    [
        ([1, 2], (3,), r"x: expected shape \(3\), got \(2,\)"),
        ([[1, 2]], (None,), r"x: expected shape \(any\), got \(1, 2\)"),
        ([1, np.nan], (2,), r"x: entry \(1,\) is nan, expected finite numbers"),
        (["a"], (1,), "x: expected numbers of type float64"),
    ],
)
def test_validate_array_refuses(value, shape, message):
    with pytest.raises(ModelError, match=message):
        validate_array("x", value, shape)


def test_file_errors_name_file_and_line():
    error = ModelFileError("nep.txt", 3, "expected this")
    assert str(error) == "nep.txt, line 3: expected this"
    assert str(ModelFileError("nep.txt", None, "empty")) == "nep.txt: empty"
    assert isinstance(error, NepCGError)
    assert isinstance(error, ValueError)


@pytest.mark.parametrize("value", [0, -3, np.int64(7), np.uint8(1)])
def test_integers(value):
    assert is_integer(value)
    assert is_number(value)


@pytest.mark.parametrize("value", [1.5, float("nan"), np.float32(2.0), np.float64("inf")])
def test_numbers(value):
    assert is_number(value)
    assert not is_integer(value)


@pytest.mark.parametrize("value", [True, np.True_, "1", None, [1], np.array([1]), 1j])
def test_what_is_no_number(value):
    assert not is_number(value)
    assert not is_integer(value)
