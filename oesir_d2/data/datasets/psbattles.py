"""PS-Battles (Heller et al., "The PS-Battles Dataset", 2018): originals, and the photoshops that people made of them.

The tree, as its own and our downloader write it::

    originals.tsv    id url end hash filesize score author link timestamp width height
    photoshops.tsv   the same, with "original", the id of the original, behind "id"
    originals/ID.END
    photoshops/ORIGINAL/ID.END

Links die, so a part of the photos is a valid set. The files come from outside: lines that make no sense are counted
and named. ID, END and ORIGINAL become paths, so they are letters, digits, "_" and "-" only.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oesir_d2.data.datasets.left_out import LeftOut
from oesir_d2.data.datasets.retrieval import (
    add_distractors,
    check_arguments,
    list_distractors,
    make_database,
    make_query,
    register_retrieval,
)
from oesir_d2.data.images import ImageFile

ORIGINALS, PHOTOSHOPS = "originals.tsv", "photoshops.tsv"
COLUMNS = {ORIGINALS: ("id", "url", "end", "hash"), PHOTOSHOPS: ("id", "original", "url", "end", "hash")}
"""The columns that are needed, in the files' order; others may stand beside them."""

_NAME = re.compile(r"[0-9A-Za-z_-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PSBattlesPhoto:
    """A line of one of the files.

    Attributes:
        photo_id: unique within the file.
        original: id of the original; None for an original.
        url: where it was.
        sha256: of the file, in lower case.
        path: of the file, relative to the set's folder.
    """

    photo_id: str
    original: str | None
    url: str
    sha256: str
    path: str


def register_psbattles(name: str, folder: str, *distractors: str) -> None:
    """Register PS-Battles as copy detection: of which original is a photoshop?

    Args:
        name: for DATASETS.TEST.
        folder: the tree; the files are read when the data set is first used.
        *distractors: none, or a folder or list of photos that join the database.

    Raises:
        FileNotFoundError: a file or a folder does not exist.
        ValueError: the name is taken, or there are more paths.
    """
    _register("PSBATTLES", "copy_detection", lambda original: {"positive": [original]}, name, folder, distractors)


def register_pir(name: str, folder: str, *distractors: str) -> None:
    """Register PIR: the same photos under the splice protocol, where the original is the host.

    Only the original of a photoshop is known, not where what was pasted into it came from, so there are no donors.

    Args, Raises: as :func:`register_psbattles`.
    """
    _register("PIR", "splice_retrieval", lambda original: {"host": [original], "donor": []}, name, folder, distractors)


def _register(
    key: str,
    evaluator_type: str,
    make_truth: Callable[[str], dict[str, list[str]]],
    name: str,
    folder: str,
    distractors: tuple[str, ...],
) -> None:
    files = [str(Path(folder) / file) for file in COLUMNS]
    check_arguments(key, name, folders=[folder], files=files, distractors=distractors)
    register_retrieval(name, lambda: load_psbattles(folder, make_truth, *distractors), evaluator_type)


def load_psbattles(
    folder: str | Path, make_truth: Callable[[str], dict[str, list[str]]], *distractors: str
) -> list[dict[str, Any]]:
    """Dataset dicts of the photos that are on disk; no photo is decoded. What is left out is counted in the log.

    Args:
        folder: the tree.
        make_truth: the ground truth of a query from the image id of its original.
        *distractors: see :func:`register_psbattles`.

    Raises:
        ValueError: a file has another form, or no photoshop has its original on disk.
    """
    folder = Path(folder)
    originals, photoshops = (_list_photos_on_disk(folder, file) for file in (ORIGINALS, PHOTOSHOPS))
    known = {photo.photo_id: photo.path for photo in originals}
    with_original = [photo for photo in photoshops if photo.original in known]
    if len(with_original) < len(photoshops):
        without = len(photoshops) - len(with_original)
        logger.warning("%s: %d photoshops left out: their originals are not on disk", folder, without)
    if not with_original:
        raise ValueError(
            f"{folder} has {len(originals)} originals and {len(photoshops)} photoshops on disk, but no photoshop with "
            "its original; datasets/download_psbattles.py fetches them"
        )
    queries = [
        make_query(ImageFile(photo.path, folder / photo.path), make_truth(known[str(photo.original)]))
        for photo in with_original
    ]
    database = make_database(ImageFile(photo.path, folder / photo.path) for photo in originals)
    return queries + add_distractors(database, list_distractors(distractors))


def _list_photos_on_disk(folder: Path, file: str) -> list[PSBattlesPhoto]:
    photos, broken = read_photo_list(folder / file)
    if broken.count:
        logger.warning("%s: %d lines left out: %s", folder / file, broken.count, broken)
    missing = LeftOut()
    on_disk = []
    for photo in photos:
        if (folder / photo.path).is_file():
            on_disk.append(photo)
        else:
            missing.add(photo.path)
    if missing.count:
        logger.warning("%s: %d of %d photos are not on disk: %s", folder / file, missing.count, len(photos), missing)
    return on_disk


def read_photo_list(tsv_file: str | Path) -> tuple[list[PSBattlesPhoto], LeftOut]:
    """Read ``originals.tsv`` or ``photoshops.tsv``: UTF-8, the first line names the columns.

    Returns:
        The photos in the order of the file, and the lines that were left out: without the columns, with an id that is
        no file name or was named before, or with a hash that is none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its first line lacks a column.
    """
    tsv_file = Path(tsv_file)
    if not tsv_file.is_file():
        raise FileNotFoundError(f"{tsv_file} does not exist; it is part of PS-Battles, see datasets/README.md")
    needed = COLUMNS[tsv_file.name]
    photos: dict[str, PSBattlesPhoto] = {}
    broken = LeftOut()
    # Lines, not a reader of CSV: a quote in a title must not swallow the lines after it.
    with open(tsv_file, encoding="utf-8-sig", errors="replace", newline="\n") as lines:
        header = lines.readline().strip("\r\n").split("\t")
        missing = [column for column in needed if column not in header]
        if missing:
            raise ValueError(f"{tsv_file}: the first line lacks the column {missing[0]!r}; needed: {', '.join(needed)}")
        for number, line in enumerate(lines, start=2):
            if not line.strip():
                continue
            try:
                photo = _parse_line(line.rstrip("\r\n").split("\t"), header)
            except ValueError as error:
                broken.add(f"line {number}: {error}")
                continue
            if photo.photo_id in photos:
                broken.add(f"line {number}: {photo.photo_id!r} was named before")
            else:
                photos[photo.photo_id] = photo
    return list(photos.values()), broken


def _parse_line(fields: list[str], header: list[str]) -> PSBattlesPhoto:
    if len(fields) != len(header):
        raise ValueError(f"it has {len(fields)} columns, expected {len(header)}")
    line = {column: field.strip() for column, field in zip(header, fields, strict=True)}
    for column in ("id", "end", "original"):
        if column in line and not _NAME.fullmatch(line[column]):
            raise ValueError(f"{column} is {line[column][:80]!r}, expected letters, digits, '_' and '-'")
    sha256 = line["hash"].lower()
    if not _SHA256.fullmatch(sha256):
        raise ValueError(f"hash is {sha256[:80]!r}, expected 64 hexadecimal digits")
    original = line.get("original")
    folder = "originals" if original is None else f"photoshops/{original}"
    return PSBattlesPhoto(line["id"], original, line["url"], sha256, f"{folder}/{line['id']}.{line['end']}")
