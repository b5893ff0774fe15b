"""The files that an index could not take in, with the reason, in ``skipped.jsonl`` beside its manifest."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from ..files import naming_errors, replace_file

SKIPPED_FILE = "skipped.jsonl"


@dataclass(frozen=True)
class SkippedFile:
    """A file that is not in the index.

    Attributes:
        path: absolute path of the file.
        reason: why, as one line of plain English.
    """

    path: str
    reason: str


def read_skipped(index_path: str | os.PathLike[str]) -> list[SkippedFile]:
    """The skipped files of an index, in the order in which they were met; [] if there is no list.

    A file that was met twice is listed once, with its latest reason. A last line that a crash cut short is left out.
    """
    path = Path(index_path) / SKIPPED_FILE
    if not path.exists():
        return []
    skipped: dict[str, SkippedFile] = {}
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        try:
            entry = SkippedFile(**json.loads(line))
        except (ValueError, TypeError):
            continue
        skipped[entry.path] = entry
    return list(skipped.values())


class SkippedFiles:
    """The list of skipped files while an index is being written; use it within the ``IndexWriter``'s block.

    It starts from what earlier runs skipped. Every ``add`` is in the file at once, so that a crash keeps it.
    ``resolve`` and ``close`` replace the file atomically. Closing drops the entries of earlier runs whose
    files are gone.

    Args:
        index_path: the index folder, which must exist.
    """

    def __init__(self, index_path: str | os.PathLike[str]) -> None:
        self._path = Path(index_path) / SKIPPED_FILE
        self._entries = {entry.path: entry for entry in read_skipped(index_path)}
        self._added: set[str] = set()
        # Leaves no half line of a crashed run for the next one to be glued to.
        self._rewrite()

    def __enter__(self) -> SkippedFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # After an error (a full disk, say) the file as appended so far is good enough.
        if kind is None:
            self.close()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def entries(self) -> list[SkippedFile]:
        """All skipped files, earlier runs' included."""
        return list(self._entries.values())

    def add(self, path: str, reason: str) -> None:
        """Note that the file at ``path`` was skipped in this run."""
        entry = SkippedFile(path, reason)
        self._entries[path] = entry
        self._added.add(path)
        with naming_errors(self._path), open(self._path, "ab") as stream:
            stream.write(_to_line(entry))

    def resolve(self, path: str) -> None:
        """Note that the file at ``path`` can be read: an entry of an earlier run vanishes."""
        if self._entries.pop(path, None) is not None:
            self._added.discard(path)
            self._rewrite()

    def close(self) -> None:
        """Drop the entries of files that are gone, and leave the list in order."""
        self._entries = {
            path: entry for path, entry in self._entries.items() if path in self._added or os.path.lexists(path)
        }
        self._rewrite()

    def _rewrite(self) -> None:
        replace_file(self._path, b"".join(_to_line(entry) for entry in self._entries.values()))


def _to_line(entry: SkippedFile) -> bytes:
    return (json.dumps(asdict(entry)) + "\n").encode("ascii")
