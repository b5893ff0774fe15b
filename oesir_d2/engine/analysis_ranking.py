"""How an analysis ranks a database: by cosine similarity, with query expansion and score normalisation as options.

Shape shorthand: Q queries, M photos of the database, B background photos, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from oesir_d2.index import compute_background_scores, expand_queries, normalize_scores

NORMALIZATIONS = ("none", "query", "both")
QUERIES_A_BLOCK = 256


@dataclass(frozen=True)
class RankingOptions:
    """How a database is ranked.

    Attributes:
        expansion: neighbours that query expansion adds; 0: none.
        alpha: of query expansion; 0: the plain average.
        normalization: of scores against the photos that the whitening was fitted on, one of ``NORMALIZATIONS``.
        background_neighbours: how many of these count.
    """

    expansion: int = 0
    alpha: float = 0.0
    normalization: str = "none"
    background_neighbours: int = 10

    def __post_init__(self) -> None:
        if self.normalization not in NORMALIZATIONS:
            raise ValueError(f"score normalisation is {self.normalization!r}; allowed: {', '.join(NORMALIZATIONS)}")


def rank_database(
    queries: np.ndarray, database: np.ndarray, background: np.ndarray, options: RankingOptions
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rank the photos of a database for each query, most similar first; equal ones in the database's order.

    Args:
        queries: (Q, D), L2-normalised.
        database: (M, D), L2-normalised.
        background: (B, D), L2-normalised; used by score normalisation alone.
        options: how.

    Yields:
        For each query (M,) int positions in the database and (M,) their scores. No more than a block of queries is
        compared at a time.
    """
    if options.expansion:
        queries = expand_queries(queries, database, options.expansion, options.alpha)
    neighbours, of_database = options.background_neighbours, None
    if options.normalization == "both":
        of_database = compute_background_scores(database, background, neighbours)
    for start in range(0, len(queries), QUERIES_A_BLOCK):
        block = queries[start : start + QUERIES_A_BLOCK]
        similarities = block @ database.T
        if options.normalization != "none":
            of_queries = compute_background_scores(block, background, neighbours)
            similarities = normalize_scores(similarities, of_queries, of_database)
        orders = np.argsort(-similarities, axis=1, kind="stable")
        yield from zip(orders, np.take_along_axis(similarities, orders, axis=1), strict=True)
