"""Regions of a feature map become vectors without sampling: the power mean over exactly the area of each box.

Shape shorthand: N images, C channels, H x W cells of a feature map, R_i regions of image i.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from oesir_d2.layers.numerics import at_least_float32
from oesir_d2.layers.pooling import GeMPooler, Pooler, SPoCPooler
from oesir_d2.layers.region_pooling import iterate_boxes


class AreaRegionPooler(nn.Module):
    """Pools boxes with GeM or SPoC, each cell weighted by the share of it that lies in the box.

    Every cell under a box counts, where RoIAlign samples a few points of a large box and interpolates between cells
    for a small one. The pooling of all boxes of an image is one matrix product of the boxes' weights and the cells.

    Args:
        pooler: a :class:`GeMPooler` or a :class:`SPoCPooler`, whose mean is over cells and can be weighted.

    Raises:
        ValueError: another pooler.
    """

    def __init__(self, pooler: Pooler) -> None:
        super().__init__()
        if not isinstance(pooler, (GeMPooler, SPoCPooler)):
            raise ValueError(
                f"MODEL.OESIR.EMBEDDING.REGION_POOLING 'area' cannot weight the cells of a {type(pooler).__name__}; "
                "allowed: 'GeMPooler' and 'SPoCPooler', or 'roi_align'"
            )
        self.pooler = pooler

    def forward(
        self,
        feature_map: Tensor,
        boxes: Sequence[Tensor],
        spatial_scale: float,
        image_sizes: Sequence[tuple[float, float]] | None = None,
    ) -> Tensor:
        """Pool the boxes of every image; arguments, result and errors as :meth:`RegionPooler.forward`."""
        vectors = [at_least_float32(feature_map).new_zeros((0, feature_map.shape[1]))]
        for map_per_image, boxes_per_image in iterate_boxes(feature_map, boxes, spatial_scale, image_sizes):
            vectors.append(self._pool_boxes(map_per_image[0], boxes_per_image * spatial_scale))
        return torch.cat(vectors)

    def _pool_boxes(self, feature_map: Tensor, boxes: Tensor) -> Tensor:
        """Pool boxes (R, 4), in cells, of one map (C, H, W) to (R, C)."""
        channels, height, width = feature_map.shape
        rows = _cover(boxes[:, 1], boxes[:, 3], height)
        columns = _cover(boxes[:, 0], boxes[:, 2], width)
        weights = (rows[:, :, None] * columns[:, None, :]).flatten(1)
        weights = weights / weights.sum(dim=1, keepdim=True)
        cells = feature_map.reshape(channels, height * width)
        if isinstance(self.pooler, SPoCPooler):
            return weights @ cells.T
        cells = cells.clamp(min=self.pooler.eps)
        # As in GeMPooler: relative to the largest cell no power overflows.
        peak = cells.detach().amax(dim=1, keepdim=True)
        mean = weights @ (cells / peak).pow(self.pooler.p).T
        return mean.clamp(min=torch.finfo(mean.dtype).tiny).pow(1 / self.pooler.p) * peak.T


def _cover(start: Tensor, end: Tensor, count: int) -> Tensor:
    """How much of each of ``count`` cells of a line lies between start and end, (R,) each in cells: (R, count)."""
    cells = torch.arange(count, device=start.device, dtype=start.dtype)
    return (end[:, None].minimum(cells + 1) - start[:, None].maximum(cells)).clamp(min=0)
