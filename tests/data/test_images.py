"""Decoding one image file: pixel types, rotation, reduced size."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from oesir_d2.data.images import UnreadableImageError, read_image

ORIENTATION_TAG = 0x0112
MakePhoto = Callable[..., np.ndarray]


def save(array: np.ndarray, path: Path, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def write_grey_tiff(path: Path, width: int, bits: int, samples: bytes) -> None:
    """An uncompressed grey TIFF of one row and of unsigned samples: what Pillow reads but cannot write."""
    # Width, height, bits, no compression, black is 0, offset of the samples, one a pixel, rows, bytes, unsigned.
    entries = {256: width, 257: 1, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(samples), 339: 1}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    header = struct.pack("<2sHI", b"II", 42, 8 + len(samples))
    path.write_bytes(header + samples + struct.pack("<H", len(entries)) + directory + bytes(4))


@pytest.mark.parametrize("extension", ["png", "bmp", "tif", "webp", "ppm"])
def test_lossless_photo_comes_back_exactly(tmp_path: Path, make_photo: MakePhoto, extension: str) -> None:
    photo = make_photo(40, 60)
    path = save(photo, tmp_path / f"photo.{extension}", **({"lossless": True} if extension == "webp" else {}))
    image = read_image(path)
    assert (image.width, image.height) == (60, 40)
    assert image.pixels.dtype == np.uint8 and image.pixels.flags.c_contiguous and image.pixels.flags.writeable
    np.testing.assert_array_equal(image.pixels, photo)
    np.testing.assert_array_equal(read_image(path, format="BGR").pixels, photo[:, :, ::-1])


def test_format_is_told_from_the_content_not_from_the_name(tmp_path: Path, make_photo: MakePhoto) -> None:
    photo = make_photo(20, 30)
    path = save(photo, tmp_path / "photo.jpg", format="PNG")
    np.testing.assert_array_equal(read_image(path).pixels, photo)


def test_photo_larger_than_one_conversion_strip(tmp_path: Path, make_photo: MakePhoto) -> None:
    photo = np.tile(make_photo(200, 300), (4, 5, 1))  # 1.2 megapixels, more than the strip's 2**20
    np.testing.assert_array_equal(read_image(save(photo, tmp_path / "photo.png")).pixels, photo)


def test_grey_and_one_bit_images(tmp_path: Path, make_photo: MakePhoto) -> None:
    grey = make_photo(20, 30)[:, :, 0]
    pixels = read_image(save(grey, tmp_path / "grey.png")).pixels
    np.testing.assert_array_equal(pixels, np.repeat(grey[:, :, None], 3, axis=2))
    pixels = read_image(save(grey > 128, tmp_path / "bits.png")).pixels
    np.testing.assert_array_equal(pixels[:, :, 0], np.where(grey > 128, 255, 0))


def test_palette_image(tmp_path: Path) -> None:
    indices = np.array([[0, 1], [2, 1]], dtype=np.uint8)
    palette = np.array([[10, 20, 30], [200, 100, 50], [0, 255, 0]], dtype=np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())  # it turns the grey values into indices
    image.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png").pixels, palette[indices])
    image.save(tmp_path / "transparent.png", transparency=1)
    expected = palette.copy()
    expected[1] = 255
    np.testing.assert_array_equal(read_image(tmp_path / "transparent.png").pixels, expected[indices])


@pytest.mark.parametrize("channels", [2, 4])
def test_transparent_image_is_composited_on_white(tmp_path: Path, rng: np.random.Generator, channels: int) -> None:
    array = rng.integers(0, 256, size=(30, 40, channels), dtype=np.uint8)
    array[0, 0, -1], array[0, 1, -1] = 0, 255
    pixels = read_image(save(array, tmp_path / "image.png")).pixels
    alpha = array[:, :, -1:] / 255.0
    expected = array[:, :, :-1] * alpha + 255 * (1 - alpha)
    assert np.abs(pixels - np.broadcast_to(expected, pixels.shape)).max() <= 1
    assert (pixels[0, 0] == 255).all()
    assert (pixels[0, 1] == array[0, 1, :-1]).all()


def test_16_bit_image_is_scaled_by_its_type_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 256, 1000], [32768, 65000, 65535]], dtype=np.uint16)
    for path in (tmp_path / "grey.png", tmp_path / "grey.tif"):
        pixels = read_image(save(values, path)).pixels
        np.testing.assert_allclose(pixels[:, :, 0], values / 257.0, atol=1)
    dark = read_image(save(values // 100, tmp_path / "dark.png")).pixels
    assert dark.max() <= 2  # not stretched to the brightest pixel


def test_16_bit_pgm_arrives_in_a_32_bit_mode(tmp_path: Path) -> None:
    values = np.array([[0, 500], [40000, 65535]], dtype=np.uint16)
    (tmp_path / "grey.pgm").write_bytes(b"P5\n2 2\n65535\n" + values.astype(">u2").tobytes())
    np.testing.assert_allclose(read_image(tmp_path / "grey.pgm").pixels[:, :, 1], values / 257.0, atol=1)


def test_16_bit_colour_image(tmp_path: Path) -> None:
    import cv2  # Pillow cannot write it

    values = np.array([[[0, 30000, 65535], [256, 512, 50000]]], dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "color.png"), values[:, :, ::-1])
    np.testing.assert_allclose(read_image(tmp_path / "color.png").pixels, values / 257.0, atol=1)


def test_tiff_of_12_bits_and_of_unsigned_32_bits(tmp_path: Path) -> None:
    # 0, 2048, 4080 and 4095 as 12-bit samples, two in three bytes.
    write_grey_tiff(tmp_path / "12.tif", width=4, bits=12, samples=bytes.fromhex("000800ff0fff"))
    np.testing.assert_array_equal(read_image(tmp_path / "12.tif").pixels[0, :, 0], [0, 128, 255, 255])
    samples = np.array([0, 2**31, 2**32 - 1], dtype="<u4")
    write_grey_tiff(tmp_path / "32.tif", width=3, bits=32, samples=samples.tobytes())
    np.testing.assert_array_equal(read_image(tmp_path / "32.tif").pixels[0, :, 0], [0, 128, 255])


def test_32_bit_integers_are_stretched_over_their_range(tmp_path: Path) -> None:
    values = np.array([[-1_000_000, 0], [500_000, 1_000_000]], dtype=np.int32)
    pixels = read_image(save(values, tmp_path / "deep.tif")).pixels
    np.testing.assert_array_equal(pixels[:, :, 0], [[0, 128], [191, 255]])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0.0, 0.5, 1.0]], [[0, 128, 255]]),
        ([[0.0, 0.25, 0.5]], [[0, 64, 128]]),
        ([[0.0, 2.0, 200.0]], [[0, 2, 200]]),
        ([[0.0, 32896.0, 65535.0]], [[0, 128, 255]]),
        ([[-1.0, 0.0, 1.0]], [[0, 128, 255]]),
        ([[-1e38, np.inf, 1e38]], [[0, 255, 255]]),
        ([[0.0, np.nan, 1.0]], [[0, 0, 255]]),
    ],
)
def test_float_image(tmp_path: Path, values: list[list[float]], expected: list[list[int]]) -> None:
    pixels = read_image(save(np.array(values, dtype=np.float32), tmp_path / "float.tif")).pixels
    np.testing.assert_array_equal(pixels[:, :, 0], expected)


def test_float_image_without_a_finite_pixel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match="finite"):
        read_image(save(np.full((3, 3), np.nan, dtype=np.float32), tmp_path / "float.tif"))


def test_cmyk_jpeg_looks_like_its_rgb_original(tmp_path: Path, make_photo: MakePhoto) -> None:
    photo = make_photo(64, 64)
    Image.fromarray(photo).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95, subsampling=0)
    assert Image.open(tmp_path / "cmyk.jpg").mode == "CMYK"
    difference = read_image(tmp_path / "cmyk.jpg").pixels.astype(int) - photo
    assert np.abs(difference).mean() < 5  # an inverted image would be off by about 100


def test_animation_gives_its_first_frame(tmp_path: Path, make_photo: MakePhoto) -> None:
    frames = [Image.fromarray(make_photo(30, 40)).quantize(32) for _ in range(3)]
    frames[0].save(tmp_path / "animated.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(tmp_path / "animated.gif").pixels, np.asarray(frames[0].convert("RGB")))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 30000), (30000, 2)])
def test_extreme_sizes(tmp_path: Path, height: int, width: int) -> None:
    photo = np.random.default_rng(1).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    image = read_image(save(photo, tmp_path / "extreme.png"), reduce_to=1024)
    assert (image.height, image.width) == (height, width)
    np.testing.assert_array_equal(image.pixels, photo)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif"])
def test_exif_rotation(tmp_path: Path, make_photo: MakePhoto, extension: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    path = tmp_path / f"photo.{extension}"
    Image.fromarray(make_photo(24, 40)).save(path, exif=exif)
    with Image.open(path) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored))
    image = read_image(path)
    assert (image.height, image.width) == ((40, 24) if orientation >= 5 else (24, 40))
    np.testing.assert_array_equal(image.pixels, expected)


def test_damaged_exif_does_not_lose_the_photo(tmp_path: Path, make_photo: MakePhoto) -> None:
    path = tmp_path / "photo.jpg"
    Image.fromarray(make_photo(24, 40)).save(path, exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff" + b"\xff" * 40)
    assert read_image(path).pixels.shape == (24, 40, 3)


@pytest.mark.parametrize(
    ("reduce_to", "shape"),
    [(None, (300, 801, 3)), (802, (300, 801, 3)), (401, (300, 801, 3)), (400, (150, 401, 3)), (100, (38, 101, 3)),
     (7, (38, 101, 3))],
)  # fmt: skip
def test_jpeg_at_reduced_size(
    tmp_path: Path, make_photo: MakePhoto, reduce_to: int | None, shape: tuple[int, ...]
) -> None:
    photo = Image.fromarray(make_photo(300, 801))
    photo.save(tmp_path / "wide.jpg", quality=95)
    image = read_image(tmp_path / "wide.jpg", reduce_to=reduce_to)
    assert image.pixels.shape == shape
    assert (image.width, image.height) == (801, 300)
    reference = np.asarray(photo.resize((shape[1], shape[0]), Image.Resampling.BOX)).astype(int)
    assert np.abs(image.pixels - reference).mean() < 4


def test_rotated_jpeg_at_reduced_size_reports_the_upright_original(tmp_path: Path, make_photo: MakePhoto) -> None:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    Image.fromarray(make_photo(200, 401)).save(tmp_path / "photo.jpg", exif=exif)
    image = read_image(tmp_path / "photo.jpg", reduce_to=200)
    assert image.pixels.shape == (201, 100, 3)
    assert (image.width, image.height) == (200, 401)


def test_wrong_arguments_name_the_allowed_values(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'GRB'.*RGB, BGR"):
        read_image(tmp_path / "x.jpg", format="GRB")
    with pytest.raises(ValueError, match="reduce_to is 0"):
        read_image(tmp_path / "x.jpg", reduce_to=0)
