"""Thermal conductivity of a small crystal by a driving force (HNEMD) and from fluctuations (Green-Kubo): do they agree?

    python tests/benchmarks/bench_heat.py [--fast] [--output FILE.json]

54 beads of the model that the physical tests use, bcc, 200 K: beads hop from site to site, so the convective part of
the current counts, in both methods. HNEMD at two field strengths, Green-Kubo along all three
axes, both averaged over axes where they can be, errors from the scatter of the replicas. About half an hour on two
cores; ``--fast`` is a hundredth of that, to see that it runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import time
from pathlib import Path

import numpy as np

from ase_nepcg import __version__, analysis

HERE = Path(__file__).resolve().parent
TEMPERATURE_K, TIMESTEP_FS, CORRELATION_PS = 200.0, 4.0, 16.0
FIELDS = (2e-3, 4e-3)  # 1/Å
#: (replicas, ps) of each field, of Green-Kubo
LENGTHS = {"full": ((24, 600.0), (64, 600.0)), "fast": ((2, 6.0), (4, 40.0))}


def crystal():
    spec = importlib.util.spec_from_file_location("md_physics", HERE.parent / "md_physics.py")
    physics = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(physics)
    return physics.crystal(17.0, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    (n_driven, driven_ps), (n_free, free_ps) = LENGTHS["fast" if arguments.fast else "full"]
    began, atoms = time.perf_counter(), crystal()
    settings = {"temperature_K": TEMPERATURE_K, "timestep_fs": TIMESTEP_FS, "interval": 5, "progress": True}
    driven = analysis.hnemd(
        atoms,
        "x",
        fields_per_A=FIELDS,
        convective=True,
        replicas=n_driven,
        time_ps=driven_ps,
        seed=1,
        **settings,
    )
    free = analysis.green_kubo(
        atoms, correlation_ps=CORRELATION_PS, replicas=n_free, time_ps=free_ps, seed=2, **settings
    )
    rows = [
        (f"HNEMD, {field:g} 1/Å", kappa, error, f"{n_driven} x {driven_ps:g} ps")
        for field, kappa, error in zip(FIELDS, driven.kappa, driven.kappa_error, strict=True)
    ]
    rows.append(("Green-Kubo", free.kappa, free.kappa_error, f"{n_free} x {free_ps:g} ps, three axes"))
    print(f"{len(atoms)} beads, {TEMPERATURE_K:g} K, {time.perf_counter() - began:.0f} s")
    for name, kappa, error, how in rows:
        print(f"  {name:20s} {kappa:7.3f} ± {error:.3f} W/(m K)  ({100 * error / kappa:.0f} %, {how})")
    for (name, kappa, error, _), (other, value, its, _) in ((rows[0], rows[1]), (rows[0], rows[2]), (rows[1], rows[2])):
        print(f"  {name} - {other}: {(kappa - value) / np.hypot(error, its):+.1f} standard errors")
    late = free.time_fs / 1000.0
    shown = [int(np.argmin(np.abs(late - t))) for t in np.linspace(0.125, 1, 8) * CORRELATION_PS]
    mean = free.running.mean(axis=0)
    print("  running integral:", ", ".join(f"{late[k]:.0f} ps {mean[k]:.3f}" for k in shown))
    if arguments.output:
        found = {
            "sites": len(atoms),
            "temperature_K": TEMPERATURE_K,
            "rows": [dict(zip(("method", "kappa", "error", "length"), row, strict=True)) for row in rows],
            "running_ps": late[shown].tolist(),
            "running": mean[shown].tolist(),
            "ase_nepcg": __version__,
            "numpy": np.__version__,
            "machine": platform.machine(),
        }
        arguments.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
