"""Score normalisation: what a query, or a photo, has in common with photos that nobody looks for, is subtracted.

Shape shorthand: Q queries, M database vectors, B background vectors, D dimensions.
"""

from __future__ import annotations

import numpy as np


def compute_background_scores(
    vectors: np.ndarray, background: np.ndarray, neighbours: int, block: int = 1024
) -> np.ndarray:
    """The mean similarity of each vector to its nearest vectors of a background set.

    Args:
        vectors: (Q, D), L2-normalised.
        background: (B, D), L2-normalised, of photos that are in no database.
        neighbours: how many of them count, >= 1; all B if there are fewer.
        block: vectors that are compared at a time.

    Returns:
        (Q,) of the vectors' dtype.

    Raises:
        ValueError: if there is no background, or ``neighbours`` is below 1.
    """
    if neighbours < 1 or len(background) == 0:
        raise ValueError(f"{neighbours} neighbours of {len(background)} background vectors, expected at least 1 each")
    count = min(neighbours, len(background))
    scores = np.empty(len(vectors), dtype=vectors.dtype)
    for start in range(0, len(vectors), block):
        similarities = vectors[start : start + block] @ background.T
        # The largest come last; which of them is which does not matter for their mean.
        largest = np.partition(similarities, len(background) - count, axis=1)[:, len(background) - count :]
        scores[start : start + block] = largest.mean(axis=1)
    return scores


def normalize_scores(
    similarities: np.ndarray,
    query_background: np.ndarray,
    database_background: np.ndarray | None = None,
    weight: float = 1.0,
) -> np.ndarray:
    """Subtract background scores from similarities.

    With the queries' alone this is the normalisation of SSCD (Pizzi et al., CVPR 2022) and of the image
    similarity challenge: it makes the scores of different queries comparable, for µAP and thresholds, and leaves the
    ranking of each query as it is. With the database's, too, photos that are similar to everything lose ranks.

    Args:
        similarities: (Q, M).
        query_background: (Q,), of :func:`compute_background_scores`.
        database_background: (M,), the same of the database's vectors; None leaves that side as it is.
        weight: what the background scores are multiplied by.

    Returns:
        (Q, M).

    Raises:
        ValueError: if the lengths do not fit.
    """
    num_queries, num_images = similarities.shape
    if query_background.shape != (num_queries,):
        raise ValueError(f"{query_background.shape} background scores for {num_queries} queries, expected one each")
    normalized = similarities - weight * query_background[:, None]
    if database_background is None:
        return normalized
    if database_background.shape != (num_images,):
        raise ValueError(f"{database_background.shape} background scores for {num_images} images, expected one each")
    return normalized - weight * database_background[None, :]
