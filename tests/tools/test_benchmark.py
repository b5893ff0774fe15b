"""tools/benchmark.py at tiny sizes: its files and its last line."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from .conftest import TOOLS, RunTool


def test_search(run_tool: RunTool, tmp_path: Path) -> None:
    sizes = ("--sizes", 400, "--photo-regions", 4, "--dimension", 16)
    finished = run_tool("benchmark", "search", "--output", tmp_path, *sizes, "--queries", 2, "--rounds", 1)

    figures = finished.json
    assert [(row["objects"], row["factory"], row["recall"]) for row in figures["rows"]] == [(400, "Flat", 1.0)]
    assert json.loads((tmp_path / "search.json").read_text())["rows"] == figures["rows"]
    assert (tmp_path / "search.md").read_text().splitlines()[2].startswith("| 400 | `Flat` | 1.000 |")


def test_mistakes(run_tool: RunTool, tmp_path: Path) -> None:
    assert "extract needs --images" in run_tool("benchmark", "extract", "--output", tmp_path).error
    assert "'guess' (choose from" in run_tool("benchmark", "guess", "--output", tmp_path).error
    assert "'0' is not allowed" in run_tool("benchmark", "search", "--output", tmp_path, "--sizes", "0").error
    assert (
        "sizes has 5, expected at least 20" in run_tool("benchmark", "build", "--output", tmp_path, "--sizes", 5).error
    )
    words = ("--sizes", "400", "--factories", "Falt", "--photo-regions", "4", "--dimension", "16", "--queries", "2")
    assert "'Falt'" in run_tool("benchmark", "search", "--output", tmp_path, *words).error


@pytest.mark.parametrize(
    ("what", "words", "match"),
    [
        ("build", ("--rounds", 2), "--rounds does not belong to build"),
        ("build", ("--queries", 2), "--queries does not belong to build"),
        ("search", ("--images", "photos"), "--images does not belong to search"),
        ("search", ("--config-file", "oesir_s2"), "--config-file does not belong to search"),
        ("build", ("MODEL.DEVICE", "cpu"), "KEY VALUE does not belong to build"),
        ("extract", ("--images", "photos", "--sizes", 400), "--sizes does not belong to extract"),
    ],
)
def test_options_of_another_measurement_are_refused(
    tmp_path: Path, what: str, words: tuple[str | int, ...], match: str
) -> None:
    main = runpy.run_path(str(TOOLS / "benchmark.py"))["main"]
    with pytest.raises(ValueError, match=match):
        main([what, "--output", str(tmp_path / "bench"), *map(str, words)])
    assert not (tmp_path / "bench").exists()
