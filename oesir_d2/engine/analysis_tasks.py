"""What an analysis measures embeddings on: photos to search with, photos to search, and how rankings are scored.

Shape shorthand: Q queries, M photos of the database.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from oesir_d2.data.datasets.retrieval import split_roles
from oesir_d2.data.images import ImageFile
from oesir_d2.data.splicing import DatabaseImage, SpliceQuery, SpliceSet, SpliceSource
from oesir_d2.data.splicing.splices_file import ROLES
from oesir_d2.engine.kept_results import hash_json
from oesir_d2.engine.layer_vectors import AnalysisPhoto
from oesir_d2.evaluation import (
    collect_revisited_queries,
    evaluate_revisited,
    evaluate_splice_retrieval,
    match_database,
)

Score = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], dict[str, float]]
"""From Q rankings, each of positions in the database, best first, and their scores, to metrics in percent."""


@dataclass(frozen=True)
class RetrievalTask:
    """One data set of an analysis.

    Attributes:
        name: in tables and figures.
        queries: Q photos.
        database: M photos.
        score: of rankings of the database; a query that cannot be read has an empty one.
        headline: the metric that figures show.
        key: the hash of all that decides the score of given rankings.
    """

    name: str
    queries: tuple[AnalysisPhoto, ...]
    database: tuple[AnalysisPhoto, ...]
    score: Score
    headline: str
    key: str

    @property
    def photos(self) -> tuple[AnalysisPhoto, ...]:
        return self.queries + self.database


def make_splice_task(name: str, splices: SpliceSet, images: Sequence[ImageFile] | None = None) -> RetrievalTask:
    """The task of finding the sources of splices.

    Args:
        name: of the set.
        splices: the set.
        images: the database to search; default: the set's own.

    Raises:
        ValueError: the database lacks sources of the splices.
    """
    own = [ImageFile(image.image_id, splices.resolve(image.file_name)) for image in splices.database]
    database = list(own if images is None else images)
    try:
        matches = match_database(splices, [(file.image_id, file.path) for file in database])
    except ValueError as error:
        raise ValueError(f"splices {name!r}: {error}") from error
    positions = {file.image_id: position for position, file in enumerate(database)}
    sources = [
        [positions[matches[source.image_id]] for source in query.sources if source.image_id in matches]
        for query in splices.queries
    ]

    def score(rankings: Sequence[np.ndarray], scores: Sequence[np.ndarray]) -> dict[str, float]:
        told = [
            [database[position].image_id for position in cut_behind(ranking, of_query)]
            for ranking, of_query in zip(rankings, sources, strict=True)
        ]
        return evaluate_splice_retrieval(splices, told, matches).metrics["splice_retrieval"]

    queries = tuple(AnalysisPhoto.of(ImageFile(q.file_name, splices.resolve(q.file_name))) for q in splices.queries)
    photos = tuple(AnalysisPhoto.of(file) for file in database)
    contents = [[photo.key for photo in group] for group in (queries, photos)]
    key = hash_json([splices.to_dict()["queries"], sources, *contents])
    return RetrievalTask(name, queries, photos, score, "mAP", key)


def make_registered_task(name: str) -> RetrievalTask:
    """The task of a retrieval set of detectron2's catalog (``oesir_d2.data.datasets.retrieval``).

    Raises:
        ValueError: there is none of this name, it is no retrieval set, or of a kind that has no analysis.
        FileNotFoundError: as the loader, which names the missing file.
    """
    if name not in DatasetCatalog:
        known = [
            other for other in DatasetCatalog if getattr(MetadataCatalog.get(other), "evaluator_type", "") in _MAKERS
        ]
        raise ValueError(f"data set {name!r} is not registered; retrieval sets are {', '.join(known) or 'none'}")
    evaluator_type = getattr(MetadataCatalog.get(name), "evaluator_type", "")
    if evaluator_type not in _MAKERS:
        allowed = ", ".join(_MAKERS)
        raise ValueError(f"data set {name!r} has the evaluator type {evaluator_type!r}; an analysis takes {allowed}")
    return _MAKERS[evaluator_type](name, *split_roles(DatasetCatalog.get(name)))


def _make_revisited_task(name: str, queries: list[dict[str, Any]], database: list[dict[str, Any]]) -> RetrievalTask:
    truths = collect_revisited_queries(queries, database)

    def score(rankings: Sequence[np.ndarray], scores: Sequence[np.ndarray]) -> dict[str, float]:
        metrics = evaluate_revisited(truths, rankings, scores).metrics
        return {f"{setup}/{metric}": value for setup, values in metrics.items() for metric, value in values.items()}

    return _make_task(name, queries, database, score, "medium/mAP")


def _make_splice_task(name: str, queries: list[dict[str, Any]], database: list[dict[str, Any]]) -> RetrievalTask:
    splices = SpliceSet(
        Path(),
        tuple(DatabaseImage(photo["image_id"], photo["file_name"]) for photo in database),
        tuple(
            SpliceQuery(
                query["file_name"],
                tuple(SpliceSource(image_id, role) for role in ROLES for image_id in query["ground_truth"][role]),
            )
            for query in queries
        ),
    )
    return make_splice_task(name, splices)


def _make_task(
    name: str, queries: list[dict[str, Any]], database: list[dict[str, Any]], score: Score, headline: str
) -> RetrievalTask:
    def take(item: dict[str, Any]) -> AnalysisPhoto:
        return AnalysisPhoto.of(ImageFile(item["image_id"], Path(item["file_name"])), item.get("query_box"))

    photos = [tuple(take(item) for item in items) for items in (queries, database)]
    contents = [
        [[item["image_id"], photo.key] for item, photo in zip(*both)] for both in zip((queries, database), photos)
    ]
    key = hash_json([[query["ground_truth"] for query in queries], *contents])
    return RetrievalTask(name, *photos, score, headline, key)


_MAKERS = {"revisited": _make_revisited_task, "splice_retrieval": _make_splice_task}


def cut_behind(ranking: np.ndarray, positives: Sequence[int]) -> np.ndarray:
    """A ranking up to its last positive: what comes after it changes no metric of the positives, but costs time."""
    found = np.flatnonzero(np.isin(ranking, positives))
    return ranking[: found[-1] + 1] if len(found) else ranking[:0]
