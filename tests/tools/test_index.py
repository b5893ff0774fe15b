"""tools/index.py: the life of an index from the command line, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .conftest import PHOTO_NAMES, RunTool


@pytest.fixture
def copied(photos: Path, index: Path, tmp_path: Path) -> tuple[Path, Path]:
    shutil.copytree(photos, tmp_path / "photos")
    shutil.copytree(index, tmp_path / "index")
    return tmp_path / "photos", tmp_path / "index"


def test_the_life_of_an_index(run_tool: RunTool, copied: tuple[Path, Path], tmp_path: Path) -> None:
    photos, index = copied
    whole = run_tool("index", "info", "--index", index).json
    assert whole["images"] == len(PHOTO_NAMES)
    tuned = run_tool("index", "tune", "--index", index, "--max-memory", "1MB", "--min-recall", "0.5").json
    assert tuned["factory"] != "Flat" and tuned["object_index"]["is_fresh"]
    assert tuned["object_index"]["measured"]["recall_at_10"] >= 0.5

    names = sorted(path.name for path in photos.iterdir() if path.is_file())
    run_tool("index", "add", "--index", index, "--images", photos)  # now they lie elsewhere
    (photos / names[0]).unlink()
    removed = run_tool("index", "remove", "--index", index, "--gone", "--ids", names[1]).json
    assert (removed["removed"], removed["images"]) == (2, whole["images"] - 2)
    assert removed["object_index"]["is_fresh"]
    compacted = run_tool("index", "compact", "--index", index).json
    assert compacted["superseded_images"] == 0 and compacted["segments"] == 1
    added = run_tool("index", "add", "--index", index, "--images", photos).json
    assert (added["embedded"], added["images"]) == (1, whole["images"] - 1)
    merged = run_tool("index", "merge", "--index", tmp_path / "all", "--sources", index, index).json
    assert (merged["added"], merged["images"]) == (added["images"], added["images"])
    assert run_tool("index", "verify", "--index", index).json["images"] == added["images"]

    found = run_tool("search", "--index", index, "--query", photos / names[2], "--top-k", "1").json
    assert found["results"][0]["image_id"] == names[2]
    vectors = next(index.glob("segments/*/vectors.npy"))
    vectors.write_bytes(vectors.read_bytes()[:-1] + b"?")
    assert "parts of index" in run_tool("index", "verify", "--index", index).error


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("info",), "nowhere does not exist"),
        (("add",), "add needs --images"),
        (("remove",), "remove needs --ids"),
        (("compact", "--gone"), "--gone does not belong to compact"),
        (("tune", "--max-memory", "much"), "'much' is not a size, expected such as 64MB"),
        (("tune", "--min-recall", "2"), "min_recall is 2.0"),
        (("tune", "--max-latency", "-5"), "max_latency is -5 ms, must be positive"),
        (("tune", "--factory", "PQ8", "--max-memory", "1MB"), "--max-memory chooses a type, and --factory names one"),
        (("tune", "--max-latency", "9", "--factory", "PQ8"), "--max-latency chooses a type, and --factory names one"),
    ],
)
def test_mistakes_end_in_one_line(run_tool: RunTool, tmp_path: Path, words: tuple[str, ...], match: str) -> None:
    assert match in run_tool("index", *words, "--index", tmp_path / "nowhere").error
