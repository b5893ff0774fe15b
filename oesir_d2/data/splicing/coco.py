"""Cut-outs from COCO annotations: polygons, and run-length encodings whether compressed or not."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from oesir_d2.data.images import ImageFile, UnreadableImageError, list_images, read_image
from oesir_d2.data.splicing.cutouts import CutOut, CutOutFilter, crop_cutout

logger = logging.getLogger(__name__)


class CocoCutOuts:
    """The annotated objects of a COCO dataset, as a :class:`CutOutSource`.

    Crowds, objects without a segmentation and objects that the filter refuses are left out.

    Args:
        annotation_file: COCO JSON with "images", "annotations" and, for the names of the classes, "categories".
        image_folder: the photos; each "file_name" of the JSON is relative to it.
        cutout_filter: which objects are worth pasting.

    Raises:
        FileNotFoundError: if the JSON file or the folder does not exist.
        ValueError: if the JSON has not COCO's form, or no photo of the folder has a segmented object.
    """

    def __init__(
        self, annotation_file: str | Path, image_folder: str | Path, cutout_filter: CutOutFilter | None = None
    ) -> None:
        self._annotation_file = Path(annotation_file)
        self._filter = cutout_filter or CutOutFilter()
        content = read_coco_lists(self._annotation_file)
        self._digest = hashlib.sha256(self._annotation_file.read_bytes()).hexdigest()
        self._categories = {item["id"]: item["name"] for item in content["categories"]}
        self._sizes = {item["file_name"]: (item["width"], item["height"]) for item in content["images"]}
        file_names = {item["id"]: item["file_name"] for item in content["images"]}
        self._annotations: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            if annotation["image_id"] not in file_names:
                raise ValueError(
                    f"{self._annotation_file}: annotation {annotation['id']} is of image {annotation['image_id']!r}, "
                    "which is not among the images"
                )
            if annotation.get("segmentation") and not annotation.get("iscrowd"):
                self._annotations[file_names[annotation["image_id"]]].append(annotation)
        self._photos = list_images(image_folder)
        if not any(photo.image_id in self._annotations for photo in self._photos):
            raise ValueError(f"{self._annotation_file} has no segmented object in a photo of {image_folder}")

    @property
    def photos(self) -> Sequence[ImageFile]:
        """All photos of the folder, with and without objects."""
        return self._photos

    @property
    def settings(self) -> dict[str, Any]:
        """What the annotations and the filter are."""
        return {"kind": "coco", "annotations": self._digest, "filter": asdict(self._filter)}

    def cut(self, photo: ImageFile) -> list[CutOut]:
        """The usable objects of a photo, in the order of the annotations.

        Raises:
            ValueError: if a segmentation is malformed.
        """
        annotations = self._annotations.get(photo.image_id, [])
        if not annotations:
            return []
        try:
            pixels = read_image(photo.path).pixels
        except UnreadableImageError as error:
            logger.warning("No objects are cut from %s: %s", photo.path, error.reason)
            return []
        height, width = pixels.shape[:2]
        if (width, height) != self._sizes[photo.image_id]:
            # Some annotations were drawn before the EXIF rotation was applied; their polygons would miss the objects.
            logger.warning(
                "No objects are cut from %s: it is %d x %d pixels, but annotated as %d x %d",
                *(photo.path, width, height, *self._sizes[photo.image_id]),
            )
            return []
        cutouts = []
        for annotation in annotations:
            alpha = self._decode(annotation, height, width)
            if self._filter.accepts(alpha):
                category = self._categories.get(annotation.get("category_id"))
                cutouts.append(crop_cutout(pixels, alpha, photo.image_id, category))
        return cutouts

    def _decode(self, annotation: dict[str, Any], height: int, width: int) -> np.ndarray:
        """The object's alpha over its photo, (H, W) uint8, 0 or 255."""
        segmentation = annotation["segmentation"]
        try:
            if isinstance(segmentation, list):
                encoded = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
            elif isinstance(segmentation["counts"], list):
                if sum(segmentation["counts"]) != height * width:
                    raise ValueError(f"its counts add up to {sum(segmentation['counts'])}, expected {height * width}")
                encoded = coco_mask.frPyObjects(segmentation, height, width)
            else:
                encoded = segmentation
            # A run-length encoding of another size would decode to a mask of that size.
            if list(encoded["size"]) != [height, width]:
                raise ValueError(f"its size is {encoded['size']}, expected {[height, width]}")
            return coco_mask.decode(encoded) * np.uint8(255)
        except Exception as error:  # which is what pycocotools itself raises
            raise ValueError(
                f"{self._annotation_file}: the segmentation of annotation {annotation['id']} is malformed: {error}"
            ) from error


_REQUIRED_KEYS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id"),
    "categories": ("id", "name"),
}


def read_coco_lists(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The three lists of a COCO file, each item with the keys that are needed of it."""
    if not path.is_file():
        raise FileNotFoundError(f"annotation file {path} does not exist")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError both are
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise ValueError(f'{path} is not a COCO file: expected an object with "images" and "annotations"')
    lists = {name: content.get(name, []) for name in _REQUIRED_KEYS}
    for name, items in lists.items():
        for i, item in enumerate(items):
            missing = [key for key in _REQUIRED_KEYS[name] if not isinstance(item, dict) or key not in item]
            if missing:
                raise ValueError(f"{path}: {name}[{i}].{missing[0]} is missing")
    return lists
