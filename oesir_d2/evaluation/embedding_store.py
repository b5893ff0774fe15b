"""The embeddings of an evaluation, on disk while they come in, and gathered from all processes."""

from __future__ import annotations

from pathlib import Path

from detectron2.utils import comm

from oesir_d2.index import EmbeddingIndex, EmbeddingModelInfo, ImageRecord, IndexWriter
from oesir_d2.structures import ImageEmbeddings

GATHERED_IMAGES = 64
"""So many images go from one process to the main one at a time: little memory, few messages."""

SEGMENT_IMAGES = 256


class EmbeddingStore:
    """Takes embeddings in, image by image, and gives them back as an index.

    Of the images it holds a segment's worth in memory; the others are in an index in ``folder``.

    Args:
        folder: of this process alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: IndexWriter | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, embeddings: ImageEmbeddings, path: str) -> None:
        """Add an image that is not there yet; ``path`` is that of its file."""
        if self._writer is None:
            # The index serves this evaluation alone, so which model made it need not be told.
            info = EmbeddingModelInfo({}, {}, "", "", {}, embeddings.dimension)
            self._writer = IndexWriter(self._folder, info, "Flat", SEGMENT_IMAGES)
        self._writer.add(embeddings, ImageRecord(embeddings.image_id, path, 0, 0, 0, 0, ""))
        self._count += 1

    def gather(self) -> None:
        """Bring the images of all processes to the main one, in the order of the processes."""
        counts = comm.all_gather(len(self))
        own = self.open() if comm.get_rank() > 0 else None
        for rank, count in enumerate(counts):
            if rank == 0:
                continue
            for start in range(0, count, GATHERED_IMAGES):
                piece = []
                if own is not None and comm.get_rank() == rank:
                    images = range(start, min(start + GATHERED_IMAGES, count))
                    piece = [(own.embeddings_of(image), own.images[image].path) for image in images]
                for embeddings, path in [item for items in comm.gather(piece) for item in items]:
                    self.add(embeddings, path)

    def open(self) -> EmbeddingIndex | None:
        """Everything that was added; None if nothing was. Nothing can be added any more."""
        if self._writer is None:
            return None
        self._writer.close()
        return EmbeddingIndex.open(self._folder)
