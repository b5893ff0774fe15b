"""Text for reports: file names as they can be shown, numbers as people read them."""

from __future__ import annotations

import os
from pathlib import Path


def make_printable(text: object) -> str:
    """Text that every encoder and font takes: bytes of a file name that are not UTF-8 are shown as ``\\udcXX``,
    control characters as ``\\xXX``."""
    encodable = str(text).encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c >= " " and not "\x7f" <= c <= "\x9f" else f"\\x{ord(c):02x}" for c in encodable)


def get_file_name(path: str | Path) -> str:
    """The last part of a path, or the path itself where it has none."""
    return os.path.basename(str(path)) or str(path)


def format_score(score: float) -> str:
    """A similarity with three decimals, which is as fine as float32 embeddings are stable across machines."""
    return f"{score:.3f}"


def format_count(count: int, singular: str, plural: str | None = None) -> str:
    """A number with its noun: ``1 photo``, ``1,109 photos``.

    >>> format_count(1, "photo"), format_count(1109, "photo"), format_count(2, "match", "matches")
    ('1 photo', '1,109 photos', '2 matches')
    """
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"
