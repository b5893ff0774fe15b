"""The folder of an app for files that last no longer than itself, and the end of those whose app was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX = "oesir_d2-web-"


class ScratchFolder:
    """A new folder among the system's temporary ones, which only this user can enter.

    It is locked as long as its process lives, however that ends. So the next app knows which folders are nobody's any
    more, and deletes them before it makes its own.

    Attributes:
        path: the folder.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self) -> None:
        _delete_abandoned(Path(tempfile.gettempdir()))
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
            # Another app that starts just now may have taken the folder for an abandoned one before it was locked.
            lock = _lock(self.path)
            if lock is not None:
                self._lock = lock
                return

    def delete(self) -> None:
        """Delete the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _delete_abandoned(parent: Path) -> None:
    for path in parent.glob(f"{PREFIX}*"):
        lock = _lock(path)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock of a folder of this user; None if another process has it or the folder goes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    with suppress(OSError):
        if os.fstat(descriptor).st_uid == os.getuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
    os.close(descriptor)
    return None
