"""Everything that needs a GPU, in one command: results against the CPU, the tests on the device, throughput.

    python tests/benchmarks/gpu_check.py [--output DIR] [--largest 4000000] [--no-tests] [--minutes 8]

Needs numpy, numba and numba-cuda; with ase also MD runs are timed, with nep-adapters (CUDA backend) and
compute-sanitizer those are used too. Without a usable device it says why and ends with status 3. Writes
``gpu_check.json`` with versions into DIR (default: $OUT, else here), after every section, so that nothing is lost when
time runs out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "cuda"):
    if importlib.util.find_spec("ase_nepcg_cuda") is None:
        sys.path.insert(0, str(folder))

SIZES = (512, 4096, 32_768, 262_144, 1_048_576, 4_194_304)
#: name -> (density in 1/Å^3, settings of a random model): as in the CPU benchmarks
MODELS = {
    "water CG": (0.0334, ["Ar"], {"cutoff": (6.0, 4.0)}),
    "water CG, 6/5 Å": (0.0334, ["Ar"], {"cutoff": (6.0, 5.0)}),
    "gold AACG": (0.059, ["Au", "Ar"], {"cutoff": (6.0, 5.0), "neurons": 30, "zbl": (1.0, 2.0)}),
    "water AA": (0.1002, ["O", "H"], {"cutoff": (8.0, 4.0), "n_max": (9, 7), "basis_size": (9, 7), "neurons": 100}),
}


class Watch:
    """How much of the time is left."""

    def __init__(self, minutes):
        self.end = time.perf_counter() + 60 * minutes

    def left(self) -> float:
        return self.end - time.perf_counter()


def grid(n, density, n_types, seed=1):
    """About n sites on a jittered grid: Geometry."""
    from ase_nepcg.potential.evaluate import Geometry

    per_edge = max(1, round(n ** (1 / 3)))
    spacing = density ** (-1 / 3)
    rng = np.random.default_rng(seed)
    positions = np.indices((per_edge,) * 3).reshape(3, -1).T * spacing + rng.uniform(-0.25, 0.25, (per_edge**3, 3))
    cell = np.eye(3) * per_edge * spacing
    return Geometry(positions, cell, np.ones(3, bool), rng.integers(0, n_types, per_edge**3).astype(np.int32))


def model_of(name):
    from ase_nepcg.model import NEPModel

    density, species, settings = MODELS[name]
    return density, NEPModel.random(species, seed=1, **settings)


def check_forces(results, watch):
    """Forces, energies and virials of both precisions against the CPU, relative to the force scale."""
    from ase_nepcg_cuda import CudaEvaluator
    from ase_nepcg_cuda.nep import parts

    from ase_nepcg.potential.evaluate import evaluate

    for name in MODELS:
        if watch.left() < 120:
            results[name] = "no time left"
            continue
        density, model = model_of(name)
        geometry = grid(1000, density, model.n_types)
        expected = evaluate(model, geometry, virials=True)
        scale = np.sqrt((expected.forces**2).mean())
        for precision in ("double", "mixed"):
            for lanes in (1, parts(CudaEvaluator(model).shape)):
                found = CudaEvaluator(model, precision=precision, lanes=lanes)(geometry, virials=True)
                results[f"{name}, {precision}, {lanes} lanes"] = {
                    "forces": float(np.abs(found.forces - expected.forces).max() / scale),
                    "energies": float(np.abs(found.energies - expected.energies).max()),
                    "virials": float(np.abs(found.virials - expected.virials).max()),
                }


def time_forces(results, watch, largest):
    """Force calls with all numbers on the device: s per call, bead·step/s, fraction of the roofline's floor."""
    from ase_nepcg_cuda import CudaEvaluator
    from ase_nepcg_cuda.ptx import SHAPES
    from ase_nepcg_cuda.roofline import CASES, count, floor
    from numba import cuda

    for name in MODELS:
        density, model = model_of(name)
        for size in SIZES:
            if size > largest or watch.left() < 60:
                continue
            geometry = grid(size, density, model.n_types)
            n = len(geometry.positions)
            evaluator = CudaEvaluator(model)
            evaluator(geometry)
            seconds = []
            for _ in range(7):
                repeat = max(1, min(200, int(2e6 / n)))
                cuda.synchronize()
                began = time.perf_counter()
                for _ in range(repeat):
                    evaluator.place()
                    evaluator.check_moved()
                    evaluator.compute(0, totals=False)
                cuda.synchronize()
                seconds.append((time.perf_counter() - began) / repeat)
            row = {"beads": n, "seconds": statistics.median(seconds), "per_second": n / statistics.median(seconds)}
            case = next((one for title, one in CASES.items() if title.startswith(name)), None)
            if case is not None:
                work = count(SHAPES[case.shape], case)
                del work["integrate"]
                row["fraction_of_floor"] = floor(work, 67.0, 4.8) * 1e-9 * n / row["seconds"]
            results[f"{name}, {n}"] = row
            del evaluator


def time_md(results, watch, largest):
    """Langevin runs: bead·step/s and ns/day; replicas in one batch; energy drift of mixed NVE."""
    if importlib.util.find_spec("ase") is None:
        results["skipped"] = "ase is not installed"
        return
    from ase import Atoms, units

    from ase_nepcg import MD, NEP
    from ase_nepcg.md import NVE, Langevin

    def atoms_of(size, seed=1):
        density, model = model_of("water CG")
        geometry = grid(size, density, 1)
        atoms = Atoms(f"Ar{len(geometry.positions)}", positions=geometry.positions, cell=geometry.cell, pbc=True)
        atoms.set_masses(np.full(len(atoms), 18.015))
        rng = np.random.default_rng(seed)
        sigma = np.sqrt(units.kB * 300 * atoms.get_masses())[:, None]
        atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * sigma)
        atoms.calc = NEP(model, device="cuda")
        return atoms

    def rate(md, seconds=3.0):
        steps = 20
        md.run(steps)
        while True:
            began = time.perf_counter()
            md.run(steps)
            took = time.perf_counter() - began
            if took > seconds:
                return took / steps
            steps *= 2 if took > 0.25 * seconds else 4

    for size in SIZES:
        if size > largest or watch.left() < 60:
            continue
        atoms = atoms_of(size)
        took = rate(MD(atoms, 2.0, Langevin(300.0, 0.01), seed=1, progress=False))
        results[f"Langevin, {len(atoms)}"] = {"per_second": len(atoms) / took, "ns_per_day": 86400 * 2e-6 / took}
    if watch.left() > 60:
        runs = [MD(atoms_of(512, k), 2.0, Langevin(300.0, 0.01), seed=k, progress=False) for k in range(64)]
        took = rate(MD.batch(runs))
        results["64 replicas of 512"] = {"per_second": 64 * 512 / took, "ns_per_day": 86400 * 2e-6 / took}
    if watch.left() > 60:
        md = MD(atoms_of(512), 2.0, NVE(), seed=1, progress=False)
        md.run(1000)
        before = md.conserved_energy()
        md.run(20_000)
        per_ns = (md.conserved_energy() - before) / len(md.atoms) / (20_000 * 2e-6)
        results["NVE drift, meV per bead and ns"] = 1000 * per_ns


def time_mean_forces(results, watch):
    """Mean forces on the 512 molecules of a box of 1536-atom water: ns/day; the same by the CPU for comparison."""
    if importlib.util.find_spec("ase") is None:
        results["skipped"] = "ase is not installed"
        return
    from ase_nepcg import NEP, Mapping, sample_mean_force
    from ase_nepcg.data import WATER_AA, water_box

    atoms = water_box(8)
    mapping = Mapping.from_groups(np.arange(len(atoms)).reshape(-1, 3).tolist(), "Ar")
    # the first run compiles
    for device, times in (("cuda", (0.05, 0.5, 5.0)), ("cpu", (0.02, 0.02, 0.1))):
        if watch.left() < 60:
            continue
        atoms.calc = NEP(WATER_AA, device=device)
        seconds = []
        for time_ps in times:
            began = time.perf_counter()
            with warnings.catch_warnings():
                # runs this short are no averages
                warnings.simplefilter("ignore")
                sample_mean_force(
                    atoms, mapping, temperature_K=300.0, timestep_fs=0.5, equilibration_ps=0.05, time_ps=time_ps,
                    interval=5, seed=1, progress=False,
                )  # fmt: skip
            seconds.append(time.perf_counter() - began)
        results[device] = {"ns_per_day": 86.4 * (times[2] - times[1]) / (seconds[2] - seconds[1])}


def time_training(results, watch):
    """SNES generations (population 50) and L-BFGS steps per second, on the embedded 20 frames of 64 beads."""
    if importlib.util.find_spec("ase") is None:
        results["skipped"] = "ase is not installed"
        return
    from ase_nepcg import read_dataset, train
    from ase_nepcg.data import WATER_FRAMES

    frames = read_dataset(WATER_FRAMES)
    for device, optimizer in itertools.product(("cuda", "cpu"), ("snes", "lbfgs")):
        # the first run compiles
        seconds, steps = [], (2, 5, 105) if device == "cuda" else (2, 2, 22)
        for number in steps:
            if watch.left() < 60:
                break
            began = time.perf_counter()
            train(frames, optimizer=optimizer, steps=number, seed=1, device=device, interval=1000, progress=False)
            seconds.append(time.perf_counter() - began)
        if len(seconds) == len(steps):
            results[f"{optimizer}, {device}"] = {"steps_per_second": (steps[2] - steps[1]) / (seconds[2] - seconds[1])}


def time_peer(results, watch):
    """Force calls of nep-adapters' CUDA backend on the same systems, through ASE, against ours through ASE."""
    if importlib.util.find_spec("nep_adapters") is None or importlib.util.find_spec("ase") is None:
        results["skipped"] = "nep-adapters or ase is not installed"
        return
    import tempfile

    from ase import Atoms
    from nep_adapters import NepAseCalculator

    from ase_nepcg import NEP

    for name in ("water CG", "water AA"):
        density, model = model_of(name)
        for size in (4096, 262_144):
            if watch.left() < 60:
                continue
            geometry = grid(size, density, model.n_types)
            symbols = [model.species[t] for t in geometry.types]
            atoms = Atoms(symbols, positions=geometry.positions, cell=geometry.cell, pbc=True)
            with tempfile.TemporaryDirectory() as folder:
                path = str(Path(folder, "nep.txt"))
                model.write(path)
                calculators = {"ours": NEP(path, device="cuda"), "nep-adapters": NepAseCalculator(path, backend="cuda")}
                row = {"beads": len(atoms)}
                for who, calc in calculators.items():
                    seconds = []
                    for k in range(8):
                        atoms.positions[0, 0] += 1e-4 * (-1) ** k
                        began = time.perf_counter()
                        calc.get_property("forces", atoms)
                        seconds.append(time.perf_counter() - began)
                    row[who] = statistics.median(seconds[2:])
            results[f"{name}, {len(atoms)}"] = row


def run_tests(results, watch):
    """The CUDA tests, on the device."""
    tests = sorted(str(path) for path in (ROOT / "tests").glob("test_cuda_*.py") if path.stem != "test_cuda_ptx")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cuda")])}
    # kernels of many shapes and ensembles are compiled: in several processes
    workers = ["-n", str(min(8, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *workers, *tests]
    done = subprocess.run(command, cwd=ROOT / "tests", env=environment, capture_output=True, text=True, check=False,
                          timeout=max(60.0, watch.left()))  # fmt: skip
    results["status"], results["tail"] = done.returncode, done.stdout[-2000:]


def sanitize(results, watch):
    """compute-sanitizer over a short evaluation."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        results["skipped"] = "compute-sanitizer was not found"
        return
    code = "from ase_nepcg_cuda.diagnose import _run; print(_run())"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cuda")])}
    for check in ("memcheck", "racecheck"):
        command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
        results[check] = {"status": done.returncode, "tail": done.stdout[-500:]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path(os.environ.get("OUT", ".")))
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="most beads (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=8.0, help="sections begin while there is time")
    parser.add_argument("--no-tests", action="store_true", help="without the test suite")
    given = parser.parse_args()
    from ase_nepcg import devices

    reason = "this is numba's simulator" if devices.simulated() else devices.why_no_cuda()
    if reason is not None:
        print(f"gpu_check: nothing to measure: {reason}")
        return 3
    from numba import cuda

    device = cuda.get_current_device()
    watch, report = Watch(given.minutes), {}
    report["device"] = device.name.decode() if isinstance(device.name, bytes) else device.name
    report["driver"] = ".".join(map(str, devices.driver_version()))
    report["python"] = platform.python_version()
    report["packages"] = {}
    for name in ("numpy", "numba", "numba-cuda", "nvidia-nvvm", "nvidia-nvjitlink", "ase", "nep-adapters"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            report["packages"][name] = importlib.metadata.version(name)
    sections = {
        "forces against the CPU": lambda out: check_forces(out, watch),
        "force calls": lambda out: time_forces(out, watch, given.largest),
        "MD": lambda out: time_md(out, watch, given.largest),
        "mean forces": lambda out: time_mean_forces(out, watch),
        "training": lambda out: time_training(out, watch),
        "peer": lambda out: time_peer(out, watch),
        "sanitizer": lambda out: sanitize(out, watch),
    }
    if not given.no_tests:
        sections["tests"] = lambda out: run_tests(out, watch)
    for title, section in sections.items():
        report[title] = {}
        try:
            section(report[title])
        except Exception as error:
            # the other sections still count
            report[title]["error"] = f"{type(error).__name__}: {error}"
        (given.output / "gpu_check.json").write_text(json.dumps(report, indent=1))
        print(f"\n== {title}")
        for key, value in report[title].items():
            shown = value
            if isinstance(value, dict):
                shown = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items())
            print(f"{key:40s} {shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
