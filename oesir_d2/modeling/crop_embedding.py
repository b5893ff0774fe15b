"""Every region as a photo of its own: the bound for embeddings that are pooled from one map of the whole photo.

Shape shorthand: N images, R regions of an image, K side of a crop, D dimensions of an embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList, Instances
from torchvision.ops import roi_align

from oesir_d2.modeling.embedding_source import TeacherSource
from oesir_d2.modeling.meta_arch import OESIR


@META_ARCH_REGISTRY.register()
class CropOESIR(OESIR):
    """An OESIR whose teacher sees every region alone: cropped from the photo, resized to a square, then embedded.

    A small object gets the teacher's full resolution, and no region sees what is beside it; the teacher runs once for
    every region instead of once for the photo. The whole image is one more crop. Regions, pooling and whitening are
    those of an OESIR with the same config, though a whitening that was fitted for one does not fit the other.

    Args:
        crop_size: K, in pixels, > 0.
        crop_batch: crops that the teacher takes at a time, > 0.
        **kwargs: of OESIR; the embedding source must be a :class:`TeacherSource`.

    Raises:
        ValueError: an argument out of its range, or a source that needs the detector's maps.
    """

    @configurable
    def __init__(self, *, crop_size: int = 224, crop_batch: int = 16, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for key, value in (("SIZE", crop_size), ("BATCH", crop_batch)):
            if value < 1:
                raise ValueError(f"MODEL.OESIR.CROPS.{key} is {value}; allowed: at least 1")
        if not isinstance(self.embedding_source, TeacherSource):
            raise ValueError(
                f"MODEL.OESIR.EMBEDDING.SOURCE {type(self.embedding_source).__name__!r} does not work on crops; "
                "allowed: 'TeacherSource'"
            )
        self.crop_size = crop_size
        self.crop_batch = crop_batch

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        options = cfg.MODEL.OESIR.CROPS
        return super().from_config(cfg) | {"crop_size": options.SIZE, "crop_batch": options.BATCH}

    def _embed(
        self, batched_inputs: list[dict[str, Any]], images: ImageList, given: list[Instances] | None
    ) -> tuple[list[Instances], torch.Tensor]:
        if given is None:
            regions = self._choose_regions(batched_inputs, images, self.backbone(images.tensor))
        else:
            regions = given  # the detector has nothing to do
        image_embeddings = []
        for x, regions_per_image in zip(batched_inputs, regions, strict=True):
            photo = self._move_to_current_device(x["image"])
            boxes = regions_per_image.pred_boxes.tensor
            whole = boxes.new_tensor([[0, 0, photo.shape[2], photo.shape[1]]])
            embeddings = self._embed_crops(photo, torch.cat([boxes, whole]))
            regions_per_image.embeddings = embeddings[:-1]
            image_embeddings.append(embeddings[-1])
        return regions, torch.stack(image_embeddings)

    def _embed_crops(self, photo: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Embed boxes (R, 4) of a photo (3, H, W): (R, D), L2-normalised."""
        embeddings = []
        for boxes_of_batch in boxes.split(self.crop_batch):
            crops = crop_boxes(photo, boxes_of_batch, self.crop_size)
            embedding_map = self.embedding_source(list(crops), {})
            sizes = [(self.crop_size, self.crop_size)] * len(crops)
            embeddings.append(self.roi_heads.embedding_head.embed_images(embedding_map, sizes))
        return torch.cat(embeddings)


def crop_boxes(photo: torch.Tensor, boxes: torch.Tensor, size: int) -> torch.Tensor:
    """Cut boxes out of a photo and resize each to a square, whatever its shape.

    Boxes that are larger than the square are averaged, at about one sample a pixel; smaller ones are interpolated.

    Args:
        photo: (3, H, W), any type of number.
        boxes: (R, 4) XYXY inside the photo, in its pixels.
        size: K, in pixels.

    Returns:
        (R, 3, K, K) float32, in the photo's range.
    """
    return roi_align(photo[None].float(), [boxes.float()], output_size=size, sampling_ratio=0, aligned=True)
