"""Standard errors of averages over correlated series, from averages over blocks of time.

The variance of an average over a time B is ``V(B) = sum_k a_k phi(B / tau_k)`` with ``phi(x) = 2/x - 2 (1 - exp(-x)) /
x^2`` for a correlation function that is a sum of exponentials with times ``tau_k``. The scatter of n block averages of
length B about their own mean is ``D(B) = V(B) - V(n B)``. Amplitudes ``a_k >= 0`` on a grid of times, a part without
memory (``V ~ 1/B``) and a fast oscillating one (``V ~ 1/B^2``) are fitted to D at all block lengths at once; the fit
then gives V at the length of the whole run. So no block length has to be chosen, slow correlation is extrapolated
instead of cut off, and a plateau that is not reached shows as a correlation time comparable with the run.

One component alone has too few long blocks for its own fit. Components that are alike (the forces on the beads, the
elements of a virial) are therefore fitted together: each is divided by its own variance at the shortest block length,
the ratios ``D(B)/D(B_1)`` are averaged, and what the fit gives is the factor by which all of them grow. A component's
own scatter of longer blocks corrects the factor as far as its own number of blocks allows.

Blocking: Flyvbjerg & Petersen, J. Chem. Phys. 91, 461 (1989). The rest follows from the formulas above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls
from scipy.special import gammaincinv

__all__ = ["BlockErrors", "block_errors", "drift_of"]

# fewer blocks than this give no error
MIN_BLOCKS = 8
# longest block: this part of the run, or so short that a pool has this many degrees of freedom at least
_FEWEST, _FREEDOM = 3, 30
# longest correlation time of the fit: this part of the run, and not longer than the longest block. Longer ones are
# hardly seen in a run; with them the errors of single runs scatter more (16 runs of water: by 24 instead of 21 %)
_LONGEST = 0.06
# an error bar is not to be trusted if the variance grows by more than this from blocks of 1/32 of the run to longer
# ones, or from there to the fitted limit (without and with longer blocks to support it): the correlation is not short
# compared with the run then. Tuned on water, where runs of 2 ps miss the slow part and runs of 20 ps do not
_GROWTH, _EXTRAPOLATED, _FITTED = 2.0, 2.4, 4.0


@dataclass(frozen=True)
class BlockErrors:
    """Standard errors (C,) of the averages, and the slowest correlation time that matters, in blocks.

    ``reliable`` (C,): False where the run is too short for the slowest correlation. ``spread(length)``: variance (C,)
    of an average over ``length`` blocks.
    """

    error: np.ndarray
    slowest: float
    reliable: np.ndarray
    _fits: tuple

    def spread(self, length: float) -> np.ndarray:
        variance = np.zeros_like(self.error)
        for pool, scale, fit in self._fits:
            variance[pool] = scale * fit(length)
        return variance


class _Fit:
    """``V(B)`` of a pool relative to ``D`` at one block."""

    def __init__(self, lengths, counts, ratio, total):
        self.taus = np.geomspace(0.5, max(min(total * _LONGEST, lengths[-1]), 1.0), 12)
        design = self._terms(lengths) - self._terms(lengths * counts)
        # the error of D from n blocks goes as D/sqrt(n - 1); D from the fit, since values that are low by chance would
        # get more weight than others
        expected = 1.0 / lengths
        for _ in range(4):
            weight = np.sqrt(counts - 1.0) / expected
            self.amplitudes, _ = nnls(design * weight[:, None], ratio * weight)
            expected = np.maximum(design @ self.amplitudes, 1e-9 * ratio[0])
        parts = self._terms(np.array([float(total)]))[0] * self.amplitudes
        # slowest time behind at least a tenth of the variance of the whole average
        late = np.cumsum(parts[2:][::-1])
        behind = np.flatnonzero(late >= 0.1 * max(parts.sum(), 1e-300))
        self.slowest = float(self.taus[::-1][behind[0]]) if len(behind) else 0.0
        # n B D(B) / (n - 1) is constant where blocks are independent
        plateau = lengths * ratio * counts / (counts - 1.0)
        base = plateau[np.argmin(np.abs(counts - 32))]
        grown = plateau[counts >= min(6, counts.max())].max() / base
        limit = _FITTED if counts.min() <= 6 else _EXTRAPOLATED
        self.reliable = bool(grown < _GROWTH and total * self(total) / base < limit)

    def _terms(self, lengths):
        lengths = np.asarray(lengths, float)[:, None]
        x = lengths / self.taus
        return np.concatenate([1 / lengths, 1 / lengths**2, 2 / x + 2 * np.expm1(-x) / x**2], axis=1)

    def __call__(self, length):
        return float((self._terms(np.array([length]))[0] * self.amplitudes).sum())


def block_errors(blocks, pools) -> BlockErrors:
    """Errors of the averages of ``blocks`` (n, C): averages over consecutive blocks of equal length.

    ``pools``: index arrays of components that are alike; together they name each component once. At least
    ``MIN_BLOCKS`` blocks; ValueError otherwise.
    """
    blocks = np.asarray(blocks, float)
    total = len(blocks)
    if total < MIN_BLOCKS:
        raise ValueError(f"blocks: expected at least {MIN_BLOCKS} of them for an error, got {total}")
    error, reliable, fits, slowest = np.zeros(blocks.shape[1]), np.ones(blocks.shape[1], bool), [], 0.0
    for pool in pools:
        if len(pool) == 0:
            continue
        lengths, counts, scatter = _scatter(blocks[:, pool])
        first = scatter[0]
        # rounding is no fluctuation
        moves = first > (1e-14 * np.abs(blocks[:, pool]).max(axis=0)) ** 2
        if not moves.any():
            fits.append((pool, np.zeros(len(pool)), lambda length: 0.0))
            continue
        ratios = scatter[:, moves] / first[moves]
        ratio = ratios.mean(axis=1)
        fit = _Fit(lengths, counts, ratio, total)
        own = _own_factor(ratios, ratio, counts)
        scale = np.zeros(len(pool))
        scale[moves] = first[moves] * own
        error[pool] = np.sqrt(scale * fit(total))
        fits.append((pool, scale, fit))
        slowest = max(slowest, fit.slowest)
        reliable[pool] = fit.reliable
    return BlockErrors(error, slowest, reliable, tuple(fits))


def _scatter(blocks):
    """Lengths (in blocks), numbers and scatter (variance about their mean, without Bessel's factor) of longer blocks.

    The beginning is left out where the number of blocks does not fit.
    """
    total, lengths, counts, scatter = len(blocks), [], [], []
    fewest = max(_FEWEST, min(1 + _FREEDOM // blocks.shape[1], total // 2))
    m = 1
    while total // m >= fewest:
        n = total // m
        longer = blocks[total - n * m :].reshape(n, m, -1).mean(axis=1)
        lengths.append(m)
        counts.append(n)
        scatter.append(longer.var(axis=0))
        m = max(m + 1, round(1.5 * m))
    return np.array(lengths, float), np.array(counts, float), np.array(scatter)


def _own_factor(ratios, pooled, counts):
    """How much the scatter of each component grows compared with its pool, (C,), average 1.

    The components' factors at about 16 blocks scatter by ``sqrt(2/15)`` by chance; what they scatter more is real. The
    observed factor is taken to that degree (Stein's shrinkage).
    """
    level = int(np.argmin(np.abs(counts - 16)))
    observed = ratios[level] / pooled[level]
    if len(observed) < 4:
        return np.ones_like(observed)
    chance = 2.0 / (counts[level] - 1.0) * (observed**2).mean() / (1.0 + 2.0 / (counts[level] - 1.0))
    real = max(observed.var() - chance, 0.0)
    factor = 1.0 + (observed - 1.0) * real / max(observed.var(), 1e-300)
    return factor / factor.mean()


def drift_of(blocks, errors: BlockErrors, pool) -> tuple[float, bool]:
    """Root mean square, over the components ``pool``, of the difference between the first quarter and the second half
    of a run in units of its error (1 where nothing drifts), and whether that is more than chance."""
    blocks = np.asarray(blocks, float)[:, pool]
    quarter, half = len(blocks) // 4, len(blocks) // 2
    difference = blocks[:quarter].mean(axis=0) - blocks[-half:].mean(axis=0)
    variance = (errors.spread(quarter) + errors.spread(half))[pool]
    moves = variance > 0
    if not moves.any():
        return 0.0, False
    square = (difference[moves] ** 2 / variance[moves]).mean()
    # components are not independent: neighbouring beads share their fluctuations
    freedom = max(1.0, moves.sum() / 6.0)
    # quantile 0.999 of chi^2 per degree of freedom
    return float(np.sqrt(square)), bool(square > 2 * gammaincinv(0.5 * freedom, 0.999) / freedom)
