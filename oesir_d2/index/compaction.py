"""Compaction: segments that hold what does not count any more, or little, are written anew as fewer, full ones."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np

from .manifest import SegmentInfo
from .segments import Segment, write_segment
from .store import IndexStore

logger = logging.getLogger(__name__)

SEGMENT_OBJECTS = 65_536
"""Objects of a full segment: with 512 dimensions, 130 MB that compaction holds in memory."""


def group_segments(store: IndexStore, segment_objects: int) -> list[list[SegmentInfo]]:
    """Which segments are to become one: neighbours that fit together, but not one alone that is as it should be."""
    groups: list[list[SegmentInfo]] = []
    objects_of_last = 0
    for info in store.manifest.segments:
        objects = live_objects(store.segments[info.name], info)
        if groups and objects_of_last + objects <= segment_objects:
            groups[-1].append(info)
            objects_of_last += objects
        else:
            groups.append([info])
            objects_of_last = objects
    return [group for group in groups if len(group) > 1 or group[0].superseded]


def compact_segments(store: IndexStore, segment_objects: int) -> Iterator[int]:
    """Compact a store, one commit a group; yields the segments done after each. See ``IndexWriter.compact``."""
    for group in group_segments(store, segment_objects):
        [name] = store.next_names()
        with store.change(f"index {store.path} could not be compacted"):
            images = [
                (store.segments[info.name].embeddings_of(row), store.segments[info.name].records[row])
                for info in group
                for row in np.delete(np.arange(info.images), list(info.superseded)).tolist()
            ]
            added = []
            if images:
                added.append(write_segment(store.path, name, images, store.manifest.model.dimension))
            store.commit(added, dropped=[info.name for info in group])
            store.remove_garbage()
        logger.debug("Segments %s to %s of index %s became %s", group[0].name, group[-1].name, store.path, name)
        yield len(group)


def live_objects(segment: Segment, info: SegmentInfo) -> int:
    """Region embeddings of a segment that count."""
    return info.objects - int(np.diff(segment.offsets)[list(info.superseded)].sum())
