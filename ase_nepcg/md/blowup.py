"""Steps that are finite but make no sense: what is wrong, in words."""

from __future__ import annotations

import numpy as np
from ase import units

from ..potential.evaluate import EvaluationError
from .loop import BAD_CELL, HOT, NOT_FINITE

__all__ = ["BlowUp", "check_limits", "describe"]


class BlowUp(EvaluationError):
    """A step that is finite but makes no sense."""


def check_limits(state, limits) -> tuple[int, int] | None:
    """(reason, replica) where a state is beyond its ``limits`` (R, 4), see :class:`~ase_nepcg.md.run.Run`; None where
    it is not. As the compiled loop judges every step."""
    for r, (kinetic, speed, smallest, largest) in enumerate(limits):
        sites = slice(state.first[r], state.first[r + 1])
        v2 = (state.v[sites] ** 2).sum(axis=1)
        # also where they are not numbers
        if not (0.5 * (state.m[sites] * v2).sum() <= kinetic and v2.max(initial=0.0) <= speed**2):
            return HOT, r
        if not smallest <= abs(np.linalg.det(state.cell[r])) <= largest:
            return BAD_CELL, r
    return None


def describe(run, reason: int, where: int) -> str:
    """What is wrong with a step that was given up for ``reason`` in replica ``where``."""
    which = run.which(where)
    s = run.state
    sites = slice(s.first[where], s.first[where + 1])
    kinetic, speed, smallest, largest = run.limits[where]
    volume = abs(np.linalg.det(s.cell[where]))
    if reason == NOT_FINITE:
        bad = np.flatnonzero(~np.isfinite(s.f[sites]).all(axis=1))
        if len(bad):
            return f"the force on atom {bad[0]}{which} is {s.f[sites][bad[0]].tolist()}"
        return f"the energy{which} is not finite"
    if reason == BAD_CELL:
        return (
            f"the volume{which} is {volume:.6g} Å³, expected {smallest:.6g} to {largest:.6g} Å³: the cell collapses or "
            "flies apart"
        )
    v2 = (s.v[sites] ** 2).sum(axis=1)
    worst = int(np.argmax(v2))
    if np.sqrt(v2[worst]) > speed:
        return (
            f"atom {worst}{which} moves {np.sqrt(v2[worst]) * run.h:.3g} Å in one step, expected at most "
            f"{speed * run.h:.3g} Å"
        )
    scale = 2.0 / (s.n_dof[where] * units.kB)
    energy = 0.5 * (s.m[sites] * v2).sum()
    return f"the temperature{which} is {energy * scale:.4g} K, expected at most {kinetic * scale:.4g} K"
