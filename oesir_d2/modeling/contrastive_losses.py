"""Contrastive losses: views of one object come together, all else is pushed apart.

pytorch-metric-learning is imported where it is used: it takes half a second, which only this stage should pay for.

Shape shorthand: A anchors, M references, D dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils.registry import Registry
from torch import nn

from oesir_d2.modeling.registry import get_registered

CONTRASTIVE_LOSS_REGISTRY = Registry("CONTRASTIVE_LOSS")
CONTRASTIVE_LOSS_REGISTRY.__doc__ = """
Contrastive losses. The registered object is called with ``obj(cfg)`` and returns a :class:`ContrastiveLoss`.
"""


class ContrastiveLoss(nn.Module):
    """A loss of pytorch-metric-learning on pairs that we choose. A subclass sets ``name``, under which it is logged.

    Args:
        loss: called with pairs, an ``indices_tuple`` of four.
    """

    name: str

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(
        self, anchors: torch.Tensor, references: torch.Tensor, is_positive: torch.Tensor, is_negative: torch.Tensor
    ) -> torch.Tensor:
        """Compute the loss.

        Args:
            anchors: (A, D), L2-normalised, any floating dtype.
            references: (M, D), L2-normalised.
            is_positive, is_negative: (A, M) bool, which pairs are to come together and which apart, no pair both.
                Each anchor has a positive.

        Returns:
            A scalar >= 0, float32.
        """
        pairs = (*torch.where(is_positive), *torch.where(is_negative))
        # Autocast would round cosines to half precision, which a low temperature does not forgive.
        with torch.autocast(anchors.device.type, enabled=False):
            loss = self.loss(anchors.float(), indices_tuple=pairs, ref_emb=references.float())
            # The library's mean over what is not zero would leave out NaN, too.
            return loss + 0 * anchors.float().sum()


@CONTRASTIVE_LOSS_REGISTRY.register()
class InfoNCELoss(ContrastiveLoss):
    """How surely each anchor picks a positive among all references (van den Oord et al., 2018).

    Several positives of an anchor share its probability, as in Khosla et al., NeurIPS 2020. The mean over the anchors.

    Args:
        temperature: what cosines are divided by, > 0.

    Raises:
        ValueError: if the temperature is out of range.
    """

    name = "loss_contrastive_info_nce"

    @configurable
    def __init__(self, *, temperature: float = 0.07) -> None:
        if not temperature > 0:
            raise ValueError(f"MODEL.OESIR.CONTRASTIVE.TEMPERATURE is {temperature}; allowed: over 0")
        from pytorch_metric_learning import losses, reducers

        super().__init__(losses.SupConLoss(temperature=temperature, reducer=reducers.MeanReducer()))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"temperature": cfg.MODEL.OESIR.CONTRASTIVE.TEMPERATURE}


@CONTRASTIVE_LOSS_REGISTRY.register()
class MultiSimilarityLoss(ContrastiveLoss):
    """Wang et al., CVPR 2019: positives below a cosine of one half and negatives above it, the worst ones first."""

    name = "loss_contrastive_multi_similarity"

    @configurable
    def __init__(self) -> None:
        from pytorch_metric_learning import losses

        super().__init__(losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {}


@CONTRASTIVE_LOSS_REGISTRY.register()
class TripletMarginLoss(ContrastiveLoss):
    """The mean over those triplets in which a negative's cosine comes nearer than a margin to a positive's.

    Args:
        margin: a difference of cosines, in (0, 2).

    Raises:
        ValueError: if the margin is out of range.
    """

    name = "loss_contrastive_triplet"

    @configurable
    def __init__(self, *, margin: float = 0.1) -> None:
        if not 0 < margin < 2:
            raise ValueError(f"MODEL.OESIR.CONTRASTIVE.MARGIN is {margin}; allowed: over 0 and less than 2")
        from pytorch_metric_learning import distances, losses

        # By default the library takes Euclidean distances.
        super().__init__(losses.TripletMarginLoss(margin=margin, distance=distances.CosineSimilarity()))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"margin": cfg.MODEL.OESIR.CONTRASTIVE.MARGIN}


def build_contrastive_loss(cfg: CfgNode) -> ContrastiveLoss:
    """Build the loss that ``MODEL.OESIR.CONTRASTIVE.LOSS`` names."""
    name = cfg.MODEL.OESIR.CONTRASTIVE.LOSS
    return get_registered(CONTRASTIVE_LOSS_REGISTRY, name, "MODEL.OESIR.CONTRASTIVE.LOSS")(cfg)
