"""Cut-outs from plain photos: objects in given boxes, or in boxes that saliency proposes, segmented by GrabCut."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from oesir_d2.data.images import ImageFile, UnreadableImageError, list_images, read_image
from oesir_d2.data.splicing.cutouts import CutOut, CutOutFilter, crop_cutout
from oesir_d2.data.splicing.grabcut import segment_box
from oesir_d2.data.splicing.saliency import Box, propose_boxes

logger = logging.getLogger(__name__)


class PhotoCutOuts:
    """Plain photos, as a :class:`CutOutSource`.

    A photo with given boxes has an object for each box whose content GrabCut can tell from the ground. A photo
    without gives at most one: the segmentation, over all proposed boxes, that looks most like an object, if it looks
    enough like one.

    Args:
        photos: a folder or a list of photos, as ``list_images`` takes it.
        boxes: boxes around objects by the photos' image ids, XYXY in pixels after the EXIF rotation. If boxes are
            given at all, photos without any hold no object. Default: boxes are proposed.
        cutout_filter: which objects are worth pasting.

    Raises:
        ValueError: if a box is of a photo that is not there.
    """

    def __init__(
        self,
        photos: str | Path,
        boxes: Mapping[str, Sequence[Box]] | None = None,
        cutout_filter: CutOutFilter | None = None,
    ) -> None:
        self._photos = list_images(photos)
        self._boxes = boxes
        self._filter = cutout_filter or CutOutFilter()
        unknown = sorted(set(boxes or {}) - {photo.image_id for photo in self._photos})
        if unknown:
            raise ValueError(f"boxes are given for {unknown[0]!r}, which is not among the photos of {photos}")

    @property
    def photos(self) -> Sequence[ImageFile]:
        """All photos, with and without objects."""
        return self._photos

    @property
    def settings(self) -> dict[str, Any]:
        """What the given boxes and the filter are."""
        boxes = None if self._boxes is None else {image_id: list(boxes) for image_id, boxes in self._boxes.items()}
        return {"kind": "photos", "boxes": boxes, "filter": asdict(self._filter)}

    def cut(self, photo: ImageFile) -> list[CutOut]:
        """The objects of a photo, in the order of the given boxes; none if it cannot be read."""
        if self._boxes is not None and not self._boxes.get(photo.image_id):
            return []
        try:
            pixels = read_image(photo.path).pixels
        except UnreadableImageError as error:
            logger.warning("No objects are cut from %s: %s", photo.path, error.reason)
            return []
        boxes = propose_boxes(pixels) if self._boxes is None else self._boxes[photo.image_id]
        segmentations = [item for item in (segment_box(pixels, box) for box in boxes) if item is not None]
        if self._boxes is None:
            object_like = [item for item in segmentations if item.is_object_like]
            chosen = sorted(object_like, key=lambda item: item.objectness)[-1:]
        else:
            chosen = [item for item in segmentations if item.is_plausible]
        alphas = [item.alpha for item in chosen if self._filter.accepts(item.alpha)]
        return [crop_cutout(pixels, alpha, photo.image_id) for alpha in alphas]


def read_boxes(path: str | Path) -> dict[str, list[Box]]:
    """Read boxes around objects: ``{"IMAGE_ID": [[x0, y0, x1, y1], ...], ...}``, in pixels after the EXIF rotation.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it has another form; the message names the photo and the box.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"boxes file {path} does not exist")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError both are
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(boxes, list) for boxes in content.values()):
        raise ValueError(f'{path} has another form than {{"IMAGE_ID": [[x0, y0, x1, y1], ...]}}')
    return {image_id: [_parse_box(box, image_id, path) for box in boxes] for image_id, boxes in content.items()}


def _parse_box(box: Any, image_id: str, path: Path) -> Box:
    is_box = isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)
    if not is_box or not all(map(math.isfinite, box)) or not (0 <= box[0] < box[2] and 0 <= box[1] < box[3]):
        raise ValueError(
            f"{path}: a box of {image_id!r} is {box!r}, expected [x0, y0, x1, y1] in pixels, 0 <= x0 < x1, 0 <= y0 < y1"
        )
    x0, y0, x1, y1 = (round(v) for v in box)
    return x0, y0, x1, y1
