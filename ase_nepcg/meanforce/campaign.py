"""Mean forces of many configurations: :func:`sample_many`, over processes, with a folder from which it can go on."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Iterable
from contextlib import closing, nullcontext
from dataclasses import asdict, fields, replace

from ase import Atoms
from tqdm import tqdm

from ..calculator import NEP
from ..devices import visible
from ..errors import closest, is_integer
from ..mapping import Mapping
from ..potential.threads import default_threads
from ..seeds import derived_seed
from .core import MeanForce
from .folder import CampaignFolder, FolderInUseError, describe
from .sampler import SamplingError, Settings
from .workers import Failure, Task, refuse_unguarded_script, run_here, run_in_processes

__all__ = ["CampaignError", "CampaignInterrupted", "Failure", "FolderInUseError", "frame_seed", "sample_many"]

_SETTINGS = [field.name for field in fields(Settings)]
# failures that a message lists
_LISTED = 10


class CampaignError(SamplingError):
    """Some configurations failed: ``failures`` says which and why, ``results`` has the others (None where failed)."""

    def __init__(self, failures: list[Failure], results: list):
        self.failures, self.results = failures, results
        super().__init__(_listing(failures, len(results)))


class CampaignInterrupted(KeyboardInterrupt):
    """Ctrl-C during :func:`sample_many`; ``results`` has what was finished (None where not)."""

    def __init__(self, results: list):
        self.results = results
        super().__init__()


def frame_seed(seed: int, index: int) -> int:
    """The seed that :func:`sample_many` uses for configuration ``index``."""
    return derived_seed(seed, index)


def sample_many(
    frames,
    mapping,
    *,
    calculator=None,
    workers=None,
    threads=None,
    folder=None,
    on_error="raise",
    progress=True,
    time_ps=None,
    force_error=None,
    **settings,
) -> list[MeanForce]:
    """Average the forces on the beads of many configurations, several at a time.

    Each result is, bit for bit, what :func:`~ase_nepcg.sample_mean_force` gives for that configuration with
    ``seed=frame_seed(seed, index)``, whatever ``workers``, ``threads`` and interruptions, provided the forces of the
    calculator depend on nothing but the positions.

    Parameters
    ----------
    frames
        All-atom configurations (``Atoms``), each with a calculator unless ``calculator`` is given. Not changed.
    mapping
        One :class:`~ase_nepcg.Mapping` for all, or a list with one for each.
    calculator
        For all configurations, in place of their own.
    workers
        Processes. None: one for every CUDA device where all calculators compute there (each process sees one), else one
        for every ``threads`` of the cores this process may use; at most one per configuration. 1:
        no other process is started, and a crash of the calculator is a crash of the program. More need calculators
        that can be pickled, and a script whose work is done under ``if __name__ == "__main__":``.
    threads
        For each NEP calculator whose ``threads`` is None, and a limit for other libraries in worker processes. None:
        the cores are divided evenly.
    folder
        Directory for checkpoints and results. A rerun with the same arguments takes up every configuration where it
        was left, also after a kill; finished ones are read, or made longer if ``time_ps`` or ``force_error`` are
        others than before. Configurations may be added at the end, or left out there; anything else must not change.
        Only one run at a time may use a folder.
    on_error
        What to do, after all others have finished, if configurations fail (exception, killed or crashed worker):
        "raise" :class:`CampaignError`, which has the other results, or "skip": warn and leave them out of the list.
    progress
        Show a bar with the number of finished configurations and the smallest and largest force error so far.
    time_ps, force_error, **settings
        As for :func:`~ase_nepcg.sample_mean_force`: ``temperature_K`` (needed), ``timestep_fs``, ``ensemble``,
        ``friction_per_fs``, ``equilibration_ps``, ``interval``, ``thermal_response``, ``seed``. With ``seed=None`` one
        is drawn, and kept in the folder.

    Raises
    ------
    CampaignError
        Some configurations failed.
    SamplingError
        Worker processes cannot be started.
    FolderInUseError
        Another run uses ``folder``.
    CheckpointError
        ``folder`` was made with other configurations, another mapping, calculator, or other settings, or is damaged.
    CampaignInterrupted
        A ``KeyboardInterrupt``: on Ctrl-C all workers write their checkpoints and end; it has the finished results.
    ValueError, TypeError
        Arguments that make no sense; nothing is run.

    Warns (RuntimeWarning) for each configuration as ``sample_mean_force`` does, with its number.
    """
    settings = _settings(settings, time_ps, force_error)
    frames, mappings = _frames(frames, mapping, calculator)
    for name, value in (("workers", workers), ("threads", threads)):
        if value is not None and (not is_integer(value) or value < 1):
            raise ValueError(f"{name}: expected a positive integer or None, got {value!r}")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error: expected 'raise' or 'skip', got {on_error!r}")
    if workers != 1:
        refuse_unguarded_script()
    goal = {"time_ps": _plain(time_ps), "force_error": _plain(force_error)}
    seed = secrets.randbits(31) if settings.seed is None else settings.seed
    place = nullcontext()
    if folder is not None:
        parts = [describe(atoms, mapping) for atoms, mapping in zip(frames, mappings, strict=True)]
        place = CampaignFolder(folder, asdict(settings), parts, seed)
    outcomes: list = [None] * len(frames)
    with place as kept:
        if kept is not None:
            seed = kept.seed
            outcomes = [kept.read(index, goal) for index in range(len(frames))]
        tasks = []
        for index, (atoms, one) in enumerate(zip(frames, mappings, strict=True)):
            if outcomes[index] is not None:
                continue
            files = {}
            if kept is not None:
                files = {"checkpoint": kept.checkpoint(index), "result": kept.result(index)}
                files["notes"] = kept.notes(index, goal)
            own = replace(settings, seed=frame_seed(seed, index))
            tasks.append(Task(index, atoms, one, own, **goal, **files))
        try:
            with _Progress(outcomes, progress) as bar:
                _run(tasks, workers, threads, outcomes, bar)
        except KeyboardInterrupt:
            raise CampaignInterrupted([_result(outcome) for outcome in outcomes]) from None
    return _conclude(outcomes, on_error)


def _run(tasks, workers, threads, outcomes, bar) -> None:
    """Run ``tasks``; results and failures go into ``outcomes`` at once."""
    cores = default_threads()
    on_cuda = [_on_cuda(task.atoms.calc) for task in tasks]
    devices = visible() if any(on_cuda) else []
    if workers is None:
        # a device is busy with one run
        workers = len(devices) if devices and all(on_cuda) else cores // (threads or 1)
        workers = max(min(workers, len(tasks)), 1)
    if workers == 1:
        running = run_here([replace(task, threads=threads) for task in tasks], bar.report)
    else:
        workers = min(workers, max(len(tasks), 1))
        threads = threads or max(cores // workers, 1)
        running = run_in_processes(
            [replace(task, threads=threads) for task in tasks], workers, threads, bar.report, devices
        )
    with closing(running):
        for index, outcome in running:
            outcomes[index] = outcome
            bar.finished(index, outcome)


def _on_cuda(calculator) -> bool:
    return isinstance(calculator, NEP) and calculator.device == "cuda"


def _conclude(outcomes, on_error) -> list[MeanForce]:
    """Warnings, and results or an exception, once everything is done."""
    results = [_result(outcome) for outcome in outcomes]
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    for index, result in enumerate(results):
        for text in () if result is None else result.warnings:
            warnings.warn(f"configuration {index}: {text}", RuntimeWarning, stacklevel=3)
    if not failures:
        return results
    if on_error == "raise":
        raise CampaignError(failures, results)
    warnings.warn(f"left out: {_listing(failures, len(results))}", RuntimeWarning, stacklevel=3)
    return [result for result in results if result is not None]


def _result(outcome) -> MeanForce | None:
    return None if isinstance(outcome, Failure) else outcome


def _listing(failures, total) -> str:
    texts = [str(failure) for failure in failures[:_LISTED]]
    if len(failures) > _LISTED:
        texts.append(f"and {len(failures) - _LISTED} more")
    return f"{len(failures)} of {total} configurations failed: " + "; ".join(texts)


class _Progress:
    """The progress bar: configurations that are done, and the smallest and largest force error among all so far."""

    def __init__(self, outcomes, visible):
        done = [index for index, outcome in enumerate(outcomes) if outcome is not None]
        self._errors = {index: outcomes[index].force_error for index in done}
        self._failed = 0
        self._bar = tqdm(
            total=len(outcomes),
            initial=len(done),
            unit="configuration",
            desc="mean forces",
            # None: silent where stderr is no terminal
            disable=None if visible else True,
        )

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error) -> None:
        self._bar.close()

    def report(self, index: int, error: float | None) -> None:
        if error is not None:
            self._errors[index] = error
        self._show()

    def finished(self, index: int, outcome) -> None:
        if isinstance(outcome, Failure):
            self._failed += 1
            self._errors.pop(index, None)
        else:
            self._errors[index] = outcome.force_error
        self._bar.update()
        self._show()

    def _show(self) -> None:
        texts = [f"{self._failed} failed"] if self._failed else []
        if self._errors:
            low, high = min(self._errors.values()), max(self._errors.values())
            texts.append(f"force errors {low:.4f} to {high:.4f} eV/Å")
        self._bar.set_postfix_str(", ".join(texts))


# ---- arguments ----------------------------------------------------------------------------------------------------


def _settings(given: dict, time_ps, force_error) -> Settings:
    for name in given:
        if name == "checkpoint":
            raise TypeError("sample_many has no keyword checkpoint: each configuration has its own in folder=")
        if name not in _SETTINGS:
            raise TypeError(f"sample_many has no keyword {name!r}; {closest(name, [*_SETTINGS, 'time_ps', 'folder'])}")
    if "temperature_K" not in given:
        raise TypeError("sample_many needs temperature_K=")
    settings = Settings(**given)
    settings.samples(time_ps, force_error)
    return settings


def _frames(frames, mapping, calculator) -> tuple[list[Atoms], list[Mapping]]:
    """Copies of the frames with their calculators, and a mapping for each."""
    frames = [frames] if isinstance(frames, Atoms) else frames
    if not isinstance(frames, Iterable) or isinstance(frames, str | bytes):
        raise TypeError(f"frames: expected a list of Atoms, got {type(frames).__name__}")
    frames = list(frames)
    if not frames:
        raise ValueError("frames: expected at least one configuration, got none")
    copies = []
    for index, atoms in enumerate(frames):
        if not isinstance(atoms, Atoms):
            raise TypeError(f"frames: expected Atoms, got {type(atoms).__name__} as number {index}")
        own = atoms.copy()
        own.calc = atoms.calc if calculator is None else calculator
        if own.calc is None:
            raise ValueError(f"configuration {index} has no calculator: set atoms.calc, or give calculator=")
        copies.append(own)
    mappings = [mapping] * len(frames) if isinstance(mapping, Mapping) else mapping
    mappings = list(mappings) if isinstance(mappings, Iterable) else [mappings]
    for one in mappings:
        if not isinstance(one, Mapping):
            raise TypeError(f"mapping: expected a Mapping, or a list of them, got {type(one).__name__}")
    if len(mappings) != len(frames):
        raise ValueError(f"mapping: expected one, or {len(frames)} as there are frames, got {len(mappings)}")
    return copies, mappings


def _plain(value) -> float | None:
    return None if value is None else float(value)
