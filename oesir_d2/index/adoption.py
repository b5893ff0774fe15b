"""Taking the segments of one index over into another: how indexes are merged."""

from __future__ import annotations

import logging
import os
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from ..files import fsync_directory, open_synced, temporary_beside
from .manifest import Manifest, SegmentInfo
from .reader import EmbeddingIndex
from .segments import SEGMENTS_FOLDER, Segment
from .store import IndexStore

logger = logging.getLogger(__name__)

_COPY_BYTES = 1 << 20


def adopt_segments(store: IndexStore, source: Path) -> int:
    """Add all images of another index to a store, in one commit; see ``IndexWriter.adopt``."""
    if source.exists() and os.path.samefile(source, store.path):
        raise ValueError(f"index {source} cannot be merged into itself")
    # Held open, so that a writer over there deletes nothing of it meanwhile.
    index = EmbeddingIndex.open(source, store.manifest.model)
    manifest = index.manifest
    taken_out, superseded = _resolve_doubles(store, index.segments, manifest)
    adopted = manifest.images - sum(map(len, superseded.values()))
    names = store.next_names(len(manifest.segments))
    with store.change(f"index {source} could not be merged into index {store.path}"):
        added = []
        for name, info in zip(names, manifest.segments, strict=True):
            _copy_segment(source / SEGMENTS_FOLDER / info.name, store.path / SEGMENTS_FOLDER / name, info)
            rows = {*info.superseded, *superseded[info.name]}
            added.append(replace(info, name=name, superseded=tuple(sorted(rows))))
        if added:
            fsync_directory(store.path / SEGMENTS_FOLDER)
        store.commit(added, taken_out=taken_out)
    logger.debug("Index %s took over %d images of index %s", store.path, adopted, source)
    return adopted


def _resolve_doubles(
    store: IndexStore, segments: list[Segment], manifest: Manifest
) -> tuple[list[str], dict[str, list[int]]]:
    """Decide on images that both indexes have: the one whose file changed last counts, on a draw the store's.

    Returns:
        The ids of the store's images that do not count any more, and by segment name the positions of the source's.
    """
    taken_out: list[str] = []
    superseded: dict[str, list[int]] = defaultdict(list)
    for segment, info in zip(segments, manifest.segments, strict=True):
        old = set(info.superseded)
        for row, record in enumerate(segment.records):
            ours = store.images.get(record.image_id)
            if row in old or ours is None:
                continue
            if record.modified_ns > ours.record.modified_ns:
                taken_out.append(record.image_id)
            else:
                superseded[segment.name].append(row)
    return taken_out, superseded


def _copy_segment(source: Path, target: Path, info: SegmentInfo) -> None:
    """Give a segment's files a second home: by hard links, which cost nothing, or as checked copies."""
    target.parent.mkdir(exist_ok=True)
    temporary = temporary_beside(target)
    try:
        temporary.mkdir()
        for name, checksum in info.checksums.items():
            try:
                os.link(source / name, temporary / name)
            except OSError:  # another disk, or a file system without links
                _copy_checked(source / name, temporary / name, checksum)
        fsync_directory(temporary)
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _copy_checked(source: Path, target: Path, checksum: str) -> None:
    with open(source, "rb") as reader, open_synced(target) as stream:
        while block := reader.read(_COPY_BYTES):
            stream.write(block)
    if stream.sha256() != checksum:
        raise ValueError(f"{source} is damaged: its SHA-256 is not the one in its manifest")
