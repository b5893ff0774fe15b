from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from oesir_d2.evaluation.splice_protocol import evaluate_splice_retrieval
from oesir_d2.report.failure_report import (
    MATCHED_COLOR,
    PASTED_COLOR,
    FailureCase,
    RankedPhoto,
    TrueSource,
    describe_metric,
    describe_rank,
    failure_section,
    metrics_section,
    write_failure_report,
)
from oesir_d2.report.page import render_page


@pytest.fixture
def make_case(write_photo):
    """Makes a case of a host at rank 2 and a donor at a given rank, behind a wrong first photo."""

    def make(donor_rank: int | None, ranking_length: int = 1109, **changes: object) -> FailureCase:
        fields = {
            "query_path": write_photo("query.png"),
            "pasted_boxes": [(10, 10, 30, 30)],
            "top_result": RankedPhoto(
                "wrong", write_photo("wrong.png"), 1, 0.83, (40, 20, 70, 50), (0.0, 20.0, 40.0, 60.0)
            ),
            "sources": [
                TrueSource("h", "host", write_photo("host.png"), 2),
                TrueSource("d", "donor", write_photo("donor.png"), donor_rank),
            ],
            "ranking_length": ranking_length,
            "database_size": 1109,
        }
        return FailureCase(**(fields | changes))

    return make


def test_page_opens_with_the_figures_and_shows_each_case(tmp_path: Path, make_case, parse_page):
    metrics = {"splice_retrieval": {"mAP": 61.234, "host_recall@1": 99.0, "both_in_top_2": float("nan")}}
    path = tmp_path / "failures.html"
    write_failure_report(path, metrics, [make_case(37), make_case(None, 100)], facts={"Splices": 383})
    page = parse_page(path)
    assert (
        page.text.index("Splices383")
        < page.text.index("mAP61.2Mean average precision")
        < page.text.index("True source")
    )
    assert "host_recall@199.0Share of the splices whose host" in page.text
    assert "both_in_top_2no query" in page.text
    assert len(page.find("article", "failure")) == 2
    # Query, top result and two sources each.
    assert len(page.find("li", "card")) == len(page.find("img")) == 8
    assert "not a source: rank 1 of 1,109, score 0.830" in page.text
    assert page.text.count("host: rank 2 of 1,109") == 2
    assert "donor: rank 37 of 1,109" in page.text and "donor: not in the top 100" in page.text


def test_pasted_and_matched_boxes_are_drawn(make_case, parse_page):
    query, top, host, donor = parse_page(render_page("t", [failure_section([make_case(37)])])).pictures()
    for picture, row, column, color in (
        (query, 29, 20, PASTED_COLOR),
        (query, 49, 55, MATCHED_COLOR),
        (top, 59, 20, MATCHED_COLOR),
    ):
        assert np.abs(picture[row, column].astype(int) - color).max() < 40
    assert all(np.abs(picture.astype(int) - 128).max() < 10 for picture in (host, donor))


def test_top_result_that_is_a_source_is_shown_once_beside_the_first_wrong_one(make_case, write_photo, parse_page):
    host = write_photo("host.png")
    case = make_case(
        37,
        top_result=RankedPhoto("h", host, 1, 0.9, (0, 0, 80, 60), (0, 0, 80, 60)),
        first_wrong=RankedPhoto("wrong", write_photo("wrong.png"), 2, 0.4, (40, 20, 70, 50), (0, 20, 40, 60)),
    )
    page = parse_page(render_page("t", [failure_section([case])]))
    assert len(page.find("li", "card")) == 4
    assert "Top result host: rank 1 of 1,109, score 0.900" in page.text
    assert "First wrong result not a source: rank 2 of 1,109, score 0.400" in page.text
    assert page.text.count(host) == 1
    # The match that is drawn is the wrong photo's; the host's own match would be a frame around the whole photo.
    assert not page.find("img", "framed")


@pytest.mark.parametrize(
    ("host_rank", "donor_rank", "good"), [(1, 2, 2), (2, 1, 2), (1, 3, 1), (2, 3, 0), (2, None, 0)]
)
def test_source_counts_as_found_if_only_sources_come_before_it(
    host_rank: int, donor_rank: int | None, good: int, make_case, write_photo, parse_page
):
    sources = [
        TrueSource("h", "host", write_photo("host.png"), host_rank),
        TrueSource("d", "donor", write_photo("donor.png"), donor_rank),
    ]
    case = make_case(None, sources=sources, top_result=None)
    page = parse_page(render_page("t", [failure_section([case])]))
    assert (len(page.find("p", "good")), len(page.find("p", "bad"))) == (good, 2 - good)


def test_missing_photos_and_an_empty_ranking_do_not_break_the_page(tmp_path: Path, make_case, parse_page):
    case = make_case(
        None,
        ranking_length=0,
        query_path=tmp_path / "gone <b>.png",
        top_result=None,
        sources=[TrueSource("d", "donor", tmp_path / "gone.png", None)],
    )
    page = parse_page(render_page("t", [failure_section([case])]))
    assert len(page.find("p", "missing")) == 2 and not page.find("b")
    assert "Nothing was found for this query" in page.text


def test_page_without_failures_or_figures_says_so(parse_page):
    assert "No failure" in parse_page(render_page("t", [failure_section([])])).text
    assert "No figures" in parse_page(render_page("t", [metrics_section({"group": {}})])).text


def test_rank_in_words():
    donor = TrueSource("d", "donor", "d.png", None)
    assert describe_rank(donor, 100, 1109) == "not in the top 100"
    assert describe_rank(donor, 1109, 1109) == "not among the 1,109 photos searched"
    assert describe_rank(TrueSource("d", "donor", "d.png", 1037), 1109, 1109) == "rank 1,037 of 1,109"
    with pytest.raises(ValueError, match="rank 0"):
        TrueSource("d", "donor", "d.png", 0)


def test_every_figure_of_the_splice_protocol_is_explained():
    class NoSplices:
        folder = Path()
        database = ()
        queries = ()

    metrics = evaluate_splice_retrieval(NoSplices(), []).metrics["splice_retrieval"]
    assert len(metrics) > 5
    for name in metrics:
        assert describe_metric(name), f"{name} has no explanation"
    assert "rank 10 or better" in describe_metric("donor_recall@10")
    assert describe_metric("unknown") == ""
