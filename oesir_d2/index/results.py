"""What a search answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from .records import ImageRecord

Box = tuple[float, float, float, float]

BOX_DECIMALS = 2
"""Hundredths of a pixel are more than any reader of the results needs."""


def round_box(box: Iterable[float]) -> list[float]:
    """A box as it is written out."""
    return [round(float(value), BOX_DECIMALS) for value in box]


@dataclass(frozen=True)
class RegionMatch:
    """A region of the query and the region of a result that it matches best.

    Attributes:
        query_box: XYXY in pixels of the query's original file, after its EXIF rotation.
        database_box: XYXY in pixels of the result's original file, after its EXIF rotation.
        score: inner product of their embeddings, rounded to 6 decimals.
    """

    query_box: Box
    database_box: Box
    score: float


@dataclass(frozen=True)
class SearchResult:
    """A database image, ranked by its similarity to the query.

    Attributes:
        rank: 1 for the most similar image.
        image_id: identifier of the image.
        path: absolute path of its file, as it was when it was embedded.
        score: what it was ranked by, rounded to 6 decimals: its similarity to the query, or from rank 2 on, if the
            first result explained the query away, what it has beyond the first.
        matches: the best pairs of regions, in the order of what each contributes to the ranking.
        record: what the index knows of the file; None in a result that was not made by a search.
    """

    rank: int
    image_id: str
    path: str
    score: float
    matches: list[RegionMatch]
    record: ImageRecord | None = None

    def to_dict(self) -> dict[str, Any]:
        """The result as ``tools/search.py --json`` writes it: plain dicts, lists, strings and numbers.

        Boxes are rounded to ``BOX_DECIMALS``, those of the query's regions alike, so that equal boxes stay equal.
        The record is left out.
        """
        content = asdict(self)
        del content["record"]
        for match in content["matches"]:
            match.update(query_box=round_box(match["query_box"]), database_box=round_box(match["database_box"]))
        return content
