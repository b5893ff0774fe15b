"""Regions of a feature map become vectors without sampling: the power mean over exactly the area of each box.

Shape shorthand: N images, C channels, H x W cells of a feature map, R_i regions of image i.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from oesir_d2.layers.numerics import at_least_float32
from oesir_d2.layers.pooling import GeMPooler, Pooler, SPoCPooler
from oesir_d2.layers.region_pooling import MAX_SAMPLED_VALUES, clip_boxes, find_covered_cells

CACHED_VALUES = 2**20
"""Images are pooled in chunks of at most this many values of their maps on a CPU, whose caches hold that many."""


class AreaRegionPooler(nn.Module):
    """Pools boxes with GeM or SPoC, each cell weighted by the share of it that lies in the box.

    Padding has no share in any box, since boxes are clipped to their images.

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
        maps = at_least_float32(feature_map)
        grids = find_covered_cells(feature_map, boxes, spatial_scale, image_sizes)
        if not grids:
            return maps.new_zeros((0, maps.shape[1]))
        # All images at once: on a GPU as many small products as images take many times as long.
        corners = maps.new_tensor([covered for _, _, covered in grids])[:, None]
        cells = clip_boxes(pad_sequence(list(boxes), batch_first=True).to(maps), corners) * spatial_scale
        most = CACHED_VALUES if maps.device.type == "cpu" else MAX_SAMPLED_VALUES
        images_per_chunk = max(1, most // max(1, maps[0].numel()))
        chunks = zip(maps.split(images_per_chunk), cells.split(images_per_chunk), strict=True)
        vectors = torch.cat([self._pool_boxes(*chunk) for chunk in chunks])
        return torch.cat([item[: len(own)] for item, own in zip(vectors.unbind(), boxes, strict=True)])

    def _pool_boxes(self, feature_map: Tensor, boxes: Tensor) -> Tensor:
        """Pool boxes (N, R, 4), in cells, of maps (N, C, H, W) to (N, R, C)."""
        height, width = feature_map.shape[2:]
        rows = _cover(boxes[..., 1], boxes[..., 3], height)
        columns = _cover(boxes[..., 0], boxes[..., 2], width)
        weights = (rows[..., :, None] * columns[..., None, :]).flatten(2)
        weights = weights / weights.sum(dim=2, keepdim=True)
        cells = feature_map.flatten(2)
        if isinstance(self.pooler, SPoCPooler):
            return weights @ cells.mT
        cells = cells.clamp(min=self.pooler.eps)
        # As in GeMPooler: relative to the largest cell no power overflows.
        peak = cells.detach().amax(dim=2, keepdim=True)
        mean = weights @ (cells / peak).pow(self.pooler.p).mT
        return mean.clamp(min=torch.finfo(mean.dtype).tiny).pow(1 / self.pooler.p) * peak.mT


def _cover(start: Tensor, end: Tensor, count: int) -> Tensor:
    """How much of each of ``count`` cells of a line lies between start and end, (N, R) each in cells: (N, R, count)."""
    cells = torch.arange(count, device=start.device, dtype=start.dtype)
    return (end[..., None].minimum(cells + 1) - start[..., None].maximum(cells)).clamp(min=0)
