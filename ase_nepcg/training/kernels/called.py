"""Functions that kernels call: compiled once for all of them, and long enough that a call costs nothing."""

from __future__ import annotations

import hashlib

import numba

__all__ = ["called"]


def called(layout):
    """``numba.njit`` with the options of kernels, for a function that closes over ``layout`` and nothing else.

    The machine code of a function is part of every kernel that calls it, under a name made of its own and a counter of
    the process that compiled it. Kernels of other layouts, compiled by other processes, could bring other code under
    the same name; with the layout in the name the code is the same wherever the name is.
    """
    tag = hashlib.sha256(repr(layout).encode()).hexdigest()[:16]

    def decorate(function):
        function.__qualname__ += "_" + tag
        return numba.njit(fastmath={"contract"}, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(
            function
        )

    return decorate
