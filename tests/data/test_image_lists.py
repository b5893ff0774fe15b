"""Which photos a folder, a text list or a splices.json has."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from oesir_d2.data.images import get_image_extensions, list_images


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def list_ids(source: Path) -> list[str]:
    return [image.image_id for image in list_images(source)]


def test_folder_is_searched_with_its_subfolders_in_sorted_order(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a/z.PNG", "a/b/c.webp", "a b/größe ü.jpeg", "notes.txt", "noextension", "d.tiff")
    images = list_images(tmp_path)
    assert [image.image_id for image in images] == ["a b/größe ü.jpeg", "a/b/c.webp", "a/z.PNG", "b.jpg", "d.tiff"]
    assert [image.path for image in images] == [tmp_path / image.image_id for image in images]
    assert list_ids(Path(str(tmp_path) + "/")) == [image.image_id for image in images]


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", ".b.jpg", ".cache/c.jpg", "d/.e.jpg")
    assert list_ids(tmp_path) == ["a.jpg"]
    touch(tmp_path, ".hidden collection/f.jpg")  # unless the user names the folder itself
    assert list_ids(tmp_path / ".hidden collection") == ["f.jpg"]


def test_ignored_files_are_counted_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.jpg", "b.heic", "c.heic", "d.txt")
    with caplog.at_level(logging.INFO, logger="oesir_d2.data.images"):
        list_images(tmp_path)
    assert "2 .heic, 1 .txt" in caplog.text


@pytest.mark.filterwarnings("error")
def test_symbolic_links_neither_loop_nor_list_a_photo_twice(tmp_path: Path) -> None:
    touch(tmp_path, "photos/m/a.jpg", "elsewhere/b.jpg")
    folder = tmp_path / "photos"
    (folder / "m/loop").symlink_to(folder)
    (folder / "a link to m").symlink_to(folder / "m")  # sorts before m, whose photos still keep their own id
    (folder / "outside").symlink_to(tmp_path / "elsewhere")
    (folder / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert list_ids(folder) == ["dangling.jpg", "m/a.jpg", "outside/b.jpg"]


def test_name_that_is_not_utf8_gives_an_id_that_can_be_written(tmp_path: Path) -> None:
    name = os.path.join(os.fsencode(tmp_path), b"caf\xe9.jpg")
    try:
        open(name, "wb").close()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (image,) = list_images(tmp_path)
    assert image.image_id.encode("utf-8") == rb"caf\xe9.jpg"
    assert os.path.exists(image.path)


def test_folder_that_cannot_be_listed_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "a.jpg", "secret/b.jpg")
    scandir = os.scandir

    def deny(path: str) -> object:  # chmod would not stop a test that runs as root
        if os.fspath(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    assert list_ids(tmp_path) == ["a.jpg"]
    assert "secret" in caplog.text and "Permission denied" in caplog.text


def test_text_list(tmp_path: Path) -> None:
    lines = "\ufeff# my photos\n\n  b.jpg \r\nsub/größe ü.jpg\n/absolute/c.dat\nmissing.jpg\n"
    (tmp_path / "list.txt").write_bytes(lines.encode())
    images = list_images(tmp_path / "list.txt")
    assert [image.image_id for image in images] == ["b.jpg", "sub/größe ü.jpg", "/absolute/c.dat", "missing.jpg"]
    assert images[1].path == tmp_path / "sub/größe ü.jpg"
    assert images[2].path == Path("/absolute/c.dat")


def test_splices_database_keeps_its_ids(tmp_path: Path) -> None:
    database = [{"image_id": "z", "file_name": "../photos/1.jpg"}, {"image_id": "a", "file_name": "2.jpg"}]
    path = tmp_path / "splices.json"
    path.write_text(json.dumps({"version": 1, "database": database, "queries": []}))
    images = list_images(path)
    assert [(image.image_id, image.path) for image in images] == [
        ("z", tmp_path / "../photos/1.jpg"),
        ("a", tmp_path / "2.jpg"),
    ]


def test_duplicates_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.jpg\nb.jpg\n\na.jpg\n")
    with pytest.raises(ValueError, match=r"list\.txt.*'a\.jpg' twice.*lines 1 and 4"):
        list_images(tmp_path / "list.txt")
    database = [{"image_id": "a", "file_name": "1.jpg"}, {"image_id": "a", "file_name": "2.jpg"}]
    (tmp_path / "splices.json").write_text(json.dumps({"version": 1, "database": database, "queries": []}))
    with pytest.raises(ValueError, match=r"splices\.json.*'a'"):
        list_images(tmp_path / "splices.json")


def test_missing_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder does not exist"):
        list_images(tmp_path / "no such folder")


def test_sources_without_photos_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "folder/notes.txt", "list.txt")
    for source in (tmp_path / "folder", tmp_path / "list.txt"):
        with pytest.raises(ValueError, match=r"has no image.*\.jpg"):
            list_images(source)


def test_sources_of_another_kind_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "photo.jpg")
    (tmp_path / "list.bin").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "coco.json").write_text('{"images": []}')
    os.mkfifo(tmp_path / "pipe")
    for name, words in (
        ("photo.jpg", "single image"),
        ("list.bin", "UTF-8"),
        ("coco.json", "version is missing"),
        ("pipe", "neither"),
    ):
        with pytest.raises(ValueError, match=words):
            list_images(tmp_path / name)


def test_extensions_are_those_of_photos() -> None:
    extensions = get_image_extensions()
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"} <= extensions
    assert not {".pdf", ".eps", ".mpg", ".h5", ".wmf"} & extensions  # Pillow would start programs or find no photo
