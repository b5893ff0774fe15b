"""What `tools/index.py` does with an index: each job is one function, and returns what the tool's last line says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from oesir_d2.data import list_images
from oesir_d2.engine.indexing import build_index
from oesir_d2.engine.model_info import restore_config
from oesir_d2.index import Budget, IndexWriter, Manifest, find_damage, refresh_object_index, tune_object_index
from oesir_d2.index.manifest import MANIFEST_FILE


def describe_index(path: Path) -> dict[str, Any]:
    """What an index holds, how large it is, and how it is searched."""
    manifest = Manifest.load(path)
    stored = manifest.object_index
    superseded = sum(len(info.superseded) for info in manifest.segments)
    return {
        "images": manifest.images,
        "objects": manifest.objects,
        "dimension": manifest.model.dimension,
        "segments": len(manifest.segments),
        "superseded_images": superseded,
        "bytes": _count_bytes(path),
        "factory": manifest.factory,
        "object_index": stored
        and {
            "is_fresh": manifest.fresh_object_index() is not None,
            "parameters": stored.parameters,
            "first_fetch": stored.first_fetch,
            "bytes_per_object": round(stored.bytes / max(stored.objects, 1), 2),
            "measured": stored.measured,
        },
    }


def add_photos(path: Path, images: str, strict: bool = False) -> dict[str, Any]:
    """Embed the new and changed photos of a collection with the index's own model; see ``build_index``."""
    manifest = Manifest.load(path)
    cfg = restore_config(manifest.model)
    cfg.INDEX.FACTORY = manifest.factory
    return vars(build_index(cfg, list_images(images), path, strict=strict))


def remove_photos(path: Path, image_ids: Sequence[str], gone: bool) -> dict[str, Any]:
    """Take photos out, by their ids, or those whose files are gone."""
    with _open_writer(path) as writer:
        known = writer.known()
        missing = [image_id for image_id, record in known.items() if gone and not os.path.lexists(record.path)]
        wanted = list(dict.fromkeys([*image_ids, *missing]))
        writer.remove(wanted)
    return _finish(path, removed=len(wanted))


def compact_index(path: Path) -> dict[str, Any]:
    """Drop what does not count any more, and join small segments."""
    with _open_writer(path) as writer:
        before = len(writer.manifest.segments)
        with tqdm(total=writer.compaction_segments(), desc="Compacting", unit="segment") as progress:
            for segments in writer.compact():
                progress.update(segments)
    return _finish(path, segments_before=before)


def merge_indexes(path: Path, sources: Sequence[Path]) -> dict[str, Any]:
    """Take the photos of other indexes into one, which is made if it is not there."""
    # The locks of a creation that was interrupted may lie there.
    manifest = Manifest.load(path if (path / MANIFEST_FILE).exists() else sources[0])
    added = 0
    with IndexWriter(path, manifest.model, manifest.factory, segment_images=64) as writer:
        for source in tqdm(sources, desc="Merging", unit="index"):
            added += writer.adopt(source)
    return _finish(path, added=added)


def verify_index(path: Path) -> dict[str, Any]:
    """Read everything and compare it with the checksums.

    Raises:
        ValueError: if something is damaged; all of it is named.
    """
    manifest = Manifest.load(path)
    parts = len(manifest.segments) + 1 + (manifest.object_index is not None)
    damage = [found for found in tqdm(find_damage(path), total=parts, desc="Verifying", unit="part") if found]
    if damage:
        raise ValueError(f"{len(damage)} of {parts} parts of index {path} are damaged: {'; '.join(damage)}")
    return describe_index(path)


def tune_index(path: Path, budget: Budget, factory: str | None) -> dict[str, Any]:
    """Choose and build the object index on disk."""
    tune_object_index(path, budget, factory)
    return describe_index(path)


def _count_bytes(path: Path) -> int:
    """Bytes of all files below a folder, where others may write and delete meanwhile."""
    size = 0
    for folder, _, names in os.walk(path):  # passes over folders that vanish
        for name in names:
            with suppress(FileNotFoundError):
                size += os.stat(os.path.join(folder, name)).st_size
    return size


def _open_writer(path: Path) -> IndexWriter:
    manifest = Manifest.load(path)
    return IndexWriter(path, manifest.model, manifest.factory, segment_images=64)


def _finish(path: Path, **figures: int) -> dict[str, Any]:
    refresh_object_index(path)
    return {**figures, **describe_index(path)}
