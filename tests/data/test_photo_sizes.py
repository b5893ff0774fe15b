"""Sizes of photos from the heads of their files, and the file that keeps them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from oesir_d2.data import UnreadableImageError, read_image
from oesir_d2.data.datasets import photo_sizes
from oesir_d2.data.datasets.photo_sizes import get_cache_file, load_photo_sizes, read_photo_size

IDS = {"a": 0, "b": 1, "c": 2}


def write_photo(path: Path, width: int = 40, height: int = 24, orientation: int | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (width, height), (90, 120, 60)).save(path, exif=exif)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, photo_id in enumerate(IDS):
        write_photo(tmp_path / "photos" / f"{photo_id}.jpg", 40 + index, 24, orientation=6 if photo_id == "b" else None)
    return tmp_path / "photos"


def load(folder: Path, ids: dict[str, int] = IDS) -> tuple[list[list[int]], list[str]]:
    paths = {index: folder / f"{photo_id}.jpg" for photo_id, index in ids.items()}
    sizes, unreadable = load_photo_sizes(folder, ids, lambda i: str(paths[i]) if paths[i].exists() else None)
    assert sizes.dtype == np.int32
    return sizes.tolist(), unreadable


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", [None, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_size_is_that_of_the_decoded_photo(suffix: str, orientation: int | None, tmp_path: Path) -> None:
    path = write_photo(tmp_path / f"photo.{suffix}", orientation=orientation)
    decoded = read_image(path)
    assert read_photo_size(path) == (decoded.width, decoded.height)
    assert read_photo_size(path) == ((24, 40) if orientation in (5, 6, 7, 8) else (40, 24))


def test_only_the_head_of_the_file_is_needed(tmp_path: Path) -> None:
    path = write_photo(tmp_path / "photo.jpg", 800, 600, orientation=8)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert read_photo_size(path) == (600, 800)


@pytest.mark.parametrize("content", [None, b"", b"no photo", b"\xff\xd8\xff\xe0"])
def test_file_that_is_no_photo_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=r"cannot read the image .*photo\.jpg: \w+Error") as caught:
        read_photo_size(path)
    assert "\n" not in str(caught.value)


def test_photos_are_opened_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [[40, 24], [24, 41], [42, 24]]
    assert load(folder) == (expected, [])
    assert get_cache_file(folder) == folder.parent / "photos.sizes.csv"
    assert get_cache_file(folder).read_text() == "ImageID,Width,Height\na,40,24\nb,24,41\nc,42,24\n"

    def refuse(path: str) -> tuple[int, int]:
        raise AssertionError(f"{path} was opened again")

    with monkeypatch.context() as patch:
        patch.setattr(photo_sizes, "read_photo_size", refuse)
        assert load(folder) == (expected, [])
        # In another order, as another file of boxes may have them.
        assert load(folder, {"c": 0, "a": 1}) == ([expected[2], expected[0]], [])


def test_new_photos_are_added_and_others_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(folder, {"a": 0, "b": 1})
    monkeypatch.setattr(photo_sizes, "SAVED_PHOTOS", 1)
    write_photo(folder / "d.jpg", 8, 9)
    assert load(folder, {"d": 0, "c": 1}) == ([[8, 9], [42, 24]], [])
    lines = get_cache_file(folder).read_text().splitlines()
    assert sorted(lines[1:]) == ["a,40,24", "b,24,41", "c,42,24", "d,8,9"]


def test_what_was_read_before_an_interruption_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = read_photo_size

    def stop_at_the_last(path: str) -> tuple[int, int]:
        if path.endswith("c.jpg"):
            raise KeyboardInterrupt
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(photo_sizes, "SAVED_PHOTOS", 1)
        patch.setattr(photo_sizes, "read_photo_size", stop_at_the_last)
        with pytest.raises(KeyboardInterrupt):
            load(folder)
    assert get_cache_file(folder).read_text().splitlines()[1:] == ["a,40,24", "b,24,41"]
    assert not list(folder.parent.glob(".tmp-*"))


def test_damaged_photo_is_named_and_tried_again(folder: Path) -> None:
    (folder / "b.jpg").write_bytes(b"no photo")
    (folder / "c.jpg").unlink()
    sizes, unreadable = load(folder)
    assert sizes == [[40, 24], [0, 0], [0, 0]]
    assert len(unreadable) == 1 and f"cannot read the image {folder / 'b.jpg'}: " in unreadable[0]
    write_photo(folder / "b.jpg", 7, 5)
    assert load(folder) == ([[40, 24], [7, 5], [0, 0]], [])


def test_lines_that_make_no_sense_are_read_from_the_photos(folder: Path) -> None:
    get_cache_file(folder).write_bytes(
        b"ImageID,Width,Height\na,3\nb,0,5\nc,4,5,6\na,x,4\nb,99999999999,4\n\xff,1,2\na"
    )
    assert load(folder) == ([[40, 24], [24, 41], [42, 24]], [])
    assert get_cache_file(folder).read_text().splitlines()[-3:] == ["a,40,24", "b,24,41", "c,42,24"]


def test_another_file_of_that_name_is_not_overwritten(folder: Path) -> None:
    get_cache_file(folder).write_text("my own,notes\n")
    with pytest.raises(ValueError, match=r"photos\.sizes\.csv is in the way .*: it begins with 'my own,notes'"):
        load(folder)
    assert get_cache_file(folder).read_text() == "my own,notes\n"


def test_place_that_cannot_be_written_is_no_obstacle(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Permissions would not stop the super-user, as whom tests may run.
    get_cache_file(folder).mkdir()
    assert load(folder) == ([[40, 24], [24, 41], [42, 24]], [])
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"{get_cache_file(folder)} cannot be written, so the photos' sizes will be read again")


def _load_and_tell(folder: Path, queue: Callable[..., object]) -> None:
    opened = []
    read = photo_sizes.read_photo_size
    photo_sizes.read_photo_size = lambda path: opened.append(path) or read(path)
    queue.put((load(folder), len(opened)))


def test_processes_of_one_run_share_the_work(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_load_and_tell, args=(folder, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert [result for result, _ in results] == [([[40, 24], [24, 41], [42, 24]], [])] * 3
    assert sum(count for _, count in results) == 3
