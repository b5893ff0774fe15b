"""Verification: every file of an index is read and held against the manifest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .compaction import live_objects
from .lease import ReaderLease
from .manifest import MANIFEST_FILE, Manifest
from .segments import Segment, verify_segment
from .stored_object_index import check_object_index, object_index_path


def find_damage(index_path: Path) -> Iterator[str | None]:
    """Read an index in full, piece by piece.

    Yields:
        For each segment, for the manifest, whose counts must be those of the segments, and for the object index on
        disk if there is one: what is wrong with it, or None.

    Raises:
        FileNotFoundError: if there is no index.
        ValueError: if the manifest itself is damaged.
    """
    lease = ReaderLease(index_path)
    manifest = Manifest.load(index_path)
    lease.narrow(manifest.names())
    images = objects = 0
    is_countable = True
    for info in manifest.segments:
        try:
            segment = Segment.open(index_path, info, manifest.model.dimension)
            verify_segment(index_path, info)
            for _ in segment.records:  # every one can be parsed
                pass
            images += info.images - len(set(info.superseded))
            objects += live_objects(segment, info)
        except (OSError, ValueError) as error:
            is_countable = False
            yield str(error)
        else:
            yield None
    yield _find_miscount(index_path, manifest, images, objects) if is_countable else None
    if manifest.object_index is not None:
        path = object_index_path(index_path, manifest.object_index)
        try:
            check_object_index(path, manifest.object_index)
        except OSError as error:
            yield f"{path} cannot be read: {error.strerror}"
        except ValueError as error:
            yield str(error)
        else:
            yield None


def _find_miscount(index_path: Path, manifest: Manifest, images: int, objects: int) -> str | None:
    if (images, objects) == (manifest.images, manifest.objects):
        return None
    return (
        f"{index_path / MANIFEST_FILE} is damaged: it says {manifest.images} images and {manifest.objects} objects, "
        f"its segments hold {images} and {objects}"
    )
