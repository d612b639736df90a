"""Functions that several kernels are made of."""

from __future__ import annotations

import numba

__all__ = ["called"]


def called(layout):
    """``numba.njit`` with the options of kernels, for a function that closes over ``layout`` and nothing else.

    Always inlined. As functions of their own these would be part of every kernel under one name, each copy optimised in
    its surroundings; the linker would take the one that was loaded first for all, and the last bits of results would
    depend on the order in which a process loads its kernels.
    """
    return numba.njit(
        forceinline=True, fastmath={"contract"}, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
    )
