"""The research model with a checkpoint in the form of detectron2's model zoo: detection stays detectron2's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.model_loading import load_model

ZOO_CONFIG = "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml"
MakeImage = Callable[..., torch.Tensor]


def test_config_is_that_of_the_model_zoo() -> None:
    ours, zoo = load_config("oesir_R50.yaml"), model_zoo.get_config(ZOO_CONFIG)
    weights = ours.MODEL.WEIGHTS
    assert model_zoo.get_checkpoint_url(ZOO_CONFIG).endswith(weights.removeprefix("detectron2://"))
    ours.MODEL.pop("OESIR")
    for cfg in (ours, zoo):
        cfg.MODEL.pop("ROI_MASK_HEAD")  # there is none
    assert set(list_differences(ours.MODEL, zoo.MODEL)) == {"META_ARCHITECTURE", "ROI_HEADS.NAME", "WEIGHTS", "DEVICE"}
    assert ours.INPUT.FORMAT == zoo.INPUT.FORMAT and ours.TEST.DETECTIONS_PER_IMAGE == zoo.TEST.DETECTIONS_PER_IMAGE


def list_differences(ours: CfgNode, zoo: CfgNode, prefix: str = "") -> list[str]:
    different = []
    for key in {*ours, *zoo}:
        if isinstance(ours.get(key), CfgNode):
            different += list_differences(ours[key], zoo[key], f"{prefix}{key}.")
        elif ours.get(key) != zoo.get(key) or key == "DEVICE":  # which depends on the machine
            different.append(prefix + key)
    return different


def test_checkpoint_fills_the_whole_detector(
    detector_model: nn.Module, zoo_checkpoint: tuple[nn.Module, Path], random_resnet50: tuple[nn.Module, Path]
) -> None:
    ours, zoo = detector_model.state_dict(), zoo_checkpoint[0].state_dict()
    assert all(torch.equal(ours[name], value) for name, value in zoo.items())
    assert all(name.startswith("embedding_source.teacher.") for name in set(ours) - set(zoo))
    stem = "embedding_source.teacher.network.stem.conv1.weight"
    assert torch.equal(ours[stem], random_resnet50[0].conv1.weight)


@torch.no_grad()
def test_detections_are_detectron2_s(
    detector_model: nn.Module,
    zoo_checkpoint: tuple[nn.Module, Path],
    make_image: MakeImage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proposer = detector_model.roi_heads.region_proposer
    monkeypatch.setattr(proposer, "score_threshold", 0.0)
    monkeypatch.setattr(proposer, "max_regions", 1000)
    inputs = [{"image": make_image(70, 100), "height": 140, "width": 200}, {"image": make_image(64, 64)}]
    for ours, zoo in zip(detector_model(inputs), zoo_checkpoint[0](inputs), strict=True):
        found, expected = ours["instances"][:-1], zoo["instances"]
        assert len(expected) > 5
        assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
        assert torch.equal(found.scores, expected.scores)
        assert torch.equal(found.pred_classes, expected.pred_classes)


def test_training_is_detectron2_s(
    detector_model: nn.Module, zoo_checkpoint: tuple[nn.Module, Path], make_image: MakeImage
) -> None:
    boxes = Boxes(torch.tensor([[10.0, 10.0, 50.0, 50.0], [30.0, 5.0, 90.0, 60.0]]))
    target = Instances((64, 96), gt_boxes=boxes, gt_classes=torch.tensor([3, 70]))
    inputs = [{"image": make_image(64, 96), "instances": target}]
    losses = []
    for model in (detector_model, zoo_checkpoint[0]):
        teacher_ran: list[bool] = []
        hook = (
            detector_model.embedding_source.register_forward_hook(lambda *_, ran=teacher_ran: ran.append(True))
            if model is detector_model
            else None
        )
        torch.manual_seed(0)
        try:
            with EventStorage(), torch.no_grad():
                losses.append(model.train()(copy.deepcopy(inputs)))
        finally:
            model.eval()
            if hook is not None:
                hook.remove()
        assert not teacher_ran, "the detector's training needs no teacher"
    assert losses[0].keys() == losses[1].keys() == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
    for name, loss in losses[0].items():
        assert loss.item() == pytest.approx(losses[1][name].item(), rel=1e-6), name


def fail_to_download(*args: object, **kwargs: object) -> None:
    raise URLError("Temporary failure in name resolution")


@pytest.mark.parametrize("key", ["MODEL.WEIGHTS", "MODEL.OESIR.TEACHER.WEIGHTS"])
def test_catalog_that_cannot_be_reached_is_named(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iopath.common.file_io.download", fail_to_download)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    other = {"MODEL.WEIGHTS", "MODEL.OESIR.TEACHER.WEIGHTS"} - {key}
    reference = "detectron2://of-no-model-that-is-cached/model_final.pkl"
    cfg = load_config("oesir_R50.yaml", [other.pop(), "", key, reference])
    with pytest.raises(FileNotFoundError, match=f"weights '{reference}' could not be fetched: .*name resolution"):
        load_model(cfg)


OPTS = ["MODEL.DEVICE", "cpu", "MODEL.OESIR.TEACHER.WEIGHTS"]


def test_checkpoint_without_a_teacher_needs_the_teacher_s_weights(zoo_checkpoint: tuple[nn.Module, Path]) -> None:
    cfg = load_config("oesir_R50.yaml", [*OPTS, "", "MODEL.WEIGHTS", str(zoo_checkpoint[1])])
    with pytest.raises(ValueError, match=r"model_final_280758\.pkl' does not fit .*'embedding_source\.teacher\."):
        load_model(cfg)


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["MODEL.ROI_HEADS.NUM_CLASSES", "7"], "has 4 of another shape, 'roi_heads.box_predictor.cls_score.weight'"),
        (["MODEL.RESNETS.DEPTH", "101"], r"lacks \d+ of its tensors .*'backbone.bottom_up.res4.6"),
    ],
)
def test_checkpoint_of_another_detector_is_refused(
    opts: list[str], words: str, zoo_checkpoint: tuple[nn.Module, Path], random_resnet50: tuple[Any, Path]
) -> None:
    weights = [str(random_resnet50[1]), "MODEL.WEIGHTS", str(zoo_checkpoint[1])]
    with pytest.raises(ValueError, match=words):
        load_model(load_config("oesir_R50.yaml", [*OPTS, *weights, *opts]))


def test_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="MODEL.DEVICE is 'cuda', but torch finds no GPU here; allowed: 'cpu'"):
        load_model(load_config("oesir_lite0_grid.yaml", ["MODEL.DEVICE", "cuda"]))


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["MODEL.DEVICE", "foo"], "MODEL.DEVICE is 'foo'; allowed: 'cpu', 'cuda' and 'cuda:N'"),
        (["MODEL.DEVICE", "meta"], "MODEL.DEVICE is 'meta'; allowed"),
        (["MODEL.PROPOSAL_GENERATOR.NAME", "Foo"], r"MODEL.PROPOSAL_GENERATOR.NAME 'Foo' unknown; allowed: .*'RPN'"),
    ],
)
def test_names_that_do_not_exist_are_refused(opts: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_model(load_config("oesir_lite0_grid.yaml", opts))
