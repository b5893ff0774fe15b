"""ResNet-50 as the teacher, with the weights of torchvision or of detectron2's catalog.

Two families of weights differ in more than names. MSRA's, from Caffe, take BGR without a division and stride in the
first 1×1 convolution of a stage; torchvision's take RGB scaled by its mean and deviation and stride in the 3×3.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import BasicStem, ResNet

from oesir_d2.modeling.resnet_blocks import describe_resnet_blocks, run_resnet_blocks
from oesir_d2.modeling.teacher import TEACHER_REGISTRY, Teacher
from oesir_d2.modeling.weights import extract_finetuned_network, extract_tensors, read_checkpoint, resolve_weights

_TORCHVISION = {
    "network_format": "RGB",
    "pixel_mean": (123.675, 116.280, 103.530),
    "pixel_std": (58.395, 57.120, 57.375),
}
_MSRA = {"network_format": "BGR", "pixel_mean": (103.530, 116.280, 123.675), "pixel_std": (1.0, 1.0, 1.0)}


@TEACHER_REGISTRY.register()
class ResNet50Teacher(Teacher):
    """ResNet-50 (He et al., CVPR 2016), tapped at one block from conv4_1 to conv5_3.

    The names of the tensors tell the family of the weights: torchvision's own names, Caffe's (MSRA), or detectron2's;
    the last are MSRA's, unless detectron2's converter from torchvision has signed the file as torchvision's. A
    checkpoint of the landmark stage is of the family that was fine-tuned. Random weights are taken for torchvision's.

    Args:
        input_format: channel order of incoming images, "RGB" or "BGR".
        layer: "conv4_1" … "conv4_6", "conv5_1" … "conv5_3".
        weights: a reference for :func:`resolve_weights`, or empty for random weights.

    Raises:
        ValueError: an unknown layer, or weights that are no ResNet-50.
        FileNotFoundError: weights that are not there.
    """

    LAYERS = tuple(f"conv4_{i}" for i in range(1, 7)) + tuple(f"conv5_{i}" for i in range(1, 4))

    @configurable
    def __init__(self, *, input_format: str, layer: str = "conv5_3", weights: str = "") -> None:
        if layer not in self.LAYERS:
            raise ValueError(f"teacher layer {layer!r} unknown; allowed: {list(self.LAYERS)}")
        state, is_msra = _read_weights(weights) if weights else ({}, False)
        super().__init__(input_format=input_format, **(_MSRA if is_msra else _TORCHVISION))
        stages = ResNet.make_default_stages(50, stride_in_1x1=is_msra, norm="FrozenBN")
        self.network = ResNet(BasicStem(norm="FrozenBN"), stages, out_features=["res5"])
        if weights:
            _load_resnet50(self.network, state, weights)
        # The network keeps all blocks, so that a checkpoint does not depend on the layer.
        self.layer = layer
        self.output_shape = self.layer_shapes[layer]
        self.freeze()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        options = cfg.MODEL.OESIR.TEACHER
        return {"input_format": cfg.INPUT.FORMAT, "layer": options.LAYER, "weights": options.WEIGHTS}

    @property
    def layer_shapes(self) -> dict[str, ShapeSpec]:
        return describe_resnet_blocks(self.network)

    def compute_layers(self, images: torch.Tensor, layers: tuple[str, ...]) -> dict[str, torch.Tensor]:
        return run_resnet_blocks(self.network, images, layers)

    def compute_map(self, images: torch.Tensor) -> torch.Tensor:
        return self.compute_layers(images, (self.layer,))[self.layer]


def _read_weights(reference: str) -> tuple[dict[str, torch.Tensor], bool]:
    """The tensors of a weight file under detectron2's names, and whether they are MSRA's."""
    checkpoint = read_checkpoint(resolve_weights(reference))
    finetuned = extract_finetuned_network(checkpoint)
    if finetuned is not None:
        is_msra = torch.equal(finetuned.pixel_std.flatten(), torch.tensor(_MSRA["pixel_std"]))
        return finetuned.tensors, is_msra
    state = extract_tensors(checkpoint)
    if any(name.endswith("_w") for name in state):
        return convert_c2_detectron_names(state)[0], True
    if any(name.startswith("layer1.") for name in state):
        return {_translate_torchvision_name(name): value for name, value in state.items()}, False
    return state, checkpoint.get("__author__") != "torchvision"


_TORCHVISION_PARTS = {
    r"^(conv1|bn1)\.": r"stem.\1.",
    r"^layer(\d)\.": lambda match: f"res{int(match[1]) + 1}.",
    r"\bbn(\d)\.": r"conv\1.norm.",
    r"\bdownsample\.0\.": "shortcut.",
    r"\bdownsample\.1\.": "shortcut.norm.",
}


def _translate_torchvision_name(name: str) -> str:
    """torchvision's name of a tensor in detectron2's terms.

    >>> _translate_torchvision_name("layer1.0.bn2.weight"), _translate_torchvision_name("conv1.weight")
    ('res2.0.conv2.norm.weight', 'stem.conv1.weight')
    """
    for pattern, replacement in _TORCHVISION_PARTS.items():
        name = re.sub(pattern, replacement, name)
    return name


def _load_resnet50(network: ResNet, state: dict[str, torch.Tensor], reference: str) -> None:
    """Load tensors under detectron2's names; every one must be there, but for the statistics of fused batch norms."""
    expected = network.state_dict()
    if not any(name.endswith("running_mean") for name in state):
        # Caffe's own files have them folded into scale and shift. The network starts with those that change nothing.
        statistics = {name for name in expected if name.endswith(("running_mean", "running_var"))}
        state = {name: expected[name] for name in statistics} | state
    missing = sorted(set(expected) - set(state))
    if missing:
        raise ValueError(
            f"weights {reference!r} are no ResNet-50: {len(missing)} tensors missing, {missing[0]!r} the first"
        )
    # The blocks of a ResNet-101 begin as those of a ResNet-50 do.
    blocks = {name.rsplit(".", 1)[0] for name in expected}
    more = sorted(name for name in state if name.startswith("res") and name.rsplit(".", 1)[0] not in blocks)
    if more:
        raise ValueError(f"weights {reference!r} are no ResNet-50: {len(more)} tensors too many, {more[0]!r} the first")
    for name, value in expected.items():
        if state[name].shape != value.shape:
            shapes = f"{tuple(state[name].shape)}, expected {tuple(value.shape)}"
            raise ValueError(f"weights {reference!r} are no ResNet-50: {name!r} has shape {shapes}")
    network.load_state_dict({name: state[name] for name in expected})
