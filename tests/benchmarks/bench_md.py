"""Speed of MD against ASE's drivers with the usual compiled evaluator, and what driver and observers cost.

    python tests/benchmarks/bench_md.py [PART ...] [--data DIR] [--repeat N]

Parts: ``beads`` (512 water beads against ``ase.md.VelocityVerlet`` with CPUNEP), ``atoms`` (all-atom water, needs
--data), ``overhead`` (a step beyond its forces, a sampled RDF), ``scaling`` (10^3 to 10^6 beads), ``batch`` (16
replicas of 64 beads), ``drift`` (energy at 2 fs over a nanosecond). Without a part: all but ``drift``. The water model
is trained on the embedded frames first (20 s). Writes ``results/<date>-md.json``, adding to what is there; run it on an
idle machine. Exit status 1 if a promise is not kept.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the peer; ours are set below

import ase
import numba
import numpy as np
from ase import Atoms, units

import ase_nepcg
from ase_nepcg import MD, NEP, train
from ase_nepcg.bench_systems import bead_water
from ase_nepcg.data import WATER_FRAMES
from ase_nepcg.dataset import read_dataset
from ase_nepcg.md import NVE, RDF, Langevin, Thermo

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[2] / "shared" / "data"
PARTS = ("beads", "atoms", "overhead", "scaling", "batch")


def water_model():
    """A model of water beads with a wall at short distances."""
    frames = read_dataset(WATER_FRAMES)
    return train(frames, steps=400, seed=1, zbl="repulsive", lambda_1=0.01, lambda_2=0.01, progress=False).model


def beads(model, n: int, threads: int, seed: int = 1, equilibrate: int = 1000) -> Atoms:
    """``n`` beads at the density of water, brought to 300 K."""
    atoms = bead_water(n).atoms
    atoms = Atoms([model.species[0]] * n, positions=atoms.positions, cell=atoms.cell, pbc=True)
    atoms.set_masses(np.full(n, 18.015))
    rng = np.random.default_rng(seed)
    atoms.set_momenta(rng.normal(size=(n, 3)) * np.sqrt(units.kB * 300 * 18.015))
    atoms.calc = NEP(model, threads=threads)
    MD(atoms, 2.0, Langevin(300, 0.05), seed=seed, progress=False).run(equilibrate)
    momenta = atoms.get_momenta()
    atoms.set_momenta(momenta - momenta.mean(axis=0))
    return atoms


def seconds_per_step(md, steps: int) -> float:
    begin = time.perf_counter()
    md.run(steps)
    return (time.perf_counter() - begin) / steps


def alternate(cases: dict, repeat: int) -> dict:
    """Seconds per step of each case (a function), taken in turns: {name: list}."""
    times = {name: [] for name in cases}
    for _ in range(repeat):
        for name, case in cases.items():
            times[name].append(case())
    return times


def ratio(times: dict, slow: str, fast: str) -> float:
    """Median of the ratios within the turns."""
    return float(np.median(np.array(times[slow]) / np.array(times[fast])))


def ns_per_day(seconds: float, timestep_fs: float) -> float:
    return 86400.0 / seconds * timestep_fs * 1e-6


def peer_case(atoms, path, timestep_fs, steps):
    """ASE's velocity Verlet with CPUNEP on a copy of the atoms: a function that returns seconds per step."""
    from ase.md.verlet import VelocityVerlet
    from calorine.calculators import CPUNEP

    other = atoms.copy()
    other.calc = CPUNEP(str(path))
    driver = VelocityVerlet(other, timestep_fs * units.fs)
    driver.run(2)

    def case():
        begin = time.perf_counter()
        driver.run(steps)
        return (time.perf_counter() - begin) / steps

    return case


def part_beads(model, path, args) -> dict:
    runs = {}
    for threads in (1, 2):
        runs[threads] = MD(beads(model, 512, threads), 2.0, NVE(), progress=False)
        runs[threads].run(200)
    cases = {f"ours, {threads}": (lambda md=md: seconds_per_step(md, 1500)) for threads, md in runs.items()}
    cases["peer"] = peer_case(runs[2].atoms, path, 2.0, 8)
    times = alternate(cases, args.repeat)
    result = {
        "us_per_step": {name: 1e6 * float(np.median(values)) for name, values in times.items()},
        "ns_per_day": {name: ns_per_day(float(np.median(values)), 2.0) for name, values in times.items()},
        "ns_per_day_best": {name: ns_per_day(min(values), 2.0) for name, values in times.items()},
        "peer_over_ours": {str(threads): ratio(times, "peer", f"ours, {threads}") for threads in (1, 2)},
        "temperature_K": runs[2].temperature_K(),
    }
    for name in times:
        print(
            f"  512 beads, {name:8} {result['us_per_step'][name]:10.0f} µs/step "
            f"{result['ns_per_day'][name]:8.1f} ns/day (best {result['ns_per_day_best'][name]:.1f})"
        )
    return result


def part_atoms(model, path, args) -> dict:
    from ase.io import read

    folder = Path(args.data) / "models"
    atoms = read(folder / "water_216.xyz")
    rng = np.random.default_rng(1)
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * np.sqrt(units.kB * 300 * atoms.get_masses())[:, None])
    nep = folder / "water_OH_nep4.txt"
    atoms.calc = NEP(nep, threads=1)
    md = MD(atoms, 0.5, NVE(), progress=False)
    md.run(20)
    cases = {"ours": lambda: seconds_per_step(md, 60), "peer": peer_case(atoms, nep, 0.5, 6)}
    times = alternate(cases, args.repeat)
    result = {
        "us_per_step": {name: 1e6 * float(np.median(values)) for name, values in times.items()},
        "peer_over_ours": ratio(times, "peer", "ours"),
    }
    print(f"  {len(atoms)} atoms of water, one thread: peer over ours {result['peer_over_ours']:.1f}")
    return result


def without_forces(md):
    """Replace the force kernel of a run by one that does nothing: what is left of a step is the driver.

    (The difference of two measured times would be lost in their noise.)
    """
    kernel = md._backend._evaluator.kernel
    (signature,) = kernel.signatures
    names = [f"a{k}" for k in range(len(signature))]
    scope = {}
    exec(f"def nothing({', '.join(names)}):\n    pass", scope)
    nothing = numba.njit(no_cfunc_wrapper=True)(scope["nothing"])
    nothing.compile(signature)
    md._backend._evaluator.kernel, prepare = nothing, md._backend._prepare

    def prepare_zeros(run, virials):
        arguments, threads = prepare(run, virials)
        # every chunk has forces on all sites, as where beads are as close together as in a liquid
        arguments.touched[:], arguments.status[:] = 1, 0
        for array in (arguments.energies, arguments.force_parts, arguments.virial_parts):
            array[:] = 0.0
        return arguments, threads

    md._backend._prepare = prepare_zeros
    md._backend.evaluate(md.simulation)


def sum_seconds(md, calls: int = 20_000) -> float:
    """Seconds of the sum of forces, energies and virials over the chunks of the force kernel, which belongs to it."""
    from ase_nepcg.md.loop import SLOT, _collect

    @numba.njit(error_model="numpy", fastmath={"contract"})
    def sums_only(slots, nep, s, pages, chunk_first, progress):
        for k in range(slots.shape[0]):
            _collect(s, nep, slots[k], pages, False, chunk_first, progress)

    run = md.simulation
    arguments, _ = md._backend._prepare(run, False)
    pages = len(arguments.touched) // (len(arguments.status) // 2)
    rest = tuple(arguments), run.state, pages, md._backend._evaluator.chunk_first, run.progress
    sums_only(np.zeros((1, SLOT), np.int64), *rest)
    begin = time.perf_counter()
    sums_only(np.zeros((calls, SLOT), np.int64), *rest)
    return (time.perf_counter() - begin) / calls


def part_overhead(model, path, args) -> dict:
    overhead = {}
    for ensemble in (NVE(), Langevin(1e-9, 0.01)):
        # so slow that the neighbour list lasts
        atoms = beads(model, 512, 1)
        atoms.set_momenta(np.zeros((512, 3)))
        md = MD(atoms, 1e-4, ensemble, progress=False)
        md.run(20)
        without_forces(md)
        lists = md._backend.builds
        cases = {"step": lambda md=md: seconds_per_step(md, 20_000), "sums": lambda md=md: sum_seconds(md)}
        times = alternate(cases, args.repeat)
        assert md._backend.builds == lists
        overhead[ensemble.name] = 1e6 * float(np.median(np.array(times["step"]) - np.array(times["sums"])))
    hot = MD(beads(model, 512, 2), 2.0, NVE(), progress=False)
    watched = MD(beads(model, 512, 2), 2.0, NVE(), progress=False)
    watched.attach(RDF(r_max=10.0), 10)
    for run in (hot, watched):
        run.run(100)
    times = alternate(
        {"plain": lambda: seconds_per_step(hot, 500), "rdf": lambda: seconds_per_step(watched, 500)}, 5 * args.repeat
    )
    result = {"overhead_us": overhead, "rdf_every_10_over_plain": ratio(times, "rdf", "plain")}
    for name, value in overhead.items():
        print(f"  512 beads, {name}: a step without its forces {value:.1f} µs")
    print(f"  512 beads: with an RDF (10 Å) every 10 steps {result['rdf_every_10_over_plain']:.3f} x")
    return result


def part_scaling(model, path, args) -> dict:
    result = {}
    for n, steps in ((1000, 2000), (10_000, 200), (100_000, 30), (1_000_000, 12)):
        md = MD(beads(model, n, 2, equilibrate=200 if n < 100_000 else 20), 2.0, NVE(), progress=False)
        md.run(4)
        result[str(n)] = 1e6 * min(seconds_per_step(md, steps) for _ in range(3 if n < 1_000_000 else 1)) / n
        print(f"  {n:8} beads: {result[str(n)]:.3f} µs per bead and step", flush=True)
    return {"us_per_bead_step": result, "largest_over_smallest": max(result.values()) / min(result.values())}


def part_batch(model, path, args) -> dict:
    start = [beads(model, 64, 2, seed=k) for k in range(16)]

    def runs():
        made = []
        for k, atoms in enumerate(start):
            copy = atoms.copy()
            copy.calc = NEP(model, threads=2)
            made.append(MD(copy, 2.0, Langevin(300, 0.01), seed=k, progress=False))
            made[-1].attach(Thermo(), 10)
        return made

    alone, together = runs(), MD.batch(runs())

    def one_after_the_other():
        begin = time.perf_counter()
        for md in alone:
            md.run(1000)
        return (time.perf_counter() - begin) / 1000

    def batch():
        begin = time.perf_counter()
        together.run(1000)
        return (time.perf_counter() - begin) / 1000

    one_after_the_other(), batch()
    times = alternate({"alone": one_after_the_other, "batch": batch}, args.repeat)
    result = {
        "us_per_step_of_all": {name: 1e6 * float(np.median(values)) for name, values in times.items()},
        "alone_over_batch": ratio(times, "alone", "batch"),
    }
    print(f"  16 x 64 beads: one after the other over batch {result['alone_over_batch']:.2f}")
    return result


def part_drift(model, path, args) -> dict:
    md = MD(beads(model, 512, 2), 2.0, NVE(), progress=False)
    energies = []
    md.attach(lambda: energies.append((md.time_ps, md.conserved_energy())), 500)
    md.run(500_000)
    t, e = np.array(energies).T
    halves = [np.polyfit(part[0], part[1], 1)[0] for part in np.array_split(np.array([t, e]), 4, axis=1)]
    slope = np.polyfit(t, e, 1)[0] * 1e3 / 512 * 1e3
    error = np.std(halves, ddof=1) / 2 * 1e3 / 512 * 1e3
    print(f"  drift at 2 fs over {t[-1]:.0f} ps: {slope:.4f}({error:.4f}) meV per bead and ns")
    return {"meV_per_bead_ns": slope, "error": error, "ps": float(t[-1]), "temperature_K": md.temperature_K()}


def promises(report: dict):
    """(what, measured, bound, kept) for everything in ``report`` that has a bound."""
    if "beads" in report:
        rows = report["beads"]
        yield "512 beads, two threads: peer over ours", rows["peer_over_ours"]["2"], ">= 15", 15
        yield "512 beads, two threads, ns/day", rows["ns_per_day"]["ours, 2"], ">= 200", 200
    if "atoms" in report:
        yield "all-atom water, one thread: peer over ours", report["atoms"]["peer_over_ours"], ">= 8", 8
    if "overhead" in report:
        for name, value in report["overhead"]["overhead_us"].items():
            yield f"{name}: a step without its forces, µs", value, "< 20", -20
        yield "RDF every 10 steps over none", report["overhead"]["rdf_every_10_over_plain"], "< 1.05", -1.05
    if "scaling" in report:
        yield "µs per bead, largest over smallest", report["scaling"]["largest_over_smallest"], "<= 1.5", -1.5
    if "batch" in report:
        yield "16 x 64: one after the other over batch", report["batch"]["alone_over_batch"], ">= 1.5", 1.5
    if "drift" in report:
        yield "drift, meV per bead and ns", abs(report["drift"]["meV_per_bead_ns"]), "< 1", -1


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}, drift (default: all but drift)")
    parser.add_argument("--data", metavar="DIR", default=str(SHARED) if SHARED.is_dir() else None)
    parser.add_argument("--repeat", type=int, default=7)
    args = parser.parse_args()
    for part in args.parts:
        if part not in (*PARTS, "drift"):
            parser.error(f"unknown part {part!r}: expected one of {', '.join((*PARTS, 'drift'))}")
    parts = args.parts or [part for part in PARTS if part != "atoms" or args.data]
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    path = results / f"{datetime.date.today().isoformat()}-md.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    report["versions"] = {
        "ase_nepcg": ase_nepcg.__version__,
        "ase": ase.__version__,
        "numba": numba.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    model = water_model()
    with tempfile.TemporaryDirectory() as folder:
        nep = Path(folder) / "nep.txt"
        model.write(nep)
        for part in parts:
            print(part, flush=True)
            report[part] = globals()[f"part_{part}"](model, nep, args)
            path.write_text(json.dumps(report, indent=1) + "\n")
    print("\npromises")
    kept = []
    for what, value, text, bound in promises({part: report[part] for part in parts}):
        kept.append(value >= bound if bound > 0 else value <= -bound)
        print(f"  {what:45} {value:9.3g} {text:>8}  {'kept' if kept[-1] else 'MISSED'}")
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(run())
