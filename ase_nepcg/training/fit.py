"""Minimising an objective: steps, reports, early stopping, checkpoints and interruptions."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from ..locks import locked
from .history import History
from .loss import noise_report, rmse
from .stages import STAGES

__all__ = ["Fit", "Report", "fit", "shifted"]

_KIND = "training"
# seconds between checkpoints
_CHECKPOINT_INTERVAL = 30.0


class Report(NamedTuple):
    """What is told about a training run now and then."""

    step: int
    total: float  #: loss with all weights
    l1: float
    l2: float
    #: unweighted RMSE: energy (eV/atom), force (eV/Å), virial (eV/atom), stress (GPa); for frames with error bars also
    #: the noise floor and reduced chi^2 of :func:`~ase_nepcg.training.loss.noise_report`
    train: dict
    test: dict | None
    model: object  #: NEPModel with the mean energy error taken up by its bias
    mu: np.ndarray | None  #: of SNES
    sigma: np.ndarray | None
    seconds: float
    others: dict


class Fit(NamedTuple):
    """Where a run ended."""

    model: object
    history: History
    reason: str  #: "steps", "converged", "early stopping" or "interrupted"
    seed: int
    mu: np.ndarray | None
    sigma: np.ndarray | None
    order: np.ndarray | None  #: of the frames in the batches of SNES
    asked: bool  #: to stop, be it in the last step


class _Interrupt:
    """Ctrl-C is noted and acted on between two steps; a second one is not held back."""

    def __enter__(self):
        self.asked = False
        self._old = None
        if threading.current_thread() is threading.main_thread():
            with contextlib.suppress(ValueError):
                self._old = signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, *_):
        self.asked = True
        signal.signal(signal.SIGINT, self._old)

    def __exit__(self, *_):
        if self._old is not None and not self.asked:
            signal.signal(signal.SIGINT, self._old)


def shifted(model, z: np.ndarray, shift: float):
    """The model with parameters ``z`` and its common bias increased by ``shift`` (eV), which U contains with a minus
    sign: the mean energy error is gone."""
    model = model.with_parameters(z)
    return replace(model, bias=model.bias + shift)


def fit(
    objective, test=None, *, stages, z, seed, interval=None, patience=None, checkpoint=None, fingerprint=None,
    on_start=None, on_report=None, progress=True, **settings,
) -> Fit:  # fmt: skip
    """Run ``stages``, a list of (name, steps), one after the other.

    ``objective`` of the training set, ``test`` of the test set or None; ``z`` the start of the first stage. With a
    test set and ``patience`` the result is the best model seen at a report, and a stage ends after ``patience`` steps
    without a better one; otherwise the result is the last model. A ``checkpoint`` file of the same ``fingerprint``
    (dict for JSON) is taken up, others are refused. ``on_start(step, note)`` is called once all of this is checked,
    before anything is written: ``step`` is the number of steps done before, ``note`` what it returned at the start of
    the run (None), which is kept in the checkpoint.
    """
    with lock(checkpoint):
        run = _Run(objective, test, stages, z, seed, checkpoint, fingerprint or {}, patience, settings)
        return _advance(run, stages, interval, on_start, on_report, progress)


def lock(checkpoint):
    """Context in which this run alone writes a checkpoint; raises :class:`CheckpointError` if another one does."""
    if checkpoint is None:
        return contextlib.nullcontext()
    path = os.fspath(checkpoint)
    return locked(
        f"{path}.lock",
        CheckpointError(f"{path}: another training writes this checkpoint; wait until it has ended, or choose another"),
    )


def _advance(run, stages, interval, on_start, on_report, progress) -> Fit:
    if on_start is not None:
        note = on_start(run.done, run.note)
        run.note = run.note if run.resumed else note
    if not run.resumed:
        # from now on a killed run goes on with the same numbers
        run.save()
    total = sum(steps for _, steps in stages)
    from tqdm import tqdm

    with (
        _Interrupt() as interrupt,
        tqdm(total=total, initial=run.done, unit="step", desc="training", disable=None if progress else True) as bar,
    ):
        reason = "steps"
        while run.number < len(stages):
            name, steps = stages[run.number]
            every = interval or max(1, min(100 if name == "snes" else 10, steps))
            reason = run.stage_reason()
            while reason is None:
                go_on = run.advance()
                bar.update(1)
                last = not go_on or run.stage.step >= steps
                if run.stage.step % every == 0 or last:
                    report = run.report()
                    bar.set_postfix_str(_shown(report))
                    if on_report is not None:
                        on_report(report)
                run.converged = not go_on
                reason = run.stage_reason()
                if interrupt.asked and reason is None:
                    reason = "interrupted"
                if reason is not None or run.due():
                    run.save()
            if not len(run.history) or run.history.step[-1] < run.done:
                run.report()
            if reason == "interrupted":
                break
            run.next_stage()
    return run.result(reason, interrupt.asked)


def _shown(report: Report) -> str:
    text = f"loss {report.total:.4f}"
    for name, unit in (("energy", "meV"), ("force", "eV/Å"), ("virial", "meV")):
        value = report.train[name]
        if value:
            value, digits = (1e3 * value, 2) if unit == "meV" else (value, 4)
            text += f", {name} {value:.{digits}f} {unit}"
    if "force_chi2" in report.train:
        text += f", noise {report.train['force_noise']:.4f}, chi² {report.train['force_chi2']:.3g}"
    return text if report.test is None else text + f", test force {report.test['force']:.4f}"


class _Run:
    """State of a run of several stages."""

    def __init__(self, objective, test, stages, z, seed, checkpoint, fingerprint, patience, settings):
        self.objective, self.test, self.stages, self.seed = objective, test, stages, seed
        self.checkpoint, self.fingerprint, self.settings = checkpoint, fingerprint, settings
        self.patience, self.note = None if test is None else patience, None
        self.history = History()
        self.number, self.before = 0, 0  # stage, steps of the stages before
        self.converged = False  # the stage
        self.best_value, self.best_z, self.best_step = np.inf, None, 0
        self.elapsed = 0.0
        self.model = None
        self.mu = self.sigma = self.order = None
        state, self._start = None, z
        self.resumed = checkpoint is not None and os.path.exists(checkpoint)
        if self.resumed:
            state = self._read()
        self.started = self.saved = time.monotonic()
        self._make(state)

    def _make(self, state=None):
        if self.number == len(self.stages):
            self.stage = None
            return
        name, steps = self.stages[self.number]
        settings = self.settings | (self.settings.get(f"stage {self.number}") or {})
        settings = {k: v for k, v in settings.items() if not k.startswith("stage ")}
        self.stage = STAGES[name](self.objective, self._start, seed=self.seed, steps=steps, state=state, **settings)

    @property
    def done(self) -> int:
        return self.before + (self.stage.step if self.stage is not None else 0)

    @property
    def seconds(self) -> float:
        return self.elapsed + time.monotonic() - self.started

    def advance(self) -> bool:
        return self.stage.advance()

    def stage_reason(self) -> str | None:
        """Why the stage is over, or None."""
        if self.converged:
            return "converged"
        if self.stage.step >= self.stages[self.number][1]:
            return "steps"
        # only where the test errors are known
        reported = len(self.history) and self.history.step[-1] == self.done
        if self.patience is not None and reported and self.done - self.best_step >= self.patience:
            return "early stopping"
        return None

    def report(self) -> Report:
        z, frames = self.stage.z, self.stage.frames
        objective = self.objective
        terms, shift, predictions = objective.evaluate(z, frames)
        targets = objective.given if frames is None else objective.given.select(frames)
        if frames is not None:
            sites = objective.geometry.sites_of(frames)
            predictions = type(predictions)(
                predictions.energies[frames], predictions.forces[sites], predictions.virials[frames]
            )
        noise = noise_report(targets, predictions)
        errors = rmse(targets, predictions, shift) | noise
        test = None
        self.model = shifted(objective.model, z, shift)
        value = float(terms.sum())
        if self.test is not None:
            # the same parameters as those of the model that is written
            of_test = self.test.predict(self.model.parameters())
            test = rmse(self.test.given, of_test) | noise_report(self.test.given, of_test)
            value = float(self.test.terms.weights @ [test[name] for name in ("energy", "force", "virial")])
            if self.patience is not None and value < self.best_value:
                self.best_value, self.best_z, self.best_step = value, self.model.parameters(), self.done
        report = Report(
            self.done, float(terms.sum()), float(terms[3]), float(terms[4]), errors, test, self.model, self.stage.mu,
            self.stage.sigma, self.seconds, self.stage.others,
        )  # fmt: skip
        self.history.append(report, **self.stage.others, **noise)
        return report

    def next_stage(self) -> None:
        self._start = self.best_z if self.best_z is not None else self.stage.z
        self.mu, self.sigma = self.stage.mu, self.stage.sigma
        self.order = getattr(self.stage, "order", None)
        self.before += self.stage.step
        self.number += 1
        self.converged = False
        # the next stage has all its patience
        self.best_step = self.before
        self._make()

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def due(self) -> bool:
        return self.checkpoint is not None and time.monotonic() - self.saved > _CHECKPOINT_INTERVAL

    def save(self) -> None:
        """Write the checkpoint: that of a finished run has its last step, so that more steps can follow."""
        if self.checkpoint is None:
            return
        stage_header, stage_arrays = self.stage.state()
        header = {
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "number": self.number,
            "before": self.before,
            "best": [self.best_value if np.isfinite(self.best_value) else None, self.best_step],
            "seconds": self.seconds,
            "stage": stage_header,
            "converged": self.converged,
            "note": self.note,
        }
        arrays = self.history.arrays() | {f"stage_{name}": array for name, array in stage_arrays.items()}
        if self.best_z is not None:
            arrays["best_z"] = self.best_z
        if self.model is not None:
            arrays["model_z"] = self.model.parameters()
        write_checkpoint(self.checkpoint, _KIND, header, arrays)
        self.saved = time.monotonic()

    def _read(self):
        header, arrays = read_checkpoint(self.checkpoint, _KIND)
        old, new = _flat(header["fingerprint"]), _flat(self.fingerprint)
        different = [
            f"{name} was {old.get(name)!r}, is {new.get(name)!r}"
            for name in sorted({*old, *new})
            if old.get(name) != new.get(name)
        ]
        if different:
            raise CheckpointError(
                f"{self.checkpoint}: this checkpoint belongs to another training run: {'; '.join(different)}. Give the "
                "same data and settings to go on; to start anew, remove the file or give another one"
            )
        self.seed, self.number, self.before = header["seed"], header["number"], header["before"]
        value, self.best_step = header["best"]
        self.best_value = np.inf if value is None else value
        self.elapsed = header["seconds"]
        self.history = History.from_arrays(arrays)
        self.best_z = arrays.get("best_z")
        if "model_z" in arrays:
            self.model = self.objective.model.with_parameters(arrays["model_z"])
        self.converged, self.note = header["converged"], header["note"]
        prefix = "stage_"
        return header["stage"], {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

    def result(self, reason: str, asked: bool) -> Fit:
        model = self.model if self.best_z is None else self.objective.model.with_parameters(self.best_z)
        if self.stage is not None:
            self.mu, self.sigma = self.stage.mu, self.stage.sigma
            self.order = getattr(self.stage, "order", None)
        return Fit(model, self.history, reason, self.seed, self.mu, self.sigma, self.order, asked)


def _flat(settings: dict) -> dict:
    """The entries of the dicts in ``settings`` one by one, so that differences are told by name."""
    flat = {}
    for name, value in settings.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat
