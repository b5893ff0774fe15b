"""tools/demo.py on a folder of photos: the whole job, a second run, and photos that no splice can be made of."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import PHOTO_NAMES, Finished, RunTool

FIGURES = {"mAP", *(f"{role}_recall@{k}" for role in ("host", "donor") for k in (1, 5, 10)), *(
    f"both_in_top_{k}" for k in (2, 5, 10)
)}  # fmt: skip


@pytest.fixture(scope="module")
def folder(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/, one of which is broken."""
    folder = tmp_path_factory.mktemp("demo")
    shutil.copytree(photos, folder / "photos")
    (folder / "photos" / "broken.jpg").touch()
    return folder


@pytest.fixture(scope="module")
def first(run_tool: RunTool, folder: Path) -> Finished:
    return run_tool("demo", "--photos", "photos", "--count", "3", cwd=folder)


def test_it_ends_with_its_figures(first: Finished, folder: Path) -> None:
    figures = first.json
    assert first.stdout.count("\n") == 1
    assert figures.keys() == FIGURES | {"report", "images", "objects", "skipped", "queries", "seconds"}
    assert (figures["images"], figures["skipped"], figures["queries"]) == (len(PHOTO_NAMES), 1, 3)
    assert figures["host_recall@10"] == 100
    page = (folder / figures["report"]).read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") > 3 * 3 and "http" not in page.split("</style>")[1]
    # Next to the photos and what the demo wrote there is nothing.
    assert sorted(path.name for path in folder.iterdir()) == ["output", "photos"]


def test_a_second_run_does_only_what_is_missing(run_tool: RunTool, folder: Path, first: Finished) -> None:
    def list_files() -> dict[Path, int]:
        paths = [path for path in (folder / "output").rglob("*") if path.suffix in (".npy", ".jpg", ".png")]
        return {path: path.stat().st_mtime_ns for path in paths}

    before = list_files()
    again = run_tool("demo", "--photos", "photos", "--count", "3", cwd=folder)

    assert again.json | {"seconds": 0} == first.json | {"seconds": 0}
    assert list_files() == before
    # Another photo gets in, and splices of its own are made of all of them.
    shutil.copy(folder / "photos" / "page.png", folder / "photos" / "new.png")
    more = run_tool("demo", "--photos", "photos", "--count", "3", cwd=folder)
    assert more.json["images"] == len(PHOTO_NAMES) + 1
    assert before.items() <= list_files().items()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--photos", "nowhere"], "nowhere does not exist"),
        (["--photos", "flat"], "0 of 3 donor photos have an object to cut out"),
        (["--photos", "broken"], "none of the 1 hosts can be read"),
        (["--photos", "flat", "--count", "0"], "argument --count: '0'"),
        (["--photos", "flat", "--seed", "-3"], "argument --seed: '-3'"),
        (["--photos", "flat", "--output", "broken/empty.jpg"], "empty.jpg"),
    ],
)
def test_photos_that_will_not_do(run_tool: RunTool, tmp_path: Path, words: list[str], named: str) -> None:
    (tmp_path / "flat").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "empty.jpg").touch()
    for level in (30, 90, 200):
        Image.fromarray(np.full((96, 128, 3), level, np.uint8)).save(tmp_path / "flat" / f"{level}.png")
    finished = run_tool("demo", *words, cwd=tmp_path)

    assert finished.code == 2
    *progress, error = finished.messages
    assert error.startswith("demo: error: ") and named in error
    assert all(line[1:3] == "/4" or "WARNING" in line for line in progress), progress
    assert finished.stdout == ""


def test_without_photos_it_takes_the_gallery(run_tool: RunTool, tmp_path: Path) -> None:
    """Not the whole demo, which would take a minute: it stops at a config that its index does not take."""
    finished = run_tool("demo", "--output", tmp_path, "INDEX.SEGMENT_IMAGES", "0")

    assert finished.code == 2
    count = len(list((tmp_path / "gallery").iterdir()))
    assert count >= 15
    assert finished.messages[0] == f"1/4 indexing {count} photos of {tmp_path / 'gallery'}"
