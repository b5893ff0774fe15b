"""The revisited Oxford and Paris protocol (Radenović et al., "Revisiting Oxford and Paris", CVPR 2018).

Every query labels database images as easy, hard or junk; all others are negative. The three set-ups take them so:

    easy:   positive are the easy ones, left out the hard ones and junk;
    medium: positive are the easy and the hard ones, left out is junk;
    hard:   positive are the hard ones, left out the easy ones and junk.

What is left out is taken from the ranking before ranks are counted. Queries without a positive are skipped. mP@k is
precision among the first min(k, rank of the last positive) results, so that a query with few positives can reach 100.

Ties are ordered against us: of images of one score, those that are not positive come first. So equal scores for
all give the worst figure, not one that the order of files decides.

Shape shorthand: Q queries, N images of the database, L_q images in the ranking of query q.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from oesir_d2.evaluation.metrics import compute_average_precision

SETUPS = ("easy", "medium", "hard")
"""The set-ups of the protocol; the paper's Table 1 has the medium one."""

PRECISION_DEPTHS = (1, 5, 10)
"""The k of mP@k."""

Indices = npt.NDArray[np.integer]


@dataclass(frozen=True)
class RevisitedQuery:
    """The ground truth of one query, as indices into the database; every image has one label at most.

    Attributes:
        easy, hard, junk: (n,) int64, each may be empty.

    Raises:
        ValueError: an index is negative, or given twice.
    """

    easy: Indices
    hard: Indices
    junk: Indices

    def __post_init__(self) -> None:
        for name in ("easy", "hard", "junk"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.int64).reshape(-1))
        labelled = np.concatenate([self.easy, self.hard, self.junk])
        if len(labelled) and labelled.min() < 0:
            raise ValueError(f"the ground truth has the index {labelled.min()}, expected at least 0")
        indices, counts = np.unique(labelled, return_counts=True)
        if np.any(counts > 1):
            raise ValueError(f"image {indices[counts > 1][0]} has two labels of one query, expected one at most")

    def positives(self, setup: str) -> Indices:
        """The images that a set-up wants found."""
        return {"easy": self.easy, "medium": np.concatenate([self.easy, self.hard]), "hard": self.hard}[setup]

    def left_out(self, setup: str) -> Indices:
        """The images that a set-up takes from the ranking."""
        more = {"easy": self.hard, "medium": self.hard[:0], "hard": self.easy}[setup]
        return np.concatenate([self.junk, more])


@dataclass(frozen=True)
class RevisitedEvaluation:
    """The outcome.

    Attributes:
        metrics: ``{"easy": {"mAP": …, "mP@1": …, …}, "medium": …, "hard": …}``, the form that detectron2 prints;
            percent. NaN if no query has a positive.
        average_precisions: by set-up (Q,) float64, percent; NaN for a query without a positive.
    """

    metrics: dict[str, dict[str, float]]
    average_precisions: dict[str, npt.NDArray[np.float64]]


def collect_revisited_queries(
    queries: Sequence[Mapping[str, Any]], database: Sequence[Mapping[str, Any]]
) -> list[RevisitedQuery]:
    """The ground truth of dataset dicts (``oesir_d2.data.datasets.retrieval``), as indices into ``database``.

    Raises:
        ValueError: a query names an image that the database does not have.
    """
    index_of = {item["image_id"]: index for index, item in enumerate(database)}

    def find(query: Mapping[str, Any], label: str) -> Indices:
        missing = [image_id for image_id in query["ground_truth"][label] if image_id not in index_of]
        if missing:
            raise ValueError(f"the database lacks {missing[0]!r}, which is {label} for query {query['image_id']!r}")
        return np.array([index_of[image_id] for image_id in query["ground_truth"][label]], dtype=np.int64)

    return [RevisitedQuery(find(query, "easy"), find(query, "hard"), find(query, "junk")) for query in queries]


def evaluate_revisited(
    queries: Sequence[RevisitedQuery],
    rankings: Sequence[Indices],
    scores: Sequence[npt.NDArray[np.floating]] | None = None,
    depths: Sequence[int] = PRECISION_DEPTHS,
) -> RevisitedEvaluation:
    """Score the rankings of all queries.

    Rankings may be cut: a positive that lies deeper is never found, adds nothing to AP, and leaves k uncut in mP@k. So
    cutting can only lower mAP, and mP@k needs rankings of k images and as many as are left out.

    Args:
        queries: Q ground truths.
        rankings: Q arrays (L_q,) of indices into the database, best first; each image once.
        scores: Q arrays (L_q,) of the scores in ``rankings``, the higher the better; ties are then ordered against us.
            Rankings may be in any order where scores are given. Default: the order of ``rankings`` is final.
        depths: the k of mP@k, each at least 1.

    Raises:
        ValueError: lengths that do not fit, an image twice in a ranking, a score that is NaN, or a depth below 1.

    >>> query = RevisitedQuery(easy=[3], hard=[1, 4], junk=[0])
    >>> evaluate_revisited([query], [np.array([0, 3, 2, 1, 5, 6, 4])]).metrics["medium"]["mAP"]  # ranks 0, 2 and 5
    67.77777777777777
    """
    if len(rankings) != len(queries) or (scores is not None and len(scores) != len(queries)):
        counts = f"{len(rankings)} rankings" + ("" if scores is None else f" and {len(scores)} arrays of scores")
        raise ValueError(f"{counts} for {len(queries)} queries, expected one each")
    figures = [
        score_ranking(query, rankings[q], None if scores is None else scores[q], depths)
        for q, query in enumerate(queries)
    ]
    return average_figures(figures, depths)


def score_ranking(
    query: RevisitedQuery,
    ranking: Indices,
    scores: npt.NDArray[np.floating] | None = None,
    depths: Sequence[int] = PRECISION_DEPTHS,
) -> npt.NDArray[np.float64]:
    """Score the ranking of one query, after which the ranking is not needed any more.

    Args:
        query: its ground truth.
        ranking, scores, depths: of this query, see :func:`evaluate_revisited`.

    Returns:
        (3, 1 + number of depths) percent: by set-up AP and the precisions; NaN where the set-up has no positive.

    Raises:
        ValueError: as :func:`evaluate_revisited`.
    """
    _check_ranking(ranking, scores, depths)
    figures = np.full((len(SETUPS), 1 + len(depths)), np.nan)
    for row, setup in zip(figures, SETUPS, strict=True):
        num_positives = len(query.positives(setup))
        if num_positives:
            ranks = find_positive_ranks(query, ranking, scores, setup)
            row[0] = compute_average_precision(ranks, num_positives)
            row[1:] = [_compute_precision(ranks, num_positives, depth) for depth in depths]
    return 100 * figures


def average_figures(
    figures: Sequence[npt.NDArray[np.float64]], depths: Sequence[int] = PRECISION_DEPTHS
) -> RevisitedEvaluation:
    """The outcome of all queries from what :func:`score_ranking` gave of each."""
    names = ["mAP", *(f"mP@{depth}" for depth in depths)]
    stacked = np.array(figures, dtype=np.float64).reshape(len(figures), len(SETUPS), len(names))
    metrics, average_precisions = {}, {}
    for number, setup in enumerate(SETUPS):
        of_setup = stacked[:, number]
        eligible = of_setup[~np.isnan(of_setup[:, 0])]
        means = eligible.mean(axis=0) if len(eligible) else np.full(len(names), np.nan)
        metrics[setup] = dict(zip(names, map(float, means), strict=True))
        average_precisions[setup] = of_setup[:, 0]
    return RevisitedEvaluation(metrics, average_precisions)


def find_positive_ranks(
    query: RevisitedQuery, ranking: Indices, scores: npt.NDArray[np.floating] | None, setup: str
) -> Indices:
    """Zero-based ranks of the positives in a ranking without what the set-up leaves out, ascending.

    Args:
        query: its ground truth.
        ranking, scores: of this query, see :func:`evaluate_revisited`.
        setup: one of ``SETUPS``.

    >>> query = RevisitedQuery(easy=[0], hard=[], junk=[1])
    >>> find_positive_ranks(query, np.array([0, 1, 2]), np.array([0.5, 0.5, 0.5]), "easy")
    array([1])
    """
    ranking = np.asarray(ranking)
    kept = ~np.isin(ranking, query.left_out(setup))
    is_positive = np.isin(ranking[kept], query.positives(setup))
    if scores is not None:
        is_positive = is_positive[np.lexsort((is_positive, -np.asarray(scores, dtype=np.float64)[kept]))]
    return np.flatnonzero(is_positive)


def _compute_precision(ranks: Indices, num_positives: int, depth: int) -> float:
    """Precision among the first results, no deeper than the last positive."""
    if len(ranks) == num_positives:
        depth = min(depth, int(ranks[-1]) + 1)
    return float(np.count_nonzero(ranks < depth) / depth)


def _check_ranking(ranking: Indices, scores: npt.NDArray[np.floating] | None, depths: Sequence[int]) -> None:
    if any(depth < 1 for depth in depths):
        raise ValueError(f"the depths of mP@k are {list(depths)}, expected at least 1 each")
    if len(np.unique(ranking)) != len(ranking):
        raise ValueError("the ranking holds an image twice, expected each once")
    if scores is not None and len(scores) != len(ranking):
        raise ValueError(f"the ranking has {len(ranking)} images but {len(scores)} scores")
    if scores is not None and np.isnan(scores).any():
        raise ValueError("the ranking has a score that is NaN")
