"""Report files appear in one step: written piece by piece under a temporary name, then renamed into place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from oesir_d2.index.files import HashingWriter, open_synced, temporary_beside


@contextmanager
def open_atomically(path: str | Path) -> Iterator[HashingWriter]:
    """Open a file for writing bytes that takes the place of ``path`` when the block ends without an error.

    After an error, or a kill, ``path`` is as it was before. Missing folders are made.

    Raises:
        FileExistsError: if ``path`` is a folder.
        OSError: if the file cannot be written.
    """
    target = Path(path)
    if target.is_dir():
        raise FileExistsError(f"{str(target)!r} is a folder, expected the name of a file to write")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(target)
    try:
        # A process of the same number that was killed may have left this name behind.
        temporary.unlink(missing_ok=True)
        with open_synced(temporary) as file:
            yield file
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
