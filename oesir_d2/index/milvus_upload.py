"""Bringing a collection of Milvus up to date with an index, segment by segment.

The index folder stays the source of truth. New segments are uploaded before what they replaced is deleted. Everything
may be repeated: objects go in under keys that never change their meaning, and the ledger tells what is certainly there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import chain

import numpy as np

from .manifest import SegmentInfo
from .milvus_connection import MilvusConnection, UnreadableDatabaseError
from .milvus_ledger import Ledger, LedgerRow
from .object_keys import ROW_BITS, counted_rows, end_key, first_key, superseded_rows
from .reader import EmbeddingIndex
from .segments import Segment

logger = logging.getLogger(__name__)

CHECKPOINT_OBJECTS = 50_000
"""An upload that is killed repeats so many objects at most, or one segment."""

_UPLOAD_BYTES = 8 << 20
_KEYS_AT_ONCE = 4096

_Part = tuple[Segment, SegmentInfo]


class Uploader:
    """Makes a collection hold exactly the objects of an index.

    Args:
        connection: to Milvus; the collection is there.
        ledger: the collection's, claimed for the index.
        index: the index.
        checkpoint_objects: see ``CHECKPOINT_OBJECTS``.
    """

    def __init__(
        self,
        connection: MilvusConnection,
        ledger: Ledger,
        index: EmbeddingIndex,
        checkpoint_objects: int = CHECKPOINT_OBJECTS,
    ) -> None:
        self._connection = connection
        self._client = connection.client
        self._collection = connection.settings.collection
        self._ledger = ledger
        self._index = index
        self._checkpoint_objects = checkpoint_objects
        self._known = ledger.read()
        self._parts = list(zip(index.segments, index.manifest.segments, strict=True))

    def objects_to_upload(self) -> int:
        """Objects of all segments that are not certainly there."""
        return sum(len(counted_rows(*part)) for part in self._missing())

    def run(self, report: Callable[[int], None]) -> bool:
        """Upload and delete until the collection is up to date.

        Args:
            report: called with the number of objects that have been uploaded since it was called last.

        Returns:
            Whether anything was to be done.

        Raises:
            ValueError: if Milvus refuses something, or holds other objects in the end.
            UnreadableDatabaseError: if it is milvus-lite that holds others.
        """
        missing = self._missing()
        for group in self._groups(missing):
            self._upload(group, report)
        changed = [part for part in self._parts if self._is_there(part) and self._row(part) != LedgerRow.of(part[1])]
        if changed:
            self._delete_superseded(changed)
            self._ledger.write((info.name, LedgerRow.of(info)) for _, info in changed)
        dropped = sorted(set(self._known) - {int(info.name) for _, info in self._parts})
        for number in dropped:
            self._delete_segment(f"{number:06d}")
        if dropped:
            self._flush()
            self._ledger.drop(dropped)
        has_worked = bool(missing or changed or dropped)
        if has_worked or self._connection.is_embedded:
            # milvus-lite may have gone back to an earlier state after a crash.
            self._check_count()
        return has_worked

    def _row(self, part: _Part) -> LedgerRow | None:
        return self._known.get(int(part[1].name))

    def _is_there(self, part: _Part) -> bool:
        """Whether all objects that a segment ever had since it was uploaded are there; superseded ones may be, too."""
        row = self._row(part)
        return row is not None and row.content == LedgerRow.of(part[1]).content and row.superseded != ""

    def _missing(self) -> list[_Part]:
        return [part for part in self._parts if not self._is_there(part)]

    def _groups(self, parts: list[_Part]) -> Iterator[list[_Part]]:
        """Segments to upload between two checkpoints."""
        group: list[_Part] = []
        objects = 0
        for part in parts:
            group.append(part)
            objects += part[1].objects
            if objects >= self._checkpoint_objects:
                yield group
                group, objects = [], 0
        if group:
            yield group

    def _upload(self, group: list[_Part], report: Callable[[int], None]) -> None:
        # Of a segment of the same number that held something else, or whose upload was cut off, anything may be there.
        for part in group:
            if self._row(part) is not None:
                self._delete_segment(part[1].name)
        self._ledger.write((info.name, LedgerRow.of(info).begun()) for _, info in group)
        rows_at_once = max(1, _UPLOAD_BYTES // (4 * self._index.dimension))
        batch: list[dict[str, object]] = []
        for entry in chain.from_iterable(_entries(part, rows_at_once) for part in group):
            batch.append(entry)
            if len(batch) == rows_at_once:
                self._upsert(batch, report)
                batch = []
        if batch:
            self._upsert(batch, report)
        self._flush()
        self._ledger.write((info.name, LedgerRow.of(info)) for _, info in group)

    def _upsert(self, batch: list[dict[str, object]], report: Callable[[int], None]) -> None:
        with self._connection.naming_errors():
            self._client.upsert(self._collection, batch)
        report(len(batch))

    def _delete_superseded(self, parts: list[_Part]) -> None:
        for segment, info in parts:
            keys = (superseded_rows(segment, info) + first_key(info.name)).tolist()
            for start in range(0, len(keys), _KEYS_AT_ONCE):
                with self._connection.naming_errors():
                    self._client.delete(self._collection, ids=keys[start : start + _KEYS_AT_ONCE])
        self._flush()

    def _delete_segment(self, name: str) -> None:
        with self._connection.naming_errors():
            self._client.delete(self._collection, filter=f"key >= {first_key(name)} and key < {end_key(name)}")

    def _flush(self) -> None:
        # A server keeps what it has acknowledged, and takes frequent flushes amiss; milvus-lite keeps it against a
        # killed process, but against a loss of power only what was flushed. And it searches that much faster.
        if self._connection.is_embedded:
            with self._connection.naming_errors():
                self._client.flush(self._collection)

    def _check_count(self) -> None:
        settings = self._connection.settings
        with self._connection.naming_errors():
            rows = self._client.query(self._collection, filter="", output_fields=["count(*)"])
        count = rows[0]["count(*)"]
        if count != self._index.num_objects:
            kind = UnreadableDatabaseError if self._connection.is_embedded else ValueError
            raise kind(
                f"collection {self._collection!r} of Milvus at {settings.uri} holds {count} objects, "
                f"index {self._index.path} {self._index.num_objects}: something else writes there; drop it"
            )


def _entries(part: _Part, rows_at_once: int) -> Iterator[dict[str, object]]:
    """The objects of a segment that count, as Milvus takes them; read piece by piece."""
    segment, info = part
    counted = counted_rows(segment, info)
    first = first_key(info.name)
    for start in range(0, info.objects, rows_at_once):
        stop = min(start + rows_at_once, info.objects)
        rows = counted[np.searchsorted(counted, start) : np.searchsorted(counted, stop)]
        vectors = segment.vectors.read(start, stop)
        assert stop <= 1 << ROW_BITS, f"segment {info.name} has more than 2^{ROW_BITS} objects"
        for row in rows.tolist():
            yield {"key": first + row, "vector": vectors[row - start]}
