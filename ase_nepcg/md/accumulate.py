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

:func:`observe_mean_force` is the observer that does this in the compiled loop. Its numbers are two flat arrays, as
those of all observers::

    ints     n, centres, N, moments; count (4); anchor (N); is_site (N)
    floats   reference; centre (centres, 3); implicit share (N); y (M); the sums of BlockTable
"""

from __future__ import annotations

import math

import numpy as np

from ..errors import validate_array
from ..potential.cache import kernel_jit
from .state import inlined

__all__ = [
    *("ANCHOR", "COUNT", "FILLED", "FULL", "LENGTH", "MOMENTS", "N_ATOMS", "N_CENTRES", "N_SITES", "ROWS", "SAMPLES"),
    *("BlockTable", "MeanForceSums", "accumulate", "add_sample", "observe", "observe_mean_force", "offsets"),
]

# rows of the table; even
ROWS = 256
# entries of ``count``
FULL, LENGTH, FILLED, SAMPLES = range(4)


@inlined
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


@inlined
def _merge(table):
    """Add neighbouring rows; the second half becomes zero."""
    half = table.shape[0] // 2
    for row in range(half):
        for c in range(table.shape[1]):
            table[row, c] = table[2 * row, c] + table[2 * row + 1, c]
    for row in range(half, table.shape[0]):
        for c in range(table.shape[1]):
            table[row, c] = 0.0


@inlined
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

    ``moments``: also keep the sums of ``y U`` and ``y U^2``. The memory does not depend on the number of samples; it
    may be given: ``count`` (4,) and ``floats`` (:meth:`size`).
    """

    def __init__(self, width: int, energy: int, moments: bool = False, count=None, floats=None):
        self.width, self.energy, self.moments = width, energy, moments
        rows = ROWS if moments else 0
        shapes = (ROWS, 1), (width,), (ROWS, width), (rows, width), (rows, width)
        floats = np.zeros(self.size(width, moments)) if floats is None else floats
        self.count = np.zeros(4, np.int64) if count is None else count
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        self.weights, self.squares, self.sums, self.sums_u, self.sums_uu = (
            floats[end - math.prod(shape) : end].reshape(shape) for end, shape in zip(ends, shapes, strict=True)
        )
        self.clear()

    @staticmethod
    def size(width: int, moments: bool) -> int:
        """Numbers in all sums together."""
        return ROWS + width + (3 if moments else 1) * ROWS * width

    def clear(self) -> None:
        """Forget all samples."""
        self.count[:] = 0, 1, 0, 0
        for array in self.arrays[1:]:
            array[:] = 0.0

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


# --- in the compiled loop ---------------------------------------------------------------------------------------------

# entries of ``ints``
N_SITES, N_CENTRES, N_ATOMS, MOMENTS, COUNT, ANCHOR = 0, 1, 2, 3, 4, 8


@inlined
def offsets(n, centres, atoms, moments):
    """Where in ``floats`` begin: centres, shares, y, weights, squares, sums, sums_u, sums_uu, and what comes behind."""
    width = 3 * n + 14
    share = 1 + 3 * centres
    y = share + atoms
    weights = y + width
    squares = weights + ROWS
    sums = squares + width
    table = ROWS * width
    more = table if moments != 0 else 0
    return 1, share, y, weights, squares, sums, sums + table, sums + table + more, sums + table + 2 * more


@kernel_jit()
def observe_mean_force(s, r, step, ints, floats):
    """One sample of the mean force, for the compiled loop."""
    n, centres, atoms = ints[N_SITES], ints[N_CENTRES], ints[N_ATOMS]
    count = ints[COUNT:ANCHOR]
    anchor, is_site = ints[ANCHOR : ANCHOR + atoms], ints[ANCHOR + atoms : ANCHOR + 2 * atoms]
    width = 3 * n + 14
    rows = ROWS if ints[MOMENTS] else 0
    at = offsets(n, centres, atoms, ints[MOMENTS])
    centre, share, y = floats[at[0] : at[1]].reshape((centres, 3)), floats[at[1] : at[2]], floats[at[2] : at[3]]
    weights, squares = floats[at[3] : at[4]].reshape((ROWS, 1)), floats[at[4] : at[5]]
    sums = floats[at[5] : at[6]].reshape((ROWS, width))
    sums_u, sums_uu = floats[at[6] : at[7]].reshape((rows, width)), floats[at[7] : at[8]].reshape((rows, width))
    begin, end = s.first[r], s.first[r + 1]
    observe(
        *(s.x[begin:end], s.v[begin:end], s.f[begin:end], s.w[begin:end], anchor, is_site, centre, share, n),
        *(s.virial[r].reshape(9), s.energy[r], floats[0], y),
    )
    accumulate(y, 1.0, width - 2, count, weights, squares, sums, sums_u, sums_uu)


class MeanForceSums:
    """The numbers of :func:`observe_mean_force` in ``ints`` and ``floats``, and views of them.

    ``bound``: the mapping bound to the atoms; ``x`` (N, 3): positions, whole molecules; ``moments``: see
    :class:`BlockTable`.
    """

    def __init__(self, bound, x, moments: bool):
        n, atoms = bound.n_sites, bound.n_atoms
        centre = np.array(bound.centres(x), float).reshape(-1, 3)
        width = 3 * n + 14
        anchor = np.array(bound.anchor_of, np.int64)
        totals = np.bincount(anchor, bound.masses, minlength=n + bound.n_implicit)
        share = np.where(anchor >= n, bound.masses / totals[anchor], 0.0)
        self.ints = np.concatenate([[n, len(centre), atoms, moments, 0, 1, 0, 0], anchor, bound.is_site]).astype(
            np.int64
        )
        head = np.concatenate([[0.0], centre.ravel(), share, np.zeros(width)])
        self.floats = np.concatenate([head, np.zeros(BlockTable.size(width, moments))])
        self.centre = self.floats[1 : 1 + centre.size].reshape(-1, 3)
        self.y = self.floats[len(head) - width : len(head)]
        self.table = BlockTable(width, width - 2, moments, self.ints[COUNT:ANCHOR], self.floats[len(head) :])

    @property
    def reference(self) -> float:
        """Energy (eV) that is taken off the potential energy of samples."""
        return float(self.floats[0])

    @reference.setter
    def reference(self, value: float) -> None:
        self.floats[0] = value
