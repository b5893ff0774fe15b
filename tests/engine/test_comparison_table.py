"""The tables of a comparison, from results that this test makes up."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from oesir_d2.engine.comparison_table import render_markdown, write_comparison

METRICS = {
    "mAP": 51.25,
    "host_recall@1": 100.0,
    "donor_recall@1": 1.0,
    "donor_recall@5": 5.0,
    "donor_recall@10": 10.0,
    "both_in_top_2": None,
}
ROW: dict[str, Any] = {
    "title": "Grid | teacher",
    "dimension": 512,
    "whitening": "fitted",
    "detector_sha256": "",
    "splices": {"medium": {"metrics": METRICS, "coverage": {"percent": 62.5, "mean_regions": 52.04}}},
    "cost": {
        "parameters": {"detector": 0, "source": 3_371_008, "head": 656_640},
        "multiply_adds": {
            "regions": 51,
            "detection": None,
            "source": 6.2284,
            "head": 0.0334,
            "total": 6.2618,
            "teacher": 6.2284,
            "unsupported": {"aten::pow": 4},
        },
        "milliseconds": {
            "detection": 400.0,
            "total": 448.0,
            "overhead_percent": 12.0,
            "source": 40.4,
            "teacher": 1350.0,
            "photos": 8,
            "repetitions": 5,
            "threads": 2,
            "device": "cpu",
        },
    },
}
FACTS = {"images": 1109, "whitening_images": 296, "queries": {"medium": 300}, "options": {"input_size": [1024, 768]}}


@pytest.fixture
def row() -> dict[str, Any]:
    return deepcopy(ROW)


def test_rows_hold_the_figures_in_the_order_of_their_headers(row: dict[str, Any]) -> None:
    lines = render_markdown({"grid": row}, {}, FACTS).splitlines()
    header, scores = (line for line in lines if "donor R@1 " in line or "| 62.5 |" in line)
    assert len(header.split(" | ")) == 11
    assert scores == ("| Grid \\| teacher | 512 | fitted | 1.0 | 5.0 | 10.0 | 100.0 | – | 51.2 | 62.5 | 52.0 |")
    (costs,) = (line for line in lines if "1,350" in line)
    assert costs == (
        "| Grid \\| teacher | 0.00 | 3.37 | 0.66 | – | 6.23 | 0.03 | 6.26 | 6.23 | 400 | 448 | +12.0 % | 40 | 1,350 |"
    )


def test_notes_say_how_it_was_measured(row: dict[str, Any]) -> None:
    text = render_markdown({"grid": row}, {"s1": "weights 'S1.pth'\nnot found"}, FACTS)
    for words in (
        "1,109 photos",
        "296 photos",
        "## Splices: medium (300 queries)",
        "one photo of 1024 x 768 pixels, with so many regions: 51 (grid).",
        "not in the figures: aten::pow.",
        "Milliseconds on cpu with 2 thread(s): mean over 8 photos",
        "median of 5 rounds",
        "- s1: weights 'S1.pth' not found",
    ):
        assert words in text
    assert "detector weights" not in text


def test_a_row_without_costs_has_dashes(row: dict[str, Any]) -> None:
    row["cost"] |= {"multiply_adds": None, "milliseconds": None}
    text = render_markdown({"grid": row}, {}, FACTS)
    assert "| 0.00 | 3.37 | 0.66 | – | – | – | – | – | – | – | – | – | – |" in text
    assert "Milliseconds on" not in text and "Left out" not in text


def test_files_are_written(row: dict[str, Any], tmp_path: Path) -> None:
    write_comparison(tmp_path / "new", {"grid": row}, {"s1": "gone"}, FACTS)
    content = json.loads((tmp_path / "new" / "comparison.json").read_text())
    assert content == {"rows": {"grid": ROW}, "skipped": {"s1": "gone"}, "facts": FACTS}
    markdown = (tmp_path / "new" / "comparison.md").read_text(encoding="utf-8")
    assert markdown == render_markdown({"grid": row}, {"s1": "gone"}, FACTS)
