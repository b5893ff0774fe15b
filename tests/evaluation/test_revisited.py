"""The revisited protocol against a straightforward reference: rank by rank, image by image, in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest

from oesir_d2.evaluation import (
    RevisitedQuery,
    average_figures,
    collect_revisited_queries,
    evaluate_revisited,
    score_ranking,
)

DEPTHS = (1, 5, 10)


def score_plainly(query: RevisitedQuery, scored: list[tuple[float, int]], setup: str) -> list[float] | None:
    """AP and precisions of one query, in percent, as the protocol's text has them; None without a positive."""
    easy, hard, junk = (set(map(int, images)) for images in (query.easy, query.hard, query.junk))
    positive = {"easy": easy, "medium": easy | hard, "hard": hard}[setup]
    left_out = {"easy": hard | junk, "medium": junk, "hard": easy | junk}[setup]
    if not positive:
        return None
    ordered = sorted(scored, key=lambda pair: (-pair[0], pair[1] in positive))
    shown = [image for _, image in ordered if image not in left_out]
    area, found, last = 0.0, 0, None
    old_recall, old_precision = 0.0, 1.0
    for rank, image in enumerate(shown, start=1):
        found += image in positive
        recall, precision = found / len(positive), found / rank
        area += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
        if found == len(positive) and last is None:
            last = rank
    figures = [100 * area]
    for depth in DEPTHS:
        k = depth if last is None else min(last, depth)
        figures.append(100 * sum(image in positive for image in shown[:k]) / k)
    return figures


def draw_query(rng: np.random.Generator, database: int) -> RevisitedQuery:
    """Labels at random; now and then none of a kind."""
    images = rng.permutation(database)
    ends = np.cumsum(rng.integers(0, max(1, database // 4) + 1, size=3) * (rng.random(3) < 0.8))
    easy, hard, junk, _ = np.split(images, ends)
    return RevisitedQuery(easy, hard, junk)


def test_random_rankings_equal_the_reference(rng: np.random.Generator) -> None:
    compared = 0
    for _ in range(400):
        database = int(rng.integers(1, 60))
        queries = [draw_query(rng, database) for _ in range(8)]
        # Few different scores make many ties; some rankings are cut.
        rankings = [rng.permutation(database)[: rng.integers(0, database + 1) or None] for _ in queries]
        scores = [rng.integers(0, 12, size=len(ranking)) / 12 for ranking in rankings]
        result = evaluate_revisited(queries, rankings, scores)
        for setup in ("easy", "medium", "hard"):
            expected = [
                score_plainly(query, list(zip(query_scores.tolist(), ranking.tolist(), strict=True)), setup)
                for query, ranking, query_scores in zip(queries, rankings, scores, strict=True)
            ]
            eligible = [figures for figures in expected if figures is not None]
            got = list(result.metrics[setup].values())
            if eligible:
                assert got == pytest.approx(np.mean(eligible, axis=0), abs=1e-9)
            else:
                assert all(map(math.isnan, got))
            own = [math.nan if figures is None else figures[0] for figures in expected]
            assert result.average_precisions[setup] == pytest.approx(own, abs=1e-9, nan_ok=True)
            compared += len(eligible)
    assert compared > 5000


def test_order_of_rankings_counts_where_no_scores_are_given() -> None:
    query = RevisitedQuery(easy=np.array([0]), hard=np.array([2]), junk=np.array([1]))
    metrics = evaluate_revisited([query], [np.array([1, 0, 3, 2])]).metrics
    # Without the junk the easy one is first, the hard one third, of which the easy set-up does not know.
    assert metrics["easy"] == {"mAP": 100, "mP@1": 100, "mP@5": 100, "mP@10": 100}
    assert metrics["medium"]["mAP"] == pytest.approx(100 * (1 + (1 / 2 + 2 / 3) / 2) / 2)
    assert metrics["medium"]["mP@10"] == pytest.approx(100 * 2 / 3)
    assert metrics["hard"]["mAP"] == pytest.approx(100 * (0 + 1 / 2) / 2)


def test_equal_scores_are_ordered_against_us() -> None:
    query = RevisitedQuery(easy=np.array([0]), hard=np.array([], int), junk=np.array([1]))
    for ranking in ([0, 1, 2, 3], [3, 2, 1, 0]):
        metrics = evaluate_revisited([query], [np.array(ranking)], [np.zeros(4)]).metrics
        assert metrics["easy"]["mAP"] == pytest.approx(100 * (0 + 1 / 3) / 2)
        assert metrics["easy"]["mP@1"] == 0


def test_a_cut_ranking_lowers_map_and_leaves_precision() -> None:
    query = RevisitedQuery(easy=np.arange(3), hard=np.array([], int), junk=np.array([], int))
    ranking = np.array([0, 9, 1, 8, 7, 6, 5, 4, 3, 10, 11, 2])
    whole, cut = (evaluate_revisited([query], [part]).metrics["easy"] for part in (ranking, ranking[:10]))
    assert cut["mAP"] < whole["mAP"]
    assert {name: cut[name] for name in ("mP@1", "mP@5", "mP@10")} == {
        name: whole[name] for name in ("mP@1", "mP@5", "mP@10")
    }


def test_queries_scored_one_by_one_make_the_same_figures(rng: np.random.Generator) -> None:
    """To the last digit, and of each ranking a dozen numbers are kept."""
    queries = [draw_query(rng, 500) for _ in range(70)]
    rankings = [rng.permutation(500) for _ in queries]
    scores = [rng.integers(0, 50, size=500) / 50 for _ in queries]
    kept = [score_ranking(*arguments) for arguments in zip(queries, rankings, scores, strict=True)]
    assert {figures.shape for figures in kept} == {(3, 4)}
    assert average_figures(kept).metrics == evaluate_revisited(queries, rankings, scores).metrics


def test_mistakes_are_named() -> None:
    query = RevisitedQuery(easy=np.array([0]), hard=np.array([1]), junk=np.array([], int))
    with pytest.raises(ValueError, match="2 rankings for 1 queries"):
        evaluate_revisited([query], [np.array([0]), np.array([1])])
    with pytest.raises(ValueError, match="the ranking holds an image twice"):
        evaluate_revisited([query], [np.array([0, 0])])
    with pytest.raises(ValueError, match="has 1 images but 2 scores"):
        evaluate_revisited([query], [np.array([0])], [np.array([1.0, 2.0])])
    with pytest.raises(ValueError, match="NaN"):
        evaluate_revisited([query], [np.array([0])], [np.array([math.nan])])
    with pytest.raises(ValueError, match="image 1 has two labels"):
        RevisitedQuery(easy=np.array([1]), hard=np.array([1]), junk=np.array([], int))


def test_ground_truth_of_dataset_dicts() -> None:
    database = [{"image_id": name} for name in "abcd"]
    truth = {"easy": ["d"], "hard": [], "junk": ["a", "b"]}
    (query,) = collect_revisited_queries([{"image_id": "q", "ground_truth": truth}], database)
    assert (query.easy.tolist(), query.hard.tolist(), query.junk.tolist()) == ([3], [], [0, 1])
    with pytest.raises(ValueError, match="lacks 'e', which is junk for query 'q'"):
        collect_revisited_queries([{"image_id": "q", "ground_truth": truth | {"junk": ["e"]}}], database)
