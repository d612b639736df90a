"""Messages say got, expected and what to do."""

import numpy as np
import pytest

from ase_nepcg import NepCGError
from ase_nepcg.errors import ModelError, ModelFileError, closest, validate_array


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
