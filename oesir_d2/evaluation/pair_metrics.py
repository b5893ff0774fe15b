"""Metrics of copy detection: one list of scored pairs (query, database image) over all queries, cut by one threshold.

Retrieval metrics rank each query's results apart; a detector of copies must also say that a query has none. So these
take the pairs of all queries together, as the image similarity challenge does (Douze et al., "The 2021 Image Similarity
Dataset and Challenge", 2021).

Ties are ordered against us: of pairs of one score, those that are no copies come first.

Shape shorthand: P pairs, Q queries.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def micro_average_precision(
    scores: npt.NDArray[np.floating], is_positive: npt.NDArray[np.bool_], num_positives: int
) -> float:
    """Average precision of the pairs of all queries in one ranking (µAP).

    The precision at the rank of each true pair, summed and divided by the number of true pairs, found or not. This is
    the challenge's rule, not the trapezoidal one of ``metrics``.

    Args:
        scores: (P,) the higher the more similar, comparable over queries.
        is_positive: (P,) whether the pair is true.
        num_positives: true pairs that there are, found or not; at least 1.

    Returns:
        In [0, 1].

    Raises:
        ValueError: arrays of different lengths, a score that is NaN, or fewer positives than were found.

    >>> micro_average_precision(np.array([0.9, 0.5, 0.7]), np.array([True, True, False]), num_positives=2)
    0.8333333333333333
    >>> micro_average_precision(np.array([0.5, 0.5]), np.array([True, False]), num_positives=1)
    0.5
    """
    precision, is_hit = _precision_by_rank(scores, is_positive, num_positives)
    return float(precision[is_hit].sum() / num_positives)


def recall_at_precision(
    scores: npt.NDArray[np.floating],
    is_positive: npt.NDArray[np.bool_],
    num_positives: int,
    precision: float = 0.9,
) -> float:
    """The highest recall that a threshold reaches at which at least this share of the pairs above it is true.

    Args:
        scores, is_positive, num_positives: as in :func:`micro_average_precision`.
        precision: in (0, 1].

    Returns:
        In [0, 1]; 0 if no threshold is so precise.

    Raises:
        ValueError: as :func:`micro_average_precision`, or a precision out of its range.

    >>> recall_at_precision(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, True, False, True]), num_positives=4)
    0.5
    """
    if not 0 < precision <= 1:
        raise ValueError(f"the precision is {precision}, expected more than 0 and at most 1")
    by_rank, is_hit = _precision_by_rank(scores, is_positive, num_positives)
    # Against us, a tie ends with its true pairs: its end has the tie's best precision at its highest recall.
    good = np.flatnonzero(by_rank >= precision)
    return float(np.count_nonzero(is_hit[: good[-1] + 1]) / num_positives) if len(good) else 0.0


def _precision_by_rank(
    scores: npt.NDArray[np.floating], is_positive: npt.NDArray[np.bool_], num_positives: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """(P,) the precision among the first 1, 2, … pairs, and (P,) whether each is true, in the order of the ranking."""
    scores, is_positive = np.asarray(scores, dtype=np.float64), np.asarray(is_positive, dtype=bool)
    if scores.shape != is_positive.shape or scores.ndim != 1:
        raise ValueError(f"scores have shape {scores.shape} and labels {is_positive.shape}, expected (P,) each")
    if np.isnan(scores).any():
        raise ValueError("a pair has the score NaN")
    if num_positives < max(1, int(np.count_nonzero(is_positive))):
        raise ValueError(f"num_positives is {num_positives}, expected at least 1 and as many as were found")
    is_hit = is_positive[np.lexsort((is_positive, -scores))]
    return np.cumsum(is_hit) / np.arange(1, len(is_hit) + 1), is_hit
