"""The tables that ``nepcg bench`` prints, from the numbers it measured."""

from __future__ import annotations

__all__ = ["OURS", "format_report"]

#: the name of this package's own calculator in the tables
OURS = "ase_nepcg"


def format_report(report: dict) -> str:
    """The tables of a report as text."""
    here = report["machine"]
    versions = " ".join(f"{name} {version}" for name, version in here["versions"].items())
    peers = " ".join(f"{name} {version or '(not installed)'}" for name, version in here["peers"].items())
    parts = [f"{here['cpu']}, {here['cores']} cores, {here['lanes']} doubles per vector\n{versions}\n{peers}"]
    if "comparison" in report:
        parts.append(_comparison_table(report["comparison"], report["repeat"]))
    if "scaling" in report:
        parts.append(_scaling_table(report["scaling"]))
    if "startup" in report:
        s = report["startup"]
        rows = [["", "first import to result", "whole process"]]
        rows.append(["import ase_nepcg", f"{s['import_s']:.3f} s", ""])
        rows.append(["from ase_nepcg import NEP", f"{s['import_nep_s']:.3f} s", ""])
        for name in ("cold", "warm"):
            label = f"first force, {name} cache"
            rows.append([label, f"{s[f'{name}_first_force_s']:.2f} s", f"{s[f'{name}_process_s']:.2f} s"])
        parts.append("Start-up in a new process\n" + _aligned(rows))
    if "busy" in report:
        rows = [["other load", "1 thread", "2 threads", "speed-up"]]
        for name, label in (("idle", "none"), ("busy", "one core busy")):
            costs = report["busy"][name]["threads"]
            rows.append([label, *(f"{costs[c]['median']:.2f}" for c in "12"), f"{report['busy'][name]['speedup']:.2f}"])
        parts.append(
            f"Threads, {report['busy']['cores']} cores: median µs per site, bead-water, small moves\n" + _aligned(rows)
        )
    return "\n\n".join(parts)


def _comparison_table(rows: list[dict], repeat: int) -> str:
    head = ["system", "sites", "threads", "calculator", "small", "(median)", "ratio", "rebuild", "(median)", "ratio"]
    table = [[*head, "max |dF| eV/Å"]]
    for row in rows:
        cells = [row["system"], str(row["sites"]), str(row["threads"]), row["calculator"]]
        if row["status"] != "ok":
            cells.append(row["status"])
        else:
            for kind in ("small", "rebuild"):
                costs = row[kind]
                cells += [f"{costs['best']:.2f}", f"({costs['median']:.2f})", f"{row[f'ratio_{kind}']:.1f}x"]
            cells.append("" if row["calculator"] == OURS else f"{row['max_force_deviation']:.1e}")
        table.append(cells)
    title = f"µs per site and call of get_forces(), best of {repeat}; ratio: time over that of {OURS}"
    return f"{title}\n{_aligned(table)}"


def _scaling_table(result: dict) -> str:
    rows = [["beads", "small", "rebuild"]]
    for n, costs in result["sizes"].items():
        rows.append([n, *(f"{costs[kind]['best']:.2f}" for kind in ("small", "rebuild"))])
    rows.append(["ratio", *(f"{result['ratio'][kind]:.2f}" for kind in ("small", "rebuild"))])
    memory = result["memory"]
    title = f"Cost of size: µs per site, bead-water, {result['threads']} thread{'s' * (result['threads'] > 1)}"
    peak = f"peak memory with {memory['sites']} beads: {memory['peak_bytes'] / 1e9:.2f} GB"
    return f"{title}\n{_aligned(rows)}\n{peak}"


def _aligned(rows: list[list[str]]) -> str:
    """Columns padded to their widest cell, numbers to the right; a row that is too short ends with any text."""
    full = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(len(row[column]) for row in full) for column in range(len(rows[0]))]
    numeric = [all(row[c][:1] in "0123456789(" for row in full[1:]) for c in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numeric, strict=False)
        ]
        if len(row) < len(rows[0]):
            cells[-1] = row[-1]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
