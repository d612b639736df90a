"""Averages over frames with errors, for properties that are counted outside the compiled loop."""

from __future__ import annotations

import numpy as np

from ..md.observers.base import standard_errors

__all__ = ["FrameAverage"]

_ROWS = 256


class FrameAverage:
    """Mean over frames of an array of numbers, and its standard error from blocks of consecutive frames.

    Memory does not depend on the number of frames: when 256 blocks are full, neighbours are added.
    """

    def __init__(self):
        self._sums, self._length, self._filled = [], 1, 0
        self.samples = 0

    def add(self, values: np.ndarray) -> None:
        """The numbers of the next frame."""
        values = np.asarray(values, float)
        if self._filled == 0:
            if len(self._sums) == _ROWS:
                self._sums = [a + b for a, b in zip(self._sums[::2], self._sums[1::2], strict=True)]
                self._length *= 2
            self._sums.append(values.copy())
        else:
            self._sums[-1] += values
        self._filled = (self._filled + 1) % self._length
        self.samples += 1

    @property
    def mean(self) -> np.ndarray:
        return sum(self._sums) / self.samples

    def blocks(self) -> np.ndarray:
        """Averages (n, ...) over the blocks that are full."""
        full = self._sums[: self.samples // self._length]
        return np.array(full) / self._length

    def error(self, pools=None) -> np.ndarray:
        """Standard error of the mean, NaN below eight blocks; ``pools``: flat indices of components that are alike."""
        blocks = self.blocks()
        shape = blocks.shape[1:]
        return standard_errors(blocks.reshape(len(blocks), -1), pools)[0].reshape(shape)
