"""Building blocks: the R-MAC grid, poolers, region pooling, PCA whitening, margin softmax. Torch only."""

from oesir_d2.layers.area_pooling import AreaRegionPooler
from oesir_d2.layers.covariance import CovarianceAccumulator
from oesir_d2.layers.grid import rmac_grid
from oesir_d2.layers.margin_softmax import ArcFace, CosFace, MarginSoftmax
from oesir_d2.layers.numerics import at_least_float32, l2_normalize
from oesir_d2.layers.pooling import GeMPooler, MACPooler, Pooler, RMACPooler, SPoCPooler, count_valid_cells
from oesir_d2.layers.region_pooling import RegionPooler
from oesir_d2.layers.whitening import PCAWhitening, load_whitening, save_whitening

__all__ = [
    "ArcFace",
    "AreaRegionPooler",
    "CosFace",
    "CovarianceAccumulator",
    "GeMPooler",
    "MACPooler",
    "MarginSoftmax",
    "PCAWhitening",
    "Pooler",
    "RMACPooler",
    "RegionPooler",
    "SPoCPooler",
    "at_least_float32",
    "count_valid_cells",
    "l2_normalize",
    "load_whitening",
    "rmac_grid",
    "save_whitening",
]
