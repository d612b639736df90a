"""One evaluation: model and geometry in, energies, forces and virials out.

:func:`evaluate` is the pure form; an :class:`Evaluator` does the same and keeps what can be used again (packed
parameters, neighbour list, buffers) between calls. Neither knows of ASE.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .layout import PAGE, Parameters, Shape, workspace
from .neighbors import NeighborList
from .nep import build_kernel, sum_chunks
from .simd import LANES, aligned_empty, padded
from .threads import default_threads, run_chunks

__all__ = ["Evaluation", "EvaluationError", "Evaluator", "Geometry", "evaluate"]

# The partition into chunks depends on the number of sites only, so that sums are the same for any number of threads.
_SITES_PER_CHUNK = 64
_MAX_CHUNKS = 64
_FEWER_CHUNKS, _MANY_SITES = 32, 250_000  # bounds the memory of the force buffers


class EvaluationError(RuntimeError):
    """The geometry has no finite energy, or cannot be evaluated."""


@dataclass(frozen=True)
class Geometry:
    """Sites of one configuration.

    positions (N, 3) and cell (3, 3, rows are vectors) in Å, pbc (3,) bool, types (N,) index into ``model.species``.
    With ``first`` (R + 1,), the sites of R independent configurations one after the other, those of r from first[r] on;
    cell (R, 3, 3) and pbc (R, 3).
    """

    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    types: np.ndarray
    first: np.ndarray | None = None

    def __post_init__(self):
        positions = np.ascontiguousarray(self.positions, float)
        types = np.ascontiguousarray(self.types, np.int32)
        cell = np.ascontiguousarray(self.cell, float)
        pbc = np.ascontiguousarray(self.pbc, bool)
        if positions.ndim != 2 or positions.shape[1] != 3:
            raise ValueError(f"positions: expected shape (N, 3), got {positions.shape}")
        if types.shape != (len(positions),):
            raise ValueError(f"types: expected shape ({len(positions)},), got {types.shape}")
        replicas = () if self.first is None else (len(self.first) - 1,)
        if cell.shape != (*replicas, 3, 3) or pbc.shape != (*replicas, 3):
            raise ValueError(
                f"expected cell {(*replicas, 3, 3)} and pbc {(*replicas, 3)}, got {cell.shape} and {pbc.shape}"
            )
        for name, value in (("positions", positions), ("cell", cell)):
            if not np.isfinite(value).all():
                row = np.argwhere(~np.isfinite(value))[0][0]
                raise EvaluationError(f"{name} must be finite, but row {row} is {value[row].tolist()}")
        for name, value in (("positions", positions), ("cell", cell), ("pbc", pbc), ("types", types)):
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Evaluation:
    """Results, all freshly allocated.

    energies (N,) eV; forces (N, 3) eV/Å; virial (3, 3) eV, ``W = -dE/d(strain)``, positive = compressed; virials (N,
    3, 3) eV or None: ``W_i^{ab} = sum_j r_ij^a df_ji^b``, booked on the neighbour as heat transport needs it, not
    symmetric, their sum is ``virial``; descriptors (N, D) or None: scaled, as the network sees them.
    """

    energies: np.ndarray
    forces: np.ndarray
    virial: np.ndarray
    virials: np.ndarray | None = None
    descriptors: np.ndarray | None = None

    @property
    def energy(self) -> float:
        return float(self.energies.sum())


class KernelArguments(NamedTuple):
    """What the NEP kernel takes after its counters, in this order."""

    positions: np.ndarray  # rows of four
    types: np.ndarray
    seg: np.ndarray
    neighbors: np.ndarray
    shifts: np.ndarray
    capacity: int
    pair: np.ndarray
    zbl: np.ndarray
    weights: np.ndarray
    at: np.ndarray
    temperature: float
    chunks: np.ndarray
    touched: np.ndarray
    per_site: bool
    with_q: bool
    work: np.ndarray
    place: np.ndarray
    energies: np.ndarray
    force_parts: np.ndarray  # of each chunk
    virial_parts: np.ndarray  # of each chunk
    site_virials: np.ndarray
    descriptors: np.ndarray
    status: np.ndarray  # per chunk: a site (+ 1) without distance to another one, and where in the list


def check_temperature(model, temperature_K) -> None:
    """Raise ValueError unless ``temperature_K`` is given exactly where ``model`` has temperature as an input."""
    if model.temperature != (temperature_K is not None):
        raise ValueError(
            "this model has temperature as an input: temperature_K is required"
            if model.temperature
            else "this model has no temperature input: temperature_K must not be given"
        )


def number_types(given: np.ndarray, n_types: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """``given`` (n,), the types of a model, numbered 0, 1, ... without those that do not occur; and those that do.

    Raises ValueError for types that a model of ``n_types`` does not have.
    """
    if given.min() < 0 or given.max() >= n_types:
        raise ValueError(f"types: expected numbers from 0 to {n_types - 1}, got {given.min()} to {given.max()}")
    occurs = np.bincount(given, minlength=n_types) > 0
    return (np.cumsum(occurs) - 1).astype(np.int32)[given], tuple(np.flatnonzero(occurs).tolist())


class Evaluator:
    """Evaluates one model; reuses the neighbour list and buffers of the previous call where they fit.

    Not for two threads at once. ``threads`` None: all cores this process may use. Results do not depend on the number
    of threads or on earlier calls.
    """

    def __init__(self, model, *, threads: int | None = None, temperature_K: float | None = None):
        check_temperature(model, temperature_K)
        self.model = model
        self.threads = threads
        self.temperature_K = temperature_K
        self.neighbors = NeighborList()
        self.kernel = build_kernel(Shape.of(model))
        self._given_types = None
        self._first = None
        self._present = None
        self._buffers = {}
        self._work_key = None

    def __call__(self, geometry: Geometry, *, virials: bool = False, descriptors: bool = False) -> Evaluation:
        """Energies, forces and virial of ``geometry``; per-site virials and descriptors on request.

        Raises EvaluationError for overlapping sites and non-finite results.
        """
        n = len(geometry.positions)
        arguments, threads = self.prepare(geometry, virials=virials, descriptors=descriptors)
        run_chunks(self.kernel, arguments, threads)
        self.check_overlap(arguments.status)
        energies = arguments.energies
        forces = self._sum("forces", 3, n, threads)
        per_site = self._sum("virials", 9, n, threads).reshape(n, 3, 3) if virials else None
        if not (np.isfinite(energies).all() and np.isfinite(forces).all()):
            bad = np.flatnonzero(~(np.isfinite(energies) & np.isfinite(forces).all(axis=1)))[0]
            raise EvaluationError(
                f"energy or force of site {bad} is not finite (energy {energies[bad]}, force {forces[bad].tolist()}): "
                "are sites very close to each other?"
            )
        return Evaluation(
            energies=energies,
            forces=forces,
            virial=arguments.virial_parts.reshape(-1, 3, 3).sum(axis=0),
            virials=per_site,
            descriptors=arguments.descriptors.reshape(n, -1) * self.model.q_scaler if descriptors else None,
        )

    def prepare(self, geometry: Geometry, *, virials: bool = False, descriptors: bool = False, spare: int = 0):
        """The :class:`KernelArguments` of :attr:`kernel` for this geometry, and the number of threads.

        ``spare``: memory for so many more neighbours of a site than it has now, if the caller renews the list.
        The buffers belong to the evaluator and serve its next call too.
        """
        n = len(geometry.positions)
        if n == 0:
            raise EvaluationError("there are no sites to evaluate")
        first = np.array([0, n]) if geometry.first is None else geometry.first
        if not (np.array_equal(geometry.types, self._given_types) and np.array_equal(first, self._first)):
            self._sort_types(geometry.types)
            self._divide(first)
        types, chunks = self._types, self._chunks
        n_chunks = len(chunks) - 1
        threads = min(self.threads or default_threads(), n_chunks)

        near, p = self.neighbors, self._parameters
        near.update(geometry.positions, geometry.cell, geometry.pbc, types, p.cutoffs, chunks, threads, first)
        n_types = len(p.cutoffs)
        capacity = padded(near.longest + spare) + n_types * LANES
        work, place = self._workspace(capacity, n_types, threads)
        return KernelArguments(
            positions=near.positions,
            types=types,
            seg=near.seg,
            neighbors=near.arrays.neighbors,
            shifts=near.shifts,
            capacity=capacity,
            pair=p.pair,
            zbl=p.zbl,
            weights=p.weights,
            at=p.at,
            temperature=float(self.temperature_K or 0.0),
            chunks=chunks,
            touched=near.touched,
            per_site=virials,
            with_q=descriptors,
            work=work,
            place=place,
            energies=np.empty(n),
            force_parts=self._buffer("forces", n_chunks * n * 3),
            virial_parts=np.empty(n_chunks * 9),
            site_virials=self._buffer("virials", n_chunks * n * 9 if virials else 0),
            descriptors=np.empty(n * self.model.n_descriptor if descriptors else 0),
            status=np.zeros(n_chunks * 2, np.int64),
        ), threads

    def check_overlap(self, status: np.ndarray) -> None:
        """Raise EvaluationError if the kernel found two sites at the same place."""
        if status.any():
            self._report_overlap(*status.reshape(-1, 2)[np.flatnonzero(status[::2])[0]])

    def _report_overlap(self, site: int, entry: int):
        """Name two sites without distance: ``site`` - 1 and one of LANES neighbours from list entry ``entry`` on."""
        near, i = self.neighbors, site - 1
        packed = near.neighbors[entry : min(entry + LANES, near.seg[(i + 1) * len(self._parameters.cutoffs) + i])]
        j, shift = packed & 0xFFFFFFFF, near.shifts.reshape(-1, 4)[packed >> 32]
        positions = near.positions.reshape(-1, 4)
        j = j[np.argmin(((positions[j] - positions[i] + shift) ** 2).sum(axis=1))]
        raise EvaluationError(
            f"sites {min(i, j)} and {max(i, j)} are at the same place"
            if i != j
            else f"site {i} is at the place of its own image"
        )

    def _sort_types(self, given: np.ndarray) -> None:
        """Number the types that occur 0, 1, ...; parameters of the others are left out."""
        self._types, present = number_types(given, self.model.n_types)
        if present != self._present:
            self._parameters = Parameters(self.model, present)
            self._present = present
        self._given_types = given.copy()

    def _divide(self, first: np.ndarray) -> None:
        """Chunks of sites; each configuration is divided as it would be alone."""
        ends, counts = [np.zeros(1, np.int64)], []
        for begin, end in zip(first[:-1].tolist(), first[1:].tolist(), strict=True):
            n = end - begin
            counts.append(min(-(-n // _SITES_PER_CHUNK), _MAX_CHUNKS if n < _MANY_SITES else _FEWER_CHUNKS))
            ends.append(begin + np.linspace(0, n, counts[-1] + 1).astype(np.int64)[1:])
        self._first, self._chunks = np.array(first), np.concatenate(ends)
        self.chunk_first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def _workspace(self, capacity: int, n_types: int, threads: int):
        if self._work_key != (capacity, n_types, threads):
            self._place = workspace(Shape.of(self.model), capacity, n_types)
            # a cache line between the workspaces of two threads comes with the alignment of the parts
            self._work = aligned_empty(threads * self._place[-1])
            self._work[:] = 0.0
            self._work_key = capacity, n_types, threads
        return self._work, self._place

    def _buffer(self, name: str, size: int) -> np.ndarray:
        # pages that no chunk touches are never written, so the system never has to provide them
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size != size:
            self._buffers[name] = buffer = np.empty(size)
        return buffer

    def _sum(self, name: str, width: int, n: int, threads: int) -> np.ndarray:
        out = np.empty((n, width))
        pages = -(-n // PAGE)
        # limited by memory: not worth waking threads for small systems
        run_chunks(
            sum_chunks,
            (self.neighbors.touched, pages, width, self._buffers[name], out.ravel()),
            threads if n > 20_000 else 1,
        )
        return out


def evaluate(
    model,
    geometry: Geometry,
    *,
    virials=False,
    descriptors=False,
    threads: int | None = None,
    temperature_K: float | None = None,
) -> Evaluation:
    """Evaluate ``model`` (a :class:`~ase_nepcg.NEPModel`) at ``geometry``: a pure function.

    See :class:`Evaluator` for the arguments and :class:`Evaluation` for the results.
    """
    return Evaluator(model, threads=threads, temperature_K=temperature_K)(
        geometry, virials=virials, descriptors=descriptors
    )
