"""Pooling over exactly the area of a box."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from oesir_d2.layers import AreaRegionPooler, GeMPooler, Pooler, SPoCPooler

STRIDE = 8
FINE = 16
"""Samples a cell and side by which the test integrates over a box; the boxes below start and end on them."""


def integrate(feature_map: np.ndarray, box: list[float], p: float) -> np.ndarray:
    """The power mean of a map (C, H, W) over a box in cells, by sampling every cell finely."""
    fine = feature_map.repeat(FINE, axis=1).repeat(FINE, axis=2)
    x0, y0, x1, y1 = (round(v * FINE) for v in box)
    return (fine[:, y0:y1, x0:x1] ** p).mean(axis=(1, 2)) ** (1 / p)


@pytest.mark.parametrize(("pooler", "p"), [(SPoCPooler(), 1.0), (GeMPooler(p=3.0), 3.0), (GeMPooler(p=1.5), 1.5)])
def test_each_cell_counts_by_its_share_in_the_box(pooler: Pooler, p: float) -> None:
    feature_map = torch.rand(1, 5, 6, 7) + 0.1
    cells = [[0, 0, 7, 6], [1.25, 2.5, 4.75, 3], [2.125, 1.0625, 2.5, 1.5], [0.5, 5.5, 7, 6]]
    pooled = AreaRegionPooler(pooler)(feature_map, [torch.tensor(cells) * STRIDE], 1 / STRIDE)
    expected = [integrate(feature_map[0].double().numpy(), box, p) for box in cells]
    np.testing.assert_allclose(pooled.numpy(), expected, rtol=1e-5)


def test_images_are_pooled_apart_clipped_and_without_their_padding() -> None:
    feature_map = torch.rand(2, 3, 4, 6)
    feature_map[1, :, 2:] = 1000
    feature_map[1, :, :, 4:] = 1000
    boxes = [torch.zeros(0, 4), torch.tensor([[-50.0, -50.0, 500.0, 500.0], [8.0, 0.0, 24.0, 16.0]])]
    pooled = AreaRegionPooler(SPoCPooler())(feature_map, boxes, 1 / STRIDE, [(32, 48), (16, 32)])
    expected = torch.stack([feature_map[1, :, :2, :4].mean(dim=(1, 2)), feature_map[1, :, :2, 1:3].mean(dim=(1, 2))])
    torch.testing.assert_close(pooled, expected)


def test_tiny_boxes_and_extreme_values_stay_finite() -> None:
    feature_map = torch.zeros(1, 2, 4, 4)
    feature_map[0, 1] = 1e15
    boxes = [torch.tensor([[5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 32.0, 32.0], [31.9, 31.9, 32.0, 32.0]])]
    pooled = AreaRegionPooler(GeMPooler(p=3.0))(feature_map, boxes, 1 / STRIDE)
    assert torch.isfinite(pooled).all()
    torch.testing.assert_close(pooled[:, 1], torch.full((3,), 1e15))
    assert (pooled[:, 0] <= 1e-5).all()


def test_gradients_reach_the_map_and_are_finite() -> None:
    feature_map = torch.zeros(1, 2, 4, 4)
    feature_map[0, 0] = torch.rand(4, 4)
    feature_map.requires_grad_()
    boxes = [torch.tensor([[4.0, 4.0, 20.0, 28.0]])]
    AreaRegionPooler(GeMPooler(p=3.0))(feature_map, boxes, 1 / STRIDE).sum().backward()
    assert torch.isfinite(feature_map.grad).all()
    assert feature_map.grad[0, 0, 1, 1] > 0
    assert feature_map.grad[0, 0, 3, 3] == 0
