"""Arrays on disk, as ``.npy`` files: checked when they are opened, read row by row, few files held open.

An index may have more segments than a process may have files, and a search reads a few rows here and there. So the
files read last stay open, up to a number, and rows are read and not mapped: what was looked at once takes no memory.
"""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import open_synced

_OPEN_FILES = 128


class ReadFile:
    """A file open for reading, closed when the last one who holds it lets go; any number of threads may read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # Valid as long as this object is held.
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer with the bytes from ``offset`` on.

        Raises:
            ValueError: if the file ends before.
        """
        while buffer:
            count = os.preadv(self.descriptor, [buffer], offset)
            if count == 0:
                raise ValueError(f"{self._path} is truncated: it ends at byte {offset}")
            buffer, offset = buffer[count:], offset + count

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset`` on."""
        content = bytearray(size)
        self.read_into(memoryview(content), offset)
        return bytes(content)


_files: OrderedDict[tuple[Path, tuple[int, int]], ReadFile] = OrderedDict()
_files_lock = threading.Lock()


def open_file(path: Path, state: tuple[int, int]) -> ReadFile:
    """A file, kept open for the next one who asks; its ``state``, see ``StoredArray``, tells an older one apart."""
    key = (path, state)
    with _files_lock:
        file = _files.get(key)
        if file is None:
            file = _files[key] = ReadFile(path)
            if len(_files) > _OPEN_FILES:
                _files.popitem(last=False)
        else:
            _files.move_to_end(key)
        return file


@dataclass(frozen=True, slots=True)
class StoredArray:
    """An array in a file; make it with ``StoredArray.open``.

    Attributes:
        path: the file.
        shape: (rows, ...).
        dtype: of its elements.
        data_offset: bytes before the first element.
        state: what tells the file from another of the same name: its inode, and the time of its last change in
            nanoseconds.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    data_offset: int
    state: tuple[int, int]

    @classmethod
    def open(cls, path: Path, shape: tuple[int, ...], dtype: np.dtype) -> StoredArray:
        """Check that a file holds an array of this shape and dtype, without reading it.

        Raises:
            ValueError: if the file is missing, truncated, damaged, or holds another array; it is named.
        """
        try:
            # Reads the header alone, so nothing is ever unpickled.
            with open(path, "rb") as stream:
                version = np.lib.format.read_magic(stream)
                if version != (1, 0):
                    raise ValueError(f"its format is {version}, expected (1, 0)")
                found_shape, is_fortran, found_dtype = np.lib.format.read_array_header_1_0(stream)
                data_offset = stream.tell()
                status = os.fstat(stream.fileno())
        except FileNotFoundError:
            raise ValueError(f"{path} is missing") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is truncated or damaged: {error}") from error
        if (found_shape, found_dtype, is_fortran) != (shape, dtype, False):
            raise ValueError(f"{path} holds {found_dtype} {found_shape}, the manifest says {dtype} {shape}")
        expected_size = data_offset + math.prod(shape) * dtype.itemsize
        if status.st_size != expected_size:
            raise ValueError(f"{path} is truncated or damaged: it has {status.st_size} bytes, expected {expected_size}")
        return cls(path, shape, dtype, data_offset, (status.st_ino, status.st_mtime_ns))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read the rows from ``start`` to ``stop`` into a new array."""
        rows = np.empty((stop - start, *self.shape[1:]), self.dtype)
        self.read_into(rows, start)
        return rows

    def read_into(self, rows: np.ndarray, start: int) -> None:
        """Read as many rows as ``rows`` has, from ``start`` on; it is contiguous and of this array's dtype.

        Raises:
            ValueError: if the file has become shorter.
        """
        if rows.size:
            row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
            file = open_file(self.path, self.state)
            file.read_into(rows.data.cast("B"), self.data_offset + start * row_bytes)

    def map(self) -> np.ndarray:
        """Memory-map the whole array, read-only; the file is open as long as the map or a slice of it lives."""
        return np.memmap(self.path, self.dtype, mode="r", offset=self.data_offset, shape=self.shape)


def read_pieces(
    arrays: Sequence[StoredArray], numbers: np.ndarray, starts: np.ndarray, counts: np.ndarray, out: np.ndarray
) -> None:
    """Read many short pieces of several arrays into one array, one after the other; a call of the system each.

    Args:
        arrays: of one dtype, with rows of one shape.
        numbers: (P,) integers: which array each piece is of.
        starts: (P,) integers: the first row of each piece.
        counts: (P,) integers: rows of each piece.
        out: as many rows as all pieces have, contiguous; filled.

    Raises:
        ValueError: if a file has become shorter.
    """
    if out.size == 0:
        return
    row_bytes = out.strides[0]
    ends = (np.cumsum(counts) * row_bytes).tolist()
    content = out.data.cast("B")
    buffers = [content[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    array_of_piece = numbers.tolist()
    used = sorted({*array_of_piece})
    for begin in range(0, len(used), _OPEN_FILES):
        group = used[begin : begin + _OPEN_FILES]
        # Held until all is read: else another thread could close them.
        files = {number: open_file(arrays[number].path, arrays[number].state) for number in group}
        pieces = [piece for piece, number in enumerate(array_of_piece) if number in files]
        of_pieces = [array_of_piece[piece] for piece in pieces]
        offsets = [arrays[number].data_offset for number in of_pieces] + starts[pieces] * row_bytes
        wanted = [buffers[piece] for piece in pieces]
        descriptors = [files[number].descriptor for number in of_pieces]
        # In one expression, since a few hundred reads are most of the time of a search beside the engine's.
        done = list(map(os.preadv, descriptors, zip(wanted, strict=True), offsets.tolist()))
        for place, count in enumerate(done):
            if count != len(wanted[place]):
                rest, offset = wanted[place][count:], int(offsets[place]) + count
                files[of_pieces[place]].read_into(rest, offset)


def write_array(path: Path, array: np.ndarray) -> str:
    """Write an array into a new file, bring it to disk, and return the file's SHA-256."""
    with open_synced(path) as stream:
        np.lib.format.write_array(stream, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return stream.sha256()
