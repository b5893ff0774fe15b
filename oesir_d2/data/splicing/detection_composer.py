"""The composer of a detection set: one photo with several pasted objects and the boxes of all that it shows.

Shape shorthand: H, W of a composed photo.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from oesir_d2.data.images import ImageFile, UnreadableImageError, read_image
from oesir_d2.data.splicing.annotated_photos import AnnotatedPhotos, KnownObject
from oesir_d2.data.splicing.compositor import HostPhoto, UncomposableError, compose
from oesir_d2.data.splicing.cutouts import CutOutSource, find_tight_box
from oesir_d2.data.splicing.detection_options import DetectionOptions
from oesir_d2.data.splicing.object_drawer import ObjectDrawer, draw_order, normalise
from oesir_d2.data.splicing.shown_objects import ShownObject, is_hidden, show_known_objects
from oesir_d2.data.splicing.stored_cutouts import StoredCutOut

logger = logging.getLogger(__name__)

HARD_EDGES = 0.25
"""Share of the objects that get the least softness."""

MAX_OBJECT_ENLARGEMENT = 2.0
"""An object is never shown larger than this times what its photo shows: it would be a blur."""

CACHED_HOSTS = 1024
"""Hosts that stay in memory, at the largest size that is needed of them."""


@dataclass(frozen=True)
class DetectionPhoto:
    """A composed photo.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, not compressed yet.
        host: id of the photo that was pasted into.
        objects: all that is known to be visible.
        jpeg_quality: the quality to save the pixels with; None if none was drawn.
    """

    pixels: np.ndarray
    host: str
    objects: tuple[ShownObject, ...]
    jpeg_quality: int | None


@dataclass(frozen=True)
class _Host:
    """A host in memory: its pixels, maybe shrunk, and the factor to them from the pixels of the file."""

    photo: ImageFile
    pixels: np.ndarray
    scale: float
    objects: tuple[KnownObject, ...]


@dataclass(frozen=True)
class _Pasted:
    """A pasted object: where it is still visible, (H, W) bool, and how many pixels it had at first."""

    stored: StoredCutOut
    mask: np.ndarray
    area: int


class DetectionComposer:
    """Draws photos and objects and composes them; see ``make_detection_set`` for the arguments."""

    def __init__(
        self,
        hosts: Sequence[tuple[AnnotatedPhotos, float]],
        sources: Sequence[tuple[CutOutSource, float]],
        options: DetectionOptions,
        cache: Path | None = None,
    ) -> None:
        self._options = options
        self._hosts = [item for item, _ in hosts]
        self._shares = normalise([weight for _, weight in hosts], "hosts")
        self._all_hosts = [(item, photo) for item in self._hosts for photo in item.photos]
        self._drawer = ObjectDrawer(sources, math.ceil(options.scale[1] * options.long_side[1]), cache)
        self._read_cached = lru_cache(maxsize=CACHED_HOSTS)(self._read_host)
        self._unreadable: set[str] = set()

    @property
    def num_hosts(self) -> int:
        """Number of hosts, usable or not."""
        return len(self._all_hosts)

    @property
    def unreadable(self) -> set[str]:
        """Paths of the photos that were to be used so far and could not be read, or are not as they are annotated."""
        return self._unreadable | self._drawer.unreadable

    def show_host(self, number: int) -> DetectionPhoto | None:
        """A host with nothing pasted into it, shrunk to the largest side if it is larger; None if it is not usable."""
        host = self._read_cached(*self._all_hosts[number])
        if host is None:
            return None
        size = (host.pixels.shape[1], host.pixels.shape[0])
        objects = show_known_objects(host.objects, host.photo.image_id, host.scale, size)
        return DetectionPhoto(host.pixels, host.photo.image_id, objects, jpeg_quality=None)

    def compose(self, rng: np.random.Generator) -> DetectionPhoto:
        """Compose one photo; photos that cannot be read and objects that do not fit are drawn again.

        Args:
            rng: the only source of randomness.

        Raises:
            ValueError: if no host is usable, or no source has an object.
        """
        options = self._options
        host = self._draw_host(rng)
        height, width = host.pixels.shape[:2]
        # The host in memory may be smaller than its file, but not than any size that is drawn.
        factor = min(rng.uniform(*options.long_side) / max(height, width), options.max_enlargement / host.scale)
        pixels = _resize(host.pixels, factor)
        pasted: list[_Pasted] = []
        for _ in range(self._draw_count(rng)):
            pixels, pasted = self._paste(host, pixels, pasted, rng)
        covered = np.zeros(pixels.shape[:2], dtype=bool)
        for item in pasted:
            covered |= item.mask
        size = (pixels.shape[1], pixels.shape[0])
        known = show_known_objects(
            host.objects, host.photo.image_id, host.scale * factor, size, covered, options.max_covered
        )
        shown = (_describe_pasted(item) for item in pasted)
        quality = int(rng.integers(*options.quality, endpoint=True))
        return DetectionPhoto(pixels, host.photo.image_id, (*known, *shown), quality)

    def _draw_host(self, rng: np.random.Generator) -> _Host:
        for hosts in (self._hosts[i] for i in draw_order(self._shares, rng)):
            for number in rng.permutation(len(hosts.photos)):
                host = self._read_cached(hosts, hosts.photos[number])
                if host is not None:
                    return host
        raise ValueError(f"none of the {self.num_hosts} hosts can be read and has a known object")

    def _draw_count(self, rng: np.random.Generator) -> int:
        """How many objects are pasted."""
        if self._options.max_objects == 0 or rng.random() < self._options.without:
            return 0
        return int(rng.integers(1, self._options.max_objects, endpoint=True))

    def _paste(
        self, host: _Host, pixels: np.ndarray, pasted: list[_Pasted], rng: np.random.Generator
    ) -> tuple[np.ndarray, list[_Pasted]]:
        """Paste one more object; the pixels and all pasted objects, as they were if none fits."""
        options = self._options
        for stored in self._drawer.draw(host.photo, rng):
            scale = self._draw_scale(stored, max(pixels.shape[:2]), rng)
            softness = rng.uniform(*options.softness) if rng.random() >= HARD_EDGES else options.softness[0]
            look = options.make_splice_options((scale, scale), softness)
            try:
                splice = compose(HostPhoto(host.photo.image_id, pixels), [stored.cutout], look, rng)
            except UncomposableError as error:
                logger.debug("Drawn again: %s", error)
                continue
            mask = splice.sources[1].mask > 0
            left = [_Pasted(item.stored, item.mask & ~mask, item.area) for item in pasted]
            if any(is_hidden(np.count_nonzero(item.mask), item.area, options.max_covered) for item in left):
                continue
            return splice.pixels, [*left, _Pasted(stored, mask, np.count_nonzero(mask))]
        return pixels, pasted

    def _draw_scale(self, stored: StoredCutOut, long_side: int, rng: np.random.Generator) -> float:
        low, high = self._options.scale
        scale = math.exp(rng.uniform(math.log(low), math.log(high)))
        x0, y0, x1, y1 = stored.source_box
        return min(scale, max(low, MAX_OBJECT_ENLARGEMENT * max(x1 - x0, y1 - y0) / long_side))

    def _read_host(self, hosts: AnnotatedPhotos, photo: ImageFile) -> _Host | None:
        try:
            pixels = read_image(photo.path).pixels
        except UnreadableImageError as error:
            logger.warning("Not used as a host: %s", error)
            self._unreadable.add(str(photo.path))
            return None
        height, width = pixels.shape[:2]
        if (width, height) != hosts.get_size(photo):
            # Some annotations were drawn before the EXIF rotation was applied; they would miss the objects.
            logger.warning(
                "Not used as a host: %s is %d x %d pixels, but annotated as %d x %d",
                *(photo.path, width, height, *hosts.get_size(photo)),
            )
            self._unreadable.add(str(photo.path))
            return None
        objects = hosts.get_objects(photo) or [
            # Of this photo nobody knows an object; to take what a source cuts out of it for ground would be worse.
            KnownObject(tuple(float(v) for v in item.source_box), item.cutout.category)
            for item in self._drawer.find_objects(photo)
        ]
        if not objects and not self._options.keep_empty:
            return None
        scale = min(1.0, self._options.long_side[1] / max(height, width))
        return _Host(photo, _resize(pixels, scale) if scale < 1 else pixels, scale, tuple(objects))


def _resize(pixels: np.ndarray, factor: float) -> np.ndarray:
    height, width = pixels.shape[:2]
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)


def _describe_pasted(pasted: _Pasted) -> ShownObject:
    x0, y0, x1, y1 = (float(v) for v in find_tight_box(pasted.mask))
    return ShownObject(
        box=(x0, y0, x1, y1),
        area=float(np.count_nonzero(pasted.mask)),
        source=pasted.stored.cutout.image_id,
        source_box=pasted.stored.source_box,
        is_pasted=True,
        category=pasted.stored.cutout.category,
    )
