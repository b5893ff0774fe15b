"""Students: shapes and strides for any photo, what each sees, mistakes in the config, and one pass for both jobs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis
from torch import nn

from oesir_d2.engine.config_loading import load_config
from oesir_d2.modeling import OESIR, StudentSource, build_student, build_teacher
from oesir_d2.modeling.student_layers import MapJoin, make_layers, plan_strides
from oesir_d2.modeling.student_source import build_student_shape
from oesir_d2.modeling.students import Student, StudentS1, StudentS2, StudentS3

FPN_SHAPES = {f"p{level}": ShapeSpec(channels=8, stride=2**level) for level in range(2, 7)}
PIXELS: dict[str, Any] = {"pixel_mean": (100.0, 110.0, 120.0), "pixel_std": (50.0, 60.0, 70.0)}


def make_student(name: str, channels: int = 24, stride: int = 32, **options: Any) -> Student:
    shape = ShapeSpec(channels=channels, stride=stride)
    if name == "S1":
        widths = {"widths": (8, 8, 16, 16), "bottleneck_widths": (4, 4, 4, 8, 8)}
        return StudentS1(**({"output_shape": shape} | widths | PIXELS | options))
    student_type = {"S2": StudentS2, "S3": StudentS3}[name]
    widths = {"widths": (8, 16), "bottleneck_widths": (4, 4, 8)}
    return student_type(**({"output_shape": shape, "input_shape": FPN_SHAPES} | widths | options))


def make_features(height: int, width: int, num_images: int = 1) -> dict[str, torch.Tensor]:
    """FPN maps of a batch that is padded to height x width pixels."""
    return {
        name: torch.rand(num_images, shape.channels, height // shape.stride, width // shape.stride)
        for name, shape in FPN_SHAPES.items()
    }


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("name", ["S1", "S2", "S3"])
def test_map_has_the_teachers_channels_and_the_asked_stride_for_odd_sizes(name: str, stride: int) -> None:
    student = make_student(name, stride=stride).eval()
    images = [torch.rand(3, 97, 131) * 255, torch.rand(3, 65, 33) * 255]

    student_map = student(images, make_features(128, 160, num_images=2))

    assert student_map.shape == (2, 24, 128 // stride, 160 // stride)
    assert student.output_shape == ShapeSpec(channels=24, stride=stride)
    assert student_map.min() >= 0
    assert student_map.max() > 0


@pytest.mark.parametrize(
    ("name", "used"), [("S1", set()), ("S2", {"p2"}), ("S3", {"p2", "p3", "p4", "p5"})], ids=["S1", "S2", "S3"]
)
def test_each_student_sees_its_own_maps_only(name: str, used: set[str]) -> None:
    features = {key: value.requires_grad_() for key, value in make_features(64, 64).items()}
    images = [(torch.rand(3, 64, 64) * 255).requires_grad_()]

    make_student(name).train()(images, features).sum().backward()

    assert {key for key, value in features.items() if value.grad is not None and value.grad.any()} == used
    assert (images[0].grad is not None) == (name == "S1")


def test_s3_of_a_finer_stride_still_sees_the_coarse_maps() -> None:
    features = make_features(64, 64)
    features["p5"].requires_grad_()

    make_student("S3", stride=8).train()(images=[], features=features).sum().backward()

    assert features["p5"].grad is not None
    assert features["p5"].grad.any()


def test_s1_normalises_pixels_and_pads_with_the_mean() -> None:
    student = make_student("S1").eval()
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    mean, std = (torch.tensor(PIXELS[key]).view(3, 1, 1) for key in ("pixel_mean", "pixel_std"))
    padded = mean.expand(3, 64, 64).clone()
    padded[:, :40, :50] = image
    expected = ((padded - mean) / std)[None]
    for layer in student.layers:
        expected = layer(expected)

    torch.testing.assert_close(student([image], {}), expected)


def test_sum_join_is_a_projection_added() -> None:
    join = MapJoin(width=5, channels=3, fusion="sum", norm="")
    x, feature = torch.randn(1, 5, 4, 6), torch.randn(1, 3, 2, 3)
    weight = join.project.weight.detach().numpy()[:, :, 0, 0]
    enlarged = feature.numpy()[0].repeat(2, axis=1).repeat(2, axis=2)
    expected = np.maximum(x.numpy()[0] + np.einsum("oc,chw->ohw", weight, enlarged), 0)

    np.testing.assert_allclose(join(x, feature).detach().numpy()[0], expected, rtol=1e-5, atol=1e-6)


def test_concat_join_is_a_projection_of_both() -> None:
    join = MapJoin(width=5, channels=3, fusion="concat", norm="")
    x, feature = torch.randn(1, 5, 4, 6), torch.randn(1, 3, 4, 6)
    weight = join.project.weight.detach().numpy()[:, :, 0, 0]
    both = np.concatenate([x.numpy()[0], feature.numpy()[0]])
    expected = np.maximum(np.einsum("oc,chw->ohw", weight, both), 0)

    np.testing.assert_allclose(join(x, feature).detach().numpy()[0], expected, rtol=1e-5, atol=1e-6)


def test_a_layer_that_shrinks_the_map_and_keeps_its_channels_has_a_shortcut_that_shrinks() -> None:
    (layer,) = make_layers(8, [], [4], 8, [2], "BN")

    assert layer(torch.rand(2, 8, 6, 10)).shape == (2, 8, 3, 5)


def test_strides_come_first() -> None:
    assert plan_strides(5, 1, 32) == [2, 2, 2, 2, 2]
    assert plan_strides(5, 1, 8) == [2, 2, 2, 1, 1]
    assert plan_strides(3, 4, 8) == [2, 1, 1]
    with pytest.raises(ValueError, match=r"STRIDE 64; allowed: \[4, 8, 16, 32\]"):
        plan_strides(3, 4, 64)
    with pytest.raises(ValueError, match="STRIDE 12"):
        plan_strides(3, 4, 12)


def test_fvcore_counts_the_multiplications_of_a_student() -> None:
    student = make_student("S2", norm="").eval()
    # Each layer at stride 8, 16 and 32 of a 64 x 64 photo: 1x1 on its input, 3x3 that shrinks, 1x1, shortcut.
    expected = 0
    for in_width, width, middle, side in ((8, 8, 4, 8), (8, 16, 4, 4), (16, 24, 8, 2)):
        expected += (2 * side) ** 2 * in_width * middle + side**2 * (9 * middle**2 + middle * width + in_width * width)

    counted = FlopCountAnalysis(student, ([torch.rand(3, 64, 64)], make_features(64, 64)))
    counted.unsupported_ops_warnings(False)

    assert counted.total() == expected


@pytest.mark.parametrize(
    ("opts", "layer_shape"),
    [
        ([], (1280, 32)),
        (["MODEL.OESIR.STUDENT.STRIDE", "16"], (1280, 16)),
        (["MODEL.OESIR.TEACHER.LAYER", "conv4_3"], (80, 16)),
        (["MODEL.OESIR.TEACHER.DILATE_LAST_STAGE", "True"], (1280, 16)),
    ],
)
def test_the_students_shape_is_the_teachers_unless_a_stride_is_given(
    opts: list[str], layer_shape: tuple[int, int]
) -> None:
    cfg = load_config("lite0/distill_S3.yaml", opts)
    shape = build_student_shape(cfg)

    assert (shape.channels, shape.stride) == layer_shape
    if "MODEL.OESIR.STUDENT.STRIDE" not in opts:
        assert shape == build_teacher(cfg).output_shape


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["NAME", "StudentS9"], r"StudentS9' unknown; allowed: \['StudentS1', 'StudentS2', 'StudentS3'\]"),
        (["WIDTHS", "[8, 8, 8]"], r"WIDTHS has 3 values, \[8, 8, 8\]; StudentS3 needs 2"),
        (["BOTTLENECK_WIDTHS", "[8]"], "BOTTLENECK_WIDTHS has 1 values"),
        (["IN_FEATURES", "['p2', 'p3', 'p4', 'res5']"], "StudentS3 needs 4 of the backbone's maps"),
        (["IN_FEATURES", "['p2']"], "StudentS3 needs 4 of the backbone's maps"),
        (["STRIDE", "64"], r"STRIDE 64; allowed: \[4, 8, 16, 32\]"),
        (["NORM", "XN"], r"NORM 'XN' unknown; allowed: \['BN', 'SyncBN', 'GN', 'FrozenBN', ''\]"),
        (["FUSION", "product"], r"FUSION 'product' unknown; allowed: \['sum', 'concat'\]"),
    ],
)
def test_mistakes_in_the_config_are_named(opts: list[str], message: str) -> None:
    features = ["MODEL.OESIR.STUDENT.IN_FEATURES", "['p2', 'p3', 'p4', 'p5']"]
    cfg = load_config("lite0/distill_S3.yaml", [*features, f"MODEL.OESIR.STUDENT.{opts[0]}", opts[1]])
    with pytest.raises(ValueError, match=message):
        build_student(cfg, FPN_SHAPES, build_student_shape(cfg))


@pytest.mark.parametrize("name", ["StudentS1", "StudentS2", "StudentS3"])
def test_default_widths_are_those_of_resnet50(name: str) -> None:
    cfg = load_config(f"students/oesir_R50_S{name[-1]}.yaml")
    student = build_student(cfg, FPN_SHAPES, build_student_shape(cfg))

    assert type(student).__name__ == name
    assert student.output_shape == ShapeSpec(channels=2048, stride=32)
    assert [layer.out_channels for layer in student.layers][-3:] == [512, 1024, 2048]
    assert [layer.conv2.out_channels for layer in student.layers][-3:] == [128, 256, 512]


@pytest.fixture(scope="module")
def student_model() -> OESIR:
    cfg = load_config("lite0/distill_S3.yaml", ["MODEL.META_ARCHITECTURE", "OESIR"])
    return build_model(cfg).eval()


def test_one_pass_of_the_detector_detects_and_embeds(student_model: OESIR) -> None:
    passes: list[nn.Module] = []
    handle = student_model.backbone.register_forward_hook(lambda module, *_: passes.append(module))
    with torch.inference_mode():
        (output,) = student_model([{"image": torch.randint(0, 256, (3, 97, 131), dtype=torch.uint8)}])
    handle.remove()

    assert len(passes) == 1
    assert isinstance(student_model.embedding_source, StudentSource)
    assert not [name for name, _ in student_model.named_parameters() if "teacher" in name]
    assert output["image_embedding"].shape == (1280,)
    embeddings = output["instances"].embeddings
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(embeddings)))
    torch.testing.assert_close(embeddings[-1], output["image_embedding"])
