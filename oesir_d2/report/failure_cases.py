"""From an evaluation of splices to the failures that a page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from oesir_d2.data.splicing import SpliceSet
from oesir_d2.evaluation import KeptResults, SpliceEvaluation, worst_failures
from oesir_d2.index import SearchResult
from oesir_d2.report.failure_report import FailureCase, RankedPhoto, TrueSource


def make_failure_cases(
    splices: SpliceSet,
    evaluation: SpliceEvaluation,
    kept: Sequence[KeptResults],
    matches: Mapping[str, str],
    paths: Mapping[str, Path],
    count: int,
) -> list[FailureCase]:
    """The worst queries of an evaluation, worst first.

    Args:
        splices: the set that was evaluated.
        evaluation: its outcome.
        kept: what was kept of each query's ranking, in the order of the set.
        matches: from the set's image ids to those of the index.
        paths: the photos of the index by their image ids.
        count: how many cases at most.
    """
    files = {image.image_id: splices.resolve(image.file_name) for image in splices.database}

    def make_source(image_id: str, role: str, rank: int | None) -> TrueSource:
        # A page compares sources with results, which go by the index's ids.
        index_id = matches.get(image_id, image_id)
        return TrueSource(index_id, role, paths.get(index_id, files[image_id]), rank)

    queries = {query.file_name: (query, results) for query, results in zip(splices.queries, kept, strict=True)}
    cases = []
    for row in worst_failures(evaluation.rows, count):
        query, results = queries[row.file_name]
        sources = [make_source(i, "donor", rank) for i, rank in zip(row.donor_ids, row.donor_ranks, strict=True)]
        if row.host_id is not None:
            sources.insert(0, make_source(row.host_id, "host", row.host_rank))
        case = FailureCase(
            query_path=splices.resolve(query.file_name),
            pasted_boxes=[s.query_box for s in query.sources if s.role == "donor" and s.query_box is not None],
            top_result=_to_ranked_photo(results.top),
            sources=sources,
            ranking_length=results.length,
            database_size=len(paths),
            first_wrong=_to_ranked_photo(results.first_wrong),
        )
        cases.append(case)
    return cases


def _to_ranked_photo(hit: SearchResult | None) -> RankedPhoto | None:
    if hit is None:
        return None
    match = hit.matches[0] if hit.matches else None
    return RankedPhoto(
        image_id=hit.image_id,
        path=hit.path,
        rank=hit.rank,
        score=hit.score,
        query_box=match.query_box if match else None,
        database_box=match.database_box if match else None,
    )
