"""Which image explains a query away: of those that are best by the aggregate, the one that explains most of the query.

How much an image explains is the mean of its best-pair scores, a query region counting by its area: a detector may put
most of its regions on a small part of the photo, and that part may be the pasted one.

Shape shorthand: Q regions of the query, C candidate images, n images.
"""

from __future__ import annotations

import numpy as np

from .candidates import SLACK, Candidates
from .exact_scores import Ranked, round_scores
from .ranking import Ranking

EXPLAINERS = 32
"""The image that explains a query away is chosen among so many that are best by the aggregate."""

# Images scored at once where all bounds hold: mostly the first of them is the one.
_BATCH_IMAGES = 4
# If that many do not decide, all are scored.
_LARGEST_EFFORT = 12
# By so much the mean of an image's best pairs may be higher than an engine's codes let expect.
_ERROR_OF_MEAN = 0.15


def weigh_regions(boxes: np.ndarray) -> np.ndarray:
    """How much each region of a query counts: the shares of its area, (Q,) float64, of boxes (Q, 4) XYXY.

    If none has an area, as a box that is thinner than its numbers can tell, all count the same.
    """
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, dtype=np.float64)
    if not areas.any():
        areas = np.ones_like(areas)
    return areas / areas.sum()


def choose_explainer(similar: Ranked, weights: np.ndarray) -> Ranked:
    """Choose among images that are all scored.

    Args:
        similar: the images that are best by the aggregate; none only in an index without objects.
        weights: (Q,) shares of the query's area, adding up to 1.

    Returns:
        The chosen one; of several that explain the same, the first.
    """
    if len(similar.images) == 0:
        return similar
    chosen = int(round_scores(round_scores(similar.best_pairs) @ weights).argmax())
    one = slice(chosen, chosen + 1)
    return Ranked(similar.images[one], similar.scores[one], similar.best_pairs[one])


def find_contenders(candidates: Candidates, ranking: Ranking, weights: np.ndarray, is_exact: bool) -> np.ndarray | None:
    """Find the few images that ``choose_explainer`` has to choose from, if that can be told with little effort.

    Args:
        candidates: what was fetched.
        ranking: of the candidates, for ``EXPLAINERS`` images, without a shift.
        weights: see ``choose_explainer``.
        is_exact: whether the right one must certainly be among them.

    Returns:
        (n,) int64 images, all among the ``EXPLAINERS`` best; None if it cannot be told.
    """
    likely = ranking.find_likely(is_exact)
    if likely is None:
        return None
    weights = weights.astype(np.float32)
    if not is_exact:
        # An engine with exact scores misses objects, which is in no bound; one with codes is inexact mostly by these.
        if not candidates.is_settled.all():
            explained = weights @ candidates.bounds[:, likely]
            likely = likely[explained >= explained.max() - _ERROR_OF_MEAN]
        candidates.score(likely)
        likely = likely[ranking.are_best(likely)]
        explained = weights @ candidates.bounds[:, likely]
        return candidates.images[likely[explained >= explained.max() - 2 * SLACK]]
    # By the bounds, until some explain more than any other can.
    explained = weights @ candidates.bounds[:, likely]
    order = np.argsort(-explained)
    for end in range(_BATCH_IMAGES, _LARGEST_EFFORT + 1, _BATCH_IMAGES):
        batch, others = order[end - _BATCH_IMAGES : end], order[end:]
        candidates.score(likely[batch])
        explained[batch] = weights @ candidates.bounds[:, likely[batch]]
        least = explained[order[:end]].max() - 2 * SLACK
        if least > explained[others].max(initial=-np.inf):
            places = likely[explained >= least]
            are_best = all(ranking.is_surely_best(place) for place in places.tolist())
            return candidates.images[places] if are_best else None
    return None
