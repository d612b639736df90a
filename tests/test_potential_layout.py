"""Where kernels find their numbers."""

import numpy as np
import pytest

from ase_nepcg import NEPModel
from ase_nepcg.potential.basis import fold_coefficients
from ase_nepcg.potential.layout import (
    B0,
    B2,
    BIAS,
    D_ANGULAR,
    D_KN,
    D_NK,
    PAIR,
    W0,
    W1,
    W2,
    Parameters,
    Shape,
    workspace,
)
from ase_nepcg.potential.simd import LANES, padded

SETTINGS = {
    "n_max": (3, 2),
    "basis_size": (6, 5),
    "l_max": (4, 1, 0, 1),
    "cutoff": {"O": (6.0, 4.0), "H": (5.0, 3.5), "C": (4.0, 4.2)},
}


def random_model(**settings):
    return NEPModel.random(["O", "H", "C"], seed=1, **SETTINGS | settings)


def part(parameters, number, shape):
    """The numbers of one part, without padding of the last axis."""
    columns = padded(shape[-1])
    first = parameters.at[number]
    block = parameters.weights[first : first + int(np.prod(shape[:-1])) * columns].reshape(*shape[:-1], columns)
    assert (block[..., shape[-1] :] == 0).all()
    return block[..., : shape[-1]]


def test_shape_counts_functions_and_descriptors():
    model = random_model(neurons=(9, 4), temperature=True, zbl=(1.0, 2.0))
    shape = Shape.of(model)
    assert shape == Shape(4, 7, 3, 6, 4, ("q222", "q112"), 9, 4, True, True)
    assert shape.n_descriptor == model.n_descriptor == 4 + 3 * 6 + 1
    assert shape.n_sums == sum(2 * order + 1 for order in range(1, 5))
    assert shape.n_zlm == 5 * 6
    hash(shape)


def test_models_that_differ_in_numbers_only_share_a_shape():
    cutoff = {"O": (8.0, 3.0), "H": (6.0, 3.5), "C": (4.0, 4.2)}
    shapes = {Shape.of(random_model(version=v)) for v in (3, 4, 5)} | {Shape.of(random_model(cutoff=cutoff))}
    shapes |= {Shape.of(NEPModel.random(["A"], seed=1, **SETTINGS | {"cutoff": (5, 4)}))}
    assert len(shapes) == 1
    different = [{"neurons": 11}, {"l_max": (4, 1, 0, 0)}, {"zbl": (1, 2)}, {"temperature": True}, {"n_max": (3, 3)}]
    assert len(shapes | {Shape.of(random_model(**settings)) for settings in different}) == 1 + len(different)


@pytest.mark.parametrize("neurons", [1, 4, 8, 9, 31, 57, 64, 65, 120])
def test_neuron_groups_hold_all_neurons_with_little_padding(neurons):
    groups, width = Shape(1, 1, 1, 1, 2, (), neurons, 0, False, False).neuron_groups
    assert width <= 7
    assert neurons <= groups * width * LANES < neurons + groups * LANES


@pytest.mark.parametrize("version", [3, 4, 5])
@pytest.mark.parametrize("neurons", [1, 10, 70])
def test_parameters_are_those_of_the_model(version, neurons):
    model = random_model(version=version, neurons=neurons)
    shape = Shape.of(model)
    present = (0, 2)
    p = Parameters(model, present)
    d_radial, d_angular = fold_coefficients(model.c_radial, 1), fold_coefficients(model.c_angular, 1)
    kn, nk = part(p, D_KN, (2, 2, 7, 4)), part(p, D_NK, (2, 2, 4, 7))
    angular = p.weights[p.at[D_ANGULAR] :][: 4 * 18].reshape(2, 2, 3, 6)
    groups, width = shape.neuron_groups
    w0 = part(p, W0, (2, groups, model.n_descriptor, width * LANES)).transpose(0, 1, 3, 2)
    w0 = w0.reshape(2, -1, model.n_descriptor)
    b0, w1 = part(p, B0, (2, groups * width * LANES)), part(p, W1, (2, groups * width * LANES))
    bias = p.weights[p.at[BIAS] :][:2]
    for a, type_a in enumerate(present):
        for b, type_b in enumerate(present):
            assert np.array_equal(kn[a, b], d_radial[:, :, type_a, type_b].T)
            assert np.array_equal(nk[a, b], d_radial[:, :, type_a, type_b])
            assert np.array_equal(angular[a, b], d_angular[:, :, type_a, type_b])
        network = 0 if version == 3 else type_a
        for packed, array in ((w0, model.w0 * model.q_scaler), (b0, model.b0), (w1, model.w1)):
            assert np.array_equal(packed[a, :neurons], array[network])
            assert (packed[a, neurons:] == 0).all()
        expected = model.bias + (model.type_bias[type_a] if version == 5 else 0)
        assert bias[a] == expected
    assert p.zbl.size == 0


def test_second_hidden_layer():
    model = random_model(neurons=(9, 4))
    groups, width = Shape.of(model).neuron_groups
    p = Parameters(model, (1, 2))
    w2 = part(p, W2, (2, groups * width * LANES, 4))
    for a, type_a in enumerate((1, 2)):
        assert np.array_equal(w2[a, :9], model.w_hidden2[type_a].T)
        assert (w2[a, 9:] == 0).all()
        assert np.array_equal(part(p, B2, (2, 4))[a], model.b_hidden2[type_a])
        assert np.array_equal(part(p, W1, (2, 4))[a], model.w1[type_a])


def test_pair_table_and_repulsion_of_the_present_types():
    model = random_model(zbl=(1.0, 2.0))
    radial, angular = model.pair_cutoffs()
    p = Parameters(model, (2, 1))
    pair, zbl = p.pair.reshape(2, 2, PAIR), p.zbl.reshape(2, 2, 10)
    for a, type_a in enumerate((2, 1)):
        for b, type_b in enumerate((2, 1)):
            r, s = radial[type_a, type_b], angular[type_a, type_b]
            assert p.cutoffs[a, b] == max(r, s)
            assert pair[a, b].tolist() == [max(r, s) ** 2, r, 1 / r, s, 1 / s]
            assert np.array_equal(zbl[a, b], model.zbl_pairs()[type_a, type_b])
    # between two C the angular cutoff is the larger one
    assert p.cutoffs[0, 0] == 4.2


def test_parts_start_on_vectors_and_may_be_read_beyond_their_last_row():
    p = Parameters(random_model(neurons=(9, 4)), (0, 1, 2))
    assert (p.at % LANES == 0).all()
    assert p.weights.ctypes.data % 64 == 0
    sizes = np.diff([*p.at, p.weights.size])
    # numbers of the last part before the padding: b2 of three types
    assert sizes[B2] >= (3 + LANES) * padded(4)
    assert np.isfinite(p.weights).all()


@pytest.mark.parametrize("capacity", [LANES, 10 * LANES])
@pytest.mark.parametrize("n_types", [1, 5])
def test_workspace_parts_do_not_overlap_and_are_aligned(capacity, n_types):
    shape = Shape.of(random_model(neurons=(9, 4)))
    place = workspace(shape, capacity, n_types)
    assert len(place) == 23
    assert (place % LANES == 0).all()
    sizes = np.diff(place)
    assert (sizes > 0).all()
    blocks, sums = capacity // LANES, shape.n_sums
    assert sizes[0] >= 4 * capacity
    assert sizes[7] >= blocks * sums * LANES
    assert sizes[8] >= blocks * shape.n_zlm * LANES
    # descriptors are stored in whole vectors, one radial function after the other
    assert sizes[14] >= shape.n_descriptor - 1 + LANES
    assert sizes[16] >= 2 * padded(9) + padded(4)
    assert sizes[19] >= n_types
