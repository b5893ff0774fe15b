"""Composed sets for a detector: what is in the photos is what the boxes say, whatever the set is made from."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oesir_d2.data import ImageFile, list_images
from oesir_d2.data.datasets.coco import load_coco
from oesir_d2.data.splicing import CutOut
from oesir_d2.data.splicing.annotated_photos import AnnotatedPhotos
from oesir_d2.data.splicing.detection_options import DetectionOptions
from oesir_d2.data.splicing.detection_set import make_detection_set

RED, BLUE = (250, 20, 20), (20, 20, 250)
HEIGHT, WIDTH = 300, 400
# XYWH of the blue objects of each host.
BOXES = ([20, 30, 100, 60], [250, 100, 90, 160])


class RedBlocks:
    """A source whose photos have a red block each, which no host is similar to."""

    def __init__(self, photos: Sequence[ImageFile], without: Sequence[str] = (), side: int = 200) -> None:
        self.photos = photos
        self.settings = {"kind": "test"}
        self.without, self._side = without, side

    def cut(self, photo: ImageFile) -> list[CutOut]:
        if photo.image_id in self.without:
            return []
        pixels = np.full((self._side // 2, self._side, 4), (*RED, 255), dtype=np.uint8)
        return [CutOut(pixels, photo.image_id, (5, 6, 5 + self._side, 6 + self._side // 2), "block")]


@pytest.fixture
def hosts(tmp_path: Path) -> Callable[..., AnnotatedPhotos]:
    """``hosts(*annotations)`` writes four grey photos with blue objects in BOXES; more annotations are of the first."""
    folder = tmp_path / "hosts of Öland"
    folder.mkdir()

    def write(*more: dict[str, Any], boxes: Sequence[Sequence[float]] = BOXES) -> AnnotatedPhotos:
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 3, "name": "pond"}]}
        for i in range(4):
            pixels = np.full((HEIGHT, WIDTH, 3), 60 + 30 * i, dtype=np.uint8)
            for x, y, width, height in BOXES:
                pixels[y : y + height, x : x + width] = BLUE
            Image.fromarray(pixels).save(folder / f"{i}.png")
            content["images"].append({"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT})
            content["annotations"] += [{"image_id": i, "category_id": 3, "bbox": list(box)} for box in boxes]
        content["annotations"] += [{"image_id": 0, "category_id": 3, **item} for item in more]
        content["annotations"] = [{"id": i, **item} for i, item in enumerate(content["annotations"])]
        (tmp_path / "hosts.json").write_text(json.dumps(content), encoding="utf-8")
        return AnnotatedPhotos(tmp_path / "hosts.json", folder)

    return write


@pytest.fixture
def donors(tmp_path: Path) -> list[ImageFile]:
    (tmp_path / "donors").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (300, 200)).save(tmp_path / "donors" / name)
    return list_images(tmp_path / "donors")


def find_color(pixels: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    return (abs(pixels.astype(int) - color) < 60).all(axis=2)


def find_box(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]


def read_set(folder: Path) -> list[tuple[np.ndarray, dict[str, Any], list[dict[str, Any]]]]:
    """Pixels, image and annotations of each photo of a set."""
    content = json.loads((folder / "instances.json").read_text(encoding="utf-8"))
    return [
        (
            np.array(Image.open(folder / "images" / image["file_name"])),
            image,
            [item for item in content["annotations"] if item["image_id"] == image["id"]],
        )
        for image in content["images"]
    ]


SMALL = DetectionOptions(long_side=(100, 200))
CLEAR = DetectionOptions(rotation=0, colour=0, softness=(0, 0), quality=(95, 95))


def test_boxes_are_around_what_the_photos_show(
    hosts: Callable[..., AnnotatedPhotos], donors: list[ImageFile], tmp_path: Path
) -> None:
    look = {"rotation": 0, "colour": 0, "softness": (0, 0), "quality": (95, 95)}
    options = DetectionOptions(max_objects=1, without=0, scale=(0.2, 0.6), max_covered=0.25, **look)
    make_detection_set([(hosts(), 1)], [(RedBlocks(donors), 1)], tmp_path / "set", count=40, options=options)

    photos = read_set(tmp_path / "set")
    assert len(photos) == 40
    num_whole = num_covered = num_dropped = 0
    for pixels, image, objects in photos:
        height, width = pixels.shape[:2]
        assert (image["height"], image["width"]) == (height, width)
        assert 320 <= max(height, width) <= 1.5 * WIDTH
        (red,) = (item for item in objects if item["pasted"])
        assert red["source"] in ("a.png", "b.png") and red["category_name"] == "block"
        assert red["source_box"] == [5, 6, 205, 106]
        assert red["bbox"] == pytest.approx(find_box(find_color(pixels, RED)), abs=2)
        assert max(red["bbox"][2:]) / max(height, width) == pytest.approx(0.4, abs=0.21)
        blue = find_color(pixels, BLUE)
        scale = width / WIDTH
        shown = {tuple(item["source_box"][:2]): item for item in objects if not item["pasted"]}
        for x, y, w, h in BOXES:
            window = blue[round(y * scale) : round((y + h) * scale), round(x * scale) : round((x + w) * scale)]
            share = np.count_nonzero(window) / (w * h * scale**2)
            if (x, y) not in shown:
                assert share < 0.8
                num_dropped += 1
                continue
            assert share > 0.7
            item = shown[x, y]
            assert (item["source"], item["category_name"]) == (image["host"], "pond")
            left, top, *_ = found = find_box(window)
            found = [left + round(x * scale), top + round(y * scale), *found[2:]]
            assert item["bbox"] == pytest.approx(found, abs=3)
            assert item["area"] == pytest.approx(np.count_nonzero(window), rel=0.1)
            num_whole += share > 0.97
            num_covered += share < 0.95
    assert min(num_whole, num_covered, num_dropped) > 0


def test_numbers_sizes_and_looks_of_objects_vary_as_asked(
    hosts: Callable[..., AnnotatedPhotos], donors: list[ImageFile], tmp_path: Path
) -> None:
    source = RedBlocks(donors, side=60)
    made = make_detection_set([(hosts(), 1)], [(source, 1)], tmp_path / "set", count=150, options=SMALL)

    photos = read_set(tmp_path / "set")
    counts = Counter(sum(item["pasted"] for item in objects) for *_, objects in photos)
    assert 0.04 < counts[0] / 150 < 0.18
    assert max(counts) == 5 and all(counts[i] >= 10 for i in range(1, 6))
    sizes = []
    for pixels, _, objects in photos:
        pasted = [item for item in objects if item["pasted"]]
        if len(pasted) == 1:  # of others, a part may be hidden
            sizes.append(max(pasted[0]["bbox"][2:]) / max(pixels.shape))
    assert 0.07 <= min(sizes) < 0.12 and 0.5 < max(sizes) <= 0.61
    # Log-uniform: as many below the geometric mean of 8 and 60 % as above.
    assert np.median(sizes) == pytest.approx(math.sqrt(0.08 * 0.6), abs=0.07)
    assert made.num_composed == 150 and made.unreadable == ()
    assert len({pixels.shape for pixels, *_ in photos}) > 50


def test_small_objects_are_not_blown_up_to_a_blur(
    hosts: Callable[..., AnnotatedPhotos], donors: list[ImageFile], tmp_path: Path
) -> None:
    options = DetectionOptions(scale=(0.1, 0.6), without=0)
    make_detection_set([(hosts(), 1)], [(RedBlocks(donors, side=50), 1)], tmp_path / "set", count=8, options=options)

    sides = [max(a["bbox"][2:]) for *_, objects in read_set(tmp_path / "set") for a in objects if a["pasted"]]
    assert 70 < max(sides) <= 2 * 50 + 2


def test_pasted_objects_stay_visible_enough_and_their_boxes_shrink(
    hosts: Callable[..., AnnotatedPhotos], donors: list[ImageFile], tmp_path: Path
) -> None:
    options = DetectionOptions(without=0, scale=(0.3, 0.6), rotation=0, softness=(0, 0), max_covered=0.3)
    make_detection_set([(hosts(), 1)], [(RedBlocks(donors), 1)], tmp_path / "set", count=25, options=options)

    shares = []
    for *_, objects in read_set(tmp_path / "set"):
        for item in (item for item in objects if item["pasted"]):
            # The block is twice as wide as high.
            whole = max(item["bbox"][2], 2 * item["bbox"][3]) ** 2 / 2
            shares.append(item["area"] / whole)
            assert item["area"] <= item["bbox"][2] * item["bbox"][3] + 1e-6
    assert min(shares) > 0.7 - 0.05
    assert min(shares) < 0.9  # some are covered in part


def test_outlines_decide_what_is_covered_and_crowds_stay_crowds(
    hosts: Callable[..., AnnotatedPhotos], donors: list[ImageFile], tmp_path: Path
) -> None:
    triangle = {"bbox": [0, 0, 400, 300], "segmentation": [[0, 0, 400, 0, 0, 300]], "iscrowd": 0}
    crowd = {"bbox": [10, 10, 380, 280], "segmentation": {"size": [300, 400], "counts": [120000]}, "iscrowd": 1}
    speck = {"bbox": [5, 5, 4, 4]}
    photos = hosts(triangle, crowd, speck, boxes=[])
    options = DetectionOptions(long_side=(400, 400), max_objects=1, without=0, scale=(0.5, 0.5), rotation=0)
    make_detection_set([(photos, 1)], [(RedBlocks(donors), 1)], tmp_path / "set", count=12, options=options)

    for _, image, objects in read_set(tmp_path / "set"):
        assert image["host"] == "0.png"  # the others have no object
        (red,) = (item for item in objects if item["pasted"])
        known = [item for item in objects if not item["pasted"]]
        assert [item["iscrowd"] for item in known] == [0, 1]
        assert [item["source_box"] for item in known] == [[0, 0, 400, 300], [10, 10, 390, 290]]
        x, y, width, height = (int(v) for v in red["bbox"])
        ys, xs = np.mgrid[y : y + height, x : x + width] + 0.5
        inside = np.count_nonzero(xs / 400 + ys / 300 < 1)
        assert known[0]["area"] == pytest.approx(60000 - inside, rel=0.02)


def test_no_photo_gets_an_object_of_itself(hosts: Callable[..., AnnotatedPhotos], tmp_path: Path) -> None:
    photos = hosts()
    links = tmp_path / "links"
    links.mkdir()
    for photo in photos.photos[:2]:
        (links / f"link to {photo.image_id}").symlink_to(photo.path)
    source = RedBlocks(list_images(links))
    make_detection_set([(photos, 1)], [(source, 1)], tmp_path / "set", count=40, options=SMALL)

    pairs = {
        (image["host"], item["source"].removeprefix("link to "))
        for _, image, objects in read_set(tmp_path / "set")
        for item in objects
        if item["pasted"]
    }
    assert len(pairs) == 6
    assert all(host != donor for host, donor in pairs)


def test_weights_are_shares_of_hosts_and_of_objects(
    hosts: Callable[..., AnnotatedPhotos], donors: list[ImageFile], tmp_path: Path
) -> None:
    photos = hosts()
    single = AnnotatedPhotos(tmp_path / "hosts.json", tmp_path / "hosts of Öland")
    single.photos = [photo for photo in single.photos if photo.image_id == "3.png"]
    photos.photos = photos.photos[:1]
    sources = [(RedBlocks(donors[:1], side=60), 1), (RedBlocks(donors[1:], side=60), 3)]
    make_detection_set([(photos, 4), (single, 1)], sources, tmp_path / "set", count=150, options=SMALL)

    made = read_set(tmp_path / "set")
    hosts_used = Counter(image["host"] for _, image, _ in made)
    assert hosts_used["0.png"] / 150 == pytest.approx(0.8, abs=0.1)
    used = Counter(item["source"] for *_, objects in made for item in objects if item["pasted"])
    assert used["b.png"] / used.total() == pytest.approx(0.75, abs=0.08)


def test_each_host_follows_untouched_if_asked(
    hosts: Callable[..., AnnotatedPhotos], donors: list[ImageFile], tmp_path: Path
) -> None:
    options = DetectionOptions(long_side=(64, 200), without=0)
    arguments = {"count": 2, "options": options, "whole_hosts": True}
    made = make_detection_set([(hosts(), 1)], [(RedBlocks(donors), 1)], tmp_path / "set", **arguments)

    assert made.num_composed == 6
    whole = [photo for photo in read_set(tmp_path / "set") if photo[1]["file_name"].startswith("host_")]
    assert [image["host"] for _, image, _ in whole] == ["0.png", "1.png", "2.png", "3.png"]
    for pixels, _, objects in whole:
        assert pixels.shape == (150, 200, 3)
        assert not find_color(pixels, RED).any()
        assert [item["bbox"] for item in objects] == [[v / 2 for v in box] for box in BOXES]


def test_an_interrupted_run_goes_on_and_gives_the_same_files(
    hosts: Callable[..., AnnotatedPhotos], donors: list[ImageFile], tmp_path: Path
) -> None:
    def make(name: str, stop_after: int = 1000, **changes: Any) -> tuple[int, dict[str, bytes]]:
        def stop(names: Sequence[str]) -> Iterable[str]:
            for i, file_name in enumerate(names):
                if i == stop_after:
                    raise KeyboardInterrupt
                yield file_name

        arguments = {"count": 8, "options": SMALL, "whole_hosts": True, "progress": stop} | changes
        made = make_detection_set([(hosts(), 1)], [(RedBlocks(donors), 1)], tmp_path / name, **arguments)
        files = {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
        return made.num_composed, files

    composed, whole = make("whole")
    assert composed == 12
    with pytest.raises(KeyboardInterrupt):
        make("parts", stop_after=5)
    assert not (tmp_path / "parts" / "instances.json").exists()
    with open(tmp_path / "parts" / "composed.jsonl", "a") as log:
        log.write('{"file_name": "000005.jpg", "wid')  # as a kill leaves it
    (tmp_path / "parts" / "images" / "000001.jpg").unlink()
    composed, parts = make("parts")
    assert composed == 12 - 4
    assert parts.keys() == whole.keys()
    assert [name for name in whole if parts[name] != whole[name]] in ([], ["composed.jsonl"])
    assert make("parts")[0] == 0
    composed, more = make("parts", count=9)
    assert composed == 1
    assert {name: more[name] for name in whole if name.endswith(".jpg")} == {
        name: data for name, data in whole.items() if name.endswith(".jpg")
    }
    _, other = make("other seed", seed=1)
    assert other["000000.jpg"] != whole["000000.jpg"]
    with pytest.raises(FileExistsError, match="other settings \\(seed\\)"):
        make("parts", seed=1)
    with pytest.raises(FileExistsError, match="empty or a new folder"):
        make("hosts of Öland")


def test_unusable_photos_are_left_out_and_counted(
    hosts: Callable[..., AnnotatedPhotos],
    donors: list[ImageFile],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    photos = hosts()
    (tmp_path / "hosts of Öland" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "hosts of Öland" / "2.png")  # annotated as it was before
    (tmp_path / "donors" / "a.png").write_bytes(b"")
    source = RedBlocks(donors, without=["a.png"])
    with caplog.at_level(logging.WARNING):
        made = make_detection_set(
            [(photos, 1)], [(source, 1)], tmp_path / "set", count=25, options=SMALL, whole_hosts=True
        )

    assert {Path(path).name for path in made.unreadable} == {"1.png", "2.png", "a.png"}
    assert {image["host"] for _, image, _ in read_set(tmp_path / "set")} == {"0.png", "3.png"}
    assert "annotated as 400 x 300" in caplog.text


def test_hosts_without_known_object_get_what_is_cut_out_of_them(
    hosts: Callable[..., AnnotatedPhotos], donors: list[ImageFile], tmp_path: Path
) -> None:
    photos = hosts(boxes=[])
    sources = [(RedBlocks(donors), 1), (RedBlocks(photos.photos[2:3], side=100), 1)]
    arguments = {"count": 12, "options": CLEAR}
    make_detection_set([(photos, 1)], sources, tmp_path / "set", **arguments)

    for _, image, objects in read_set(tmp_path / "set"):
        assert image["host"] == "2.png"
        known = [item["source_box"] for item in objects if not item["pasted"]]
        assert known in ([[5, 6, 105, 56]], [])
    arguments["options"] = DetectionOptions(keep_empty=True)
    make_detection_set([(photos, 1)], sources, tmp_path / "all", **arguments)
    assert {image["host"] for _, image, _ in read_set(tmp_path / "all")} == {f"{i}.png" for i in range(4)}
    with pytest.raises(ValueError, match="none of the 4 hosts"):
        make_detection_set([(photos, 1)], sources[:1], tmp_path / "none", **arguments | {"options": CLEAR})
    with pytest.raises(ValueError, match="none of the sources"):
        nothing = RedBlocks(donors, without=["a.png", "b.png"])
        make_detection_set([(hosts(), 1)], [(nothing, 1)], tmp_path / "nothing", count=3, options=CLEAR)


def test_a_training_run_can_load_the_set(
    hosts: Callable[..., AnnotatedPhotos], donors: list[ImageFile], tmp_path: Path
) -> None:
    made = make_detection_set([(hosts(), 1)], [(RedBlocks(donors), 1)], tmp_path / "set", count=3)

    dicts = load_coco(tmp_path / "set" / "instances.json", tmp_path / "set" / "images")
    assert [Path(item["file_name"]).is_file() for item in dicts] == [True] * 3
    assert sum(len(item["annotations"]) for item in dicts) == len(made.instances["annotations"])
    assert {a["category_id"] for item in dicts for a in item["annotations"]} == {0}


@pytest.mark.parametrize(
    ("annotation", "named"),
    [
        ({"bbox": [0, 0, 10]}, "the bbox of annotation 8"),
        ({"bbox": [0, 0, -1, 4]}, "the bbox of annotation 8"),
        ({"bbox": [0, 0, 4, float("nan")]}, "the bbox of annotation 8"),
        ({}, "the bbox of annotation 8 is None"),
        ({"bbox": [0, 0, 9, 9], "segmentation": [[0, 0, 1]]}, "the segmentation of annotation 8"),
        ({"bbox": [0, 0, 9, 9], "segmentation": [[0, 0, 1, 1]]}, "the segmentation of annotation 8"),
    ],
)
def test_malformed_annotations_are_named(
    hosts: Callable[..., AnnotatedPhotos], annotation: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        hosts(annotation)


@pytest.mark.parametrize(
    "change",
    [
        {"long_side": (300, 200)},
        {"max_enlargement": 0},
        {"max_objects": -1},
        {"without": 1.1},
        {"max_covered": float("nan")},
        {"scale": (0.6, 0.5)},
        {"softness": (2, 1)},
        {"quality": (60, 101)},
    ],
)
def test_options_out_of_range_are_refused_by_name(change: dict[str, Any]) -> None:
    (name,) = change
    with pytest.raises(ValueError, match=f"^{name} is "):
        DetectionOptions(**change)


@pytest.mark.parametrize(
    ("weights", "named"), [(([0], [1]), "weights of the hosts"), (([1], []), "no sources of objects")]
)
def test_weights_must_be_above_0(
    hosts: Callable[..., AnnotatedPhotos],
    donors: list[ImageFile],
    tmp_path: Path,
    weights: tuple[list[float], list[float]],
    named: str,
) -> None:
    photos, source = hosts(), RedBlocks(donors)
    with pytest.raises(ValueError, match=named):
        make_detection_set(
            [(photos, w) for w in weights[0]], [(source, w) for w in weights[1]], tmp_path / "set", count=1
        )
    assert not (tmp_path / "set").exists()
