"""What a model costs, against numbers worked out by hand and from the layers themselves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.structures import Boxes, Instances
from torch import nn

from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.model_cost import (
    build_random_teacher,
    count_multiply_adds,
    count_parameters,
    hash_detector,
    resize_photo,
    time_model,
)
from oesir_d2.engine.model_loading import load_model

DETECTOR = [
    *("MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", "OESIR", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
    *("MODEL.OESIR.REGIONS.SCORE_THRESH", "0.0", "MODEL.OESIR.REGIONS.MAX_REGIONS", "5"),
]


def build_detector(*opts: str, config: str = "lite0/Base-lite0-RCNN-FPN.yaml") -> tuple[nn.Module, CfgNode]:
    cfg = load_config(config, [*DETECTOR, *opts])
    return load_model(cfg), cfg


@pytest.fixture
def photo(make_photo: Callable[..., np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(make_photo(64, 96).transpose(2, 0, 1).copy())


def count_layers(module: nn.Module) -> int:
    """Weights and biases of the layers of a network, batch norms with their scale and shift."""
    layers = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, FrozenBatchNorm2d)
    return sum(
        layer.weight.numel() + (0 if layer.bias is None else layer.bias.numel())
        for layer in module.modules()
        if isinstance(layer, layers)
    )


def test_parameters_are_those_of_the_layers() -> None:
    opts = ["MODEL.OESIR.EMBEDDING.SOURCE", "TeacherSource", "MODEL.OESIR.EMBEDDING.WHITENING_DIM", "32"]
    model, _ = build_detector(*opts)
    detector = sum(count_layers(part) for part in (model.backbone, model.proposal_generator, model.roi_heads))

    counts = count_parameters(model)
    assert counts == {
        "detector": detector,
        "source": count_layers(model.embedding_source),
        "head": 1280 * 32 + 1280,  # projection and mean
    }
    assert counts["source"] == 3_371_008  # EfficientNet-Lite0 without its classifier


def test_a_trained_student_s_batch_norms_count_as_frozen_ones_do() -> None:
    model, _ = build_detector(config="lite0/distill_S3.yaml")
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.embedding_source.modules())
    assert count_parameters(model)["source"] == count_layers(model.embedding_source)


def test_detectors_are_told_apart_by_their_weights() -> None:
    model, _ = build_detector("MODEL.OESIR.EMBEDDING.SOURCE", "DetectorSource")
    before = hash_detector(model)
    other, _ = build_detector("MODEL.OESIR.EMBEDDING.SOURCE", "TeacherSource")
    assert hash_detector(other) != before  # random anew
    shared = {name: value for name, value in model.state_dict().items() if not name.startswith("embedding_source.")}
    other.load_state_dict(shared, strict=False)
    assert hash_detector(other) == before
    grid = load_model(load_config("oesir_lite0_grid.yaml", ["MODEL.DEVICE", "cpu"]))
    assert hash_detector(grid) == ""


class _Source(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)

    def forward(self, images: list[torch.Tensor], features: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.conv(images[0][None])


class _ToyModel(nn.Module):
    """Detection is one convolution, the source another, and the head a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding_source = _Source()
        self.proposal_generator = nn.Conv2d(3, 4, 5, padding=2, bias=False)
        self.head = nn.Linear(8, 6, bias=False)

    def detect(self, inputs: list[dict[str, torch.Tensor]]) -> list[dict[str, Instances]]:
        boxes = self.proposal_generator(inputs[0]["image"][None])[0, :, 0, :7].T
        return [{"instances": Instances((1, 1), pred_boxes=Boxes(boxes), scores=boxes[:, 0])}]

    def inference(self, inputs: list[dict[str, torch.Tensor]], do_postprocess: bool) -> list[Instances]:
        regions = self.detect(inputs)[0]["instances"]
        pooled = self.embedding_source([inputs[0]["image"]], {}).amax(dim=(2, 3))
        regions.embeddings = torch.sin(self.head(pooled.expand(len(regions), 8)))
        return [regions]


class _ToyTeacher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, bias=False)

    def forward(self, images: list[torch.Tensor]) -> torch.Tensor:
        return self.conv(images[0][None])


def test_multiply_adds_of_a_toy_are_those_counted_by_hand() -> None:
    adds = count_multiply_adds(_ToyModel(), _ToyTeacher(), torch.rand(3, 20, 30))

    assert (adds.width, adds.height, adds.regions) == (30, 20, 7)
    assert adds.detection == pytest.approx(20 * 30 * 4 * 3 * 5 * 5 / 1e9)
    assert adds.source == pytest.approx(10 * 15 * 8 * 3 * 3 * 3 / 1e9)
    assert adds.head == pytest.approx(7 * 8 * 6 / 1e9)
    assert adds.total == pytest.approx(adds.detection + adds.source + adds.head)
    assert adds.teacher == pytest.approx(20 * 30 * 2 * 3 / 1e9)
    assert adds.unsupported["aten::sin"] == 1 and "aten::_convolution" not in adds.unsupported


def test_crops_cost_a_teacher_each(photo: torch.Tensor) -> None:
    opts = ["MODEL.OESIR.EMBEDDING.SOURCE", "TeacherSource", "MODEL.OESIR.CROPS.SIZE", "96"]
    opts += ["MODEL.META_ARCHITECTURE", "CropOESIR", "MODEL.OESIR.REGIONS.MAX_REGIONS", "2"]
    model, cfg = build_detector(*opts)
    teacher = build_random_teacher(cfg)
    adds = count_multiply_adds(model, teacher, photo.float())
    alone = count_multiply_adds(model, teacher, resize_photo(photo, 96, 96)).teacher

    assert adds.regions == 3
    assert adds.source == pytest.approx(3 * alone)
    assert adds.head == pytest.approx(0)  # pooling multiplies nothing that fvcore counts, and there is no whitening
    assert adds.unsupported["torchvision::roi_align"] >= 2


def test_whitening_is_the_head_of_a_grid(photo: torch.Tensor) -> None:
    cfg = load_config("oesir_lite0_grid.yaml", ["MODEL.DEVICE", "cpu", "MODEL.OESIR.REGIONS.MAX_REGIONS", "9"])
    adds = count_multiply_adds(load_model(cfg), build_random_teacher(cfg), photo.float())

    assert adds.detection is None
    assert adds.source == pytest.approx(adds.teacher)
    # The whole image is embedded once, and is a region by that.
    assert adds.regions == 10
    assert adds.head == pytest.approx(10 * 1280 * 512 / 1e9)


def test_times_of_a_detector_with_a_student(photo: torch.Tensor) -> None:
    model, cfg = build_detector(config="lite0/distill_S3.yaml")
    times = time_model(model, build_random_teacher(cfg), [{"image": photo}], 1, "cpu")

    assert min(times.detection, times.source, times.teacher) > 0
    assert times.total > times.source
    assert times.overhead_percent == pytest.approx(100 * (times.total - times.detection) / times.detection)
    assert (times.photos, times.repetitions, times.device) == (1, 1, "cpu")
    assert times.threads == torch.get_num_threads()


def test_what_is_not_there_has_no_time(photo: torch.Tensor) -> None:
    grid = load_config("oesir_lite0_grid.yaml", ["MODEL.DEVICE", "cpu"])
    times = time_model(load_model(grid), build_random_teacher(grid), [{"image": photo}], 1, "cpu")
    assert times.detection is None and times.overhead_percent is None
    assert times.source == times.teacher  # the same network, timed once

    model, cfg = build_detector("MODEL.OESIR.EMBEDDING.SOURCE", "DetectorSource")
    times = time_model(model, build_random_teacher(cfg), [{"image": photo}], 1, "cpu")
    assert times.source is None and times.teacher > 0


def test_photos_are_resized_to_what_is_asked_for(photo: torch.Tensor) -> None:
    resized = resize_photo(photo, 32, 40)
    assert resized.shape == (3, 40, 32) and resized.dtype == torch.float32
    torch.testing.assert_close(resized.mean(), photo.float().mean(), rtol=0.02, atol=0)
