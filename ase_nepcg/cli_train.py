"""``nepcg train``: frames, or a folder with ``nep.in``, to a model."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import time
import warnings
from pathlib import Path

from .cli_numbers import from_zero, positive, positive_integer
from .devices import DEVICES
from .errors import closest
from .locks import locked

__all__ = ["Train"]

_OPTIMIZERS = ("gradient", "lbfgs", "adam", "snes")
# what a folder may be given besides its nep.in
# options that not every optimizer has
_OF_OPTIMIZERS = {
    "batch": ("adam", "snes"),
    "full_batch": ("snes",),
    "learning_rate": ("adam",),
    "population": ("snes",),
    "sigma0": ("snes",),
}
# there while a training uses its folder
_LOCK = ".nepcg-train.lock"
_OF_BOTH = ("source", "optimizer", "steps", "seed", "threads", "device", "cache_GB", "checkpoint", "plot", "traceback")
# options that are not simply arguments of train()
_OWN = ("source", "test", "output", "overwrite", "species", "cutoff", "label_cutoff", "l_max", "zbl", "start")
_OWN += ("checkpoint", "plot", "traceback")
# option -> keyword of nep.in, where the names differ
_KEYWORDS = {"neurons": "neuron", "species": "type", "label_cutoff": "cutoff", "full_batch": "batch n 1"}
_KEYWORDS |= {"temperature": "model_type 3", "start": "fine_tune", "interval": "output_interval"}
_NOT_IN_FOLDERS = ("learning_rate", "polish", "patience", "weighting", "n_models", "output", "overwrite", "test")


class Train:
    """Fit a model to frames with forces (energies, virials), or run a folder as GPUMD's trainer does.

        nepcg train TRAIN.xyz [--test TEST.xyz] [--output FOLDER] [options]

    fits with the exact gradient and writes nep.txt (nep-1.txt … with --n-models), loss.csv and loss.out (the loss and
    its terms), energy_/force_/virial_/stress_train.out and …_test.out (predicted and reference values). With --test the
    model that is best there is kept, and training ends when it gets no better.

        nepcg train FOLDER [--optimizer …] [--steps N]

    reads nep.in, train.xyz and, if it is there, test.xyz, trains by the published evolution strategy (SNES) and writes
    the files of GPUMD's nep into the folder. A nep.restart there is the start, as for GPUMD.

    Both keep a checkpoint: after Ctrl-C or a crash the same command goes on with the same numbers. At the end: a table
    of errors; forces and virials with error bars give a noise floor and a reduced chi^2 too, see nepcg predict --help.
    """

    @staticmethod
    def add_arguments(parser):
        parser.add_argument("source", metavar="TRAIN.xyz|FOLDER", help="frames (extended XYZ), or folder with nep.in")
        run = _adder(parser.add_argument_group("run"))
        run(
            "--optimizer",
            type=_optimizer,
            metavar="NAME",
            help="gradient, lbfgs, adam or snes (default gradient; folders: snes)",
        )
        run(
            "--steps",
            type=positive_integer,
            metavar="N",
            help="iterations or generations at most (default 1500; snes 100000)",
        )
        run("--seed", type=_from_zero_integer, metavar="N", help="of the random numbers (default: a new one)")
        run("--threads", type=positive_integer, metavar="N", help="threads (default: all cores)")
        run("--device", choices=DEVICES, help="cpu, cuda, or auto: a CUDA device if there is one (default cpu)")
        run("--cache-GB", type=from_zero, metavar="X", help="memory for geometry that is kept (default 3)")
        run("--checkpoint", metavar="FILE", help="state of the run (default nepcg.checkpoint.npz beside the results)")
        run("--plot", action="store_true", help="draw loss and parity into training.png")

        files = _adder(parser.add_argument_group("frames only: files"))
        files("--test", metavar="FILE", help="frames that are not trained on")
        files("--output", metavar="FOLDER", help="write the results here (default: the current folder)")
        files("--overwrite", action="store_true", help="start anew and replace the results of an earlier run")
        files("--start", metavar="MODEL", help="nep.txt to start from, which also gives the shape of the model")
        files("--n-models", type=positive_integer, metavar="N", help="models from different random starts (default 1)")

        shape = _adder(parser.add_argument_group("frames only: the model"))
        shape("--species", nargs="+", metavar="LABEL", help="labels of the model (default: those of the frames)")
        shape("--cutoff", nargs=2, type=positive, metavar=("R", "A"), help="radial, angular in Å (default 6 4)")
        shape(
            "--label-cutoff",
            nargs=3,
            action="append",
            metavar=("LABEL", "R", "A"),
            help="other cutoffs of a label; a pair of labels has the mean of its two (may be repeated)",
        )
        shape("--neurons", type=positive_integer, metavar="N", help="in the hidden layer (default 10)")
        shape("--n-max", nargs=2, type=int, metavar=("R", "A"), help="radial, angular functions - 1 (default 4 4)")
        shape("--basis-size", nargs=2, type=int, metavar=("R", "A"), help="their basis functions - 1 (default 8 8)")
        shape(
            "--l-max",
            nargs="+",
            type=int,
            metavar="L",
            help="order, then 0 or 1 for each of q222 (1 if not said) q1111 q112 q123 q233 q134 (default 4 1)",
        )
        shape("--zbl", nargs="+", metavar="X", help="repulsion: INNER OUTER [FACTOR] in Å, or 'repulsive' (from data)")
        shape("--temperature", action="store_true", help="the temperature of the frames is an input")

        loss = _adder(parser.add_argument_group("frames only: the loss"))
        for name, default in (("e", "1"), ("f", "1"), ("v", "0.1")):
            what = {"e": "energies", "f": "forces", "v": "virials"}[name]
            loss(f"--lambda-{name}", type=from_zero, metavar="X", help=f"weight of {what} (default {default})")
        for name in ("1", "2"):
            loss(f"--lambda-{name}", type=from_zero, metavar="X", help=f"of the L{name} norm (default by size)")
        loss("--lambda-shear", type=from_zero, metavar="X", help="factor of off-diagonal virials (default 1)")
        loss("--force-delta", type=from_zero, metavar="F", help="give forces below F eV/Å more weight (default off)")
        loss("--type-weight", nargs="+", type=from_zero, metavar="W", help="of forces, one per label of --species")
        loss("--weighting", type=_weighting, metavar="NAME", help="errorbars: by inverse squares of error bars")

        how = _adder(parser.add_argument_group("frames only: the optimiser"))
        how("--batch", type=positive_integer, metavar="N", help="frames in a batch (adam: about 4000 sites; snes: all)")
        how("--full-batch", action="store_true", help="snes: all batches in every generation")
        how("--population", type=positive_integer, metavar="N", help="of snes (default 50)")
        how("--sigma0", type=positive, metavar="X", help="first standard deviation of snes (default 0.1)")
        how("--learning-rate", type=positive, metavar="X", help="of adam, largest (default 0.01)")
        how(
            "--polish", type=positive_integer, metavar="N", help="generations of snes after the gradient (default none)"
        )
        how(
            "--patience",
            type=positive_integer,
            metavar="N",
            help="steps without a better test result (default steps/4)",
        )
        how("--interval", type=positive_integer, metavar="N", help="steps between reports (default 10; snes: 100)")

    @staticmethod
    def run(args) -> int:
        began = time.monotonic()
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            warnings.filterwarnings("always", "repulsive baseline: ", UserWarning)
            if os.path.isdir(args.source):
                return _train_folder(args, began)
            return _train_frames(args, began)


def _adder(group):
    """``group.add_argument`` for options that are no attribute of the result unless they are given."""
    return lambda name, **settings: group.add_argument(name, default=argparse.SUPPRESS, **settings)


def _given(args, names) -> dict:
    return {name: value for name, value in vars(args).items() if name in names}


# ---- a folder -----------------------------------------------------------------------------------------------------


def _train_folder(args, began: float) -> int:
    from .cli import UsageError
    from .cli_predict import _counted, _report
    from .training.folder import CHECKPOINT, train_folder

    wrong = [name for name in vars(args) if name not in _OF_BOTH]
    if wrong:
        option = "--" + wrong[0].replace("_", "-")
        if wrong[0] in _NOT_IN_FOLDERS:
            raise UsageError(f"{option} goes with a file of frames, {args.source} is a folder")
        keyword = _KEYWORDS.get(wrong[0], wrong[0])
        raise UsageError(f"{option} goes with a file of frames; in a folder nep.in says so ({keyword})")
    settings = _given(args, ("optimizer", "steps", "seed", "threads", "device", "cache_GB", "checkpoint"))
    run = train_folder(args.source, tell=lambda text: print(text, flush=True), **settings)

    _print_table(run.folder / "train.xyz", run.targets, run.predictions, _report, _counted)
    if run.test_targets is not None:
        _print_table(run.folder / "test.xyz", run.test_targets, run.test_predictions, _report, _counted)
    names = list(run.files)
    if run.training is not None:
        names += _plotted(args, run.training, run.folder)
        print(_summary(run.training, began))
    print(f"{run.folder}: wrote {' '.join(names)}")
    if run.training is not None and run.training.reason == "interrupted":
        checkpoint = settings.get("checkpoint", run.folder / CHECKPOINT)
        return _interrupted(run.training, f"the same command goes on from {checkpoint}")
    return 0


# ---- frames -------------------------------------------------------------------------------------------------------


def _train_frames(args, began: float) -> int:
    from .cli import UsageError
    from .cli_predict import _counted, _report
    from .dataset import DatasetError, read_dataset
    from .errors import ModelError, ModelFileError
    from .training.baseline import BaselineError
    from .training.core import TrainingError, train
    from .training.finetune import FineTuneError
    from .training.folder import checked_targets
    from .training.loss import LossError
    from .training.targets import TargetError, species_of

    test_path = getattr(args, "test", None)
    settings = {name: value for name, value in vars(args).items() if name not in _OWN}
    with open(args.source, "rb"):
        pass
    results = _Results(args, settings.get("n_models", 1), test_path is not None)
    frames = read_dataset(args.source)
    test = None if test_path is None else read_dataset(test_path)
    species = tuple(args.species) if "species" in args else species_of(frames)
    settings |= _shape(args, species)
    _check_optimizer(args, sum(map(len, frames)))
    remedy = ": give --species with all of them"
    for path, some in ((args.source, frames), (test_path, test)):
        if some is not None:
            checked_targets(path, some, species, temperature=settings.get("temperature", False), remedy=remedy)

    wrong_values = (TrainingError, LossError, FineTuneError, BaselineError, ModelError)
    try:
        with results.prepared() as checkpoint:
            if test_path is not None and os.path.samefile(test_path, args.source):
                print("note: --test is the training file: its errors say nothing about new frames", file=sys.stderr)
            training = train(frames, test=test, species=species, checkpoint=checkpoint, **settings)
            names = results.write(training)
    except ModelFileError:
        raise
    except wrong_values as error:
        raise UsageError(str(error)) from error
    except DatasetError as error:
        if error.path is not None:
            raise
        # about the training set as a whole
        raise TargetError(str(error), args.source) from error

    print(f"{args.source}: {len(frames)} frames of {' '.join(species)}")
    _print_table(args.source, training.targets, training.predictions, _report, _counted)
    if test is not None:
        _print_table(test_path, training.test_targets, training.test_predictions, _report, _counted)
    for name, model in zip(results.models[1:], training.models[1:], strict=False):
        print(f"{name}: {_errors(training, model)}")
    names += _plotted(args, training, results.folder)
    print(_summary(training, began))
    print(f"{results.folder}: wrote {' '.join(names)}")
    if training.reason == "interrupted":
        without = " without --overwrite" * ("overwrite" in args)
        return _interrupted(training, f"the same command{without} goes on from {results.checkpoint}")
    return 0


def _check_optimizer(args, n_sites: int) -> None:
    """UsageError for options that the optimizer does not have."""
    from .cli import UsageError
    from .training.core import chosen_optimizer

    optimizer = chosen_optimizer(getattr(args, "optimizer", "gradient"), n_sites)
    used = {optimizer, "snes"} if getattr(args, "polish", 0) else {optimizer}
    for name, owners in _OF_OPTIMIZERS.items():
        if name in args and not used & set(owners):
            raise UsageError(
                f"--{name.replace('_', '-')} is an option of {' and '.join(owners)}, the optimizer is {optimizer}; "
                f"give --optimizer {owners[0]}, or leave it out"
            )


def _shape(args, species) -> dict:
    """Arguments of train() about the model: options, then what --start has, train() knows the rest."""
    from .cli import UsageError
    from .hyper import MANY_BODY
    from .model import NEPModel
    from .training.finetune import FineTuneError, restrict

    shape = {}
    if "start" in args:
        model = NEPModel.read(args.start)
        try:
            source = restrict(model, species)
        except FineTuneError as error:
            raise UsageError(f"--start {args.start}: {error}") from error
        shape = {"start": model, "zbl": source.zbl, "temperature": source.temperature, "neurons": source.neurons}
        shape |= {"n_max": source.n_max, "basis_size": source.basis_size}
        shape["l_max"] = (source.l_max, *(int(name in source.many_body) for name in MANY_BODY))
        pairs = list(zip(source.cutoff_radial.tolist(), source.cutoff_angular.tolist(), strict=True))
        per_label = source.cutoff_form == "per-type"
        shape["cutoff"] = dict(zip(species, pairs, strict=True)) if per_label else pairs[0]
    if "cutoff" in args:
        shape["cutoff"] = tuple(args.cutoff)
    if "label_cutoff" in args:
        shape["cutoff"] = _label_cutoffs(args.label_cutoff, species, shape.get("cutoff", (6.0, 4.0)))
    if "l_max" in args:
        shape["l_max"] = (args.l_max[0], *(args.l_max[1:] or [1]))
    if "zbl" in args:
        shape["zbl"] = _zbl(args.zbl)
    return shape | _given(args, ("neurons", "n_max", "basis_size", "temperature"))


def _label_cutoffs(given, species, others) -> dict:
    from .cli import UsageError

    cutoffs = dict(others) if isinstance(others, dict) else dict.fromkeys(species, others)
    for label, *radii in given:
        if label not in species:
            raise UsageError(f"--label-cutoff {label}: unknown label; {closest(label, species)}")
        try:
            cutoffs[label] = tuple(positive(radius) for radius in radii)
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"--label-cutoff {label}: {error}") from None
    return cutoffs


def _zbl(tokens: list[str]):
    from .cli import UsageError

    if len(tokens) == 1:
        if tokens[0] != "repulsive":
            raise UsageError(f"--zbl: expected 'repulsive' or two radii, got {tokens[0]!r}")
        return tokens[0]
    if len(tokens) > 3:
        raise UsageError(f"--zbl: expected INNER OUTER [FACTOR], got {len(tokens)} values")
    try:
        return tuple(from_zero(token) for token in tokens)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--zbl: {error}") from None


class _Results:
    """The files of a training from frames: UsageError at once if they cannot be written."""

    def __init__(self, args, n_models: int, with_test: bool):
        from .cli import UsageError
        from .training.files import OUT_FILES
        from .training.folder import CHECKPOINT

        self.folder = Path(getattr(args, "output", "."))
        self.overwrite = "overwrite" in args
        self.checkpoint = Path(getattr(args, "checkpoint", self.folder / CHECKPOINT))
        self.models = ["nep.txt", *(f"nep-{k}.txt" for k in range(1, n_models))]
        stems = ["train"] + ["test"] * with_test
        names = [*self.models, "loss.out", *(name.replace("nep", "loss").replace("txt", "csv") for name in self.models)]
        names += [f"{quantity}_{stem}.out" for stem in stems for quantity in OUT_FILES]
        names += ["training.png"] * ("plot" in args)
        parent = self.folder if self.folder.exists() else self.folder.parent
        if self.folder.exists() and not self.folder.is_dir():
            raise UsageError(f"--output {self.folder}: expected a folder, that is a file")
        if not parent.is_dir():
            raise UsageError(f"--output {self.folder}: there is no folder {parent}")
        if not os.access(parent, os.W_OK):
            raise UsageError(f"{parent} cannot be written to; give --output FOLDER")
        if self.checkpoint.parent != self.folder and not self.checkpoint.parent.is_dir():
            raise UsageError(f"--checkpoint {self.checkpoint}: there is no folder {self.checkpoint.parent}")
        existing = [name for name in names if (self.folder / name).exists()]
        if existing and not self.overwrite and not self.checkpoint.exists():
            raise UsageError(
                f"{self.folder}: {', '.join(existing)} there already, but no {self.checkpoint} to go on from; give "
                "--output FOLDER, or --overwrite"
            )

    @contextlib.contextmanager
    def prepared(self):
        """The path of the checkpoint, in a folder that exists; with --overwrite there is none from an earlier run.

        If the run does not even begin, everything is as before.
        """
        from .cli import UsageError

        new_folder = not self.folder.exists()
        self.folder.mkdir(exist_ok=True)
        busy = UsageError(
            f"{self.folder}: another training writes its results here; wait until it has ended, or give another "
            "--output FOLDER"
        )
        try:
            with locked(self.folder / _LOCK, busy):
                yield from self._prepared()
        finally:
            if new_folder:
                with contextlib.suppress(OSError):  # it is not empty
                    self.folder.rmdir()

    def _prepared(self):
        if self.checkpoint.exists() and not self.overwrite:
            print(f"{self.checkpoint}: the run goes on from there", flush=True)
        old = {path: path.with_name(path.name + ".old") for path in self._checkpoints()} if self.overwrite else {}
        for path, kept in old.items():
            path.replace(kept)
        try:
            yield self.checkpoint
        finally:
            began = self.checkpoint.exists()
            for path, kept in old.items():
                if began:
                    kept.unlink()
                else:
                    kept.replace(path)

    def _checkpoints(self) -> list[Path]:
        """Those of an earlier run, of all its models; refused if another training writes them, or for other files."""
        from .checkpoint import may_be_checkpoint
        from .cli import UsageError
        from .training.fit import lock

        with lock(self.checkpoint):
            pass
        stem, suffix = re.escape(self.checkpoint.stem), re.escape(self.checkpoint.suffix)
        own = re.compile(rf"{stem}(-[1-9]\d*)?{suffix}")
        found = [path for path in sorted(self.checkpoint.parent.iterdir()) if own.fullmatch(path.name)]
        for path in found:
            with open(path, "rb") as file:
                replaceable = may_be_checkpoint(file.read(2))
            if not replaceable:
                raise UsageError(f"--checkpoint {path}: that is no checkpoint, and will not be replaced")
        return found

    def write(self, training) -> list[str]:
        from .nepfile import write_atomically
        from .training.files import loss_line, write_predictions

        names = []
        for name, model, history in zip(self.models, training.models, training.histories, strict=False):
            model.write(self.folder / name)
            csv = name.replace("nep", "loss").replace("txt", "csv")
            history.write_csv(self.folder / csv)
            names += [name, csv]
        history, lines = training.history, []
        columns = history.to_dict()
        for row in range(len(history)):
            values = {name: column[row] for name, column in columns.items()}
            test = {name: values[f"{name}_test"] for name in ("energy", "force", "virial")}
            test = None if training.test_targets is None else test
            lines.append(loss_line(int(values["step"]), values["total"], values["l1"], values["l2"], values, test))
        write_atomically(self.folder / "loss.out", "".join(lines))
        names.append("loss.out")
        sets = [("train", training.targets, training.predictions)]
        if training.test_targets is not None:
            sets.append(("test", training.test_targets, training.test_predictions))
        for stem, targets, predictions in sets:
            names += map(os.path.basename, write_predictions(self.folder, stem, targets, predictions))
        return names


# ---- what is told -------------------------------------------------------------------------------------------------


def _print_table(path, targets, predictions, report, counted) -> None:
    print(f"{path}: {counted(len(targets), 'frame')}, {counted(len(targets.forces), 'site')}")
    print(report(targets, predictions))


def _errors(training, model) -> str:
    from .training.loss import rmse
    from .training.predict import predict

    texts = []
    for name, targets in (("", training.targets), ("test ", training.test_targets)):
        if targets is not None:
            found = rmse(targets, predict(model, targets, threads=training.threads))
            texts.append(f"{name}force RMSE {found['force']:.4g} eV/Å")
    return ", ".join(texts)


def _summary(training, began: float) -> str:
    steps = training.history.step[-1] if len(training.history) else 0
    reasons = {"steps": "all that were asked for", "early stopping": "the test errors got no better"}
    reason = reasons.get(training.reason, training.reason)
    seconds = time.monotonic() - began
    return f"{training.optimizer}: {steps} steps ({reason}), seed {training.seed}, {seconds:.1f} s"


def _plotted(args, training, folder: Path) -> list[str]:
    if "plot" not in args:
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = training.plot()[0].figure
    figure.savefig(folder / "training.png", dpi=150)
    plt.close(figure)
    return ["training.png"]


def _interrupted(training, how: str) -> int:
    print(f"nepcg train: interrupted after step {training.history.step[-1]}; {how}", file=sys.stderr)
    return 130


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"nepcg train: {' '.join(str(message).split())}", file=sys.stderr)


# ---- syntax -------------------------------------------------------------------------------------------------------


def _optimizer(text: str) -> str:
    if text not in _OPTIMIZERS:
        raise argparse.ArgumentTypeError(f"unknown name {text!r}; {closest(text, _OPTIMIZERS)}")
    return text


def _weighting(text: str) -> str:
    if text != "errorbars":
        raise argparse.ArgumentTypeError(f"expected errorbars, got {text!r}")
    return text


def _from_zero_integer(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 2**63):
        raise argparse.ArgumentTypeError(f"expected an integer from 0 to 2^63 - 1, got {text!r}")
    return int(text)
