"""Cut-outs that are kept: in memory, no larger than needed, and on disk, since GrabCut takes half a second a photo."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from oesir_d2.data.images import ImageFile
from oesir_d2.data.splicing.cutouts import OPAQUE, CutOut, CutOutSource
from oesir_d2.files import replace_file

CACHED_PHOTOS = 2048
"""Photos whose cut-outs stay in memory: with objects of 384 pixels, about a gigabyte at the very most."""


@dataclass(frozen=True)
class StoredCutOut:
    """An object, shrunk.

    Attributes:
        cutout: its pixels, with a box that starts at (0, 0).
        source_box: XYXY of the object in pixels of the photo it comes from, after the EXIF rotation.
    """

    cutout: CutOut
    source_box: tuple[int, int, int, int]


class StoredCutOuts:
    """Another source's cut-outs, each photo cut only once.

    Args:
        source: the source.
        max_side: longer sides of the objects are shrunk to this, in pixels.
        folder: where the objects are kept for the next run; None keeps them in memory only.
    """

    def __init__(self, source: CutOutSource, max_side: int, folder: Path | None = None) -> None:
        self.source = source
        self._max_side = max_side
        self._folder = folder
        self._key = json.dumps([source.settings, max_side], sort_keys=True)
        self._cut_cached = lru_cache(maxsize=CACHED_PHOTOS)(self._cut)

    def cut(self, photo: ImageFile) -> tuple[StoredCutOut, ...]:
        """The usable objects of a photo of the source; none if it cannot be read."""
        return self._cut_cached(photo)

    def _cut(self, photo: ImageFile) -> tuple[StoredCutOut, ...]:
        path = self._folder and self._folder / f"{self._hash(photo)}.npz"
        if path and (stored := _read(path, photo.image_id)) is not None:
            return stored
        cutouts = tuple(shrink(cutout, self._max_side) for cutout in self.source.cut(photo))
        if path:
            replace_file(path, _encode(cutouts))
        return cutouts

    def _hash(self, photo: ImageFile) -> str:
        """A name that changes with the photo's file and with all that decides what is cut from it."""
        state = photo.path.stat() if photo.path.is_file() else None
        parts = [self._key, photo.image_id, str(photo.path.resolve())]
        parts += [str(state.st_size), str(state.st_mtime_ns)] if state else []
        return hashlib.sha256("\n".join(parts).encode("utf-8", "backslashreplace")).hexdigest()[:32]


def shrink(cutout: CutOut, max_side: int) -> StoredCutOut:
    """Shrink an object to a longer side of ``max_side`` pixels; a smaller one stays as it is."""
    height, width = cutout.pixels.shape[:2]
    scale = max_side / max(height, width)
    pixels = cutout.pixels
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        # What a transparent pixel's colour is means nothing, so colours are averaged by their alpha.
        alpha = pixels[..., 3:].astype(np.float32) / 255
        layers = cv2.resize(np.dstack([pixels[..., :3] * alpha, alpha]), size, interpolation=cv2.INTER_AREA)
        colors = layers[..., :3] / np.maximum(layers[..., 3:], 1e-6)
        shrunk = np.rint(np.dstack([colors, layers[..., 3:] * 255])).clip(0, 255).astype(np.uint8)
        # An object of hair-thin parts may fade away altogether.
        pixels = shrunk if (shrunk[..., 3] >= OPAQUE).any() else pixels
    box = (0, 0, pixels.shape[1], pixels.shape[0])
    return StoredCutOut(CutOut(pixels, cutout.image_id, box, cutout.category), cutout.box)


def _encode(cutouts: tuple[StoredCutOut, ...]) -> bytes:
    arrays = {f"pixels_{i}": item.cutout.pixels for i, item in enumerate(cutouts)}
    described = [{"box": item.source_box, "category": item.cutout.category} for item in cutouts]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, described=np.array(json.dumps(described)), **arrays)
    return buffer.getvalue()


def _read(path: Path, image_id: str) -> tuple[StoredCutOut, ...] | None:
    """What is stored, None if nothing is or the file is damaged."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as content:
            described = json.loads(str(content["described"]))
            pixels = [content[f"pixels_{i}"] for i in range(len(described))]
        return tuple(
            StoredCutOut(
                CutOut(array, image_id, (0, 0, array.shape[1], array.shape[0]), item["category"]), tuple(item["box"])
            )
            for array, item in zip(pixels, described, strict=True)
        )
    except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile):
        return None
