import itertools

import pytest

from covidlib.speed import timing


def test_tasks_take_turns_in_changing_order_after_a_warm_up():
    log = []
    tasks = {name: lambda name=name: log.append(name) for name in "abc"}
    seconds = timing.interleave(tasks, repeats=8, warmup=2)
    assert log[:6] == list("aabbcc")
    rounds = [tuple(log[i:i + 3]) for i in range(6, len(log), 3)]
    assert len(rounds) == 8 and len(set(rounds)) > 1
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys("abc", 8)


def test_seconds_come_from_the_clock():
    ticks = itertools.accumulate(itertools.cycle([1.0, 2.0]), initial=0.0)
    seconds = timing.interleave({"a": lambda: None}, repeats=3, clock=lambda: next(ticks))
    assert seconds["a"].tolist() == [1.0, 1.0, 1.0]


def test_a_speedup_is_taken_within_rounds():
    slow, fast = [2.0, 20.0, 6.0], [1.0, 10.0, 2.0]
    assert timing.speedup(fast, slow) == (2.0, 2.0, 2.5)
    assert timing.quartiles([1, 2, 3, 4, 5]) == (3.0, 2.0, 4.0)


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"warmup": -1}])
def test_senseless_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=f"Received: {next(iter(wrong))}={next(iter(wrong.values()))}"):
        timing.interleave({"a": lambda: None}, **({"repeats": 1} | wrong))
