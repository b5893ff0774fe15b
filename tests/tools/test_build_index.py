"""tools/build_index.py: a new index, one brought up to date, and collections and outputs that are none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oesir_d2.index import EmbeddingIndex

from .conftest import PHOTO_NAMES, RunTool

SUMMARY_KEYS = {"images", "objects", "embedded", "skipped", "seconds", "images_per_second", "bytes_per_object"}
DIMENSION = 512
BYTES_PER_FLOAT32 = 4


@pytest.fixture
def copied(photos: Path, index: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the photos and of their index, whose photos therefore lie elsewhere now."""
    shutil.copytree(photos, tmp_path / "photos")
    shutil.copytree(index, tmp_path / "index")
    return tmp_path / "photos", tmp_path / "index"


def list_vectors(path: Path) -> dict[str, np.ndarray]:
    index = EmbeddingIndex.open(path)
    return {record.image_id: index.embeddings_of(number).vectors for number, record in enumerate(index.images)}


def test_the_last_line_counts_what_the_index_holds(run_tool: RunTool, photos: Path, tmp_path: Path) -> None:
    finished = run_tool("build_index", "--images", photos, "--output", tmp_path / "new" / "index")

    summary = finished.json
    assert finished.stdout.count("\n") == 1
    assert "Embedding" in finished.stderr and finished.messages == []
    assert set(summary) == SUMMARY_KEYS
    index = EmbeddingIndex.open(tmp_path / "new" / "index")
    index.verify()
    assert summary["images"] == len(index.images) == len(PHOTO_NAMES)
    assert {record.image_id for record in index.images} == {f"{name}.png" for name in PHOTO_NAMES}
    assert summary["objects"] == index.num_objects > 30 * len(PHOTO_NAMES)
    assert summary["bytes_per_object"] == DIMENSION * BYTES_PER_FLOAT32
    assert summary["images_per_second"] == pytest.approx(len(PHOTO_NAMES) / summary["seconds"], rel=0.01)
    assert (index.path / "skipped.jsonl").read_bytes() == b""


def test_only_new_and_changed_photos_are_embedded(
    run_tool: RunTool, copied: tuple[Path, Path], make_photo: Callable[..., np.ndarray]
) -> None:
    photos, path = copied
    before = list_vectors(path)
    Image.fromarray(make_photo(120, 160)).save(photos / "new one.png")
    Image.fromarray(make_photo(120, 160)).save(photos / "coins.png")
    os.utime(photos / "page.png")
    (photos / "moon.png").unlink()
    summary = run_tool("build_index", "--images", photos, "--output", path).json

    assert (summary["embedded"], summary["images"], summary["skipped"]) == (2, len(PHOTO_NAMES) + 1, 0)
    after = list_vectors(path)
    assert after.keys() == before.keys() | {"new one.png"}
    assert {name for name in before if not np.array_equal(before[name], after[name])} == {"coins.png"}
    index = EmbeddingIndex.open(path)
    index.verify()
    # The photos were moved: the index knows their new places, and still where the deleted one was.
    moved = {record.image_id for record in index.images if Path(record.path).parent == photos}
    assert moved == after.keys() - {"moon.png"}


def test_a_second_run_writes_nothing_from_wherever_it_starts(
    run_tool: RunTool, copied: tuple[Path, Path], tmp_path: Path
) -> None:
    photos, path = copied
    run_tool("build_index", "--images", photos, "--output", path)
    segments = {file: file.stat().st_mtime_ns for file in path.glob("segments/*/*")}
    for images, cwd in (("photos", tmp_path), (".", photos), ("../photos", path)):
        summary = run_tool("build_index", "--images", images, "--output", path, cwd=cwd).json
        assert (summary["embedded"], summary["images"]) == (0, len(PHOTO_NAMES))
        assert summary["images_per_second"] == 0
    assert {file: file.stat().st_mtime_ns for file in path.glob("segments/*/*")} == segments


def test_a_list_names_the_photos(run_tool: RunTool, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(
        f"# two of them\n{photos}/coins.png\n\n{os.path.relpath(photos, tmp_path)}/page.png\n"
    )
    run_tool("build_index", "--images", "list.txt", "--output", "index", cwd=tmp_path)

    index = EmbeddingIndex.open(tmp_path / "index")
    assert {record.path for record in index.images} == {str(photos / "coins.png"), str(photos / "page.png")}
    assert {record.image_id for record in index.images} == {
        f"{photos}/coins.png",
        f"{os.path.relpath(photos, tmp_path)}/page.png",
    }


def test_pairs_override_the_config_between_options(run_tool: RunTool, photos: Path, tmp_path: Path) -> None:
    words = ("MODEL.OESIR.REGIONS.GRID_LEVELS", "[1]", "--output", "index", "MODEL.OESIR.REGIONS.WHOLE_IMAGE", "False")
    words = ("--config-file", "oesir_lite0_grid.yaml", *words)
    run_tool("build_index", "--images", photos / "..", *words, cwd=tmp_path)

    index = EmbeddingIndex.open(tmp_path / "index")
    assert {record.image_id for record in index.images} == {f"photos/{name}.png" for name in PHOTO_NAMES}
    # Level 1 of the grid alone: squares as large as the photo allows, one in a square photo.
    boxes_of_the_square_photo = index.embeddings_of(
        [record.image_id for record in index.images].index("photos/astronaut.png")
    ).boxes
    assert boxes_of_the_square_photo.tolist() == [[0, 0, 192, 192]]


@pytest.mark.parametrize(
    ("images", "named"),
    [
        ("nowhere", "nowhere does not exist"),
        ("empty", "empty has no image; the extensions looked for are"),
        ("texts", "texts has no image"),
        ("coins.png", "coins.png is a single image, expected a folder or a list"),
        ("gone.txt", "gone.txt does not exist"),
        ("binary.txt", "binary.txt is not a UTF-8 text file"),
        ("blank.txt", "blank.txt has no image"),
    ],
)
def test_no_collection(run_tool: RunTool, photos: Path, tmp_path: Path, images: str, named: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("no photo")
    shutil.copy(photos / "coins.png", tmp_path)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "blank.txt").write_text("\n# nothing\n")
    finished = run_tool("build_index", "--images", images, "--output", "index", cwd=tmp_path)

    assert named in finished.error
    assert finished.stdout == ""
    assert not (tmp_path / "index").exists()


def test_outputs_that_are_no_index(run_tool: RunTool, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for output, named in (
        ("photos/coins.png", "photos/coins.png is a file, expected an index"),
        ("photos", "photos is neither an index nor an empty folder: it holds 'astronaut.png'"),
        ("photos/coins.png/index", "photos/coins.png/index cannot be created: Not a directory"),
        ("/proc/index", "/proc/index cannot be created"),
    ):
        finished = run_tool("build_index", "--images", "photos", "--output", output, cwd=tmp_path)
        assert named in finished.error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_index_that_may_not_be_written(run_tool: RunTool, copied: tuple[Path, Path]) -> None:
    photos, path = copied
    (path / ".lock").chmod(0o444)
    path.chmod(0o555)
    finished = run_tool("build_index", "--images", photos, "--output", path)
    path.chmod(0o755)

    assert "cannot be written" in finished.error


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["INPUT.OESIR.MAX_LONG_SIDE", "512"], "preprocessing max_long_side (index: 1024, model: 512)"),
        (["MODEL.OESIR.EMBEDDING.GEM_P", "4"], "MODEL.OESIR.EMBEDDING.GEM_P (index: 3.0, model: 4.0)"),
        (
            ["MODEL.OESIR.EMBEDDING.WHITENING", "", "MODEL.OESIR.EMBEDDING.WHITENING_DIM", "0"],
            "dimension (index: 512, model: 1824)",
        ),
    ],
)
def test_the_index_of_another_model_is_left_as_it_is(
    run_tool: RunTool, photos: Path, index: Path, words: list[str], named: str
) -> None:
    before = {path: path.read_bytes() for path in index.rglob("*") if path.is_file()}
    finished = run_tool("build_index", "--images", photos, "--output", index, *words)

    assert "built with another model" in finished.error and named in finished.error
    assert {path: path.read_bytes() for path in index.rglob("*") if path.is_file()} == before
