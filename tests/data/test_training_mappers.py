"""Training mappers: random crops, boxes that follow their photo, and photos that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.structures import BoxMode
from PIL import ExifTags, Image

from oesir_d2.data.images import UnreadableImageError
from oesir_d2.data.skipping import SkipUnreadable
from oesir_d2.data.training_mappers import CropMapper, DetectionMapper, RandomResizedCrop
from oesir_d2.engine.config_loading import load_config
from oesir_d2.index import read_skipped

MakePhoto = Callable[..., np.ndarray]


def make_gradient(height: int, width: int) -> np.ndarray:
    """A picture whose red is the column and whose green is the row."""
    y, x = np.mgrid[0:height, 0:width]
    return np.dstack([x, y, np.zeros_like(x)]).astype(np.uint8)


def test_crops_have_the_asked_area_and_shape() -> None:
    crop = RandomResizedCrop(32, area=(0.2, 0.5), aspect=(0.5, 2.0))
    image = np.zeros((200, 200, 3), np.uint8)
    shares, ratios = [], []
    for _ in range(200):
        first, second = crop.get_transform(image).transforms
        assert 0 <= first.x0 and first.x0 + first.w <= 200
        assert 0 <= first.y0 and first.y0 + first.h <= 200
        assert (second.new_h, second.new_w) == (32, 32)
        shares.append(first.w * first.h / 200**2)
        ratios.append(first.w / first.h)

    assert 0.19 < min(shares) < 0.25 < 0.45 < max(shares) < 0.51
    assert 0.48 < min(ratios) < 0.6 < 1.7 < max(ratios) < 2.05


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 300), (300, 2), (37, 61)])
def test_any_photo_can_be_cropped(height: int, width: int) -> None:
    crop = RandomResizedCrop(32)
    for _ in range(20):
        image = make_gradient(height, width)
        assert crop.get_transform(image).apply_image(image).shape == (32, 32, 3)


def test_a_crop_of_everything_is_the_resized_photo() -> None:
    image = make_gradient(60, 90)
    crop = RandomResizedCrop(20, area=(1.0, 1.0), aspect=(1.5, 1.5))
    expected = np.asarray(Image.fromarray(image).resize((20, 20), Image.Resampling.BILINEAR))

    np.testing.assert_array_equal(crop.get_transform(image).apply_image(image), expected)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("CROP_SIZE", "0", "CROP_SIZE is 0; allowed: at least 1 pixel"),
        ("CROP_AREA", "[0.5, 1.5]", r"CROP_AREA is \[0.5, 1.5\]; allowed: 0 < min <= max <= 1"),
        ("CROP_ASPECT", "[2.0, 1.0]", r"CROP_ASPECT is \[2.0, 1.0\]; allowed: 0 < min <= max"),
    ],
)
def test_crops_out_of_range_are_refused(key: str, value: str, message: str) -> None:
    cfg = load_config("lite0/distill_S3.yaml", [f"INPUT.OESIR.{key}", value])
    with pytest.raises(ValueError, match=message):
        CropMapper(cfg)


@pytest.mark.parametrize(("input_format", "red"), [("RGB", 0), ("BGR", 2)])
def test_crop_mapper_gives_the_models_input(input_format: str, red: int, tmp_path: Path) -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :, 0] = 200
    Image.fromarray(pixels).save(tmp_path / "red.png")
    mapper = CropMapper(load_config("lite0/distill_S3.yaml", ["INPUT.FORMAT", input_format]))

    mapped = mapper({"file_name": str(tmp_path / "red.png"), "image_id": "red", "annotations": []})

    assert set(mapped) == {"file_name", "image_id", "image", "height", "width"}
    assert (mapped["height"], mapped["width"]) == (40, 60)
    assert mapped["image"].shape == (3, 224, 224)
    assert str(mapped["image"].dtype) == "torch.uint8"
    assert [int(channel.float().mean()) for channel in mapped["image"]] == [200 * (i == red) for i in range(3)]


def save_annotated(path: Path, pixels: np.ndarray, **options: Any) -> dict[str, Any]:
    Image.fromarray(pixels).save(path, **options)
    box = {"bbox": [10, 20, 30, 10], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    return {"file_name": str(path), "annotations": [box], "height": pixels.shape[0], "width": pixels.shape[1]}


def test_boxes_follow_their_photo(tmp_path: Path, rng: np.random.Generator) -> None:
    pixels = np.zeros((80, 120, 3), np.uint8)
    pixels[20:30, 10:40] = 255
    dataset_dict = save_annotated(tmp_path / "photo.png", pixels)
    mapper = DetectionMapper(load_config("lite0/detector.yaml", ["INPUT.MIN_SIZE_TRAIN", "(160,)"]))
    sides = set()
    for _ in range(8):
        mapped = mapper(dataset_dict)
        assert mapped["image"].shape == (3, 160, 240)
        x0, y0, x1, y1 = mapped["instances"].gt_boxes.tensor[0].tolist()
        bright = np.argwhere(mapped["image"][0].numpy() > 127)
        np.testing.assert_allclose([y0, x0], bright.min(axis=0), atol=1)
        np.testing.assert_allclose([y1, x1], bright.max(axis=0) + 1, atol=1)
        sides.add(x0 < 120)

    assert sides == {True, False}, "some are mirrored, some are not"
    assert "annotations" in dataset_dict, "the caller's dict is as it was"


def test_photo_is_turned_upright_before_its_boxes_are_used(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    dataset_dict = save_annotated(tmp_path / "photo.jpg", np.zeros((120, 80, 3), np.uint8), exif=exif)
    dataset_dict |= {"height": 80, "width": 120}
    mapper = DetectionMapper(load_config("lite0/detector.yaml", ["INPUT.MIN_SIZE_TRAIN", "(160,)"]))

    assert mapper(dataset_dict)["instances"].image_size == (160, 240)
    with pytest.raises(SizeMismatchError):
        mapper(dataset_dict | {"height": 120, "width": 80})


@pytest.fixture
def mapper() -> SkipUnreadable:
    return CropMapper(load_config("lite0/distill_S3.yaml", ["INPUT.OESIR.CROP_SIZE", "16"]))


def test_unreadable_photos_are_noted_once(mapper: CropMapper, make_photo: MakePhoto, tmp_path: Path) -> None:
    Image.fromarray(make_photo(30, 30)).save(tmp_path / "good.png")
    content = (tmp_path / "good.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(content[: len(content) // 2])
    good, truncated, missing = ({"file_name": str(tmp_path / f"{n}.png")} for n in ("good", "truncated", "missing"))
    with pytest.raises(UnreadableImageError):
        mapper(truncated)
    skipping = SkipUnreadable(mapper, tmp_path, num_files=3)

    assert skipping(good)["image"].shape == (3, 16, 16)
    for _ in range(3):
        assert skipping(truncated) is None
        assert skipping(missing) is None

    reasons = {Path(entry.path).name: entry.reason for entry in read_skipped(tmp_path)}
    assert set(reasons) == {"truncated.png", "missing.png"}
    assert reasons["missing.png"] == "the file does not exist"
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 2


def test_photo_of_another_size_than_annotated_is_skipped(tmp_path: Path, make_photo: MakePhoto) -> None:
    dataset_dict = save_annotated(tmp_path / "photo.png", make_photo(40, 60)) | {"width": 61}
    skipping = SkipUnreadable(DetectionMapper(load_config("lite0/detector.yaml")), tmp_path, num_files=2)

    assert skipping(dataset_dict) is None
    (line,) = (tmp_path / "skipped.jsonl").read_text().splitlines()
    assert "(60, 40)" in json.loads(line)["reason"]
    assert "(61, 40)" in json.loads(line)["reason"]


def test_training_set_without_any_readable_photo_is_an_error(mapper: CropMapper, tmp_path: Path) -> None:
    skipping = SkipUnreadable(mapper, tmp_path, num_files=2)
    assert skipping({"file_name": str(tmp_path / "a.png")}) is None
    with pytest.raises(ValueError, match="none of the 2 training photos can be read; .*skipped.jsonl says why"):
        skipping({"file_name": str(tmp_path / "b.png")})
