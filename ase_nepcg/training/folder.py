"""A folder with ``nep.in``, ``train.xyz`` and perhaps ``test.xyz``: train there as GPUMD's ``nep`` does.

>>> run = train_folder("folder")
>>> run.model, run.training.history

Files that are written, with the columns of GPUMD 5.6:

- every ``output_interval`` generations: a line of ``loss.out``, ``nep.txt`` (the elite, whose common bias takes up the
  mean energy error), ``nep.restart`` (mean and standard deviation of every parameter) and, with a ``test.xyz``,
  ``energy_/force_/virial_/stress_test.out``; every 1000 generations also ``…_train.out``, in the order of the batches;
- every N generations of ``save_potential N format restart``: a copy of ``nep.txt`` (and ``nep.restart``) that stays;
- at the end, and after Ctrl-C: all of them once more, ``loss.out`` at the end only;
- ``nepcg.checkpoint.npz``, which GPUMD does not have: the exact state of the run, every half minute.

What a folder says about its past decides how a run begins:

- A checkpoint: the run goes on where it was, and ends with the same files as if it had never stopped, or further if
  ``generation`` is larger now. Other data or settings are refused.
- No checkpoint but a ``nep.restart``: as GPUMD does, a new run starts from its means and standard deviations, counts
  generations from 1 and appends to ``loss.out``. With ``fine_tune`` the start is always the foundation model.
- Neither: a new run. What an earlier one left is kept: ``loss.out`` becomes ``loss.out.1`` and so on. (GPUMD would
  append to the former and replace the rest.)

With ``optimizer="gradient"`` the same files come from the gradient: ``nep.restart`` has its parameters and small
standard deviations, so that SNES, here or in GPUMD, can go on from there; with a ``test.xyz`` it ends when the test
errors get no better, and the best model is kept.

Fan et al., PRB 104, 104309 (2021); Song et al., Nat. Commun. 15, 10208 (2024).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..checkpoint import CheckpointError
from ..dataset import DatasetError, read_dataset
from ..labels import get_labels
from ..model import NEPModel
from ..nepfile import read_restart, write_atomically, write_restart
from .core import POLISH_SIGMA, STEPS, Training, TrainingError, check_count, chosen_optimizer, run_training
from .files import OUT_FILES, append_loss, batches, loss_line, read_loss, truncate_loss, write_predictions
from .finetune import FineTuneError, foundation_start, restrict, start_from_model
from .loss import LossSettings, Predictions
from .nep_in import NepInError, NepInput, read_nep_in
from .predict import predict
from .targets import TargetError, Targets

__all__ = ["CHECKPOINT", "FolderRun", "checked_targets", "train_folder"]

#: name of the file with the state of a run
CHECKPOINT = "nepcg.checkpoint.npz"
_PREDICTION_INTERVAL = 1000  # generations between …_train.out
_GRADIENT_INTERVAL = 10
# of fractional coordinates that are compared
_DIGITS = 9
# keywords that an optimiser has no use for
_IGNORED = {"snes": (), "adam": ("generation", "population", "sigma0")}
_IGNORED["lbfgs"] = ("generation", "batch", "population", "sigma0")


@dataclass(frozen=True, eq=False)
class FolderRun:
    """What :func:`train_folder` did."""

    folder: Path
    settings: NepInput
    model: NEPModel
    targets: Targets
    predictions: Predictions
    test_targets: Targets | None
    test_predictions: Predictions | None
    training: Training | None  #: None with ``prediction 1``
    first: int  #: steps that had been done before
    files: tuple[str, ...]  #: names of the files with results


def train_folder(
    folder,
    *,
    optimizer: str = "snes",
    steps: int | None = None,
    seed: int | None = None,
    threads: int | None = None,
    device: str = "cpu",
    cache_GB: float = 3.0,
    checkpoint=None,
    on_report: Callable | None = None,
    tell: Callable[[str], None] = print,
    progress: bool = True,
) -> FolderRun:
    """Train (or with ``prediction 1`` evaluate) what ``folder`` describes, see :mod:`ase_nepcg.training.folder`.

    Parameters
    ----------
    folder
        Has ``nep.in`` and ``train.xyz``, perhaps ``test.xyz``, ``zbl.in``, ``nep.restart`` and the files of
        ``fine_tune``.
    optimizer, steps
        ``"snes"``: the published algorithm, ``steps`` replaces ``generation``. ``"gradient"``, ``"lbfgs"``, ``"adam"``:
        as in :func:`~ase_nepcg.train`, with the default number of ``steps`` there; ``generation`` does not count.
    seed
        Integer from 0; None draws one, which the checkpoint keeps.
    threads, device, cache_GB
        As in :func:`~ase_nepcg.train`. Results do not depend on threads and memory.
    checkpoint
        Another file than ``nepcg.checkpoint.npz`` in the folder.
    on_report
        Called with a :class:`~ase_nepcg.training.fit.Report` after its files have been written.
    tell
        Called with remarks of one line: how the run begins, keywords that do not act.
    progress
        Show a bar with the terms of the loss and the time left.

    Everything is checked before anything is written. Raises :class:`NepInError`,
    :class:`~ase_nepcg.dataset.DatasetError` (file, frame and line), :class:`~ase_nepcg.ModelFileError`,
    :class:`FineTuneError`, :class:`~ase_nepcg.checkpoint.CheckpointError` (a checkpoint of other data or settings),
    :class:`TrainingError` and ``OSError``.
    """
    folder = Path(os.fsdecode(folder))
    for name, value, least in (("steps", steps, 1), ("seed", seed, 0)):
        if value is not None:
            check_count(name, value, least)
    if not folder.is_dir():
        raise TrainingError(f"{folder}: expected a folder with nep.in and train.xyz")
    path = folder / "nep.in"
    settings, lines = read_nep_in(path), _lines_of_keywords(path)
    targets = _read_targets(folder / "train.xyz", settings, tell)
    if not os.access(folder, os.W_OK):
        raise TrainingError(f"{folder}: cannot be written to")
    if settings.prediction:
        return _evaluate(folder, settings, targets, threads)
    if settings.version != 4:
        raise NepInError(
            path,
            lines["version"],
            f"version: {settings.version} can be evaluated (prediction 1), not trained; expected 4 or no such line",
        )
    optimizer = chosen_optimizer(optimizer, len(targets.types))
    if optimizer == "snes" and not (steps or settings.generation):
        raise NepInError(path, lines["generation"], "generation: expected at least 1, got 0 (see also prediction)")
    test_targets = None
    if (folder / "test.xyz").exists():
        test_targets = _read_targets(folder / "test.xyz", settings, tell)
    ignored = [name for name in _IGNORED[optimizer] if name in lines]
    if ignored:
        where = {"lbfgs": "L-BFGS", "adam": "Adam"}[optimizer]
        tell(f"nep.in: {', '.join(ignored)} {'have' if len(ignored) > 1 else 'has'} no meaning for {where}")

    checkpoint = folder / CHECKPOINT if checkpoint is None else Path(os.fsdecode(checkpoint))
    begin = _Begin(folder, settings, lines, checkpoint.exists())
    model = begin.scaled_model(targets, threads)
    z, sigma = begin.parameters(model)
    interval = settings.output_interval
    own: dict = {}
    if optimizer == "snes":
        steps = steps or settings.generation
        own = {name: getattr(settings, name) for name in ("batch", "full_batch", "population", "sigma0")}
        own["sigma"] = sigma
    else:
        steps = steps or STEPS[optimizer]
        interval = interval if "output_interval" in lines else _GRADIENT_INTERVAL
        own["frozen"] = begin.frozen(model)
        if optimizer == "adam" and "batch" in lines:
            own["batch"] = settings.batch
    writer = _Writer(folder, settings, targets, test_targets, interval, threads)
    writer.frozen = own.get("frozen")
    if optimizer == "snes":
        writer.order = _order(targets, settings.batch)

    def report(found):
        writer.report(found)
        if on_report is not None:
            on_report(found)

    def start(done: int, note: dict | None) -> dict:
        begin.told(done, steps, checkpoint, tell)
        writer.first = done
        return writer.start(done, note, begin.appends, tell)

    try:
        training = run_training(
            model, targets, test_targets, LossSettings(**settings.loss_settings()), stages=[(optimizer, steps)],
            optimizer=optimizer, checkpoint=checkpoint, seed=seed, threads=threads, device=device, cache_GB=cache_GB,
            interval=interval, patience=None if optimizer == "snes" else max(1, steps // 4), on_report=report,
            on_start=start, z=z, progress=progress, fingerprint=begin.fingerprint | {"patience": None},
            **own,
        )  # fmt: skip
    except CheckpointError as error:
        raise CheckpointError(f"{error} (without it a run starts from nep.restart, if that is there)") from error
    writer.finish(training)
    return FolderRun(
        folder, settings, training.model, targets, training.predictions, test_targets, training.test_predictions,
        training, writer.first, tuple(sorted(writer.written)),
    )  # fmt: skip


# ---- what is read -------------------------------------------------------------------------------------------------


def checked_targets(path, frames, species, *, temperature: bool = False, remedy: str = "") -> Targets:
    """The targets of ``frames``, which are those of the file ``path``.

    Raises :class:`~ase_nepcg.dataset.DatasetError` with file, frame and the line where the frame begins. ``remedy``:
    what to do about labels that are not among ``species``.
    """
    begins = np.cumsum([1, *(len(atoms) + 2 for atoms in frames)])
    try:
        for k, atoms in enumerate(frames):
            unknown = sorted(set(get_labels(atoms).tolist()) - set(species))
            if unknown:
                raise TargetError(
                    f"labels {', '.join(unknown)}, expected those of the model ({', '.join(species)}){remedy}", frame=k
                )
        targets = Targets.from_frames(frames, species, temperature=temperature)
        for k, atoms in enumerate(frames):
            pair = _at_the_same_place(atoms)
            if pair is not None:
                raise TargetError("sites {} and {} are at the same place".format(*pair), frame=k)
    except DatasetError as error:
        message = str(error).removeprefix(f"frame {error.frame}: ")
        line = None if error.frame is None else int(begins[error.frame])
        raise TargetError(message, path, error.frame, line) from error
    return targets


def _at_the_same_place(atoms) -> tuple[int, int] | None:
    """Two sites with equal coordinates, up to lattice vectors and rounding."""
    fractions = atoms.cell.complete().scaled_positions(atoms.positions)
    fractions[:, atoms.pbc] %= 1.0
    fractions = np.round(fractions, _DIGITS)
    # some have been rounded up to 1
    fractions[:, atoms.pbc] %= 1.0
    _, first, group = np.unique(fractions, axis=0, return_index=True, return_inverse=True)
    first = first[group.ravel()]
    repeated = np.flatnonzero(first != np.arange(len(atoms)))
    return (int(first[repeated[0]]), int(repeated[0])) if len(repeated) else None


def _read_targets(path: Path, settings: NepInput, tell) -> Targets:
    frames = read_dataset(path)
    temperature = settings.model_type == 3
    targets = checked_targets(
        path, frames, settings.species, temperature=temperature, remedy=": correct the line type in nep.in"
    )
    flat = int((~targets.pbc.all(axis=1)).sum())
    if flat:
        tell(f"{path}: {flat} of {len(targets)} frames are not periodic in all directions, which GPUMD ignores")
    return targets


def _lines_of_keywords(path) -> dict[str, int]:
    """Keywords of a ``nep.in`` that has been checked -> number of their line."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        rows = [row.split() for row in file]
    return {row[0]: number for number, row in enumerate(rows, start=1) if row and not row[0].startswith("#")}


def _order(targets: Targets, batch: int) -> np.ndarray:
    """Frames in the order in which the trainer goes through its batches."""
    energies = np.where(np.isnan(targets.energies), 0.0, targets.energies)
    return np.concatenate(batches(energies, min(batch, len(targets))))


def _differences(model: NEPModel, expected: NEPModel) -> str | None:
    """In what the hyper-parameters of two models differ; None: in nothing."""
    if model.species != expected.species:
        return f"species {' '.join(model.species)} and {' '.join(expected.species)}"
    try:
        start_from_model(model, expected)
    except FineTuneError as error:
        return str(error).rpartition("different ones: ")[2]
    return None


class _Begin:
    """How a run begins: scaler and first parameters."""

    def __init__(self, folder: Path, settings: NepInput, lines: dict, resumed: bool):
        self.folder, self.settings, self.lines, self.resumed = folder, settings, lines, resumed
        #: the start is that of the nep.restart in the folder
        self.appends = not resumed and settings.fine_tune is None and (folder / "nep.restart").exists()
        self.fingerprint = {
            "initial_para": settings.initial_para,
            "import_q_scaler": settings.import_q_scaler,
            "fine_tune": None
            if settings.fine_tune is None
            else [*settings.fine_tune, int(settings.fine_tune_descriptor)],
        }
        self._foundation = None

    def scaled_model(self, targets: Targets, threads) -> NEPModel:
        """The model of ``nep.in`` with its scaler."""
        from .objective import descriptor_scaler

        settings = self.settings
        model = settings.model()
        if settings.fine_tune is not None:
            self._foundation = NEPModel.read(self._foundation_file(0))
            scaler = restrict(self._foundation, model.species).q_scaler
            if len(scaler) != model.n_descriptor:
                raise FineTuneError(
                    f"{settings.fine_tune[0]}: expected a model with the n_max, l_max and model_type of nep.in, got "
                    f"{len(scaler)} descriptor components instead of {model.n_descriptor}"
                )
        elif settings.import_q_scaler:
            path = self.folder / "nep.txt"
            other = NEPModel.read(path)
            names = ("n_max", "basis_size", "l_max", "many_body", "temperature")
            different = [name for name in names if getattr(other, name) != getattr(model, name)]
            if different:
                raise TrainingError(f"{path}: import_q_scaler needs a model with the same {', '.join(different)}")
            scaler = other.q_scaler
        else:
            try:
                scaler = descriptor_scaler(model, targets, initial=settings.initial_para, threads=threads)
            except DatasetError as error:
                raise TargetError(str(error), self.folder / "train.xyz") from error
        return replace(model, q_scaler=scaler)

    def parameters(self, model: NEPModel):
        """Means and standard deviations (n,) to start from; None: a random start, or what the checkpoint has."""
        if self._foundation is not None:
            mu, sigma = read_restart(self._foundation_file(1), self._foundation)
            return foundation_start(self._foundation, mu, sigma, model, not self.settings.fine_tune_descriptor)
        if not self.appends:
            return None, None
        path = self.folder / "nep.txt"
        if path.exists():
            different = _differences(NEPModel.read(path), model)
            if different is not None:
                raise TrainingError(
                    f"{self.folder / 'nep.restart'}: the nep.txt beside it has other hyper-parameters than nep.in "
                    f"({different}); remove nep.restart to start anew"
                )
        return read_restart(self.folder / "nep.restart", model)

    def frozen(self, model: NEPModel):
        """(n,) truth values: parameters that keep their start; None: none do."""
        if self.settings.fine_tune is None:
            return None
        blocks, _ = model.parameter_blocks()
        frozen = np.zeros(model.n_parameters, bool)
        for name in () if self.settings.fine_tune_descriptor else ("c_radial", "c_angular"):
            frozen[blocks[name]] = True
        return frozen

    def _foundation_file(self, number: int) -> Path:
        path = self.folder / self.settings.fine_tune[number]
        for name in ("nep.txt", "nep.restart"):
            own = self.folder / name
            if path == own or (path.exists() and own.exists() and path.samefile(own)):
                raise NepInError(
                    self.folder / "nep.in",
                    self.lines["fine_tune"],
                    f"fine_tune: {name} in this folder will be replaced by the result; give the foundation's files "
                    "other names",
                )
        return path

    def told(self, done: int, steps: int, checkpoint: Path, tell) -> None:
        """Say how the run begins, unless it is the usual way."""
        if self.resumed and done >= steps:
            tell(f"{checkpoint}: the run has all its {done} steps; more generations (steps) let it go on")
        elif self.resumed:
            tell(f"{checkpoint}: the run goes on after step {done}")
        elif self.appends:
            tell(
                f"{self.folder / 'nep.restart'}: the run starts from these parameters (without {checkpoint.name} it is "
                "not the exact continuation of an earlier one)"
            )


# ---- what is written ----------------------------------------------------------------------------------------------


class _Writer:
    """The files of a training."""

    def __init__(self, folder: Path, settings: NepInput, targets, test_targets, interval: int, threads):
        self.folder, self.settings, self.interval, self.threads = folder, settings, interval, threads
        self.targets, self.test_targets = targets, test_targets
        self.order = self.frozen = None
        self.first = 0
        self.written = {"loss.out"}

    def start(self, done: int, note: dict | None, appends: bool, tell) -> dict:
        """Make ``loss.out`` what it was after ``done`` steps of the run, which found as many lines as ``note`` says."""
        path = self.folder / "loss.out"
        if note is not None:
            truncate_loss(path, done, note["lines"])
            return note
        if not appends:
            self._put_aside(tell)
            return {"lines": 0}
        # only a line that was cut off
        truncate_loss(path, np.inf)
        with suppress(FileNotFoundError):
            return {"lines": len(read_loss(path)["step"])}
        return {"lines": 0}

    def _put_aside(self, tell) -> None:
        names = ["loss.out", "nep.txt", "nep.restart", *(f"{q}_{s}.out" for s in ("train", "test") for q in OUT_FILES)]
        names = [name for name in names if (self.folder / name).exists()]
        number = 1
        while any((self.folder / f"{name}.{number}").exists() for name in names):
            number += 1
        for name in names:
            path = self.folder / name
            if name == "nep.txt" and self.settings.import_q_scaler:
                # needed again if the run is killed before it has written one
                write_atomically(f"{path}.{number}", path.read_bytes())
            else:
                path.replace(f"{path}.{number}")
        if names:
            tell(f"{self.folder}: a new run; {', '.join(names)} of an earlier one: kept with .{number} at the end")

    def report(self, report) -> None:
        line = loss_line(report.step, report.total, report.l1, report.l2, report.train, report.test)
        append_loss(self.folder / "loss.out", line)
        self._model("nep", report.model, report.mu, report.sigma)
        every, form, with_restart = self.settings.save_potential
        if report.step % every == 0:
            stamp = time.strftime("nep_y%Y_m%m_d%d_h%H_m%M_s%S_generation") if form else "nep_gen"
            self._model(f"{stamp}{report.step}", report.model, report.mu, report.sigma, with_restart)
        if self.test_targets is not None:
            found = predict(report.model, self.test_targets, threads=self.threads)
            self._predictions("test", self.test_targets, found)
        if report.step // _PREDICTION_INTERVAL > (report.step - self.interval) // _PREDICTION_INTERVAL:
            found = predict(report.model, self.targets, threads=self.threads)
            self._predictions("train", self.targets, found, self.order)

    def finish(self, training: Training) -> None:
        self._model("nep", training.model, training.mu, training.sigma)
        self._predictions("train", self.targets, training.predictions, self.order)
        if self.test_targets is not None:
            self._predictions("test", self.test_targets, training.test_predictions)

    def _model(self, stem: str, model, mu, sigma, with_restart: bool = True) -> None:
        model.write(self.folder / f"{stem}.txt")
        self.written.add(f"{stem}.txt")
        if not with_restart:
            return
        if mu is None:
            mu, sigma = model.parameters(), np.full(model.n_parameters, POLISH_SIGMA)
            if self.frozen is not None:
                sigma[self.frozen] = 0.0
        write_restart(self.folder / f"{stem}.restart", mu, sigma)
        self.written.add(f"{stem}.restart")

    def _predictions(self, stem: str, targets, predictions, order=None) -> None:
        paths = write_predictions(self.folder, stem, targets, predictions, order)
        self.written.update(map(os.path.basename, paths))


def _evaluate(folder: Path, settings: NepInput, targets: Targets, threads) -> FolderRun:
    """``prediction 1``: the files of predictions of the training set, in the order of its frames."""
    path = folder / "nep.txt"
    model = NEPModel.read(path)
    different = _differences(model, settings.model())
    if different is not None:
        raise TrainingError(f"{path}: has other hyper-parameters than nep.in ({different}); correct nep.in")
    predictions = predict(model, targets, threads=threads, path=folder / "train.xyz")
    paths = write_predictions(folder, "train", targets, predictions)
    names = tuple(sorted(map(os.path.basename, paths)))
    return FolderRun(folder, settings, model, targets, predictions, None, None, None, 0, names)
