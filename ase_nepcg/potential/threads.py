"""Threads that share the work of a kernel: Python threads, because kernels release the interpreter lock.

Numba's own thread layers cannot be used by a calculator: ``workqueue`` ends the process when two Python threads call
at once, ``omp`` when the process has forked, and waiting OpenMP threads burn the cores of other processes. Here
helpers sleep on a queue; a kernel call takes chunks from an atomic counter until none is left, so a helper that wakes
late costs nothing, and the caller waits (asleep) only for chunks that a helper has begun.
"""

from __future__ import annotations

import ctypes
import os
import queue
import threading

import numpy as np

__all__ = ["default_threads", "run_chunks"]


def _find_cpu_number():
    try:
        # PyDLL: the call is shorter than giving up and taking back the interpreter lock
        return ctypes.PyDLL(None).sched_getcpu
    except (OSError, AttributeError, TypeError):  # not on Linux
        return None


_cpu_number = _find_cpu_number() if hasattr(os, "sched_setaffinity") else None


def _leave_cpu(cpu: int) -> None:
    """Move the calling thread to another processor if it runs on ``cpu``.

    Linux often wakes a helper on the processor of the thread that woke it, and keeps it there for many milliseconds
    although another processor is idle. The thread may go anywhere again afterwards.
    """
    if _cpu_number is None or _cpu_number() != cpu:
        return
    allowed = os.sched_getaffinity(0)
    if len(allowed) > 1 and cpu in allowed:
        os.sched_setaffinity(0, allowed - {cpu})
        os.sched_setaffinity(0, allowed)


class _Job:
    """One kernel call, made by several threads with a common counter of chunks."""

    def __init__(self, call):
        self.call = call
        self.cpu = _cpu_number() if _cpu_number is not None else -1
        self.lock = threading.Lock()
        self.running = 0
        self.finished = False
        self.idle = threading.Condition(self.lock)
        self.error = None

    def help(self):
        with self.lock:
            if self.finished:
                return
            self.running += 1
        try:
            _leave_cpu(self.cpu)
            self.call()
        except BaseException as error:  # handed to the caller, whose result is incomplete
            self.error = error
        finally:
            with self.lock:
                self.running -= 1
                self.idle.notify()

    def lead(self):
        try:
            self.call()
        finally:
            # the counter is exhausted, or the call failed: late helpers must not start any more
            with self.lock:
                self.finished = True
                while self.running:
                    self.idle.wait()
        if self.error is not None:
            raise self.error


class _Helpers:
    """Sleeping threads of this process, as many as the largest request so far."""

    def __init__(self):
        self.queue = queue.SimpleQueue()
        self.lock = threading.Lock()
        self.count = 0

    def ask(self, job: _Job, n: int):
        with self.lock:
            while self.count < n:
                self.count += 1
                # the thread holds the queue only: it must not keep an interpreter or a calculator alive
                threading.Thread(target=_serve, args=(self.queue,), name=f"nepcg-{self.count}", daemon=True).start()
        for _ in range(n):
            self.queue.put(job)


def _serve(jobs: queue.SimpleQueue):
    while True:
        job = jobs.get()
        job.help()
        del job  # the arrays of a finished evaluation must not wait for the next one


_helpers = _Helpers()


def _after_fork():
    # threads do not survive a fork, and the locks may have been held by one of them
    global _helpers
    _helpers = _Helpers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def default_threads() -> int:
    """Cores this process may use, at most ``OMP_NUM_THREADS`` where that is set (as batch systems and joblib do)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(cores, int(limit)) if limit.isascii() and limit.isdigit() and int(limit) > 0 else cores


def run_chunks(kernel, arguments, threads: int) -> None:
    """Call ``kernel(counter, *arguments)`` in up to ``threads`` threads that share one fresh ``counter``.

    The kernel must take work by ``fetch_add(counter, 0, 1)`` until none is left and return; ``fetch_add(counter, 1,
    1)`` numbers the calls, 0 to ``threads - 1``, for those who need a workspace of their own.
    """
    counter = np.zeros(2, np.int64)
    if threads <= 1:
        kernel(counter, *arguments)
        return
    job = _Job(lambda: kernel(counter, *arguments))
    _helpers.ask(job, threads - 1)
    job.lead()
