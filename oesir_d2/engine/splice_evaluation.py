"""Scoring an index on a set of splices."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from oesir_d2.data.datasets.photo_sizes import read_photo_size
from oesir_d2.data.images import ImageFile, UnreadableImageError, read_image
from oesir_d2.data.splicing import SpliceQuery, SpliceSet
from oesir_d2.data.splicing.splices_file import ROLES
from oesir_d2.engine.provenance import Provenance, ProvenanceAnalyzer, analyze_all
from oesir_d2.engine.retrieval import Retriever
from oesir_d2.evaluation import (
    KeptResults,
    ProvenanceRow,
    SpliceEvaluation,
    evaluate_splice_retrieval,
    match_database,
    order_ties_against,
    score_provenance,
)

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
        provenance: with ``verify``, one row a query that could be read; else empty.
    """

    splices: SpliceSet
    evaluation: SpliceEvaluation
    kept: list[KeptResults]
    matches: dict[str, str]
    paths: dict[str, Path]
    unreadable: list[str]
    provenance: list[ProvenanceRow]


def evaluate_splices(
    retriever: Retriever,
    splices: SpliceSet,
    depth: int,
    aggregate: str | None = None,
    allow_missing: bool = False,
    verify: bool = False,
) -> ScoredSplices:
    """Search with every spliced photo of a set, and score the rankings.

    Args:
        retriever: the index, built from the set's database.
        splices: the set.
        depth: results a query; sources that lie deeper count as never found.
        aggregate: name of an aggregator, or the config's.
        allow_missing: let sources that the index does not hold count as never found.
        verify: verify what is found, rank by the evidence, and score roles and masks as well.

    Raises:
        ValueError: the index lacks sources of the set, unless ``allow_missing``; the depth is out of range; or, with
            ``verify``, a mask cannot be read or has another size than its query.
    """
    paths = {record.image_id: Path(record.path) for record in retriever.index.images}
    matches = match_database(splices, paths.items(), allow_missing)
    files = [ImageFile(query.file_name, splices.resolve(query.file_name)) for query in splices.queries]
    if verify:
        check_true_masks(splices)
    rankings: list[list[str]] = []
    kept: list[KeptResults] = []
    unreadable = []
    provenance: list[ProvenanceRow] = []
    searched = (
        analyze_all(ProvenanceAnalyzer(retriever), files, depth, aggregate)
        if verify
        else retriever.search_all(files, top_k=depth, aggregate=aggregate)
    )
    found = tqdm(searched, total=len(files), desc="Searching", unit="query")
    for (file, result), query in zip(found, splices.queries, strict=True):
        if isinstance(result, UnreadableImageError):
            logger.warning("%s", result)
            unreadable.append(file.image_id)
            rankings.append([])
            kept.append(KeptResults())
            continue
        sources = {matches.get(source.image_id) for source in query.sources}
        if isinstance(result, Provenance):
            provenance.append(_score_provenance(splices, query, result, matches))
            results = result.results  # ordered by evidence, in which nothing is equal
        else:
            results = order_ties_against(result.results, sources, keep_first=retriever.cfg.RETRIEVAL.EXPLAIN_AWAY > 0)
        rankings.append([hit.image_id for hit in results])
        kept.append(KeptResults.of(results, sources))
    evaluation = evaluate_splice_retrieval(splices, rankings, matches)
    return ScoredSplices(splices, evaluation, kept, matches, paths, unreadable, provenance)


def check_true_masks(splices: SpliceSet) -> None:
    """Read all masks that show what was pasted, so that a bad one is told before hours of work and not after them.

    Raises:
        ValueError: a mask cannot be read or has another size than its query.
    """
    for query in splices.queries:
        try:
            width, height = read_photo_size(splices.resolve(query.file_name))
        except UnreadableImageError:
            continue  # it is not searched with either
        for name in _list_true_masks(query):
            mask = read_image(splices.resolve(name))
            if (mask.width, mask.height) != (width, height):
                raise ValueError(
                    f"mask {splices.resolve(name)} has {mask.width} x {mask.height} pixels, expected the "
                    f"{width} x {height} of {splices.resolve(query.file_name)}"
                )


def _score_provenance(
    splices: SpliceSet, query: SpliceQuery, found: Provenance, matches: Mapping[str, str]
) -> ProvenanceRow:
    # A photo that gave several objects is one donor. A source that the index lacks has no id there.
    by_role = {role: dict.fromkeys(s.image_id for s in query.sources if s.role == role) for role in ROLES}
    host, *_ = [matches.get(image_id, "") for image_id in by_role["host"]] or [None]
    donors = [matches.get(image_id, "") for image_id in by_role["donor"]]
    true_mask = _read_true_mask(splices, query)
    return score_provenance(query.file_name, found.findings, host, donors, true_mask, query.is_copy_move)


def _read_true_mask(splices: SpliceSet, query: SpliceQuery) -> np.ndarray | None:
    """What was pasted into a query, (H, W) bool; None if a mask is missing."""
    names = _list_true_masks(query)
    masks = [read_image(splices.resolve(name)).pixels[..., 0] > 127 for name in names]
    return np.logical_or.reduce(masks) if masks else None


def _list_true_masks(query: SpliceQuery) -> list[str]:
    """The files that together show what was pasted into a query; none if one of them is missing."""
    names = [source.mask for source in query.sources if source.role == "donor" or query.is_copy_move]
    return [] if None in names else names
