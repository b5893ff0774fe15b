"""Photos of landmarks on their way into the model: cropped at random, resized to one of a few shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data.transforms import (
    AugInput,
    Augmentation,
    AugmentationList,
    RandomFlip,
    ResizeTransform,
    TransformList,
)

from oesir_d2.data.images import read_image
from oesir_d2.data.training_mappers import TRAINING_MAPPER_REGISTRY, RandomResizedCrop


class RandomCropToShape(Augmentation):
    """Crop a rectangle of random size at a random place, and resize it to that shape which is nearest to the photo's.

    Args:
        shapes: (height, width) each, in pixels; see :meth:`choose_shape`.
        area: smallest and largest share of the photo's area, 0 < min <= max <= 1.
        aspect: smallest and largest ratio of width to height, relative to that of the shape, > 0: how much the crop is
            stretched. Where the photo is too narrow for a rectangle, it is cut to the photo's side.

    Raises:
        ValueError: if a value is out of its range.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        area: tuple[float, float] = (0.5, 1.0),
        aspect: tuple[float, float] = (0.9, 1.1),
    ):
        super().__init__()
        if not shapes or not all(_is_shape(shape) for shape in shapes):
            raise ValueError(
                f"INPUT.OESIR.SHAPES is {shapes!r}; allowed: one or more [height, width], each at least 1 pixel"
            )
        self.shapes = [(height, width) for height, width in shapes]
        self.area = tuple(area)
        # Refuses wrong values as the user gave them.
        RandomResizedCrop(1, self.area, tuple(aspect))
        # Each cuts the rectangle; the square that it would resize it to is not used.
        self._crops = {
            shape: RandomResizedCrop(max(shape), self.area, tuple(ratio * shape[1] / shape[0] for ratio in aspect))
            for shape in self.shapes
        }

    def choose_shape(self, height: int, width: int) -> tuple[int, int]:
        """The shape whose ratio of width to height is nearest to a photo's, as a factor; the first of equals."""
        aspect = math.log(width / height)
        return min(self.shapes, key=lambda shape: abs(aspect - math.log(shape[1] / shape[0])))

    def get_transform(self, image: np.ndarray) -> TransformList:
        height, width = self.choose_shape(*image.shape[:2])
        crop = self._crops[height, width].get_transform(image).transforms[0]
        return TransformList([crop, ResizeTransform(crop.h, crop.w, height, width)])


def _is_shape(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(s, int) and s >= 1 for s in value)


@TRAINING_MAPPER_REGISTRY.register()
class LandmarkMapper:
    """Random crops of the shape that fits the photo, with the class of its landmark.

    Args:
        image_format: channel order that the model takes, "RGB" or "BGR".
        crop: cuts the crop.
        flip: "horizontal", "vertical" or "none"; applied with probability 1/2.
        max_pixels: photos of more pixels are refused.
    """

    @configurable
    def __init__(self, *, image_format: str, crop: RandomCropToShape, flip: str, max_pixels: int) -> None:
        self.image_format = image_format
        self.max_pixels = max_pixels
        # Decoded this large at least, the smallest crop is hardly enlarged: large JPEGs need not be decoded in full.
        self.reduce_to = math.ceil(max(max(shape) for shape in crop.shapes) / math.sqrt(crop.area[0]))
        steps: list[Augmentation] = [crop]
        if flip != "none":
            steps.append(RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical"))
        self.augmentations = AugmentationList(steps)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        options = cfg.INPUT.OESIR
        return {
            "image_format": cfg.INPUT.FORMAT,
            "crop": RandomCropToShape(options.SHAPES, tuple(options.CROP_AREA), tuple(options.CROP_ASPECT)),
            "flip": cfg.INPUT.RANDOM_FLIP,
            "max_pixels": options.MAX_PIXELS,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Read a photo and cut a crop.

        Args:
            dataset_dict: with ``file_name`` and ``class_id``.

        Returns:
            The same with ``image`` (3, H, W) uint8 in the model's channel order, of one of the shapes, and ``height``
            and ``width`` of the original file after its EXIF rotation.

        Raises:
            UnreadableImageError: the file is no photo that can be read whole.
        """
        decoded = read_image(
            dataset_dict["file_name"], self.image_format, max_pixels=self.max_pixels, reduce_to=self.reduce_to
        )
        crop = AugInput(decoded.pixels)
        self.augmentations(crop)
        image = torch.from_numpy(np.ascontiguousarray(crop.image.transpose(2, 0, 1)))
        return dataset_dict | {"image": image, "height": decoded.height, "width": decoded.width}
