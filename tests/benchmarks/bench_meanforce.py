"""What mean-force sampling costs and whether its error bars are true, measured on this machine.

    python tests/benchmarks/bench_meanforce.py [--data DIR] [--short]

Writes ``results/<date>-meanforce.json`` next to this file. ``--data`` is the folder ``models`` of published models (by
default ``shared/data/models`` beside the repository); without it the water parts are left out. About ten minutes on an
idle machine, mostly for the independent runs behind the error bars; ``--short`` leaves those out. Exit status 1 if a
promise is not kept.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import sys
import threading
import time
import tracemalloc
import warnings
from pathlib import Path

import numba
import numpy as np
from ase import Atoms, units
from ase.io import read

import ase_nepcg
from ase_nepcg import NEP, FixBeads, Mapping, sample_mean_force
from ase_nepcg.labels import get_types
from ase_nepcg.md.held import HeldRun, NepEngine
from ase_nepcg.potential.threads import run_chunks

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[2] / "shared" / "data" / "models"
SMALL, LARGE = "water_OH_small_nep4.txt", "water_OH_nep4.txt"


def water(folder: Path, model: str, molecules: int = 64, threads: int = 1) -> Atoms:
    """Molecules of the published configuration in a cube of 1 g/cm^3, relaxed by 8 ps of free dynamics."""
    source = read(folder / "water_216.xyz")
    mapping = Mapping.from_molecules(source, "WAT")
    bound = mapping.bind(source)
    whole, edge = bound.whole(source.positions, source.cell.array, source.pbc), 4
    assert molecules == edge**3
    size = (molecules * 18.015 / units.mol / 1.0 * 1e24) ** (1 / 3)
    grid = (np.stack(np.meshgrid(*[np.arange(edge)] * 3, indexing="ij"), -1).reshape(-1, 3) + 0.5) * size / edge
    positions = []
    for place, group in zip(grid, bound.groups[:molecules], strict=True):
        positions.append(
            whole[group] - source.get_masses()[group] @ whole[group] / source.get_masses()[group].sum() + place
        )
    symbols = [symbol for group in bound.groups[:molecules] for symbol in source.symbols[group]]
    atoms = Atoms(symbols, positions=np.concatenate(positions), cell=[size] * 3, pbc=True)
    atoms.calc = NEP(folder / model, threads=threads)
    # one atom held, the rest free
    run, engine = make_run(atoms, 1, Mapping.from_groups([[0]], "O", atoms))
    while run.step < 16000:
        engine.advance(run, 16000, 16000)
    atoms.positions[:] = run.x
    return atoms


def make_run(atoms, seed, mapping):
    """A run and its engine, as the sampler makes them."""
    bound = mapping.bind(atoms)
    x = bound.whole(atoms.positions, atoms.cell.array, atoms.pbc)
    run = HeldRun(
        bound,
        x,
        timestep=0.5 * units.fs,
        kT=units.kB * 300,
        damping=np.exp(-0.005),
        interval=1,
        moments=False,
        seed=seed,
    )
    types = get_types(atoms, atoms.calc.model.species)
    engine = NepEngine(atoms.calc.model, types, atoms.cell.array, atoms.pbc, threads=atoms.calc.parameters.threads)
    run.reference = engine.begin(run)
    return run, engine


def step_over_force(atoms, repeat: int = 12) -> dict:
    """Time of a sampled step over that of a bare kernel call with a valid list, alternating, medians (µs)."""
    run, engine = make_run(atoms, 3, Mapping.from_molecules(atoms, "WAT"))
    while run.step < 400:
        engine.advance(run, 400, 0)
    steps, bare = [], []
    for _ in range(repeat):
        begin, first = time.perf_counter(), run.step
        while run.step < first + 200:
            engine.advance(run, first + 200, 0)
        steps.append((time.perf_counter() - begin) / 200 * 1e6)
        evaluator = engine._evaluator
        arguments, threads = evaluator.prepare(engine._geometry(run.x))
        begin = time.perf_counter()
        for _ in range(100):
            run_chunks(evaluator.kernel, arguments, threads)
        bare.append((time.perf_counter() - begin) / 100 * 1e6)
    return {
        "atoms": len(atoms),
        "step_us": float(np.median(steps)),
        "force_us": float(np.median(bare)),
        "ratio": float(np.median(np.array(steps) / np.array(bare))),
        "ratio_best": float(min(steps) / min(bare)),
    }


def constraint_cost(groups: int = 1000) -> dict:
    rng = np.random.default_rng(0)
    atoms = Atoms("OHH" * groups, positions=rng.uniform(0, 40, (3 * groups, 3)), cell=[40] * 3, pbc=True)
    constraint = FixBeads(np.arange(3 * groups).reshape(-1, 3))
    atoms.set_constraint(constraint)
    other, momenta = atoms.positions + 0.01 * rng.normal(size=(3 * groups, 3)), rng.normal(size=(3 * groups, 3))

    def best(call):
        times = []
        for _ in range(200):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        return float(np.median(times) * 1e3)

    return {
        "groups": groups,
        "positions_ms": best(lambda: constraint.adjust_positions(atoms, other.copy())),
        "momenta_ms": best(lambda: constraint.adjust_momenta(atoms, momenta.copy())),
        "forces_ms": best(lambda: constraint.adjust_forces(atoms, momenta.copy())),
        "copy_ms": best(atoms.copy),
    }


def interrupt_latency(atoms) -> float:
    """Seconds from SIGINT to the return of sample_mean_force."""
    mapping, latency = Mapping.from_molecules(atoms, "WAT"), []
    for _ in range(5):
        sent = []

        def send(sent=sent):
            sent.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGINT)

        timer = threading.Timer(2.0, send)
        timer.start()
        result = sample_mean_force(
            atoms, mapping, temperature_K=300, time_ps=1000, equilibration_ps=0.1, seed=1, progress=False
        )
        latency.append(time.perf_counter() - sent[0])
        assert result.interrupted
    return max(latency)


def memory(atoms) -> dict:
    """Peak of Python's memory in a short and a ten times longer run, bytes."""
    mapping, peaks = Mapping.from_molecules(atoms, "WAT"), []
    for time_ps in (0.5, 5.0):
        tracemalloc.start()
        sample_mean_force(
            atoms, mapping, temperature_K=300, time_ps=time_ps, equilibration_ps=0.1, seed=1, progress=False
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return {"short": peaks[0], "ten_times_longer": peaks[1]}


def truth(atoms, runs: int, time_ps: float) -> dict:
    """Independent runs of one configuration: their errors, and deviations from each other in units of them."""
    mapping = Mapping.from_molecules(atoms, "WAT")
    results = []
    for seed in range(runs):
        results.append(
            sample_mean_force(
                atoms, mapping, temperature_K=300, time_ps=time_ps, equilibration_ps=2.0, seed=seed, progress=False
            )
        )
        print(f"  run {seed + 1} of {runs}: {results[-1]}, virial pull {results[-1].virial_pull:.2f}", flush=True)
    chi2 = {}
    for name in ("force", "virial"):
        value = np.array([r.forces if name == "force" else r.virial for r in results])
        error = np.array([r.force_errors if name == "force" else r.virial_error for r in results])
        rest = (value.sum(axis=0) - value) / (runs - 1)
        # the mean of the others has its own error, of which (runs - 1) independent errors are the estimate
        others = np.sqrt(((error**2).sum(axis=0) - error**2) / (runs - 1) ** 2)
        chi2[name] = float(np.sqrt(np.mean((value - rest) ** 2 / (error**2 + others**2))))
    return {
        "runs": runs,
        "time_ps": time_ps,
        "rms_force": float(np.sqrt(np.mean([r.forces**2 for r in results]))),
        "rms_error": float(np.sqrt(np.mean([r.force_errors**2 for r in results]))),
        "largest_rms_error": max(r.force_error for r in results),
        "sqrt_chi2_force": chi2["force"],
        "sqrt_chi2_virial": chi2["virial"],
        "reliable": float(np.mean([r.reliable for r in results])),
        "rms_virial_pull": float(np.sqrt(np.mean([r.virial_pull**2 for r in results]))),
    }


def promises(report: dict):
    """Yield (what, measured, bound, kept)."""
    for name, row in report.get("step", {}).items():
        yield f"sampled step over bare force, {name}", f"{row['ratio']:.3f}", "<= 1.15", row["ratio"] <= 1.15
    row = report["constraint"]
    for key in ("positions_ms", "momenta_ms", "forces_ms"):
        yield f"FixBeads, {row['groups']} groups, {key}", f"{row[key]:.3f}", "< 0.2", row[key] < 0.2
    yield f"atoms.copy() with {row['groups']} groups, ms", f"{row['copy_ms']:.3f}", "< 0.5", row["copy_ms"] < 0.5
    if "interrupt_s" in report:
        yield "Ctrl-C to result, s", f"{report['interrupt_s']:.3f}", "< 0.2", report["interrupt_s"] < 0.2
        peak = report["memory"]
        ratio = peak["ten_times_longer"] / peak["short"]
        yield "memory of a ten times longer run, ratio", f"{ratio:.3f}", "< 1.1", ratio < 1.1
    if "truth" in report:
        row = report["truth"]
        yield (
            "rms error after 20 ps, eV/Å",
            f"{row['largest_rms_error']:.4f}",
            "<= 0.012",
            row["largest_rms_error"] <= 0.012,
        )
        for key in ("sqrt_chi2_force", "sqrt_chi2_virial"):
            yield f"deviation over error, {key}", f"{row[key]:.2f}", "0.75 to 1.3", 0.75 <= row[key] <= 1.3


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--runs", type=int, default=8)
    args = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)
    report = {
        "date": datetime.date.today().isoformat(),
        "versions": {"ase_nepcg": ase_nepcg.__version__, "numba": numba.__version__, "numpy": np.__version__},
        "machine": f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "constraint": constraint_cost(),
    }
    if (args.data / SMALL).is_file():
        small = water(args.data, SMALL)
        large = small.copy()
        report["step"] = {}
        for name, model, threads in ((SMALL, SMALL, 1), (LARGE, LARGE, 1), (f"{SMALL}, 2 threads", SMALL, 2)):
            large.calc = NEP(args.data / model, threads=threads)
            report["step"][name] = step_over_force(large)
            print(name, report["step"][name], flush=True)
        report["interrupt_s"] = interrupt_latency(small)
        report["memory"] = memory(small)
        if not args.short:
            report["truth"] = truth(small, args.runs, 20.0)
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    path = results / f"{report['date']}-meanforce.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwritten to {path}\n")
    missed = 0
    for what, measured, bound, kept in promises(report):
        print(f"{what:62} {measured:>8}  {bound:12} {'kept' if kept else 'NOT KEPT'}")
        missed += not kept
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(run())
