"""Figures. Every function draws into ``ax`` (matplotlib ``Axes``), or into a new figure, and returns the Axes.

Colours are those of Okabe and Ito, which readers with any colour vision can tell apart; axes carry units. matplotlib is
imported when a figure is drawn, not before.
"""

from __future__ import annotations

import numpy as np

from .errors import NepCGError

__all__ = ["PlotError", "parity", "training_curve", "training_summary"]

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_GRAY = "0.6"
_BAND = "noise band"
# column of a history -> name and unit
_TERMS = {
    "total": ("loss", ""),
    "l1": ("L1", ""),
    "l2": ("L2", ""),
    "energy": ("energy", "eV/atom"),
    "force": ("force", "eV/Å"),
    "virial": ("virial", "eV/atom"),
}


class PlotError(NepCGError, ValueError):
    """Numbers that make no figure."""


def parity(reference, predicted, errors=None, ax=None, *, label=None, quantity=None, unit=None):
    """Predicted against reference values, with the RMSE of the pairs in the legend.

    ``reference``, ``predicted``: arrays of equal shape; pairs with a NaN are left out. ``errors``: standard errors of
    the reference, same shape; their root mean square is the half width of a gray band, which holds two thirds of the
    points of a perfect model. ``label``: name in the legend, ``quantity`` and ``unit``: of the axes. Further calls with
    the same ``ax`` add points in another colour. Raises :class:`PlotError`.
    """
    reference, predicted = _numbers("reference", reference), _numbers("predicted", predicted)
    if reference.shape != predicted.shape:
        raise PlotError(f"expected arrays of equal shape, got {reference.shape} and {predicted.shape}")
    known = np.isfinite(reference) & np.isfinite(predicted)
    if not known.any():
        raise PlotError(f"expected pairs of finite numbers, got none among {reference.size}")
    noise = None
    if errors is not None:
        errors = _numbers("errors", errors)
        if errors.shape != reference.shape:
            raise PlotError(f"errors: expected shape {reference.shape}, got {errors.shape}")
        known_errors = errors[known & np.isfinite(errors)]
        noise = float(np.sqrt(np.mean(known_errors**2))) if known_errors.size else None
    x, y = reference[known], predicted[known]

    ax = _axes(ax)
    unit_text = f" {unit}" if unit else ""
    rmse = float(np.sqrt(np.mean((y - x) ** 2)))
    text = f"{label}: " if label else ""
    number = len(ax.collections) - sum(c.get_gid() == _BAND for c in ax.collections)
    ax.scatter(
        x,
        y,
        s=6,
        linewidths=0,
        alpha=min(1.0, max(0.15, 30 / np.sqrt(len(x)))),
        color=_COLORS[number % len(_COLORS)],
        label=f"{text}RMSE {rmse:.3g}{unit_text}",
        rasterized=True,
        zorder=2,
    )
    points = np.concatenate([c.get_offsets() for c in ax.collections if c.get_gid() != _BAND])
    low, high = float(points.min()), float(points.max())
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    ends = np.array([low - margin, high + margin])
    if noise:
        name = f"noise of {label}" if label else "noise"
        band = ax.fill_between(ends, ends - noise, ends + noise, color=_GRAY, alpha=0.4, linewidth=0, zorder=1)
        band.set_gid(_BAND)
        band.set_label(f"{name} ±{noise:.3g}{unit_text}")
    if number == 0:
        ax.axline((low, low), slope=1.0, color="black", linewidth=0.8, zorder=3)
        name = quantity or "value"
        brackets = f" ({unit})" if unit else ""
        ax.set_xlabel(f"reference {name}{brackets}")
        ax.set_ylabel(f"predicted {name}{brackets}")
    ax.set(xlim=ends, ylim=ends)
    ax.set_box_aspect(1)
    ax.legend(loc="upper left", fontsize="small")
    return ax


def training_curve(history, ax=None, *, against="step"):
    """Loss and its terms during training, both axes logarithmic; dashed: test set.

    ``history``: a :class:`~ase_nepcg.training.history.History`, or a dict of its columns. ``against``: ``"step"`` or
    ``"seconds"``. Terms that are nowhere above 0 are left out, so are points at 0. Raises :class:`PlotError`.
    """
    labels = {"step": "step", "seconds": "time (s)"}
    if against not in labels:
        raise PlotError(f"against: expected 'step' or 'seconds', got {against!r}")
    x = _numbers(against, history[against])
    curves = []
    for color, (column, (name, unit)) in zip(_COLORS, _TERMS.items(), strict=True):
        text = name + (f" ({unit})" if unit else "")
        curves.append((history[column], color, "-", text))
        if unit:
            curves.append((history[f"{column}_test"], color, "--", f"{text}, test"))
    drawn = []
    for column, color, style, text in curves:
        y = _numbers(text, column)
        shown = np.isfinite(x) & (x > 0) & np.isfinite(y) & (y > 0)
        if shown.any():
            drawn.append((x[shown], y[shown], color, style, text))
    if not drawn:
        raise PlotError(f"expected reports with a loss and a {against} above 0, got none among {len(x)}")
    ax = _axes(ax)
    for here, y, color, style, text in drawn:
        marker = "." if len(here) == 1 else None
        ax.plot(here, y, color=color, linestyle=style, label=text, linewidth=1.2, marker=marker)
    ax.set(xscale="log", yscale="log", xlabel=labels[against], ylabel="loss; RMSE in the unit of the legend")
    ax.legend(fontsize="small")
    return ax


def training_summary(training, axes=None):
    """Loss curve and parity of forces and virials (if there are any) side by side: an array of two or three Axes.

    ``training``: has ``history``, ``targets`` and ``predictions`` (of the training set) and, None without a test set,
    ``test_targets`` and ``test_predictions``. ``axes``: as many Axes, default a new figure.
    """
    sets = [("train", training.targets, training.predictions)]
    if training.test_targets is not None:
        sets.append(("test", training.test_targets, training.test_predictions))
    virials = any(targets.has_virial.any() for _, targets, _ in sets)
    number = 2 + virials
    if axes is None:
        from matplotlib import pyplot as plt

        _, axes = plt.subplots(1, number, figsize=(4.8 * number, 4.4), layout="constrained")
    axes = np.atleast_1d(np.asarray(axes, dtype=object)).ravel()
    if len(axes) != number:
        raise PlotError(f"axes: expected {number}, got {len(axes)}")
    training_curve(training.history, axes[0])
    for name, targets, predictions in sets:
        settings = {"label": name, "quantity": "force", "unit": "eV/Å"}
        parity(targets.forces, predictions.forces, targets.force_errors, axes[1], **settings)
        if targets.has_virial.any():
            settings = {"label": name, "quantity": "virial", "unit": "eV/atom"}
            parity(targets.virials, predictions.virials, targets.virial_errors, axes[2], **settings)
    return axes


def _axes(ax):
    if ax is not None:
        return ax
    from matplotlib import pyplot as plt

    return plt.subplots(layout="constrained")[1]


def _numbers(name: str, value) -> np.ndarray:
    try:
        return np.asarray(value, dtype=float).ravel()
    except (TypeError, ValueError):
        raise PlotError(f"{name}: expected numbers, got {value!r}") from None
