"""Figures: what is drawn, not how it looks."""

import subprocess
import sys
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")
from matplotlib import pyplot as plt

from ase_nepcg.errors import NepCGError
from ase_nepcg.plot import PlotError, parity, training_curve, training_summary
from ase_nepcg.training.history import History


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def history(n=30, virial=True, test=True):
    table = History()
    for k in range(n):
        train = {"energy": 0.1 / (k + 1), "force": 1.0 / (k + 1), "virial": 0.2 * virial / (k + 1)}
        other = {name: 1.2 * value for name, value in train.items()} if test else None
        report = SimpleNamespace(
            step=10 * k, total=2.0 / (k + 1), l1=0.01, l2=0.0, train=train, test=other, seconds=0.5 * k
        )
        table.append(report)
    return table


def test_importing_leaves_matplotlib_alone():
    code = "import sys, ase_nepcg.plot; assert not {'numba', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


# ---- parity -------------------------------------------------------------------------------------------------------


def test_parity(rng):
    reference = rng.normal(size=(50, 3))
    predicted = reference + 0.1
    ax = parity(reference, predicted, label="train", quantity="force", unit="eV/Å")
    assert isinstance(ax, plt.Axes)
    assert ax.get_xlabel() == "reference force (eV/Å)"
    assert ax.get_ylabel() == "predicted force (eV/Å)"
    assert texts(ax) == ["train: RMSE 0.1 eV/Å"]
    (points,) = ax.collections
    assert np.array_equal(points.get_offsets(), np.column_stack([reference.ravel(), predicted.ravel()]))
    assert ax.get_xlim() == ax.get_ylim()
    assert ax.get_xlim()[0] < reference.min()
    assert ax.get_xlim()[1] > predicted.max()
    assert len(ax.lines) == 1
    ax.figure.canvas.draw()


def test_parity_uses_the_given_axes_and_adds_a_second_set(rng):
    _, given = plt.subplots()
    x = rng.normal(size=20)
    assert parity(x, x + 0.1, np.full(20, 0.3), given, label="train") is given
    assert parity(5 * x, 5 * x + 0.2, ax=given, label="test") is given
    assert texts(given) == ["train: RMSE 0.1", "noise of train ±0.3", "test: RMSE 0.2"]
    points = [c for c in given.collections if c.get_gid() is None]
    assert len(points) == 2
    assert not np.array_equal(points[0].get_facecolor()[0, :3], points[1].get_facecolor()[0, :3])
    assert given.get_xlim()[1] > 5 * x.max()
    assert len(given.lines) == 1
    assert len(plt.get_fignums()) == 1


def test_noise_band_is_the_root_mean_square_of_the_errors():
    x = np.linspace(-1, 1, 4)
    ax = parity(x, x, [0.3, 0.4, np.nan, 0.5], unit="eV/Å")
    sigma = np.sqrt((0.09 + 0.16 + 0.25) / 3)
    assert texts(ax) == ["RMSE 0 eV/Å", f"noise ±{sigma:.3g} eV/Å"]
    (band,) = [c for c in ax.collections if c.get_gid()]
    corners = band.get_paths()[0].vertices
    assert np.abs(corners[:, 1] - corners[:, 0]).max() == pytest.approx(sigma)
    assert np.abs(corners[:, 1] - corners[:, 0]).min() == pytest.approx(sigma)
    # all errors unknown: no band
    assert len(texts(parity(x, x, np.full(4, np.nan)))) == 1


def test_missing_values_are_left_out():
    ax = parity([0.0, np.nan, 2.0, 3.0], [0.0, 1.0, np.nan, 3.5], [0.1, 9.0, 9.0, 0.1])
    assert len(ax.collections[0].get_offsets()) == 2
    assert texts(ax) == ["RMSE 0.354", "noise ±0.1"]


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_one_value_only(value):
    ax = parity([value, value], [value, value])
    low, high = ax.get_xlim()
    assert low < value < high
    ax.figure.canvas.draw()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2], [1, 2, 3]), r"equal shape, got \(2,\) and \(3,\)"),
        (([1, np.nan], [np.nan, 1]), "got none among 2"),
        (([], []), "got none among 0"),
        (([1, 2], [1, 2], [0.1]), r"errors: expected shape \(2,\), got \(1,\)"),
        ((["a"], [1]), "reference: expected numbers"),
    ],
)
def test_parity_refuses(arguments, message):
    with pytest.raises(PlotError, match=message) as caught:
        parity(*arguments)
    assert isinstance(caught.value, NepCGError)
    assert not plt.get_fignums()


# ---- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("against", ["step", "seconds"])
def test_training_curve(against):
    table = history()
    ax = training_curve(table, against=against)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ax.get_xlabel() == ("step" if against == "step" else "time (s)")
    assert texts(ax) == [
        "loss",
        "L1",
        "energy (eV/atom)",
        "energy (eV/atom), test",
        "force (eV/Å)",
        "force (eV/Å), test",
        "virial (eV/atom)",
        "virial (eV/atom), test",
    ]
    line = ax.lines[0]
    # the first report is at 0, which has no place on a logarithmic axis
    assert np.array_equal(line.get_xdata(), table[against][1:])
    assert np.array_equal(line.get_ydata(), table.total[1:])
    assert np.array_equal(ax.lines[5].get_ydata(), table.force_test[1:])
    assert ax.lines[5].get_linestyle() == "--"
    ax.figure.canvas.draw()


def test_training_curve_takes_a_dict_and_given_axes():
    _, given = plt.subplots()
    assert training_curve(history(virial=False, test=False).to_dict(), given) is given
    assert texts(given) == ["loss", "L1", "energy (eV/atom)", "force (eV/Å)"]
    assert len(training_curve(history(2)).lines) == 8


def test_training_curve_refuses():
    with pytest.raises(PlotError, match="got none among 0"):
        training_curve(History())
    with pytest.raises(PlotError, match="expected 'step' or 'seconds', got 'time'"):
        training_curve(history(), against="time")


def training(rng, virial=True, test=True):
    def data(n):
        virials = rng.normal(size=(n, 6)) * (1 if virial else np.nan)
        targets = SimpleNamespace(
            forces=rng.normal(size=(10 * n, 3)),
            force_errors=np.full((10 * n, 3), 0.05),
            virials=virials,
            virial_errors=None,
            has_virial=~np.isnan(virials[:, 0]),
        )
        predictions = SimpleNamespace(forces=targets.forces + 0.1, virials=np.nan_to_num(virials) + 0.01)
        return targets, predictions

    (targets, predictions), (test_targets, test_predictions) = data(5), data(2) if test else (None, None)
    return SimpleNamespace(
        history=history(),
        targets=targets,
        predictions=predictions,
        test_targets=test_targets,
        test_predictions=test_predictions,
    )


def test_training_summary(rng):
    axes = training_summary(training(rng))
    assert axes.shape == (3,)
    assert axes[0].get_yscale() == "log"
    assert texts(axes[1]) == [
        "train: RMSE 0.1 eV/Å",
        "noise of train ±0.05 eV/Å",
        "test: RMSE 0.1 eV/Å",
        "noise of test ±0.05 eV/Å",
    ]
    assert texts(axes[2]) == ["train: RMSE 0.01 eV/atom", "test: RMSE 0.01 eV/atom"]
    axes[0].figure.canvas.draw()


def test_training_summary_without_virials_and_test_set(rng):
    axes = training_summary(training(rng, virial=False, test=False))
    assert axes.shape == (2,)
    assert len(texts(axes[1])) == 2
    _, given = plt.subplots(2, 1)
    assert (training_summary(training(rng, virial=False), given) == given).all()
    with pytest.raises(PlotError, match="axes: expected 3, got 2"):
        training_summary(training(rng), given)
