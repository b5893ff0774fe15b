"""The embedding head: regions of the embedding map, and the whole map, become L2-normalised vectors.

Shape shorthand: N images, C channels of the map, R_i regions of image i, D dimensions of an embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import nn

from oesir_d2 import layers
from oesir_d2.layers import AreaRegionPooler, PCAWhitening, Pooler, RegionPooler, l2_normalize, load_whitening
from oesir_d2.modeling.registry import get_registered
from oesir_d2.modeling.weights import resolve_weights

POOLER_REGISTRY = Registry("POOLER")
POOLER_REGISTRY.__doc__ = """
Poolers. The registered object is called with ``obj(cfg)`` and returns a :class:`oesir_d2.layers.Pooler`.
"""


@POOLER_REGISTRY.register()
def SPoCPooler(cfg: CfgNode) -> Pooler:
    return layers.SPoCPooler()


@POOLER_REGISTRY.register()
def MACPooler(cfg: CfgNode) -> Pooler:
    return layers.MACPooler()


@POOLER_REGISTRY.register()
def RMACPooler(cfg: CfgNode) -> Pooler:
    return layers.RMACPooler(levels=tuple(cfg.MODEL.OESIR.EMBEDDING.RMAC_LEVELS))


@POOLER_REGISTRY.register()
def GeMPooler(cfg: CfgNode) -> Pooler:
    return layers.GeMPooler(p=cfg.MODEL.OESIR.EMBEDDING.GEM_P)


class EmbeddingHead(nn.Module):
    """Pool, L2-normalise, whiten.

    Args:
        pooler: turns the cells of the whole map into a vector.
        region_pooler: turns regions of the map into vectors, a :class:`RegionPooler` or an :class:`AreaRegionPooler`.
        input_shape: channels and stride of the embedding map.
        whitening: applied to pooled vectors; ``None`` leaves them L2-normalised as they are.
    """

    @configurable
    def __init__(
        self,
        *,
        pooler: Pooler,
        region_pooler: RegionPooler | AreaRegionPooler,
        input_shape: ShapeSpec,
        whitening: PCAWhitening | None = None,
    ) -> None:
        super().__init__()
        assert input_shape.stride, "the embedding map's stride is needed to find its regions"
        self.pooler = pooler
        self.region_pooler = region_pooler
        self.whitening = whitening
        self.stride = input_shape.stride
        self.dimension = input_shape.channels if whitening is None else whitening.output_dim

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {
            "pooler": build_pooler(cfg),
            "region_pooler": build_region_pooler(cfg),
            "input_shape": input_shape,
            "whitening": build_whitening(cfg, input_shape.channels),
        }

    def pool_regions(
        self, embedding_map: torch.Tensor, boxes: list[torch.Tensor], image_sizes: list[tuple[int, int]]
    ) -> torch.Tensor:
        """Pool boxes, before whitening: what a whitening is fitted on.

        Args:
            embedding_map: (N, C, H, W).
            boxes: N tensors (R_i, 4), XYXY in pixels of the network's input.
            image_sizes: (height, width) of each image as the network sees it, without padding.

        Returns:
            (sum of R_i, C) float32, L2-normalised.
        """
        return l2_normalize(self.region_pooler(embedding_map, boxes, 1 / self.stride, image_sizes))

    def embed_regions(
        self, embedding_map: torch.Tensor, boxes: list[torch.Tensor], image_sizes: list[tuple[int, int]]
    ) -> torch.Tensor:
        """Embed boxes; arguments as for :meth:`pool_regions`. Returns (sum of R_i, D) float32, L2-normalised."""
        return self._whiten(self.pool_regions(embedding_map, boxes, image_sizes))

    def pool_images(self, embedding_map: torch.Tensor, image_sizes: list[tuple[int, int]]) -> torch.Tensor:
        """Pool whole maps, before whitening. Returns (N, C) float32, L2-normalised; padding has no part in it."""
        valid = [(height / self.stride, width / self.stride) for height, width in image_sizes]
        return l2_normalize(self.pooler(embedding_map, valid))

    def embed_images(self, embedding_map: torch.Tensor, image_sizes: list[tuple[int, int]]) -> torch.Tensor:
        """Embed whole images. Returns (N, D) float32, L2-normalised."""
        return self._whiten(self.pool_images(embedding_map, image_sizes))

    def _whiten(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors if self.whitening is None else self.whitening(vectors)


def build_pooler(cfg: CfgNode) -> Pooler:
    """Build the pooler that ``MODEL.OESIR.EMBEDDING.POOLER`` names."""
    return get_registered(POOLER_REGISTRY, cfg.MODEL.OESIR.EMBEDDING.POOLER, "MODEL.OESIR.EMBEDDING.POOLER")(cfg)


def build_region_pooler(cfg: CfgNode) -> RegionPooler | AreaRegionPooler:
    """Build the pooler of regions that ``MODEL.OESIR.EMBEDDING`` describes.

    Raises:
        ValueError: an unknown way to pool regions, or one that the pooler does not go with.
    """
    options = cfg.MODEL.OESIR.EMBEDDING
    if options.REGION_POOLING == "roi_align":
        return RegionPooler(build_pooler(cfg), options.ROI_RESOLUTION, options.ROI_SAMPLING_RATIO)
    if options.REGION_POOLING == "area":
        return AreaRegionPooler(build_pooler(cfg))
    raise ValueError(
        f"MODEL.OESIR.EMBEDDING.REGION_POOLING is {options.REGION_POOLING!r}; allowed: 'roi_align' and 'area'"
    )


def build_whitening(cfg: CfgNode, channels: int) -> PCAWhitening | None:
    """The whitening that ``MODEL.OESIR.EMBEDDING`` asks for, fitted if it names a file.

    Raises:
        ValueError: the file's dimensions are not those of the map or of WHITENING_DIM.
    """
    options = cfg.MODEL.OESIR.EMBEDDING
    if options.WHITENING_DIM == 0:
        return None
    if not 0 < options.WHITENING_DIM <= channels:
        raise ValueError(
            f"MODEL.OESIR.EMBEDDING.WHITENING_DIM is {options.WHITENING_DIM}; allowed: 0 (none) to {channels}, "
            "the channels of the embedding map"
        )
    if not options.WHITENING:
        return PCAWhitening(channels, options.WHITENING_DIM)
    whitening, _ = load_whitening(resolve_weights(options.WHITENING))
    if (whitening.input_dim, whitening.output_dim) != (channels, options.WHITENING_DIM):
        raise ValueError(
            f"MODEL.OESIR.EMBEDDING.WHITENING {options.WHITENING!r} maps {whitening.input_dim} to "
            f"{whitening.output_dim} dimensions; the model needs {channels} to {options.WHITENING_DIM}"
        )
    return whitening
