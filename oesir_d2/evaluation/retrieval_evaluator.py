"""Evaluators of retrieval sets: embed, gather, search, score.

Queries and database come through one loader, told apart by their role (``oesir_d2.data.datasets.retrieval``). Each
process embeds its share; the main one gathers all on disk and searches with query after query, each of which leaves
no more than what its figures need. Search is that of the tools, so the figures are those of an index.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tqdm import tqdm

from oesir_d2.evaluation.embedding_store import EmbeddingStore
from oesir_d2.evaluation.metrics import mean_average_precision, recall_at_k
from oesir_d2.evaluation.pair_metrics import micro_average_precision, recall_at_precision
from oesir_d2.evaluation.revisited import average_figures, collect_revisited_queries, score_ranking
from oesir_d2.evaluation.scratch_folder import make_scratch_folder
from oesir_d2.evaluation.splice_protocol import Splices, evaluate_splice_retrieval
from oesir_d2.evaluation.splice_roles import collect_splices
from oesir_d2.evaluation.tie_order import order_ties_against
from oesir_d2.index import SearchResult, SetSearcher, build_object_index
from oesir_d2.structures import ImageEmbeddings

NUM_NAMED = 3
"""So many of the photos that could not be read are named in the log."""

Item = Mapping[str, Any]

logger = logging.getLogger(__name__)


class RetrievalEvaluator(DatasetEvaluator):
    """What all retrieval sets have in common; a protocol says how one query is judged and what all make together.

    A photo that cannot be read is named in the log. As a query it finds nothing, in the database it is never found.

    Args:
        dataset_dicts: the set; see ``oesir_d2.data.datasets.retrieval``.
        aggregate: name of an aggregator, see ``RETRIEVAL.AGGREGATE``.
        explain_away: see ``RETRIEVAL.EXPLAIN_AWAY``.
        depth: results a query; 0 takes ``default_depth``.
        factory: FAISS factory string; "Flat" is exact.
        folder: where embeddings lie until the figures are there; it must exist. None is the system's own.
    """

    default_depth = 100
    """Results a query where the config does not say; 0 is all of the database."""

    def __init__(
        self,
        dataset_dicts: Sequence[Item],
        *,
        aggregate: str = "max",
        explain_away: float = 0.0,
        depth: int = 0,
        factory: str = "Flat",
        folder: str | Path | None = None,
    ) -> None:
        if depth < 0:
            raise ValueError(f"depth is {depth}, expected 0 (the protocol's own) or more")
        self.queries = [item for item in dataset_dicts if item["role"] == "query"]
        self.database = [item for item in dataset_dicts if item["role"] == "database"]
        self.explain_away = explain_away
        self._aggregate = aggregate
        self._depth = depth or self.default_depth or len(self.database)
        self._factory = factory
        self._folder = folder

    @abstractmethod
    def judge(self, query: Item, results: Sequence[SearchResult]) -> Any:
        """What is kept of the results of one query, best first; [] if it could not be read."""

    @abstractmethod
    def summarise(self, judged: Sequence[Any]) -> dict[str, dict[str, float]]:
        """The figures, in percent, from what :meth:`judge` kept of each query, in their order."""

    def reset(self) -> None:
        self._temporary = make_scratch_folder(self._folder)
        self._stores = {role: EmbeddingStore(Path(self._temporary.name) / role) for role in ("query", "database")}
        self._unreadable: list[str] = []

    def process(self, inputs: Sequence[Item], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Take in what a model found.

        Args:
            inputs: dataset dicts through a mapper; one with ``unreadable`` stands for a photo that could not be read.
            outputs: one each, with ``instances``, see :class:`oesir_d2.structures.ImageEmbeddings`.
        """
        for item, output in zip(inputs, outputs, strict=True):
            if "unreadable" in item:
                self._unreadable.append(f"{item['file_name']}: {item['unreadable']}")
                continue
            embeddings = ImageEmbeddings.from_instances(item["image_id"], output["instances"])
            self._stores[item["role"]].add(embeddings, item["file_name"])

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """The figures, in the main process; None in the others.

        Raises:
            ValueError: no photo of the database could be read.
        """
        for store in self._stores.values():
            store.gather()
        unreadable = [line for lines in comm.gather(self._unreadable) for line in lines]
        try:
            if not comm.is_main_process():
                return None
            if unreadable:
                shown = "; ".join(unreadable[:NUM_NAMED]) + ("; …" if len(unreadable) > NUM_NAMED else "")
                logger.warning("%d photos could not be read: %s", len(unreadable), shown)
            return self.summarise(self._search())
        finally:
            self._temporary.cleanup()

    def _search(self) -> list[Any]:
        database, queries = self._stores["database"].open(), self._stores["query"].open()
        if database is None:
            raise ValueError(f"none of the {len(self.database)} photos to search could be read")
        objects = build_object_index(self._factory, database.dimension, database.vector_chunks())
        searcher = SetSearcher(database, objects)
        embedded = {} if queries is None else {record.image_id: row for row, record in enumerate(queries.images)}
        judged = []
        for query in tqdm(self.queries, desc="Searching", unit="query"):
            results: list[SearchResult] = []
            if queries is not None and query["image_id"] in embedded:
                results = searcher.search(
                    queries.embeddings_of(embedded[query["image_id"]]),
                    top_k=self._depth,
                    aggregate=self._aggregate,
                    matches_per_result=0,
                    explain_away=self.explain_away,
                )
            judged.append(self.judge(query, results))
        return judged


class RevisitedEvaluator(RetrievalEvaluator):
    """The revisited Oxford and Paris protocol over rankings of the whole database (see ``revisited``)."""

    default_depth = 0

    def __init__(self, dataset_dicts: Sequence[Item], **options: Any) -> None:
        super().__init__(dataset_dicts, **options)
        self._index_of = {item["image_id"]: index for index, item in enumerate(self.database)}
        ground_truth = collect_revisited_queries(self.queries, self.database)
        self._ground_truth = {item["image_id"]: truth for item, truth in zip(self.queries, ground_truth, strict=True)}

    def judge(self, query: Item, results: Sequence[SearchResult]) -> Any:
        ranking = np.array([self._index_of[result.image_id] for result in results], dtype=np.int64)
        scores = np.array([result.score for result in results])
        return score_ranking(self._ground_truth[query["image_id"]], ranking, scores)

    def summarise(self, judged: Sequence[Any]) -> dict[str, dict[str, float]]:
        return average_figures(judged).metrics


class SpliceEvaluator(RetrievalEvaluator):
    """The splice protocol (see ``splice_protocol``), with the figures of ``tools/evaluate_splices.py``."""

    def __init__(self, dataset_dicts: Sequence[Item], **options: Any) -> None:
        super().__init__(dataset_dicts, **options)
        self._splices: Splices = collect_splices(self.queries, self.database)

    def judge(self, query: Item, results: Sequence[SearchResult]) -> Any:
        sources = {image_id for image_ids in query["ground_truth"].values() for image_id in image_ids}
        ordered = order_ties_against(results, sources, keep_first=self.explain_away > 0)
        return [result.image_id for result in ordered]

    def summarise(self, judged: Sequence[Any]) -> dict[str, dict[str, float]]:
        return evaluate_splice_retrieval(self._splices, judged).metrics


class CopyEvaluator(RetrievalEvaluator):
    """Copy detection: each query's original, and over all queries one threshold (see ``pair_metrics``).

    ``mAP`` and ``recall@k`` are means over the queries that have an original; ``uAP`` and ``recall@P90`` also count
    what is found for those that have none. Scores of different queries are compared, so nothing is explained away.
    """

    recall_depths = (1, 5, 10)

    def __init__(self, dataset_dicts: Sequence[Item], **options: Any) -> None:
        super().__init__(dataset_dicts, **options | {"explain_away": 0.0})

    def judge(self, query: Item, results: Sequence[SearchResult]) -> Any:
        positives = set(query["ground_truth"]["positive"])
        ordered = order_ties_against(results, positives)
        scores = np.array([result.score for result in ordered])
        is_positive = np.array([result.image_id in positives for result in ordered], dtype=bool)
        return scores, is_positive, len(positives)

    def summarise(self, judged: Sequence[Any]) -> dict[str, dict[str, float]]:
        ranks = [np.flatnonzero(is_positive) for _, is_positive, _ in judged]
        counts = [count for _, _, count in judged]
        total = sum(counts)
        if not total:
            raise ValueError("no query has an original in the database")
        metrics = {"mAP": mean_average_precision(ranks, counts)}
        for k in self.recall_depths:
            found = [recall_at_k(own, count, k) for own, count in zip(ranks, counts, strict=True) if count]
            metrics[f"recall@{k}"] = float(np.mean(found))
        scores = np.concatenate([scores for scores, _, _ in judged])
        is_positive = np.concatenate([is_positive for _, is_positive, _ in judged])
        metrics["uAP"] = micro_average_precision(scores, is_positive, total)
        metrics["recall@P90"] = recall_at_precision(scores, is_positive, total)
        return {"copy_detection": {name: 100 * value for name, value in metrics.items()}}
