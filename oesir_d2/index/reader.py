"""Reading an index: the images that count, and their embeddings, read from disk as they are asked for.

Shape shorthand: I images, O objects (region embeddings of all images), D dimensions.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from ..structures import ImageEmbeddings
from .arrays import read_pieces
from .compatibility import EmbeddingModelInfo
from .lease import ReaderLease
from .manifest import Manifest, check_compatible
from .places import ImagePlaces, ObjectOwners, ObjectPlaces, VectorChunks
from .records import ImageRecord
from .segments import Segment, verify_segment


class EmbeddingIndex:
    """An index as it was when it was opened; a writer may go on meanwhile, and compact or remove what is read here.

    Images are numbered 0 to I - 1 and objects 0 to O - 1, in the order in which they were added, superseded images left
    out; the objects of an image are neighbours. Make it with ``EmbeddingIndex.open``.
    """

    def __init__(self, path: Path, manifest: Manifest, segments: list[Segment], lease: ReaderLease) -> None:
        self._path = path
        self._manifest = manifest
        self._segments = segments
        self._lease = lease
        self._vectors = [segment.vectors for segment in segments]
        self._places = ImagePlaces(segments, [info.superseded for info in manifest.segments])
        # Filled segment by segment: what a whole copy takes would stay with the process.
        self._offsets = np.zeros(len(self._places) + 1, np.int64)
        filled = 0
        for segment, info in zip(segments, manifest.segments, strict=True):
            ends = self._offsets[filled + 1 : filled + 1 + len(segment.records) - len(info.superseded)]
            np.cumsum(np.delete(np.diff(segment.offsets), info.superseded), out=ends)
            ends += self._offsets[filled]
            filled += len(ends)

    @classmethod
    def open(cls, path: str | os.PathLike[str], model_info: EmbeddingModelInfo | None = None) -> EmbeddingIndex:
        """Open an index for reading; shapes and counts are checked, checksums are not (see ``verify``).

        Args:
            path: the index folder.
            model_info: the model that queries will be embedded with; None trusts that it is the index's own.

        Raises:
            FileNotFoundError: if the folder does not exist.
            ValueError: if it is no index or a damaged one, or if ``model_info`` is not the index's model.
        """
        path = Path(path)
        lease = ReaderLease(path)
        manifest = Manifest.load(path)
        if model_info is not None:
            check_compatible(manifest, model_info)
        segments = [Segment.open(path, info, manifest.model.dimension) for info in manifest.segments]
        lease.narrow(manifest.names())
        index = cls(path, manifest, segments, lease)
        if (len(index.images), index.num_objects) != (manifest.images, manifest.objects):
            raise ValueError(
                f"index {path} holds {len(index.images)} images and {index.num_objects} objects, "
                f"its manifest says {manifest.images} and {manifest.objects}"
            )
        return index

    @property
    def path(self) -> Path:
        """The index folder."""
        return self._path

    @property
    def manifest(self) -> Manifest:
        """The manifest as it was when the index was opened."""
        return self._manifest

    @property
    def segments(self) -> list[Segment]:
        """The segments, in the order of the manifest's."""
        return self._segments

    @property
    def images(self) -> Sequence[ImageRecord]:
        """The records of the images 0 to I - 1, read from disk as they are asked for."""
        return self._places

    @property
    def dimension(self) -> int:
        """D, the length of an embedding."""
        return self._manifest.model.dimension

    @property
    def num_objects(self) -> int:
        """O, the number of region embeddings."""
        return int(self._offsets[-1])

    @cached_property
    def num_findable(self) -> int:
        """The number of images that have regions: another has nothing to be found by."""
        return int(np.count_nonzero(self._offsets[1:] != self._offsets[:-1]))

    @cached_property
    def _owners(self) -> ObjectOwners:
        return ObjectOwners(self._offsets)

    @cached_property
    def _object_places(self) -> ObjectPlaces:
        return ObjectPlaces(self._segments, [info.superseded for info in self._manifest.segments])

    @property
    def offsets(self) -> np.ndarray:
        """(I + 1,) int64: image i has the objects offsets[i] to offsets[i + 1]."""
        return self._offsets

    def embeddings_of(self, image_index: int) -> ImageEmbeddings:
        """The embeddings of image ``image_index``, in [0, I)."""
        segment, row = self._places.locate(image_index)
        return self._segments[segment].embeddings_of(row)

    def image_of_objects(self, object_ids: np.ndarray) -> np.ndarray:
        """The images that objects belong to.

        Args:
            object_ids: integers in [0, O), of any shape.

        Returns:
            int64 in [0, I), of the same shape.
        """
        return self._owners.find(object_ids)

    def boxes_of(self, image_index: int) -> np.ndarray:
        """Read the boxes of image ``image_index``: (n, 4) float32, XYXY in pixels of the original image file."""
        number, row = self._places.locate(image_index)
        segment = self._segments[number]
        return segment.boxes.read(int(segment.offsets[row]), int(segment.offsets[row + 1]))

    def boxes_of_images(self, image_indices: np.ndarray) -> np.ndarray:
        """Read the boxes of some images, (N, 4), image by image; see ``boxes_of`` and ``vectors_of``."""
        first = self._offsets[image_indices]
        counts = self._offsets[image_indices + 1] - first
        boxes = np.empty((int(counts.sum()), 4), np.float32)
        numbers, rows = self._object_places.locate(first)
        read_pieces([segment.boxes for segment in self._segments], numbers, rows, counts, boxes)
        return boxes

    def vectors_of(self, image_indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read the vectors of some images.

        Args:
            image_indices: (B,) integers in [0, I).

        Returns:
            vectors: (N, D) float32, L2-normalised, the objects of all these images, image by image.
            offsets: (B + 1,) int64: those of the b-th image are rows offsets[b] to offsets[b + 1].
        """
        first = self._offsets[image_indices]
        counts = self._offsets[image_indices + 1] - first
        return self._read_vectors(first, counts), np.concatenate([[0], np.cumsum(counts)])

    def vectors_of_objects(self, object_ids: np.ndarray) -> np.ndarray:
        """Read the vectors of some objects.

        Args:
            object_ids: (N,) integers in [0, O).

        Returns:
            (N, D) float32, L2-normalised.
        """
        return self._read_vectors(object_ids, np.ones(len(object_ids), np.int64))

    def _read_vectors(self, first: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Read runs of neighbouring objects, none of which goes beyond an image."""
        vectors = np.empty((int(counts.sum()), self.dimension), np.float32)
        numbers, rows = self._object_places.locate(first)
        read_pieces(self._vectors, numbers, rows, counts, vectors)
        return vectors

    def vector_chunks(self, first: int = 0) -> VectorChunks:
        """The vectors of all objects from object ``first`` on, in their order, piece by piece."""
        return VectorChunks(self._segments, [info.superseded for info in self._manifest.segments], first)

    def verify(self) -> None:
        """Read everything and compare it with the checksums of the manifest.

        Raises:
            ValueError: if a file differs from what was written.
        """
        for info in self._manifest.segments:
            verify_segment(self._path, info)
