"""µAP and recall at a precision against counts by every threshold, and the order of ties."""

from __future__ import annotations

import doctest
from types import ModuleType

import numpy as np
import pytest

from oesir_d2.evaluation import micro_average_precision, pair_metrics, recall_at_precision, revisited, tie_order


@pytest.mark.parametrize("module", [pair_metrics, revisited, tie_order])
def test_doctests(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.failed == 0 and result.attempted > 0


def count_plainly(scores: list[float], truths: list[bool], num_positives: int) -> tuple[float, float]:
    """µAP over the ranking with ties against us, and the best recall of a threshold at 90 % precision."""
    ranking = sorted(zip(scores, truths, strict=True), key=lambda pair: (-pair[0], pair[1]))
    area, found = 0.0, 0
    for rank, (_, is_true) in enumerate(ranking, start=1):
        if is_true:
            found += 1
            area += found / rank / num_positives
    best = 0.0
    for threshold in set(scores):
        above = [is_true for score, is_true in zip(scores, truths, strict=True) if score >= threshold]
        if sum(above) >= 0.9 * len(above):
            best = max(best, sum(above) / num_positives)
    return area, best


def test_random_pairs_equal_the_reference(rng: np.random.Generator) -> None:
    for _ in range(1500):
        count = int(rng.integers(1, 50))
        scores = rng.integers(0, rng.integers(2, 60), size=count) / 8
        # Mostly true, for otherwise no threshold is precise enough.
        is_positive = rng.random(count) < rng.choice([0.3, 0.95])
        total = max(1, int(is_positive.sum()) + int(rng.integers(0, 3)))
        got = (
            micro_average_precision(scores, is_positive, total),
            recall_at_precision(scores, is_positive, total),
        )
        assert got == pytest.approx(count_plainly(scores.tolist(), is_positive.tolist(), total), abs=1e-9)


def test_without_ties_it_is_the_textbooks_average_precision(rng: np.random.Generator) -> None:
    from sklearn.metrics import average_precision_score

    scores, is_positive = rng.permutation(200) / 200, rng.random(200) < 0.3
    expected = average_precision_score(is_positive, scores)
    assert micro_average_precision(scores, is_positive, int(is_positive.sum())) == pytest.approx(expected, abs=1e-12)


def test_no_pairs_at_all() -> None:
    nothing = np.array([]), np.array([], dtype=bool)
    assert micro_average_precision(*nothing, num_positives=2) == 0
    assert recall_at_precision(*nothing, num_positives=2) == 0


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="NaN"):
        micro_average_precision(np.array([np.nan]), np.array([True]), 1)
    with pytest.raises(ValueError, match="num_positives is 1"):
        micro_average_precision(np.array([0.1, 0.2]), np.array([True, True]), 1)
    with pytest.raises(ValueError, match="precision is 0"):
        recall_at_precision(np.array([0.1]), np.array([True]), 1, precision=0)
