"""From a photo on disk to the model's input while a model is trained, one mapper for each kind of data."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data.transforms import (
    AugInput,
    Augmentation,
    AugmentationList,
    CropTransform,
    RandomFlip,
    ResizeTransform,
    TransformList,
)
from detectron2.utils.registry import Registry

from oesir_d2.data.images import read_image

TrainingMapper = Callable[[dict[str, Any]], dict[str, Any]]

TRAINING_MAPPER_REGISTRY = Registry("TRAINING_MAPPER")
TRAINING_MAPPER_REGISTRY.__doc__ = """
Training mappers. The registered object is called with ``obj(cfg)`` and returns a callable that turns a dataset dict
into the model's input, or raises :class:`oesir_d2.data.UnreadableImageError`, upon which another photo takes its place.
"""


class RandomResizedCrop(Augmentation):
    """Crop a rectangle of random size and shape at a random place, and resize it to a square.

    Args:
        size: side of the square, in pixels.
        area: smallest and largest share of the image's area, 0 < min <= max <= 1.
        aspect: smallest and largest ratio of width to height, > 0; where the image is too narrow for a rectangle,
            it is cut to the image's side.

    Raises:
        ValueError: if a value is out of its range.
    """

    def __init__(
        self, size: int, area: tuple[float, float] = (0.08, 1.0), aspect: tuple[float, float] = (0.75, 1.3333)
    ):
        super().__init__()
        if size < 1:
            raise ValueError(f"INPUT.OESIR.CROP_SIZE is {size}; allowed: at least 1 pixel")
        if not 0 < area[0] <= area[1] <= 1:
            raise ValueError(f"INPUT.OESIR.CROP_AREA is {list(area)}; allowed: 0 < min <= max <= 1")
        if not 0 < aspect[0] <= aspect[1]:
            raise ValueError(f"INPUT.OESIR.CROP_ASPECT is {list(aspect)}; allowed: 0 < min <= max")
        self.size = size
        self.area = tuple(area)
        self.aspect = tuple(aspect)

    def get_transform(self, image: np.ndarray) -> TransformList:
        height, width = image.shape[:2]
        area = height * width * self._rand_range(*self.area)
        aspect = math.exp(self._rand_range(*(math.log(ratio) for ratio in self.aspect)))
        crop_width = min(width, max(1, round(math.sqrt(area * aspect))))
        crop_height = min(height, max(1, round(math.sqrt(area / aspect))))
        x0 = int(self._rand_range(0, width - crop_width + 1))
        y0 = int(self._rand_range(0, height - crop_height + 1))
        crop = CropTransform(x0, y0, crop_width, crop_height, width, height)
        return TransformList([crop, ResizeTransform(crop_height, crop_width, self.size, self.size)])


@TRAINING_MAPPER_REGISTRY.register()
class CropMapper:
    """Random crops of one size, for what needs photos only: distillation.

    Args:
        image_format: channel order that the model takes, "RGB" or "BGR".
        crop: cuts the crop.
        flip: "horizontal", "vertical" or "none"; applied with probability 1/2.
        max_pixels: photos of more pixels are refused.
    """

    @configurable
    def __init__(self, *, image_format: str, crop: RandomResizedCrop, flip: str, max_pixels: int) -> None:
        self.image_format = image_format
        self.max_pixels = max_pixels
        # Decoded this large at least, the smallest crop is not enlarged: large JPEGs need not be decoded in full.
        self.reduce_to = math.ceil(crop.size / math.sqrt(crop.area[0]))
        steps: list[Augmentation] = [crop]
        if flip != "none":
            steps.append(RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical"))
        self.augmentations = AugmentationList(steps)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        options = cfg.INPUT.OESIR
        return {
            "image_format": cfg.INPUT.FORMAT,
            "crop": RandomResizedCrop(options.CROP_SIZE, tuple(options.CROP_AREA), tuple(options.CROP_ASPECT)),
            "flip": cfg.INPUT.RANDOM_FLIP,
            "max_pixels": options.MAX_PIXELS,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Read a photo and cut a crop.

        Args:
            dataset_dict: with ``file_name``.

        Returns:
            ``file_name``, ``image`` (3, S, S) uint8 in the model's channel order, ``height`` and ``width`` of the
            original file after its EXIF rotation, and ``image_id`` if there was one.

        Raises:
            UnreadableImageError: the file is no photo that can be read whole.
        """
        decoded = read_image(
            dataset_dict["file_name"], self.image_format, max_pixels=self.max_pixels, reduce_to=self.reduce_to
        )
        crop = AugInput(decoded.pixels)
        self.augmentations(crop)
        kept = {key: dataset_dict[key] for key in ("file_name", "image_id") if key in dataset_dict}
        return kept | {"image": _to_tensor(crop.image), "height": decoded.height, "width": decoded.width}


@TRAINING_MAPPER_REGISTRY.register()
class DetectionMapper(DatasetMapper):
    """detectron2's DatasetMapper for boxes, with our reading of photos: EXIF rotation, any format, whole or refused.

    The augmentations are those of cfg.INPUT.

    Args:
        max_pixels: photos of more pixels are refused.
        **kwargs: of DatasetMapper.
    """

    @configurable
    def __init__(self, *, max_pixels: int, **kwargs: Any) -> None:
        super().__init__(is_train=True, **kwargs)
        self.max_pixels = max_pixels

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        arguments = super().from_config(cfg, is_train=True)
        del arguments["is_train"]
        return arguments | {"max_pixels": cfg.INPUT.OESIR.MAX_PIXELS}

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Read a photo, augment it and its boxes.

        Args:
            dataset_dict: in detectron2's format, with ``annotations``.

        Returns:
            The same with ``image`` (3, H, W) uint8 and ``instances``, whose ``gt_boxes`` are XYXY in pixels of it.

        Raises:
            UnreadableImageError: the file is no photo that can be read whole.
            SizeMismatchError: the photo has another size than its annotation says.
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        pixels = read_image(dataset_dict["file_name"], self.image_format, max_pixels=self.max_pixels).pixels
        detection_utils.check_image_size(dataset_dict, pixels)
        augmented = AugInput(pixels)
        transforms = self.augmentations(augmented)
        dataset_dict["image"] = _to_tensor(augmented.image)
        self._transform_annotations(dataset_dict, transforms, augmented.image.shape[:2])
        return dataset_dict


def _to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """(H, W, 3) as (3, H, W), copied: augmentations give views."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
