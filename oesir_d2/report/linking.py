"""Which matches of a query's results are worth showing, and which number and colour links the boxes of each.

A search returns many pairs of regions, and the cells of a grid overlap: drawn all together they would hide the photos.
Boxes are XYXY in pixels of the original photo after its EXIF rotation.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oesir_d2.index.results import RegionMatch, SearchResult
from oesir_d2.report.drawings import REGION_COLORS, Box, Color, get_region_color

MATCHES_SHOWN = 3
"""At most this many matches of a result are shown."""

SCORE_SHARE = 0.5
"""A match is shown if its score is at least this share of the score of its result's best match."""

SAME_REGION_IOU = 0.5
"""Boxes that overlap by more than this are one region seen twice, such as neighbouring cells of a grid."""

REGIONS_SHOWN = len(REGION_COLORS)
"""As many regions of the query are shown as there are colours; more only where a result's best match needs them."""

SAME_BOX_TOLERANCE = 1.0
"""Pixels by which a match's query box may differ from the object it stands for, through rounding on the way."""

WHOLE_PHOTO_SHARE = 0.99
"""A box that covers at least this share of its photo is the whole photo."""


@dataclass(frozen=True)
class LinkedRegion:
    """A region of the query that is shown, and whose matches are shown in its colour.

    Attributes:
        number: what stands on its box, from 1.
        color: the colour of its box and of the boxes that it matches.
        box: XYXY in pixels of the query photo.
        score: the proposer's confidence in [0, 1]; None if it is not known.
        category: what a detector took it for; empty if no detector named it.
    """

    number: int
    color: Color
    box: Box
    score: float | None
    category: str


@dataclass(frozen=True)
class LinkedMatch:
    """A match that is shown: ``region`` of the query was found as ``database_box`` of a result's photo."""

    region: LinkedRegion
    database_box: Box
    score: float


def link_matches(
    objects: Sequence[Mapping[str, Any]], results: Sequence[SearchResult]
) -> tuple[list[LinkedRegion], list[list[LinkedMatch]]]:
    """Choose the matches to show and number their query regions, the one with the best match first.

    The best match of every result is shown. Of the others, those are shown whose regions are shown anyway or find a
    place among the first ``REGIONS_SHOWN``; objects without any shown match come last, where there is still a place.

    Args:
        objects: the query's regions, each ``{"box": [x0, y0, x1, y1], "score": s, "class": c}``; the last two may be
            missing.
        results: the query's results.

    Returns:
        The regions of the query to show, by number, and for each result its matches to show, best first.
    """
    # A match may name a box that ``objects`` lacks, for example one that the caller left out of a long list.
    boxes: list[Box] = [candidate["box"] for candidate in objects]
    candidates = [
        [(_find_or_append(match.query_box, boxes), match) for match in select_matches(result.matches)]
        for result in results
    ]
    leading = [matches[0] for matches in candidates if matches]
    following = [pair for matches in candidates for pair in matches[1:]]
    best: dict[int, float] = {}
    for pairs, limit in ((leading, len(boxes)), (following, REGIONS_SHOWN)):
        for index, match in sorted(pairs, key=lambda pair: -pair[1].score):
            if index in best or len(best) < limit:
                best[index] = max(match.score, best.get(index, match.score))
    order = sorted(best, key=lambda index: (-best[index], index))
    order += [index for index in range(len(boxes)) if index not in best][: max(0, REGIONS_SHOWN - len(order))]
    regions = {
        index: _make_region(number, boxes[index], objects[index] if index < len(objects) else {})
        for number, index in enumerate(order)
    }
    links = [
        [LinkedMatch(regions[i], match.database_box, match.score) for i, match in matches if i in best]
        for matches in candidates
    ]
    return list(regions.values()), links


def select_matches(matches: Sequence[RegionMatch], limit: int = MATCHES_SHOWN) -> list[RegionMatch]:
    """The best matches that are distinct: each joins another region of the query with another one of the result.

    Args:
        matches: of one result, in any order.
        limit: return at most this many.

    Returns:
        Best first; of equal scores the one that comes first in ``matches``. The best match is always among them.
    """
    chosen: list[RegionMatch] = []
    for match in sorted(matches, key=lambda match: -match.score):
        if len(chosen) == limit or (chosen and match.score < SCORE_SHARE * chosen[0].score):
            break
        distinct = all(
            compute_iou(match.query_box, other.query_box) <= SAME_REGION_IOU
            and compute_iou(match.database_box, other.database_box) <= SAME_REGION_IOU
            for other in chosen
        )
        if distinct:
            chosen.append(match)
    return chosen


def is_whole_photo(box: Box, width: int, height: int) -> bool:
    """Whether a box covers its photo of ``width`` x ``height`` pixels, up to a rest of 1 %."""
    covered_width = min(box[2], width) - max(box[0], 0)
    covered_height = min(box[3], height) - max(box[1], 0)
    return max(covered_width, 0) * max(covered_height, 0) >= WHOLE_PHOTO_SHARE * width * height


def compute_iou(a: Box, b: Box) -> float:
    """Intersection over union of two XYXY boxes, in [0, 1]; 1 for the same box, also if it has no area."""
    if tuple(a) == tuple(b):
        return 1.0
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(0.0, width) * max(0.0, height)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return intersection / union if union > 0 else 0.0


def _find_or_append(box: Box, boxes: list[Box]) -> int:
    """Index of the box that is the same as ``box`` up to rounding; without one, ``box`` is appended to ``boxes``."""
    differences = [max(abs(x - y) for x, y in zip(box, other, strict=True)) for other in boxes]
    nearest = min(range(len(boxes)), key=differences.__getitem__, default=None)
    if nearest is not None and differences[nearest] <= SAME_BOX_TOLERANCE:
        return nearest
    boxes.append(box)
    return len(boxes) - 1


def _make_region(index: int, box: Box, description: Mapping[str, Any]) -> LinkedRegion:
    category = description.get("class")
    if isinstance(category, numbers.Integral):
        # Without the class names only the number is known; negative is structures.NO_CLASS.
        category = f"class {category}" if int(category) >= 0 else None
    score = description.get("score")
    return LinkedRegion(index + 1, get_region_color(index), box, score, str(category) if category else "")
