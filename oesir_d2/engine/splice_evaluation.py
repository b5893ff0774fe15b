"""Scoring an index on a set of splices."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from oesir_d2.data.images import ImageFile, UnreadableImageError
from oesir_d2.data.splicing import SpliceSet
from oesir_d2.engine.retrieval import Retriever
from oesir_d2.evaluation import KeptResults, SpliceEvaluation, evaluate_splice_retrieval, match_database

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoredSplices:
    """An evaluation with what is needed to show its failures.

    Attributes:
        splices: the set.
        evaluation: metrics in percent and one row a query, in the order of the set.
        kept: one a query, in the same order.
        matches: from the set's image ids to those of the index; sources that the index lacks are not in it.
        paths: the photos of the index by their image ids.
        unreadable: the queries that could not be read, by file name; their sources count as never found.
    """

    splices: SpliceSet
    evaluation: SpliceEvaluation
    kept: list[KeptResults]
    matches: dict[str, str]
    paths: dict[str, Path]
    unreadable: list[str]


def evaluate_splices(
    retriever: Retriever,
    splices: SpliceSet,
    depth: int,
    aggregate: str | None = None,
    allow_missing: bool = False,
) -> ScoredSplices:
    """Search with every spliced photo of a set, and score the rankings.

    Args:
        retriever: the index, built from the set's database.
        splices: the set.
        depth: results a query; sources that lie deeper count as never found.
        aggregate: name of an aggregator, or the config's.
        allow_missing: let sources that the index does not hold count as never found.

    Raises:
        ValueError: the index lacks sources of the set, unless ``allow_missing``; or the depth is out of range.
    """
    paths = {record.image_id: Path(record.path) for record in retriever.index.images}
    matches = match_database(splices, paths.items(), allow_missing)
    files = [ImageFile(query.file_name, splices.resolve(query.file_name)) for query in splices.queries]
    rankings: list[list[str]] = []
    kept: list[KeptResults] = []
    unreadable = []
    found = tqdm(
        retriever.search_all(files, top_k=depth, aggregate=aggregate), total=len(files), desc="Searching", unit="query"
    )
    for (file, result), query in zip(found, splices.queries, strict=True):
        if isinstance(result, UnreadableImageError):
            logger.warning("%s", result)
            unreadable.append(file.image_id)
            rankings.append([])
            kept.append(KeptResults())
            continue
        rankings.append([hit.image_id for hit in result.results])
        kept.append(KeptResults.of(result.results, {matches.get(source.image_id) for source in query.sources}))
    evaluation = evaluate_splice_retrieval(splices, rankings, matches)
    return ScoredSplices(splices, evaluation, kept, matches, paths, unreadable)
