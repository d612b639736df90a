"""Sharing the chunks of a kernel among threads."""

import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import warnings
import weakref

import numba
import numpy as np
import pytest

from ase_nepcg.potential import threads
from ase_nepcg.potential.simd import fetch_add, pointer
from ase_nepcg.potential.threads import default_threads, run_chunks


@numba.njit(nogil=True)
def _visit(counter, visits, work, owner):
    mine = fetch_add(pointer(counter), 1, 1)
    chunk = fetch_add(pointer(counter), 0, 1)
    while chunk < visits.size:
        total = 0.0
        for k in range(work):
            total += 1.0 / (k + chunk + 1)
        visits[chunk] += 1 if total >= 0 else 0
        owner[chunk] = mine
        chunk = fetch_add(pointer(counter), 0, 1)


def visit(n_chunks, n_threads, work=2000):
    """How often each chunk was worked on, and by which call."""
    visits, owner = np.zeros(n_chunks, np.int64), np.full(n_chunks, -1)
    run_chunks(_visit, (visits, work, owner), n_threads)
    return visits, owner


@pytest.fixture
def helpers(monkeypatch):
    """A pool of its own, without helpers yet."""
    pool = threads._Helpers()
    monkeypatch.setattr(threads, "_helpers", pool)
    return pool


@pytest.mark.parametrize("n_threads", [-1, 0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("n_chunks", [0, 1, 2, 7, 500])
def test_every_chunk_is_worked_on_exactly_once(n_chunks, n_threads):
    for _ in range(10):
        visits, owner = visit(n_chunks, n_threads)
        assert (visits == 1).all()
        # numbers of the calls fit into as many workspaces as there are threads
        assert ((owner >= 0) & (owner < max(n_threads, 1))).all()


def test_one_thread_needs_no_helper(helpers):
    visit(5, 1)
    assert helpers.count == 0


def test_helpers_are_kept_for_the_next_call(helpers):
    for n_threads in (3, 2, 3, 5, 4):
        visit(20, n_threads)
    assert helpers.count == 4
    names = [t.name for t in threading.enumerate() if t.name.startswith("nepcg-")]
    assert len(names) >= 4
    assert all(t.daemon for t in threading.enumerate() if t.name.startswith("nepcg-"))


def test_error_in_a_helper_reaches_the_caller(helpers):
    main = threading.get_ident()
    failed = threading.Event()

    def kernel(counter):
        if threading.get_ident() == main:
            assert failed.wait(30)
        else:
            failed.set()
            raise ZeroDivisionError("in a helper")

    with pytest.raises(ZeroDivisionError, match="in a helper"):
        run_chunks(kernel, (), 2)
    # the pool survives
    visits, _ = visit(50, 2)
    assert (visits == 1).all()


def test_error_in_the_caller_waits_for_the_helpers_at_work(helpers):
    main = threading.get_ident()
    entered, left = threading.Event(), []

    def kernel(counter):
        if threading.get_ident() == main:
            assert entered.wait(30)
            raise KeyError("in the caller")
        entered.set()
        time.sleep(0.2)
        left.append(True)

    with pytest.raises(KeyError, match="in the caller"):
        run_chunks(kernel, (), 2)
    # a helper must not write to the arrays of a call that has returned
    assert left == [True]
    visits, _ = visit(50, 2)
    assert (visits == 1).all()


def test_caller_does_not_wait_for_helpers_that_have_not_begun(helpers):
    release, main = threading.Event(), threading.get_ident()
    occupied = threading.Event()

    def block(counter):
        if threading.get_ident() not in (main, blocker.ident):
            occupied.set()
        assert release.wait(30)

    blocker = threading.Thread(target=run_chunks, args=(block, (), 2))
    blocker.start()
    assert occupied.wait(30)
    # the only helper is asleep in the other call
    visits, owner = visit(100, 2)
    assert (visits == 1).all()
    assert (owner == 0).all()
    calls = []
    run_chunks(lambda counter: calls.append(threading.get_ident()), (), 2)
    assert calls == [main]
    release.set()
    blocker.join(30)
    assert not blocker.is_alive()
    # the helper wakes up and finds finished jobs: they are not run again
    visit(10, 2)
    assert calls == [main]


def test_two_python_threads_at_once():
    failures = []

    def many(n_threads):
        for n_chunks in range(150):
            visits, _ = visit(n_chunks, n_threads, work=200)
            if not (visits == 1).all():
                failures.append((n_threads, n_chunks))

    callers = [threading.Thread(target=many, args=(n,)) for n in (2, 3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
        assert not caller.is_alive()
    assert failures == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("lock_held", [False, True])
def test_threads_work_in_a_forked_child(helpers, lock_held):
    visit(50, 3)  # the parent has helpers, the child starts without

    def in_child():
        visits, _ = visit(200, 3)
        sys.exit(7 if (visits == 1).all() and threads._helpers.count == 2 else 1)

    child = multiprocessing.get_context("fork").Process(target=in_child)
    with warnings.catch_warnings():
        # newer versions of Python warn that other threads exist
        warnings.simplefilter("ignore", DeprecationWarning)
        if lock_held:
            with helpers.lock:
                child.start()
        else:
            child.start()
    child.join(60)
    if child.is_alive():
        child.kill()
        child.join()
    assert child.exitcode == 7
    visits, _ = visit(50, 3)
    assert (visits == 1).all()


def test_arrays_of_a_finished_call_are_released(helpers):
    class Payload:
        pass

    payload = Payload()
    released = weakref.ref(payload)
    run_chunks(lambda counter, payload: None, (payload,), 4)
    del payload
    deadline = time.monotonic() + 10
    while released() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert released() is None


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processors cannot be chosen on this system")
def test_processors_of_caller_and_helpers_are_left_as_they_were(helpers):
    allowed = os.sched_getaffinity(0)
    seen = []
    barrier = threading.Barrier(2)

    def kernel(counter):
        barrier.wait(30)
        seen.append(os.sched_getaffinity(0))

    for _ in range(20):
        run_chunks(kernel, (), 2)
    assert seen == [allowed] * 40
    assert os.sched_getaffinity(0) == allowed


@pytest.mark.skipif(threads._cpu_number is None, reason="number of the processor unknown on this system")
def test_helper_leaves_the_processor_of_the_caller(monkeypatch):
    moves = []
    monkeypatch.setattr(threads, "_cpu_number", lambda: 3)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3, 5})
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: moves.append(set(cpus)))
    threads._leave_cpu(2)
    assert moves == []
    threads._leave_cpu(3)
    assert moves == [{2, 5}, {2, 3, 5}]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    threads._leave_cpu(3)
    assert len(moves) == 2


def test_threads_of_numba_are_left_as_they_were():
    script = """
import numba
import numpy as np
from ase_nepcg.potential.neighbors import NeighborList
from ase_nepcg.potential.threads import run_chunks
numba.set_num_threads(2)
run_chunks(lambda counter: None, (), 3)
near = NeighborList()
near.update(np.eye(3), np.eye(3), np.zeros(3, bool), np.zeros(3, np.int32), np.full((1, 1), 3.0), np.array([0, 3]), 3)
assert near.longest == 2
print(numba.get_num_threads())
"""
    environment = os.environ | {"NUMBA_NUM_THREADS": "4"}
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (found.returncode, found.stdout.strip()) == (0, "2"), found.stderr


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        *((None, 6), ("", 6), ("2", 2), (" 3 ", 3), ("4,2", 4), ("100", 6)),
        *(("0", 6), ("-1", 6), ("many", 6), ("1.5", 6)),
    ],
)
def test_default_threads_are_the_allowed_cores_limited_by_the_variable(monkeypatch, variable, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    if variable is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert default_threads() == expected


def test_default_threads_where_affinity_is_unknown(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert default_threads() == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert default_threads() == 1
