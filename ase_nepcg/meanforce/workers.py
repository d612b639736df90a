"""Runs of many configurations, one after the other here or side by side in processes of their own.

Processes are spawned, not forked: a fork of a process that has threads or a GPU context may hang. A worker does one
configuration after the other. It ignores Ctrl-C, which the terminal sends to all processes alike: the parent tells it
to stop (SIGTERM), whereupon it writes its checkpoint. It ends by itself when the parent is gone.
"""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import connection, resource_tracker

from ..calculator import NEP
from .core import MeanForce, collect
from .results import write_result
from .sampler import Sampler, SamplingError, Settings

__all__ = ["Failure", "Task", "refuse_unguarded_script", "run_here", "run_in_processes"]

_NAME = "nepcg-sample"
# exit status of a worker that was about to run the parent's script again
_UNGUARDED = 83
# how long workers may take to write their checkpoints, and to end when there is nothing left to do
_STOP_SECONDS, _END_SECONDS = 5.0, 5.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_ADVICE = (
    'put the part of the script that does the work under `if __name__ == "__main__":`, since every worker process '
    "imports the script anew; or use workers=1"
)


@dataclass(frozen=True)
class Task:
    """One configuration: ``atoms`` with their calculator, and everything else a run needs to know.

    ``threads``: for a NEP calculator that was not told how many; None: leave it alone. ``result``: file for the result
    and the notes in it, or None.
    """

    index: int
    atoms: object
    mapping: object
    settings: Settings
    time_ps: float | None
    force_error: float | None
    threads: int | None = None
    checkpoint: str | None = None
    result: str | None = None
    notes: dict | None = None


@dataclass(frozen=True)
class Failure:
    """Why configuration ``index`` has no result, in one sentence, and the Python traceback if there is one."""

    index: int
    reason: str
    traceback: str = ""

    def __str__(self):
        return f"configuration {self.index}: {self.reason}"

    @classmethod
    def of(cls, index: int, error: BaseException) -> Failure:
        reason = f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"
        return cls(index, reason, "".join(traceback.format_exception(error)))


def _sample(task: Task, report: Callable) -> MeanForce:
    """Run one task; KeyboardInterrupt once the checkpoint is written."""
    atoms = task.atoms
    if isinstance(atoms.calc, NEP) and task.threads is not None and atoms.calc.parameters.threads is None:
        atoms.calc.set(threads=task.threads)
    sampler = Sampler(atoms, task.mapping, task.settings, checkpoint=task.checkpoint)
    sampler.run(time_ps=task.time_ps, force_error=task.force_error, progress=False, report=report)
    if sampler.interrupted:
        raise KeyboardInterrupt
    result = collect(sampler)
    if task.result is not None:
        write_result(task.result, result, task.notes)
    return result


# ---- one after the other ------------------------------------------------------------------------------------------


def run_here(tasks: list[Task], report: Callable) -> Iterator[tuple[int, MeanForce | Failure]]:
    """Run ``tasks`` in this process; yields (index, result or failure).

    ``report(index, rms force error or None)`` is called now and then.
    """
    for task in tasks:
        atoms = task.atoms.copy()
        try:
            # several configurations may share a calculator; each begins with the state in which it was given
            atoms.calc = copy.deepcopy(task.atoms.calc)
        except Exception:
            atoms.calc = task.atoms.calc
        try:
            outcome = _sample(replace(task, atoms=atoms), partial(report, task.index))
        except Exception as error:
            outcome = Failure.of(task.index, error)
        yield task.index, outcome


# ---- the side of a worker -----------------------------------------------------------------------------------------


def refuse_unguarded_script() -> None:
    """To be called before anything is done: ends a worker that runs the parent's script instead of its task."""
    process = multiprocessing.current_process()
    if getattr(process, "_inheriting", False):
        if process.name.startswith(_NAME):
            # the parent explains
            sys.exit(_UNGUARDED)
        raise SamplingError(f"sample_many is called while a new process imports the script: {_ADVICE}")


def _serve(channel) -> None:
    """Main function of a worker: receives pickled tasks, sends (kind, content)."""
    signal.signal(signal.SIGTERM, _interrupt)
    # a handler, and not SIG_IGN, which programs started by a calculator would inherit
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        channel.send(("ready", None))
        while True:
            _serve_one(channel)
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        pass


def _serve_one(channel) -> None:
    data = channel.recv_bytes()
    index = int.from_bytes(data[:8], "little")
    try:
        try:
            task = pickle.loads(data[8:])
        except Exception as error:
            raise SamplingError(
                f"cannot be loaded in a worker process ({type(error).__name__}: {error}); define the calculator in a "
                "module that can be imported, or use workers=1"
            ) from error
        outcome = _sample(task, partial(_report, channel))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: some calculators end the program
        outcome = Failure.of(index, error)
    channel.send(("done", outcome))


def _report(channel, error: float | None) -> None:
    with contextlib.suppress(OSError):  # the parent is gone: no reason to call it a failure of this run
        channel.send(("progress", error))


def _interrupt(*_) -> None:
    # once: a second signal must not cut off the writing of the checkpoint
    signal.signal(signal.SIGTERM, lambda *_: None)
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


# ---- the side of the parent ---------------------------------------------------------------------------------------


def _check_main_file() -> None:
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    if getattr(main, "__spec__", None) is None and path is not None and not os.path.exists(path):
        raise SamplingError(
            f"worker processes import the script that is running, and there is no file {path}: write the script to a "
            "file, or use workers=1"
        )


class _Worker:
    """A worker process as the parent sees it; ``task`` is what it works on."""

    def __init__(self, context, number: int, threads: int, device: str | None):
        self.ready, self.task, self.device = False, None, device
        self.channel, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), name=f"{_NAME}-{number}")
        # without this its own start would unblock the signal
        resource_tracker.ensure_running()
        # a worker must not be hit by Ctrl-C before it can handle it
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with _environment(threads, device):
                self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
            # else the end of the worker would not be the end of the channel
            theirs.close()

    def give(self, task: Task) -> None:
        """Send a task; raises what pickling raises."""
        data = task.index.to_bytes(8, "little") + pickle.dumps(task)
        self.task = task
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its end will be noticed
            self.channel.send_bytes(data)

    def messages(self) -> Iterator[tuple]:
        """Those that have arrived; ends with ("dead", None) if there will be no more."""
        try:
            while self.channel.poll():
                yield self.channel.recv()
        except (EOFError, ConnectionResetError, pickle.UnpicklingError):
            yield "dead", None
            return
        if not self.process.is_alive() and not self.channel.poll():
            yield "dead", None

    def death(self) -> str:
        """How the process ended."""
        self.process.join(_END_SECONDS)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            self.process.join()
            return "the worker process closed its connection"
        if code >= 0:
            return f"the worker process ended with exit status {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = "unknown"
        hint = ", for lack of memory?" if name == "SIGKILL" else ""
        return f"the worker process was killed by signal {-code} ({name}{hint})"


def run_in_processes(
    tasks: list[Task], workers: int, threads: int, report: Callable, devices: Sequence[str] = ()
) -> Iterator[tuple[int, MeanForce | Failure]]:
    """Run ``tasks`` in up to ``workers`` processes; yields (index, result or failure) as they end.

    ``threads``: limit for the libraries in each of them; ``devices``: CUDA devices, of which each process sees one.
    ``report(index, error)`` is called now and then. When the iterator is closed, or interrupted, workers are told to
    write their checkpoints and to end. A worker that dies loses its configuration only. Raises :class:`SamplingError`
    if not a single worker can be started.
    """
    _check_main_file()
    context = multiprocessing.get_context("spawn")
    waiting, crew, started, slots, any_ready, end = deque(tasks), [], 0, workers, False, None
    try:
        while waiting or any(worker.task for worker in crew):
            busy = sum(worker.task is not None for worker in crew)
            while len(crew) < min(slots, busy + len(waiting)):
                taken = [worker.device for worker in crew]
                crew.append(_Worker(context, started, threads, min(devices, key=taken.count, default=None)))
                started += 1
            if not crew:
                while waiting:
                    task = waiting.popleft()
                    yield task.index, Failure(task.index, f"not run, since no worker process is left: {end}")
                return
            connection.wait([*(w.channel for w in crew), *(w.process.sentinel for w in crew)], timeout=1.0)
            for worker in list(crew):
                for kind, content in worker.messages():
                    if kind == "progress":
                        report(worker.task.index, content)
                    elif kind == "ready":
                        worker.ready = any_ready = True
                    elif kind == "done":
                        task, worker.task = worker.task, None
                        yield task.index, content
                    else:
                        crew.remove(worker)
                        end = worker.death()
                        if worker.task is not None:
                            yield worker.task.index, Failure(worker.task.index, end)
                        elif not worker.ready:
                            if worker.process.exitcode == _UNGUARDED:
                                raise SamplingError(f"worker processes cannot start: {_ADVICE}")
                            slots -= 1
                            if not (slots or any_ready):
                                raise SamplingError(
                                    f"no worker process could start: {end}. What it printed is above. If it failed "
                                    f"in your script: {_ADVICE}"
                                )
                while worker in crew and worker.ready and worker.task is None and waiting:
                    task = waiting.popleft()
                    try:
                        worker.give(task)
                    except Exception as error:
                        reason = f"cannot be sent to a worker process ({type(error).__name__}: {error}); use workers=1"
                        yield task.index, Failure(task.index, reason)
        for worker in crew:
            worker.channel.close()
        _join(crew, _END_SECONDS)
    finally:
        _stop(crew)


def _stop(crew: list[_Worker]) -> None:
    """End all workers: they have some seconds to write their checkpoints, or until a second Ctrl-C."""
    for worker in crew:
        worker.process.terminate()
    try:
        _join(crew, _STOP_SECONDS)
    finally:
        for worker in crew:
            worker.process.kill()
        for worker in crew:
            worker.process.join()
            worker.channel.close()


def _join(crew: list[_Worker], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for worker in crew:
        worker.process.join(max(deadline - time.monotonic(), 0.0))


@contextlib.contextmanager
def _environment(threads: int, device: str | None):
    """Environment in which the libraries of a new process use at most ``threads`` threads, fewer if it says so, and
    see one CUDA device, unless ``device`` is None."""
    wanted = {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
    for name in _THREAD_VARIABLES:
        first = os.environ.get(name, "").split(",")[0].strip()
        if not (first.isdecimal() and 0 < int(first) <= threads):
            wanted[name] = str(threads)
    old = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in old.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
