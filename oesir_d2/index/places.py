"""The images of an index that count, numbered through all its segments.

Shape shorthand: I images, D dimensions.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import overload

import numpy as np

from .arrays import StoredArray
from .records import ImageRecord
from .segments import Segment

_OBJECTS_PER_MARK = 16
_MARKS_AT_ONCE = 4096


class ImagePlaces(Sequence[ImageRecord]):
    """The records of images 0 to I - 1, and where the images lie; no memory but for segments with gaps.

    Args:
        segments: the segments, in order.
        superseded: for each of them, the positions of the images that are left out, ascending.
    """

    def __init__(self, segments: Sequence[Segment], superseded: Sequence[tuple[int, ...]]) -> None:
        self._segments = segments
        # Positions of the images that count, None where all do.
        self._rows = [
            np.delete(np.arange(len(segment.records), dtype=np.int32), gaps) if gaps else None
            for segment, gaps in zip(segments, superseded, strict=True)
        ]
        counts = [len(segment.records) - len(gaps) for segment, gaps in zip(segments, superseded, strict=True)]
        self._first = list(accumulate(counts, initial=0))

    def locate(self, image: int) -> tuple[int, int]:
        """The segment's position in the list, and the image's position in the segment."""
        number = bisect_right(self._first, image) - 1
        row = image - self._first[number]
        rows = self._rows[number]
        return number, row if rows is None else int(rows[row])

    def __len__(self) -> int:
        return self._first[-1]

    @overload
    def __getitem__(self, image: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, image: slice) -> list[ImageRecord]: ...
    def __getitem__(self, image: int | slice) -> ImageRecord | list[ImageRecord]:
        if isinstance(image, slice):
            return [self[index] for index in range(*image.indices(len(self)))]
        if not -len(self) <= image < len(self):
            raise IndexError(f"image {image} of {len(self)}")
        number, row = self.locate(int(image) % len(self))
        return self._segments[number].records[row]

    def __iter__(self) -> Iterator[ImageRecord]:
        for segment, rows in zip(self._segments, self._rows, strict=True):
            counts = np.ones(len(segment.records), dtype=bool)
            if rows is not None:
                counts[:] = False
                counts[rows] = True
            for record, is_counted in zip(segment.records, counts.tolist(), strict=True):
                if is_counted:
                    yield record


class ObjectOwners:
    """Finds the images that objects belong to, several times as fast as a binary search.

    Args:
        offsets: (I + 1,) int64: image i has the objects offsets[i] to offsets[i + 1].
    """

    def __init__(self, offsets: np.ndarray) -> None:
        self._offsets = offsets
        # The owner of every 16th object: a quarter of a byte an object. Made piece by piece, to take no more.
        self._marks = np.empty(-(-int(offsets[-1]) // _OBJECTS_PER_MARK), np.uint32)
        for start in range(0, len(self._marks), _MARKS_AT_ONCE):
            part = self._marks[start : start + _MARKS_AT_ONCE]
            objects = np.arange(start, start + len(part)) * _OBJECTS_PER_MARK
            part[:] = np.searchsorted(offsets, objects, side="right") - 1

    def find(self, object_ids: np.ndarray) -> np.ndarray:
        """The images, int64, of objects of any shape."""
        images = self._marks[object_ids // _OBJECTS_PER_MARK].astype(np.int64)
        for _ in range(_OBJECTS_PER_MARK):
            is_behind = self._offsets[images + 1] <= object_ids
            if not is_behind.any():
                return images
            images += is_behind
        # Images without regions lie in between.
        return np.searchsorted(self._offsets, object_ids, side="right") - 1


class ObjectPlaces:
    """Finds where objects lie.

    Args:
        segments: the segments, in order.
        superseded: for each of them, the positions of the images that are left out, ascending.
    """

    def __init__(self, segments: Sequence[Segment], superseded: Sequence[tuple[int, ...]]) -> None:
        # A run is what lies between two superseded images of a segment: neighbours on disk and in number.
        rows, ends, numbers = [], [], []
        for number, (segment, gaps) in enumerate(zip(segments, superseded, strict=True)):
            rows.append(segment.offsets[[0, *(gap + 1 for gap in gaps)]])
            ends.append(segment.offsets[[*gaps, len(segment.offsets) - 1]])
            numbers.append(np.full(len(gaps) + 1, number))
        empty = np.empty(0, np.int64)
        self._rows, self._numbers = np.concatenate([empty, *rows]), np.concatenate([empty, *numbers])
        lengths = np.concatenate([empty, *ends]) - self._rows
        self._starts = np.cumsum(lengths) - lengths

    def locate(self, object_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The positions of the objects' segments in the list, and their rows there, int64."""
        runs = np.searchsorted(self._starts, object_ids, side="right") - 1
        return self._numbers[runs], object_ids - self._starts[runs] + self._rows[runs]


class VectorChunks:
    """Iterates, as often as asked, over the vectors of an index: (n, D) float32, L2-normalised, read piece by piece.

    Args:
        segments: the segments, in order.
        superseded: for each of them, the positions of the images that are left out, ascending.
        first: the vectors before this one are left out.
        chunk: vectors a piece at most; > 0.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        superseded: Sequence[tuple[int, ...]],
        first: int = 0,
        chunk: int = 16_384,
    ) -> None:
        self._segments = segments
        self._superseded = superseded
        self._first = first
        self._chunk = chunk

    def __iter__(self) -> Iterator[np.ndarray]:
        to_skip = self._first
        for vectors, start, stop in self._pieces():
            skipped = min(to_skip, stop - start)
            to_skip -= skipped
            for begin in range(start + skipped, stop, self._chunk):
                yield vectors.read(begin, min(begin + self._chunk, stop))

    def _pieces(self) -> Iterator[tuple[StoredArray, int, int]]:
        for segment, superseded in zip(self._segments, self._superseded, strict=True):
            # What lies between two superseded images is one piece of the file.
            begin = 0
            for row in (*superseded, len(segment.records)):
                yield segment.vectors, int(segment.offsets[begin]), int(segment.offsets[row])
                begin = row + 1
