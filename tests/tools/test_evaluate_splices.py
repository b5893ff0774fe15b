"""tools/evaluate_splices.py: its figures against those counted by hand from what tools/search.py answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import PHOTO_NAMES, RunTool

NUM_SPLICES = 6


@pytest.fixture(scope="module")
def splices(run_tool: RunTool, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The splices.json of six splices of the photos with themselves."""
    folder = tmp_path_factory.mktemp("splices") / "set"
    words = ("--count", str(NUM_SPLICES), "--output", folder)
    assert run_tool("make_splices", "--hosts", photos, "--photos", photos, *words).json["queries"] == NUM_SPLICES
    return folder / "splices.json"


@pytest.fixture
def edited(splices: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], None]], Path]:
    """``edited(change)``: a copy of the set with a splices.json that ``change`` has changed."""

    def edit(change: Callable[[dict[str, Any]], None]) -> Path:
        shutil.copytree(splices.parent, tmp_path / "set")
        content = json.loads(splices.read_text())
        for image in content["database"]:
            image["file_name"] = str((splices.parent / image["file_name"]).resolve())
        change(content)
        (tmp_path / "set" / "splices.json").write_text(json.dumps(content))
        return tmp_path / "set" / "splices.json"

    return edit


def count_figures(splices: dict[str, Any], rankings: list[list[str]]) -> dict[str, float]:
    """The figures of the splice protocol, in percent, for sets with one host and one donor a query."""
    ranks = []
    for query, ranking in zip(splices["queries"], rankings, strict=True):
        by_role = {source["role"]: ranking.index(source["image_id"]) + 1 for source in query["sources"]}
        ranks.append((by_role["host"], by_role["donor"]))
    figures = {}
    for k in (1, 5, 10):
        figures[f"host_recall@{k}"] = sum(host <= k for host, _ in ranks)
        figures[f"donor_recall@{k}"] = sum(donor <= k for _, donor in ranks)
    for k in (2, 5, 10):
        figures[f"both_in_top_{k}"] = sum(max(pair) <= k for pair in ranks)
    # Trapezoidal average precision: the mean of the precisions just before and just after each source is met.
    figures["mAP"] = 0
    for pair in ranks:
        for found, rank in enumerate(sorted(pair)):
            before = found / (rank - 1) if rank > 1 else 1
            figures["mAP"] += (before + (found + 1) / rank) / 2 / 2
    return {name: 100 * value / len(ranks) for name, value in figures.items()}


def test_figures_are_those_of_the_search(run_tool: RunTool, index: Path, splices: Path, tmp_path: Path) -> None:
    content = json.loads(splices.read_text())
    queries = [query["file_name"] for query in content["queries"]]
    found = run_tool("search", "--index", index, "--query", *queries, "--top-k", "100", cwd=splices.parent)
    rankings = [[hit["image_id"] for hit in json.loads(line)["results"]] for line in found.stdout.splitlines()]
    words = ("--json", tmp_path / "new" / "figures.json", "--report", tmp_path / "r")
    finished = run_tool("evaluate_splices", "--index", index, "--splices", splices, *words)

    assert finished.messages == []
    figures = finished.json
    assert figures["splice_retrieval"] == pytest.approx(count_figures(content, rankings))
    assert (figures["queries"], figures["database"], figures["unreadable_queries"]) == (
        NUM_SPLICES,
        len(PHOTO_NAMES),
        0,
    )
    rows = json.loads((tmp_path / "new" / "figures.json").read_text())["rows"]
    assert [row["file_name"] for row in rows] == queries
    assert [row["top_result"] for row in rows] == [ranking[0] for ranking in rankings]
    page = (tmp_path / "r" / "failures.html").read_text(encoding="utf-8")
    assert "donor_recall@10" in page and page.count("data:image/jpeg") >= 3


def test_a_pair_is_as_good_as_an_option(run_tool: RunTool, index: Path, splices: Path) -> None:
    words = ("evaluate_splices", "--index", index, "RETRIEVAL.AGGREGATE", "sum_max", "--splices", splices)
    by_pair = run_tool(*words).json
    assert (
        by_pair == run_tool("evaluate_splices", "--index", index, "--splices", splices, "--aggregate", "sum_max").json
    )
    assert by_pair == run_tool(*words, "--aggregate", "sum_max", "RETRIEVAL.AGGREGATE", "max").json


def test_sources_deeper_than_the_depth_are_never_found(run_tool: RunTool, index: Path, splices: Path) -> None:
    figures = run_tool("evaluate_splices", "--index", index, "--splices", splices, "--depth", "1").json
    figures = figures["splice_retrieval"]

    assert figures["host_recall@1"] == figures["host_recall@10"] > 0
    assert figures["both_in_top_10"] == 0


def test_sources_that_the_index_lacks(run_tool: RunTool, photos: Path, splices: Path, tmp_path: Path) -> None:
    host = json.loads(splices.read_text())["queries"][0]["sources"][0]["image_id"]
    (tmp_path / "list.txt").write_text("\n".join(str(path) for path in photos.iterdir() if path.name != host))
    run_tool("build_index", "--images", tmp_path / "list.txt", "--output", tmp_path / "index")
    arguments = ("evaluate_splices", "--index", tmp_path / "index", "--splices", splices)
    refused = run_tool(*arguments, "--json", tmp_path / "figures.json")

    assert "the index lacks 1 of the" in refused.error and repr(host) in refused.error
    assert not (tmp_path / "figures.json").exists()
    # The others are matched although their ids in this index are paths.
    figures = run_tool(*arguments, "--allow-missing").json["splice_retrieval"]
    assert 0 < figures["host_recall@10"] < 100


def test_a_set_of_somebody_else(run_tool: RunTool, index: Path, edited: Callable[..., Path]) -> None:
    """Without boxes and masks, with ids of its own, a query without donor, and one that cannot be read."""

    def change(content: dict[str, Any]) -> None:
        for query in content["queries"]:
            for source in query["sources"]:
                source.update(image_id=f"photo-{source['image_id']}", query_box=None, mask=None)
        for image in content["database"]:
            image["image_id"] = f"photo-{image['image_id']}"
        del content["queries"][1]["sources"][1]

    path = edited(change)
    queries = [path.parent / query["file_name"] for query in json.loads(path.read_text())["queries"]]
    shutil.rmtree(path.parent / "masks")
    whole = run_tool("evaluate_splices", "--index", index, "--splices", path).json
    queries[0].write_bytes(b"no photo")
    finished = run_tool("evaluate_splices", "--index", index, "--splices", path)

    assert whole["splice_retrieval"]["host_recall@10"] == 100
    assert finished.json["unreadable_queries"] == 1
    assert finished.json["splice_retrieval"]["host_recall@10"] == pytest.approx(100 * (NUM_SPLICES - 1) / NUM_SPLICES)
    (message,) = finished.messages
    assert str(queries[0]) in message and "not an image" in message


def test_figures_that_no_query_counts_for_are_null(run_tool: RunTool, index: Path, edited: Callable[..., Path]) -> None:
    def change(content: dict[str, Any]) -> None:
        for query in content["queries"]:
            del query["sources"][1]

    figures = run_tool("evaluate_splices", "--index", index, "--splices", edited(change)).json["splice_retrieval"]

    assert figures["donor_recall@10"] is None and figures["both_in_top_2"] is None
    assert figures["host_recall@10"] == 100


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "splices.json"),
        ("[]", "splices.json"),
        ('{"version": 2, "database": [], "queries": []}', "version"),
        ('{"version": 1, "database": [], "queries": [{"file_name": "a.jpg"}]}', "sources"),
        (
            '{"version": 1, "database": [], "queries": [{"file_name": "a.jpg", "sources": [{"image_id": "x", '
            '"role": "guest"}]}]}',
            "'guest'",
        ),
        (None, "splices.json"),
    ],
)
def test_files_that_are_no_splices(
    run_tool: RunTool, index: Path, tmp_path: Path, content: str | None, named: str
) -> None:
    if content is not None:
        (tmp_path / "splices.json").write_text(content)

    assert named in run_tool("evaluate_splices", "--index", index, "--splices", "splices.json", cwd=tmp_path).error


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--depth", "0"], "argument --depth: '0'"),
        (["--max-failures", "-1"], "argument --max-failures: '-1'"),
        (["--aggregate", "mean"], "'mean' (choose from"),
        (["--json", "file/figures.json"], "file: expected a folder, this is a file"),
        (["--report", "file"], "file: expected a folder, this is a file"),
    ],
)
def test_mistakes_are_named(
    run_tool: RunTool, index: Path, splices: Path, tmp_path: Path, words: list[str], named: str
) -> None:
    (tmp_path / "file").touch()
    finished = run_tool("evaluate_splices", "--index", index, "--splices", splices, *words, cwd=tmp_path)

    assert named in finished.error
