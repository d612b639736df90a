"""The numbers that this package promises for the CPU, measured on this machine and compared with the promises.

    python tests/benchmarks/bench_potential.py [--data DIR]

Writes ``results/<date>-cpu.json`` next to this file. ``--data`` is a folder with published models (see ``nepcg bench
--help``); by default ``shared/data`` beside the repository, if it is there; without it random models of the same shapes
take their place. Takes some minutes; run it on an idle machine. Exit status 1 if a promise is not kept.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from pathlib import Path

from ase_nepcg.bench_systems import SYSTEMS
from ase_nepcg.cli import main

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[2] / "shared" / "data"

# least ratio of the peer's time to ours, one thread
LEAST_RATIO = {"calorine": 8, "nep-adapters": 4}
LEAST_RATIO_BEADS = {"calorine": 12, "nep-adapters": 4}


def promises(report: dict):
    """Yield (what, measured, bound, kept) for everything in ``report`` that has a bound."""
    for row in report["comparison"]:
        least = (LEAST_RATIO_BEADS if row["system"] == "bead-water" else LEAST_RATIO).get(row["calculator"])
        if least is None or row["threads"] != 1 or row["status"] != "ok":
            continue
        ratio = row["ratio_small"]
        yield f"{row['system']}: {row['calculator']} over ours", f"{ratio:.1f}", f">= {least}", ratio >= least
    scaling, startup, busy = report["scaling"], report["startup"], report["busy"]
    for kind, ratio in scaling["ratio"].items():
        yield f"cost per site, 100 000 over 10 000 beads, {kind}", f"{ratio:.2f}", "<= 1.3", ratio <= 1.3
    peak = scaling["memory"]["peak_bytes"] / 1e9
    yield "memory of a million beads, GB", f"{peak:.2f}", "< 6", peak < 6
    for key, bound in (("import_s", 0.5), ("cold_first_force_s", 20), ("warm_first_force_s", 1.5)):
        yield f"start-up: {key}", f"{startup[key]:.2f}", f"< {bound}", startup[key] < bound
    yield "two threads over one, idle", f"{busy['idle']['speedup']:.2f}", ">= 1.8", busy["idle"]["speedup"] >= 1.8
    yield (
        "two threads over one, a core busy",
        f"{busy['busy']['speedup']:.2f}",
        ">= 0.91",
        busy["busy"]["speedup"] >= 0.91,
    )


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", metavar="DIR", default=str(SHARED) if SHARED.is_dir() else None)
    parser.add_argument("--repeat", default="20")
    args = parser.parse_args()
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    path = results / f"{datetime.date.today().isoformat()}-cpu.json"
    what = ["--data", args.data] if args.data else ["--systems", ",".join(SYSTEMS)]
    command = ["bench", *what, "--threads", "1,2", "--repeat", args.repeat, "--scaling", "--startup", "--busy"]
    status = main([*command, "--json", str(path)])
    if status:
        return status
    rows = list(promises(json.loads(path.read_text())))
    print("\npromises")
    for label, measured, bound, kept in rows:
        print(f"  {label:52} {measured:>8} {bound:>8}  {'kept' if kept else 'MISSED'}")
    return 0 if all(kept for *_, kept in rows) else 1


if __name__ == "__main__":
    sys.exit(run())
