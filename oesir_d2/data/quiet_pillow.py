"""Keeps Pillow's warnings about damaged and very large files off stderr."""

from __future__ import annotations

import threading
import warnings


class QuietPillow:
    """Silences the warnings of Pillow's modules while any thread is inside.

    ``warnings.catch_warnings`` alone would not do: threads that leave it in another order than they entered it put
    back each other's filters.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._num_inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b")
            self._num_inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                self._filters.__exit__(None, None, None)


quiet_pillow = QuietPillow()
