"""tools/benchmark.py at tiny sizes: its files and its last line."""

from __future__ import annotations

import json
from pathlib import Path

from .conftest import RunTool


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
    words = ("--sizes", "400", "--factories", "Falt", "--photo-regions", "4", "--dimension", "16", "--queries", "2")
    assert "'Falt'" in run_tool("benchmark", "search", "--output", tmp_path, *words).error
