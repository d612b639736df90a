from argparse import ArgumentTypeError

import pytest

from ase_nepcg.cli_numbers import finite, frame_index, from_zero, positive, positive_integer


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (finite, "-1e-3", -0.001),
        (positive, "2", 2.0),
        (from_zero, "0", 0.0),
        (positive_integer, " 3 ", 3),
        (frame_index, "-1", -1),
        (frame_index, "0:10", slice(0, 10)),
        (frame_index, "::2", slice(None, None, 2)),
        (frame_index, ":", slice(None)),
    ],
)
def test_numbers(kind, text, value):
    found = kind(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (finite, ["", "x", "nan", "inf", "1,5"]),
        (positive, ["0", "-1", "nan", "1e999"]),
        (from_zero, ["-1", "nan", "-inf"]),
        (positive_integer, ["0", "-1", "1.0", "1e3", "²"]),
        (frame_index, ["", "a", "1:2:0", "1:2:3:4", "1.5"]),
    ],
)
def test_what_is_none(kind, texts):
    for text in texts:
        with pytest.raises(ArgumentTypeError, match="expected"):
            kind(text)
