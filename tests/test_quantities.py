"""Numbers as text, and the density of atoms."""

import numpy as np
import pytest
from ase.build import bulk

from ase_nepcg.quantities import density_g_cm3, with_error


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [(2.3041, 0.0412, "2.30(4)"), (1234.5, 12.3, "1234(12)"), (0.5, 0.0, "0.5"), (3.0, 2.0, "3(2)")],
)
def test_numbers_with_errors(value, error, text):
    assert with_error(value, error) == text


def test_density():
    # handbook: 8.96 g/cm^3 at 20 °C
    assert density_g_cm3(bulk("Cu", cubic=True)) == pytest.approx(8.96, abs=0.02)
    assert np.isclose(density_g_cm3(bulk("Cu")), density_g_cm3(bulk("Cu", cubic=True)))


def test_the_constant_in_compiled_code_is_the_same():
    from ase_nepcg.md.observers import thermo
    from ase_nepcg.quantities import GRAMS_PER_CM3

    assert thermo._DENSITY == GRAMS_PER_CM3
