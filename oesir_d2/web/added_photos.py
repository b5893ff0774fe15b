"""Where photos lie that users add: under names made from their content, whatever they were called."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from PIL import Image

from oesir_d2.data.images import ImageFile, get_readable_formats
from oesir_d2.data.quiet_pillow import quiet_pillow
from oesir_d2.files import open_atomically, remove_temporaries, sha256_of_file

COMMON_EXTENSIONS = (".jpg", ".png", ".webp", ".tif", ".gif", ".bmp")


@contextmanager
def open_copies(
    folder: Path, index: Path, find_indexed: Callable[[Collection[str]], Collection[str]]
) -> Iterator[Callable[[Path], ImageFile]]:
    """Copy photos into the folder of added photos; those that the index does not know in the end are deleted.

    New copies are listed beside them. A process that is ended meanwhile leaves this list behind, and the next
    block for the same index deletes what it names.

    Args:
        folder: of the added photos; made if missing.
        index: the index that they are added to.
        find_indexed: of some ids, those of photos that the index holds now.

    Yields:
        What copies a photo that was looked at, under a name made from its content: the same content has the same name,
        so that a photo that is added twice is there once.

    Raises:
        BlockingIOError: another process adds photos to this index.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".adding-{hashlib.sha256(os.fsencode(index.resolve())).hexdigest()[:16]}"
    with _open_list(path) as names:
        _delete_unknown(folder, names, find_indexed)
        try:
            yield lambda photo: _keep_photo(photo, folder, names)
        finally:
            _delete_unknown(folder, names, find_indexed)
            path.unlink(missing_ok=True)


def _open_list(path: Path) -> TextIO:
    """The list of new copies, locked."""
    while True:
        names = open(path, "a+", encoding="ascii")
        try:
            fcntl.flock(names, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who had the lock until now has deleted the list that was opened here.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(names.fileno()), os.stat(path)):
                    return names
        except BaseException:
            names.close()
            raise
        names.close()


def _delete_unknown(folder: Path, names: TextIO, find_indexed: Callable[[Collection[str]], Collection[str]]) -> None:
    names.seek(0)
    listed = names.read().split()
    if listed:
        remove_temporaries(folder)
        indexed = find_indexed([_make_id(name) for name in listed])
        for name in listed:
            if _make_id(name) not in indexed:
                (folder / name).unlink(missing_ok=True)
    names.truncate(0)


def _keep_photo(path: Path, folder: Path, names: TextIO) -> ImageFile:
    name = sha256_of_file(path)[:32] + find_extension(path)
    target = folder / name
    if not target.exists():
        names.write(f"{name}\n")
        names.flush()
        with open(path, "rb") as source, open_atomically(target) as file:
            shutil.copyfileobj(source, file)
    return ImageFile(_make_id(name), target)


def _make_id(name: str) -> str:
    return f"added/{name}"


def find_extension(path: Path) -> str:
    """The extension for the format that a photo has by its content, with its dot; "" if the format has none."""
    with quiet_pillow, Image.open(path, formats=get_readable_formats()) as image:
        extensions = [name for name, kind in Image.registered_extensions().items() if kind == image.format]
    common = [name for name in extensions if name in COMMON_EXTENSIONS]
    return (common or extensions or [""])[0]
