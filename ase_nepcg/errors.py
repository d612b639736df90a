"""Exceptions and array checks shared by all rooms.

Where ASE has a class for a situation, ASE's class is raised (``CalculatorSetupError``, ``CalculationFailed``,
``PropertyNotImplementedError``); everything else derives from :class:`NepCGError`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import numpy as np

__all__ = ["ModelError", "ModelFileError", "NepCGError", "closest", "is_integer", "is_number", "validate_array"]


class NepCGError(Exception):
    """Base class of all errors raised by ase_nepcg that have no class of their own in ASE."""


class ModelError(NepCGError, ValueError):
    """Hyper-parameters or parameter arrays that do not describe a NEP model."""


class ModelFileError(ModelError):
    """A model file that cannot be read: names file, line and what was expected."""

    def __init__(self, path, line: int | None, message: str):
        self.path = str(path)
        self.line = line
        where = self.path if line is None else f"{self.path}, line {line}"
        super().__init__(f"{where}: {message}")


def closest(name: str, valid: Iterable[str]) -> str:
    """A half sentence that helps with a misspelt name: the nearest valid one, or all of them."""
    valid = list(valid)
    match = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    if match:
        return f"did you mean {match[0]!r}?"
    return "valid names: " + ", ".join(sorted(valid))


def is_integer(value) -> bool:
    """Whether ``value`` is an integer, of Python or numpy; True and False are not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_number(value) -> bool:
    """Whether ``value`` is a real number, of Python or numpy; True and False are not, inf and NaN are."""
    return is_integer(value) or isinstance(value, float | np.floating)


def validate_array(name: str, value, shape: tuple, dtype=float) -> np.ndarray:
    """Return ``value`` as a contiguous array of ``dtype`` and ``shape``; ``None`` in ``shape`` matches any length.

    Raises :class:`ModelError` (a ``ValueError``) that states got and expected; non-finite entries are refused too.
    """
    try:
        array = np.ascontiguousarray(value, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{name}: expected numbers of type {np.dtype(dtype).name}, got {value!r}") from error
    # ascontiguousarray turns 0-d into 1-d
    array = array.reshape(np.shape(value))
    expected = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
    if array.ndim != len(shape) or any(n is not None and n != m for n, m in zip(shape, array.shape, strict=True)):
        raise ModelError(f"{name}: expected shape {expected}, got {array.shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ModelError(f"{name}: entry {where} is {array[where]}, expected finite numbers")
    return array
