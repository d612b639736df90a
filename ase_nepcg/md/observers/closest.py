"""Pairs of sites that are closer than any in the training data: where a model extrapolates.

Below the smallest distance that a model has seen its forces are not to be trusted; how often a run was there, and how
far, says how much of the run depends on it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..state import inlined
from .base import Arena, Observer, ObserverError, check_positive, info_of
from .bins import BUFFER, OWN_PAIRS, PAIRS, allocate_pairs, pair_types
from .pairs import pair_kernel, pairs_of, read_pairs
from .rdf import refuse_collapse

__all__ = ["ClosePairs", "ClosePairsResult"]

# head of ints: samples; pairs that were too close, samples with such, step of the smallest distance (all per pair);
# whether the present sample has any. Of floats: square of the limits and of the smallest distances
_SAMPLES, _COUNTS, _WITH, _STEP, _NOW, _LIMITS2, _SMALLEST = range(OWN_PAIRS, OWN_PAIRS + 7)
# distances up to this factor times the limit are measured
_MARGIN = 1.25


@inlined
def _consume(ints, floats, pair, kept, step, weight):
    limit2, at = floats[ints[_LIMITS2] + pair], ints[_SMALLEST] + pair
    found = 0
    for k in range(kept):
        d2 = floats[ints[BUFFER] + k]
        if d2 < limit2:
            found += 1
        if d2 < floats[at]:
            floats[at] = d2
            ints[ints[_STEP] + pair] = step
    ints[ints[_COUNTS] + pair] += found * int(weight)
    if found > 0:
        ints[ints[_NOW] + pair] = 1


@inlined
def _finish(s, r, ints, floats):
    for k in range(ints[PAIRS]):
        ints[ints[_WITH] + k] += ints[ints[_NOW] + k]
        ints[ints[_NOW] + k] = 0
    ints[_SAMPLES] += 1


@functools.cache
def _kernel():
    return pair_kernel("close_pairs", _consume, _finish)


@dataclass(frozen=True)
class ClosePairsResult:
    """Extrapolation report for P pairs of species.

    ``limits_A`` (P,): what counts as too close; ``counts`` (P,): pairs of sites below, summed over the samples;
    ``samples_with`` (P,): samples with at least one; ``smallest_A`` (P,): smallest distance of the run, in ``step``;
    NaN and -1 if no pair came closer than 1.25 times the limit.
    """

    pairs: tuple
    limits_A: np.ndarray
    counts: np.ndarray
    samples_with: np.ndarray
    smallest_A: np.ndarray
    step: np.ndarray
    samples: int

    @property
    def found(self) -> bool:
        """True if any pair was too close."""
        return bool(self.counts.any())

    def as_table(self) -> tuple[tuple, np.ndarray]:
        names = ("limit_A", "count", "samples_with", "smallest_A", "step")
        header = ("samples", *(f"{name}_{a}-{b}" for a, b in self.pairs for name in names))
        rows = np.stack([self.limits_A, self.counts, self.samples_with, self.smallest_A, self.step], axis=1)
        return header, np.concatenate([[self.samples], rows.ravel()]).reshape(1, -1)


@dataclass(frozen=True)
class ClosePairs(Observer):
    """Count pairs closer than a limit.

    closest: {(label, label): distance in Å}, or the same as triples; pairs that are not named, or whose species the
    replica does not have, are not watched.
    """

    closest: tuple

    name = "close_pairs"

    def __post_init__(self):
        given = self.closest
        if isinstance(given, Mapping):
            given = [(*pair, d) if isinstance(pair, tuple) else (pair, d) for pair, d in given.items()]
        try:
            triples = [tuple(entry) for entry in given]
            pairs = read_pairs(self, [entry[:2] for entry in triples], "closest")
            distances = [check_positive(self, "a distance", entry[2]) for entry in triples if len(entry) == 3]
        except TypeError:
            triples, pairs, distances = (None,), (), ()
        if len(distances) != len(triples):
            raise ObserverError(
                f"ClosePairs: closest must be {{(label, label): distance}}, like {{('O', 'O'): 2.3}}; got "
                f"{self.closest!r}"
            )
        closest = tuple((*pair, d) for pair, d in zip(pairs, distances, strict=True))
        object.__setattr__(self, "closest", closest)

    @classmethod
    def from_frames(cls, frames, r_max: float = 6.0) -> ClosePairs:
        """The smallest distances in ``frames`` (ASE atoms, of the training), at most ``r_max`` Å."""
        from ase.neighborlist import neighbor_list

        from ...labels import get_labels

        frames = list(frames)
        if not frames:
            raise ObserverError("from_frames: expected at least one frame to take the smallest distances from")
        labels = [get_labels(atoms) for atoms in frames]
        species = sorted({str(label) for found in labels for label in found})
        r_max = check_positive(cls, "r_max", r_max)
        smallest = np.full((len(species), len(species)), r_max)
        for atoms, names in zip(frames, labels, strict=True):
            kinds = np.searchsorted(species, names)
            present = np.unique(kinds)
            # a short search first; it is enough if it finds all pairs
            for cutoff in (min(2.0, r_max), min(4.0, r_max), r_max):
                i, j, d = neighbor_list("ijd", atoms, cutoff)
                here = np.full_like(smallest, np.inf)
                np.minimum.at(here, (kinds[i], kinds[j]), d)
                needed = smallest[np.ix_(present, present)] > cutoff
                if not (needed & ~np.isfinite(here[np.ix_(present, present)])).any():
                    break
            smallest = np.minimum(smallest, here)
        return cls(
            {(a, b): float(smallest[k, m]) for k, a in enumerate(species) for m, b in enumerate(species) if m >= k}
        )

    def allocate(self, state, replica, info):
        arena = Arena(state, replica, info)
        present = {tuple(sorted(pair)) for pair in pairs_of(state, replica, info, None)}
        order = {label: number for number, label in enumerate(info.species)}
        pairs_known = [entry for entry in self.closest if entry[0] in order and entry[1] in order]
        watched = [entry for entry in pairs_known if tuple(sorted((order[entry[0]], order[entry[1]]))) in present]
        if not watched:
            raise ObserverError(
                f"ClosePairs: none of the pairs {', '.join(f'{a}-{b}' for a, b, _ in self.closest)} is in replica "
                f"{replica}, whose model has the species {', '.join(info.species)}"
            )
        limits = np.array([d for _, _, d in watched])
        numbers = [(order[a], order[b]) for a, b, _ in watched]
        allocate_pairs(arena, state, replica, info, numbers, _MARGIN * limits)
        for slot in (_COUNTS, _WITH, _NOW):
            arena.add_ints(slot, len(watched))
        arena.add_ints(_STEP, np.full(len(watched), -1))
        arena.add_floats(_LIMITS2, limits**2)
        arena.add_floats(_SMALLEST, np.full(len(watched), math.inf))
        return arena.build()

    def kernel(self):
        return _kernel()

    def results(self, ints, floats) -> ClosePairsResult:
        info, n = info_of(ints, floats), int(ints[PAIRS])
        refuse_collapse(self, ints)
        if ints[_SAMPLES] == 0:
            raise ObserverError(f"{self.name}: no sample yet; run at least {info.interval} steps, its interval")
        counts, samples_with, step = (ints[ints[slot] :][:n].copy() for slot in (_COUNTS, _WITH, _STEP))
        smallest = np.sqrt(floats[ints[_SMALLEST] :][:n])
        return ClosePairsResult(
            pairs=tuple((info.species[a], info.species[b]) for a, b in pair_types(ints)),
            limits_A=np.sqrt(floats[ints[_LIMITS2] :][:n]),
            counts=counts,
            samples_with=samples_with,
            smallest_A=np.where(np.isfinite(smallest), smallest, math.nan),
            step=step,
            samples=int(ints[_SAMPLES]),
        )
