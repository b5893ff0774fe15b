"""The four poolers of the supplement: a feature map becomes one vector.

Shape shorthand: N images, C channels, H x W cells of a feature map.

All poolers return vectors that are not L2-normalised, in float32 (float64 for a float64 map).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from oesir_d2.layers.grid import rmac_grid
from oesir_d2.layers.numerics import at_least_float32, l2_normalize

CELL_TOLERANCE = 1e-4
"""A size in cells that exceeds a whole number by less than this is a whole number with rounding noise."""


def count_valid_cells(valid: float, available: int) -> int:
    """Number of cells along one side of a map that hold some of the image, the rest being padding.

    Args:
        valid: the image's size along that side, in cells; a fraction when the stride does not divide the image.
        available: the map's size along that side, in cells.

    Returns:
        ``valid`` rounded up, for a cell that is partly image still describes it, and at most ``available``.

    Raises:
        ValueError: if ``valid`` is not positive.

    >>> count_valid_cells(6.25, 8), count_valid_cells(6.00001, 8), count_valid_cells(8.5, 8)
    (7, 6, 8)
    """
    if not valid > 0:
        raise ValueError(f"an image covers {valid} cells of its feature map's side, expected a positive number")
    return min(max(1, math.ceil(valid - CELL_TOLERANCE)), available)


class Pooler(nn.Module, ABC):
    """Pools every image of a batch over those cells of its feature map that are not padding."""

    def forward(self, feature_map: Tensor, valid_sizes: Sequence[tuple[float, float]] | None = None) -> Tensor:
        """Pool whole feature maps.

        Args:
            feature_map: (N, C, H, W), any floating dtype.
            valid_sizes: for each image the (height, width) of the map that is not padding, in cells from the top left;
                see ``count_valid_cells`` for fractions. ``None``: no map is padded.

        Returns:
            (N, C), float32 or float64, not normalised.

        Raises:
            ValueError: if the map has no cells, or ``valid_sizes`` does not fit it.
        """
        if feature_map.ndim != 4 or 0 in feature_map.shape[1:]:
            raise ValueError(f"feature map has shape {tuple(feature_map.shape)}, expected (N, C, H, W) with cells")
        num_images, _, height, width = feature_map.shape
        if valid_sizes is not None and len(valid_sizes) != num_images:
            raise ValueError(f"{len(valid_sizes)} valid sizes for {num_images} feature maps, expected one for each")
        feature_map = at_least_float32(feature_map)
        if valid_sizes is None or num_images == 0:
            return self.pool(feature_map)
        vectors = []
        for index, (valid_height, valid_width) in enumerate(valid_sizes):
            rows, columns = count_valid_cells(valid_height, height), count_valid_cells(valid_width, width)
            vectors.append(self.pool(feature_map[index : index + 1, :, :rows, :columns]))
        return torch.cat(vectors)

    @abstractmethod
    def pool(self, cells: Tensor) -> Tensor:
        """Pool maps without padding: (N, C, H, W) of at least float32 to (N, C)."""


class SPoCPooler(Pooler):
    """The mean of the cells.

    The supplement, and Babenko and Lempitsky (ICCV 2015), sum the cells. The mean is the same vector after
    L2-normalisation, and does not grow with the image. Their centre prior is left out, as in the supplement.

    >>> SPoCPooler()(torch.tensor([[[[1.0, 2.0, 6.0]]]]))
    tensor([[3.]])
    """

    def pool(self, cells: Tensor) -> Tensor:
        return cells.mean(dim=(2, 3))


class MACPooler(Pooler):
    """The maximum of the cells, channel by channel (Razavian et al., 2014; Tolias et al., ICLR 2016).

    >>> MACPooler()(torch.tensor([[[[1.0, 2.0, 6.0]]]]))
    tensor([[6.]])
    """

    def pool(self, cells: Tensor) -> Tensor:
        return cells.amax(dim=(2, 3))


class RMACPooler(Pooler):
    """The sum of the L2-normalised maxima of the regions of the R-MAC grid (Tolias et al., ICLR 2016, section 3.2).

    The paper whitens the regions' vectors before it sums them; here whitening comes once, after pooling. The grid is
    ``rmac_grid`` over the map's cells, its sides rounded to whole cells and halves outwards, so that no cell is missed;
    the authors' program rounds down. Regions that become the same cells count once.

    Args:
        levels: levels of the grid, each >= 1.
        overlap: overlap of neighbouring regions along the longer side, in [0, 1).

    >>> RMACPooler(levels=[1])(torch.tensor([[[[3.0, 0.0, 6.0]], [[4.0, 2.0, 8.0]]]]))  # each cell is a region
    tensor([[1.2000, 2.6000]])
    """

    def __init__(self, levels: Sequence[int] = (1, 2, 3), overlap: float = 0.4) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.overlap = overlap
        rmac_grid(1, 1, self.levels, self.overlap)  # refuses wrong levels now, not at the first image

    def pool(self, cells: Tensor) -> Tensor:
        # Squares of one row of the grid share their rows of cells: a maximum over these comes first, and only once.
        over_rows: dict[tuple[int, int], Tensor] = {}
        maxima = []
        for top, left, bottom, right in _regions_in_cells(*cells.shape[2:], self.levels, self.overlap):
            if (top, bottom) not in over_rows:
                over_rows[top, bottom] = cells[:, :, top:bottom].amax(dim=2)
            maxima.append(over_rows[top, bottom][:, :, left:right].amax(dim=2))
        return l2_normalize(torch.stack(maxima)).sum(dim=0)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, overlap={self.overlap}"


@lru_cache(maxsize=1024)
def _regions_in_cells(
    height: int, width: int, levels: tuple[int, ...], overlap: float
) -> tuple[tuple[int, int, int, int], ...]:
    """The R-MAC grid of a map as distinct (top, left, bottom, right) slices, the ends exclusive."""
    regions: dict[tuple[int, int, int, int], None] = {}
    for x0, y0, x1, y1 in rmac_grid(height, width, levels, overlap).tolist():
        top, left = (math.ceil(start - 0.5) for start in (y0, x0))
        bottom, right = (math.floor(end + 0.5) for end in (y1, x1))
        regions[(top, left, bottom, right)] = None
    return tuple(regions)


class GeMPooler(Pooler):
    """The generalised mean (mean of x^p)^(1/p) of the cells (Radenović et al., TPAMI 2019, equation 3).

    p = 1 is SPoC of the clamped map, and a large p approaches MAC.

    Args:
        p: the exponent, >= 1.
        eps: cells under this value, negative ones too, count as this value; > 0. The power needs it, and it keeps
            gradients finite at a map of zeros.
        learnable: make p a parameter, which training changes and a checkpoint holds. Otherwise p is a constant that
            belongs to the config.

    Raises:
        ValueError: if p or eps is out of its range.

    >>> GeMPooler(p=2.0)(torch.tensor([[[[1.0, 7.0]]]]))
    tensor([[5.]])
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6, learnable: bool = False) -> None:
        super().__init__()
        if not 1 <= p < math.inf:
            raise ValueError(f"GeM's exponent p is {p}, expected a finite number >= 1")
        if not 0 < eps < math.inf:
            raise ValueError(f"GeM's eps is {eps}, expected a finite number > 0")
        self.p: float | nn.Parameter = nn.Parameter(torch.tensor(float(p))) if learnable else float(p)
        self.eps = eps

    def pool(self, cells: Tensor) -> Tensor:
        cells = cells.clamp(min=self.eps)
        # Relative to the largest cell no power overflows. The factor cancels out of the formula, so that it may be
        # taken out of the gradient too.
        peak = cells.detach().amax(dim=(2, 3), keepdim=True)
        mean = (cells / peak).pow(self.p).mean(dim=(2, 3))
        return mean.pow(1 / self.p) * peak[:, :, 0, 0]

    def extra_repr(self) -> str:
        return f"p={float(self.p):g}, eps={self.eps:g}, learnable={isinstance(self.p, nn.Parameter)}"
