"""Flat arrays, blocks that merge, errors of averages, the common signature and what all observers must do."""

import numba
import numpy as np
import pytest
from numba.core.runtime import _nrt_python, rtsys

from ase_nepcg.md.observers import (
    MSD,
    OBSERVERS,
    RDF,
    VACF,
    ClosePairs,
    Conductivity,
    HeatCurrent,
    ObserverError,
    ObserverInfo,
    Profile,
    SpectralHeatCurrent,
    Thermo,
    from_dict,
    kernel_signature,
)  # fmt: skip
from ase_nepcg.md.observers.base import (
    OWN,
    Arena,
    Blocks,
    complete_lattice,
    current_row,
    end_sample,
    info_of,
    lag_pools,
    standard_errors,
)  # fmt: skip
from ase_nepcg.md.state import make_state

INFO = ObserverInfo(2.0, 5, ("O", "a-long-tail-bead"), 300.0, (0.0, 1e-4, 0.0))
ALL = [
    Thermo(),
    RDF(4.0, bins=20),
    MSD(8, origins_every=2),
    VACF(8, origins_every=4),
    HeatCurrent(6),
    Conductivity(),
    Profile("c", bins=7, quantity="temperature"),
    ClosePairs({("O", "O"): 2.0, ("O", "a-long-tail-bead"): 2.5}),
    SpectralHeatCurrent("y", 6),
]


def new_state(rng, sizes=(12,), pbc=(True, True, True)):
    cells = [np.diag([6.0, 7.0, 8.0]) + 0.3 * rng.normal(size=(3, 3)) for _ in sizes]
    return make_state(
        [rng.uniform(-3, 9, (n, 3)) for n in sizes],
        [rng.normal(size=(n, 3)) for n in sizes],
        [rng.uniform(1, 20, n) for n in sizes],
        [np.arange(n) % 2 for n in sizes],
        cells,
        [pbc] * len(sizes),
        seeds=range(len(sizes)),
    )


def disturb(s, rng):
    """Another configuration in the same arrays."""
    s.x[:] += rng.normal(size=s.x.shape) * 0.3
    for array in (s.v, s.energies, s.virials, s.energy, s.virial):
        array[:] = rng.normal(size=array.shape)
    s.cell[:] *= rng.uniform(0.99, 1.01)


@numba.njit
def add_rows(values, ints, floats):
    for k in range(values.shape[0]):
        row = current_row(ints, OWN)
        for c in range(values.shape[1]):
            floats[row + c] += values[k, c]
        end_sample(ints, floats, OWN)


@numba.njit
def lattice_of(s, r, out):
    complete_lattice(s, r, out)


def table(width, rows=16):
    arena = Arena(new_state(np.random.default_rng(0)), 0, INFO)
    arena.add_table(OWN, rows, width)
    return arena.build()


@pytest.mark.parametrize("n", [1, 15, 16, 17, 333, 1024])
def test_blocks_are_averages_of_the_series(rng, n):
    data = rng.normal(size=(n, 3)) + 5
    ints, floats = table(3)
    add_rows(data, ints, floats)
    blocks = Blocks(ints, floats, OWN)
    assert blocks.samples == n
    np.testing.assert_allclose(blocks.mean, data.mean(axis=0), rtol=1e-12)
    full = n // blocks.length
    assert len(blocks.means) == full
    assert full < 16
    assert full >= 8 or blocks.length == 1
    expected = data[: full * blocks.length].reshape(full, blocks.length, 3).mean(axis=1)
    np.testing.assert_allclose(blocks.means, expected, rtol=1e-12)


def test_arrays_remember_the_run():
    ints, floats = table(2)
    assert ints.dtype == np.int64
    assert floats.dtype == np.float64
    assert info_of(ints, floats) == INFO
    bare = ObserverInfo(0.5, 1, ("C", "H"))
    assert info_of(*Thermo().allocate(new_state(np.random.default_rng(0)), 0, bare)) == bare


def autoregressive(rng, runs, n, memory):
    x = np.empty((n, runs))
    x[0] = rng.normal(size=runs)
    noise = rng.normal(size=(n, runs)) * np.sqrt(1 - memory**2)
    for k in range(1, n):
        x[k] = memory * x[k - 1] + noise[k]
    return x


def test_error_bars_are_right(rng):
    x = autoregressive(rng, 150, 6000, 0.9)
    pulls, trusted = [], []
    for series in x.T:
        ints, floats = table(1, rows=64)
        add_rows(series[:, None], ints, floats)
        blocks = Blocks(ints, floats, OWN)
        error, reliable = standard_errors(blocks.means)
        trusted.append(reliable[0])
        pulls.append(blocks.mean[0] / error[0])
    assert np.mean(trusted) > 0.9
    assert abs(np.std(pulls) - 1) < 0.2
    assert abs(np.mean(pulls)) < 0.3


def test_no_error_without_blocks_or_with_numbers_that_are_none(rng):
    error, reliable = standard_errors(rng.normal(size=(5, 2)))
    assert np.isnan(error).all()
    assert not reliable.any()
    blocks = rng.normal(size=(40, 3))
    blocks[7, 1] = np.nan
    error, reliable = standard_errors(blocks, [[0, 1], [2]])
    assert np.isfinite(error).tolist() == [True, False, True]
    assert not reliable[1]
    error, _ = standard_errors(np.full((20, 1), 3.0))
    assert error[0] == 0.0


@pytest.mark.parametrize("n", [1, 2, 3, 17, 500])
def test_pools_of_lags_cover_all(n):
    assert np.concatenate(lag_pools(n)).tolist() == list(range(n))


@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (0, 0, 0)])
def test_completed_lattice(rng, pbc):
    s = new_state(rng, pbc=np.array(pbc, bool))
    # vectors of open directions may be missing
    s.cell[0][~s.pbc[0]] = 0.0
    out = np.zeros(18)
    lattice_of(s, 0, out)
    a, g = out[:9].reshape(3, 3), out[9:].reshape(3, 3)
    np.testing.assert_allclose(a @ g.T, np.eye(3), atol=1e-12)
    np.testing.assert_array_equal(a[s.pbc[0]], s.cell[0][s.pbc[0]])
    np.testing.assert_allclose(np.linalg.norm(a[~s.pbc[0]], axis=1), 1)
    np.testing.assert_allclose(a[~s.pbc[0]] @ a[s.pbc[0]].T, 0, atol=1e-12)


@pytest.mark.parametrize("observer", ALL, ids=lambda o: o.name)
def test_all_observers(rng, observer):
    """Same signature, restart, replicas, no allocation, settings, tables."""
    kernel = observer.kernel()
    kernel.compile(kernel_signature())
    assert list(kernel.overloads) == [tuple(kernel_signature().args)]
    batch = new_state(rng, (12, 20))
    alone = new_state(rng, (20,))
    own = [observer.allocate(batch, r, INFO) for r in range(2)]
    single = observer.allocate(alone, 0, INFO)
    assert {array.ndim for array in (*own[1], *single)} == {1}
    stopped = None
    for step in range(50):
        disturb(batch, rng)
        for name in ("x", "v", "m", "w", "types", "energies", "virials"):
            getattr(alone, name)[:] = getattr(batch, name)[12:]
        for name in ("cell", "virial", "energy", "n_dof"):
            getattr(alone, name)[:] = getattr(batch, name)[1:]
        for r in range(2):
            kernel(batch, r, 5 * step, *own[r])
        kernel(alone, 0, 5 * step, *single)
        if step == 23:
            stopped = [array.copy() for array in single]
        elif step > 23:
            kernel(alone, 0, 5 * step, *stopped)
    assert len(kernel.overloads) == 1
    for a, b, c in zip(own[1], single, stopped, strict=True):
        assert a.tobytes() == b.tobytes()
        assert a.tobytes() == c.tobytes()

    header, rows = observer.results(*single).as_table()
    assert rows.shape[1:] == (len(header),)
    assert len(set(header)) == len(header)
    again = from_dict(observer.todict())
    assert again == observer
    # from arrays alone
    np.testing.assert_array_equal(again.results(*single).as_table()[1], rows)
    with pytest.raises(ObserverError, match=r"no sample yet.*5 steps"):
        observer.results(*observer.allocate(alone, 0, INFO))
    with pytest.raises(ObserverError, match="interval"):
        observer.allocate(alone, 0, ObserverInfo(2.0, 0, INFO.species, 300.0, (0.0, 0.0, 1.0)))
    with pytest.raises(ObserverError, match="expected 0 to 0 for the species O"):
        observer.allocate(alone, 0, ObserverInfo(2.0, 1, ("O",), 300.0, (0.0, 0.0, 1.0)))


@numba.njit
def idle(s, r, step, ints, floats):
    pass


def allocations(kernel, arguments):
    _nrt_python.memsys_enable_stats()
    try:
        kernel(*arguments)
        before = rtsys.get_allocation_stats()
        kernel(*arguments)
        after = rtsys.get_allocation_stats()
    finally:
        _nrt_python.memsys_disable_stats()
    return after.alloc - before.alloc


@pytest.mark.parametrize("observer", ALL, ids=lambda o: o.name)
def test_kernels_allocate_nothing(rng, observer):
    s = new_state(rng)
    arguments = (s, 0, 0, *observer.allocate(s, 0, INFO))
    assert allocations(observer.kernel(), arguments) == allocations(idle, arguments)


def test_every_observer_is_listed():
    assert {type(observer) for observer in ALL} == set(OBSERVERS.values())
    with pytest.raises(ObserverError, match="expected one of"):
        from_dict({"name": "thermos"})
