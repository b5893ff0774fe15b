"""The splice protocol on rankings whose scores can be computed by hand, or by brute force."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from oesir_d2.data.splicing import DatabaseImage, SpliceQuery, SpliceSet, SpliceSource
from oesir_d2.evaluation import evaluate_splice_retrieval, match_database, worst_failures

LETTERS = "abcdefghijklmnopqrst"


def make_splices(*sources_per_query: str, folder: Path = Path("/set"), database: str = LETTERS) -> SpliceSet:
    """Splices over photos of one letter; "h:dd" has the host h and the donors d, d."""
    queries = []
    for i, text in enumerate(sources_per_query):
        host, donors = text.split(":")
        sources = [SpliceSource(letter, "host") for letter in host] + [SpliceSource(d, "donor") for d in donors]
        queries.append(SpliceQuery(f"queries/{i}.jpg", tuple(sources)))
    return SpliceSet(folder, tuple(DatabaseImage(letter, f"{letter}.jpg") for letter in database), tuple(queries))


def test_metrics_by_hand() -> None:
    splices = make_splices("a:b", "a:b", "a:bc")
    rankings = [list("abcdefghijkl"), list("acdefgb"), list("cdefghijka")]

    result = evaluate_splice_retrieval(splices, rankings)

    metrics = result.metrics["splice_retrieval"]
    # Zero-based ranks of the sources: {0, 1} of 2, {0, 6} of 2, {0, 9} of 3 with b never found.
    aps = [1.0, (1 + (1 / 6 + 2 / 7) / 2) / 2, (1 + (1 / 9 + 2 / 10) / 2) / 3]
    assert metrics["mAP"] == pytest.approx(100 * np.mean(aps))
    assert [row.average_precision for row in result.rows] == pytest.approx(aps)
    assert metrics["host_recall@1"] == pytest.approx(200 / 3)
    assert metrics["host_recall@5"] == pytest.approx(200 / 3)
    assert metrics["host_recall@10"] == pytest.approx(100)
    assert metrics["donor_recall@1"] == pytest.approx(100 * (0 + 0 + 1 / 2) / 3)
    assert metrics["donor_recall@5"] == pytest.approx(100 * (1 + 0 + 1 / 2) / 3)
    assert metrics["donor_recall@10"] == pytest.approx(100 * (1 + 1 + 1 / 2) / 3)
    assert metrics["both_in_top_2"] == pytest.approx(100 / 3)
    assert metrics["both_in_top_5"] == pytest.approx(100 / 3)
    assert metrics["both_in_top_10"] == pytest.approx(200 / 3)


def test_rows_have_one_based_ranks_and_the_top_result() -> None:
    splices = make_splices("a:bc")

    (row,) = evaluate_splice_retrieval(splices, [list("dcea")]).rows

    assert (row.file_name, row.host_id, row.donor_ids) == ("queries/0.jpg", "a", ("b", "c"))
    assert (row.host_rank, row.donor_ranks) == (4, (None, 2))
    assert row.top_result == "d"


def test_metrics_equal_brute_force_on_random_rankings(rng: np.random.Generator) -> None:
    texts, rankings = [], []
    for _ in range(40):
        photos = rng.permutation(list(LETTERS))
        texts.append(f"{photos[0]}:{''.join(photos[1 : rng.integers(2, 5)])}")
        rankings.append(rng.permutation(list(LETTERS))[: rng.integers(0, 20)].tolist())
    splices = make_splices(*texts)

    metrics = evaluate_splice_retrieval(splices, rankings).metrics["splice_retrieval"]

    hosts, donors = zip(*(text.split(":") for text in texts), strict=True)
    for k in (1, 5, 10):
        hits = [host in ranking[:k] for host, ranking in zip(hosts, rankings, strict=True)]
        assert metrics[f"host_recall@{k}"] == pytest.approx(100 * np.mean(hits))
        shares = [np.mean([d in ranking[:k] for d in group]) for group, ranking in zip(donors, rankings, strict=True)]
        assert metrics[f"donor_recall@{k}"] == pytest.approx(100 * np.mean(shares))
    for k in (2, 5, 10):
        both = [set(text) - {":"} <= set(ranking[:k]) for text, ranking in zip(texts, rankings, strict=True)]
        assert metrics[f"both_in_top_{k}"] == pytest.approx(100 * np.mean(both))


def test_queries_count_only_where_they_are_eligible() -> None:
    splices = make_splices("a:", ":b", "c:d")
    rankings = [["a"], ["x"], ["c", "d"]]

    metrics = evaluate_splice_retrieval(splices, rankings).metrics["splice_retrieval"]

    assert metrics["host_recall@1"] == 100
    assert metrics["donor_recall@5"] == 50
    assert metrics["both_in_top_2"] == 100
    no_donors = evaluate_splice_retrieval(make_splices("a:"), [["a"]]).metrics["splice_retrieval"]
    assert math.isnan(no_donors["donor_recall@1"])
    assert math.isnan(no_donors["both_in_top_2"])


def test_a_photo_that_gave_several_objects_is_one_source() -> None:
    twice = evaluate_splice_retrieval(make_splices("a:bb"), [["a", "b"]])
    copy_move = evaluate_splice_retrieval(make_splices("a:ab"), [["a", "b"]])

    assert twice.rows[0].donor_ids == ("b",)
    assert twice.metrics["splice_retrieval"]["mAP"] == pytest.approx(100)
    assert copy_move.metrics["splice_retrieval"]["mAP"] == pytest.approx(100)
    assert copy_move.metrics["splice_retrieval"]["both_in_top_2"] == 100


def test_worst_failures_come_first_and_perfect_queries_not_at_all() -> None:
    splices = make_splices("a:b", "a:bcd", "a:b", "a:b")
    rows = evaluate_splice_retrieval(splices, [list("axyzb"), list("abcd"), ["x"], ["y"]]).rows

    assert [row.file_name for row in worst_failures(rows, 10)] == ["queries/2.jpg", "queries/3.jpg", "queries/0.jpg"]
    assert [row.file_name for row in worst_failures(rows, 1)] == ["queries/2.jpg"]
    assert worst_failures(rows, 0) == []


def test_rankings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="1 rankings for 2 queries"):
        evaluate_splice_retrieval(make_splices("a:b", "a:b"), [["a"]])
    with pytest.raises(ValueError, match=r"queries/0\.jpg holds 'b' twice"):
        evaluate_splice_retrieval(make_splices("a:b"), [["b", "a", "b"]])


def test_photos_match_by_path_before_id_before_name(tmp_path: Path) -> None:
    splices = make_splices("a:b", folder=tmp_path / "set", database="abcd")
    records = [
        ("b", tmp_path / "set" / "sub" / ".." / "a.jpg"),  # the file of a, under the id of b
        ("elsewhere", "/other/b.jpg"),  # b by its name only, since its id is taken
        ("c", "/other/x.jpg"),  # c by its id only
        ("1", "/one/d.jpg"),  # d by neither: two files have its name
        ("2", "/two/d.jpg"),
    ]

    assert match_database(splices, records) == {"a": "b", "b": "elsewhere", "c": "c"}


def test_matches_translate_the_sources() -> None:
    splices = make_splices("a:b")
    matches = {"a": "b", "b": "photo b"}

    result = evaluate_splice_retrieval(splices, [["b", "photo b", "a"]], matches)

    assert (result.rows[0].host_rank, result.rows[0].donor_ranks) == (1, (2,))


def test_a_source_that_the_index_lacks_is_refused_or_never_found() -> None:
    splices = make_splices("a:bc")
    records = [("a", "/p/a.jpg"), ("x", "/p/x.jpg")]

    with pytest.raises(ValueError, match="lacks 2 of the 3 source photos of the splices, for example 'b'"):
        match_database(splices, records)
    matches = match_database(splices, records, allow_missing=True)
    # "b" and "c" have no match, so the ids of other photos must not stand for them.
    row = evaluate_splice_retrieval(splices, [["a", "b", "c"]], matches).rows[0]
    assert (row.host_rank, row.donor_ranks) == (1, (None, None))


def test_distractors_may_be_missing_from_the_index() -> None:
    assert match_database(make_splices("a:b"), [("a", "a.png"), ("b", "b.png")]) == {"a": "a", "b": "b"}
