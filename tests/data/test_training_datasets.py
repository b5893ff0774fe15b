"""Data sets that a config names: photos without labels, COCO-format sets, and mistakes in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.training_data import build_train_loader, register_datasets

MakePhoto = Callable[..., np.ndarray]


@pytest.fixture
def photos(tmp_path: Path, make_photo: MakePhoto) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name in ("a.png", "b b.png", "more/c.png"):
        Image.fromarray(make_photo(40, 60)).save(folder / name)
    return folder


@pytest.fixture
def annotations(photos: Path) -> Path:
    """Two of the photos, annotated with the categories 3 and 7."""
    boxes = [(1, 3, [5, 5, 20, 20]), (1, 7, [30, 10, 20, 20]), (2, 7, [0, 0, 60, 40])]
    content: dict[str, Any] = {
        "images": [
            {"id": i, "file_name": name, "height": 40, "width": 60} for i, name in ((1, "a.png"), (2, "more/c.png"))
        ],
        "annotations": [
            {"id": i, "image_id": image, "category_id": category, "bbox": box, "area": 400, "iscrowd": 0}
            for i, (image, category, box) in enumerate(boxes, start=1)
        ],
        "categories": [{"id": 3, "name": "cup"}, {"id": 7, "name": "dog"}],
    }
    path = photos.parent / "instances.json"
    path.write_text(json.dumps(content))
    return path


def register(config: str, *opts: object) -> Any:
    cfg = load_config(config, [str(word) for word in opts])
    register_datasets(cfg)
    return cfg


def test_any_folder_or_list_of_photos_is_a_data_set(photos: Path) -> None:
    (photos.parent / "list.txt").write_text("photos/b b.png\n")
    sets = [["photos", str(photos)], ["few", str(photos.parent / "list.txt")]]
    register("lite0/distill_S3.yaml", "DATASETS.OESIR.PHOTOS", sets)

    assert [item["image_id"] for item in DatasetCatalog.get("photos")] == ["a.png", "b b.png", "more/c.png"]
    assert DatasetCatalog.get("few") == [{"file_name": str(photos / "b b.png"), "image_id": "photos/b b.png"}]


def test_a_name_can_be_given_to_another_folder(photos: Path) -> None:
    for folder, count in ((photos, 3), (photos / "more", 1)):
        register("lite0/distill_S3.yaml", "DATASETS.OESIR.PHOTOS", [["photos", str(folder)]])
        assert len(DatasetCatalog.get("photos")) == count


def test_coco_set_keeps_its_classes(photos: Path, annotations: Path) -> None:
    sets = [["objects", str(annotations), str(photos)]]
    register("detectors/faster_rcnn_R50_FPN.yaml", "DATASETS.OESIR.COCO", sets)

    first, second = DatasetCatalog.get("objects")
    assert first["file_name"] == str(photos / "a.png")
    assert [annotation["category_id"] for annotation in first["annotations"]] == [0, 1]
    assert [annotation["category_id"] for annotation in second["annotations"]] == [1]
    assert MetadataCatalog.get("objects").thing_classes == ["cup", "dog"]


def test_class_agnostic_coco_set_has_one_class(photos: Path, annotations: Path) -> None:
    register("lite0/detector.yaml", "DATASETS.OESIR.COCO", [["objects", str(annotations), str(photos)]])

    categories = {a["category_id"] for item in DatasetCatalog.get("objects") for a in item["annotations"]}
    assert categories == {0}
    assert MetadataCatalog.get("objects").thing_classes == ["object"]


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("PHOTOS", "[['photos', 'nowhere']]", FileNotFoundError, "'nowhere' of 'photos' does not exist"),
        ("PHOTOS", "[]", ValueError, r"DATASETS.TRAIN names 'photos', which is no data set; .*, now \[\]"),
        ("PHOTOS", "[['photos']]", ValueError, r"the entry \['photos'\]; allowed: \[NAME, DIR_OR_LIST\]"),
        ("PHOTOS", "['photos']", ValueError, "the entry 'photos'; allowed"),
        ("PHOTOS", "[['', '.']]", ValueError, "empty name"),
        ("PHOTOS", "[['coco_2017_train', '.']]", ValueError, "'coco_2017_train' .* is taken"),
        ("COCO", "[['photos', 'nowhere.json', '.']]", FileNotFoundError, "'nowhere.json' of 'photos' is no file"),
        ("COCO", f"[['photos', {__file__!r}, 'nowhere']]", FileNotFoundError, "'nowhere' of 'photos' is no folder"),
    ],
)
def test_mistakes_in_data_sets_are_named(key: str, value: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        register("lite0/distill_S3.yaml", f"DATASETS.OESIR.{key}", value)


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"images": [{}]}', '{"images": 3}'])
def test_file_that_is_not_cocos_is_named(photos: Path, content: str) -> None:
    path = photos.parent / "broken.json"
    path.write_text(content)
    register("lite0/detector.yaml", "DATASETS.OESIR.COCO", [["objects", str(path), str(photos)]])
    with pytest.raises(ValueError, match=r"broken\.json is no COCO-format annotation file: ."):
        DatasetCatalog.get("objects")


def test_more_classes_than_the_detector_has_are_refused(photos: Path, annotations: Path) -> None:
    coco = ["DATASETS.OESIR.COCO", [["objects", str(annotations), str(photos)]]]
    cfg = register("detectors/faster_rcnn_R50_FPN.yaml", *coco, "MODEL.ROI_HEADS.NUM_CLASSES", 1)
    with pytest.raises(ValueError, match="NUM_CLASSES is 1, but DATASETS.TRAIN has 2 classes"):
        build_train_loader(cfg)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["INPUT.OESIR.TRAINING_MAPPER", "Nothing"], r"'Nothing' unknown; allowed: \['CropMapper', 'DetectionMapper'"),
        (
            ["INPUT.OESIR.TRAINING_MAPPER", "DetectionMapper"],
            "no annotations, which DetectionMapper needs; .*CropMapper",
        ),
        (["SOLVER.IMS_PER_BATCH", "0"], "IMS_PER_BATCH is 0; allowed: multiples"),
        (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty"),
    ],
)
def test_mistakes_in_the_loader_are_named(opts: list[str], message: str, photos: Path) -> None:
    cfg = register("lite0/distill_S3.yaml", "DATASETS.OESIR.PHOTOS", [["photos", str(photos)]], *opts)
    with pytest.raises(ValueError, match=message):
        build_train_loader(cfg)
