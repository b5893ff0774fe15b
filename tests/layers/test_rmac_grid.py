"""The R-MAC grid: the paper's counts, coverage, overlap, and shapes that no camera takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from oesir_d2.layers import rmac_grid

SIZES = [
    (7, 7),
    (600, 600),
    (600, 601),
    (768, 1024),
    (1024, 683),
    (1080, 1920),
    (300, 1024),
    (1, 9),
    (2, 30000),
    (3, 1),
]


def paper_counts(height: int, width: int, levels: range) -> list[int]:
    """l x (l + m - 1) of Tolias et al., with m found by trying: the number whose overlap is nearest to 40 %."""
    short, long = sorted((height, width))
    overlaps = {m: 1 - (long - short) / ((m - 1) * short) for m in range(2, 50)}
    m = 1 if short == long else min(overlaps, key=lambda number: abs(overlaps[number] - 0.4))
    return [level * (level + m - 1) for level in levels]


@pytest.mark.parametrize("size", [(600, 600), (600, 640), (640, 600), (768, 1024), (1024, 683)])
def test_counts_are_the_papers_up_to_an_aspect_ratio_of_3_to_2(size: tuple[int, int]) -> None:
    counts = [len(rmac_grid(*size, levels=[level])) for level in (1, 2, 3)]
    assert counts == paper_counts(*size, range(1, 4))
    assert len(rmac_grid(*size)) == sum(counts)


def test_no_level_has_fewer_squares_than_the_paper_on_longer_images() -> None:
    for width in range(600, 1500, 60):
        counts = [len(rmac_grid(600, width, levels=[level])) for level in (1, 2, 3)]
        assert all(ours >= theirs for ours, theirs in zip(counts, paper_counts(600, width, range(1, 4)), strict=True))


def test_coordinates_of_a_small_landscape_grid() -> None:
    # Level 2 of 6 x 9 cells: side 4; two squares down; from 0 to 5 across, in steps of 5 / 2.
    boxes = rmac_grid(height=6, width=9, levels=[2])
    expected = [[x, y, x + 4, y + 4] for y in (0, 2) for x in (0, 2.5, 5)]
    assert boxes.dtype == torch.float32
    assert boxes.tolist() == expected


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("level", [1, 2, 3, 5])
def test_every_level_covers_every_pixel(size: tuple[int, int], level: int) -> None:
    height, width = size
    boxes = rmac_grid(height, width, levels=[level]).numpy()
    covered = np.zeros((height, width), dtype=bool)
    centers_y, centers_x = np.arange(height) + 0.5, np.arange(width) + 0.5
    for x0, y0, x1, y1 in boxes:
        rows, columns = (y0 <= centers_y) & (centers_y <= y1), (x0 <= centers_x) & (centers_x <= x1)
        covered |= rows[:, None] & columns[None, :]
    assert covered.all()


@pytest.mark.parametrize("size", SIZES)
def test_boxes_lie_inside_have_an_area_and_are_distinct(size: tuple[int, int]) -> None:
    height, width = size
    boxes = rmac_grid(height, width).numpy()
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
    assert (boxes[:, 2:] - boxes[:, :2] > 0.999).all()
    assert len(np.unique(boxes, axis=0)) == len(boxes)
    # Both edges are reached exactly, not up to rounding.
    assert boxes[:, 2].max() == width and boxes[:, 3].max() == height


@pytest.mark.parametrize("width", [1500, 2000, 2200, 2750])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.4, 0.6])
def test_overlap_along_the_longer_side_is_near_the_one_asked_for(width: int, overlap: float) -> None:
    boxes = rmac_grid(1000, width, levels=[1], overlap=overlap)
    starts = boxes[:, 0].double()
    reached = 1 - (starts[1:] - starts[:-1]) / 1000
    assert torch.allclose(reached, reached[:1].expand_as(reached), atol=1e-6)
    # No other number of squares that leaves no gap comes nearer, unless it is over the bound of 8.
    others = [1 - (width - 1000) / (steps * 1000) for steps in range(1, 8)]
    nearest = min(abs(other - overlap) for other in others if other >= 0)
    assert abs(float(reached[0]) - overlap) == pytest.approx(nearest, abs=1e-6)


def test_an_extreme_strip_has_a_bounded_number_of_overlapping_boxes() -> None:
    for size in [(2, 30000), (30000, 2)]:
        assert len(rmac_grid(*size)) == 48
    boxes = rmac_grid(2, 30000, levels=[1])
    assert len(boxes) == 8
    lengths = boxes[:, 2] - boxes[:, 0]
    shared = boxes[:-1, 2] - boxes[1:, 0]
    assert torch.allclose(shared / lengths[0], torch.full((7,), 0.4), atol=1e-4)


def test_one_pixel_is_one_box() -> None:
    assert rmac_grid(1, 1, levels=[1, 2, 3]).tolist() == [[0, 0, 1, 1]]


def test_portrait_is_the_transposed_landscape() -> None:
    landscape = {tuple(box) for box in rmac_grid(480, 900).tolist()}
    portrait = {(y0, x0, y1, x1) for x0, y0, x1, y1 in rmac_grid(900, 480).tolist()}
    assert landscape == portrait


def test_a_repeated_level_adds_nothing_and_levels_keep_their_order() -> None:
    assert torch.equal(rmac_grid(60, 80, levels=[2, 2]), rmac_grid(60, 80, levels=[2]))
    both = rmac_grid(60, 80, levels=[3, 1])
    assert torch.equal(both, torch.cat([rmac_grid(60, 80, levels=[3]), rmac_grid(60, 80, levels=[1])]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 0, "width": 5}, "height 0"),
        ({"height": 5, "width": float("nan")}, "width nan"),
        ({"height": 5, "width": 5, "levels": []}, r"levels are \[\]"),
        ({"height": 5, "width": 5, "levels": [1, 0]}, r"levels are \[1, 0\]"),
        ({"height": 5, "width": 5, "levels": [1.5]}, r"levels are \[1.5\]"),
        ({"height": 5, "width": 5, "levels": [2.0]}, r"levels are \[2.0\]"),
        ({"height": 5, "width": 5, "overlap": 1.0}, "overlap is 1.0"),
        ({"height": 5, "width": 5, "overlap": -0.1}, "overlap is -0.1"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rmac_grid(**arguments)
