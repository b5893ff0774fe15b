"""Photos of landmarks: which shape they get, and how they are cropped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from oesir_d2.data.images import UnreadableImageError
from oesir_d2.data.landmark_mapper import LandmarkMapper, RandomCropToShape
from oesir_d2.engine.config_loading import load_config

CONFIG = "landmarks/finetune_lite0.yaml"
SHAPES = [(512, 384), (384, 512), (448, 448)]
MakePhoto = Callable[..., np.ndarray]


def make_gradient(height: int, width: int) -> np.ndarray:
    """A picture whose red is the column and whose green is the row, as shares of 255."""
    y, x = np.mgrid[0:height, 0:width]
    return np.dstack([255 * x / width, 255 * y / height, np.zeros_like(x)]).astype(np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (1024, 768, (512, 384)),
        (768, 1024, (384, 512)),
        (700, 700, (448, 448)),
        # The border lies at the square root of 4 / 3.
        (1000, 1150, (448, 448)),
        (1000, 1160, (384, 512)),
        (1150, 1000, (448, 448)),
        (1160, 1000, (512, 384)),
        (1, 900, (384, 512)),
        (900, 1, (512, 384)),
    ],
)
def test_photo_gets_the_shape_that_is_nearest_to_its_own(height: int, width: int, expected: tuple[int, int]) -> None:
    crop = RandomCropToShape(SHAPES)
    assert crop.choose_shape(height, width) == expected
    image = np.zeros((height, width, 3), np.uint8)
    assert crop.get_transform(image).apply_image(image).shape == (*expected, 3)


def test_crops_have_the_asked_area_and_are_stretched_no_more_than_asked() -> None:
    crop = RandomCropToShape(SHAPES, area=(0.3, 0.6), aspect=(0.8, 1.25))
    shares, stretches, corners = [], [], set()
    for _ in range(200):
        cut, resize = crop.get_transform(np.zeros((400, 300, 3), np.uint8)).transforms
        assert (resize.new_h, resize.new_w) == (512, 384)
        assert 0 <= cut.x0 <= 300 - cut.w and 0 <= cut.y0 <= 400 - cut.h
        shares.append(cut.w * cut.h / (400 * 300))
        stretches.append((cut.w / cut.h) / (384 / 512))
        corners.add((cut.x0 > 40, cut.y0 > 40))

    assert 0.29 < min(shares) < 0.34 < 0.56 < max(shares) < 0.61
    assert 0.79 < min(stretches) < 0.84 < 1.19 < max(stretches) < 1.26
    assert len(corners) == 4


def test_a_crop_of_everything_is_the_resized_photo() -> None:
    image = make_gradient(60, 80)
    crop = RandomCropToShape([(30, 40)], area=(1.0, 1.0), aspect=(1.0, 1.0))
    expected = np.asarray(Image.fromarray(image).resize((40, 30), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(crop.get_transform(image).apply_image(image), expected)


@pytest.mark.parametrize(("input_format", "red"), [("RGB", 0), ("BGR", 2)])
def test_mapper_gives_the_models_input(input_format: str, red: int, tmp_path: Path) -> None:
    """A portrait that is stored as a landscape and turned by its EXIF rotation gets a portrait's shape."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    upright = make_gradient(400, 300)
    Image.fromarray(np.rot90(upright)).save(tmp_path / "photo.png", exif=exif)
    options = ["INPUT.FORMAT", input_format, "INPUT.OESIR.CROP_AREA", "[1.0, 1.0]", "INPUT.OESIR.CROP_ASPECT", "[1, 1]"]
    dataset_dict = {"file_name": str(tmp_path / "photo.png"), "image_id": "photo", "landmark_id": 9, "class_id": 2}
    mapped = LandmarkMapper(load_config(CONFIG, options))(dataset_dict)

    image = mapped.pop("image")
    assert mapped == dataset_dict | {"height": 400, "width": 300}
    assert "image" not in dataset_dict, "the caller's dict is as it was"
    assert image.shape == (3, 512, 384) and image.is_contiguous()
    # Upright, and not mirrored: red grows to the right, green to the bottom.
    np.testing.assert_allclose(image[red, 256].numpy(), 255 * np.arange(384) / 384, atol=3)
    np.testing.assert_allclose(image[1, :, 192].numpy(), 255 * np.arange(512) / 512, atol=3)


def test_photos_are_mirrored_if_the_config_says_so(tmp_path: Path) -> None:
    Image.fromarray(make_gradient(96, 96)).save(tmp_path / "photo.png")
    dataset_dict = {"file_name": str(tmp_path / "photo.png"), "class_id": 0}
    for flip, expected in (("none", {False}), ("horizontal", {False, True})):
        options = ["INPUT.RANDOM_FLIP", flip, "INPUT.OESIR.SHAPES", "[[32, 32]]"]
        mapper = LandmarkMapper(load_config(CONFIG, options))
        images = [mapper(dataset_dict)["image"] for _ in range(12)]
        assert {bool(image[0, 16, 0] > image[0, 16, -1]) for image in images} == expected


def test_a_large_jpeg_is_decoded_at_a_reduced_size_that_is_enough(make_photo: MakePhoto, tmp_path: Path) -> None:
    Image.fromarray(make_photo(60, 80)).resize((3200, 2400)).save(tmp_path / "photo.jpg")
    mapper = LandmarkMapper(load_config(CONFIG, ["INPUT.OESIR.CROP_AREA", "[0.25, 1.0]"]))
    assert mapper.reduce_to == 1024
    mapped = mapper({"file_name": str(tmp_path / "photo.jpg"), "class_id": 0})
    assert mapped["image"].shape == (3, 384, 512)
    assert (mapped["height"], mapped["width"]) == (2400, 3200)


def test_a_truncated_photo_is_refused(make_photo: MakePhoto, tmp_path: Path) -> None:
    Image.fromarray(make_photo(60, 80)).save(tmp_path / "photo.png")
    content = (tmp_path / "photo.png").read_bytes()
    (tmp_path / "photo.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableImageError):
        LandmarkMapper(load_config(CONFIG))({"file_name": str(tmp_path / "photo.png"), "class_id": 0})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SHAPES", "[]", r"SHAPES is \[\]; allowed: one or more \[height, width\]"),
        ("SHAPES", "[512, 384]", r"SHAPES is \[512, 384\]; allowed"),
        ("SHAPES", "[[512, 0]]", r"SHAPES is \[\[512, 0\]\]; allowed"),
        ("SHAPES", "[[512, 1.5]]", r"SHAPES is \[\[512, 1.5\]\]; allowed"),
        ("CROP_AREA", "[0.5, 1.5]", r"CROP_AREA is \[0.5, 1.5\]; allowed: 0 < min <= max <= 1"),
        ("CROP_ASPECT", "[2.0, 1.0]", r"CROP_ASPECT is \[2.0, 1.0\]; allowed: 0 < min <= max"),
    ],
)
def test_values_out_of_range_are_refused(key: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LandmarkMapper(load_config(CONFIG, [f"INPUT.OESIR.{key}", value]))
