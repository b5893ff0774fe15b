"""Files that survive a crash: written aside, brought to disk, then renamed into place."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

TEMPORARY_PREFIX = ".tmp-"
"""Names that begin so are unfinished: whoever finds one that is not its own may delete it."""


def temporary_beside(target: Path) -> Path:
    """The name under which this process writes ``target`` before it is renamed into place."""
    return target.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{target.name}")


class HashingWriter:
    """A write-only binary stream that computes the SHA-256 of what passes through it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int:
        self._digest.update(data)
        return self._stream.write(data)

    def sha256(self) -> str:
        """The SHA-256, in hexadecimal digits, of everything written so far."""
        return self._digest.hexdigest()


@contextmanager
def open_synced(path: Path) -> Iterator[HashingWriter]:
    """Create a new file for writing; on leaving the block without an exception its bytes are on disk."""
    with open(path, "xb") as stream:
        yield HashingWriter(stream)
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def naming_errors(path: Path) -> Iterator[None]:
    """Let an ``OSError`` of the block that names no file, as that of a full disk does, name ``path``."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def open_atomically(path: str | os.PathLike[str]) -> Iterator[HashingWriter]:
    """Open a file for writing bytes that takes the place of ``path`` when the block ends without an error.

    After an error, or a crash, ``path`` is as it was before. Missing folders are made.

    Raises:
        FileExistsError: if ``path`` is a folder.
        OSError: if the file cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise FileExistsError(f"{str(path)!r} is a folder, expected the name of a file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        # A process of the same number that was killed may have left this name behind.
        temporary.unlink(missing_ok=True)
        with naming_errors(path), open_synced(temporary) as stream:
            yield stream
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def replace_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Give the file ``path`` the content ``data``; a crash leaves the old content or the new, never a mixture."""
    with open_atomically(path) as stream:
        stream.write(data)


def fsync_directory(folder: Path) -> None:
    """Bring the names in a folder to disk: without it, a rename may be undone by a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path, min_age: float = 0.0) -> None:
    """Delete the files and folders that an interrupted process left unfinished in ``folder``.

    Args:
        folder: where they lie.
        min_age: seconds since they were last written to. What is younger may be another process's, at work; 0 where
            there is none.
    """
    newest = time.time() - min_age
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        try:
            is_young = min_age > 0 and path.lstat().st_mtime > newest
        except FileNotFoundError:  # its process has finished it just now
            continue
        if is_young:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits; the file is read in pieces."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
