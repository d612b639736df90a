"""Seeds of parts of a whole that was given one seed."""

from __future__ import annotations

import numpy as np

__all__ = ["derived_seed"]


def derived_seed(seed: int, *numbers: int) -> int:
    """A seed for the part ``numbers`` of what has ``seed``: below 2^53, so that a float can hold it.

    Not ``seed + number``: run 1 of seed 0 and run 0 of seed 1 would have the same noise, and averages over seeds error
    bars that are too small.
    """
    return int(np.random.SeedSequence(seed, spawn_key=numbers).generate_state(1, np.uint64)[0] >> 11)
