"""Searching an index with photos: the model comes from the index's manifest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from oesir_d2.data.images import ImageFile, UnreadableImageError
from oesir_d2.engine.config_loading import apply_overrides
from oesir_d2.engine.embedder import EmbeddedImage, Embedder
from oesir_d2.engine.model_info import restore_config
from oesir_d2.engine.object_search import build_object_search, recall_backend
from oesir_d2.index import (
    EmbeddingIndex,
    ObjectIndex,
    SearchResult,
    SetSearcher,
    check_compatible,
    round_box,
)
from oesir_d2.index.milvus_object_index import MilvusObjectIndex
from oesir_d2.structures import ImageEmbeddings


@dataclass(frozen=True)
class QueryResult:
    """A query photo and what was found for it."""

    query: EmbeddedImage
    results: list[SearchResult]

    def to_dict(self) -> dict[str, Any]:
        """As JSON, in the form of DESIGN.md section 4. Boxes are XYXY in pixels of the original photos."""
        embeddings = self.query.embeddings
        return {
            "query": str(self.query.file.path),
            "objects": [
                {"box": round_box(box), "score": round(float(score), 6), "class": int(class_id)}
                for box, score, class_id in zip(embeddings.boxes, embeddings.scores, embeddings.classes, strict=True)
            ],
            "results": [result.to_dict() for result in self.results],
        }


class Retriever:
    """An open index with the model that made it.

    Args:
        index_path: the index folder.
        opts: KEY VALUE pairs over the config in the index's manifest, for example where its weights lie now.

    Raises:
        FileNotFoundError: there is no index, or its weights are gone.
        ValueError: the folder is no index or is damaged, the model at hand is not the one that made it, or Milvus, if
            that is to search it, cannot be used.
    """

    def __init__(self, index_path: str | Path, opts: Sequence[str] = ()) -> None:
        self.index = EmbeddingIndex.open(index_path)
        self.cfg: CfgNode = restore_config(self.index.manifest.model)
        recall_backend(self.cfg, self.index.path)
        apply_overrides(self.cfg, opts)
        self._follows_factory = "INDEX.FACTORY" not in opts[::2]
        self.embedder = Embedder(self.cfg)
        check_compatible(self.index.manifest, self.embedder.info)
        self._take_in(self.index)

    def close(self) -> None:
        """Let go of a database of milvus-lite, which one process at a time can open; FAISS has nothing to close."""
        _close(self._objects)

    def reopen(self) -> None:
        """Take in what was written to the index since it was opened, and what it was tuned to; the model stays.

        Raises:
            ValueError: the index is damaged, or another model's by now, or Milvus cannot be used; this retriever goes
                on with what it has.
        """
        before = self._objects
        self._take_in(EmbeddingIndex.open(self.index.path, self.embedder.info))
        _close(before)

    def _take_in(self, index: EmbeddingIndex) -> None:
        cfg = self.cfg.clone()
        if self._follows_factory:
            cfg.INDEX.FACTORY = index.manifest.factory
        objects = build_object_search(cfg, index)
        self._searcher = SetSearcher(index, objects)
        self._objects = objects
        self.index = index
        self.cfg.INDEX.FACTORY = cfg.INDEX.FACTORY

    def search(
        self,
        file: ImageFile,
        box: Sequence[float] | None = None,
        top_k: int | None = None,
        aggregate: str | None = None,
    ) -> QueryResult:
        """Search with one photo.

        Args:
            file: the query.
            box: search with this box alone: XYXY in pixels of the file after its EXIF rotation.
            top_k: results wanted; cfg.RETRIEVAL.TOP_K if not given.
            aggregate: name of an aggregator; cfg.RETRIEVAL.AGGREGATE if not given.

        Raises:
            UnreadableImageError: the query cannot be read.
            ValueError: an argument out of its range.
        """
        return self._search(self.embedder.embed(file, None if box is None else [box]), top_k, aggregate)

    def search_all(
        self, files: Iterable[ImageFile], top_k: int | None = None, aggregate: str | None = None
    ) -> Iterator[tuple[ImageFile, QueryResult | UnreadableImageError]]:
        """Search with many photos, in order; those that cannot be read yield the reason."""
        for file, embedded in self.embedder.embed_all(files):
            if isinstance(embedded, UnreadableImageError):
                yield file, embedded
            else:
                yield file, self._search(embedded, top_k, aggregate)

    def rank(
        self,
        embeddings: ImageEmbeddings,
        top_k: int | None = None,
        aggregate: str | None = None,
        explain_away: float | None = None,
    ) -> list[SearchResult]:
        """Search with regions that are embedded already, by this retriever's embedder.

        Args:
            embeddings: the regions.
            top_k: results wanted; cfg.RETRIEVAL.TOP_K if not given.
            aggregate: name of an aggregator; cfg.RETRIEVAL.AGGREGATE if not given.
            explain_away: see ``SetSearcher.search``; cfg.RETRIEVAL.EXPLAIN_AWAY if not given.

        Raises:
            ValueError: an argument out of its range.
        """
        options = self.cfg.RETRIEVAL
        return self._searcher.search(
            embeddings,
            top_k=options.TOP_K if top_k is None else top_k,
            aggregate=options.AGGREGATE if aggregate is None else aggregate,
            explain_away=options.EXPLAIN_AWAY if explain_away is None else explain_away,
        )

    def _search(self, query: EmbeddedImage, top_k: int | None, aggregate: str | None) -> QueryResult:
        return QueryResult(query, self.rank(query.embeddings, top_k, aggregate))


def _close(objects: ObjectIndex) -> None:
    if isinstance(objects, MilvusObjectIndex):
        objects.close()
