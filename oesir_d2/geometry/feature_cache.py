"""Keypoints kept in files beside an index, so that a photo is gone through once and not for every query.

A file holds the keypoints of one photo by one set of options; its name tells both, the photo by the SHA-256 of its
content. So a cache is never stale, and it may be deleted at any time. A file that is damaged is made anew.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import zlib
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from ..files import remove_temporaries, replace_file
from .features import DESCRIPTOR_SIZE, FeatureOptions, LocalFeatures, detect_features

FORMAT_VERSION = 1
SUFFIX = ".features"

# A keypoint on disk and how a checksum stands before them.
_KEYPOINT = np.dtype([("point", "<f4", 2), ("size", "<f4"), ("angle", "<f4"), ("descriptor", "u1", DESCRIPTOR_SIZE)])
_CHECKSUM_BYTES = 4
# The folder is measured again after this share of its bound was written.
_MEASURE_EVERY = 1 / 16
# Seconds after which a file that another process has begun is taken for left behind.
_ABANDONED_AFTER = 3600.0

logger = logging.getLogger(__name__)


class FeatureCache:
    """Keypoints of photos, from memory, from the folder, or detected.

    A folder that cannot be written to, as on a full disk, makes it slow and is told once in the log, nothing else.
    Several processes may share a folder.

    Args:
        folder: made when it is first written to; None keeps nothing on disk.
        options: how keypoints are detected.
        max_disk_bytes: bound of the folder's size; the files that were not used for longest go first.
        max_memory_bytes: bound of what is held in memory.
    """

    def __init__(
        self,
        folder: Path | None,
        options: FeatureOptions,
        max_disk_bytes: int = 4 << 30,
        max_memory_bytes: int = 256 << 20,
    ) -> None:
        self.options = options
        self._folder = folder
        self._max_disk_bytes = max_disk_bytes
        self._max_memory_bytes = max_memory_bytes
        self._held: OrderedDict[str, LocalFeatures] = OrderedDict()
        self._held_bytes = 0
        self._written_bytes: float = float("inf")  # what an earlier process left is not known
        # Another OpenCV may detect others.
        key = f"{FORMAT_VERSION} {options} OpenCV {cv2.__version__}"
        self._options_digest = hashlib.sha256(key.encode()).hexdigest()[:12]

    def get(self, sha256: str, load_pixels: Callable[[], np.ndarray]) -> LocalFeatures:
        """The keypoints of a photo.

        Args:
            sha256: of the photo's content, in hexadecimal digits.
            load_pixels: gives the photo's pixels, (H, W, 3) uint8 RGB; called only if they are needed.
        """
        features = self._held.get(sha256)
        if features is not None:
            self._held.move_to_end(sha256)
            return features
        path = self._path_of(sha256)
        features = _read(path) if path is not None else None
        if features is None:
            features = detect_features(load_pixels(), self.options)
            if path is not None:
                self._write(path, features)
        self._hold(sha256, features)
        return features

    def _path_of(self, sha256: str) -> Path | None:
        if self._folder is None:
            return None
        # So many files in one folder would make it slow.
        return self._folder / sha256[:2] / f"{sha256}-{self._options_digest}{SUFFIX}"

    def _hold(self, sha256: str, features: LocalFeatures) -> None:
        self._held[sha256] = features
        self._held_bytes += len(features) * _KEYPOINT.itemsize
        while self._held_bytes > self._max_memory_bytes and len(self._held) > 1:
            _, dropped = self._held.popitem(last=False)
            self._held_bytes -= len(dropped) * _KEYPOINT.itemsize

    def _write(self, path: Path, features: LocalFeatures) -> None:
        content = _encode(features)
        try:
            replace_file(path, content)
            self._written_bytes += len(content)
            if self._written_bytes > self._max_disk_bytes * _MEASURE_EVERY:
                self._prune()
                self._written_bytes = 0
        except FileNotFoundError:  # another process is clearing the folder: the next photo may be kept
            logger.debug("%s is not kept this time", path)
        except OSError as error:
            logger.warning("keypoints are not kept: %s: %s", error.filename, error.strerror)
            self._folder = None

    def _prune(self) -> None:
        """Delete what was not used for longest until the folder is within its bound."""
        assert self._folder is not None
        files = []
        for entry in self._folder.iterdir():
            if entry.is_dir():
                remove_temporaries(entry, _ABANDONED_AFTER)
                for path in entry.glob(f"*{SUFFIX}"):
                    with suppress(FileNotFoundError):  # another process has pruned it
                        status = path.stat()
                        files.append((status.st_mtime_ns, status.st_size, path))
        excess = sum(size for _, size, _ in files) - self._max_disk_bytes
        for _, size, path in sorted(files):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size


def _encode(features: LocalFeatures) -> bytes:
    rows = np.empty(len(features), _KEYPOINT)
    rows["point"], rows["size"], rows["angle"] = features.points, features.sizes, features.angles
    rows["descriptor"] = features.descriptors
    stream = io.BytesIO()
    np.save(stream, rows, allow_pickle=False)
    content = stream.getvalue()
    return zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "little") + content


def _read(path: Path) -> LocalFeatures | None:
    """The keypoints in a file, or None if it is not there or damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.debug("%s cannot be read: %s", path, error.strerror)
        return None
    with suppress(OSError):  # another user's cache can be read all the same
        os.utime(path)  # it was used now
    content = data[_CHECKSUM_BYTES:]
    if zlib.crc32(content) != int.from_bytes(data[:_CHECKSUM_BYTES], "little"):
        logger.debug("%s is damaged", path)
        return None
    try:
        rows = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError):
        return None
    if rows.dtype != _KEYPOINT or rows.ndim != 1:
        return None
    return LocalFeatures(
        np.ascontiguousarray(rows["point"]),
        np.ascontiguousarray(rows["size"]),
        np.ascontiguousarray(rows["angle"]),
        np.ascontiguousarray(rows["descriptor"]),
    )
