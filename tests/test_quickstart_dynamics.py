"""Runs that are interrupted end with the same bits as runs that are not."""

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.io import read

from ase_nepcg import NEP
from ase_nepcg.analysis.runs import hot_copy
from ase_nepcg.data import WATER_BEAD, water_beads
from ase_nepcg.md import Thermo
from ase_nepcg.md.batch import Batch
from ase_nepcg.quickstart import QuickstartError
from ase_nepcg.quickstart.dynamics import Phase, advance


class Kill(BaseException):
    pass


class Mortal(Calculator):
    """Springs to the places of a crystal; dies at the given evaluation. (Calculators of ASE keep neighbour lists for
    some steps, and so the order in which they add.)"""

    implemented_properties = ("energy", "forces", "stress")
    left = None

    def calculate(self, *arguments, **keywords):
        if Mortal.left is not None:
            Mortal.left -= 1
            if Mortal.left < 0:
                raise Kill
        super().calculate(*arguments, **keywords)
        x = self.atoms.positions - bulk("Au", cubic=True).positions
        self.results = {"energy": (x**2).sum(), "forces": -2 * x, "stress": np.cumsum(x)[:6]}


def phase(folder, **settings):
    given = {"steps": 40, "seed": 3, "record": 10, "progress": False, "threads": 1, "observers": ()}
    return Phase(folder, "run", 2.0, 300.0, 0.01, **given | settings)


def beads():
    starts = []
    for k in range(2):
        atoms = water_beads(3, seed=k)
        atoms.calc = NEP(WATER_BEAD, threads=1)
        starts.append(hot_copy(atoms, 300.0, k))
    return starts


def crystals():
    gold = bulk("Au", cubic=True)
    gold.calc = Mortal()
    return [hot_copy(gold, 300.0, k) for k in range(2)]


def assert_same(folder, other, ends, expected):
    for k, ((atoms, _), (reference, _)) in enumerate(zip(ends, expected, strict=True)):
        assert np.array_equal(atoms.positions, reference.positions)
        assert np.array_equal(atoms.get_momenta(), reference.get_momenta())
        frames, references = (read(place / f"run_{k}.traj", ":") for place in (folder, other))
        assert len(frames) == len(references) == 5
        for frame, one in zip(frames, references, strict=True):
            assert np.array_equal(frame.positions, one.positions)
            assert np.array_equal(frame.get_forces(), one.get_forces())
            assert np.array_equal(frame.get_stress(), one.get_stress())


def test_compiled_runs(tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    settings = {"observers": ((Thermo(), 5),)}
    expected = advance(phase(whole, **settings), beads())
    run = Batch.run

    def dies(batch, steps):
        # the second run lags behind: killed between two checkpoints
        run(batch, 12)
        batch.runs[0].run(4)
        raise Kill

    monkeypatch.setattr(Batch, "run", dies)
    with pytest.raises(Kill):
        advance(phase(killed, **settings), beads())
    monkeypatch.undo()
    ends = advance(phase(killed, **settings), beads())
    assert_same(killed, whole, ends, expected)
    assert ends[0][1][0]["temperature_K"] == expected[0][1][0]["temperature_K"]
    # finished: nothing is done again
    again = advance(phase(killed, **settings), beads())
    assert_same(killed, whole, again, expected)


@pytest.mark.parametrize("lives", [1, 17, 45, 70])
def test_runs_by_ase(tmp_path, lives):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    expected = advance(phase(whole), crystals())
    Mortal.left = lives
    try:
        with pytest.raises(Kill):
            advance(phase(killed), crystals())
    finally:
        Mortal.left = None
    assert_same(killed, whole, advance(phase(killed), crystals()), expected)


def test_every_phase_has_noise_of_its_own(tmp_path):
    """Repeated noise would give the total momentum the same path in phases that follow each other."""
    phases = [Phase(tmp_path, name, 2.0, 300.0, 0.01, 100, 1) for name in ("equilibration", "atomistic")]
    seeds = [one.seed_of(k) for one in phases for k in range(3)]
    assert len(set(seeds)) == 6
    assert seeds == [one.seed_of(k) for one in phases for k in range(3)]


def test_explosions_are_not_recorded(tmp_path):
    gold = crystals()[0]
    gold.set_momenta(30 * gold.get_momenta())
    with pytest.raises(QuickstartError, match=r"K after step 4 of a run at 300 K; the time step of 2 fs is too long"):
        advance(phase(tmp_path), [gold])
    assert list(tmp_path.iterdir()) == []


def test_temperature_of_both_kinds(tmp_path):
    # strong friction: velocities of their own in every few steps
    gold = bulk("Au", cubic=True) * 2
    for calc in (EMT(), NEP(WATER_BEAD, threads=1)):
        start = gold.copy() if isinstance(calc, EMT) else water_beads(4)
        start.calc = calc
        folder = tmp_path / type(calc).__name__
        folder.mkdir()
        settings = Phase(folder, "run", 2.0, 300.0, 0.1, steps=1000, seed=1, record=20)
        advance(settings, [hot_copy(start, 300.0, 0)])
        frames = read(folder / "run_0.traj", "20:")
        assert np.mean([frame.get_temperature() for frame in frames]) == pytest.approx(300, rel=0.06)
