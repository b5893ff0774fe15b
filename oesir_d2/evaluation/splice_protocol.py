"""The protocol of spliced-image retrieval: does a splice find the photos that it was made from?

Per query the sources (the host and the donors) are the positives of a ranking of the database. The module needs
neither a model nor an index: rankings are lists of image ids. Splices are anything with the attributes of
:class:`Splices`, such as what ``oesir_d2.data.splicing.read_splices`` returns.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from oesir_d2.evaluation.metrics import compute_average_precision, recall_at_k

RECALL_DEPTHS = (1, 5, 10)
"""The k of the recalls of hosts and of donors."""

JOINT_DEPTHS = (2, 5, 10)
"""The k within which all sources of a query must lie together."""


class Source(Protocol):
    """One source photo of a splice."""

    @property
    def image_id(self) -> str: ...
    @property
    def role(self) -> str: ...


class Query(Protocol):
    """A spliced image and its sources."""

    @property
    def file_name(self) -> str: ...
    @property
    def sources(self) -> Sequence[Source]: ...


class DatabaseEntry(Protocol):
    """A photo of the database that the splices were made for."""

    @property
    def image_id(self) -> str: ...
    @property
    def file_name(self) -> str: ...


class Splices(Protocol):
    """A set of splices with its database; file names are relative to the folder."""

    @property
    def folder(self) -> Path: ...
    @property
    def database(self) -> Sequence[DatabaseEntry]: ...
    @property
    def queries(self) -> Sequence[Query]: ...


@dataclass(frozen=True)
class QueryRow:
    """How one query fared. Ranks are one-based here, as a reader counts.

    Attributes:
        file_name: the spliced image, as the splices name it.
        host_id: the host, by its image id in the splices; None if they name none.
        host_rank: rank of the host, from 1 on; None if it was not found or there is no host.
        donor_ids: the donors, by their image ids in the splices, each once.
        donor_ranks: rank of each donor, in the same order; None for one that was not found.
        average_precision: of all sources together, in [0, 1].
        top_result: the first result, by its image id in the ranking; None if the ranking is empty.
    """

    file_name: str
    host_id: str | None
    host_rank: int | None
    donor_ids: tuple[str, ...]
    donor_ranks: tuple[int | None, ...]
    average_precision: float
    top_result: str | None


@dataclass(frozen=True)
class SpliceEvaluation:
    """The outcome of the protocol.

    Attributes:
        metrics: ``{"splice_retrieval": {name: value}}``, the form that detectron2 prints; values in percent. A metric
            that no query is eligible for is NaN.
        rows: one row a query, in the order of the queries.
    """

    metrics: dict[str, dict[str, float]]
    rows: tuple[QueryRow, ...]


def evaluate_splice_retrieval(
    splices: Splices, rankings: Sequence[Sequence[str]], matches: Mapping[str, str] | None = None
) -> SpliceEvaluation:
    """Score the rankings that the spliced images of a set got.

    The metrics, each a mean over the queries that are eligible for it:

    - ``mAP``: trapezoidal average precision of all sources of a query (see ``metrics``).
    - ``host_recall@k``: the host is among the first k. Queries that name a host.
    - ``donor_recall@k``: share of the query's donors among the first k; a query with two donors of which one is found
      counts one half. Queries that name a donor.
    - ``both_in_top_k``: all sources are among the first k. Queries with at least two sources; one with more than k
      sources cannot succeed and counts as a failure.

    A photo that gave a splice several objects is one source. Rankings may be cut at any depth: a source that lies
    deeper counts as never found, so cutting can only lower a metric, and recall@k needs rankings of at least k.

    Args:
        splices: the set of splices.
        rankings: for each query of ``splices.queries``, in that order, the database's image ids, best first.
        matches: from the image ids of the splices to those of the rankings, as :func:`match_database` returns it.
            A source that it lacks counts as never found. Default: the ids are the same.

    Returns:
        The metrics and one row a query.

    Raises:
        ValueError: if the number of rankings is not the number of queries, or a ranking holds an image twice.
    """
    if len(rankings) != len(splices.queries):
        raise ValueError(f"{len(rankings)} rankings for {len(splices.queries)} queries, expected one each")
    rows = tuple(
        _score_query(query, ranking, matches) for query, ranking in zip(splices.queries, rankings, strict=True)
    )
    metrics = {"mAP": _mean_percent([row.average_precision for row in rows])}
    for k in RECALL_DEPTHS:
        metrics[f"host_recall@{k}"] = _mean_percent(
            [_recall((row.host_rank,), k) for row in rows if row.host_id is not None]
        )
    for k in RECALL_DEPTHS:
        metrics[f"donor_recall@{k}"] = _mean_percent([_recall(row.donor_ranks, k) for row in rows if row.donor_ids])
    ranks_of_all_sources = [ranks for ranks in map(_ranks_of_all_sources, rows) if len(ranks) >= 2]
    for k in JOINT_DEPTHS:
        metrics[f"both_in_top_{k}"] = _mean_percent([float(_recall(ranks, k) == 1) for ranks in ranks_of_all_sources])
    return SpliceEvaluation({"splice_retrieval": metrics}, rows)


def worst_failures(rows: Iterable[QueryRow], n: int) -> list[QueryRow]:
    """The ``n`` queries that fared worst, for a report to show; lowest average precision first, then by file name.

    Queries whose sources all came first are no failures and are left out.

    Raises:
        ValueError: if ``n`` is negative.
    """
    if n < 0:
        raise ValueError(f"n is {n}, expected at least 0")
    # AP of a perfect ranking is a sum of fractions, which need not be exactly 1 in floating point.
    failures = [row for row in rows if not math.isclose(row.average_precision, 1.0)]
    return sorted(failures, key=lambda row: (row.average_precision, row.file_name))[:n]


def match_database(
    splices: Splices, index_records: Iterable[tuple[str, str | Path]], allow_missing: bool = False
) -> dict[str, str]:
    """Find out under which ids an index holds the database of a splice set.

    A photo matches the index record of the same resolved absolute path; of those left over, the record of the same
    image id; of those left over, the record of the same file name, if only one photo and only one record have it.
    So no record matches two photos.

    Args:
        splices: the set of splices.
        index_records: (image_id, path) of every image of the index.
        allow_missing: accept sources that the index does not hold; they can never be found.

    Returns:
        From the image ids of the splices to those of the index, without the photos that the index does not hold.

    Raises:
        ValueError: if the index lacks a source of a query, unless ``allow_missing``.
    """
    records = [(image_id, Path(path)) for image_id, path in index_records]
    matches: dict[str, str] = {}
    keys_per_pass = (
        (
            [(image.image_id, _resolve(splices.folder / image.file_name)) for image in splices.database],
            [(image_id, _resolve(path)) for image_id, path in records],
        ),
        (
            [(image.image_id, image.image_id) for image in splices.database],
            [(image_id, image_id) for image_id, _ in records],
        ),
        (
            [(image.image_id, Path(image.file_name).name) for image in splices.database],
            [(image_id, path.name) for image_id, path in records],
        ),
    )
    for splice_keys, record_keys in keys_per_pass:
        _match_by_key(splice_keys, record_keys, matches)
    sources = {source.image_id for query in splices.queries for source in query.sources}
    missing = sorted(sources - matches.keys())
    if missing and not allow_missing:
        raise ValueError(
            f"the index lacks {len(missing)} of the {len(sources)} source photos of the splices, for example "
            f"{missing[0]!r}; it was built from other photos, or some of them were skipped"
        )
    return matches


def _match_by_key(
    splice_keys: Sequence[tuple[str, str]], record_keys: Sequence[tuple[str, str]], matches: dict[str, str]
) -> None:
    """Add to ``matches`` the pairs that are still free and share a key that is unique on both sides."""
    photos_per_key = Counter(key for _, key in splice_keys)
    records_per_key = Counter(key for _, key in record_keys)
    taken = set(matches.values())
    record_of_key = {
        key: image_id for image_id, key in record_keys if records_per_key[key] == 1 and image_id not in taken
    }
    for image_id, key in splice_keys:
        if image_id not in matches and photos_per_key[key] == 1 and key in record_of_key:
            matches[image_id] = record_of_key[key]


def _resolve(path: Path) -> str:
    return str(path.resolve())


def _score_query(query: Query, ranking: Sequence[str], matches: Mapping[str, str] | None) -> QueryRow:
    rank_of = {image_id: rank for rank, image_id in enumerate(ranking, start=1)}
    if len(rank_of) != len(ranking):
        repeated = Counter(ranking).most_common(1)[0][0]
        raise ValueError(f"the ranking of {query.file_name} holds {repeated!r} twice, expected each image once")

    def find_rank(image_id: str) -> int | None:
        # A photo without a match must not be found by chance under another photo's id.
        found_id = image_id if matches is None else matches.get(image_id)
        return None if found_id is None else rank_of.get(found_id)

    hosts = [source.image_id for source in query.sources if source.role == "host"]
    donors = list(dict.fromkeys(source.image_id for source in query.sources if source.role == "donor"))
    sources = list(dict.fromkeys(hosts + donors))
    found = [rank - 1 for rank in map(find_rank, sources) if rank is not None]
    return QueryRow(
        file_name=query.file_name,
        host_id=hosts[0] if hosts else None,
        host_rank=find_rank(hosts[0]) if hosts else None,
        donor_ids=tuple(donors),
        donor_ranks=tuple(map(find_rank, donors)),
        average_precision=compute_average_precision(found, len(sources)),
        top_result=ranking[0] if len(ranking) else None,
    )


def _ranks_of_all_sources(row: QueryRow) -> tuple[int | None, ...]:
    """One-based ranks of the distinct sources of a row; a photo may be both host and donor (copy-move)."""
    rank_of = dict(zip(row.donor_ids, row.donor_ranks, strict=True))
    if row.host_id is not None:
        rank_of[row.host_id] = row.host_rank
    return tuple(rank_of.values())


def _recall(ranks: Sequence[int | None], k: int) -> float:
    """Recall of a row's one-based ranks."""
    return recall_at_k([rank - 1 for rank in ranks if rank is not None], len(ranks), k)


def _mean_percent(values: Sequence[float]) -> float:
    return 100 * float(np.mean(values)) if values else float("nan")
