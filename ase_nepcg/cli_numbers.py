"""Kinds of numbers on the command line (``type=`` of argparse), shared by the sub-commands."""

from __future__ import annotations

import argparse

__all__ = ["finite", "frame_index", "from_zero", "positive", "positive_integer"]


def finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not abs(number) < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")
    return number


def positive(text: str) -> float:
    if not finite(text) > 0:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return finite(text)


def from_zero(text: str) -> float:
    if not finite(text) >= 0:
        raise argparse.ArgumentTypeError(f"expected a number from 0, got {text}")
    return finite(text)


def positive_integer(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def frame_index(text: str) -> int | slice:
    parts = text.split(":")
    try:
        numbers = [int(part) if part.strip() else None for part in parts]
        if len(numbers) == 1 and numbers[0] is not None:
            return numbers[0]
        if 2 <= len(numbers) <= 3 and numbers[2:] != [0]:
            return slice(*numbers)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected an index or a slice such as -1, 0:10, ::2 or :, got {text!r}")
