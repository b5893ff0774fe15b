"""What students are made of: chains of bottleneck layers, and the joins that bring in maps of the detector.

Shape shorthand: N images, h x w cells of a map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, get_norm
from detectron2.modeling.backbone.resnet import BottleneckBlock
from fvcore.nn.weight_init import c2_msra_fill
from torch import nn

FUSIONS = ("sum", "concat")


class MapJoin(nn.Module):
    """Brings a map of the detector into the student's.

    Args:
        width: channels of the student's map.
        channels: channels of the detector's map.
        fusion: "sum" or "concat", see :class:`StudentS3`.
        norm: normalisation of the 1x1 convolution.

    Raises:
        ValueError: an unknown fusion.
    """

    def __init__(self, width: int, channels: int, fusion: str, norm: str) -> None:
        super().__init__()
        if fusion not in FUSIONS:
            raise ValueError(f"MODEL.OESIR.STUDENT.FUSION {fusion!r} unknown; allowed: {list(FUSIONS)}")
        self.fusion = fusion
        in_channels = channels if fusion == "sum" else width + channels
        self.project = _make_conv1x1(in_channels, width, 1, norm)

    def forward(self, x: torch.Tensor, feature: torch.Tensor) -> torch.Tensor:
        """Join (N, width, h, w) with the detector's (N, channels, h', w'); gives (N, width, h, w), not negative."""
        if self.fusion == "sum":
            return F.relu(x + _resize_to(self.project(feature), x))
        return F.relu(self.project(torch.cat([x, _resize_to(feature, x)], dim=1)))


def _resize_to(feature: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if feature.shape[-2:] == like.shape[-2:]:
        return feature
    return F.interpolate(feature, size=like.shape[-2:], mode="nearest")


def plan_strides(num_layers: int, input_stride: int, output_stride: int) -> list[int]:
    """The stride of each layer: 2 until the output's stride is reached, then 1.

    Raises:
        ValueError: the layers cannot get from the one stride to the other.

    >>> plan_strides(3, 4, 16)
    [2, 2, 1]
    """
    steps = math.log2(output_stride / input_stride)
    if steps != int(steps) or not 0 <= steps <= num_layers:
        allowed = [input_stride * 2**k for k in range(num_layers + 1)]
        raise ValueError(
            f"{num_layers} layers cannot lead from stride {input_stride} to MODEL.OESIR.STUDENT.STRIDE "
            f"{output_stride}; allowed: {allowed}"
        )
    return [2 if layer < steps else 1 for layer in range(num_layers)]


def make_layers(
    in_channels: int,
    widths: Sequence[int],
    bottleneck_widths: Sequence[int],
    out_channels: int,
    strides: Sequence[int],
    norm: str,
) -> nn.ModuleList:
    """A chain of bottleneck layers (He et al., CVPR 2016).

    Args:
        in_channels: of the first layer's input.
        widths: output channels of every layer but the last.
        bottleneck_widths: channels of every layer's 3x3 convolution.
        out_channels: of the last layer.
        strides: of every layer.
        norm: normalisation after each convolution.
    """
    outputs = (*widths, out_channels)
    assert len(outputs) == len(bottleneck_widths) == len(strides), "one width a layer"
    inputs = (in_channels, *widths)
    return nn.ModuleList(
        _make_bottleneck(*channels, stride, norm)
        for *channels, stride in zip(inputs, outputs, bottleneck_widths, strides, strict=True)
    )


def _make_bottleneck(in_channels: int, out_channels: int, width: int, stride: int, norm: str) -> BottleneckBlock:
    block = BottleneckBlock(in_channels, out_channels, bottleneck_channels=width, stride=stride, norm=norm)
    if block.shortcut is None and stride != 1:
        # detectron2 projects the shortcut only where the channels change; a map that shrinks needs it as well.
        block.shortcut = _make_conv1x1(in_channels, out_channels, stride, norm)
    return block


def _make_conv1x1(in_channels: int, out_channels: int, stride: int, norm: str) -> Conv2d:
    conv = Conv2d(in_channels, out_channels, 1, stride=stride, bias=not norm, norm=get_norm(norm, out_channels))
    c2_msra_fill(conv)
    return conv
