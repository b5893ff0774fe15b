"""Scoring an index on a set of splices, and what a report shows of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from oesir_d2.data.images import ImageFile, UnreadableImageError
from oesir_d2.data.splicing import SpliceQuery, SpliceSet
from oesir_d2.engine.retrieval import QueryResult, Retriever
from oesir_d2.evaluation import (
    QueryRow,
    SpliceEvaluation,
    evaluate_splice_retrieval,
    match_database,
    worst_failures,
)
from oesir_d2.index import SearchResult
from oesir_d2.report import FailureCase, RankedPhoto, TrueSource

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoredSplices:
    """An evaluation with the failures that are worth looking at.

    Attributes:
        evaluation: metrics in percent and one row a query.
        failures: the worst queries, worst first.
        unreadable: the queries that could not be read; their sources count as never found.
    """

    evaluation: SpliceEvaluation
    failures: list[FailureCase]
    unreadable: list[str]


def evaluate_splices(
    retriever: Retriever,
    splices: SpliceSet,
    depth: int,
    aggregate: str | None = None,
    max_failures: int = 20,
    allow_missing: bool = False,
) -> ScoredSplices:
    """Search with every spliced photo of a set, and score the rankings.

    Args:
        retriever: the index, built from the set's database.
        splices: the set.
        depth: results a query; sources that lie deeper count as never found.
        aggregate: name of an aggregator, or the config's.
        max_failures: how many failures to keep for a report.
        allow_missing: let sources that the index does not hold count as never found.

    Raises:
        ValueError: the index lacks sources of the set, unless ``allow_missing``.
    """
    records = {record.image_id: Path(record.path) for record in retriever.index.images}
    matches = match_database(splices, records.items(), allow_missing)
    files = [ImageFile(query.file_name, splices.resolve(query.file_name)) for query in splices.queries]
    rankings: list[list[str]] = []
    best: list[_BestResults] = []
    unreadable = []
    found = retriever.search_all(files, top_k=depth, aggregate=aggregate)
    for (file, result), query in zip(
        tqdm(found, total=len(files), desc="Searching", unit="query"), splices.queries, strict=True
    ):
        if isinstance(result, UnreadableImageError):
            logger.warning("%s", result)
            unreadable.append(file.image_id)
            rankings.append([])
            best.append(_BestResults(None, None, 0))
            continue
        rankings.append([hit.image_id for hit in result.results])
        best.append(_keep_best(result, {matches.get(source.image_id) for source in query.sources}))
    evaluation = evaluate_splice_retrieval(splices, rankings, matches)
    by_name = {
        row.file_name: (query, kept) for row, query, kept in zip(evaluation.rows, splices.queries, best, strict=True)
    }
    failures = [
        _make_case(row, *by_name[row.file_name], splices, matches, records)
        for row in worst_failures(evaluation.rows, max_failures)
    ]
    return ScoredSplices(evaluation, failures, unreadable)


@dataclass(frozen=True)
class _BestResults:
    """What a report needs of a ranking, so that the rankings' matches need not be kept."""

    top: RankedPhoto | None
    first_wrong: RankedPhoto | None
    length: int


def _keep_best(result: QueryResult, source_ids: set[str | None]) -> _BestResults:
    hits = result.results
    wrong = next((hit for hit in hits if hit.image_id not in source_ids), None)
    return _BestResults(
        top=_to_ranked_photo(hits[0]) if hits else None,
        first_wrong=_to_ranked_photo(wrong) if wrong is not None else None,
        length=len(hits),
    )


def _to_ranked_photo(hit: SearchResult) -> RankedPhoto:
    match = hit.matches[0] if hit.matches else None
    return RankedPhoto(
        image_id=hit.image_id,
        path=hit.path,
        rank=hit.rank,
        score=hit.score,
        query_box=match.query_box if match else None,
        database_box=match.database_box if match else None,
    )


def _make_case(
    row: QueryRow,
    query: SpliceQuery,
    best: _BestResults,
    splices: SpliceSet,
    matches: dict[str, str],
    records: dict[str, Path],
) -> FailureCase:
    files = {image.image_id: splices.resolve(image.file_name) for image in splices.database}

    def make_source(image_id: str, role: str, rank: int | None) -> TrueSource:
        path = records.get(matches.get(image_id, ""), files[image_id])
        return TrueSource(image_id, role, path, rank)

    sources: Sequence[TrueSource] = [
        make_source(image_id, "donor", rank) for image_id, rank in zip(row.donor_ids, row.donor_ranks, strict=True)
    ]
    if row.host_id is not None:
        sources = [make_source(row.host_id, "host", row.host_rank), *sources]
    return FailureCase(
        query_path=splices.resolve(query.file_name),
        pasted_boxes=[s.query_box for s in query.sources if s.role == "donor" and s.query_box is not None],
        top_result=best.top,
        sources=sources,
        ranking_length=best.length,
        database_size=len(records),
        first_wrong=best.first_wrong,
    )
