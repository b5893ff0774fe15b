"""tools/search.py --verify --report: the page of the proof tells what the JSON tells."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path

from PIL import Image

from .conftest import RunTool


def test_the_report_shows_the_proof(run_tool: RunTool, photos: Path, index: Path, tmp_path: Path) -> None:
    with Image.open(photos / "motorcycle_left.png") as host, Image.open(photos / "coffee.png") as donor:
        splice = host.convert("RGB")
        splice.paste(donor.convert("RGB").crop((30, 10, 110, 80)), (5, 5))
    query, json_path, report = tmp_path / "splice.png", tmp_path / "found.json", tmp_path / "found"
    splice.save(query)
    shutil.copytree(index, tmp_path / "index")  # it gets keypoints
    paths = ("--json", json_path, "--report", report)
    finished = run_tool(
        "search", "--index", tmp_path / "index", "--query", query, photos / "moon.png", "--verify", *paths
    )
    assert finished.code == 0, finished.stderr

    answers = [json.loads(line) for line in json_path.read_text().splitlines()]
    roles = {result["image_id"]: result["role"] for result in answers[0]["results"]}
    assert (roles["motorcycle_left.png"], roles["coffee.png"]) == ("host", "donor")
    page = (report / "report.html").read_text()
    assert "This photo was made from motorcycle_left.png and has a part of coffee.png." in page
    assert "This photo shows the same as moon.png." in page
    saved = re.findall(r'href="data:application/json;base64,([^"]+)"', page)
    assert [json.loads(base64.b64decode(text)) for text in saved] == answers
    assert "All that was found" in page
