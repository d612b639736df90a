"""Time-to-loss curve of torchnep (PyTorch trainer of NEP models) on the PbTe example, measured on this machine.

    PYTHON peer_torchnep.py --train train.xyz [--test test.xyz] [--epochs 400] [--threads 2] --output out.json

Runs in any environment with torch and torchnep and needs nothing else. The model is that of the published PbTe example
(30 neurons, 8/4 Å, 3033 parameters); training is torchnep's own way with its documented settings: two stages (forces
first, then energies), AdamW with its learning rates and schedule, best model kept. ``--setting`` adds lines to its
``nep.in``, e.g. those of its own PbTe example: ``--setting "stage2_lambda_e 2" --setting "stage2_lambda_f 0.01"``.

The clock starts when its training loop starts (neighbour lists and scaler are made before: ``preparation_s``). Weights
are copied at the end of epochs while the clock stands still, and their errors evaluated after training, all frames with
one set of weights: what torchnep prints is the mean over an epoch in which the weights change. The energy offset is the
best one for the training frames, as in the models that torchnep writes. Test frames play no part in training unless
``--validate`` hands them to torchnep, whose learning rate and choice of the best model then follow them.

JSON: ``curve`` (a row per evaluated epoch) and ``printed`` (a row per epoch) with seconds since the start and seconds
of CPU time; ``best``, the model that it recommends; settings, versions, seconds per epoch.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import io
import itertools
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

MODEL = """\
type       2 Te Pb
cutoff     8 4
n_max      6 6
basis_size 6 6
l_max      4 2 0
neuron     30
"""
NAMES = {"epoch": int, "loss": float, "energy": float, "force": float, "lr": float}
LINE = re.compile(
    r"(?:\[S2\] )?Epoch +(?P<epoch>\d+) \| loss (?P<loss>\S+) \| E (?P<energy>\S+) eV/atom \| F (?P<force>\S+) eV/A"
    r".*\| lr (?P<lr>\S+) \|"
)


class Stopwatch(io.TextIOBase):
    """Standard output of the trainer: notes when the loop starts and when the line of an epoch appears."""

    def __init__(self, copy_weights, every: int, last: int):
        self.copy_weights, self.every, self.last = copy_weights, every, last
        self.start = self.cpu = None
        self.paused = self.paused_cpu = 0.0
        self.rows, self.weights = [], {}
        self.begin = time.perf_counter()

    def write(self, text):
        now, cpu = time.perf_counter(), time.process_time()
        print(text, end="", file=sys.stderr, flush=True)
        if text.startswith("Training: epochs"):
            self.start, self.cpu = now, cpu
        elif found := LINE.match(text):
            row = {name: kind(found[name]) for name, kind in NAMES.items()}
            row["seconds"] = now - self.start - self.paused
            row["cpu_s"] = cpu - self.cpu - self.paused_cpu
            self.rows.append(row)
            if row["epoch"] % self.every == 0 or row["epoch"] in (1, self.last):
                self.weights[row["epoch"]] = self.copy_weights()
            self.paused += time.perf_counter() - now
            self.paused_cpu += time.process_time() - cpu
        return len(text)


def errors(model, store, batch: int) -> tuple[list[float], float, float]:
    """Energy errors of all frames (eV/atom), sum of squared force errors, number of force components."""
    import torch
    from torchnep.ops import resolve_backend

    backend = resolve_backend("auto", num_types=model.num_types, device_type="cpu")
    energy, square, count = [], 0.0, 0
    with torch.no_grad():
        for first in range(0, store.n, batch):
            data = store.collate(list(range(first, min(first + batch, store.n))))
            found = model.compute_properties_cached(data, need_forces=True, need_virial=False, backend=backend)
            energy += ((found["Etot"] - data["energy"]) / data["natoms"]).double().tolist()
            difference = (found["forces"] - data["forces"]).double()
            square += float((difference**2).sum())
            count += difference.numel()
    return energy, square, count


def evaluate(model, stores: dict, batch: int) -> dict:
    """RMSE of energies (eV/atom) and forces (eV/Å); the energy offset is that of the training frames."""
    row, shift = {}, None
    for suffix, store in stores.items():
        energy, square, count = errors(model, store, batch)
        if shift is None:
            shift = statistics.fmean(energy)
        row[f"energy{suffix}"] = statistics.fmean((e - shift) ** 2 for e in energy) ** 0.5
        row[f"force{suffix}"] = (square / count) ** 0.5
    return row


def run(options, folder: Path) -> dict:
    import numpy as np
    import torch
    import torchnep.train as trainer
    from torchnep.data import parse_nep_in, read_xyz

    load = os.getloadavg()
    torch.set_num_threads(options.threads)
    settings = MODEL + f"epoch {options.epochs}\nbatch {options.batch}\nstage2 1\n"
    settings += "".join(f"{line}\n" for line in options.setting)
    (folder / "nep.in").write_text(settings)

    models = []

    class Watched(trainer.NEPModel):
        """The model that is being trained."""

        def __init__(self, *arguments, **keywords):
            super().__init__(*arguments, **keywords)
            models.append(self)

    def copy_weights():
        return {name: value.detach().clone() for name, value in models[0].state_dict().items()}

    trainer.NEPModel = Watched
    watch = Stopwatch(copy_weights, options.every, options.epochs)
    with contextlib.redirect_stdout(watch):
        trainer.train_nep(
            str(folder / "nep.in"),
            str(options.train),
            output_dir=str(folder),
            device="cpu",
            use_compile=options.compile,
            restart=False,
            # its own files on the way would only cost it time
            checkpoint_interval=options.epochs + 1,
            prediction_interval=0,
            run_seed=options.seed,
            valid_file=str(options.test) if options.validate else None,
        )
    if len(watch.rows) != options.epochs or len(models) != 1:
        raise RuntimeError(
            f"expected {options.epochs} lines of epochs and 1 model, got {len(watch.rows)} and {len(models)}: "
            "does this version of torchnep print something else?"
        )

    model, config = models[0], parse_nep_in(str(folder / "nep.in"))
    stores = {}
    for suffix, path in {"": options.train, "_test": options.test}.items():
        if path is not None:
            frames = trainer.preprocess_structures(read_xyz(str(path)), config, np.float32, mode="cached")
            stores[suffix] = trainer.StreamDataStore(
                frames, torch.device("cpu"), torch.float32, config=config, neighbor_mode="cached"
            )
    # training ends with the best model loaded from its file
    best = evaluate(model, stores, options.batch)
    curve = []
    for row in watch.rows:
        if row["epoch"] in watch.weights:
            model.load_state_dict(watch.weights[row["epoch"]])
            times = {name: row[name] for name in ("epoch", "seconds", "cpu_s")}
            curve.append(times | evaluate(model, stores, options.batch))
    ends = [0.0, *(row["seconds"] for row in watch.rows)]
    steps = [b - a for a, b in itertools.pairwise(ends)]
    return {
        "peer": "torchnep",
        "versions": {name: importlib.metadata.version(name) for name in ("torchnep", "torch")},
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),  # noqa: UP017 - old Pythons
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        # above the number of threads: others were at work, and the times are too long
        "load_average": {"before": load[0], "after": os.getloadavg()[0]},
        "threads": options.threads,
        "compiled": bool(options.compile),
        "seed": options.seed,
        "train": str(options.train),
        "test": None if options.test is None else str(options.test),
        "validated_on_test": options.validate,
        "nep_in": settings,
        "parameters": sum(p.numel() for p in model.parameters()),
        "preparation_s": watch.start - watch.begin,
        "training_s": watch.rows[-1]["seconds"],
        "training_cpu_s": watch.rows[-1]["cpu_s"],
        "epoch_s": {"median": statistics.median(steps), "first": steps[0], "best": min(steps)},
        "best": best,
        "curve": curve,
        "printed": watch.rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--train", type=Path, required=True, help="training frames, extended XYZ")
    parser.add_argument("--test", type=Path, help="frames to judge with")
    parser.add_argument("--validate", action="store_true", help="give the test frames to torchnep as validation set")
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--batch", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=5, help="epochs between two points of the curve")
    parser.add_argument("--setting", action="append", default=[], help="a further line of its nep.in")
    parser.add_argument("--compile", action="store_true", help="let torch compile the model")
    parser.add_argument("--keep", type=Path, help="folder for what torchnep writes (nep_best.txt, loss.out, ...)")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    if options.validate and options.test is None:
        parser.error("--validate needs --test")
    # libraries read these when they are loaded
    for name in ("OMP", "MKL", "OPENBLAS"):
        os.environ[f"{name}_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory(prefix="torchnep-") as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        result = run(options, folder)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    last = result["curve"][-1]
    print(
        f"{options.epochs} epochs in {result['training_s']:.1f} s ({result['epoch_s']['median']:.3f} s each, CPU time "
        f"{result['training_cpu_s']:.1f} s): force {last['force']:.4f} eV/Å, energy {1e3 * last['energy']:.3f} meV/atom"
    )


if __name__ == "__main__":
    main()
