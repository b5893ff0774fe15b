"""Pseudo-labels: the boxes that an ONNX export of YOLOX finds in photos that nobody has annotated.

Everything but running the network is plain NumPy. Shape shorthand: S side of the network's square input, A anchors
(one a cell of the three grids), C classes, N boxes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torchvision.ops import nms

from oesir_d2.data.images import ImageFile, UnreadableImageError, read_image
from oesir_d2.files import sha256_of_file

logger = logging.getLogger(__name__)

STRIDES = (8, 16, 32)
"""Pixels of the input a cell of each grid, in the order of the output's rows."""

PAD_VALUE = 114
"""Grey that YOLOX is trained with around photos that are not square."""


@dataclass(frozen=True)
class Detections:
    """Boxes found in one photo, the surest first.

    Attributes:
        boxes: (N, 4) float32, XYXY in pixels of the upright photo, inside it.
        scores: (N,) float32 in [0, 1].
        classes: (N,) int64 in [0, C).
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


def letterbox(pixels: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """A photo as YOLOX takes it: shrunk or enlarged into the upper left corner of a grey square.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        side: S.

    Returns:
        (3, S, S) float32 BGR in [0, 255], and the factor from pixels of the photo to pixels of the square.
    """
    height, width = pixels.shape[:2]
    scale = min(side / height, side / width)
    size = (max(1, min(side, round(width * scale))), max(1, min(side, round(height * scale))))
    square = np.full((side, side, 3), PAD_VALUE, dtype=np.uint8)
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    square[: size[1], : size[0]] = cv2.resize(pixels, size, interpolation=interpolation)
    return np.ascontiguousarray(square[..., ::-1].transpose(2, 0, 1), dtype=np.float32), scale


def decode_yolox(output: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Turn what YOLOX puts out into boxes and scores.

    A row is the box's centre as an offset from its cell, in cells, the logarithms of its width and height, in cells,
    its objectness and the probability of each class. The sigmoids are part of the exported network.

    Args:
        output: (A, 5 + C) float.
        side: S.

    Returns:
        boxes (A, 4), XYXY in pixels of the square, and scores (A, C), objectness times the class's probability.

    Raises:
        ValueError: if A is not the number of cells, or the confidences are no probabilities.
    """
    num_cells = sum((side // stride) ** 2 for stride in STRIDES)
    if output.ndim != 2 or output.shape[0] != num_cells or output.shape[1] < 6:
        raise ValueError(f"YOLOX's output has shape {output.shape}, expected ({num_cells}, 5 + number of classes)")
    confidences = output[:, 4:]
    if not (confidences.min() >= 0 and confidences.max() <= 1):
        raise ValueError(
            f"YOLOX's confidences run from {confidences.min():g} to {confidences.max():g}, expected 0 to 1: export it "
            "with its sigmoids and without its decoding"
        )
    cells, strides = [], []
    for stride in STRIDES:
        y, x = np.mgrid[: side // stride, : side // stride]
        cells.append(np.stack([x.ravel(), y.ravel()], axis=1))
        strides.append(np.full((x.size, 1), stride))
    stride_per_cell = np.concatenate(strides).astype(np.float32)
    centers = (output[:, :2] + np.concatenate(cells)) * stride_per_cell
    halves = np.exp(output[:, 2:4]) * stride_per_cell / 2
    return np.concatenate([centers - halves, centers + halves], axis=1), output[:, 4:5] * output[:, 5:]


def select_boxes(
    boxes: np.ndarray, scores: np.ndarray, *, min_score: float, max_overlap: float, size: tuple[int, int]
) -> Detections:
    """The boxes worth keeping: each with its likeliest class, of a sufficient score, without doubles.

    Doubles are sought across classes: an animal that is taken for a dog and for a cat is one object.

    Args:
        boxes: (A, 4), XYXY in pixels of the photo.
        scores: (A, C).
        min_score: least score.
        max_overlap: IoU above which the less sure of two boxes is left out.
        size: width and height of the photo, to which boxes are cut; what is left must be a pixel wide and high.
    """
    classes, best = scores.argmax(axis=1), scores.max(axis=1)
    boxes = np.clip(boxes, 0, np.array([*size, *size])).astype(np.float32)
    usable = (best >= min_score) & (boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1)
    boxes, best, classes = boxes[usable], best[usable].astype(np.float32), classes[usable]
    kept = nms(torch.from_numpy(boxes), torch.from_numpy(best), max_overlap).numpy()
    return Detections(boxes[kept], best[kept], classes[kept])


class YoloxDetector:
    """An ONNX export of YOLOX, run by onnxruntime.

    Args:
        path: the ONNX file: input (1, 3, S, S), one output (1, A, 5 + C), see :func:`decode_yolox`.
        min_score, max_overlap: see :func:`select_boxes`.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if onnxruntime is not installed, the file is no such network, or a number is not in [0, 1].
    """

    def __init__(self, path: str | Path, *, min_score: float = 0.3, max_overlap: float = 0.6) -> None:
        for name, value in (("min_score", min_score), ("max_overlap", max_overlap)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}, expected 0 to 1")
        if not Path(path).is_file():
            raise FileNotFoundError(f"network {path} does not exist, expected an ONNX file")
        self._session = _open_session(path)
        inputs = self._session.get_inputs()
        shape = inputs[0].shape
        is_square = len(shape) == 4 and isinstance(shape[3], int) and shape[1:3] == [3, shape[3]]
        if len(inputs) != 1 or not is_square or shape[3] % max(STRIDES):
            raise ValueError(f"{path} takes {[item.shape for item in inputs]}, expected [[1, 3, S, S]], S times 32")
        outputs = self._session.get_outputs()
        if len(outputs[0].shape) != 3 or not isinstance(outputs[0].shape[2], int) or outputs[0].shape[2] < 6:
            raise ValueError(f"{path} puts out {[item.shape for item in outputs]}, expected [[1, A, 5 + classes]]")
        self.num_classes = outputs[0].shape[2] - 5
        self._input_name, self._side = inputs[0].name, shape[3]
        self._min_score, self._max_overlap = min_score, max_overlap
        self.settings = {"network": sha256_of_file(path), "min_score": min_score, "max_overlap": max_overlap}

    def detect(self, pixels: np.ndarray) -> Detections:
        """Find the objects of a photo, (H, W, 3) uint8 RGB."""
        square, scale = letterbox(pixels, self._side)
        output = self._session.run(None, {self._input_name: square[None]})[0]
        boxes, scores = decode_yolox(output[0], self._side)
        size = (pixels.shape[1], pixels.shape[0])
        return select_boxes(boxes / scale, scores, min_score=self._min_score, max_overlap=self._max_overlap, size=size)


def label_photos(
    photos: Sequence[ImageFile],
    detector: YoloxDetector,
    progress: Callable[[Sequence[ImageFile]], Iterable[ImageFile]] = iter,
) -> dict[str, Any]:
    """Label photos in COCO's format.

    Args:
        photos: those that cannot be read are left out, and named in the log.
        detector: what finds the objects.
        progress: wraps the photos, for a progress bar.

    Returns:
        The content of a COCO JSON file: all photos that can be read, in their order, with or without objects. Boxes are
        in pixels after the EXIF rotation, annotations have their "score"; "info" says what made them.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for photo in progress(photos):
        try:
            pixels = read_image(photo.path).pixels
        except UnreadableImageError as error:
            logger.warning("Left out: %s", error)
            continue
        height, width = pixels.shape[:2]
        images.append({"id": len(images) + 1, "file_name": photo.image_id, "width": width, "height": height})
        found = detector.detect(pixels)
        for box, score, number in zip(found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True):
            bbox = [round(v, 2) for v in (box[0], box[1], box[2] - box[0], box[3] - box[1])]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(images),
                    "category_id": number + 1,
                    "bbox": bbox,
                    "area": round(math.prod(bbox[2:]), 2),
                    "iscrowd": 0,
                    "score": round(score, 4),
                }
            )
    names = [item["name"] for item in COCO_CATEGORIES if item["isthing"]]
    # YOLOX has COCO's 80 classes in their order; what another network's classes are called is not in its file.
    if detector.num_classes != len(names):
        names = [f"class {i}" for i in range(detector.num_classes)]
    return {
        "info": {"pseudo_labels": detector.settings},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, start=1)],
    }


def _open_session(path: str | Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(
            "onnxruntime is not installed; it comes with the extra train: pip install -e '.[train]'"
        ) from error
    options = onnxruntime.SessionOptions()
    # onnxruntime does not look at OMP_NUM_THREADS, torch does.
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of one of onnxruntime's many types
        raise ValueError(f"{path} is no ONNX network that onnxruntime can run: {error}") from error
