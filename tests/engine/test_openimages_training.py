"""The detector stage on OpenImages: two iterations, several sets at once, and average precision."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from PIL import Image

from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.trainer import OESIRTrainer
from oesir_d2.engine.training_data import build_train_loader, load_training_set, register_datasets
from oesir_d2.index import read_skipped

CONFIG = "detectors/openimages_R50_FPN.yaml"
TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
    *("DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50"),
]
HEADER = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
CLASSES = ["/m/0k4j,Car", "/m/01g317,Person"]


@pytest.fixture
def root(tmp_path: Path, make_photo: Callable[..., np.ndarray]) -> Path:
    """Four photos of 80 x 60 pixels, in each a person in the middle and a group of cars at the lower right."""
    lines = [HEADER]
    (tmp_path / "photos").mkdir()
    for index in range(4):
        Image.fromarray(make_photo(60, 80)).save(tmp_path / "photos" / f"photo{index}.jpg")
        lines += [
            f"photo{index},xclick,/m/01g317,1,0.25,0.75,0.25,0.75,0,0,0,0,0",
            f"photo{index},xclick,/m/0k4j,1,0.5,1,0.5,1,0,0,1,0,0",
        ]
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    (tmp_path / "classes.csv").write_text("\n".join(CLASSES))
    (tmp_path / "out").mkdir()
    return tmp_path


@pytest.fixture
def make_cfg(root: Path) -> Callable[..., CfgNode]:
    def make(*opts: Any, names: tuple[str, ...] = ("openimages",)) -> CfgNode:
        sets = [[name, *(str(root / file) for file in ("boxes.csv", "classes.csv", "photos"))] for name in names]
        opts = ("DATASETS.OESIR.OPENIMAGES", sets, "OUTPUT_DIR", root / "out", *opts)
        cfg = load_config(CONFIG, [*TINY, *map(str, opts)])
        cfg.freeze()
        register_datasets(cfg)
        return cfg

    return make


@pytest.fixture
def coco(root: Path) -> list[list[str]]:
    """The value of DATASETS.OESIR.COCO for the same photos with one dog each."""
    names = sorted(path.name for path in (root / "photos").iterdir())
    content = {
        "images": [{"id": i, "file_name": name, "height": 60, "width": 80} for i, name in enumerate(names)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 7, "bbox": [10, 10, 40, 30], "area": 1200, "iscrowd": 0}
            for i in range(len(names))
        ],
        "categories": [{"id": 7, "name": "dog"}],
    }
    (root / "instances.json").write_text(json.dumps(content))
    return [["dogs", str(root / "instances.json"), str(root / "photos")]]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_detector_is_trained_on_it(workers: str, make_cfg: Callable[..., CfgNode], root: Path) -> None:
    # Of the groups the detector learns nothing, so nothing is ever labelled as a car.
    trainer = OESIRTrainer(make_cfg("DATALOADER.NUM_WORKERS", workers))
    trainer.checkpointer.save_to_disk = False
    trainer.resume_or_load(resume=False)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    seen: list[int] = []
    trainer.model.register_forward_pre_hook(
        lambda model, arguments: seen.extend(c for x in arguments[0] for c in x["instances"].gt_classes.tolist())
    )
    trainer.train()

    assert trainer.iter == 2
    assert seen == [1, 1, 1, 1]
    assert trainer.model.roi_heads.box_predictor.cls_score.out_features == 602  # and the background
    changed = {n.split(".")[0] for n, value in trainer.model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {"backbone", "proposal_generator", "roi_heads"}
    last = json.loads((root / "out" / "metrics.json").read_text().splitlines()[-1])
    assert np.isfinite(last["total_loss"])
    assert {key for key in last if key.startswith("loss_")} == {
        *("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg")
    }


def test_photo_of_another_size_than_was_kept_is_skipped_and_counted(
    make_cfg: Callable[..., CfgNode], root: Path
) -> None:
    cfg = make_cfg()
    load_training_set(cfg)
    Image.new("RGB", (30, 90)).save(root / "photos" / "photo2.jpg")
    loader = iter(build_train_loader(cfg))
    files = {Path(item["file_name"]).name for _ in range(6) for item in next(loader)}
    assert files == {"photo0.jpg", "photo1.jpg", "photo3.jpg"}
    (skipped,) = read_skipped(root / "out")
    assert skipped.path == str(root / "photos" / "photo2.jpg") and "Mismatched image shape" in skipped.reason


def test_photos_alone_are_used_without_boxes(make_cfg: Callable[..., CfgNode]) -> None:
    loader = build_train_loader(make_cfg("INPUT.OESIR.TRAINING_MAPPER", "CropMapper", "INPUT.OESIR.CROP_SIZE", "32"))
    assert all(item["image"].shape == (3, 32, 32) for item in next(iter(loader)))


def test_several_sets_are_one(make_cfg: Callable[..., CfgNode], coco: list[list[str]]) -> None:
    agnostic = ["DATASETS.OESIR.CLASS_AGNOSTIC", True, "MODEL.ROI_HEADS.NUM_CLASSES", 1, "DATASETS.OESIR.COCO", coco]
    for names in (("openimages", "dogs"), ("dogs", "openimages"), ("openimages", "again")):
        cfg = make_cfg(*agnostic, "DATASETS.TRAIN", names, names=("openimages", "again"))
        assert len(load_training_set(cfg)) == 8
        batch = next(iter(build_train_loader(cfg)))
        assert all(item["instances"].gt_classes.tolist() == [0] for item in batch)


@pytest.mark.parametrize("names", [("openimages", "dogs"), ("dogs", "openimages")])
def test_sets_of_different_classes_are_refused(
    names: tuple[str, ...], make_cfg: Callable[..., CfgNode], coco: list[list[str]]
) -> None:
    cfg = make_cfg("DATASETS.OESIR.COCO", coco, "DATASETS.TRAIN", names)
    with pytest.raises(ValueError, match="[Dd]ifferent metadata 'thing_classes'|classes of 'dogs' are not those of"):
        load_training_set(cfg)


def test_more_classes_than_the_detector_has_are_refused(make_cfg: Callable[..., CfgNode]) -> None:
    with pytest.raises(ValueError, match="NUM_CLASSES is 1, but DATASETS.TRAIN has 2 classes"):
        load_training_set(make_cfg("MODEL.ROI_HEADS.NUM_CLASSES", 1))


@pytest.mark.parametrize(
    ("group_of", "cars", "expected"),
    [
        # A box within a group to ignore is neither a hit nor a false alarm.
        ("ignore", [[45.0, 35.0, 55.0, 45.0]], {"AP": 100.0, "AP-Person": 100.0, "AP-Car": float("nan")}),
        ("keep", [[45.0, 35.0, 55.0, 45.0]], {"AP": 50.0, "AP-Person": 100.0, "AP-Car": 0.0}),
        ("keep", [[40.0, 30.0, 80.0, 60.0]], {"AP": 100.0, "AP-Person": 100.0, "AP-Car": 100.0}),
    ],
)
def test_average_precision_of_perfect_persons(
    group_of: str, cars: list[list[float]], expected: dict[str, float], make_cfg: Callable[..., CfgNode]
) -> None:
    cfg = make_cfg("DATASETS.OESIR.OPENIMAGES_GROUP_OF", group_of)
    evaluator = OESIRTrainer.build_evaluator(cfg, "openimages")
    evaluator.reset()
    for batch in OESIRTrainer.build_test_loader(cfg, "openimages"):
        found = Instances((60, 80))
        found.pred_boxes = Boxes(torch.tensor([[20.0, 15.0, 60.0, 45.0], *cars]))
        found.scores = torch.tensor([0.9] + [0.8] * len(cars))
        found.pred_classes = torch.tensor([1] + [0] * len(cars))
        evaluator.process(batch, [{"instances": found}])
    result = evaluator.evaluate()["bbox"]
    assert {key: result[key] for key in expected} == pytest.approx(expected, nan_ok=True)
