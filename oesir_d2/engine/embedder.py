"""Photos in, embeddings out: the model with its weights, its input mapper and its batches.

Shape shorthand: R regions of an image, D dimensions.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances

from oesir_d2.data.images import ImageFile, UnreadableImageError
from oesir_d2.data.mappers import EmbeddingMapper
from oesir_d2.engine.batching import get_padding_step, run_in_batches
from oesir_d2.engine.decoding import decode_ahead
from oesir_d2.engine.inference import prepare_model
from oesir_d2.engine.model_info import describe_model
from oesir_d2.engine.model_loading import load_model
from oesir_d2.structures import NO_CLASS, ImageEmbeddings


@dataclass(frozen=True)
class EmbeddedImage:
    """A photo with its regions.

    Attributes:
        file: the photo.
        embeddings: boxes in pixels of the original file after its EXIF rotation.
        width, height: of the original file after its EXIF rotation.
    """

    file: ImageFile
    embeddings: ImageEmbeddings
    width: int
    height: int


class Embedder:
    """Embeds photos with one model, as ``MODEL.OESIR.EXTRACTION`` says.

    Args:
        cfg: the model's config.

    Attributes:
        model: in eval mode, on cfg.MODEL.DEVICE, ready for inference: its state dict is as loaded.
        info: the model's description for an index's manifest.

    Raises:
        ValueError, FileNotFoundError: as :func:`load_model`, or a setting of the extraction that is not allowed.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # Read when the first convolution runs. oneDNN keeps the code that it generates for each layer and each size of
        # photo, by default 1024 pieces of about a megabyte; so many do for the sizes that are common in a collection.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
        options = cfg.MODEL.OESIR.EXTRACTION
        for key, least in (("BATCH_SIZE", 1), ("DECODE_WORKERS", 0)):
            if options[key] < least:
                raise ValueError(f"MODEL.OESIR.EXTRACTION.{key} is {options[key]}; allowed: at least {least}")
        self.model = load_model(cfg)
        self.info = describe_model(cfg, self.model)
        prepare_model(cfg, self.model)
        self._mapper = EmbeddingMapper(cfg)
        self._batch_size = options.BATCH_SIZE
        self._decode_workers = options.DECODE_WORKERS
        self._padding_step = get_padding_step(self.model.backbone)

    def embed(self, file: ImageFile, boxes: Sequence[Sequence[float]] | None = None) -> EmbeddedImage:
        """Embed one photo.

        Args:
            file: the photo.
            boxes: if given, these boxes are embedded instead of the model's own regions and without the whole image:
                XYXY in pixels of the original file after its EXIF rotation.

        Raises:
            UnreadableImageError: the file is no photo that can be read whole.
            ValueError: a box that is not inside the photo.
        """
        mapped = self.decode(file)
        if boxes is None:
            return self._run_model([file], [mapped])[0]
        return self._embed_boxes(file, mapped, boxes)

    def embed_pixels(self, file: ImageFile, pixels: np.ndarray, boxes: Sequence[Sequence[float]]) -> EmbeddedImage:
        """Embed regions of pixels that are at hand, such as an enlarged part of a photo.

        Args:
            file: where the pixels come from, for messages and as the id.
            pixels: (H, W, 3) uint8 RGB.
            boxes: XYXY in these pixels; see :meth:`embed`.

        Raises:
            ValueError: a box that is not inside of them.
        """
        return self._embed_boxes(file, self._mapper.map_pixels(pixels), boxes)

    def embed_all(self, files: Iterable[ImageFile]) -> Iterator[tuple[ImageFile, EmbeddedImage | UnreadableImageError]]:
        """Embed photos in order; decoding runs ahead, and no more than a few photos are held.

        Yields:
            Each file with its embeddings, or with the reason why it could not be read.
        """
        yield from self.embed_decoded(decode_ahead(files, self._mapper, self._decode_workers))

    def decode(self, file: ImageFile) -> dict[str, Any]:
        """The model's input of one photo.

        Raises:
            UnreadableImageError: the file is no photo that can be read whole.
        """
        return self._mapper({"file_name": str(file.path), "image_id": file.image_id})

    def embed_decoded(
        self, decoded: Iterable[tuple[ImageFile, dict[str, Any] | UnreadableImageError]]
    ) -> Iterator[tuple[ImageFile, EmbeddedImage | UnreadableImageError]]:
        """As :meth:`embed_all`, of photos that were decoded elsewhere."""
        return run_in_batches(decoded, self._run_model, self._batch_size, self._padding_step)

    @torch.inference_mode()
    def _run_model(self, files: Sequence[ImageFile], mapped: Sequence[dict[str, Any]]) -> list[EmbeddedImage]:
        """Run the model once, on one batch."""
        outputs = self.model([self._move(x) for x in mapped])
        embedded = []
        for file, x, output in zip(files, mapped, outputs, strict=True):
            embeddings = ImageEmbeddings.from_instances(file.image_id, output["instances"].to("cpu"))
            embedded.append(EmbeddedImage(file, embeddings, x["width"], x["height"]))
        return embedded

    @torch.inference_mode()
    def _embed_boxes(self, file: ImageFile, mapped: dict[str, Any], boxes: Sequence[Sequence[float]]) -> EmbeddedImage:
        given = _given_instances(file, mapped, boxes)
        # Without the postprocessing, which would drop a box that is thinner than a float32 tells.
        (regions,) = self.model.inference([self._move(mapped)], detected_instances=[given], do_postprocess=False)
        original_boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
        embeddings = ImageEmbeddings.from_instances(file.image_id, regions[: len(boxes)].to("cpu"), original_boxes)
        return EmbeddedImage(file, embeddings, mapped["width"], mapped["height"])

    def _move(self, mapped: dict[str, Any]) -> dict[str, Any]:
        """A photo on the model's device; a GPU copies it while the processor prepares the next."""
        if self.model.device.type == "cpu":
            return mapped
        return mapped | {"image": mapped["image"].pin_memory().to(self.model.device, non_blocking=True)}


def _given_instances(file: ImageFile, mapped: dict[str, Any], boxes: Sequence[Sequence[float]]) -> Instances:
    """Boxes of the original photo as Instances in pixels of the network's input."""
    width, height = mapped["width"], mapped["height"]
    for box in boxes:
        x0, y0, x1, y1 = box
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            shown = ",".join(f"{value:g}" for value in box)
            raise ValueError(
                f"box {shown} does not lie in {file.path}; allowed: X0,Y0,X1,Y1 in pixels with "
                f"0 <= X0 < X1 <= {width} and 0 <= Y0 < Y1 <= {height}"
            )
    input_height, input_width = mapped["image"].shape[1:]
    scale = torch.tensor([input_width / width, input_height / height] * 2)
    return Instances(
        (input_height, input_width),
        pred_boxes=Boxes(torch.tensor(np.asarray(boxes, dtype=np.float32).reshape(-1, 4)) * scale),
        scores=torch.ones(len(boxes)),
        pred_classes=torch.full((len(boxes),), NO_CLASS),
    )
