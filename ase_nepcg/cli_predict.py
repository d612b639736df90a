"""``nepcg predict``: what a model makes of training frames, and how far it is from their references."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

__all__ = ["Predict", "errors"]

_COMPRESSED = (".gz", ".bz2", ".xz")


class Predict:
    """Evaluate a model on frames with references (train.xyz, test.xyz): table of errors, and files to plot.

    Writes energy_NAME.out, force_NAME.out, virial_NAME.out and stress_NAME.out beside the frames NAME.xyz, with the
    predicted columns first (eV/atom, eV/Å, eV/atom, GPa; virial and stress: xx yy zz xy yz zx, positive = compressed).

    The table: root mean square and mean absolute errors, per component. Forces and virials with error bars give two
    more numbers: the rms error bar, a noise floor that no model gets below on frames it has not seen, and the reduced
    chi^2, the mean of (error / error bar)^2. About 1: the model is as good as the data can tell.
    """

    @staticmethod
    def add_arguments(parser):
        parser.add_argument("model", metavar="MODEL", help="model file (nep.txt)")
        parser.add_argument("frames", metavar="FRAMES", help="frames with forces (extended XYZ, also .gz)")
        parser.add_argument("--output", metavar="FOLDER", help="write the files here (default: beside the frames)")
        parser.add_argument("--overwrite", action="store_true", help="replace the files if they exist")
        parser.add_argument("--threads", type=_count, metavar="N", help="threads (default: all cores)")
        parser.add_argument(
            "--temperature-K",
            type=_positive,
            metavar="T",
            help="for a model with a temperature input (default: that of each frame)",
        )

    @staticmethod
    def run(args) -> int:
        from .cli import UsageError
        from .dataset import read_dataset
        from .model import NEPModel
        from .training.files import OUT_FILES, write_predictions
        from .training.predict import predict

        folder, stem = _destination(args, OUT_FILES)
        model = NEPModel.read(args.model)
        if args.temperature_K is not None and not model.temperature:
            raise UsageError(f"--temperature-K: {args.model} has no temperature input")
        targets = _targets(model, read_dataset(args.frames), args)
        predictions = predict(model, targets, threads=args.threads, temperature_K=args.temperature_K, path=args.frames)

        counts = f"{_counted(len(targets), 'frame')}, {_counted(len(targets.forces), 'site')}"
        print(f"{args.frames}: {counts}; {args.model}: {model.name}, {' '.join(model.species)}")
        print(_report(targets, predictions))
        folder.mkdir(exist_ok=True)
        print("wrote", *map(os.path.normpath, write_predictions(folder, stem, targets, predictions)))
        return 0


def errors(targets, predictions) -> dict[str, tuple[float, float, int]]:
    """Root mean square error, mean absolute error, and number of the compared numbers; NaN, NaN, 0 without any.

    Keys: ``energy`` (eV/atom), ``energy_shifted`` (without the mean of its error), ``force`` (eV/Å, per component),
    ``virial`` (eV/atom, likewise), ``stress`` (GPa, likewise). No weights enter.
    """
    import numpy as np

    from .training.loss import GPA

    energy = predictions.energies - targets.energies
    energy = energy[~np.isnan(energy)]
    virial = predictions.virials - targets.virials
    differences = {
        "energy": energy,
        "energy_shifted": energy - energy.mean() if energy.size else energy,
        "force": predictions.forces - targets.forces,
        "virial": virial,
        "stress": virial * (GPA * targets.n_sites / targets.volumes)[:, None],
    }
    results = {}
    for name, difference in differences.items():
        known = difference[~np.isnan(difference)]
        found = (math.sqrt((known**2).mean()), abs(known).mean()) if known.size else (math.nan, math.nan)
        results[name] = (*map(float, found), known.size)
    return results


def _targets(model, frames, args):
    from .dataset import DatasetError
    from .training.targets import TargetError, Targets, species_of

    foreign = sorted(set(species_of(frames)) - set(model.species))
    if foreign:
        raise TargetError(
            f"labels {', '.join(foreign)}, which {args.model} does not know (its species: {', '.join(model.species)})",
            args.frames,
        )
    from_frames = model.temperature and args.temperature_K is None
    if from_frames:
        for s, atoms in enumerate(frames):
            if atoms.info.get("temperature") is None:
                raise TargetError(
                    f"{args.model} has a temperature input, expected temperature= (K) in the frame or --temperature-K",
                    args.frames,
                    s,
                )
    try:
        return Targets.from_frames(frames, model.species, temperature=from_frames)
    except DatasetError as error:
        raise TargetError(str(error), args.frames) from error


def _destination(args, names) -> tuple[Path, str]:
    """Folder and NAME of the files; UsageError now, and not after the evaluation, if they cannot be written."""
    from .cli import UsageError

    frames = Path(args.frames)
    stem = frames.with_suffix("").stem if frames.suffix in _COMPRESSED else frames.stem
    folder = frames.parent if args.output is None else Path(args.output)
    parent = folder if folder.exists() else folder.parent
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {folder}: expected a folder, that is a file")
    if not parent.is_dir():
        raise UsageError(f"--output {folder}: there is no folder {parent}")
    if not os.access(parent, os.W_OK):
        raise UsageError(f"{parent} cannot be written to; give --output FOLDER")
    existing = [path.name for path in (folder / f"{name}_{stem}.out" for name in names) if path.exists()]
    if existing and not args.overwrite:
        raise UsageError(f"{folder}: {', '.join(existing)} there already; --output FOLDER, or --overwrite")
    return folder, stem


# ---- the table ----------------------------------------------------------------------------------------------------

_ROWS = {
    "energy": ("energy", "eV/atom"),
    "energy_shifted": ("energy, mean error removed", "eV/atom"),
    "force": ("force", "eV/Å"),
    "virial": ("virial", "eV/atom"),
    "stress": ("stress", "GPa"),
}


def _report(targets, predictions) -> str:
    from .training.loss import noise_report

    rows = [("quantity", "unit", "RMSE", "MAE", "numbers")]
    for name, (rmse, mae, count) in errors(targets, predictions).items():
        numbers = [f"{value:.4g}" for value in (rmse, mae)] if count else ["-", "-"]
        rows.append((*_ROWS[name], *numbers, str(count)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if k < 2 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    noise = noise_report(targets, predictions)
    for name, unit in (("force", "eV/Å"), ("virial", "eV/atom")):
        if f"{name}_noise" in noise:
            floor, chi2 = noise[f"{name}_noise"], noise[f"{name}_chi2"]
            lines.append(f"{name}: noise floor {floor:.4g} {unit} (rms error bar), reduced chi^2 {chi2:.4g}")
    return "\n".join(lines)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return number


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected an integer from 1, got {text!r}")
    return int(text)
