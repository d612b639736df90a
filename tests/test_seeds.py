"""Seeds of parts: different for all parts of all wholes, and what they were in earlier versions."""

import numpy as np

from ase_nepcg.seeds import derived_seed


def test_no_two_parts_share_a_seed():
    seeds = {
        derived_seed(seed, *part) for seed in range(20) for part in [(), *((k,) for k in range(20)), (0, 1), (1, 0)]
    }
    assert len(seeds) == 20 * 23
    # a float holds them, as JSON and columns of numbers do
    assert all(0 <= seed < 2**53 and int(float(seed)) == seed for seed in seeds)


def test_seeds_stay_what_they_are():
    assert derived_seed(5, 2) == 842499660180124
    # also for those of other integer types
    assert derived_seed(np.int64(5), np.int64(2)) == 842499660180124
