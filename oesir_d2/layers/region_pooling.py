"""Regions of a feature map become vectors: RoIAlign samples each box to a small map, which a pooler pools.

Shape shorthand: N images, C channels, H x W cells of a feature map, R_i regions of image i.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from oesir_d2.layers.numerics import at_least_float32
from oesir_d2.layers.pooling import Pooler, count_valid_cells

MAX_SAMPLED_VALUES = 2**24
"""Regions are pooled in chunks of at most this many values, 64 MiB of float32."""

MIN_BOX_SIDE = 1.0
"""Boxes thinner than this, in pixels of the network's input, are widened to it; RoIAlign needs an area."""


class RegionPooler(nn.Module):
    """Pools the boxes of every image of a batch, each on its own, with the pooler that pools whole maps.

    Args:
        pooler: pools a sampled region's bins to a vector.
        resolution: bins along each side of a region, >= 1.
        sampling_ratio: RoIAlign's samples along each side of a bin; 0 adapts them to the bin's size.

    Raises:
        ValueError: if the resolution or the sampling ratio is out of its range.
    """

    def __init__(self, pooler: Pooler, resolution: int = 7, sampling_ratio: int = 2) -> None:
        super().__init__()
        if resolution < 1:
            raise ValueError(f"resolution of pooled regions is {resolution}, expected a whole number >= 1")
        if sampling_ratio < 0:
            raise ValueError(f"sampling ratio of pooled regions is {sampling_ratio}, expected a whole number >= 0")
        self.pooler = pooler
        self.resolution = resolution
        self.sampling_ratio = sampling_ratio

    def forward(
        self,
        feature_map: Tensor,
        boxes: Sequence[Tensor],
        spatial_scale: float,
        image_sizes: Sequence[tuple[float, float]] | None = None,
    ) -> Tensor:
        """Pool the boxes of every image.

        Args:
            feature_map: (N, C, H, W), any floating dtype; pooled in at least float32.
            boxes: N tensors (R_i, 4), XYXY in pixels of the network's input, pixel edges at whole numbers. They are
                clipped to the image. R_i may be 0.
            spatial_scale: cells a pixel of the network's input, 1 / stride; > 0.
            image_sizes: for each image its (height, width) in pixels of the network's input, without padding.
                ``None``: the images fill their maps. Padding has no part in a region's vector.

        Returns:
            (sum of R_i, C), float32 or float64, image by image in the order of the boxes, not normalised.

        Raises:
            ValueError: if the arguments do not belong together.
        """
        vectors = [at_least_float32(feature_map).new_zeros((0, feature_map.shape[1]))]
        for map_per_image, boxes_per_image in iterate_boxes(feature_map, boxes, spatial_scale, image_sizes):
            vectors.append(self._pool_boxes(map_per_image, boxes_per_image, spatial_scale))
        return torch.cat(vectors)

    def _pool_boxes(self, feature_map: Tensor, boxes: Tensor, spatial_scale: float) -> Tensor:
        """Pool boxes (R, 4) of one map (1, C, H, W) to (R, C), a chunk of regions at a time."""
        chunk = max(1, MAX_SAMPLED_VALUES // (feature_map.shape[1] * self.resolution**2))
        return torch.cat(
            [
                self.pooler(
                    roi_align(
                        feature_map,
                        [boxes_of_chunk],
                        output_size=self.resolution,
                        spatial_scale=spatial_scale,
                        sampling_ratio=self.sampling_ratio,
                        aligned=True,
                    )
                )
                for boxes_of_chunk in boxes.split(chunk)
            ]
        )

    def extra_repr(self) -> str:
        return f"resolution={self.resolution}, sampling_ratio={self.sampling_ratio}"


def iterate_boxes(
    feature_map: Tensor,
    boxes: Sequence[Tensor],
    spatial_scale: float,
    image_sizes: Sequence[tuple[float, float]] | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each image's map without padding, and its boxes clipped to the image; arguments as :meth:`RegionPooler.forward`.

    Yields:
        (1, C, rows, columns) of at least float32, and (R_i, 4) of the same dtype, XYXY, in pixels of the input.

    Raises:
        ValueError: if the arguments do not belong together.
    """
    grids = find_covered_cells(feature_map, boxes, spatial_scale, image_sizes)
    # Taken apart, not sliced: the gradient of a slice is as large as all the maps.
    maps = at_least_float32(feature_map).unbind()
    for map_per_image, boxes_per_image, (rows, columns, covered) in zip(maps, boxes, grids, strict=True):
        # Without its padded cells the map ends where the image does, and RoIAlign repeats its outermost cells.
        corner = map_per_image.new_tensor(covered)
        yield map_per_image[None, :, :rows, :columns], clip_boxes(boxes_per_image.to(map_per_image), corner)


def find_covered_cells(
    feature_map: Tensor,
    boxes: Sequence[Tensor],
    spatial_scale: float,
    image_sizes: Sequence[tuple[float, float]] | None,
) -> list[tuple[int, int, tuple[float, float]]]:
    """What of its map each image fills; arguments as :meth:`RegionPooler.forward`.

    Returns:
        For each image the rows and columns of cells that hold some of it, and the (width, height) in pixels of the
        network's input that they cover of it: a map may end before its image where a network drops the last pixels.

    Raises:
        ValueError: if the arguments do not belong together.
    """
    num_images, _, height, width = feature_map.shape
    if not spatial_scale > 0:
        raise ValueError(f"spatial scale is {spatial_scale}, expected a positive number, 1 / stride")
    if image_sizes is None:
        image_sizes = [(height / spatial_scale, width / spatial_scale)] * num_images
    if not len(boxes) == len(image_sizes) == num_images:
        raise ValueError(
            f"{len(boxes)} box lists and {len(image_sizes)} image sizes for {num_images} feature maps, "
            "expected one for each"
        )
    grids = []
    for index, (boxes_per_image, image_size) in enumerate(zip(boxes, image_sizes, strict=True)):
        if boxes_per_image.ndim != 2 or boxes_per_image.shape[1] != 4:
            raise ValueError(f"boxes of image {index} have shape {tuple(boxes_per_image.shape)}, expected (R, 4)")
        rows = count_valid_cells(image_size[0] * spatial_scale, height)
        columns = count_valid_cells(image_size[1] * spatial_scale, width)
        covered = (min(image_size[1], columns / spatial_scale), min(image_size[0], rows / spatial_scale))
        grids.append((rows, columns, covered))
    return grids


def clip_boxes(boxes: Tensor, corner: Tensor) -> Tensor:
    """Clip boxes (..., 4) to what lies before a corner (..., 2), x and y, and widen those without an area inside."""
    top_left = boxes[..., :2].clamp(min=0).minimum((corner - MIN_BOX_SIDE).clamp(min=0))
    bottom_right = boxes[..., 2:].minimum(corner).maximum(top_left + MIN_BOX_SIDE)
    return torch.cat([top_left, bottom_right], dim=-1)
