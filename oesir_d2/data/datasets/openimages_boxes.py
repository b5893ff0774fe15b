"""The boxes of OpenImages, read from the official CSV files into arrays: B boxes in P photos.

The training set's file has 14.6 million lines, so it is read line by line into arrays of 26 bytes a box. A line that
makes no sense is counted and named, not fatal.
"""

from __future__ import annotations

import math
import os
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from detectron2.utils import comm
from tqdm import tqdm

NEEDED_COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax")
"""In whatever order and among whatever others: those of versions 4 to 7, and of the challenges, have these."""
FLAG_COLUMNS = ("IsGroupOf", "IsDepiction")
"""1, 0, or -1 where nobody looked: for the training set's boxes that were not drawn by hand. -1, and a file without the
column, count as 0."""
ROUNDING = 1e-3
"""By so much a coordinate may lie outside of [0, 1], a pixel of the largest photos; it is moved to the border."""
NUM_NAMED = 3
"""So many of the lines that were left out are named."""

_PHOTO_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
_LINES_A_STEP = 10_000


@dataclass(frozen=True)
class BoxList:
    """What a file of boxes says.

    Attributes:
        index_by_photo: the index of each photo by its id, in the order of the file; P of them.
        photos: (B,) int32, the index of the box's photo.
        boxes: (B, 4) float32, XYXY in [0, 1], shares of the photo's width and height.
        labels: (B,) int32, the place of the box's label in the list of classes.
        is_group: (B,) bool: five or more objects that touch each other, in one box.
        is_depiction: (B,) bool: not the object itself but a drawing, a toy or a statue of it.
        num_unknown: boxes of which one of these two is not known.
        num_broken: lines that were left out.
        broken: the first of them, as "file:line: reason".
    """

    index_by_photo: dict[str, int]
    photos: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    is_group: np.ndarray
    is_depiction: np.ndarray
    num_unknown: int
    num_broken: int
    broken: tuple[str, ...]


def check_boxes_file(boxes_csv: str | Path) -> None:
    """Look at the first line of a file of boxes.

    Raises:
        ValueError: it lacks one of ``NEEDED_COLUMNS``.
        OSError: the file cannot be read.
    """
    with _open(boxes_csv) as lines:
        _read_header(boxes_csv, lines)


def read_boxes(boxes_csv: str | Path, labels: Iterable[str]) -> BoxList:
    """Read a file of boxes: UTF-8, its first line the names of its columns.

    Left out are lines without these columns, coordinates that are no numbers in [0, 1], boxes without area, labels that
    are none, flags other than 1, 0 and -1, and photos whose ids are no file names.

    Args:
        labels: those of all classes.

    Raises:
        ValueError: the file has another form.
        OSError: the file cannot be read.
    """
    index_by_photo: dict[str, int] = {}
    photos, places, coordinates, flags = array("i"), array("i"), array("f"), array("b")
    broken: list[str] = []
    num_broken = 0
    with _open(boxes_csv) as lines:
        parser = _LineParser(_read_header(boxes_csv, lines), labels)
        for number, line in enumerate(_show_progress(boxes_csv, lines), start=2):
            if not line.strip():
                continue
            try:
                photo_id, place, box, flags_per_box = parser.parse(line)
                index = index_by_photo.get(photo_id)
                if index is None:
                    index = index_by_photo[_check_photo_id(photo_id)] = len(index_by_photo)
            except ValueError as error:
                num_broken += 1
                if len(broken) < NUM_NAMED:
                    broken.append(f"{boxes_csv}:{number}: {error}")
                continue
            photos.append(index)
            places.append(place)
            coordinates.extend(box)
            flags.extend(flags_per_box)
    flag_columns = np.frombuffer(flags, np.int8).reshape(-1, len(FLAG_COLUMNS))
    return BoxList(
        index_by_photo=index_by_photo,
        photos=np.frombuffer(photos, np.int32),
        boxes=np.frombuffer(coordinates, np.float32).reshape(-1, 4),
        labels=np.frombuffer(places, np.int32),
        is_group=flag_columns[:, 0] == 1,
        is_depiction=flag_columns[:, 1] == 1,
        num_unknown=int((flag_columns == -1).any(axis=1).sum()),
        num_broken=num_broken,
        broken=tuple(broken),
    )


class _LineParser:
    """Reads one line after another, by the columns of the first.

    Args:
        columns: their names.
        labels: those of all classes.
    """

    def __init__(self, columns: list[str], labels: Iterable[str]) -> None:
        self._num_columns = len(columns)
        self._needed = [columns.index(column) for column in NEEDED_COLUMNS]
        # A flag that the file does not have is read from one more field that every line gets.
        self._flags = [columns.index(column) if column in columns else -1 for column in FLAG_COLUMNS]
        self._place_by_label = {label: place for place, label in enumerate(labels)}

    def parse(self, line: str) -> tuple[str, int, tuple[float, float, float, float], list[int]]:
        """The photo's id, the label's place, the box, and the flags in the order of ``FLAG_COLUMNS``.

        Raises:
            ValueError: the line makes no sense.
        """
        fields = line.rstrip("\r\n").split(",")
        if len(fields) != self._num_columns:
            raise ValueError(f"{len(fields)} fields, expected {self._num_columns}")
        fields.append("0")
        photo_id, label, *corners = (fields[column] for column in self._needed)
        place = self._place_by_label.get(label)
        if place is None:
            raise ValueError(f"the label {label[:80]!r} is not in the list of classes")
        return photo_id, place, _parse_box(corners), [_parse_flag(fields[column]) for column in self._flags]


def _parse_box(corners: list[str]) -> tuple[float, float, float, float]:
    """XMin, XMax, YMin, YMax as XYXY."""
    try:
        x0, x1, y0, y1 = map(float, corners)
    except ValueError:
        x0 = x1 = y0 = y1 = math.nan
    low, high = -ROUNDING, 1 + ROUNDING
    if not (low <= x0 <= high and low <= x1 <= high and low <= y0 <= high and low <= y1 <= high):
        raise ValueError(f"XMin, XMax, YMin, YMax are {', '.join(corners)[:80]}, expected numbers in [0, 1]")
    x0, y0, x1, y1 = max(x0, 0.0), max(y0, 0.0), min(x1, 1.0), min(y1, 1.0)
    if x0 >= x1 or y0 >= y1:
        raise ValueError(f"XMin, XMax, YMin, YMax are {', '.join(corners)[:80]}, a box without area")
    return x0, y0, x1, y1


def _parse_flag(field: str) -> int:
    if field not in ("0", "1", "-1"):
        raise ValueError(f"a flag is {field[:80]!r}, expected 1, 0 or -1")
    return int(field)


def _check_photo_id(photo_id: str) -> str:
    """An id becomes a path, which must not lead out of the folder."""
    if not _PHOTO_ID.fullmatch(photo_id):
        raise ValueError(f"the photo's id is {photo_id[:80]!r}")
    return photo_id


def _open(boxes_csv: str | Path) -> TextIO:
    # Bytes that are not UTF-8 make one line wrong.
    return open(boxes_csv, encoding="utf-8-sig", errors="replace")


def _read_header(boxes_csv: str | Path, lines: TextIO) -> list[str]:
    line = lines.readline()
    columns = [column.strip().strip('"') for column in line.split(",")]
    missing = [column for column in NEEDED_COLUMNS if column not in columns]
    if missing:
        raise ValueError(
            f"{boxes_csv} is no file of OpenImages' boxes: its first line, {line.strip()[:80]!r}, lacks "
            f"{', '.join(missing)}; expected the official ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,…"
        )
    return columns


def _show_progress(boxes_csv: str | Path, lines: TextIO) -> Iterator[str]:
    """The same lines, with a progress bar of the bytes that were read."""
    with tqdm(
        total=os.path.getsize(boxes_csv),
        desc=f"Reading {Path(boxes_csv).name}",
        unit="B",
        unit_scale=True,
        disable=not comm.is_main_process(),
    ) as progress:
        num_bytes = 0
        for number, line in enumerate(lines):
            num_bytes += len(line)
            if number % _LINES_A_STEP == 0:
                progress.update(num_bytes)
                num_bytes = 0
            yield line
        progress.update(num_bytes)
