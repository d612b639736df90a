"""Packed parameters, basis of a site, and the functions of one site, each against formulas written out."""

from dataclasses import replace

import numpy as np
import pytest
import training_shapes as shapes
from numpy.polynomial.legendre import legval
from training_shapes import basis_of

from ase_nepcg import reference
from ase_nepcg.potential.invariants import three_body_weights
from ase_nepcg.potential.layout import Shape
from ase_nepcg.potential.simd import LANES, aligned_empty, padded
from ase_nepcg.potential.threads import run_chunks
from ase_nepcg.training.kernels.evaluate import build_descriptors
from ase_nepcg.training.kernels.layout import HEAD, Layout, Packing, workspace

MODELS = {
    "small": ("small", {}),
    "full": ("full", {}),
    "full, version 3": ("full", {"version": 3}),
    "full, version 5": ("full", {"version": 5}),
    "thermal": ("thermal", {}),
    "thermal, version 3": ("thermal", {"version": 3}),
    "wide": ("wide", {}),
}


@pytest.fixture(params=MODELS)
def model(request):
    name, changes = MODELS[request.param]
    return shapes.make_model(name, **changes)


# ---- packing ---------------------------------------------------------------------------------------------------------


def test_every_parameter_is_where_kernels_look_for_it(model):
    packing = Packing(model)
    layout, at = packing.layout, packing.at
    packed = np.full(packing.size, np.nan)
    packing.pack(model.parameters(), packed)
    d, n1 = model.n_descriptor, model.neurons
    seen = np.zeros(packing.size, bool)

    def rows(start, count, padded_to, width):
        """Rows of vectors, and that they were packed."""
        index = start + padded_to * np.arange(count)[:, None] + np.arange(width)
        seen[index] = True
        return packed[index]

    for a in range(model.n_types):
        g = 0 if model.version == 3 else a
        row = a * packing.stride
        w0 = rows(row + at[0], d, layout.neurons, n1)
        assert np.array_equal(w0, model.w0[g].T * model.q_scaler[:, None])
        assert np.array_equal(rows(row + at[1], 1, layout.neurons, n1)[0], model.b0[g])
        assert np.array_equal(rows(row + at[2], 1, layout.neurons, n1)[0], model.w1[g])
        biases = rows(row + at[3], 1, LANES, 1 + (model.version == 5))[0]
        assert biases[0] == model.bias
        assert model.type_bias is None or biases[1] == model.type_bias[a]
        for b in range(model.n_types):
            for which, c, n_padded in ((4, model.c_radial, layout.n_radial), (5, model.c_angular, layout.n_angular)):
                n, k = c.shape[:2]
                found = rows(row + at[which] + b * k * n_padded, k, n_padded, n)
                assert np.array_equal(found, c[:, :, a, b].T)
    assert (at % LANES == 0).all()
    # the rest is padding and left alone
    assert np.array_equal(seen, ~np.isnan(packed))
    assert packing.n_parameters == model.n_parameters
    assert set(packing.source[packing.source >= 0]) == set(range(model.n_parameters))


def test_several_vectors_are_packed_at_once(model):
    packing = Packing(model)
    Z = np.random.default_rng(1).normal(size=(3, model.n_parameters))
    packed = np.zeros((3, packing.size))
    packing.pack(Z, packed)
    for z, row in zip(Z, packed, strict=True):
        one = np.zeros(packing.size)
        packing.pack(z, one)
        assert np.array_equal(one, row)


def test_gradients_go_the_way_back(model):
    """``pack`` is linear, and ``unpack_gradient`` its transpose."""
    rng = np.random.default_rng(2)
    packing = Packing(model)
    z, slope = rng.normal(size=model.n_parameters), rng.normal(size=packing.size)
    packed = np.zeros(packing.size)
    packing.pack(z, packed)
    gradient = packing.unpack_gradient(slope)
    assert gradient.shape == z.shape
    assert gradient @ z == pytest.approx(slope @ packed, rel=1e-12)
    # padding says nothing
    slope[packing.source < 0] = np.nan
    assert np.array_equal(packing.unpack_gradient(slope), gradient)


def test_repulsion_does_not_change_the_kernel():
    plain, zbl = shapes.make_model("small"), shapes.make_model("small", zbl=shapes.ZBL)
    assert Packing(plain).layout == Packing(zbl).layout


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_sizes(name):
    model = shapes.make_model(name)
    shape = Shape.of(model)
    layout = Layout.of(shape)
    for size, least in (
        (layout.lm, shape.n_sums),
        (layout.neurons, shape.neurons),
        (layout.n_radial, shape.n_radial),
        (layout.n_angular, shape.n_angular),
        (layout.head, HEAD + 2 * shape.k_angular),
    ):
        assert size == padded(least) >= least
    assert layout.record == layout.head + 4 * layout.lm
    assert layout.parameters(3)[-1] > 3 * layout.parameters(1)[-1] - 3 * layout.parameters(1)[4]
    small, large = (workspace(layout, 2, 4, pairs, 10) for pairs in (20, 40))
    assert (np.diff(small) > 0).all()
    assert (small % LANES == 0).all()
    # four sums for each pair, and the basis
    assert large[-1] - small[-1] >= 20 * (4 + layout.record)


# ---- the basis of a site ---------------------------------------------------------------------------------------------


def functions(vector, cutoff, n):
    """f_k (m, n) of neighbours within the cutoffs (m,)."""
    unit = np.broadcast_to(np.eye(n), (len(vector), n, n))
    return reference.radial_functions(vector, cutoff, unit)


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_basis_of_all_sites(name):
    model = shapes.make_model(name)
    frames = shapes.make_frames(model, 3) + shapes.odd_frames(model.species)
    objective = shapes.make_objective(model, frames)
    g, targets = objective.geometry, objective.targets
    limits = model.pair_cutoffs()
    shape = g.layout.shape
    weights = three_body_weights(shape.l_max)
    for s in range(len(frames)):
        sites = targets.sites(s)
        types, present = targets.types[sites], np.unique(targets.types[sites])
        for k in range(targets.n_sites[s]):
            i = targets.first[s] + k
            radial, angular, (vector, f, df, b, db) = basis_of(g, i)
            arguments = targets.positions[sites], targets.cells[s], targets.pbc[s]
            j, around = reference.neighbors(k, *arguments, max(limits[0].max(), limits[1].max()))
            for t, type_ in enumerate(present):
                chosen = around[types[j] == type_]
                rc = limits[0][types[k], type_]
                near = chosen[np.linalg.norm(chosen, axis=1) < rc]
                expected = functions(near, np.full(len(near), rc), shape.k_radial).sum(axis=0)
                np.testing.assert_allclose(radial[t], expected, rtol=1e-11, atol=1e-12)
            # records of one type after the other
            at, n_local, ends = g.local[i]
            counts = np.diff([g.angular_begin[i], *g.angular_end[ends : ends + n_local]])
            rc = limits[1][types[k], np.repeat(present, counts)]
            np.testing.assert_allclose(f, functions(vector, rc, shape.k_angular), rtol=1e-11, atol=1e-13)
            slope = reference.gradient(
                lambda x, rc=rc: reference.radial_functions(
                    x, rc, np.broadcast_to(np.eye(shape.k_angular), (len(x), shape.k_angular, shape.k_angular))
                ),
                vector,
            )
            np.testing.assert_allclose(df[:, :, None] * vector[:, None], slope, rtol=1e-9, atol=1e-11)
            # addition theorem: what polynomials of order l must do whatever their order and phases
            unit = vector / np.linalg.norm(vector, axis=1)[:, None]
            for order in range(1, shape.l_max + 1):
                part = slice(order**2 - 1, order**2 + 2 * order)
                found = (b[:, part] * weights[part]) @ b[:, part].T
                series = np.zeros(order + 1)
                series[order] = (2 * order + 1) / (4 * np.pi)
                np.testing.assert_allclose(found, legval(unit @ unit.T, series), rtol=0, atol=1e-12)
            ends_of = np.cumsum(counts)
            for t in range(n_local):
                own = slice(ends_of[t] - counts[t], ends_of[t])
                np.testing.assert_allclose(angular[t], f[own].T @ b[own], rtol=1e-11, atol=1e-12)
            # polynomials of the direction do not change along r
            assert np.abs(np.einsum("mc,mcl->ml", vector, db)).max(initial=0) < 1e-11
            assert at + n_local <= len(g.present)


def test_derivatives_of_the_polynomials():
    model = shapes.make_model("full")
    start, h = np.array([0.7, -1.1, 1.4]), 1e-3

    def b_of(vector):
        frame = shapes.bare_frame("OO", [[0, 0, 0], vector])
        return basis_of(shapes.make_objective(model, [frame]).geometry, 0)[2]

    _, _, _, _, db = b_of(start)
    for c in range(3):
        step = h * np.eye(3)[c]
        b = [b_of(start + factor * step)[3][0] for factor in (-2, -1, 1, 2)]
        slope = (b[0] - 8 * b[1] + 8 * b[2] - b[3]) / (12 * h)
        np.testing.assert_allclose(db[0, c], slope, rtol=0, atol=1e-10)


@pytest.mark.parametrize("pole", [[0, 0, 1.3], [0, 0, -1.3], [1.3, 0, 0], [0, -1.3, 0]])
def test_polynomials_on_the_axes(pole):
    frame = shapes.bare_frame("OOO", [[0, 0, 0], pole, [-0.5, 1.1, 1.7]])
    _, _, (vector, _, _, b, db) = basis_of(shapes.make_objective(shapes.make_model("full"), [frame]).geometry, 0)
    assert np.isfinite(db).all()
    unit = vector / np.linalg.norm(vector, axis=1)[:, None]
    part = slice(8, 15)
    found = (b[:, part] * three_body_weights(4)[part]) @ b[:, part].T
    np.testing.assert_allclose(found, 7 / (4 * np.pi) * legval(unit @ unit.T, [0, 0, 0, 1]), atol=1e-12)


# ---- one site --------------------------------------------------------------------------------------------------------


def raw_descriptors(model, objective, z):
    """(N, D): the kernel of the scaler with a chunk for every site."""
    packing = Packing(replace(model, q_scaler=np.ones(model.n_descriptor)))
    g = objective.geometry
    weights = aligned_empty(packing.size)
    weights[:] = 0.0
    packing.pack(z, weights)
    n = len(g.types)
    work, place = g.workspace(1, 0)
    low = np.full((n, model.n_descriptor), np.inf)
    high = -low
    arguments = (
        *(np.arange(n + 1), g.n_types, g.types, g.local, g.present, g.cutoffs, g.radial_x, g.radial_begin),
        *(g.radial_end, g.angular_x, g.angular_begin, g.angular_end, g.basis_at, g.basis, weights),
        *(packing.stride, packing.at, work, place, low, high),
    )
    run_chunks(build_descriptors(packing.layout), arguments, 1)
    assert np.array_equal(low, high)
    return low


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_descriptors_of_all_sites(name):
    model = shapes.make_model(name)
    frames = shapes.make_frames(model, 3) + shapes.odd_frames(model.species)
    objective = shapes.make_objective(model, frames)
    found = raw_descriptors(model, objective, model.parameters())
    raw = replace(model, q_scaler=np.ones(model.n_descriptor))
    t = objective.targets
    columns = slice(0, model.n_descriptor - model.temperature)
    for s in range(len(frames)):
        sites = t.sites(s)
        temperature = 300.0 if model.temperature else None
        expected = reference.evaluate(raw, t.positions[sites], t.cells[s], t.pbc[s], t.types[sites], temperature)
        expected = expected["descriptors"]
        scale = max(1.0, np.abs(expected[:, columns]).max())
        np.testing.assert_allclose(found[sites, columns], expected[:, columns], rtol=1e-11, atol=1e-12 * scale)


@pytest.mark.parametrize("name", MODELS)
def test_gradient_along_any_displacement(name):
    """``sum_s a E + sum_i lambda . F + sum_s eta : W`` for random a, lambda, eta, whatever loss they come from."""
    model = shapes.make_model(MODELS[name][0], **MODELS[name][1])
    frames = shapes.make_frames(model, 3)
    objective = shapes.make_objective(model, frames)
    rng = np.random.default_rng(4)
    n_frames, n_sites = len(frames), len(objective.targets.types)
    a, move, eta = rng.normal(size=n_frames), rng.normal(size=(n_sites, 3)), rng.normal(size=(n_frames, 6))
    objective.terms.residuals = lambda *_: (a, move, eta)
    z = model.parameters()
    _, found = objective.data_gradient(z)
    size = objective.targets.n_sites

    def value(z):
        energies, forces, virials = objective.predict(z)
        # an off-diagonal element stands for both halves
        twice = np.array([1, 1, 1, 2, 2, 2])
        return a @ (size * energies) + (move * forces).sum() + (size[:, None] * eta * twice * virials).sum()

    h = 1e-3
    for block, part in model.parameter_blocks()[0].items():
        direction = np.zeros(len(z))
        direction[part] = rng.normal(size=part.stop - part.start)
        direction /= np.linalg.norm(direction)
        v = [value(z + k * h * direction) for k in (-2, -1, 1, 2)]
        slope = (v[0] - 8 * v[1] + 8 * v[2] - v[3]) / (12 * h)
        assert found @ direction == pytest.approx(slope, rel=1e-7, abs=1e-7 * np.linalg.norm(found[part])), block
