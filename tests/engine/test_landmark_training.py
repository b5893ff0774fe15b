"""The landmark stage by the trainer: the supplement's recipe, epochs, resuming, photos and losses that are broken."""

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
from oesir_d2.engine.trainer import OESIRTrainer
from oesir_d2.engine.training_data import register_datasets
from oesir_d2.engine.training_hooks import NonFiniteLossError
from oesir_d2.index import read_skipped

LITE0 = "landmarks/finetune_lite0.yaml"
SIZES = [(60, 80), (80, 60), (64, 64)]


@pytest.fixture
def landmarks(tmp_path: Path, make_photo: Callable[..., np.ndarray]) -> Path:
    """Nine photos of three landmarks and three shapes, with their CSV file."""
    folder = tmp_path / "landmarks"
    folder.mkdir()
    lines = ["id,url,landmark_id"]
    for i in range(9):
        Image.fromarray(make_photo(*SIZES[i % 3])).save(folder / f"photo{i}.jpg")
        lines.append(f"photo{i},http://photos.test/{i}.jpg,{100 + i // 3}")
    (folder / "train.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture
def make_cfg(landmarks: Path, tmp_path: Path) -> Callable[..., CfgNode]:
    def make(*opts: str, config: str = LITE0) -> CfgNode:
        sets = str([["landmarks", str(landmarks / "train.csv"), str(landmarks)]])
        tiny = [
            *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2"),
            *("INPUT.OESIR.SHAPES", "[[32, 64], [64, 32], [32, 32]]", "SOLVER.OESIR.EPOCHS", "1"),
            *("DATASETS.OESIR.LANDMARKS", sets, "OUTPUT_DIR", str(tmp_path / "out")),
        ]
        cfg = load_config(config, [*tiny, *opts])
        cfg.freeze()
        (tmp_path / "out").mkdir(exist_ok=True)
        register_datasets(cfg)
        return cfg

    return make


@pytest.fixture
def make_trainer(make_cfg: Callable[..., CfgNode]) -> Callable[..., OESIRTrainer]:
    return lambda *opts, **options: OESIRTrainer(make_cfg(*opts, **options))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


@pytest.mark.parametrize("config", [LITE0, "landmarks/finetune_R50.yaml"])
def test_recipe_is_the_supplements(config: str) -> None:
    cfg = load_config(config)
    assert (cfg.SOLVER.OESIR.OPTIMIZER, cfg.SOLVER.MOMENTUM, cfg.SOLVER.NESTEROV) == ("SGD", 0.9, False)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.IMS_PER_BATCH) == (1e-3, 1e-5, 64)
    assert (cfg.SOLVER.LR_SCHEDULER_NAME, cfg.SOLVER.OESIR.EPOCHS) == ("WarmupCosineLR", 5)
    assert cfg.INPUT.OESIR.SHAPES == [[512, 384], [384, 512], [448, 448]]
    assert (cfg.MODEL.OESIR.LANDMARKS.LOSS, cfg.MODEL.OESIR.EMBEDDING.POOLER) == ("ArcFace", "GeMPooler")


@pytest.mark.parametrize(
    ("config", "opts"),
    [(LITE0, []), ("landmarks/finetune_R50.yaml", ["MODEL.OESIR.TEACHER.WEIGHTS", ""])],
)
def test_a_teacher_is_fine_tuned(
    config: str, opts: list[str], make_trainer: Callable[..., OESIRTrainer], tmp_path: Path
) -> None:
    trainer = make_trainer(*opts, "SOLVER.OESIR.EPOCHS", "0", "SOLVER.MAX_ITER", "2", config=config)
    trainer.resume_or_load(resume=False)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.checkpointer.save_to_disk = config == LITE0
    trainer.train()

    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert trainer.model.classifier.weight.shape[0] == 3
    (group,) = trainer.optimizer.param_groups
    assert (type(trainer.optimizer), group["momentum"], group["weight_decay"]) == (torch.optim.SGD, 0.9, 1e-5)
    last = read_metrics(tmp_path / "out")[-1]
    assert np.isfinite(last["total_loss"])
    assert 0 <= last["landmarks/accuracy"] <= 1


def test_epochs_become_iterations_and_the_rate_a_half_cosine(make_trainer: Callable[..., OESIRTrainer]) -> None:
    trainer = make_trainer("SOLVER.OESIR.EPOCHS", "3", "SOLVER.IMS_PER_BATCH", "2")
    assert trainer.max_iter == trainer.cfg.SOLVER.MAX_ITER == 14, "27 photos"
    rates = []
    step = trainer.run_step

    def run_step() -> None:
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        step()

    trainer.run_step = run_step
    trainer.checkpointer.save_to_disk = False
    trainer.train()
    np.testing.assert_allclose(rates, [0.001 * (1 + np.cos(np.pi * i / 14)) / 2 for i in range(14)], rtol=1e-6)


def test_resumed_run_goes_on_where_it_stopped(make_trainer: Callable[..., OESIRTrainer], tmp_path: Path) -> None:
    class Interruption(Exception):
        pass

    first = make_trainer("SOLVER.OESIR.EPOCHS", "2", "SOLVER.CHECKPOINT_PERIOD", "2")
    first.resume_or_load(resume=True)
    run_step = first.run_step

    def interrupt() -> None:
        if first.iter == 5:
            raise Interruption
        run_step()

    first.run_step = interrupt
    with pytest.raises(Interruption):
        first.train()

    second = make_trainer("SOLVER.OESIR.EPOCHS", "2", "SOLVER.CHECKPOINT_PERIOD", "2")
    second.resume_or_load(resume=True)
    saved = torch.load(tmp_path / "out" / "model_0000003.pth", weights_only=True)["model"]
    assert (second.start_iter, second.max_iter) == (4, 9)
    assert all(torch.equal(value, saved[name]) for name, value in second.model.state_dict().items())
    momenta = [state["momentum_buffer"] for state in second.optimizer.state.values()]
    assert len(momenta) > 10 and any(buffer.any() for buffer in momenta)
    second.train()
    assert second.iter == 9
    assert second.checkpointer.get_checkpoint_file().endswith("model_final.pth")
    assert second.optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-4)


def test_run_is_not_resumed_with_other_landmarks(make_trainer: Callable[..., OESIRTrainer], landmarks: Path) -> None:
    make_trainer().train()
    for path in landmarks.glob("photo[678].jpg"):
        path.unlink()
    trainer = make_trainer()
    with pytest.raises(ValueError, match=r"'classifier\.weight' has shape \(3, 1280\), now expected \(2, 1280\)"):
        trainer.resume_or_load(resume=True)
    # Its network may be where another run starts.
    weights = trainer.checkpointer.get_checkpoint_file()
    make_trainer("MODEL.WEIGHTS", weights).resume_or_load(resume=False)


def test_corrupt_photos_are_skipped_and_counted(
    make_trainer: Callable[..., OESIRTrainer], landmarks: Path, tmp_path: Path
) -> None:
    content = (landmarks / "photo0.jpg").read_bytes()
    (landmarks / "photo0.jpg").write_bytes(content[: len(content) // 2])
    (landmarks / "photo4.jpg").write_bytes(b"")
    trainer = make_trainer("SOLVER.OESIR.EPOCHS", "2")
    trainer.train()

    assert trainer.iter == 9
    reasons = {Path(entry.path).name: entry.reason for entry in read_skipped(tmp_path / "out")}
    assert set(reasons) == {"photo0.jpg", "photo4.jpg"}
    assert reasons["photo4.jpg"] == "the file is empty"
    assert read_metrics(tmp_path / "out")[-1]["data/skipped_images"] == 2


def test_loss_that_is_no_number_stops_the_run_and_names_the_files(
    make_trainer: Callable[..., OESIRTrainer], landmarks: Path
) -> None:
    trainer = make_trainer()
    with torch.no_grad():
        trainer.model.teacher.network.stem[0].weight.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="at iteration 0: loss_landmark is nan; its files: ") as caught:
        trainer.train()
    named = str(caught.value).split("files: ")[1].split(", ")
    assert len(named) == 2 and set(named) <= {str(path) for path in landmarks.glob("*.jpg")}


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.OESIR.EPOCHS", "-1"], "EPOCHS is -1; allowed: 0"),
        (["SOLVER.IMS_PER_BATCH", "0"], "IMS_PER_BATCH is 0; allowed"),
        (["MODEL.OESIR.LANDMARKS.NUM_CLASSES", "2"], r"has 3 landmark\(s\) and .*NUM_CLASSES is 2; allowed"),
        (["DATASETS.OESIR.LANDMARK_MIN_PHOTOS", "4"], "none of which has 4 or more"),
    ],
)
def test_mistakes_in_the_config_are_named(
    opts: list[str], message: str, make_trainer: Callable[..., OESIRTrainer]
) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(*opts)


def test_one_landmark_is_nothing_to_tell_apart(make_trainer: Callable[..., OESIRTrainer], landmarks: Path) -> None:
    (landmarks / "train.csv").write_text("id,landmark_id\nphoto0,5\nphoto1,5\n")
    with pytest.raises(ValueError, match=r"has 1 landmark\(s\) .*allowed: at least 2 landmarks"):
        make_trainer()


def test_data_without_landmarks_or_of_two_files_is_refused(
    make_trainer: Callable[..., OESIRTrainer], landmarks: Path
) -> None:
    photos = ["DATASETS.OESIR.PHOTOS", str([["photos", str(landmarks)]]), "DATASETS.TRAIN", "('photos',)"]
    with pytest.raises(ValueError, match=r"photo0\.jpg of DATASETS\.TRAIN has no landmark"):
        make_trainer(*photos)
    entries = str([[name, str(landmarks / "train.csv"), str(landmarks)] for name in ("a", "b")])
    with pytest.raises(ValueError, match=r"has 2 sets of landmarks, \['a', 'b'\]; allowed: one at a time"):
        make_trainer("DATASETS.OESIR.LANDMARKS", entries, "DATASETS.TRAIN", "('a', 'b')")


def test_epochs_hold_for_other_stages_too(landmarks: Path, tmp_path: Path) -> None:
    cfg = load_config(
        "lite0/distill_S3.yaml",
        [
            *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "4"),
            *("DATASETS.OESIR.PHOTOS", str([["photos", str(landmarks)]]), "SOLVER.OESIR.EPOCHS", "2"),
            *("INPUT.OESIR.CROP_SIZE", "32", "OUTPUT_DIR", str(tmp_path)),
        ],
    )
    register_datasets(cfg)
    max_iter = cfg.SOLVER.MAX_ITER
    trainer = OESIRTrainer(cfg)
    assert trainer.max_iter == 5 != max_iter, "2 rounds of 9 photos in batches of 4"
    assert cfg.SOLVER.MAX_ITER == max_iter, "the caller's config is as it was"
