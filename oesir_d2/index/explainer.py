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

# Images scored at once: mostly the first of them is the one.
_BATCH_IMAGES = 4
# If that many do not decide, all are scored.
_LARGEST_EFFORT = 12
# By so much an approximate engine may be wrong about the mean of an image's best pairs.
_ERROR_OF_MEAN = 0.1


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


def find_explainer(candidates: Candidates, ranking: Ranking, weights: np.ndarray, is_exact: bool) -> int | None:
    """Find what ``choose_explainer`` would choose without scoring them all, if that can be told.

    What an image explains is bounded from above by what was fetched of it. The images are scored in the order of these
    bounds, until one explains more than any other can.

    Args:
        candidates: what was fetched.
        ranking: of the candidates, for ``EXPLAINERS`` images, without a shift.
        weights: see ``choose_explainer``.
        is_exact: whether the choice must be certain; else the images that the engine finds best are chosen from.

    Returns:
        The image; None if another may be the right one.
    """
    likely = ranking.find_likely(is_exact)
    if likely is None:
        return None
    error = 2 * SLACK if is_exact else _ERROR_OF_MEAN
    weights = weights.astype(np.float32)
    explained = weights @ candidates.bounds[:, likely]
    order = np.argsort(-explained)
    for end in range(_BATCH_IMAGES, _LARGEST_EFFORT + 1, _BATCH_IMAGES):
        batch = order[end - _BATCH_IMAGES : end]
        candidates.score(likely[batch])
        explained[batch] = weights @ candidates.bounds[:, likely[batch]]
        scored = order[:end]
        chosen = int(scored[explained[scored].argmax()])
        most = float(explained[chosen])
        others = explained[scored[scored != chosen]].max(initial=-np.inf)
        if most > max(explained[order[end:]].max(initial=-np.inf) + error, others + 2 * SLACK):
            place = int(likely[chosen])
            return int(candidates.images[place]) if ranking.is_surely_best(place) else None
    return None
