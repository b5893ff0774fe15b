"""Building an index: every new or changed photo of a collection is embedded once."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from detectron2.config import CfgNode
from tqdm import tqdm

from oesir_d2.data.images import ImageFile, UnreadableImageError
from oesir_d2.engine.embedder import EmbeddedImage, Embedder
from oesir_d2.engine.index_shares import adopt_shares
from oesir_d2.engine.object_search import bring_up_to_date, check_backend
from oesir_d2.files import sha256_of_file
from oesir_d2.index import ImageRecord, IndexWriter, Manifest, SkippedFiles

BYTES_PER_FLOAT = 4


@dataclass(frozen=True)
class BuildSummary:
    """What a build did; the field names are those of the tool's last line.

    Attributes:
        images: photos in the index now.
        objects: region embeddings in the index now.
        embedded: photos embedded by this run.
        skipped: photos of this collection that could not be read.
        seconds: of this run, the model's loading not counted.
        images_per_second: photos embedded by this run a second.
        bytes_per_object: of the stored vector.
    """

    images: int
    objects: int
    embedded: int
    skipped: int
    seconds: float
    images_per_second: float
    bytes_per_object: int


def build_index(cfg: CfgNode, files: list[ImageFile], output: Path, strict: bool = False) -> BuildSummary:
    """Create an index of a collection, or bring it up to date: only new and changed files are embedded.

    A file is taken as unchanged if its path, size and time of change are those in the index; if only those differ but
    its content does not, it is not embedded again. Photos of the index that this collection does not name stay.

    Args:
        cfg: the model's config, with INDEX's keys.
        files: the collection.
        output: the index folder.
        strict: stop at the first file that cannot be read, instead of writing it to ``skipped.jsonl``.

    Raises:
        ValueError: the folder is something else than an index, or holds an index of another model; or Milvus, if it is
            the backend, cannot be used.
        UnreadableImageError: in strict mode.
        OSError: the disk is full, or the folder cannot be written; what the index held stays.
    """
    check_backend(cfg, output)
    embedder = Embedder(cfg)
    start = time.perf_counter()
    with (
        IndexWriter(output, embedder.info, cfg.INDEX.FACTORY, cfg.INDEX.SEGMENT_IMAGES) as writer,
        SkippedFiles(output) as skipped_files,
        tqdm(total=len(files), desc="Embedding", unit="photo") as progress,
    ):
        adopt_shares(writer, skipped_files)
        changed = find_changed_files(writer, files, skipped_files, progress)
        done = embed_files(embedder, changed, writer, skipped_files, progress, strict)
        writer.flush()
        manifest = writer.manifest
    bring_up_to_date(cfg, output)
    return summarise(manifest, done, time.perf_counter() - start)


def summarise(manifest: Manifest, done: Progress, seconds: float) -> BuildSummary:
    """What a build did, from the manifest of the finished index."""
    return BuildSummary(
        images=manifest.images,
        objects=manifest.objects,
        embedded=done.embedded,
        skipped=done.skipped,
        seconds=round(seconds, 3),
        images_per_second=round(done.embedded / seconds, 3),
        bytes_per_object=manifest.model.dimension * BYTES_PER_FLOAT,
    )


@dataclass(frozen=True)
class Progress:
    """Photos that were embedded, and photos that could not be read."""

    embedded: int
    skipped: int


def embed_files(
    embedder: Embedder,
    files: Iterable[ImageFile],
    writer: IndexWriter,
    skipped_files: SkippedFiles,
    progress: tqdm,
    strict: bool,
) -> Progress:
    """Embed photos into an index; those that cannot be read go to its list, or in strict mode end the work.

    Raises:
        UnreadableImageError: in strict mode.
        OSError: as ``IndexWriter.add``.
    """
    embedded = skipped = 0
    fingerprints: dict[str, FileFingerprint | None] = {}
    for file, result in embedder.embed_all(_take_fingerprints(files, fingerprints)):
        try:
            record = _record(file, result, fingerprints.pop(file.image_id))
        except UnreadableImageError as error:
            if strict:
                raise
            skipped_files.add(locate(file.path), error.reason)
            skipped += 1
        else:
            writer.add(result.embeddings, record)
            skipped_files.resolve(record.path)
            embedded += 1
        progress.update()
    return Progress(embedded, skipped)


def _take_fingerprints(
    files: Iterable[ImageFile], fingerprints: dict[str, FileFingerprint | None]
) -> Iterator[ImageFile]:
    """Pass files on, each with its fingerprint taken.

    That is before a file is decoded: should it be replaced in between, the fingerprint is of the older content, and the
    next run embeds it again.
    """
    for file in files:
        fingerprints[file.image_id] = FileFingerprint.take(file.path)
        yield file


@dataclass(frozen=True)
class FileFingerprint:
    """What tells one state of a file from another."""

    file_size: int
    modified_ns: int
    sha256: str

    @classmethod
    def take(cls, path: Path) -> FileFingerprint | None:
        """The fingerprint of a regular file; None if it cannot be read."""
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                return None
            return cls(status.st_size, status.st_mtime_ns, sha256_of_file(path))
        except (OSError, ValueError):  # ValueError: a null character in the name
            return None


def find_changed_files(
    writer: IndexWriter, files: Iterable[ImageFile], skipped_files: SkippedFiles, progress: tqdm
) -> Iterator[ImageFile]:
    """The files that must be embedded; the others move the progress bar on, and are not skipped any more."""
    known = writer.known()
    for file in files:
        record = known.get(file.image_id)
        if record is not None and _is_unchanged(writer, file, record):
            # It was damaged, and its old content came back.
            skipped_files.resolve(locate(file.path))
            progress.update()
        else:
            yield file


def _is_unchanged(writer: IndexWriter, file: ImageFile, record: ImageRecord) -> bool:
    path = locate(file.path)
    try:
        status = file.path.stat()
        if (path, status.st_size, status.st_mtime_ns) == (record.path, record.file_size, record.modified_ns):
            return True
        if status.st_size != record.file_size or not file.path.is_file() or sha256_of_file(file.path) != record.sha256:
            return False
    except OSError:
        return False  # reading it will say why
    writer.refresh(replace(record, path=path, modified_ns=status.st_mtime_ns))
    return True


def _record(
    file: ImageFile, image: EmbeddedImage | UnreadableImageError, fingerprint: FileFingerprint | None
) -> ImageRecord:
    if isinstance(image, UnreadableImageError):
        raise image
    if fingerprint is None:
        raise UnreadableImageError(file.path, "it changed while it was read")
    return ImageRecord(
        image_id=file.image_id, path=locate(file.path), width=image.width, height=image.height, **asdict(fingerprint)
    )


def locate(path: Path) -> str:
    """The absolute path of a file, the same from every working directory; a link keeps its name, its folder not."""
    return str(path.parent.resolve() / path.name)
