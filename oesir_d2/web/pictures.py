"""Thumbnails and masks that an answer refers to: held in memory for a while, found by an id that nobody can guess."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict


class PictureStore:
    """JPEG and PNG files by opaque ids; when there are too many bytes, the oldest go.

    Args:
        max_bytes: held at most.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._pictures: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    def add(self, picture: bytes) -> str:
        """Keep a picture; its id."""
        picture_id = secrets.token_urlsafe(16)
        with self._lock:
            self._pictures[picture_id] = picture
            self._bytes += len(picture)
            while self._bytes > self._max_bytes:
                _, oldest = self._pictures.popitem(last=False)
                self._bytes -= len(oldest)
        return picture_id

    def get(self, picture_id: str) -> bytes | None:
        """The picture of this id; None if there is none (any more)."""
        with self._lock:
            return self._pictures.get(picture_id)
