"""Teachers: frozen ImageNet classification networks whose convolutional maps are the embeddings to learn from.

The paper's finding is that the maps of a classifier retrieve better than those of a detector (supplement, Figures 1
and 2); the supplement taps blocks conv4_1 to conv5_3.

Shape shorthand: N images of H × W pixels, C channels, S stride.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import BasicStem, ResNet
from detectron2.structures import ImageList
from detectron2.utils.registry import Registry
from torch import nn

from oesir_d2.modeling.backbones.efficientnet_lite import PIXEL_MEAN, PIXEL_STD, EfficientNetLiteTrunk
from oesir_d2.modeling.registry import get_registered
from oesir_d2.modeling.weights import load_state_dict, resolve_weights

TEACHER_REGISTRY = Registry("TEACHER")
TEACHER_REGISTRY.__doc__ = """
Teachers: frozen classification networks. The registered object is called with ``obj(cfg)`` and returns a
:class:`Teacher`.
"""


class Teacher(nn.Module):
    """A frozen network that turns photos into one map; always in eval mode, never trained.

    A subclass sets ``output_shape`` (channels and stride) and implements :meth:`compute_map`.

    Args:
        input_format: channel order of the images that come in, "RGB" or "BGR".
        network_format: channel order that the network was trained on.
        pixel_mean, pixel_std: of the network, for values from 0 to 255, in its own channel order.
    """

    output_shape: ShapeSpec
    size_divisibility = 32

    def __init__(
        self, *, input_format: str, network_format: str, pixel_mean: tuple[float, ...], pixel_std: tuple[float, ...]
    ) -> None:
        super().__init__()
        self._flip_channels = input_format != network_format
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    def compute_map(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) normalised, padded -> (N, C, H / S, W / S)."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode, whatever the model around it does."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: list[torch.Tensor]) -> torch.Tensor:
        """Compute the map of a batch of photos.

        Args:
            images: each (3, H_i, W_i), 0 to 255, in ``input_format``. They are padded at the right and the bottom
                to the largest of the batch, rounded up to a multiple of 32.

        Returns:
            (N, C, H / S, W / S) float, not normalised.
        """
        if self._flip_channels:
            images = [image.flip(0) for image in images]
        normalised = [(image.to(self.pixel_mean) - self.pixel_mean) / self.pixel_std for image in images]
        return self.compute_map(ImageList.from_tensors(normalised, self.size_divisibility).tensor)


@TEACHER_REGISTRY.register()
class EfficientNetLiteTeacher(Teacher):
    """EfficientNet-Lite0 or Lite2, tapped at one layer.

    Args:
        input_format: channel order of incoming images, "RGB" or "BGR".
        variant: "lite0" or "lite2".
        layer: "conv4_1" … "conv5_3"; conv5_3 is the head convolution.
        weights: a weight reference, or empty for random weights.
        dilate_last_stage: stride 16 instead of 32 in the last stage.
    """

    @configurable
    def __init__(
        self,
        *,
        input_format: str,
        variant: str = "lite0",
        layer: str = "conv5_3",
        weights: str = "",
        dilate_last_stage: bool = False,
    ) -> None:
        super().__init__(input_format=input_format, network_format="RGB", pixel_mean=PIXEL_MEAN, pixel_std=PIXEL_STD)
        self.network = EfficientNetLiteTrunk(variant, weights, dilate_last_stage)
        if layer not in self.network.output_shapes:
            raise ValueError(f"teacher layer {layer!r} unknown; allowed: {list(self.network.output_shapes)}")
        self.layer = layer
        self.output_shape = self.network.output_shapes[layer]
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        options = cfg.MODEL.OESIR.TEACHER
        return {
            "input_format": cfg.INPUT.FORMAT,
            "variant": options.VARIANT,
            "layer": options.LAYER,
            "weights": options.WEIGHTS,
            "dilate_last_stage": options.DILATE_LAST_STAGE,
        }

    def compute_map(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images, (self.layer,))[self.layer]


@TEACHER_REGISTRY.register()
class ResNet50Teacher(Teacher):
    """ResNet-50 (He et al., CVPR 2016), tapped at one block from conv4_1 to conv5_3.

    Two families of weights differ in more than names. detectron2's (MSRA's, from Caffe) take BGR without a division and
    stride in the first 1×1 convolution; torchvision's take RGB scaled by its mean and deviation and stride in the 3×3.
    The state dict tells which one it is; random weights get torchvision's layout.

    Args:
        input_format: channel order of incoming images, "RGB" or "BGR".
        layer: "conv4_1" … "conv4_6", "conv5_1" … "conv5_3".
        weights: a weight reference, or empty for random weights.
    """

    LAYERS = tuple(f"conv4_{i}" for i in range(1, 7)) + tuple(f"conv5_{i}" for i in range(1, 4))

    @configurable
    def __init__(self, *, input_format: str, layer: str = "conv5_3", weights: str = "") -> None:
        if layer not in self.LAYERS:
            raise ValueError(f"teacher layer {layer!r} unknown; allowed: {list(self.LAYERS)}")
        state = load_state_dict(resolve_weights(weights)) if weights else {}
        is_caffe = bool(state) and "layer1.0.conv1.weight" not in state
        super().__init__(
            input_format=input_format,
            network_format="BGR" if is_caffe else "RGB",
            pixel_mean=(103.530, 116.280, 123.675) if is_caffe else (123.675, 116.280, 103.530),
            pixel_std=(1.0, 1.0, 1.0) if is_caffe else (58.395, 57.120, 57.375),
        )
        stages = ResNet.make_default_stages(50, stride_in_1x1=is_caffe, norm="FrozenBN")
        self.network = ResNet(BasicStem(norm="FrozenBN"), stages, out_features=["res5"])
        if state:
            _load_resnet50(self.network, state, weights, is_caffe)
        stage, block = int(layer[4]), int(layer[6])
        self._stages = [list(s) for s in stages[: stage - 1]]
        self._stages[-1] = self._stages[-1][:block]
        self.output_shape = ShapeSpec(channels=self._stages[-1][-1].out_channels, stride=2**stage)
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        options = cfg.MODEL.OESIR.TEACHER
        return {"input_format": cfg.INPUT.FORMAT, "layer": options.LAYER, "weights": options.WEIGHTS}

    def compute_map(self, images: torch.Tensor) -> torch.Tensor:
        features = self.network.stem(images)
        for stage in self._stages:
            for block in stage:
                features = block(features)
        return features


def _load_resnet50(network: ResNet, state: dict[str, torch.Tensor], source: str, is_caffe: bool) -> None:
    """Load detectron2's or torchvision's tensors under detectron2's names; every weight must be there."""
    expected = network.state_dict()
    if is_caffe:
        uses_caffe_names = any(name.endswith("_w") for name in state)
        state = align_and_update_state_dicts(expected, state, c2_conversion=uses_caffe_names)
    else:
        state = {_from_torchvision_name(name): value for name, value in state.items()}
    # Caffe's weights have the statistics of batch norms folded into scale and shift, and leave them out.
    defaults = {name: value for name, value in expected.items() if name.endswith(("running_mean", "running_var"))}
    state = (defaults if is_caffe else {}) | state
    missing = sorted(set(expected) - set(state))
    if missing:
        raise ValueError(
            f"weights {source!r} are no ResNet-50: {len(missing)} tensors missing, {missing[0]!r} the first"
        )
    wrong = [name for name in expected if state[name].shape != expected[name].shape]
    if wrong:
        raise ValueError(f"weights {source!r} are no ResNet-50: {wrong[0]!r} has shape {tuple(state[wrong[0]].shape)}")
    network.load_state_dict({name: state[name] for name in expected})


def _from_torchvision_name(name: str) -> str:
    """torchvision's name of a ResNet tensor in detectron2's terms: layer1.0.bn2.weight -> res2.0.conv2.norm.weight."""
    if not name.startswith("layer"):
        name = f"stem.{name}"
    for stage in range(1, 5):
        name = name.replace(f"layer{stage}", f"res{stage + 1}")
    for index in range(1, 4):
        name = name.replace(f"bn{index}", f"conv{index}.norm")
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def build_teacher(cfg: CfgNode) -> Teacher:
    """Build the teacher that ``MODEL.OESIR.TEACHER.NAME`` names."""
    return get_registered(TEACHER_REGISTRY, cfg.MODEL.OESIR.TEACHER.NAME, "MODEL.OESIR.TEACHER.NAME")(cfg)
