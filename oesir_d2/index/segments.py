"""Segments: the immutable folders that hold the embeddings of an index.

Shape shorthand: I images of a segment, N objects of all of them, D dimensions.

A segment is a folder of plain files: ``vectors.npy`` (N, D) float32, ``boxes.npy`` (N, 4) float32, ``scores.npy`` (N,)
float32, ``classes.npy`` (N,) int64, ``offsets.npy`` (I + 1,) int64 (the objects of image i are rows offsets[i] to
offsets[i + 1]), and ``images.jsonl``, one record an image. It is never changed once it has its name.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..files import fsync_directory, open_synced, sha256_of_file, temporary_beside
from ..structures import ImageEmbeddings
from .arrays import StoredArray, write_array
from .manifest import SegmentInfo
from .records import ImageRecord, StoredRecords

SEGMENTS_FOLDER = "segments"
RECORDS_FILE = "images.jsonl"


@dataclass(frozen=True)
class Segment:
    """A segment opened for reading.

    Attributes:
        name: the name that the manifest gives it.
        records: of the images 0 to I - 1, on disk.
        offsets: (I + 1,) uint32 or int64: the objects of image i are rows offsets[i] to offsets[i + 1].
        vectors: (N, D) float32, L2-normalised, on disk, as are the next three.
        boxes: (N, 4) float32, XYXY in pixels of the original image file after its EXIF rotation.
        scores: (N,) float32.
        classes: (N,) int64.
    """

    name: str
    records: StoredRecords
    offsets: np.ndarray
    vectors: StoredArray
    boxes: StoredArray
    scores: StoredArray
    classes: StoredArray

    @classmethod
    def open(cls, index_path: Path, info: SegmentInfo, dimension: int) -> Segment:
        """Open a segment and hold its shapes and counts against the manifest, without reading the arrays.

        Raises:
            ValueError: if a file is missing, truncated, or not what the manifest says; segment and file are named.
        """
        folder = index_path / SEGMENTS_FOLDER / info.name
        arrays = {
            field: StoredArray.open(folder / f"{field}.npy", shape, dtype)
            for field, (shape, dtype) in _layout(info.images, info.objects, dimension).items()
        }
        offsets = arrays.pop("offsets").read(0, info.images + 1)
        if offsets[0] != 0 or offsets[-1] != info.objects or (np.diff(offsets) < 0).any():
            raise ValueError(f"{folder / 'offsets.npy'} is damaged: it does not divide {info.objects} objects")
        records = StoredRecords.open(folder / RECORDS_FILE, info.images)
        # Every opened index has them in memory.
        return cls(info.name, records, offsets.astype(np.uint32) if info.objects < 2**32 else offsets, **arrays)

    def embeddings_of(self, row: int) -> ImageEmbeddings:
        """Read the embeddings of the image at position ``row``."""
        start, stop = self.offsets[row : row + 2].tolist()
        return ImageEmbeddings(
            image_id=self.records[row].image_id,
            vectors=self.vectors.read(start, stop),
            boxes=self.boxes.read(start, stop),
            scores=self.scores.read(start, stop),
            classes=self.classes.read(start, stop),
        )


def write_segment(
    index_path: Path, name: str, images: Sequence[tuple[ImageEmbeddings, ImageRecord]], dimension: int
) -> SegmentInfo:
    """Write a segment aside, bring it to disk and give it its name; it counts once a manifest names it.

    Args:
        index_path: the index folder.
        name: the segment's name, not used before.
        images: the images to store, with embeddings of ``dimension`` D.
        dimension: D.

    Returns:
        What the manifest is to say of the segment.

    Raises:
        OSError: if writing fails, for example because the disk is full; what was written is removed.
    """
    folder = index_path / SEGMENTS_FOLDER / name
    folder.parent.mkdir(exist_ok=True)
    temporary = temporary_beside(folder)
    objects = sum(len(embeddings) for embeddings, _ in images)
    checksums = {}
    try:
        temporary.mkdir()
        for field, (shape, dtype) in _layout(len(images), objects, dimension).items():
            array = np.zeros(shape, dtype)
            if field == "offsets":
                array[1:] = np.cumsum([len(embeddings) for embeddings, _ in images])
            else:
                parts = [getattr(embeddings, field) for embeddings, _ in images]
                np.concatenate(parts, out=array)
            checksums[f"{field}.npy"] = write_array(temporary / f"{field}.npy", array)
        with open_synced(temporary / RECORDS_FILE) as stream:
            # ASCII, so that file names which are not valid Unicode survive too.
            stream.write("".join(json.dumps(asdict(record)) + "\n" for _, record in images).encode("ascii"))
        checksums[RECORDS_FILE] = stream.sha256()
        fsync_directory(temporary)
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_directory(folder.parent)
    return SegmentInfo(name, len(images), objects, checksums)


def verify_segment(index_path: Path, info: SegmentInfo) -> None:
    """Read a segment in full and compare its checksums.

    Raises:
        ValueError: if a file differs from what was written.
    """
    for file_name, expected in info.checksums.items():
        path = index_path / SEGMENTS_FOLDER / info.name / file_name
        actual = sha256_of_file(path)
        if actual != expected:
            raise ValueError(f"{path} is damaged: its SHA-256 is {actual[:12]}…, the manifest says {expected[:12]}…")


def _layout(images: int, objects: int, dimension: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of each array of a segment."""
    return {
        "vectors": ((objects, dimension), np.dtype(np.float32)),
        "boxes": ((objects, 4), np.dtype(np.float32)),
        "scores": ((objects,), np.dtype(np.float32)),
        "classes": ((objects,), np.dtype(np.int64)),
        "offsets": ((images + 1,), np.dtype(np.int64)),
    }
