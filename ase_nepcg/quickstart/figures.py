"""The figures of the report, drawn by :mod:`ase_nepcg.plot` from the numbers and files of a quickstart."""

from __future__ import annotations

import io

import numpy as np

from .. import plot
from ..analysis.state_equation import EOSResult
from ..dataset import read_dataset
from ..md.observers.rdf import RDFResult
from ..model import NEPModel
from ..nepfile import write_atomically
from ..training.predict import predict
from ..training.targets import Targets
from .results import correction_GPa, speed_factors
from .stages import DATA, MODELS

__all__ = ["FIGURES", "draw_figures"]

#: name -> (title, what a reader who cannot see it is told)
FIGURES = {
    "parity": (
        "Forces and virials of the test frames",
        "Predicted against sampled values, with a band as wide as the noise of the reference",
    ),
    "rdf": ("Structure", "Radial distribution functions of bead centres: beads over atoms"),
    "pressure": ("Pressure", "Pressure against density: atoms, beads with and without the correction of the virial"),
    "speed": ("Speed", "ns per day of atoms and beads, and the factors between them"),
}
_DPI = 150


def draw_figures(folder, numbers: dict, settings) -> dict[str, list[bytes]]:
    """{name: panels as PNG}; the same are written to ``figures/NAME_k.png`` in the folder."""
    drawn = {}
    for name in FIGURES:
        panels = []
        for figure in _DRAW[name](folder, numbers, settings):
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
            panels.append(buffer.getvalue())
        place = folder.file("figures")
        place.mkdir(exist_ok=True)
        for k, panel in enumerate(panels):
            write_atomically(place / f"{name}_{k}.png", panel)
        drawn[name] = panels
    return drawn


def _panel(height: float = 4.0):
    """A figure of one Axes that no window system and no pyplot knows of; narrow, to be read on a phone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, height), layout="constrained")
    return figure, figure.subplots()


def _parity(folder, numbers, s):
    model = NEPModel.read(folder.file(MODELS["corrected"]))
    targets = Targets.from_frames(read_dataset(folder.file(DATA["corrected"][1])), model.species)
    found = predict(model, targets)
    figure, ax = _panel()
    plot.parity(targets.forces, found.forces, targets.force_errors, ax, quantity="mean force", unit="eV/Å")
    yield figure
    figure, ax = _panel()
    plot.parity(targets.virials, found.virials, targets.virial_errors, ax, quantity="virial", unit="eV/bead")
    yield figure


def _rdf(folder, numbers, s):
    compared = numbers["beads"]["rdf"]
    top = max(max(one[which]["g"][0]) for one in compared for which in ("atoms", "beads"))
    for density, one in zip(s.densities, compared, strict=True):
        figure, ax = _panel(3.4)
        plot.rdf({"atoms": _rdf_result(one["atoms"]), "beads": _rdf_result(one["beads"])}, ax)
        ax.set_title(f"{density:g} g/cm³: mean |Δg| = {one['deviation']:.3f}", fontsize="medium")
        ax.set_ylim(0, 1.1 * top)
        yield figure


def _pressure(folder, numbers, s):
    figure, ax = _panel(3.8)
    results = {
        "atoms": numbers["atomistic"],
        "beads": numbers["beads"]["corrected"],
        "beads, virial not corrected": numbers["beads"]["uncorrected"],
    }
    volumes = np.array(numbers["boxes"]["volumes_A3"])
    plot.eos(
        {name: _eos_result(volumes, s, one) for name, one in results.items()},
        ax,
        training_range=(min(s.densities), max(s.densities)),
    )
    own = np.array(numbers["atomistic"]["pressure_GPa"])
    expected = own - correction_GPa(numbers, s.temperature_K)
    ax.plot(s.densities, expected, color="0.4", linestyle=":", linewidth=1, label="atoms − (N − n) kT/V")
    ax.locator_params(axis="x", nbins=6)
    ax.legend(fontsize="small")
    yield figure


def _speed(folder, numbers, s):
    own, names = numbers["speed"], ("atoms", "beads")
    values = [own[name]["ns_per_day"] for name in names]
    figure, ax = _panel(3.0)
    ax.bar_label(ax.bar(names, values, color=plot.COLORS[:2]), fmt="%.3g")
    ax.set(ylabel="ns/day", yscale="log", ylim=(0.3 * min(values), 3 * max(values)))
    yield figure
    figure, ax = _panel(3.0)
    factors = speed_factors(numbers)
    bars = ax.barh(list(factors), list(factors.values()), color=plot.COLORS[2])
    ax.bar_label(bars, fmt="× %.3g", padding=3)
    ax.set(xlabel=f"factors of {values[1] / values[0]:.3g}", xlim=(0, 1.25 * max(factors.values())))
    ax.invert_yaxis()
    yield figure


def _rdf_result(one: dict) -> RDFResult:
    arrays = {name: np.array(one[name], float) for name in ("r", "g", "g_error", "coordination", "coordination_error")}
    return RDFResult(**one | arrays | {"pairs": tuple(map(tuple, one["pairs"]))})


def _eos_result(volumes, s, one: dict) -> EOSResult:
    pressures, errors = (np.array(one[name], float) for name in ("pressure_GPa", "pressure_error"))
    zero = np.zeros(len(volumes))
    return EOSResult(
        given="volume",
        volume_A3=volumes,
        volume_error=zero,
        density_g_cm3=np.array(s.densities),
        density_error=zero,
        pressure_GPa=pressures,
        pressure_error=errors,
        temperature_K=zero + s.temperature_K,
        temperature_error=zero,
        reliable=np.array(one["pressure_reliable"]),
        time_ps=s.bead_time_ps,
        final=[],
    )


_DRAW = {"parity": _parity, "rdf": _rdf, "pressure": _pressure, "speed": _speed}
