"""What training costs and how far it gets, on this machine, against the published run and installed peers.

    python tests/benchmarks/bench_training.py [PART ...] [--data DIR] [--peer PYTHON] [--water FOLDER] [--threads N]

Parts (default: all for which there is what they need):

cost      a generation of SNES (population 50, 25 PbTe structures) and a gradient, against CPUNEP (calorine), one thread
curve     SNES with published settings, five seeds: loss at generations 100, 200, 300 against the published loss.out
published gradient training with the published hyper-parameters: time to the errors published for 20 000 generations
peer      20 of the structures against torchnep on the same threads, errors on the other 5; needs ``--peer``, a Python
          with torch and torchnep; about 20 minutes
water     NEP-CG water from the frames of make_water_frames.py in FOLDER
memory    peak memory of the gradient for 1000 frames of 512 beads

Results go to ``results/<date>-training.json`` next to this file (parts are replaced one by one), time-to-loss curves to
a figure beside it. Exit status 1 if a promise is not kept.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numba
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

import ase_nepcg
from ase_nepcg import NEPModel, read_dataset, train
from ase_nepcg.nepfile import write_atomically
from ase_nepcg.training.files import read_loss
from ase_nepcg.training.objective import Objective, descriptor_scaler
from ase_nepcg.training.stages import SnesStage
from ase_nepcg.training.targets import Targets

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[2] / "shared" / "data"
PBTE = {
    "species": ("Te", "Pb"),
    "cutoff": (8, 4),
    "n_max": (6, 6),
    "basis_size": (6, 6),
    "l_max": (4, 1, 0),
    "neurons": 30,
}
PUBLISHED = {"force": 0.0399, "energy": 0.00041, "total": 0.0557}  # loss.out, generation 20 000
HELD_OUT = (2, 7, 12, 17, 22)


def pbte(data: Path):
    return read_dataset(data / "pbte" / "train.xyz")


def objective(frames, **settings) -> Objective:
    species = PBTE["species"]
    model = NEPModel.zeros(**PBTE)
    targets = Targets.from_frames(frames, species)
    return Objective(replace(model, q_scaler=descriptor_scaler(model, targets)), targets, **settings)


def best_of(call, repeat: int) -> float:
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def cost(args) -> dict:
    frames, model = pbte(args.data), NEPModel.read(args.data / "pbte" / "nep.txt")
    result = {"population": 50, "sites": sum(map(len, frames))}
    z = model.parameters()
    Z = z + 0.01 * np.random.default_rng(0).normal(size=(50, len(z)))
    for name, cache in (("cached", 3.0), ("not_cached", 0.0)):
        run = objective(frames, threads=1, cache_GB=cache)
        run.losses(Z[:2])
        run.data_gradient(z)
        result[f"generation_{name}_s"] = best_of(lambda run=run: run.losses(Z), 3)
        result[f"gradient_{name}_s"] = best_of(lambda run=run: run.data_gradient(z), 10)
        result[f"loss_{name}_s"] = best_of(lambda run=run: run.losses(z[None]), 10)
    try:
        from calorine.calculators import CPUNEP
    except ImportError:
        return result
    calculator = CPUNEP(str(args.data / "pbte" / "nep.txt"))

    def all_frames():
        for frame in frames:
            atoms = frame.copy()
            atoms.calc = calculator
            atoms.get_forces()

    result["cpunep_s"] = best_of(all_frames, 3)
    for name in ("cached", "not_cached"):
        result[f"ratio_{name}"] = result[f"generation_{name}_s"] / (50 * result["cpunep_s"])
    return result


def curve(args) -> dict:
    run = objective(pbte(args.data), threads=args.threads)
    published = read_loss(args.data / "pbte" / "loss.out")
    result = {"generations": [100, 200, 300], "published": published["total"][:3].tolist(), "own": []}
    for seed in range(5):
        stage = SnesStage(run, None, seed=seed, steps=300)
        row = []
        for generation in range(1, 301):
            stage.advance()
            if generation % 100 == 0:
                row.append(float(run.evaluate(stage.z)[0].sum()))
        result["own"].append(row)
        print("  seed", seed, np.round(row, 4), flush=True)
    return result


def followed(frames, test=None, **settings) -> dict:
    rows = []

    def note(report):
        tested = report.test or {}
        rows.append(
            [report.seconds, report.total, *(report.train[k] for k in ("energy", "force"))]
            + [tested.get(k) for k in ("energy", "force")]
        )

    training = train(frames, test=test, on_report=note, progress=False, **PBTE, **settings)
    return {"columns": ["seconds", "total", "energy", "force", "energy_test", "force_test"], "rows": rows}, training


def published(args) -> dict:
    result = {"bounds": PUBLISHED, "runs": []}
    frames = pbte(args.data)
    for seed in (1, 2, 3):
        # compiled kernels are there already when the clock starts
        rows, training = followed(frames, seed=seed, steps=600, threads=args.threads)
        reached = [
            row[0]
            for row in rows["rows"]
            if row[1] <= PUBLISHED["total"] and row[2] <= PUBLISHED["energy"] and row[3] <= PUBLISHED["force"]
        ]
        rows["reached_s"] = reached[0] if reached else None
        rows["final"] = training.report()
        result["runs"].append(rows)
        print("  seed", seed, "reached after", rows["reached_s"], "s; end", rows["rows"][-1], flush=True)
    return result


def run_peer(args, train_frames: Path, test: Path | None, epochs: int, batch: int, extra=()) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "peer.json"
        command = [args.peer, str(HERE / "peer_torchnep.py"), "--train", str(train_frames), "--epochs", str(epochs)]
        command += ["--batch", str(batch), "--threads", str(args.threads), "--output", str(output)]
        command += [f"--setting={line}" for line in extra] + (["--test", str(test)] if test else [])
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(output.read_text())


def peer(args) -> dict:
    from ase_nepcg import write_dataset

    frames = pbte(args.data)
    result = {"threads": args.threads, "load_before": os.getloadavg()}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        rest = [frame for index, frame in enumerate(frames) if index not in HELD_OUT]
        held = [frames[index] for index in HELD_OUT]
        for name, chosen in (("all", frames), ("rest", rest), ("held", held)):
            write_dataset(folder / f"{name}.xyz", chosen)
        result["peer_20"] = run_peer(args, folder / "rest.xyz", folder / "held.xyz", args.epochs, 5)
        seconds = result["peer_20"]["curve"][-1]["seconds"]
        print(f"  torchnep: {seconds:.0f} s, {result['peer_20']['curve'][-1]}", flush=True)
        rows, training = followed(
            rest, seed=1, steps=1500, threads=args.threads, lambda_1=args.lambda_held, lambda_2=args.lambda_held
        )
        result["own_20"] = rows | {"held_out": training.rmse(held), "train": training.rmse()}
        print("  own:", rows["rows"][-1][0], "s", training.rmse(), "held out", training.rmse(held), flush=True)
    return result


def water(args) -> dict:
    folder = args.water
    frames = read_dataset(folder / "train.xyz")
    result = {"train_frames": len(frames)}
    begin = time.perf_counter()
    training = train(frames, steps=400, seed=1, threads=args.threads, progress=False, **args.water_settings)
    result["seconds"] = time.perf_counter() - begin
    result["train"] = training.report()
    for path in sorted(folder.glob("*.xyz")):
        if path.stem != "train":
            result[path.stem] = training.report(read_dataset(path))
            print(" ", path.stem, {k: round(v, 4) for k, v in result[path.stem].items()}, flush=True)
    return result


def memory(args) -> dict:
    """In a process of its own: the peak is that of the whole process."""
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); import bench_training as b; "
        "print(json.dumps(b.measure_memory(int(sys.argv[2]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(HERE), str(args.frames)], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure_memory(n_frames: int) -> dict:
    rng = np.random.default_rng(0)
    size = (512 / 0.0334) ** (1 / 3)
    grid = (np.stack(np.meshgrid(*[np.arange(8)] * 3, indexing="ij"), -1).reshape(-1, 3) + 0.5) * size / 8
    frames = []
    for _ in range(n_frames):
        atoms = Atoms("Ar512", positions=grid + rng.normal(0, 0.3, (512, 3)), cell=[size] * 3, pbc=True)
        atoms.calc = SinglePointCalculator(atoms, forces=rng.normal(size=(512, 3)), stress=rng.normal(size=6))
        frames.append(atoms)
    begin = time.perf_counter()
    training = train(frames, optimizer="lbfgs", steps=2, seed=1, progress=False)
    return {
        "frames": n_frames,
        "seconds": time.perf_counter() - begin,
        "peak_GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "force": training.history.force[-1],
    }


def promises(results: dict):
    """Yield (what, measured, bound, kept)."""
    if "ratio_cached" in results.get("cost", {}):
        for name, bound in (("cached", 0.08), ("not_cached", 0.15)):
            value = results["cost"][f"ratio_{name}"]
            yield f"generation over 50 CPUNEP evaluations, basis {name}", f"{value:.4f}", f"<= {bound}", value <= bound
    if "curve" in results:
        own, known = np.array(results["curve"]["own"]), np.array(results["curve"]["published"])
        for generation, column, value in zip(results["curve"]["generations"], own.T, known, strict=True):
            spread = f"{column.min():.4f} to {column.max():.4f}"
            kept = column.min() - column.std() <= value <= column.max() + column.std()
            yield f"published loss {value:.4f} at {generation} within five seeds", spread, "spread", kept
    if "published" in results:
        times = [run["reached_s"] for run in results["published"]["runs"]]
        kept = None not in times and max(times) < 120
        yield (
            "gradient: seconds to the published errors, three seeds",
            str([t and round(t) for t in times]),
            "< 120",
            kept,
        )
    if "peer" in results:
        theirs, own = results["peer"]["peer_20"], results["peer"]["own_20"]
        last = theirs["curve"][-1]
        reached = [row[0] for row in own["rows"] if row[2] <= last["energy"] and row[3] <= last["force"]]
        share = reached[0] / last["seconds"] if reached else np.inf
        yield "time to torchnep's final training errors over torchnep's time", f"{share:.3f}", "<= 0.4", share <= 0.4
        error = own["held_out"]
        yield (
            "held-out force, torchnep / own",
            f"{last['force_test']:.4f} / {error['force']:.4f}",
            "own lower",
            error["force"] < last["force_test"],
        )
        yield (
            "held-out energy (meV), torchnep / own",
            f"{1e3 * last['energy_test']:.3f} / {1e3 * error['energy']:.3f}",
            "own lower",
            error["energy"] < last["energy_test"],
        )
    if "water" in results and "test" in results["water"]:
        error = results["water"]["test"]
        yield "water: force RMSE, eV/Å", f"{error['force']:.4f}", "<= 0.080", error["force"] <= 0.08
        yield "water: stress RMSE, GPa", f"{error['stress']:.4f}", "<= 0.024", error["stress"] <= 0.024
    if "memory" in results:
        peak = results["memory"]["peak_GB"]
        yield f"memory of {results['memory']['frames']} frames of 512 beads, GB", f"{peak:.2f}", "< 8", peak < 8


def figure(results: dict, loss: dict | None, path: Path) -> None:
    """Time-to-loss curves of gradient, SNES (``loss``: the published history) and peer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
    columns = (("force", 3), ("energy", 2))
    for run in results.get("published", {}).get("runs", [])[:1]:
        rows = np.array([row[:4] for row in run["rows"]])
        for ax, (_, column) in zip(axes, columns, strict=True):
            ax.loglog(rows[:, 0], rows[:, column], color="#0072B2", label="gradient, 25 frames")
    if "cost" in results and loss is not None:
        seconds = loss["step"] * results["cost"]["generation_cached_s"]
        for ax, (name, _) in zip(axes, columns, strict=True):
            ax.loglog(seconds, loss[name], color="#009E73", label="SNES, 25 frames (published run, our speed)")
    if "peer" in results:
        theirs, own = results["peer"]["peer_20"]["curve"], results["peer"]["own_20"]
        rows = np.array([row[:4] for row in own["rows"]])
        seconds = [row["seconds"] for row in theirs]
        for ax, (name, column) in zip(axes, columns, strict=True):
            ax.loglog(rows[:, 0], rows[:, column], color="#56B4E9", label="gradient, 20 frames")
            end = rows[-1, 0], own["held_out"][name]
            ax.loglog(*end, "x", color="#56B4E9", label="gradient, 5 held out, at its end")
            ax.loglog(seconds, [row[name] for row in theirs], color="#D55E00", label="torchnep, 20 frames")
            held_out = [row[f"{name}_test"] for row in theirs]
            ax.loglog(seconds, held_out, "--", color="#D55E00", label="torchnep, 5 held out")
    for ax, (name, _), unit in zip(axes, columns, ("eV/Å", "eV/atom"), strict=True):
        ax.axhline(PUBLISHED[name], color="0.6", linewidth=0.8)
        ax.set(xlabel="time (s)", ylabel=f"{name} RMSE ({unit})")
    axes[0].legend(fontsize="x-small")
    fig.savefig(path, dpi=120)


PARTS = {
    "cost": cost,
    "published": published,
    "curve": curve,
    "water": water,
    "memory": memory,
    "peer": peer,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=" ".join(PARTS))
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--peer", help="Python with torch and torchnep")
    parser.add_argument("--epochs", type=int, default=400, help="of the peer")
    parser.add_argument("--water", type=Path, help="folder made by make_water_frames.py")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--frames", type=int, default=1000, help="frames of the memory test")
    args = parser.parse_args()
    args.water_settings, args.lambda_held = {"lambda_1": 0.01, "lambda_2": 0.01, "lambda_v": 1.0}, None
    wrong = sorted(set(args.parts) - set(PARTS))
    if wrong:
        parser.error(f"unknown part {', '.join(wrong)}; expected {', '.join(PARTS)}")
    needs = {"peer": args.peer, "water": args.water} | dict.fromkeys(
        ("cost", "published", "curve"), (args.data / "pbte").is_dir()
    )
    chosen = args.parts or [name for name in PARTS if needs.get(name, True)]
    path = HERE / "results" / f"{datetime.date.today().isoformat()}-training.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    machine = {
        "python": platform.python_version(),
        "numba": numba.__version__,
        "numpy": np.__version__,
        "ase_nepcg": ase_nepcg.__version__,
        "cores": os.cpu_count(),
        "threads": args.threads,
        "load": os.getloadavg(),
    }
    for name in chosen:
        if not needs.get(name, True):
            parser.error(f"{name}: what it needs is not there (--help)")
        print(name, flush=True)
        measured = PARTS[name](args)
        # another part may have been run meanwhile
        results = json.loads(path.read_text()) if path.exists() else {}
        results |= {"machine": machine, name: measured}
        write_atomically(path, json.dumps(results, indent=1) + "\n")
    if {"published", "peer"} & set(results):
        history = args.data / "pbte" / "loss.out"
        figure(results, read_loss(history) if history.exists() else None, path.with_suffix(".png"))
    kept = True
    for what, measured, bound, good in promises(results):
        kept &= bool(good)
        print(f"{'ok  ' if good else 'MISS'} {what}: {measured} ({bound})")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
