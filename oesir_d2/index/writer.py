"""Writing an index: images go in one by one and reach the disk segment by segment."""

from __future__ import annotations

import errno
import logging
import os
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np

from ..files import TEMPORARY_PREFIX
from ..structures import ImageEmbeddings
from .compatibility import EmbeddingModelInfo
from .lock import LOCK_FILE, WriterLock
from .manifest import MANIFEST_FILE, Manifest, check_compatible
from .object_index import check_factory
from .segments import ImageRecord, Segment, remove_garbage, write_segment

logger = logging.getLogger(__name__)

_NORM_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where an image that counts lies on disk."""

    segment: str
    row: int
    record: ImageRecord
    objects: int


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
            are: opening an index with another one replaces it, as it replaces the model's references.
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
        self._path = Path(path)
        self._segment_images = segment_images
        # Before anything is touched: this may be somebody else's folder.
        _refuse_foreign(self._path)
        try:
            self._path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"index folder {self._path} cannot be created: {error.strerror}") from error
        self._lock = WriterLock(self._path)
        try:
            self._manifest = self._load_or_create(model_info, factory)
            self._segments: dict[str, Segment] = {}
            self._stored: dict[str, _Stored] = {}
            for info in self._manifest.segments:
                self._take_in(Segment.open(self._path, info, model_info.dimension), set(info.superseded))
        except BaseException:
            self._lock.release()
            raise
        self._buffer: dict[str, tuple[ImageEmbeddings, ImageRecord]] = {}
        self._write_failed = False

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
            logger.exception("The images gathered last could not be written to index %s", self._path)

    @property
    def path(self) -> Path:
        """The index folder."""
        return self._path

    @property
    def manifest(self) -> Manifest:
        """The manifest as it is on disk: what is still gathered is not in it."""
        return self._manifest

    def known(self) -> dict[str, ImageRecord]:
        """The images of the index by their ids, those still gathered included."""
        known = {image_id: stored.record for image_id, stored in self._stored.items()}
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
        assert not self._write_failed, "writing failed before: open the index anew"
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
        stored = self._stored.get(record.image_id)
        if buffered is not None:
            embeddings, known = buffered
        elif stored is not None:
            embeddings, known = self._segments[stored.segment].embeddings_of(stored.row), stored.record
        else:
            raise ValueError(f"image {record.image_id!r} is not in index {self._path}")
        if known.sha256 != record.sha256:
            raise ValueError(f"image {record.image_id!r} has changed since it was embedded: it must be added anew")
        self.add(embeddings, record)

    def flush(self) -> None:
        """Write what is gathered as a segment, however little it is.

        Raises:
            OSError: if it cannot be written; the index on disk stays as it was.
        """
        assert not self._write_failed, "writing failed before: open the index anew"
        if not self._buffer:
            return
        name = self._manifest.next_segment_name()
        # Stays set if anything, Ctrl-C included, comes in between: then the memory may lag behind the disk.
        self._write_failed = True
        try:
            self._commit(name)
        except BaseException as error:
            self._clean_up()
            if isinstance(error, OSError):
                raise OSError(
                    error.errno or errno.EIO,
                    f"segment {name} of index {self._path} could not be written ({error.strerror or error}); "
                    f"the index keeps its {self._manifest.images} images",
                ) from error
            raise
        self._write_failed = False

    def close(self) -> None:
        """Write what is gathered, unless writing failed before, and let the next writer in."""
        try:
            if not self._write_failed:
                self.flush()
        finally:
            self._lock.release()

    def _load_or_create(self, model_info: EmbeddingModelInfo, factory: str) -> Manifest:
        manifest: Manifest | None = None
        current = Manifest(model_info, factory)
        if (self._path / MANIFEST_FILE).exists():
            manifest = Manifest.load(self._path)
            check_compatible(manifest, model_info)
            # The same weights may lie elsewhere by now.
            model = replace(manifest.model, references=model_info.references)
            current = replace(manifest, model=model, factory=factory)
        if current != manifest:
            current.save(self._path)
        remove_garbage(self._path, (info.name for info in current.segments))
        return current

    def _check(self, embeddings: ImageEmbeddings, record: ImageRecord) -> None:
        if embeddings.image_id != record.image_id:
            raise ValueError(f"embeddings of image {embeddings.image_id!r} came with the record of {record.image_id!r}")
        dimension = self._manifest.model.dimension
        if embeddings.dimension != dimension:
            raise ValueError(
                f"embeddings of image {record.image_id!r} have dimension {embeddings.dimension}, the index {dimension}"
            )
        norms = np.linalg.norm(embeddings.vectors, axis=1)
        wrong = norms[(np.abs(norms - 1) > _NORM_TOLERANCE) & (norms > 0)]
        if len(wrong):
            raise ValueError(f"an embedding of image {record.image_id!r} has norm {wrong[0]:.4g}, expected 1")

    def _commit(self, name: str) -> None:
        images = list(self._buffer.values())
        info = write_segment(self._path, name, images, self._manifest.model.dimension)
        replaced = [self._stored[image_id] for image_id in self._buffer if image_id in self._stored]
        superseded: dict[str, list[int]] = defaultdict(list)
        for stored in replaced:
            superseded[stored.segment].append(stored.row)
        manifest = self._manifest.with_segment(
            info,
            superseded,
            images=self._manifest.images + info.images - len(replaced),
            objects=self._manifest.objects + info.objects - sum(stored.objects for stored in replaced),
        )
        manifest.save(self._path)
        self._manifest = manifest
        self._take_in(Segment.open(self._path, info, manifest.model.dimension), set())
        self._buffer.clear()
        logger.debug("Wrote segment %s of index %s: %d images", name, self._path, info.images)

    def _take_in(self, segment: Segment, superseded: set[int]) -> None:
        self._segments[segment.name] = segment
        objects_per_image = np.diff(segment.offsets).tolist()
        for row, (record, objects) in enumerate(zip(segment.records, objects_per_image, strict=True)):
            if row not in superseded:
                self._stored[record.image_id] = _Stored(segment.name, row, record, objects)

    def _clean_up(self) -> None:
        """Delete what a failed commit left; what the manifest on disk names stays, whenever the failure came."""
        try:
            self._manifest = Manifest.load(self._path)
            remove_garbage(self._path, (info.name for info in self._manifest.segments))
        except (OSError, ValueError):
            logger.exception("Unfinished files of index %s stay until it is opened for writing again", self._path)


def _refuse_foreign(path: Path) -> None:
    """Raise ``ValueError`` if there is something at ``path`` that is neither an index nor an empty folder."""
    if not path.exists():
        return
    if not path.is_dir():
        raise ValueError(f"{path} is a file, expected an index or a folder to create one in")
    if (path / MANIFEST_FILE).exists():
        Manifest.load(path)
        return
    for item in sorted(path.iterdir()):
        # A creation that was interrupted leaves the lock, and perhaps a temporary manifest.
        is_unfinished = item.name.startswith(TEMPORARY_PREFIX) and item.name.endswith(MANIFEST_FILE)
        if item.name != LOCK_FILE and not is_unfinished:
            raise ValueError(f"{path} is neither an index nor an empty folder: it holds {item.name!r}")
