"""What is averaged in a run with held sites, and sums of it over blocks of time in memory of fixed size.

One sample ``y`` of a configuration is a row of M = 3 n + 14 numbers::

    F_I      = sum_{a(i)=I} f_i                     0 ... 3n-1      mean force on each site, eV/Å
    W_mol    = W - sum_i delta_i (x) f_i            3n ... +5       molecular virial (xx yy zz yz xz xy), eV
    W        virial of the potential                3n+6 ... +5     positive = compressed, eV
    U        potential energy less a reference      3n+12           eV
    K        kinetic energy                         3n+13           eV

with ``delta_i = r_i - R_{a(i)}`` over all atoms that are not sites themselves, ``a(i)`` the anchor. Virials are
symmetrised.

Sums of ``w y`` (and of ``w y U`` and ``w y U^2`` where thermal response is wanted) over blocks of ``length`` samples
are rows of a table. When it is full, neighbouring rows are added and ``length`` doubles: the table always covers the
whole run with 128 to 256 blocks of equal length, and one more that is being filled.
"""

from __future__ import annotations

import numba
import numpy as np

from ..errors import validate_array
from ..potential.cache import kernel_jit

__all__ = ["ROWS", "BlockTable", "accumulate", "add_sample", "observe"]

# rows of the table; even
ROWS = 256
# entries of ``count``
FULL, LENGTH, FILLED, SAMPLES = range(4)

_inlined = numba.njit(
    error_model="numpy", fastmath={"contract"}, nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True
)


@_inlined
def observe(x, v, f, w, anchor, is_site, centre, implicit_share, n_sites, virial, energy, reference, y):
    """Fill ``y`` for one configuration.

    ``anchor`` (N,): below ``n_sites`` a site, else an implicit molecule, whose centre moves with its atoms
    (``implicit_share``: their mass fractions); ``centre`` (n + implicit, 3): those of the sites are constant;
    ``virial`` (9,) of the potential.
    """
    n = 3 * n_sites
    for c in range(n + 14):
        y[c] = 0.0
    for k in range(n_sites, centre.shape[0]):
        centre[k, 0] = centre[k, 1] = centre[k, 2] = 0.0
    if centre.shape[0] > n_sites:
        for i in range(anchor.size):
            a = anchor[i]
            if a >= n_sites:
                for c in range(3):
                    centre[a, c] += implicit_share[i] * x[i, c]
    xx = yy = zz = yz = xz = xy = kinetic = 0.0
    for i in range(anchor.size):
        a = anchor[i]
        fx, fy, fz = f[i, 0], f[i, 1], f[i, 2]
        if a < n_sites:
            y[3 * a] += fx
            y[3 * a + 1] += fy
            y[3 * a + 2] += fz
        if not is_site[i]:
            dx, dy, dz = x[i, 0] - centre[a, 0], x[i, 1] - centre[a, 1], x[i, 2] - centre[a, 2]
            xx += dx * fx
            yy += dy * fy
            zz += dz * fz
            yz += dy * fz + dz * fy
            xz += dx * fz + dz * fx
            xy += dx * fy + dy * fx
        kinetic += (v[i, 0] * v[i, 0] + v[i, 1] * v[i, 1] + v[i, 2] * v[i, 2]) / w[i]
    W = y[n + 6 : n + 12]
    W[0], W[1], W[2] = virial[0], virial[4], virial[8]
    W[3] = 0.5 * (virial[5] + virial[7])
    W[4] = 0.5 * (virial[2] + virial[6])
    W[5] = 0.5 * (virial[1] + virial[3])
    y[n] = W[0] - xx
    y[n + 1] = W[1] - yy
    y[n + 2] = W[2] - zz
    y[n + 3] = W[3] - 0.5 * yz
    y[n + 4] = W[4] - 0.5 * xz
    y[n + 5] = W[5] - 0.5 * xy
    y[n + 12] = energy - reference
    y[n + 13] = 0.5 * kinetic


@_inlined
def _merge(table):
    """Add neighbouring rows; the second half becomes zero."""
    half = table.shape[0] // 2
    for row in range(half):
        for c in range(table.shape[1]):
            table[row, c] = table[2 * row, c] + table[2 * row + 1, c]
    for row in range(half, table.shape[0]):
        for c in range(table.shape[1]):
            table[row, c] = 0.0


@_inlined
def accumulate(y, weight, energy, count, weights, squares, sums, sums_u, sums_uu):
    """Add the sample ``y`` (M,) with ``weight`` to the current block.

    ``weights`` (ROWS, 1), ``squares`` (M,) sum of ``w y^2``, ``sums`` (ROWS, M); ``sums_u`` and ``sums_uu`` likewise,
    or without rows. ``energy``: which entry of ``y`` is the energy.
    """
    row = count[FULL]
    u = y[energy]
    weights[row, 0] += weight
    for c in range(y.size):
        wy = weight * y[c]
        sums[row, c] += wy
        squares[c] += wy * y[c]
    if sums_u.shape[0] > 0:
        for c in range(y.size):
            wyu = weight * y[c] * u
            sums_u[row, c] += wyu
            sums_uu[row, c] += wyu * u
    count[SAMPLES] += 1
    count[FILLED] += 1
    if count[FILLED] == count[LENGTH]:
        count[FILLED] = 0
        count[FULL] += 1
        if count[FULL] == sums.shape[0]:
            _merge(weights)
            _merge(sums)
            if sums_u.shape[0] > 0:
                _merge(sums_u)
                _merge(sums_uu)
            count[FULL] //= 2
            count[LENGTH] *= 2


@kernel_jit()
def add_sample(y, weight, energy, count, weights, squares, sums, sums_u, sums_uu):
    """:func:`accumulate`, for callers outside the compiled loop."""
    accumulate(y, weight, energy, count, weights, squares, sums, sums_u, sums_uu)


class BlockTable:
    """Sums over blocks of time of samples with ``width`` numbers, the entry ``energy`` among them.

    ``moments``: also keep the sums of ``y U`` and ``y U^2``. The memory does not depend on the number of samples.
    """

    def __init__(self, width: int, energy: int, moments: bool = False):
        self.width, self.energy, self.moments = width, energy, moments
        self.clear()

    def clear(self) -> None:
        """Forget all samples."""
        self.count = np.array([0, 1, 0, 0], np.int64)
        self.weights = np.zeros((ROWS, 1))
        self.squares = np.zeros(self.width)
        self.sums = np.zeros((ROWS, self.width))
        rows = ROWS if self.moments else 0
        self.sums_u = np.zeros((rows, self.width))
        self.sums_uu = np.zeros((rows, self.width))

    @property
    def arrays(self) -> tuple:
        """What the kernels take: count, weights, squares, sums, sums_u, sums_uu."""
        return self.count, self.weights, self.squares, self.sums, self.sums_u, self.sums_uu

    def add(self, y, weight: float = 1.0) -> None:
        """Add one sample ``y`` (width,) with a weight."""
        y = validate_array("y", y, (self.width,))
        add_sample(y, float(weight), self.energy, *self.arrays)

    @property
    def samples(self) -> int:
        return int(self.count[SAMPLES])

    @property
    def length(self) -> int:
        """Samples per block."""
        return int(self.count[LENGTH])

    @property
    def full(self) -> int:
        """Number of blocks that are full."""
        return int(self.count[FULL])

    @property
    def blocks(self) -> np.ndarray:
        """Averages over the full blocks, (blocks, width), in order of time."""
        n = self.full
        return self.sums[:n] / self.weights[:n]

    @property
    def mean(self) -> np.ndarray:
        """Average over all samples, (width,)."""
        return self.sums.sum(axis=0) / self.weights.sum()

    @property
    def variance(self) -> np.ndarray:
        """Variance of single samples, (width,)."""
        return np.maximum(self.squares / self.weights.sum() - self.mean**2, 0.0)
