"""The cache of keypoints: kept, made anew when damaged, bounded, and never in the way."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from oesir_d2.geometry import FeatureCache, FeatureOptions, LocalFeatures

OPTIONS = FeatureOptions(max_features=100)
SHA256 = "ab" * 32


@pytest.fixture
def photo(read_photo: Callable[..., np.ndarray]) -> np.ndarray:
    return read_photo("coffee", 160)


def refuse() -> np.ndarray:
    raise AssertionError("the photo was read again")


def fill(folder: Path, photo: np.ndarray, options: FeatureOptions = OPTIONS) -> LocalFeatures:
    return FeatureCache(folder, options).get(SHA256, lambda: photo)


def assert_same(one: LocalFeatures, other: LocalFeatures) -> None:
    for name in ("points", "sizes", "angles", "descriptors"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_keypoints_are_kept_in_memory_and_on_disk(tmp_path: Path, photo: np.ndarray) -> None:
    cache = FeatureCache(tmp_path / "keypoints", OPTIONS)
    features = cache.get(SHA256, lambda: photo)
    assert len(features) > 50
    assert cache.get(SHA256, refuse) is features
    assert_same(FeatureCache(tmp_path / "keypoints", OPTIONS).get(SHA256, refuse), features)
    (path,) = (tmp_path / "keypoints").rglob("*.*")
    assert path.parent.name == "ab" and path.name.startswith(SHA256)


def test_other_options_and_other_photos_have_files_of_their_own(tmp_path: Path, photo: np.ndarray) -> None:
    fill(tmp_path, photo)
    fewer = fill(tmp_path, photo, FeatureOptions(max_features=20))
    assert len(fewer) < 50
    assert len(FeatureCache(tmp_path, OPTIONS).get("cd" * 32, lambda: photo[:, ::-1])) > 50
    assert len(list(tmp_path.rglob("*.features"))) == 3


@pytest.mark.parametrize("damage", ["empty", "truncated", "bit", "garbage", "pickle", "folder"])
def test_damaged_file_is_made_anew(tmp_path: Path, photo: np.ndarray, damage: str) -> None:
    features = fill(tmp_path, photo)
    (path,) = tmp_path.rglob("*.features")
    content = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 4
        path.write_bytes(
            {
                "empty": b"",
                "truncated": content[:-7],
                "bit": bytes(flipped),
                "garbage": os.urandom(500),
                "pickle": b"\x00\x00\x00\x00\x80\x04K\x01.",
            }[damage]
        )
    assert_same(fill(tmp_path, photo), features)
    if damage != "folder":
        assert path.read_bytes() == content


def test_blank_photo_is_kept_as_one_without_keypoints(tmp_path: Path) -> None:
    assert len(fill(tmp_path, np.zeros((40, 40, 3), np.uint8))) == 0
    assert len(FeatureCache(tmp_path, OPTIONS).get(SHA256, refuse)) == 0


def test_folder_that_cannot_be_written_is_no_error(
    tmp_path: Path, photo: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "keypoints").write_text("a file where the folder should be")
    cache = FeatureCache(tmp_path / "keypoints", OPTIONS)
    assert len(cache.get(SHA256, lambda: photo)) > 50
    assert len(cache.get("cd" * 32, lambda: photo)) > 50
    assert len([record for record in caplog.records if "not kept" in record.message]) == 1


def test_cache_that_can_be_read_but_not_written_is_used(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of another user, whose files' times cannot be set."""
    features = fill(tmp_path, photo)

    def forbid(path: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    monkeypatch.setattr(os, "utime", forbid)
    assert_same(FeatureCache(tmp_path, OPTIONS).get(SHA256, refuse), features)


def test_processes_leave_each_others_unfinished_files_alone(tmp_path: Path, photo: np.ndarray) -> None:
    """A new cache's first write measures the folder: what another process writes just then stays."""
    (tmp_path / "ab").mkdir()
    young, abandoned = tmp_path / "ab" / ".tmp-1-young", tmp_path / "ab" / ".tmp-2-abandoned"
    for path in (young, abandoned):
        path.write_bytes(b"half")
    two_hours_ago = time.time() - 7200
    os.utime(abandoned, (two_hours_ago, two_hours_ago))
    # A file that was listed and is gone when it is looked at, as this link without an end is.
    (tmp_path / "ab" / "gone.features").symlink_to("nowhere")
    cache = FeatureCache(tmp_path, OPTIONS)
    cache.get(SHA256, lambda: photo)
    assert young.exists() and not abandoned.exists()
    cache.get("cd" * 32, lambda: photo)
    FeatureCache(tmp_path, OPTIONS).get("cd" * 32, refuse)


def test_file_that_another_process_deletes_while_it_is_written_costs_that_file_only(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = FeatureCache(tmp_path, OPTIONS)
    rename = os.replace

    def delete_first(source: Path, target: Path) -> None:
        os.unlink(source)
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", delete_first)
        cache.get(SHA256, lambda: photo)
    assert list(tmp_path.rglob("*.features")) == [] and caplog.records == []
    cache.get("cd" * 32, lambda: photo)
    assert len(list(tmp_path.rglob("*.features"))) == 1


def test_size_on_disk_is_bounded(tmp_path: Path, photo: np.ndarray) -> None:
    """What was not used for longest goes first."""
    fill(tmp_path, photo)
    (path,) = tmp_path.rglob("*.features")
    size = path.stat().st_size
    for number in range(5):
        copy = tmp_path / "ab" / f"{number}.features"
        shutil.copy(path, copy)
        os.utime(copy, (number, number))
    cache = FeatureCache(tmp_path, OPTIONS, max_disk_bytes=int(3.5 * size))
    cache.get("ef" * 32, lambda: photo)
    left = sorted(path.name for path in tmp_path.rglob("*.features"))
    assert len(left) == 3 and "4.features" in left


def test_memory_is_bounded(tmp_path: Path, photo: np.ndarray) -> None:
    cache = FeatureCache(None, OPTIONS, max_memory_bytes=1)
    cache.get(SHA256, lambda: photo)
    cache.get("cd" * 32, lambda: photo)
    cache.get("cd" * 32, refuse)
    reads = []
    cache.get(SHA256, lambda: reads.append(1) or photo)
    assert reads
