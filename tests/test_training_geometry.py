"""Neighbours of a training set against an exhaustive search, and how much of their basis is kept."""

from dataclasses import replace

import numpy as np
import pytest
import training_shapes as shapes

from ase_nepcg import NEPModel, reference
from ase_nepcg.potential.simd import LANES, padded
from ase_nepcg.training.geometry import Geometry
from ase_nepcg.training.kernels.layout import Packing
from ase_nepcg.training.targets import TargetError, Targets

ANGULAR_BEYOND = {"O": (3.0, 4.0), "H": (2.5, 4.5), "C": (5.0, 2.5)}


def make_geometry(model, frames, **keywords) -> Geometry:
    targets = Targets.from_frames(frames, model.species)
    return Geometry(model, targets, Packing(model).layout, **{"threads": 1, "cache_GB": 0.0} | keywords)


def neighbors_of(g: Geometry, i: int, which: str):
    """(type, number in the frame, r_ij) of all neighbours of site i, dummies left out."""
    at, n_local, ends = g.local[i]
    found = []
    if which == "radial":
        begin, end, column, size = g.radial_begin[i] * LANES, g.radial_end * LANES, 0, LANES
        # vectors of x, y, z
        x = g.radial_x[:-LANES].reshape(-1, 3, LANES).transpose(0, 2, 1).reshape(-1, 3)
    else:
        begin, end, column, size = g.angular_begin[i], g.angular_end, 2, 1
        x = g.angular_x.reshape(-1, 3)
    j = getattr(g, f"{which}_j")
    for t in range(n_local):
        type_ = g.present[at + t]
        cutoff = g.cutoffs.reshape(g.n_types, g.n_types, 4)[g.types[i], type_, column]
        for p in range(begin, end[ends + t]):
            if np.linalg.norm(x[p]) < cutoff:
                found.append((type_, j[p], x[p]))
            else:
                # a dummy at the cutoff, only at the end of a vector
                assert np.array_equal(x[p], [cutoff, 0, 0])
                assert end[ends + t] - p < size
                assert j[p] == i - g.first[g.frame_of[i]]
        begin = end[ends + t]
    return found


def sorted_neighbors(found):
    return sorted((int(t), int(j), *np.round(x, 9)) for t, j, x in found)


@pytest.mark.parametrize("cutoff", [None, ANGULAR_BEYOND])
@pytest.mark.parametrize("kind", ["random", "odd"])
def test_neighbours_are_those_of_an_exhaustive_search(kind, cutoff):
    model = shapes.make_model("full", **({} if cutoff is None else {"cutoff": cutoff}))
    frames = shapes.make_frames(model, 4) if kind == "random" else shapes.odd_frames(model.species)
    targets = Targets.from_frames(frames, model.species)
    g = make_geometry(model, frames)
    limits = model.pair_cutoffs()
    most = [0, 0]
    for s in range(len(frames)):
        sites = targets.sites(s)
        types = targets.types[sites]
        for k in range(targets.n_sites[s]):
            i = targets.first[s] + k
            assert np.array_equal(g.present[g.local[i, 0] :][: g.local[i, 1]], np.unique(types))
            for column, which in enumerate(("radial", "angular")):
                limit = limits[column][types[k]]
                j, vector = reference.neighbors(
                    k, targets.positions[sites], targets.cells[s], targets.pbc[s], limit.max()
                )
                near = np.linalg.norm(vector, axis=1) < limit[types[j]]
                expected = list(zip(types[j[near]], j[near], vector[near], strict=True))
                found = neighbors_of(g, i, which)
                assert sorted_neighbors(found) == sorted_neighbors(expected)
                most[column] = max(most[column], len(expected))
    assert g.max_neighbors.tolist() == most
    assert min(most) > 10


def test_a_model_of_the_neighbours_only():
    """Nothing else of the model matters."""
    model = shapes.make_model("small")
    frames = shapes.make_frames(model, 3)
    first = make_geometry(model, frames)
    other = make_geometry(replace(model.with_parameters(-model.parameters()), q_scaler=2 * model.q_scaler), frames)
    for a, b in zip(first.arrays, other.arrays, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize(
    ("move", "match"), [(0.0, "frame 1: site [01] has another site at the same place"), (1e-5, None)]
)
def test_coinciding_sites_are_named(move, match):
    model = shapes.make_model("small")
    frames = [shapes.bare_frame("OO", [[0, 0, 0], [d, 0, 0]]) for d in (1.0, move, 1.0)]
    if match is None:
        make_geometry(model, frames)
        return
    with pytest.raises(TargetError, match=match) as error:
        make_geometry(model, frames)
    assert error.value.frame == 1


def test_a_site_on_its_own_image_is_not_possible_but_a_close_one_is():
    model = shapes.make_model("small")
    g = make_geometry(model, [shapes.bare_frame("O", [[0, 0, 0]], cell=[1.5, 1.6, 1.7], pbc=True)])
    # volume of the sphere over that of the cell
    assert g.max_neighbors[0] == pytest.approx(4 / 3 * np.pi * 6**3 / (1.5 * 1.6 * 1.7), rel=0.1)


def test_other_species_are_refused():
    model = shapes.make_model("full")
    targets = Targets.from_frames(shapes.make_frames(model, 2), tuple(reversed(model.species)))
    with pytest.raises(TargetError, match="species O, H, C, the frames were taken for C, H, O"):
        Geometry(model, targets, Packing(model).layout)


# ---- the kept basis --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frames():
    return shapes.make_frames(shapes.make_model("full"), 6)


def same_basis(a, b, sites):
    """To the last bit; padding may hold anything."""
    for i in sites:
        parts = [(radial, angular, *records) for radial, angular, records in (shapes.basis_of(g, i) for g in (a, b))]
        for x, y in zip(*parts, strict=True):
            assert np.array_equal(x, y)


def test_what_fits_is_kept_from_the_first_site_on(frames):
    model = shapes.make_model("full")
    everything = make_geometry(model, frames, cache_GB=1.0)
    n = len(everything.types)
    assert everything.n_cached == n
    assert (everything.basis_at >= 0).all()
    assert (everything.basis_at % LANES == 0).all()
    total = everything.basis.size
    assert 0 < total * 8 < 5e6
    nothing = make_geometry(model, frames, cache_GB=0.0)
    assert nothing.n_cached == nothing.basis.size == 0
    assert (nothing.basis_at == -1).all()
    for share in (0.3, 0.7):
        some = make_geometry(model, frames, cache_GB=share * total * 8e-9)
        assert 0 < some.n_cached < n
        assert some.basis.size <= share * total
        # one more would not fit
        assert everything.basis_at[some.n_cached + 1 :][:1].sum() > share * total
        assert np.array_equal(some.basis_at[: some.n_cached], everything.basis_at[: some.n_cached])
        assert (some.basis_at[some.n_cached :] == -1).all()
        same_basis(some, everything, range(some.n_cached))


def test_room_for_every_site(frames):
    """The basis of a site ends where that of the next one begins."""
    model = shapes.make_model("full")
    g = make_geometry(model, frames, cache_GB=1.0)
    for i in range(len(g.types)):
        n_types, last = g.local[i, 1], g.local[i, 1:].sum() - 1
        blocks, pairs = g.radial_end[last] - g.radial_begin[i], g.angular_end[last] - g.angular_begin[i]
        size = padded(int(g.layout.site(n_types, blocks, pairs)))
        end = g.basis_at[i + 1] if i + 1 < len(g.types) else g.basis.size
        assert end - g.basis_at[i] == size
        assert blocks <= g.max_blocks
        assert pairs <= g.max_pairs
        assert n_types <= g.n_local_most


def test_threads_fill_the_same_basis(frames):
    model = shapes.make_model("full")
    one, two = (make_geometry(model, frames, cache_GB=1.0, threads=n) for n in (1, 2))
    same_basis(one, two, range(len(one.types)))


# ---- partitions ------------------------------------------------------------------------------------------------------


def test_sites_of_frames(frames):
    g = make_geometry(shapes.make_model("full"), frames)
    assert np.array_equal(g.sites_of(range(6)), np.arange(len(g.types)))
    first = g.first
    assert g.sites_of([4, 1]).tolist() == [*range(first[4], first[5]), *range(first[1], first[2])]
    assert np.array_equal(g.frame_of[g.sites_of([3])], [3] * (first[4] - first[3]))


@pytest.mark.parametrize("n", [1, 15, 16, 17, 500, 1024, 1025, 100_000])
def test_chunks_depend_on_the_number_of_sites_only(n):
    model = NEPModel.zeros(["O"], **{k: v for k, v in shapes.SHAPES["small"].items() if k != "species"})
    frame = [shapes.bare_frame("O", [[0, 0, 0]])]
    found = [make_geometry(model, frame, threads=threads).partition(np.arange(n)) for threads in (1, 2)]
    chunks, sites = found[0]
    assert np.array_equal(chunks, found[1][0])
    assert np.array_equal(sites, np.arange(n))
    assert chunks[0] == 0
    assert chunks[-1] == n
    assert len(chunks) - 1 <= 64
    sizes = np.diff(chunks)
    assert sizes.min() >= 1
    assert sizes.max() - sizes.min() <= 1
    assert n < 1024 or len(chunks) == 65
