"""Reading an index: the images that count, and their embeddings, read from disk as they are asked for.

Shape shorthand: I images, O objects (region embeddings of all images), D dimensions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..structures import ImageEmbeddings
from .compatibility import EmbeddingModelInfo
from .manifest import Manifest, check_compatible
from .segments import ImageRecord, Segment, verify_segment


class EmbeddingIndex:
    """An index as it was when it was opened; a writer may go on meanwhile.

    Images are numbered 0 to I - 1 and objects 0 to O - 1, in the order in which they were added, superseded images left
    out; the objects of an image are neighbours. Make it with ``EmbeddingIndex.open``.
    """

    def __init__(self, path: Path, manifest: Manifest, segments: list[Segment]) -> None:
        self._path = path
        self._manifest = manifest
        self._segments = segments
        self._images: list[ImageRecord] = []
        # By image: the segment's position in the list, the image's position in it, and its first object there.
        places: list[np.ndarray] = []
        counts: list[np.ndarray] = []
        for number, (segment, info) in enumerate(zip(segments, manifest.segments, strict=True)):
            rows = np.delete(np.arange(info.images), list(info.superseded))
            places.append(np.stack([np.full_like(rows, number), rows, segment.offsets[rows]], axis=1))
            counts.append(np.diff(segment.offsets)[rows])
            self._images += [segment.records[row] for row in rows]
        self._places = np.concatenate([np.empty((0, 3), np.int64), *places])
        self._offsets = np.concatenate([[0], *counts]).cumsum(dtype=np.int64)

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
        manifest = Manifest.load(path)
        if model_info is not None:
            check_compatible(manifest, model_info)
        segments = [Segment.open(path, info, manifest.model.dimension) for info in manifest.segments]
        index = cls(path, manifest, segments)
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
    def images(self) -> list[ImageRecord]:
        """The records of the images 0 to I - 1."""
        return self._images

    @property
    def dimension(self) -> int:
        """D, the length of an embedding."""
        return self._manifest.model.dimension

    @property
    def num_objects(self) -> int:
        """O, the number of region embeddings."""
        return int(self._offsets[-1])

    @property
    def offsets(self) -> np.ndarray:
        """(I + 1,) int64: image i has the objects offsets[i] to offsets[i + 1]."""
        return self._offsets

    def embeddings_of(self, image_index: int) -> ImageEmbeddings:
        """The embeddings of image ``image_index``, in [0, I)."""
        segment, row, _ = self._places[image_index].tolist()
        return self._segments[int(segment)].embeddings_of(int(row))

    def image_of_objects(self, object_ids: np.ndarray) -> np.ndarray:
        """The images that objects belong to.

        Args:
            object_ids: integers in [0, O), of any shape.

        Returns:
            int64 in [0, I), of the same shape.
        """
        return np.searchsorted(self._offsets, object_ids, side="right") - 1

    def vectors_of(self, image_indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read the vectors of some images.

        Args:
            image_indices: (B,) integers in [0, I).

        Returns:
            vectors: (N, D) float32, L2-normalised, the objects of all these images, image by image.
            offsets: (B + 1,) int64: those of the b-th image are rows offsets[b] to offsets[b + 1].
        """
        counts = np.diff(self._offsets)[image_indices]
        parts = [np.empty((0, self.dimension), np.float32)]
        for (segment, _, start), count in zip(self._places[image_indices].tolist(), counts.tolist(), strict=True):
            parts.append(self._segments[segment].vectors.read(start, start + count))
        return np.concatenate(parts), np.concatenate([[0], counts]).cumsum(dtype=np.int64)

    def vector_chunks(self) -> VectorChunks:
        """The vectors of all objects in their order, piece by piece."""
        return VectorChunks(self._segments, [info.superseded for info in self._manifest.segments])

    def verify(self) -> None:
        """Read everything and compare it with the checksums of the manifest.

        Raises:
            ValueError: if a file differs from what was written.
        """
        for info in self._manifest.segments:
            verify_segment(self._path, info)


class VectorChunks:
    """Iterates, as often as asked, over the vectors of an index: (n, D) float32, L2-normalised, memory-mapped.

    Args:
        segments: the segments, in order.
        superseded: for each of them, the positions of the images that are left out, ascending.
    """

    def __init__(self, segments: Sequence[Segment], superseded: Sequence[tuple[int, ...]]) -> None:
        self._segments = segments
        self._superseded = superseded

    def __iter__(self) -> Iterator[np.ndarray]:
        for segment, superseded in zip(self._segments, self._superseded, strict=True):
            vectors = segment.vectors.map()
            # What lies between two superseded images is one piece of the file.
            begin = 0
            for row in (*superseded, len(segment.records)):
                chunk = vectors[segment.offsets[begin] : segment.offsets[row]]
                if len(chunk):
                    yield chunk
                begin = row + 1
