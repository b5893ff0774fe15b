"""Query expansion against loops over single queries."""

from __future__ import annotations

import numpy as np
import pytest

from oesir_d2.index import expand_queries


def make_units(rng: np.random.Generator, count: int, dimension: int = 7) -> np.ndarray:
    vectors = rng.normal(size=(count, dimension))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def expand_one(query: np.ndarray, database: np.ndarray, neighbours: int, alpha: float) -> np.ndarray:
    similarities = [float(query @ vector) for vector in database]
    nearest = sorted(range(len(database)), key=lambda i: (-similarities[i], i))[:neighbours]
    total = query.copy()
    for i in nearest:
        total += (1.0 if alpha == 0 else max(similarities[i], 0.0) ** alpha) * database[i]
    return total / np.linalg.norm(total)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("neighbours", [1, 4, 50])
@pytest.mark.parametrize("block", [2, 256])
def test_equals_a_loop(rng: np.random.Generator, neighbours: int, alpha: float, block: int) -> None:
    queries, database = make_units(rng, 5), make_units(rng, 20)
    before = queries.copy()
    expanded = expand_queries(queries, database, neighbours, alpha, block)
    expected = np.stack([expand_one(query, database, neighbours, alpha) for query in queries])
    np.testing.assert_allclose(expanded, expected, atol=1e-12)
    np.testing.assert_array_equal(queries, before)


def test_no_neighbours_change_nothing(rng: np.random.Generator) -> None:
    queries = make_units(rng, 3)
    np.testing.assert_allclose(expand_queries(queries, make_units(rng, 4), 0), queries, atol=1e-12)
    np.testing.assert_allclose(expand_queries(queries, np.zeros((0, 7)), 3), queries, atol=1e-12)


def test_opposites_weigh_nothing_with_alpha_and_cancel_without() -> None:
    query = np.array([[1.0, 0.0]], dtype=np.float32)
    assert expand_queries(query, -query, 1, alpha=2.0).tolist() == [[1.0, 0.0]]
    assert expand_queries(query, -query, 1).tolist() == [[0.0, 0.0]]
    assert expand_queries(query, -query, 1).dtype == np.float32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"neighbours": -1}, "-1 neighbours"),
        ({"alpha": -0.5}, "alpha of query expansion is -0.5"),
        ({"alpha": np.nan}, "alpha of query expansion is nan"),
        ({"database": np.zeros((3, 4))}, r"\(3, 4\)"),
    ],
)
def test_what_cannot_be(change: dict[str, object], words: str) -> None:
    arguments = {"queries": np.zeros((2, 3)), "database": np.zeros((3, 3)), "neighbours": 1} | change
    with pytest.raises(ValueError, match=words):
        expand_queries(**arguments)
