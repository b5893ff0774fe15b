"""Photos whose objects are known, by annotations or by pseudo-labels in COCO's format: the hosts of a detection set.

Shape shorthand: H, W of a photo.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from oesir_d2.data.images import ImageFile, list_images
from oesir_d2.data.splicing.coco import read_coco_lists

FloatBox = tuple[float, float, float, float]


@dataclass(frozen=True)
class KnownObject:
    """An object of a photo.

    Attributes:
        box: XYXY in pixels of the photo after its EXIF rotation.
        category: name of its class, or None if nobody named it.
        score: how sure a detector was; None if somebody annotated it.
        is_crowd: whether the box is around a group that nobody took apart.
        polygons: its outline, each polygon (P, 2) of x and y; empty if only the box is known.
    """

    box: FloatBox
    category: str | None = None
    score: float | None = None
    is_crowd: bool = False
    polygons: tuple[np.ndarray, ...] = ()

    def draw_mask(self, scale: float, height: int, width: int) -> np.ndarray:
        """Where the object is in the resized photo: (H, W) bool, its polygons or else its whole box."""
        mask = np.zeros((height, width), dtype=np.uint8)
        if self.polygons:
            # One fill a polygon: where the parts of an object overlap, a common one would leave holes.
            for polygon in self.polygons:
                cv2.fillPoly(mask, [np.rint(polygon * scale - 0.5).astype(np.int32)], 1)
        else:
            x0, y0, x1, y1 = (round(v * scale) for v in self.box)
            mask[max(y0, 0) : y1, max(x0, 0) : x1] = 1
        return mask.astype(bool)


class AnnotatedPhotos:
    """The photos of a folder that a COCO JSON file describes, with their objects.

    Args:
        annotation_file: COCO JSON; each annotation needs a "bbox", a "segmentation", "iscrowd" and "score" are used.
        image_folder: the photos; each "file_name" of the JSON is relative to it. Photos that only one of the two has
            are left out.

    Raises:
        FileNotFoundError: if the JSON file or the folder does not exist.
        ValueError: if the JSON has not COCO's form, or the two have no photo in common.
    """

    def __init__(self, annotation_file: str | Path, image_folder: str | Path) -> None:
        self._path = Path(annotation_file)
        content = read_coco_lists(self._path)
        self._categories = {item["id"]: item["name"] for item in content["categories"]}
        self._sizes = {item["file_name"]: (item["width"], item["height"]) for item in content["images"]}
        self.photos: list[ImageFile] = [photo for photo in list_images(image_folder) if photo.image_id in self._sizes]
        if not self.photos:
            raise ValueError(f"{annotation_file} describes no photo of {image_folder}")
        file_names = {item["id"]: item["file_name"] for item in content["images"]}
        self._objects: dict[str, list[KnownObject]] = defaultdict(list)
        for annotation in content["annotations"]:
            if annotation["image_id"] in file_names:
                self._objects[file_names[annotation["image_id"]]].append(self._parse(annotation))

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides which photos and objects there are, as JSON values."""
        ids = json.dumps([photo.image_id for photo in self.photos]).encode()
        annotations = hashlib.sha256(self._path.read_bytes()).hexdigest()
        return {"annotations": annotations, "photos": hashlib.sha256(ids).hexdigest()}

    def get_size(self, photo: ImageFile) -> tuple[int, int]:
        """Width and height that the annotations were drawn on."""
        return self._sizes[photo.image_id]

    def get_objects(self, photo: ImageFile) -> list[KnownObject]:
        """The objects of one of the photos, in the order of the file."""
        return self._objects.get(photo.image_id, [])

    def get_boxes(self) -> dict[str, list[tuple[int, int, int, int]]]:
        """The boxes of all photos that have one, crowds left out, in whole pixels, for ``PhotoCutOuts``."""
        boxes = {}
        for photo in self.photos:
            own = [tuple(round(v) for v in item.box) for item in self.get_objects(photo) if not item.is_crowd]
            own = [box for box in own if box[0] < box[2] and box[1] < box[3]]
            if own:
                boxes[photo.image_id] = own
        return boxes

    def _parse(self, annotation: dict[str, Any]) -> KnownObject:
        bbox = annotation.get("bbox")
        is_box = isinstance(bbox, list) and len(bbox) == 4 and all(isinstance(v, int | float) for v in bbox)
        if not is_box or not all(map(math.isfinite, bbox)) or min(bbox[2:]) < 0:
            raise ValueError(
                f"{self._path}: the bbox of annotation {annotation['id']} is {bbox!r}, expected [x, y, width, height]"
            )
        x, y, width, height = bbox
        is_crowd = bool(annotation.get("iscrowd", 0))
        segmentation = annotation.get("segmentation")
        polygons: tuple[np.ndarray, ...] = ()
        if isinstance(segmentation, list) and not is_crowd:
            try:
                polygons = tuple(np.array(points, dtype=np.float64).reshape(-1, 2) for points in segmentation)
                if not all(len(polygon) >= 3 and np.isfinite(polygon).all() for polygon in polygons):
                    raise ValueError("a polygon needs three points")
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{self._path}: the segmentation of annotation {annotation['id']} is malformed: {error}"
                ) from error
        category = self._categories.get(annotation.get("category_id"))
        return KnownObject((x, y, x + width, y + height), category, annotation.get("score"), is_crowd, polygons)
