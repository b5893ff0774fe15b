"""Cut-outs: the objects that the compositor pastes, and what every source of them has in common.

There are three sources, one a module: COCO annotations (``coco``), images with alpha (``alpha``) and plain photos
(``grabcut``). Shape shorthand: H, W of a photo; h, w of a cut-out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from oesir_d2.data.images import ImageFile

OPAQUE = 128
"""A pixel belongs to the object if its alpha is at least this, that is, above one half."""


@dataclass(frozen=True)
class CutOut:
    """An object cut from a photo.

    Attributes:
        pixels: (h, w, 4) uint8, RGB and alpha, not premultiplied.
        image_id: the photo it comes from.
        box: XYXY in pixels of that photo after its EXIF rotation; x1 - x0 = w, y1 - y0 = h.
        category: name of the object's class, or None if nobody named it.

    Raises:
        ValueError: if the pixels have another form, none of them is opaque, or the box does not have their size.
    """

    pixels: np.ndarray
    image_id: str
    box: tuple[int, int, int, int]
    category: str | None = None

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or self.pixels.shape[2] != 4 or self.pixels.dtype != np.uint8:
            raise ValueError(
                f"cut-out of {self.image_id!r} has shape {self.pixels.shape} and type {self.pixels.dtype}, "
                "expected (h, w, 4) uint8"
            )
        if not (self.pixels[..., 3] >= OPAQUE).any():
            raise ValueError(f"cut-out of {self.image_id!r} has no opaque pixel")
        x0, y0, x1, y1 = self.box
        if (y1 - y0, x1 - x0) != self.pixels.shape[:2]:
            raise ValueError(f"cut-out of {self.image_id!r} has shape {self.pixels.shape}, but box {self.box}")


class CutOutSource(Protocol):
    """Where objects come from: photos, and for each of them the objects that can be cut from it.

    A photo's objects must not depend on which photos were cut before, so that a splice can be made again alone.
    """

    @property
    def photos(self) -> Sequence[ImageFile]:
        """The photos that may hold objects, in a fixed order."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides, beside the photos, which objects there are, as JSON values."""
        ...

    def cut(self, photo: ImageFile) -> Sequence[CutOut]:
        """The usable objects of one of the photos; none if it cannot be read."""
        ...


@dataclass(frozen=True)
class CutOutFilter:
    """Which objects are worth pasting.

    Attributes:
        min_long_side: longer side of the object's box, in pixels of its photo, at least.
        max_border: share of the object's outline that may run along the border of its photo, where the object is
            cut off. In [0, 1].

    Raises:
        ValueError: if a value is out of range.
    """

    min_long_side: int = 64
    max_border: float = 0.15

    def __post_init__(self) -> None:
        if self.min_long_side < 1:
            raise ValueError(f"min_long_side is {self.min_long_side}, expected at least 1 pixel")
        if not 0 <= self.max_border <= 1:
            raise ValueError(f"max_border is {self.max_border}, expected a share in [0, 1]")

    def accepts(self, alpha: np.ndarray) -> bool:
        """Whether an object passes.

        Args:
            alpha: (H, W) uint8, the object's alpha over its whole photo.
        """
        opaque = alpha >= OPAQUE
        if not opaque.any():
            return False
        x0, y0, x1, y1 = find_tight_box(opaque)
        if max(x1 - x0, y1 - y0) < self.min_long_side:
            return False
        on_border = sum(int(np.count_nonzero(line)) for line in (opaque[0], opaque[-1], opaque[:, 0], opaque[:, -1]))
        # The box's perimeter stands for the outline's length, which for a frayed mask says little.
        return on_border <= self.max_border * 2 * (x1 - x0 + y1 - y0)


def find_tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The smallest box that holds a mask.

    Args:
        mask: (H, W), at least one value of it not zero.

    Returns:
        XYXY in pixels; x1 and y1 are exclusive.
    """
    columns = np.flatnonzero(mask.any(axis=0))
    rows = np.flatnonzero(mask.any(axis=1))
    assert len(columns), "an empty mask has no box"
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def crop_cutout(pixels: np.ndarray, alpha: np.ndarray, image_id: str, category: str | None = None) -> CutOut:
    """Cut an object out of its photo, tightly.

    Args:
        pixels: (H, W, 3) uint8 RGB, the photo.
        alpha: (H, W) uint8, 255 on the object; at least one pixel opaque.
        image_id: the photo's id.
        category: name of the object's class, if known.
    """
    x0, y0, x1, y1 = find_tight_box(alpha >= OPAQUE)
    crop = np.dstack([pixels[y0:y1, x0:x1], alpha[y0:y1, x0:x1]])
    return CutOut(np.ascontiguousarray(crop), image_id, (x0, y0, x1, y1), category)
