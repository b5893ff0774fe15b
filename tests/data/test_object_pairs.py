"""Two views of one object: boxes where its pixels are, resolution of its photo, numbers of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data.detection_utils import SizeMismatchError
from PIL import Image

from oesir_d2 import add_oesir_config
from oesir_d2.data import UnreadableImageError
from oesir_d2.data.object_pairs import DrawHost, ObjectPairMapper

MAGENTA = (250, 20, 240)


@pytest.fixture
def make_mapper() -> Callable[..., ObjectPairMapper]:
    """Views of 128 pixels without jitter and background, unless options say otherwise."""

    def make(*opts: Any) -> ObjectPairMapper:
        cfg: CfgNode = get_cfg()
        add_oesir_config(cfg)
        quiet = ["INPUT.OESIR.PAIR_SIZE", 128, "INPUT.OESIR.PAIR_BOX_JITTER", 0.0, "INPUT.OESIR.PAIR_BACKGROUND", 0]
        cfg.merge_from_list(["INPUT.FORMAT", "RGB", *quiet, *opts])
        return ObjectPairMapper(cfg)

    return make


def write_grey(path: Path, height: int, width: int, level: int, seed: int) -> Path:
    noise = np.random.default_rng(seed).integers(-20, 20, size=(height, width, 1))
    Image.fromarray(np.clip(level + noise, 0, 255).astype(np.uint8).repeat(3, axis=2)).save(path)
    return path


@pytest.fixture
def make_item(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """An item whose object is a magenta rectangle on dark grey noise; the host is light grey noise."""

    def make(box: tuple[int, int, int, int] = (40, 60, 100, 100), size: tuple[int, int] = (240, 320)) -> dict[str, Any]:
        path = write_grey(tmp_path / "own.png", *size, level=60, seed=1)
        pixels = np.array(Image.open(path))
        x0, y0, x1, y1 = box
        pixels[y0:y1, x0:x1] = MAGENTA
        Image.fromarray(pixels).save(path)
        host = write_grey(tmp_path / "host.png", 300, 400, level=180, seed=2)
        polygon = [x0, y0, x1, y0, x1, y1, x0, y1]
        cutout = {"segmentation": [polygon], "size": list(size), "category": None}
        return {"file_name": str(path), "image_id": "own", "cutout": cutout, "host_file_name": str(host)}

    return make


def find_magenta(view: dict[str, Any]) -> np.ndarray:
    """The box around what is more magenta than grey, from the pixels alone."""
    red, green, blue = view["image"].numpy().astype(int)
    rows, columns = np.nonzero((red - green > 100) & (blue - green > 100))
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def get_box(view: dict[str, Any]) -> np.ndarray:
    return view["instances"].gt_boxes.tensor[0].numpy()


@pytest.mark.parametrize("box", [(40, 60, 100, 100), (0, 0, 50, 90), (10, 20, 310, 220), (300, 10, 320, 230)])
def test_boxes_are_where_the_object_is(
    box: tuple[int, int, int, int], make_mapper: Callable[..., Any], make_item: Callable[..., Any]
) -> None:
    # Soft edges and strong compression would hide the corners of a turned object.
    mapper = make_mapper("INPUT.OESIR.PAIR_SOFTNESS", [0.0], "INPUT.OESIR.PAIR_QUALITY", [95, 95])
    item = make_item(box)
    places = set()
    for _ in range(15):
        own, pasted = mapper(item)["views"]
        np.testing.assert_allclose(get_box(own), find_magenta(own), atol=1.01)
        np.testing.assert_allclose(get_box(pasted), find_magenta(pasted), atol=3)
        for view in (own, pasted):
            assert view["image"].dtype == torch.uint8
            assert max(view["image"].shape[1:]) <= 128
            assert view["instances"].image_size == tuple(view["image"].shape[1:])
        places.add(tuple(get_box(pasted).round()))
    assert len(places) > 10


def test_views_show_the_right_photos_around_the_object(
    make_mapper: Callable[..., Any], make_item: Callable[..., Any]
) -> None:
    own, pasted = make_mapper()(make_item())["views"]
    for view, level in ((own, 60), (pasted, 180)):
        x0, y0, x1, y1 = find_magenta(view)
        around = view["image"].numpy().astype(float).mean(axis=0)
        around[max(0, y0 - 4) : y1 + 4, max(0, x0 - 4) : x1 + 4] = np.nan
        assert abs(np.nanmean(around) - level) < 5


def test_objects_that_fit_keep_their_photos_resolution(
    make_mapper: Callable[..., Any], make_item: Callable[..., Any]
) -> None:
    item = make_item((40, 60, 100, 100))
    photo = np.array(Image.open(item["file_name"]))
    for _ in range(5):
        own, _ = make_mapper()(item)["views"]
        x, y = (np.array([40, 60]) - get_box(own)[:2]).round().astype(int)
        assert own["image"].shape == (3, 128, 128)
        assert np.array_equal(own["image"].numpy().transpose(1, 2, 0), photo[y : y + 128, x : x + 128])


def test_longer_objects_are_scaled_down_in_each_view_apart(
    make_mapper: Callable[..., Any], make_item: Callable[..., Any]
) -> None:
    mapper, item = make_mapper("INPUT.OESIR.PAIR_SCALE", [0.5, 0.5]), make_item((10, 20, 310, 220))
    shares = []
    for _ in range(10):
        boxes = [get_box(view) for view in mapper(item)["views"]]
        shares.append([(box[2:] - box[:2]).max() / 128 for box in boxes])
    # 300 of 320 pixels in its own photo, 200 of 400 in the host: too long for 128 in both.
    assert 0.47 < np.min(shares) and np.max(shares) < 0.83
    assert np.ptp(np.array(shares), axis=0).min() > 0.05
    assert abs(np.corrcoef(np.array(shares).T)[0, 1]) < 0.9


def test_scale_is_that_of_the_host(make_mapper: Callable[..., Any], make_item: Callable[..., Any]) -> None:
    for scale in (0.1, 0.25):
        _, pasted = make_mapper("INPUT.OESIR.PAIR_SCALE", [scale, scale])(make_item())["views"]
        x0, y0, x1, y1 = find_magenta(pasted)
        assert max(x1 - x0, y1 - y0) == pytest.approx(scale * 400, abs=3)


def test_photos_are_reduced_as_in_retrieval(make_mapper: Callable[..., Any], make_item: Callable[..., Any]) -> None:
    own, pasted = make_mapper("INPUT.OESIR.MAX_LONG_SIDE", 160)(make_item((40, 60, 100, 100)))["views"]
    x0, y0, x1, y1 = find_magenta(own)
    assert (x1 - x0, y1 - y0) == pytest.approx((30, 20), abs=1)
    np.testing.assert_allclose(get_box(own), find_magenta(own), atol=1.01)
    assert own["image"].shape[1] == 120  # all of the reduced photo


def test_boxes_are_jittered_by_shares_of_their_sides(
    make_mapper: Callable[..., Any], make_item: Callable[..., Any]
) -> None:
    mapper, item = make_mapper("INPUT.OESIR.PAIR_BOX_JITTER", 0.08), make_item((140, 100, 190, 125))
    offsets = []
    for _ in range(150):
        own, _ = mapper(item)["views"]
        offsets.append((get_box(own) - find_magenta(own)) / (50, 25, 50, 25))
    # A normal distribution of 0.08; the few at the view's border are cut.
    np.testing.assert_allclose(np.std(offsets, axis=0), 0.08, atol=0.02)
    np.testing.assert_allclose(np.mean(offsets, axis=0), 0, atol=0.03)


def test_background_does_not_touch_the_object(make_mapper: Callable[..., Any], make_item: Callable[..., Any]) -> None:
    mapper, item = make_mapper("INPUT.OESIR.PAIR_BACKGROUND", 3), make_item()
    counts = []
    for _ in range(10):
        for view in mapper(item)["views"]:
            height, width = view["image"].shape[1:]
            x0, y0, x1, y1 = find_magenta(view)
            boxes = view["instances"].gt_boxes.tensor[1:].numpy()
            counts.append(len(boxes))
            for left, top, right, bottom in boxes:
                assert 0 <= left < right <= width and 0 <= top < bottom <= height
                # The soft edge of an object is a few pixels wide.
                assert left >= x1 - 3 or right <= x0 + 3 or top >= y1 - 3 or bottom <= y0 + 3
    assert max(counts) == 3


def test_numbers_tell_objects_and_photos_apart(make_mapper: Callable[..., Any], make_item: Callable[..., Any]) -> None:
    mapper, item = make_mapper("INPUT.OESIR.PAIR_BACKGROUND", 2, "INPUT.OESIR.PAIR_SCALE", [0.1, 0.2]), make_item()
    (own, pasted), (again, _) = mapper(item)["views"], mapper(item)["views"]
    for view in (own, pasted, again):
        assert view["instances"].gt_objects.dtype == view["instances"].gt_photos.dtype == torch.int64
    objects = [view["instances"].gt_objects.tolist() for view in (own, pasted, again)]
    assert objects[0][0] == objects[1][0] == objects[2][0]
    assert len({number for numbers in objects for number in numbers}) == 1 + 6

    photos = [view["instances"].gt_photos.tolist() for view in (own, pasted)]
    assert photos[0] == [photos[0][0]] * 3
    assert photos[1] == [photos[0][0], photos[1][1], photos[1][1]]
    assert photos[1][1] != photos[0][0]
    # The host as the photo of an object has the number that it has as a host.
    swapped = item | {"file_name": item["host_file_name"], "host_file_name": item["file_name"], "cutout": None}
    assert mapper(swapped)["views"][0]["instances"].gt_photos[0] == photos[1][1]


def test_random_regions_are_objects_of_their_own(
    make_mapper: Callable[..., Any], make_item: Callable[..., Any]
) -> None:
    mapper, item = make_mapper(), make_item() | {"cutout": None}
    numbers = []
    for _ in range(5):
        own, pasted = mapper(item)["views"]
        assert own["instances"].gt_objects[0] == pasted["instances"].gt_objects[0]
        numbers.append(int(own["instances"].gt_objects[0]))
    assert len(set(numbers)) == 5


def test_channels_are_the_models(make_mapper: Callable[..., Any], make_item: Callable[..., Any]) -> None:
    item = make_item((40, 60, 100, 100))
    own, _ = make_mapper("INPUT.FORMAT", "BGR")(item)["views"]
    x0, y0, x1, y1 = get_box(own).astype(int)
    assert own["image"][:, (y0 + y1) // 2, (x0 + x1) // 2].tolist() == [240, 20, 250]


def test_what_cannot_be_shown_is_refused(
    make_mapper: Callable[..., Any], make_item: Callable[..., Any], tmp_path: Path
) -> None:
    mapper, item = make_mapper(), make_item()
    with pytest.raises(SizeMismatchError, match=r"\(240, 320\), but its objects were outlined at \(100, 320\)"):
        mapper(item | {"cutout": item["cutout"] | {"size": [100, 320]}})
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photo")
    for key in ("file_name", "host_file_name"):
        with pytest.raises(UnreadableImageError, match="broken.jpg"):
            mapper(item | {key: str(tmp_path / "broken.jpg")})
    # Nothing of an object this small would be found again.
    write_grey(tmp_path / "tiny.png", 6, 8, level=180, seed=0)
    assert mapper(item | {"host_file_name": str(tmp_path / "tiny.png")}) is None


def test_a_host_is_any_other_photo() -> None:
    drawn = [DrawHost(lambda item: item["host_file_name"], ["a", "b", "a", "c"])({"file_name": "a"}) for _ in range(60)]
    assert set(drawn) == {"b", "c"}
    assert 15 < drawn.count("b") < 45
    with pytest.raises(ValueError, match="has 1 photo; ObjectPairMapper needs at least 2"):
        DrawHost(lambda item: item, ["a", "a"])


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["INPUT.OESIR.PAIR_SIZE", 16], "PAIR_SIZE is 16; allowed: at least 32 pixels"),
        (["INPUT.OESIR.PAIR_SOFTNESS", []], r"PAIR_SOFTNESS is \[\]; allowed"),
        (["INPUT.OESIR.PAIR_BOX_JITTER", 1.0], r"PAIR_BOX_JITTER is 1\.0; allowed"),
        (["INPUT.OESIR.PAIR_BACKGROUND", -1], "PAIR_BACKGROUND is -1; allowed: 0 or more"),
        (["INPUT.OESIR.PAIR_SCALE", [0.5, 0.1]], r"PAIR_SCALE.*scale is \(0\.5, 0\.1\), expected two ascending"),
        (["INPUT.OESIR.PAIR_QUALITY", [0, 50]], r"_QUALITY: quality is \(0, 50\), expected"),
    ],
)
def test_mistakes_in_the_config_are_named(opts: list[Any], message: str, make_mapper: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=message):
        make_mapper(*opts)
