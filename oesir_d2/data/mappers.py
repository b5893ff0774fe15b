"""From a photo on disk to the model's input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data.transforms import AugInput, Augmentation, NoOpTransform, ResizeTransform, Transform

from oesir_d2.data.images import DecodedImage, UnreadableImageError, read_image


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
            dataset_dict: with ``file_name``; the rest is passed on. With ``query_box``, XYXY in pixels of the file
                after its EXIF rotation, the photo is cropped to that box first, as the Oxford and Paris protocols
                do with their queries.

        Returns:
            The same with ``image`` (3, H, W) uint8 in the model's channel order, and ``height`` and ``width`` of the
            original file after its EXIF rotation, or of the crop: the model scales its boxes to them.

        Raises:
            UnreadableImageError: the file is no photo that can be read whole, or the box lies outside of it.
        """
        query_box = dataset_dict.get("query_box")
        decoded = read_image(
            dataset_dict["file_name"],
            format=self.image_format,
            max_pixels=self.max_pixels,
            # How far a photo may be reduced depends on how much of it is left.
            reduce_to=self.resize.max_long_side if query_box is None else None,
        )
        if query_box is not None:
            decoded = _crop(decoded, query_box, Path(dataset_dict["file_name"]))
        return dataset_dict | {
            "image": self._to_input(decoded.pixels),
            "height": decoded.height,
            "width": decoded.width,
        }

    def map_pixels(self, pixels: np.ndarray) -> dict[str, Any]:
        """The same for pixels that are at hand.

        Args:
            pixels: (H, W, 3) uint8 RGB, whichever order the model takes.
        """
        in_order = pixels if self.image_format == "RGB" else pixels[..., ::-1]
        return {"image": self._to_input(in_order), "height": pixels.shape[0], "width": pixels.shape[1]}

    def _to_input(self, pixels: np.ndarray) -> torch.Tensor:
        resized = AugInput(pixels)
        resized.apply_augmentations([self.resize])
        return torch.from_numpy(np.ascontiguousarray(resized.image.transpose(2, 0, 1)))


UNREADABLE = "unreadable"
"""The key under which a dataset dict has the reason why its photo could not be read."""

PLACEHOLDER_SIDE = 64


class MarkUnreadable:
    """A mapper for evaluation: a photo that cannot be read becomes a black one that is marked by ``UNREADABLE``.

    detectron2's loader would take another photo in its place, which an evaluation must not.

    Args:
        mapper: raises UnreadableImageError.
    """

    def __init__(self, mapper: EmbeddingMapper) -> None:
        self._mapper = mapper

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._mapper(dataset_dict)
        except UnreadableImageError as error:
            black = torch.zeros(3, PLACEHOLDER_SIDE, PLACEHOLDER_SIDE, dtype=torch.uint8)
            size = {"height": PLACEHOLDER_SIDE, "width": PLACEHOLDER_SIDE}
            return dataset_dict | size | {"image": black, UNREADABLE: error.reason}


def _crop(decoded: DecodedImage, box: Sequence[float], path: Path) -> DecodedImage:
    """The part of a photo inside a box, whose sides are rounded to whole pixels and cut at the photo's."""
    x0, y0, x1, y1 = (round(value) for value in box)
    pixels = decoded.pixels[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
    if 0 in pixels.shape:
        shown = ",".join(f"{value:g}" for value in box)
        raise UnreadableImageError(
            path, f"the box {shown} lies outside of its {decoded.width} x {decoded.height} pixels"
        )
    return DecodedImage(pixels, width=pixels.shape[1], height=pixels.shape[0])
