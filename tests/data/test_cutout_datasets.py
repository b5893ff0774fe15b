"""Objects to cut out as data sets: COCO files, GrabCut's outlines and their cache, plain photos."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image
from pycocotools import mask as coco_mask

from oesir_d2.data.datasets import cutouts
from oesir_d2.data.datasets.cutouts import (
    decode_mask,
    load_blobs,
    load_coco_cutouts,
    load_photo_cutouts,
    register_cutouts,
)

SIZE = (120, 160)


@pytest.fixture
def photos(tmp_path: Path, make_photo: Callable[..., np.ndarray]) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a", "b"):
        Image.fromarray(make_photo(*SIZE)).save(folder / f"{name}.png")
    return folder


def write_coco(path: Path, annotations: list[dict[str, Any]]) -> Path:
    images = [{"id": i, "file_name": f"{n}.png", "height": SIZE[0], "width": SIZE[1]} for i, n in enumerate("abz", 1)]
    annotations = [{"id": i, "iscrowd": 0, "area": 1} | item for i, item in enumerate(annotations, 1)]
    categories = [{"id": 7, "name": "cup"}, {"id": 9, "name": "dog"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def make_polygon(x0: int, y0: int, x1: int, y1: int) -> dict[str, Any]:
    return {"segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]], "bbox": [x0, y0, x1 - x0, y1 - y0]}


def make_mask(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[y0:y1, x0:x1] = 255
    return mask


def test_the_segmented_objects_of_a_coco_file(photos: Path, tmp_path: Path) -> None:
    counts = coco_mask.encode(np.asfortranarray(make_mask(5, 5, 70, 25) > 0))["counts"].decode()
    file = write_coco(
        tmp_path / "instances.json",
        [
            {"image_id": 1, "category_id": 9, **make_polygon(10, 20, 90, 70)},
            {"image_id": 2, "category_id": 7, "segmentation": {"size": SIZE, "counts": counts}, "bbox": [5, 5, 65, 20]},
            {"image_id": 1, "category_id": 7, **make_polygon(10, 20, 50, 50)},  # too small
            {"image_id": 1, "category_id": 7, **make_polygon(10, 20, 90, 70), "iscrowd": 1},
            {"image_id": 2, "category_id": 7, "bbox": [10, 20, 80, 50]},  # a box alone
            {"image_id": 3, "category_id": 7, **make_polygon(10, 20, 90, 70)},  # of a photo that is not there
        ],
    )
    first, second = load_coco_cutouts(file, photos)

    assert (first["file_name"], first["cutout"]["category"]) == (str(photos / "a.png"), "dog")
    assert (second["file_name"], second["cutout"]["category"]) == (str(photos / "b.png"), "cup")
    assert np.array_equal(decode_mask(first["cutout"]), make_mask(10, 20, 90, 70))
    assert np.array_equal(decode_mask(second["cutout"]), make_mask(5, 5, 70, 25))


def test_a_file_without_a_usable_object_is_refused(photos: Path, tmp_path: Path) -> None:
    file = write_coco(tmp_path / "i.json", [{"image_id": 1, "category_id": 7, **make_polygon(0, 0, 30, 30)}])
    with pytest.raises(ValueError, match="has no segmented object of at least 48 pixels"):
        load_coco_cutouts(file, photos)


@pytest.mark.parametrize(
    "segmentation",
    [[[1, 2, 3]], {"size": [4, 4], "counts": [8, 8]}, {"size": list(SIZE), "counts": 5}],
)
def test_a_malformed_segmentation_is_named(segmentation: Any) -> None:
    with pytest.raises(ValueError, match="the segmentation is malformed"):
        decode_mask({"segmentation": segmentation, "size": SIZE})


def test_plain_photos_have_one_region_each(photos: Path) -> None:
    regions = load_blobs(photos)
    assert [item["file_name"] for item in regions] == [str(photos / "a.png"), str(photos / "b.png")]
    assert all(item["cutout"] is None for item in regions)


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    """A photo with a red disc on grey, and one of a single colour."""
    folder = tmp_path / "objects"
    folder.mkdir()
    y, x = np.mgrid[0:200, 0:240]
    noise = np.random.default_rng(0).normal(0, 3, size=(200, 240, 3))
    disc = (y - 100) ** 2 + (x - 130) ** 2 <= 55**2
    pixels = np.where(disc[:, :, None], (210, 30, 30), (120, 125, 120)) + noise
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / "disc.png")
    Image.fromarray(np.full((200, 240, 3), 90, np.uint8)).save(folder / "empty.png")
    return folder


def test_outlines_of_plain_photos_are_kept(objects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache.json"
    (item,) = load_photo_cutouts(objects, cache)

    assert item["file_name"] == str(objects / "disc.png")
    assert item["cutout"]["category"] is None
    y, x = np.mgrid[0:200, 0:240]
    disc = (y - 100) ** 2 + (x - 130) ** 2 <= 55**2
    mask = decode_mask(item["cutout"]) > 0
    assert np.count_nonzero(mask & disc) / np.count_nonzero(mask | disc) > 0.95

    with monkeypatch.context() as patch:
        patch.setattr(cutouts, "PhotoCutOuts", None)
        assert load_photo_cutouts(objects, cache) == [item]
    # Another photo: the outlines are drawn again.
    Image.open(objects / "disc.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(objects / "mirrored.png")
    assert len(load_photo_cutouts(objects, cache)) == 2


def test_a_file_that_is_no_cache_is_not_replaced(objects: Path, tmp_path: Path) -> None:
    file = write_coco(tmp_path / "precious.json", [])
    content = file.read_bytes()
    with pytest.raises(ValueError, match=r"precious\.json is no cache of outlines; delete it or name another file"):
        load_photo_cutouts(objects, file)
    assert file.read_bytes() == content


def test_registered_sets_load(photos: Path, tmp_path: Path) -> None:
    file = write_coco(tmp_path / "i.json", [{"image_id": 1, "category_id": 7, **make_polygon(10, 20, 90, 70)}])
    register_cutouts("objects", "coco", str(file), str(photos))
    register_cutouts("regions", "blobs", str(photos))
    assert len(DatasetCatalog.get("objects")) == 1
    assert len(DatasetCatalog.get("regions")) == 2


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        (("x", "video", "a"), ValueError, r"the entry \['x', 'video', 'a'\]; allowed: \[NAME, 'coco', JSON, DIR\]"),
        (("x", "coco", "a"), ValueError, r"\[NAME, 'photos', DIR_OR_LIST, CACHE_JSON\], \[NAME, 'blobs', DIR_OR_LIST"),
        (("x", "blobs", "nowhere"), FileNotFoundError, "CUTOUTS: 'nowhere' of 'x' does not exist"),
        (("x", "coco", "nowhere.json", "."), FileNotFoundError, r"CUTOUTS: 'nowhere\.json' of 'x' does not exist"),
    ],
)
def test_mistakes_are_named(entry: tuple[str, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        register_cutouts(*entry)
