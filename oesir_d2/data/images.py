"""Photos from disk: which files a collection has, and how any one of them is decoded or refused.

A file from outside may be anything, so ``read_image`` has two outcomes only: the whole photo as 8-bit pixels, upright,
or an ``UnreadableImageError`` that says why not. A photo is never decoded in part.
"""

from __future__ import annotations

import logging
import os
import stat
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from oesir_d2.data.pixel_modes import CHANNEL_ORDERS, convert_to_uint8
from oesir_d2.data.quiet_pillow import quiet_pillow

READABLE_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "JPEG2000", "PPM", "PSD", "PCX", "SGI", "QOI")
"""The formats that are read, by Pillow's names. Left out are those that start another program (EPS, WMF), that hold no
photo of their own (PDF, MPEG, ICO), and that cannot be told from noise by their first bytes (TGA)."""

MAX_PIXELS = 178_956_970
"""A photo of more pixels is refused by default: twice the size at which Pillow warns of a decompression bomb."""

_MAX_REASON_LENGTH = 200

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFile:
    """A photo of a collection.

    Attributes:
        image_id: identifier, unique within the collection.
        path: the file; it need not exist or be readable.
    """

    image_id: str
    path: Path


@dataclass(frozen=True)
class DecodedImage:
    """A decoded photo.

    Attributes:
        pixels: (H, W, 3) uint8, upright, that is, after the EXIF rotation.
        width: columns of the original file after its EXIF rotation; larger than W if it was decoded at reduced size.
        height: rows of the original file after its EXIF rotation; larger than H if it was decoded at reduced size.
    """

    pixels: np.ndarray
    width: int
    height: int


class UnreadableImageError(ValueError):
    """A file that cannot be decoded as a whole.

    Attributes:
        path: the file.
        reason: why, on one short line.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot read the image {self.path}: {self.reason}"


def read_image(
    path: str | Path, format: str = "RGB", max_pixels: int = MAX_PIXELS, reduce_to: int | None = None
) -> DecodedImage:
    """Decode one photo, whatever its format and pixel type; of an animation, the first frame.

    Args:
        path: the file.
        format: order of the channels, "RGB" or "BGR".
        max_pixels: a photo of more pixels is refused before it is decoded. Pillow's own bound, twice
            ``PIL.Image.MAX_IMAGE_PIXELS``, holds as well.
        reduce_to: if given, a JPEG whose longer side is at least twice as many pixels is decoded at 1/2, 1/4 or 1/8 of
            its size, its longer side still being at least ``reduce_to``. It saves most of the time and the memory.

    Returns:
        The pixels and the size of the original, both after the EXIF rotation.

    Raises:
        UnreadableImageError: if the file is not a whole image: missing, empty, damaged, of no known format, too large.
        ValueError: if ``format`` or ``reduce_to`` is not one of the allowed values.
    """
    if format not in CHANNEL_ORDERS:
        raise ValueError(f"format is {format!r}, expected one of {', '.join(CHANNEL_ORDERS)}")
    if reduce_to is not None and reduce_to < 1:
        raise ValueError(f"reduce_to is {reduce_to}, expected None or at least 1 pixel")
    path = Path(path)
    _check_regular_file(path)
    try:
        with quiet_pillow, open(path, "rb") as file, Image.open(file, formats=get_readable_formats()) as image:
            if image.width * image.height > max_pixels:
                size = f"{image.width} x {image.height} pixels"
                raise UnreadableImageError(path, f"decompression bomb: {size} are more than the {max_pixels} allowed")
            return _decode(image, format, reduce_to)
    except UnreadableImageError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError(path, "not an image of a known format, or its header is damaged") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(path, f"decompression bomb: {error}") from error
    except PermissionError as error:
        raise UnreadableImageError(path, "permission denied") from error
    except Exception as error:
        # Pillow's plugins let almost any type of error escape from a damaged file: SyntaxError, IndexError, KeyError,
        # ZeroDivisionError, struct.error, MemoryError among them.
        raise UnreadableImageError(path, _describe(error)) from error


def list_images(source: str | Path) -> list[ImageFile]:
    """The photos of a collection, sorted by id for a folder, otherwise in the order of the file.

    Args:
        source: one of
            a folder, searched with its subfolders for files whose extension Pillow can read, hidden ones left out; a
            photo's id is its POSIX path relative to the folder;
            a UTF-8 text file with one path a line, relative to the text file's folder, blank lines and lines
            starting with # left out; a photo's id is its line without the white space around it;
            a ``splices.json``, for the photos of its database with their ids.

    Returns:
        The photos, at least one. The files that a list names are not looked at: they may be missing or damaged.

    Raises:
        FileNotFoundError: if the source does not exist.
        ValueError: if it is none of the three, names a photo twice, or has no photo.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"the image collection {source} does not exist, expected a folder or a list of images")
    if source.is_dir():
        images = _list_folder(source)
    elif not source.is_file():
        raise ValueError(f"the image collection {source} is neither a folder nor a regular file")
    elif source.suffix.lower() in get_image_extensions():
        raise ValueError(f"the image collection {source} is a single image, expected a folder or a list of images")
    elif source.suffix.lower() == ".json":
        images = _list_splices_database(source)
    else:
        images = _list_text_file(source)
    if not images:
        allowed = " ".join(sorted(get_image_extensions()))
        raise ValueError(f"the image collection {source} has no image; the extensions looked for are {allowed}")
    return images


@lru_cache(maxsize=1)
def get_image_extensions() -> frozenset[str]:
    """The file name extensions of the formats that are read, in lower case with their dot."""
    return frozenset(
        extension for extension, name in Image.registered_extensions().items() if name in get_readable_formats()
    )


@lru_cache(maxsize=1)
def get_readable_formats() -> tuple[str, ...]:
    """Those of the readable formats that this build of Pillow has."""
    Image.init()
    return tuple(name for name in READABLE_FORMATS if name in Image.OPEN)


def _list_folder(folder: Path) -> list[ImageFile]:
    images = []
    ignored: Counter[str] = Counter()
    visited = set()
    # Symbolic links to folders come after all real folders, so that a photo's id does not depend on a link to it.
    pending = [folder]
    while pending:
        for parent, folder_names, file_names in os.walk(pending.pop(0), onerror=_log_unlistable_folder):
            status = os.stat(parent)
            if (status.st_dev, status.st_ino) in visited:
                folder_names.clear()
                continue
            visited.add((status.st_dev, status.st_ino))
            folder_names[:] = sorted(name for name in folder_names if not name.startswith("."))
            pending += [Path(parent, name) for name in folder_names if Path(parent, name).is_symlink()]
            for name in file_names:
                path = Path(parent, name)
                if name.startswith("."):
                    continue
                if path.suffix.lower() in get_image_extensions():
                    images.append(ImageFile(_make_valid_text(path.relative_to(folder).as_posix()), path))
                else:
                    ignored[path.suffix.lower()] += 1
    if ignored:
        kinds = ", ".join(f"{count} {extension or 'without extension'}" for extension, count in ignored.most_common())
        logger.info("Files of %s that are not images by their extension: %s", folder, kinds)
    return sorted(images, key=lambda image: image.image_id)


def _list_text_file(path: Path) -> list[ImageFile]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"the image list {path} is not a UTF-8 text file: {error}") from error
    first_line_by_id: dict[str, int] = {}
    for number, line in enumerate((line.strip() for line in lines), start=1):
        if not line or line.startswith("#"):
            continue
        if line in first_line_by_id:
            first = first_line_by_id[line]
            raise ValueError(f"the image list {path} names {line!r} twice, in the lines {first} and {number}")
        first_line_by_id[line] = number
    return [ImageFile(line, path.parent / line) for line in first_line_by_id]


def _list_splices_database(path: Path) -> list[ImageFile]:
    # The splicing package itself builds on this module.
    from oesir_d2.data.splicing.splices_file import read_splices

    splices = read_splices(path, check_files=())
    return [ImageFile(image.image_id, splices.resolve(image.file_name)) for image in splices.database]


def _check_regular_file(path: Path) -> None:
    """Refuse what would hang or surprise when opened: pipes, devices, folders."""
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise UnreadableImageError(path, "the file does not exist") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise UnreadableImageError(path, _describe(error)) from error
    if stat.S_ISDIR(status.st_mode):
        raise UnreadableImageError(path, "it is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImageError(path, "it is not a regular file")
    if status.st_size == 0:
        raise UnreadableImageError(path, "the file is empty")


def _decode(image: Image.Image, format: str, reduce_to: int | None) -> DecodedImage:
    width, height = image.size
    if reduce_to is not None:
        # Pillow takes the smaller of the two sides' factors, so only the longer one may decide.
        image.draft(None, (reduce_to, 1) if width >= height else (1, reduce_to))
    image.load()
    orientation = _read_orientation(image)
    pixels = _rotate_upright(convert_to_uint8(image, format), orientation)
    if orientation >= 5:
        width, height = height, width
    return DecodedImage(pixels, width, height)


def _read_orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if it is missing or damaged.

    Pillow itself turns TIFF images upright while it decodes them and drops their tag, so this follows ``load()``.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data raises as many types as damaged pixels, but the photo itself is whole
        return 1
    return orientation if orientation in range(1, 9) else 1


def _rotate_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation: 2 to 4 are mirrored or turned by 180 degrees, 5 to 8 have rows and columns swapped."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _describe(error: BaseException) -> str:
    """The type and message of an error, on one short line."""
    message = " ".join(str(getattr(error, "strerror", None) or error).split())
    return f"{type(error).__name__}: {message}"[:_MAX_REASON_LENGTH].rstrip(": ")


def _make_valid_text(name: str) -> str:
    """A file name as text that can be written as UTF-8; bytes that are not UTF-8 become backslash escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _log_unlistable_folder(error: OSError) -> None:
    logger.warning("Folder left out: %s cannot be listed: %s", error.filename, error.strerror)
