"""Constant energy: velocity Verlet (Swope et al., J. Chem. Phys. 76, 637, 1982).

::

    v += (h/2) f/m;  x += h v;  forces;  v += (h/2) f/m

Conserved: U + K, up to an oscillation of order h^2.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..state import inlined
from ..steps import drift, hold, kick
from .base import Ensemble, Kernels

__all__ = ["NVE"]


@inlined
def _begin(s, r, h, p, q, step):
    kick(s, r, 0.5 * h)
    drift(s, r, h)
    hold(s, r)


@inlined
def _end(s, r, h, p, q, step):
    kick(s, r, 0.5 * h)


@inlined
def _extra(s, r, h, p, q):
    return 0.0


@dataclass(frozen=True)
class NVE(Ensemble):
    """Constant number of sites, volume and energy."""

    name = "nve"

    @classmethod
    def kernels(cls) -> Kernels:
        return Kernels(_begin, _end, _extra)
