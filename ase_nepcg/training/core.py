"""``train``: frames in, model out."""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import numpy as np

from ..dataset.core import as_list
from ..devices import choose
from ..errors import ModelError, NepCGError, closest
from ..hyper import check_integer
from .fit import Report, fit
from .history import History
from .loss import LossSettings, Predictions, noise_report, rmse
from .targets import Targets, species_of

__all__ = ["Report", "Training", "TrainingError", "cross_validate", "train"]

OPTIMIZERS = ("gradient", "lbfgs", "adam", "snes")
#: steps if none are given
STEPS = {"lbfgs": 1500, "adam": 20_000, "snes": 100_000}
# "gradient" means L-BFGS up to this many sites
_MOST_SITES = 100_000
# a polish starts with this standard deviation of every parameter
POLISH_SIGMA = 0.01


class TrainingError(NepCGError, ValueError):
    """Arguments of a training that make no sense."""


@dataclass(frozen=True, eq=False)
class Training:
    """A finished (or interrupted) training.

    ``model``: the best on the test set where there is one, else the last; its common bias takes up the mean energy
    error. With ``n_models`` > 1, ``models`` has all of them and ``model`` is the first.
    """

    model: object  #: NEPModel
    history: History
    settings: LossSettings
    targets: Targets
    test_targets: Targets | None
    reason: str  #: why it ended: "steps", "converged", "early stopping", "interrupted"
    seed: int
    optimizer: str
    models: tuple = ()
    histories: tuple = ()
    mu: np.ndarray | None = None  #: of SNES, (n_parameters,)
    sigma: np.ndarray | None = None
    order: np.ndarray | None = field(default=None, repr=False)
    threads: int | None = None

    def __repr__(self):
        errors = rmse(self.targets, self.predictions)
        text = f"Training({self.model!r}, {self.optimizer}, {self.reason} at step {self.history.step[-1]}, "
        text += ", ".join(f"{k} {v:.4g}" for k, v in errors.items() if v)
        return text + (f", {len(self.models)} models)" if len(self.models) > 1 else ")")

    @cached_property
    def predictions(self) -> Predictions:
        """Of ``model`` for the training frames."""
        return self._predict(self.targets)

    @cached_property
    def test_predictions(self) -> Predictions | None:
        """Of ``model`` for the test frames."""
        return None if self.test_targets is None else self._predict(self.test_targets)

    def _predict(self, targets: Targets, model=None) -> Predictions:
        from .predict import predict

        return predict(model or self.model, targets, threads=self.threads)

    def _targets(self, frames) -> Targets:
        if frames is None:
            return self.targets
        if isinstance(frames, Targets):
            return frames
        return Targets.from_frames(frames, self.model.species, temperature=self.model.temperature)

    def rmse(self, frames=None) -> dict:
        """Root mean square errors on ``frames`` (default: the training set): energy (eV/atom), force (eV/Å, per
        component), virial (eV/atom) and stress (GPa); 0.0 where nothing can be compared."""
        targets = self._targets(frames)
        return rmse(targets, self.predictions if targets is self.targets else self._predict(targets))

    def report(self, frames=None) -> dict:
        """:meth:`rmse` and, for frames with error bars, what of it is noise: rms error bars (``force_noise`` eV/Å,
        ``virial_noise`` eV/atom, ``stress_noise`` GPa) and the mean of (error / error bar)^2 (``force_chi2``,
        ``virial_chi2``), about 1 for a model as good as the data can tell."""
        targets = self._targets(frames)
        predictions = self.predictions if targets is self.targets else self._predict(targets)
        return rmse(targets, predictions) | noise_report(targets, predictions)

    def committee(self, **keywords):
        """Calculator with the mean of all models and their spread, see :meth:`ase_nepcg.NEP.committee`."""
        from ..calculator import NEP

        return NEP.committee(self.models, **keywords)

    def plot(self, axes=None):
        """Loss curve and parity plots with the noise band of the data; returns matplotlib Axes."""
        from ..plot import training_summary

        return training_summary(self, axes)


def train(
    frames,
    *,
    test=None,
    species=None,
    cutoff=(6.0, 4.0),
    neurons=10,
    n_max=(4, 4),
    basis_size=(8, 8),
    l_max=(4, 2, 0),
    zbl=None,
    temperature=False,
    optimizer="gradient",
    steps=None,
    batch=None,
    full_batch=False,
    population=50,
    sigma0=0.1,
    learning_rate=1e-2,
    polish=0,
    patience=None,
    lambda_e=1.0,
    lambda_f=1.0,
    lambda_v=0.1,
    lambda_1=None,
    lambda_2=None,
    lambda_shear=1.0,
    force_delta=0.0,
    type_weight=None,
    weighting=None,
    start=None,
    n_models=1,
    checkpoint=None,
    interval=None,
    on_report=None,
    threads=None,
    device="cpu",
    cache_GB=3.0,
    seed=None,
    progress=True,
) -> Training:
    """Train a NEP on frames with forces, and energies or virials where they have them.

    Parameters
    ----------
    frames, test
        Lists of ``Atoms``, as from :func:`~ase_nepcg.read_dataset` or :func:`~ase_nepcg.sample_many`. With ``test`` the
        model that is best there is returned, and training ends when it gets no better.
    species
        Labels of the model in their order; None: those of the frames, sorted.
    cutoff, neurons, n_max, basis_size, l_max
        Hyper-parameters as in :meth:`~ase_nepcg.NEPModel.zeros`; ``cutoff`` in Å, (radial, angular) or {label: (radial,
        angular)}.
    zbl
        Repulsion at short distances that is not trained: (inner, outer) or (inner, outer, factor) in Å or
        :class:`~ase_nepcg.model.ZBL` for that of nuclei; ``"repulsive"`` for a wall below the smallest distance in the
        frames, which keeps a coarse-grained run out of what was never sampled (labels must be chemical symbols).
    temperature
        Give the network the temperature (``info["temperature"]``, K) as an input.
    optimizer
        ``"gradient"``: ``"lbfgs"`` (all frames in every step) for up to 100 000 sites, ``"adam"`` (minibatches) for
        more. ``"snes"``: the published evolution strategy with type-wise ranking.
    steps
        Iterations, minibatches or generations at most; None: 1500, 20 000 or 100 000.
    batch, full_batch
        Frames in a minibatch (Adam: about 4000 sites; SNES: all frames); ``full_batch``: SNES goes through all batches
        in every generation.
    population, sigma0
        Of SNES: individuals, first standard deviation.
    learning_rate
        Of Adam, largest.
    polish
        Generations of SNES after the gradient, starting from its result.
    patience
        With ``test``: end after so many steps without a better result; None: a quarter of ``steps``.
    lambda_e, lambda_f, lambda_v, lambda_1, lambda_2, lambda_shear, force_delta, type_weight, weighting
        The loss, see :mod:`ase_nepcg.training.loss`. ``weighting="errorbars"`` weights forces and virials by the
        inverse squares of their error bars.
    start
        A model (or its path) to start from; hyper-parameters must be the same, species may be fewer.
    n_models
        Models from different random starts, for :meth:`Training.committee`.
    checkpoint
        File for the state of the run, written every half minute and at the end. If it exists the run is taken up there,
        with the same numbers as without the interruption. Model m > 0 of several has ``-m`` in the name.
    interval, on_report
        Every ``interval`` steps (10; SNES: 100) errors are computed, kept in the history and passed to ``on_report``
        as a :class:`~ase_nepcg.training.fit.Report`.
    device
        "cpu"; "cuda": losses and gradients are computed on a CUDA device in mixed precision, which for the gradient
        means to about 1e-5; "auto": on a CUDA device where there is one.
    threads, cache_GB
        None: all cores. Memory for geometry that is kept; more frames than that are computed again in every step.
    seed
        Integer from 0; None draws one. Results do not depend on the number of threads.
    progress
        Show a bar with the terms of the loss and the time left.

    Ctrl-C ends the training after the step at hand: the result so far is returned, with ``reason="interrupted"``.

    Raises :class:`~ase_nepcg.dataset.DatasetError` (frames), :class:`~ase_nepcg.errors.ModelError` (hyper-parameters),
    :class:`TrainingError`, :class:`~ase_nepcg.training.loss.LossError`,
    :class:`~ase_nepcg.training.stages.StageError`, :class:`~ase_nepcg.training.snes.SnesError` (other arguments), and
    :class:`~ase_nepcg.checkpoint.CheckpointError` for a checkpoint of other data or settings.

    Sources: Fan et al., PRB 104, 104309 (2021); Song et al., Nat. Commun. 15, 10208 (2024).
    """
    from ..model import NEPModel
    from .baseline import as_zbl
    from .objective import descriptor_scaler

    if optimizer not in OPTIMIZERS:
        raise TrainingError(f"optimizer: unknown name {optimizer!r}; {closest(str(optimizer), OPTIMIZERS)}")
    n_models, polish = check_count("n_models", n_models, 1), check_count("polish", polish, 0)
    for name, value in (("steps", steps), ("batch", batch), ("patience", patience), ("interval", interval)):
        if value is not None:
            check_count(name, value, 1)
    if seed is not None:
        check_count("seed", seed, 0)
    loss = LossSettings(
        lambda_e, lambda_f, lambda_v, lambda_1, lambda_2, lambda_shear, force_delta,
        None if type_weight is None else tuple(type_weight), weighting,
    )  # fmt: skip
    frames = as_list(frames)
    start = NEPModel.read(start) if isinstance(start, str | os.PathLike) else start
    species = tuple(species) if species is not None else species_of(frames)
    model = NEPModel.zeros(
        species, cutoff=cutoff, n_max=n_max, basis_size=basis_size, l_max=l_max, neurons=neurons,
        zbl=as_zbl(zbl, frames, species, cutoff=cutoff) if isinstance(zbl, str) else as_zbl(zbl),
        temperature=temperature,
    )  # fmt: skip
    for radial, angular in zip(model.cutoff_radial, model.cutoff_angular, strict=True):
        if angular > radial:
            raise TrainingError(
                f"cutoff: expected an angular radius up to the radial one, got {radial:g} and {angular:g} (GPUMD and "
                "others look for angular neighbours among the radial ones)"
            )
    if model.neurons2:
        raise TrainingError("neurons: expected one number; models with two hidden layers can be used, not trained")
    targets = Targets.from_frames(frames, species, temperature=temperature)
    test_targets = None if test is None else Targets.from_frames(test, species, temperature=temperature)
    model = replace(
        model,
        q_scaler=descriptor_scaler(model, targets, threads=threads) if start is None else _scaler_of(start, model),
    )
    optimizer = chosen_optimizer(optimizer, len(targets.types))
    steps = steps or STEPS[optimizer]
    stages = [(optimizer, steps)] + [("snes", polish)] * (polish > 0)
    return run_training(
        model, targets, test_targets, loss, stages=stages, optimizer=optimizer, start=start, n_models=n_models,
        checkpoint=checkpoint, seed=seed, threads=threads, device=device, cache_GB=cache_GB, interval=interval,
        # a default that follows the number of steps must not keep a run from going on with more
        patience=patience or max(1, steps // 4), fingerprint={"patience": None if test is None else patience},
        on_report=on_report, progress=progress, batch=batch, full_batch=full_batch, population=population,
        sigma0=sigma0, learning_rate=learning_rate,
    )  # fmt: skip


def chosen_optimizer(name: str, n_sites: int) -> str:
    """What ``"gradient"`` stands for with so many sites in all frames; other names are checked."""
    if name not in OPTIMIZERS:
        raise TrainingError(f"optimizer: unknown name {name!r}; {closest(str(name), OPTIMIZERS)}")
    if name != "gradient":
        return name
    return "lbfgs" if n_sites <= _MOST_SITES else "adam"


def run_training(
    model, targets, test_targets, loss, *, stages, optimizer, start=None, n_models=1, checkpoint, seed, threads,
    cache_GB, interval, patience, on_report, progress, device="cpu", on_start=None, z=None, fingerprint=None,
    **settings,
) -> Training:  # fmt: skip
    """Minimise ``loss`` for a model whose hyper-parameters and scaler are set; arguments as for :func:`train`.

    ``z``: parameters (n,) to start from, which a checkpoint does not depend on; ``fingerprint``: what it depends on
    besides the other arguments; ``patience`` None: the last model is the result; ``on_start``: see
    :func:`~ase_nepcg.training.fit.fit`.
    """
    from .finetune import start_from_model
    from .objective import Objective
    from .stages import initial_parameters

    loss = loss.completed(model)
    device, _ = choose(device, "auto")
    memory = {"threads": threads, "device": device, "cache_GB": 0.0 if device == "cuda" else cache_GB}
    objective = Objective(model, targets, loss, **memory)
    plain = replace(loss, weighting=None, type_weight=None, force_delta=0.0, lambda_shear=1.0)
    test = None if test_targets is None else Objective(model, test_targets, plain, **memory)
    model = replace(model, max_neighbors=tuple(int(n) for n in np.maximum(objective.geometry.max_neighbors, 1)))
    objective.model = model
    chosen = seed
    if seed is None:
        seed = secrets.randbelow(2**31)
    polish = {"stage 1": {"sigma0": POLISH_SIGMA, "blind_start": False}} if len(stages) > 1 else {}
    shared = {
        "data": _digest(targets),
        "test": None if test_targets is None else _digest(test_targets),
        "model": _model_settings(model),
        "loss": {f.name: _plain(getattr(loss, f.name)) for f in fields(loss)},
        "optimizer": [name for name, _ in stages],
        "patience": patience if test is not None else None,
        "start": None if start is None else hashlib.sha256(start.parameters().tobytes()).hexdigest()[:16],
    } | {k: v for k, v in settings.items() if v is None or isinstance(v, bool | int | float)}
    shared |= fingerprint or {}
    if optimizer == "adam":
        # the learning rate depends on the number of steps
        shared["steps"] = stages[0][1]
    fits = []
    for number in range(n_models):
        # so that any of them can be made alone, by train(seed=...)
        own = seed + number
        if z is not None:
            first = z
        elif start is not None:
            first = start_from_model(start, model)
        else:
            # the own start of SNES is wider
            first = None if stages[0][0] == "snes" else initial_parameters(model, own)
        path = checkpoint
        if checkpoint is not None and number:
            stem, ending = os.path.splitext(os.fspath(checkpoint))
            path = f"{stem}-{number}{ending}"
        fits.append(
            fit(
                objective,
                test,
                stages=stages,
                z=first,
                seed=own,
                interval=interval,
                patience=patience,
                checkpoint=path,
                fingerprint=shared | {"seed": None if chosen is None else own},
                on_start=on_start,
                on_report=on_report,
                progress=progress,
                **settings,
                **polish,
            )
        )
        if fits[-1].asked:
            break
    own = fits[0]
    return Training(
        model=own.model,
        history=own.history,
        settings=loss,
        targets=targets,
        test_targets=test_targets,
        reason=fits[-1].reason if len(fits) == n_models else "interrupted",
        seed=own.seed,
        optimizer=optimizer,
        models=tuple(f.model for f in fits),
        histories=tuple(f.history for f in fits),
        mu=own.mu,
        sigma=own.sigma,
        order=own.order,
        threads=threads,
    )


def cross_validate(frames, folds: int = 5, *, seed: int = 0, **settings) -> tuple[dict, list[Training]]:
    """Train ``folds`` times, each time without one part of the frames, and test on that part.

    Frames are dealt out at random (``seed``). ``settings`` as for :func:`train`; every part has a checkpoint of
    its own. Returns the errors over all parts together (as :meth:`Training.rmse`: root of the mean square over frames
    or force components), and the trainings, whose test set did not take part in any choice.
    """
    frames = list(frames)
    folds = check_count("folds", folds, 2)
    if len(frames) < folds:
        raise TrainingError(f"folds: expected at most as many as frames ({len(frames)}), got {folds}")
    if "test" in settings:
        raise TrainingError("test: cross-validation makes its own test sets")
    parts = np.array_split(np.random.default_rng(seed).permutation(len(frames)), folds)
    species = settings.pop("species", None) or species_of(frames)
    checkpoint = settings.pop("checkpoint", None)
    trainings, squares, counts = [], {}, {}
    for fold, part in enumerate(parts):
        chosen = set(part.tolist())
        rest = [frame for index, frame in enumerate(frames) if index not in chosen]
        path = None if checkpoint is None else f"-fold{fold}".join(os.path.splitext(os.fspath(checkpoint)))
        trainings.append(train(rest, species=species, seed=seed, checkpoint=path, **settings))
        targets = trainings[-1]._targets([frames[index] for index in part])
        size = {"energy": len(targets), "force": len(targets.types)}
        size["virial"] = size["stress"] = int(targets.has_virial.sum())
        for name, error in trainings[-1].rmse(targets).items():
            squares[name] = squares.get(name, 0.0) + size[name] * error**2
            counts[name] = counts.get(name, 0) + size[name]
    return {name: float(np.sqrt(squares[name] / max(counts[name], 1))) for name in squares}, trainings


def _scaler_of(start, model) -> np.ndarray:
    from .finetune import restrict

    scaler = restrict(start, model.species).q_scaler
    if len(scaler) != model.n_descriptor:
        raise TrainingError(
            f"start: expected a model with {model.n_descriptor} descriptor components, got {len(scaler)}: give the "
            "same n_max and l_max"
        )
    return scaler


def check_count(name: str, value, least: int) -> int:
    try:
        return check_integer(name, value, least, 2**63 - 1)
    except ModelError as error:
        raise TrainingError(str(error)) from None


def _digest(targets: Targets) -> str:
    digest = hashlib.sha256()
    for f in fields(targets):
        value = getattr(targets, f.name)
        if isinstance(value, np.ndarray):
            digest.update(f"{f.name} {value.dtype.str} {value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()[:16]


def _model_settings(model) -> dict:
    names = ("species", "n_max", "basis_size", "l_max", "many_body", "neurons", "temperature", "version")
    settings = {name: _plain(getattr(model, name)) for name in names}
    settings["cutoff"] = [model.cutoff_radial.tolist(), model.cutoff_angular.tolist()]
    settings["zbl"] = None if model.zbl is None else repr(_plain_zbl(model.zbl))
    settings["scaler"] = hashlib.sha256(model.q_scaler.tobytes()).hexdigest()[:16]
    return settings


def _plain_zbl(zbl) -> list:
    return [zbl.inner, zbl.outer, zbl.factor, None if zbl.flexible is None else zbl.flexible.tolist()]


def _plain(value):
    """As JSON gives it back."""
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
