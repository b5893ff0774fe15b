"""Coverage of objects by regions, against areas that are counted pixel by pixel."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest

from oesir_d2.evaluation import compute_iou, measure_region_coverage, region_coverage


def count_iou(a: np.ndarray, b: np.ndarray, size: int = 60) -> float:
    """IoU of two boxes with whole-numbered sides, by painting them."""
    painted = np.zeros((2, size, size), dtype=bool)
    for canvas, (x0, y0, x1, y1) in zip(painted, (a, b), strict=True):
        canvas[y0:y1, x0:x1] = True
    return (painted[0] & painted[1]).sum() / (painted[0] | painted[1]).sum()


def draw_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corner, side = rng.integers(0, 30, size=(count, 2)), rng.integers(1, 30, size=(count, 2))
    return np.concatenate([corner, corner + side], axis=1)


def test_examples() -> None:
    assert doctest.testmod(region_coverage).failed == 0
    assert doctest.testmod(region_coverage).attempted > 0


def test_iou_is_that_of_the_pixels(rng: np.random.Generator) -> None:
    boxes, others = draw_boxes(rng, 12), draw_boxes(rng, 9)
    expected = [[count_iou(a, b) for b in others] for a in boxes]
    np.testing.assert_allclose(compute_iou(boxes, others), expected, atol=1e-12)


def test_boxes_without_an_area_share_nothing() -> None:
    line = np.array([[3.0, 3.0, 3.0, 9.0]])
    assert compute_iou(line, line).tolist() == [[0.0]]
    assert compute_iou(line, np.zeros((0, 4))).shape == (1, 0)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 1.0])
def test_objects_are_covered_by_their_best_region(rng: np.random.Generator, threshold: float) -> None:
    objects = [draw_boxes(rng, count) for count in (1, 0, 3, 2)]
    regions = [draw_boxes(rng, count) for count in (20, 5, 40, 0)]
    regions[2][7] = objects[2][1]
    covered = sum(
        max((count_iou(thing, region) for region in found), default=0) >= threshold
        for found, things in zip(regions, objects, strict=True)
        for thing in things
    )
    coverage = measure_region_coverage(regions, objects, threshold)

    assert covered >= 1
    assert (coverage.objects, coverage.covered) == (6, covered)
    assert coverage.percent == pytest.approx(100 * covered / 6)
    assert coverage.mean_regions == (20 + 5 + 40 + 0) / 4


def test_half_an_overlap_covers() -> None:
    half, less = np.array([[0.0, 0, 10, 5]]), np.array([[0.0, 0, 10, 4.99]])
    whole = np.array([[0.0, 0, 10, 10]])
    assert measure_region_coverage([half, less], [whole, whole]).covered == 1


def test_queries_that_could_not_be_read_count_against_the_coverage() -> None:
    box = np.array([[0.0, 0, 10, 10]])
    coverage = measure_region_coverage([None, box], [box, box])
    assert (coverage.percent, coverage.mean_regions) == (50, 1)
    nothing = measure_region_coverage([None], [np.zeros((0, 4))])
    assert math.isnan(nothing.percent) and math.isnan(nothing.mean_regions)


def test_mistakes_are_refused() -> None:
    with pytest.raises(ValueError, match="regions of 1 queries but objects of 2"):
        measure_region_coverage([None], [np.zeros((0, 4))] * 2)
    for threshold in (0, 1.5):
        with pytest.raises(ValueError, match=f"the IoU that covers is {threshold}"):
            measure_region_coverage([], [], threshold)
