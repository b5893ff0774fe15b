"""Cut-outs from images with alpha: each image is one object on a transparent ground.

The "photo" that such an object comes from is the image file itself, which ``read_image`` shows on a white ground: a
collection that holds the file holds the splice's donor.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from oesir_d2.data.images import ImageFile, list_images, read_image
from oesir_d2.data.splicing.cutouts import OPAQUE, CutOut, CutOutFilter, crop_cutout

logger = logging.getLogger(__name__)


class AlphaCutOuts:
    """Images with alpha, as a :class:`CutOutSource`; those without a transparent pixel hold no object.

    Args:
        images: a folder or a list of images, as ``list_images`` takes it.
        cutout_filter: which objects are worth pasting. Its ``max_border`` does not count here: an object that fills
            its image is not cut off.
    """

    def __init__(self, images: str | Path, cutout_filter: CutOutFilter | None = None) -> None:
        self._photos = list_images(images)
        self._filter = replace(cutout_filter or CutOutFilter(), max_border=1.0)

    @property
    def photos(self) -> Sequence[ImageFile]:
        """All images, with and without alpha."""
        return self._photos

    @property
    def settings(self) -> dict[str, Any]:
        """What the filter is."""
        return {"kind": "alpha", "filter": asdict(self._filter)}

    def cut(self, photo: ImageFile) -> list[CutOut]:
        """The object of an image, cropped tightly to its alpha; none if it has no alpha or cannot be read."""
        try:
            # Refuses what must not be opened at all: pipes, decompression bombs, damaged files.
            read_image(photo.path)
            with Image.open(photo.path) as image:
                pixels = np.array(ImageOps.exif_transpose(image).convert("RGBA"))
        except Exception as error:  # damaged EXIF data makes Pillow raise almost anything
            logger.warning("No object is cut from %s: %s", photo.path, error)
            return []
        alpha = pixels[..., 3]
        if alpha.min() >= OPAQUE:
            logger.warning("No object is cut from %s: it has no transparent pixel", photo.path)
            return []
        return [crop_cutout(pixels[..., :3], alpha, photo.image_id)] if self._filter.accepts(alpha) else []
