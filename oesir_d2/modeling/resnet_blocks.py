"""The blocks of detectron2's ResNet under the names that the papers give them: conv2_1 to conv5_3 of a ResNet-50."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import ResNet
from torch import nn


def name_resnet_blocks(network: ResNet) -> dict[str, nn.Module]:
    """Every block of a ResNet by name, in the order in which they run: ``conv4_2`` is the second of ``res4``."""
    return {
        f"conv{stage_name.removeprefix('res')}_{i}": block
        for stage_name, stage in zip(network.stage_names, network.stages, strict=True)
        for i, block in enumerate(stage, start=1)
    }


def describe_resnet_blocks(network: ResNet) -> dict[str, ShapeSpec]:
    """Channels and stride of every block's map, by name."""
    shapes, stride = {}, network.stem.stride
    for name, block in name_resnet_blocks(network).items():
        stride *= block.stride
        shapes[name] = ShapeSpec(channels=block.out_channels, stride=stride)
    return shapes


def run_resnet_blocks(network: ResNet, images: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
    """The maps of some blocks of images (N, 3, H, W), normalised; blocks past the last one asked for are not run.

    Returns:
        name -> (N, C, H / stride, W / stride), as :func:`describe_resnet_blocks` says.
    """
    maps: dict[str, torch.Tensor] = {}
    features = network.stem(images)
    for name, block in name_resnet_blocks(network).items():
        features = block(features)
        if name in layers:
            maps[name] = features
        if len(maps) == len(set(layers)):
            break
    return maps
