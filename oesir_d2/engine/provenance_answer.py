"""From evidence to an answer: which photo comes where, and in which role."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from oesir_d2.engine.part_analysis import AnalysedPart
from oesir_d2.engine.part_search import MIN_CONFIDENCE, PartSources
from oesir_d2.geometry import Findings, GeometricMatch, PhotoFinding, Role
from oesir_d2.index import SearchResult

# Weaker evidence orders nothing.
_LIKELY = 0.5


@dataclass(frozen=True)
class ProvenPhoto:
    """A photo that geometry confirms: as the search found it, and the evidence at working size."""

    result: SearchResult
    match: GeometricMatch


@dataclass(frozen=True)
class Evidence:
    """All that was found out about a query, at working size.

    Attributes:
        shape: (H, W) of the query.
        host: the photo that lies over most of the query.
        duplicates: photos that show the same as the host or as a donor.
        parts: what the host does not explain, or without a host, what donors explain.
        searches: further searches whose candidates were not confirmed.
        is_edited: whether the query differs from the host anywhere, even where no part was looked for.
        host_first: whether the host is what was asked for, and not what lies around it.
    """

    shape: tuple[int, int]
    host: ProvenPhoto | None = None
    duplicates: list[ProvenPhoto] = field(default_factory=list)
    parts: list[AnalysedPart] = field(default_factory=list)
    searches: list[PartSources] = field(default_factory=list)
    is_edited: bool = False
    host_first: bool = True


def make_answer(ranked: list[SearchResult], evidence: Evidence, top_k: int) -> tuple[list[SearchResult], Findings]:
    """Rank by the evidence.

    First comes the host, then the donors, the surest first, then near-duplicates; of a box, the host comes after its
    donors. Of what is unverified, the candidates of parts without a source come first, by their similarity, then the
    search with the whole query.

    Args:
        ranked: the search with the whole query, best first.
        evidence: what was found out.
        top_k: results wanted; those that are verified are never cut off.

    Returns:
        The results with new ranks, and the findings, parallel to them, at working size.
    """
    parts = sorted(evidence.parts, key=lambda part: -part.part.area)
    photos: dict[str, tuple[SearchResult, PhotoFinding]] = {}

    def add(result: SearchResult, role: Role, match: GeometricMatch | None, positions: tuple[int, ...] = ()) -> None:
        photos.setdefault(result.image_id, (result, PhotoFinding(result.image_id, role, match, positions)))

    def add_host() -> None:
        if evidence.host is not None:
            # A photo that nothing was changed in is a copy, no splice.
            is_edited = evidence.is_edited or bool(parts)
            add(evidence.host.result, "host" if is_edited else "near-duplicate", evidence.host.match)

    if evidence.host_first:
        add_host()
    found = [result for part in parts for result in part.sources.results]
    for donor, positions in _collect_donors(parts, [*found, *ranked]):
        add(donor.result, "donor", donor.match, positions)
    add_host()
    for duplicate in evidence.duplicates:
        add(duplicate.result, "near-duplicate", duplicate.match)
    num_verified = len(photos)
    searches = [part.sources for part in parts if part.part.kind == "unknown source"] + evidence.searches
    weak = {image_id: match for sources in searches for image_id, match in sources.matches.items()}
    for result in [*_order_candidates(searches, weak), *ranked]:
        match = weak.get(result.image_id)
        assert result.image_id in photos or match is None or match.confidence < MIN_CONFIDENCE, "proof without a role"
        add(result, "unverified", match)
    kept = list(photos.values())[: max(top_k, num_verified)]
    results = [replace(result, rank=rank) for rank, (result, _) in enumerate(kept, start=1)]
    found_anything = evidence.host is not None or bool(parts)
    mask = _paint(parts, evidence.shape) if found_anything else None
    findings = Findings(tuple(photo for _, photo in kept), tuple(part.part for part in parts), mask)
    return results, findings


def _collect_donors(
    parts: list[AnalysedPart], results: list[SearchResult]
) -> Iterator[tuple[ProvenPhoto, tuple[int, ...]]]:
    """Each donor once, the surest first, with the best of its matches and the positions of its parts."""
    positions: dict[str, list[int]] = {}
    for position, part in enumerate(parts):
        if part.part.source_id is not None:
            positions.setdefault(part.part.source_id, []).append(position)
    donors = []
    for image_id, its_positions in positions.items():
        matches = [parts[position].part.match for position in its_positions]
        best = max((match for match in matches if match is not None), key=lambda match: match.inliers)
        result = next(result for result in results if result.image_id == image_id)
        donors.append((ProvenPhoto(result, best), tuple(its_positions)))
    return iter(sorted(donors, key=lambda donor: (-donor[0].match.confidence, -donor[0].match.inliers)))


def _order_candidates(searches: list[PartSources], weak: dict[str, GeometricMatch]) -> list[SearchResult]:
    """What the searches for single parts found, those with likely evidence first, then the most similar."""

    def key(result: SearchResult) -> tuple[float, float]:
        match = weak.get(result.image_id)
        return (-match.confidence if match and match.confidence > _LIKELY else 0.0, -result.score)

    return sorted((result for sources in searches for result in sources.results), key=key)


def _paint(parts: list[AnalysedPart], shape: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    for part in parts:
        mask[part.mask] = 255
    return mask
