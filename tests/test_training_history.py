"""The table of reports: exact in memory, in checkpoints and as CSV."""

import copy
import csv
from typing import NamedTuple

import numpy as np
import pytest

from ase_nepcg.checkpoint import read_checkpoint, write_checkpoint
from ase_nepcg.errors import NepCGError
from ase_nepcg.training.history import History, HistoryError


class Report(NamedTuple):
    step: int
    total: float
    l1: float
    l2: float
    train: dict
    test: dict | None
    seconds: float


def report(step, rng, test=True):
    errors = [dict(zip(("energy", "force", "virial", "stress"), rng.random(4), strict=True)) for _ in range(2)]
    return Report(step, *rng.random(3), errors[0], errors[1] if test else None, rng.random())


def history(rng, n=40, **keywords):
    result = History()
    for k in range(n):
        result.append(report(10 * (k + 1), rng, **keywords))
    return result


def test_columns(rng):
    reports = [report(k, rng) for k in range(0, 500, 5)]
    table = History()
    for r in reports:
        table.append(r)
    assert len(table) == 100
    assert table.step.tolist() == [r.step for r in reports]
    assert table.step.dtype == np.int64
    assert table.total.tolist() == [r.total for r in reports]
    assert table.l1.tolist() == [r.l1 for r in reports]
    assert table.l2.tolist() == [r.l2 for r in reports]
    assert table.seconds.tolist() == [r.seconds for r in reports]
    for name in ("energy", "force", "virial"):
        assert getattr(table, name).tolist() == [r.train[name] for r in reports]
        assert getattr(table, f"{name}_test").tolist() == [r.test[name] for r in reports]
        assert np.array_equal(table[name], table.to_dict()[name])
    assert list(table.to_dict()) == table.names
    table.total[:] = 0  # a copy
    assert table.total.tolist() == [r.total for r in reports]


def test_no_test_set_and_empty(rng):
    assert np.isnan(history(rng, test=False).force_test).all()
    empty = History()
    assert len(empty) == 0
    assert empty.force.shape == (0,)
    assert empty.step.dtype == np.int64
    assert repr(empty) == "History(0 reports)"
    assert repr(history(rng, 3)) == "History(3 reports, last step 30)"


def test_further_columns_appear_when_they_are_given(rng):
    table = history(rng, 20)
    table.append(report(1000, rng), learning_rate=1e-3, chi2=1.5)
    table.append(report(1001, rng), chi2=1.25)
    assert np.isnan(table["learning_rate"][:20]).all()
    assert table["learning_rate"][20] == 1e-3
    assert np.isnan(table["learning_rate"][21])
    assert table["chi2"][20:].tolist() == [1.5, 1.25]
    assert History.from_arrays(table.arrays()) == table


@pytest.mark.parametrize("n", [0, 1, 16, 40])
def test_round_trip_is_exact_and_goes_on(tmp_path, n):
    table = history(np.random.default_rng(1), n)
    write_checkpoint(tmp_path / "c.npz", "test", {}, table.arrays() | {"other": np.zeros(3)})
    _, arrays = read_checkpoint(tmp_path / "c.npz", "test")
    again = History.from_arrays(arrays)
    assert again == table
    for name, column in table.to_dict().items():
        assert again[name].tobytes() == column.tobytes()
        assert again[name].dtype == column.dtype
    for t in (table, again):
        t.append(report(10_000, np.random.default_rng(2)))
    assert again == table
    assert len(table) == n + 1


def test_truncate_and_report_again(rng):
    table = history(rng)
    kept = copy.deepcopy(table)
    table.truncate(205)
    assert table.step.tolist() == list(range(10, 210, 10))
    assert np.array_equal(table.total, kept.total[:20])
    table.append(report(210, rng))
    assert len(table) == 21
    assert len(kept) == 40
    table.truncate(0)
    assert len(table) == 0
    kept.truncate(400)
    assert len(kept) == 40


def test_equality(rng):
    table = history(rng, 5)
    other = copy.deepcopy(table)
    assert table == other
    other.truncate(40)
    assert table != other
    other.append(report(50, rng))
    assert table != other
    assert table != 3


def test_csv(tmp_path, rng):
    table = history(rng, 5, test=False)
    table.append(report(100, rng), learning_rate=0.1)
    table.write_csv(tmp_path / "loss.csv")
    with open(tmp_path / "loss.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == [
        "step",
        "total",
        "l1",
        "l2",
        "energy (eV/atom)",
        "force (eV/A)",
        "virial (eV/atom)",
        "energy_test (eV/atom)",
        "force_test (eV/A)",
        "virial_test (eV/atom)",
        "seconds (s)",
        "learning_rate",
    ]
    assert rows[1][0] == "10"
    assert rows[1][7] == "nan"
    numbers = np.array(rows[1:], float)
    assert np.array_equal(numbers, np.column_stack(list(table.to_dict().values())), equal_nan=True)


def test_refusals(rng):
    table = history(rng, 3)
    for step in (30, 5):
        with pytest.raises(HistoryError, match=f"a step after 30, got {step}; .* History.truncate") as caught:
            table.append(report(step, rng))
    assert isinstance(caught.value, NepCGError)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(HistoryError, match="total: expected new names"):
        table.append(report(40, rng), total=3.0)
    assert len(table) == 3
    with pytest.raises(KeyError, match="no column 'forces'; it has step, total"):
        table["forces"]
    arrays = table.arrays()
    with pytest.raises(HistoryError, match="missing force_test"):
        History.from_arrays({name: a for name, a in arrays.items() if name != "history_force_test"})
    with pytest.raises(HistoryError, match="equal length"):
        History.from_arrays(arrays | {"history_l1": np.zeros(2)})
    with pytest.raises(HistoryError, match="rising steps"):
        History.from_arrays(arrays | {"history_step": np.array([1, 3, 2])})
