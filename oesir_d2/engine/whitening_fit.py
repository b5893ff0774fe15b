"""Fitting the PCA whitening of a model on the regions of a collection of photos."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from tqdm import tqdm

from oesir_d2.data.images import ImageFile, UnreadableImageError
from oesir_d2.engine.embedder import Embedder
from oesir_d2.layers import CovarianceAccumulator, PCAWhitening

VECTORS_AN_UPDATE = 1024


def choose_photos(files: Sequence[ImageFile], count: int, seed: int) -> list[ImageFile]:
    """Draw ``count`` photos at random without replacement, or all if there are no more; in the order of ``files``."""
    if count >= len(files):
        return list(files)
    drawn = np.random.default_rng(seed).choice(len(files), size=count, replace=False)
    return [files[i] for i in sorted(drawn)]


def fit_whitening(
    cfg: CfgNode, files: Sequence[ImageFile], dimension: int, shrinkage: float = 0.0
) -> tuple[PCAWhitening, dict[str, int]]:
    """Fit a whitening on the pooled vectors of all regions of the photos, the whole images among them.

    Only first and second moments are held, so memory does not grow with the number of photos.

    Args:
        cfg: the model's config; its own whitening is left out.
        files: the photos to learn from; none of them may be used to evaluate.
        dimension: of the whitened vectors.
        shrinkage: see :meth:`PCAWhitening.fit`.

    Returns:
        The whitening, and how many photos and regions it was fitted on and how many files were skipped.

    Raises:
        ValueError: too few regions for the dimension, or no photo that could be read.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.OESIR.EMBEDDING.WHITENING_DIM = 0
    embedder = Embedder(cfg)
    channels = embedder.info.dimension
    if not 1 <= dimension <= channels:
        raise ValueError(f"dimension {dimension} is not possible; allowed: 1 to {channels}, the channels of the map")
    moments = CovarianceAccumulator(channels)
    gathered: list[np.ndarray] = []
    counts = {"photos": 0, "regions": 0, "skipped": 0}

    def update_moments() -> None:
        if gathered:
            moments.update(torch.from_numpy(np.concatenate(gathered)))
            gathered.clear()

    for _, embedded in tqdm(embedder.embed_all(files), total=len(files), desc="Pooling regions", unit="photo"):
        if isinstance(embedded, UnreadableImageError):
            counts["skipped"] += 1
            continue
        gathered.append(embedded.embeddings.vectors)
        counts["photos"] += 1
        counts["regions"] += len(embedded.embeddings)
        # An update costs a product of the size of the covariance, however few vectors it brings.
        if sum(map(len, gathered)) >= VECTORS_AN_UPDATE:
            update_moments()
    update_moments()
    if counts["photos"] == 0:
        raise ValueError(f"none of the {len(files)} photos could be read: there is nothing to fit a whitening on")
    blocks = embedder.model.embedding_source.blocks
    return PCAWhitening(channels, dimension).fit_from_moments(moments, shrinkage, blocks), counts
