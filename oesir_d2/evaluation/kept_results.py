"""What is kept of a ranking for looking at it later: a thousand rankings with all their matches need not be held."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from oesir_d2.index import SearchResult


@dataclass(frozen=True)
class KeptResults:
    """The telling results of one query.

    Attributes:
        top: the first result; None if there is none.
        first_wrong: the first result that is no source of the query; None if there is none.
        length: how many results there were.
    """

    top: SearchResult | None = None
    first_wrong: SearchResult | None = None
    length: int = 0

    @classmethod
    def of(cls, results: Sequence[SearchResult], source_ids: Collection[str | None]) -> KeptResults:
        """Keep what tells of a ranking, best first, of a query with these sources."""
        first_wrong = next((result for result in results if result.image_id not in source_ids), None)
        return cls(results[0] if results else None, first_wrong, len(results))
