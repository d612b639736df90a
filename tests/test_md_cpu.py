"""Length of the calls of the compiled loop, which decides how soon an interrupt is seen."""

import time

import numpy as np
from ase import units

from ase_nepcg import Mapping
from ase_nepcg.md.held import HeldRun, NepEngine


def test_calls_are_short_and_grow_with_the_speed(many, models):
    bound = Mapping.from_groups([[0, 1, 2]], "B", many).bind(many)
    run = HeldRun(
        bound, many.positions, timestep=0.2 * units.fs, kT=0.01, damping=0.99, interval=1, moments=False, seed=1
    )
    types = np.array([models["plain"].species.index(symbol) for symbol in many.symbols])
    engine = NepEngine(models["plain"], types, many.cell.array, many.pbc, threads=1)
    engine.begin(run)
    lengths, seconds = [], []
    for _ in range(25):
        before, begin = run.step, time.perf_counter()
        engine.advance(run, 100_000, 0)
        lengths.append(run.step - before)
        seconds.append(time.perf_counter() - begin)
    assert max(lengths) > 8
    # about 0.1 s each; far from it even on a busy machine
    assert np.median(seconds) < 0.5
