"""EfficientNet-Lite trunks (Tan and Le, ICML 2019; the "Lite" variants without squeeze-and-excitation).

The layers come from the package efficientnet-lite-pytorch; this file names its blocks as the supplement names ResNet's
(conv4_1 … conv5_3), taps them, and puts detectron2's FPN on top.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from oesir_d2.modeling.weights import load_state_dict, resolve_weights

VARIANTS = ("lite0", "lite2")
PIXEL_MEAN = (127.0, 127.0, 127.0)
PIXEL_STD = (128.0, 128.0, 128.0)
STRIDE = 32


class EfficientNetLiteTrunk(nn.Module):
    """The convolutional part of an EfficientNet-Lite classifier, frozen batch norms included.

    Its stages, named after the ResNet stage of the same stride: conv2 (stride 4), conv3 (8), conv4 (16: two widths),
    conv5 (32). ``conv4_k`` is the k-th block of stride 16; ``conv5_1`` is the last block of the first width of
    stride 32, ``conv5_2`` the last block, ``conv5_3`` the head convolution (1280 channels).

    ``expandN`` is the wide map inside block N, counted from 0: after the 1x1 convolution that widens the block's input
    sixfold and its ReLU6, at the stride of that input. lite0's ``expand11`` (672 channels, stride 16) and ``expand12``
    (1152, stride 32) lie between conv4 and conv5. They cost nothing, since the block computes them anyway.

    Input: (N, 3, H, W) float, RGB, (x - 127) / 128, H and W multiples of 32. Each convolution pads as TensorFlow did at
    the size that the network was trained on, whatever the input's size: 224 pixels (lite0) or 260 (lite2).

    Args:
        variant: "lite0" or "lite2".
        weights: a reference for :func:`resolve_weights`; empty for random weights.
        dilate_last_stage: run the last stage at stride 16 with dilated convolutions: the same weights, twice the
            resolution (as DeepLab does it: Chen et al., TPAMI 2018). Its cells of even row and column are those of
            the map of stride 32.

    Raises:
        ValueError: an unknown variant, or weights that are not of this variant.
        FileNotFoundError: weights that are not there.
    """

    def __init__(self, variant: str = "lite0", weights: str = "", dilate_last_stage: bool = False) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"unknown EfficientNet-Lite variant {variant!r}; allowed: {list(VARIANTS)}")
        classifier = EfficientNet.from_name(f"efficientnet-{variant}")
        if weights:
            path = resolve_weights(weights)
            try:
                classifier.load_state_dict(load_state_dict(path))
            except RuntimeError as error:
                raise ValueError(
                    f"{path} does not fit efficientnet-{variant}: {str(error).splitlines()[-1]}"
                ) from error
        self.stem = nn.Sequential(classifier._conv_stem, classifier._bn0, nn.ReLU6(inplace=True))
        self.blocks = classifier._blocks
        self.head = nn.Sequential(classifier._conv_head, classifier._bn1, nn.ReLU6(inplace=True))
        FrozenBatchNorm2d.convert_frozen_batchnorm(self)
        self._blocks_before = self._name_layers()
        self._expanded = {f"expand{i}": i for i, block in enumerate(self.blocks) if hasattr(block, "_expand_conv")}
        self._last_stage = max(i for i, block in enumerate(self.blocks) if _stride(block) == 2)
        self.output_shapes = self._shapes(dilate_last_stage)
        if dilate_last_stage:
            self._dilate_last_stage()

    def _name_layers(self) -> dict[str, int]:
        """Layer name -> how many blocks have run when it is ready; the head counts as one more block."""
        names: dict[str, int] = {}
        stage, block_of_stage = 1, 0
        for index, block in enumerate(self.blocks):
            if _stride(block) == 2:
                stage, block_of_stage = stage + 1, 0
            block_of_stage += 1
            if stage < 5:
                names[f"conv{stage}_{block_of_stage}"] = index + 1
        count = len(self.blocks)
        return names | {"conv5_1": count - 1, "conv5_2": count, "conv5_3": count + 1}

    def _shapes(self, dilated: bool) -> dict[str, ShapeSpec]:
        shapes = {}
        for name, count in self._blocks_before.items():
            is_head = count > len(self.blocks)
            channels = self.head[0].out_channels if is_head else self.blocks[count - 1]._project_conv.out_channels
            stride = 2 ** (1 + sum(_stride(block) == 2 for block in self.blocks[:count]))
            if dilated and count > self._last_stage:
                stride //= 2
            shapes[name] = ShapeSpec(channels=channels, stride=stride)
        for name, index in self._expanded.items():
            stride = 2 ** (1 + sum(_stride(block) == 2 for block in self.blocks[:index]))
            if dilated and index > self._last_stage:
                stride //= 2
            shapes[name] = ShapeSpec(channels=self.blocks[index]._expand_conv.out_channels, stride=stride)
        return shapes

    def _dilate_last_stage(self) -> None:
        for block in self.blocks[self._last_stage :]:
            conv = block._depthwise_conv
            kernel = conv.kernel_size[0]
            if _stride(block) == 2:
                conv.stride = (1, 1)
                # With the same padding before it, even positions see what the strided convolution saw.
                left, _, top, _ = conv.static_padding.padding
                conv.static_padding = nn.ZeroPad2d((left, kernel - 1 - left, top, kernel - 1 - top))
            else:
                conv.dilation = (2, 2)
                conv.static_padding = nn.ZeroPad2d(kernel - 1)

    def forward(self, images: torch.Tensor, layers: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """The maps of the given layers; blocks past the last one asked for are not run.

        Returns:
            layer name -> (N, C, H / stride, W / stride), as ``output_shapes`` says.
        """
        for name in layers:
            if name not in self.output_shapes:
                raise ValueError(f"EfficientNet-Lite has no layer {name!r}; allowed: {list(self.output_shapes)}")
        names_by_count = {self._blocks_before[name]: name for name in layers if name in self._blocks_before}
        names_by_block = {self._expanded[name]: name for name in layers if name in self._expanded}
        maps: dict[str, torch.Tensor] = {}
        features = self.stem(images)
        for count in range(1, max((*names_by_count, *(index + 1 for index in names_by_block))) + 1):
            if count - 1 in names_by_block:
                expanded = _expand(self.blocks[count - 1], features)
                maps[names_by_block[count - 1]] = expanded
                features = _contract(self.blocks[count - 1], expanded, features)
            else:
                module = self.blocks[count - 1] if count <= len(self.blocks) else self.head
                features = module(features)
            if count in names_by_count:
                maps[names_by_count[count]] = features
        return maps


def _expand(block: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """The first half of an inverted bottleneck (Sandler et al., CVPR 2018): its input, widened."""
    return block._swish(block._bn0(block._expand_conv(features)))


def _contract(block: nn.Module, expanded: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """The second half: the block's output from its widened map and its input."""
    narrow = block._bn2(block._project_conv(block._swish(block._bn1(block._depthwise_conv(expanded)))))
    has_skip = block.id_skip and _stride(block) == 1 and narrow.shape[1] == features.shape[1]
    return narrow + features if has_skip else narrow


def _stride(block: nn.Module) -> int:
    stride = block._depthwise_conv.stride
    return stride[0] if isinstance(stride, (tuple, list)) else stride


class EfficientNetLiteBackbone(Backbone):
    """An EfficientNet-Lite trunk behind detectron2's backbone interface: ``res2`` to ``res5`` at strides 4 to 32.

    The names are detectron2's for these strides; they are the last block of each stride.

    Args:
        trunk: the network.
        extra_features: further layers of the trunk to give, by its own names.
        frozen: keep its weights out of training.

    Raises:
        ValueError: a layer that the trunk does not have.
    """

    def __init__(self, trunk: EfficientNetLiteTrunk, extra_features: Sequence[str] = (), frozen: bool = False) -> None:
        super().__init__()
        self.trunk = trunk
        unknown = [name for name in extra_features if name not in trunk.output_shapes]
        if unknown:
            raise ValueError(f"EfficientNet-Lite has no layer {unknown[0]!r}; allowed: {list(trunk.output_shapes)}")
        self._layer_by_feature = _last_layer_by_stage(trunk) | {name: name for name in extra_features}
        shapes = {feature: trunk.output_shapes[layer] for feature, layer in self._layer_by_feature.items()}
        self._out_feature_channels = {feature: shape.channels for feature, shape in shapes.items()}
        self._out_feature_strides = {feature: shape.stride for feature, shape in shapes.items()}
        self._out_features = list(self._layer_by_feature)
        if frozen:
            self.requires_grad_(False)

    @property
    def size_divisibility(self) -> int:
        return STRIDE

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maps of images (N, 3, H, W), RGB, (x - 127) / 128: feature name -> (N, C, H / stride, W / stride)."""
        maps = self.trunk(images, tuple(self._layer_by_feature.values()))
        return {feature: maps[layer] for feature, layer in self._layer_by_feature.items()}


def _last_layer_by_stage(trunk: EfficientNetLiteTrunk) -> dict[str, str]:
    layers: dict[str, str] = {}
    for name in trunk.output_shapes:
        if name.startswith("conv") and name[len("conv")] in "2345" and name != "conv5_3":
            layers[f"res{name[len('conv')]}"] = name
    return layers


class _ComputedMaps(Backbone):
    """Stands for the bottom-up network of an FPN whose maps are computed already: gives what it is given."""

    def __init__(self, shapes: dict[str, ShapeSpec]) -> None:
        super().__init__()
        self._out_features = list(shapes)
        self._out_feature_channels = {name: shape.channels for name, shape in shapes.items()}
        self._out_feature_strides = {name: shape.stride for name, shape in shapes.items()}

    def forward(self, maps: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return maps


class EfficientNetLiteFPN(Backbone):
    """detectron2's FPN on an EfficientNet-Lite, which gives the trunk's own maps beside the pyramid's.

    Args:
        bottom_up: the trunk.
        in_features: its maps that the pyramid takes, from the finest to the coarsest.
        trunk_features: its maps that are given as they are, by name.
        out_channels, norm, fuse_type: of the FPN.

    Raises:
        ValueError: a map that the trunk does not have.
    """

    def __init__(
        self,
        bottom_up: EfficientNetLiteBackbone,
        in_features: Sequence[str],
        trunk_features: Sequence[str] = (),
        *,
        out_channels: int,
        norm: str = "",
        fuse_type: str = "sum",
    ) -> None:
        super().__init__()
        shapes = bottom_up.output_shape()
        unknown = [name for name in (*in_features, *trunk_features) if name not in shapes]
        if unknown:
            raise ValueError(f"EfficientNet-Lite has no map {unknown[0]!r}; allowed: {sorted(shapes)}")
        self.bottom_up = bottom_up
        self.pyramid = FPN(
            bottom_up=_ComputedMaps(shapes),
            in_features=list(in_features),
            out_channels=out_channels,
            norm=norm,
            top_block=LastLevelMaxPool(),
            fuse_type=fuse_type,
        )
        self._trunk_features = tuple(trunk_features)
        self._shapes = self.pyramid.output_shape() | {name: shapes[name] for name in trunk_features}

    @property
    def size_divisibility(self) -> int:
        return STRIDE

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maps of images (N, 3, H, W): the pyramid's, ``pK`` of stride 2^K, and the trunk's that were asked for."""
        maps = self.bottom_up(images)
        return self.pyramid(maps) | {name: maps[name] for name in self._trunk_features}


@BACKBONE_REGISTRY.register()
def build_efficientnet_lite_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> EfficientNetLiteFPN:
    """An FPN on EfficientNet-Lite; the keys are ``MODEL.OESIR.EFFICIENTNET`` and ``MODEL.FPN``."""
    options = cfg.MODEL.OESIR.EFFICIENTNET
    trunk = EfficientNetLiteTrunk(options.VARIANT, options.WEIGHTS)
    extra = [name for name in options.TRUNK_FEATURES if name in trunk.output_shapes]
    return EfficientNetLiteFPN(
        EfficientNetLiteBackbone(trunk, extra, frozen=options.FREEZE),
        cfg.MODEL.FPN.IN_FEATURES,
        options.TRUNK_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
