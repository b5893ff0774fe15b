"""The contrastive stage in the trainer: what changes, what comes out, resuming, starts that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from PIL import Image

from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.model_loading import load_model
from oesir_d2.engine.trainer import OESIRTrainer
from oesir_d2.engine.training_data import register_datasets
from oesir_d2.index import read_skipped
from oesir_d2.layers import PCAWhitening, load_whitening, save_whitening

CONFIG = "lite0/contrastive.yaml"
DIMENSION = 16
STUDENT = "embedding_source.student."
WHITENING = "roi_heads.embedding_head.whitening."
TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "DATALOADER.NUM_WORKERS", "0"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "SOLVER.CHECKPOINT_PERIOD", "2"),
    *("INPUT.OESIR.PAIR_SIZE", "64", "MODEL.OESIR.EMBEDDING.WHITENING_DIM", str(DIMENSION)),
]
PROJECTION_ALONE = [
    *("MODEL.OESIR.EMBEDDING.SOURCE", "DetectorSource", "MODEL.OESIR.EMBEDDING.DETECTOR_FEATURES", "['p4']"),
    *("MODEL.OESIR.CONTRASTIVE.DISTILLATION_WEIGHT", "0.0", "MODEL.FPN.OUT_CHANNELS", "32"),
]


@pytest.fixture
def photos(tmp_path: Path, make_photo: Callable[..., np.ndarray]) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(5):
        Image.fromarray(make_photo(90, 120)).save(folder / f"photo{index}.png")
    return folder


@pytest.fixture
def cutouts(photos: Path, tmp_path: Path) -> list[str]:
    """The data sets "objects", of two photos, and "regions", of all."""
    polygon = [10, 10, 70, 10, 70, 60, 10, 60]
    content = {
        "images": [{"id": i, "file_name": f"photo{i}.png", "height": 90, "width": 120} for i in range(2)],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": 1, "bbox": [10, 10, 60, 50], "segmentation": [polygon]}
            | {"area": 3000, "iscrowd": 0}
            for i in range(2)
        ],
        "categories": [{"id": 1, "name": "cup"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    sets = [["objects", "coco", str(tmp_path / "instances.json"), str(photos)], ["regions", "blobs", str(photos)]]
    return ["DATASETS.OESIR.CUTOUTS", str(sets)]


def write_whitening(path: Path, channels: int) -> str:
    vectors = torch.randn(100, channels, generator=torch.Generator().manual_seed(0)).exp()
    save_whitening(path, PCAWhitening(channels, DIMENSION).fit(vectors), {"source": "test", "count": 100})
    return str(path)


@pytest.fixture
def make_cfg(cutouts: list[str], tmp_path: Path) -> Callable[..., CfgNode]:
    def make(*opts: str, channels: int = 32) -> CfgNode:
        whitening = write_whitening(tmp_path / f"{channels}.safetensors", channels)
        where = ["MODEL.OESIR.EMBEDDING.WHITENING", whitening, "OUTPUT_DIR", str(tmp_path / "out")]
        cfg = load_config(CONFIG, [*TINY, *where, *cutouts, *opts])
        cfg.freeze()
        (tmp_path / "out").mkdir(exist_ok=True)
        register_datasets(cfg)
        return cfg

    return make


@pytest.fixture
def make_trainer(make_cfg: Callable[..., CfgNode]) -> Callable[..., OESIRTrainer]:
    return lambda *opts: OESIRTrainer(make_cfg(*PROJECTION_ALONE, *opts))


def copy_state(trainer: OESIRTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def list_changes(trainer: OESIRTrainer, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_student_and_projection_are_trained_and_make_an_oesir(
    make_cfg: Callable[..., CfgNode], tmp_path: Path, make_photo: Callable[..., np.ndarray]
) -> None:
    cfg = make_cfg(channels=1280)
    trainer = OESIRTrainer(cfg)
    trainer.resume_or_load(resume=False)
    before = copy_state(trainer)
    trainer.train()

    weights = {name for name, _ in trainer.model.named_parameters() if name.startswith(STUDENT)}
    assert list_changes(trainer, before) == weights | {f"{WHITENING}mean", f"{WHITENING}projection"}
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    last = read_metrics(tmp_path / "out")[-1]
    assert {"loss_contrastive_info_nce", "loss_distill_l2", "contrastive/positive_cosine"} <= set(last)
    assert 0 <= last["contrastive/recall@1"] <= 1 and np.isfinite(last["total_loss"])

    # What embeds afterwards: an OESIR with the checkpoint, or with the learned projection's file in its place.
    oesir = cfg.clone()
    oesir.defrost()
    oesir.MODEL.META_ARCHITECTURE, oesir.MODEL.WEIGHTS = "OESIR", str(tmp_path / "out" / "model_final.pth")
    started_from, oesir.MODEL.OESIR.EMBEDDING.WHITENING = oesir.MODEL.OESIR.EMBEDDING.WHITENING, ""
    inputs = [{"image": torch.from_numpy(make_photo(64, 96).transpose(2, 0, 1).copy())}]
    with torch.no_grad():
        expected = trainer.model.eval()(inputs)[0]["image_embedding"]
        torch.testing.assert_close(load_model(oesir)(inputs)[0]["image_embedding"], expected)
        # A file that the config names takes the place of the checkpoint's projection.
        oesir.MODEL.OESIR.EMBEDDING.WHITENING = str(tmp_path / "out" / "whitening.safetensors")
        torch.testing.assert_close(load_model(oesir)(inputs)[0]["image_embedding"], expected)
        oesir.MODEL.OESIR.EMBEDDING.WHITENING = started_from
        assert not torch.allclose(load_model(oesir)(inputs)[0]["image_embedding"], expected)
    learned, metadata = load_whitening(tmp_path / "out" / "whitening.safetensors")
    assert metadata["source"] == "contrastive stage on objects, regions" and metadata["count"] == 4
    assert torch.equal(learned.projection, trainer.model.state_dict()[f"{WHITENING}projection"])


def test_projection_alone_is_trained_on_frozen_maps(make_trainer: Callable[..., OESIRTrainer]) -> None:
    trainer = make_trainer("SOLVER.MAX_ITER", "3")
    before = copy_state(trainer)
    trainer.train()
    assert list_changes(trainer, before) == {f"{WHITENING}mean", f"{WHITENING}projection"}


def test_resumed_run_goes_on_where_it_stopped(make_trainer: Callable[..., OESIRTrainer]) -> None:
    first = make_trainer("SOLVER.MAX_ITER", "2")
    first.train()
    second = make_trainer("SOLVER.MAX_ITER", "4")
    second.resume_or_load(resume=True)

    assert second.start_iter == 2
    assert not list_changes(second, copy_state(first))
    second.train()
    assert {int(state["step"]) for state in second.optimizer.state.values()} == {4}


def test_photos_that_cannot_be_read_are_skipped_as_donors_and_as_hosts(
    make_trainer: Callable[..., OESIRTrainer], photos: Path, tmp_path: Path
) -> None:
    (photos / "photo1.png").write_bytes(b"no photo")
    trainer = make_trainer("SOLVER.MAX_ITER", "8")
    trainer.train()
    assert trainer.iter == 8
    assert [Path(entry.path).name for entry in read_skipped(tmp_path / "out")] == ["photo1.png"]


def test_loss_that_is_no_number_leaves_no_projection_behind(
    make_trainer: Callable[..., OESIRTrainer], tmp_path: Path
) -> None:
    trainer = make_trainer()
    with torch.no_grad():
        trainer.model.roi_heads.embedding_head.whitening.projection[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"loss_contrastive_info_nce is nan; its files: .*photo"):
        trainer.train()
    assert not (tmp_path / "out" / "whitening.safetensors").exists()


def test_starts_that_would_train_on_nothing_are_refused(
    make_cfg: Callable[..., CfgNode], make_trainer: Callable[..., OESIRTrainer], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="the contrastive stage starts from a whitening; set MODEL.OESIR.EMBEDDING"):
        make_trainer("MODEL.OESIR.EMBEDDING.WHITENING", "").resume_or_load(resume=False)

    # A detector without a student, and a student without a detector.
    state = OESIRTrainer(make_cfg(channels=1280)).model.state_dict()
    for part, missing in (("backbone.", "student"), ("embedding_source.", "detector")):
        torch.save({name: v for name, v in state.items() if name.startswith(part)}, tmp_path / "part.pth")
        trainer = OESIRTrainer(make_cfg("MODEL.WEIGHTS", str(tmp_path / "part.pth"), channels=1280))
        with pytest.raises(ValueError, match=rf"part\.pth' do not fit the {missing}: "):
            trainer.resume_or_load(resume=False)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.IMS_PER_BATCH", "6"], "IMS_PER_BATCH is 6, but DATASETS.TRAIN has 5 photos"),
        (["DATASETS.OESIR.CUTOUTS", "[['objects', 'coco']]"], "CUTOUTS has the entry .*; allowed: "),
        (["DATASETS.OESIR.CUTOUTS", "[['objects']]"], r"CUTOUTS has the entry \['objects'\]; allowed: \[NAME, KIND"),
    ],
)
def test_mistakes_in_the_config_are_named(
    opts: list[str], message: str, make_trainer: Callable[..., OESIRTrainer]
) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(*opts)


def test_photos_alone_are_no_objects(make_trainer: Callable[..., OESIRTrainer], photos: Path) -> None:
    sets = ["DATASETS.OESIR.PHOTOS", str([["plain", str(photos)]]), "DATASETS.TRAIN", "('plain',)"]
    with pytest.raises(ValueError, match="is no object to cut out, which ObjectPairMapper needs"):
        make_trainer(*sets)
