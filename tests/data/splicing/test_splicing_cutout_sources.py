"""The three sources of cut-outs: COCO annotations, images with alpha, and GrabCut on photos."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from skimage import data as skimage_data

from oesir_d2.data import ImageFile
from oesir_d2.data.splicing import AlphaCutOuts, CocoCutOuts, CutOut, CutOutFilter, PhotoCutOuts, read_boxes

HEIGHT, WIDTH = 240, 320


def cut_all(source: Any) -> dict[str, list[CutOut]]:
    return {photo.image_id: list(source.cut(photo)) for photo in source.photos}


def draw_polygon(points: list[tuple[int, int]]) -> np.ndarray:
    """(H, W) bool, an independent rasteriser."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    return cv2.fillPoly(mask, [np.array(points)], 1).astype(bool)


@pytest.fixture
def coco(tmp_path: Path, make_photo: Callable[..., np.ndarray]) -> Callable[..., tuple[Path, Path]]:
    """``coco([segmentation or annotation, ...])`` writes a COCO dataset of one photo, and gives JSON and folder."""
    folder = tmp_path / "coco photos"
    folder.mkdir()
    photo = make_photo(HEIGHT, WIDTH)
    Image.fromarray(photo).save(folder / "Bär.png")

    def write(annotations: list[Any], /, **changes: Any) -> tuple[Path, Path]:
        image = {"id": 5, "file_name": "Bär.png", "width": WIDTH, "height": HEIGHT}
        items = [
            item if isinstance(item, dict) and "counts" not in item else {"segmentation": item} for item in annotations
        ]
        content = {
            "images": [image],
            "annotations": [
                {"id": i, "image_id": 5, "category_id": 2, "iscrowd": 0, **item} for i, item in enumerate(items)
            ],
            "categories": [{"id": 2, "name": "bear"}],
        }
        (tmp_path / "instances.json").write_text(json.dumps(content | changes), encoding="utf-8")
        return tmp_path / "instances.json", folder

    return write


TRIANGLE = [(50, 40), (250, 60), (120, 200)]
FLAT_TRIANGLE = [float(v) for point in TRIANGLE for v in point]


def test_polygons_and_both_run_length_encodings_give_the_same_object(
    coco: Callable[..., tuple[Path, Path]],
) -> None:
    drawn = draw_polygon(TRIANGLE)
    columns = drawn.T.ravel()  # COCO counts down the columns
    changes = np.flatnonzero(np.diff(np.concatenate([[0], columns, [columns[-1] + 2]])))
    counts = np.diff(np.concatenate([[0], changes])).tolist()
    compressed = coco_mask.encode(np.asfortranarray(drawn.astype(np.uint8)))
    compressed["counts"] = compressed["counts"].decode()
    source = CocoCutOuts(*coco([[FLAT_TRIANGLE], {"size": [HEIGHT, WIDTH], "counts": counts}, compressed]))

    polygon, uncompressed, run_lengths = cut_all(source)["Bär.png"]

    np.testing.assert_array_equal(uncompressed.pixels, run_lengths.pixels)
    photo = np.array(Image.open(source.photos[0].path))
    for cutout in (polygon, uncompressed, run_lengths):
        assert (cutout.image_id, cutout.category) == ("Bär.png", "bear")
        x0, y0, x1, y1 = cutout.box
        np.testing.assert_array_equal(cutout.pixels[..., :3], photo[y0:y1, x0:x1])
        opaque = np.zeros((HEIGHT, WIDTH), dtype=bool)
        opaque[y0:y1, x0:x1] = cutout.pixels[..., 3] == 255
        overlap = np.count_nonzero(opaque & drawn) / np.count_nonzero(opaque | drawn)
        assert overlap > 0.97  # two rasterisers differ along the outline
    np.testing.assert_array_equal(
        np.nonzero(uncompressed.pixels[..., 3])[0] + uncompressed.box[1], np.nonzero(drawn)[0]
    )


def test_objects_not_worth_pasting_are_left_out(coco: Callable[..., tuple[Path, Path]]) -> None:
    def box(x: float, y: float, width: float, height: float) -> list[list[float]]:
        return [[x, y, x + width, y, x + width, y + height, x, y + height]]

    annotations = [
        box(100, 100, 80, 80),
        {"segmentation": box(100, 100, 80, 80), "iscrowd": 1},
        {"segmentation": []},
        box(100, 100, 63, 20),  # too small
        box(0, 100, 80, 80),  # cut off by the left border: a quarter of its outline
        box(0, 0, 320, 240),  # the whole photo
    ]
    cutouts = cut_all(CocoCutOuts(*coco(annotations)))["Bär.png"]
    assert [cutout.box for cutout in cutouts] == [(100, 100, 180, 180)]

    lenient = CutOutFilter(min_long_side=60, max_border=0.3)
    boxes = [cutout.box for cutout in cut_all(CocoCutOuts(*coco(annotations), lenient))["Bär.png"]]
    assert boxes == [(100, 100, 180, 180), (100, 100, 163, 120), (0, 100, 80, 180)]


def test_annotations_of_another_size_are_not_used(
    coco: Callable[..., tuple[Path, Path]], caplog: pytest.LogCaptureFixture
) -> None:
    image = {"id": 5, "file_name": "Bär.png", "width": HEIGHT, "height": WIDTH}
    with caplog.at_level(logging.WARNING):
        assert cut_all(CocoCutOuts(*coco([[FLAT_TRIANGLE]], images=[image])))["Bär.png"] == []
    assert "320 x 240 pixels, but annotated as 240 x 320" in caplog.text


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"images": [{"id": 5, "width": 1, "height": 1}]}, "images[0].file_name is missing"),
        ({"annotations": [{"id": 1, "image_id": 6}]}, "annotation 1 is of image 6"),
        ({"annotations": [{"id": 1}]}, "annotations[0].image_id is missing"),
        ({"annotations": [3]}, "annotations[0].id is missing"),
        ({"annotations": []}, "has no segmented object"),
        ({"categories": [{"id": 1}]}, "categories[0].name is missing"),
    ],
)
def test_a_broken_coco_file_is_named(
    coco: Callable[..., tuple[Path, Path]], changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError) as caught:
        CocoCutOuts(*coco([[FLAT_TRIANGLE]], **changes))
    assert named in str(caught.value)
    assert "instances.json" in str(caught.value)


@pytest.mark.parametrize(
    "segmentation", [[[1, 2, 3]], [["a"] * 6], {"counts": [1]}, {"size": [240, 320], "counts": [90000]}]
)
def test_a_malformed_segmentation_is_named(coco: Callable[..., tuple[Path, Path]], segmentation: Any) -> None:
    source = CocoCutOuts(*coco([[FLAT_TRIANGLE], {"segmentation": segmentation}]))
    with pytest.raises(ValueError, match="the segmentation of annotation 1 is malformed"):
        cut_all(source)


def test_what_is_no_coco_file_is_refused(tmp_path: Path) -> None:
    for content in ("{", "[]", '{"images": []}'):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(ValueError, match=r"x\.json"):
            CocoCutOuts(tmp_path / "x.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"y\.json does not exist"):
        CocoCutOuts(tmp_path / "y.json", tmp_path)


def test_an_image_with_alpha_is_cropped_to_its_object(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixels = np.zeros((150, 200, 4), dtype=np.uint8)
    pixels[30:130, 50:170] = (10, 200, 30, 255)
    pixels[30:130, 40:50] = (1, 2, 3, 60)  # a shadow
    Image.fromarray(pixels).save(tmp_path / "Äpfel 1.png")
    Image.fromarray(pixels).quantize().save(tmp_path / "palette.png")
    Image.fromarray(pixels[..., :3]).save(tmp_path / "opaque.png")
    Image.fromarray(pixels[::4, ::4]).save(tmp_path / "tiny.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")

    with caplog.at_level(logging.WARNING):
        cutouts = cut_all(AlphaCutOuts(tmp_path))

    (cutout,) = cutouts["Äpfel 1.png"]
    assert (cutout.image_id, cutout.box, cutout.category) == ("Äpfel 1.png", (50, 30, 170, 130), None)
    assert (cutout.pixels == (10, 200, 30, 255)).all()
    assert cutouts["palette.png"][0].box == cutout.box
    assert cutouts["opaque.png"] == cutouts["tiny.png"] == cutouts["broken.png"] == []
    assert "opaque.png: it has no transparent pixel" in caplog.text
    assert "broken.png" in caplog.text


@pytest.fixture(scope="module")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three real photos, and one of a single colour, which holds no object."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("astronaut", "chelsea", "coffee"):
        Image.fromarray(getattr(skimage_data, name)()).save(folder / f"{name}.png")
    Image.new("RGB", (200, 150), (90, 120, 40)).save(folder / "plain.png")
    return folder


def test_grabcut_finds_objects_in_real_photos(photo_folder: Path) -> None:
    cutouts = cut_all(PhotoCutOuts(photo_folder))

    assert cutouts["plain.png"] == []
    found = [cutout for name in ("astronaut.png", "chelsea.png", "coffee.png") for cutout in cutouts[name]]
    assert len(found) >= 2
    for cutout in found:
        share = np.mean(cutout.pixels[..., 3] == 255)
        assert 0.2 < share < 0.95
        assert max(cutout.pixels.shape[:2]) >= 64


def test_grabcut_segments_what_given_boxes_hold(photo_folder: Path) -> None:
    cup = (140, 60, 500, 370)
    source = PhotoCutOuts(photo_folder, {"coffee.png": [cup]})
    cutouts = cut_all(source)

    assert cutouts["astronaut.png"] == []
    (cutout,) = cutouts["coffee.png"]
    x0, y0, x1, y1 = cutout.box
    assert cup[0] - 2 <= x0 < x1 <= cup[2] + 2
    assert cup[1] - 2 <= y0 < y1 <= cup[3] + 2
    photo = np.array(Image.open(photo_folder / "coffee.png"))
    np.testing.assert_array_equal(cutout.pixels[..., :3], photo[y0:y1, x0:x1])


def test_grabcut_finds_a_disc_exactly(tmp_path: Path, rng: np.random.Generator) -> None:
    y, x = np.mgrid[0:400, 0:500]
    disc = (y - 190) ** 2 + (x - 260) ** 2 < 100**2
    photo = np.where(disc[..., None], (220, 60, 40), (40, 90, 60)) + rng.normal(0, 6, (400, 500, 3))
    Image.fromarray(np.clip(photo, 0, 255).astype(np.uint8)).save(tmp_path / "disc.png")

    for boxes in (None, {"disc.png": [(130, 60, 390, 320)]}):
        (cutout,) = PhotoCutOuts(tmp_path, boxes).cut(ImageFile("disc.png", tmp_path / "disc.png"))
        found = np.zeros((400, 500), dtype=bool)
        x0, y0, x1, y1 = cutout.box
        found[y0:y1, x0:x1] = cutout.pixels[..., 3] == 255
        assert np.count_nonzero(found & disc) / np.count_nonzero(found | disc) > 0.95


def test_grabcut_does_not_depend_on_what_was_cut_before(photo_folder: Path) -> None:
    boxes = {"coffee.png": [(140, 60, 500, 370)], "astronaut.png": [(20, 10, 460, 500)]}
    source = PhotoCutOuts(photo_folder, boxes)
    photo = next(photo for photo in source.photos if photo.image_id == "coffee.png")
    cv2.setRNGSeed(7)
    first = source.cut(photo)
    cut_all(source)
    again = source.cut(photo)

    np.testing.assert_array_equal(first[0].pixels, again[0].pixels)


def test_boxes_are_read_and_mistakes_named(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text('{"a b.jpg": [[1, 2, 30.6, 40]], "c.jpg": []}', encoding="utf-8")
    assert read_boxes(path) == {"a b.jpg": [(1, 2, 31, 40)], "c.jpg": []}

    for content in ('{"a.jpg": [[1, 2, 3]]}', '{"a.jpg": [[5, 2, 3, 9]]}', '{"a.jpg": [[0, 0, NaN, 1]]}'):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"boxes\.json: a box of 'a\.jpg' is"):
            read_boxes(path)
    for content in ("[", "[]", '{"a.jpg": 3}'):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"boxes\.json"):
            read_boxes(path)
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        read_boxes(tmp_path / "none.json")


def test_a_box_of_an_unknown_photo_is_refused(photo_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"'dog\.png', which is not among the photos"):
        PhotoCutOuts(photo_folder, {"dog.png": [(0, 0, 9, 9)]})


def test_a_box_outside_of_its_photo_gives_nothing(photo_folder: Path) -> None:
    source = PhotoCutOuts(photo_folder, {"plain.png": [(500, 500, 600, 600), (0, 0, 200, 150)]})
    assert cut_all(source)["plain.png"] == []


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (2000, 2), (5, 700), (9, 9)])
def test_tiny_and_thin_photos_are_survived(tmp_path: Path, size: tuple[int, int], rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "thin.png")

    for boxes in (None, {"thin.png": [(0, 0, *size), (size[0] // 2, size[1] // 2, *size), (0, 0, 1, 1)]}):
        assert cut_all(PhotoCutOuts(tmp_path, boxes, CutOutFilter(1, 1.0)))["thin.png"] is not None


@pytest.mark.parametrize("change", [{"min_long_side": 0}, {"max_border": 1.5}, {"max_border": float("nan")}])
def test_filter_values_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        CutOutFilter(**change)
