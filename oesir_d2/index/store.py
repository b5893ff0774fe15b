"""The index folder as its one writer sees it: the lock, the manifest, where every image lies, and how that changes."""

from __future__ import annotations

import errno
import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..files import TEMPORARY_PREFIX
from .compatibility import EmbeddingModelInfo
from .garbage import names_on_disk, remove_garbage
from .lease import LEASE_FILE, create_lease_file
from .lock import LOCK_FILE, WriterLock
from .manifest import MANIFEST_FILE, Manifest, SegmentInfo, StoredObjectIndex, check_compatible
from .records import ImageRecord
from .segments import Segment

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredImage:
    """Where an image that counts lies on disk.

    Attributes:
        segment: name of its segment.
        row: its position in the segment.
        record: the file that was embedded.
        objects: its region embeddings.
    """

    segment: str
    row: int
    record: ImageRecord
    objects: int


class IndexStore:
    """An index folder opened for writing, held by one process at a time.

    Every change is one ``commit``: new segments are written under names that no manifest has used, then the manifest is
    replaced. A crash before that rename leaves the old index and garbage, a crash after it the new index.

    Args:
        path: see ``IndexWriter``, as the next two and what is raised.
        model_info: the model of the embeddings.
        factory: FAISS factory string.
    """

    def __init__(self, path: Path, model_info: EmbeddingModelInfo, factory: str) -> None:
        self.path = path
        # Before anything is touched: this may be somebody else's folder.
        _refuse_foreign(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"index folder {path} cannot be created: {error.strerror}") from error
        self._lock = WriterLock(path)
        try:
            self.manifest = self._load_or_create(model_info, factory)
            self.segments = {
                info.name: Segment.open(path, info, model_info.dimension) for info in self.manifest.segments
            }
            self._images: dict[str, StoredImage] | None = None
        except BaseException:
            self._lock.release()
            raise
        self.failed = False

    @property
    def images(self) -> dict[str, StoredImage]:
        """The images that count by their ids; read when first asked for, since a large index has many."""
        if self._images is None:
            images: dict[str, StoredImage] = {}
            for info in self.manifest.segments:
                self._take_in(images, self.segments[info.name], info)
            self._images = images
        return self._images

    def next_names(self, count: int = 1) -> list[str]:
        """Names for new segments, higher than any that a manifest ever had or the folder has."""
        first = max([self.manifest.last_number, *map(int, names_on_disk(self.path))]) + 1
        return [f"{number:06d}" for number in range(first, first + count)]

    @contextmanager
    def change(self, what: str) -> Iterator[None]:
        """Undo on disk what the block leaves unfinished, and let an ``OSError`` say ``what`` could not be done.

        After an exception the store may lag behind the disk and can only be released.
        """
        assert not self.failed, "writing failed before: open the index anew"
        # Stays set if anything, Ctrl-C included, comes in between.
        self.failed = True
        try:
            yield
        except BaseException as error:
            self._clean_up()
            if isinstance(error, OSError):
                raise OSError(
                    error.errno or errno.EIO,
                    f"{what} ({error.strerror or error}); the index keeps its {self.manifest.images} images",
                ) from error
            raise
        self.failed = False

    def commit(
        self, added: Sequence[SegmentInfo] = (), taken_out: Iterable[str] = (), dropped: Collection[str] = ()
    ) -> None:
        """Replace the manifest, within a ``change``.

        Args:
            added: segments that are in place and count from now on, but for the images that they call superseded.
            taken_out: ids of images that the index has and that do not count any more, where they lie now.
            dropped: names of segments that do not count any more; every image of theirs that counted is in ``added``.
        """
        dimension = self.manifest.model.dimension
        out = [self.images[image_id] for image_id in taken_out]
        gone = [(self.segments[info.name], info) for info in self.manifest.segments if info.name in dropped]
        new = [(Segment.open(self.path, info, dimension), info) for info in added]
        superseded: dict[str, list[int]] = defaultdict(list)
        for image in out:
            superseded[image.segment].append(image.row)
        was_fresh = self.manifest.fresh_object_index()
        manifest = self.manifest.with_changes(
            added,
            superseded,
            dropped,
            images=self.manifest.images - len(out) + _live_images(new) - _live_images(gone),
            objects=self.manifest.objects - sum(i.objects for i in out) + _live_objects(new) - _live_objects(gone),
        )
        if was_fresh and dropped and not out:
            # Compaction keeps the objects and their order.
            manifest = replace(manifest, object_index=replace(was_fresh, covers=manifest.coverage()[-1]))
        manifest.save(self.path)
        self.manifest = manifest
        for segment, _ in new:
            self.segments[segment.name] = segment
        for name in dropped:
            del self.segments[name]
        if self._images is not None:
            for image in out:
                del self._images[image.record.image_id]
            for segment, info in new:
                self._take_in(self._images, segment, info)
            assert len(self._images) == manifest.images, "a commit lost or doubled an image"

    def set_object_index(self, stored: StoredObjectIndex | None) -> None:
        """Name another object index in the manifest, and its factory string; within a ``change``."""
        manifest = self.manifest.with_object_index(stored)
        manifest.save(self.path)
        self.manifest = manifest

    def remove_garbage(self) -> None:
        """Delete what the manifest does not name."""
        remove_garbage(self.path, self.manifest.names())

    def release(self) -> None:
        """Let the next writer in."""
        self._lock.release()

    def _load_or_create(self, model_info: EmbeddingModelInfo, factory: str) -> Manifest:
        manifest: Manifest | None = None
        current = Manifest(model_info, factory)
        if (self.path / MANIFEST_FILE).exists():
            manifest = Manifest.load(self.path)
            check_compatible(manifest, model_info)
            # The same weights may lie elsewhere by now.
            model = replace(manifest.model, references=model_info.references)
            tuned = manifest.object_index
            # "Flat" is what is passed where nobody asked for anything.
            if tuned and factory not in (tuned.factory, "Flat"):
                logger.warning(
                    "Index %s was tuned to %s and keeps it; tools/index.py tune --factory %s changes it",
                    self.path,
                    tuned.factory,
                    factory,
                )
            current = replace(manifest, model=model, factory=tuned.factory if tuned else factory)
        create_lease_file(self.path)
        if current != manifest:
            current.save(self.path)
        remove_garbage(self.path, current.names())
        return current

    @staticmethod
    def _take_in(images: dict[str, StoredImage], segment: Segment, info: SegmentInfo) -> None:
        superseded = set(info.superseded)
        objects_per_image = np.diff(segment.offsets).tolist()
        for row, (record, objects) in enumerate(zip(segment.records, objects_per_image, strict=True)):
            if row not in superseded:
                images[record.image_id] = StoredImage(segment.name, row, record, objects)

    def _clean_up(self) -> None:
        """Delete what a failed commit left; what the manifest on disk names stays, whenever the failure came."""
        try:
            self.manifest = Manifest.load(self.path)
            self.remove_garbage()
        except (OSError, ValueError):
            logger.exception("Unfinished files of index %s stay until it is opened for writing again", self.path)


def _live_images(segments: Iterable[tuple[Segment, SegmentInfo]]) -> int:
    return sum(info.images - len(info.superseded) for _, info in segments)


def _live_objects(segments: Iterable[tuple[Segment, SegmentInfo]]) -> int:
    return sum(info.objects - int(np.diff(segment.offsets)[list(info.superseded)].sum()) for segment, info in segments)


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
        # A creation that was interrupted leaves the locks, and perhaps a temporary manifest.
        is_unfinished = item.name.startswith(TEMPORARY_PREFIX) and item.name.endswith(MANIFEST_FILE)
        if item.name not in (LOCK_FILE, LEASE_FILE) and not is_unfinished:
            raise ValueError(f"{path} is neither an index nor an empty folder: it holds {item.name!r}")
