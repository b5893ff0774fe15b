"""Whatever ends a build, the index is sound, and the next run completes it to the same search results."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from oesir_d2.index import EmbeddingIndex

from .conftest import PHOTO_NAMES, RunTool, StartTool

SEGMENT = 2
SETTINGS = ("INDEX.SEGMENT_IMAGES", str(SEGMENT))
MOST_KILLS = 15
Search = Callable[[Path], str]

QUERIES = ("coins.png", "chelsea mirrored.png", "moon negative.png")


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """Thirty different photos, large enough that the build takes long enough to be interrupted."""
    folder = tmp_path_factory.mktemp("interrupted") / "photos"
    folder.mkdir()
    for name in PHOTO_NAMES:
        photo = ImageOps.scale(Image.open(photos / f"{name}.png"), 2)
        photo.save(folder / f"{name}.png")
        ImageOps.mirror(photo).save(folder / f"{name} mirrored.png")
        ImageOps.invert(photo).save(folder / f"{name} negative.png")
    return folder


@pytest.fixture(scope="module")
def whole(collection: Path, run_tool: RunTool) -> Path:
    """The index of an uninterrupted build."""
    path = collection.parent / "whole"
    assert run_tool("build_index", "--images", collection, "--output", path, *SETTINGS).json["images"] == 30
    return path


@pytest.fixture(scope="module")
def search(collection: Path, run_tool: RunTool) -> Search:
    """Search an index with some of the photos; the whole output."""

    def run(path: Path) -> str:
        queries = [collection / name for name in QUERIES]
        finished = run_tool("search", "--index", path, "--query", *queries, "--top-k", "30")
        assert finished.code == 0, finished.stderr
        return finished.stdout

    return run


def count_images(path: Path) -> int:
    """How many photos the manifest of an index counts; 0 if it is not there yet."""
    manifest = path / "manifest.json"
    return json.loads(manifest.read_text())["counts"]["images"] if manifest.exists() else 0


def check_index(path: Path) -> int:
    """How many photos an index holds, which must be sound unless it is not there yet."""
    if not (path / "manifest.json").exists():
        return 0
    index = EmbeddingIndex.open(path)
    index.verify()
    assert len({record.image_id for record in index.images}) == len(index.images)
    return len(index.images)


def test_killed_again_and_again(
    start_tool: StartTool, run_tool: RunTool, collection: Path, whole: Path, search: Search, tmp_path: Path
) -> None:
    path = tmp_path / "index"
    rng = np.random.default_rng(0)
    arguments = ("build_index", "--images", collection, "--output", path, *SETTINGS)
    counts = [0]
    while counts[-1] < 30 and len(counts) <= MOST_KILLS:
        running = start_tool(*arguments)
        # At first before the index is there, then at any moment of writing two segments or so.
        if len(counts) > 1:
            running.wait_until(lambda: count_images(path) > counts[-1])  # noqa: B023 - called at once
        time.sleep(rng.uniform(0, 0.3))
        os.kill(running.pid, signal.SIGKILL)
        assert running.wait().code in (-signal.SIGKILL, 0)
        counts.append(check_index(path))

    assert len(counts) > 3
    # Each run but the first wrote a segment before it was killed, and every one that was written is kept.
    assert all(later >= earlier + SEGMENT for earlier, later in zip(counts[1:], counts[2:]))
    summary = run_tool(*arguments).json
    assert summary["images"] == 30
    assert summary["embedded"] == 30 - counts[-1]
    assert search(path) == search(whole)
    assert not [file for file in path.rglob("*") if file.name.startswith(".tmp-")]


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_stopped_by_hand(
    start_tool: StartTool, collection: Path, tmp_path: Path, number: signal.Signals, code: int, word: str
) -> None:
    path = tmp_path / "index"
    running = start_tool("build_index", "--images", collection, "--output", path, *SETTINGS)
    running.wait_until(lambda: count_images(path) > 0)
    os.kill(running.pid, number)
    finished = running.wait()

    assert (finished.code, finished.messages, finished.stdout) == (code, [f"build_index: {word}"], "")
    assert 0 < check_index(path) < 30


def test_one_writer_at_a_time(
    start_tool: StartTool, run_tool: RunTool, collection: Path, whole: Path, search: Search, tmp_path: Path
) -> None:
    path = tmp_path / "index"
    arguments = ("build_index", "--images", collection, "--output", path, *SETTINGS)
    first = start_tool(*arguments)
    first.wait_until(lambda: count_images(path) > 0)
    os.kill(first.pid, signal.SIGSTOP)
    second = run_tool(*arguments)
    searched = search(path)
    os.kill(first.pid, signal.SIGCONT)

    assert second.error == f"build_index: error: another process writes this index: {path}"
    # Who searches meanwhile finds what is there.
    assert 3 == searched.count("\n") and "coins.png" in searched
    assert first.wait().json["embedded"] == 30
    assert search(path) == search(whole)


def test_a_full_disk(run_tool: RunTool, collection: Path, whole: Path, search: Search, tmp_path: Path) -> None:
    """A limit on the size of files stops the writing of the manifest, of a small array, of the vectors."""
    path = tmp_path / "index"
    shutil.copytree(whole, path)
    images = tmp_path / "photos"
    shutil.copytree(collection, images)
    for name in PHOTO_NAMES:
        (images / f"{name} negative.png").replace(images / f"{name} new.png")
    arguments = ("build_index", "--images", images, "--output", path, "INDEX.SEGMENT_IMAGES", "64")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    for limit in (3_000, 20_000, 150_000):
        finished = run_tool(*arguments, file_size_limit=limit)

        assert "File too large" in finished.error and "index keeps its 30 images" in finished.error
        assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert search(path) == search(whole)
    assert run_tool(*arguments).json["images"] == 40
