"""The shares of an index that several processes embed: an index of its own for each, taken over by the main one.

They lie in OUTPUT/ranks. What a build that broke off has left there is taken over by the next one.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from oesir_d2.index import EmbeddingIndex, IndexWriter, SkippedFiles, read_skipped
from oesir_d2.index.lock import WriterLock
from oesir_d2.index.manifest import MANIFEST_FILE

SHARES = "ranks"

logger = logging.getLogger(__name__)


def get_share_path(index_path: Path, rank: int) -> Path:
    """The folder of the share of one process."""
    return index_path / SHARES / f"{rank:04d}"


def adopt_shares(writer: IndexWriter, skipped_files: SkippedFiles) -> None:
    """Take over all shares that lie in an index, with their skipped files, and delete them.

    Each is one commit of the index, and is deleted afterwards: after a crash in between it is taken over once more,
    which changes nothing.

    Raises:
        ValueError: another process writes one of them.
        OSError: the disk is full; what was not taken over stays where it is.
    """
    folder = writer.path / SHARES
    if not folder.is_dir():
        return
    for share in sorted(folder.iterdir()):
        if (share / MANIFEST_FILE).exists():
            lock = WriterLock(share)
            try:
                _adopt(writer, skipped_files, share)
            finally:
                lock.release()
        shutil.rmtree(share)
    folder.rmdir()


def _adopt(writer: IndexWriter, skipped_files: SkippedFiles, share: Path) -> None:
    try:
        index = EmbeddingIndex.open(share, writer.manifest.model)
        index.verify()
    except ValueError as error:
        # It costs no more than to embed its photos again.
        logger.warning("What another process has embedded is left out: %s", error)
        return
    known = writer.known()
    for number, record in enumerate(index.images):
        # A share is newer than the index, but its file may have an earlier time: then adopting would keep the old one.
        ours = known.get(record.image_id)
        if ours is not None and ours != record:
            writer.add(index.embeddings_of(number), record)
    writer.adopt(share)
    for entry in read_skipped(share):
        skipped_files.add(entry.path, entry.reason)
    for record in index.images:
        skipped_files.resolve(record.path)
