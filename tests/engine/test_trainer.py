"""The trainer: two iterations of every stage, resuming, photos that cannot be read, losses that are no number."""

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

from oesir_d2.engine.checkpointing import TrainingCheckpointer
from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.trainer import OESIRTrainer
from oesir_d2.engine.training_data import register_datasets
from oesir_d2.engine.training_hooks import NonFiniteLossError
from oesir_d2.index import read_skipped

STUDENT = "embedding_source.student."
TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""),
    *("DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2"),
]
TINY_CROPS = ["INPUT.OESIR.CROP_SIZE", "64"]
TINY_BOXES = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50"]
# A small box head: most of the weights of Faster R-CNN are there.
RANDOM_R50 = ["MODEL.OESIR.TEACHER.WEIGHTS", "", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"]


@pytest.fixture
def photos(tmp_path: Path, make_photo: Callable[..., np.ndarray]) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(4):
        Image.fromarray(make_photo(60, 80)).save(folder / f"photo{index}.png")
    return folder


@pytest.fixture
def annotations(photos: Path) -> Path:
    names = sorted(path.name for path in photos.iterdir())
    content = {
        "images": [{"id": i, "file_name": name, "height": 60, "width": 80} for i, name in enumerate(names)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [10, 10, 40, 30], "area": 1200, "iscrowd": 0}
            for i in range(len(names))
        ],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "dog"}],
    }
    path = photos.parent / "instances.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def make_cfg(photos: Path, tmp_path: Path) -> Callable[..., CfgNode]:
    def make(config: str, *opts: str) -> CfgNode:
        sets = ["DATASETS.OESIR.PHOTOS", str([["photos", str(photos)]]), "OUTPUT_DIR", str(tmp_path / "out")]
        cfg = load_config(config, [*TINY, *sets, *opts])
        cfg.freeze()
        (tmp_path / "out").mkdir(exist_ok=True)
        register_datasets(cfg)
        return cfg

    return make


@pytest.fixture
def make_lite0(make_cfg: Callable[..., CfgNode]) -> Callable[..., OESIRTrainer]:
    return lambda *opts: OESIRTrainer(make_cfg("lite0/distill_S3.yaml", *TINY_CROPS, *opts))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def copy_state(trainer: OESIRTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def list_changes(trainer: OESIRTrainer, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize(
    ("config", "opts"),
    [
        # A narrow S1 once crashed in the backward pass of its first shortcut.
        ("lite0/distill_S1.yaml", []),
        ("lite0/distill_S3.yaml", []),
        ("lite0/distill_S3_fine.yaml", []),
        ("students/oesir_R50_S1.yaml", RANDOM_R50),
        ("students/oesir_R50_S2.yaml", RANDOM_R50),
        ("students/oesir_R50_S3.yaml", RANDOM_R50),
    ],
)
def test_distillation_stage_trains_the_student_alone(
    config: str, opts: list[str], make_cfg: Callable[..., CfgNode], tmp_path: Path
) -> None:
    # The checkpoint of this size is tested with the small model.
    trainer = OESIRTrainer(make_cfg(config, *TINY_CROPS, *opts, *(["SOLVER.CHECKPOINT_PERIOD", "99"])))
    if opts:
        trainer.checkpointer.save_to_disk = False
    trainer.resume_or_load(resume=False)
    before = copy_state(trainer)
    trainer.train()

    assert list_changes(trainer, before) == {name for name in before if name.startswith(STUDENT)}
    assert isinstance(trainer.optimizer, torch.optim.Adam)
    assert {group["initial_lr"] for group in trainer.optimizer.param_groups} == {0.001}
    last = read_metrics(tmp_path / "out")[-1]
    assert last["iteration"] == 1
    assert np.isfinite(last["total_loss"])


@pytest.mark.parametrize(
    ("config", "opts"),
    [
        ("lite0/detector.yaml", []),
        ("lite0/detector.yaml", ["SOLVER.AMP.ENABLED", "True"]),  # in bfloat16, also on a CPU
        ("detectors/faster_rcnn_R50_FPN.yaml", [*RANDOM_R50, "MODEL.ROI_HEADS.NUM_CLASSES", "2"]),
    ],
)
def test_detector_stage_trains_the_detector(
    config: str, opts: list[str], make_cfg: Callable[..., CfgNode], photos: Path, annotations: Path, tmp_path: Path
) -> None:
    coco = ["DATASETS.OESIR.COCO", str([["objects", str(annotations), str(photos)]])]
    trainer = OESIRTrainer(make_cfg(config, *TINY_BOXES, *coco, *opts))
    trainer.checkpointer.save_to_disk = False
    trainer.resume_or_load(resume=False)
    before = copy_state(trainer)
    trainer.train()

    changed = list_changes(trainer, before)
    assert {name.split(".")[0] for name in changed} == {"backbone", "proposal_generator", "roi_heads"}
    assert isinstance(trainer.optimizer, torch.optim.AdamW if config.startswith("lite0") else torch.optim.SGD)
    losses = {key for key in read_metrics(tmp_path / "out")[-1] if key.startswith("loss_")}
    assert losses == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}


def test_resumed_run_goes_on_where_it_stopped(make_lite0: Callable[..., OESIRTrainer], tmp_path: Path) -> None:
    options = ["SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.STEPS", "(3,)"]
    options += ["SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR"]
    first = make_lite0("SOLVER.MAX_ITER", "4", *options)
    first.resume_or_load(resume=True)
    assert first.start_iter == 0
    first.train()

    second = make_lite0("SOLVER.MAX_ITER", "6", *options)
    second.resume_or_load(resume=True)
    assert second.start_iter == 4
    assert not list_changes(second, first.model.state_dict())
    second.train()

    assert second.iter == 6
    assert {int(state["step"]) for state in second.optimizer.state.values()} == {6}
    assert second.optimizer.param_groups[0]["lr"] == pytest.approx(0.0001)
    assert second.checkpointer.get_checkpoint_file().endswith("model_final.pth")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.pth")) == [
        *("model_0000001.pth", "model_0000003.pth", "model_0000005.pth", "model_final.pth")
    ]


def test_save_that_fails_leaves_the_last_checkpoint(
    make_lite0: Callable[..., OESIRTrainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_lite0("SOLVER.MAX_ITER", "2").train()
    trainer = make_lite0("SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "1")
    trainer.resume_or_load(resume=True)

    def run_out_of_space(content: object, stream: Any) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", run_out_of_space)
        with pytest.raises(OSError, match="No space left"):
            trainer.train()

    assert [path.name for path in (tmp_path / "out").glob("*.pth")] == ["model_final.pth"]
    assert not list((tmp_path / "out").glob(".tmp-*"))
    resumed = make_lite0("SOLVER.MAX_ITER", "4")
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".tmp-1-model_0000009.pth").write_bytes(b"half")
    TrainingCheckpointer(torch.nn.Linear(1, 1), str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("workers", ["0", "2"])
def test_corrupt_photo_is_skipped_and_counted(
    workers: str, make_lite0: Callable[..., OESIRTrainer], photos: Path, tmp_path: Path
) -> None:
    content = (photos / "photo0.png").read_bytes()
    (photos / "photo0.png").write_bytes(content[: len(content) // 2])
    (photos / "photo1.png").write_bytes(b"")
    trainer = make_lite0("SOLVER.MAX_ITER", "6", "DATALOADER.NUM_WORKERS", workers)
    trainer.resume_or_load(resume=False)
    trainer.train()

    assert trainer.iter == 6
    reasons = {Path(entry.path).name: entry.reason for entry in read_skipped(tmp_path / "out")}
    assert set(reasons) == {"photo0.png", "photo1.png"}
    assert reasons["photo1.png"] == "the file is empty"
    assert read_metrics(tmp_path / "out")[-1]["data/skipped_images"] == 2


def test_new_run_counts_from_zero(make_lite0: Callable[..., OESIRTrainer], tmp_path: Path) -> None:
    trainer = make_lite0()
    (tmp_path / "out" / "skipped.jsonl").write_text('{"path": "/old.png", "reason": "old"}\n')
    trainer.resume_or_load(resume=False)
    assert read_skipped(tmp_path / "out") == []


def test_training_set_without_any_readable_photo_ends_the_run(
    make_lite0: Callable[..., OESIRTrainer], photos: Path
) -> None:
    for path in photos.iterdir():
        path.write_bytes(b"no photo")
    with pytest.raises(ValueError, match="none of the 4 training photos can be read"):
        make_lite0().train()


def test_loss_that_is_no_number_stops_before_any_weight_has_changed(make_lite0: Callable[..., OESIRTrainer]) -> None:
    trainer = make_lite0("SOLVER.MAX_ITER", "5")
    batches: list[list[str]] = []

    def break_third_batch(model: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        batches.append([item["file_name"] for item in arguments[0]])
        if len(batches) == 3:
            with torch.no_grad():
                model.embedding_source.student.layers[0].conv1.weight.fill_(float("nan"))

    trainer.model.register_forward_pre_hook(break_third_batch)
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.train()

    message = str(caught.value)
    assert "training stopped at iteration 2: loss_distill_l2 is nan" in message
    assert len(batches) == 3
    assert message.endswith(f"its files: {batches[2][0]}, {batches[2][1]}")
    assert {int(state["step"]) for state in trainer.optimizer.state.values()} == {2}
    assert isinstance(caught.value, FloatingPointError)


def test_rate_that_is_too_high_ends_with_the_files_named(make_lite0: Callable[..., OESIRTrainer], photos: Path) -> None:
    with pytest.raises(ValueError, match=r"loss_distill_l2 is (nan|inf), .*; its files: ") as caught:
        make_lite0("SOLVER.BASE_LR", "1e30", "SOLVER.MAX_ITER", "4").train()
    named = str(caught.value).split("files: ")[1].split(", ")
    assert len(named) == 2
    assert set(named) <= {str(path) for path in photos.iterdir()}


def test_checkpoint_that_is_no_such_detector_is_refused(
    make_lite0: Callable[..., OESIRTrainer], tmp_path: Path
) -> None:
    state = make_lite0().model.state_dict()
    fits = {name: value for name, value in state.items() if name.startswith("backbone.")}
    lacks = {name: value for name, value in fits.items() if name != "backbone.pyramid.fpn_output3.weight"}
    other = fits | {"backbone.pyramid.fpn_output4.weight": torch.zeros(1, 1, 3, 3)}
    trunkless = {name: value for name, value in fits.items() if not name.startswith("backbone.bottom_up.trunk.")}
    for name, content in {"fits": fits, "lacks": lacks, "other": other, "trunkless": trunkless}.items():
        torch.save(content, tmp_path / f"{name}.pth")

    for name in ("fits", "trunkless"):
        make_lite0("MODEL.WEIGHTS", str(tmp_path / f"{name}.pth")).resume_or_load(resume=False)
    with pytest.raises(
        ValueError, match=r"lacks\.pth' do not fit the detector: 1 .*'backbone\.pyramid\.fpn_output3\.weight'"
    ):
        make_lite0("MODEL.WEIGHTS", str(tmp_path / "lacks.pth")).resume_or_load(resume=False)
    with pytest.raises(
        ValueError, match=r"other\.pth' do not fit the detector: 1 .*'backbone\.pyramid\.fpn_output4\.weight'"
    ):
        make_lite0("MODEL.WEIGHTS", str(tmp_path / "other.pth")).resume_or_load(resume=False)
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        make_lite0("MODEL.WEIGHTS", str(tmp_path / "nowhere.pth")).resume_or_load(resume=False)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.OESIR.OPTIMIZER", "LBFGS"], r"OPTIMIZER 'LBFGS' unknown; allowed: \['SGD', 'Adam', 'AdamW'\]"),
        (["MODEL.OESIR.DISTILLATION.CACHED_CROPS", "-1"], "CACHED_CROPS is -1; allowed: 0"),
        (["MODEL.META_ARCHITECTURE", "Nothing"], "META_ARCHITECTURE 'Nothing' unknown; allowed here: 'OESIR'"),
    ],
)
def test_mistakes_in_the_config_are_named(
    opts: list[str], message: str, make_lite0: Callable[..., OESIRTrainer]
) -> None:
    with pytest.raises(ValueError, match=message):
        make_lite0(*opts)


def test_model_without_anything_to_train_is_refused(make_cfg: Callable[..., CfgNode]) -> None:
    with pytest.raises(ValueError, match="a OESIR of this config has no weights to train"):
        OESIRTrainer(
            make_cfg(
                "oesir_lite0_grid.yaml", "DATASETS.TRAIN", "('photos',)", "INPUT.OESIR.TRAINING_MAPPER", "CropMapper"
            )
        )


@pytest.mark.parametrize(("name", "kind"), [("AdamW", torch.optim.AdamW), ("SGD", torch.optim.SGD)])
def test_optimizer_is_the_configs(
    name: str, kind: type[torch.optim.Optimizer], make_lite0: Callable[..., OESIRTrainer]
) -> None:
    trainer = make_lite0("SOLVER.OESIR.OPTIMIZER", name, "SOLVER.WEIGHT_DECAY", "0.01", "SOLVER.BASE_LR", "0.002")

    assert isinstance(trainer.optimizer, kind)
    trained = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    expected = [p for n, p in trainer.model.named_parameters() if n.startswith(STUDENT)]
    assert {id(p) for p in trained} == {id(p) for p in expected}
    # Batch norms have no weight decay, as detectron2 has it.
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.0, 0.01}
