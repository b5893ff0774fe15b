"""An ``ObjectIndex`` by Milvus: the vectors lie in a collection, and all else in the index folder.

Shape shorthand: O objects in the index, Q queries, D dimensions, M matches a query.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from .milvus_connection import MilvusConnection, MilvusSettings, UnreadableDatabaseError
from .milvus_ledger import Ledger, ledger_name
from .milvus_note import delete_own_database, identify, note_database, note_settings, stored_settings
from .milvus_upload import CHECKPOINT_OBJECTS, Uploader
from .object_keys import ObjectNumbers
from .reader import EmbeddingIndex

logger = logging.getLogger(__name__)

LARGEST_FETCH = 16_384
"""Milvus gives so many matches a query at most."""

LITE_INDEX_TYPES = ("FLAT", "HNSW", "HNSW_SQ", "IVF_FLAT", "IVF_SQ8", "AUTOINDEX")

# Matches asked for at once, over all queries: some 30 bytes each come back.
_MATCHES_AT_ONCE = 1 << 19

Report = Callable[[int, int], None]
"""Called with objects uploaded since the last call, and objects to upload in all."""


class MilvusObjectIndex:
    """See the module; make it with ``open_milvus_index``. Its attributes are those of ``ObjectIndex``."""

    def __init__(self, connection: MilvusConnection, index: EmbeddingIndex) -> None:
        self._connection = connection
        self._settings = connection.settings
        self._dimension = index.dimension
        self._objects = index.num_objects
        self._numbers = ObjectNumbers(index.segments, index.manifest.segments)
        # A search that may fetch 1 / 64 of the objects is exact only as long as Milvus gives so many.
        self.is_exact = self._settings.index_type == "FLAT" and self._objects <= 64 * LARGEST_FETCH
        self.score_error = 0.0
        self.first_fetch: int | None = None

    @property
    def dimension(self) -> int:
        return self._dimension

    def __len__(self) -> int:
        return self._objects

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def search(self, queries: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray]:
        """See ``ObjectIndex.search``. Of objects that were added since the index was opened nothing is said.

        Raises:
            ValueError: if Milvus does not answer.
        """
        assert m > 0, f"m is {m}, must be positive"
        m = min(m, self._objects)
        scores = np.full((len(queries), m), -np.inf, np.float32)
        ids = np.full((len(queries), m), -1, np.int64)
        limit = min(m, LARGEST_FETCH)
        at_once = max(1, _MATCHES_AT_ONCE // max(1, limit))
        for start in range(0, len(queries) if m else 0, at_once):
            for query, matches in enumerate(self._ask(queries[start : start + at_once], limit), start):
                keys = np.array([match["id"] for match in matches], np.int64)
                found = self._numbers.find(keys)
                is_counted = found >= 0
                count = int(is_counted.sum())
                ids[query, :count] = found[is_counted]
                scores[query, :count] = np.array([match["distance"] for match in matches], np.float32)[is_counted]
        return scores, ids

    def _ask(self, queries: np.ndarray, limit: int) -> Any:
        params = dict(self._settings.search_params)
        if "ef" in params:
            # HNSW looks at no fewer candidates than it gives.
            params["ef"] = max(params["ef"], limit)
        with self._connection.naming_errors():
            answers = self._connection.client.search(
                self._settings.collection,
                data=list(np.ascontiguousarray(queries, np.float32)),
                anns_field="vector",
                limit=limit,
                # Without this milvus-lite sends the vectors, too.
                output_fields=["key"],
                search_params={"metric_type": "IP", "params": params},
            )
            return [[{"id": match["key"], "distance": match["distance"]} for match in answer] for answer in answers]


def open_milvus_index(
    index: EmbeddingIndex,
    settings: MilvusSettings,
    report: Report | None = None,
    checkpoint_objects: int = CHECKPOINT_OBJECTS,
) -> MilvusObjectIndex:
    """Open the collection of an index, and make or bring it up to date first where that is needed.

    Args:
        index: the index. Which collection it has is noted in its folder.
        settings: where the collection is; see ``stored_settings`` for what was used last.
        report: hears of the progress.
        checkpoint_objects: see ``milvus_upload``.

    A database that milvus-lite left cut short when it was killed is made anew, if it lies in the index folder, was made
    for this index, and holds nothing else.

    Raises:
        ValueError: see ``MilvusConnection``; or if the collection was made for another index or model, if Milvus does
            not know the type of index or its parameters, or if the index folder cannot be written to.
    """
    for is_last in (False, True):
        note_database(index.path, settings)
        try:
            return _open(index, settings, report, checkpoint_objects)
        except UnreadableDatabaseError as error:
            if is_last or not delete_own_database(index.path, settings):
                raise
            logger.warning("%s is damaged and made anew from the index: %s", settings.uri, error)
    raise AssertionError("the second try returns or raises")


def _open(
    index: EmbeddingIndex, settings: MilvusSettings, report: Report | None, checkpoint_objects: int
) -> MilvusObjectIndex:
    """Open the collection of an index, bring it up to date, and note it; see ``open_milvus_index``."""
    identity = identify(index.path)
    connection = MilvusConnection(settings)
    try:
        connection.load((ledger_name(settings.collection), settings.collection))
        ledger = Ledger(connection)
        ledger.claim(identity, index.manifest.model)
        if _make_collection(connection, index.dimension, stored_settings(index.path)):
            ledger.drop(list(ledger.read()))
        uploader = Uploader(connection, ledger, index, checkpoint_objects)
        total = uploader.objects_to_upload()
        uploader.run(lambda objects: report(objects, total) if report else None)
        note_settings(index.path, settings)
        return MilvusObjectIndex(connection, index)
    except BaseException:
        connection.close()
        raise


def _make_collection(connection: MilvusConnection, dimension: int, previous: MilvusSettings | None) -> bool:
    """Make the collection with its index over the vectors, load it, and say whether it is new."""
    from pymilvus import DataType, MilvusClient

    settings, client = connection.settings, connection.client
    if connection.is_embedded and settings.index_type not in LITE_INDEX_TYPES:
        # It would say nothing and search without an index.
        known_types = ", ".join(LITE_INDEX_TYPES)
        raise ValueError(f"INDEX.MILVUS.INDEX_TYPE is {settings.index_type!r}, milvus-lite has {known_types}")
    indexes = MilvusClient.prepare_index_params()
    indexes.add_index(
        field_name="vector",
        index_name="vector",
        index_type=settings.index_type,
        metric_type="IP",
        params=dict(settings.index_params),
    )
    with connection.naming_errors():
        if not client.has_collection(settings.collection):
            schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("key", DataType.INT64, is_primary=True)
            schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimension)
            client.create_collection(
                settings.collection, schema=schema, index_params=indexes, consistency_level="Strong"
            )
            return True
        known = client.describe_index(settings.collection, "vector") or {}
        # milvus-lite does not tell the parameters of an index.
        has_other_params = previous is not None and previous.index_params != settings.index_params
        if known.get("index_type") != settings.index_type or has_other_params:
            client.release_collection(settings.collection)
            if known:
                client.drop_index(settings.collection, "vector")
            client.create_index(settings.collection, indexes)
        client.load_collection(settings.collection)
        return False
