"""Score normalisation against loops, and what it does to rankings and to scores of different queries."""

from __future__ import annotations

import numpy as np
import pytest

from oesir_d2.index import compute_background_scores, normalize_scores


@pytest.mark.parametrize("neighbours", [1, 3, 99])
@pytest.mark.parametrize("block", [2, 1024])
def test_background_scores_equal_a_loop(rng: np.random.Generator, neighbours: int, block: int) -> None:
    vectors, background = rng.normal(size=(5, 4)), rng.normal(size=(9, 4))
    scores = compute_background_scores(vectors, background, neighbours, block)
    expected = [np.mean(sorted((float(v @ b) for b in background), reverse=True)[:neighbours]) for v in vectors]
    np.testing.assert_allclose(scores, expected, atol=1e-12)


def test_scores_equal_a_loop(rng: np.random.Generator) -> None:
    similarities, of_queries, of_images = rng.normal(size=(3, 4)), rng.normal(size=3), rng.normal(size=4)
    both = normalize_scores(similarities, of_queries, of_images, weight=0.5)
    for q in range(3):
        for m in range(4):
            expected = similarities[q, m] - 0.5 * of_queries[q] - 0.5 * of_images[m]
            assert both[q, m] == pytest.approx(expected, abs=1e-12)


def test_the_queries_side_alone_keeps_rankings_and_the_other_side_sinks_hubs() -> None:
    similarities = np.array([[0.9, 0.8], [0.6, 0.5]])
    of_queries, of_images = np.array([0.8, 0.2]), np.array([0.5, 0.1])
    queries_alone = normalize_scores(similarities, of_queries)
    assert (queries_alone.argmax(axis=1) == [0, 0]).all()
    # The second query is like nothing else, so its match counts for more.
    assert queries_alone[1, 0] > queries_alone[0, 0]
    assert (normalize_scores(similarities, of_queries, of_images).argmax(axis=1) == [1, 1]).all()


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="0 background vectors"):
        compute_background_scores(np.zeros((2, 3)), np.zeros((0, 3)), 1)
    with pytest.raises(ValueError, match="0 neighbours"):
        compute_background_scores(np.zeros((2, 3)), np.zeros((1, 3)), 0)
    with pytest.raises(ValueError, match="for 2 queries"):
        normalize_scores(np.zeros((2, 3)), np.zeros(3))
    with pytest.raises(ValueError, match="for 3 images"):
        normalize_scores(np.zeros((2, 3)), np.zeros(2), np.zeros(2))
