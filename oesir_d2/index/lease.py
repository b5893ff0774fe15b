"""Leases: what readers hold, so that a writer deletes no segment that somebody reads.

A reader locks, for reading, the bytes of ``.readers`` whose offsets are the numbers of its segments; a writer deletes
a segment only while it holds its byte for writing. One open file does for any number of segments, and the kernel drops
the locks of a killed process. They are open file description locks, which belong to one opening of the file and not to
the process, so a reader and a writer in one process exclude each other, too.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .manifest import MANIFEST_FILE

LEASE_FILE = ".readers"

# struct flock of 64-bit Linux: type, whence, start, length (0: to the end), process (0 for these locks).
_FLOCK = "hhqqi4x"
# What a file system answers that has no such locks; then there are no leases.
_NO_LOCKS = (errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class ReaderLease:
    """Keeps the segments of an index from being deleted; make it before the manifest is read.

    It covers every segment until ``narrow`` says which are read. An index in a folder that cannot be written to, where
    nobody ever locked anything, is read without a lease.

    Args:
        index_path: the index folder.
    """

    def __init__(self, index_path: Path) -> None:
        self._descriptor: int | None = None
        with suppress(OSError):
            # The writer makes the file; an index of an older version has none. In other folders we make nothing.
            if (index_path / MANIFEST_FILE).exists():
                create_lease_file(index_path)
            self._descriptor = os.open(index_path / LEASE_FILE, os.O_RDONLY | os.O_CLOEXEC)
        if self._descriptor is not None:
            weakref.finalize(self, os.close, self._descriptor)
            with suppress(OSError):
                # Waits while a writer deletes a segment, which takes milliseconds.
                _lock(self._descriptor, fcntl.F_OFD_SETLKW, fcntl.F_RDLCK, 0, 0)

    def narrow(self, names: Iterable[str]) -> None:
        """Let all segments go but those of these names."""
        if self._descriptor is None:
            return
        begin = 0
        with suppress(OSError):
            for number in sorted(map(int, names)):
                if number > begin:
                    _lock(self._descriptor, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, begin, number - begin)
                begin = number + 1
            _lock(self._descriptor, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, begin, 0)


def create_lease_file(index_path: Path) -> None:
    """Make the file that readers lock, if it is not there."""
    path = index_path / LEASE_FILE
    if not path.exists():
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))


@contextmanager
def unread(index_path: Path, name: str) -> Iterator[bool]:
    """Whether nobody reads a segment; as long as the block lasts, nobody begins to.

    Only the holder of the writer's lock may call this.
    """
    try:
        descriptor = os.open(index_path / LEASE_FILE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        # Whoever may not lock may not delete either, and finds out.
        yield True
        return
    try:
        try:
            _lock(descriptor, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, int(name), 1)
            is_unread = True
        except OSError as error:
            is_unread = error.errno in _NO_LOCKS
        yield is_unread
    finally:
        os.close(descriptor)


def _lock(descriptor: int, command: int, kind: int, start: int, length: int) -> None:
    fcntl.fcntl(descriptor, command, struct.pack(_FLOCK, kind, os.SEEK_SET, start, length, 0))
