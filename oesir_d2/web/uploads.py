"""Files that clients send: how they are taken out of a request, and where they lie until they are searched with.

A client's name for a file is a label to show and nothing else. Files lie in a folder of the app under names that it
makes itself, and are known to clients by these names, which nobody can guess.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

COPIED_BYTES = 1 << 20
MAX_LABEL_LENGTH = 80


@dataclass(frozen=True)
class Upload:
    """A file that a client sent.

    Attributes:
        id: by which it is asked for; also the name of its file.
        path: where it lies.
        label: what the client calls it, made harmless.
    """

    id: str
    path: Path
    label: str


class UploadStore:
    """The files of clients. Each belongs to its request, which discards it; one that is kept waits for another request.

    Args:
        folder: where they lie; nothing else is in it.
        max_kept: when more are kept, the oldest one goes.
        max_age: seconds after which a kept one goes, whether or not anybody asks for anything.
    """

    def __init__(self, folder: Path, max_kept: int, max_age: float) -> None:
        self.folder = folder
        self._max_kept = max_kept
        self._max_age = max_age
        self._kept: OrderedDict[str, tuple[float, Upload]] = OrderedDict()
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._drop_in_time, name="old uploads", daemon=True)
        self._thread.start()

    def save(self, stream: BinaryIO, label: str | None) -> Upload:
        """Write a file.

        Args:
            stream: its content, from where the stream stands.
            label: what the client calls it.

        Raises:
            OSError: it cannot be written; nothing is left of it.
        """
        upload_id = secrets.token_hex(16)
        path = self.folder / upload_id
        try:
            with open(path, "xb") as file:
                shutil.copyfileobj(stream, file, COPIED_BYTES)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return Upload(upload_id, path, make_label(label))

    def keep(self, upload: Upload) -> str:
        """Let a file stay when its request ends; the id by which another can take it."""
        with self._changed:
            self._kept[upload.id] = (time.monotonic(), upload)
            self._drop_old()
            self._changed.notify()
        return upload.id

    def take(self, upload_id: str) -> Upload | None:
        """The kept file of this id, once: it belongs to the caller then. None if there is none (any more)."""
        with self._changed:
            self._drop_old()
            kept = self._kept.pop(upload_id, None)
        return kept[1] if kept else None

    def discard(self, upload: Upload) -> None:
        """Delete a file, unless it was kept."""
        with self._changed:
            is_kept = upload.id in self._kept
        if not is_kept:
            upload.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Delete the files that are kept; no more may be."""
        with self._changed:
            self._closed = True
            self._max_kept = 0
            self._drop_old()
            self._changed.notify()
        self._thread.join()

    def _drop_in_time(self) -> None:
        """What the thread does: wait until the oldest kept file has had its time, and again."""
        with self._changed:
            while not self._closed:
                self._drop_old()
                kept_at = next(iter(self._kept.values()))[0] if self._kept else None
                self._changed.wait(None if kept_at is None else kept_at + self._max_age - time.monotonic())

    def _drop_old(self) -> None:
        """Delete what is too much or too old; called with the lock held."""
        oldest_allowed = time.monotonic() - self._max_age
        while self._kept:
            upload_id, (kept_at, upload) = next(iter(self._kept.items()))
            if len(self._kept) <= self._max_kept and kept_at > oldest_allowed:
                break
            del self._kept[upload_id]
            upload.path.unlink(missing_ok=True)


def make_label(name: str | None) -> str:
    """A client's name for a file as a label: its last part, printable, not long; "photo" for none.

    >>> make_label("../../etc/passwd"), make_label("a\\x00b.png"), make_label("..")
    ('passwd', 'ab.png', 'photo')
    """
    last = PureWindowsPath(PurePosixPath((name or "").replace("\0", "")).name).name
    printable = "".join(c for c in last if c.isprintable()).strip(". ")
    if len(printable) > MAX_LABEL_LENGTH:
        stem, extension = os.path.splitext(printable)
        printable = stem[: MAX_LABEL_LENGTH - len(extension[:10]) - 1] + "…" + extension[:10]
    return printable or "photo"
