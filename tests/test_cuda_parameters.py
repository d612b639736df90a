"""Parameters on the device against the model."""

import numpy as np
from ase_nepcg_cuda.nep import functions_at_once, parts
from ase_nepcg_cuda.parameters import pack
from ase_nepcg_cuda.precision import precision

from ase_nepcg import NEPModel
from ase_nepcg.potential.layout import Shape


def test_one_type_of_two(models):
    model = models["zbl"]
    packed = pack(model, (1,), "double")
    radial, angular = model.pair_cutoffs()
    np.testing.assert_allclose(
        packed.pair.copy_to_host(), [radial[1, 1], 1 / radial[1, 1], angular[1, 1], 1 / angular[1, 1]]
    )
    np.testing.assert_allclose(packed.w0.copy_to_host(), (model.w0[1] * model.q_scaler).ravel())
    np.testing.assert_allclose(packed.zbl.copy_to_host(), model.zbl_pairs()[1, 1])
    np.testing.assert_allclose(packed.bias.copy_to_host(), model.bias)
    folded = packed.c_radial.copy_to_host().reshape(5, 9)
    np.testing.assert_allclose(folded[:, 1:], 0.5 * model.c_radial[:, 1:, 1, 1])


def test_functions_are_filled_up_to_whole_groups():
    model = NEPModel.random(["O"], seed=1, n_max=(4, 6))
    shape = Shape.of(model)
    assert functions_at_once(shape) == 4
    assert parts(shape) == 3
    packed = pack(model, (0,), "mixed")
    coefficients = packed.c_angular.copy_to_host().reshape(8, 9)
    assert coefficients.dtype == precision("mixed").real
    assert not coefficients[7].any()
    assert coefficients[:7].all()
