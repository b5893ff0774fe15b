"""From a photo on disk to the model's input."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data.transforms import AugInput, Augmentation, NoOpTransform, ResizeTransform, Transform

from oesir_d2.data.images import read_image


class ResizeLongSideDown(Augmentation):
    """Resize so that the longer side is at most ``max_long_side`` pixels; smaller images stay as they are.

    Source: the supplement's retrieval protocol, at 1024.

    Args:
        max_long_side: in pixels, > 0.
    """

    def __init__(self, max_long_side: int) -> None:
        super().__init__()
        if max_long_side < 1:
            raise ValueError(f"max_long_side is {max_long_side}, expected at least 1 pixel")
        self.max_long_side = max_long_side

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        scale = self.max_long_side / max(height, width)
        if scale >= 1:
            return NoOpTransform()
        return ResizeTransform(height, width, max(1, round(height * scale)), max(1, round(width * scale)))


class EmbeddingMapper:
    """Maps a photo's path to the model's input, as detectron2's dataset mappers do.

    Args:
        image_format: channel order that the model takes, "RGB" or "BGR".
        max_long_side: in pixels; see :class:`ResizeLongSideDown`.
        max_pixels: photos of more pixels are refused.
    """

    @configurable
    def __init__(self, *, image_format: str, max_long_side: int, max_pixels: int) -> None:
        if max_pixels < 1:
            raise ValueError(f"max_pixels is {max_pixels}, expected at least 1")
        self.image_format = image_format
        self.max_pixels = max_pixels
        self.resize = ResizeLongSideDown(max_long_side)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {
            "image_format": cfg.INPUT.FORMAT,
            "max_long_side": cfg.INPUT.OESIR.MAX_LONG_SIDE,
            "max_pixels": cfg.INPUT.OESIR.MAX_PIXELS,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Read and resize the photo of a dataset dict.

        Args:
            dataset_dict: with ``file_name``; the rest is passed on.

        Returns:
            The same with ``image`` (3, H, W) uint8 in the model's channel order, and ``height`` and ``width`` of the
            original file after its EXIF rotation: the model scales its boxes to them.

        Raises:
            UnreadableImageError: the file is no photo that can be read whole.
        """
        decoded = read_image(
            dataset_dict["file_name"],
            format=self.image_format,
            max_pixels=self.max_pixels,
            reduce_to=self.resize.max_long_side,
        )
        resized = AugInput(decoded.pixels)
        resized.apply_augmentations([self.resize])
        image = torch.from_numpy(np.ascontiguousarray(resized.image.transpose(2, 0, 1)))
        return dataset_dict | {"image": image, "height": decoded.height, "width": decoded.width}
