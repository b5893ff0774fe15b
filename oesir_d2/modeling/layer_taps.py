"""Maps of several layers of one network in one forward pass: of a classifier, or of a detector's backbone.

Shape shorthand: H x W pixels of a photo, C channels and S stride of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import ResNet
from torch import nn

from oesir_d2.modeling.resnet_blocks import describe_resnet_blocks, name_resnet_blocks
from oesir_d2.modeling.teacher import Teacher


class LayerTaps(nn.Module):
    """Computes the maps of some layers of a network, each photo on its own.

    A subclass implements :meth:`forward`.

    Args:
        layers: names of layers.
        shapes: of all layers that the network has, by name.

    Attributes:
        shapes: channels and stride of the layers that are tapped, in the order of ``layers``.

    Raises:
        ValueError: no layer, or one that the network does not have.
    """

    def __init__(self, layers: Sequence[str], shapes: dict[str, ShapeSpec]) -> None:
        super().__init__()
        unknown = [name for name in layers if name not in shapes]
        if unknown or not layers:
            raise ValueError(f"layers to tap are {list(layers)}; allowed: one or more of {list(shapes)}")
        self.shapes = {name: shapes[name] for name in layers}

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the maps of one photo.

        Args:
            image: (3, H, W), 0 to 255, in cfg.INPUT.FORMAT's channel order.

        Returns:
            layer name -> (1, C, h, w) float, the padding at the right and the bottom included: the photo itself covers
            H / S rows and W / S columns.
        """
        raise NotImplementedError


class TeacherTaps(LayerTaps):
    """Layers of a classification network, by the teacher's own names.

    Raises:
        ValueError: as :class:`LayerTaps`.
    """

    def __init__(self, teacher: Teacher, layers: Sequence[str]) -> None:
        super().__init__(layers, teacher.layer_shapes)
        self.teacher = teacher

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.teacher.compute_layers(self.teacher.prepare([image]), tuple(self.shapes))
        return {name: maps[name] for name in self.shapes}


class DetectorTaps(LayerTaps):
    """Layers of a detector's backbone: the maps that it gives and, of a ResNet, every block from conv2_1 to conv5_3.

    Where blocks alone are tapped, the pyramid on them does not run.

    Args:
        detector: a GeneralizedRCNN.
        layers: names of layers.

    Raises:
        ValueError: as :class:`LayerTaps`.
    """

    def __init__(self, detector: nn.Module, layers: Sequence[str]) -> None:
        backbone = detector.backbone
        trunk = getattr(backbone, "bottom_up", backbone)
        is_resnet = isinstance(trunk, ResNet)
        block_shapes = describe_resnet_blocks(trunk) if is_resnet else {}
        super().__init__(layers, backbone.output_shape() | block_shapes)
        self.detector = detector
        self._blocks = [name for name in layers if name in block_shapes]
        self._network = [trunk if len(self._blocks) == len(layers) else backbone]  # a list: it is registered already
        self._maps: dict[str, torch.Tensor] = {}
        for name, block in name_resnet_blocks(trunk).items() if is_resnet else ():
            if name in self._blocks:
                block.register_forward_hook(partial(self._keep, name))

    def _keep(self, name: str, block: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self._maps[name] = output

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        self._maps = {}
        images = self.detector.preprocess_image([{"image": image}])
        maps = self._network[0](images.tensor) | self._maps
        return {name: maps[name] for name in self.shapes}
