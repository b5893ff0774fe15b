"""The R-MAC grid: overlapping squares of several sizes that cover an image or a feature map.

Source: Tolias, Sicre, Jégou: Particular object retrieval with integral max-pooling of CNN activations, ICLR 2016,
section 3.2. One function serves R-MAC pooling, where the unit is a cell, and the grid of region proposals, where it is
a pixel.

The paper finds m, the number of squares along the longer side at level 1, such that neighbours overlap by as close to
40 % as possible, and lays l x (l + m - 1) squares at every level l. On long images that leaves gaps between the
squares of the finer levels. Here the paper's number is therefore only the least one: a level takes more squares along
the longer side where its own overlap would otherwise fall short. Up to an aspect ratio of 3:2 and for the usual three
levels, the grid is the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_BOXES_ALONG_LONGER_SIDE = 8
"""Most boxes along the longer side at one level; levels over 4 may have twice their number instead.

It bounds the grid of a 30000 x 2 strip. The three usual levels together never give more than 48 boxes.
"""

MIN_SIDE = 1.0
"""A square is never smaller than one pixel, or cell, unless the whole map is."""


def rmac_grid(height: float, width: float, levels: Sequence[int] = (1, 2, 3), overlap: float = 0.4) -> Tensor:
    """Lay the R-MAC grid over an image or a feature map.

    Level l has l squares of side 2 * min(height, width) / (l + 1) along the shorter side, where neighbours overlap by
    half, and along the longer side as many as bring the overlap closest to the one asked for. Together the squares of a
    level cover everything. On a map so long that this takes more than ``MAX_BOXES_ALONG_LONGER_SIDE``, the squares
    become rectangles, lengthened along the longer side until they cover it with that overlap.

    Args:
        height: height of the map, in pixels or cells, > 0.
        width: width of the map, in the same unit, > 0.
        levels: the levels to lay, each >= 1; level 1 has the largest squares.
        overlap: the part of a square that its neighbour along the longer side shares, in [0, 1).

    Returns:
        (G, 4) float32, XYXY in the unit of ``height`` and ``width``, inside [0, width] x [0, height], without
        duplicates, in the order of the levels and row by row within a level.

    Raises:
        ValueError: if a size, a level or the overlap is out of its range.

    >>> rmac_grid(2, 3, levels=[1])
    tensor([[0., 0., 2., 2.],
            [1., 0., 3., 2.]])
    >>> [len(rmac_grid(*size)) for size in [(600, 600), (768, 1024), (1024, 768), (2, 30000), (1, 1)]]
    [14, 20, 20, 48, 1]
    """
    _check_arguments(height, width, levels, overlap)
    shorter, longer = min(height, width), max(height, width)
    count_at_level_1 = _count_for_overlap(longer, shorter, overlap)

    boxes: dict[tuple[float, float, float, float], None] = {}  # keeps the order and drops duplicates
    for level in levels:
        side = min(shorter, max(MIN_SIDE, 2 * shorter / (level + 1)))
        count = max(level + count_at_level_1 - 1, _count_for_overlap(longer, side, overlap))
        length, most = side, max(MAX_BOXES_ALONG_LONGER_SIDE, 2 * level)
        if count > most:
            count = most
            length = max(side, longer / (1 + (count - 1) * (1 - overlap)))
        along, across = _intervals(longer, length, count), _intervals(shorter, side, level)
        columns, rows = (along, across) if width >= height else (across, along)
        boxes.update(((x0, y0, x1, y1), None) for y0, y1 in rows for x0, x1 in columns)
    return torch.tensor(list(boxes), dtype=torch.float32)


def _count_for_overlap(length: float, side: float, overlap: float) -> int:
    """Number of intervals of ``side`` that cover ``length``, their overlap as near to ``overlap`` as can be."""
    rest = length - side
    if rest <= 0:
        return 1
    fewest = max(1, math.floor(rest / (side * (1 - overlap))))
    overlaps = {steps: 1 - rest / (steps * side) for steps in (fewest, fewest + 1)}
    # Too few steps leave gaps, which is a negative overlap; the tolerance is for squares that just touch.
    covering = [steps for steps, reached in overlaps.items() if reached > -1e-9]
    return 1 + min(covering, key=lambda steps: abs(overlaps[steps] - overlap))


def _intervals(length: float, side: float, count: int) -> list[tuple[float, float]]:
    """``count`` intervals of ``side``, the first at 0, the last ending at ``length``, evenly spaced."""
    starts = [(length - side) * index / (count - 1) for index in range(count)] if count > 1 else [0.0]
    return [(start, min(start + side, float(length))) for start in starts]


def _check_arguments(height: float, width: float, levels: Sequence[int], overlap: float) -> None:
    # The comparison is written so that NaN fails it too.
    if not (0 < height < math.inf and 0 < width < math.inf):
        raise ValueError(f"cannot lay a grid over height {height} and width {width}: both must be positive and finite")
    if len(levels) == 0 or any(not isinstance(level, int) or level < 1 for level in levels):
        raise ValueError(f"grid levels are {list(levels)}, expected at least one and each a whole number >= 1")
    if not 0 <= overlap < 1:
        raise ValueError(f"grid overlap is {overlap}, expected a number in [0, 1)")
