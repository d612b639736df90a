"""Figures. Every function draws into ``ax`` (matplotlib ``Axes``), or into a new figure, and returns the Axes.

Colours are those of Okabe and Ito, which readers with any colour vision can tell apart; axes carry units. matplotlib is
imported when a figure is drawn, not before.
"""

from __future__ import annotations

import numpy as np

from .errors import NepCGError
from .quantities import with_error

__all__ = [
    "COLORS",
    "PlotError",
    "adf",
    "eos",
    "msd",
    "parity",
    "rdf",
    "running_conductivity",
    "spectral_conductivity",
    "stress_strain",
    "training_curve",
    "training_summary",
    "vdos",
]

#: Okabe and Ito
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_STYLES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_CURVE = "curve"
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
        color=COLORS[number % len(COLORS)],
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
    for color, (column, (name, unit)) in zip(COLORS, _TERMS.items(), strict=True):
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


# ---- results of ase_nepcg.analysis and of the observers of MD -------------------------------------------------------


def rdf(results, ax=None, *, pairs=None):
    """Radial distribution functions with bands of one standard error.

    ``results``: an RDFResult, or ``{name: RDFResult}`` to lay curves over each other, as coarse-grained over all-atom;
    ``pairs``: of labels, by default all. Raises :class:`PlotError`.
    """
    wanted = None if pairs is None else {frozenset(pair) for pair in pairs}
    curves = []
    for name, result in _named(results):
        for k, pair in enumerate(result.pairs):
            if wanted is None or frozenset(pair) in wanted:
                curves.append((result.r, result.g[k], result.g_error[k], _text(name, "-".join(pair))))
    ax = _curves(curves, ax)
    ax.axhline(1.0, color=_GRAY, linewidth=0.8, zorder=0)
    ax.set(xlabel="distance (Å)", ylabel="radial distribution function", xlim=(0, None), ylim=(0, None))
    return ax


def adf(results, ax=None):
    """Angular distributions with bands of one standard error; ``results``: an ADFResult or ``{name: ADFResult}``."""
    curves = []
    for name, result in _named(results):
        for k, triplet in enumerate(result.triplets):
            curves.append((result.angle, result.density[k], result.density_error[k], _text(name, "-".join(triplet))))
    ax = _curves(curves, ax)
    ax.set(xlabel="angle (degrees)", ylabel="probability (1/degree)", xlim=(0, 180), ylim=(0, None))
    ax.set_xticks(range(0, 181, 30))
    return ax


def vdos(results, ax=None):
    """Vibrational densities of states with bands of one standard error; ``results``: a VDOSResult or a dict of them."""
    curves = []
    for name, result in _named(results):
        for k, label in enumerate(result.species):
            curves.append((result.frequency_THz, result.dos[k], result.dos_error[k], _text(name, label)))
    ax = _curves(curves, ax)
    ax.set(xlabel="frequency (THz)", ylabel="density of states (1/THz)", xlim=(0, None), ylim=(0, None))
    return ax


def msd(results, ax=None):
    """Mean square displacements with bands of one standard error; the legend holds the diffusion coefficients.
    ``results``: an MSDResult or ``{name: MSDResult}``."""
    curves = []
    for name, result in _named(results):
        for k, label in enumerate(result.species):
            value = with_error(result.diffusion[k], result.diffusion_error[k])
            text = f"{_text(name, label)}, D = {value} Å²/ps"
            curves.append((result.time_fs * 1e-3, result.msd[k], result.msd_error[k], text))
    ax = _curves(curves, ax)
    ax.set(xlabel="time (ps)", ylabel="mean square displacement (Å²)", xlim=(0, None), ylim=(0, None))
    return ax


def eos(results, ax=None, *, against="density", training_range=None):
    """Pressures of state points with error bars.

    ``results``: an EOSResult or ``{name: EOSResult}``; ``against``: ``"density"`` or ``"volume"``; ``training_range``:
    two numbers of that quantity, between which the training frames lie. Raises :class:`PlotError`.
    """
    columns = {
        "density": ("density_g_cm3", "density_error", "density (g/cm³)"),
        "volume": ("volume_A3", "volume_error", "volume (Å³)"),
    }
    if against not in columns:
        raise PlotError(f"against: expected 'density' or 'volume', got {against!r}")
    column, error, text = columns[against]
    ax = _axes(ax)
    before = len(ax.containers)
    if training_range is not None:
        ends = _numbers("training_range", training_range)
        if len(ends) != 2 or not np.isfinite(ends).all():
            raise PlotError(f"training_range: expected two numbers, got {training_range!r}")
        ax.axvspan(*sorted(ends), color=_GRAY, alpha=0.2, linewidth=0, label="training frames", zorder=0)
    for number, (name, result) in enumerate(_named(results), before):
        x = getattr(result, column)
        order = np.argsort(x)
        bars = (np.nan_to_num(e[order]) for e in (result.pressure_error, getattr(result, error)))
        ax.errorbar(
            *(x[order], result.pressure_GPa[order], *bars),
            color=COLORS[number % len(COLORS)],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=4,
            linewidth=1.0,
            capsize=2,
            label=name or None,
        )
    ax.set(xlabel=text, ylabel="pressure (GPa)")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize="small")
    return ax


def running_conductivity(results, ax=None):
    """Running thermal conductivity, of HNEMD against the length of the run, of Green and Kubo against the upper limit
    of the integral, with a band of one standard error.

    ``results``: a ConductivityResult or HeatCurrentResult, or ``{name: result}`` of one kind. Raises PlotError.
    """
    curves, kinds = [], set()
    for name, result in _named(results):
        time = result.time_fs * 1e-3
        if hasattr(result, "running"):
            kinds.add("time (ps)")
            direction = result.field_per_A / np.linalg.norm(result.field_per_A)
            text = f"{with_error(result.kappa_parallel, result.kappa_parallel_error)} W/(m K)"
            curves.append((time, result.running @ direction, None, _text(name, text)))
        else:
            kinds.add("correlation time (ps)")
            curves.append((time, result.kappa_mean, result.kappa_mean_error, name or None))
    if len(kinds) > 1:
        raise PlotError("HNEMD and Green-Kubo have different times: draw them into two Axes")
    ax = _curves(curves, ax)
    ax.axhline(0.0, color=_GRAY, linewidth=0.8, zorder=0)
    ax.set(xlabel=kinds.pop(), ylabel="thermal conductivity (W/(m K))")
    # averages of the first moments are far off; what they settle to is of interest
    late = np.concatenate(
        [line.get_ydata()[len(line.get_ydata()) // 5 :] for line in ax.lines if line.get_gid() == _CURVE]
    )
    low, high = min(0.0, np.nanmin(late)), max(0.0, np.nanmax(late))
    if high > low:
        ax.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
    return ax


def spectral_conductivity(results, ax=None):
    """Conductivity per frequency with bands of one standard error; the legend holds the integrals.

    ``results``: a SpectralConductivityResult or SpectralHeatCurrentResult, or ``{name: result}``. Raises PlotError.
    """
    curves = []
    for name, result in _named(results):
        text = f"κ = {with_error(result.kappa, result.kappa_error)} W/(m K)"
        curves.append((result.frequency_THz, result.spectrum, result.spectrum_error, _text(name, text)))
    ax = _curves(curves, ax)
    ax.axhline(0.0, color=_GRAY, linewidth=0.8, zorder=0)
    ax.set(xlabel="frequency (THz)", ylabel="spectral conductivity (W/(m K THz))", xlim=(0, None))
    return ax


def stress_strain(results, ax=None):
    """Stress along the axis against strain with bands of one standard error; ``results``: a StressStrain or a dict."""
    curves = []
    for name, result in _named(results):
        k = "xyz".index(result.axis)
        modulus = with_error(result.modulus_GPa, result.modulus_error)
        text = _text(name, f"along {result.axis}, initial slope {modulus} GPa")
        curves.append((result.strain, result.stress_GPa[:, k], result.stress_error[:, k], text))
    ax = _curves(curves, ax)
    ax.set(xlabel="strain", ylabel="stress (GPa)")
    return ax


def _named(results) -> list:
    """(name, result) pairs; the name of a single one is empty."""
    if not isinstance(results, dict):
        return [("", results)]
    if not results:
        raise PlotError("expected at least one result, got an empty dict")
    return list(results.items())


def _text(name, what) -> str:
    return f"{name}: {what}" if name else what


def _curves(curves, ax):
    """Lines (x, y, error or None, text) with bands; lines that are there already keep their colours."""
    if not curves:
        raise PlotError("there is nothing to draw: no pair is among those of the result")
    ax = _axes(ax)
    before = sum(line.get_gid() == _CURVE for line in ax.lines)
    for number, (x, y, error, text) in enumerate(curves, before):
        color = COLORS[number % len(COLORS)]
        style = _STYLES[number // len(COLORS) % len(_STYLES)]
        ax.plot(x, y, color=color, linestyle=style, linewidth=1.2, label=text, gid=_CURVE)
        if error is not None and np.isfinite(error).any():
            ax.fill_between(x, y - error, y + error, color=color, alpha=0.25, linewidth=0)
    if any(text for *_, text in curves):
        ax.legend(fontsize="small")
    return ax


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
