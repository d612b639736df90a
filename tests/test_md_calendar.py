import signal
import threading

import pytest

from ase_nepcg.md.calendar import FOREVER, Attached, Caller, uninterrupted


@pytest.mark.parametrize("interval", [1, 3, 10])
def test_next_is_the_first_due_step(interval):
    caller = Caller(print, interval, (), {})
    for step in range(25):
        expected = next(k for k in range(step + 1, step + 100) if k % interval == 0)
        assert caller.next(step) == expected
        assert caller.due(caller.next(step))
    assert [step for step in range(25) if caller.due(step)] == list(range(0, 25, interval))


@pytest.mark.parametrize("interval", [0, -4])
def test_once(interval):
    # as of ASE: not above zero means once, after step -interval
    caller = Caller(print, interval, (), {})
    assert [step for step in range(10) if caller.due(step)] == [-interval]
    assert [caller.next(step) for step in range(6)] == [-interval if step < -interval else FOREVER for step in range(6)]


def test_call_passes_arguments():
    calls = []
    Caller(lambda *args, **keywords: calls.append((args, keywords)), 1, (1, 2), {"a": 3})()
    assert calls == [((1, 2), {"a": 3})]


def test_attached_gives_the_numbers_to_its_observer():
    class Both:
        def results(self, ints, floats):
            return ints, floats

    assert Attached(Both(), 1, 0, "ints", "floats").results() == ("ints", "floats")


def test_is_due_once_per_step():
    caller = Caller(print, 2, (), {})
    assert caller.due(0)
    caller.called = 4
    assert [step for step in range(7) if caller.due(step)] == [0, 2, 6]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_wait(number):
    def stop(*arguments):
        raise KeyboardInterrupt

    usual = signal.signal(signal.SIGTERM, stop)
    done = []

    def work(last):
        with uninterrupted(), uninterrupted():
            signal.raise_signal(number)
            signal.raise_signal(number)
            done.append("everything")
            last()

    def fail():
        raise ValueError("something else goes wrong")

    try:
        with pytest.raises(KeyboardInterrupt):
            work(list)
        assert done == ["everything"]
        assert signal.getsignal(signal.SIGTERM) is stop
        with pytest.raises(KeyboardInterrupt):
            work(fail)
        # no handler of ours: nothing is touched
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with uninterrupted():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, usual)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signals_of_other_threads():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
