"""The metrics against values computed by hand, and against the protocols' definitions taken literally."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest

from oesir_d2.evaluation import metrics
from oesir_d2.evaluation.metrics import compute_average_precision, mean_average_precision, recall_at_k


def walk_down_the_ranking(is_positive: np.ndarray, num_positives: int) -> float:
    """The Oxford protocol as it was first written: one result after the other, adding up trapezia."""
    average_precision, hits, previous_recall, previous_precision = 0.0, 0, 0.0, 1.0
    for position, positive in enumerate(is_positive, start=1):
        hits += int(positive)
        recall, precision = hits / num_positives, hits / position
        average_precision += (recall - previous_recall) * (previous_precision + precision) / 2
        previous_recall, previous_precision = recall, precision
    return average_precision


def test_the_examples_of_the_docstrings_hold() -> None:
    assert doctest.testmod(metrics).failed == 0
    assert doctest.testmod(metrics).attempted > 0


@pytest.mark.parametrize(
    ("ranks", "num_positives", "expected"),
    [
        ([0, 2, 5], 3, 0.677778),  # (1 + 1) / 6 + (1/2 + 2/3) / 6 + (2/5 + 3/6) / 6
        ([5, 0, 2], 3, 0.677778),  # the order does not matter
        ([0, 1, 2], 3, 1.0),
        ([0], 4, 0.25),  # three positives were never found
        ([1], 1, 0.25),  # (0/1 + 1/2) / 2, where the textbook has 1/2
        ([], 1, 0.0),
    ],
)
def test_average_precision_by_hand(ranks: list[int], num_positives: int, expected: float) -> None:
    assert compute_average_precision(ranks, num_positives) == pytest.approx(expected, abs=1e-6)


def test_average_precision_equals_a_walk_down_the_ranking(rng: np.random.Generator) -> None:
    for _ in range(200):
        depth = int(rng.integers(1, 60))
        is_positive = rng.random(depth) < rng.random()
        num_positives = int(is_positive.sum() + rng.integers(0, 5))
        if num_positives == 0:
            continue
        expected = walk_down_the_ranking(is_positive, num_positives)
        assert compute_average_precision(np.flatnonzero(is_positive), num_positives) == pytest.approx(expected)


def test_average_precision_is_never_above_the_textbooks(rng: np.random.Generator) -> None:
    for _ in range(50):
        ranks = np.sort(rng.choice(100, size=6, replace=False))
        textbook = np.mean(np.arange(1, 7) / (ranks + 1))
        assert compute_average_precision(ranks, 6) <= textbook + 1e-12


def test_recall_counts_the_share_of_positives_above_k(rng: np.random.Generator) -> None:
    for _ in range(50):
        ranks = rng.choice(30, size=5, replace=False)
        k = int(rng.integers(1, 35))
        assert recall_at_k(ranks, 8, k) == sum(rank in range(k) for rank in ranks) / 8


def test_mean_average_precision_skips_queries_without_positives() -> None:
    assert mean_average_precision([[0], [], [1]], [1, 0, 1]) == pytest.approx((1 + 0.25) / 2)
    assert math.isnan(mean_average_precision([[]], [0]))


@pytest.mark.parametrize(
    ("ranks", "num_positives", "named"),
    [
        ([0], 0, "num_positives is 0"),
        ([0, 1], 1, "2 ranks for 1"),
        ([-1], 1, "-1"),
        ([3, 3], 2, "rank 3"),
    ],
)
def test_impossible_ranks_are_refused_by_value(ranks: list[int], num_positives: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        compute_average_precision(ranks, num_positives)
    with pytest.raises(ValueError, match=named):
        recall_at_k(ranks, num_positives, 5)


def test_other_mistakes_are_refused_by_value() -> None:
    with pytest.raises(ValueError, match="k is 0"):
        recall_at_k([0], 1, 0)
    with pytest.raises(ValueError, match="2 queries but 1"):
        mean_average_precision([[0], [0]], [1])
    with pytest.raises(ValueError, match="1 ranks for 0|num_positives is 0"):
        mean_average_precision([[0]], [0])
