"""The order of equal scores: against us, so that no figure profits from the order of files."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from oesir_d2.index import SearchResult


def order_ties_against(
    results: Sequence[SearchResult], source_ids: Collection[str | None], keep_first: bool = False
) -> list[SearchResult]:
    """Move what a query looks for behind the other results of the same score.

    Results that a search cut off are not known, so of a tie that is cut, what is found stays found.

    Args:
        results: best first.
        source_ids: image ids of what the query looks for.
        keep_first: the first result was chosen by more than its score, as explaining away does; it stays the first.

    Returns:
        The same results with new ranks, from 1 on.

    >>> from oesir_d2.index import SearchResult
    >>> found = [SearchResult(1, "source", "", 0.5, []), SearchResult(2, "other", "", 0.5, [])]
    >>> [result.image_id for result in order_ties_against(found, {"source"})]
    ['other', 'source']
    """
    head = list(results[:1]) if keep_first else []
    rest = sorted(results[len(head) :], key=lambda result: (-result.score, result.image_id in source_ids))
    return [replace(result, rank=rank) for rank, result in enumerate(head + rest, start=1)]
