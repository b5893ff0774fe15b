"""The photos of an index at working size, and their keypoints, as geometric verification needs them."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from oesir_d2.data.images import UnreadableImageError, read_image
from oesir_d2.files import sha256_of_file
from oesir_d2.geometry import FeatureCache, FeatureOptions, LocalFeatures, PhotoSize, working_size
from oesir_d2.index import EmbeddingIndex, ImageRecord, SearchResult

FEATURES_FOLDER = "keypoints"
"""Folder of the keypoints' cache in an index."""

WORKING_SIDE = 1024
"""Photos are verified with a longer side of at most so many pixels, as they are embedded."""

# Photos whose pixels are held: the host of a query and a few donors.
_HELD_PHOTOS = 8

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkingPhoto:
    """A photo at working size.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, upright.
        size: its working and its original size, after the EXIF rotation.
    """

    pixels: np.ndarray
    size: PhotoSize


def load_working_photo(path: str | Path, max_pixels: int) -> WorkingPhoto:
    """Read a photo and bring it to working size.

    Raises:
        UnreadableImageError: the file is no photo that can be read whole.
    """
    decoded = read_image(path, max_pixels=max_pixels, reduce_to=WORKING_SIDE)
    size = working_size(decoded.height, decoded.width, WORKING_SIDE)
    pixels = decoded.pixels
    if pixels.shape[:2] != size:
        pixels = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA)
    return WorkingPhoto(pixels, PhotoSize(size, (decoded.height, decoded.width)))


class SourcePhotos:
    """Photos of an index by their ids: those that the searches for one query have found.

    A photo that is gone, cannot be read or was changed since it was indexed counts as one without keypoints.

    Args:
        index: the index; keypoints are kept in a folder of it.
        max_pixels: photos of more pixels are refused.
        options: how keypoints are detected.

    Attributes:
        options: the same.
    """

    def __init__(
        self,
        index: EmbeddingIndex,
        max_pixels: int,
        options: FeatureOptions = FeatureOptions(),  # noqa: B008 - it is immutable
    ) -> None:
        self.options = options
        # A large index has too many to hold them all.
        self._records: dict[str, ImageRecord] = {}
        self._max_pixels = max_pixels
        self._cache = FeatureCache(index.path / FEATURES_FOLDER, options)
        self._held: OrderedDict[str, WorkingPhoto] = OrderedDict()
        self._reported: set[str] = set()

    def begin_query(self) -> None:
        """Forget what was found for other queries; pixels and keypoints that are held stay."""
        self._records.clear()

    def expect(self, results: Iterable[SearchResult]) -> None:
        """Know the photos of some results of a search, which can be asked for from now on."""
        for result in results:
            assert result.record is not None, f"{result.image_id} was not found by a search"
            self._records[result.image_id] = result.record

    def features_of(self, image_id: str) -> LocalFeatures:
        """The keypoints of a photo in pixels of its working size; none if it is not there any more."""
        try:
            return self._cache.get(self._records[image_id].sha256, lambda: self.load(image_id).pixels)
        except UnreadableImageError as error:
            if image_id not in self._reported:  # each part of each query asks for it
                self._reported.add(image_id)
                logger.warning("left unverified: %s", error)
            return LocalFeatures.empty()

    def size_of(self, image_id: str) -> PhotoSize:
        """The sizes of a photo."""
        record = self._records[image_id]
        return PhotoSize(working_size(record.height, record.width, WORKING_SIDE), (record.height, record.width))

    def load(self, image_id: str) -> WorkingPhoto:
        """A photo at working size.

        Raises:
            UnreadableImageError: it is gone, damaged, or another one than was indexed.
        """
        photo = self._held.pop(image_id, None)
        if photo is None:
            photo = self._read(image_id)
        self._held[image_id] = photo
        if len(self._held) > _HELD_PHOTOS:
            self._held.popitem(last=False)
        return photo

    def _read(self, image_id: str) -> WorkingPhoto:
        record = self._records[image_id]
        photo = load_working_photo(record.path, self._max_pixels)
        # Keypoints are kept under the hash that the index has; those of another photo must not be.
        if sha256_of_file(record.path) != record.sha256:
            raise UnreadableImageError(Path(record.path), "it was changed since it was indexed")
        return photo
