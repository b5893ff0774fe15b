"""The meta-architecture: one forward pass detects objects and embeds them, and the whole image with them.

Shape shorthand: N images, D dimensions of an embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    GeneralizedRCNN,
    build_backbone,
    build_proposal_generator,
    build_roi_heads,
)
from detectron2.structures import ImageList, Instances

from oesir_d2.modeling.embedding_source import EMBEDDING_MAP, EmbeddingSource, build_embedding_source
from oesir_d2.modeling.regions import make_regions


@META_ARCH_REGISTRY.register()
class OESIR(GeneralizedRCNN):
    """A GeneralizedRCNN whose regions carry embeddings.

    In eval mode each output is ``{"instances": Instances, "image_embedding": (D,)}``; the instances have
    ``pred_boxes`` (XYXY in pixels of the original image, if the input gave its ``height`` and ``width``), ``scores``,
    ``pred_classes`` and ``embeddings`` (R, D). All embeddings are float32 and L2-normalised.

    Args:
        embedding_source: makes the map that regions are pooled from.
        whole_image: append the whole image as the last region, so that an image without objects is findable.
        **kwargs: of GeneralizedRCNN.
    """

    @configurable
    def __init__(self, *, embedding_source: EmbeddingSource, whole_image: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.embedding_source = embedding_source
        self.whole_image = whole_image

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        shapes: dict[str, ShapeSpec] = backbone.output_shape()
        embedding_source = build_embedding_source(cfg, shapes)
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, shapes),
            "roi_heads": build_roi_heads(cfg, shapes | {EMBEDDING_MAP: embedding_source.output_shape}),
            "embedding_source": embedding_source,
            "whole_image": cfg.MODEL.OESIR.REGIONS.WHOLE_IMAGE,
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict[str, Any]] | list[Instances]:
        """Detect, or take the given boxes, and embed, in one forward pass.

        Args:
            batched_inputs: as for GeneralizedRCNN: ``image`` (3, H, W), optional ``height`` and ``width`` of the
                original, optional ``proposals`` for a proposer that wants them.
            detected_instances: boxes to embed instead of detecting: ``pred_boxes`` in pixels of the network's input,
                ``scores`` and ``pred_classes``.
            do_postprocess: scale boxes to the original image and add ``image_embedding``.

        Returns:
            With ``do_postprocess``, one dict an image as the class describes; boxes that are empty on the original
            image are left out, as detectron2 does. Else the raw Instances in pixels of the network's input, all of
            them, the whole image last.

        Raises:
            ValueError: an input without the proposals that the model needs, or given boxes of an image of another size.
        """
        assert not self.training, "inference needs eval mode"
        images = self.preprocess_image(batched_inputs)
        given = None
        if detected_instances is not None:
            given = self._take_given(detected_instances, images.image_sizes)
        regions, image_embeddings = self._embed(batched_inputs, images, given)
        if self.whole_image:
            regions = [
                Instances.cat([regions_per_image, _whole_image_region(size, embedding, regions_per_image)])
                for regions_per_image, size, embedding in zip(
                    regions, images.image_sizes, image_embeddings, strict=True
                )
            ]
        if not do_postprocess:
            return regions
        outputs = GeneralizedRCNN._postprocess(regions, batched_inputs, images.image_sizes)
        for output, embedding in zip(outputs, image_embeddings, strict=True):
            output["image_embedding"] = embedding
        return outputs

    def detect(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Choose the regions and leave it at that: what :meth:`inference` costs beyond this is the price of embedding.

        Args:
            batched_inputs: as for :meth:`inference`.

        Returns:
            One dict an image with its ``instances``: those of :meth:`inference` without embeddings and without the
            whole image.
        """
        assert not self.training, "inference needs eval mode"
        images = self.preprocess_image(batched_inputs)
        regions = self._choose_regions(batched_inputs, images, self.backbone(images.tensor))
        return GeneralizedRCNN._postprocess(regions, batched_inputs, images.image_sizes)

    def _embed(
        self, batched_inputs: list[dict[str, Any]], images: ImageList, given: list[Instances] | None
    ) -> tuple[list[Instances], torch.Tensor]:
        """Embed the regions, chosen or given, and the whole images: Instances with ``embeddings``, and (N, D)."""
        features = self.compute_features(batched_inputs, images.tensor)
        if given is None:
            proposals = self._propose(batched_inputs, images, features)
            regions, _ = self.roi_heads(images, features, proposals, None)
        else:
            regions = self.roi_heads.forward_with_given_boxes(features, given)
        return regions, self.roi_heads.embedding_head.embed_images(features[EMBEDDING_MAP], images.image_sizes)

    def _choose_regions(
        self, batched_inputs: list[dict[str, Any]], images: ImageList, features: dict[str, torch.Tensor]
    ) -> list[Instances]:
        proposals = self._propose(batched_inputs, images, features)
        return self.roi_heads.choose_regions(images, features, proposals)

    def compute_features(
        self, batched_inputs: list[dict[str, Any]], normalised_images: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The backbone's maps of a batch, and under ``EMBEDDING_MAP`` the map that embeddings are pooled from."""
        features = self.backbone(normalised_images)
        raw_images = [self._move_to_current_device(x["image"]) for x in batched_inputs]
        return features | {EMBEDDING_MAP: self.embedding_source(raw_images, features)}

    def _propose(
        self, batched_inputs: list[dict[str, Any]], images: ImageList, features: dict[str, torch.Tensor]
    ) -> list[Instances] | None:
        """The proposals that the region proposer needs: the RPN's, or those of the inputs."""
        proposer = self.roi_heads.region_proposer
        if not proposer.needs_proposals:
            return None
        if self.proposal_generator is not None and not proposer.takes_given_proposals:
            return self.proposal_generator(images, features, None)[0]
        missing = [index for index, x in enumerate(batched_inputs) if "proposals" not in x]
        if missing:
            raise ValueError(
                f"{type(proposer).__name__} of this model needs 'proposals' in every input; input {missing[0]} has none"
            )
        proposals = [x["proposals"].to(self.device) for x in batched_inputs]
        _check_image_sizes(proposals, images.image_sizes)
        return proposals

    def _take_given(self, instances: list[Instances], image_sizes: list[tuple[int, int]]) -> list[Instances]:
        _check_image_sizes(instances, image_sizes)
        given = [instances_per_image.to(self.device) for instances_per_image in instances]
        for given_per_image in given:
            # A copy: detectron2 scales boxes to the original image in place, and these are the caller's.
            given_per_image.pred_boxes = given_per_image.pred_boxes.clone()
        return given


def _check_image_sizes(given: list[Instances], image_sizes: list[tuple[int, int]]) -> None:
    sizes = [tuple(given_per_image.image_size) for given_per_image in given]
    if sizes != [tuple(size) for size in image_sizes]:
        raise ValueError(
            f"given boxes are of images of (height, width) {sizes}, expected the network's inputs: {image_sizes}"
        )


def _whole_image_region(size: tuple[int, int], embedding: torch.Tensor, like: Instances) -> Instances:
    """The whole image as one region with the fields of ``like``, so that the two can be concatenated."""
    height, width = size
    region = make_regions(size, embedding.new_tensor([[0, 0, width, height]]))
    region.embeddings = embedding[None]
    extra = sorted(set(like.get_fields()) - set(region.get_fields()))
    if extra:
        raise ValueError(f"the whole image cannot join regions with {extra}; set MODEL.OESIR.REGIONS.WHOLE_IMAGE False")
    return region
