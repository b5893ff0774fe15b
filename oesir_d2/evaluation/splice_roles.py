"""Splices from the dataset dicts of a retrieval set, for the splice protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RoleSource:
    """A source photo and its role, "host" or "donor"."""

    image_id: str
    role: str


@dataclass(frozen=True)
class RoleQuery:
    """A spliced photo and its sources."""

    file_name: str
    sources: tuple[RoleSource, ...]


@dataclass(frozen=True)
class RoleEntry:
    """A photo of the database."""

    image_id: str
    file_name: str


@dataclass(frozen=True)
class RoleSplices:
    """What the splice protocol wants to know of a set; the file names are whole."""

    folder: Path
    database: tuple[RoleEntry, ...]
    queries: tuple[RoleQuery, ...]


def collect_splices(queries: Sequence[Mapping[str, Any]], database: Sequence[Mapping[str, Any]]) -> RoleSplices:
    """The splices of dataset dicts whose ground truth has the labels "host" and "donor".

    Raises:
        ValueError: a source that the database does not have, or a query without one.
    """
    known = {item["image_id"] for item in database}
    for query in queries:
        sources = [image_id for image_ids in query["ground_truth"].values() for image_id in image_ids]
        missing = [image_id for image_id in sources if image_id not in known]
        if missing or not sources:
            problem = f"has the source {missing[0]!r}, which the database lacks" if missing else "has no source"
            raise ValueError(f"the splice {query['image_id']!r} {problem}")
    return RoleSplices(
        folder=Path(),
        database=tuple(RoleEntry(item["image_id"], item["file_name"]) for item in database),
        queries=tuple(
            RoleQuery(
                query["image_id"],
                tuple(
                    RoleSource(image_id, role)
                    for role, image_ids in query["ground_truth"].items()
                    for image_id in image_ids
                ),
            )
            for query in queries
        ),
    )
