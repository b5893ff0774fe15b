"""Reading ahead: in order, not further than asked for, errors where they belong."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from oesir_d2.engine.read_ahead import read_ahead


def test_results_come_in_order() -> None:
    def work(item: int) -> int:
        time.sleep(0.01 if item % 2 else 0)
        return item * item

    assert list(read_ahead(range(9), work, depth=3)) == [(item, item * item) for item in range(9)]
    assert list(read_ahead([], work, depth=3)) == []


def test_no_more_than_the_depth_is_taken_ahead() -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    results = read_ahead(items(), str, depth=3)
    assert next(results) == (0, "0")
    assert taken == [0, 1, 2, 3]
    results.close()


def test_an_error_comes_at_its_item() -> None:
    results = read_ahead([2, 1, 0, 5], lambda item: 2 // item, depth=3)
    assert [next(results), next(results)] == [(2, 1), (1, 2)]
    with pytest.raises(ZeroDivisionError):
        next(results)
