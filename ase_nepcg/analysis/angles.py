"""Angles between neighbours, and how many neighbours there are."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from ase.neighborlist import neighbor_list

from ..errors import closest
from ..md.observers.base import standard_errors
from .blocks import FrameAverage
from .frames import AnalysisError, Series, count_of, positive

__all__ = ["ADFResult", "CoordinationResult", "adf", "coordination"]


@dataclass(frozen=True)
class ADFResult:
    """Angular distributions of T triplets of labels (neighbour, centre, neighbour).

    ``angle`` (bins,): middle of the bins, degrees; ``density`` (T, bins): probability per degree, which sums to one,
    with standard error ``density_error``; ``angles_per_centre`` (T,): average number of angles at a centre.
    """

    triplets: tuple
    angle: np.ndarray
    density: np.ndarray
    density_error: np.ndarray
    angles_per_centre: np.ndarray
    samples: int

    def as_table(self) -> tuple[tuple, np.ndarray]:
        header, columns = ["angle_deg"], [self.angle]
        for k, triplet in enumerate(self.triplets):
            name = "-".join(triplet)
            header += [f"density_{name}_per_deg", f"density_{name}_error"]
            columns += [self.density[k], self.density_error[k]]
        return tuple(header), np.stack(columns, axis=1)


def adf(frames, r_max, bins: int = 180, *, triplets=None) -> ADFResult:
    """Distribution of the angles b-a-c between neighbours b and c of a, both closer than ``r_max``.

    ``frames``: as of :func:`~ase_nepcg.analysis.frames.read_frames`; ``r_max`` (Å): one number, or a dict with pairs of
    labels as keys, ``{("O", "H"): 1.2}``; pairs it does not name are no neighbours. ``triplets``: of labels, centre in
    the middle; by default all that occur in the first frame. All periodic images are neighbours. Raises
    :class:`AnalysisError`.
    """
    count_of("bins", bins, 1, "a positive number of bins")
    average, series = FrameAverage(), Series(frames)
    labels = series.labels
    cutoffs = _cutoffs(r_max, labels)
    wanted = None if triplets is None else _triplets(triplets, labels)
    edges = np.linspace(0.0, 180.0, bins + 1)
    for frame in series:
        found = _angles(frame, labels, cutoffs)
        if wanted is None:
            wanted = [key for key, angles in sorted(found.items()) if len(angles)]
            if not wanted:
                raise AnalysisError(f"no site has two neighbours within {r_max!r} Å in the first frame")
        empty = np.zeros(0)
        average.add([np.histogram(found.get(key, empty), edges)[0] for key in wanted])
    counts, totals = average.mean, average.mean.sum(axis=1)
    if not totals.all():
        key = wanted[int(np.argmin(totals))]
        raise AnalysisError(f"there is no angle {'-'.join(key)} in any frame: see r_max and triplets")
    width = 180.0 / bins
    each = average.blocks()
    # fluctuations of the ratio count/total to first order
    deviations = (each - counts / totals[:, None] * each.sum(axis=2, keepdims=True)) / totals[:, None]
    pools = np.arange(counts.size).reshape(counts.shape)
    error, _ = standard_errors(deviations.reshape(len(each), -1), pools)
    centres = np.array([np.count_nonzero(labels == key[1]) for key in wanted])
    return ADFResult(
        triplets=tuple(wanted),
        angle=0.5 * (edges[1:] + edges[:-1]),
        density=counts / totals[:, None] / width,
        density_error=error.reshape(counts.shape) / width,
        angles_per_centre=totals / centres,
        samples=average.samples,
    )


def _angles(frame, labels, cutoffs) -> dict:
    """Angles in degrees at all sites: {(neighbour, centre, neighbour): array}, labels of the neighbours sorted."""
    i, j, vectors = _neighbours(frame, labels, cutoffs)
    unit = vectors / np.linalg.norm(vectors, axis=1)[:, None]
    found = {}
    start = np.searchsorted(i, np.arange(len(labels) + 1))
    # sites with equally many neighbours together
    number = np.diff(start)
    for n in np.unique(number[number > 1]).tolist():
        sites = np.flatnonzero(number == n)
        rows = start[sites][:, None] + np.arange(n)
        first, second = np.triu_indices(n, 1)
        u = unit[rows]
        cosine = np.einsum("spc,spc->sp", u[:, first], u[:, second])
        angle = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))
        one, two = np.sort(np.stack([labels[j[rows]][:, first], labels[j[rows]][:, second]]), axis=0)
        centre = np.repeat(labels[sites][:, None], len(first), axis=1)
        keys = np.stack([one.ravel(), centre.ravel(), two.ravel()], axis=1)
        kinds, place = np.unique(keys, axis=0, return_inverse=True)
        for k, kind in enumerate(kinds.tolist()):
            found.setdefault(tuple(kind), []).append(angle.ravel()[place.ravel() == k])
    return {key: np.concatenate(parts) for key, parts in found.items()}


@dataclass(frozen=True)
class CoordinationResult:
    """Numbers of neighbours for P ordered pairs (centre, neighbour).

    ``mean`` (P,) with standard error ``mean_error``; ``probability`` (P, n): of 0, 1, ... neighbours, with error.
    """

    pairs: tuple
    mean: np.ndarray
    mean_error: np.ndarray
    probability: np.ndarray
    probability_error: np.ndarray
    samples: int

    def as_table(self) -> tuple[tuple, np.ndarray]:
        header, columns = ["neighbours"], [np.arange(self.probability.shape[1])]
        for k, pair in enumerate(self.pairs):
            header += [f"probability_{'-'.join(pair)}", f"probability_{'-'.join(pair)}_error"]
            columns += [self.probability[k], self.probability_error[k]]
        return tuple(header), np.stack(columns, axis=1)


_MOST_NEIGHBOURS = 200


def coordination(frames, r_max, *, pairs=None) -> CoordinationResult:
    """How many neighbours closer than ``r_max`` sites have; arguments as of :func:`adf`, ``pairs`` of labels."""
    average, series = FrameAverage(), Series(frames)
    labels = series.labels
    cutoffs = _cutoffs(r_max, labels)
    pairs = _ordered_pairs(pairs, labels, cutoffs)
    for frame in series:
        i, j, _ = _neighbours(frame, labels, cutoffs)
        rows = []
        for centre, neighbour in pairs:
            near = np.bincount(i[labels[j] == neighbour], minlength=len(labels))[labels == centre]
            if near.max() >= _MOST_NEIGHBOURS:
                raise AnalysisError(f"a site has {near.max()} neighbours within {r_max!r} Å: r_max is too large")
            rows.append(np.bincount(near, minlength=_MOST_NEIGHBOURS) / len(near))
        average.add(rows)
    last = int(np.flatnonzero(average.mean.any(axis=0)).max()) + 1
    blocks = average.blocks()
    return CoordinationResult(
        pairs=tuple(pairs),
        mean=average.mean @ np.arange(_MOST_NEIGHBOURS),
        mean_error=standard_errors(blocks @ np.arange(_MOST_NEIGHBOURS))[0],
        probability=average.mean[:, :last],
        probability_error=average.error()[:, :last],
        samples=average.samples,
    )


# ---- settings -----------------------------------------------------------------------------------------------------


def _cutoffs(r_max, labels) -> dict:
    """{sorted pair of labels: Å}."""
    there = np.unique(labels).tolist()
    if not isinstance(r_max, dict):
        r_max = dict.fromkeys(itertools.combinations_with_replacement(there, 2), r_max)
    cutoffs = {}
    for pair, value in r_max.items():
        key = tuple(sorted(_labels_of("r_max", pair, 2, there)))
        value = positive("r_max", value, "a positive number of Å")
        if cutoffs.setdefault(key, value) != value:
            raise AnalysisError(f"r_max: {key[0]}-{key[1]} is there twice, with {cutoffs[key]:g} and {value:g} Å")
    if not cutoffs:
        raise AnalysisError("r_max: expected at least one pair of labels")
    return cutoffs


def _neighbours(frame, labels, cutoffs):
    """Centres, neighbours and vectors of all pairs within their cutoffs, sorted by centre."""
    i, j, d, vectors = neighbor_list("ijdD", frame, max(cutoffs.values()))
    there, number = np.unique(labels, return_inverse=True)
    limits = np.zeros((len(there), len(there)))
    for (a, b), value in cutoffs.items():
        one, two = np.searchsorted(there, [a, b])
        limits[one, two] = limits[two, one] = value
    near = d < limits[number[i], number[j]]
    if (d[near] == 0).any():
        raise AnalysisError("two sites are at the same place: there is no angle between them")
    return i[near], j[near], vectors[near]


def _triplets(triplets, labels) -> list:
    there = np.unique(labels).tolist()
    found = []
    for triplet in _listed("triplets", triplets):
        one, centre, two = _labels_of("triplets", triplet, 3, there)
        found.append((min(one, two), centre, max(one, two)))
    if not found or len(set(found)) < len(found):
        raise AnalysisError(f"triplets: expected different triplets of labels, got {triplets!r}")
    return found


def _ordered_pairs(pairs, labels, cutoffs) -> list:
    if pairs is None:
        return sorted({pair for a, b in cutoffs for pair in ((a, b), (b, a))})
    there = np.unique(labels).tolist()
    found = [_labels_of("pairs", pair, 2, there) for pair in _listed("pairs", pairs)]
    if not found:
        raise AnalysisError("pairs: expected at least one pair of labels")
    for pair in found:
        if tuple(sorted(pair)) not in cutoffs:
            raise AnalysisError(f"pairs: r_max says nothing about {pair[0]}-{pair[1]}")
    return found


def _listed(name, value) -> list:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise AnalysisError(f"{name}: expected a list, got {value!r}")
    return list(value)


_EXAMPLES = {2: "pairs of labels, like ('O', 'H')", 3: "triplets of labels, like ('H', 'O', 'H')"}


def _labels_of(name, value, count, there) -> tuple:
    """``value`` as a tuple of ``count`` labels that are there."""
    if not isinstance(value, tuple | list) or len(value) != count:
        raise AnalysisError(f"{name}: expected {_EXAMPLES[count]}, got {value!r}")
    for label in value:
        if label not in there:
            raise AnalysisError(f"there is no site {label!r}: {closest(str(label), there)}")
    return tuple(value)
