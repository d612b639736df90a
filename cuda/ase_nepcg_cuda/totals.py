"""Energy and virial of whole replicas, summed in double precision and in a fixed order."""

from __future__ import annotations

from numba import cuda, float64

from .device import BLOCK, device_function, kernel, stage
from .lists import NOT_FINITE

__all__ = ["TOTALS", "add_totals", "block_totals", "totals"]

# numbers per replica: energy and virial
TOTALS = 10


@device_function()
def block_totals(r, block, blocks, shared, first, n, with_virials, energies, forces, virials, parts_of_blocks, state):
    """Energy and virial of every ``blocks``-th BLOCK of sites of replica r, from number ``block`` on, by one block of
    threads with its memory ``shared`` (BLOCK,)."""
    thread = cuda.threadIdx.x
    for c in range(TOTALS if with_virials else 1):
        total = 0.0
        for i in range(first[r] + block * BLOCK + thread, first[r + 1], blocks * BLOCK):
            if c == 0:
                total += float(energies[i])
                size = abs(energies[i]) + abs(forces[i]) + abs(forces[n + i]) + abs(forces[2 * n + i])
                if not size < 1e30:
                    cuda.atomic.max(state, NOT_FINITE, i + 1)
            else:
                total += float(virials[(c - 1) * n + i])
        shared[thread] = total
        cuda.syncthreads()
        width = BLOCK // 2
        while width > 0:
            if thread < width:
                shared[thread] += shared[thread + width]
            cuda.syncthreads()
            width //= 2
        if thread == 0:
            parts_of_blocks[(r * blocks + block) * TOTALS + c] = shared[0]
        cuda.syncthreads()


@kernel
def totals(first, n, with_virials, energies, forces, virials, parts_of_blocks, state):
    """:func:`block_totals` for all replicas (first dimension of the grid)."""
    shared = cuda.shared.array(BLOCK, float64)
    block_totals(
        cuda.blockIdx.x, cuda.blockIdx.y, cuda.gridDim.y, shared,
        first, n, with_virials, energies, forces, virials, parts_of_blocks, state,
    )  # fmt: skip


@stage
def add_totals(k, blocks, parts_of_blocks, out):
    """``out`` (R, TOTALS): the sums over blocks, in their order."""
    total = 0.0
    for block in range(blocks):
        total += parts_of_blocks[((k // TOTALS) * blocks + block) * TOTALS + k % TOTALS]
    out[k] = total
