"""Files that must be refused: not images, damaged, too large. None may hang, warn or raise another error."""

from __future__ import annotations

import os
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oesir_d2.data.images import MAX_PIXELS, UnreadableImageError, read_image
from oesir_d2.data.quiet_pillow import QuietPillow

MakePhoto = Callable[..., np.ndarray]


def make_png_header(width: int, height: int) -> bytes:
    """A PNG file that claims a size and has hardly any pixel data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def assert_refused(path: str | Path, *words: str, **options: object) -> None:
    with pytest.raises(UnreadableImageError) as caught:
        read_image(path, **options)
    for word in words:
        assert word in caught.value.reason
    assert str(path) in str(caught.value)
    assert "\n" not in caught.value.reason and len(caught.value.reason) < 250


@pytest.mark.parametrize("extension", ["jpg", "png", "gif", "tif", "webp", "bmp"])
def test_truncated_file_is_refused_never_half_grey(tmp_path: Path, make_photo: MakePhoto, extension: str) -> None:
    path = tmp_path / f"photo.{extension}"
    photo = Image.fromarray(make_photo(200, 300))
    photo.save(path, **({"progressive": True} if extension == "jpg" else {}))
    data = path.read_bytes()
    for share in (0.01, 0.1, 0.5, 0.9, 0.98):
        path.write_bytes(data[: int(len(data) * share)])
        assert_refused(path)


def test_files_that_are_no_images_are_refused(tmp_path: Path) -> None:
    contents = {"empty": b"", "zeros": bytes(5000), "text": b"<html>not found</html>", "short": b"\xff\xd8"}
    for name, content in contents.items():
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(content)
        assert_refused(path, "empty" if name == "empty" else "not an image")


def test_missing_file_folder_and_null_character_are_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "missing.jpg", "does not exist")
    assert_refused(tmp_path, "folder")
    assert_refused("nu\0ll.jpg", "null")
    assert_refused(tmp_path / ("x" * 5000), "too long")


def test_special_files_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for a writer for ever
    assert_refused(tmp_path / "pipe.jpg", "regular")
    assert_refused("/dev/zero", "regular")


def test_file_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.jpg"
    path.write_bytes(b"x")

    def deny(*args: object, **kwargs: object) -> None:  # chmod would not stop a test that runs as root
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", deny)
    assert_refused(path, "permission denied")


def test_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    # The first two within Pillow's own limits, the third beyond them.
    for width, height, max_pixels in ((100, 101, 10_000), (12_000, 15_000, MAX_PIXELS), (50_000, 50_000, MAX_PIXELS)):
        path = tmp_path / f"{width}.png"
        path.write_bytes(make_png_header(width, height))
        start = time.perf_counter()
        assert_refused(path, "decompression bomb", max_pixels=max_pixels)
        assert time.perf_counter() - start < 1


def test_no_warning_escapes_and_pillow_is_left_as_it_was(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(make_png_header(10_000, 9_000))  # Pillow warns of it, and its pixels are missing
    state = Image.MAX_IMAGE_PIXELS, warnings.filters[:]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=assert_refused, args=(path,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not caught
    assert (Image.MAX_IMAGE_PIXELS, warnings.filters[:]) == state
    assert capfd.readouterr().err == ""


def test_warnings_stay_silenced_until_the_last_thread_has_left() -> None:
    filters, quiet = warnings.filters[:], QuietPillow()
    with quiet:
        with quiet:
            pass
        assert warnings.filters != filters
    assert warnings.filters == filters


def test_no_damage_lets_another_error_escape(tmp_path: Path, make_photo: MakePhoto) -> None:
    """Some thousand files with random bytes changed: each is read as a whole or refused, whatever Pillow raises."""
    rng = np.random.default_rng(20210619)
    photo = Image.fromarray(make_photo(24, 40))
    sources = []
    for extension, options in (
        ("jpg", {}), ("jpg", {"progressive": True}), ("png", {}), ("gif", {}), ("tif", {}),
        ("tif", {"compression": "packbits"}), ("webp", {}), ("webp", {"lossless": True}), ("bmp", {}),
    ):  # fmt: skip
        path = tmp_path / f"source.{extension}"
        photo.save(path, **options)
        sources.append(path.read_bytes())
    path = tmp_path / "damaged"
    num_refused = 0
    for trial in range(3000):
        data = bytearray(sources[trial % len(sources)])
        for _ in range(rng.integers(1, 6)):
            # Half of the damage goes into the headers, where it does the most.
            end = len(data) if rng.random() < 0.5 else min(len(data), 100)
            data[rng.integers(0, end)] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            pixels = read_image(path, max_pixels=1_000_000).pixels
        except UnreadableImageError:
            num_refused += 1
        else:
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    assert 300 < num_refused < 2700  # both outcomes were really tried
