"""Teachers: frozen ImageNet classification networks whose convolutional maps are the embeddings to learn from.

In the supplement's Figures 1 and 2 the maps of a classifier retrieve better than those of a detector. Tapped there are
the blocks conv4_1 to conv5_3.

Shape shorthand: N images of H × W pixels, C channels, S stride.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import ImageList
from detectron2.utils.registry import Registry
from torch import nn

from oesir_d2.modeling.backbones.efficientnet_lite import PIXEL_MEAN, PIXEL_STD, EfficientNetLiteTrunk
from oesir_d2.modeling.registry import get_registered
from oesir_d2.modeling.weights import read_finetuned_network

TEACHER_REGISTRY = Registry("TEACHER")
TEACHER_REGISTRY.__doc__ = """
Teachers: frozen classification networks. The registered object is called with ``obj(cfg)`` and returns a
:class:`Teacher`.
"""

CHANNEL_ORDERS = ("RGB", "BGR")


class Teacher(nn.Module):
    """A frozen network that turns photos into one map; always in eval mode.

    A subclass builds ``network``, its batch norms frozen, and then calls :meth:`freeze`; it sets ``output_shape``
    (channels and stride) and implements :meth:`compute_map`. Only the landmark stage trains a teacher, by :meth:`thaw`
    and :meth:`compute_maps`; a subclass can load what comes of it by :func:`read_finetuned_network`.

    Args:
        input_format: channel order of the images that come in, "RGB" or "BGR".
        network_format: channel order that the network was trained on.
        pixel_mean, pixel_std: of the network, for values from 0 to 255, in its own channel order.

    Raises:
        ValueError: another channel order.
    """

    network: nn.Module
    output_shape: ShapeSpec
    size_divisibility = 32

    def __init__(
        self, *, input_format: str, network_format: str, pixel_mean: tuple[float, ...], pixel_std: tuple[float, ...]
    ) -> None:
        super().__init__()
        if input_format not in CHANNEL_ORDERS:
            raise ValueError(f"INPUT.FORMAT is {input_format!r}; allowed for a teacher: {list(CHANNEL_ORDERS)}")
        self._flip_channels = input_format != network_format
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    def compute_map(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) normalised, H and W multiples of ``size_divisibility`` -> (N, C, H / S, W / S)."""
        raise NotImplementedError

    @property
    def layer_shapes(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every layer that :meth:`compute_layers` can give, by name; empty if it gives none."""
        return {}

    def compute_layers(self, images: torch.Tensor, layers: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """The maps of several layers in one pass, whichever is tapped for :meth:`compute_map`.

        Args:
            images: (N, 3, H, W) normalised, H and W multiples of ``size_divisibility``.
            layers: some of ``layer_shapes``.
        """
        raise NotImplementedError

    def freeze(self) -> None:
        """Take all weights out of training."""
        self.requires_grad_(False)
        self.eval()

    def thaw(self) -> None:
        """Take the weights that the map depends on into training; those behind the tapped layer stay out of it."""
        self.requires_grad_(True)
        parameters = list(self.parameters())
        side = 2 * self.size_divisibility
        image = torch.zeros(1, 3, side, side, device=self.pixel_mean.device)
        with torch.enable_grad():
            total = self.compute_map(image).sum()
        # Several processes would wait in vain for the gradient of a weight that has none.
        for parameter, gradient in zip(parameters, torch.autograd.grad(total, parameters, allow_unused=True)):
            parameter.requires_grad_(gradient is not None)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode, whatever the model around it does."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: list[torch.Tensor]) -> torch.Tensor:
        """Compute the map of a batch of photos, without a gradient; see :meth:`compute_maps`."""
        return self.compute_maps(images)

    def compute_maps(self, images: list[torch.Tensor]) -> torch.Tensor:
        """Compute the map of a batch of photos.

        Every photo is padded at the right and the bottom to multiples of ``size_divisibility``, and no further: a
        network sees what is behind the border, so that a photo's map would otherwise depend on its companions.

        Args:
            images: each (3, H_i, W_i), 0 to 255, in ``input_format``.

        Returns:
            (N, C, H / S, W / S) float, not normalised, where H and W are those of the largest padded photo; 0 beyond
            a photo's own padding.
        """
        normalised = self._normalise(images)
        indices_by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, image in enumerate(normalised):
            indices_by_size[self._count_cells(image)].append(index)
        if len(indices_by_size) == 1:
            return self._compute_map_of_one_size(normalised)
        rows, columns = (max(cells) for cells in zip(*indices_by_size))
        maps = normalised[0].new_zeros(len(images), self.output_shape.channels, rows, columns)
        for cells, indices in indices_by_size.items():
            maps[indices, :, : cells[0], : cells[1]] = self._compute_map_of_one_size([normalised[i] for i in indices])
        return maps

    def prepare(self, images: list[torch.Tensor]) -> torch.Tensor:
        """Photos of one size (3, H, W), 0 to 255, in ``input_format``, as a batch for :meth:`compute_layers`."""
        return ImageList.from_tensors(self._normalise(images), self.size_divisibility).tensor

    def _normalise(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        if self._flip_channels:
            images = [image.flip(0) for image in images]
        return [(image.to(self.pixel_mean) - self.pixel_mean) / self.pixel_std for image in images]

    def _compute_map_of_one_size(self, images: list[torch.Tensor]) -> torch.Tensor:
        return self.compute_map(ImageList.from_tensors(images, self.size_divisibility).tensor)

    def _count_cells(self, image: torch.Tensor) -> tuple[int, int]:
        """Rows and columns of the map of a photo (3, H, W)."""
        per_step = self.size_divisibility // self.output_shape.stride
        height, width = (-(-side // self.size_divisibility) * per_step for side in image.shape[-2:])
        return height, width


@TEACHER_REGISTRY.register()
class EfficientNetLiteTeacher(Teacher):
    """EfficientNet-Lite0 or Lite2, tapped at one layer.

    Args:
        input_format: channel order of incoming images, "RGB" or "BGR".
        variant: "lite0" or "lite2".
        layer: a layer of :class:`EfficientNetLiteTrunk`; "conv5_3" is the head convolution.
        weights: a reference for :func:`resolve_weights`, that of a checkpoint of the landmark stage included, or empty
            for random weights.
        dilate_last_stage: stride 16 instead of 32 in the last stage.

    Raises:
        ValueError: an unknown variant or layer, or weights that are not of this variant.
        FileNotFoundError: weights that are not there.
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
        finetuned = read_finetuned_network(weights) if weights else None
        self.network = EfficientNetLiteTrunk(variant, "" if finetuned else weights, dilate_last_stage)
        if finetuned:
            try:
                self.network.load_state_dict(finetuned.tensors)
            except RuntimeError as error:
                reason = str(error).splitlines()[-1].strip()
                raise ValueError(f"weights {weights!r} do not fit efficientnet-{variant}: {reason[:200]}") from error
        if layer not in self.network.output_shapes:
            raise ValueError(f"teacher layer {layer!r} unknown; allowed: {list(self.network.output_shapes)}")
        self.layer = layer
        self.output_shape = self.network.output_shapes[layer]
        self.freeze()

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

    @property
    def layer_shapes(self) -> dict[str, ShapeSpec]:
        return self.network.output_shapes

    def compute_layers(self, images: torch.Tensor, layers: tuple[str, ...]) -> dict[str, torch.Tensor]:
        return self.network(images, layers)

    def compute_map(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images, (self.layer,))[self.layer]


def build_teacher(cfg: CfgNode) -> Teacher:
    """Build the teacher that ``MODEL.OESIR.TEACHER.NAME`` names."""
    return get_registered(TEACHER_REGISTRY, cfg.MODEL.OESIR.TEACHER.NAME, "MODEL.OESIR.TEACHER.NAME")(cfg)
