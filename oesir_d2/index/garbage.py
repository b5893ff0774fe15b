"""What lies in an index folder and is no part of the index: leftovers of interrupted writers, and what was replaced."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection
from pathlib import Path

from ..files import remove_temporaries
from .lease import unread
from .segments import SEGMENTS_FOLDER

OBJECT_INDEX_FOLDER = "object_index"
OBJECT_INDEX_SUFFIX = ".faiss"


def remove_garbage(index_path: Path, named: Collection[str]) -> None:
    """Delete temporary files of an interrupted writer, and whatever the manifest does not name.

    What a reader still has open stays, for the next writer to delete. Only the holder of the writer's lock may call
    this.

    Args:
        index_path: the index folder.
        named: ``Manifest.names`` of the manifest on disk.
    """
    for folder in (index_path, index_path / SEGMENTS_FOLDER, index_path / OBJECT_INDEX_FOLDER):
        remove_temporaries(folder)
    for path in _numbered(index_path):
        if path.stem not in named:
            with unread(index_path, path.stem) as may_delete:
                if may_delete and path.is_dir():
                    shutil.rmtree(path)
                elif may_delete:
                    path.unlink()


def names_on_disk(index_path: Path) -> list[str]:
    """The names of the segments and object indexes in an index folder, whether the manifest names them or not."""
    return [path.stem for path in _numbered(index_path)]


def _numbered(index_path: Path) -> list[Path]:
    # Anything else in these folders was put there by somebody else.
    return [
        path
        for folder, suffix in ((SEGMENTS_FOLDER, ""), (OBJECT_INDEX_FOLDER, OBJECT_INDEX_SUFFIX))
        for path in (index_path / folder).glob("*")
        if path.suffix == suffix and re.fullmatch(r"[0-9]{6,}", path.stem)
    ]
