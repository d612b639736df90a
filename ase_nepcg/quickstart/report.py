"""The report: one HTML file with everything in it, for a browser on any screen and without a network."""

from __future__ import annotations

import base64
import platform
from html import escape

from .. import __version__
from ..quantities import with_error
from .figures import FIGURES
from .results import checks, correction_GPa, differences, speed_factors
from .settings import Settings
from .stages import STAGES

__all__ = ["html_report"]

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
img { width: 27rem; max-width: 100%; height: auto; background: white; border-radius: 4px; }
figure { margin: 1rem 0; display: flex; flex-wrap: wrap; gap: .5rem; align-items: flex-start; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .25rem .7rem .25rem 0; text-align: left; border-bottom: 1px solid #8884; vertical-align: top; }
pre { overflow-x: auto; padding: .6rem; background: #8882; border-radius: 4px; font-size: .85rem; }
.kept { color: #008060; font-weight: 600; } .missed { color: #c04000; font-weight: 600; }
"""


def html_report(name: str, numbers: dict, settings: Settings, figures: dict, commands: dict, command: str) -> str:
    """The report as text. ``name``: of the system; ``figures``: {name: panels as PNG}; ``commands``: {stage: lines};
    ``command``: that of the whole quickstart. Everything that comes from outside is escaped."""
    parts = [
        f"<h1>Coarse-graining {escape(name)}</h1>",
        _summary(numbers, settings),
        "<h2>What was promised, and what came out</h2>",
        _checks(numbers, settings),
    ]
    for key, (title, alternative) in FIGURES.items():
        panels = "".join(
            f'<img alt="{escape(alternative)}" src="data:image/png;base64,{base64.b64encode(panel).decode()}">'
            for panel in figures[key]
        )
        parts += [f"<h2>{escape(title)}</h2>", f"<figure>{panels}</figure>", _TABLES[key](numbers, settings)]
    parts += ["<h2>How it was made</h2>", _stages(numbers, settings, commands, command)]
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # else browsers ask for a favicon
        '<link rel="icon" href="data:,">\n'
        f"<title>Coarse-graining {escape(name)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n"
        "</html>\n"
    )


def _summary(numbers, s) -> str:
    boxes, frames, speed = numbers["boxes"], numbers["frames"], numbers["speed"]
    ratio = speed["beads"]["ns_per_day"] / speed["atoms"]["ns_per_day"]
    found = checks(numbers, s)
    kept = sum(check.kept for check in found)
    return (
        f"<p>{boxes['atoms']} atoms became {boxes['sites']} beads ({escape(', '.join(boxes['labels']))}) at "
        f"{s.temperature_K:g} K and {escape(', '.join(f'{d:g}' for d in s.densities))} g/cm³. A NEP-CG model was "
        f"trained on the mean forces of {frames['train']} configurations. It runs {ratio:.3g} times as fast as the "
        f"atoms; {kept} of {len(found)} comparisons are within their limits.</p>"
    )


def _checks(numbers, s) -> str:
    rows = []
    for check in checks(numbers, s):
        word = '<span class="kept">kept</span>' if check.kept else '<span class="missed">missed</span>'
        rows.append((escape(check.what), escape(check.value), escape(check.limit), word))
    note = (
        "<p>Numbers in brackets are standard errors, in units of the last digit; σ is that of the difference. Errors "
        "of runs that are short compared with their slowest correlation are lower bounds (marked in the table of "
        "pressures); a run too short for any error has none, and misses.</p>"
    )
    return _table(("quantity", "value", "limit", ""), rows) + note


def _parity(numbers, s) -> str:
    rows = []
    for name in ("corrected", "uncorrected"):
        for part in ("train", "test"):
            errors = numbers["models"][name][part]
            noise = errors.get("force_noise")
            rows.append(
                (
                    f"{name}, {part} frames",
                    f"{errors['force']:.4f}",
                    "" if noise is None else f"{noise:.4f}",
                    f"{errors['virial']:.4f}",
                    f"{errors['stress']:.4f}",
                )
            )
    header = ("model", "force RMSE (eV/Å)", "error bars (eV/Å)", "virial RMSE (eV/bead)", "stress RMSE (GPa)")
    frames = numbers["frames"]
    text = (
        f"<p>The gray band is as wide as the error bars of the reference. Each configuration was sampled for "
        f"{s.frame_ps:g} ps; error bars of {frames['unreliable']} of {frames['train'] + frames['test']} of them are "
        "lower bounds, since a run that short does not see its slowest correlation. Test configurations are from the "
        "end of each all-atom run, training ones from before. "
        + (
            f"The two estimators of the virial differ by {frames['virial_pull']:.1f} of their errors (median; about 1 "
            "in equilibrium). "
            if frames["virial_pull"] is not None
            else ""
        )
        + "Both models saw the same forces; virials of the second one lack the term (N − n) kT.</p>"
    )
    return _table(header, rows) + text


def _rdf(numbers, s) -> str:
    rows = [
        (f"{density:g}", f"{one['deviation']:.4f}", f"{one['halves']:.4f}")
        for density, one in zip(s.densities, numbers["beads"]["rdf"], strict=True)
    ]
    return _table(("density (g/cm³)", "mean |Δg|, beads against atoms", "between halves of the all-atom run"), rows)


def _pressure(numbers, s) -> str:
    atoms, beads = numbers["atomistic"], numbers["beads"]
    expected = correction_GPa(numbers, s.temperature_K)
    off = differences(numbers, "uncorrected")
    rows = []
    for k, density in enumerate(s.densities):
        texts = [
            with_error(one["pressure_GPa"][k], one["pressure_error"][k]) + "*" * (not one["pressure_reliable"][k])
            for one in (atoms, beads["corrected"], beads["uncorrected"])
        ]
        rows.append((f"{density:g}", *texts, with_error(*off[k]), f"{-expected[k]:.3f}"))
    header = ("density (g/cm³)", "atoms (GPa)", "beads (GPa)", "beads, virial not corrected (GPa)")
    header += ("their difference from the atoms", "−(N − n) kT/V")
    text = (
        "<p>* The run is short compared with its slowest correlation: the error is a lower bound.</p>"
        "<p>Averaging over the atoms removes their part of the ideal gas, (N − n) kT/V, from the pressure; the virials "
        "that the beads are trained on must make up for it. Where they do not, the pressure is too low by about as "
        "much: not exactly, since the same forces also pull the model towards the right pressure.</p>"
    )
    return _table(header, rows) + text


def _speed(numbers, s) -> str:
    speed = numbers["speed"]
    rows = [
        (
            name,
            str(speed[name]["sites"]),
            f"{speed[name]['timestep_fs']:g}",
            f"{speed[name]['us_per_site']:.3g}",
            f"{speed[name]['ns_per_day']:.3g}",
            f"{speed[name]['spread']:.2f}",
        )
        for name in ("atoms", "beads")
    ]
    factors = " × ".join(f"{value:.3g} ({name})" for name, value in speed_factors(numbers).items())
    ratio = speed["beads"]["ns_per_day"] / speed["atoms"]["ns_per_day"]
    header = ("", "sites", "time step (fs)", "µs per site and step", "ns/day", "slowest / fastest of three")
    driver = "" if speed["compiled"] else "; the atoms by ASE's driver and their own calculator"
    text = f"<p>{ratio:.3g} = {escape(factors)}; NEP models on {speed['threads']} threads{driver}; the same volume.</p>"
    return _table(header, rows) + text


def _stages(numbers, s, commands, command) -> str:
    parts = [f"<p>All of it:</p><pre>{escape(command)}</pre>"]
    for stage, title in STAGES.items():
        parts.append(f"<h3>{escape(title)} ({numbers[stage]['seconds']:.0f} s, if it was not interrupted)</h3>")
        if commands.get(stage):
            parts.append(f"<pre>{escape(chr(10).join(commands[stage]))}</pre>")
    parts.append(
        f"<p>ase_nepcg {escape(__version__)}, Python {escape(platform.python_version())}, "
        f"{escape(platform.machine())}. Commands are given inside the folder of this report; those of the "
        "all-atom runs and of the beads do the main part, without what comes before it.</p>"
    )
    return "\n".join(parts)


def _table(header, rows) -> str:
    head = "".join(f"<th>{cell}</th>" for cell in header)
    lines = ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


_TABLES = {"parity": _parity, "rdf": _rdf, "pressure": _pressure, "speed": _speed}
