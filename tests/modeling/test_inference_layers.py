"""Networks made ready for inference: what they give stays, and so does their state dict."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling.backbone.fpn import build_resnet_fpn_backbone
from torch import nn

from oesir_d2.modeling.backbones.efficientnet_lite import EfficientNetLiteTrunk
from oesir_d2.modeling.inference_layers import InferenceConv2d, fold_batch_norm, prepare_network, round_filters
from oesir_d2.modeling.student_layers import make_layers


def make_trunk() -> nn.Module:
    trunk = EfficientNetLiteTrunk("lite0", "")
    forward = trunk.forward
    trunk.forward = lambda x: forward(x, ("conv2_2", "expand5", "conv5_3"))
    return trunk


def make_dilated_trunk() -> nn.Module:
    trunk = EfficientNetLiteTrunk("lite0", "", dilate_last_stage=True)
    forward = trunk.forward
    trunk.forward = lambda x: forward(x, ("conv5_3",))
    return trunk


def make_resnet_fpn(norm: str) -> nn.Module:
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.FPN.NORM = norm
    return build_resnet_fpn_backbone(cfg, ShapeSpec(channels=3))


def make_student(norm: str) -> nn.Module:
    return nn.Sequential(*make_layers(3, [32, 64], [32, 32, 32], 64, [2, 2, 2], norm))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "trunk": make_trunk,
    "dilated trunk": make_dilated_trunk,
    "FPN": lambda: make_resnet_fpn(""),
    "FPN with norms": lambda: make_resnet_fpn("GN"),
    "student": lambda: make_student("BN"),
    "student with group norms": lambda: make_student("GN"),
}


def make_network(name: str) -> nn.Module:
    """A network whose batch norms have gathered statistics, none of them trivial."""
    network = NETWORKS[name]()
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, (FrozenBatchNorm2d, nn.BatchNorm2d)):
            shape = module.running_mean.shape
            module.running_mean.copy_(0.1 * torch.randn(shape, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(shape, generator=generator))
            module.weight.data.copy_(1 + 0.2 * torch.randn(shape, generator=generator))
            module.bias.data.copy_(0.1 * torch.randn(shape, generator=generator))
    return network.eval()


def flatten(output: Any) -> list[torch.Tensor]:
    return [output] if isinstance(output, torch.Tensor) else [output[name] for name in sorted(output)]


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_output_and_state_dict_stay(name: str) -> None:
    network = make_network(name)
    state = copy.deepcopy(network.state_dict())
    photos = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    expected = flatten(network(photos))
    prepare_network(network, torch.float32, torch.channels_last)
    for actual, wanted in zip(flatten(network(photos)), expected, strict=True):
        scale = wanted.abs().max()
        torch.testing.assert_close(actual / scale, wanted / scale, rtol=1e-4, atol=1e-5)
    assert list(network.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert convolutions and all(isinstance(module, InferenceConv2d) for module in convolutions)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_bfloat16_is_near_and_comes_out_as_float32(name: str) -> None:
    network = make_network(name)
    photos = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    expected = flatten(network(photos))
    prepare_network(network, torch.bfloat16)
    for actual, wanted in zip(flatten(network(photos)), expected, strict=True):
        assert actual.dtype == torch.float32
        assert torch.cosine_similarity(actual.flatten(), wanted.flatten(), dim=0) > 0.999
        assert not torch.equal(actual, wanted)


@torch.no_grad()
def test_copy_of_a_prepared_network_runs_on_weights_of_its_own() -> None:
    network = make_network("student")
    prepare_network(network)
    photos = torch.randn(1, 3, 32, 32)
    expected = network(photos)
    other = copy.deepcopy(network)
    for value in other.buffers():
        value.zero_()
    assert torch.equal(network(photos), expected)
    assert not other(photos).any()


def test_folded_weights_of_one_channel() -> None:
    conv, norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0)
    conv.weight.data.fill_(3.0)
    conv.bias.data.fill_(1.0)
    norm.weight.data.fill_(2.0)
    norm.bias.data.fill_(0.5)
    norm.running_mean.fill_(7.0)
    norm.running_var.fill_(4.0)
    weight, bias = fold_batch_norm(conv, norm)
    # (3 x + 1 - 7) / 2 * 2 + 0.5 = 3 x - 5.5
    assert weight.item() == pytest.approx(3.0) and bias.item() == pytest.approx(-5.5)


def test_a_network_in_training_is_left_alone() -> None:
    with pytest.raises(AssertionError, match="batch norms that change"):
        prepare_network(make_student("BN").train())


def test_rounded_filters_keep_their_sums_and_nearly_their_weights() -> None:
    weight = torch.randn(40, 3, 5, 5, generator=torch.Generator().manual_seed(3))
    rounded = round_filters(weight, torch.bfloat16)
    assert rounded.dtype == torch.bfloat16 and rounded.shape == weight.shape
    exact, one_by_one = weight.double().sum(dim=(2, 3)), weight.bfloat16().double().sum(dim=(2, 3))
    off = (rounded.double().sum(dim=(2, 3)) - exact).abs()
    assert off.mean() < (one_by_one - exact).abs().mean() / 20
    # No weight moves by more than two steps of bfloat16, whose numbers have eight bits.
    largest = weight.abs().amax(dim=(2, 3), keepdim=True)
    assert ((rounded.float() - weight).abs() <= 2 * 2.0**-8 * largest).all()
    pointwise = torch.randn(8, 16, 1, 1, generator=torch.Generator().manual_seed(4))
    assert torch.equal(round_filters(pointwise, torch.bfloat16), pointwise.bfloat16())
    assert round_filters(weight, torch.float32) is weight


@torch.no_grad()
def test_depthwise_convolution_in_bfloat16_does_not_shift_its_channels() -> None:
    """Of smooth maps, as photos make them; compared with weights that are rounded one by one, both run in float32."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(64, 1, 3, 3, generator=generator)
    smooth = nn.functional.avg_pool2d(torch.rand(1, 64, 40, 40, generator=generator), 5, stride=1)
    exact, diffused, one_by_one = (
        nn.functional.conv2d(smooth, kernel.float(), groups=64)
        for kernel in (weight, round_filters(weight, torch.bfloat16), weight.bfloat16())
    )
    assert (diffused - exact).abs().mean() < (one_by_one - exact).abs().mean() / 3
