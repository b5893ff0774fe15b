"""Building an index: what is embedded, what is not embedded again, and what is skipped."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode
from PIL import Image

from oesir_d2.data import ImageFile, UnreadableImageError
from oesir_d2.engine import indexing
from oesir_d2.engine.embedder import Embedder
from oesir_d2.engine.indexing import BuildSummary, build_index
from oesir_d2.index import EmbeddingIndex, read_skipped
from oesir_d2.layers import rmac_grid

WritePhoto = Callable[..., ImageFile]
Build = Callable[..., BuildSummary]
OBJECTS = sum(len(rmac_grid(48 + 8 * index, 72, (1, 2), 0.4)) + 1 for index in range(6))
"""Regions of the six photos: the grid of each, and the whole image."""


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch, embedder: Embedder) -> list[str]:
    """The ids of the photos that were embedded since the list was cleared. All builds share one model."""
    ids: list[str] = []
    run_model = Embedder._run_model

    def note(self: Embedder, files: list[ImageFile], *args: object) -> object:
        ids.extend(file.image_id for file in files)
        return run_model(self, files, *args)

    monkeypatch.setattr(Embedder, "_run_model", note)
    monkeypatch.setattr(indexing, "Embedder", lambda cfg: embedder)
    return ids


@pytest.fixture
def build(cfg: CfgNode, embedded: list[str], tmp_path: Path) -> Build:
    """``build(files)`` brings the index at ``tmp_path / "index"`` up to date."""
    cfg.INDEX.SEGMENT_IMAGES = 4

    def run(files: list[ImageFile], **options: bool) -> BuildSummary:
        embedded.clear()
        return build_index(cfg, files, tmp_path / "index", **options)

    return run


@pytest.fixture
def open_index(tmp_path: Path) -> Callable[[], EmbeddingIndex]:
    def open_checked() -> EmbeddingIndex:
        index = EmbeddingIndex.open(tmp_path / "index")
        index.verify()
        return index

    return open_checked


OpenIndex = Callable[[], EmbeddingIndex]


def read_index(index: EmbeddingIndex) -> dict[str, np.ndarray]:
    return {record.image_id: index.embeddings_of(number).vectors for number, record in enumerate(index.images)}


def test_index_holds_what_the_embedder_gives(
    build: Build, embedder: Embedder, photos: list[ImageFile], open_index: OpenIndex
) -> None:
    summary = build(photos)
    index = open_index()
    assert [record.image_id for record in index.images] == [file.image_id for file in photos]
    for number, (file, record) in enumerate(zip(photos, index.images, strict=True)):
        expected, stored = embedder.embed(file), index.embeddings_of(number)
        assert np.array_equal(stored.vectors, expected.embeddings.vectors)
        assert np.array_equal(stored.boxes, expected.embeddings.boxes)
        assert (record.path, record.width, record.height) == (str(file.path), expected.width, expected.height)
        assert (record.file_size, record.modified_ns) == (os.stat(file.path).st_size, os.stat(file.path).st_mtime_ns)
    assert dataclasses.asdict(summary) == {
        "images": 6,
        "objects": OBJECTS,
        "embedded": 6,
        "skipped": 0,
        "seconds": summary.seconds,
        "images_per_second": summary.images_per_second,
        "bytes_per_object": 4 * embedder.info.dimension,
    }
    assert summary.images_per_second == pytest.approx(6 / summary.seconds, rel=0.05)
    assert index.manifest.model == embedder.info and index.manifest.factory == "Flat"
    assert len(index.manifest.segments) == 2
    assert read_skipped(index.path) == []


def test_second_run_embeds_nothing(build: Build, embedded: list[str], photos: list[ImageFile], tmp_path: Path) -> None:
    build(photos)
    before = (tmp_path / "index" / "manifest.json").read_bytes()
    summary = build(photos)
    assert embedded == []
    assert (summary.images, summary.objects, summary.embedded, summary.skipped) == (6, OBJECTS, 0, 0)
    assert (tmp_path / "index" / "manifest.json").read_bytes() == before


def test_new_and_changed_photos_alone_are_embedded(
    build: Build,
    embedded: list[str],
    embedder: Embedder,
    photos: list[ImageFile],
    write_photo: WritePhoto,
    open_index: OpenIndex,
) -> None:
    build(photos[:5])
    before = read_index(open_index())
    write_photo("2.png", 48 + 16, 72)  # another photo under a known name
    summary = build(photos)
    assert embedded == ["2.png", "5.png"]
    assert (summary.images, summary.objects, summary.embedded) == (6, OBJECTS, 2)
    after = read_index(open_index())
    assert after.keys() == {file.image_id for file in photos}
    for image_id, vectors in before.items():
        assert np.array_equal(after[image_id], vectors) == (image_id != "2.png")
    assert np.array_equal(after["2.png"], embedder.embed(photos[2]).embeddings.vectors)


def test_touched_photo_is_refreshed_without_embedding(
    build: Build, embedded: list[str], photos: list[ImageFile], open_index: OpenIndex
) -> None:
    build(photos)
    before = read_index(open_index())
    os.utime(photos[1].path, ns=(1, 1))
    summary = build(photos)
    assert embedded == [] and summary.embedded == 0 and summary.images == 6
    index = open_index()
    (record,) = (record for record in index.images if record.image_id == "1.png")
    assert record.modified_ns == 1
    assert np.array_equal(read_index(index)["1.png"], before["1.png"])
    build(photos)
    assert open_index().manifest == index.manifest, "the touched photo was written once more"


def test_moved_photos_are_found_under_their_new_path(
    build: Build, embedded: list[str], photos: list[ImageFile], open_index: OpenIndex, tmp_path: Path
) -> None:
    build(photos)
    shutil.move(tmp_path / "photos", tmp_path / "moved")
    moved = [ImageFile(file.image_id, tmp_path / "moved" / file.path.name) for file in photos]
    build(moved)
    assert embedded == []
    assert sorted(record.path for record in open_index().images) == [str(file.path) for file in moved]


def test_same_size_and_other_content_is_embedded_again(
    build: Build, embedded: list[str], photos: list[ImageFile], tmp_path: Path
) -> None:
    def write(value: int) -> ImageFile:
        Image.new("RGB", (60, 40), (value, 10, 10)).save(tmp_path / "flat.bmp")
        return ImageFile("flat.bmp", tmp_path / "flat.bmp")

    build([*photos, write(20)])
    size = os.stat(tmp_path / "flat.bmp").st_size
    build([*photos, write(30)])
    assert os.stat(tmp_path / "flat.bmp").st_size == size
    assert embedded == ["flat.bmp"]


def test_photos_that_a_later_collection_does_not_name_stay(build: Build, photos: list[ImageFile]) -> None:
    build(photos[:4])
    assert build(photos[4:]).images == 6


def test_unreadable_photo_is_skipped_with_its_reason_and_taken_in_once_repaired(
    build: Build, embedded: list[str], photos: list[ImageFile], write_photo: WritePhoto, open_index: OpenIndex
) -> None:
    content = photos[3].path.read_bytes()
    photos[3].path.write_bytes(content[: len(content) // 2])
    photos[4].path.unlink()
    summary = build(photos)
    assert (summary.images, summary.embedded, summary.skipped) == (4, 4, 2)
    skipped = {entry.path: entry.reason for entry in read_skipped(open_index().path)}
    assert skipped.keys() == {str(photos[3].path), str(photos[4].path)}
    assert skipped[str(photos[4].path)] == "the file does not exist"
    assert skipped[str(photos[3].path)] and "\n" not in skipped[str(photos[3].path)]

    photos[3].path.write_bytes(content)
    summary = build(photos)
    assert embedded == ["3.png"] and (summary.images, summary.skipped) == (5, 1)
    assert [entry.path for entry in read_skipped(open_index().path)] == [str(photos[4].path)]
    write_photo("4.png")
    assert (build(photos).images, read_skipped(open_index().path)) == (6, [])


def test_photo_whose_old_content_comes_back_is_not_skipped_any_more(
    build: Build, embedded: list[str], photos: list[ImageFile], open_index: OpenIndex
) -> None:
    build(photos)
    content = photos[3].path.read_bytes()
    photos[3].path.write_bytes(content[: len(content) // 2])
    assert build(photos).skipped == 1
    assert [entry.path for entry in read_skipped(open_index().path)] == [str(photos[3].path)]
    photos[3].path.write_bytes(content)
    assert build(photos).skipped == 0 and embedded == []
    assert read_skipped(open_index().path) == []


def test_strict_build_stops_at_the_first_unreadable_photo_and_keeps_what_came_before(
    build: Build, photos: list[ImageFile], open_index: OpenIndex
) -> None:
    photos[4].path.write_bytes(b"no photo")
    with pytest.raises(UnreadableImageError, match=r"4\.png"):
        build(photos, strict=True)
    assert [record.image_id for record in open_index().images] == [f"{index}.png" for index in range(4)]
    assert build(photos).images == 5


def test_photo_that_is_replaced_while_it_is_read_is_embedded_again(
    build: Build,
    embedded: list[str],
    embedder: Embedder,
    photos: list[ImageFile],
    write_photo: WritePhoto,
    open_index: OpenIndex,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Were the file's hash that of the new content, the old embedding would stay for good."""
    embed_all = Embedder.embed_all

    def replace_after_reading(self: Embedder, files: Iterator[ImageFile]) -> Iterator[tuple[ImageFile, object]]:
        for file, result in embed_all(self, files):
            if file.image_id == "1.png":
                write_photo("1.png")
            yield file, result

    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "embed_all", replace_after_reading)
        assert build(photos[:3]).images == 3
    assert build(photos[:3]).embedded == 1 and embedded == ["1.png"]
    assert np.array_equal(read_index(open_index())["1.png"], embedder.embed(photos[1]).embeddings.vectors)


def test_index_of_another_model_is_refused_by_name_and_left_as_it_is(
    build: Build, photos: list[ImageFile], cfg: CfgNode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build(photos[:2])
    before = {path: path.read_bytes() for path in (tmp_path / "index").rglob("*") if path.is_file()}
    monkeypatch.setattr(indexing, "Embedder", Embedder)
    for key, value, words in (
        ("MODEL.OESIR.EMBEDDING.POOLER", "MACPooler", r"POOLER \(index: 'GeMPooler', model: 'MACPooler'\)"),
        ("MODEL.OESIR.TEACHER.LAYER", "conv4_3", r"dimension \(index: 112, model: 80\)"),
        ("INPUT.OESIR.MAX_LONG_SIDE", "512", "max_long_side"),
    ):
        other = cfg.clone()
        other.merge_from_list([key, value])
        with pytest.raises(ValueError, match=words):
            build_index(other, photos, tmp_path / "index")
    assert {path: path.read_bytes() for path in (tmp_path / "index").rglob("*") if path.is_file()} == before


def test_folder_of_something_else_is_refused_and_left_as_it_is(
    build: Build, photos: list[ImageFile], tmp_path: Path
) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"neither an index nor an empty folder: it holds 'thesis\.txt'"):
        build(photos)
    assert [path.name for path in (tmp_path / "index").iterdir()] == ["thesis.txt"]
