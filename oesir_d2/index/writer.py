"""Writing an index: images go in one by one and reach the disk segment by segment."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from ..structures import ImageEmbeddings
from .adoption import adopt_segments
from .compaction import SEGMENT_OBJECTS, compact_segments, group_segments
from .compatibility import EmbeddingModelInfo
from .manifest import Manifest
from .object_index import check_factory
from .records import ImageRecord
from .segments import write_segment
from .store import IndexStore

logger = logging.getLogger(__name__)

_NORM_TOLERANCE = 1e-3


class IndexWriter:
    """Creates an index, or opens one to add to it; a context manager that one process at a time can hold.

    ``add`` gathers images; every ``segment_images`` of them become a segment, and the manifest that names it also says
    which older images it replaces. So at any moment, whatever kills the process, the index on disk holds every image
    of the segments finished so far exactly once; the images gathered since are lost, and nothing else.

    Leaving the ``with`` block writes what is gathered. That holds for an exception too (Ctrl-C, or a SIGTERM that the
    program turns into ``SystemExit``), because every image gathered is complete; only where writing itself
    failed or was interrupted it is not tried again.

    Args:
        path: the index folder. It is created if it is not there; an empty folder will do.
        model_info: the model whose embeddings will be added.
        factory: FAISS factory string, kept for those who search. It says how the vectors are searched, not what they
            are: opening an index with another one replaces it, as it replaces the model's references; but an index
            that was tuned keeps the one it was tuned to, with a warning unless "Flat" was asked for.
        segment_images: images a segment; > 0.

    Raises:
        ValueError: if ``path`` is something else than an index or an empty folder, if the index is damaged or was
            built with another model, if another process writes it, or if FAISS does not know the factory string.
    """

    def __init__(
        self, path: str | os.PathLike[str], model_info: EmbeddingModelInfo, factory: str, segment_images: int
    ) -> None:
        if segment_images < 1:
            raise ValueError(f"segment_images is {segment_images}, expected at least 1")
        check_factory(factory, model_info.dimension)
        self._segment_images = segment_images
        self._store = IndexStore(Path(path), model_info, factory)
        self._buffer: dict[str, tuple[ImageEmbeddings, ImageRecord]] = {}

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        try:
            self.close()
        except OSError:
            # The error that ended the block is the one to report.
            logger.exception("The images gathered last could not be written to index %s", self.path)

    @property
    def path(self) -> Path:
        """The index folder."""
        return self._store.path

    @property
    def manifest(self) -> Manifest:
        """The manifest as it is on disk: what is still gathered is not in it."""
        return self._store.manifest

    def known(self) -> dict[str, ImageRecord]:
        """The images of the index by their ids, those still gathered included."""
        known = {image_id: stored.record for image_id, stored in self._store.images.items()}
        known.update((image_id, record) for image_id, (_, record) in self._buffer.items())
        return known

    def add(self, embeddings: ImageEmbeddings, record: ImageRecord) -> None:
        """Add an image, or replace the one of the same id.

        Args:
            embeddings: its regions; vectors L2-normalised (a vector of zeros is let pass), boxes XYXY in pixels of the
                original image file after its EXIF rotation. An image without regions is kept, but never found.
            record: the file that was embedded.

        Raises:
            ValueError: if the two are of different images, or the vectors are of another dimension than the
                index or not normalised.
            OSError: if a segment was due and could not be written; the index on disk stays as it was.
        """
        assert not self._store.failed, "writing failed before: open the index anew"
        self._check(embeddings, record)
        self._buffer[record.image_id] = (embeddings, record)
        if len(self._buffer) >= self._segment_images:
            self.flush()

    def refresh(self, record: ImageRecord) -> None:
        """Replace the record of an image whose file was touched or moved, but whose content is the same.

        The embeddings are taken from the index and written once more, beside the new record.

        Raises:
            ValueError: if there is no such image, or if the content differs.
            OSError: as ``add``.
        """
        buffered = self._buffer.get(record.image_id)
        stored = self._store.images.get(record.image_id)
        if buffered is not None:
            embeddings, known = buffered
        elif stored is not None:
            embeddings, known = self._store.segments[stored.segment].embeddings_of(stored.row), stored.record
        else:
            raise ValueError(f"image {record.image_id!r} is not in index {self.path}")
        if known.sha256 != record.sha256:
            raise ValueError(f"image {record.image_id!r} has changed since it was embedded: it must be added anew")
        self.add(embeddings, record)

    def flush(self) -> None:
        """Write what is gathered as a segment, however little it is.

        Raises:
            OSError: if it cannot be written; the index on disk stays as it was.
        """
        if not self._buffer:
            return
        [name] = self._store.next_names()
        with self._store.change(f"segment {name} of index {self.path} could not be written"):
            images = list(self._buffer.values())
            info = write_segment(self.path, name, images, self.manifest.model.dimension)
            replaced = [image_id for image_id in self._buffer if image_id in self._store.images]
            self._store.commit([info], taken_out=replaced)
            self._buffer.clear()
        logger.debug("Wrote segment %s of index %s: %d images", name, self.path, info.images)

    def remove(self, image_ids: Iterable[str]) -> None:
        """Take images out, in one commit: they are not found any more; ``compact`` frees their place on the disk.

        Raises:
            ValueError: if one of them is not in the index; then none is removed.
            OSError: if the manifest could not be written; the index on disk stays as it was.
        """
        self.flush()
        wanted = dict.fromkeys(image_ids)
        unknown = [image_id for image_id in wanted if image_id not in self._store.images]
        if unknown:
            more = f" and {len(unknown) - 1} more are" if len(unknown) > 1 else " is"
            raise ValueError(f"image {unknown[0]!r}{more} not in index {self.path}: nothing was removed")
        if wanted:
            with self._store.change(f"images of index {self.path} could not be removed"):
                self._store.commit(taken_out=wanted)

    def compact(self, segment_objects: int = SEGMENT_OBJECTS) -> Iterator[int]:
        """Free the place of images that do not count any more, and make few full segments of many small ones.

        What is gathered is written first. Neighbouring segments are written anew as one, and each such step is one
        commit: a crash keeps the steps done, and the disk needs room for one segment more. Readers go on: a
        segment that one of them has open is deleted by a later writer. The order of the images stays.

        Args:
            segment_objects: region embeddings a segment at most, unless one segment has more already; > 0.

        Yields:
            After each step, the segments that it replaced; see ``compaction_segments`` for how many it will be.

        Raises:
            OSError: if a segment could not be written; the index keeps what was done before.
        """
        self.flush()
        yield from compact_segments(self._store, segment_objects)

    def compaction_segments(self, segment_objects: int = SEGMENT_OBJECTS) -> int:
        """Segments that ``compact`` would replace now."""
        return sum(map(len, group_segments(self._store, segment_objects)))

    def adopt(self, source: str | os.PathLike[str]) -> int:
        """Take over all images of another index, in one commit: how indexes are merged.

        What is gathered is written first. The other index stays as it is: its segments, which never change, are hard
        linked, or copied and checked if that cannot be. Of an image that both have, the one whose file changed
        last counts (on a draw the one here), so it is never there twice. After a crash all images are taken over
        or none; adopting the same index once more adds nothing.

        Args:
            source: the folder of an index that the same model built.

        Returns:
            Images that count now and did not before, newer versions of images included.

        Raises:
            FileNotFoundError: if ``source`` does not exist.
            ValueError: if it is no index, a damaged one, this one, or was built with another model.
            OSError: if it cannot be read, or the index here cannot be written; it then stays as it was.
        """
        self.flush()
        return adopt_segments(self._store, Path(source))

    def close(self) -> None:
        """Write what is gathered, unless writing failed before, and let the next writer in."""
        try:
            if not self._store.failed:
                self.flush()
        finally:
            self._store.release()

    def _check(self, embeddings: ImageEmbeddings, record: ImageRecord) -> None:
        if embeddings.image_id != record.image_id:
            raise ValueError(f"embeddings of image {embeddings.image_id!r} came with the record of {record.image_id!r}")
        dimension = self.manifest.model.dimension
        if embeddings.dimension != dimension:
            raise ValueError(
                f"embeddings of image {record.image_id!r} have dimension {embeddings.dimension}, the index {dimension}"
            )
        norms = np.linalg.norm(embeddings.vectors, axis=1)
        wrong = norms[(np.abs(norms - 1) > _NORM_TOLERANCE) & (norms > 0)]
        if len(wrong):
            raise ValueError(f"an embedding of image {record.image_id!r} has norm {wrong[0]:.4g}, expected 1")
