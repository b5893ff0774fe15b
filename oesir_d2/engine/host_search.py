"""Photos verified against the whole query: those that lie over most of it or, where there are none, over a part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from oesir_d2.data.images import UnreadableImageError
from oesir_d2.engine.part_proof import PartProof
from oesir_d2.engine.part_search import MIN_CONFIDENCE
from oesir_d2.engine.source_photos import SourcePhotos, WorkingPhoto
from oesir_d2.geometry import (
    Comparison,
    GeometricMatch,
    LocalFeatures,
    QueryFeatures,
    compare,
    is_same_photo,
    verify_match,
)
from oesir_d2.index import SearchResult

HOST_SHARE = 0.4
"""A photo that explains at least this share of the query's pixels is its host, and less of it a donor."""

# Pairs of regions that are looked at for a candidate, and how far around the matched regions.
_PAIRS = 3
_REGION_MARGIN = 0.25


@dataclass(frozen=True)
class VerifiedPhoto:
    """A photo that the query shows something of.

    Attributes:
        result: as the search found it.
        match: the evidence, at working size.
        comparison: the photo laid over the query.
        is_same: whether the pixels are those of the query, not of another photo of the same thing; only photos that
            could be the host are asked.
    """

    result: SearchResult
    match: GeometricMatch
    comparison: Comparison
    is_same: bool = False

    @property
    def is_host(self) -> bool:
        """Whether the query shows the photo in most places."""
        return self.is_same and self.comparison.explained >= HOST_SHARE


class WholeQueryVerifier:
    """Verifies photos against a whole query.

    Args:
        query: the query.
        features: its keypoints.
        photos: the photos of the index.
    """

    def __init__(self, query: WorkingPhoto, features: LocalFeatures, photos: SourcePhotos) -> None:
        self.query = query
        self._features = features
        self._width = query.pixels.shape[1]
        self._whole = QueryFeatures(features, self._width)
        self._photos = photos
        self._regions: dict[tuple[float, ...], QueryFeatures] = {}

    def verify(self, result: SearchResult) -> VerifiedPhoto | None:
        """The proof that the query shows something of a photo, if there is any."""
        match = verify_match(self._whole, self._photos.features_of(result.image_id))
        if match is None or match.confidence < MIN_CONFIDENCE:
            return None
        try:
            source = self._photos.load(result.image_id)
        except UnreadableImageError:  # its keypoints are cached, but the photo is gone by now
            return None
        comparison = compare(self.query.pixels, source.pixels, match)
        may_be_host = comparison.explained >= HOST_SHARE
        is_same = may_be_host and is_same_photo(self.query.pixels, source.pixels, match, comparison)
        return VerifiedPhoto(result, match, comparison, is_same)

    def find_hosts(self, results: Iterable[SearchResult], wanted: int) -> list[VerifiedPhoto]:
        """Those of the candidates that lie over most of the query, the one that explains most of it first.

        Args:
            results: candidates; each photo is looked at once.
            wanted: the search ends when so many were found.
        """
        hosts: list[VerifiedPhoto] = []
        seen = set()
        for result in results:
            if result.image_id not in seen and len(hosts) < wanted:
                seen.add(result.image_id)
                self._photos.expect([result])
                verified = self.verify(result)
                if verified is not None and verified.is_host:
                    hosts.append(verified)
        return sorted(hosts, key=lambda host: (-host.comparison.explained, -host.match.inliers))

    def find_any(self, results: Sequence[SearchResult], check: Callable[[float], None]) -> list[VerifiedPhoto]:
        """Those of the candidates that the query may show anything of, the strongest evidence first; not all is proof.

        Args:
            results: candidates, each with pairs of regions; these are compared first.
            check: called before each candidate with the share of the work that is done.
        """
        found = []
        self._photos.expect(results)
        for number, result in enumerate(results):
            check(number / len(results))
            if self._has_matching_pair(result):
                verified = self.verify(result)
                verified = verified and self._weigh(verified)
                if verified is not None:
                    found.append(verified)
        return sorted(found, key=lambda photo: (-photo.match.confidence, -photo.match.inliers))

    def _weigh(self, photo: VerifiedPhoto) -> VerifiedPhoto | None:
        """A photo that shows a part of the query only must look like it around its inliers."""
        if photo.is_host:
            return photo
        match = PartProof(self.query, self._photos).find_best(photo.result.image_id, (photo.match,))
        return replace(photo, match=match) if match is not None else None

    def _has_matching_pair(self, result: SearchResult) -> bool:
        source = self._photos.features_of(result.image_id)
        to_working = self._photos.size_of(result.image_id).box_to_working
        for pair in result.matches[:_PAIRS]:
            region = self._region(self.query.size.box_to_working(pair.query_box))
            if verify_match(region, source.inside(to_working(pair.database_box), _REGION_MARGIN)) is not None:
                return True
        return False

    def _region(self, box: tuple[float, float, float, float]) -> QueryFeatures:
        if box not in self._regions:
            self._regions[box] = QueryFeatures(self._features.inside(box, _REGION_MARGIN), self._width)
        return self._regions[box]
