"""Verification: every file of an index is read and held against the manifest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .lease import ReaderLease
from .manifest import Manifest
from .segments import Segment, verify_segment
from .stored_object_index import check_object_index, object_index_path


def find_damage(index_path: Path) -> Iterator[str | None]:
    """Read an index in full, piece by piece.

    Yields:
        For each segment, and for the object index on disk if there is one: what is wrong with it, or None.

    Raises:
        FileNotFoundError: if there is no index.
        ValueError: if the manifest itself is damaged.
    """
    lease = ReaderLease(index_path)
    manifest = Manifest.load(index_path)
    lease.narrow(manifest.names())
    for info in manifest.segments:
        try:
            segment = Segment.open(index_path, info, manifest.model.dimension)
            verify_segment(index_path, info)
            for _ in segment.records:  # every one can be parsed
                pass
        except (OSError, ValueError) as error:
            yield str(error)
        else:
            yield None
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
