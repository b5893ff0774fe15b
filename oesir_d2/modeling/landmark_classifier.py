"""The meta-architecture that fine-tunes a teacher on landmarks: photo, map, pooled vector, margin softmax.

Shape shorthand: N images, C channels of the map, D dimensions of a projected vector, K landmarks.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import get_event_storage, has_event_storage
from detectron2.utils.registry import Registry
from torch import nn

from oesir_d2 import layers
from oesir_d2.layers import MarginSoftmax
from oesir_d2.modeling.embedding_source import TeacherSource
from oesir_d2.modeling.meta_arch import OESIR
from oesir_d2.modeling.registry import get_registered
from oesir_d2.modeling.weights import FINETUNED_PIXEL_STD

MARGIN_SOFTMAX_REGISTRY = Registry("MARGIN_SOFTMAX")
MARGIN_SOFTMAX_REGISTRY.__doc__ = """
Classification losses with a margin. The registered object is called with ``obj(cfg, dim)``, dim being the length of
the vectors to classify, and returns a :class:`oesir_d2.layers.MarginSoftmax` of
``cfg.MODEL.OESIR.LANDMARKS.NUM_CLASSES`` classes.
"""


@MARGIN_SOFTMAX_REGISTRY.register()
def ArcFace(cfg: CfgNode, dim: int) -> MarginSoftmax:
    options = cfg.MODEL.OESIR.LANDMARKS
    return layers.ArcFace(options.NUM_CLASSES, dim, options.SCALE, options.MARGIN)


@MARGIN_SOFTMAX_REGISTRY.register()
def CosFace(cfg: CfgNode, dim: int) -> MarginSoftmax:
    options = cfg.MODEL.OESIR.LANDMARKS
    return layers.CosFace(options.NUM_CLASSES, dim, options.SCALE, options.MARGIN)


@META_ARCH_REGISTRY.register()
class LandmarkClassifier(OESIR):
    """An OESIR whose training is the fine-tuning of its teacher on landmarks; in eval mode it is an OESIR.

    In training the teacher's map of a whole photo is pooled by the embedding head's pooler (GeM by default) and
    L2-normalised; if the config says so, projected and L2-normalised again; then classified. The convolutions of the
    teacher, the projection and the classes learn; the statistics and factors of the teacher's batch norms, and all of a
    detector, stay as they are.

    The state dict is that of an OESIR with the same config, and the classification layer. So a checkpoint can be
    ``MODEL.WEIGHTS`` of an OESIR whose source is the teacher, or ``MODEL.OESIR.TEACHER.WEIGHTS`` of any model. Either
    way the classification layer, its projection included, is left behind.

    Args:
        classifier: of vectors of length C, or D with a projection; None for a model that only embeds.
        projection: a linear layer from C to D, or None.
        **kwargs: of OESIR; the embedding source must be a :class:`TeacherSource`.

    Raises:
        ValueError: if the embedding source is not a teacher.
    """

    @configurable
    def __init__(
        self, *, classifier: MarginSoftmax | None = None, projection: nn.Linear | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not isinstance(self.embedding_source, TeacherSource):
            raise ValueError(
                f"MODEL.OESIR.EMBEDDING.SOURCE {type(self.embedding_source).__name__!r} is no teacher to fine-tune; "
                "allowed: 'TeacherSource'"
            )
        self.requires_grad_(False)
        self.teacher.thaw()
        self.projection = projection
        self.classifier = classifier
        # What the network takes for its input belongs to its weights.
        self.register_buffer(FINETUNED_PIXEL_STD, self.teacher.pixel_std.clone())

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        options = cfg.MODEL.OESIR.LANDMARKS
        loss = get_registered(MARGIN_SOFTMAX_REGISTRY, options.LOSS, "MODEL.OESIR.LANDMARKS.LOSS")
        if options.PROJECTION_DIM < 0:
            raise ValueError(
                f"MODEL.OESIR.LANDMARKS.PROJECTION_DIM is {options.PROJECTION_DIM}; allowed: 0 (none) or more"
            )
        arguments = super().from_config(cfg)
        if options.NUM_CLASSES == 0:
            return arguments
        channels = arguments["embedding_source"].output_shape.channels
        return arguments | {
            "projection": nn.Linear(channels, options.PROJECTION_DIM) if options.PROJECTION_DIM else None,
            "classifier": loss(cfg, options.PROJECTION_DIM or channels),
        }

    @property
    def teacher(self) -> nn.Module:
        """The network that learns."""
        return self.embedding_source.teacher

    def train(self, mode: bool = True) -> LandmarkClassifier:
        """Choose what :meth:`forward` does; the modules stay in eval mode, which makes no difference to what learns."""
        super().train(False)
        self.training = mode
        return self

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor] | list[dict[str, Any]]:
        """Classify in training mode, detect and embed in eval mode.

        Args:
            batched_inputs: as for OESIR; in training each needs its ``image`` (3, H, W) and its ``class_id`` in [0, K).

        Returns:
            In training ``{"loss_landmark": scalar}``; in eval mode what OESIR gives.
        """
        if not self.training:
            return super().forward(batched_inputs)
        assert self.classifier is not None, "MODEL.OESIR.LANDMARKS.NUM_CLASSES is 0: there is nothing to classify into"
        cosines = self.classifier.compute_cosines(self.compute_vectors([x["image"] for x in batched_inputs]))
        class_ids = torch.tensor([x["class_id"] for x in batched_inputs], device=cosines.device)
        if has_event_storage():
            is_right = cosines.detach().argmax(dim=1) == class_ids
            get_event_storage().put_scalar("landmarks/accuracy", is_right.float().mean().item())
        return {"loss_landmark": self.classifier.compute_loss(cosines, class_ids)}

    def compute_vectors(self, images: list[torch.Tensor]) -> torch.Tensor:
        """What is classified: photos (3, H_i, W_i) give (N, C), or (N, D) with a projection; L2-normalised."""
        images = [self._move_to_current_device(image) for image in images]
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        vectors = self.roi_heads.embedding_head.pool_images(self.teacher.compute_maps(images), sizes)
        return vectors if self.projection is None else layers.l2_normalize(self.projection(vectors).float())
