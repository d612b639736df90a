"""What the linter reports: :class:`Finding`, a problem with its severity, its place and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

__all__ = ["SEVERITIES", "Finding", "plural", "shown", "uncommon", "worst_first"]

#: worst first
SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One finding of :func:`ase_nepcg.lint.lint`.

    ``severity``: ``error`` (results would be wrong, or the mapping is refused), ``warning`` (they may be, look at it)
    or ``note`` (good to know). ``code``: short name of the kind of finding. ``message``: what is the matter and what to
    do. ``sites``, ``atoms``: indices of all that are concerned, empty if that means nothing.
    """

    severity: str
    code: str
    message: str
    sites: tuple[int, ...] = ()
    atoms: tuple[int, ...] = ()

    def __post_init__(self):
        if self.severity not in SEVERITIES:
            raise ValueError(f"severity: expected one of {', '.join(SEVERITIES)}, got {self.severity!r}")
        # plain integers, so that findings compare, hash and go to JSON
        for name in ("sites", "atoms"):
            object.__setattr__(self, name, tuple(int(index) for index in getattr(self, name)))

    def __str__(self):
        places = [f"{name} {shown(values)}" for name in ("sites", "atoms") if (values := getattr(self, name))]
        return f"{self.severity} [{self.code}]: {self.message}" + (f" ({'; '.join(places)})" if places else "")


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """The findings by severity, otherwise in the order given."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def shown(values, limit: int = 8) -> str:
    """The first ``limit`` of some indices, and how many more there are."""
    values = [str(int(value)) for value in values]
    return ", ".join(values[:limit]) + (f" and {len(values) - limit} more" if len(values) > limit else "")


def uncommon(keys) -> tuple[np.ndarray, list[int]]:
    """True for each key that is not the most frequent one (or the first of several such); counts, largest first."""
    _, first, index, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    commonest = np.lexsort((first, -counts))[0]
    return index.reshape(-1) != commonest, np.sort(counts)[::-1].tolist()


def plural(count: int, noun: str) -> str:
    """``1 atom``, ``2 atoms``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
