"""Metrics of ranked retrieval, as pure functions of the ranks at which the positives were found.

Ranks are zero-based: the first result has rank 0. A positive that a ranking does not hold, because it was cut at
some depth, has no rank and counts as never found. Values are shares in [0, 1]; reports turn them into percent.

Shape shorthand: P positives found in one ranking, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ranks = Sequence[int] | npt.NDArray[np.integer]


def compute_average_precision(ranks: Ranks, num_positives: int) -> float:
    """Average precision of one ranking, by the trapezoidal rule.

    The textbook's AP adds up the precision at the rank of each positive. As the Oxford and Paris protocols do
    (Philbin et al., CVPR 2007; Radenović et al., CVPR 2018), this one takes the area under the straight lines that
    join the points of the precision-recall curve: each positive adds the mean of the precision just before it and the
    precision at it, and the precision before the very first result is 1. It is never above the textbook's value.

    Args:
        ranks: (P,) zero-based ranks of the positives that the ranking holds, in any order, without repetition.
        num_positives: how many positives the query has, found or not; at least P and at least 1.

    Returns:
        The average precision, in [0, 1]. A positive without a rank adds nothing.

    Raises:
        ValueError: if a rank is negative or repeated, or if ``num_positives`` is below 1 or below P.

    Examples:
        >>> round(compute_average_precision([0, 2, 5], num_positives=3), 6)
        0.677778
        >>> compute_average_precision([0], num_positives=2)
        0.5
        >>> compute_average_precision([], num_positives=2)
        0.0
    """
    sorted_ranks = _check_ranks(ranks, num_positives).astype(np.float64)
    found_before = np.arange(len(sorted_ranks))
    # No result comes before rank 0, so the precision before it is 1 by definition; the maximum avoids 0 / 0.
    precision_before = np.where(sorted_ranks == 0, 1.0, found_before / np.maximum(sorted_ranks, 1.0))
    precision_at = (found_before + 1) / (sorted_ranks + 1)
    return float(np.sum(precision_before + precision_at) / (2 * num_positives))


def recall_at_k(ranks: Ranks, num_positives: int, k: int) -> float:
    """Share of a query's positives among its first ``k`` results.

    This is the textbook's recall, not the "hit rate" that some retrieval papers call recall@k (1 as soon as any
    positive is among the first k). The two agree for queries with one positive.

    Args:
        ranks: (P,) zero-based ranks of the positives that the ranking holds, in any order, without repetition.
        num_positives: how many positives the query has, found or not; at least P and at least 1. It is not
            cut to k: with more positives than k the recall stays below 1.
        k: how many results count, at least 1.

    Returns:
        The recall, in [0, 1].

    Raises:
        ValueError: as :func:`compute_average_precision`, and if ``k`` is below 1.

    Examples:
        >>> recall_at_k([0, 7], num_positives=2, k=5)
        0.5
        >>> recall_at_k([0, 7], num_positives=2, k=8)
        1.0
    """
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    return float(np.count_nonzero(_check_ranks(ranks, num_positives) < k) / num_positives)


def mean_average_precision(ranks_per_query: Sequence[Ranks], num_positives: Sequence[int]) -> float:
    """Mean of the queries' average precisions; queries without positives are skipped, as in the revisited protocol.

    Args:
        ranks_per_query: Q arrays of the zero-based ranks of the positives found.
        num_positives: Q counts of positives, found or not.

    Returns:
        The mean average precision, in [0, 1]; NaN if no query has a positive.

    Raises:
        ValueError: if the two sequences differ in length, or as :func:`compute_average_precision`.

    Examples:
        >>> mean_average_precision([[0], [1], []], num_positives=[1, 1, 0])
        0.625
    """
    if len(ranks_per_query) != len(num_positives):
        raise ValueError(f"ranks of {len(ranks_per_query)} queries but {len(num_positives)} counts of positives")
    average_precisions = [
        compute_average_precision(ranks, positives)
        for ranks, positives in zip(ranks_per_query, num_positives, strict=True)
        if positives != 0 or len(ranks) != 0
    ]
    return float(np.mean(average_precisions)) if average_precisions else float("nan")


def _check_ranks(ranks: Ranks, num_positives: int) -> npt.NDArray[np.integer]:
    """The ranks in ascending order, once they are known to be possible."""
    sorted_ranks = np.sort(np.asarray(ranks, dtype=np.int64))
    if num_positives < 1:
        raise ValueError(f"num_positives is {num_positives}, expected at least 1")
    if len(sorted_ranks) > num_positives:
        raise ValueError(f"{len(sorted_ranks)} ranks for {num_positives} positives, expected at most as many")
    if len(sorted_ranks) and sorted_ranks[0] < 0:
        raise ValueError(f"rank {sorted_ranks[0]} is negative, expected zero-based ranks")
    if np.any(sorted_ranks[1:] == sorted_ranks[:-1]):
        repeated = sorted_ranks[1:][sorted_ranks[1:] == sorted_ranks[:-1]][0]
        raise ValueError(f"rank {repeated} is given twice, expected each positive to have its own rank")
    return sorted_ranks
