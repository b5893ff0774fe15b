"""The sizes of P photos of a folder without decoding them, for data sets whose annotations do not tell.

Opening each photo of a large set takes minutes, so what was found is kept in a file beside the folder, of the folder's
name and ``.sizes.csv``: ``ImageID,Width,Height``, a photo a line, in pixels after the EXIF rotation. Whoever replaces
photos by others of the same names and other sizes has to delete it.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image
from tqdm import tqdm

from oesir_d2.data.images import UnreadableImageError, get_readable_formats
from oesir_d2.data.quiet_pillow import quiet_pillow
from oesir_d2.files import open_atomically

HEADER = "ImageID,Width,Height"
SAVED_PHOTOS = 50_000
"""After so many photos the file is written: who is interrupted does not begin anew."""
# Small reads, most of whose time on a network's disks is waiting.
_THREADS = 8
_LINES_A_WRITE = 10_000

logger = logging.getLogger(__name__)


def read_photo_size(path: str | Path) -> tuple[int, int]:
    """Width and height of a photo after its EXIF rotation, as :func:`oesir_d2.data.read_image` has them.

    Only the head of the file is read, so the rest may still turn out to be damaged.

    Raises:
        UnreadableImageError: the file is missing, or no photo.
    """
    try:
        with quiet_pillow, open(path, "rb") as file, Image.open(file, formats=get_readable_formats()) as image:
            width, height = image.size
            # Of TIFF files Pillow gives the rotated size.
            is_turned = image.format != "TIFF" and _read_orientation(image) >= 5
    except Exception as error:  # Pillow's plugins let almost any type of error escape from a damaged file
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise UnreadableImageError(Path(path), f"{type(error).__name__}: {reason}"[:200]) from error
    return (height, width) if is_turned else (width, height)


def _read_orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # the photo may be whole, even if its EXIF data are not
        return 1
    return orientation if orientation in range(1, 9) else 1


def load_photo_sizes(
    folder: str | Path, index_by_photo: Mapping[str, int], get_path: Callable[[int], str | None]
) -> tuple[np.ndarray, list[str]]:
    """The sizes of photos, from the file beside their folder or else from the photos, upon which the file is written.

    Args:
        folder: of the photos.
        index_by_photo: the index, in [0, P), of each photo by its id.
        get_path: gives the path of the photo of an index; None if it is not there.

    Returns:
        (P, 2) int32, width and height of each photo, 0 for those that the file does not have and that are not there or
        cannot be read; and for each of those that cannot be read a line that says why.

    Raises:
        ValueError: beside the folder lies another file of that name.
    """
    cache_file = get_cache_file(folder)
    sizes = np.zeros((len(index_by_photo), 2), np.int32)
    unreadable: list[str] = []
    _fill_from_cache(cache_file, index_by_photo, sizes)
    if not _list_missing(sizes, get_path):
        return sizes, unreadable
    with _one_process_at_a_time(folder):
        # Another process may have done it while this one waited.
        _fill_from_cache(cache_file, index_by_photo, sizes)
        missing = _list_missing(sizes, get_path)
        with (
            ThreadPoolExecutor(_THREADS) as threads,
            tqdm(total=len(missing), desc="Reading the sizes of photos", unit="photo") as progress,
        ):
            for start in range(0, len(missing), SAVED_PHOTOS):
                some = missing[start : start + SAVED_PHOTOS]
                paths = [path for index in some if (path := get_path(index)) is not None]
                for index, size in zip(some, threads.map(_try_to_read, paths), strict=True):
                    if isinstance(size, UnreadableImageError):
                        unreadable.append(str(size))
                    else:
                        sizes[index] = size
                    progress.update()
                _write_cache(cache_file, index_by_photo, sizes)
    return sizes, unreadable


def get_cache_file(folder: str | Path) -> Path:
    """Where the sizes of a folder's photos are kept.

    >>> get_cache_file("/data/openimages/train/").as_posix()
    '/data/openimages/train.sizes.csv'
    """
    return Path(f"{os.path.abspath(folder)}.sizes.csv")


def _try_to_read(path: str) -> tuple[int, int] | UnreadableImageError:
    try:
        return read_photo_size(path)
    except UnreadableImageError as error:
        return error


def _list_missing(sizes: np.ndarray, get_path: Callable[[int], str | None]) -> list[int]:
    return [index for index in np.flatnonzero(sizes[:, 0] == 0).tolist() if get_path(index) is not None]


def _fill_from_cache(cache_file: Path, index_by_photo: Mapping[str, int], sizes: np.ndarray) -> None:
    for photo_id, size in _read_cache(cache_file):
        index = index_by_photo.get(photo_id)
        if index is not None:
            sizes[index] = size


def _read_cache(cache_file: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """The photos of the file, without lines that make no sense; none if there is no file."""
    if not cache_file.is_file():
        return
    with open(cache_file, encoding="ascii", errors="replace") as lines:
        header = lines.readline().strip()
        if header != HEADER:
            raise ValueError(
                f"{cache_file} is in the way of the photos' sizes: it begins with {header[:80]!r}; move it"
            )
        for line in lines:
            photo_id, _, size = line.rstrip().partition(",")
            width, _, height = size.partition(",")
            if width.isdecimal() and height.isdecimal() and 0 < int(width) < 2**31 and 0 < int(height) < 2**31:
                yield photo_id, (int(width), int(height))


def _write_cache(cache_file: Path, index_by_photo: Mapping[str, int], sizes: np.ndarray) -> None:
    """Write the sizes that are known, and those of other photos that the file has already."""
    others = (row for row in _read_cache(cache_file) if row[0] not in index_by_photo)
    known = ((photo_id, size) for photo_id, size in zip(index_by_photo, sizes.tolist(), strict=True) if 0 not in size)
    lines = (f"{photo_id},{width},{height}\n" for photo_id, (width, height) in chain(others, known))
    try:
        with open_atomically(cache_file) as file:
            file.write(f"{HEADER}\n".encode())
            while some := "".join(islice(lines, _LINES_A_WRITE)):
                file.write(some.encode())
    except OSError as error:
        logger.warning("%s cannot be written, so the photos' sizes will be read again next time: %s", cache_file, error)


@contextmanager
def _one_process_at_a_time(folder: str | Path) -> Iterator[None]:
    """Wait for other processes that read the sizes of the same photos, as those of one training run do."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            # Not on every network's disks; then each process does the same work.
            logger.info("%s cannot be locked: %s", folder, error)
        yield
    finally:
        os.close(descriptor)
