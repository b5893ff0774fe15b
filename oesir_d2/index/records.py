"""The records of a segment's images, in ``images.jsonl``: counted when opened, read one by one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from .arrays import open_file

_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image file as it was when it was embedded.

    Attributes:
        image_id: identifier of the image, unique within the index.
        path: absolute path of the file.
        width: pixels of the original image, after its EXIF rotation.
        height: pixels of the original image, after its EXIF rotation.
        file_size: bytes.
        modified_ns: time of the file's last change, nanoseconds since the epoch.
        sha256: of the file's content, in hexadecimal digits.
    """

    image_id: str
    path: str
    width: int
    height: int
    file_size: int
    modified_ns: int
    sha256: str


class StoredRecords(Sequence[ImageRecord]):
    """The records in a file, one a line, in the order of the segment's images; make it with ``StoredRecords.open``.

    A record takes four bytes of memory; its line is read whenever it is asked for.
    """

    def __init__(self, path: Path, starts: np.ndarray, state: tuple[int, int]) -> None:
        self._path = path
        # As ``StoredArray.state``.
        self._state = state
        # (I + 1,): the line of record i begins at starts[i] and ends before starts[i + 1].
        self._starts = starts

    @classmethod
    def open(cls, path: Path, count: int) -> StoredRecords:
        """Find the lines of a file and count them.

        Raises:
            ValueError: if the file is missing, its last line is cut short, or it has not ``count`` records.
        """
        starts, size = [np.zeros(1, np.int64)], 0
        try:
            with open(path, "rb") as stream:
                status = os.fstat(stream.fileno())
                last = b"\n"
                while block := stream.read(_BLOCK_BYTES):
                    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
                    starts.append(ends + (size + 1))
                    size += len(block)
                    last = block[-1:]
        except FileNotFoundError:
            raise ValueError(f"{path} is missing") from None
        except OSError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        if last != b"\n":
            raise ValueError(f"{path} is truncated or damaged: its last line has no end")
        lines = np.concatenate(starts)
        if len(lines) - 1 != count:
            raise ValueError(f"{path} holds {len(lines) - 1} images, the manifest says {count}: truncated?")
        state = (status.st_ino, status.st_mtime_ns)
        return cls(path, lines.astype(np.uint32 if size < 2**32 else np.int64), state)

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, row: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, row: slice) -> list[ImageRecord]: ...
    def __getitem__(self, row: int | slice) -> ImageRecord | list[ImageRecord]:
        """Read a record, or the records of a slice.

        Raises:
            ValueError: if a line is not a record.
        """
        if isinstance(row, slice):
            return [self[index] for index in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(f"record {row} of {len(self)}")
        row %= len(self)
        start, end = int(self._starts[row]), int(self._starts[row + 1])
        return self._parse(open_file(self._path, self._state).read(start, end - start))

    def __iter__(self) -> Iterator[ImageRecord]:
        with open(self._path, "rb") as stream:
            for line in stream:
                yield self._parse(line)

    def _parse(self, line: bytes) -> ImageRecord:
        try:
            return ImageRecord(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self._path} is damaged: {error}") from error
