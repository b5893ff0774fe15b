"""Google Landmarks, version 1, 2 and 2-clean, as a data set: photos, each with the class of its landmark.

The files come from outside and have millions of lines, so they are read line by line: a line that makes no sense is
counted and named, and cannot swallow those after it, as an unclosed quote would in a reader of CSV.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oesir_d2.data.datasets.catalog import register_dataset
from oesir_d2.data.datasets.left_out import NUM_NAMED, name_first

PHOTO_HEADERS = (("id", "url", "landmark_id"), ("id", "landmark_id"))
"""The columns of a file of one photo a line."""
LANDMARK_HEADERS = (("landmark_id", "images"),)
"""The columns of a file of one landmark a line, with the ids of its photos, separated by spaces."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LandmarkList:
    """What a file of Google Landmarks says.

    Attributes:
        landmarks: the number of the landmark by the id of the photo, in the order of the file.
        num_broken: lines, or photos of a line, that were left out.
        broken: the first of them, with the number of the line and the reason.
    """

    landmarks: dict[str, int]
    num_broken: int
    broken: tuple[str, ...]


def register_landmarks(name: str, csv_file: str | Path, image_folder: str | Path, min_photos: int = 1) -> None:
    """Register a file of Google Landmarks.

    Args:
        name: for DATASETS.TRAIN.
        csv_file, image_folder, min_photos: see :func:`load_landmarks`; read when the data set is first used.

    Raises:
        FileNotFoundError: if the file or the folder does not exist.
        ValueError: if the name is taken, or ``min_photos`` is not positive.
    """
    if not Path(csv_file).is_file():
        raise FileNotFoundError(f"DATASETS.OESIR.LANDMARKS: {str(csv_file)!r} of {name!r} is no file")
    if not Path(image_folder).is_dir():
        raise FileNotFoundError(f"DATASETS.OESIR.LANDMARKS: {str(image_folder)!r} of {name!r} is no folder")
    if min_photos < 1:
        raise ValueError(f"DATASETS.OESIR.LANDMARK_MIN_PHOTOS is {min_photos}; allowed: at least 1")
    register_dataset(name, lambda: load_landmarks(csv_file, image_folder, min_photos), evaluator_type="landmarks")


def load_landmarks(csv_file: str | Path, image_folder: str | Path, min_photos: int = 1) -> list[dict[str, Any]]:
    """Dataset dicts of the photos that are on disk; no photo is opened. What is left out is counted in the log.

    Args:
        csv_file: see :func:`read_landmark_list`.
        image_folder: holds the photo of the id ``abcdef`` as ``a/b/c/abcdef.jpg`` or as ``abcdef.jpg``.
        min_photos: landmarks of fewer photos on disk are left out.

    Returns:
        In the order of the file, dicts with ``file_name``, ``image_id`` (the photo's id), ``landmark_id`` (as in the
        file) and ``class_id``: the landmarks that are left, in the order of their numbers, are classes 0, 1, 2, ….

    Raises:
        ValueError: if the file has another form, or no photo is left.
        OSError: if the file cannot be read.
    """
    listed = read_landmark_list(csv_file)
    if listed.num_broken:
        shown = name_first(listed.broken, listed.num_broken)
        logger.warning("%s: %d entries left out: %s", csv_file, listed.num_broken, shown)
    paths = {photo_id: _find_photo(str(image_folder), photo_id) for photo_id in listed.landmarks}
    missing = [photo_id for photo_id, path in paths.items() if path is None]
    if missing:
        shown = name_first(missing, len(missing))
        logger.warning("%s: %d of %d photos are not in %s: %s", csv_file, len(missing), len(paths), image_folder, shown)
    counts = Counter(listed.landmarks[photo_id] for photo_id, path in paths.items() if path is not None)
    kept = sorted(landmark_id for landmark_id, count in counts.items() if count >= min_photos)
    class_ids = {landmark_id: class_id for class_id, landmark_id in enumerate(kept)}
    dataset_dicts = [
        {
            "file_name": path,
            "image_id": photo_id,
            "landmark_id": landmark_id,
            "class_id": class_ids[landmark_id],
        }
        for (photo_id, landmark_id), path in zip(listed.landmarks.items(), paths.values(), strict=True)
        if path is not None and landmark_id in class_ids
    ]
    if not dataset_dicts:
        raise ValueError(
            f"{csv_file} leaves no photo: it lists {len(paths)}, of which {len(paths) - len(missing)} are in "
            f"{image_folder} (as a/b/c/abcdef.jpg or abcdef.jpg), of {len(counts)} landmarks, none of which has "
            f"{min_photos} or more"
        )
    if len(kept) < len(counts):
        logger.info("%s: %d landmarks of fewer than %d photos left out", csv_file, len(counts) - len(kept), min_photos)
    logger.info("%s: %d photos of %d landmarks", csv_file, len(dataset_dicts), len(kept))
    return dataset_dicts


def read_landmark_list(csv_file: str | Path) -> LandmarkList:
    """Read a file of Google Landmarks: UTF-8, its first line one of ``PHOTO_HEADERS`` or ``LANDMARK_HEADERS``.

    Left out are lines without the columns of the header, landmarks whose number is none ("None" in version 1), ids that
    are no file names, and photos that the file has named before.

    Raises:
        ValueError: if the file has another form.
        OSError: if the file cannot be read.
    """
    landmarks: dict[str, int] = {}
    broken: list[str] = []
    num_broken = 0

    def leave_out(number: int, reason: str) -> None:
        nonlocal num_broken
        num_broken += 1
        if len(broken) < NUM_NAMED:
            broken.append(f"line {number}: {reason}")

    # Bytes that are not UTF-8 make one line wrong, or none where they are in a URL.
    with open(csv_file, encoding="utf-8-sig", errors="replace") as lines:
        header = tuple(_unquote(column) for column in lines.readline().split(","))
        if header not in PHOTO_HEADERS + LANDMARK_HEADERS:
            allowed = " or ".join(",".join(columns) for columns in PHOTO_HEADERS + LANDMARK_HEADERS)
            shown = ",".join(header)[:80]
            raise ValueError(f"{csv_file} is no file of Google Landmarks: it begins with {shown!r}; allowed: {allowed}")
        for number, line in enumerate(lines, start=2):
            if not line.strip():
                continue
            try:
                landmark_id, photo_ids = _parse_line(line, header)
            except ValueError as error:
                leave_out(number, str(error))
                continue
            for photo_id in photo_ids:
                if not _PHOTO_ID.fullmatch(photo_id):
                    leave_out(number, f"the photo's id is {photo_id[:80]!r}")
                elif photo_id in landmarks:
                    leave_out(number, f"the photo {photo_id} was named before")
                else:
                    landmarks[photo_id] = landmark_id
    return LandmarkList(landmarks, num_broken, tuple(broken))


# An id becomes a path, which must not lead out of the folder.
_PHOTO_ID = re.compile(r"[0-9A-Za-z_-]+")


def _parse_line(line: str, header: tuple[str, ...]) -> tuple[int, list[str]]:
    """The number of the landmark and the ids of its photos.

    Raises:
        ValueError: the line has not the header's columns, or no number of a landmark.
    """
    first, comma, rest = line.partition(",")
    if not comma:
        raise ValueError(f"it has no comma: {line.strip()[:80]!r}")
    if header in LANDMARK_HEADERS:
        landmark, photo_ids = _unquote(first), _unquote(rest).split()
        if not photo_ids:
            raise ValueError("it has no photo")
    else:
        # A URL may have commas, quoted or not.
        *url, last = rest.rsplit(",", 1)
        if len(url) != len(header) - 2:
            raise ValueError(f"it has not the columns {','.join(header)}: {line.strip()[:80]!r}")
        landmark, photo_ids = _unquote(last), [_unquote(first)]
    if not (landmark.isascii() and landmark.isdecimal()):
        raise ValueError(f"the landmark's number is {landmark[:80]!r}")
    return int(landmark), photo_ids


def _unquote(field: str) -> str:
    """
    >>> _unquote(' "landmark_id" ')
    'landmark_id'
    """
    return field.strip().strip('"').strip()


def _find_photo(folder: str, photo_id: str) -> str | None:
    """The path of a photo; None if it is not there."""
    return next((path for path in _list_places(folder, photo_id) if os.path.isfile(path)), None)


def _list_places(folder: str, photo_id: str) -> Iterator[str]:
    """
    >>> list(_list_places("train", "0123abc"))
    ['train/0/1/2/0123abc.jpg', 'train/0123abc.jpg']
    """
    yield os.path.join(folder, *photo_id[:3], f"{photo_id}.jpg")
    yield os.path.join(folder, f"{photo_id}.jpg")
