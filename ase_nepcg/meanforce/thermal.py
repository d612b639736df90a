"""Thermal response from the moments of a run: how averages at fixed sites change with temperature.

For any X that does not contain T (arXiv:2602.23198; sums over a :class:`~ase_nepcg.md.accumulate.BlockTable`)::

    dX  = X - <X>,   dU = U - <U>
    k2  = < dX dU >,   k3 = < dX dU^2 >
    d<X>/dT   = k2 / (k T^2)
    d2<X>/dT2 = k3 / (k^2 T^4) - 2 k2 / (k T^3)
"""

from __future__ import annotations

import numpy as np
from ase.units import kB

__all__ = ["response", "response_blocks"]


def _moments(table):
    """Averages of y, y U, y U^2 over all samples, each (width,)."""
    if not table.moments:
        raise ValueError("this table has no moments with the energy: make it with moments=True")
    total = table.weights.sum()
    return (part.sum(axis=0) / total for part in (table.sums, table.sums_u, table.sums_uu))


def _cumulants(table):
    y, yu, yuu = _moments(table)
    e = table.energy
    u, uu = y[e], yu[e]
    k2 = yu - y * u
    k3 = yuu - 2 * u * yu + u**2 * y - y * (uu - u**2)
    return y, u, uu - u**2, k2, k3


def _derivatives(k2, k3, kT):
    T = kT / kB
    return k2 / (kB * T**2), k3 / (kB**2 * T**4) - 2 * k2 / (kB * T**3)


def response(table, kT: float) -> tuple[np.ndarray, np.ndarray]:
    """First and second derivative with respect to temperature of all averages of ``table``, (width,) each, per K."""
    _, _, _, k2, k3 = _cumulants(table)
    return _derivatives(k2, k3, kT)


def response_blocks(table, kT: float) -> tuple[np.ndarray, np.ndarray]:
    """Series (blocks, width) whose averages scatter as the two derivatives do: their linearisation in the averages.

    ``k2`` responds to a block as the average of ``dX dU - k2``, ``k3`` as ``dX dU^2 - k3 - dX var(U) - 2 dU k2``, with
    deviations from the averages over the whole run.
    """
    y, u, variance, k2, k3 = _cumulants(table)
    n = table.full
    weight = table.weights[:n]
    by, byu, byuu = (part[:n] / weight for part in (table.sums, table.sums_u, table.sums_uu))
    bu, buu = by[:, [table.energy]], byu[:, [table.energy]]
    dx, du = by - y, bu - u
    dxdu = byu - y * bu - u * by + y * u
    dxduu = byuu - 2 * u * byu + u**2 * by - y * (buu - 2 * u * bu + u**2)
    influence2 = dxdu - k2
    influence3 = dxduu - k3 - dx * variance - 2 * du * k2
    return _derivatives(influence2, influence3, kT)
