import pytest

from ase_nepcg.md.calendar import FOREVER, Attached, Caller


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
