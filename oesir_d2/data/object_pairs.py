"""Two views of one object, made without labels: in its own photo, and pasted into another.

Shape shorthand: K background boxes of a view; S the longest side of a view.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.data.transforms import AugInput
from detectron2.structures import Boxes, Instances
from PIL import Image

from oesir_d2.data.datasets.cutouts import decode_mask
from oesir_d2.data.images import read_image
from oesir_d2.data.mappers import ResizeLongSideDown
from oesir_d2.data.splicing.blobs import draw_blob
from oesir_d2.data.splicing.compositor import HostPhoto, SpliceOptions, UncomposableError, compose
from oesir_d2.data.splicing.cutouts import OPAQUE, CutOut, crop_cutout
from oesir_d2.data.training_mappers import TRAINING_MAPPER_REGISTRY, TrainingMapper

MAX_SHARE = (0.5, 0.8)
"""An object longer than the larger share of a view is scaled down, to a share of the view between the two."""

MIN_BOX_SIDE = 8.0
"""A jittered box is not made thinner than this, in pixels of the view."""

BACKGROUND_SIDES = (0.15, 0.5)
"""Smallest and largest side of a background box, as shares of the view's; log-uniform."""

BACKGROUND_TRIES = 20
"""How many boxes are drawn for each background box, until one does not touch the object."""

COMPOSE_TRIES = 3
"""How many looks are drawn for an object that cannot be pasted as first drawn."""


@dataclass(frozen=True)
class _View:
    """What a view is cut from: pixels (H, W, 3) RGB, the object's box in them, XYXY, and whose photo they are."""

    pixels: np.ndarray
    box: tuple[float, float, float, float]
    photo: int


@TRAINING_MAPPER_REGISTRY.register()
class ObjectPairMapper:
    """Shows an object twice, as retrieval meets it: in the photo that it comes from, and pasted into another photo.

    Photos are reduced to ``max_long_side`` as in retrieval. The compositor pastes the object, mirrored or not, and the
    splice is compressed. Both views are squares of S pixels around the object at a random place in them, cut without
    scaling, unless the object is too long for that; where a photo is smaller than S, so is its view.

    Args:
        image_format: channel order that the model takes, "RGB" or "BGR".
        max_pixels: photos of more pixels are refused.
        max_long_side: in pixels; see :class:`ResizeLongSideDown`.
        size: S, in pixels.
        options: how objects are pasted; ``scale`` is drawn from log-uniformly, and ``softness`` is not used.
        softness: the widths of edges to choose from.
        box_jitter: standard deviation by which a side of the object's box is moved, as a share of the box's side.
        num_background: K.

    Raises:
        ValueError: if a value is out of its range.
    """

    @configurable
    def __init__(
        self,
        *,
        image_format: str,
        max_pixels: int,
        max_long_side: int,
        size: int,
        options: SpliceOptions,
        softness: Sequence[float] = (0.0, 1.0),
        box_jitter: float = 0.08,
        num_background: int = 2,
    ) -> None:
        if size < 32:
            raise ValueError(f"INPUT.OESIR.PAIR_SIZE is {size}; allowed: at least 32 pixels")
        if not softness or not all(0 <= sigma <= 20 for sigma in softness):
            raise ValueError(f"INPUT.OESIR.PAIR_SOFTNESS is {list(softness)}; allowed: one or more of 0 to 20 pixels")
        if not 0 <= box_jitter < 1:
            raise ValueError(f"INPUT.OESIR.PAIR_BOX_JITTER is {box_jitter}; allowed: at least 0 and less than 1")
        if num_background < 0:
            raise ValueError(f"INPUT.OESIR.PAIR_BACKGROUND is {num_background}; allowed: 0 or more")
        self.image_format = image_format
        self.max_pixels = max_pixels
        self.resize = ResizeLongSideDown(max_long_side)
        self.size = size
        self.options = options
        self.softness = tuple(softness)
        self.box_jitter = box_jitter
        self.num_background = num_background

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        options = cfg.INPUT.OESIR
        try:
            splice_options = SpliceOptions(
                scale=tuple(options.PAIR_SCALE),
                rotation=options.PAIR_ROTATION,
                colour=options.PAIR_COLOUR,
                quality=tuple(options.PAIR_QUALITY),
            )
        except (ValueError, IndexError) as error:
            raise ValueError(f"INPUT.OESIR.PAIR_SCALE, _ROTATION, _COLOUR or _QUALITY: {error}") from error
        return {
            "image_format": cfg.INPUT.FORMAT,
            "max_pixels": options.MAX_PIXELS,
            "max_long_side": options.MAX_LONG_SIDE,
            "size": options.PAIR_SIZE,
            "options": splice_options,
            "softness": tuple(options.PAIR_SOFTNESS),
            "box_jitter": options.PAIR_BOX_JITTER,
            "num_background": options.PAIR_BACKGROUND,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any] | None:
        """Make the two views of an object.

        Args:
            dataset_dict: ``file_name`` and ``cutout`` as :mod:`oesir_d2.data.datasets.cutouts` describes them, and
                ``host_file_name``, another photo.

        Returns:
            ``file_name``, ``host_file_name``, ``image_id`` if there was one, and ``views``: first in the object's own
            photo, then in the host. Each has ``image`` (3, H, W) uint8 in the model's channel order, H and W at most S,
            and ``instances`` with ``gt_boxes``, XYXY in pixels of the image, the object's first, then those of up to K
            pieces of background; ``gt_objects``, int64, the same number for the same object only; and ``gt_photos``,
            int64, the same number for what comes from the same photo only. None if the object cannot be pasted.

        Raises:
            UnreadableImageError: one of the two files is no photo that can be read whole.
            SizeMismatchError: the photo has another size than its annotation says.
        """
        # Loader processes seed NumPy's global generator each for itself.
        rng = np.random.default_rng(np.random.randint(2**31, size=4))  # noqa: NPY002
        pixels, alpha = self._read_object(dataset_dict, rng)
        if not (alpha >= OPAQUE).any():
            return None
        host = HostPhoto(dataset_dict["host_file_name"], self._read(dataset_dict["host_file_name"])[0])
        cutout = crop_cutout(pixels, alpha, dataset_dict["file_name"])
        spliced = self._paste(host, cutout, rng)
        if spliced is None:
            return None
        own = _View(pixels, tuple(map(float, cutout.box)), _number(dataset_dict["file_name"]))
        pasted = _View(*spliced, _number(dataset_dict["host_file_name"]))
        # A random region is an object of its own each time.
        where = rng.integers(2**62) if dataset_dict["cutout"] is None else cutout.box
        object_number = _number(f"{dataset_dict['file_name']} {where}")
        views = [self._cut(view, object_number, own.photo, rng) for view in (own, pasted)]
        kept = {key: dataset_dict[key] for key in ("file_name", "host_file_name", "image_id") if key in dataset_dict}
        return kept | {"views": views}

    def _read(self, file_name: str) -> tuple[np.ndarray, tuple[int, int]]:
        """The photo as retrieval sees it, (H, W, 3) RGB, and the (height, width) of its file."""
        decoded = read_image(file_name, max_pixels=self.max_pixels, reduce_to=self.resize.max_long_side)
        resized = AugInput(decoded.pixels)
        resized.apply_augmentations([self.resize])
        return resized.image, (decoded.height, decoded.width)

    def _read_object(self, dataset_dict: dict[str, Any], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The photo and the object's alpha over it, (H, W) uint8."""
        pixels, size = self._read(dataset_dict["file_name"])
        height, width = pixels.shape[:2]
        cutout = dataset_dict["cutout"]
        if cutout is None:
            return pixels, draw_blob(height, width, rng)
        if tuple(cutout["size"]) != size:
            raise SizeMismatchError(
                f"the photo has (height, width) {size}, but its objects were outlined at {tuple(cutout['size'])}"
            )
        mask = decode_mask(cutout)
        if mask.shape != (height, width):
            mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA)
        return pixels, mask

    def _paste(
        self, host: HostPhoto, cutout: CutOut, rng: np.random.Generator
    ) -> tuple[np.ndarray, tuple[float, float, float, float]] | None:
        """The compressed splice and the object's box in it, or None if the object is too small or too thin."""
        smallest, largest = map(math.log, self.options.scale)
        for _ in range(COMPOSE_TRIES):
            scale = math.exp(rng.uniform(smallest, largest))
            softness = float(rng.choice(self.softness))
            options = SpliceOptions(
                scale=(scale, scale),
                rotation=self.options.rotation,
                flip=self.options.flip,
                colour=self.options.colour,
                softness=softness,
                quality=self.options.quality,
            )
            try:
                splice = compose(host, [cutout], options, rng)
            except UncomposableError:
                continue
            buffer = io.BytesIO()
            Image.fromarray(splice.pixels).save(buffer, "JPEG", quality=splice.jpeg_quality)
            return np.array(Image.open(buffer)), splice.sources[1].query_box
        return None

    def _cut(self, view: _View, object_number: int, object_photo: int, rng: np.random.Generator) -> dict[str, Any]:
        """The square around the object, the object's jittered box in it, and boxes of background."""
        image, box = _cut_square(view, self.size, rng)
        height, width = image.shape[:2]
        background = _draw_background(box, (height, width), self.num_background, rng)
        boxes = np.concatenate([_jitter(box, (height, width), self.box_jitter, rng)[None], background])
        if self.image_format == "BGR":
            image = image[:, :, ::-1]
        instances = Instances(
            (height, width),
            gt_boxes=Boxes(torch.from_numpy(boxes.astype(np.float32))),
            # Each piece of background is an object of its own.
            gt_objects=torch.tensor([object_number, *rng.integers(2**62, size=len(background)).tolist()]),
            gt_photos=torch.tensor([object_photo, *[view.photo] * len(background)]),
        )
        return {"image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), "instances": instances}


class DrawHost:
    """A mapper that gives each object another photo of the training set, drawn at random, as ``host_file_name``.

    Args:
        mapper: takes the dataset dict then.
        files: the photos to draw from.

    Raises:
        ValueError: if there is only one photo.
    """

    def __init__(self, mapper: TrainingMapper, files: Sequence[str]) -> None:
        self._mapper = mapper
        self._files = list(dict.fromkeys(files))
        if len(self._files) < 2:
            raise ValueError(f"DATASETS.TRAIN has {len(self._files)} photo; ObjectPairMapper needs at least 2")

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        host = dataset_dict["file_name"]
        while host == dataset_dict["file_name"]:
            host = self._files[np.random.randint(len(self._files))]  # noqa: NPY002
        return self._mapper(dataset_dict | {"host_file_name": host})


def _cut_square(view: _View, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of a view and the object's box in them, (4,) float, XYXY."""
    height, width = view.pixels.shape[:2]
    x0, y0, x1, y1 = view.box
    long_side = max(x1 - x0, y1 - y0)
    shrink = min(1.0, rng.uniform(*MAX_SHARE) * size / long_side) if long_side > MAX_SHARE[1] * size else 1.0
    window = round(size / shrink)
    left, columns = _place_window(x0, x1, window, width, rng)
    top, rows = _place_window(y0, y1, window, height, rng)
    pixels = view.pixels[top : top + rows, left : left + columns]
    if shrink < 1:
        new_size = (max(1, round(columns * shrink)), max(1, round(rows * shrink)))
        pixels = cv2.resize(pixels, new_size, interpolation=cv2.INTER_AREA)
    scale = np.array([pixels.shape[1] / columns, pixels.shape[0] / rows] * 2)
    return pixels, (np.array([x0, y0, x1, y1]) - (left, top, left, top)) * scale


def _place_window(start: float, end: float, window: int, length: int, rng: np.random.Generator) -> tuple[int, int]:
    """Where a window that holds [start, end) begins along a side of the photo, at random, and how long it is."""
    if window >= length:
        return 0, length
    first = max(0, math.ceil(end) - window)
    last = max(first, min(math.floor(start), length - window))
    return int(rng.integers(first, last, endpoint=True)), window


def _jitter(box: np.ndarray, size: tuple[int, int], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """The box (4,) with each side moved, inside the view; as it is where it would get too thin."""
    height, width = size
    moved = box + rng.normal(0, sigma, size=4) * np.tile(box[2:] - box[:2], 2)
    moved = np.clip(moved, 0, [width, height, width, height])
    return moved if (moved[2:] - moved[:2]).min() >= MIN_BOX_SIDE else box


def _draw_background(box: np.ndarray, size: tuple[int, int], count: int, rng: np.random.Generator) -> np.ndarray:
    """At most ``count`` boxes (K, 4) that do not touch the object's."""
    corner = np.array([size[1], size[0]], dtype=np.float64)
    drawn = []
    for _ in range(count * BACKGROUND_TRIES):
        if len(drawn) == count:
            break
        sides = np.exp(rng.uniform(*np.log(BACKGROUND_SIDES), size=2)) * corner
        top_left = rng.uniform(0, 1, size=2) * (corner - sides)
        if (top_left >= box[2:]).any() or (top_left + sides <= box[:2]).any():
            drawn.append(np.concatenate([top_left, top_left + sides]))
    return np.array(drawn).reshape(-1, 4)


def _number(text: str) -> int:
    """A number for a text, the same in every process, and another for every other text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).digest()) >> 1
