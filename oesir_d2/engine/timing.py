"""Comparing the speed of functions on a machine that does other things too: in turns, and by medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def time_side_by_side(
    functions: Mapping[str, Callable[[T], Any]],
    inputs: Sequence[T],
    repetitions: int,
    warm_up: int = 1,
    synchronize: Callable[[], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Milliseconds that each function takes for an input, all measured in turns in one run.

    What slows the machine down for a while slows all of them alike, so that their ratios stay true where their times do
    not. Each round runs every function once on the same input, and begins with another function than the round before.

    Args:
        functions: by name; each is called with one input.
        inputs: what they are called with, at least one.
        repetitions: timed rounds an input, >= 1.
        warm_up: rounds an input before them that are not timed.
        synchronize: waits until all work that was started is done, for a device that works on its own.
        clock: gives seconds.

    Returns:
        By name, the mean over the inputs of the median over the rounds, in milliseconds.

    Raises:
        ValueError: nothing to time.
    """
    if not inputs or repetitions < 1:
        raise ValueError(f"{repetitions} repetitions of {len(inputs)} inputs are nothing to time")
    wait = synchronize or _do_nothing
    names = list(functions)
    means = dict.fromkeys(names, 0.0)
    for value in inputs:
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(warm_up + repetitions):
            first = turn % len(names) if names else 0
            for name in names[first:] + names[:first]:
                wait()
                start = clock()
                functions[name](value)
                wait()
                if turn >= warm_up:
                    seconds[name].append(clock() - start)
        for name in names:
            means[name] += 1000 * statistics.median(seconds[name]) / len(inputs)
    return means


def _do_nothing() -> None:
    pass
