"""What the parts are that a host does not explain: from a donor, copied within the photo, or of unknown source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import cv2
import numpy as np

from oesir_d2.data.images import ImageFile, UnreadableImageError
from oesir_d2.engine.host_search import VerifiedPhoto
from oesir_d2.engine.part_proof import PartProof
from oesir_d2.engine.part_search import (
    MIN_CONFIDENCE,
    PartSources,
    detect_part_features,
    rank_for_part,
    verify_candidates,
)
from oesir_d2.engine.retrieval import Retriever
from oesir_d2.engine.source_photos import SourcePhotos, WorkingPhoto
from oesir_d2.geometry import (
    PART_OPTIONS,
    Comparison,
    GeometricMatch,
    LocalFeatures,
    QueryFeatures,
    SplicePart,
    detect_features_in_box,
    express_within_query,
    make_part,
    refine_with_donor,
    verify_match,
    weigh_appearance,
)
from oesir_d2.geometry.confidence import difference_confidence
from oesir_d2.geometry.transforms import apply_transform
from oesir_d2.index import SearchResult

# What lies where the host has it is no copy. In pixels of the working query.
_MIN_COPY_DISTANCE = 8.0
# Keypoints of the part reach so far beyond it, in pixels.
_RIM = 4
# What looks so much like a photo that was laid over another part belongs to that part's object.
_SAME_PLACE = 0.75
# Within the query, which is enlarged to this longer side, so many keypoints are compared; the strongest.
_WITHIN_SIDE = 768
_WITHIN_FEATURES = 4000


@dataclass(frozen=True)
class AnalysedPart:
    """A part of the query and where it comes from.

    Attributes:
        mask: (H, W) bool at working size.
        part: what it is, at working size.
        sources: what its own search found; empty if none was needed.
    """

    mask: np.ndarray
    part: SplicePart
    sources: PartSources = field(default_factory=lambda: PartSources([], {}))


def describe_unknown(mask: np.ndarray, host: Comparison, sources: PartSources | None = None) -> AnalysedPart:
    """A part of unknown source.

    Args:
        mask: (H, W) bool at working size, not empty.
        host: the query compared with its host, which does not explain the part.
        sources: what its own search found, if there was one.
    """
    compared = mask & host.difference.valid
    # What the host does not reach is not of it.
    confidence = 1.0
    if compared.any():
        share = np.count_nonzero(compared) / np.count_nonzero(mask)
        differs = difference_confidence(float(host.difference.deviation[compared].mean()))
        confidence = share * differs + 1 - share
    return AnalysedPart(mask, make_part(mask, "unknown source", confidence), sources or PartSources([], {}))


class PartAnalyzer:
    """Finds out where the parts of one query come from that its host does not explain.

    Args:
        retriever: the index.
        photos: its photos.
        file: the query, for messages.
        query: its pixels.
        host: the host.
        candidates: photos verified for each part; > 0.
    """

    def __init__(
        self,
        retriever: Retriever,
        photos: SourcePhotos,
        file: ImageFile,
        query: WorkingPhoto,
        host: VerifiedPhoto,
        candidates: int,
    ) -> None:
        self._retriever = retriever
        self._photos = photos
        self._file = file
        self._query = query
        self._host = host
        self._candidates = candidates
        self._placements: list[tuple[str, GeometricMatch]] = []

    def analyze(self, mask: np.ndarray, check: Callable[[float], None]) -> AnalysedPart:
        """Find the source of a part.

        Args:
            mask: (H, W) bool at working size, not empty.
            check: called again and again with the share of the work that is done.
        """
        features = detect_part_features(self._query, mask, self._photos.options)
        proof = PartProof(self._query, self._photos, mask, self._host.result.image_id)
        known = self._find_known(features, proof)
        if known is not None:
            return self._assign(mask, *known, PartSources([], dict([known])))
        from_host = self._find_copy(mask, features, proof)
        if from_host is not None:
            return self._assign(mask, self._host.result.image_id, from_host, PartSources([], {}))
        results = rank_for_part(self._retriever, self._file, self._query, mask, self._candidates)
        skip = {self._host.result.image_id}
        matches = verify_candidates(features, results, self._photos, proof, skip, check)
        sources = PartSources([result for result in results if result.image_id not in skip], matches)
        best = sources.best()
        if best is not None:
            return self._assign(mask, *best, sources)
        copied = self._find_copy_within(mask, features)
        if copied is not None:
            pixels = self._query.pixels
            return _make_copy(refine_with_donor(mask, self._host.comparison.difference, pixels, pixels, copied), copied)
        return describe_unknown(mask, self._host.comparison, sources)

    def _find_known(self, features: QueryFeatures, proof: PartProof) -> tuple[str, GeometricMatch] | None:
        """A photo that another part came from: one object may fall into several parts."""
        for image_id, placed in self._placements:
            match = proof.find_best(image_id, (placed,))
            appearance = match.appearance if match is not None else None
            if appearance is not None and not appearance.is_too_small and appearance.correlation >= _SAME_PLACE:
                return image_id, replace(placed, appearance=appearance)
        for image_id in dict.fromkeys(image_id for image_id, _ in self._placements):
            if image_id == self._host.result.image_id:
                continue
            match = verify_match(features, self._photos.features_of(image_id), PART_OPTIONS)
            match = proof.find_best(image_id, (match,))
            if match is not None and match.confidence >= MIN_CONFIDENCE:
                return image_id, match
        return None

    def _find_copy(self, mask: np.ndarray, features: QueryFeatures, proof: PartProof) -> GeometricMatch | None:
        """How a part was copied, from the host to the query: what it shows is elsewhere in the host."""
        image_id = self._host.result.image_id
        source = self._photos.features_of(image_id)
        # The host's own keypoints at the part's rim, where nothing was copied, would be the best match of all.
        is_elsewhere = ~find_points_within(apply_transform(self._host.match.transform, source.points), mask)
        match = verify_match(features, source.select(np.flatnonzero(is_elsewhere)), PART_OPTIONS)
        match = proof.find_best(image_id, (match,))
        if match is None or match.confidence < MIN_CONFIDENCE:
            return None
        return match if _is_far(express_within_query(match, self._host.match)) else None

    @cached_property
    def _enlarged_features(self) -> LocalFeatures:
        """The keypoints of the query, enlarged."""
        height, width = self._query.pixels.shape[:2]
        options = replace(self._photos.options, max_features=_WITHIN_FEATURES)
        return detect_features_in_box(self._query.pixels, (0, 0, width, height), options, _WITHIN_SIDE)

    def _find_copy_within(self, mask: np.ndarray, features: QueryFeatures) -> GeometricMatch | None:
        """The same within the query, which is enlarged for it: it shows the original compressed like the copy."""
        is_outside = ~find_points_within(self._enlarged_features.points, mask)
        match = verify_match(features, self._enlarged_features.select(np.flatnonzero(is_outside)), PART_OPTIONS)
        if match is None:
            return None
        match = weigh_appearance(self._query.pixels, self._query.pixels, match, mask, is_known=True)
        return match if match.confidence >= MIN_CONFIDENCE and _is_far(match) else None

    def place(self, mask: np.ndarray, result: SearchResult, match: GeometricMatch) -> AnalysedPart:
        """A part whose source is known already.

        Args:
            mask: (H, W) bool at working size, not empty.
            result: the source, as the search found it; not the host.
            match: its evidence, at working size.
        """
        return self._assign(mask, result.image_id, match, PartSources([result], {}))

    def _assign(self, mask: np.ndarray, image_id: str, match: GeometricMatch, sources: PartSources) -> AnalysedPart:
        """A part from a donor, or from another place of the host."""
        self._placements.append((image_id, match))
        refined = self._redraw(mask, image_id, match)
        if image_id == self._host.result.image_id:
            return _make_copy(refined, express_within_query(match, self._host.match))
        part = make_part(refined, "donor", match.confidence, image_id, match)
        return AnalysedPart(refined, part, sources)

    def _redraw(self, mask: np.ndarray, image_id: str, match: GeometricMatch) -> np.ndarray:
        """The part's outline, now that its source is known."""
        try:
            source = self._photos.load(image_id).pixels
        except UnreadableImageError:  # it went away just now
            return mask
        return refine_with_donor(mask, self._host.comparison.difference, self._query.pixels, source, match)


def find_points_within(points: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Which points (N, 2) of the query lie in a part (H, W) bool or at its rim, (N,) bool."""
    height, width = part.shape
    columns, rows = np.rint(points.clip(-1, [width, height])).astype(int).T
    outside = (columns < 0) | (rows < 0) | (columns >= width) | (rows >= height)
    near = _widen(part)[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    return ~outside & (near > 0)


def _widen(part: np.ndarray) -> np.ndarray:
    """A part (H, W) bool with the rim that its keypoints reach, as uint8 of 0 and 1."""
    return cv2.dilate(part.astype(np.uint8), np.ones((2 * _RIM + 1,) * 2, np.uint8))


def _is_far(copied: GeometricMatch) -> bool:
    """Whether a match within the query leads to another place."""
    distances = np.linalg.norm(copied.query_points - copied.source_points, axis=1)
    return float(np.median(distances)) >= _MIN_COPY_DISTANCE


def _make_copy(mask: np.ndarray, copied: GeometricMatch) -> AnalysedPart:
    return AnalysedPart(mask, make_part(mask, "copy-move", copied.confidence, match=copied))
