"""Number types of the kernels."""

import numpy as np
import pytest
from ase_nepcg_cuda.device import upper_bits, wrapping_difference
from ase_nepcg_cuda.precision import PRECISIONS, precision

from ase_nepcg.potential.basis import cutoff


@pytest.mark.parametrize("name", PRECISIONS)
def test_six_terms_are_enough_for_single_precision(name):
    kinds = precision(name)
    worst = 0.0
    for v in np.linspace(0.0, 1.0, 101):
        fc, slope = kinds.maths.cutoff(kinds.real(v), kinds.real(0.2))
        exact, exact_slope = cutoff(v, 0.2)
        worst = max(worst, abs(fc - exact), abs(slope - exact_slope))
        if name == "mixed":
            assert type(fc) is np.float32
    assert worst < {"mixed": 3e-7, "double": 1e-15}[name]


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("name", PRECISIONS)
def test_differences_of_places_wrap(name):
    kinds = precision(name)
    difference, upper = wrapping_difference(kinds.fixed), upper_bits(kinds.fixed)
    half = 2 ** (kinds.bits - 1)
    low, high = kinds.fixed(-half), kinds.fixed(half - 1)
    assert difference(low, high) == 1
    assert difference(high, low) == -1
    assert difference(kinds.fixed(5), kinds.fixed(-7)) == 12
    assert upper(low) == 2**31
    assert upper(high) == 2**31 - 1
    assert upper(kinds.fixed(0)) == 0


def test_unknown_precision():
    with pytest.raises(ValueError, match="expected one of mixed, double, got 'single'"):
        precision("single")
