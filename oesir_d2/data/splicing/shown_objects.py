"""What a composed photo shows: pasted objects, and those of its host that are not covered by them.

Shape shorthand: H, W of a composed photo.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from oesir_d2.data.splicing.annotated_photos import FloatBox, KnownObject
from oesir_d2.data.splicing.compositor import MIN_OBJECT_SIDE
from oesir_d2.data.splicing.cutouts import find_tight_box


@dataclass(frozen=True)
class ShownObject:
    """An object in a composed photo.

    Attributes:
        box: XYXY in pixels of the composed photo, around what is visible of it.
        area: pixels of the composed photo that show it, as far as its outline is known.
        source: id of the photo it comes from.
        source_box: XYXY in pixels of that photo; with ``source``, it tells one object from another.
        is_pasted: whether it was pasted, or else belongs to the host.
        category, score, is_crowd: see ``KnownObject``.
    """

    box: FloatBox
    area: float
    source: str
    source_box: FloatBox
    is_pasted: bool
    category: str | None = None
    score: float | None = None
    is_crowd: bool = False


def show_known_objects(
    objects: Sequence[KnownObject],
    image_id: str,
    scale: float,
    size: tuple[int, int],
    covered: np.ndarray | None = None,
    max_covered: float = 1.0,
) -> tuple[ShownObject, ...]:
    """A host's own objects, as far as they are visible and large enough to be found.

    Args:
        objects: in pixels of the host's file.
        image_id: the host's.
        scale: from pixels of the host's file to those of the composed photo.
        size: width and height of the composed photo.
        covered: (H, W) bool, where objects were pasted; None if nothing was.
        max_covered: share of an object beyond which it is left out.
    """
    width, height = size
    shown = []
    for item in objects:
        x0, y0, x1, y1 = (v * scale for v in item.box)
        x0, y0, x1, y1 = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
        area = max(x1 - x0, 0.0) * max(y1 - y0, 0.0)
        window = (slice(math.floor(y0), math.ceil(y1)), slice(math.floor(x0), math.ceil(x1)))
        if area and covered is not None and covered[window].any():
            mask = item.draw_mask(scale, height, width)
            visible = mask & ~covered
            whole, area = np.count_nonzero(mask), float(np.count_nonzero(visible))
            if is_hidden(area, whole, max_covered):
                continue
            if area < whole:
                tight = find_tight_box(visible)
                # Drawing rounds to whole pixels; a box only shrinks.
                x0, y0, x1, y1 = max(x0, tight[0]), max(y0, tight[1]), min(x1, tight[2]), min(y1, tight[3])
        if max(x1 - x0, y1 - y0) < MIN_OBJECT_SIDE or min(x1 - x0, y1 - y0) < 1:
            continue
        shown.append(
            ShownObject(
                box=(x0, y0, x1, y1),
                area=area,
                source=image_id,
                source_box=item.box,
                is_pasted=False,
                category=item.category,
                score=item.score,
                is_crowd=item.is_crowd,
            )
        )
    return tuple(shown)


def is_hidden(visible: float, area: float, max_covered: float) -> bool:
    """Whether so little of an object is visible that it does not count."""
    return visible <= 0 or visible < (1 - max_covered) * area
