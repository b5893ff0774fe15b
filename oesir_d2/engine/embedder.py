"""Photos in, embeddings out: the model with its weights, its input mapper and its batches of one.

Shape shorthand: R regions of an image, D dimensions.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
    build_model,
)
from detectron2.structures import Boxes, Instances
from torch import nn

from oesir_d2.data.images import ImageFile, UnreadableImageError
from oesir_d2.data.mappers import EmbeddingMapper
from oesir_d2.engine.model_info import describe_model
from oesir_d2.modeling.registry import get_registered
from oesir_d2.modeling.weights import TEACHER_PREFIX, TRUNK_PREFIX, WHITENING_PREFIX, SafeCheckpointer
from oesir_d2.structures import NO_CLASS, ImageEmbeddings

READ_AHEAD = 4
"""Photos decoded ahead of the model. Each is held at the network's input size, a few megabytes."""


def load_model(cfg: CfgNode) -> nn.Module:
    """Build the model of a config, load ``MODEL.WEIGHTS`` and put it into eval mode.

    A checkpoint of a plain detectron2 detector will do: what it lacks may come from the references of the config to
    the weights of the teacher, of an EfficientNet-Lite trunk and to the whitening.

    Raises:
        ValueError: a component that is not registered, a device that is not there, or weights that do not fit.
        FileNotFoundError: weights that are not there.
    """
    _check_device(cfg.MODEL.DEVICE)
    # detectron2 itself would raise KeyError for one that is not there.
    get_registered(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE")
    get_registered(BACKBONE_REGISTRY, cfg.MODEL.BACKBONE.NAME, "MODEL.BACKBONE.NAME")
    get_registered(ROI_HEADS_REGISTRY, cfg.MODEL.ROI_HEADS.NAME, "MODEL.ROI_HEADS.NAME")
    # PrecomputedProposals stands for none, and is in no registry.
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME != "PrecomputedProposals":
        name = cfg.MODEL.PROPOSAL_GENERATOR.NAME
        get_registered(PROPOSAL_GENERATOR_REGISTRY, name, "MODEL.PROPOSAL_GENERATOR.NAME")
    model = build_model(cfg)
    if cfg.MODEL.WEIGHTS:
        checkpointer = SafeCheckpointer(model)
        if cfg.MODEL.OESIR.EMBEDDING.WHITENING or not cfg.MODEL.OESIR.EMBEDDING.WHITENING_DIM:
            # Somebody named another, or wants none.
            checkpointer.left_out = (WHITENING_PREFIX,)
        checkpointer.load(cfg.MODEL.WEIGHTS)
        _check_loaded(cfg, checkpointer.incompatible)
    return model.eval()


def _check_device(device: str) -> None:
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise ValueError(f"MODEL.DEVICE is {device!r}; allowed: 'cpu', 'cuda' and 'cuda:N'")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"MODEL.DEVICE is {device!r}, but torch finds no GPU here; allowed: 'cpu'")


def _check_loaded(cfg: CfgNode, incompatible: Any) -> None:
    """Refuse a checkpoint that leaves a part of the model random: detectron2 itself only logs that."""
    # An unfitted whitening refuses to run, so it cannot go unnoticed.
    elsewhere = (WHITENING_PREFIX,)
    if cfg.MODEL.OESIR.TEACHER.WEIGHTS:
        elsewhere += (TEACHER_PREFIX,)
    if cfg.MODEL.OESIR.EFFICIENTNET.WEIGHTS:
        elsewhere += (TRUNK_PREFIX,)
    wrong = [name for name, _, _ in incompatible.incorrect_shapes]
    missing = [name for name in incompatible.missing_keys if name not in wrong and not name.startswith(elsewhere)]
    if missing or wrong:
        raise ValueError(
            f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS!r} does not fit the model: it lacks {len(missing)} of its tensors and "
            f"has {len(wrong)} of another shape, {(missing + wrong)[0]!r} the first"
        )


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
    """Embeds photos with one model.

    Args:
        cfg: the model's config.

    Attributes:
        model: in eval mode, on cfg.MODEL.DEVICE.
        info: the model's description for an index's manifest.

    Raises:
        ValueError, FileNotFoundError: as :func:`load_model`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # Read when the first convolution runs. oneDNN keeps the code that it generates for each layer and each size of
        # photo, by default 1024 pieces of about a megabyte; so many do for the sizes that are common in a collection.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
        self.model = load_model(cfg)
        self.info = describe_model(cfg, self.model)
        self._mapper = EmbeddingMapper(cfg)

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
        return self._run_model(file, self._map(file), boxes)

    def embed_all(self, files: Iterable[ImageFile]) -> Iterator[tuple[ImageFile, EmbeddedImage | UnreadableImageError]]:
        """Embed photos in order; decoding runs ahead in threads, and no more than a few photos are held.

        Yields:
            Each file with its embeddings, or with the reason why it could not be read.
        """
        for file, mapped in self._map_ahead(files):
            yield file, mapped if isinstance(mapped, UnreadableImageError) else self._run_model(file, mapped)

    def _map(self, file: ImageFile) -> dict[str, Any]:
        return self._mapper({"file_name": str(file.path), "image_id": file.image_id})

    def _map_ahead(
        self, files: Iterable[ImageFile]
    ) -> Iterator[tuple[ImageFile, dict[str, Any] | UnreadableImageError]]:
        def map_or_refuse(file: ImageFile) -> dict[str, Any] | UnreadableImageError:
            try:
                return self._map(file)
            except UnreadableImageError as error:
                return error

        pending: deque[tuple[ImageFile, Future[dict[str, Any] | UnreadableImageError]]] = deque()
        with ThreadPoolExecutor(max_workers=2, thread_name_prefix="decode") as pool:
            try:
                for file in files:
                    pending.append((file, pool.submit(map_or_refuse, file)))
                    if len(pending) > READ_AHEAD:
                        ready, future = pending.popleft()
                        yield ready, future.result()
                while pending:
                    ready, future = pending.popleft()
                    yield ready, future.result()
            finally:
                for _, future in pending:
                    future.cancel()

    @torch.inference_mode()
    def _run_model(
        self, file: ImageFile, mapped: dict[str, Any], boxes: Sequence[Sequence[float]] | None = None
    ) -> EmbeddedImage:
        if boxes is None:
            instances = self.model([mapped])[0]["instances"]
            original_boxes = instances.pred_boxes.tensor.float().cpu().numpy()
        else:
            given = _given_instances(file, mapped, boxes)
            # Without the postprocessing, which would drop a box that is thinner than a float32 tells.
            regions = self.model.inference([mapped], detected_instances=[given], do_postprocess=False)[0]
            instances = regions[: len(boxes)]
            original_boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
        embeddings = ImageEmbeddings(
            image_id=file.image_id,
            vectors=instances.embeddings.float().cpu().numpy(),
            boxes=original_boxes,
            scores=instances.scores.float().cpu().numpy(),
            classes=instances.pred_classes.cpu().numpy(),
        )
        return EmbeddedImage(file, embeddings, mapped["width"], mapped["height"])


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
