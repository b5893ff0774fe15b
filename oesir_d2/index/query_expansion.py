"""Query expansion: a query's vector becomes a weighted mean of itself and of what it finds first.

Shape shorthand: Q queries, M database vectors, D dimensions.
"""

from __future__ import annotations

import numpy as np


def expand_queries(
    queries: np.ndarray, database: np.ndarray, neighbours: int, alpha: float = 0.0, block: int = 256
) -> np.ndarray:
    """Add to each query its nearest database vectors, and normalise.

    With alpha 0 this is average query expansion (Chum et al., ICCV 2007); with alpha > 0, a neighbour of similarity s
    weighs s^alpha (Radenović et al., TPAMI 2019), and one of a similarity below 0 nothing. The query
    itself always weighs 1.

    Args:
        queries: (Q, D), L2-normalised.
        database: (M, D), L2-normalised.
        neighbours: how many vectors are added, >= 0; all M if there are fewer. Of equal similarities, those of lower
            index come first.
        alpha: >= 0.
        block: queries that are compared at a time.

    Returns:
        (Q, D) of the queries' dtype, L2-normalised; a sum of length 0 stays 0.

    Raises:
        ValueError: if ``neighbours`` or ``alpha`` is out of its range, or the shapes do not fit.

    >>> expand_queries(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [0.6, 0.8]]), neighbours=1).round(3)
    array([[0.894, 0.447]])
    """
    if neighbours < 0:
        raise ValueError(f"query expansion by {neighbours} neighbours, expected at least 0")
    if not 0 <= alpha < np.inf:
        raise ValueError(f"alpha of query expansion is {alpha}, expected a finite number of at least 0")
    if queries.ndim != 2 or database.ndim != 2 or queries.shape[1] != database.shape[1]:
        raise ValueError(f"queries of shape {queries.shape} and a database of {database.shape}, expected (., D) each")
    expanded = np.empty_like(queries)
    for start in range(0, len(queries), block):
        rows = queries[start : start + block]
        similarities = rows @ database.T
        nearest = find_largest(similarities, neighbours)
        weights = np.take_along_axis(similarities, nearest, axis=1)
        weights = np.ones_like(weights) if alpha == 0 else np.maximum(weights, 0) ** alpha
        sums = rows + np.einsum("qn,qnd->qd", weights, database[nearest])
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        expanded[start : start + block] = np.divide(sums, lengths, out=np.zeros_like(sums), where=lengths > 0)
    return expanded


def find_largest(values: np.ndarray, count: int) -> np.ndarray:
    """The columns of the ``count`` largest values of every row: (Q, min(count, M)), largest first, ties by column."""
    count = min(count, values.shape[1])
    order = np.argsort(-values, axis=1, kind="stable")
    return order[:, :count]
