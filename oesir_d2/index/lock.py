"""The lock that lets one process at a time write an index."""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path

LOCK_FILE = ".lock"


class WriterLock:
    """An exclusive ``flock`` on ``.lock`` in an index folder, held until ``release`` or the end of the process.

    The file stays when the lock is released: deleting it would let two processes lock two different files of
    the same name.

    Args:
        folder: the index folder, which must exist.

    Raises:
        ValueError: if another writer holds the lock, or the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor: int | None = None
        try:
            self._descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._close()
            if isinstance(error, BlockingIOError):
                raise ValueError(f"another process writes this index: {folder}") from None
            raise ValueError(f"index {folder} cannot be written to: {error.strerror}") from error
        _held_locks.add(self)

    def release(self) -> None:
        """Let the next writer in; releasing twice does no harm."""
        _held_locks.discard(self)
        self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


_held_locks: weakref.WeakSet[WriterLock] = weakref.WeakSet()


def _close_in_child() -> None:
    # A forked child (a data loader's worker) shares the lock through its copy of the descriptor. It would keep
    # the index locked for a moment after its parent was killed, and the next run would be refused.
    for lock in list(_held_locks):
        lock.release()


os.register_at_fork(after_in_child=_close_in_child)
