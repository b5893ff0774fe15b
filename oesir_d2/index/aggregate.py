"""How the similarities of region pairs make the similarity of two images.

Shape shorthand: I images, Q regions of the query.

An aggregator is called with the best-pair scores (I, Q): entry (i, q) is the highest inner product of query region q
with any region of image i. It returns the image scores (I,), the higher the more similar. It must be monotone in every
entry (a better pair never lowers an image's score): the exact search bounds images that it has not looked at by the
aggregate of bounds on their entries.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Aggregator = Callable[[np.ndarray], np.ndarray]

AGGREGATORS: dict[str, Aggregator] = {}
"""Every aggregator by the name that ``RETRIEVAL.AGGREGATE`` and ``--aggregate`` take."""


def register_aggregator(name: str) -> Callable[[Aggregator], Aggregator]:
    """Enter the decorated function into ``AGGREGATORS`` under ``name``.

    Raises:
        ValueError: if the name is taken.
    """

    def register(aggregator: Aggregator) -> Aggregator:
        if name in AGGREGATORS:
            raise ValueError(f"an aggregator named {name!r} is registered already")
        AGGREGATORS[name] = aggregator
        return aggregator

    return register


def get_aggregator(name: str) -> Aggregator:
    """The aggregator of this name.

    Raises:
        ValueError: if there is none, with the names that there are.
    """
    if name not in AGGREGATORS:
        raise ValueError(f"unknown aggregate {name!r}, expected one of {', '.join(sorted(AGGREGATORS))}")
    return AGGREGATORS[name]


@register_aggregator("max")
def best_pair(scores: np.ndarray) -> np.ndarray:
    """The best pair of regions decides: one shared object is enough.

    Args:
        scores: (I, Q) best-pair scores.

    Returns:
        (I,) image scores, in [-1, 1] for L2-normalised embeddings.
    """
    image_scores: np.ndarray = scores.max(axis=1)
    return image_scores


@register_aggregator("sum_max")
def sum_of_best_pairs(scores: np.ndarray) -> np.ndarray:
    """Every query region adds its best match: the more of the query is found in an image, the better.

    Args:
        scores: (I, Q) best-pair scores.

    Returns:
        (I,) image scores, in [-Q, Q] for L2-normalised embeddings.
    """
    image_scores: np.ndarray = scores.sum(axis=1)
    return image_scores


MEAN_TOP_M = 3
"""The m of ``mean_top_m``."""


@register_aggregator("mean_top_m")
def mean_of_best_pairs(scores: np.ndarray) -> np.ndarray:
    """The mean of the m best query regions' best matches: one lucky pair is not enough, most of the query is not asked.

    Args:
        scores: (I, Q) best-pair scores; of a query with less than m regions all count.

    Returns:
        (I,) image scores, in [-1, 1] for L2-normalised embeddings.
    """
    m = min(MEAN_TOP_M, scores.shape[1])
    image_scores: np.ndarray = np.partition(scores, -m, axis=1)[:, -m:].mean(axis=1)
    return image_scores
