"""Timing in turns, on a clock that the test moves."""

from __future__ import annotations

import pytest

from oesir_d2.engine.timing import time_side_by_side


class Clock:
    """A clock that functions move on by what they are to take."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def make(self, name: str, durations: dict[str, list[float]]) -> object:
        def run(value: str) -> None:
            self.calls.append(f"{name}({value})")
            self.now += durations[value].pop(0)

        return run


def test_times_are_means_of_medians_in_milliseconds_without_the_warm_up() -> None:
    clock = Clock()
    quick = clock.make("quick", {"a": [9.0, 0.1, 0.3, 0.2], "b": [9.0, 0.4, 0.4, 5.0]})
    slow = clock.make("slow", {"a": [9.0, 1.0, 2.0, 3.0], "b": [9.0, 4.0, 4.0, 4.0]})
    times = time_side_by_side({"quick": quick, "slow": slow}, ["a", "b"], repetitions=3, clock=clock)

    assert times == {"quick": pytest.approx(1000 * (0.2 + 0.4) / 2), "slow": pytest.approx(1000 * (2.0 + 4.0) / 2)}


def test_functions_take_turns_and_begin_in_turn() -> None:
    clock = Clock()
    functions = {name: clock.make(name, {"x": [1.0] * 3}) for name in ("f", "g")}
    time_side_by_side(functions, ["x"], repetitions=2, warm_up=1, clock=clock)

    assert clock.calls == ["f(x)", "g(x)", "g(x)", "f(x)", "f(x)", "g(x)"]


def test_work_that_was_only_started_is_waited_for() -> None:
    """A device that works on its own: the call returns at once, and the work is done when it is waited for."""
    clock = Clock()
    started: list[float] = []

    def wait() -> None:
        clock.now += sum(started)
        started.clear()

    functions = {"f": lambda x: started.append(2.0)}
    times = time_side_by_side(functions, [0], repetitions=3, synchronize=wait, clock=clock)
    assert times == {"f": pytest.approx(2000)}


@pytest.mark.parametrize(("inputs", "repetitions"), [([], 3), ([1], 0)])
def test_nothing_to_time_is_refused(inputs: list[int], repetitions: int) -> None:
    with pytest.raises(ValueError, match=f"{repetitions} repetitions of {len(inputs)} inputs are nothing to time"):
        time_side_by_side({"f": print}, inputs, repetitions)
