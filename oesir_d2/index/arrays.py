"""Arrays on disk, as ``.npy`` files: checked when they are opened, read row by row, no file held open.

An index may have more segments than a process may have files, so a memory map (which holds its file) is only made
for as long as somebody uses it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import open_synced


@dataclass(frozen=True, slots=True)
class StoredArray:
    """An array in a file; make it with ``StoredArray.open``.

    Attributes:
        path: the file.
        shape: (rows, ...).
        dtype: of its elements.
        data_offset: bytes before the first element.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    data_offset: int

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
                size = stream.seek(0, 2)
        except FileNotFoundError:
            raise ValueError(f"{path} is missing") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is truncated or damaged: {error}") from error
        if (found_shape, found_dtype, is_fortran) != (shape, dtype, False):
            raise ValueError(f"{path} holds {found_dtype} {found_shape}, the manifest says {dtype} {shape}")
        expected_size = data_offset + math.prod(shape) * dtype.itemsize
        if size != expected_size:
            raise ValueError(f"{path} is truncated or damaged: it has {size} bytes, expected {expected_size}")
        return cls(path, shape, dtype, data_offset)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read the rows from ``start`` to ``stop`` into a new array."""
        row_shape = self.shape[1:]
        row_elements = math.prod(row_shape)
        elements = np.fromfile(
            self.path,
            self.dtype,
            count=(stop - start) * row_elements,
            offset=self.data_offset + start * row_elements * self.dtype.itemsize,
        )
        return elements.reshape(stop - start, *row_shape)

    def map(self) -> np.ndarray:
        """Memory-map the whole array, read-only; the file is open as long as the map or a slice of it lives."""
        return np.memmap(self.path, self.dtype, mode="r", offset=self.data_offset, shape=self.shape)


def write_array(path: Path, array: np.ndarray) -> str:
    """Write an array into a new file, bring it to disk, and return the file's SHA-256."""
    with open_synced(path) as stream:
        np.lib.format.write_array(stream, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return stream.sha256()
