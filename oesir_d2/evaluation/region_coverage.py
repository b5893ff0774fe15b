"""How many of the pasted objects a model's regions cover at all: what no embedding can make up for.

Shape shorthand: Q queries, R_q regions and O_q objects of query q. Boxes are XYXY in pixels of the query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class RegionCoverage:
    """The outcome.

    Attributes:
        objects: objects of all queries.
        covered: those of them that at least one region of their query covers.
        percent: their share; NaN without objects.
        mean_regions: regions a query, over the queries whose regions are known; NaN if none is.
    """

    objects: int
    covered: int
    percent: float
    mean_regions: float


def measure_region_coverage(
    regions: Sequence[npt.NDArray[np.floating] | None],
    objects: Sequence[npt.NDArray[np.floating]],
    threshold: float = 0.5,
) -> RegionCoverage:
    """Count the objects that regions cover: those with an IoU of at least ``threshold`` with one region or more.

    One region may cover several objects.

    Args:
        regions: Q arrays (R_q, 4), R_q may be 0; None for a query that could not be read, whose objects count as not
            covered.
        objects: Q arrays (O_q, 4).
        threshold: in (0, 1].

    Raises:
        ValueError: if the two sequences differ in length, or the threshold is out of range.

    >>> found, there = np.array([[0.0, 0, 10, 10], [0, 0, 90, 90]]), np.array([[0.0, 0, 10, 20], [50, 50, 60, 60]])
    >>> measure_region_coverage([found], [there])
    RegionCoverage(objects=2, covered=1, percent=50.0, mean_regions=2.0)
    """
    if len(regions) != len(objects):
        raise ValueError(f"regions of {len(regions)} queries but objects of {len(objects)}, expected one each")
    if not 0 < threshold <= 1:
        raise ValueError(f"the IoU that covers is {threshold}, expected more than 0 and at most 1")
    known = [regions_per_query for regions_per_query in regions if regions_per_query is not None]
    covered = sum(
        int(np.count_nonzero((compute_iou(objects_per_query, regions_per_query) >= threshold).any(axis=1)))
        for regions_per_query, objects_per_query in zip(regions, objects, strict=True)
        if regions_per_query is not None
    )
    count = sum(map(len, objects))
    return RegionCoverage(
        objects=count,
        covered=covered,
        percent=100 * covered / count if count else float("nan"),
        mean_regions=float(np.mean([len(found) for found in known])) if known else float("nan"),
    )


def compute_iou(boxes: npt.NDArray[np.floating], others: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Intersection over union of every pair of boxes.

    Args:
        boxes: (A, 4) XYXY.
        others: (B, 4) XYXY.

    Returns:
        (A, B) in [0, 1]; 0 for two boxes without an area.

    >>> compute_iou(np.array([[0.0, 0, 2, 2]]), np.array([[1.0, 0, 3, 2], [2, 0, 4, 2]]))
    array([[0.33333333, 0.        ]])
    """
    a, b = (np.asarray(array, dtype=np.float64).reshape(-1, 4) for array in (boxes, others))
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    intersection = np.clip(bottom_right - top_left, 0, None).prod(axis=2)
    areas_a, areas_b = ((array[:, 2:] - array[:, :2]).prod(axis=1) for array in (a, b))
    union = areas_a[:, None] + areas_b[None, :] - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
