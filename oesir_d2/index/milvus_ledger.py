"""The ledger: a small collection beside that of the objects, which says whose objects those are and how far they are.

Row 0 names the index and the model. Every other row is of one segment: what it holds, and whether that is there. It is
written before a segment's objects are and again after, so whatever kills an upload, the next one knows what to repeat.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from .compatibility import EmbeddingModelInfo, describe_differences
from .manifest import SegmentInfo
from .milvus_connection import MilvusConnection

_FORMAT = 1
_OWNER_KEY = 0
# What Milvus takes, in bytes.
_LONGEST_TEXT = 65_535
# A collection of Milvus has vectors, whether it needs them or not.
_NO_VECTOR = [0.0, 0.0]
_ROWS_AT_ONCE = 4096
# Of so many rows that no segment has, one after the other: more is no gap that deleted segments leave.
_MOST_EMPTY = 1000


@dataclass(frozen=True)
class LedgerRow:
    """What is known of a segment's objects in the collection.

    Attributes:
        content: hash of what the segment holds.
        superseded: hash of its images that do not count, whose objects are not there; "" while it is uploaded.
    """

    content: str
    superseded: str

    @classmethod
    def of(cls, info: SegmentInfo) -> LedgerRow:
        """The row of a segment all of whose objects are there, and no others."""
        files = [info.checksums.get(name) for name in ("vectors.npy", "offsets.npy")]
        return cls(_hash([info.name, files]), _hash(info.superseded))

    def begun(self) -> LedgerRow:
        """The same segment, some of whose objects may be there."""
        return LedgerRow(self.content, "")


def ledger_name(collection: str) -> str:
    """The name of a collection's ledger."""
    return f"{collection}_segments"


class Ledger:
    """The ledger of a collection; see the module.

    Args:
        connection: to Milvus.
    """

    def __init__(self, connection: MilvusConnection) -> None:
        self._connection = connection
        self._client = connection.client
        self._name = ledger_name(connection.settings.collection)

    def claim(self, identity: str, model: EmbeddingModelInfo) -> None:
        """Make the ledger for an index, or check that it is of this one and of its model.

        Raises:
            ValueError: if it is of another, or of a newer version.
        """
        with self._connection.naming_errors():
            if not self._client.has_collection(self._name):
                if self._client.has_collection(self._connection.settings.collection):
                    raise ValueError(f"{self._place()} is no collection of oesir_d2; name another one")
                self._create()
            else:
                self._client.load_collection(self._name)
            owner = self._read_owner()
        if owner is None:
            content = json.dumps({"format": _FORMAT, "index": identity, "model": asdict(model)})
            assert len(content) <= _LONGEST_TEXT, f"the model's description has {len(content)} bytes"
            self._write({_OWNER_KEY: LedgerRow(content, "")})
            return
        if owner.get("format") != _FORMAT:
            raise ValueError(f"{self._place()} has format {owner.get('format')}, expected {_FORMAT}")
        differences = describe_differences(EmbeddingModelInfo(**owner["model"]), model)
        if differences:
            raise ValueError(f"{self._place()} was made for another model: {'; '.join(differences)}")
        if owner["index"] != identity:
            raise ValueError(f"{self._place()} was made for another index; name another collection, or drop this one")

    def read(self) -> dict[int, LedgerRow]:
        """The rows of all segments, by their numbers.

        Raises:
            ValueError: if Milvus counts rows that it does not give.
        """
        rows: dict[int, LedgerRow] = {}
        start = _OWNER_KEY + 1
        empty = 0
        with self._connection.naming_errors():
            count = self._count(start)
            # Milvus gives a limited number of rows at once, and in no order.
            while len(rows) < count:
                batch = self._client.query(
                    self._name,
                    filter=f"key >= {start} and key < {start + _ROWS_AT_ONCE}",
                    output_fields=["key", "content", "superseded"],
                )
                rows.update((row["key"], LedgerRow(row["content"], row["superseded"])) for row in batch)
                start += _ROWS_AT_ONCE
                empty = 0 if batch else empty + 1
                if empty:
                    # Between the numbers there are gaps; or somebody has deleted rows meanwhile.
                    count = len(rows) + self._count(start)
                if empty > _MOST_EMPTY:
                    raise ValueError(f"{self._place()} counts {count} segments and gives {len(rows)}; drop it")
        return rows

    def write(self, rows: Iterable[tuple[str, LedgerRow]]) -> None:
        """Enter what is known of segments, by their names."""
        self._write({int(name): row for name, row in rows})

    def drop(self, numbers: list[int]) -> None:
        """Take segments out of the ledger."""
        with self._connection.naming_errors():
            for start in range(0, len(numbers), _ROWS_AT_ONCE):
                self._client.delete(self._name, ids=numbers[start : start + _ROWS_AT_ONCE])

    def _write(self, rows: dict[int, LedgerRow]) -> None:
        entries = [{"key": key, **vars(row), "vector": _NO_VECTOR} for key, row in rows.items()]
        with self._connection.naming_errors():
            for start in range(0, len(entries), _ROWS_AT_ONCE):
                self._client.upsert(self._name, entries[start : start + _ROWS_AT_ONCE])
            if self._connection.is_embedded:
                self._client.flush(self._name)

    def _count(self, first: int) -> int:
        """The rows from a key on."""
        rows = self._client.query(self._name, filter=f"key >= {first}", output_fields=["count(*)"])
        return int(rows[0]["count(*)"])

    def _read_owner(self) -> dict[str, Any] | None:
        rows = self._client.query(self._name, filter=f"key == {_OWNER_KEY}", output_fields=["content"])
        return json.loads(rows[0]["content"]) if rows else None

    def _create(self) -> None:
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", DataType.INT64, is_primary=True)
        schema.add_field("content", DataType.VARCHAR, max_length=_LONGEST_TEXT)
        schema.add_field("superseded", DataType.VARCHAR, max_length=64)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=len(_NO_VECTOR))
        indexes = MilvusClient.prepare_index_params()
        indexes.add_index(field_name="vector", index_type="FLAT", metric_type="IP")
        self._client.create_collection(self._name, schema=schema, index_params=indexes, consistency_level="Strong")

    def _place(self) -> str:
        settings = self._connection.settings
        return f"collection {settings.collection!r} of Milvus at {settings.uri}"


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
