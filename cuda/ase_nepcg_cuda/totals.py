"""Energy and virial of whole replicas, summed in double precision and in a fixed order."""

from __future__ import annotations

from numba import cuda, float64

from .device import BLOCK, kernel
from .lists import NOT_FINITE

__all__ = ["TOTALS", "add_totals", "totals"]

# numbers per replica: energy and virial
TOTALS = 10


@kernel
def totals(first, n, with_virials, energies, forces, virials, out, state):
    """Energy and virial of the sites of each replica (first dimension of the grid) that a block has gone over."""
    r, thread = cuda.blockIdx.x, cuda.threadIdx.x
    shared = cuda.shared.array(BLOCK, float64)
    step = cuda.gridDim.y * BLOCK
    for c in range(TOTALS if with_virials else 1):
        total = 0.0
        for i in range(first[r] + cuda.blockIdx.y * BLOCK + thread, first[r + 1], step):
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
            out[(r * cuda.gridDim.y + cuda.blockIdx.y) * TOTALS + c] = shared[0]
        cuda.syncthreads()


@kernel
def add_totals(replicas, blocks, parts_of_blocks, out):
    """``out`` (R, TOTALS): the sums over blocks, in their order."""
    k = cuda.grid(1)
    if k < replicas * TOTALS:
        total = 0.0
        for block in range(blocks):
            total += parts_of_blocks[((k // TOTALS) * blocks + block) * TOTALS + k % TOTALS]
        out[k] = total
