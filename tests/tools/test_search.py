"""tools/search.py: what it answers, in which form, and where it writes it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .conftest import ENVIRONMENT, PHOTO_NAMES, TIMEOUT, TOOLS, Finished, RunTool


def answers(finished: Finished) -> list[dict[str, Any]]:
    assert finished.code == 0, finished.stderr
    return [json.loads(line) for line in finished.stdout.splitlines()]


def assert_inside(box: list[float], size: tuple[int, int]) -> None:
    x0, y0, x1, y1 = box
    assert 0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1]


def test_the_form_of_the_answer(run_tool: RunTool, photos: Path, index: Path) -> None:
    query = photos / "coffee.png"
    (answer,) = answers(run_tool("search", "--index", index, "--query", query))

    assert list(answer) == ["query", "objects", "results"]
    assert answer["query"] == str(query)
    for region in answer["objects"]:
        assert list(region) == ["box", "score", "class"]
        assert_inside(region["box"], Image.open(query).size)
    # The whole photo is the last region.
    assert answer["objects"][-1]["box"] == [0, 0, *Image.open(query).size]
    assert [result["rank"] for result in answer["results"]] == list(range(1, len(PHOTO_NAMES) + 1))
    boxes_of_the_query = [region["box"] for region in answer["objects"]]
    for result in answer["results"]:
        assert list(result) == ["rank", "image_id", "path", "score", "matches"]
        assert result["path"] == str(photos / result["image_id"])
        assert result["matches"]
        scores = [match["score"] for match in result["matches"]]
        assert scores == sorted(scores, reverse=True) and max(scores) <= 1 + 1e-6
        for match in result["matches"]:
            assert list(match) == ["query_box", "database_box", "score"]
            assert match["query_box"] in boxes_of_the_query
            assert_inside(match["database_box"], Image.open(result["path"]).size)
    first = answer["results"][0]
    assert (first["image_id"], first["score"]) == ("coffee.png", pytest.approx(1, abs=1e-6))
    assert first["matches"][0]["query_box"] == first["matches"][0]["database_box"]


def test_every_copy_finds_its_photo_first(run_tool: RunTool, photos: Path, index: Path, tmp_path: Path) -> None:
    expected = {}
    for name in PHOTO_NAMES:
        photo = Image.open(photos / f"{name}.png")
        photo.save(tmp_path / f"{name} 90.jpg", quality=90)
        photo.save(tmp_path / f"{name} copy.png", compress_level=1)
        expected |= dict.fromkeys([f"{name} 90.jpg", f"{name} copy.png"], f"{name}.png")
    finished = run_tool("search", "--index", index, "--query", *expected, "--top-k", "1", cwd=tmp_path)

    assert {answer["query"]: answer["results"][0]["image_id"] for answer in answers(finished)} == expected
    assert "Searching" in finished.stderr and finished.messages == []


def test_a_box_searches_with_one_object(run_tool: RunTool, photos: Path, index: Path, tmp_path: Path) -> None:
    upright = Image.open(photos / "chelsea.png")
    turned = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    upright.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    box = [20.5, 10.0, 110.0, 100.25]
    words = ("--box", ",".join(map(str, box)), "--top-k", "2")
    answer, of_the_turned = answers(
        run_tool("search", "--index", index, "--query", photos / "chelsea.png", turned, *words)
    )

    assert [region["box"] for region in answer["objects"]] == [box]
    assert answer["results"][0]["image_id"] == "chelsea.png"
    assert {tuple(match["query_box"]) for result in answer["results"] for match in result["matches"]} == {tuple(box)}
    # A box is about the photo as one sees it, however its file lies.
    assert of_the_turned == answer | {"query": str(turned)}


def test_options_and_pairs_override_the_config(run_tool: RunTool, photos: Path, index: Path) -> None:
    queries = ("--query", photos / "coins.png", photos / "page.png")
    base = ("search", "--index", index)
    by_option = answers(run_tool(*base, *queries, "--top-k", "3", "--aggregate", "sum_max"))
    by_pairs = answers(run_tool(*base, *queries, "RETRIEVAL.TOP_K", "3", "RETRIEVAL.AGGREGATE", "sum_max"))
    between = answers(
        run_tool(*base, "RETRIEVAL.TOP_K", "7", *queries, "RETRIEVAL.AGGREGATE", "sum_max", "--top-k", "3")
    )

    assert by_option == by_pairs == between
    assert [len(answer["results"]) for answer in by_option] == [3, 3]
    assert all(answer["results"][0]["score"] > 10 for answer in by_option)  # a sum over some fifty regions
    assert [len(answer["results"]) for answer in answers(run_tool(*base, *queries, "--top-k", "1000000"))] == [10, 10]


def test_results_go_to_a_file_and_a_page(run_tool: RunTool, photos: Path, index: Path, tmp_path: Path) -> None:
    copy, path = tmp_path / "photos", tmp_path / "index"
    shutil.copytree(photos, copy)
    run_tool("build_index", "--images", copy, "--output", path)
    (copy / "coins.png").unlink()
    words = ("--json", "new/out.jsonl", "--report", "found/it")
    queries = [photos / "coins.png", photos / "page.png"]
    finished = run_tool("search", "--index", path, "--query", *queries, "--top-k", "2", *words, cwd=tmp_path)

    assert (finished.code, finished.stdout) == (0, "")
    assert finished.messages == [f"report: {tmp_path}/found/it/report.html"]
    lines = (tmp_path / "new" / "out.jsonl").read_text(encoding="ascii").splitlines()
    # A photo that was deleted is found all the same.
    assert [json.loads(line)["results"][0]["image_id"] for line in lines] == ["coins.png", "page.png"]
    page = (tmp_path / "found" / "it" / "report.html").read_text(encoding="utf-8")
    assert "This photo cannot be shown" in page and "the file does not exist" in page
    sources = Sources(page)
    assert len(sources.images) >= 5  # two queries, three results that are there
    assert all(source.startswith("data:image/") for source in sources.images)
    assert not sources.outside
    assert [file.name for file in (tmp_path / "found" / "it").iterdir()] == ["report.html"]


class Sources(HTMLParser):
    """What a page loads: its images, and whatever else has an address other than within the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.images: list[str] = []
        self.outside: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if tag == "img" and name == "src":
                self.images.append(value or "")
            elif name in ("src", "href") and not (value or "").startswith("#"):
                self.outside.append(f"{tag} {value}")


def test_names_that_are_not_utf8_survive(run_tool: RunTool, photos: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"\xe9t\xe9 \xff.png")
    (tmp_path / "photos").mkdir()
    shutil.copy(photos / "ihc.png", tmp_path / "photos" / name)
    run_tool("build_index", "--images", "photos", "--output", "index", cwd=tmp_path)
    finished = run_tool("search", "--index", "index", "--query", f"photos/{name}", "--report", "found", cwd=tmp_path)

    assert finished.stdout.isascii()
    (answer,) = answers(finished)
    assert answer["query"] == f"photos/{name}"
    assert answer["results"][0]["path"] == str(tmp_path / "photos" / name)
    assert (tmp_path / "found" / "report.html").is_file()


def test_a_reader_may_stop_reading(photos: Path, index: Path) -> None:
    """As `search.py … | head -1` does; a process of its own, whose stdout is a pipe."""
    queries = [str(path) for path in sorted(photos.iterdir())] * 4
    command = [sys.executable, str(TOOLS / "search.py"), "--index", str(index), "--query", *queries]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT)
    first = json.loads(process.stdout.readline())
    process.stdout.close()
    finished = Finished(0, "", process.stderr.read().decode())
    process.stderr.close()

    assert first["results"][0]["path"] == queries[0]
    assert process.wait(TIMEOUT) == 0
    assert finished.messages == []
