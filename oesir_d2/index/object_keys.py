"""Keys of objects that stay the same while an index lives: what an engine outside of the index folder knows them by.

An object is row r of segment s, and its key is s * 2^32 + r. Segments are immutable and their numbers only grow, so a
key never changes its meaning, while the numbers that ``EmbeddingIndex`` gives to objects change with every commit.

Shape shorthand: K keys, N objects of a segment.
"""

from __future__ import annotations

import numpy as np

from .manifest import SegmentInfo
from .segments import Segment

ROW_BITS = 32


def first_key(segment_name: str) -> int:
    """The key of a segment's first row; that of the next number's ends the segment's range."""
    return int(segment_name) << ROW_BITS


def end_key(segment_name: str) -> int:
    """The lowest key above all that a segment can have."""
    return (int(segment_name) + 1) << ROW_BITS


def counted_rows(segment: Segment, info: SegmentInfo) -> np.ndarray:
    """The rows of a segment's objects that count, ascending, int64."""
    return np.flatnonzero(~_is_superseded(segment, info))


def superseded_rows(segment: Segment, info: SegmentInfo) -> np.ndarray:
    """The rows of a segment's objects that do not count any more, ascending, int64."""
    return np.flatnonzero(_is_superseded(segment, info))


class ObjectNumbers:
    """Turns keys into the numbers that an ``EmbeddingIndex`` gives to the same objects.

    Args:
        segments: the segments, in the order of the manifest.
        infos: what the manifest says of each of them.
    """

    def __init__(self, segments: list[Segment], infos: tuple[SegmentInfo, ...]) -> None:
        # A run is what lies between two superseded images of a segment: neighbours on disk and in number.
        starts, lengths = [], []
        for segment, info in zip(segments, infos, strict=True):
            gaps = np.array(info.superseded, np.int64)
            begins = segment.offsets[np.append(0, gaps + 1)].astype(np.int64)
            ends = segment.offsets[np.append(gaps, len(segment.offsets) - 1)].astype(np.int64)
            starts.append(begins + first_key(info.name))
            lengths.append(ends - begins)
        keys = np.concatenate([np.empty(0, np.int64), *starts])
        counts = np.concatenate([np.empty(0, np.int64), *lengths])
        numbers = np.cumsum(counts) - counts
        # The segments stand in the order of their images, which compaction may make another than that of their names.
        order = np.lexsort((counts, keys))
        self._starts, self._lengths, self._numbers = keys[order], counts[order], numbers[order]

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The numbers of objects.

        Args:
            keys: (K,) int64.

        Returns:
            (K,) int64, -1 for a key of no object that counts.
        """
        if len(self._starts) == 0:
            return np.full(len(keys), -1, np.int64)
        runs = np.maximum(np.searchsorted(self._starts, keys, side="right") - 1, 0)
        places = keys - self._starts[runs]
        is_counted = (places >= 0) & (places < self._lengths[runs])
        return np.where(is_counted, self._numbers[runs] + places, -1)


def _is_superseded(segment: Segment, info: SegmentInfo) -> np.ndarray:
    """(N,) bool: whether an object's image does not count any more."""
    of_image = np.zeros(len(segment.offsets) - 1, bool)
    of_image[list(info.superseded)] = True
    is_superseded: np.ndarray = np.repeat(of_image, np.diff(segment.offsets))
    return is_superseded
